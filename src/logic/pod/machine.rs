//! The pod state machine: facts in, actions out.
//!
//! Owns: the order of a pod's steps. Invariants: at most one action is under way for the sandbox and for each container;
//! a container's next life begins only after its last one ended; once stopping, nothing is started; `Removed` is final.
//! One call of [`Machine::step`] makes every step that is due at `now_ms` and says when to look again.
//!
//! ```text
//! sandbox    Absent → Starting → Ready → Stopping → Stopped (containers kept for their logs)
//!                                  └→ (deleted)  Removing → Removed
//! container  Waiting → Starting → Running → Stopping → Exited → Waiting …
//! ```

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1;

use super::{
    failure::CREATE_RETRY_MS,
    init,
    refusal::PodFailure,
    resize::Verdict,
    sandbox::lost,
    state::{Action, Container, ContainerPhase, Ended, Notice, Role, SandboxPhase, Step, WaitingReason},
};
use crate::logic::supervision::{Backoff, Decision, End, History, Intensity, Policy, Restart, Run, decide};
use crate::model::{Phase, admit::effective_grace};

/// A sandbox that failed is tried again after 1, 2, 4 … s, at most every minute.
pub(super) const SANDBOX_BACKOFF: Backoff = Backoff {
    immediate: 1,
    initial: Duration::from_secs(1),
    factor: 2,
    cap: Duration::from_secs(60),
    reset_after: Duration::from_secs(600),
    jitter: 0.0,
};

/// A pod on its node.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The pod as assigned.
    pub pod: Arc<v1::Pod>,
    /// The sandbox.
    pub sandbox: SandboxPhase,
    /// The main containers in the spec's order, then the init containers in theirs, then the ephemeral ones.
    pub containers: Vec<Container>,
    /// The pod's last address: shown until the pod is gone.
    pub ip: Option<IpAddr>,
    /// When the node took the pod; milliseconds since the epoch.
    pub accepted_ms: i64,
    /// When its active time began by the clock of the node as it is now: that may have been set back since.
    pub(super) began_ms: i64,
    /// Why the pod failed as a whole, if it did.
    pub failed: Option<PodFailure>,
    /// How it ended, once its status says so, whoever said it.
    pub(super) told_end: Option<Phase>,
    /// How many of the containers are main ones.
    pub(super) mains: usize,
    /// How many are init containers or sidecars.
    pub(super) inits: usize,
    /// The init container whose turn it is; beyond the last one when the pod is initialized.
    pub(super) init_next: usize,
    /// When everything was first asked to end.
    pub(super) stopping_since_ms: Option<i64>,
    pub(super) crash_loop: Backoff,
    /// Grace in seconds, once the pod is to end.
    pub(super) ending: Option<i64>,
    pub(super) sandbox_failures: u32,
    /// Whether the node has room for what is asked beyond what the pod says.
    pub pending: Verdict,
    /// The runtime makes mounts read-only all the way down where that is asked for.
    pub recursive_read_only: bool,
    /// The generation of the pod's document with which what its containers were given last changed.
    pub(super) sized: Option<i64>,
    pub(super) notices: Vec<Notice>,
    pub(super) forget: Vec<String>,
}

fn policy(pod: &v1::Pod, role: Role) -> Restart {
    match (role, pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref())) {
        (Role::Sidecar, _) => Restart::Permanent,
        (Role::Ephemeral, _) => Restart::Temporary,
        (_, Some("Never")) => Restart::Temporary,
        (Role::Init, _) | (_, Some("OnFailure")) => Restart::Transient,
        _ => Restart::Permanent,
    }
}

/// Whether a pod is on the network of its node.
pub fn shares_network(pod: &v1::Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
}

impl Machine {
    /// A pod that is new on this node.
    pub fn new(pod: Arc<v1::Pod>, crash_loop: Backoff, now_ms: i64) -> Machine {
        let creating = creating(&pod);
        let containers: Vec<Container> =
            init::containers(&pod).map(|(role, c)| Container::new(&c.name, role, &creating)).collect();
        let mains = containers.iter().filter(|c| c.role == Role::Main).count();
        let inits = containers.iter().filter(|c| matches!(c.role, Role::Init | Role::Sidecar)).count();
        let mut machine = Machine {
            sandbox: SandboxPhase::Absent { not_before_ms: 0 },
            containers,
            failed: None,
            told_end: None,
            mains,
            inits,
            init_next: mains,
            stopping_since_ms: None,
            ip: None,
            accepted_ms: now_ms,
            began_ms: i64::MAX,
            crash_loop,
            ending: None,
            sandbox_failures: 0,
            pending: Verdict::Fits,
            recursive_read_only: false,
            sized: None,
            notices: Vec::new(),
            forget: Vec::new(),
            pod,
        };
        machine.note_deletion();
        machine.note_end();
        machine.note_refusal();
        machine
    }

