//! A pod that waits for config maps, secrets or volumes.
//!
//! Owns: what is told of volumes that cannot be mounted, and that whoever waits goes on as soon as its objects come.

use super::{
    Machine,
    machine::{SANDBOX_BACKOFF, millis},
    state::{ContainerPhase, SandboxPhase},
};

impl Machine {
    /// Outcome of [`Action::RunSandbox`](super::Action::RunSandbox): not all volumes, which come first, can be mounted.
    pub fn volumes_failed(&mut self, messages: Vec<String>, now_ms: i64) {
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        let wait = SANDBOX_BACKOFF.delay(self.sandbox_failures, 0.0);
        self.sandbox = SandboxPhase::Absent { not_before_ms: now_ms + millis(wait) };
        for message in messages {
            self.notice(None, true, "FailedMount", message);
        }
    }

    /// Config maps or secrets of the pod are not what they were: whoever waits for them looks again now.
    pub fn sources_changed(&mut self) {
        if let SandboxPhase::Absent { not_before_ms } = &mut self.sandbox {
            *not_before_ms = 0;
        }
        for container in &mut self.containers {
            if let ContainerPhase::Waiting { not_before_ms, why } = &mut container.phase
                // With secrets that came a pull may do better.
                && matches!(why.reason, "CreateContainerConfigError" | "ErrImagePull" | "ImagePullBackOff")
            {
                (*not_before_ms, container.pull_again_ms) = (0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::logic::{
        pod::{Action, StartFailure},
        supervision::Backoff,
    };

    fn machine() -> Machine {
        let pod = serde_json::json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        Machine::new(Arc::new(serde_json::from_value(pod).unwrap()), Backoff::CRASH_LOOP, 0)
    }

    #[test]
    fn a_pull_that_failed_is_tried_again_when_its_secrets_come() {
        for waited in [0, 5_000] {
            let mut m = machine();
            m.step(0);
            m.sandbox_ready(None);
            assert_eq!(m.step(0).actions, [Action::Start(0)]);
            m.container_failed(0, StartFailure::Image { never: false, message: "no".into() }, 0);
            assert_eq!(m.step(waited).actions, []);
            m.sources_changed();
            assert_eq!(m.step(waited).actions, [Action::Start(0)], "after {waited} ms");
        }
    }

    #[test]
    fn volumes_that_fail_back_off_until_their_sources_change() {
        let mut m = machine();
        for _ in 0..5 {
            m.sources_changed();
            assert_eq!(m.step(0).actions, [Action::RunSandbox]);
            m.volumes_failed(vec!["no".into(), "neither".into()], 0);
        }
        let step = m.step(0);
        assert_eq!(step.actions, []);
        assert!(step.wake_at_ms.is_some_and(|at| at >= 4_000), "{:?}", step.wake_at_ms);
        let told: Vec<_> = step.notices.iter().map(|n| (n.warning, n.reason, n.message.as_str())).collect();
        assert_eq!(told, [(true, "FailedMount", "no"), (true, "FailedMount", "neither")]);
        m.sources_changed();
        assert_eq!(m.step(0).actions, [Action::RunSandbox]);
    }

    #[test]
    fn only_who_waits_for_its_configuration_looks_again() {
        let mut m = machine();
        m.step(0);
        m.sandbox_ready(None);
        assert_eq!(m.step(0).actions, [Action::Start(0)]);
        m.container_failed(0, StartFailure::Config("configmap \"x\" not found".into()), 0);
        assert_eq!(m.step(0).actions, []);
        m.sources_changed();
        assert_eq!(m.step(0).actions, [Action::Start(0)]);
        m.container_failed(0, StartFailure::Create("disk full".into()), 0);
        m.sources_changed();
        assert_eq!(m.step(0).actions, []);
    }
}
