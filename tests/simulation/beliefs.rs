//! What a master may say of its nodes and their pods, and when, given who could speak with whom.
//!
//! Owns: since when each node is linked or cut off, as the network knows it. Told wrong: a link that ends although nothing
//! happened to it; a node given up too early, too late, or although others reach its machine; a node or a pod said to be ready long after its node fell silent, or its containers
//! ended; a pod deleted because of a node that nobody had given up. Each bound is that of the code, and some time to write it
//! down; nothing is said of times in which the disk refused, messages were slow, or the master had just begun.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use k8s_openapi::api::core::v1;
use tokio::time::Instant;
use troupe::{
    model::{Kind, KindFacet, NodeName, Object, Snapshot, Uid},
    net::{identity::MASTER, memory::Network},
};

use super::trace::{Event, Trace};

/// Silence before a node is given up, but for what a look every half second may be late.
const GIVEN_UP_AFTER: Duration = Duration::from_millis(1_900 - LATE_MS);
const LATE_MS: u64 = 600;
/// And while others reach its machine.
const SPARED_FOR: Duration = Duration::from_millis(15_000 - LATE_MS);
/// And when it said goodbye.
const GOODBYE: Duration = Duration::from_millis(60_000 - LATE_MS);
/// Who is still silent then has been given up, goodbye or not: see above, and a second for each step of finding out.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(25);
const GOODBYE_WITHIN: Duration = Duration::from_secs(85);
/// A link that is cut one way ends within two seconds on the far side, and a second later the node is not ready.
const UNREADY_WITHIN: Duration = Duration::from_secs(5);
/// What a node says arrives no later after its link broke.
const LAST_WORDS: Duration = Duration::from_millis(2_600);
/// That a container ended is told within this.
const TOLD_WITHIN: Duration = Duration::from_secs(3);
/// Until then a fresh master, a disk, slow messages or a fresh node excuse what is late.
const SETTLED: Duration = Duration::from_secs(8);
/// A fresh master evicts nobody for a taint that it found: 15 s, of which one is lost by cut timestamps.
const DOUBT: Duration = Duration::from_secs(14);
/// Pods outlive the object of their node by ten seconds at most.
const GONE: Duration = Duration::from_secs(15);
/// A link that is so old is known to the master.
const KNOWN: Duration = Duration::from_secs(1);
/// A taint that was there so long ago may have decided on what is written now.
const LATELY: Duration = Duration::from_secs(1);

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// Others that are asked about a silent node.
const ASKED: usize = 3;

/// Cheap to clone.
#[derive(Clone)]
pub struct Beliefs {
    trace: Trace,
    network: Network,
    state: Rc<RefCell<State>>,
}

struct Known {
    joined: bool,
    /// There is an object of it: else it is sent away with each link.
    exists: bool,
    linked: bool,
    /// The number of its present or last link.
    link: Option<u64>,
    /// Since when it is linked, or not.
    since: Instant,
    /// It said goodbye when it was linked last.
    left: bool,
    /// Its object is not the one under which it was linked last.
    fresh: bool,
    /// How long it has been cut off, in all earlier silences together: it is spared by so much less.
    spent: Duration,
    /// Since when enough of the others reach its machine for one of them to be asked.
    seen: Option<Instant>,
    /// Since when there is its object.
    added: Instant,
    /// When pods were to leave it last, and since when.
    given_up: Option<Instant>,
    tainted: Instant,
}

struct State {
    /// When something happened last that may end links.
    fault: Instant,
    nodes: BTreeMap<NodeName, Known>,
    master: Option<Instant>,
    disk: Option<Instant>,
    calm: Option<Instant>,
    /// Pods that are said to be ready while not all of their containers run.
    untrue: BTreeMap<Uid, Instant>,
    sizes: BTreeMap<Uid, usize>,
    /// Pods whose end a user asked for.
    asked: BTreeSet<Uid>,
}

