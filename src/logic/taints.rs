//! Taints of nodes that cannot be reached or are not ready, and the pods that have to leave because of a taint.
//!
//! Owns: [`taint_by_readiness`] and [`Evictions`], Kubernetes' taint manager: a pod that does not tolerate a `NoExecute`
//! taint is deleted, one that does so for some seconds is deleted after them. Deleting marks the pod: its controller
//! replaces it at once, and its node, should it come back, is told to end it. Invariants: a pod is deleted only while its
//! node bears the taint; when most nodes are unreachable at once nobody is (the fault is likelier on our side).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    edit::{self, Edit, EditError},
    mirrors::is_mirror,
    placement::tolerates,
    reconcile::{Means, Reconcile},
};
use crate::model::{Key, Kind, KindFacet, NodeFacet, NodeName, Object, PodFacet, Snapshot};

/// The taint of a node whose link is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

/// Nodes that fall silent within so long did so for one reason.
const AT_ONCE_SECONDS: i64 = 60;

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It says that it is ready.
    Ready,
    /// It says that it is not.
    NotReady,
    /// It says nothing. Whether its pods are to go: not while it has only said goodbye.
    Unreachable {
        /// See there.
        evict: bool,
    },
}

/// Makes a node's taints what its readiness says; others stay.
pub fn taint_by_readiness(spec: &mut v1::NodeSpec, readiness: Readiness, now: Timestamp) {
    let wanted: &[(&str, &str)] = match readiness {
        Readiness::Ready => &[],
        Readiness::NotReady => &[(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
        Readiness::Unreachable { evict: false } => &[(UNREACHABLE, NO_SCHEDULE)],
        Readiness::Unreachable { evict: true } => &[(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
    };
    let mut taints = spec.taints.take().unwrap_or_default();
    let ours = |taint: &v1::Taint| [UNREACHABLE, NOT_READY].contains(&taint.key.as_str());
    let is = |taint: &v1::Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    taints.retain(|taint| !ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted)));
    for &(key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            taints.push(v1::Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: (effect == NO_EXECUTE).then_some(Time(now)),
                value: None,
            });
        }
    }
    spec.taints = Some(taints).filter(|taints| !taints.is_empty());
}

/// What a node's own status says of its readiness.
pub fn readiness(status: &v1::NodeStatus) -> Readiness {
    let mut conditions = status.conditions.iter().flatten();
    match conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        true => Readiness::Ready,
        false => Readiness::NotReady,
    }
}

/// Which pods have to leave, and when.
#[derive(Debug, Default)]
pub struct Evictions {
    due: BTreeSet<(Timestamp, Key)>,
    when: HashMap<Key, Timestamp>,
    /// Nodes that pods have to leave.
    tainted: BTreeSet<NodeName>,
}

impl Evictions {
    fn forget(&mut self, pod: &Key) {
        if let Some(at) = self.when.remove(pod) {
            self.due.remove(&(at, pod.clone()));
        }
    }

    fn note(&mut self, pod: &Object, snapshot: &Snapshot, now: Timestamp) {
        self.forget(&pod.key);
        if let Some(at) = leaves_at(pod, snapshot, now) {
            self.when.insert(pod.key.clone(), at);
            self.due.insert((at, pod.key.clone()));
        }
    }

    fn note_node(&mut self, name: &NodeName, snapshot: &Snapshot) {
        let node = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
        match node.and_then(|node| facet(node)).is_some_and(is_tainted) {
            true => self.tainted.insert(name.clone()),
            false => self.tainted.remove(name),
        };
    }

    /// Looks at all pods of tainted nodes.
    fn note_pods(&mut self, snapshot: &Snapshot, now: Timestamp) {
        self.due.clear();
        self.when.clear();
        if self.tainted.is_empty() {
            return;
        }
        for pod in snapshot.list(Kind::Pod, None) {
            if node_of(pod).is_some_and(|node| self.tainted.contains(node)) {
                self.note(pod, snapshot, now);
            }
        }
    }
}

fn facet(node: &Object) -> Option<&NodeFacet> {
    match &node.facet.of {
        KindFacet::Node(facet) => Some(facet),
        _ => None,
    }
}

fn pod_facet(pod: &Object) -> Option<&PodFacet> {
    match &pod.facet.of {
        KindFacet::Pod(facet) => Some(facet),
        _ => None,
    }
}

fn node_of(pod: &Object) -> Option<&NodeName> {
    pod_facet(pod)?.node.as_ref()
}

fn is_tainted(node: &NodeFacet) -> bool {
    node.taints.iter().any(|taint| taint.effect == NO_EXECUTE)
}

fn unreachable_since(node: &NodeFacet) -> Option<Timestamp> {
    let taint = node.taints.iter().find(|taint| taint.effect == NO_EXECUTE && taint.key == UNREACHABLE)?;
    Some(taint.time_added.as_ref().map_or(Timestamp::UNIX_EPOCH, |added| added.0))
}

