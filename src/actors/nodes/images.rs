//! Images on their way from node to node, as the master has a hand in them.
//!
//! Owns: [`Shelves`], what each linked node says that it has, and the passing on of parts. Invariants: a node speaks of its
//! own images only, and what it says goes with its link; it gets only images that its own pods name; what is passed on
//! is neither kept nor looked at (who takes it compares digests), a few buffers of each stream are here at a time, and a
//! stream on which nothing moves ends. What a part's end means is kept: whole, or broken off. Whatever a node says costs
//! the others a look into a set: no pod is read for it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use actix::{AsyncContext as _, Context, StreamHandler};
use dashmap::DashMap;
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast},
};

use super::{Links, OPEN_WITHIN, handle::NodeHandle, refusals::Refused};
use crate::{
    actors::outside,
    logic::image_peers::{Claim, Held, choose},
    messages::wire::{self, ByteStream, HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open},
    model::{Key, Kind, NodeName, Object, Revision, Uid},
    net::{Class, NetError, Responder},
    runtime::images::{BUILTIN_IMAGE, normalize},
};

/// Names under which somebody brought images to some node; `None` when they were too many to follow.
type Came = Option<Arc<Vec<String>>>;

/// What nodes have that others may take, by node: of those that are linked.
#[derive(Clone)]
pub(super) struct Shelves {
    held: Arc<DashMap<NodeName, Vec<HeldImage>>>,
    /// Names under which somebody has just brought an image to a node.
    came: broadcast::Sender<Came>,
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

/// Somebody brought images to some node.
pub(super) struct Arrived(Came);

/// Arrivals that an actor may be behind with; beyond that it takes any image to have come.
const ARRIVALS: usize = 64;
/// A node is told once in this time that images came: its pods then ask, whoever keeps loading images. As often does one
/// node say that images came to it.
const TELL_PACE: Duration = Duration::from_secs(1);
/// More names at once are told as "something came".
const NAMED_AT_ONCE: usize = 64;

/// Names a node may tell: some ten times what fits on a disk. The rest is not known to others.
const MOST_HELD: usize = 4096;
/// Parts that one node may have on their way at once.
const STREAMS: usize = 16;
/// Questions of one node that are answered at once.
const QUESTIONS: usize = 16;
/// So long a stream waits for its turn: with as long at the node that gives, less than the asker waits.
const TURN_WITHIN: Duration = Duration::from_secs(4);
/// An answer that is not read within so long is given up: its turn is another's.
const READ_WITHIN: Duration = Duration::from_secs(10);
/// A part that does not move for so long is given up.
const SILENCE: Duration = Duration::from_secs(60);
/// What is held of a part on its way.
const BUFFER: usize = 64 << 10;

const CLUSTER_KEEPS_IMAGES: &str =
    "no images go from node to node: the master was started with --no-image-sharing";

/// What one node's actor has to do with images.
pub(super) struct Images {
    parts: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    pub(super) named: Named,
    /// Came to the node, and not yet said.
    came: BTreeSet<String>,
    /// It was said a moment ago.
    said: bool,
    /// The node is told soon that images came to others.
    told: bool,
}

impl Default for Images {
    fn default() -> Images {
        Images {
            parts: Arc::new(Semaphore::new(STREAMS)),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            named: Named::default(),
            came: BTreeSet::new(),
            said: false,
            told: false,
        }
    }
}

/// The full names of the images that a node's pods use.
#[derive(Default)]
pub(super) struct Named {
    /// Those of each pod as of a revision.
    pods: HashMap<Uid, (Revision, Vec<String>)>,
    all: HashSet<String>,
}

impl Named {
    /// These are the pods now. Only those are read that are new or have changed.
    pub(super) fn take(&mut self, pods: &BTreeMap<Uid, Arc<Object>>) {
        let before = self.pods.len();
        self.pods.retain(|uid, _| pods.contains_key(uid));
        let mut changed = self.pods.len() != before;
        for (uid, pod) in pods {
            let known = self.pods.get(uid);
            if known.is_some_and(|(revision, _)| *revision == pod.revision) {
                continue;
            }
            let names = images_of(pod);
            changed |= known.is_none_or(|(_, before)| *before != names);
            self.pods.insert(uid.clone(), (pod.revision, names));
        }
        if changed {
            self.all = self.pods.values().flat_map(|(_, names)| names).cloned().collect();
        }
    }

