//! Images on their way from node to node, as the master has a hand in them.
//!
//! Owns: [`Shelves`], what each linked node says that it has, and the passing on of parts. Invariants: a node speaks of its
//! own images only, and what it says that it has goes with its link, what was removed from it with its object; it gets only images that its own pods name; what is passed on
//! is neither kept nor looked at (who takes it compares digests), a few buffers of each stream are here at a time, and a
//! stream on which nothing moves ends. What a part's end means is kept: whole, or broken off. Whatever a node says costs
//! the others a look into a set: no pod is read for it.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    logic::image_peers::{Claim, Held, choose, choose_away},
    messages::wire::{
        self, ByteStream, HeldAs, HeldImage, ImageHolders, ImagePart, ImageWanted, Open, RemovedImage,
    },
    model::{Key, Kind, NodeName, Object, Revision, Uid},
    net::{Class, NetError, Responder},
    runtime::images::{BUILTIN_IMAGE, normalize},
};

/// Names under which somebody brought images to some node; `None` when they were too many to follow.
type Came = Option<Arc<Vec<String>>>;

/// What a node has told, by name: a name costs a question about it one look, however often a node tells it.
#[derive(Default)]
struct Shelf {
    /// What others may take; nothing while the node is not linked.
    held: BTreeMap<String, HeldImage>,
    /// What somebody had brought to it and removed again.
    removed: BTreeMap<String, RemovedImage>,
    /// What of that which somebody brought it had when it was linked last: it may be back with it. Its registry has
    /// nothing to do with it meanwhile.
    away: BTreeMap<String, HeldImage>,
}

impl Shelf {
    /// The node has this now. Returned: the names under which somebody has brought an image that was not there before.
    fn hold(&mut self, told: Vec<HeldImage>, now_ms: i64) -> Vec<String> {
        let away = std::mem::take(&mut self.away);
        let (mut held, mut came) = (BTreeMap::new(), Vec::new());
        for mut image in told {
            if held.contains_key(&image.name) {
                continue;
            }
            let before = self.held.get(&image.name).filter(|before| before.id == image.id);
            image.since_ms = bounded(image.since_ms, before.map(|before| before.since_ms), now_ms);
            if image.held == HeldAs::ByHand {
                // It has been brought again.
                self.removed.remove(&image.name);
                if before.is_none_or(|before| before.held != HeldAs::ByHand) {
                    came.push(image.name.clone());
                }
            } else if away.contains_key(&image.name) {
                // A copy is back that others may wait for.
                came.push(image.name.clone());
            }
            held.insert(image.name.clone(), image);
        }
        self.held = held;
        came
    }

    /// The node is linked no more. What was pulled its registry has, too.
    fn put_away(&mut self) {
        let held = std::mem::take(&mut self.held);
        // It may have gone before it said anything.
        if !held.is_empty() {
            self.away = held.into_iter().filter(|(_, image)| image.held != HeldAs::Pulled).collect();
        }
    }

    /// This has been removed from the node.
    fn remove(&mut self, told: Vec<RemovedImage>, now_ms: i64) {
        let mut removed = BTreeMap::new();
        for mut gone in told {
            let before = self.removed.get(&gone.name).filter(|before| before.id == gone.id);
            gone.at_ms = bounded(gone.at_ms, before.map(|before| before.at_ms), now_ms);
            removed.entry(gone.name.clone()).or_insert(gone);
        }
        self.removed = removed;
    }
}

/// What nodes have told, by node.
#[derive(Clone)]
pub(super) struct Shelves {
    told: Arc<DashMap<NodeName, Shelf>>,
    /// Names under which somebody has just brought an image to a node.
    came: broadcast::Sender<Came>,
}

impl Default for Shelves {
    fn default() -> Shelves {
        Shelves { told: Arc::default(), came: broadcast::channel(ARRIVALS).0 }
    }
}

impl Shelves {
    /// The node is linked no more, or anew. What was removed from it stays so: else copies of that would count again; and
    /// what was brought to it by hand is remembered, so that no registry is asked for that.
    pub(super) fn unlink(&self, node: &NodeName) {
        if let Some(mut shelf) = self.told.get_mut(node) {
            shelf.put_away();
        }
        self.told.remove_if(node, |_, shelf| shelf.removed.is_empty() && shelf.away.is_empty());
    }

