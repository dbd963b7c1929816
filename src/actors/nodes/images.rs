//! Images on their way from node to node, as the master has a hand in them.
//!
//! Owns: [`Shelves`], what each linked node says that it has, and the passing on of parts. Invariants: a node speaks of its
//! own images only, and what it says goes with its link; it gets only images that its own pods name; what is passed on
//! is neither kept nor looked at (who takes it compares digests), a few buffers of each stream are here at a time, and a
//! stream on which nothing moves ends. What a part's end means is kept: whole, or broken off.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use actix::{AsyncContext as _, Context, StreamHandler};
use dashmap::DashMap;
use k8s_openapi::api::core::v1;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::broadcast,
};

use super::{Links, OPEN_WITHIN, handle::NodeHandle, refusals::Refused};
use crate::{
    logic::image_peers::{Claim, Held, choose},
    messages::wire::{self, ByteStream, HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open},
    model::{Key, Kind, NodeName},
    net::{Class, NetError, Responder},
    runtime::images::{BUILTIN_IMAGE, normalize},
};

/// What nodes have that others may take, by node: of those that are linked.
#[derive(Clone)]
pub(super) struct Shelves {
    held: Arc<DashMap<NodeName, Vec<HeldImage>>>,
    /// Names under which somebody has just brought an image to a node.
    came: broadcast::Sender<Arc<Vec<String>>>,
}

impl Default for Shelves {
    fn default() -> Shelves {
        Shelves { held: Arc::default(), came: broadcast::channel(ARRIVALS).0 }
    }
}

impl Shelves {
    /// The node is linked no more, or anew.
    pub(super) fn clear(&self, node: &NodeName) {
        self.held.remove(node);
    }
}

/// Names under which somebody brought images to some node; `None` when they were too many to follow.
pub(super) struct Arrived(Option<Arc<Vec<String>>>);

/// Arrivals that an actor may be behind with; beyond that it takes any image to have come.
const ARRIVALS: usize = 64;
/// A node is told once in this time that images came: its pods then ask, whoever keeps loading images.
const TELL_PACE: Duration = Duration::from_secs(1);

/// Names a node may tell: some ten times what fits on a disk. The rest is not known to others.
const MOST_HELD: usize = 4096;
/// Streams that one node may have at once for images: its pulls, and questions.
pub(super) const STREAMS: usize = 16;
/// A part that does not move for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// What is held of a part on its way.
const BUFFER: usize = 64 << 10;

impl NodeHandle {
    /// The node has told what it has.
    pub(super) fn note_images(&mut self, mut told: Vec<HeldImage>) {
        told.truncate(MOST_HELD);
        told.retain(|image| {
            let good = is_digest(&image.id)
                && image.name != BUILTIN_IMAGE
                && !image.name.contains('@')
                && normalize(&image.name).is_ok_and(|full| full == image.name);
            if !good {
                self.refuse_image(&image.name);
            }
            good
        });
        let before = self.shelves.held.insert(self.name.clone(), told.clone()).unwrap_or_default();
        let brought =
            told.into_iter().filter(|image| image.held == HeldAs::ByHand && !before.contains(image));
        let names: Vec<String> = brought.map(|image| image.name).collect();
        if !names.is_empty() {
            // Without another node nobody listens.
            let _ = self.shelves.came.send(Arc::new(names));
        }
    }

