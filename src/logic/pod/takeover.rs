//! A fresh kubelet takes over a pod that an earlier one ran.
//!
//! Owns: [`Machine::adopt`], from what the runtime still has of the pod, and [`Machine::recall`], from what was told of
//! it when the runtime has nothing. Invariants: a running container is not disturbed; a restart is counted once; of a life
//! that never began what was told is believed, so that what failed to start does not seem to be about to.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::Time};

use super::{
    Machine,
    failure::START_ERROR,
    sandbox::lost,
    state::{Adopted, ContainerPhase, Ended, Role, STATUS_UNKNOWN, SandboxPhase},
};

impl Machine {
    /// Takes over what an earlier kubelet process left: the sandbox and each container's newest life.
    pub fn adopt(&mut self, ready: bool, ip: Option<IpAddr>, lives: &[Adopted]) {
        self.sandbox = if ready { SandboxPhase::Ready { ip } } else { SandboxPhase::Lost };
        self.ip = ip;
        let told = self.pod.clone();
        let told = Told(told.status.as_ref());
        let lives: Vec<Adopted> = lives.iter().map(|life| told.complete(life, self.accepted_ms)).collect();
        let mut running_lost = Vec::new();
        for index in 0..self.containers.len() {
            let name = self.containers[index].name.clone();
            let mut mine: Vec<&Adopted> = lives.iter().filter(|l| l.name == name).collect();
            // A kubelet that died while it started one may have left two of one attempt: what runs is the one.
            mine.sort_by_key(|l| (l.attempt, l.ended.is_none() && l.started_ms != 0, l.ended.is_some()));
            let Some(newest) = mine.pop() else {
                self.recall_over(index, &told);
                continue;
            };
            let container = &mut self.containers[index];
            container.attempt = newest.attempt;
            container.image.clone_from(&newest.image);
            container.image_id = Some(newest.image_id.clone());
            let last = mine.iter().rposition(|l| l.ended.is_some()).map(|at| mine.remove(at));
            container.last = last.and_then(|l| l.ended.clone());
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
                        stopping: None,
                    };
                    if !ready {
                        running_lost.push(index);
                    }
                    self.resume_checks(index, &newest.id, newest.started_ms);
                }
                Some(ended) => self.ended_before(index, ended.clone()),
            }
        }
        self.resume_sizes();
        let outlived = !running_lost.is_empty();
        for index in running_lost {
            if let ContainerPhase::Running { id, started_ms, .. } = self.containers[index].phase.clone() {
                // It ran until now for all that is known: whoever would have seen it end was down.
                let found_ms = self.accepted_ms.max(started_ms);
                self.ended_before(index, lost(id, started_ms, found_ms));
            }
        }
        self.resume_init();
        if self.is_finished() {
            self.ip = ip.or_else(|| told.ip());
        }
        // A stopped sandbox of a pod that had finished is not one that was lost.
        if !ready && self.is_finished() && !outlived {
            self.sandbox = SandboxPhase::Stopped;
        } else if !ready {
            self.note_sandbox_changed();
            self.begin_anew();
        }
    }

    /// Tells of a sandbox that is there no more, unless nothing of the pod is to run again.
    fn note_sandbox_changed(&mut self) {
        if self.ending.is_none() && !self.is_over() {
            self.tell_sandbox_changed();
        }
    }

    /// In Kubernetes' words, as after a restart of the machine.
    pub(super) fn tell_sandbox_changed(&mut self) {
        let message = "Pod sandbox changed, it will be killed and re-created.";
        self.notice(None, false, "SandboxChanged", message.into());
    }

    /// Of the lives that the runtime has of this pod, removes those nobody knows: an earlier incarnation of the pod's
    /// actor was starting them when it died. While something starts its own life may be among them, so nothing is done.
    pub fn remove_strays<'a>(&mut self, lives: impl IntoIterator<Item = &'a str>) {
        if self.containers.iter().any(|c| matches!(c.phase, ContainerPhase::Starting { .. })) {
            return;
        }
        let known = |id: &str| {
            self.containers.iter().any(|c| {
                let present = match &c.phase {
                    ContainerPhase::Running { id, .. } => Some(id.as_str()),
                    ContainerPhase::Exited(ended) => ended.id.as_deref(),
                    ContainerPhase::Waiting { .. } | ContainerPhase::Starting { .. } => None,
                };
                present == Some(id) || c.last.as_ref().and_then(|l| l.id.as_deref()) == Some(id)
            })
        };
        let strays: Vec<String> = lives.into_iter().filter(|id| !known(id)).map(str::to_owned).collect();
        self.forget.extend(strays);
    }

    /// Takes over from the pod's document what an earlier kubelet told, when the node has nothing of the pod any more:
    /// a pod that is over stays over, and restarts are counted on.
    pub fn recall(&mut self) {
        let pod = self.pod.clone();
        let told = Told(pod.status.as_ref());
        let mut ran = false;
        for status in told.containers() {
            ran |= status.state.as_ref().is_some_and(|state| state.running.is_some());
            let Some(index) = self.containers.iter().position(|c| c.name == status.name) else { continue };
            let Some(ended) = last_told(status, self.accepted_ms) else { continue };
            self.take_told(index, status, ended);
        }
        self.resume_init();
        if self.is_finished() {
            self.ip = told.ip();
        }
        if ran {
            self.note_sandbox_changed();
        }
        self.begin_anew();
    }

    /// Of a container that the runtime knows no more: it went with an earlier sandbox of the pod. What had ended for good
    /// is not begun again, nor is an ephemeral one that ever ran, and what is to be is a restart like any other. Init
    /// containers are as new: they have to run in each sandbox.
    fn recall_over(&mut self, index: usize, told: &Told<'_>) {
        let Some(container) = self.containers.get(index) else { return };
        if !matches!(container.role, Role::Main | Role::Ephemeral) {
            return;
        }
        let Some(status) = told.containers().find(|s| s.name == container.name) else { return };
        if let Some(ended) = last_told(status, self.accepted_ms) {
            self.take_told(index, status, ended);
        }
    }

    fn take_told(&mut self, index: usize, status: &v1::ContainerStatus, ended: Ended) {
        let over = self.is_over();
        let Some(container) = self.containers.get_mut(index) else { return };
        container.attempt = u32::try_from(status.restart_count).unwrap_or(0);
        container.image.clone_from(&status.image);
        container.image_id = Some(status.image_id.clone());
        if over {
            container.phase = ContainerPhase::Exited(ended);
        } else {
            self.ended_before(index, ended);
        }
    }

    /// A life that was over when this process began: at the latest then, also where the clock was set back since.
    fn ended_before(&mut self, index: usize, ended: Ended) {
        let ahead_ms = ended.finished_ms.saturating_sub(self.accepted_ms).max(0);
        self.ended(index, ended);
        if let ContainerPhase::Waiting { not_before_ms, .. } = &mut self.containers[index].phase {
            *not_before_ms -= ahead_ms;
        }
    }
}

