//! Counters that never fall, of containers and pods.
//!
//! Owns: what was told of each before. Who reads a counter takes a fall for a new beginning, and adds all of it once more.
//! Invariants: nothing told falls while its pod's sandbox is there, and nothing counts twice, in whatever order readings
//! come. So a sum over processes that fell (one ended that nobody waited for, or that its parent has yet to wait for) is told
//! as it was until it has caught up; what a pod's containers used stays in its own counters when they end. Limit: a program
//! that is started anew has forgotten it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
};

use crate::{
    model::Uid,
    runtime::{ContainerId, Usage},
};

/// So many containers of a pod that ended are known by their ids; those before are one sum. One that is missing from a list
/// for a moment is still known when it comes again.
const ENDED: usize = 32;

/// What was told.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Steady(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    containers: HashMap<ContainerId, Usage>,
    pods: HashMap<Uid, OfPod>,
}

#[derive(Debug, Default)]
struct OfPod {
    /// In the order in which they were first seen.
    containers: Vec<(ContainerId, Usage)>,
    /// Of those that ended long ago.
    gone: Usage,
    /// Sums that were told for want of the pod's own counters.
    summed: Usage,
    /// Its own counters, each as last known.
    own: Usage,
}

impl Steady {
    /// A container's counters as they are told; the rest as it was read.
    pub(in crate::runtime) fn container(&self, id: &ContainerId, now: Usage) -> Usage {
        // Each change is one insertion.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = told.containers.get(id).copied().unwrap_or_default().most(&now);
        told.containers.insert(id.clone(), most);
        Usage {
            cpu_ns: now.cpu_ns.and(most.cpu_ns),
            io_bytes: now.io_bytes.and(most.io_bytes),
            io_operations: now.io_operations.and(most.io_operations),
            ..now
        }
    }

    /// A pod's counters, and nothing else: its own where they are known, else what all of its containers have used, those
    /// that ended, too. Of processors nothing is told while a running container's time is not known; of what is read and
    /// written, a container that did neither may have no number.
    pub(in crate::runtime) fn pod(&self, uid: &Uid, own: &Usage, running: &[(ContainerId, Usage)]) -> Usage {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = told.pods.entry(uid.clone()).or_default();
        for (id, usage) in running {
            match pod.containers.iter_mut().find(|(known, _)| known == id) {
                Some((_, most)) => *most = most.most(usage),
                None => pod.containers.push((id.clone(), Usage::default().most(usage))),
            }
        }
        pod.forget(running);
        let mut sum = pod.containers.iter().fold(pod.gone, |sum, (_, usage)| sum.plus(usage));
        let is_silent = |(id, of): &(ContainerId, Usage)| {
            of.cpu_ns.is_none() && running.iter().any(|(running, _)| running == id)
        };
        if pod.containers.iter().any(is_silent) {
            sum.cpu_ns = None;
        }
        let wanted = Usage {
            cpu_ns: sum.cpu_ns.filter(|_| own.cpu_ns.is_none()),
            io_bytes: sum.io_bytes.filter(|_| own.io_bytes.is_none()),
            io_operations: sum.io_operations.filter(|_| own.io_operations.is_none()),
            ..Usage::default()
        };
        pod.summed = pod.summed.most(&wanted);
        // What is not known for a moment is what it was, or more.
        let last = Usage {
            cpu_ns: pod.own.cpu_ns.filter(|_| own.cpu_ns.is_none()),
            io_bytes: pod.own.io_bytes.filter(|_| own.io_bytes.is_none()),
            io_operations: pod.own.io_operations.filter(|_| own.io_operations.is_none()),
            ..Usage::default()
        };
        pod.own = Usage {
            cpu_ns: own.cpu_ns.or(last.cpu_ns),
            io_bytes: own.io_bytes.or(last.io_bytes),
            io_operations: own.io_operations.or(last.io_operations),
            ..Usage::default()
        };
        // A cgroup that begins to count late has less than was told before.
        let most = Usage::default().most(own).most(&pod.summed).most(&last);
        Usage { cpu_ns: own.cpu_ns.or(sum.cpu_ns).or(last.cpu_ns).and(most.cpu_ns), ..most }
    }

    /// Forgets all other containers and pods.
    pub(in crate::runtime) fn keep(&self, containers: &HashSet<ContainerId>, pods: &HashSet<Uid>) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.containers.retain(|id, _| containers.contains(id));
        told.pods.retain(|uid, _| pods.contains(uid));
    }
}

impl OfPod {
    /// Puts the oldest of too many ended containers into their sum.
    fn forget(&mut self, running: &[(ContainerId, Usage)]) {
        let has_ended = |id: &ContainerId| running.iter().all(|(running, _)| running != id);
        let mut too_many =
            self.containers.iter().filter(|(id, _)| has_ended(id)).count().saturating_sub(ENDED);
        let gone = &mut self.gone;
        self.containers.retain(|(id, usage)| {
            let goes = too_many > 0 && has_ended(id);
            if goes {
                too_many -= 1;
                *gone = gone.plus(usage);
            }
            !goes
        });
    }
}

