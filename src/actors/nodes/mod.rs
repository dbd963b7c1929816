//! The node registry: which nodes there are, which pods each is to run, and who is linked.
//!
//! Owns: acceptance of links, node subnets, and one supervised [`handle::NodeHandle`] for each node, linked or not. It
//! follows the store once for all nodes and hands each its own pods. Invariants: a link speaks for the node in its
//! certificate only, and for one that joined while the cluster has that node; no two nodes get one subnet (all are handed
//! out here); a link that comes before its node's actor
//! has begun waits for it. Leaves out what a node says.

mod configs;
mod handle;
mod health;
mod heard;
mod images;
mod joins;
mod mirrors;
mod object;
mod refusals;
mod rivals;
mod sightings;
mod status;
#[cfg(test)]
mod tests;
mod tokens;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, ResponseFuture, StreamHandler,
    WrapFuture as _,
};
use dashmap::DashMap;
use futures_util::stream;
use tokio::sync::Mutex;

pub use self::joins::Admission;
use self::{
    handle::{Begun, ConfigsMoved, Linked, NodeHandle, NodePods},
    health::Health,
    images::Shelves,
    object::ObjectMoved,
    rivals::{Held, RIVALS_INTERVAL_MS},
    sightings::origin,
};
use crate::{
    actors::{
        commit::Wiring,
        follow::{Fed, follow, sides},
        outside,
        supervisor::{ChildSpec, Life, STUCK_AFTER, Strategy, SupervisorHandle, SupervisorSpec},
    },
    logic::{
        join::{Attempts, belongs_to, linked_from, not_a_node},
        nodes::free_subnet,
        pulse,
        rivals::Rivals,
        seldom::Seldom,
        supervision::Intensity,
        tokens::SigningKey,
    },
    messages::{OpenError, OpenStream, Port, Slot, wire},
    model::{Key, Kind, KindFacet, NodeName, Object, Revision, Uid},
    net::{Link, LinkEvents, LinkHandle, Listener, NetError},
};

/// How long a node may take to open a byte stream.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// One log line a node in this time, however often it comes.
const SENT_AWAY_INTERVAL_MS: i64 = 60_000;

/// The links that are up, by node: read by whoever opens a byte stream.
pub type Links = Arc<DashMap<NodeName, LinkHandle<wire::ToNode>>>;

/// Where each node's actor is. It outlives the registry, whose restart is then no matter to the nodes.
type Handles = Arc<DashMap<NodeName, Slot<NodeHandle>>>;

/// The nodes' supervisor and, after it, their registry, which is published in `slot`.
pub fn child(seed: RegistrySeed, slot: &Slot<NodeRegistry>) -> ChildSpec {
    let spec = SupervisorSpec::new("nodes").strategy(Strategy::RestForOne);
    let seed = Arc::new(seed);
    let (nodes, slot) = (SupervisorHandle::new("nodes"), slot.clone());
    ChildSpec::supervisor(spec, &nodes, move |nodes| {
        let (handles, links) = (Handles::default(), Links::default());
        let (health, shelves) = (Health::new(), Shelves::default());
        let supervisor = SupervisorHandle::new("node handles");
        let spec = SupervisorSpec::new("node handles").limit(Intensity::UNLIMITED).stop_together();
        let fresh = handles.clone();
        nodes.start_child(ChildSpec::supervisor(spec, &supervisor, move |_| fresh.clear())).detach();
        let (seed, begun) = (seed.clone(), slot.port());
        let registry = ChildSpec::new("node registry", &slot, move |life| {
            let shared =
                (supervisor.clone(), handles.clone(), links.clone(), health.clone(), shelves.clone());
            Ok(NodeRegistry::new(life, seed.clone(), shared, begun.clone()))
        });
        nodes.start_child(registry.watchdog(STUCK_AFTER)).detach();
    })
}

