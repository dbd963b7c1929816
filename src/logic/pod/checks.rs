//! What is asked of a running container: its postStart hook, its probes, and the end of one that failed them.
//!
//! Owns: [`Checks`], one for each life of a container, and the [`Machine`]'s steps with them. Invariants: nothing is
//! probed before its postStart hook is done; one that failed is ended once, with the grace that its probe says, and then
//! counts as failed whatever code it ends with. Leaves out: thresholds ([`super::probe`]), running anything.

use std::time::Duration;

use super::{
    Machine,
    init::container_named,
    machine::grace_of,
    probe::{Outcome, ProbeKind, Probes},
    state::{Action, ContainerPhase, Notice, SandboxPhase, Step},
};

/// What one life of a container is asked.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    probes: Probes,
    post_start: PostStart,
    doom: Option<Doom>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum PostStart {
    #[default]
    Done,
    Due,
    UnderWay,
    /// It is ended for that; it was never more than created.
    Failed,
}

/// It is to be ended.
#[derive(Clone, Debug)]
struct Doom {
    grace: i64,
    why: String,
    told: bool,
}

impl Checks {
    /// Its postStart hook is not done: users are told that it is being created.
    pub fn in_post_start(&self) -> bool {
        self.post_start != PostStart::Done
    }

    /// Whether it has started, as its startup probe says.
    pub fn started(&self) -> bool {
        !self.in_post_start() && self.probes.started()
    }

    /// Whether it can serve, as its probes say.
    pub fn ready(&self) -> bool {
        !self.in_post_start() && self.probes.ready()
    }

    /// The life is over: whether it was ended for having failed.
    pub(super) fn end(&mut self) -> bool {
        std::mem::take(self).doom.is_some()
    }
}

impl Machine {
    /// A life has begun.
    pub(super) fn begin_checks(&mut self, index: usize, id: &str, started_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let Some(spec) = container_named(&self.pod, &container.name) else { return };
        let hook = spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        container.checks = Checks {
            probes: Probes::begin(&spec, id, started_ms),
            post_start: if hook { PostStart::Due } else { PostStart::Done },
            doom: None,
        };
    }

    /// A life goes on that an earlier kubelet began. Its postStart hook is not run twice.
    pub(super) fn resume_checks(&mut self, index: usize, id: &str, started_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let Some(spec) = container_named(&self.pod, &container.name) else { return };
        let told = self.pod.status.iter().flat_map(|s| {
            [&s.container_statuses, &s.init_container_statuses].into_iter().flatten().flatten()
        });
        let same = |full: &str| full.split_once("://").is_some_and(|(_, bare)| bare == id);
        let told = told
            .filter(|s| s.name == container.name && s.container_id.as_deref().is_some_and(same))
            .map(|s| (s.started.unwrap_or(false), s.ready))
            .next();
        let probes = Probes::resume(&spec, id, started_ms, self.accepted_ms, told.unwrap_or_default());
        container.checks = Checks { probes, ..Checks::default() };
    }

    /// Ends what failed, then asks what is due.
    pub(super) fn step_checks(&mut self, now_ms: i64, step: &mut Step) {
        if !matches!(self.sandbox, SandboxPhase::Ready { .. }) {
            return;
        }
        for (index, container) in self.containers.iter_mut().enumerate() {
            let ContainerPhase::Running { id, stopping, .. } = &mut container.phase else { continue };
            if let (Some(doom), None) = (&mut container.checks.doom, &stopping) {
                *stopping = Some(doom.grace);
                let grace = Duration::from_secs(doom.grace.unsigned_abs());
                step.actions.push(Action::Stop { index, id: id.clone(), grace });
                if !std::mem::replace(&mut doom.told, true) {
                    self.notices.push(Notice {
                        container: Some(container.name.clone()),
                        warning: false,
                        reason: "Killing",
                        message: doom.why.clone(),
                    });
                }
            }
            match container.checks.post_start {
                PostStart::Due if stopping.is_none() => {
                    container.checks.post_start = PostStart::UnderWay;
                    step.actions.push(Action::PostStart { index, id: id.clone() });
                }
                PostStart::Due | PostStart::UnderWay | PostStart::Failed => {}
                PostStart::Done => {
                    let ending = stopping.is_some() || self.ending.is_some();
                    let (due, next) = container.checks.probes.due(now_ms, ending);
                    step.actions.extend(due.into_iter().map(|kind| Action::Probe {
                        index,
                        id: id.clone(),
                        kind,
                    }));
                    step.wake_at_ms = [step.wake_at_ms, next].into_iter().flatten().min();
                }
            }
        }
    }

    /// Outcome of [`Action::PostStart`]. Of a life that is over it does nothing.
    pub fn post_start_done(&mut self, id: &str, done: bool) {
        let Some(index) = self.running(id) else { return };
        let grace = grace_of(&self.pod);
        let container = &mut self.containers[index];
        container.checks.post_start = if done { PostStart::Done } else { PostStart::Failed };
        if done {
            return;
        }
        let name = container.name.clone();
        container.checks.doom.get_or_insert(Doom { grace, why: "FailedPostStartHook".into(), told: false });
        self.notice(Some(&name), true, "FailedPostStartHook", "PostStartHook failed".into());
    }

    /// The preStop hook of [`Action::Stop`] failed; the container was ended all the same.
    pub fn pre_stop_failed(&mut self, index: usize) {
        let Some(name) = self.containers.get(index).map(|c| c.name.clone()) else { return };
        self.notice(Some(&name), true, "FailedPreStopHook", "PreStopHook failed".into());
    }

    /// Outcome of [`Action::Probe`]. Of a life that is over it does nothing.
    pub fn probed(&mut self, id: &str, kind: ProbeKind, outcome: &Outcome) {
        let Some(index) = self.running(id) else { return };
        let ending = self.ending.is_some()
            || matches!(self.containers[index].phase, ContainerPhase::Running { stopping: Some(_), .. });
        // What is on its way out is left in peace.
        let outcome = if ending && kind != ProbeKind::Readiness { &Outcome::Success } else { outcome };
        let (success, told) = match outcome {
            Outcome::Success => (Some(true), None),
            Outcome::Warning(text) => (Some(true), Some(("ProbeWarning", "warning", text))),
            Outcome::Failure(text) => (Some(false), Some(("Unhealthy", "failed", text))),
            Outcome::Error(text) => {
                (None, Some(("Unhealthy", "errored and resulted in unknown state", text)))
            }
        };
        let name = self.containers[index].name.clone();
        if let Some((reason, what, text)) = told {
            self.notice(Some(&name), true, reason, format!("{} probe {what}: {text}", kind.name()));
        }
        if !self.containers[index].checks.probes.outcome(kind, success) {
            return;
        }
        let spec = container_named(&self.pod, &name);
        let grace = spec.and_then(|spec| kind.of(&spec)?.termination_grace_period_seconds);
        let never = self.pod.spec.as_ref().is_some_and(|s| s.restart_policy.as_deref() == Some("Never"));
        let then = if never { "" } else { ", will be restarted" };
        let why = format!("Container {name} failed {} probe{then}", kind.name().to_lowercase());
        let grace = grace.unwrap_or_else(|| grace_of(&self.pod));
        self.containers[index].checks.doom.get_or_insert(Doom { grace, why, told: false });
    }

    fn running(&self, id: &str) -> Option<usize> {
        self.containers
            .iter()
            .position(|c| matches!(&c.phase, ContainerPhase::Running { id: own, .. } if own == id))
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
