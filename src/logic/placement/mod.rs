//! Placement: which node a pod goes to.
//!
//! Owns: [`Placer`], the nodes with what is booked on them, and for each *class* of pods (all that ask for the same) the
//! nodes that may run one now, least loaded first. Scores: fewest pods of the same owner, then least loaded.
//! Invariant: a class holds exactly the nodes that pass its filters, so the only fitting node is always found, and a
//! pod costs the same on ten nodes and on ten thousand: a booking touches one node, and a class catches up with the
//! nodes that changed since it was last used. [`queue`] decides which pod comes next.

mod filter;
pub(super) use filter::tolerates;
pub mod queue;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use crate::model::{LabelSet, NodeFacet, NodeName, PodFacet, Resources, Uid};

/// Nodes compared when every one of them already runs the owner's pods: enough to spread, few enough to cost nothing.
const CANDIDATES: usize = 64;
/// Classes kept up to date: pods come in batches of one owner, so few are in use at a time.
const MAX_CLASSES: usize = 32;
/// Changes of nodes remembered for classes that were not in use; a class further behind is built anew.
const MIN_LOG: usize = 4_096;
/// What a pod that asks for nothing counts in scores (not in filters), as in Kubernetes: 0.1 core, 200 MiB.
const ASSUMED_CPU_MILLI: i64 = 100;
/// See [`ASSUMED_CPU_MILLI`].
const ASSUMED_MEMORY_BYTES: i64 = 200 << 20;

/// What is known of a node that exists.
#[derive(Debug)]
struct Known {
    facet: Arc<NodeFacet>,
    labels: Arc<LabelSet>,
}

/// A node, or a name on which pods are booked before their node is known.
#[derive(Debug)]
struct Node {
    name: NodeName,
    known: Option<Known>,
    /// What its pods ask for.
    used: Resources,
    /// What they ask for of extended resources.
    extended: BTreeMap<String, i64>,
    /// What its pods count in scores.
    scored: Resources,
    ports: HashSet<filter::HostPort>,
    pods: usize,
}

impl Node {
    /// How full the node is: cpu and memory alike, then pods; smaller is better.
    fn load(&self) -> u64 {
        let Some(known) = &self.known else { return u64::MAX };
        let has = known.facet.allocatable;
        let share = |used: i64, has: i64| {
            let of = i128::from(used.max(0)) * 1_000 / i128::from(has.max(1));
            u64::try_from(of.min(1_000_000)).unwrap_or(1_000_000)
        };
        let fullness =
            share(self.scored.cpu_milli, has.cpu_milli) + share(self.scored.memory_bytes, has.memory_bytes);
        fullness * 10_000 + share(self.used.pods, has.pods).min(9_999)
    }
}

impl Node {
    fn take_extended(&mut self, pod: &PodFacet, change: fn(i64, i64) -> i64) {
        for (name, amount) in pod.extended.iter().flat_map(|all| all.iter()) {
            let used = self.extended.entry(name.clone()).or_default();
            *used = change(*used, *amount);
        }
        self.extended.retain(|_, used| *used != 0);
    }
}

/// What a pod takes on its node.
#[derive(Debug)]
struct Booking {
    node: usize,
    facet: Arc<PodFacet>,
    owner: Option<Uid>,
}

/// All pods that ask for the same, and the nodes that may run one.
#[derive(Debug)]
struct Class {
    /// Any pod of the class.
    model: Arc<PodFacet>,
    order: BTreeSet<(u64, usize)>,
    /// Under which load a node stands in `order`.
    at: HashMap<usize, u64>,
    /// Up to where in the log of node changes it is up to date.
    seen: u64,
    /// Why no node passes, while that holds.
    refusal: Option<Arc<str>>,
    last_used: u64,
}

/// Where pods are, and where they may go.
#[derive(Debug, Default)]
pub struct Placer {
    nodes: Vec<Node>,
    free_slots: Vec<usize>,
    ids: HashMap<NodeName, usize>,
    bookings: HashMap<Uid, Booking>,
    /// How many pods of an owner each node has.
    owners: HashMap<Uid, HashMap<usize, usize>>,
    classes: HashMap<String, Class>,
    /// The latest pod's class: most pods are like the one before.
    latest: Option<(Arc<PodFacet>, String)>,
    log: VecDeque<usize>,
    /// How many changes were ever logged.
    logged: u64,
    uses: u64,
}

impl Placer {
    /// A node is new or has changed.
    pub fn node_changed(&mut self, name: &NodeName, labels: &Arc<LabelSet>, facet: &Arc<NodeFacet>) {
        let id = self.slot(name);
        self.nodes[id].known = Some(Known { facet: facet.clone(), labels: labels.clone() });
        self.note(id);
    }