/// What a registry is made of.
#[derive(Clone)]
pub struct RegistrySeed {
    /// The store and the event recorder.
    pub wiring: Wiring,
    /// Where nodes link to. It outlives the actor, so that no link waits for its restart.
    pub listener: Arc<Mutex<Listener>>,
    /// The cluster's pod network, `10.244.0.0/16`; each node gets a `/24` of it.
    pub pod_network: String,
    /// The cluster's name.
    pub cluster: String,
    /// A node silent for so long is not ready.
    pub lost_after: Duration,
    /// What admits machines that join; without it none can.
    pub admission: Option<Arc<Admission>>,
    /// Signs the tokens of service accounts.
    pub token_key: Arc<SigningKey>,
    /// No images go from node to node.
    pub no_image_sharing: bool,
}

struct Known {
    slot: Slot<NodeHandle>,
    /// The node's pods, by uid.
    pods: BTreeMap<Uid, Arc<Object>>,
    /// Came while the node's actor was not there yet, or between two incarnations. The newest only.
    waiting: Option<Box<(ToNodeLink, String)>>,
    /// Its actor is being stopped.
    ending: bool,
}

impl Known {
    fn new(slot: Slot<NodeHandle>) -> Known {
        Known { slot, pods: BTreeMap::new(), waiting: None, ending: false }
    }

    fn picture(&self, revision: Revision) -> NodePods {
        NodePods { revision, pods: self.pods.values().cloned().collect() }
    }
}

/// A node's link, as its two halves.
type ToNodeLink = (LinkHandle<wire::ToNode>, LinkEvents<wire::ToMaster>);

/// The actor.
pub struct NodeRegistry {
    life: Life,
    seed: Arc<RegistrySeed>,
    links: Links,
    shelves: Shelves,
    nodes: HashMap<NodeName, Known>,
    subnets: HashMap<NodeName, String>,
    attempts: Attempts,
    /// Says of nodes that come again and again that they were sent away.
    sent_away: Seldom<NodeName>,
    /// Whose links come too often while they have one.
    rivals: Rivals,
    /// Links of those that are held while it is looked whether the other lives.
    held: HashMap<NodeName, Vec<Held>>,
    /// Says of nodes that several machines are one, for each of those.
    rivals_told: Seldom<(NodeName, Option<IpAddr>)>,
    /// Joins under way for a name.
    joining: HashMap<NodeName, u32>,
    /// `None` until the store's first snapshot was seen: before that no node can be told what it is to run.
    revision: Option<Revision>,
    supervisor: SupervisorHandle,
    handles: Handles,
    health: Health,
    begun: Port<Begun>,
}

impl NodeRegistry {
    fn new(
        life: Life,
        seed: Arc<RegistrySeed>,
        (supervisor, handles, links, health, shelves): (SupervisorHandle, Handles, Links, Health, Shelves),
        begun: Port<Begun>,
    ) -> NodeRegistry {
        NodeRegistry {
            life,
            seed,
            links,
            shelves,
            nodes: HashMap::new(),
            subnets: HashMap::new(),
            attempts: Attempts::default(),
            sent_away: Seldom::new(SENT_AWAY_INTERVAL_MS),
            rivals: Rivals::new(outside::now().as_millisecond()),
            held: HashMap::new(),
            rivals_told: Seldom::new(RIVALS_INTERVAL_MS),
            joining: HashMap::new(),
            revision: None,
            supervisor,
            handles,
            health,
            begun,
        }
    }

    fn node(&mut self, name: &NodeName) -> &mut Known {
        let (seed, links, handles, supervisor) = (&self.seed, &self.links, &self.handles, &self.supervisor);
        let (begun, health, shelves) = (&self.begun, &self.health, &self.shelves);
        self.nodes.entry(name.clone()).or_insert_with(|| {
            if let Some(slot) = handles.get(name) {
                return Known::new(slot.clone());
            }
            let slot = Slot::new("node");
            handles.insert(name.clone(), slot.clone());
            let (seed, node, begun) = (seed.clone(), name.clone(), begun.clone());
            let shared = (links.clone(), health.clone(), shelves.clone());
            let child = ChildSpec::new(name.as_str(), &slot, move |life| {
                Ok(NodeHandle::new(life, node.clone(), seed.clone(), shared.clone(), begun.clone()))
            });
            supervisor.start_child(child.never_escalate()).detach();
            Known::new(slot)
        })
    }

