//! What must hold whatever happens, looked at after every change of the store and every step of a story.
//!
//! Owns: what was ever seen (bindings, revisions, acknowledged writes) across all lives of the master. Two bindings for a
//! pod, a container away from its pod's node or ended without a cause, a pod that vanished before its containers, whose end
//! was undone or whose restarts became fewer, a revision or a subnet given twice, a node back that did not join, a write
//! that was acknowledged and is gone: each is told to the trace as wrong. What is said of nodes that are silent: `beliefs.rs`.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use troupe::{
    messages::{Change, ChangeKind, View},
    model::{Key, Kind, KindFacet, NodeName, Object, Revision, Snapshot, Uid},
    runtime::{ContainerState, sim::SimMachine},
};

use super::{
    beliefs::Beliefs,
    trace::{Event, Trace},
};

/// So long after a pod lost its sandbox its containers may end.
const EXCUSED: Duration = Duration::from_secs(10);

/// Cheap to clone.
#[derive(Clone)]
pub struct Observer {
    trace: Trace,
    pub beliefs: Beliefs,
    state: Rc<RefCell<State>>,
}

#[derive(Default)]
struct State {
    newest: Revision,
    /// Where each pod was bound, for ever.
    bound: BTreeMap<Uid, NodeName>,
    /// What was published and must survive, as published last.
    published: Snapshot,
    machines: BTreeMap<NodeName, Arc<SimMachine>>,
    /// What runs on each machine, by container: as seen last.
    ran: BTreeMap<NodeName, BTreeMap<String, (Uid, String)>>,
    /// Containers that ended, and nobody knows why yet.
    ended: Vec<(NodeName, String, Uid)>,
    /// Pods whose containers were ended by a fault, and when.
    excused: BTreeMap<Uid, Instant>,
    /// Pods in this life of the master: whether each is ready, and ending, and its restarts.
    pods: BTreeMap<Uid, (bool, bool, i32)>,
    /// Pods that are gone in this life of the master.
    gone: BTreeSet<Uid>,
    /// Machines that joined, and whether they ask for it again.
    joined: BTreeMap<NodeName, bool>,
    /// Nodes whose object was deleted, until there is one again: their pods vanish without a word from them.
    deleted_nodes: BTreeSet<NodeName>,
    /// Pods that were removed without grace.
    forced: BTreeSet<Uid>,
    /// What each object may say: the last that was acknowledged, and what was asked for since.
    promised: BTreeMap<Key, BTreeSet<Promise>>,
}

/// What a client's object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// It is not there, or ending.
    Absent,
    /// It is there and says this number.
    Says(i32),
}

impl Observer {
    pub fn new(trace: Trace, beliefs: Beliefs) -> Observer {
        Observer { trace, beliefs, state: Rc::default() }
    }

    /// A machine's containers are looked at from now on, instead of those it had before.
    pub fn machine(&self, name: &NodeName, machine: &Arc<SimMachine>) {
        let mut state = self.state.borrow_mut();
        state.machines.insert(name.clone(), machine.clone());
        state.ran.remove(name);
    }

    /// A machine asks to join.
    pub fn joins(&self, name: &NodeName) {
        self.state.borrow_mut().joined.insert(name.clone(), true);
    }

    /// Something ends a pod's containers.
    pub fn excuse(&self, pod: &Uid) {
        self.state.borrow_mut().excused.insert(pod.clone(), Instant::now());
    }

    /// A client asks for a write. To be told how it went.
    pub fn asked(&self, key: &Key, what: Promise) {
        let mut state = self.state.borrow_mut();
        let may = state.promised.entry(key.clone()).or_insert_with(|| [Promise::Absent].into());
        may.insert(what);
    }

    /// The write was acknowledged.
    pub fn acknowledged(&self, key: &Key, what: Promise) {
        self.trace.note(format_args!("acknowledged {key} {what:?}"));
        self.trace.count(Event::RequestAcknowledged, 1);
        self.state.borrow_mut().promised.insert(key.clone(), [what].into());
    }

    pub fn forced(&self, pod: &Uid) {
        self.state.borrow_mut().forced.insert(pod.clone());
        self.beliefs.asked(pod);
    }

