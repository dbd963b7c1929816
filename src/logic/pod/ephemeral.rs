//! Ephemeral containers: added to a pod that runs, to look into it.
//!
//! Owns: their translation into plain containers, and their coming. Invariant: each runs once at most, as soon as there
//! is a sandbox; whether the pod is ready or over does not depend on them, and they end with it.

use std::collections::HashSet;

use k8s_openapi::api::core::v1;

use super::{
    Checks, Machine,
    state::{Container, ContainerPhase, Role, WaitingReason},
};
use crate::logic::supervision::History;

/// The ephemeral containers of a pod as what they are once they run.
pub(super) fn containers(pod: &v1::Pod) -> impl Iterator<Item = v1::Container> {
    pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).map(|c| {
        // Every field but the target is a plain container's, too.
        let json = serde_json::to_value(c).unwrap_or_default();
        serde_json::from_value(json).unwrap_or_else(|_| v1::Container {
            name: c.name.clone(),
            image: c.image.clone(),
            ..v1::Container::default()
        })
    })
}

/// The container whose processes an ephemeral container is to see.
pub fn target<'a>(pod: &'a v1::Pod, container: &str) -> Option<&'a str> {
    let all = pod.spec.as_ref()?.ephemeral_containers.iter().flatten();
    let target = all.filter(|c| c.name == container).find_map(|c| c.target_container_name.as_deref())?;
    (!target.is_empty()).then_some(target)
}

impl Container {
    /// One that has not run yet.
    pub(super) fn new(name: &str, role: Role, creating: &WaitingReason) -> Container {
        Container {
            name: name.to_owned(),
            role,
            attempt: 0,
            phase: ContainerPhase::Waiting { not_before_ms: 0, why: creating.clone() },
            last: None,
            image: String::new(),
            image_id: None,
            image_failures: 0,
            pull_again_ms: 0,
            replacing: false,
            pre_stopping: false,
            applied: None,
            resizing: false,
            resize_again_ms: 0,
            resize_fault: None,
            checks: Checks::default(),
            history: History::default(),
        }
    }
}

impl Machine {
    /// The ephemeral containers, in the spec's order.
    pub fn ephemeral(&self) -> &[Container] {
        &self.containers[(self.mains + self.inits).min(self.containers.len())..]
    }

    /// The runtime's id of a container of this name, while it runs.
    pub fn running_id(&self, name: &str) -> Option<&str> {
        self.containers.iter().filter(|c| c.name == name).find_map(|c| match &c.phase {
            ContainerPhase::Running { id, .. } => Some(id.as_str()),
            _ => None,
        })
    }

    /// Takes those in that were added to the pod's document.
    pub(super) fn add_ephemeral(&mut self) {
        let known: HashSet<&str> = self.containers.iter().map(|c| c.name.as_str()).collect();
        let creating = self.creating();
        let added: Vec<Container> = self
            .pod
            .spec
            .iter()
            .flat_map(|s| s.ephemeral_containers.iter().flatten())
            .filter(|c| !known.contains(c.name.as_str()))
            .map(|c| Container::new(&c.name, Role::Ephemeral, &creating))
            .collect();
        self.containers.extend(added);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{
        logic::{
            pod::{Action, Ended, status},
            supervision::Backoff,
        },
        model::Phase,
    };

    fn pod(ephemeral: bool) -> Arc<v1::Pod> {
        let debug =
            json!([{"name": "debug", "image": "tools", "targetContainerName": "main", "stdin": true}]);
        let json = json!({
            "metadata": {"name": "web", "uid": "u1"},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}],
                "initContainers": [{"name": "init", "image": "i"}],
                "ephemeralContainers": if ephemeral { debug } else { json!([]) }}
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn ended(id: &str, code: i32) -> Ended {
        Ended {
            id: Some(id.into()),
            code,
            signal: None,
            reason: "Error".into(),
            message: None,
            started_ms: 0,
            finished_ms: 0,
        }
    }

    #[test]
    fn one_is_started_when_it_comes_and_never_again() {
        let mut m = Machine::new(pod(false), Backoff::CRASH_LOOP, 0);
        m.step(0);
        m.sandbox_ready(None);
        assert_eq!(m.step(0).actions, [Action::Start(1)]);
        // Also while the pod is not initialized: to find out why.
        m.assign(pod(true));
        assert_eq!(m.step(0).actions, [Action::Start(2)]);
        assert_eq!(target(&m.pod, "debug"), Some("main"));
        assert_eq!(super::super::init::container_named(&m.pod, "debug").unwrap().stdin, Some(true));
        m.container_started(2, "d".into(), String::new(), 0);
        m.container_exited(ended("d", 1));
        m.assign(pod(true));
        assert_eq!(m.step(1).actions, []);
        m.container_started(1, "i".into(), String::new(), 1);
        m.container_exited(ended("i", 0));
        assert_eq!(m.step(1).actions, [Action::Start(0)]);
        m.container_started(0, "m".into(), String::new(), 1);
        let shown = status::pod_status(&m, None, "sim", None, 1);
        assert_eq!((m.ephemeral().len(), status::phase(&m)), (1, Phase::Running));
        let debug = &shown.ephemeral_container_statuses.unwrap()[0];
        assert_eq!(debug.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!(shown.container_statuses.unwrap().len(), 1);
        assert!(shown.conditions.unwrap().iter().all(|c| c.status == "True"));
    }

    #[test]
    fn those_that_run_end_with_the_pod_and_do_not_decide_how_it_ended() {
        let mut m = Machine::new(pod(true), Backoff::CRASH_LOOP, 0);
        m.step(0);
        m.sandbox_ready(None);
        m.step(0);
        m.container_started(1, "i".into(), String::new(), 0);
        m.container_started(2, "d".into(), String::new(), 0);
        m.container_exited(ended("i", 0));
        m.step(0);
        m.container_started(0, "m".into(), String::new(), 0);
        m.container_exited(ended("m", 0));
        assert!(matches!(&m.step(0).actions[..], [Action::Stop { index: 2, .. }]));
        m.container_exited(ended("d", 137));
        assert_eq!(m.step(0).actions, [Action::StopSandbox]);
        assert_eq!(status::phase(&m), Phase::Succeeded);
    }
}
