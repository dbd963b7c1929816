//! Garbage collection: what nobody owns any more, and pods of nodes that no longer exist.
//!
//! Owns: Kubernetes' three ways of deleting an owner. Background: dependents whose owners are all gone are deleted.
//! Foreground (finalizer `foregroundDeletion`): the owner stays until its blocking dependents are gone. Orphan
//! (finalizer `orphan`): the dependents forget the owner. Invariant: an owner of a kind that is not stored here counts
//! as alive: what cannot be looked up is never a reason to delete.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{
    edit::{self, Edit, EditError, FOREGROUND, ORPHAN},
    reconcile::{Means, Reconcile},
    taints::is_given_up,
};
use crate::model::{Key, Kind, KindFacet, NodeName, Object, Owner, Snapshot, Uid};

/// How long a pod outlives its node's object: a node that is removed and joins again at once keeps its pods. One that was given up
/// does not: it was removed because it is gone. One that said goodbye, or whose machine others reach, may well be back.
const NODE_GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What is decided on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// An object: as a dependent, and as an owner being deleted.
    Object(Key),
    /// A node that does not exist: the pods bound to it.
    Node(NodeName),
}

/// Who depends on whom, and which pods are on which node.
#[derive(Debug, Default)]
pub struct Garbage {
    dependents: HashMap<Uid, BTreeSet<Key>>,
    nodes: HashSet<NodeName>,
    pods: HashMap<NodeName, BTreeSet<Key>>,
    due: BTreeSet<Item>,
    /// Nodes that pods name and that do not exist, and until when they may come back.
    missing: BTreeMap<NodeName, Timestamp>,
    /// Those that did not: all their pods go, however many are removed at once.
    given_up: HashSet<NodeName>,
}

impl Reconcile for Garbage {
    type Item = Item;

    fn anew(&mut self, snapshot: &Snapshot, now: Timestamp) {
        *self = Garbage::default();
        // Nodes sort before pods, so no pod seems to be without its node.
        for object in snapshot.all() {
            self.apply(None, Some(object), snapshot, now);
        }
    }

    fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        _: &Snapshot,
        now: Timestamp,
    ) {
        let owners = |o: Option<&Arc<Object>>| o.map(|o| o.facet.meta.owners.clone()).unwrap_or_default();
        let (old, new) = (owners(before), owners(after));
        if let Some(key) = before.or(after).map(|o| &o.key) {
            if old != new {
                self.owned(key, &old, &new);
            }
            match after {
                Some(_) if !new.is_empty() && old != new => self.mark(Item::Object(key.clone())),
                Some(object) if held(object) => {
                    self.mark(Item::Object(object.key.clone()));
                    self.mark_dependents(object.uid());
                }
                Some(_) => {}
                None => {
                    if let Some(gone) = before {
                        self.mark_dependents(gone.uid());
                    }
                }
            }
        }
        self.placed(before, after, now);
    }

    fn next_due(&mut self, now: Timestamp) -> Option<Item> {
        if let Some(item) = self.due.pop_first() {
            return Some(item);
        }
        let node = self.missing.iter().find(|(_, until)| **until <= now).map(|(node, _)| node.clone())?;
        self.missing.remove(&node);
        self.given_up.insert(node.clone());
        Some(Item::Node(node))
    }

    fn mark(&mut self, item: Item) {
        self.due.insert(item);
    }

    fn decide(&self, item: &Item, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        match item {
            Item::Object(key) => match means.snapshot.find(key) {
                Some(object) if held(object) => self.release(object, means),
                Some(object) => Ok(dependent(object, means)?.into_iter().collect()),
                None => Ok(Vec::new()),
            },
            Item::Node(node) => self.lost(node, means),
        }
    }

    fn wake_at(&self) -> Option<Timestamp> {
        self.missing.values().min().copied()
    }
}

impl Garbage {
    fn mark_dependents(&mut self, owner: &Uid) {
        let dependents = self.dependents.get(owner).into_iter().flatten();
        self.due.extend(dependents.cloned().map(Item::Object));
    }

