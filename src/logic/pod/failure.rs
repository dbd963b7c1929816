//! A container that did not start: what its pod says and when it is tried again.
//!
//! Owns: Kubernetes' waiting reasons and events for each [`StartFailure`]. Leaves out restarts of what did run.

use super::{
    Machine,
    images::{ERR_IMAGE_PULL, shown_ms},
    machine::{CRASH_LOOP, image_in, millis},
    state::{ContainerPhase, Ended, StartFailure, WaitingReason},
};

/// What could not be configured or made is tried again at this pace: someone must mend it first.
pub(super) const CREATE_RETRY_MS: i64 = 10_000;

/// What is told of a container that cannot be made.
pub(super) const CREATE_ERROR: &str = "CreateContainerError";

/// Why a life ended that never began.
pub(super) const START_ERROR: &str = "StartError";

impl Machine {
    /// Outcome of [`Action::Start`](super::Action::Start): it does not run.
    pub fn container_failed(&mut self, index: usize, failure: StartFailure, now_ms: i64) {
        self.note_failure(index, failure, now_ms);
        let Some(container) = self.containers.get_mut(index) else { return };
        if let ContainerPhase::Waiting { not_before_ms, .. } = &mut container.phase
            && container.image != image_in(&self.pod, &container.name)
        {
            // It failed with an image that is not its own any more.
            (*not_before_ms, container.image_failures, container.pull_again_ms) = (0, 0, 0);
        }
    }

    fn note_failure(&mut self, index: usize, failure: StartFailure, now_ms: i64) {
        use StartFailure::{Create, Run, Sandbox};
        let over = self.ending.is_some() || self.is_over();
        let (lost, creating) = (!over && self.has_lost_sandbox(), self.creating());
        let Some(container) = self.containers.get_mut(index) else { return };
        if lost && matches!(failure, Create(_) | Sandbox(_) | Run { .. }) {
            // The sandbox died under the start, and what was made goes with it: the next one is another matter.
            container.phase = ContainerPhase::Waiting { not_before_ms: 0, why: creating };
            return;
        }
        let name = container.name.clone();
        if !matches!(failure, StartFailure::Image { .. }) {
            // It came further: its image is not what holds it up any more.
            container.image_failures = 0;
        }
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
                self.notice(Some(&name), true, "Failed", "Error: ErrImageNeverPull".into());
            }
            // The pull was given up because the pod is to end, or is over: that is no news.
            StartFailure::Image { message, .. } if over => wait(ERR_IMAGE_PULL, &message, 0),
            StartFailure::Image { never: false, message } => {
                container.image_failures = container.image_failures.saturating_add(1);
                let delay_ms = millis(self.crash_loop.delay(container.image_failures, 0.0));
                container.pull_again_ms = now_ms + delay_ms;
                container.phase = ContainerPhase::Waiting {
                    not_before_ms: now_ms + shown_ms(delay_ms),
                    why: WaitingReason { reason: ERR_IMAGE_PULL, message: Some(message.clone()) },
                };
                let image = container.image.clone();
                let told = format!("Failed to pull image \"{image}\": {message}");
                self.notice(Some(&name), true, "Failed", told);
                self.notice(Some(&name), true, "Failed", format!("Error: {ERR_IMAGE_PULL}"));
            }
            StartFailure::InvalidImageName(message) => {
                wait("InvalidImageName", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "InspectFailed", message);
                self.notice(Some(&name), true, "Failed", "Error: InvalidImageName".into());
            }
            StartFailure::Config(message) => {
                wait("CreateContainerConfigError", &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
            }
            StartFailure::Create(message) => {
                wait(CREATE_ERROR, &message, CREATE_RETRY_MS);
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
            }
            // Whether it is there is looked at now: if it is not, this is no news.
            StartFailure::Sandbox(message) => wait(CREATE_ERROR, &message, CREATE_RETRY_MS),
            StartFailure::Run { id, message } => {
                self.notice(Some(&name), true, "Failed", format!("Error: {message}"));
                let ended = Ended {
                    id: Some(id),
                    code: 128,
                    signal: None,
                    reason: START_ERROR.into(),
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