    /// There is no such node any more.
    pub(super) fn forget(&self, node: &NodeName) {
        self.told.remove(node);
    }

    /// From whom a node is to take what it wants, or who would give it were it there.
    fn holders(&self, asker: &NodeName, wanted: &ImageWanted) -> Option<ImageHolders> {
        let (mut claims, mut away): (Vec<Claim>, Vec<Claim>) = (Vec::new(), Vec::new());
        for shelf in self.told.iter() {
            let claim = |id: &String, held, since_ms| Claim {
                node: shelf.key().clone(),
                id: id.clone(),
                held,
                since_ms,
            };
            let told = |image: &HeldImage| {
                let held = match image.held {
                    HeldAs::ByHand => Held::ByHand,
                    HeldAs::Copied => Held::Copied,
                    HeldAs::Pulled => Held::Pulled,
                };
                claim(&image.id, held, image.since_ms)
            };
            claims.extend(shelf.held.get(&wanted.name).map(told));
            away.extend(shelf.away.get(&wanted.name).map(told));
            if let Some(gone) = shelf.removed.get(&wanted.name) {
                claims.push(claim(&gone.id, Held::Removed, gone.at_ms));
            }
        }
        let turn = turn_of(asker);
        let chosen = choose(&claims, asker, wanted.by_hand, turn);
        let (meant, all) = chosen.or_else(|| choose_away(&mut claims, &away, asker, turn))?;
        let held = match meant.held {
            Held::ByHand => HeldAs::ByHand,
            Held::Copied => HeldAs::Copied,
            Held::Pulled => HeldAs::Pulled,
            Held::Removed => return None,
        };
        let image = HeldImage { name: wanted.name.clone(), id: meant.id, held, since_ms: meant.since_ms };
        let is_away = |node: &NodeName| away.iter().any(|claim| claim.node == *node);
        let (away, nodes) = all.into_iter().partition(is_away);
        Some(ImageHolders { image, nodes, away })
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
/// Removals that a node may tell: as many as one remembers.
const MOST_REMOVED: usize = 256;
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
    pods: BTreeMap<Uid, (Revision, Vec<String>)>,
    all: BTreeSet<String>,
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

/// A time that a node tells, which is not to come: else a clock that is ahead would outdo whatever is brought later.
/// What it has told before keeps the time that it was given then.
fn bounded(told_ms: i64, before_ms: Option<i64>, now_ms: i64) -> i64 {
    if told_ms > now_ms { before_ms.unwrap_or(now_ms).min(now_ms) } else { told_ms }
}

/// Whether a node may speak of it.
fn is_good(name: &str, id: &str) -> bool {
    is_digest(id)
        && name != BUILTIN_IMAGE
        && !name.contains('@')
        && normalize(name).is_ok_and(|full| full == name)
}

impl NodeHandle {
    /// The node has told what it has.
    pub(super) fn note_images(&mut self, mut told: Vec<HeldImage>, ctx: &mut Context<NodeHandle>) {
        if self.seed.no_image_sharing {
            return;
        }
        told.truncate(MOST_HELD);
        told.retain(|image| self.may_tell(&image.name, &image.id));
        let now_ms = outside::now().as_millisecond();
        let mut shelf = self.shelves.told.entry(self.name.clone()).or_default();
        self.images.came.extend(shelf.hold(told, now_ms));
        drop(shelf);
        self.say_what_came(ctx);
    }

    /// The node has told what was removed from it.
    pub(super) fn note_removed(&mut self, mut told: Vec<RemovedImage>) {
        if self.seed.no_image_sharing {
            return;
        }
        told.truncate(MOST_REMOVED);
        told.retain(|gone| self.may_tell(&gone.name, &gone.id));
        let now_ms = outside::now().as_millisecond();
        self.shelves.told.entry(self.name.clone()).or_default().remove(told, now_ms);
    }

    fn may_tell(&mut self, name: &str, id: &str) -> bool {
        let good = is_good(name, id);
        if !good {
            self.refuse_image(name);
        }
        good
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
            Open::ImageHolders(wanted) => {
                let (shelves, asker, turns) =
                    (self.shelves.clone(), self.name.clone(), self.images.questions.clone());
                tokio::spawn(async move {
                    // Nothing is looked up before its turn: whoever asks without end pays with that.
                    let Some((_turn, responder)) = turn(turns, responder).await else { return };
                    match shelves.holders(&asker, &wanted) {
                        // Who does not read it asks again.
                        Some(holders) => {
                            let _ = tokio::time::timeout(READ_WITHIN, answer(&holders, responder)).await;
                        }
                        None => refuse(responder, 404, "no other node has it"),
                    }
                });
            }
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
        let shelf = self.shelves.told.get(&part.node)?;
        let mut has = shelf.held.values().filter(|held| held.id == part.image);
        has.find(|held| self.images.named.has(&held.name)).map(|held| held.name.clone())
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

    fn removed(name: &str, id: &str, at_ms: i64) -> RemovedImage {
        RemovedImage { name: name.into(), id: id.into(), at_ms }
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_outdo_what_is_brought_later() {
        use HeldAs::{ByHand, Copied};
        let told =
            || vec![held("a", "1", ByHand, i64::MAX), held("b", "1", Copied, 900), held("c", "1", ByHand, 5)];
        let since = |shelf: &Shelf| shelf.held.values().map(|image| image.since_ms).collect::<Vec<_>>();
        let mut shelf = Shelf::default();
        shelf.hold(told(), 500);
        assert_eq!(since(&shelf), [500, 500, 5]);
        // Nor does it get newer by being said again, until it is true.
        shelf.hold(told(), 800);
        assert_eq!(since(&shelf), [500, 500, 5]);
        shelf.hold(vec![held("a", "2", ByHand, i64::MAX)], 800);
        assert_eq!(since(&shelf), [800]);
        // So with what was removed.
        for now_ms in [900, 950] {
            shelf.remove(vec![removed("a", "2", i64::MAX)], now_ms);
            assert_eq!(shelf.removed["a"].at_ms, 900);
        }
    }

    #[test]
    fn what_was_brought_is_told_once() {
        use HeldAs::{ByHand, Pulled};
        let mut shelf = Shelf::default();
        shelf.hold(vec![held("a", "1", ByHand, 5), held("b", "1", Pulled, 0), held("c", "1", ByHand, 5)], 10);
        let told = || vec![held("a", "1", ByHand, 9), held("b", "1", ByHand, 9), held("c", "2", ByHand, 9)];
        assert_eq!(shelf.hold(told(), 10), ["b", "c"]);
        assert!(shelf.hold(told(), 10).is_empty());
    }

    #[test]
    fn a_name_is_on_a_shelf_once_however_often_it_is_told() {
        let mut shelf = Shelf::default();
        let ids: Vec<String> = (0..2048).map(|n| n.to_string()).collect();
        shelf.hold(ids.iter().map(|id| held("a", id, HeldAs::Copied, 5)).collect(), 10);
        shelf.remove(ids.iter().map(|id| removed("a", id, 5)).collect(), 10);
        assert_eq!((shelf.held.len(), shelf.removed.len()), (1, 1));
        assert_eq!((shelf.held["a"].id.as_str(), shelf.removed["a"].id.as_str()), ("0", "0"));
    }

    #[test]
    fn what_was_removed_stays_so_past_its_nodes_link_and_goes_with_the_node() {
        let (shelves, node) = (Shelves::default(), NodeName::from("n1"));
        let told = |at_ms| {
            let mut shelf = shelves.told.entry(node.clone()).or_default();
            shelf.hold(vec![held("b", "2", HeldAs::Pulled, 0)], 10);
            shelf.remove(vec![removed("a", "1", at_ms)], 10);
        };
        told(7);
        shelves.unlink(&node);
        let kept = shelves.told.get(&node).map(|shelf| (shelf.held.len(), shelf.removed["a"].at_ms));
        assert_eq!(kept, Some((0, 7)));
        // Somebody has brought it again: that is what is remembered, until the node is back and tells what it has.
        shelves.told.get_mut(&node).unwrap().hold(vec![held("a", "1", HeldAs::ByHand, 9)], 10);
        shelves.unlink(&node);
        let kept = shelves.told.get(&node).map(|shelf| (shelf.removed.len(), shelf.away["a"].since_ms));
        assert_eq!(kept, Some((0, 9)));
        shelves.told.get_mut(&node).unwrap().hold(Vec::new(), 10);
        shelves.unlink(&node);
        assert!(shelves.told.is_empty());
        told(7);
        shelves.forget(&node);
        assert!(shelves.told.is_empty());
    }
}