    /// A node is gone. What is booked on it stays booked until its pods are gone too.
    pub fn node_gone(&mut self, name: &NodeName) {
        if let Some(&id) = self.ids.get(name) {
            self.nodes[id].known = None;
            self.note(id);
            self.vacate(id);
        }
    }

    /// A pod is on a node, or is about to be. Saying so again changes nothing.
    pub fn book(&mut self, uid: &Uid, node: &NodeName, facet: &Arc<PodFacet>, owner: Option<&Uid>) {
        let id = self.slot(node);
        if self.bookings.get(uid).is_some_and(|b| b.node == id && asks_the_same(&b.facet, facet)) {
            return;
        }
        self.release(uid);
        // Releasing may have vacated the slot.
        let id = self.slot(node);
        self.put(id, uid, facet, owner);
    }

    /// A pod no longer takes anything. Whether it did.
    pub fn release(&mut self, uid: &Uid) -> bool {
        let Some(booking) = self.bookings.remove(uid) else { return false };
        let (id, facet) = (booking.node, booking.facet);
        let node = &mut self.nodes[id];
        node.used = node.used.minus(facet.requests);
        node.take_extended(&facet, i64::saturating_sub);
        node.scored = node.scored.minus(scored(facet.requests));
        for port in facet.host_ports.iter() {
            node.ports.remove(port);
        }
        node.pods -= 1;
        if let Some(owner) = booking.owner
            && let Some(counts) = self.owners.get_mut(&owner)
        {
            if let Some(count) = counts.get_mut(&id) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&id);
                }
            }
            if counts.is_empty() {
                self.owners.remove(&owner);
            }
        }
        self.note(id);
        self.vacate(id);
        true
    }

    /// The node on which a pod is booked.
    pub fn node_of(&self, uid: &Uid) -> Option<&NodeName> {
        self.bookings.get(uid).map(|b| &self.nodes[b.node].name)
    }

    /// Chooses a node for a pod and books it there.
    ///
    /// # Errors
    /// The sentence that explains why no node fits.
    pub fn place(
        &mut self,
        uid: &Uid,
        facet: &Arc<PodFacet>,
        owner: Option<&Uid>,
    ) -> Result<NodeName, Arc<str>> {
        let key = self.class_of(facet);
        match self.best(&key, owner) {
            Some(id) => {
                self.put(id, uid, facet, owner);
                Ok(self.nodes[id].name.clone())
            }
            None => Err(self.refusal(&key, facet)),
        }
    }

    fn best(&self, class: &str, owner: Option<&Uid>) -> Option<usize> {
        let class = self.classes.get(class)?;
        let counts = owner.and_then(|o| self.owners.get(o));
        let mut best: Option<(usize, u64, usize)> = None;
        for &(load, id) in class.order.iter().take(CANDIDATES) {
            let beside = counts.and_then(|c| c.get(&id)).copied().unwrap_or(0);
            if best.is_none_or(|b| (beside, load) < (b.0, b.1)) {
                best = Some((beside, load, id));
            }
            if beside == 0 {
                break;
            }
        }
        best.map(|(_, _, id)| id)
    }

    fn put(&mut self, id: usize, uid: &Uid, facet: &Arc<PodFacet>, owner: Option<&Uid>) {
        let node = &mut self.nodes[id];
        node.used = node.used.plus(facet.requests);
        node.take_extended(facet, i64::saturating_add);
        node.scored = node.scored.plus(scored(facet.requests));
        node.ports.extend(facet.host_ports.iter().cloned());
        node.pods += 1;
        if let Some(owner) = owner {
            *self.owners.entry(owner.clone()).or_default().entry(id).or_default() += 1;
        }
        let booking = Booking { node: id, facet: facet.clone(), owner: owner.cloned() };
        self.bookings.insert(uid.clone(), booking);
        self.note(id);
    }

    /// The class of a pod, up to date.
    fn class_of(&mut self, facet: &Arc<PodFacet>) -> String {
        let key = match &self.latest {
            Some((latest, key)) if same_class(latest, facet) => key.clone(),
            _ => class_key(facet),
        };
        self.latest = Some((facet.clone(), key.clone()));
        self.uses += 1;
        let oldest = self.logged - self.log.len() as u64;
        if self.classes.get(&key).is_none_or(|c| c.seen < oldest) {
            self.make_room(&key);
            let mut class = Class {
                model: facet.clone(),
                order: BTreeSet::new(),
                at: HashMap::new(),
                seen: self.logged,
                refusal: None,
                last_used: self.uses,
            };
            for (id, node) in self.nodes.iter().enumerate() {
                class.refresh(id, node);
            }
            self.classes.insert(key.clone(), class);
        } else if let Some(class) = self.classes.get_mut(&key) {
            let from = usize::try_from(class.seen - oldest).unwrap_or(0);
            if from < self.log.len() {
                class.refusal = None;
            }
            for &id in self.log.range(from..) {
                class.refresh(id, &self.nodes[id]);
            }
            class.seen = self.logged;
            class.last_used = self.uses;
        }
        key
    }

    fn make_room(&mut self, key: &str) {
        if self.classes.len() < MAX_CLASSES || self.classes.contains_key(key) {
            return;
        }
        let idle = self.classes.iter().min_by_key(|(_, c)| c.last_used).map(|(k, _)| k.clone());
        if let Some(idle) = idle {
            self.classes.remove(&idle);
        }
    }

    /// Why no node runs the pod: every node counted under its reasons, in Kubernetes' words.
    fn refusal(&mut self, key: &str, facet: &PodFacet) -> Arc<str> {
        if let Some(known) = self.classes.get(key).and_then(|c| c.refusal.clone()) {
            return known;
        }
        let text: Arc<str> = explain(facet, &self.nodes).into();
        if let Some(class) = self.classes.get_mut(key) {
            class.refusal = Some(text.clone());
        }
        text
    }

    fn slot(&mut self, name: &NodeName) -> usize {
        if let Some(&id) = self.ids.get(name) {
            return id;
        }
        let node = Node {
            name: name.clone(),
            known: None,
            used: Resources::default(),
            extended: BTreeMap::new(),
            scored: Resources::default(),
            ports: HashSet::new(),
            pods: 0,
        };
        let id = match self.free_slots.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.ids.insert(name.clone(), id);
        id
    }

    /// Gives a slot back once its node is gone and its last pod too.
    fn vacate(&mut self, id: usize) {
        let node = &self.nodes[id];
        if node.known.is_none() && node.pods == 0 && self.ids.remove(&node.name).is_some() {
            self.free_slots.push(id);
        }
    }

    fn note(&mut self, id: usize) {
        self.log.push_back(id);
        self.logged += 1;
        while self.log.len() > MIN_LOG.max(2 * self.nodes.len()) {
            self.log.pop_front();
        }
    }
}

