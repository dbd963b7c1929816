//! Which pod is placed next, and what became of those that were.
//!
//! Owns: [`Queue`]: pods that wait (highest priority first, one owner's together), pods that no node fits (set aside
//! until a node or a pod changes), and pods whose binding was decided but is not yet seen in the feed.
//! Invariant: a pod is in at most one of the three, and only a pod seen unbound is ever decided: with the
//! compare-and-swap of its binding, it is never bound twice.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{Pod, PodCondition},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::Placer;
use crate::{
    logic::edit::{self, Edit, EditError},
    model::{Key, Kind, KindFacet, NodeFacet, NodeName, Object, PodFacet, Snapshot, Uid},
};

/// Priority, age, owner, name.
type Turn = (Reverse<i32>, Timestamp, Option<Uid>, Key);

/// Pods on their way to a node.
#[derive(Debug, Default)]
pub struct Queue {
    placer: Placer,
    waiting: BTreeMap<Turn, Arc<Object>>,
    turns: HashMap<Uid, Turn>,
    refused: HashMap<Uid, Arc<Object>>,
    /// What a refused pod was last told.
    told: HashMap<Uid, Arc<str>>,
    /// Decided, and not yet seen bound.
    assumed: HashMap<Uid, Arc<Object>>,
}

/// What was decided on some of the waiting pods.
#[derive(Debug, Default)]
pub struct Round {
    /// Pods and their nodes; booked already.
    pub bound: Vec<(Arc<Object>, NodeName)>,
    /// Pods that no node fits, and why; only those that were not told so before.
    pub refused: Vec<(Arc<Object>, Arc<str>)>,
}

impl Queue {
    /// From a snapshot.
    pub fn load(snapshot: &Snapshot) -> Queue {
        let mut queue = Queue::default();
        for kind in [Kind::Node, Kind::Pod] {
            for object in snapshot.list(kind, None) {
                queue.apply(None, Some(object));
            }
        }
        queue
    }

    /// Takes in one change: the state before and the state after.
    pub fn apply(&mut self, before: Option<&Arc<Object>>, after: Option<&Arc<Object>>) {
        match before.or(after).map(|o| &o.facet.of) {
            Some(KindFacet::Node(_)) => self.node(before, after),
            Some(KindFacet::Pod(_)) => match after {
                Some(pod) => self.pod(pod),
                None => {
                    if let Some(pod) = before {
                        self.forget(pod.uid());
                    }
                }
            },
            _ => {}
        }
    }

    /// Whether any pod waits.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Decides on at most `max` waiting pods.
    pub fn decide(&mut self, max: usize) -> Round {
        let mut round = Round::default();
        for _ in 0..max {
            let Some((_, pod)) = self.waiting.pop_first() else { break };
            let uid = pod.uid().clone();
            self.turns.remove(&uid);
            let KindFacet::Pod(facet) = &pod.facet.of else { continue };
            match self.placer.place(&uid, facet, owner(&pod)) {
                Ok(node) => {
                    self.assumed.insert(uid, pod.clone());
                    round.bound.push((pod, node));
                }
                Err(why) => {
                    if self.told.insert(uid.clone(), why.clone()).as_ref() != Some(&why) {
                        round.refused.push((pod.clone(), why));
                    }
                    self.refused.insert(uid, pod);
                }
            }
        }
        round
    }

    /// A binding was not made: the pod waits again, in its present state, if it still exists.
    pub fn not_bound(&mut self, uid: &Uid, present: Option<&Arc<Object>>) {
        if self.assumed.remove(uid).is_none() {
            return;
        }
        self.placer.release(uid);
        if let Some(present) = present.filter(|p| p.uid() == uid) {
            self.pod(present);
        }
    }

    /// A refusal could not be written: tell the pod again when it is refused the next time.
    pub fn not_told(&mut self, uid: &Uid) {
        self.told.remove(uid);
    }

    fn node(&mut self, before: Option<&Arc<Object>>, after: Option<&Arc<Object>>) {
        let Some(node) = after else {
            if let Some(gone) = before {
                self.placer.node_gone(&NodeName(gone.key.name.clone()));
            }
            return;
        };
        let KindFacet::Node(facet) = &node.facet.of else { return };
        let same = |old: &Arc<Object>| match &old.facet.of {
            KindFacet::Node(f) => same_node(f, facet) && old.facet.meta.labels == node.facet.meta.labels,
            _ => false,
        };
        if before.is_some_and(same) {
            return;
        }
        self.placer.node_changed(&NodeName(node.key.name.clone()), &node.facet.meta.labels, facet);
        self.retry();
    }