    /// Where each node's actor is at present.
    fn addresses(&self) -> impl Iterator<Item = (NodeName, Option<actix::Addr<NodeHandle>>)> {
        self.nodes.iter().map(|(name, known)| (name.clone(), known.slot.address()))
    }

    fn begin_anew(&mut self, snapshot: &crate::model::Snapshot, ctx: &mut Context<Self>) {
        for known in self.nodes.values_mut() {
            known.pods.clear();
        }
        self.subnets.clear();
        for object in snapshot.list(Kind::Node, None) {
            self.note_node(object);
        }
        for object in snapshot.list(Kind::Pod, None) {
            if let Some(node) = bound_to(object) {
                self.node(&node).pods.insert(object.uid().clone(), object.clone());
            }
        }
        self.revision = Some(snapshot.revision);
        self.rivals.retain(|name| snapshot.find(&Key::new(Kind::Node, "", name.0.clone())).is_some());
        self.send_strangers_away(snapshot);
        // Actors of nodes that were deleted while nobody was told.
        let before: Vec<NodeName> = self.handles.iter().map(|handle| handle.key().clone()).collect();
        for name in before {
            self.node(&name);
        }
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        for name in names {
            self.tell_pods(&name);
            // One that was just given a link is not in `links` yet.
            if !self.hand_over(&name) {
                self.forget_if_gone(&name, ctx);
            }
        }
    }

    /// Nodes that were deleted while nobody was told, and are linked yet.
    fn send_strangers_away(&self, snapshot: &crate::model::Snapshot) {
        self.links.retain(|name, link| {
            let object = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
            let Some(key) =
                link.joined_key().filter(|key| !object.is_some_and(|node| belongs_to(node, *key)))
            else {
                return true;
            };
            link.expel(&not_a_node(name.as_str(), object.map(|node| &**node), key));
            false
        });
    }

    fn note_node(&mut self, object: &Object) {
        let name = NodeName(object.key.name.clone());
        if let KindFacet::Node(facet) = &object.facet.of
            && let Some(subnet) = &facet.pod_cidr
        {
            self.subnets.insert(name.clone(), subnet.clone());
        }
        self.node(&name);
    }

    fn note(&mut self, changes: &[crate::messages::Change], ctx: &mut Context<Self>) {
        let mut touched: Vec<NodeName> = Vec::new();
        let mut configs = BTreeSet::new();
        for change in changes {
            let (before, after) = sides(change);
            match change.object.key.kind {
                Kind::Node => match after {
                    Some(object) => {
                        self.note_node(object);
                        let known = self.nodes.get(&NodeName(object.key.name.clone()));
                        if let Some(address) = known.and_then(|known| known.slot.address()) {
                            address.do_send(ObjectMoved);
                        }
                    }
                    None => self.node_deleted(&NodeName(change.object.key.name.clone()), ctx),
                },
                Kind::Pod => {
                    if let Some((node, object)) = before.and_then(|o| Some((bound_to(o)?, o))) {
                        self.node(&node).pods.remove(object.uid());
                        touched.push(node);
                    }
                    if let Some((node, object)) = after.and_then(|o| Some((bound_to(o)?, o))) {
                        self.node(&node).pods.insert(object.uid().clone(), object.clone());
                        touched.push(node);
                    }
                }
                Kind::ConfigMap | Kind::Secret | Kind::ServiceAccount => {
                    configs.insert(change.object.key.clone());
                }
                _ => {}
            }
        }
        self.revision = changes.last().map(crate::messages::Change::revision).or(self.revision);
        touched.sort_unstable();
        touched.dedup();
        for name in touched {
            self.tell_pods(&name);
            self.forget_if_gone(&name, ctx);
        }
        if !configs.is_empty() {
            let moved = ConfigsMoved(Arc::new(configs));
            for address in self.nodes.values().filter_map(|known| known.slot.address()) {
                address.do_send(moved.clone());
            }
        }
    }

    /// A deleted node of the master's process that is still linked registers itself again with its next connection; one
    /// that joined is sent away.
    fn node_deleted(&mut self, name: &NodeName, ctx: &mut Context<Self>) {
        self.subnets.remove(name);
        self.shelves.forget(name);
        self.rivals.forget(name);
        if let Some((_, link)) = self.links.remove(name) {
            let Some(key) = link.joined_key() else { return link.close("the node was deleted") };
            link.expel(&not_a_node(name.as_str(), None, key));
        }
        self.forget_if_gone(name, ctx);
    }