impl Beliefs {
    pub fn new(trace: Trace, network: Network) -> Beliefs {
        let now = Some(Instant::now());
        let state = State {
            fault: Instant::now(),
            nodes: BTreeMap::new(),
            master: None,
            disk: now,
            calm: now,
            untrue: BTreeMap::new(),
            sizes: BTreeMap::new(),
            asked: BTreeSet::new(),
        };
        Beliefs { trace, network, state: Rc::new(RefCell::new(state)) }
    }

    pub fn machine(&self, name: &NodeName, joined: bool) {
        let now = Instant::now();
        let known = Known {
            joined,
            exists: false,
            linked: false,
            link: None,
            since: now,
            left: false,
            fresh: true,
            spent: Duration::ZERO,
            seen: None,
            added: now,
            given_up: None,
            tainted: now,
        };
        self.state.borrow_mut().nodes.insert(name.clone(), known);
    }

    pub fn master(&self, begins: bool) {
        self.state.borrow_mut().master = begins.then(Instant::now);
    }

    pub fn disk(&self, works: bool) {
        let mut state = self.state.borrow_mut();
        state.disk = works.then(|| state.disk.unwrap_or_else(Instant::now));
    }

    pub fn weather(&self, calm: bool) {
        let mut state = self.state.borrow_mut();
        state.calm = calm.then(|| state.calm.unwrap_or_else(Instant::now));
    }

    /// Its process says goodbye, if anybody hears it.
    pub fn leaves(&self, name: &NodeName) {
        self.look_at_links();
        let mut state = self.state.borrow_mut();
        let calm = state.calm.is_some();
        if let Some(known) = state.nodes.get_mut(name) {
            known.left = known.linked && calm;
        }
    }

    /// Something happens that may end links. To be called after [`Beliefs::look_at_links`].
    pub fn fault(&self) {
        self.state.borrow_mut().fault = Instant::now();
    }

    /// Its object is to be deleted, or was deleted or made: then it is there or not.
    pub fn object_moves(&self, name: &NodeName, exists: Option<bool>) {
        self.fault();
        if let Some(known) = self.state.borrow_mut().nodes.get_mut(name) {
            (known.fresh, known.added) = (true, Instant::now());
            known.exists = exists.unwrap_or(known.exists);
        }
    }

    /// A user asks for the end of a pod.
    pub fn asked(&self, pod: &Uid) {
        self.state.borrow_mut().asked.insert(pod.clone());
    }

    /// Looks who is linked and who reaches whom. To be called around each step.
    pub fn look_at_links(&self) {
        let (now, master) = (Instant::now(), NodeName::from(MASTER));
        let state = &mut *self.state.borrow_mut();
        for (name, known) in &mut state.nodes {
            let link = self.network.link(&master, name);
            let ended = known.linked && link != known.link;
            if ended && known.exists && state.fault < known.since {
                self.trace.wrong(format_args!("the link of {name} has ended, and nothing happened to it"));
            }
            let linked = link.is_some();
            if linked == known.linked && (!linked || link == known.link) {
                continue;
            }
            if linked {
                known.spent += if known.linked { Duration::ZERO } else { now - known.since };
                (known.left, known.fresh, known.link) = (false, false, link);
            }
            (known.linked, known.since) = (linked, now);
        }
        let joined: Vec<(NodeName, bool)> = state
            .nodes
            .iter()
            .filter(|(_, known)| known.joined)
            .map(|(name, known)| (name.clone(), known.linked && now - known.since >= KNOWN))
            .collect();
        for (name, known) in state.nodes.iter_mut().filter(|(_, known)| known.joined) {
            let others = joined.iter().filter(|(other, _)| other != name);
            let reaching = others.clone().filter(|(other, alive)| {
                *alive && self.network.is_reached(other, name) && self.network.is_reached(name, other)
            });
            let (reaching, others) = (reaching.count(), others.count());
            let is_seen = reaching > 0 && others - reaching < ASKED;
            known.seen = is_seen.then(|| known.seen.unwrap_or(now));
        }
    }