    pub fn node_deleted(&self, name: &NodeName) {
        self.state.borrow_mut().deleted_nodes.insert(name.clone());
        self.beliefs.object_moves(name, None);
    }

    /// A master has begun with what survived.
    pub fn master_began(&self, snapshot: &Snapshot) {
        {
            let state = self.state.borrow();
            let newest = state.newest.max(state.published.revision);
            if snapshot.revision < newest {
                self.trace.wrong(format_args!(
                    "a new master is at revision {}, but {} was published",
                    snapshot.revision, newest
                ));
            }
            // The store answers and publishes what is hard only when it is durable.
            for kind in [Kind::Pod, Kind::ReplicationController, Kind::ConfigMap] {
                for object in state.published.list(kind, None) {
                    let found = snapshot.find(&object.key).filter(|now| now.uid() == object.uid());
                    let lost = match (found, &object.facet.of) {
                        (None, _) => true,
                        (Some(now), KindFacet::Pod(before)) => {
                            before.node.is_some() && node_of(now) != before.node
                        }
                        (Some(now), KindFacet::ReplicationController(_)) => number(now) != number(object),
                        _ => false,
                    };
                    // What was under way may have been carried out, although nobody was told.
                    let asked = state.promised.get(&object.key).is_some_and(|may| may.contains(&says(found)));
                    let removed = found.is_none()
                        && (object.facet.meta.deleting.is_some() || state.forced.contains(object.uid()));
                    if lost && !asked && !removed {
                        self.trace.wrong(format_args!("{} was published and is lost", object.key));
                    }
                }
            }
        }
        {
            let mut state = self.state.borrow_mut();
            state.newest = snapshot.revision;
            state.gone.clear();
            let pods =
                snapshot.list(Kind::Pod, None).filter_map(|pod| Some((pod.uid().clone(), brief(pod)?)));
            state.pods = pods.collect();
        }
        self.look(snapshot);
    }

    /// Everything that the store published, in order.
    pub async fn follow(self, view: View, since: Revision) {
        let mut watch = view.watch(since);
        loop {
            let Ok(changes) = watch.next().await else {
                self.trace.wrong("the store's feed moved on without its follower");
                return;
            };
            for change in &changes {
                self.changed(change);
            }
            let snapshot = view.snapshot();
            self.look(&snapshot);
        }
    }

    fn changed(&self, change: &Change) {
        let object = &change.object;
        self.trace.note(format_args!("{} {:?} {}", object.revision, change.kind, said(object)));
        let mut state = self.state.borrow_mut();
        if object.revision <= state.newest {
            self.trace.wrong(format_args!("revision {} was given twice", object.revision));
        }
        state.newest = object.revision;
        if object.key.kind == Kind::Node {
            self.node_changed(&mut state, change);
        }
        let KindFacet::Pod(pod) = &object.facet.of else { return };
        let uid = object.uid();
        self.count_pod(&state, change);
        self.pod_changed(&mut state, change);
        match (state.bound.get(uid).cloned(), &pod.node) {
            (None, Some(node)) => {
                self.trace.count(Event::PodBound, 1);
                state.bound.insert(uid.clone(), node.clone());
            }
            (Some(before), now) if now.as_ref() != Some(&before) => {
                self.trace.wrong(format_args!("{} was bound to {before}, and now to {now:?}", object.key));
            }
            _ => {}
        }
        if change.kind == ChangeKind::Deleted
            && !state.forced.contains(uid)
            && let Some(node) = state.bound.get(uid)
            && !state.deleted_nodes.contains(node)
            && let Some(machine) = state.machines.get(node)
            && running(machine).any(|(of, _)| of == *uid)
        {
            self.trace.wrong(format_args!("{} is gone while its containers run on {node}", object.key));
        }
    }

    /// What never happens to a pod.
    fn pod_changed(&self, state: &mut State, change: &Change) {
        let object = &change.object;
        let (Some(now), uid) = (brief(object), object.uid()) else { return };
        let gone = change.kind == ChangeKind::Deleted;
        let before = state.pods.insert(uid.clone(), now);
        let of_before = before.map(|(ready, ending, _)| (ready, ending));
        self.beliefs.pod_changed(of_before, object, gone, &state.published);
        if let Some((_, ending, restarts)) = before {
            if ending && !now.1 {
                self.trace.wrong(format_args!("the end of {} is undone", object.key));
            }
            if restarts > now.2 {
                self.trace.wrong(format_args!("{} restarted {restarts} times, now {}", object.key, now.2));
            }
        }
        if gone {
            state.pods.remove(uid);
            state.gone.insert(uid.clone());
        } else if state.gone.contains(uid) {
            self.trace.wrong(format_args!("{} is back, which was gone", object.key));
        }
    }

