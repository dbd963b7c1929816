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

use super::state::{
    Action, Adopted, Container, ContainerPhase, Ended, Notice, SandboxPhase, StartFailure, Step,
    WaitingReason,
};
use crate::logic::supervision::{Backoff, Decision, End, History, Intensity, Policy, Restart, Run, decide};

/// A sandbox that failed is tried again after 1, 2, 4 … s, at most every minute.
const SANDBOX_BACKOFF: Backoff = Backoff {
    immediate: 1,
    initial: Duration::from_secs(1),
    factor: 2,
    cap: Duration::from_secs(60),
    reset_after: Duration::from_secs(600),
    jitter: 0.0,
};

/// What could not be configured or made is tried again at this pace: someone must mend it first.
const CREATE_RETRY_MS: i64 = 10_000;

/// A pod on its node.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The pod as assigned.
    pub pod: Arc<v1::Pod>,
    /// The sandbox.
    pub sandbox: SandboxPhase,
    /// The containers in the spec's order.
    pub containers: Vec<Container>,
    /// The pod's last address: shown until the pod is gone.
    pub ip: Option<IpAddr>,
    /// When the node took the pod; milliseconds since the epoch.
    pub accepted_ms: i64,
    crash_loop: Backoff,
    /// Grace in seconds, once the pod is to end.
    ending: Option<i64>,
    sandbox_failures: u32,
    notices: Vec<Notice>,
    forget: Vec<String>,
}

fn policy(pod: &v1::Pod) -> Restart {
    match pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()) {
        Some("Never") => Restart::Temporary,
        Some("OnFailure") => Restart::Transient,
        _ => Restart::Permanent,
    }
}

impl Machine {
    /// A pod that is new on this node.
    pub fn new(pod: Arc<v1::Pod>, crash_loop: Backoff, now_ms: i64) -> Machine {
        let spec = pod.spec.as_ref();
        let containers = spec
            .map(|s| s.containers.as_slice())
            .unwrap_or_default()
            .iter()
            .map(|c| Container {
                name: c.name.clone(),
                attempt: 0,
                phase: ContainerPhase::Waiting { not_before_ms: 0, why: CREATING },
                last: None,
                image_id: None,
                image_failures: 0,
                history: History::default(),
            })
            .collect();
        let mut machine = Machine {
            sandbox: SandboxPhase::Absent { not_before_ms: 0 },
            containers,
            ip: None,
            accepted_ms: now_ms,
            crash_loop,
            ending: None,
            sandbox_failures: 0,
            notices: Vec::new(),
            forget: Vec::new(),
            pod,
        };
        machine.note_deletion();
        machine
    }

    /// A new state of the pod's document: its spec's changeable fields, or that it is being deleted.
    pub fn assign(&mut self, pod: Arc<v1::Pod>) {
        self.pod = pod;
        self.note_deletion();
    }

    fn note_deletion(&mut self) {
        if self.pod.metadata.deletion_timestamp.is_some() {
            let grace = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(0).max(0);
            self.ending = Some(self.ending.map_or(grace, |g| g.min(grace)));
        }
    }