/// What is said of one whose container was there still, when it left no last words.
pub const FOUND_DEAD: &str =
    "The container was found dead: the machine, or what watched it, went down while it ran";

/// What runtimes say of a program that could not be run, or was not found, and of a container that could not be started.
const NOT_STARTED: std::ops::RangeInclusive<i32> = 126..=128;

/// What was told of the pod, if anything.
struct Told<'a>(Option<&'a v1::PodStatus>);

impl Told<'_> {
    fn containers(&self) -> impl Iterator<Item = &v1::ContainerStatus> {
        let lists = self.0.into_iter().flat_map(|status| {
            let mains = status.container_statuses.iter();
            mains.chain(&status.init_container_statuses).chain(&status.ephemeral_container_statuses)
        });
        lists.flatten()
    }

    fn ip(&self) -> Option<IpAddr> {
        self.0?.pod_ip.as_deref()?.parse().ok()
    }

    /// A life that never began, with the end that was told of it: a runtime may take it for one that is yet to begin, or
    /// knows less of why it did not.
    fn complete(&self, life: &Adopted, now_ms: i64) -> Adopted {
        let mut life = life.clone();
        if life.started_ms > 0 {
            return life;
        }
        let ends = self.containers().flat_map(|status| [&status.state, &status.last_state]);
        let mut ends = ends.flatten().filter_map(|state| state.terminated.as_ref());
        let end = ends.find(|end| bare(end.container_id.as_deref()) == Some(&life.id));
        match end {
            Some(end) => life.ended = Some(as_told(end, now_ms)),
            // Nobody has heard of it: as any other that did not start, if its code says so.
            None => {
                if let Some(ended) = &mut life.ended {
                    ended.started_ms = ended.finished_ms;
                    if NOT_STARTED.contains(&ended.code) {
                        ended.reason = START_ERROR.into();
                    }
                }
            }
        }
        life
    }
}

/// A runtime's id without the runtime.
fn bare(id: Option<&str>) -> Option<&str> {
    id.map(|id| id.split_once("://").map_or(id, |(_, bare)| bare))
}

fn millis(time: Option<&Time>) -> Option<i64> {
    time.map(|time| time.0.as_millisecond())
}

/// The newest life that a container's status tells of, as one that is over; `None` when it never ran.
fn last_told(status: &v1::ContainerStatus, now_ms: i64) -> Option<Ended> {
    let state = status.state.as_ref();
    if let Some(running) = state.and_then(|s| s.running.as_ref()) {
        return Some(Ended {
            id: bare(status.container_id.as_deref()).map(str::to_owned),
            code: 137,
            signal: None,
            reason: STATUS_UNKNOWN.into(),
            message: Some("The container could not be located on its node".into()),
            started_ms: millis(running.started_at.as_ref()).unwrap_or(now_ms),
            finished_ms: now_ms,
        });
    }
    let terminated = state
        .and_then(|s| s.terminated.as_ref())
        .or_else(|| status.last_state.as_ref().and_then(|s| s.terminated.as_ref()))?;
    Some(as_told(terminated, now_ms))
}

fn as_told(terminated: &v1::ContainerStateTerminated, now_ms: i64) -> Ended {
    let reason = terminated.reason.clone().unwrap_or_default();
    // What never began has no times.
    let now_ms = if reason == STATUS_UNKNOWN && terminated.container_id.is_none() { 0 } else { now_ms };
    Ended {
        id: bare(terminated.container_id.as_deref()).map(str::to_owned),
        code: terminated.exit_code,
        signal: terminated.signal,
        reason,
        message: terminated.message.clone(),
        started_ms: millis(terminated.started_at.as_ref()).unwrap_or(now_ms),
        finished_ms: millis(terminated.finished_at.as_ref()).unwrap_or(now_ms),
    }
}
