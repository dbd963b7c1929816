//! Taints of nodes that cannot be reached or are not ready, and the pods that have to leave because of a taint.
//!
//! Owns: [`taint_by_readiness`] and [`Evictions`], Kubernetes' taint manager: a pod that does not tolerate a `NoExecute`
//! taint is deleted, one that does so for some seconds is deleted after them. Deleting marks the pod: its controller
//! replaces it at once, and its node, should it come back, is told to end it. Invariants: a pod is deleted only while its
//! node bears the taint; when most nodes are unreachable at once, or no node is well, nobody is (the fault is likelier on
//! our side), and who is silent when that ends is given time to come back.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    edit::{self, Edit, EditError},
    events::Happening,
    mirrors::is_mirror,
    placement::tolerates,
    reconcile::{Means, Reconcile},
};
use crate::model::{Key, Kind, KindFacet, NodeFacet, NodeName, Object, PodFacet, Snapshot, Uid};

/// The taint of a node whose link is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The taint of a node that says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
const NO_EXECUTE: &str = "NoExecute";
const NO_SCHEDULE: &str = "NoSchedule";

/// Nodes that fall silent within so long did so for one reason.
const AT_ONCE_SECONDS: i64 = 60;

/// When nodes return, or the master does, they do so one after the other: dialers try each second, what is half open takes
/// some more to end. Who is silent still so long after is believed.
const DOUBT_SECONDS: i64 = 15;

/// A taint's time is cut to whole seconds: it may have come so much later.
const CUT_SECONDS: i64 = 1;

/// A clock that goes back by less was corrected, or read twice at once.
const SET_BACK_SECONDS: i64 = 2;

/// What events say they come from, as Kubernetes' do.
const COMPONENT: &str = "taint-eviction-controller";
/// Kubernetes' reason both of a pod that has to leave and of one that may stay after all.
const REASON: &str = "TaintManagerEviction";
const MARKED: &str = "Marking for deletion Pod";

/// How a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It says that it is ready.
    Ready,
    /// It says that it is not.
    NotReady,
    /// It says nothing, but it has said goodbye, or has just linked: its pods may stay.
    Away,
    /// It says nothing, but its machine is reached: its pods may stay for now. It counts as silent.
    Spared,
    /// It says nothing: its pods are to go.
    Unreachable,
}