    /// What comes to other nodes from now on.
    pub(super) fn arrivals(&self) -> impl futures_util::Stream<Item = Arrived> + use<> {
        futures_util::stream::unfold(self.shelves.came.subscribe(), |mut came| async move {
            match came.recv().await {
                Ok(names) => Some((Arrived(Some(names)), came)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Arrived(None), came)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }

    /// Lets the node's pods ask again that wait for such an image.
    fn tell_arrivals(&mut self, ctx: &mut Context<NodeHandle>) {
        if std::mem::replace(&mut self.arrivals_told, true) {
            return;
        }
        ctx.run_later(TELL_PACE, |node, _| {
            node.arrivals_told = false;
            let Some(link) = node.link.as_ref().filter(|_| node.greeted) else { return };
            // A pod that is not told tries again by itself.
            if let Err(error) = link.send(Class::Control, &wire::ToNode::ImagesCame) {
                tracing::debug!(node = %node.name, %error, "it was not told that images came");
            }
        });
    }

    fn refuse_image(&mut self, name: &str) {
        let short: String = name.chars().take(64).collect();
        self.refusals.note(&self.name, Refused::Image, &Key::new(Kind::Node, "", short));
    }

    /// The node wants a flow of bytes.
    pub(super) fn stream_asked(&mut self, open: Open, responder: Responder) {
        let name = match &open {
            Open::ImageHolders(wanted) => Some(wanted.name.clone()),
            Open::ImagePart(part) => self.name_of(part),
            _ => return refuse(responder, 405, "a master serves images of other nodes, and nothing else"),
        };
        let Ok(turn) = self.image_streams.clone().try_acquire_owned() else {
            return refuse(responder, 429, "too many streams at once; try again");
        };
        if !name.as_ref().is_some_and(|name| self.pods_name(name)) {
            return refuse(responder, 403, "no pod of this node names that image");
        }
        match open {
            Open::ImageHolders(wanted) => match self.holders(&wanted) {
                Some(holders) => {
                    tokio::spawn(async move {
                        answer(&holders, responder).await;
                        drop(turn);
                    });
                }
                None => refuse(responder, 404, "no other node has it"),
            },
            Open::ImagePart(part) => {
                let (links, asker) = (self.links.clone(), self.name.clone());
                tokio::spawn(async move {
                    pass_on(&links, asker, part, responder).await;
                    drop(turn);
                });
            }
            _ => {}
        }
    }

    /// Under which of the names that a pod here uses the node asked has the image.
    fn name_of(&self, part: &ImagePart) -> Option<String> {
        let shelf = self.shelves.held.get(&part.node)?;
        let mut names = shelf.iter().filter(|held| held.id == part.image).map(|held| &held.name);
        names.find(|name| self.pods_name(name)).cloned()
    }

    fn pods_name(&self, full: &str) -> bool {
        let mut pods = self.pods.values().filter_map(|pod| pod.parse::<v1::Pod>().ok());
        pods.any(|pod| images_of(&pod).contains(full))
    }

    fn holders(&self, wanted: &ImageWanted) -> Option<ImageHolders> {
        let mut claims: Vec<Claim> = Vec::new();
        for shelf in self.shelves.held.iter() {
            let held = shelf.value().iter().filter(|held| held.name == wanted.name);
            claims.extend(held.map(|held| Claim {
                node: shelf.key().clone(),
                id: held.id.clone(),
                held: match held.held {
                    HeldAs::ByHand => Held::ByHand,
                    HeldAs::Copied => Held::Copied,
                    HeldAs::Pulled => Held::Pulled,
                },
                since_ms: held.since_ms,
            }));
        }
        let (meant, nodes) = choose(&claims, &self.name, wanted.by_hand, turn_of(&self.name))?;
        let image = HeldImage {
            name: wanted.name.clone(),
            id: meant.id,
            held: match meant.held {
                Held::ByHand => HeldAs::ByHand,
                Held::Copied => HeldAs::Copied,
                Held::Pulled => HeldAs::Pulled,
            },
            since_ms: meant.since_ms,
        };
        Some(ImageHolders { image, nodes })
    }
}

impl StreamHandler<Arrived> for NodeHandle {
    fn handle(&mut self, Arrived(names): Arrived, ctx: &mut Self::Context) {
        let named = |name: &String| self.pods_name(name);
        if names.is_none_or(|names| names.iter().any(named)) {
            self.tell_arrivals(ctx);
        }
    }

    /// The other nodes' actors have gone, with the registry.
    fn finished(&mut self, _: &mut Self::Context) {}
}

fn is_digest(text: &str) -> bool {
    let hex = |hex: &str| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.strip_prefix("sha256:").is_some_and(hex)
}

/// Which of several equals a node begins with: always the same, and not the same as others.
fn turn_of(node: &NodeName) -> usize {
    let mut hasher = DefaultHasher::new();
    node.as_str().hash(&mut hasher);
    usize::try_from(hasher.finish() >> 33).unwrap_or(0)
}

/// The full names of the images that a pod uses.
fn images_of(pod: &v1::Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| c.image.as_deref());
    let names = containers.filter_map(|c| c.image.as_deref()).chain(ephemeral);
    names.filter_map(|name| normalize(name).ok()).collect()
}

fn refuse(responder: Responder, code: u16, text: &'static str) {
    // Who has gone meanwhile needs no answer.
    tokio::spawn(async move { responder.refuse(code, text).await.ok() });
}

async fn answer(holders: &ImageHolders, responder: Responder) {
    let Ok(json) = serde_json::to_vec(holders) else { return };
    let Ok(mut stream) = responder.accept().await else { return };
    if stream.write.write_all(&json).await.is_ok() {
        // Who has gone meanwhile needs no end.
        let _ = stream.write.shutdown().await;
    }
}

/// Passes a part on from the node that has it to the one that wants it.
async fn pass_on(links: &Links, asker: NodeName, part: ImagePart, responder: Responder) {
    let node = part.node.clone();
    let link = links.get(&node).map(|link| link.value().clone());
    let opened = match link {
        Some(link) => link.open(Open::ImagePart(part), OPEN_WITHIN).await,
        None => Err(NetError::Refused(503, "it is not linked any more".into())),
    };
    let source = match opened {
        Ok(source) => source,
        Err(error) => {
            let (code, text) = match error {
                NetError::Refused(code, text) => (code, text),
                other => (503, other.to_string()),
            };
            // Who has gone meanwhile needs no answer.
            let _ = responder.refuse(code, &text).await;
            return;
        }
    };
    let Ok(sink) = responder.accept().await else { return };
    if let Err(error) = copy(source, sink).await {
        // The asker's stream was dropped before its end was said: it hears a reset.
        tracing::debug!(%node, %asker, %error, "a part of an image broke off on its way");
    }
}

async fn copy(source: ByteStream, sink: ByteStream) -> std::io::Result<()> {
    let wire::ByteStream { mut read, write: _asking } = source;
    let wire::ByteStream { read: _listening, mut write } = sink;
    let mut buffer = vec![0; BUFFER];
    loop {
        let n = tokio::time::timeout(SILENCE, read.read(&mut buffer)).await??;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
            return write.shutdown().await;
        };
        tokio::time::timeout(SILENCE, write.write_all(bytes)).await??;
    }
}