    fn has(&self, full: &str) -> bool {
        self.all.contains(full)
    }
}

/// What a node says, with times that are not to come: else a clock that is ahead would outdo whatever is brought later.
/// What it has said before keeps the time that it was given then.
fn bounded(mut told: Vec<HeldImage>, before: &[HeldImage], now_ms: i64) -> Vec<HeldImage> {
    let known: HashMap<(&str, &str), i64> =
        before.iter().map(|image| ((image.name.as_str(), image.id.as_str()), image.since_ms)).collect();
    for image in told.iter_mut().filter(|image| image.since_ms > now_ms) {
        let given = known.get(&(image.name.as_str(), image.id.as_str())).copied();
        image.since_ms = given.unwrap_or(now_ms).min(now_ms);
    }
    told
}

/// The names under which somebody has brought an image that was not there before.
fn brought(told: &[HeldImage], before: &[HeldImage]) -> Vec<String> {
    let by_hand = |image: &&HeldImage| image.held == HeldAs::ByHand;
    let known: HashSet<(&str, &str)> =
        before.iter().filter(by_hand).map(|image| (image.name.as_str(), image.id.as_str())).collect();
    let new = told.iter().filter(by_hand);
    let new = new.filter(|image| !known.contains(&(image.name.as_str(), image.id.as_str())));
    new.map(|image| image.name.clone()).collect()
}

impl NodeHandle {
    /// The node has told what it has.
    pub(super) fn note_images(&mut self, mut told: Vec<HeldImage>, ctx: &mut Context<NodeHandle>) {
        if self.seed.no_image_sharing {
            return;
        }
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
        let before = self.shelves.held.get(&self.name).map(|held| held.clone()).unwrap_or_default();
        let told = bounded(told, &before, outside::now().as_millisecond());
        self.images.came.extend(brought(&told, &before));
        self.shelves.held.insert(self.name.clone(), told);
        self.say_what_came(ctx);
    }

    /// At once, and then at a pace: a node that keeps telling is heard as often as one that does not.
    fn say_what_came(&mut self, ctx: &mut Context<NodeHandle>) {
        if self.images.said || self.images.came.is_empty() {
            return;
        }
        let names = std::mem::take(&mut self.images.came);
        let names = (names.len() <= NAMED_AT_ONCE).then(|| Arc::new(names.into_iter().collect()));
        // Without another node nobody listens.
        let _ = self.shelves.came.send(names);
        self.images.said = true;
        ctx.run_later(TELL_PACE, |node, ctx| {
            node.images.said = false;
            node.say_what_came(ctx);
        });
    }

    /// What comes to other nodes from now on.
    pub(super) fn arrivals(&self) -> impl futures_util::Stream<Item = Arrived> + use<> {
        futures_util::stream::unfold(self.shelves.came.subscribe(), |mut came| async move {
            match came.recv().await {
                Ok(names) => Some((Arrived(names), came)),
                Err(broadcast::error::RecvError::Lagged(_)) => Some((Arrived(None), came)),
                Err(broadcast::error::RecvError::Closed) => None,
            }
        })
    }