impl Class {
    /// Puts a node where it belongs now.
    fn refresh(&mut self, id: usize, node: &Node) {
        let load = filter::passes(&self.model, node).then(|| node.load());
        if self.at.get(&id) == load.as_ref() {
            return;
        }
        if let Some(old) = self.at.remove(&id) {
            self.order.remove(&(old, id));
        }
        if let Some(load) = load {
            self.order.insert((load, id));
            self.at.insert(id, load);
        }
    }
}

fn explain(pod: &PodFacet, nodes: &[Node]) -> String {
    let mut counts: BTreeMap<filter::Reason, usize> = BTreeMap::new();
    let mut total = 0;
    for node in nodes.iter().filter(|n| n.known.is_some()) {
        total += 1;
        for reason in filter::reasons(pod, node) {
            *counts.entry(reason).or_default() += 1;
        }
    }
    if total == 0 {
        return "no nodes available to schedule pods".into();
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort_unstable();
    format!("0/{total} nodes are available: {}.", parts.join(", "))
}

fn scored(requests: Resources) -> Resources {
    let or = |asked: i64, assumed: i64| if asked > 0 { asked } else { assumed };
    Resources {
        cpu_milli: or(requests.cpu_milli, ASSUMED_CPU_MILLI),
        memory_bytes: or(requests.memory_bytes, ASSUMED_MEMORY_BYTES),
        ..requests
    }
}

fn asks_the_same(a: &PodFacet, b: &PodFacet) -> bool {
    a.requests == b.requests && a.extended == b.extended
}

fn same_class(a: &PodFacet, b: &PodFacet) -> bool {
    asks_the_same(a, b)
        && a.node_selector == b.node_selector
        && a.tolerations == b.tolerations
        && a.affinity == b.affinity
        && a.host_ports == b.host_ports
}

/// Equal for pods that ask for the same.
fn class_key(facet: &PodFacet) -> String {
    let affinity = facet.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
    format!(
        "{:?}|{:?}|{:?}|{:?}|{affinity:?}|{:?}",
        facet.requests, facet.extended, facet.node_selector, facet.tolerations, facet.host_ports
    )
}