    /// A new state of the pod's document: its spec's changeable fields, or that it is being deleted.
    pub fn assign(&mut self, pod: Arc<v1::Pod>) {
        let creating = self.creating();
        for container in &mut self.containers {
            if image_in(&pod, &container.name) == image_in(&self.pod, &container.name) {
                continue;
            }
            // What failed with the old image says nothing about the new one.
            container.history = History::default();
            (container.image_failures, container.pull_again_ms) = (0, 0);
            if let ContainerPhase::Waiting { not_before_ms, why } = &mut container.phase {
                (*not_before_ms, *why) = (0, creating.clone());
            }
        }
        self.note_sizes(&pod);
        self.pod = pod;
        self.add_ephemeral();
        self.note_deletion();
        self.note_end();
    }

    fn note_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
            self.ending = Some(self.ending.map_or(grace, |g| g.min(grace)));
        }
    }

    /// The pod is no longer assigned to this node: its object is gone.
    pub fn evict(&mut self) {
        self.ending.get_or_insert(grace_of(&self.pod));
    }

    /// Which state of the pod's document is acted on; `None` for static pods, and those of before there were generations.
    pub fn generation(&self) -> Option<i64> {
        self.pod.metadata.generation.filter(|generation| *generation > 0)
    }

    /// Whether the pod is to end.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether nothing of it is left on the node.
    pub fn is_removed(&self) -> bool {
        self.sandbox == SandboxPhase::Removed
    }

    /// Whether nothing will be started again: the main containers have ended for good, or the pod has failed.
    pub fn is_over(&self) -> bool {
        let ended = |c: &Container| matches!(c.phase, ContainerPhase::Exited(_));
        (self.failed.is_some() || self.told_end.is_some())
            || self.init_failed()
            || (!self.main().is_empty() && self.main().iter().all(ended))
    }

    fn is_starting(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.phase, ContainerPhase::Starting { .. }))
    }

    /// Whether it is over and every container has ended.
    pub fn is_finished(&self) -> bool {
        self.is_over() && !self.containers.iter().any(Container::is_alive)
    }

    /// What a container waits for that has not run yet.
    pub(super) fn creating(&self) -> WaitingReason {
        creating(&self.pod)
    }

    /// Decides every step that is due.
    pub fn step(&mut self, now_ms: i64) -> Step {
        let mut step = Step::default();
        self.check_deadline(now_ms, &mut step);
        self.advance_init();
        if self.is_finished() {
            self.close_waiting();
        }
        match self.sandbox {
            SandboxPhase::Removed
            | SandboxPhase::Starting
            | SandboxPhase::Ending
            | SandboxPhase::Stopping
            | SandboxPhase::Removing { .. } => {}
            SandboxPhase::Lost if self.runs() => {
                self.sandbox = SandboxPhase::Ending;
                step.actions.push(Action::EndSandbox);
            }
            // Nothing starts in it again, but what it ran may still be alive; its containers are kept for their logs.
            SandboxPhase::Lost if self.ending.is_none() && self.is_finished() => {
                self.sandbox = SandboxPhase::Stopping;
                step.actions.push(Action::StopSandbox);
            }
            SandboxPhase::Lost => {
                self.sandbox = SandboxPhase::Removing { again: self.ending.is_none() };
                step.actions.push(Action::RemoveSandbox);
            }
            _ if self.ending.is_some() => self.step_ending(now_ms, &mut step),
            SandboxPhase::Absent { .. } | SandboxPhase::Stopped if self.is_over() => {}
            SandboxPhase::Stopped => {
                self.sandbox = SandboxPhase::Removing { again: true };
                step.actions.push(Action::RemoveSandbox);
            }
            // What is still being started belongs to the sandbox before: it will be told to have failed.
            SandboxPhase::Absent { .. } if self.is_starting() => {}
            SandboxPhase::Absent { not_before_ms } if not_before_ms > now_ms => {
                // Longer only where the clock was set back.
                let not_before_ms = not_before_ms.min(now_ms + millis(SANDBOX_BACKOFF.cap));
                self.sandbox = SandboxPhase::Absent { not_before_ms };
                step.wake(not_before_ms);
            }
            SandboxPhase::Absent { .. } => {
                self.sandbox = SandboxPhase::Starting;
                step.actions.push(Action::RunSandbox);
            }
            SandboxPhase::Ready { .. } if self.is_finished() => {
                self.sandbox = SandboxPhase::Stopping;
                step.actions.push(Action::StopSandbox);
            }
            SandboxPhase::Ready { .. } if self.is_over() => {
                self.stop_all(self.last_grace(), now_ms, &mut step);
            }
            SandboxPhase::Ready { .. } => {
                self.step_running(now_ms, &mut step);
                self.step_sizes(now_ms, &mut step);
            }
        }
        self.step_checks(now_ms, &mut step);
        step.actions.extend(self.forget.drain(..).map(|id| Action::Forget { id }));
        step.notices = std::mem::take(&mut self.notices);
        step
    }

    fn step_running(&mut self, now_ms: i64, step: &mut Step) {
        let grace = grace_of(&self.pod);
        for index in 0..self.containers.len() {
            let may_start = self.may_start(index);
            let given = self.given(&self.containers[index].name);
            let container = &mut self.containers[index];
            let image = image_in(&self.pod, &container.name);
            container.show_back_off(image, now_ms, &mut self.notices);
            if let ContainerPhase::Waiting { not_before_ms, .. } = &mut container.phase {
                // Longer only where the clock was set back.
                let longest_ms = millis(self.crash_loop.cap).max(CREATE_RETRY_MS);
                *not_before_ms = (*not_before_ms).min(now_ms + longest_ms);
                container.pull_again_ms = container.pull_again_ms.min(now_ms + longest_ms);
            }
            match &mut container.phase {
                ContainerPhase::Waiting { .. } if !may_start => {}
                ContainerPhase::Waiting { not_before_ms, .. } if *not_before_ms > now_ms => {
                    step.wake(*not_before_ms);
                }
                ContainerPhase::Waiting { why, .. } => {
                    image.clone_into(&mut container.image);
                    container.phase = ContainerPhase::Starting { why: why.clone() };
                    (container.applied, container.resize_again_ms) = (Some(given), 0);
                    step.actions.push(Action::Start(index));
                }
                ContainerPhase::Running { id, stopping: stopping @ None, .. } if container.image != image => {
                    *stopping = Some(grace);
                    container.replacing = true;
                    let grace = Duration::from_secs(grace.unsigned_abs());
                    step.actions.push(Action::Stop { index, id: id.clone(), grace });
                    let name = &container.name;
                    self.notices.push(Notice {
                        container: Some(name.clone()),
                        warning: false,
                        reason: "Killing",
                        message: format!("Container {name} definition changed, will be restarted"),
                    });
                }
                _ => {}
            }
        }
    }

    fn step_ending(&mut self, now_ms: i64, step: &mut Step) {
        if self.stop_all(self.ending.unwrap_or(0), now_ms, step) {
            return;
        }
        self.close_waiting();
        self.sandbox = SandboxPhase::Removing { again: false };
        step.actions.push(Action::RemoveSandbox);
    }

    /// Outcome of [`Action::Start`]: the program runs.
    pub fn container_started(&mut self, index: usize, id: String, image_id: String, started_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        container.image_id = Some(image_id);
        container.image_failures = 0;
        container.phase = ContainerPhase::Running { id: id.clone(), started_ms, stopping: None };
        let name = container.name.clone();
        if !self.has_sandbox() {
            // The sandbox was lost while this start was under way, and the program with it.
            self.ended(index, lost(id, started_ms, started_ms));
            return;
        }
        self.begin_checks(index, &id, started_ms);
        self.notice(Some(&name), false, "Started", format!("Started container {name}"));
    }

    /// [`Action::Stop`] failed: to be tried again.
    pub fn container_stuck(&mut self, id: &str, error: &str) {
        let mut stuck = None;
        for container in &mut self.containers {
            if let ContainerPhase::Running { id: own, stopping, .. } = &mut container.phase
                && own == id
            {
                *stopping = None;
                stuck = Some(container.name.clone());
            }
        }
        // One that is to be started anew is no matter of its pod's end.
        if let Some(name) = stuck.filter(|_| self.ending.is_some() || self.is_over()) {
            self.not_killed("KillContainer", &name, error);
        }
    }

    /// A container's program ended. Told twice, or of an earlier life, it does nothing.
    pub fn container_exited(&mut self, ended: Ended) {
        let same = |c: &Container| match &c.phase {
            ContainerPhase::Running { id, .. } => Some(id) == ended.id.as_ref(),
            _ => false,
        };
        let Some(index) = self.containers.iter().position(same) else { return };
        self.ended(index, ended);
    }

    /// The one place where it is decided whether an ended container lives again.
    pub(super) fn ended(&mut self, index: usize, ended: Ended) {
        let (over, creating) = (self.ending.is_some() || self.is_over(), self.creating());
        let restart = policy(&self.pod, self.containers[index].role);
        let policy = Policy { restart, intensity: Intensity::UNLIMITED, backoff: self.crash_loop };
        let container = &mut self.containers[index];
        let failed = container.checks.end();
        container.pre_stopping = false;
        (container.applied, container.resizing, container.resize_fault) = (None, false, None);
        let span = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let run = Run {
            end: if ended.code == 0 && !failed { End::Normal } else { End::Failed },
            at: span(ended.finished_ms),
            lasted: span(ended.finished_ms - ended.started_ms.max(1)),
        };
        let decision = if over {
            Decision::Stop
        } else if std::mem::take(&mut container.replacing) {
            container.history = History::default();
            Decision::RestartAfter(Duration::ZERO)
        } else {
            decide(&policy, &mut container.history, run, 0.0)
        };
        match decision {
            Decision::RestartAfter(wait) => {
                if let Some(id) = container.last.take().and_then(|l| l.id) {
                    self.forget.push(id);
                }
                container.last = Some(ended.clone());
                container.attempt += 1;
                let not_before_ms = ended.finished_ms + millis(wait);
                let name = container.name.clone();
                if wait.is_zero() {
                    container.phase = ContainerPhase::Waiting { not_before_ms, why: creating };
                    return;
                }
                let meta = &self.pod.metadata;
                let place = format!(
                    "{}_{}({})",
                    meta.name.as_deref().unwrap_or_default(),
                    meta.namespace.as_deref().unwrap_or_default(),
                    meta.uid.as_deref().unwrap_or_default()
                );
                container.phase = ContainerPhase::Waiting {
                    not_before_ms,
                    why: WaitingReason {
                        reason: CRASH_LOOP,
                        message: Some(format!(
                            "back-off {} restarting failed container={name} pod={place}",
                            short_duration(wait)
                        )),
                    },
                };
                self.notice(
                    Some(&name),
                    true,
                    "BackOff",
                    format!("Back-off restarting failed container {name} in pod {place}"),
                );
            }
            Decision::Stop | Decision::Escalate => container.phase = ContainerPhase::Exited(ended),
        }
    }

    /// Images came: whoever waits for one looks again now.
    pub fn images_changed(&mut self) {
        for container in &mut self.containers {
            if let ContainerPhase::Waiting { not_before_ms, why } = &mut container.phase
                && matches!(why.reason, "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull")
            {
                (*not_before_ms, container.pull_again_ms) = (0, 0);
            }
        }
    }

    /// Records something to be told as an event with the next step.
    pub fn notice(&mut self, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        self.notices.push(Notice { container: container.map(str::to_owned), warning, reason, message });
    }
}