    fn owned(&mut self, key: &Key, old: &[Owner], new: &[Owner]) {
        for owner in old {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(key);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
            // An owner that waits for its dependents may have waited for this one.
            if let Some(owner) = owner_key(key, owner) {
                self.due.insert(Item::Object(owner));
            }
        }
        for owner in new {
            self.dependents.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
    }

    /// Keeps which pods are on which node, and which nodes exist.
    fn placed(&mut self, before: Option<&Arc<Object>>, after: Option<&Arc<Object>>, now: Timestamp) {
        let until = now.checked_add(NODE_GRACE).unwrap_or(now);
        let object = match before.or(after) {
            Some(object) => object,
            None => return,
        };
        match object.key.kind {
            Kind::Node => {
                let node = NodeName(object.key.name.clone());
                if after.is_some() {
                    self.missing.remove(&node);
                    self.given_up.remove(&node);
                    self.nodes.insert(node);
                } else {
                    self.nodes.remove(&node);
                    if self.pods.contains_key(&node) {
                        let gone = before.is_some_and(|node| is_given_up(node));
                        self.missing.insert(node, if gone { now } else { until });
                    }
                }
            }
            Kind::Pod => {
                let (old, new) = (before.and_then(node_of), after.and_then(node_of));
                if old == new {
                    // Of many pods that finalizers hold only some were marked at once.
                    let is_marked =
                        |pod: Option<&Arc<Object>>| pod.is_some_and(|pod| pod.facet.meta.deleting.is_some());
                    if let Some(node) = new.filter(|node| self.given_up.contains(*node))
                        && is_marked(before) != is_marked(after)
                    {
                        self.due.insert(Item::Node(node.clone()));
                    }
                    return;
                }
                if let Some(node) = old
                    && let Some(pods) = self.pods.get_mut(node)
                {
                    pods.remove(&object.key);
                    if pods.is_empty() {
                        self.pods.remove(node);
                        self.missing.remove(node);
                        self.given_up.remove(node);
                    } else if self.given_up.contains(node) {
                        self.due.insert(Item::Node(node.clone()));
                    }
                }
                if let Some(node) = new {
                    self.pods.entry(node.clone()).or_default().insert(object.key.clone());
                    if !self.nodes.contains(node) {
                        self.missing.entry(node.clone()).or_insert(until);
                    }
                }
            }
            _ => {}
        }
    }

    /// An owner that waits for its dependents: what is still to be done to them, or its release.
    fn release(&self, owner: &Arc<Object>, means: &Means<'_>) -> Result<Vec<Edit>, EditError> {
        let orphaning = owner.facet.meta.finalizers.iter().any(|f| f == ORPHAN);
        let names = |d: &&Arc<Object>| d.facet.meta.owners.iter().any(|o| o.uid == *owner.uid());
        let keys = self.dependents.get(owner.uid());
        let dependents: Vec<_> =
            keys.into_iter().flatten().filter_map(|k| means.snapshot.find(k)).filter(names).collect();
        let mut edits = Vec::new();
        for dependent in dependents.iter().take(means.max) {
            if orphaning {
                edits.push(without_owners(dependent, |o| o == owner.uid().as_str())?);
            } else {
                edits.extend(edit::delete(dependent, means.now)?);
            }
        }
        let blocks = |d: &&&Arc<Object>| {
            d.facet.meta.owners.iter().any(|o| o.uid == *owner.uid() && o.block_owner_deletion)
        };
        let waits = if orphaning { !dependents.is_empty() } else { dependents.iter().any(|d| blocks(&d)) };
        if !waits {
            let finalizer = if orphaning { ORPHAN } else { FOREGROUND };
            edits.extend(edit::drop_finalizer(owner, finalizer)?);
        }
        Ok(edits)
    }

    fn lost(&self, node: &NodeName, means: &Means<'_>) -> Result<Vec<Edit>, EditError> {
        if means.snapshot.find(&Key::new(Kind::Node, "", node.0.clone())).is_some() {
            return Ok(Vec::new());
        }
        let pods = self.pods.get(node).into_iter().flatten().filter_map(|k| means.snapshot.find(k));
        // Nothing is to be done about those that a finalizer holds, however many: the others' turn comes.
        let edits = pods.filter(|p| node_of(p) == Some(node)).map(|pod| edit::delete_now(pod, means.now));
        edits.filter_map(Result::transpose).take(means.max).collect()
    }
}

fn node_of(object: &Arc<Object>) -> Option<&NodeName> {
    match &object.facet.of {
        KindFacet::Pod(pod) => pod.node.as_ref(),
        _ => None,
    }
}

/// Whether an object's end waits for its dependents.
fn held(object: &Object) -> bool {
    let meta = &object.facet.meta;
    meta.deleting.is_some() && meta.finalizers.iter().any(|f| f == FOREGROUND || f == ORPHAN)
}

enum State {
    Alive,
    /// Being deleted in the foreground: its dependents go first.
    Waiting,
    Gone,
}

/// The key of an owner; `None` when it is of a kind, or in a place, that cannot be looked up.
fn owner_key(dependent: &Key, owner: &Owner) -> Option<Key> {
    let kind = Kind::ALL.into_iter().find(|k| k.name() == owner.kind)?;
    if !kind.namespaced() {
        return Some(Key::new(kind, "", owner.name.as_str()));
    }
    dependent.kind.namespaced().then(|| Key::new(kind, dependent.namespace.clone(), owner.name.as_str()))
}

fn state(dependent: &Object, owner: &Owner, snapshot: &Snapshot) -> State {
    let Some(key) = owner_key(&dependent.key, owner) else { return State::Alive };
    match snapshot.find(&key) {
        Some(object) if *object.uid() == owner.uid => {
            let meta = &object.facet.meta;
            let foreground = meta.finalizers.iter().any(|f| f == FOREGROUND);
            if meta.deleting.is_some() && foreground { State::Waiting } else { State::Alive }
        }
        _ => State::Gone,
    }
}

/// What is to be done about an object because of its owners.
fn dependent(object: &Arc<Object>, means: &Means<'_>) -> Result<Option<Edit>, EditError> {
    let meta = &object.facet.meta;
    if meta.deleting.is_some() {
        return Ok(None);
    }
    let (mut alive, mut gone) = (0, HashSet::new());
    for owner in meta.owners.iter() {
        match state(object, owner, means.snapshot) {
            State::Alive => alive += 1,
            State::Waiting | State::Gone => {
                gone.insert(owner.uid.clone());
            }
        }
    }
    match (alive, gone.is_empty()) {
        (_, true) => Ok(None),
        (0, false) => edit::delete(object, means.now),
        (_, false) => without_owners(object, |uid| gone.contains(&Uid::from(uid))).map(Some),
    }
}

fn without_owners(object: &Arc<Object>, gone: impl Fn(&str) -> bool) -> Result<Edit, EditError> {
    edit::edit_meta(object, |meta| {
        let owners = meta.owner_references.take().unwrap_or_default();
        let kept: Vec<_> = owners.into_iter().filter(|o| !gone(&o.uid)).collect();
        meta.owner_references = Some(kept).filter(|o| !o.is_empty());
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::logic::testing::World;

    fn map(name: &str, owners: &[(&str, &str, bool)]) -> Value {
        let owners: Vec<_> = owners
            .iter()
            .map(|(kind, name, block)| {
                json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": format!("uid-{name}"),
                    "blockOwnerDeletion": block})
            })
            .collect();
        json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "ownerReferences": owners}})
    }

    fn deleted(mut value: Value, finalizers: &[&str]) -> Value {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        value["metadata"]["finalizers"] = json!(finalizers);
        value
    }

    fn names(world: &World<Garbage>) -> Vec<String> {
        world.snapshot.all().map(|o| o.key.name.to_string()).collect()
    }

    #[test]
    fn dependents_go_when_their_last_owner_is_gone_and_theirs_after_them() {
        let mut world = World::new(Garbage::default());
        world.put(Kind::ConfigMap, &map("a", &[]));
        world.put(Kind::ConfigMap, &map("b", &[("ConfigMap", "a", false)]));
        world.put(Kind::ConfigMap, &map("c", &[("ConfigMap", "b", false)]));
        world.put(Kind::ConfigMap, &map("d", &[("ConfigMap", "a", false), ("Deployment", "x", false)]));
        world.settle();
        assert_eq!(names(&world), ["a", "b", "c", "d"]);
        world.remove(&Key::new(Kind::ConfigMap, "default", "a"));
        world.settle();
        assert_eq!(names(&world), ["d"], "an owner that cannot be looked up counts as alive");
        let d = world.snapshot.find(&Key::new(Kind::ConfigMap, "default", "d")).unwrap();
        assert_eq!(d.facet.meta.owners.len(), 1);
    }

    #[test]
    fn an_owner_of_the_same_name_but_another_life_does_not_count() {
        let mut world = World::new(Garbage::default());
        let mut other = map("a", &[]);
        other["metadata"]["uid"] = "another".into();
        world.put(Kind::ConfigMap, &other);
        world.put(Kind::ConfigMap, &map("b", &[("ConfigMap", "a", false)]));
        world.settle();
        assert_eq!(names(&world), ["a"]);
    }

    #[test]
    fn foreground_deletion_waits_for_blocking_dependents_only() {
        let mut world = World::new(Garbage::default());
        world.put(Kind::ConfigMap, &map("a", &[]));
        let mut slow = map("blocking", &[("ConfigMap", "a", true)]);
        slow["metadata"]["finalizers"] = json!(["example.com/slow"]);
        world.put(Kind::ConfigMap, &slow);
        let mut idle = map("idle", &[("ConfigMap", "a", false)]);
        idle["metadata"]["finalizers"] = json!(["example.com/slow"]);
        world.put(Kind::ConfigMap, &idle);
        world.put(Kind::ConfigMap, &deleted(map("a", &[]), &[FOREGROUND]));
        world.settle();
        assert_eq!(names(&world), ["a", "blocking", "idle"]);
        world.remove(&Key::new(Kind::ConfigMap, "default", "blocking"));
        world.settle();
        assert_eq!(names(&world), ["idle"]);
    }

    #[test]
    fn orphaning_deletion_makes_dependents_forget_their_owner() {
        let mut world = World::new(Garbage::default());
        world.put(Kind::ConfigMap, &map("a", &[]));
        world.put(Kind::ConfigMap, &map("b", &[("ConfigMap", "a", true)]));
        world.put(Kind::ConfigMap, &deleted(map("a", &[]), &[ORPHAN]));
        world.settle();
        assert_eq!(names(&world), ["b"]);
        let b = world.snapshot.find(&Key::new(Kind::ConfigMap, "default", "b")).unwrap();
        assert!(b.facet.meta.owners.is_empty() && b.facet.meta.deleting.is_none());
    }

    #[test]
    fn pods_of_a_node_that_stays_away_are_removed() {
        let mut world = World::new(Garbage::default());
        let node = json!({"metadata": {"name": "n", "uid": "uid-n"}});
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "uid-p"},
            "spec": {"containers": [], "nodeName": "n"}});
        world.put(Kind::Node, &node);
        world.put(Kind::Pod, &pod);
        world.remove(&Key::new(Kind::Node, "", "n"));
        world.advance(5);
        world.put(Kind::Node, &node);
        world.advance(20);
        assert_eq!(names(&world), ["n", "p"], "it came back in time");
        world.remove(&Key::new(Kind::Node, "", "n"));
        world.advance(5);
        assert_eq!(names(&world), ["p"]);
        world.advance(6);
        assert!(names(&world).is_empty());
    }

    #[test]
    fn pods_of_a_node_that_was_given_up_when_it_was_deleted_are_removed_at_once_and_others_seconds_later() {
        let since = "2026-01-01T00:00:00Z";
        let unreachable = |effect: &str| json!({"key": "node.kubernetes.io/unreachable", "effect": effect});
        let timed = |mut taint: Value| {
            taint["timeAdded"] = since.into();
            taint
        };
        for (reason, taint, at_once) in [
            ("NodeStatusUnknown", timed(unreachable("NoExecute")), true),
            // Others reach its machine; it has said that it comes back; it is linked, and says that it is not ready.
            ("NodeStatusUnknown", timed(unreachable("NoSchedule")), false),
            ("NodeGoodbye", unreachable("NoSchedule"), false),
            ("KubeletNotReady", json!({"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}), false),
        ] {
            let mut world = World::new(Garbage::default());
            world.put(
                Kind::Node,
                &json!({"metadata": {"name": "n", "uid": "uid-n"}, "spec": {"taints": [taint.clone()]},
                    "status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": reason}]}}),
            );
            // They were to end, and their node did not say that they have; more than are removed at once.
            for name in ["a", "b", "c", "d", "e"] {
                world.put(
                    Kind::Pod,
                    &json!({"metadata": {"name": name, "namespace": "default", "uid": name,
                        "deletionTimestamp": since, "deletionGracePeriodSeconds": 30},
                        "spec": {"containers": [], "nodeName": "n"}}),
                );
            }
            world.advance(5);
            assert_eq!(names(&world), ["n", "a", "b", "c", "d", "e"], "{taint}");
            world.remove(&Key::new(Kind::Node, "", "n"));
            world.advance(0);
            assert_eq!(names(&world).is_empty(), at_once, "{taint}");
            world.advance(9);
            assert_eq!(names(&world).is_empty(), at_once, "{taint}");
            world.advance(2);
            assert!(names(&world).is_empty(), "{taint}");
        }
    }

    #[test]
    fn pods_that_finalizers_hold_keep_no_others_of_a_deleted_node_from_going() {
        let mut world = World::new(Garbage::default());
        world.put(Kind::Node, &json!({"metadata": {"name": "n", "uid": "uid-n"}}));
        let pod = |name: &str| {
            json!({"metadata": {"name": name, "namespace": "default", "uid": name},
                "spec": {"containers": [], "nodeName": "n"}})
        };
        // More of each than are looked after at once.
        for name in ["a", "b", "c"] {
            world.put(Kind::Pod, &deleted(pod(name), &["example.com/slow"]));
        }
        for name in ["d", "e", "f"] {
            let mut held = pod(name);
            held["metadata"]["finalizers"] = json!(["example.com/slow"]);
            world.put(Kind::Pod, &held);
        }
        for name in ["g", "h", "i"] {
            world.put(Kind::Pod, &pod(name));
        }
        world.remove(&Key::new(Kind::Node, "", "n"));
        world.advance(11);
        assert_eq!(names(&world), ["a", "b", "c", "d", "e", "f"]);
        assert!(world.snapshot.all().all(|pod| pod.facet.meta.deleting.is_some()), "all are told to end");
    }
}
