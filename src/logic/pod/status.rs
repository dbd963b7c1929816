//! What is told about a pod: Kubernetes' `PodStatus` out of the pod's machine.
//!
//! Owns: phase, conditions (in Kubernetes' order) and container statuses. Invariant: a condition's
//! `lastTransitionTime` changes only when its status does, so an unchanged pod yields an unchanged status.

use std::net::IpAddr;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    Container, ContainerPhase, Ended, Machine, Role, SandboxPhase, gates, init::container_named,
    machine::image_in, read_only, refusal::DISRUPTION,
};
use crate::model::Phase;

/// A point in time from milliseconds since the epoch, in whole seconds as Kubernetes writes them.
pub fn time(ms: i64) -> Time {
    Time(Timestamp::from_second(ms.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The pod's phase.
pub fn phase(machine: &Machine) -> Phase {
    if let Some(end) = machine.told_end {
        return end;
    }
    let policy_always =
        machine.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).is_none_or(|p| p == "Always");
    let alive = machine.containers.iter().any(Container::is_alive);
    if !alive && (machine.failed.is_some() || machine.init_failed()) {
        return Phase::Failed;
    }
    if !machine.is_initialized() {
        return if machine.is_removed() { Phase::Failed } else { Phase::Pending };
    }
    let (mut waiting_new, mut running, mut failed) = (false, false, false);
    for container in machine.main() {
        match &container.phase {
            ContainerPhase::Running { .. }
                if container.checks.in_post_start() && container.last.is_none() =>
            {
                waiting_new = true;
            }
            ContainerPhase::Running { .. } => running = true,
            ContainerPhase::Exited(ended) => failed |= ended.code != 0,
            ContainerPhase::Waiting { .. } | ContainerPhase::Starting { .. } => match &container.last {
                // It ran before and will again: the pod counts as running.
                Some(_) => running = true,
                None => waiting_new = true,
            },
        }
    }
    if waiting_new || machine.main().is_empty() {
        return if machine.is_ending() && !running && failed { Phase::Failed } else { Phase::Pending };
    }
    // Sidecars that are being ended belong to the pod until they have.
    if running || alive || (policy_always && !machine.is_ending()) {
        Phase::Running
    } else if failed {
        Phase::Failed
    } else {
        Phase::Succeeded
    }
}

/// The status to report. `before` is the last one reported (or the one in the pod's document).
pub fn pod_status(
    machine: &Machine,
    before: Option<&v1::PodStatus>,
    runtime: &str,
    host_ip: Option<IpAddr>,
    now_ms: i64,
) -> v1::PodStatus {
    let phase = phase(machine);
    let told = |list: &[Container]| -> Vec<v1::ContainerStatus> {
        list.iter().map(|c| container_status(machine, c, runtime)).collect()
    };
    let (statuses, init) = (told(machine.main()), told(machine.init()));
    let ephemeral = told(machine.ephemeral());
    let sidecars = init.iter().zip(machine.init()).filter(|(_, c)| c.role == Role::Sidecar).map(|(s, _)| s);
    let not_ready: Vec<&str> =
        sidecars.chain(&statuses).filter(|s| !s.ready).map(|s| s.name.as_str()).collect();
    let ready = Verdict::of(not_ready.is_empty(), phase, &not_ready);
    let sandbox_ready = matches!(machine.sandbox, SandboxPhase::Ready { .. });
    let generation = machine.generation();
    let condition = |name, verdict| condition(name, verdict, generation, before, now_ms);
    let mut conditions = vec![
        condition("PodReadyToStartContainers", Verdict::plain(sandbox_ready)),
        condition("Initialized", Verdict::initialized(machine, phase)),
        condition("Ready", ready.clone().and_gates(&machine.pod)),
        condition("ContainersReady", ready),
        condition("PodScheduled", Verdict::plain(true)),
    ];
    if let Some((reason, message)) = machine.pending.pending() {
        let pending =
            Verdict { reason: Some(reason), message: Some(message.to_owned()), ..Verdict::plain(true) };
        conditions.push(condition("PodResizePending", pending));
    }
    if let Some(fault) = machine.resize_in_progress() {
        let reason = fault.is_some().then_some("Error");
        let moving = Verdict { reason, message: fault, ..Verdict::plain(true) };
        let mut moving = condition("PodResizeInProgress", moving);
        moving.observed_generation = machine.sized_generation(before);
        conditions.push(moving);
    }
    if let Some(failed) = machine.failed.as_ref().filter(|failed| failed.disrupted) {
        let (name, reason) = DISRUPTION;
        let message = Some(failed.message.clone());
        let disrupted = Verdict { reason: Some(reason), message, ..Verdict::plain(true) };
        conditions.push(condition(name, disrupted));
    }
    // Nothing was ever made of a pod that the node refused, so there is nothing to tell of its containers.
    let refused = machine.is_refused();
    let said = machine.pod.status.as_ref().filter(|_| machine.told_end.is_some());
    let why = match &machine.failed {
        Some(failed) => (Some(failed.reason.to_owned()), Some(failed.message.clone())),
        None => said.map(|said| (said.reason.clone(), said.message.clone())).unwrap_or_default(),
    };
    let ip = machine.ip.map(|ip| ip.to_string());
    let host = host_ip.map(|ip| ip.to_string());
    v1::PodStatus {
        phase: Some(phase.as_str().to_owned()),
        observed_generation: generation,
        conditions: Some(conditions),
        reason: why.0,
        message: why.1,
        container_statuses: Some(statuses).filter(|_| !refused),
        ephemeral_container_statuses: Some(ephemeral).filter(|all| !refused && !all.is_empty()),
        init_container_statuses: Some(init).filter(|init| !refused && !init.is_empty()),
        host_ip: host.clone(),
        host_ips: host.map(|ip| vec![v1::HostIP { ip }]),
        pod_ip: ip.clone(),
        pod_ips: ip.map(|ip| vec![v1::PodIP { ip }]),
        start_time: before.and_then(|b| b.start_time.clone()).or_else(|| Some(time(machine.accepted_ms))),
        qos_class: before
            .and_then(|b| b.qos_class.clone())
            .or_else(|| machine.pod.status.as_ref().and_then(|s| s.qos_class.clone())),
        ..v1::PodStatus::default()
    }
}

/// Whether a pod's document tells of something else than its node last told. What others say beside it counts for nothing,
/// nor does what the master itself makes of it: when the pod became ready, and that one of a silent node is not.
pub fn says_otherwise(document: Option<&v1::PodStatus>, told: &v1::PodStatus) -> bool {
    let Some(document) = document else { return true };
    let is_ready = |c: &v1::PodCondition| c.type_ == "Ready";
    let ready = document.conditions.iter().flatten().any(|c| is_ready(c) && c.status == "True");
    let plain = |status: &v1::PodStatus| {
        let mut status = status.clone();
        let conditions = status.conditions.get_or_insert_default();
        conditions.retain(|c| !gates::is_foreign(&c.type_) && (ready || !is_ready(c)));
        conditions.iter_mut().filter(|c| is_ready(c)).for_each(|c| c.last_transition_time = None);
        keep_unspoken(&mut status, None);
        status
    };
    plain(document) != plain(told)
}

/// Keeps in a kubelet's report what it never speaks of.
pub fn keep_unspoken(status: &mut v1::PodStatus, before: Option<&v1::PodStatus>) {
    let before = before.cloned().unwrap_or_default();
    status.nominated_node_name = before.nominated_node_name;
    status.resize = before.resize;
    status.resource_claim_statuses = before.resource_claim_statuses;
}

/// A condition's status with its reason.
#[derive(Clone)]
struct Verdict {
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn plain(holds: bool) -> Verdict {
        Verdict { holds, reason: None, message: None }
    }

    fn initialized(machine: &Machine, phase: Phase) -> Verdict {
        if phase == Phase::Succeeded {
            return Verdict { reason: Some("PodCompleted"), ..Verdict::plain(true) };
        }
        if machine.is_initialized() {
            return Verdict::plain(true);
        }
        let names: Vec<&str> = machine.to_initialize().map(|c| c.name.as_str()).collect();
        Verdict {
            reason: Some("ContainersNotInitialized"),
            message: Some(format!("containers with incomplete status: [{}]", names.join(" "))),
            ..Verdict::plain(false)
        }
    }

    /// Containers that are ready make a ready pod when its gates are open.
    fn and_gates(self, pod: &v1::Pod) -> Verdict {
        match gates::closed(pod).filter(|_| self.holds) {
            Some(why) => Verdict { holds: false, reason: Some("ReadinessGatesNotReady"), message: Some(why) },
            None => self,
        }
    }

    fn of(holds: bool, phase: Phase, not_ready: &[&str]) -> Verdict {
        match phase {
            Phase::Succeeded => Verdict { holds: false, reason: Some("PodCompleted"), message: None },
            Phase::Failed => Verdict { holds: false, reason: Some("PodFailed"), message: None },
            _ if holds => Verdict::plain(true),
            _ => Verdict {
                holds: false,
                reason: Some("ContainersNotReady"),
                message: Some(format!("containers with unready status: [{}]", not_ready.join(" "))),
            },
        }
    }
}

fn condition(
    name: &str,
    verdict: Verdict,
    generation: Option<i64>,
    before: Option<&v1::PodStatus>,
    now_ms: i64,
) -> v1::PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let since = before
        .and_then(|b| b.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == name && c.status == status))
        .and_then(|c| c.last_transition_time.clone());
    v1::PodCondition {
        type_: name.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or_else(|| time(now_ms))),
        observed_generation: generation,
        ..v1::PodCondition::default()
    }
}

