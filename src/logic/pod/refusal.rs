//! Pods that fail as a whole, whatever their containers do.
//!
//! Owns: `activeDeadlineSeconds`, what a node refuses to run (sysctls that are not a pod's own and safe, other systems), and
//! ends that others have said of a pod. Invariants: a pod that has failed this way starts nothing again, also under the
//! next kubelet, which reads the reason in its status; an end that was told is not undone, and what still runs has to end.

use k8s_openapi::api::core::v1;

use super::{Machine, machine::grace_of, state::Step};
use crate::model::Phase;

/// Why a pod failed as a whole, as its status says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFailure {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// The node needed what it used: a disruption that is no fault of the pod's.
    pub disrupted: bool,
}

impl PodFailure {
    fn new(reason: &'static str, message: String) -> PodFailure {
        PodFailure { reason, message, disrupted: false }
    }
}

/// The condition of a pod that was ended for others' sake, and its reason when a kubelet did so.
pub const DISRUPTION: (&str, &str) = ("DisruptionTarget", "TerminationByKubelet");

/// It ran for longer than it may.
pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
/// It, or its node, used up too much.
pub const EVICTED: &str = "Evicted";
/// An evicted pod has so many seconds to end at most.
const EVICTION_GRACE_SECONDS: i64 = 1;
/// It asks for a sysctl that it may not set.
const SYSCTL_FORBIDDEN: &str = "SysctlForbidden";

/// It is for machines of another kind.
const OS_NOT_SUPPORTED: &str = "PodOSNotSupported";

/// Sysctls that belong to a pod's namespaces and cannot hurt others: Kubernetes' safe ones.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why a node does not run this pod, in Kubernetes' words.
pub fn refusal(pod: &v1::Pod) -> Option<PodFailure> {
    let spec = pod.spec.as_ref()?;
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        let message = "Failed to admit pod as the OS field doesn't match node OS";
        return Some(PodFailure::new(OS_NOT_SUPPORTED, message.into()));
    }
    let sysctls = spec.security_context.as_ref()?.sysctls.as_ref()?;
    let message = sysctls.iter().find_map(|sysctl| {
        // Both separators are allowed: `net/ipv4/tcp_syncookies`.
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) {
            return Some(format!("forbidden sysctl: {:?} not allowlisted", sysctl.name));
        }
        let shared = |field: Option<bool>, prefix: &str| field == Some(true) && name.starts_with(prefix);
        if shared(spec.host_network, "net.") {
            return Some(format!("forbidden sysctl: {:?} not allowed with host net enabled", sysctl.name));
        }
        shared(spec.host_ipc, "kernel.shm")
            .then(|| format!("forbidden sysctl: {:?} not allowed with host ipc enabled", sysctl.name))
    })?;
    Some(PodFailure::new(SYSCTL_FORBIDDEN, message))
}

/// The failure that an earlier kubelet told of.
pub(super) fn told(pod: &v1::Pod) -> Option<PodFailure> {
    let status = pod.status.as_ref()?;
    let told = status.reason.as_deref()?;
    let known = [DEADLINE_EXCEEDED, EVICTED, SYSCTL_FORBIDDEN, OS_NOT_SUPPORTED];
    let reason = known.into_iter().find(|known| *known == told)?;
    let mut conditions = status.conditions.iter().flatten();
    let disrupted =
        conditions.any(|c| (c.type_.as_str(), c.reason.as_deref()) == (DISRUPTION.0, Some(DISRUPTION.1)));
    let message = status.message.clone().unwrap_or_default();
    Some(PodFailure { disrupted, ..PodFailure::new(reason, message) })
}

/// How a pod ended, if its status says that it did.
fn told_end(status: Option<&v1::PodStatus>) -> Option<Phase> {
    Some(Phase::parse(status?.phase.as_deref())).filter(|phase| phase.is_final())
}

/// Keeps in a pod's newer status the end that an earlier one told of, with its reason: it is not ready any more.
pub fn keep_end(status: &mut v1::PodStatus, before: Option<&v1::PodStatus>) {
    let (None, Some(_), Some(before)) = (told_end(Some(status)), told_end(before), before) else { return };
    status.phase.clone_from(&before.phase);
    status.reason.clone_from(&before.reason);
    status.message.clone_from(&before.message);
    let reason = if before.phase.as_deref() == Some("Failed") { "PodFailed" } else { "PodCompleted" };
    let ready = |c: &&mut v1::PodCondition| ["Ready", "ContainersReady"].contains(&c.type_.as_str());
    for condition in status.conditions.iter_mut().flatten().filter(ready).filter(|c| c.status == "True") {
        condition.status = "False".into();
        (condition.reason, condition.message) = (Some(reason.into()), None);
    }
}

impl Machine {
    /// Notes that the pod has ended, if its status says so.
    pub(super) fn note_end(&mut self) {
        self.told_end = self.told_end.or_else(|| told_end(self.pod.status.as_ref()));
    }

    /// Refuses the pod if the node does not run such ones, or fails it as an earlier kubelet did.
    pub(super) fn note_refusal(&mut self) {
        self.failed = told(&self.pod);
        if self.failed.is_some() {
            return;
        }
        if let Some(PodFailure { reason, message, .. }) = refusal(&self.pod) {
            self.notice(None, true, reason, message.clone());
            self.failed = Some(PodFailure::new(reason, format!("Pod was rejected: {message}")));
        }
    }

    /// Fails the pod because it, or its node (`disrupted`), used up too much.
    pub fn fail_evicted(&mut self, message: String, disrupted: bool) {
        if self.is_over() || self.ending.is_some() {
            return;
        }
        self.notice(None, true, EVICTED, message.clone());
        self.failed = Some(PodFailure { disrupted, ..PodFailure::new(EVICTED, message) });
    }

    /// Whether the node did not take it in the first place.
    pub(super) fn is_refused(&self) -> bool {
        self.failed.as_ref().is_some_and(|f| [SYSCTL_FORBIDDEN, OS_NOT_SUPPORTED].contains(&f.reason))
    }

    /// Whether it was made to go.
    pub fn is_evicted(&self) -> bool {
        self.failed.as_ref().is_some_and(|failure| failure.reason == EVICTED)
    }

    /// Seconds that its containers have once it has failed or is over.
    pub(super) fn last_grace(&self) -> i64 {
        let grace = grace_of(&self.pod);
        if self.is_evicted() { grace.min(EVICTION_GRACE_SECONDS) } else { grace }
    }

    /// Fails the pod when its time is up; else sees to it that this is looked at again.
    pub(super) fn check_deadline(&mut self, now_ms: i64, step: &mut Step) {
        let deadline = self.pod.spec.as_ref().and_then(|s| s.active_deadline_seconds);
        let Some(seconds) = deadline.filter(|_| self.ending.is_none() && !self.is_over()) else { return };
        // A clock that was set back makes it wait no longer than it would have from now on.
        self.began_ms = self.began_ms.min(self.told_began_ms()).min(now_ms);
        let at = step.wake_after(self.began_ms, seconds);
        if now_ms < at {
            return;
        }
        step.wake_at_ms = None;
        let message = "Pod was active on the node longer than the specified deadline";
        self.notice(None, false, DEADLINE_EXCEEDED, message.into());
        self.failed = Some(PodFailure::new(DEADLINE_EXCEEDED, message.into()));
    }

    /// When the pod began on its node, as was told: milliseconds since the epoch.
    fn told_began_ms(&self) -> i64 {
        let told = self.pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        told.map_or(self.accepted_ms, |time| time.0.as_millisecond())
    }
}
