//! Images from other nodes, over the link to the master.
//!
//! Owns: asking who has an image, fetching its parts, giving parts of this node's own, and telling the master what this
//! node has. Invariant: nothing that comes is believed but for its digest, which the runtime compares; when it is of no
//! use the next node is asked for it. What to do when none is left is for [`super::images`] to say.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Semaphore,
};

use super::{Kubelet, context::NodeContext, streams::refuse};
use crate::{
    messages::{
        AskMaster, Port,
        wire::{self, ByteStream, HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open},
    },
    model::NodeName,
    net::Responder,
    runtime::{
        Image, Reader, RuntimeError,
        share::{Came, PartSource, SharedImage},
    },
};

/// Within so long the master says who has an image; then its registry is asked.
const TOLD_WITHIN: Duration = Duration::from_secs(5);
/// Within so long it opens a part: a little longer than the link takes to give it up.
const OPENED_WITHIN: Duration = Duration::from_secs(20);
/// The longest answer: names of some thousand nodes.
const ANSWER_BYTES: u64 = 1 << 20;
/// Parts given away at once: enough to fill a link, and few enough to leave a disk to this node's pods.
const GIVEN_AT_ONCE: usize = 8;
/// Names told to the master at most, which takes as many.
const MOST_TOLD: usize = 4096;

/// A node's way to the images of others.
pub struct Peers {
    master: Port<AskMaster>,
    turns: Arc<Semaphore>,
}

impl Default for Peers {
    /// Of a node without others.
    fn default() -> Peers {
        Peers::by(Port::nobody("uplink"))
    }
}

impl Peers {
    /// By a link to the master.
    pub fn by(master: Port<AskMaster>) -> Peers {
        Peers { master, turns: Arc::new(Semaphore::new(GIVEN_AT_ONCE)) }
    }

    /// Who has the image of a full name, if somebody has; `by_hand`: and it was brought to a node by somebody.
    pub(super) async fn holders(&self, name: &str, by_hand: bool) -> Option<ImageHolders> {
        let wanted = Open::ImageHolders(ImageWanted { name: name.to_owned(), by_hand });
        let asked = async {
            let stream = self.master.ask(AskMaster(wanted), TOLD_WITHIN).await.ok()?.ok()?;
            let mut json = Vec::new();
            stream.read.take(ANSWER_BYTES).read_to_end(&mut json).await.ok()?;
            serde_json::from_slice::<ImageHolders>(&json).ok()
        };
        let told = tokio::time::timeout(TOLD_WITHIN, asked).await.ok()??;
        (told.image.name == name && !told.nodes.is_empty()).then_some(told)
    }

    /// Takes an image from one of those who have it; an error says what each of them did.
    pub(super) async fn take(
        &self,
        node: &NodeContext,
        from: ImageHolders,
    ) -> Result<(Image, NodeName), String> {
        let HeldImage { name, id, held, since_ms } = from.image;
        let came = match held {
            HeldAs::ByHand => Came::ByHand { since_ms },
            HeldAs::Copied => Came::Copied { since_ms },
            HeldAs::Pulled => Came::Pulled,
        };
        let source = Arc::new(FromNodes {
            master: self.master.clone(),
            image: id.clone(),
            nodes: from.nodes,
            failed: Mutex::default(),
        });
        let offer = SharedImage { name, id, came };
        match node.runtime.take_image(offer, Arc::clone(&source) as Arc<dyn PartSource>).await {
            Ok(image) => Ok((image, source.node().unwrap_or_else(|| "?".into()))),
            Err(error) => Err(source.told().unwrap_or_else(|| error.to_string())),
        }
    }
}

/// The parts of one image, from one node after the other.
struct FromNodes {
    master: Port<AskMaster>,
    image: String,
    nodes: Vec<NodeName>,
    /// Why each of the first so many was of no use.
    failed: Mutex<Vec<String>>,
}

impl FromNodes {
    /// Whose turn it is; the last one's when all have failed.
    fn node(&self) -> Option<NodeName> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).len();
        self.nodes.get(failed).cloned()
    }

    fn told(&self) -> Option<String> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let each = self.nodes.iter().zip(failed.iter()).map(|(node, why)| format!("node {node}: {why}"));
        Some(each.collect::<Vec<_>>().join("; ")).filter(|all| !all.is_empty())
    }
}

#[async_trait]
impl PartSource for FromNodes {
    async fn part(&self, digest: &str) -> Result<Reader, String> {
        let node = self.node().ok_or("nobody is left to ask")?;
        let part = ImagePart { node, image: self.image.clone(), digest: digest.to_owned() };
        let asked = self.master.ask(AskMaster(Open::ImagePart(part)), OPENED_WITHIN).await;
        match asked {
            Ok(Ok(ByteStream { read, write: _ })) => Ok(read),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn another(&self, why: String) -> bool {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.push(why);
        failed.len() < self.nodes.len()
    }
}

impl Kubelet {
    /// Tells what others may have from this node, when that has changed, or `always`.
    pub(super) fn tell_images(&mut self, shared: Option<Vec<SharedImage>>, always: bool) {
        // What cannot be looked at now is at the next turn.
        let Some(shared) = shared else { return };
        let held: Vec<HeldImage> = shared
            .into_iter()
            .take(MOST_TOLD)
            .map(|SharedImage { name, id, came }| {
                let (held, since_ms) = match came {
                    Came::ByHand { since_ms } => (HeldAs::ByHand, since_ms),
                    Came::Copied { since_ms } => (HeldAs::Copied, since_ms),
                    Came::Pulled => (HeldAs::Pulled, 0),
                };
                HeldImage { name, id, held, since_ms }
            })
            .collect();
        if always || held != self.images_told {
            self.images_told.clone_from(&held);
            self.tell(Some("images".into()), wire::ToMaster::Images(held));
        }
    }
}

/// Gives away a part of an image. What fails on the way is broken off by a reset: its writer is dropped before its end
/// was said.
pub(super) async fn give(node: Arc<NodeContext>, part: ImagePart, responder: Responder) {
    if part.node.as_str() != node.name {
        return refuse(responder, 404, format!("this is node {}, not {}", node.name, part.node));
    }
    let Ok(_turn) = node.peers.turns.clone().try_acquire_owned() else {
        return refuse(responder, 429, "it gives too much away at this moment".into());
    };
    let mut bytes = match node.runtime.image_part(&part.image, &part.digest).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let code = match error {
                RuntimeError::ImageNotFound(_) | RuntimeError::NotFound(_) => 404,
                RuntimeError::Unsupported(..) => 501,
                _ => 500,
            };
            return refuse(responder, code, error.to_string());
        }
    };
    let gone = responder.gone();
    let Ok(ByteStream { read: _, mut write }) = responder.accept().await else { return };
    let sent = async {
        tokio::io::copy(&mut bytes, &mut write).await?;
        write.shutdown().await
    };
    tokio::select! {
        sent = sent => if let Err(error) = sent {
            tracing::warn!(image = part.image, part = part.digest, %error, "a part of an image was not given to its end");
        },
        () = gone => {}
    }
}
