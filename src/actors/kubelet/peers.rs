//! Images from other nodes, over the link to the master.
//!
//! Owns: asking who has an image, fetching its parts, giving parts of this node's own, and telling the master what this
//! node has. Invariant: nothing that comes is believed but for its digest, which the runtime compares; when it is of no
//! use the next node is asked for it; one that is busy is asked again. What to do when none is left is for
//! [`super::images`] to say. Nothing is given for ever: who takes too slowly loses its turn.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::Semaphore,
    time::Instant,
};

use super::{Kubelet, context::NodeContext, streams::refuse};
use crate::{
    messages::{
        AskMaster, OpenError, Port, SendFailed,
        wire::{
            self, ByteStream, HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open, RemovedImage,
        },
    },
    model::NodeName,
    net::Responder,
    runtime::{
        Image, Reader, RuntimeError,
        share::{Came, PartSource, SharedImage},
    },
};

/// Within so long the master says who has an image: longer than a question waits for its turn there.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// So long it is asked again; then the pod tries again later.
const ASKED_FOR: Duration = Duration::from_secs(15);
/// So long a node that is busy is asked again for a part.
const BUSY_FOR: Duration = Duration::from_secs(60);
/// Between two such questions at most: a random time, so that many who ask do not come at once.
const BETWEEN: Duration = Duration::from_secs(3);
/// Within so long it opens a part: a little longer than the link takes to give it up.
const OPENED_WITHIN: Duration = Duration::from_secs(20);
/// Whoever says this is asked again.
const BUSY: u16 = 429;
/// The longest answer: names of some thousand nodes.
const ANSWER_BYTES: u64 = 1 << 20;
/// Parts given away at once: enough to fill a link, and few enough to leave a disk to this node's pods.
const GIVEN_AT_ONCE: usize = 8;
/// So long a part waits for its turn: with as long at the master, less than the asker waits.
const TURN_WITHIN: Duration = Duration::from_secs(4);
/// Of a part this much moves in each such time, or it is broken off: slower than any link that is worth it, and a taker
/// that trickles would keep a turn, and layers from being removed, for ever.
const LEAST: (u64, Duration) = (1 << 20, Duration::from_secs(60));
/// So long a runtime has to say which images others may have.
const SHARED_WITHIN: Duration = Duration::from_secs(1);
/// What is held of a part on its way.
const BUFFER: usize = 64 << 10;
/// Names told to the master at most, which takes as many.
const MOST_TOLD: usize = 4096;

/// A node's way to the images of others.
pub struct Peers {
    /// None of a node without others.
    master: Option<Port<AskMaster>>,
    turns: Arc<Semaphore>,
}

impl Default for Peers {
    /// Of a node without others.
    fn default() -> Peers {
        Peers { master: None, turns: Arc::new(Semaphore::new(GIVEN_AT_ONCE)) }
    }
}

impl Peers {
    /// By a link to the master.
    pub fn by(master: Port<AskMaster>) -> Peers {
        Peers { master: Some(master), turns: Arc::new(Semaphore::new(GIVEN_AT_ONCE)) }
    }

    /// Who has the image of a full name, if somebody has, or had it and is away; `by_hand`: and it was brought to a node by
    /// somebody.
    ///
    /// # Errors
    /// A sentence when that could not be asked: nobody knows then.
    pub(super) async fn holders(&self, name: &str, by_hand: bool) -> Result<Option<ImageHolders>, String> {
        let Some(master) = &self.master else { return Ok(None) };
        ask_holders(master, name, by_hand, ASKED_FOR).await
    }

