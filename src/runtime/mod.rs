//! Container runtimes behind one trait, in the vocabulary of Kubernetes' CRI.
//!
//! Owns: the [`ContainerRuntime`] seam and its types. A runtime knows nothing of pods' policies: when to start, restart
//! or give up is the kubelet's. Invariants every runtime keeps (one conformance suite checks them): containers outlive
//! the process that drives the runtime and are found again by `list_*` after its restart; every operation that ends
//! something is idempotent; an exit is told by an event *and* stays readable by `list_containers` until removed.

mod block;
mod config;
pub mod cri;
pub mod disk;
pub mod docker;
mod exchange;
pub mod grpc;
mod hand;
mod hosts;
mod image;
pub mod images;
mod limits;
pub mod logs;
pub mod native;
mod netns;
mod refusals;
pub mod share;
mod signal;
pub mod sim;
mod stats;
mod within;

use std::{net::IpAddr, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::broadcast,
};

pub use self::{
    config::{
        ContainerConfig, ContainerResources, Dns, HugePageLimit, IdRange, Mount, Propagation, SandboxConfig,
        Security,
    },
    image::{IdleImage, Image, Origin, PullProgress, RegistryAuth},
    stats::{SandboxStats, Usage, devices},
};
use self::{
    disk::Storage,
    share::{PartSource, SharedImage},
};
use crate::model::Uid;