    /// Of a node that is no more its actor goes, too, once its last pod has gone.
    fn forget_if_gone(&mut self, name: &NodeName, ctx: &mut Context<Self>) {
        let key = Key::new(Kind::Node, "", name.0.clone());
        let is_linked = self.links.contains_key(name);
        let comes = self.nodes.get(name).is_some_and(|known| known.waiting.is_some());
        if !is_linked && !comes && self.seed.wiring.view.snapshot().find(&key).is_none() {
            self.forget(name, ctx);
        }
    }

    /// Ends a node's actor. Only when it has ended can there be another of that name, so what came meanwhile waits.
    fn forget(&mut self, name: &NodeName, ctx: &mut Context<Self>) {
        let Some(known) = self.nodes.get_mut(name).filter(|k| k.pods.is_empty() && !k.ending) else { return };
        known.ending = true;
        let (stopped, name) = (self.supervisor.stop_child(name.as_str()), name.clone());
        ctx.spawn(stopped.into_actor(self).map(move |_, registry, _| {
            registry.handles.remove(&name);
            let Some(ended) = registry.nodes.remove(&name) else { return };
            let key = Key::new(Kind::Node, "", name.0.clone());
            let exists = registry.seed.wiring.view.snapshot().find(&key).is_some();
            if exists || ended.waiting.is_some() || !ended.pods.is_empty() {
                let again = registry.node(&name);
                (again.pods, again.waiting) = (ended.pods, ended.waiting);
            }
        }));
    }

    fn tell_pods(&self, name: &NodeName) {
        let Some(known) = self.nodes.get(name) else { return };
        if let (Some(address), Some(revision)) = (known.slot.address(), self.revision) {
            address.do_send(known.picture(revision));
        }
    }

    fn linked(&mut self, link: Link<wire::ToNode, wire::ToMaster>, ctx: &mut Context<Self>) {
        let name = link.peer().clone();
        let link = link.split();
        let (from, now_ms) = (origin(&link.0), outside::now().as_millisecond());
        // One with another key is no copy of the node's machine.
        if self.stranger(&name, &link.0).is_some() {
            return self.admit(&name, link);
        }
        match self.living_link(&name) {
            Some(other) => {
                self.rivals.lives(&name, origin(&other), now_ms);
                if self.rivals.comes(&name, origin(&other), from, now_ms) {
                    return self.hold(name, link, ctx);
                }
            }
            None if self.awaits(&name, from, false) => return self.hold(name, link, ctx),
            // Whoever comes is the node now.
            None => self.rivals.link_ended(&name),
        }
        self.let_go(&name, from);
        self.admit(&name, link);
    }

    /// What a machine that joined once is told when it is not that node, or is it no more.
    fn stranger(&self, name: &NodeName, link: &LinkHandle<wire::ToNode>) -> Option<String> {
        let snapshot = self.seed.wiring.view.snapshot();
        let object = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
        let key = link.joined_key().filter(|key| !object.is_some_and(|node| belongs_to(node, *key)))?;
        Some(not_a_node(name.as_str(), object.map(|node| &**node), key))
    }

    fn admit(&mut self, name: &NodeName, link: ToNodeLink) {
        if let Some(why) = self.stranger(name, &link.0) {
            if let Some(unsaid) = self.sent_away.says(name, outside::now().as_millisecond()) {
                tracing::warn!(node = %name, unsaid, why, "a node that was deleted, or never joined, was sent away");
            }
            return link.0.expel(&why);
        }
        let subnet = match self.subnet_for(name) {
            Ok(subnet) => subnet,
            Err(problem) => {
                tracing::error!(node = %name, problem, "node refused");
                link.0.close(&problem);
                return;
            }
        };
        let snapshot = self.seed.wiring.view.snapshot();
        let noted =
            snapshot.find(&Key::new(Kind::Node, "", name.0.clone())).and_then(|node| linked_from(node));
        self.rivals.linked(name, origin(&link.0), noted, outside::now().as_millisecond());
        let known = self.node(name);
        if let Some(before) = known.waiting.replace(Box::new((link, subnet))) {
            before.0.0.close("the node has connected anew");
        }
        self.hand_over(name);
    }

