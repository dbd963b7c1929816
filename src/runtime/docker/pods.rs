//! What is known of pods without asking the engine.
//!
//! Owns: each pod's sandbox, and what was made in it. Invariant: a pod is known as a whole only if this process made all
//! that the engine has of it, and the engine answered each time: otherwise it is asked.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bollard::models::{ContainerInspectResponse, ContainerSummary};

use super::{driver::is_running, labels, status};
use crate::{model::Uid, runtime::SandboxStatus};

#[derive(Default)]
pub(super) struct Pods(Mutex<HashMap<Uid, Pod>>);

#[derive(Default)]
struct Pod {
    /// Its sandbox that was seen to run. As long as its end is awaited nothing has changed since.
    seen: Option<Found>,
    /// What was made and is not removed.
    sandboxes: Vec<String>,
    containers: Vec<String>,
    /// There was nothing of it when this process made its first sandbox.
    own: bool,
    /// Containers that were asked for without an answer yet, or for ever.
    unanswered: usize,
}

/// A sandbox and the engine's id of its container.
#[derive(Clone)]
pub(super) struct Found {
    pub id: String,
    pub sandbox: labels::Sandbox,
    pub running: bool,
    address: Option<String>,
}

/// All that there is of a pod: ids.
pub(super) struct Whole {
    pub containers: Vec<String>,
    pub sandboxes: Vec<String>,
}

impl Pods {
    fn pods(&self) -> MutexGuard<'_, HashMap<Uid, Pod>> {
        // Each change is whole before anything can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of it is there that this process did not make.
    pub(super) fn inherited(&self, pod: &Uid) {
        self.pods().entry(pod.clone()).or_default().own = false;
    }

    /// Its sandbox was seen to run.
    pub(super) fn saw(&self, pod: &Uid, found: &Found) {
        self.pods().entry(pod.clone()).or_default().seen = Some(found.clone());
    }

    /// Its sandbox is not to be relied on any more.
    pub(super) fn unsee(&self, pod: &Uid) {
        if let Some(pod) = self.pods().get_mut(pod) {
            pod.seen = None;
        }
    }

    pub(super) fn seen(&self, pod: &Uid) -> Option<Found> {
        self.pods().get(pod)?.seen.clone()
    }

    /// A sandbox was made. `first`: the engine had none of it.
    pub(super) fn sandbox_made(&self, pod: &Uid, id: &str, first: bool) {
        let mut pods = self.pods();
        let pod = match pods.entry(pod.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(Pod { own: first, ..Pod::default() }),
        };
        pod.sandboxes.push(id.to_owned());
    }

    /// The engine is asked for a container.
    pub(super) fn asked(&self, pod: &Uid) {
        if let Some(pod) = self.pods().get_mut(pod) {
            pod.unanswered += 1;
        }
    }

    /// It has answered: with a container, or none.
    pub(super) fn answered(&self, pod: &Uid, container: Option<&str>) {
        if let Some(pod) = self.pods().get_mut(pod) {
            pod.unanswered = pod.unanswered.saturating_sub(1);
            pod.containers.extend(container.map(str::to_owned));
        }
    }

    /// A sandbox or a container is gone.
    pub(super) fn removed(&self, id: &str) {
        for pod in self.pods().values_mut() {
            pod.sandboxes.retain(|of| of != id);
            pod.containers.retain(|of| of != id);
        }
    }

    /// All that there is of a pod, if that is known.
    pub(super) fn whole(&self, pod: &Uid) -> Option<Whole> {
        let pods = self.pods();
        let pod = pods.get(pod).filter(|pod| pod.own && pod.unanswered == 0)?;
        Some(Whole { containers: pod.containers.clone(), sandboxes: pod.sandboxes.clone() })
    }

