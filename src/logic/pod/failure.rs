//! A container that did not start: what its pod says and when it is tried again.
//!
//! Owns: Kubernetes' waiting reasons and events for each [`StartFailure`]. Leaves out restarts of what did run.

use super::{
    Machine,
    machine::{CRASH_LOOP, image_in, millis},
    state::{ContainerPhase, Ended, StartFailure, WaitingReason},
};

/// What could not be configured or made is tried again at this pace: someone must mend it first.
const CREATE_RETRY_MS: i64 = 10_000;

impl Machine {
    /// Outcome of [`Action::Start`](super::Action::Start): it does not run.
    pub fn container_failed(&mut self, index: usize, failure: StartFailure, now_ms: i64) {
        self.note_failure(index, failure, now_ms);
        let Some(container) = self.containers.get_mut(index) else { return };
        if let ContainerPhase::Waiting { not_before_ms, .. } = &mut container.phase
            && container.image != image_in(&self.pod, &container.name)
        {
            // It failed with an image that is not its own any more.
            (*not_before_ms, container.image_failures) = (0, 0);
        }
    }

    fn note_failure(&mut self, index: usize, failure: StartFailure, now_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let name = container.name.clone();
        let mut wait = |reason, message: &str, delay_ms: i64| {
            container.phase = ContainerPhase::Waiting {
                not_before_ms: now_ms + delay_ms,
                why: WaitingReason { reason, message: Some(message.to_owned()) },
            };
        };
        match failure {
            StartFailure::Image { never: true, message } => {
                wait("ErrImageNeverPull", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "ErrImageNeverPull", message);
            }
            StartFailure::Image { never: false, message } => {
                let again = container.image_failures;
                container.image_failures = again.saturating_add(1);
                let delay = millis(self.crash_loop.delay(container.image_failures, 0.0));
                let reason = if again == 0 { "ErrImagePull" } else { "ImagePullBackOff" };
                container.phase = ContainerPhase::Waiting {
                    not_before_ms: now_ms + delay,
                    why: WaitingReason { reason, message: Some(message.clone()) },
                };
                self.notice(Some(&name), true, "Failed", message);
            }
            StartFailure::InvalidImageName(message) => {
                wait("InvalidImageName", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "InspectFailed", message);
            }
            StartFailure::Config(message) => {
                wait("CreateContainerConfigError", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
            }
            StartFailure::Create(message) => {
                wait("CreateContainerError", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
            }
            StartFailure::Run { id, message } => {
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
                let ended = Ended {
                    id: Some(id),
                    code: 128,
                    signal: None,
                    reason: "StartError".into(),
                    message: Some(message.clone()),
                    started_ms: now_ms,
                    finished_ms: now_ms,
                };
                self.ended(index, ended);
                // Until the backoff begins to show, say what went wrong rather than that we are at it.
                if let ContainerPhase::Waiting { why, .. } = &mut self.containers[index].phase
                    && why.reason != CRASH_LOOP
                {
                    *why = WaitingReason { reason: "RunContainerError", message: Some(message) };
                }
            }
        }
    }
}
