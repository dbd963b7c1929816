//! Each controller's candidates: the pods it owns, and the matching pods that nobody controls.
//!
//! Owns: the index from a change of a pod to the controllers it concerns, kept by one change at a time. A [`Roster`] is
//! a picture: the controller and all its candidates at one revision, in a persistent map, so handing it out costs
//! nothing and a lost one heals with the next.
//! Invariant: what the index holds after a change depends only on the objects, not on the order of changes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use imbl::OrdMap;

use crate::{
    logic::select::{self, SelectorIndex},
    model::{Key, Kind, KindFacet, Labels, Object, Revision, Snapshot, Uid},
};

/// A controller and its candidates at one revision.
#[derive(Clone, Debug)]
pub struct Roster {
    /// Every change up to here is in the picture.
    pub revision: Revision,
    /// The controller.
    pub controller: Arc<Object>,
    /// Its pods, ended and ending ones too, and those it may adopt.
    pub pods: OrdMap<Key, Arc<Object>>,
}

/// The rosters of all controllers.
#[derive(Debug, Default)]
pub struct Rosters {
    revision: Revision,
    rosters: HashMap<Uid, Roster>,
    selectors: SelectorIndex<Uid>,
    /// Pods that nobody controls.
    orphans: BTreeMap<Key, Arc<Object>>,
}

impl Rosters {
    /// From a snapshot.
    pub fn load(snapshot: &Snapshot) -> Rosters {
        let mut rosters = Rosters::default();
        let mut touched = BTreeSet::new();
        for kind in [Kind::ReplicationController, Kind::Pod] {
            for object in snapshot.list(kind, None) {
                rosters.apply(None, Some(object), &mut touched);
            }
        }
        rosters.revision = snapshot.revision;
        rosters
    }

    /// Takes in one change: the state before and the state after. Adds the controllers it concerns to `touched`.
    pub fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        touched: &mut BTreeSet<Uid>,
    ) {
        match before.or(after).map(|o| o.key.kind) {
            Some(Kind::Pod) => {
                if let Some(before) = before {
                    self.take_out(before, touched);
                }
                if let Some(after) = after {
                    self.put_in(after, touched);
                }
            }
            Some(Kind::ReplicationController) => self.controller(before, after, touched),
            _ => {}
        }
    }

    /// Every change up to this revision has been applied.
    pub fn reached(&mut self, revision: Revision) {
        self.revision = self.revision.max(revision);
    }

    /// The controllers there are.
    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.rosters.keys()
    }

    /// The picture of one controller; `None` once it is gone.
    pub fn picture(&self, uid: &Uid) -> Option<Roster> {
        self.rosters.get(uid).map(|r| Roster { revision: self.revision, ..r.clone() })
    }

    fn take_out(&mut self, pod: &Arc<Object>, touched: &mut BTreeSet<Uid>) {
        let meta = &pod.facet.meta;
        if let Some(owner) = meta.controller() {
            if let Some(roster) = self.rosters.get_mut(&owner.uid) {
                roster.pods.remove(&pod.key);
                touched.insert(owner.uid.clone());
            }
            return;
        }
        self.orphans.remove(&pod.key);
        for uid in self.selectors.matching(&pod.key.namespace, &meta.labels) {
            if let Some(roster) = self.rosters.get_mut(uid) {
                roster.pods.remove(&pod.key);
                touched.insert(uid.clone());
            }
        }
    }

    fn put_in(&mut self, pod: &Arc<Object>, touched: &mut BTreeSet<Uid>) {
        let meta = &pod.facet.meta;
        if let Some(owner) = meta.controller() {
            if let Some(roster) = self.rosters.get_mut(&owner.uid) {
                roster.pods.insert(pod.key.clone(), pod.clone());
                touched.insert(owner.uid.clone());
            }
            return;
        }
        self.orphans.insert(pod.key.clone(), pod.clone());
        for uid in self.selectors.matching(&pod.key.namespace, &meta.labels) {
            if let Some(roster) = self.rosters.get_mut(uid) {
                roster.pods.insert(pod.key.clone(), pod.clone());
                touched.insert(uid.clone());
            }
        }
    }

    fn controller(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        touched: &mut BTreeSet<Uid>,
    ) {
        if let (Some(before), Some(after)) = (before, after)
            && before.uid() == after.uid()
            && selector(before) == selector(after)
            && let Some(roster) = self.rosters.get_mut(after.uid())
        {
            roster.controller = after.clone();
            touched.insert(after.uid().clone());
            return;
        }
        let mut owned = OrdMap::new();
        if let Some(before) = before {
            touched.insert(before.uid().clone());
            self.selectors.remove(&before.key.namespace, selector(before), before.uid());
            if let Some(roster) = self.rosters.remove(before.uid()) {
                owned =
                    roster.pods.into_iter().filter(|(_, p)| p.facet.meta.controller().is_some()).collect();
            }
        }
        let Some(after) = after else { return };
        touched.insert(after.uid().clone());
        self.selectors.insert(&after.key.namespace, selector(after), after.uid().clone());
        let (first, namespace) = (Key::new(Kind::Pod, after.key.namespace.clone(), ""), &after.key.namespace);
        for (key, orphan) in self.orphans.range(first..).take_while(|(k, _)| k.namespace == *namespace) {
            if select::matches(selector(after), &*orphan.facet.meta.labels) {
                owned.insert(key.clone(), orphan.clone());
            }
        }
        let roster = Roster { revision: self.revision, controller: after.clone(), pods: owned };
        self.rosters.insert(after.uid().clone(), roster);
    }
}

