//! The cells of a pod's row: how many containers are ready, what state the pod is in, how often it was restarted.
//!
//! Owns: the one word that sums up a pod, drawn from its phase, its containers' states and its deletion, as
//! Kubernetes' printer draws it. Name and age are added by [`crate::model::table`].

use k8s_openapi::{
    api::core::v1::{Container, ContainerStatus, Pod, PodSpec, PodStatus},
    jiff::Timestamp,
};
use serde_json::Value;

use super::table::{NONE, since};

/// What the containers add up to.
#[derive(Default)]
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn count_restarts(&mut self, status: &ContainerStatus) {
        self.restarts = self.restarts.saturating_add(status.restart_count);
        let ended = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
        self.last_restart = self.last_restart.max(ended.and_then(|t| t.finished_at.as_ref()).map(|t| t.0));
    }
}

/// The cells between name and age, and after age.
pub(crate) fn cells(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let (no_spec, no_status) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status = pod.status.as_ref().unwrap_or(&no_status);
    let summary = summary(pod, spec, status);
    // By its machine's clock: what is after now, or before there was a pod, says nothing by ours.
    let made = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |made| made.0);
    let in_life = |last: &Timestamp| *last >= made && last.as_second() <= now.as_second() + 1;
    let restarts = match summary.last_restart.filter(|last| summary.restarts != 0 && in_life(last)) {
        Some(last) => format!("{} ({} ago)", summary.restarts, since(Some(last), now)),
        None => summary.restarts.to_string(),
    };
    let ip = status.pod_ips.iter().flatten().next().map(|ip| ip.ip.as_str()).or(status.pod_ip.as_deref());
    let shown = |text: Option<&str>| text.filter(|t| !t.is_empty()).unwrap_or(NONE).to_owned();
    vec![
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        shown(ip).into(),
        shown(spec.node_name.as_deref()).into(),
        shown(status.nominated_node_name.as_deref()).into(),
        gates(spec, status).into(),
    ]
}

fn summary(pod: &Pod, spec: &PodSpec, status: &PodStatus) -> Summary {
    let phase = status.phase.as_deref().unwrap_or_default();
    let explained = status.reason.as_deref().filter(|r| !r.is_empty());
    let mut sum = Summary {
        total: spec.containers.len(),
        reason: explained.unwrap_or(phase).to_owned(),
        ..Summary::default()
    };
    let gated = |c: &k8s_openapi::api::core::v1::PodCondition| {
        c.type_ == "PodScheduled" && c.reason.as_deref() == Some("SchedulingGated")
    };
    if status.conditions.iter().flatten().any(gated) {
        sum.reason = "SchedulingGated".to_owned();
    }
    let sidecars = initialize(&mut sum, spec, status);
    if let Some(sidecars) = sidecars {
        sum.restarts = sidecars.restarts;
        sum.last_restart = sidecars.last_restart;
        run(&mut sum, status);
    }
    if pod.metadata.deletion_timestamp.is_some() {
        if explained == Some("NodeLost") {
            sum.reason = "Unknown".to_owned();
        } else if phase != "Succeeded" && phase != "Failed" {
            sum.reason = "Terminating".to_owned();
        }
    }
    sum
}

/// Goes through the init containers; gives the sidecars' restarts when the pod is past its initialisation.
fn initialize(sum: &mut Summary, spec: &PodSpec, status: &PodStatus) -> Option<Summary> {
    let inits: Vec<&Container> = spec.init_containers.iter().flatten().collect();
    let sidecar =
        |name: &str| inits.iter().any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"));
    sum.total += inits.iter().filter(|c| c.restart_policy.as_deref() == Some("Always")).count();
    let mut sidecars = Summary::default();
    let mut initializing = false;
    for (index, container) in status.init_container_statuses.iter().flatten().enumerate() {
        sum.count_restarts(container);
        let is_sidecar = sidecar(&container.name);
        if is_sidecar {
            sidecars.count_restarts(container);
        }
        let state = container.state.clone().unwrap_or_default();
        if state.terminated.as_ref().is_some_and(|t| t.exit_code == 0) {
            continue;
        }
        if is_sidecar && container.started == Some(true) {
            sum.ready += usize::from(container.ready);
            continue;
        }
        let waiting =
            state.waiting.and_then(|w| w.reason).filter(|r| !r.is_empty() && r != "PodInitializing");
        sum.reason = match (state.terminated, waiting) {
            (Some(ended), _) => format!("Init:{}", ending(&ended)),
            (None, Some(reason)) => format!("Init:{reason}"),
            (None, None) => format!("Init:{index}/{}", inits.len()),
        };
        initializing = true;
        break;
    }
    (!initializing || holds(status, "Initialized")).then_some(sidecars)
}

/// Goes through the main containers.
fn run(sum: &mut Summary, status: &PodStatus) {
    let mut running = false;
    for container in status.container_statuses.iter().flatten().rev() {
        sum.count_restarts(container);
        let state = container.state.clone().unwrap_or_default();
        let waiting = state.waiting.and_then(|w| w.reason).filter(|r| !r.is_empty());
        if let Some(reason) = waiting {
            sum.reason = reason;
        } else if let Some(ended) = state.terminated {
            sum.reason = ending(&ended);
        } else if container.ready && state.running.is_some() {
            running = true;
            sum.ready += 1;
        }
    }
    // One container is done, another still runs.
    if sum.reason == "Completed" && running {
        sum.reason = if holds(status, "Ready") { "Running" } else { "NotReady" }.to_owned();
    }
}

fn ending(ended: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> String {
    match (ended.reason.as_deref().unwrap_or_default(), ended.signal.unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended.exit_code),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn holds(status: &PodStatus, condition: &str) -> bool {
    status.conditions.iter().flatten().any(|c| c.type_ == condition && c.status == "True")
}

fn gates(spec: &PodSpec, status: &PodStatus) -> String {
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    if gates.is_empty() {
        return NONE.to_owned();
    }
    let open = gates.iter().filter(|g| holds(status, &g.condition_type)).count();
    format!("{open}/{}", gates.len())
}
