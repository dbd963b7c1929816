//! What a node has given to its pods: the account that a resize is decided on.
//!
//! Owns: [`Ledger`], one for a node. Invariant: a decision and its entry are one step, so two pods that grow at once are
//! never given the same room. What pods asked for when they came is the scheduler's matter and entered unasked.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    logic::pod::resize::{Verdict, verdict},
    model::{Resources, Uid},
};

/// By pod, what it was given.
#[derive(Default)]
pub struct Ledger(Mutex<HashMap<Uid, Resources>>);

impl Ledger {
    fn given(&self) -> MutexGuard<'_, HashMap<Uid, Resources>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters what a pod has.
    pub fn enter(&self, pod: &Uid, has: Resources) {
        self.given().insert(pod.clone(), has);
    }

    /// A pod has ended, or is gone.
    pub fn strike(&self, pod: &Uid) {
        self.given().remove(pod);
    }

    /// Enters what a pod wants if there is room.
    pub fn ask(&self, pod: &Uid, wanted: Resources, allocatable: Resources) -> Verdict {
        let mut given = self.given();
        let others = given.iter().filter(|(uid, _)| *uid != pod).map(|(_, has)| *has);
        let verdict = verdict(allocatable, others.fold(Resources::default(), Resources::plus), wanted);
        if verdict == Verdict::Fits {
            given.insert(pod.clone(), wanted);
        }
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pods_are_not_given_the_same_room() {
        let of = |cpu_milli| Resources { cpu_milli, ..Resources::default() };
        let (ledger, a, b) = (Ledger::default(), Uid::from("a"), Uid::from("b"));
        ledger.enter(&a, of(500));
        ledger.enter(&b, of(500));
        assert_eq!(ledger.ask(&a, of(1500), of(2000)), Verdict::Fits);
        assert!(matches!(ledger.ask(&b, of(600), of(2000)), Verdict::Deferred(_)));
        ledger.strike(&a);
        assert_eq!(ledger.ask(&b, of(600), of(2000)), Verdict::Fits);
    }
}