    /// A node's object has changed.
    pub fn node_changed(&self, before: Option<&Object>, after: &Object) {
        self.look_at_links();
        let (now, name) = (Instant::now(), NodeName::from(after.key.name.to_string()));
        let mut state = self.state.borrow_mut();
        let (master, disk, calm) = (state.master, state.disk, state.calm);
        let Some(known) = state.nodes.get_mut(&name) else { return };
        let spared = is_spared(after) && !before.is_some_and(is_spared);
        self.trace.count(Event::NodeSpared, u64::from(spared));
        if !is_given_up(after) {
            return;
        }
        known.given_up = Some(now);
        if before.is_some_and(is_given_up) {
            return;
        }
        self.trace.count(Event::NodeGivenUp, 1);
        known.tainted = now;
        let silent = now - known.since;
        let since_before = |at: Option<Instant>| at.is_some_and(|at| at < known.since);
        let undisturbed = !known.fresh && since_before(master) && since_before(disk) && since_before(calm);
        let wrong = if known.linked {
            (silent >= KNOWN).then(|| "it is linked".to_owned())
        } else if silent < GIVEN_UP_AFTER {
            Some("it may be back in time".into())
        } else if known.left && undisturbed && silent < GOODBYE {
            Some("it said goodbye".into())
        } else if undisturbed && known.seen.is_some_and(|seen| seen < known.since) {
            self.trace.count(Event::NodeSpentItsTime, 1);
            (silent + known.spent < SPARED_FOR).then(|| "others reach its machine".to_owned())
        } else {
            None
        };
        if let Some(why) = wrong {
            self.trace.wrong(format_args!("{name} is given up after {silent:?}, but {why}"));
        }
    }

    /// A pod's object has changed, or is gone.
    pub fn pod_changed(&self, before: Option<(bool, bool)>, after: &Object, gone: bool, snapshot: &Snapshot) {
        let KindFacet::Pod(pod) = &after.facet.of else { return };
        let Some(name) = &pod.node else { return };
        self.look_at_links();
        let now = Instant::now();
        let state = self.state.borrow();
        let Some(known) = state.nodes.get(name) else { return };
        let settled = |at: Option<Instant>| at.is_some_and(|at| now - at > SETTLED);
        let (was_ready, was_ending) = before.unwrap_or_default();
        let unheard = !known.linked && now - known.since > LAST_WORDS;
        if pod.ready && !was_ready && unheard && settled(state.calm) && settled(state.disk) {
            self.trace.wrong(format_args!(
                "{} becomes ready {:?} after {name} was cut off",
                after.key,
                now - known.since
            ));
        }
        let ends = (gone || after.facet.meta.deleting.is_some()) && !was_ending;
        let nobody_else = after.facet.meta.owners.is_empty() && !state.asked.contains(after.uid());
        if !ends || !nobody_else {
            return;
        }
        let node = troupe::model::Key::new(Kind::Node, "", name.0.clone());
        // The pods of a node that is no more go after a while, too.
        if snapshot.find(&node).is_none() || now - known.added < GONE {
            return;
        }
        self.trace.count(Event::PodEvicted, 1);
        if known.given_up.is_none_or(|at| now - at > LATELY) {
            self.trace.wrong(format_args!("{} is deleted, but {name} was not given up", after.key));
        } else if state.master.is_none_or(|at| now - at < DOUBT && known.tainted < at && !known.linked) {
            self.trace.wrong(format_args!("{} is deleted by a master that has just begun", after.key));
        }
    }