fn selector(controller: &Object) -> &Labels {
    static NONE: Labels = Labels::new();
    match &controller.facet.of {
        KindFacet::ReplicationController(facet) => &facet.selector,
        _ => &NONE,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::logic::testing::{Pods, controller, pod};

    type World = BTreeMap<Key, Arc<Object>>;

    /// What each roster must hold, by asking every pod.
    fn expected(world: &World) -> BTreeMap<Uid, BTreeSet<Key>> {
        let of = |kind| world.values().filter(move |o| o.key.kind == kind);
        of(Kind::ReplicationController)
            .map(|rc| {
                let candidate = |p: &&Arc<Object>| match p.facet.meta.controller() {
                    Some(owner) => owner.uid == *rc.uid(),
                    None => {
                        p.key.namespace == rc.key.namespace
                            && select::matches(selector(rc), &*p.facet.meta.labels)
                    }
                };
                (rc.uid().clone(), of(Kind::Pod).filter(candidate).map(|p| p.key.clone()).collect())
            })
            .collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pod(u8, Option<(u8, Option<u8>)>),
        Controller(u8, Option<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        let pod = proptest::option::of((0_u8..3, proptest::option::of(0_u8..3)));
        prop_oneof![
            4 => (0_u8..5, pod).prop_map(|(n, p)| Step::Pod(n, p)),
            1 => (0_u8..3, proptest::option::of(0_u8..3)).prop_map(|(n, s)| Step::Controller(n, s)),
        ]
    }

    proptest! {
        #[test]
        fn rosters_kept_by_changes_equal_rosters_asked_of_every_pod(
            steps in proptest::collection::vec(step(), 1..40),
        ) {
            let (mut world, mut rosters) = (World::new(), Rosters::default());
            for (n, step) in steps.into_iter().enumerate() {
                let revision = Revision(n as u64 + 1);
                let (key, after) = match step {
                    Step::Pod(n, state) => {
                        let key = Key::new(Kind::Pod, "default", format!("p{n}"));
                        (key, state.map(|(label, owner)| {
                            let owner = owner.map(|o| format!("uid-rc{o}"));
                            pod(&Pods {
                                name: &format!("p{n}"),
                                app: &label.to_string(),
                                owner: owner.as_deref(),
                                revision,
                                ..Pods::default()
                            })
                        }))
                    }
                    Step::Controller(n, selector) => {
                        let key = Key::new(Kind::ReplicationController, "default", format!("rc{n}"));
                        // A controller's uid is not known before it is born: forget pods that name it.
                        let born = !world.contains_key(&key) && selector.is_some();
                        if born && world.values().any(|p| {
                            p.facet.meta.controller().is_some_and(|o| o.uid.as_str() == format!("uid-rc{n}"))
                        }) {
                            continue;
                        }
                        (key, selector.map(|s| controller(&format!("rc{n}"), &s.to_string(), 1, revision)))
                    }
                };
                let before = world.get(&key).cloned();
                rosters.apply(before.as_ref(), after.as_ref(), &mut BTreeSet::new());
                match after {
                    Some(after) => world.insert(key, after),
                    None => world.remove(&key),
                };
                let kept: BTreeMap<Uid, BTreeSet<Key>> = rosters
                    .uids()
                    .map(|u| (u.clone(), rosters.picture(u).unwrap().pods.keys().cloned().collect()))
                    .collect();
                prop_assert_eq!(kept, expected(&world));
            }
        }
    }
}