    fn node_changed(&self, state: &mut State, change: &Change) {
        let name = NodeName::from(change.object.key.name.to_string());
        let before = state.published.find(&change.object.key);
        if change.kind != ChangeKind::Deleted {
            self.beliefs.node_changed(before.map(|before| &**before), &change.object);
        }
        match change.kind {
            ChangeKind::Added => {
                self.beliefs.object_moves(&name, Some(true));
                match state.joined.get_mut(&name) {
                    Some(asked) if *asked => *asked = false,
                    Some(_) => self.trace.wrong(format_args!("{name} is a node again and did not join")),
                    None => {}
                }
                if state.deleted_nodes.remove(&name) {
                    self.trace.count(Event::NodeRecreated, 1);
                }
            }
            ChangeKind::Deleted => {
                self.beliefs.object_moves(&name, Some(false));
                self.trace.count(Event::NodeSentAway, u64::from(state.joined.contains_key(&name)));
                state.deleted_nodes.insert(name);
                self.trace.count(Event::NodeDeleted, 1);
            }
            ChangeKind::Modified => {
                let ready = |object: &Object| matches!(&object.facet.of, KindFacet::Node(node) if node.ready);
                let was = state.published.find(&change.object.key).is_some_and(|before| ready(before));
                self.trace.count(Event::NodeUnready, u64::from(was && !ready(&change.object)));
            }
        }
    }

    fn count_pod(&self, state: &State, change: &Change) {
        let KindFacet::Pod(pod) = &change.object.facet.of else { return };
        let before = state.published.find(&change.object.key).filter(|p| p.uid() == change.object.uid());
        let (was_ready, restarts) = match before.map(|object| &object.facet.of) {
            Some(KindFacet::Pod(before)) => (before.ready, before.restarts),
            _ => (false, 0),
        };
        self.trace.count(Event::PodReady, u64::from(pod.ready && !was_ready));
        self.trace.count(Event::ContainerRestarted, u64::try_from(pod.restarts - restarts).unwrap_or(0));
        if change.kind == ChangeKind::Deleted {
            self.trace.count(Event::PodForced, u64::from(state.forced.contains(change.object.uid())));
        }
        // One that a controller makes while another of its own is ending.
        let owner = change.object.facet.meta.owners.first();
        let ending = state.published.list(Kind::Pod, None).any(|pod| {
            pod.facet.meta.deleting.is_some()
                && owner.is_some_and(|owner| pod.facet.meta.owners.iter().any(|o| o.uid == owner.uid))
        });
        self.trace.count(Event::PodReplaced, u64::from(change.kind == ChangeKind::Added && ending));
    }

    /// Looks at the store and at every machine.
    pub fn look(&self, snapshot: &Snapshot) {
        self.state.borrow_mut().published = snapshot.clone();
        self.look_at_machines();
        let mut state = self.state.borrow_mut();
        let mut subnets = BTreeSet::new();
        for object in snapshot.list(Kind::Node, None) {
            let KindFacet::Node(node) = &object.facet.of else { continue };
            if node.pod_cidr.as_ref().is_some_and(|subnet| !subnets.insert(subnet)) {
                self.trace.wrong(format_args!("{} has the subnet of another node", object.key));
            }
        }
        for object in snapshot.list(Kind::Pod, None) {
            if let Some(node) = node_of(object) {
                state.bound.entry(object.uid().clone()).or_insert(node);
            }
        }
        for (key, may) in &state.promised {
            let says = says(snapshot.find(key));
            if !may.contains(&says) {
                self.trace.wrong(format_args!("{key} is {says:?}, but was acknowledged as {may:?}"));
            }
        }
    }