fn container_status(machine: &Machine, container: &Container, runtime: &str) -> v1::ContainerStatus {
    let terminated = |ended: &Ended| terminated(ended, runtime, message_bytes(machine));
    let asked = || image_in(&machine.pod, &container.name).to_owned();
    // A container is told to be what it last was until its next life begins, its count of restarts too.
    let between = matches!(container.phase, ContainerPhase::Waiting { .. } | ContainerPhase::Starting { .. });
    let restarts =
        container.attempt - u32::from(between && container.last.is_some() && container.attempt > 0);
    let image = if between || container.image.is_empty() { asked() } else { container.image.clone() };
    let waiting = |reason: &str, message: Option<String>| v1::ContainerState {
        waiting: Some(v1::ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..v1::ContainerState::default()
    };
    let mut last = container.last.as_ref();
    let checks = &container.checks;
    let running = matches!(container.phase, ContainerPhase::Running { .. }) && !checks.in_post_start();
    let done = matches!(&container.phase, ContainerPhase::Exited(ended) if ended.code == 0);
    // Nothing reaches it in a sandbox that has died.
    let reached = !matches!(machine.sandbox, SandboxPhase::Lost | SandboxPhase::Ending);
    let ready = if container.role == Role::Init { done } else { running && reached && checks.ready() };
    let (state, id) = match &container.phase {
        // As in Kubernetes: what it last was, until there is something to say of its next life.
        ContainerPhase::Waiting { why, .. } | ContainerPhase::Starting { why }
            if container.role != Role::Init && why.is_creating() && last.is_some() =>
        {
            let ended = last.take();
            let id = ended.and_then(|ended| ended.id.clone());
            (ended.map(terminated).unwrap_or_default(), id)
        }
        ContainerPhase::Waiting { why, .. } | ContainerPhase::Starting { why } => {
            (waiting(why.reason, why.message.clone()), container.last.as_ref().and_then(|l| l.id.clone()))
        }
        // As in Kubernetes, whose kubelet waits in the start for the hook.
        ContainerPhase::Running { id, .. } if checks.in_post_start() => {
            (waiting("ContainerCreating", None), Some(id.clone()))
        }
        ContainerPhase::Running { id, started_ms, .. } => (
            v1::ContainerState {
                running: Some(v1::ContainerStateRunning { started_at: Some(time(*started_ms)) }),
                ..v1::ContainerState::default()
            },
            Some(id.clone()),
        ),
        ContainerPhase::Exited(ended) => (terminated(ended), ended.id.clone()),
    };
    let given = machine.given(&container.name);
    let runs = matches!(container.phase, ContainerPhase::Running { .. });
    let has_any = |r: &v1::ResourceRequirements| r.limits.is_some() || r.requests.is_some();
    let mounts = container_named(&machine.pod, &container.name).and_then(|spec| spec.volume_mounts.clone());
    let mounts = mounts.map(|mounts| read_only::statuses(&mounts, machine.recursive_read_only));
    v1::ContainerStatus {
        volume_mounts: mounts.filter(|mounts| !mounts.is_empty()),
        allocated_resources: given.requests.filter(|_| container.role != Role::Ephemeral),
        resources: container.applied.clone().filter(|applied| runs && has_any(applied)),
        name: container.name.clone(),
        image,
        image_id: container.image_id.clone().unwrap_or_default(),
        stop_signal: stop_signal(machine, container).filter(|_| id.is_some()),
        container_id: id.map(|id| format!("{runtime}://{id}")),
        ready,
        started: Some(container.has_started()),
        restart_count: i32::try_from(restarts).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.map(terminated).unwrap_or_default()),
        ..v1::ContainerStatus::default()
    }
}

/// What the container says itself; what its image says only the runtime knows.
fn stop_signal(machine: &Machine, container: &Container) -> Option<String> {
    container_named(&machine.pod, &container.name)?.lifecycle.as_ref()?.stop_signal.clone()
}

/// Most bytes of each container's termination message: all of a pod's together have Kubernetes' 12 KiB.
fn message_bytes(machine: &Machine) -> usize {
    const OF_A_POD: usize = 12 * 1024;
    OF_A_POD / machine.containers.len().max(1)
}

fn terminated(ended: &Ended, runtime: &str, message_bytes: usize) -> v1::ContainerState {
    let at = |ms: i64| Some(time(ms)).filter(|_| ms != 0);
    let message =
        ended.message.as_ref().map(|text| text[..text.floor_char_boundary(message_bytes)].to_owned());
    v1::ContainerState {
        terminated: Some(v1::ContainerStateTerminated {
            container_id: ended.id.as_ref().map(|id| format!("{runtime}://{id}")),
            exit_code: ended.code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message,
            started_at: at(ended.started_ms),
            finished_at: at(ended.finished_ms),
        }),
        ..v1::ContainerState::default()
    }
}