impl Usage {
    /// The higher of each counter, and nothing else.
    fn most(&self, other: &Usage) -> Usage {
        let both = |a: Option<(u64, u64)>, b: Option<(u64, u64)>| match (a, b) {
            (Some(a), Some(b)) => Some((a.0.max(b.0), a.1.max(b.1))),
            (a, b) => a.or(b),
        };
        Usage {
            // Nothing is less than any number.
            cpu_ns: self.cpu_ns.max(other.cpu_ns),
            io_bytes: both(self.io_bytes, other.io_bytes),
            io_operations: both(self.io_operations, other.io_operations),
            ..Usage::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(cpu_ns: u64, read: u64) -> Usage {
        Usage {
            cpu_ns: Some(cpu_ns),
            io_bytes: Some((read, 5)),
            io_operations: Some((read, 1)),
            pids: Some(2),
            ..Usage::default()
        }
    }

    fn id(name: &str) -> ContainerId {
        ContainerId(name.into())
    }

    #[test]
    fn a_sum_that_falls_for_a_moment_counts_once() {
        let (steady, id) = (Steady::default(), id("c"));
        let told = |usage: Usage| {
            let told = steady.container(&id, usage);
            assert_eq!(told.pids, usage.pids);
            (told.cpu_ns, told.io_bytes)
        };
        assert_eq!(told(used(100, 100)), (Some(100), Some((100, 5))));
        assert_eq!(told(used(0, 0)), (Some(100), Some((100, 5))), "a zombie is in no list");
        assert_eq!(told(used(100, 100)), (Some(100), Some((100, 5))), "its parent has waited for it");
        assert_eq!(told(Usage::default()), (None, None), "not known now");
        assert_eq!(told(used(101, 90)), (Some(101), Some((100, 5))));
        steady.keep(&HashSet::new(), &HashSet::new());
        assert_eq!(told(used(7, 1)), (Some(7), Some((1, 5))), "another life");
    }

    #[test]
    fn no_counter_of_a_pod_falls_when_one_of_its_containers_ends() {
        let (steady, pod) = (Steady::default(), Uid::from("p"));
        let told = |running: &[(&str, Usage)]| {
            let running: Vec<_> = running.iter().map(|(name, usage)| (id(name), *usage)).collect();
            let told = steady.pod(&pod, &Usage::default(), &running);
            (told.cpu_ns, told.io_bytes, told.io_operations)
        };
        let sum = |cpu_ns, read, written| (Some(cpu_ns), Some((read, written)), Some((read, written / 5)));
        assert_eq!(told(&[]), (None, None, None));
        assert_eq!(told(&[("a", used(100, 10)), ("b", used(7, 1))]), sum(107, 11, 10));
        assert_eq!(told(&[("b", used(8, 1))]), sum(108, 11, 10), "a has ended");
        assert_eq!(told(&[("b", used(8, 1)), ("c", used(1, 0))]), sum(109, 11, 15), "and another came");
        assert_eq!(told(&[]), sum(109, 11, 15));
        assert_eq!(told(&[("a", used(100, 10))]), sum(109, 11, 15), "it was only missing from a list");
        for life in 0..100_u64 {
            let name = format!("d{life}");
            assert_eq!(
                told(&[(name.as_str(), used(1, 0))]).0,
                Some(110 + life),
                "they are counted when they are forgotten"
            );
        }
        assert_eq!(told(&[("e", Usage::default())]).0, None, "who knows how much");
        assert_eq!(told(&[]).0, Some(209));
        steady.keep(&HashSet::new(), &HashSet::new());
        assert_eq!(told(&[("a", used(1, 1))]), sum(1, 1, 5), "another sandbox");
    }

    #[test]
    fn a_pods_own_counters_go_before_a_sum_and_do_not_fall_below_what_was_told() {
        let (steady, pod) = (Steady::default(), Uid::from("p"));
        let running = [(id("a"), used(100, 10))];
        let own = |usage: Usage| steady.pod(&pod, &usage, &running);
        assert_eq!(own(used(500, 40)), Usage { pids: None, ..used(500, 40) });
        let cpu_alone = Usage { cpu_ns: Some(501), ..Usage::default() };
        assert_eq!(own(cpu_alone), Usage { pids: None, ..used(501, 40) });
        assert_eq!(own(Usage::default()), Usage { pids: None, ..used(501, 40) }, "not known for a moment");
        assert_eq!(own(used(502, 3)).io_bytes, Some((10, 5)), "the group began to count late");
    }
}
