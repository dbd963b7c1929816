//! Init containers and sidecars: whose turn it is, at a pod's beginning and at its end.
//!
//! Owns: Kubernetes' order. Invariants: init containers run one after the other, each to its success, a sidecar only
//! to its start; main containers begin after all of them; what was passed is not asked for again unless the sandbox is
//! lost; at the end sidecars outlive the main containers and end in reverse order, all within the pod's grace; only their
//! preStop hooks begin with the others'.
//!
//! ```text
//! index      0 … mains-1          mains … len-1, in the spec's order of initContainers
//! begin      wait for the rest     one by one: `init_next` goes up, never down
//! end        first                 sidecars from the last to the first
//! ```

use std::{borrow::Cow, time::Duration};

use k8s_openapi::api::core::v1;

use super::{
    Machine, ephemeral,
    machine::millis,
    state::{Action, Container, ContainerPhase, Ended, Notice, Role, STATUS_UNKNOWN, Step},
};

/// A sidecar gets this long to end even if the others have used up the pod's grace; Kubernetes' number.
const LEAST_GRACE_SECONDS: i64 = 2;

/// A pod's containers in the machine's order: the main ones, then the init containers, then the ephemeral ones.
pub fn containers(pod: &v1::Pod) -> impl Iterator<Item = (Role, Cow<'_, v1::Container>)> {
    let spec = pod.spec.as_ref();
    let main = spec.into_iter().flat_map(|s| &s.containers).map(|c| (Role::Main, Cow::Borrowed(c)));
    let init = spec.into_iter().flat_map(|s| s.init_containers.iter().flatten());
    let init = init.map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Role::Sidecar } else { Role::Init }, Cow::Borrowed(c))
    });
    main.chain(init).chain(ephemeral::containers(pod).map(|c| (Role::Ephemeral, Cow::Owned(c))))
}

/// The spec of the container of that name, whatever its role.
pub fn container_named<'a>(pod: &'a v1::Pod, name: &str) -> Option<Cow<'a, v1::Container>> {
    containers(pod).map(|(_, container)| container).find(|c| c.name == name)
}

/// The place of a container in its pod, as events name it: `spec.initContainers{NAME}`.
pub fn field_path(pod: &v1::Pod, name: &str) -> String {
    let role = containers(pod).find(|(_, c)| c.name == name).map(|(role, _)| role);
    let list = match role {
        Some(Role::Init | Role::Sidecar) => "initContainers",
        Some(Role::Ephemeral) => "ephemeralContainers",
        Some(Role::Main) | None => "containers",
    };
    format!("spec.{list}{{{name}}}")
}

impl Container {
    /// Whether its program has started as far as those are concerned that wait for it: the next init container of a
    /// sidecar, `started` in its status. Its postStart hook is done and its startup probe has succeeded.
    pub fn has_started(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running { .. }) && self.checks.started()
    }

    /// Whether it has a program, or soon will.
    pub fn is_alive(&self) -> bool {
        matches!(self.phase, ContainerPhase::Running { .. } | ContainerPhase::Starting { .. })
    }

    /// Whether those after it may begin.
    fn is_passed(&self) -> bool {
        match (self.role, &self.phase) {
            (Role::Sidecar, _) => self.has_started(),
            (_, ContainerPhase::Exited(ended)) => ended.code == 0,
            _ => false,
        }
    }

    /// Whether anything tells that it ever ran.
    pub(super) fn has_lived(&self) -> bool {
        let now = matches!(self.phase, ContainerPhase::Running { .. } | ContainerPhase::Exited(_));
        now || self.last.is_some()
    }
}

impl Machine {
    /// Whether the main containers may run.
    pub fn is_initialized(&self) -> bool {
        self.init_next >= self.mains + self.inits
    }

    /// The main containers.
    pub fn main(&self) -> &[Container] {
        &self.containers[..self.mains.min(self.containers.len())]
    }

    /// The init containers and sidecars, in the spec's order.
    pub fn init(&self) -> &[Container] {
        let end = (self.mains + self.inits).min(self.containers.len());
        &self.containers[self.mains.min(end)..end]
    }

    /// The init containers that the main ones wait for.
    pub fn to_initialize(&self) -> impl Iterator<Item = &Container> {
        self.init().iter().skip(self.init_next.saturating_sub(self.mains))
    }

    /// Whether an init container failed that is not to be tried again.
    pub fn init_failed(&self) -> bool {
        let failed = |c: &Container| matches!(&c.phase, ContainerPhase::Exited(ended) if ended.code != 0);
        self.init().iter().any(|c| c.role == Role::Init && failed(c))
    }

    /// Passes what is done.
    pub(super) fn advance_init(&mut self) {
        while !self.is_initialized() && self.containers.get(self.init_next).is_some_and(Container::is_passed)
        {
            self.init_next += 1;
        }
    }

    /// Whether it is this container's turn to start.
    pub(super) fn may_start(&self, index: usize) -> bool {
        match self.containers.get(index).map(|c| c.role) {
            Some(Role::Main) => self.is_initialized(),
            Some(Role::Sidecar) => index <= self.init_next,
            Some(Role::Init) => index == self.init_next,
            Some(Role::Ephemeral) => true,
            None => false,
        }
    }

    /// Finds out from what is known of the containers' lives how far the pod had come: what an earlier kubelet passed
    /// is passed, whatever has become of it since.
    pub(super) fn resume_init(&mut self) {
        self.init_next = if self.main().iter().any(Container::has_lived) {
            self.mains + self.inits
        } else {
            self.mains + self.init().iter().rposition(Container::has_lived).unwrap_or(0)
        };
        self.advance_init();
    }

