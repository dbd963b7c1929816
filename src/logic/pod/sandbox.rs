//! What becomes of a pod's sandbox, and of its containers with it.
//!
//! Owns: the outcomes of what is done with sandboxes, and the end of one under its containers. Invariant: a lost sandbox is
//! replaced when all that ran in it has ended and is told how.

use std::net::IpAddr;

use super::{
    Machine,
    failure::CREATE_ERROR,
    machine::{SANDBOX_BACKOFF, millis, shares_network},
    state::{ContainerPhase, Ended, SandboxPhase},
};

impl Machine {
    /// Outcome of [`Action::RunSandbox`](super::Action::RunSandbox).
    pub fn sandbox_ready(&mut self, ip: Option<IpAddr>) {
        self.sandbox = SandboxPhase::Ready { ip };
        self.ip = ip;
        self.sandbox_failures = 0;
    }

    /// A sandbox that was found without its address has this one.
    pub fn address_told(&mut self, ip: IpAddr) {
        if matches!(self.sandbox, SandboxPhase::Ready { ip: None }) {
            self.sandbox = SandboxPhase::Ready { ip: Some(ip) };
            self.ip = Some(ip);
        }
    }

    /// The machine has that address now, which is also that of a pod on its network.
    pub fn host_moved(&mut self, address: Option<IpAddr>) {
        if let SandboxPhase::Ready { ip } = &mut self.sandbox
            && shares_network(&self.pod)
        {
            *ip = address;
            self.ip = address;
        }
    }

    /// Outcome of [`Action::RunSandbox`](super::Action::RunSandbox).
    pub fn sandbox_failed(&mut self, error: &str, now_ms: i64) {
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        let wait = SANDBOX_BACKOFF.delay(self.sandbox_failures, 0.0);
        self.sandbox = SandboxPhase::Absent { not_before_ms: now_ms + millis(wait) };
        self.notice(None, true, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
    }

    /// The sandbox died under its containers. How those end that run still is to be told before it is replaced: a
    /// program that had done its work must not run again.
    pub fn sandbox_lost(&mut self) {
        if !self.has_sandbox() {
            return;
        }
        self.sandbox = SandboxPhase::Lost;
        self.tell_sandbox_changed();
        let creating = self.creating();
        for container in &mut self.containers {
            // It may have been for the sandbox that it could not be made.
            if let ContainerPhase::Waiting { not_before_ms, why } = &mut container.phase
                && why.reason == CREATE_ERROR
            {
                (*not_before_ms, *why) = (0, creating.clone());
            }
        }
        if !self.runs() {
            self.begin_anew();
        }
    }

    /// Outcome of [`Action::EndSandbox`](super::Action::EndSandbox): nothing of the lost sandbox runs, and what is known of ends was told.
    pub fn sandbox_ended(&mut self, now_ms: i64) {
        if self.sandbox != SandboxPhase::Ending {
            return;
        }
        self.sandbox = SandboxPhase::Lost;
        for index in 0..self.containers.len() {
            if let ContainerPhase::Running { id, started_ms, .. } = &self.containers[index].phase {
                let ended = lost(id.clone(), *started_ms, now_ms);
                self.ended(index, ended);
            }
        }
        self.begin_anew();
    }

    /// Whether containers can run in its sandbox.
    pub(super) fn has_sandbox(&self) -> bool {
        matches!(self.sandbox, SandboxPhase::Ready { .. })
    }

    /// Whether a container runs.
    pub(super) fn runs(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.phase, ContainerPhase::Running { .. }))
    }

    /// Whether there is none for containers to run in, as there was one.
    pub(super) fn has_lost_sandbox(&self) -> bool {
        use SandboxPhase::{Absent, Ending, Lost, Removing};
        matches!(self.sandbox, Lost | Ending | Removing { .. } | Absent { .. })
    }

    /// Outcome of [`Action::StopSandbox`](super::Action::StopSandbox).
    pub fn sandbox_stopped(&mut self) {
        if self.sandbox == SandboxPhase::Stopping {
            self.sandbox = SandboxPhase::Stopped;
            if self.is_evicted() {
                // What its containers wrote is what the node needs the room for; their logs stay.
                let ended = self.containers.iter().filter_map(|c| match &c.phase {
                    ContainerPhase::Exited(ended) => ended.id.clone(),
                    _ => None,
                });
                let all = ended.chain(self.containers.iter().filter_map(|c| c.last.as_ref()?.id.clone()));
                self.forget.extend(all);
            }
        }
    }

    /// Outcome of [`Action::RemoveSandbox`](super::Action::RemoveSandbox).
    pub fn sandbox_removed(&mut self) {
        self.sandbox = match self.sandbox {
            SandboxPhase::Removing { again: true } if self.ending.is_none() => {
                SandboxPhase::Absent { not_before_ms: 0 }
            }
            _ => SandboxPhase::Removed,
        };
    }

    /// [`Action::EndSandbox`](super::Action::EndSandbox), [`Action::StopSandbox`](super::Action::StopSandbox) or [`Action::RemoveSandbox`](super::Action::RemoveSandbox) failed: to be tried again.
    pub fn sandbox_stuck(&mut self, error: &str) {
        self.sandbox = match self.sandbox {
            SandboxPhase::Stopping => SandboxPhase::Ready { ip: self.ip },
            SandboxPhase::Ending | SandboxPhase::Removing { .. } => SandboxPhase::Lost,
            ref other => other.clone(),
        };
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        self.not_killed("KillPodSandbox", &uid, error);
    }

    /// Tells of what could not be ended, in Kubernetes' words.
    pub(super) fn not_killed(&mut self, action: &str, target: &str, error: &str) {
        let why = format!("failed to {action:?} for {target:?} with {action}Error: {error:?}");
        self.notice(None, true, "FailedKillPod", format!("error killing pod: {why}"));
    }
}

/// The end of a container whose sandbox died under it.
pub(super) fn lost(id: String, started_ms: i64, finished_ms: i64) -> Ended {
    Ended {
        id: Some(id),
        code: 137,
        signal: Some(9),
        reason: "Error".into(),
        message: Some("the pod's sandbox was lost".into()),
        started_ms,
        finished_ms,
    }
}