/// Whether so many nodes fell silent at once that the fault is likelier ours. A half may go: one of two. Those that had
/// been silent for long before the last one count for nothing.
fn is_brake_on(snapshot: &Snapshot) -> bool {
    let nodes: Vec<&NodeFacet> = snapshot.list(Kind::Node, None).filter_map(|node| facet(node)).collect();
    let since: Vec<Timestamp> = nodes.iter().filter_map(|node| unreachable_since(node)).collect();
    let Some(last) = since.iter().max() else { return false };
    let at_once = since.iter().filter(|at| last.as_second() - at.as_second() <= AT_ONCE_SECONDS).count();
    at_once * 2 > nodes.len() - (since.len() - at_once)
}

/// When a pod has to leave its node; `None` while it may stay.
fn leaves_at(pod: &Object, snapshot: &Snapshot, now: Timestamp) -> Option<Timestamp> {
    if pod.facet.meta.deleting.is_some() {
        return None;
    }
    let of = pod_facet(pod)?;
    if of.phase.is_final() {
        return None;
    }
    let node = facet(snapshot.find(&Key::new(Kind::Node, "", of.node.as_ref()?.0.clone()))?)?;
    let taints = node.taints.iter().filter(|taint| taint.effect == NO_EXECUTE);
    taints.filter_map(|taint| stays_until(of, taint, now)).min()
}

/// How long a pod stays in spite of a taint; `None` for ever.
fn stays_until(pod: &PodFacet, taint: &v1::Taint, now: Timestamp) -> Option<Timestamp> {
    let since = taint.time_added.as_ref().map_or(now, |added| added.0);
    let value = taint.value.as_deref().unwrap_or("");
    let bears = pod.tolerations.iter().filter(|borne| tolerates(borne, &taint.key, value, &taint.effect));
    let seconds: Vec<Option<i64>> = bears.map(|toleration| toleration.toleration_seconds).collect();
    let seconds = match (seconds.is_empty(), seconds.into_iter().flatten().min()) {
        (true, _) => 0,
        (false, None) => return None,
        (false, Some(seconds)) => seconds.max(0),
    };
    Some(since.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX))
}

impl Reconcile for Evictions {
    type Item = Key;

    fn anew(&mut self, snapshot: &Snapshot, now: Timestamp) {
        self.tainted.clear();
        for node in snapshot.list(Kind::Node, None) {
            self.note_node(&NodeName(node.key.name.clone()), snapshot);
        }
        self.note_pods(snapshot, now);
    }

    fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        snapshot: &Snapshot,
        now: Timestamp,
    ) {
        let Some(key) = before.or(after).map(|object| &object.key) else { return };
        match key.kind {
            Kind::Node => {
                let of = |object: Option<&Arc<Object>>| {
                    object.and_then(|object| facet(object)).map(|node| node.taints.clone())
                };
                // Also a node that comes back matters to the others: it may take the brake off.
                if of(before) != of(after) {
                    self.note_node(&NodeName(key.name.clone()), snapshot);
                    self.note_pods(snapshot, now);
                }
            }
            Kind::Pod if !self.tainted.is_empty() => match after {
                Some(pod) if node_of(pod).is_some_and(|node| self.tainted.contains(node)) => {
                    self.note(pod, snapshot, now);
                }
                _ => self.forget(key),
            },
            _ => {}
        }
    }

    fn next_due(&mut self, now: Timestamp) -> Option<Key> {
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.when.remove(&key);
        Some(key)
    }

    fn mark(&mut self, item: Key) {
        self.forget(&item);
        self.when.insert(item.clone(), Timestamp::UNIX_EPOCH);
        self.due.insert((Timestamp::UNIX_EPOCH, item));
    }

    fn decide(&self, item: &Key, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let Some(pod) = means.snapshot.find(item) else { return Ok(Vec::new()) };
        if leaves_at(pod, means.snapshot, means.now).is_none_or(|at| at > means.now) {
            return Ok(Vec::new());
        }
        let node =
            node_of(pod).and_then(|name| means.snapshot.find(&Key::new(Kind::Node, "", name.0.clone())));
        // With the brake on nothing happens until a node changes: then every pod is looked at again.
        let silent = node.and_then(|node| facet(node)).and_then(unreachable_since).is_some();
        if silent && is_brake_on(means.snapshot) {
            return Ok(Vec::new());
        }
        // A static pod is its node's own, whatever becomes of its mirror.
        if pod.parse::<v1::Pod>().is_ok_and(|pod| is_mirror(&pod)) {
            return Ok(Vec::new());
        }
        Ok(edit::delete(pod, means.now)?.into_iter().collect())
    }

    fn wake_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
#[path = "taints_tests.rs"]
mod tests;