    /// Takes an image from one of those who have it, or have it by the time that none of them gave it; an error says what
    /// each of them did. `by_hand`: as it was asked for.
    pub(super) async fn take(
        &self,
        node: &NodeContext,
        from: ImageHolders,
        by_hand: bool,
    ) -> Result<(Image, NodeName), String> {
        let HeldImage { name, id, held, since_ms } = from.image;
        let came = match held {
            HeldAs::ByHand => Came::ByHand { since_ms },
            HeldAs::Copied => Came::Copied { since_ms },
            HeldAs::Pulled => Came::Pulled,
        };
        let Some(master) = self.master.clone() else { return Err("there is no other node".into()) };
        let tried = Mutex::new(Tried { nodes: from.nodes, failed: Vec::new() });
        let source = Arc::new(FromNodes { master, name: name.clone(), by_hand, image: id.clone(), tried });
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
    name: String,
    by_hand: bool,
    image: String,
    tried: Mutex<Tried>,
}

/// Who has it, each asked once.
struct Tried {
    nodes: Vec<NodeName>,
    /// Why each of the first so many was of no use.
    failed: Vec<String>,
}

impl FromNodes {
    /// Whose turn it is; the last one's when all have failed.
    fn node(&self) -> Option<NodeName> {
        let tried = self.tried();
        tried.nodes.get(tried.failed.len()).cloned()
    }

    fn tried(&self) -> MutexGuard<'_, Tried> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> Option<String> {
        let tried = self.tried();
        let each = tried.nodes.iter().zip(&tried.failed).map(|(node, why)| format!("node {node}: {why}"));
        Some(each.collect::<Vec<_>>().join("; ")).filter(|all| !all.is_empty())
    }
}

#[async_trait]
impl PartSource for FromNodes {
    async fn part(&self, digest: &str) -> Result<Reader, String> {
        let node = self.node().ok_or("nobody is left to ask")?;
        let part = ImagePart { node, image: self.image.clone(), digest: digest.to_owned() };
        let ask = || self.master.ask(AskMaster(Open::ImagePart(part.clone())), OPENED_WITHIN);
        match patiently(BUSY_FOR, ask).await {
            Ok(ByteStream { read, write: _ }) => Ok(read),
            Err(Unopened::Refused(why) | Unopened::Later(why)) => Err(why),
        }
    }

    async fn another(&self, why: String) -> bool {
        let is_left = {
            let mut tried = self.tried();
            tried.failed.push(why);
            tried.failed.len() < tried.nodes.len()
        };
        if is_left {
            return true;
        }
        // Others may have got it since it was asked who has it.
        let told = ask_holders(&self.master, &self.name, self.by_hand, Duration::ZERO).await.ok().flatten();
        let Some(told) = told.filter(|told| told.image.id == self.image) else { return false };
        let mut tried = self.tried();
        for node in told.nodes {
            if !tried.nodes.contains(&node) {
                tried.nodes.push(node);
            }
        }
        tried.failed.len() < tried.nodes.len()
    }
}

/// Asks the master who has an image, again for so long when it is busy.
async fn ask_holders(
    master: &Port<AskMaster>,
    name: &str,
    by_hand: bool,
    patience: Duration,
) -> Result<Option<ImageHolders>, String> {
    let wanted = Open::ImageHolders(ImageWanted { name: name.to_owned(), by_hand });
    let stream = match patiently(patience, || master.ask(AskMaster(wanted.clone()), TOLD_WITHIN)).await {
        Ok(stream) => stream,
        Err(Unopened::Refused(_)) => return Ok(None),
        Err(Unopened::Later(why)) => return Err(why),
    };
    let mut json = Vec::new();
    let mut answer = stream.read.take(ANSWER_BYTES);
    let read = read_within(answer.read_to_end(&mut json)).await?;
    let told: ImageHolders = serde_json::from_slice(&json)
        .map_err(|error| format!("the master's answer of {read} bytes is none: {error}"))?;
    Ok((told.image.name == name && !(told.nodes.is_empty() && told.away.is_empty())).then_some(told))
}

/// Why a stream was not opened.
enum Unopened {
    /// Whoever was asked said no.
    Refused(String),
    /// It was busy, or out of reach, for all that time.
    Later(String),
}

/// Opens a stream; whoever is busy or out of reach is asked again, at random times, until `patience` ends.
async fn patiently<F>(patience: Duration, ask: impl Fn() -> F) -> Result<ByteStream, Unopened>
where
    F: Future<Output = Result<Result<ByteStream, OpenError>, SendFailed>>,
{
    let begun = Instant::now();
    loop {
        let why = match ask().await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(OpenError::Refused(code, text))) if code != BUSY => return Err(Unopened::Refused(text)),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let pause = BETWEEN.mul_f64(rand::random());
        if begun.elapsed() + pause >= patience {
            return Err(Unopened::Later(why));
        }
        tokio::time::sleep(pause).await;
    }
}