    /// The engine has no sandbox of it any more; there may be containers still, and then it is not known as a whole.
    pub(super) fn lost(&self, pod: &Uid) {
        let mut pods = self.pods();
        let Some(known) = pods.get_mut(pod) else { return };
        if known.own && known.containers.is_empty() && known.unanswered == 0 {
            pods.remove(pod);
        } else {
            (known.seen, known.own) = (None, false);
            known.sandboxes.clear();
        }
    }

    /// Of which something is known.
    pub(super) fn known(&self) -> Vec<Uid> {
        self.pods().keys().cloned().collect()
    }

    /// Nothing of it is left.
    pub(super) fn forget(&self, pod: &Uid) {
        self.pods().remove(pod);
    }
}

impl Found {
    pub(super) fn read(found: ContainerSummary) -> Option<Found> {
        let running = is_running(&found);
        let mut networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.drain().find_map(|(_, network)| network.ip_address);
        Some(Found { id: found.id?, sandbox: labels::Sandbox::read(&found.labels?)?, running, address })
    }

    pub(super) fn inspected(found: ContainerInspectResponse) -> Option<Found> {
        let running = found.state.as_ref().and_then(|state| state.running) == Some(true);
        let mut networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.drain().find_map(|(_, network)| network.ip_address);
        let sandbox = labels::Sandbox::read(&found.config?.labels?)?;
        Some(Found { id: found.id?, sandbox, running, address })
    }

    pub(super) fn status(&self) -> SandboxStatus {
        status::sandbox(&self.sandbox, self.running, self.address.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pods: &Pods, pod: &str) -> Option<(Vec<String>, Vec<String>)> {
        pods.whole(&pod.into()).map(|whole| (whole.sandboxes, whole.containers))
    }

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_pod_is_known_as_a_whole_if_all_of_it_was_made_here_and_answered() {
        let (pods, pod) = (Pods::default(), Uid::from("a"));
        assert!(whole(&pods, "a").is_none());
        pods.sandbox_made(&pod, "s", true);
        pods.asked(&pod);
        assert!(whole(&pods, "a").is_none(), "a container may be there in a moment");
        pods.answered(&pod, Some("c"));
        pods.asked(&pod);
        pods.answered(&pod, None);
        assert_eq!(whole(&pods, "a"), Some((ids(&["s"]), ids(&["c"]))));
        // What was removed, and another sandbox after the first.
        pods.removed("s");
        pods.sandbox_made(&pod, "t", false);
        pods.removed("c");
        assert_eq!(whole(&pods, "a"), Some((ids(&["t"]), ids(&[]))));
        // An answer that never came.
        pods.asked(&pod);
        pods.asked(&pod);
        pods.answered(&pod, Some("d"));
        assert!(whole(&pods, "a").is_none());
        pods.forget(&pod);
        pods.answered(&pod, Some("late"));
        assert!(whole(&pods, "a").is_none());
    }

    #[test]
    fn of_what_was_there_before_the_engine_is_asked() {
        let (pods, pod) = (Pods::default(), Uid::from("a"));
        pods.inherited(&pod);
        pods.sandbox_made(&pod, "s", true);
        assert!(whole(&pods, "a").is_none(), "an earlier process made something of it");
        pods.forget(&pod);
        pods.sandbox_made(&pod, "s", false);
        assert!(whole(&pods, "a").is_none(), "it had a sandbox already");
        pods.forget(&pod);
        pods.sandbox_made(&pod, "s", true);
        assert!(whole(&pods, "a").is_some());
        pods.inherited(&pod);
        assert!(whole(&pods, "a").is_none());
        pods.forget(&pod);
        pods.sandbox_made(&pod, "s", true);
        pods.lost(&pod);
        assert!(pods.known().is_empty(), "nothing else was made");
        pods.sandbox_made(&pod, "s", true);
        pods.asked(&pod);
        pods.answered(&pod, Some("c"));
        pods.lost(&pod);
        pods.sandbox_made(&pod, "t", true);
        assert!(whole(&pods, "a").is_none(), "containers of the first may be there");
    }
}