    /// Lets the node's pods ask again that wait for such an image.
    fn tell_arrivals(&mut self, ctx: &mut Context<NodeHandle>) {
        if std::mem::replace(&mut self.images.told, true) {
            return;
        }
        ctx.run_later(TELL_PACE, |node, _| {
            node.images.told = false;
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
        if self.seed.no_image_sharing {
            return refuse(responder, 403, CLUSTER_KEEPS_IMAGES);
        }
        let name = match &open {
            Open::ImageHolders(wanted) => Some(wanted.name.clone()),
            Open::ImagePart(part) => self.name_of(part),
            _ => return refuse(responder, 405, "a master serves images of other nodes, and nothing else"),
        };
        if !name.as_ref().is_some_and(|name| self.images.named.has(name)) {
            return refuse(responder, 403, "no pod of this node names that image");
        }
        match open {
            Open::ImageHolders(wanted) => match self.holders(&wanted) {
                Some(holders) => {
                    let turns = self.images.questions.clone();
                    tokio::spawn(async move {
                        let Some((_turn, responder)) = turn(turns, responder).await else { return };
                        // Who does not read it asks again.
                        let _ = tokio::time::timeout(READ_WITHIN, answer(&holders, responder)).await;
                    });
                }
                None => refuse(responder, 404, "no other node has it"),
            },
            Open::ImagePart(part) => {
                let (links, asker, turns) =
                    (self.links.clone(), self.name.clone(), self.images.parts.clone());
                tokio::spawn(async move {
                    let Some((_turn, responder)) = turn(turns, responder).await else { return };
                    pass_on(&links, asker, part, responder).await;
                });
            }
            _ => {}
        }
    }

    /// Under which of the names that a pod here uses the node asked has the image.
    fn name_of(&self, part: &ImagePart) -> Option<String> {
        let shelf = self.shelves.held.get(&part.node)?;
        let has = shelf.iter().filter(|held| held.id == part.image && held.held != HeldAs::Removed);
        let mut names = has.map(|held| &held.name);
        names.find(|name| self.images.named.has(name)).cloned()
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
                    HeldAs::Removed => Held::Removed,
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
                Held::Removed => HeldAs::Removed,
            },
            since_ms: meant.since_ms,
        };
        Some(ImageHolders { image, nodes })
    }
}

impl StreamHandler<Arrived> for NodeHandle {
    fn handle(&mut self, Arrived(names): Arrived, ctx: &mut Self::Context) {
        let named = |name: &String| self.images.named.has(name);
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

/// Of a pod's document what names images; the rest of it is skipped.
#[derive(Deserialize)]
struct PodImages {
    spec: Option<SpecImages>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpecImages {
    containers: Option<Vec<ContainerImage>>,
    init_containers: Option<Vec<ContainerImage>>,
    ephemeral_containers: Option<Vec<ContainerImage>>,
}

#[derive(Deserialize)]
struct ContainerImage {
    image: Option<String>,
}

/// The full names of the images that a pod uses, in their order, each once.
fn images_of(pod: &Object) -> Vec<String> {
    let spec = pod.parse::<PodImages>().ok().and_then(|pod| pod.spec);
    let lists = spec.map(|spec| [spec.containers, spec.init_containers, spec.ephemeral_containers]);
    let containers = lists.into_iter().flatten().flatten().flatten();
    let names = containers.filter_map(|container| normalize(&container.image?).ok());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Waits for a turn; whose does not come in time is told to try again.
async fn turn(turns: Arc<Semaphore>, responder: Responder) -> Option<(OwnedSemaphorePermit, Responder)> {
    match tokio::time::timeout(TURN_WITHIN, turns.acquire_owned()).await {
        Ok(Ok(turn)) => Some((turn, responder)),
        _ => {
            // Who has gone meanwhile needs no answer.
            let _ = responder.refuse(429, "too many streams at once; try again").await;
            None
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn held(name: &str, id: &str, held: HeldAs, since_ms: i64) -> HeldImage {
        HeldImage { name: name.into(), id: id.into(), held, since_ms }
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_outdo_what_is_brought_later() {
        use HeldAs::{ByHand, Copied};
        let told =
            || vec![held("a", "1", ByHand, i64::MAX), held("b", "1", Copied, 900), held("c", "1", ByHand, 5)];
        let since = |images: &[HeldImage]| images.iter().map(|image| image.since_ms).collect::<Vec<_>>();
        let first = bounded(told(), &[], 500);
        assert_eq!(since(&first), [500, 500, 5]);
        // Nor does it get newer by being said again, until it is true.
        let again = bounded(told(), &first, 800);
        assert_eq!(since(&again), [500, 500, 5]);
        assert_eq!(since(&bounded(vec![held("a", "2", ByHand, i64::MAX)], &again, 800)), [800]);
    }

    #[test]
    fn what_was_brought_is_told_once() {
        use HeldAs::{ByHand, Pulled};
        let before = [held("a", "1", ByHand, 5), held("b", "1", Pulled, 0), held("c", "1", ByHand, 5)];
        let told = [held("a", "1", ByHand, 9), held("b", "1", ByHand, 9), held("c", "2", ByHand, 9)];
        assert_eq!(brought(&told, &before), ["b", "c"]);
        assert!(brought(&told, &told).is_empty());
    }
}
