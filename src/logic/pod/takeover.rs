//! A fresh kubelet takes over a pod that an earlier one ran.
//!
//! Owns: [`Machine::adopt`], from what the runtime still has of the pod, and [`Machine::recall`], from what was told of
//! it when the runtime has nothing. Invariants: a running container is not disturbed; a restart is counted once.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::Time};

use super::{
    Machine,
    machine::lost,
    state::{Adopted, ContainerPhase, Ended, SandboxPhase},
};

impl Machine {
    /// Takes over what an earlier kubelet process left: the sandbox and each container's newest life.
    pub fn adopt(&mut self, ready: bool, ip: Option<IpAddr>, lives: &[Adopted]) {
        self.sandbox = if ready { SandboxPhase::Ready { ip } } else { SandboxPhase::Lost };
        self.ip = ip;
        let mut running_lost = Vec::new();
        for index in 0..self.containers.len() {
            let name = self.containers[index].name.clone();
            let mut mine: Vec<&Adopted> = lives.iter().filter(|l| l.name == name).collect();
            // A kubelet that died while it started one may have left two of one attempt: what runs is the one.
            mine.sort_by_key(|l| (l.attempt, l.ended.is_none() && l.started_ms != 0, l.ended.is_some()));
            let Some(newest) = mine.pop() else { continue };
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
                self.ended_before(index, lost(id, started_ms, started_ms));
            }
        }
        self.resume_init();
        // A stopped sandbox of a pod that had finished is not one that was lost.
        if !ready && self.is_finished() && !outlived {
            self.sandbox = SandboxPhase::Stopped;
        } else if !ready {
            self.begin_anew();
        }
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
        let Some(told) = self.pod.status.clone() else { return };
        let over = matches!(told.phase.as_deref(), Some("Succeeded" | "Failed"));
        let statuses = told.container_statuses.iter().chain(&told.init_container_statuses);
        let statuses = statuses.chain(&told.ephemeral_container_statuses).flatten();
        for status in statuses {
            let Some(index) = self.containers.iter().position(|c| c.name == status.name) else { continue };
            let Some(ended) = last_told(status, self.accepted_ms) else { continue };
            self.containers[index].attempt = u32::try_from(status.restart_count).unwrap_or(0);
            self.containers[index].image.clone_from(&status.image);
            self.containers[index].image_id = Some(status.image_id.clone());
            if over {
                self.containers[index].phase = ContainerPhase::Exited(ended);
            } else {
                self.ended_before(index, ended);
            }
        }
        self.resume_init();
        self.begin_anew();
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

/// The newest life that a container's status tells of, as one that is over; `None` when it never ran.
fn last_told(status: &v1::ContainerStatus, now_ms: i64) -> Option<Ended> {
    let bare = |id: &Option<String>| {
        id.as_ref().map(|id| id.split_once("://").map_or(id.as_str(), |(_, bare)| bare).to_owned())
    };
    let ms = |time: &Option<Time>| time.as_ref().map(|t| t.0.as_millisecond());
    let state = status.state.as_ref();
    if let Some(running) = state.and_then(|s| s.running.as_ref()) {
        return Some(Ended {
            id: bare(&status.container_id),
            code: 137,
            signal: None,
            reason: "ContainerStatusUnknown".into(),
            message: Some("The container could not be located on its node".into()),
            started_ms: ms(&running.started_at).unwrap_or(now_ms),
            finished_ms: now_ms,
        });
    }
    let terminated = state
        .and_then(|s| s.terminated.as_ref())
        .or_else(|| status.last_state.as_ref().and_then(|s| s.terminated.as_ref()))?;
    Some(Ended {
        id: bare(&terminated.container_id),
        code: terminated.exit_code,
        signal: terminated.signal,
        reason: terminated.reason.clone().unwrap_or_default(),
        message: terminated.message.clone(),
        started_ms: ms(&terminated.started_at).unwrap_or(now_ms),
        finished_ms: ms(&terminated.finished_at).unwrap_or(now_ms),
    })
}