    /// The pod is no longer assigned to this node: its object is gone.
    pub fn evict(&mut self) {
        let grace =
            self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0);
        self.ending.get_or_insert(grace);
    }

    /// Whether the pod is to end.
    pub fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether nothing of it is left on the node.
    pub fn is_removed(&self) -> bool {
        self.sandbox == SandboxPhase::Removed
    }

    /// Whether every container has ended and none will be started again.
    pub fn is_finished(&self) -> bool {
        !self.containers.is_empty()
            && self.containers.iter().all(|c| matches!(c.phase, ContainerPhase::Exited(_)))
    }

    /// Decides every step that is due.
    pub fn step(&mut self, now_ms: i64) -> Step {
        let mut step = Step::default();
        match self.sandbox {
            SandboxPhase::Removed
            | SandboxPhase::Starting
            | SandboxPhase::Stopping
            | SandboxPhase::Removing { .. } => {}
            SandboxPhase::Lost => {
                self.sandbox = SandboxPhase::Removing { again: self.ending.is_none() && !self.is_finished() };
                step.actions.push(Action::RemoveSandbox);
            }
            _ if self.ending.is_some() => self.step_ending(&mut step),
            SandboxPhase::Absent { .. } | SandboxPhase::Stopped if self.is_finished() => {}
            SandboxPhase::Stopped => {
                self.sandbox = SandboxPhase::Removing { again: true };
                step.actions.push(Action::RemoveSandbox);
            }
            SandboxPhase::Absent { not_before_ms } if not_before_ms > now_ms => {
                step.wake_at_ms = Some(not_before_ms);
            }
            SandboxPhase::Absent { .. } => {
                self.sandbox = SandboxPhase::Starting;
                step.actions.push(Action::RunSandbox);
            }
            SandboxPhase::Ready { .. } if self.is_finished() => {
                self.sandbox = SandboxPhase::Stopping;
                step.actions.push(Action::StopSandbox);
            }
            SandboxPhase::Ready { .. } => self.step_running(now_ms, &mut step),
        }
        step.actions.extend(self.forget.drain(..).map(|id| Action::Forget { id }));
        step.notices = std::mem::take(&mut self.notices);
        step
    }

    fn step_running(&mut self, now_ms: i64, step: &mut Step) {
        for (index, container) in self.containers.iter_mut().enumerate() {
            let ContainerPhase::Waiting { not_before_ms, why } = &container.phase else { continue };
            if *not_before_ms > now_ms {
                step.wake_at_ms = Some(step.wake_at_ms.map_or(*not_before_ms, |at| at.min(*not_before_ms)));
                continue;
            }
            container.phase = ContainerPhase::Starting { why: why.clone() };
            step.actions.push(Action::Start(index));
        }
    }

    fn step_ending(&mut self, step: &mut Step) {
        let grace = Duration::from_secs(self.ending.unwrap_or(0).unsigned_abs());
        let mut alive = false;
        for (index, container) in self.containers.iter_mut().enumerate() {
            match &mut container.phase {
                ContainerPhase::Running { id, stopping, .. } => {
                    alive = true;
                    if !*stopping {
                        *stopping = true;
                        step.actions.push(Action::Stop { index, id: id.clone(), grace });
                        self.notices.push(Notice {
                            container: Some(container.name.clone()),
                            warning: false,
                            reason: "Killing",
                            message: format!("Stopping container {}", container.name),
                        });
                    }
                }
                ContainerPhase::Starting { .. } => alive = true,
                ContainerPhase::Waiting { .. } | ContainerPhase::Exited(_) => {}
            }
        }
        if alive {
            return;
        }
        self.sandbox = SandboxPhase::Removing { again: false };
        step.actions.push(Action::RemoveSandbox);
    }

    /// Outcome of [`Action::RunSandbox`].
    pub fn sandbox_ready(&mut self, ip: Option<IpAddr>) {
        self.sandbox = SandboxPhase::Ready { ip };
        self.ip = ip;
        self.sandbox_failures = 0;
    }

    /// Outcome of [`Action::RunSandbox`].
    pub fn sandbox_failed(&mut self, error: &str, now_ms: i64) {
        self.sandbox_failures = self.sandbox_failures.saturating_add(1);
        let wait = SANDBOX_BACKOFF.delay(self.sandbox_failures, 0.0);
        self.sandbox = SandboxPhase::Absent { not_before_ms: now_ms + millis(wait) };
        self.notice(None, true, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {error}"));
    }

    /// The sandbox died under its containers.
    pub fn sandbox_lost(&mut self, now_ms: i64) {
        if !matches!(self.sandbox, SandboxPhase::Ready { .. }) {
            return;
        }
        self.sandbox = SandboxPhase::Lost;
        self.notice(
            None,
            false,
            "SandboxChanged",
            "Pod sandbox changed, it will be killed and re-created.".into(),
        );
        for index in 0..self.containers.len() {
            if let ContainerPhase::Running { id, started_ms, .. } = &self.containers[index].phase {
                let ended = lost(id.clone(), *started_ms, now_ms);
                self.ended(index, ended);
            }
        }
    }

    /// Outcome of [`Action::StopSandbox`].
    pub fn sandbox_stopped(&mut self) {
        if self.sandbox == SandboxPhase::Stopping {
            self.sandbox = SandboxPhase::Stopped;
        }
    }

    /// Outcome of [`Action::RemoveSandbox`].
    pub fn sandbox_removed(&mut self) {
        self.sandbox = match self.sandbox {
            SandboxPhase::Removing { again: true } if self.ending.is_none() => {
                SandboxPhase::Absent { not_before_ms: 0 }
            }
            _ => SandboxPhase::Removed,
        };
    }

    /// [`Action::StopSandbox`] or [`Action::RemoveSandbox`] failed: to be tried again.
    pub fn sandbox_stuck(&mut self, error: &str) {
        self.sandbox = match self.sandbox {
            SandboxPhase::Stopping => SandboxPhase::Ready { ip: self.ip },
            SandboxPhase::Removing { .. } => SandboxPhase::Lost,
            ref other => other.clone(),
        };
        self.notice(None, true, "FailedKillPod", format!("error killing pod: {error}"));
    }

    /// Outcome of [`Action::Start`]: the program runs.
    pub fn container_started(&mut self, index: usize, id: String, image_id: String, started_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        container.image_id = Some(image_id);
        container.image_failures = 0;
        container.phase = ContainerPhase::Running { id: id.clone(), started_ms, stopping: false };
        let name = container.name.clone();
        if !matches!(self.sandbox, SandboxPhase::Ready { .. }) {
            // The sandbox was lost while this start was under way, and the program with it.
            self.ended(index, lost(id, started_ms, started_ms));
            return;
        }
        self.notice(Some(&name), false, "Started", format!("Started container {name}"));
    }

    /// Outcome of [`Action::Start`]: it does not run.
    pub fn container_failed(&mut self, index: usize, failure: StartFailure, now_ms: i64) {
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
    fn ended(&mut self, index: usize, ended: Ended) {
        let policy =
            Policy { restart: policy(&self.pod), intensity: Intensity::UNLIMITED, backoff: self.crash_loop };
        let container = &mut self.containers[index];
        let span = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
        let run = Run {
            end: if ended.code == 0 { End::Normal } else { End::Failed },
            at: span(ended.finished_ms),
            lasted: span(ended.finished_ms - ended.started_ms.max(1)),
        };
        let decision = if self.ending.is_some() {
            Decision::Stop
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
                    container.phase = ContainerPhase::Waiting { not_before_ms, why: CREATING };
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
                *not_before_ms = 0;
            }
        }
    }

    /// Takes over what an earlier kubelet process left: the sandbox and each container's newest life.
    pub fn adopt(&mut self, ready: bool, ip: Option<IpAddr>, lives: &[Adopted]) {
        self.sandbox = if ready { SandboxPhase::Ready { ip } } else { SandboxPhase::Lost };
        self.ip = ip;
        let mut running_lost = Vec::new();
        for index in 0..self.containers.len() {
            let name = self.containers[index].name.clone();
            let mut mine: Vec<&Adopted> = lives.iter().filter(|l| l.name == name).collect();
            mine.sort_by_key(|l| l.attempt);
            let Some(newest) = mine.pop() else { continue };
            let container = &mut self.containers[index];
            container.attempt = newest.attempt;
            container.image_id = Some(newest.image_id.clone());
            container.last = mine.pop().and_then(|l| l.ended.clone());
            self.forget.extend(mine.into_iter().map(|l| l.id.clone()));
            match &newest.ended {
                None if newest.started_ms == 0 => {
                    // Made but never started: forget it and start its life properly.
                    self.forget.push(newest.id.clone());
                }
                None => {
                    container.phase = ContainerPhase::Running {
                        id: newest.id.clone(),
                        started_ms: newest.started_ms,
                        stopping: false,
                    };
                    if !ready {
                        running_lost.push(index);
                    }
                }
                Some(ended) => {
                    self.ended(index, ended.clone());
                }
            }
        }
        for index in running_lost {
            if let ContainerPhase::Running { id, started_ms, .. } = self.containers[index].phase.clone() {
                self.ended(index, lost(id, started_ms, started_ms));
            }
        }
        // A stopped sandbox of a pod that had finished is not one that was lost.
        if !ready && self.is_finished() {
            self.sandbox = SandboxPhase::Stopped;
        }
    }

    /// Records something to be told as an event with the next step.
    pub fn notice(&mut self, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        self.notices.push(Notice { container: container.map(str::to_owned), warning, reason, message });
    }
}