/// Bytes being read, of an image archive for instance.
pub type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// What drives containers on one machine. Methods may be called concurrently.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// `native`, `docker`, `containerd`, `sim`: as in `containerRuntimeVersion` and container ids (`native://…`).
    fn name(&self) -> &'static str;

    /// The runtime's own version.
    fn version(&self) -> String;

    /// Whether it is there to run pods. Asked every two seconds, so it costs little and looks at nothing. One that needs
    /// nobody else always is.
    async fn status(&self) -> Result<(), RuntimeError> {
        Ok(())
    }

    /// What this user's containers lack that those of root have, in words for the user.
    fn lacks(&self) -> Option<&'static str> {
        None
    }

    /// Whether pods can have users of their own: [`SandboxConfig::user_namespace`]. One that cannot give them refuses such
    /// a sandbox.
    fn user_namespaces(&self) -> bool {
        false
    }

    /// Whether it makes mounts read-only all the way down: [`Mount::recursive_read_only`].
    fn recursive_read_only(&self) -> bool {
        false
    }

    /// Tells the subnet from which pods on this node get their addresses (CIDR). Before the first sandbox, and again
    /// after each restart.
    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError>;

    /// Makes a pod's sandbox: its namespaces, its address, its cgroup. Repeating it for a uid whose sandbox is
    /// ready returns that one.
    async fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError>;

    /// Kills whatever still runs in the sandbox and gives back its address. Idempotent, also for unknown uids.
    async fn stop_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError>;

    /// Stops and forgets the sandbox with all its containers, mounts and files (not the log directory). Idempotent.
    async fn remove_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError>;

    /// Every sandbox not yet removed, also those made by an earlier process.
    async fn list_pod_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError>;

    /// Prepares a container in a ready sandbox; it does not run yet. Its image must be present.
    async fn create_container(&self, pod: &Uid, config: ContainerConfig)
    -> Result<ContainerId, RuntimeError>;

    /// Runs the container's program. When this returns `Ok`, its first instruction is about to run or has run.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// [`ContainerConfig::stop_signal`], else the image's, else SIGTERM, then SIGKILL after `grace`. Returns once the container is dead. Idempotent.
    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError>;

    /// Forgets an ended container and its root file system; kills it if it runs. Idempotent.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Runs a program in a running container and waits for its end, at most `timeout`; then it is killed. What it
    /// writes beyond [`EXEC_OUTPUT_BYTES`] a stream is dropped.
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let _ = (id, command, timeout);
        Err(RuntimeError::Unsupported(self.name(), "run programs in containers"))
    }

    /// Runs a program in a running container with streams to it. How it ended, and that it could not be started, is told
    /// by [`ExecStreams::end`]. Without an implementation its output comes when it has ended, more than
    /// [`EXEC_OUTPUT_BYTES`] of a stream is an error after what is kept, and nothing can be typed. Dropped before it has
    /// returned, it ends the program.
    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        if options.stdin {
            return Err(RuntimeError::Unsupported(self.name(), "feed programs in containers"));
        }
        if options.tty {
            return Err(RuntimeError::Unsupported(self.name(), "give programs in containers a terminal"));
        }
        Ok(self.exec_sync(id, command, LONGEST_EXEC).await?.into_streams(self.name()))
    }

    /// Streams to a running container's own program, beside its log: what it writes from now on, and its standard input
    /// if it was made with one. Several may be attached.
    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<ExecStreams, RuntimeError> {
        let _ = (id, options);
        Err(RuntimeError::Unsupported(self.name(), "attach to containers"))
    }

    /// A connection to a TCP port of a pod, as if from inside it (`127.0.0.1`).
    async fn port_forward(&self, pod: &Uid, port: u16) -> Result<Connection, RuntimeError> {
        let _ = (pod, port);
        Err(RuntimeError::Unsupported(self.name(), "forward ports of pods"))
    }

    /// Changes the limits of a container, also while it runs. Values that stay as they are cost nothing.
    async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let _ = (id, resources);
        Err(RuntimeError::Unsupported(self.name(), "change limits of containers"))
    }

    /// Changes what all containers of a pod have together: its share under contention, for so many thousandths of a core
    /// as they ask for. Where pods have no share of their own there is nothing to change.
    async fn update_pod_sandbox(&self, pod: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let _ = (pod, cpu_request_milli);
        Ok(())
    }

    /// What every sandbox and every running container in it uses right now.
    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        Err(RuntimeError::Unsupported(self.name(), "tell what containers use"))
    }

    /// Whether it keeps logs within [`ContainerConfig::log_limits`] by itself. For one that does not, the kubelet looks
    /// now and then, renames what is full and calls [`ContainerRuntime::reopen_log`].
    fn rotates_logs(&self) -> bool {
        false
    }

    /// Has a running container's log go on in a new file at its path, after the old one was renamed.
    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let _ = id;
        Err(RuntimeError::Unsupported(self.name(), "begin new logs"))
    }

    /// Whether pods' addresses can be reached from the node. Where they cannot be, since pods are simulated, nothing is
    /// asked over the network and all that would be counts as well.
    fn has_network(&self) -> bool {
        true
    }

    /// Waits until everything that an ended container wrote is in its log. Only a runtime that copies logs may be behind
    /// with that: then it tells the end all the same.
    async fn log_written(&self, id: &ContainerId) {
        let _ = id;
    }

    /// Every container not yet removed, also those started by an earlier process.
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;

    /// [`ContainerRuntime::list_containers`] of one pod: with many pods a fraction of the work, where the runtime can.
    async fn pod_containers(&self, pod: &Uid) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let mut all = self.list_containers().await?;
        all.retain(|container| container.pod == *pod);
        Ok(all)
    }

    /// What happens from now on. A receiver that lags must list again.
    fn events(&self) -> broadcast::Receiver<RuntimeEvent>;

    /// Where on this machine images are, and what containers write; `None`: beside everything else of the node, or not known.
    async fn storage(&self) -> Result<Option<Storage>, RuntimeError> {
        Ok(None)
    }

    /// Whether its containers see files of the node, so that volumes have to be made for them.
    fn has_files(&self) -> bool {
        true
    }

    /// The image of that name, if present. Names are normalised by the runtime (`busybox` = `docker.io/library/busybox:latest`).
    async fn image(&self, name: &str) -> Result<Option<Image>, RuntimeError>;

    /// Every image.
    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError>;

    /// Fetches an image from its registry, also when one of that name is here already. Pulls of one name at a time are
    /// one pull.
    async fn pull_image(&self, name: &str, auth: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        let _ = (name, auth);
        Err(RuntimeError::Unsupported(self.name(), "pull images from registries"))
    }

    /// How far the pull of an image is, if one is under way and the runtime can tell.
    fn pull_progress(&self, name: &str) -> Option<PullProgress> {
        let _ = name;
        None
    }

    /// Where an image came from that was found under that name. As long as a runtime does not pull, all were brought by
    /// hand.
    async fn image_origin(&self, name: &str, image: &Image) -> Result<Origin, RuntimeError> {
        let _ = (name, image);
        Ok(Origin::ByHand)
    }

    /// Images that came from a registry and that nothing uses: they may go when the disk fills up. A runtime that does
    /// not own its images names none.
    async fn idle_images(&self) -> Result<Vec<IdleImage>, RuntimeError> {
        Ok(Vec::new())
    }

    /// The images that other nodes may have from this one. A runtime that cannot give parts of them names none.
    async fn shared_images(&self) -> Result<Vec<SharedImage>, RuntimeError> {
        Ok(Vec::new())
    }

    /// One part of an image that other nodes may have, by its digest. The reader fails when something goes wrong on the way.
    async fn image_part(&self, image: &str, digest: &str) -> Result<Reader, RuntimeError> {
        let _ = (image, digest);
        Err(RuntimeError::Unsupported(self.name(), "give images to other nodes"))
    }

    /// Whether it can take images from other nodes.
    fn takes_images(&self) -> bool {
        false
    }

    /// Takes an image whose parts others give. Takes of one image at a time are one.
    async fn take_image(
        &self,
        offer: SharedImage,
        source: Arc<dyn PartSource>,
    ) -> Result<Image, RuntimeError> {
        let _ = (offer, source);
        Err(RuntimeError::Unsupported(self.name(), "take images from other nodes"))
    }

    /// Loads images from a tar (docker-archive or OCI layout, maybe gzip): returns the names loaded. `rename` names
    /// the only image in the archive.
    async fn load_image(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError>;

    /// Makes an image of one layer out of a root file system's tar.
    async fn import_image(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError>;

    /// Writes images as one tar: a docker-archive that is an OCI layout, too, where the runtime can (a docker engine before
    /// version 25 cannot). The reader fails when something goes wrong on the way.
    async fn save_images(&self, names: Vec<String>) -> Result<Reader, RuntimeError> {
        let _ = names;
        Err(RuntimeError::Unsupported(self.name(), "save images"))
    }

    /// Removes a name, and the image when that was its last.
    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError>;
}

/// A container's id: unique on its node, for ever.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ContainerId(pub String);

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sandbox as found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// The pod's uid.
    pub uid: Uid,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Containers can be made and run in it. A sandbox whose shim or namespaces died is not ready.
    pub ready: bool,
    /// The pod's address; `None` with host network.
    pub ip: Option<IpAddr>,
    /// Milliseconds since the epoch.
    pub created_ms: i64,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its program runs.
    Running,
    /// Its program ended.
    Exited(Exit),
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// The memory limit ended it.
    pub oom_killed: bool,
    /// Milliseconds since the epoch. A process that finds an end may read it some milliseconds off from what an earlier one
    /// was told.
    pub finished_ms: i64,
    /// Nobody saw it end: it was found dead at that time, and how it ended is a guess.
    #[serde(default)]
    pub unseen: bool,
}