    /// Gives a waiting link to its node's actor, once that is there. Nothing is lost in between: an incarnation is
    /// published before it says that it has begun, and whatever waits is handed over then. Whether one was.
    fn hand_over(&mut self, name: &NodeName) -> bool {
        let (Some(revision), Some(known)) = (self.revision, self.nodes.get_mut(name)) else { return false };
        let Some(address) = known.slot.address().filter(|_| !known.ending) else { return false };
        let Some((link, subnet)) = known.waiting.take().map(|waiting| *waiting) else { return false };
        address.do_send(Linked { link, subnet, pods: known.picture(revision) });
        true
    }

    fn subnet_for(&mut self, name: &NodeName) -> Result<String, String> {
        if let Some(subnet) = self.subnets.get(name) {
            return Ok(subnet.clone());
        }
        let free = free_subnet(&self.seed.pod_network, self.subnets.values().map(String::as_str))?
            .ok_or_else(|| format!("the pod network {} has no free subnet left", self.seed.pod_network))?;
        self.subnets.insert(name.clone(), free.clone());
        Ok(free)
    }
}

fn bound_to(object: &Object) -> Option<NodeName> {
    match &object.facet.of {
        KindFacet::Pod(pod) => pod.node.clone(),
        _ => None,
    }
}

/// A link that was accepted.
struct Accepted(Link<wire::ToNode, wire::ToMaster>);

fn accepted(listener: Arc<Mutex<Listener>>) -> impl futures_util::Stream<Item = Accepted> {
    stream::unfold(listener, |listener| async move {
        let link = listener.lock().await.accept().await;
        match link {
            Some(link) => Some((Accepted(link), listener)),
            None => {
                tracing::error!("the links' port has failed");
                None
            }
        }
    })
}

impl Actor for NodeRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.add_stream(follow(self.seed.wiring.view.clone()));
        ctx.add_stream(accepted(self.seed.listener.clone()));
        ctx.run_interval(pulse::PERIOD, |registry, _| {
            registry.health.beat();
        });
        if let Some(admission) = &self.seed.admission {
            ctx.add_stream(admission.asks());
        }
        ctx.run_interval(joins::TOKENS_PERIOD, |registry, ctx| registry.remove_expired_tokens(ctx));
    }
}

impl StreamHandler<Fed> for NodeRegistry {
    fn handle(&mut self, fed: Fed, ctx: &mut Self::Context) {
        self.life.beat();
        match fed {
            Fed::Anew(snapshot) => self.begin_anew(&snapshot, ctx),
            Fed::Changes(changes) => self.note(&changes, ctx),
        }
    }
}

impl StreamHandler<Accepted> for NodeRegistry {
    fn handle(&mut self, accepted: Accepted, ctx: &mut Self::Context) {
        self.life.beat();
        self.linked(accepted.0, ctx);
    }

    fn finished(&mut self, _: &mut Self::Context) {
        self.life.fail("the links' port has failed");
    }
}

impl Handler<Begun> for NodeRegistry {
    type Result = ();

    fn handle(&mut self, begun: Begun, _: &mut Self::Context) {
        self.life.beat();
        // Also without a link it has something to say of them: that they are not ready.
        self.tell_pods(&begun.0);
        self.hand_over(&begun.0);
    }
}

impl Handler<OpenStream> for NodeRegistry {
    type Result = ResponseFuture<Result<wire::ByteStream, OpenError>>;

    fn handle(&mut self, request: OpenStream, _: &mut Self::Context) -> Self::Result {
        let link = self.links.get(&request.node).map(|l| l.value().clone());
        Box::pin(async move {
            let link = link.ok_or_else(|| OpenError::NotConnected(request.node.clone()))?;
            link.open(request.open, OPEN_WITHIN).await.map_err(|error| match error {
                NetError::Refused(code, text) => OpenError::Refused(code, text),
                other => OpenError::Failed(request.node, other.to_string()),
            })
        })
    }
}