/// The image that a pod's spec asks for.
pub(super) fn image_in<'a>(pod: &'a v1::Pod, container: &str) -> &'a str {
    let spec = pod.spec.as_ref();
    let named = |c: &&v1::Container| c.name == container;
    let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
    let kept = spec.into_iter().flat_map(|s| &s.containers).chain(init).find(named);
    let ephemeral = || {
        let all = spec?.ephemeral_containers.iter().flatten();
        all.filter(|c| c.name == container).find_map(|c| c.image.as_deref())
    };
    kept.and_then(|c| c.image.as_deref()).or_else(ephemeral).unwrap_or_default()
}

/// Seconds between SIGTERM and SIGKILL when nothing else is said.
pub(super) fn grace_of(pod: &v1::Pod) -> i64 {
    effective_grace(pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30))
}

pub(super) const CRASH_LOOP: &str = "CrashLoopBackOff";

/// What is told of a container that has not run yet.
fn creating(pod: &v1::Pod) -> WaitingReason {
    let init = pod.spec.as_ref().is_some_and(|s| s.init_containers.iter().flatten().next().is_some());
    WaitingReason { reason: if init { "PodInitializing" } else { "ContainerCreating" }, message: None }
}

pub(super) fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX / 4)
}

/// `10s`, `1m20s`: as Go prints durations of whole seconds.
fn short_duration(d: Duration) -> String {
    let (minutes, seconds) = (d.as_secs() / 60, d.as_secs() % 60);
    if d < Duration::from_secs(1) {
        format!("{}ms", d.as_millis())
    } else if minutes == 0 {
        format!("{seconds}s")
    } else {
        format!("{minutes}m{seconds}s")
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
