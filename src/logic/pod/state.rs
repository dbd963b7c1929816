//! The words of the pod state machine: phases, actions, failures.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1::ResourceRequirements;

use super::{checks::Checks, probe::ProbeKind};
use crate::logic::supervision::History;

/// Where a sandbox is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxPhase {
    /// Not made, or to be made again no earlier than this.
    Absent {
        /// Milliseconds since the epoch.
        not_before_ms: i64,
    },
    /// Being made.
    Starting,
    /// Containers can run in it.
    Ready {
        /// The pod's address; none with host network.
        ip: Option<IpAddr>,
    },
    /// Its containers ended for good; its resources are being given back.
    Stopping,
    /// Stopped; what is left serves logs until the pod is deleted.
    Stopped,
    /// It died under its containers: what runs is to be ended, then it is to be removed and made again.
    Lost,
    /// It died, and what ran in it is being ended.
    Ending,
    /// Being removed; `again` tells whether it is to be made again.
    Removing {
        /// Whether the pod goes on afterwards.
        again: bool,
    },
    /// Nothing of the pod is left on the node.
    Removed,
}

/// A container's life that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The runtime's id, if it came so far.
    pub id: Option<String>,
    /// The exit code.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`…
    pub reason: String,
    /// Its last words, or the runtime's error.
    pub message: Option<String>,
    /// Milliseconds since the epoch; 0 when it never began.
    pub started_ms: i64,
    /// Milliseconds since the epoch; 0 when it never began.
    pub finished_ms: i64,
}

/// Why a life ended of which nobody knows how.
pub const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// Why a container waits, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitingReason {
    /// `ContainerCreating`, `CrashLoopBackOff`, `ErrImagePull`…
    pub reason: &'static str,
    /// A sentence.
    pub message: Option<String>,
}

impl WaitingReason {
    /// Whether it only says that somebody is at it.
    pub fn is_creating(&self) -> bool {
        ["ContainerCreating", "PodInitializing"].contains(&self.reason) && self.message.is_none()
    }
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerPhase {
    /// To be started no earlier than this.
    Waiting {
        /// Milliseconds since the epoch.
        not_before_ms: i64,
        /// What users are told meanwhile.
        why: WaitingReason,
    },
    /// Being made and started.
    Starting {
        /// What users are told meanwhile.
        why: WaitingReason,
    },
    /// Its program runs.
    Running {
        /// The runtime's id.
        id: String,
        /// Milliseconds since the epoch.
        started_ms: i64,
        /// It was told to end within so many seconds.
        stopping: Option<i64>,
    },
    /// Ended, and not to be started again.
    Exited(Ended),
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of `containers`.
    Main,
    /// One of `initContainers` that runs to its end before the others begin.
    Init,
    /// One of `initContainers` that runs beside the others: `restartPolicy: Always`.
    Sidecar,
    /// One of `ephemeralContainers`: added to look into the pod, and nothing depends on it.
    Ephemeral,
}

/// One container of the pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// What it is to the pod.
    pub role: Role,
    /// How often it was started again: its present (or next) life's number.
    pub attempt: u32,
    /// Where it is.
    pub phase: ContainerPhase,
    /// The life before the present one.
    pub last: Option<Ended>,
    /// The image that its present (or last) life was started from; empty before the first.
    pub image: String,
    /// The image's digest, once known.
    pub image_id: Option<String>,
    /// Its image's unsuccessful attempts in a row: they back off on their own.
    pub(super) image_failures: u32,
    /// When a pull that failed is tried again; milliseconds since the epoch.
    pub(super) pull_again_ms: i64,
    /// It is being stopped because its definition changed: it starts again whatever its restart policy.
    pub(super) replacing: bool,
    /// Its preStop hook was begun before its turn to end had come.
    pub(super) pre_stopping: bool,
    /// The resources that its present life has; absent before its first.
    pub applied: Option<ResourceRequirements>,
    /// A change of them is under way.
    pub(super) resizing: bool,
    /// When a change that failed is tried again; milliseconds since the epoch.
    pub(super) resize_again_ms: i64,
    /// Why the last change failed.
    pub(super) resize_fault: Option<String>,
    /// What is asked of its present life.
    pub checks: Checks,
    pub(super) history: History,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the sandbox.
    RunSandbox,
    /// End what outlived the sandbox, and learn how each container ended.
    EndSandbox,
    /// Make and start this container (index into [`containers`](super::machine::Machine::containers)).
    Start(usize),
    /// Run this container's preStop hook, then end it, all within the grace.
    Stop {
        /// The container's index.
        index: usize,
        /// The runtime's id.
        id: String,
        /// SIGKILL after this.
        grace: Duration,
    },
    /// Run this container's preStop hook already; it is asked to end later.
    PreStop {
        /// The container's index.
        index: usize,
        /// The runtime's id.
        id: String,
        /// The hook gets no more time than this.
        grace: Duration,
    },
    /// Give this container, while it runs, what it is to have now.
    Resize {
        /// The container's index.
        index: usize,
        /// The runtime's id.
        id: String,
    },
    /// Run this container's postStart hook.
    PostStart {
        /// The container's index.
        index: usize,
        /// The runtime's id.
        id: String,
    },
    /// Run one of this container's probes.
    Probe {
        /// The container's index.
        index: usize,
        /// The runtime's id.
        id: String,
        /// Which.
        kind: ProbeKind,
    },
    /// Remove a life before the last one.
    Forget {
        /// The runtime's id.
        id: String,
    },
    /// Stop the sandbox, keeping ended containers.
    StopSandbox,
    /// Remove everything of the pod from the node.
    RemoveSandbox,
}

/// Something to record as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which container it is about, if one.
    pub container: Option<String>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// What one call of [`step`](super::machine::Machine::step) decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// To be carried out, each answered by one of the machine's methods.
    pub actions: Vec<Action>,
    /// To be recorded.
    pub notices: Vec<Notice>,
    /// When to step again if nothing happens before; milliseconds since the epoch.
    pub wake_at_ms: Option<i64>,
}

/// Why a container did not start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// Its image is not there and may not (`never`) or cannot be got.
    Image {
        /// `imagePullPolicy: Never`.
        never: bool,
        /// What the runtime or the registry says.
        message: String,
    },
    /// The image's name is none.
    InvalidImageName(String),
    /// Its configuration is refused (`CreateContainerConfigError`).
    Config(String),
    /// It cannot be made (`CreateContainerError`).
    Create(String),
    /// There is no sandbox to make it in, the runtime says.
    Sandbox(String),
    /// It was made, but its program cannot be started (`RunContainerError`).
    Run {
        /// The runtime's id.
        id: String,
        /// The runtime's error.
        message: String,
    },
}

/// A container's life found on the node after a restart of its kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// The container's name.
    pub name: String,
    /// The runtime's id.
    pub id: String,
    /// Which life.
    pub attempt: u32,
    /// The image's name as asked for.
    pub image: String,
    /// The image's digest.
    pub image_id: String,
    /// Milliseconds since the epoch; 0 when it never started.
    pub started_ms: i64,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
}