/// A container as found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// The pod's uid.
    pub pod: Uid,
    /// Its name in the pod.
    pub name: String,
    /// See [`ContainerConfig::attempt`].
    pub attempt: u32,
    /// The image's name as asked for.
    pub image: String,
    /// What the image goes by, see [`ContainerConfig::image_ref`].
    pub image_id: String,
    /// Where it is.
    pub state: ContainerState,
    /// Milliseconds since the epoch; 0 before it started.
    pub started_ms: i64,
    /// The pid of its first process on the node, while it runs.
    pub pid: Option<i32>,
}

/// How a program run by [`ContainerRuntime::exec_sync`] ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// It was killed because its time was up.
    pub timed_out: bool,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl ExecOutput {
    /// As the streams of a program that has ended. What may have been cut is not taken for the whole.
    fn into_streams(self, runtime: &str) -> ExecStreams {
        let cut = [&self.stdout, &self.stderr].iter().any(|kept| kept.len() >= EXEC_OUTPUT_BYTES);
        let end = if cut {
            let (code, most) = (self.code, EXEC_OUTPUT_BYTES / 1024);
            Err(RuntimeError::Cut(format!(
                "output was cut at {most} KiB: the {runtime} runtime shows a program's output when it has ended, and no \
                 more of it; print less (head -c, tail -c), or write it to a volume (the program ended with exit code \
                 {code})"
            )))
        } else {
            Ok(self.code)
        };
        ExecStreams {
            stdin: None,
            stdout: Box::pin(std::io::Cursor::new(self.stdout)),
            stderr: Box::pin(std::io::Cursor::new(self.stderr)),
            resize: None,
            end: Box::pin(std::future::ready(end)),
        }
    }
}