    /// Looks at what is said, beside what is; `runs` counts the containers of a pod that run on a node.
    pub fn look(&self, snapshot: &Snapshot, runs: impl Fn(&NodeName, &Uid) -> usize) {
        self.look_at_links();
        let now = Instant::now();
        let mut state = self.state.borrow_mut();
        let (master, disk, calm) = (state.master, state.disk, state.calm);
        let settled = |at: Option<Instant>, within: Duration| at.is_some_and(|at| now - at > within);
        for object in snapshot.list(Kind::Node, None) {
            let (name, KindFacet::Node(node)) = (NodeName(object.key.name.clone()), &object.facet.of) else {
                continue;
            };
            let Some(known) = state.nodes.get_mut(&name) else { continue };
            if is_given_up(object) {
                known.given_up = Some(now);
            }
            let known = &*known;
            let silent = if known.linked { Duration::ZERO } else { now - known.since };
            let added = Some(known.added);
            if !settled(disk, SETTLED) || !settled(calm, SETTLED) {
                continue;
            }
            if node.ready && silent > UNREADY_WITHIN && settled(master, SETTLED) && settled(added, SETTLED) {
                self.trace.wrong(format_args!("{name} is said to be ready, but is cut off since {silent:?}"));
            }
            let within = if known.left { GOODBYE_WITHIN } else { GIVEN_UP_WITHIN };
            if silent > within && settled(master, within) && settled(added, within) && !is_given_up(object) {
                self.trace.wrong(format_args!("{name} is not given up, but is cut off since {silent:?}"));
            }
        }
        self.look_at_pods(&mut state, snapshot, runs);
    }

    fn look_at_pods(&self, state: &mut State, snapshot: &Snapshot, runs: impl Fn(&NodeName, &Uid) -> usize) {
        let now = Instant::now();
        let settled = |at: Option<Instant>| at.is_some_and(|at| now - at > SETTLED);
        if !(settled(state.master) && settled(state.disk) && settled(state.calm)) {
            return state.untrue.clear();
        }
        let before = std::mem::take(&mut state.untrue);
        for object in snapshot.list(Kind::Pod, None) {
            let KindFacet::Pod(pod) = &object.facet.of else { continue };
            let Some((name, known)) = pod.node.as_ref().and_then(|n| Some((n, state.nodes.get(n)?))) else {
                continue;
            };
            if !pod.ready || now - known.added < SETTLED {
                continue;
            }
            let node = troupe::model::Key::new(Kind::Node, "", name.0.clone());
            if snapshot.find(&node).is_none() {
                continue;
            }
            let since = now - known.since;
            if !known.linked {
                if since > UNREADY_WITHIN {
                    self.trace.wrong(format_args!(
                        "{} is said to be ready, but {name} is cut off since {since:?}",
                        object.key
                    ));
                }
                continue;
            }
            let uid = object.uid();
            let size = *state.sizes.entry(uid.clone()).or_insert_with(|| {
                let pod: v1::Pod = serde_json::from_slice(&object.json).unwrap();
                pod.spec.map_or(0, |spec| spec.containers.len())
            });
            if since < TOLD_WITHIN || runs(name, uid) >= size {
                continue;
            }
            let first = before.get(uid).copied().unwrap_or(now);
            state.untrue.insert(uid.clone(), first);
            if now - first > TOLD_WITHIN {
                self.trace.wrong(format_args!(
                    "{} is said to be ready, but its containers have not all run on {name} since {:?}",
                    object.key,
                    now - first
                ));
            }
        }
    }
}

/// Whether pods have to leave a node since it is silent.
fn is_given_up(node: &Object) -> bool {
    has_taint(node, "NoExecute", false)
}

/// Whether a node is silent and its pods are left alone, since others reach it.
fn is_spared(node: &Object) -> bool {
    has_taint(node, "NoSchedule", true) && !is_given_up(node)
}

fn has_taint(node: &Object, effect: &str, with_time: bool) -> bool {
    let KindFacet::Node(node) = &node.facet.of else { return false };
    let mut taints = node.taints.iter();
    taints.any(|t| t.key == UNREACHABLE && t.effect == effect && (!with_time || t.time_added.is_some()))
}
