//! What every pod of a node shares: the runtime, the directories, the node's name and address.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::available_parallelism,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{configs::Configs, ledger::Ledger, machine, peers::Peers};
use crate::{
    logic::{
        eviction::Thresholds,
        pod::config::{Around, Places},
        supervision::Backoff,
    },
    net::relay,
    runtime::{ContainerRuntime, disk::Storage, logs::LogLimits},
};

/// The machine's address, which may change while the node runs.
#[derive(Debug, Default)]
pub struct HostIp(RwLock<Option<IpAddr>>);

impl HostIp {
    /// That one, at first.
    pub fn of(address: IpAddr) -> HostIp {
        HostIp(RwLock::new(Some(address)))
    }

    /// What it is now; `None` where no node has said so.
    pub fn now(&self) -> Option<IpAddr> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, address: IpAddr) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(address);
    }
}

/// The part of a node that its pods see.
pub struct NodeContext {
    /// The node's name.
    pub name: String,
    /// What drives the containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Holds `pods/UID` and `logs/NAMESPACE_NAME_UID`.
    pub dir: PathBuf,
    /// The node's address.
    pub host_ip: HostIp,
    /// CrashLoopBackOff.
    pub crash_loop: Backoff,
    /// Turns to start something.
    pub starts: Starts,
    /// What its pods were given.
    pub ledger: Ledger,
    /// The config maps and secrets that its pods refer to.
    pub configs: Configs,
    /// The node's own credentials for registries: a file in the form of Docker's `config.json`.
    pub registry_config: Option<PathBuf>,
    /// Its way to the images of other nodes.
    pub peers: Peers,
    /// The machine, where its pods' ports are.
    pub host: relay::Host,
    /// Its limits.
    pub settings: KubeletSettings,
    /// Held while its rotated logs are packed: once at a time, also over the lives of its kubelet.
    pub packing: Mutex<()>,
    /// Where its runtime says that images and containers' files are; empty: beside everything else, as far as is known.
    pub storage: ArcSwapOption<Storage>,
}

/// What Kubernetes' `KubeletConfiguration` says of the limits of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletSettings {
    /// `containerLogMaxSize` and `containerLogMaxFiles`.
    pub container_log: LogLimits,
    /// `evictionHard`: what is to be left of memory and disk.
    pub eviction_hard: Thresholds,
    /// `evictionPressureTransitionPeriod`: Kubernetes' when absent.
    pub eviction_transition: Option<Duration>,
    /// The node gives no images to others, and takes none from them.
    pub no_image_sharing: bool,
}

/// How much a node starts at once. A start keeps a core busy, so a hundred at once would all be slow, and with them the
/// actors that share the machine. Sandboxes and containers take turns apart: one stage does not starve the other.
pub struct Starts {
    sandboxes: Semaphore,
    containers: Semaphore,
}

impl Default for Starts {
    /// Two a core: while one waits for the kernel another goes on. Never so few that some that hang hold up the rest.
    fn default() -> Starts {
        const LEAST: usize = 4;
        let turns = available_parallelism().map_or(LEAST, |cores| (cores.get() * 2).max(LEAST));
        Starts { sandboxes: Semaphore::new(turns), containers: Semaphore::new(turns) }
    }
}

impl Starts {
    /// Waits for the turn to start a sandbox; first come, first served. The turn ends with the permit.
    pub async fn sandbox(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody ever closes it.
        self.sandboxes.acquire().await.ok()
    }

    /// The same for a container.
    pub async fn container(&self) -> Option<SemaphorePermit<'_>> {
        self.containers.acquire().await.ok()
    }
}

impl NodeContext {
    /// Where the things of one pod are.
    pub fn places(&self, namespace: &str, name: &str, uid: &str) -> Places {
        Places {
            pod_dir: self.dir.join("pods").join(uid),
            log_dir: self.dir.join("logs").join(format!("{namespace}_{name}_{uid}")),
        }
    }

    /// Where profiles lie that pods name by `seccompProfile.localhostProfile`.
    pub fn seccomp_profiles(&self) -> PathBuf {
        self.dir.join("seccomp")
    }

    /// What a pod may ask about its surroundings.
    pub fn around(&self, pod_ip: Option<IpAddr>) -> Around {
        Around {
            node: self.name.clone(),
            host_ip: self.host_ip.now(),
            pod_ip,
            allocatable: machine::allocatable(&self.dir),
            sources: self.configs.now(),
            recursive_read_only: self.runtime.recursive_read_only(),
        }
    }
}

/// Milliseconds since the epoch. The one place where a kubelet reads the wall clock.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