/// Which streams a caller wants besides a program's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamOptions {
    /// Something may be typed.
    pub stdin: bool,
    /// A terminal: everything the program writes comes as its standard output.
    pub tty: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A connection into a pod.
pub type Connection = Pin<Box<dyn Duplex>>;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A program that [`ContainerRuntime::exec`] runs. Dropping its streams does not end it.
pub struct ExecStreams {
    /// Its standard input, when asked for; dropping it is its end.
    pub stdin: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// Its standard output.
    pub stdout: Reader,
    /// Its standard error; empty with a terminal.
    pub stderr: Reader,
    /// Takes the terminal's new sizes, newest wins; `None` without a terminal.
    pub resize: Option<tokio::sync::watch::Sender<TerminalSize>>,
    /// Its exit code.
    pub end: Pin<Box<dyn Future<Output = Result<i32, RuntimeError>> + Send>>,
}

/// A program that nobody limits.
pub const LONGEST_EXEC: Duration = Duration::from_secs(365 * 24 * 3600);

/// As much of each stream is kept of what a program run by `exec_sync` writes.
pub const EXEC_OUTPUT_BYTES: usize = 64 * 1024;

/// What a runtime saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's program ended.
    Exited {
        /// The pod.
        pod: Uid,
        /// The container.
        id: ContainerId,
        /// How.
        exit: Exit,
    },
    /// A sandbox died under its containers (its shim was killed, its namespaces are gone). It is told before the ends of those
    /// that die of it, where a runtime can tell which came first.
    SandboxLost {
        /// The pod.
        pod: Uid,
    },
}

/// Why a runtime could not do something. The texts end in pods' statuses and events.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RuntimeError {
    /// The image is not here.
    #[error("image {0:?} not found")]
    ImageNotFound(String),
    /// The name is no image name.
    #[error("invalid image name {0:?}: {1}")]
    InvalidImageName(String, String),
    /// The image was not got from its registry: `ErrImagePull`.
    #[error("{0}")]
    Pull(String),
    /// An image archive is not what it should be.
    #[error("image archive: {0}")]
    BadImage(String),
    /// The program cannot be started (not found, not executable…): `RunContainerError`.
    #[error("failed to start: {0}")]
    Start(String),
    /// The container cannot be made as configured: `CreateContainerError`.
    #[error("failed to create: {0}")]
    Create(String),
    /// The configuration asks for what is not allowed or known: `CreateContainerConfigError`.
    #[error("{0}")]
    Config(String),
    /// No such sandbox or container.
    #[error("{0} not found")]
    NotFound(String),
    /// The pod's sandbox does not run any more, or not yet: nothing is wrong with the container.
    #[error("the sandbox of pod {0} is not ready")]
    SandboxNotReady(Uid),
    /// The machine refuses (disk full, no privileges…).
    #[error("{operation}: {cause}")]
    System {
        /// What was tried, on what.
        operation: String,
        /// The system's answer.
        cause: String,
    },
    /// A program has run, but not all that it wrote can be told.
    #[error("{0}")]
    Cut(String),
    /// This runtime cannot do that.
    #[error("the {0} runtime cannot {1}")]
    Unsupported(&'static str, &'static str),
}