    fn pod(&mut self, pod: &Arc<Object>) {
        let KindFacet::Pod(facet) = &pod.facet.of else { return };
        let uid = pod.uid();
        let ours = facet.scheduler.is_none() && !facet.gated && pod.facet.meta.deleting.is_none();
        match &facet.node {
            _ if facet.phase.is_final() => self.forget(uid),
            Some(node) => {
                self.leave_queues(uid);
                self.placer.book(uid, node, facet, owner(pod));
            }
            None if !ours => self.forget(uid),
            None if self.assumed.contains_key(uid) => {}
            None => match self.refused.get_mut(uid) {
                Some(old) if !asks_anew(old, facet) => *old = pod.clone(),
                _ => self.wait(pod, facet),
            },
        }
    }

    fn wait(&mut self, pod: &Arc<Object>, facet: &PodFacet) {
        let uid = pod.uid().clone();
        self.refused.remove(&uid);
        let meta = &pod.facet.meta;
        let turn = (Reverse(facet.priority), meta.created, owner(pod).cloned(), pod.key.clone());
        if let Some(old) = self.turns.insert(uid, turn.clone()) {
            self.waiting.remove(&old);
        }
        self.waiting.insert(turn, pod.clone());
    }

    fn leave_queues(&mut self, uid: &Uid) {
        if let Some(turn) = self.turns.remove(uid) {
            self.waiting.remove(&turn);
        }
        self.refused.remove(uid);
        self.told.remove(uid);
        self.assumed.remove(uid);
    }

    fn forget(&mut self, uid: &Uid) {
        self.leave_queues(uid);
        if self.placer.release(uid) {
            self.retry();
        }
    }

    /// Something changed that may help those that no node fitted.
    fn retry(&mut self) {
        for (_, pod) in std::mem::take(&mut self.refused) {
            if let KindFacet::Pod(facet) = &pod.facet.of {
                let facet = facet.clone();
                self.wait(&pod, &facet);
            }
        }
    }
}

fn owner(pod: &Object) -> Option<&Uid> {
    pod.facet.meta.controller().map(|o| &o.uid)
}

fn same_node(a: &NodeFacet, b: &NodeFacet) -> bool {
    (a.allocatable == b.allocatable && a.extended == b.extended)
        && a.cordoned == b.cordoned
        && a.ready == b.ready
        && a.taints == b.taints
}

/// Whether a pod asks for something else than before.
fn asks_anew(old: &Object, facet: &PodFacet) -> bool {
    match &old.facet.of {
        KindFacet::Pod(old) => !super::same_class(old, facet),
        _ => true,
    }
}

/// The edit that binds a pod to a node.
///
/// # Errors
/// When the pod's document is no pod: a defect.
pub fn bind(pod: &Arc<Object>, node: &NodeName, now: Timestamp) -> Result<Edit, EditError> {
    edit::edit::<Pod>(pod, |typed| {
        typed.spec.get_or_insert_default().node_name = Some(node.to_string());
        set_scheduled(typed, scheduled("True", None, now));
    })
}

/// The edit that says why no node fits; `None` when the pod says so already.
///
/// # Errors
/// When the pod's document is no pod: a defect.
pub fn refuse(pod: &Arc<Object>, why: &str, now: Timestamp) -> Result<Option<Edit>, EditError> {
    let mut said = false;
    let made = edit::edit::<Pod>(pod, |typed| {
        let conditions = typed.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let old = conditions.clone().find(|c| c.type_ == "PodScheduled");
        let same = |c: &PodCondition| {
            (c.status == "False" && c.message.as_deref() == Some(why))
                && c.observed_generation == typed.metadata.generation
        };
        said = old.is_some_and(same);
        let since = old.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
        let mut condition = scheduled("False", Some(why), now);
        condition.last_transition_time = since.or(condition.last_transition_time);
        set_scheduled(typed, condition);
    })?;
    Ok((!said).then_some(made))
}

fn scheduled(status: &str, why: Option<&str>, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: "PodScheduled".into(),
        status: status.into(),
        reason: why.map(|_| "Unschedulable".into()),
        message: why.map(str::to_owned),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    }
}

fn set_scheduled(pod: &mut Pod, mut condition: PodCondition) {
    condition.observed_generation = pod.metadata.generation;
    let status = pod.status.get_or_insert_default();
    status.phase.get_or_insert_with(|| "Pending".into());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != "PodScheduled");
    conditions.push(condition);
}