    /// The sandbox is another one: everything is to begin anew.
    pub(super) fn begin_anew(&mut self) {
        if self.ending.is_some() || self.is_over() {
            return;
        }
        self.init_next = self.mains;
        let creating = self.creating();
        for container in self.containers.iter_mut().filter(|c| c.role == Role::Init) {
            if let ContainerPhase::Exited(ended) = &container.phase {
                container.last = Some(ended.clone());
                container.attempt += 1;
                container.phase = ContainerPhase::Waiting { not_before_ms: 0, why: creating.clone() };
            }
        }
    }

    /// Asks everything that lives to end, sidecars after the others. Tells whether something still lives.
    pub(super) fn stop_all(&mut self, seconds: i64, now_ms: i64, step: &mut Step) -> bool {
        // Not later than now, even where the clock was set back: nobody has hours to end.
        let since_ms = self.stopping_since_ms.map_or(now_ms, |since_ms| since_ms.min(now_ms));
        self.stopping_since_ms = Some(since_ms);
        let elapsed_ms = now_ms - since_ms;
        let late = elapsed_ms >= seconds.saturating_mul(1000);
        let mut alive = false;
        for index in 0..self.containers.len() {
            if !self.containers[index].is_alive() {
                continue;
            }
            alive = true;
            let mut grace = seconds;
            if self.containers[index].role == Role::Sidecar {
                if !late && !self.may_stop(index) {
                    self.begin_pre_stop(index, seconds, step);
                    step.wake(since_ms + seconds.saturating_mul(1000));
                    continue;
                }
                grace = (seconds - elapsed_ms / 1000).max(seconds.min(LEAST_GRACE_SECONDS));
            }
            let container = &mut self.containers[index];
            let ContainerPhase::Running { id, stopping, .. } = &mut container.phase else { continue };
            if stopping.is_some_and(|asked| asked <= seconds) {
                continue;
            }
            let grace = Duration::from_secs(grace.unsigned_abs());
            step.actions.push(Action::Stop { index, id: id.clone(), grace });
            // Asked for again only to end sooner.
            if stopping.replace(seconds).is_none() {
                self.notices.push(Notice {
                    container: Some(container.name.clone()),
                    warning: false,
                    reason: "Killing",
                    message: format!("Stopping container {}", container.name),
                });
            }
        }
        alive
    }

    /// All preStop hooks begin at once, also those of sidecars that are to outlive others.
    fn begin_pre_stop(&mut self, index: usize, seconds: i64, step: &mut Step) {
        let container = &mut self.containers[index];
        let hook = container_named(&self.pod, &container.name)
            .is_some_and(|c| c.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some()));
        let ContainerPhase::Running { id, stopping: None, .. } = &container.phase else { return };
        if hook && seconds > 0 && !std::mem::replace(&mut container.pre_stopping, true) {
            let grace = Duration::from_secs(seconds.unsigned_abs());
            step.actions.push(Action::PreStop { index, id: id.clone(), grace });
        }
    }

    /// Whether nothing lives that a sidecar has to outlive.
    fn may_stop(&self, sidecar: usize) -> bool {
        !self
            .containers
            .iter()
            .enumerate()
            .any(|(index, other)| other.is_alive() && (other.role != Role::Sidecar || index > sidecar))
    }

    /// Nothing of a pod that is over waits for another life any more: what ended has ended, and of what was to run and did
    /// not nobody knows. As in Kubernetes init containers go on to wait whose turn never came.
    pub(super) fn close_waiting(&mut self) {
        let initialized = self.is_initialized() || self.main().iter().any(Container::has_lived);
        let begun = self.mains + self.init().iter().rposition(Container::has_lived).unwrap_or(0);
        for index in 0..self.containers.len() {
            let to_run = match self.containers[index].role {
                Role::Main => initialized,
                // What was passed has run, though nothing may be left that tells.
                Role::Init => !initialized && (self.init_next..=begun).contains(&index),
                Role::Sidecar => initialized || index <= begun,
                Role::Ephemeral => false,
            };
            let container = &mut self.containers[index];
            let ContainerPhase::Waiting { .. } = container.phase else { continue };
            if let Some(ended) = container.last.take() {
                container.attempt = container.attempt.saturating_sub(1);
                container.phase = ContainerPhase::Exited(ended);
            } else if to_run {
                container.phase = ContainerPhase::Exited(not_located());
            }
        }
    }
}

/// What is told of a life that was to begin when its pod ended: Kubernetes' words. It has no times.
fn not_located() -> Ended {
    Ended {
        id: None,
        code: 137,
        signal: None,
        reason: STATUS_UNKNOWN.into(),
        message: Some("The container could not be located when the pod was terminated".into()),
        started_ms: 0,
        finished_ms: 0,
    }
}

impl Step {
    /// Steps again at this time at the latest.
    pub(super) fn wake(&mut self, at_ms: i64) {
        self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |earlier| earlier.min(at_ms)));
    }

    /// As [`wake`](Self::wake), after so many seconds.
    pub(super) fn wake_after(&mut self, from_ms: i64, seconds: i64) -> i64 {
        let at = from_ms.saturating_add(millis(Duration::from_secs(seconds.unsigned_abs())));
        self.wake(at);
        at
    }
}

#[cfg(test)]
#[path = "init_tests.rs"]
mod tests;
