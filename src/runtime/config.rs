//! What sandboxes and containers are to be like, in the vocabulary of Kubernetes' CRI.
//!
//! Owns: the configuration that the kubelet hands to a runtime. All decisions about it have been made: a runtime carries
//! it out or says why it cannot. Invariant: records of it are read back by later versions, so fields are only added,
//! with defaults.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{ContainerId, RuntimeError, logs::LogLimits};

/// Uids name files, and are not longer than their names may be with what belongs to them.
const MAX_UID: usize = 128;

/// Refuses a uid that leads elsewhere as the name of a directory, a cgroup or a link.
pub(super) fn check_uid(uid: &str) -> Result<(), RuntimeError> {
    let plain = uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if plain && !uid.is_empty() && uid.len() <= MAX_UID {
        return Ok(());
    }
    Err(RuntimeError::Config(format!("pod uid {uid:?}: must be 1 to {MAX_UID} letters, digits, '-' or '_'")))
}

/// What a sandbox is to be like.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxConfig {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid: names the sandbox.
    pub uid: String,
    /// The host name inside.
    pub hostname: String,
    /// What follows the host name in the pod's full name, `SUBDOMAIN.NAMESPACE.svc.cluster.local`; empty: it has none.
    pub domain: String,
    /// Name resolution; `None`: as on the node.
    pub dns: Option<Dns>,
    /// All containers see each other's processes; the first process of their namespace is the runtime's.
    pub share_pids: bool,
    /// Share the node's network instead of an address of its own.
    pub host_network: bool,
    /// Share the node's pids.
    pub host_pid: bool,
    /// Share the node's IPC.
    pub host_ipc: bool,
    /// Lines for `/etc/hosts` beyond the usual: address and names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// Thousandths of a core that all of the pod's containers together asked for: its share under contention.
    pub cpu_request_milli: i64,
    /// Limits for all of the pod's containers together; 0 = none.
    pub memory_limit_bytes: i64,
    /// Most processes and threads in the pod; 0 = the runtime's default.
    pub pids_limit: i64,
    /// Sysctls to set in the sandbox's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Its containers' users are these of the node; absent: the node's own.
    pub user_namespace: Option<IdRange>,
}

/// Numbers of users, and of groups alike: what is 0 in the pod is `first` on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What a pod's `/etc/resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, `ndots:5`.
    pub options: Vec<String>,
}

/// What a container is to be like. All expansion (`$(VAR)`, fieldRef…) is done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The container's name in its pod.
    pub name: String,
    /// How often it was started before: names the log file and tells lives apart.
    pub attempt: u32,
    /// The image's name.
    pub image: String,
    /// What its status is to say that it runs, see [`Image::reference`](super::Image::reference); empty: the image's id.
    #[serde(default)]
    pub image_ref: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty; when only `command` is given, the image's cmd is dropped.
    pub args: Vec<String>,
    /// Replaces the image's working directory when given.
    pub working_dir: Option<String>,
    /// Environment, later entries win over earlier ones and over the image's.
    pub env: Vec<(String, String)>,
    /// Files and directories from the node.
    pub mounts: Vec<Mount>,
    /// The log file to append to, in CRI format (`TIME stdout F LINE`); its directory exists.
    pub log_path: PathBuf,
    /// When that file is full, and how many there may be.
    #[serde(default)]
    pub log_limits: LogLimits,
    /// Limits.
    pub resources: ContainerResources,
    /// Huge pages, for each size that the node has.
    #[serde(default)]
    pub huge_pages: Vec<HugePageLimit>,
    /// How much sooner (up to 1000) or later (down to -1000) than by its size alone it is taken when the node runs out of
    /// memory. Later than the runtime itself is a privilege that some machines give nobody; then it is as the runtime.
    #[serde(default)]
    pub oom_score_adj: i32,
    /// Security settings.
    pub security: Security,
    /// Keep standard input open.
    pub stdin: bool,
    /// Its standard input ends with the first who attached to it.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    pub tty: bool,
    /// It sees this container's processes, and ends with it.
    #[serde(default)]
    pub join_pids: Option<ContainerId>,
    /// What it is asked to end with, `SIGUSR1`; absent: as its image says.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Where the program may leave its last words (`terminationMessagePath`): a file on the node that is mounted there.
    pub termination_message: Option<(PathBuf, String)>,
}

/// A bind mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Mount {
    /// On the node; exists.
    pub host_path: PathBuf,
    /// In the container, absolute.
    pub container_path: String,
    /// Cannot be written through it.
    pub read_only: bool,
    /// Nor can what is mounted below it; only with `read_only`, of a runtime that can do that
    /// ([`recursive_read_only`](super::ContainerRuntime::recursive_read_only)), and without propagation.
    #[serde(default)]
    pub recursive_read_only: bool,
    /// The directory that `host_path` must not leave by any symlink, when others may write below it.
    #[serde(default)]
    pub within: Option<PathBuf>,
    /// Which later mounts are seen on the other side.
    #[serde(default)]
    pub propagation: Propagation,
}

/// Which of the mounts that are made later below a mounted directory are seen on its other side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Those of the node, in the container.
    HostToContainer,
    /// Those, and the container's on the node.
    Bidirectional,
}

/// Limits of one container; 0 = none.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ContainerResources {
    /// Requested thousandths of a core: its share under contention; 0 = the least there is.
    pub cpu_request_milli: i64,
    /// Thousandths of a core at most.
    pub cpu_limit_milli: i64,
    /// Bytes at most; beyond it the container is killed (`OOMKilled`).
    pub memory_limit_bytes: i64,
}

/// How much of huge pages of one size a container may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HugePageLimit {
    /// Bytes of a page.
    pub page_bytes: i64,
    /// Bytes at most; 0 = none may be used.
    pub limit_bytes: i64,
}

/// Security settings of one container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Security {
    /// User id; the image's user when absent.
    pub user: Option<u32>,
    /// Group id.
    pub group: Option<u32>,
    /// More group ids.
    pub supplemental_groups: Vec<u32>,
    /// No group ids but those said here: what the image's `/etc/group` says of the user does not count.
    pub strict_groups: bool,
    /// Refuse to run as uid 0.
    pub run_as_non_root: bool,
    /// Capabilities beyond the default set, `NET_ADMIN`.
    pub add_capabilities: Vec<String>,
    /// Capabilities to take from the default set; `ALL` takes all.
    pub drop_capabilities: Vec<String>,
    /// Everything the node's root may.
    pub privileged: bool,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// Programs may gain privileges (setuid), within the container's capabilities and its system call filter.
    pub allow_privilege_escalation: bool,
    /// No system call filter.
    pub seccomp_unconfined: bool,
    /// The system call filter in this file on the node (the OCI's JSON) in place of the runtime's own.
    pub seccomp_profile: Option<PathBuf>,
    /// All of `/proc` and `/sys` is shown, nothing of it masked or read-only.
    pub unmasked_proc: bool,
}