async fn read_within(read: impl Future<Output = std::io::Result<usize>>) -> Result<usize, String> {
    match tokio::time::timeout(TOLD_WITHIN, read).await {
        Ok(read) => read.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer came for {} s", TOLD_WITHIN.as_secs())),
    }
}

/// Copies a part to its end, as long as `least` bytes move in each such time.
async fn pour(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    (least, within): (u64, Duration),
) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let some = async {
            let mut moved = 0;
            while moved < least {
                let n = from.read(&mut buffer).await?;
                let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else {
                    to.shutdown().await?;
                    return Ok(true);
                };
                to.write_all(bytes).await?;
                moved += n as u64;
            }
            Ok(false)
        };
        match tokio::time::timeout(within, some).await {
            Ok(Ok(true)) => return Ok(()),
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "it moves too slowly")),
        }
    }
}

/// What others may have from this node; `None`: to be asked again. An engine that hangs holds up no greeting.
pub(super) async fn shared(node: &NodeContext) -> Option<Vec<SharedImage>> {
    let shared = tokio::time::timeout(SHARED_WITHIN, node.runtime.shared_images()).await;
    shared.ok().and_then(Result::ok)
}

impl Kubelet {
    /// Tells what others may have from this node, when that has changed, or `always`.
    pub(super) fn tell_images(&mut self, shared: Option<Vec<SharedImage>>, always: bool) {
        // A new link begins with nothing told. What cannot be looked at now is at the next turn.
        if always {
            self.images_told = None;
        }
        let Some(mut shared) = shared else { return };
        if self.seed.node.settings.no_image_sharing {
            // Said once: what it told before it was started so is not waited for.
            shared.clear();
        }
        let (mut held, mut removed) = (Vec::new(), Vec::new());
        for SharedImage { name, id, came } in shared {
            let (held_as, since_ms) = match came {
                Came::ByHand { since_ms } => (HeldAs::ByHand, since_ms),
                Came::Copied { since_ms } => (HeldAs::Copied, since_ms),
                Came::Pulled => (HeldAs::Pulled, 0),
                Came::Removed { at_ms } => {
                    removed.push(RemovedImage { name, id, at_ms });
                    continue;
                }
            };
            held.push(HeldImage { name, id, held: held_as, since_ms });
        }
        held.truncate(MOST_TOLD);
        let told = self.images_told.replace((held.clone(), removed.clone()));
        if told.as_ref().is_none_or(|told| told.1 != removed) {
            self.tell(Some("images removed".into()), wire::ToMaster::ImagesRemoved(removed));
        }
        if told.is_none_or(|told| told.0 != held) {
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
    if node.settings.no_image_sharing {
        return refuse(responder, 403, format!("node {} gives no images to others", node.name));
    }
    let turn = tokio::time::timeout(TURN_WITHIN, node.peers.turns.clone().acquire_owned()).await;
    let Ok(Ok(_turn)) = turn else {
        return refuse(responder, BUSY, "it gives too much away at this moment".into());
    };
    let gone = responder.gone();
    let asked = tokio::select! {
        asked = node.runtime.image_part(&part.image, &part.digest) => asked,
        // It may take a while, and the asker has a turn here meanwhile.
        () = gone => return,
    };
    let bytes = match asked {
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
    let Ok(ByteStream { read: _, write }) = responder.accept().await else { return };
    tokio::select! {
        sent = pour(bytes, write, LEAST) => if let Err(error) = sent {
            tracing::warn!(image = part.image, part = part.digest, %error, "a part of an image was not given to its end");
        },
        () = gone => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    fn stream() -> ByteStream {
        ByteStream { read: Box::pin(tokio::io::empty()), write: Box::pin(tokio::io::sink()) }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_busy_or_out_of_reach_is_asked_again_and_a_no_is_a_no() {
        let asked = AtomicUsize::new(0);
        let busy_twice = || async {
            match asked.fetch_add(1, Relaxed) {
                0 => Ok(Err(OpenError::Refused(BUSY, "busy".into()))),
                1 => Ok(Err(OpenError::Failed("m".into(), "timed out".into()))),
                _ => Ok(Ok(stream())),
            }
        };
        assert!(patiently(BUSY_FOR, busy_twice).await.is_ok());
        assert_eq!(asked.load(Relaxed), 3);
        let no = || async { Ok(Err(OpenError::Refused(404, "nobody".into()))) };
        assert!(matches!(patiently(BUSY_FOR, no).await, Err(Unopened::Refused(why)) if why == "nobody"));
        // Not for ever.
        let begun = Instant::now();
        let busy = || async { Ok(Err(OpenError::Refused(BUSY, "busy".into()))) };
        assert!(matches!(patiently(BUSY_FOR, busy).await, Err(Unopened::Later(why)) if why == "busy"));
        assert!(begun.elapsed() <= BUSY_FOR);
    }

    #[tokio::test]
    async fn a_node_without_others_knows_that_nobody_has_an_image() {
        assert_eq!(Peers::default().holders("a:1", false).await, Ok(None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_out_of_reach_is_not_a_master_that_says_no() {
        let peers = Peers::by(Port::nobody("uplink"));
        assert!(peers.holders("a:1", false).await.is_err());
    }

    /// A master that says so of who has an image, one answer after the other.
    struct Answers(Vec<ImageHolders>);

    impl actix::Actor for Answers {
        type Context = actix::Context<Self>;
    }

    impl actix::Handler<AskMaster> for Answers {
        type Result = actix::ResponseFuture<Result<ByteStream, OpenError>>;

        fn handle(&mut self, AskMaster(open): AskMaster, _: &mut Self::Context) -> Self::Result {
            assert!(matches!(open, Open::ImageHolders(wanted) if wanted.name == "a:1"));
            let json = serde_json::to_vec(&self.0.remove(0)).unwrap();
            let answer = ByteStream { read: Box::pin(std::io::Cursor::new(json)), ..stream() };
            Box::pin(std::future::ready(Ok(answer)))
        }
    }

    #[test]
    fn who_has_got_an_image_meanwhile_is_asked_before_it_is_given_up() {
        use actix::Actor as _;
        let holders = |id: &str, nodes: &[&str]| ImageHolders {
            image: HeldImage { name: "a:1".into(), id: id.into(), held: HeldAs::ByHand, since_ms: 5 },
            nodes: nodes.iter().map(|node| NodeName::from(*node)).collect(),
            away: Vec::new(),
        };
        actix::System::new().block_on(async {
            let answers = vec![holders("1", &["b", "a"]), holders("1", &["a", "b"]), holders("2", &["c"])];
            let master = Port::fixed("uplink", Answers(answers).start().recipient());
            let source = |nodes: &[&str]| FromNodes {
                master: master.clone(),
                name: "a:1".into(),
                by_hand: false,
                image: "1".into(),
                tried: Mutex::new(Tried { nodes: holders("1", nodes).nodes, failed: Vec::new() }),
            };
            let from = source(&["a"]);
            assert!(from.another("broke off".into()).await, "b has it now");
            assert_eq!(from.node(), Some("b".into()));
            assert!(!from.another("busy".into()).await, "both were asked");
            assert_eq!(from.told().unwrap(), "node a: broke off; node b: busy");
            assert!(!source(&["a"]).another("broke off".into()).await, "c has another image");
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_taker_that_trickles_is_broken_off_and_a_slow_one_is_not() {
        for (bytes, every, whole) in [(1, 10, false), (1 << 16, 2, true)] {
            let (to, mut taker) = tokio::io::duplex(1 << 10);
            let taken = async {
                let (mut all, mut buffer) = (0, vec![0; bytes]);
                loop {
                    match taker.read(&mut buffer).await {
                        Ok(0) | Err(_) => return all,
                        Ok(n) => all += n,
                    }
                    if all % bytes == 0 {
                        tokio::time::sleep(Duration::from_secs(every)).await;
                    }
                }
            };
            let given = pour(tokio::io::repeat(0).take(3 << 20), to, LEAST);
            let (given, all) = tokio::join!(given, taken);
            assert_eq!(
                (given.is_ok(), all == 3 << 20),
                (whole, whole),
                "{bytes} bytes in {every} s: {given:?}"
            );
        }
    }
}