const CRASH_LOOP: &str = "CrashLoopBackOff";
const CREATING: WaitingReason = WaitingReason { reason: "ContainerCreating", message: None };

/// The end of a container whose sandbox died under it.
fn lost(id: String, started_ms: i64, finished_ms: i64) -> Ended {
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

fn millis(d: Duration) -> i64 {
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{logic::pod::status, model::Phase};

    fn pod(policy: &str, containers: usize) -> Arc<v1::Pod> {
        let containers: Vec<_> =
            (0..containers).map(|n| serde_json::json!({"name": format!("c{n}"), "image": "i"})).collect();
        let json = serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
            "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 7, "containers": containers}
        });
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn machine(policy: &str, containers: usize) -> Machine {
        Machine::new(pod(policy, containers), Backoff::CRASH_LOOP, 0)
    }

    /// Brings a pod up: sandbox and containers.
    fn up(machine: &mut Machine) {
        assert_eq!(machine.step(0).actions, [Action::RunSandbox]);
        machine.sandbox_ready("10.0.0.2".parse().ok());
        let starts = machine.step(0).actions;
        assert_eq!(starts.len(), machine.containers.len());
        for index in 0..starts.len() {
            machine.container_started(index, format!("{index}-0"), "sha256:1".into(), 0);
        }
    }

    fn exit(id: &str, code: i32, at_ms: i64) -> Ended {
        Ended {
            id: Some(id.into()),
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: None,
            started_ms: at_ms,
            finished_ms: at_ms,
        }
    }

    fn deleting(machine: &Machine, grace: i64) -> Arc<v1::Pod> {
        let mut pod = (*machine.pod).clone();
        pod.metadata.deletion_timestamp = Some(status::time(0));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        Arc::new(pod)
    }

    #[test]
    fn the_first_failure_restarts_at_once_and_later_ones_back_off() {
        let mut m = machine("Always", 1);
        up(&mut m);
        m.container_exited(exit("0-0", 137, 1_000));
        let step = m.step(1_000);
        assert_eq!(step.actions, [Action::Start(0)], "first restart at once");
        m.container_started(0, "0-1".into(), "sha256:1".into(), 1_000);
        m.container_exited(exit("0-1", 1, 2_000));
        let step = m.step(2_000);
        assert_eq!(step.actions, [Action::Forget { id: "0-0".into() }], "only one ended life is kept");
        assert_eq!(step.wake_at_ms, Some(12_000));
        assert!(step.notices.iter().any(|n| n.warning && n.reason == "BackOff"));
        let shown = status::pod_status(&m, None, "sim", None, 2_000);
        let c = &shown.container_statuses.as_ref().unwrap()[0];
        assert_eq!(c.restart_count, 2);
        let waiting = c.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 10s restarting failed container=c0 pod=web_default(u1)")
        );
        assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
        assert_eq!(m.step(11_999).actions, []);
        assert_eq!(m.step(12_000).actions, [Action::Start(0)]);
    }

    #[test]
    fn restart_policies_are_restart_classes() {
        for (policy, code, restarted, phase) in [
            ("Always", 0, true, Phase::Running),
            ("Always", 1, true, Phase::Running),
            ("OnFailure", 0, false, Phase::Succeeded),
            ("OnFailure", 1, true, Phase::Running),
            ("Never", 0, false, Phase::Succeeded),
            ("Never", 1, false, Phase::Failed),
        ] {
            let mut m = machine(policy, 1);
            up(&mut m);
            m.container_exited(exit("0-0", code, 1));
            let actions = m.step(1).actions;
            let expected = if restarted { Action::Start(0) } else { Action::StopSandbox };
            assert_eq!(actions, [expected], "{policy} {code}");
            assert_eq!(status::phase(&m), phase, "{policy} {code}");
        }
    }

    #[test]
    fn deletion_stops_every_container_with_the_grace_then_removes_everything() {
        let mut m = machine("Always", 2);
        up(&mut m);
        m.assign(deleting(&m, 3));
        let step = m.step(0);
        assert_eq!(step.actions.len(), 2);
        assert!(matches!(&step.actions[0], Action::Stop { grace, .. } if *grace == Duration::from_secs(3)));
        assert!(step.notices.iter().any(|n| n.reason == "Killing"));
        assert_eq!(m.step(0).actions, [], "a stop is asked for once");
        m.container_exited(exit("0-0", 143, 10));
        assert_eq!(m.step(10).actions, [], "the other still runs");
        m.container_exited(exit("1-0", 0, 20));
        assert_eq!(m.step(20).actions, [Action::RemoveSandbox]);
        m.sandbox_removed();
        assert!(m.is_removed());
        assert_eq!(m.step(30), Step::default());
    }

    #[test]
    fn a_pod_deleted_while_it_starts_ends_what_it_started() {
        let mut m = machine("Always", 1);
        m.step(0);
        m.sandbox_ready(None);
        assert_eq!(m.step(0).actions, [Action::Start(0)]);
        m.assign(deleting(&m, 30));
        assert_eq!(m.step(0).actions, [], "waits for the start's outcome");
        m.container_started(0, "0-0".into(), String::new(), 5);
        assert!(matches!(m.step(5).actions[..], [Action::Stop { .. }]));
    }

    #[test]
    fn a_lost_sandbox_is_made_again_with_its_containers() {
        let mut m = machine("Always", 1);
        up(&mut m);
        m.sandbox_lost(9);
        assert_eq!(m.step(9).actions, [Action::RemoveSandbox]);
        m.sandbox_removed();
        assert_eq!(m.step(9).actions, [Action::RunSandbox]);
        m.sandbox_ready(None);
        assert_eq!(m.step(9).actions, [Action::Start(0)]);
        assert_eq!(m.containers[0].attempt, 1);
    }

    #[test]
    fn adoption_takes_over_running_containers_without_a_restart() {
        let life = |attempt: u32, ended| Adopted {
            name: "c0".into(),
            id: format!("0-{attempt}"),
            attempt,
            image_id: "sha256:1".into(),
            started_ms: 1,
            ended,
        };
        let mut m = machine("Always", 1);
        m.adopt(
            true,
            None,
            &[life(1, Some(exit("0-1", 1, 1))), life(2, None), life(0, Some(exit("0-0", 1, 1)))],
        );
        let step = m.step(10);
        assert_eq!(step.actions, [Action::Forget { id: "0-0".into() }]);
        assert_eq!(m.containers[0].attempt, 2);
        assert_eq!(m.containers[0].last.as_ref().unwrap().id.as_deref(), Some("0-1"));
        assert!(matches!(m.containers[0].phase, ContainerPhase::Running { .. }));
    }

    #[test]
    fn an_exit_while_the_kubelet_was_away_counts_as_one_restart() {
        let mut m = machine("Always", 1);
        let ended = Adopted {
            name: "c0".into(),
            id: "0-0".into(),
            attempt: 0,
            image_id: String::new(),
            started_ms: 1,
            ended: Some(exit("0-0", 137, 5)),
        };
        m.adopt(true, None, &[ended]);
        assert_eq!(m.step(10).actions, [Action::Start(0)]);
        assert_eq!(m.containers[0].attempt, 1);
    }

    #[test]
    fn a_missing_image_is_tried_again_and_at_once_when_images_come() {
        let mut m = machine("Always", 1);
        m.step(0);
        m.sandbox_ready(None);
        m.step(0);
        let missing = || StartFailure::Image { never: false, message: "no".into() };
        m.container_failed(0, missing(), 0);
        assert_eq!(m.step(0).wake_at_ms, Some(10_000));
        m.images_changed();
        assert_eq!(m.step(1).actions, [Action::Start(0)]);
        m.container_failed(0, missing(), 1);
        let ContainerPhase::Waiting { why, .. } = &m.containers[0].phase else { panic!("not waiting") };
        assert_eq!(why.reason, "ImagePullBackOff");
    }

    #[test]
    fn a_failing_sandbox_backs_off() {
        let mut m = machine("Always", 1);
        m.step(0);
        m.sandbox_failed("no", 0);
        assert_eq!(m.step(0).wake_at_ms, Some(1_000));
        assert_eq!(m.step(1_000).actions, [Action::RunSandbox]);
        m.sandbox_failed("no", 1_000);
        assert_eq!(m.step(1_000).wake_at_ms, Some(3_000));
    }

    proptest! {
        /// Whatever happens in whatever order: no container is started twice at once or outside a ready sandbox,
        /// nothing starts once the pod is ending, and an ending pod ends.
        #[test]
        fn any_order_of_events_keeps_the_invariants_and_an_ending_pod_ends(
            events in proptest::collection::vec((0_u8..9, 0_usize..2, 0_i32..3), 1..60)
        ) {
            let mut m = machine("Always", 2);
            let mut starting = [false; 2];
            let mut now = 0;
            let mut life = 0;
            let check = |m: &mut Machine, starting: &mut [bool; 2], now: i64| {
                let ending = m.is_ending();
                for action in m.step(now).actions {
                    if let Action::Start(index) = action {
                        assert!(!starting[index], "started twice");
                        assert!(!ending, "started while ending");
                        assert!(matches!(m.sandbox, SandboxPhase::Ready { .. }));
                        starting[index] = true;
                    }
                }
                let again = m.step(now).actions;
                assert!(again.is_empty(), "{again:?} a second time");
            };
            for (kind, index, code) in events {
                now += 4_000;
                match kind {
                    0 if m.sandbox == SandboxPhase::Starting => m.sandbox_ready(None),
                    1 if m.sandbox == SandboxPhase::Starting => m.sandbox_failed("x", now),
                    2 | 3 if starting[index] => {
                        starting[index] = false;
                        life += 1;
                        m.container_started(index, format!("{index}-{life}"), String::new(), now);
                    }
                    4 if starting[index] => {
                        starting[index] = false;
                        m.container_failed(index, StartFailure::Create("x".into()), now);
                    }
                    5 | 6 => {
                        if let ContainerPhase::Running { id, .. } = m.containers[index].phase.clone() {
                            m.container_exited(exit(&id, code, now));
                        }
                    }
                    7 => m.sandbox_lost(now),
                    8 => match m.sandbox {
                        SandboxPhase::Removing { .. } => m.sandbox_removed(),
                        SandboxPhase::Stopping => m.sandbox_stopped(),
                        _ => {}
                    },
                    _ => {}
                }
                check(&mut m, &mut starting, now);
            }
            m.assign(deleting(&m, 1));
            for _ in 0..20 {
                now += 400_000;
                check(&mut m, &mut starting, now);
                match m.sandbox {
                    SandboxPhase::Starting => m.sandbox_ready(None),
                    SandboxPhase::Stopping => m.sandbox_stopped(),
                    SandboxPhase::Removing { .. } => m.sandbox_removed(),
                    _ => {}
                }
                for (index, starting) in starting.iter_mut().enumerate() {
                    if std::mem::take(starting) {
                        m.container_failed(index, StartFailure::Create("x".into()), now);
                    }
                    if let ContainerPhase::Running { id, .. } = m.containers[index].phase.clone() {
                        m.container_exited(exit(&id, 0, now));
                    }
                }
            }
            prop_assert!(m.is_removed(), "{m:?}");
        }
    }
}