/// Makes a node's taints what its readiness says; others stay.
pub fn taint_by_readiness(spec: &mut v1::NodeSpec, readiness: Readiness, now: Timestamp) {
    let wanted: &[(&str, &str)] = match readiness {
        Readiness::Ready => &[],
        Readiness::NotReady => &[(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)],
        Readiness::Away | Readiness::Spared => &[(UNREACHABLE, NO_SCHEDULE)],
        Readiness::Unreachable => &[(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)],
    };
    // What tells one that is spared from one that is away.
    let spared = readiness == Readiness::Spared;
    let mut taints = spec.taints.take().unwrap_or_default();
    let is = |taint: &v1::Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    taints.retain(|taint| !is_ours(taint) || wanted.iter().any(|wanted| is(taint, *wanted)));
    for taint in taints.iter_mut().filter(|taint| is(taint, (UNREACHABLE, NO_SCHEDULE))) {
        taint.time_added = taint.time_added.take().or(Some(Time(now))).filter(|_| spared);
    }
    for &(key, effect) in wanted {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            taints.push(v1::Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: (spared || effect == NO_EXECUTE).then_some(Time(now)),
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

/// Whether what happened is that a pod was made to leave its node; else that it may stay after all, or something else.
pub fn is_eviction(happening: &Happening) -> bool {
    // The pod's name follows.
    happening.component == COMPONENT && happening.reason == REASON && happening.message.starts_with(MARKED)
}

/// Whether nothing is heard of a node, and it has not said goodbye.
pub fn is_silent(node: &Object) -> bool {
    facet(node).is_some_and(|node| silent_since(node).is_some())
}

/// Whether a node is silent and its pods have to leave it: nobody reaches its machine, and it did not say that it comes back.
pub fn is_given_up(node: &Object) -> bool {
    let gone = |taint: &v1::Taint| taint.key == UNREACHABLE && taint.effect == NO_EXECUTE;
    facet(node).is_some_and(|node| node.taints.iter().any(gone))
}

/// Whether a node's taints say that there is no way to it, whatever the reason.
pub fn is_out_of_reach(node: &Object) -> bool {
    facet(node).is_some_and(|node| node.taints.iter().any(|taint| taint.key == UNREACHABLE))
}

/// Whether a node's taints say that it said goodbye and is not back.
pub fn has_said_goodbye(node: &Object) -> bool {
    let Some(node) = facet(node) else { return false };
    let mut taints = node.taints.iter();
    taints.any(|taint| taint.key == UNREACHABLE && taint.effect == NO_SCHEDULE)
        && silent_since(node).is_none()
}

/// Which pods have to leave, and when.
#[derive(Debug, Default)]
pub struct Evictions {
    due: BTreeSet<(Timestamp, Key)>,
    when: HashMap<Key, Leaving>,
    /// Since when pods are on their node as far as is known, of those on tainted nodes.
    seen: HashMap<Key, (Uid, Timestamp)>,
    /// Nodes that pods have to leave.
    tainted: BTreeSet<NodeName>,
    /// When taints came, by node and key.
    came: HashMap<NodeName, BTreeMap<String, Came>>,
    /// Pods that were to leave and may stay: to be told of.
    called_off: Vec<Happening>,
    /// The brake is on, as of the last change of a node.
    braking: bool,
    /// When the brake was on last, or all this began: silence from before then may be our own fault.
    doubt: Option<Timestamp>,
    /// The latest time that it was: a clock that is set back is found out by it.
    latest: Timestamp,
}

/// When a taint came.
#[derive(Clone, Debug)]
struct Came {
    /// The node, which may be another of its name.
    node: Uid,
    /// As it says itself: cut to whole seconds, or not at all.
    added: Option<Timestamp>,
    /// When it was there for certain: when it was seen to come, if it was. Never before it came, nor later than it can
    /// have come by its own word.
    since: Timestamp,
}

/// When a pod is to leave.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    at: Timestamp,
    /// What that is after it began at the most.
    seconds: i64,
}

impl Evictions {
    /// Whether it was to leave.
    fn forget(&mut self, pod: &Key) -> bool {
        let leaving = self.when.remove(pod);
        leaving.is_some_and(|leaving| self.due.remove(&(leaving.at, pod.clone())))
    }

    /// Has nothing wait longer than it has to when the clock was set back: what came in a future that is none came now.
    fn note_time(&mut self, now: Timestamp) {
        if later(now, SET_BACK_SECONDS) > self.latest {
            self.latest = self.latest.max(now);
            return;
        }
        self.latest = now;
        self.doubt = self.doubt.filter(|doubt| *doubt <= now);
        for came in self.came.values_mut().flat_map(BTreeMap::values_mut) {
            came.since = came.since.min(now);
        }
        for (_, seen) in self.seen.values_mut() {
            *seen = (*seen).min(now);
        }
        for leaving in self.when.values_mut() {
            leaving.at = leaving.at.min(later(now, leaving.seconds));
        }
        self.due = self.when.iter().map(|(pod, leaving)| (leaving.at, pod.clone())).collect();
    }

    fn note(&mut self, pod: &Object, snapshot: &Snapshot, now: Timestamp) {
        let was_to_leave = self.forget(&pod.key);
        if self.seen.get(&pod.key).is_none_or(|(uid, _)| uid != pod.uid()) {
            let seen = placed(pod).map_or(now, |placed| later(placed, CUT_SECONDS).min(now));
            self.seen.insert(pod.key.clone(), (pod.uid().clone(), seen));
        }
        if let Some(leaving) = self.leaves(pod, snapshot, now, self.braking) {
            self.when.insert(pod.key.clone(), leaving);
            self.due.insert((leaving.at, pod.key.clone()));
        } else if was_to_leave {
            self.note_called_off(pod, now);
        }
    }

    fn note_called_off(&mut self, pod: &Object, now: Timestamp) {
        let stays =
            pod.facet.meta.deleting.is_none() && pod_facet(pod).is_some_and(|of| !of.phase.is_final());
        if stays && !is_static(pod) {
            self.called_off.push(happening(pod, "Cancelling deletion of Pod", now));
        }
    }

    /// `comes`: what is new of its taints has just come; else it may have been there for long.
    fn note_node(&mut self, name: &NodeName, snapshot: &Snapshot, now: Timestamp, comes: bool) {
        let node = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
        let uid = node.map_or_else(|| Uid::from(""), |node| node.uid().clone());
        let node = node.and_then(|node| facet(node));
        match node.is_some_and(is_tainted) {
            true => self.tainted.insert(name.clone()),
            false => self.tainted.remove(name),
        };
        let before = self.came.remove(name).unwrap_or_default();
        let taints = node.into_iter().flat_map(|node| node.taints.iter());
        let came: BTreeMap<String, Came> = taints
            .filter(|taint| taint.effect == NO_EXECUTE)
            .map(|taint| {
                let added = added(taint);
                let known = before.get(&taint.key).filter(|came| came.added == added && came.node == uid);
                let came = known.cloned().unwrap_or_else(|| {
                    // One that says to come in the future comes now: clocks differ, and are set.
                    let since = match added {
                        Some(added) if comes => later(added, CUT_SECONDS).min(now),
                        Some(added) => later(added.min(now), CUT_SECONDS),
                        None => now,
                    };
                    Came { node: uid.clone(), added, since }
                });
                (taint.key.clone(), came)
            })
            .collect();
        if !came.is_empty() {
            self.came.insert(name.clone(), came);
        }
    }

    /// Since when a pod is on a node with that taint: the later of both.
    fn since(&self, pod: &Object, node: &NodeName, taint: &v1::Taint, now: Timestamp) -> Timestamp {
        let came = self.came.get(node).and_then(|came| came.get(&taint.key));
        let came = came.filter(|came| came.added == added(taint)).map_or(now, |came| came.since);
        let seen = self.seen.get(&pod.key).filter(|(uid, _)| uid == pod.uid());
        came.max(seen.map_or(now, |(_, seen)| *seen))
    }

    /// Looks whether the brake is on.
    fn note_brake(&mut self, snapshot: &Snapshot, now: Timestamp) {
        let on = is_brake_on(snapshot);
        if on || self.braking {
            self.doubt = Some(now);
        }
        self.braking = on;
    }

    /// Looks at all pods of tainted nodes.
    fn note_pods(&mut self, snapshot: &Snapshot, now: Timestamp) {
        self.due.clear();
        let before = std::mem::take(&mut self.when);
        let tainted = &self.tainted;
        self.seen.retain(|pod, _| {
            let node = snapshot.find(pod).and_then(|pod| node_of(pod));
            node.is_some_and(|node| tainted.contains(node))
        });
        if !self.tainted.is_empty() {
            for pod in snapshot.list(Kind::Pod, None) {
                if node_of(pod).is_some_and(|node| self.tainted.contains(node)) {
                    self.note(pod, snapshot, now);
                }
            }
        }
        let called_off: Vec<&Key> = before.keys().filter(|pod| !self.when.contains_key(*pod)).collect();
        for pod in called_off.into_iter().filter_map(|pod| snapshot.find(pod)) {
            self.note_called_off(pod, now);
        }
    }

    /// When a pod has to leave its node; `None` while it may stay. With the brake on, a silent node is no reason.
    fn leaves(&self, pod: &Object, snapshot: &Snapshot, now: Timestamp, braking: bool) -> Option<Leaving> {
        if pod.facet.meta.deleting.is_some() {
            return None;
        }
        let of = pod_facet(pod)?;
        if of.phase.is_final() {
            return None;
        }
        let name = of.node.as_ref()?;
        let node = facet(snapshot.find(&Key::new(Kind::Node, "", name.0.clone()))?)?;
        let taints = node.taints.iter().filter(|taint| taint.effect == NO_EXECUTE);
        let obeyed = taints.filter(|taint| !(braking && is_ours(taint)));
        obeyed
            .filter_map(|taint| {
                let seconds = seconds_borne(of, taint)?;
                let until = match seconds {
                    0 => added(taint).unwrap_or(now).min(now),
                    seconds => later(self.since(pod, name, taint, now), seconds),
                };
                Some(match self.believed_from(taint).filter(|from| *from > until) {
                    Some(at) => Leaving { at, seconds: seconds.max(DOUBT_SECONDS) },
                    None => Leaving { at: until, seconds },
                })
            })
            .min_by_key(|leaving| leaving.at)
    }

    /// From when on a taint is believed, if it came in doubt.
    fn believed_from(&self, taint: &v1::Taint) -> Option<Timestamp> {
        let doubt = self.doubt.filter(|_| is_ours(taint))?;
        let came_before = taint.time_added.as_ref().is_none_or(|added| added.0 <= doubt);
        came_before.then(|| later(doubt, DOUBT_SECONDS))
    }
}

fn later(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
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

/// Whether a taint says how a node is.
fn is_ours(taint: &v1::Taint) -> bool {
    [UNREACHABLE, NOT_READY].contains(&taint.key.as_str())
}

fn is_tainted(node: &NodeFacet) -> bool {
    node.taints.iter().any(|taint| taint.effect == NO_EXECUTE)
}

/// Since when a node is silent without a goodbye, whether its pods are to leave or are spared. A taint without a time
/// says so only when pods are to leave.
fn silent_since(node: &NodeFacet) -> Option<Timestamp> {
    let of = |effect: &str| node.taints.iter().find(|t| t.effect == effect && t.key == UNREACHABLE);
    let added = |taint: &v1::Taint| taint.time_added.as_ref().map(|added| added.0);
    match of(NO_EXECUTE) {
        Some(taint) => Some(added(taint).unwrap_or(Timestamp::UNIX_EPOCH)),
        None => of(NO_SCHEDULE).and_then(added),
    }
}

/// Whether so many nodes fell silent at once, spared or not, that the fault is likelier ours. A half may go: one of two. Those that had
/// been silent for long before count for nothing, nor do those that followed much later. It is on, too, when no node is
/// well, whatever each says of itself: there is nowhere to go.
pub fn is_brake_on(snapshot: &Snapshot) -> bool {
    let nodes: Vec<&NodeFacet> = snapshot.list(Kind::Node, None).filter_map(|node| facet(node)).collect();
    if nodes.iter().all(|node| node.taints.iter().any(is_ours)) {
        return !nodes.is_empty();
    }
    let silent = nodes.iter().filter_map(|node| silent_since(node));
    let mut since: Vec<i64> = silent.map(|at| at.as_second()).collect();
    since.sort_unstable();
    since.iter().enumerate().any(|(before, last)| {
        let earlier = since.partition_point(|at| last - at > AT_ONCE_SECONDS);
        let at_once = before + 1 - earlier;
        at_once * 2 > nodes.len() - earlier
    })
}

/// For how many seconds a pod bears a taint; `None` for ever.
fn seconds_borne(pod: &PodFacet, taint: &v1::Taint) -> Option<i64> {
    let value = taint.value.as_deref().unwrap_or("");
    let bears = pod.tolerations.iter().filter(|borne| tolerates(borne, &taint.key, value, &taint.effect));
    let seconds: Vec<Option<i64>> = bears.map(|toleration| toleration.toleration_seconds).collect();
    match (seconds.is_empty(), seconds.into_iter().flatten().min()) {
        (true, _) => Some(0),
        (false, seconds) => seconds.map(|seconds| seconds.max(0)),
    }
}

fn added(taint: &v1::Taint) -> Option<Timestamp> {
    taint.time_added.as_ref().map(|added| added.0)
}

/// When a pod came to its node by its own word: cut to whole seconds.
fn placed(pod: &Object) -> Option<Timestamp> {
    let pod = pod.parse::<v1::Pod>().ok()?;
    let conditions = pod.status.into_iter().flat_map(|status| status.conditions.unwrap_or_default());
    let scheduled = conditions.filter(|c| c.type_ == "PodScheduled" && c.status == "True");
    let bound = scheduled.filter_map(|condition| condition.last_transition_time).max();
    bound.into_iter().chain(pod.metadata.creation_timestamp).map(|time| time.0).max()
}

/// Whether it is the mirror of a static pod: that is its node's own, whatever becomes of its mirror.
fn is_static(pod: &Object) -> bool {
    pod.parse::<v1::Pod>().is_ok_and(|pod| is_mirror(&pod))
}

fn happening(pod: &Object, what: &str, at: Timestamp) -> Happening {
    let Key { namespace, name, .. } = &pod.key;
    Happening {
        about: pod.key.clone(),
        uid: pod.uid().clone(),
        field_path: None,
        warning: false,
        reason: REASON.into(),
        message: format!("{what} {namespace}/{name}"),
        component: COMPONENT.into(),
        host: None,
        at,
    }
}

impl Reconcile for Evictions {
    type Item = Key;

    fn anew(&mut self, snapshot: &Snapshot, now: Timestamp) {
        self.note_time(now);
        // A reader that was merely slow has been there all the time.
        self.doubt.get_or_insert(now);
        self.tainted.clear();
        self.came.retain(|node, _| snapshot.find(&Key::new(Kind::Node, "", node.0.clone())).is_some());
        for node in snapshot.list(Kind::Node, None) {
            self.note_node(&NodeName(node.key.name.clone()), snapshot, now, false);
        }
        self.note_brake(snapshot, now);
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
        self.note_time(now);
        match key.kind {
            Kind::Node => {
                let of = |object: Option<&Arc<Object>>| {
                    object.and_then(|object| facet(object)).map(|node| node.taints.clone())
                };
                // Also a node that comes back matters to the others: it may take the brake off.
                if of(before) != of(after) {
                    self.note_node(&NodeName(key.name.clone()), snapshot, now, true);
                    self.note_brake(snapshot, now);
                    self.note_pods(snapshot, now);
                }
            }
            Kind::Pod if !self.tainted.is_empty() => match after {
                Some(pod) if node_of(pod).is_some_and(|node| self.tainted.contains(node)) => {
                    self.note(pod, snapshot, now);
                }
                _ => {
                    self.seen.remove(key);
                    let was_to_leave = self.forget(key);
                    if let Some(pod) = after.filter(|_| was_to_leave) {
                        self.note_called_off(pod, now);
                    }
                }
            },
            _ => {}
        }
    }

    fn next_due(&mut self, now: Timestamp) -> Option<Key> {
        self.note_time(now);
        let (at, _) = self.due.first()?;
        if *at > now {
            return None;
        }
        let (_, key) = self.due.pop_first()?;
        self.when.remove(&key);
        Some(key)
    }

    fn mark(&mut self, item: Key) {
        // What was looked at again meanwhile has its time already, which may be later.
        if let Entry::Vacant(free) = self.when.entry(item.clone()) {
            free.insert(Leaving { at: Timestamp::UNIX_EPOCH, seconds: 0 });
            self.due.insert((Timestamp::UNIX_EPOCH, item));
        }
    }

    fn decide(&self, item: &Key, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let Some(pod) = means.snapshot.find(item) else { return Ok(Vec::new()) };
        let (snapshot, now) = (means.snapshot, means.exact);
        let is_due =
            |braking: bool| self.leaves(pod, snapshot, now, braking).is_some_and(|leaving| leaving.at <= now);
        // The snapshot may be newer than what was noted. With the brake on in either nothing happens until a node
        // changes: then every pod is looked at again.
        if !is_due(self.braking) || (is_brake_on(snapshot) && !is_due(true)) {
            return Ok(Vec::new());
        }
        if is_static(pod) {
            return Ok(Vec::new());
        }
        Ok(edit::delete(pod, means.now)?.into_iter().collect())
    }

    fn happenings(&mut self, made: &[Arc<Object>], now: Timestamp) -> Vec<Happening> {
        let mut all = std::mem::take(&mut self.called_off);
        // It deletes pods and does nothing else.
        all.extend(made.iter().map(|pod| happening(pod, MARKED, now)));
        all
    }

    fn wake_at(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
#[path = "taints_tests.rs"]
mod tests;