    /// Looks at what is said of nodes and pods, beside what was last seen of the machines.
    pub fn look_at_beliefs(&self) {
        let state = self.state.borrow();
        let runs = |node: &NodeName, pod: &Uid| {
            state.ran.get(node).map_or(0, |ran| ran.values().filter(|(of, _)| of == pod).count())
        };
        self.beliefs.look(&state.published, runs);
    }

    /// Looks at what the machines really run, and what of it has ended since the last look.
    pub fn look_at_machines(&self) {
        let state = &mut *self.state.borrow_mut();
        // Those of the last look: by now it has been published why.
        for (name, id, uid) in std::mem::take(&mut state.ended) {
            if state.stays(&uid) {
                self.trace.wrong(format_args!("{id} of {uid} was ended on {name}, although its pod stays"));
            }
        }
        let mut seen: BTreeSet<(Uid, String)> = BTreeSet::new();
        for (name, machine) in state.machines.clone() {
            let all = machine.containers().into_iter();
            let all = all.filter(|c| c.state == ContainerState::Running).map(|c| (c.id.0, (c.pod, c.name)));
            let runs: BTreeMap<String, (Uid, String)> = all.collect();
            for (uid, container) in runs.values() {
                if state.bound.get(uid) != Some(&name) {
                    let bound = state.bound.get(uid);
                    self.trace.wrong(format_args!("{name} runs {uid}, which is bound to {bound:?}"));
                }
                if !seen.insert((uid.clone(), container.clone())) {
                    self.trace.wrong(format_args!("{container} of {uid} runs twice, again on {name}"));
                }
            }
            let ran = state.ran.remove(&name).unwrap_or_default();
            for (id, (uid, _)) in ran {
                if !runs.contains_key(&id) && state.stays(&uid) {
                    state.ended.push((name.clone(), id, uid));
                }
            }
            state.ran.insert(name, runs);
        }
    }
}

impl State {
    /// Whether a pod is to run on, and nothing broke it lately.
    fn stays(&self, pod: &Uid) -> bool {
        let of = |object: &Arc<Object>| object.uid() == pod && object.facet.meta.deleting.is_none();
        self.published.list(Kind::Pod, None).any(of)
            && self.excused.get(pod).is_none_or(|at| at.elapsed() > EXCUSED)
    }
}

/// Pods and names of the containers that run on a machine.
pub fn running(machine: &SimMachine) -> impl Iterator<Item = (Uid, String)> {
    let all = machine.containers().into_iter();
    all.filter(|c| c.state == ContainerState::Running).map(|c| (c.pod, c.name))
}

pub fn node_of(object: &Object) -> Option<NodeName> {
    match &object.facet.of {
        KindFacet::Pod(pod) => pod.node.clone(),
        _ => None,
    }
}

/// Whether a pod is ready, and ending, and how often it restarted.
fn brief(object: &Object) -> Option<(bool, bool, i32)> {
    match &object.facet.of {
        KindFacet::Pod(pod) => Some((pod.ready, object.facet.meta.deleting.is_some(), pod.restarts)),
        _ => None,
    }
}

/// What a client's object says now.
fn says(object: Option<&Arc<Object>>) -> Promise {
    match object.filter(|object| object.facet.meta.deleting.is_none()) {
        None => Promise::Absent,
        Some(object) => Promise::Says(number(object)),
    }
}

/// The number that a client gave an object.
fn number(object: &Object) -> i32 {
    match &object.facet.of {
        KindFacet::ReplicationController(rc) => rc.replicas,
        _ => object.facet.meta.labels.get("number").and_then(|text| text.parse().ok()).unwrap_or(0),
    }
}

/// An object in a few words.
fn said(object: &Object) -> String {
    let ending = if object.facet.meta.deleting.is_some() { " ending" } else { "" };
    let more = match &object.facet.of {
        KindFacet::Pod(pod) => format!(
            " {} {}{} restarts={}",
            pod.node.as_ref().map_or("-", |node| node.as_str()),
            pod.phase.as_str(),
            if pod.ready { " ready" } else { "" },
            pod.restarts,
        ),
        KindFacet::Node(node) => {
            let taints: Vec<String> = node.taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
            format!(" ready={} {}", node.ready, taints.join(","))
        }
        KindFacet::ReplicationController(rc) => format!(" replicas={}", rc.replicas),
        _ => String::new(),
    };
    format!("{}{more}{ending}", object.key)
}
