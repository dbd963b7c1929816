//! The driver: carries out what the trait asks, on a thread and a tokio runtime of its own.
//!
//! Owns: the table of sandboxes, their addresses, the bridge; life cycles of sandboxes. Invariants: changes to one
//! sandbox happen one at a time (a lock a uid), different ones at once; what is slow runs on blocking threads; no
//! thread here ever changes its namespaces.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast, oneshot};

use super::{
    NativeConfig,
    cgroup::Hierarchies,
    ipam::{Ipam, Subnet},
    launch::{self, Launcher},
    mounts,
    netlink::{self, LinkIndex, Netlink},
    pod::Pod,
    protocol::{Reply, Request},
    state::{self, PodNetwork, SandboxDir, SandboxRecord, system},
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, RuntimeError, RuntimeEvent, SandboxConfig, SandboxStatus, config::check_uid, disk,
    },
};

/// A receiver that is further behind has to list again anyway.
const EVENTS: usize = 1024;

pub(super) struct Driver {
    pub config: NativeConfig,
    pub hierarchies: Hierarchies,
    pub events: broadcast::Sender<RuntimeEvent>,
    tables: Mutex<Tables>,
    launcher: Launcher,
    /// Held while the sandboxes' directory is mounted.
    memory: Mutex<()>,
}

#[derive(Default)]
struct Tables {
    pods: HashMap<Uid, Arc<Pod>>,
    /// Which pod a container is in.
    owners: HashMap<ContainerId, Uid>,
    /// Held while a sandbox changes.
    locks: HashMap<Uid, Arc<AsyncMutex<()>>>,
    ipam: Ipam,
}

impl Driver {
    pub(super) fn new(config: NativeConfig) -> Driver {
        Driver {
            config,
            hierarchies: Hierarchies::detect(),
            events: broadcast::channel(EVENTS).0,
            tables: Mutex::default(),
            launcher: Launcher::default(),
            memory: Mutex::default(),
        }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        // Each change is one call on one map, so a panic elsewhere leaves nothing half done.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds what an earlier process left.
    pub(super) async fn adopt(self: &Arc<Driver>) -> io::Result<()> {
        let dir = state::sandboxes(&self.config.root);
        fs::create_dir_all(&dir)?;
        disk::make_apart(&state::writable(&self.config.root))?;
        let mut found = tokio::task::JoinSet::new();
        for entry in fs::read_dir(dir)? {
            let (driver, dir) = (Arc::clone(self), SandboxDir(entry?.path()));
            found.spawn(async move { driver.adopt_one(dir).await });
        }
        found.join_all().await;
        self.remove_forgotten();
        Ok(())
    }

    /// Removes what containers wrote whose sandboxes are gone from memory: the machine was started anew.
    fn remove_forgotten(&self) {
        let found = fs::read_dir(state::writable(&self.config.root)).into_iter().flatten().flatten();
        for entry in found {
            let uid = Uid::from(entry.file_name().to_string_lossy().as_ref());
            if self.pod(&uid).is_some() {
                continue;
            }
            for container in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let id = container.file_name();
                if let Err(error) = self.config.images.unpin(&id.to_string_lossy()) {
                    tracing::warn!(pod = %uid, %error, "an image stays pinned by a container of the past");
                }
            }
            if let Err(error) = state::remove_tree(&entry.path()) {
                tracing::warn!(pod = %uid, %error, "what a pod of the past wrote cannot be removed");
            }
        }
    }

    async fn adopt_one(&self, dir: SandboxDir) {
        let Ok(record) = state::read::<SandboxRecord>(&dir.record()) else {
            // The record is written before anything is started, so nothing was.
            tracing::warn!(dir = %dir.0.display(), "a sandbox that was never begun is removed");
            let _ = dir.remove();
            return;
        };
        let pod = Pod::new(dir, record, self.events.clone());
        // First the connection, then the files: an exit in between is heard of twice rather than never.
        if let Ok(stream) = launch::connect(&pod.dir) {
            let alive = match pod.attach(stream) {
                Ok(client) => match client.call(Request::Hello).await {
                    Ok(Reply::Ready { pid, execs }) => {
                        pod.set_shim(pid, None, execs);
                        true
                    }
                    _ => false,
                },
                Err(_) => false,
            };
            if !alive {
                pod.detach();
            }
        }
        let mut owned = Vec::new();
        for entry in fs::read_dir(pod.dir.containers()).into_iter().flatten().flatten() {
            let dir = state::ContainerDir(entry.path());
            match pod.adopt(&dir) {
                Ok(id) => owned.push(id),
                // As above: it was never made, but its image may have been pinned.
                Err(_) => {
                    let id = entry.file_name();
                    if let Err(error) = self.config.images.unpin(&id.to_string_lossy()) {
                        tracing::warn!(pod = %pod.uid, %error, "an image stays pinned by a container never made");
                    }
                    let _ = dir.remove();
                }
            }
        }
        let mut tables = self.tables();
        if let Some(network) = pod.record.network.as_ref().filter(|_| pod.ready()) {
            tables.ipam.adopt(network.address);
        }
        tables.owners.extend(owned.into_iter().map(|id| (id, pod.uid.clone())));
        tables.pods.insert(pod.uid.clone(), pod);
    }

    pub(super) fn pod(&self, uid: &Uid) -> Option<Arc<Pod>> {
        self.tables().pods.get(uid).cloned()
    }

    /// The network namespace of a pod as a file; `None`: the node's.
    pub(super) fn network_namespace(&self, pod: &Uid) -> Result<Option<PathBuf>, RuntimeError> {
        let found = self.pod(pod);
        found.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?.network_namespace()
    }

    pub(super) fn pods(&self) -> Vec<Arc<Pod>> {
        self.tables().pods.values().cloned().collect()
    }

    /// The pod a container is in.
    pub(super) fn owner(&self, id: &ContainerId) -> Option<Arc<Pod>> {
        let tables = self.tables();
        tables.pods.get(tables.owners.get(id)?).cloned()
    }

    pub(super) fn own(&self, id: &ContainerId, pod: &Uid) {
        self.tables().owners.insert(id.clone(), pod.clone());
    }

    pub(super) fn disown(&self, id: &ContainerId) {
        self.tables().owners.remove(id);
    }

    /// Waits for the turn to change a sandbox.
    async fn lock(&self, uid: &Uid) -> OwnedMutexGuard<()> {
        let lock = Arc::clone(self.tables().locks.entry(uid.clone()).or_default());
        lock.lock_owned().await
    }

    /// Gives the turn back and forgets the lock when nobody waits for it.
    fn unlock(&self, uid: &Uid, guard: OwnedMutexGuard<()>) {
        drop(guard);
        let mut tables = self.tables();
        if tables.locks.get(uid).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            tables.locks.remove(uid);
        }
    }

    pub(super) async fn set_pod_cidr(self: &Arc<Driver>, cidr: String) -> Result<(), RuntimeError> {
        let subnet = Subnet::parse(&cidr)
            .map_err(|why| RuntimeError::Config(format!("pod subnet {cidr:?}: {why}")))?;
        let driver = Arc::clone(self);
        blocking(move || driver.set_up_bridge(&cidr, subnet)).await?;
        self.tables().ipam.set_subnet(subnet);
        Ok(())
    }

    fn set_up_bridge(&self, cidr: &str, subnet: Subnet) -> Result<(), RuntimeError> {
        let bridge = &self.config.bridge;
        let fault = || system(format!("set up bridge {bridge}"));
        let mut netlink = Netlink::open().map_err(fault())?;
        let memory = self.config.root.join("pod-cidr");
        let earlier = fs::read_to_string(&memory).ok().filter(|earlier| earlier != cidr);
        if let Some(earlier) = earlier.and_then(|text| Subnet::parse(&text).ok()) {
            netlink.remove_address(bridge, earlier.gateway(), earlier.prefix()).map_err(fault())?;
        }
        netlink.ensure_bridge(bridge, subnet.gateway(), subnet.prefix(), self.mtu()).map_err(fault())?;
        fs::write(&memory, cidr).map_err(fault())?;
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        if fs::read_to_string(forward).is_ok_and(|value| value.trim() == "0") {
            fs::write(forward, "1").map_err(system("let the node forward packets (net.ipv4.ip_forward)"))?;
        }
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.config.mtu.unwrap_or_else(netlink::default_mtu)
    }

    pub(super) async fn run_sandbox(
        self: &Arc<Driver>,
        config: SandboxConfig,
    ) -> Result<SandboxStatus, RuntimeError> {
        check_uid(&config.uid)?;
        let uid = Uid::from(config.uid.as_str());
        let guard = self.lock(&uid).await;
        let result = self.run_sandbox_locked(&uid, config).await;
        self.unlock(&uid, guard);
        result
    }

    async fn run_sandbox_locked(
        self: &Arc<Driver>,
        uid: &Uid,
        config: SandboxConfig,
    ) -> Result<SandboxStatus, RuntimeError> {
        if let Some(pod) = self.pod(uid) {
            if pod.ready() {
                return Ok(pod.status());
            }
            self.remove_sandbox_locked(uid).await?;
        }
        let network = if config.host_network { None } else { Some(self.network(&config.uid)?) };
        let record = SandboxRecord {
            cgroup: Path::new("/").join(&self.config.cgroup_parent).join(&config.uid),
            network,
            created_ms: state::now_ms(),
            config,
        };
        let dir = SandboxDir::new(&self.config.root, uid.as_str());
        let pod = Pod::new(dir, record, self.events.clone());
        match self.begin(&pod).await {
            Ok(()) => {
                self.tables().pods.insert(uid.clone(), Arc::clone(&pod));
                Ok(pod.status())
            }
            Err(error) => {
                let cleared = match self.stop_locked(&pod).await {
                    Ok(()) => self.clear(&pod).await,
                    stuck => stuck,
                };
                if let Err(left) = cleared {
                    tracing::warn!(pod = %uid, error = %left, "a failed sandbox leaves something");
                }
                Err(error)
            }
        }
    }

    /// An address and names for a pod.
    fn network(&self, uid: &str) -> Result<PodNetwork, RuntimeError> {
        let mut tables = self.tables();
        let refuse = |cause: &str| RuntimeError::System {
            operation: "give the pod an address".to_owned(),
            cause: cause.to_owned(),
        };
        let subnet = tables.ipam.subnet().ok_or_else(|| refuse("the node has no pod subnet yet"))?;
        let address = tables.ipam.allocate().ok_or_else(|| refuse("the node's pod subnet has none left"))?;
        // Unique on the machine, also among runtimes with other roots; link names have 15 bytes at most.
        let digest = Sha256::new()
            .chain_update(self.config.root.as_os_str().as_encoded_bytes())
            .chain_update(uid)
            .finalize();
        let veth = digest[..6].iter().fold("tv".to_owned(), |name, byte| name + &format!("{byte:02x}"));
        Ok(PodNetwork {
            address,
            prefix: subnet.prefix(),
            gateway: subnet.gateway(),
            bridge: self.config.bridge.clone(),
            veth,
            mtu: self.mtu(),
        })
    }

    fn release(&self, pod: &Pod) {
        if let Some(network) = &pod.record.network {
            self.tables().ipam.release(network.address);
        }
    }

    /// Starts the shim and waits until its sandbox is ready.
    async fn begin(self: &Arc<Driver>, pod: &Arc<Pod>) -> Result<(), RuntimeError> {
        let first = ContainerId(new_id());
        let made = self.make_first_cgroup(pod, &first);
        let (driver, begun) = (Arc::clone(self), Arc::clone(pod));
        let launched = blocking(move || {
            let fault = || system(format!("start the shim of pod {}", begun.uid));
            driver.keep_in_memory();
            state::make_mount_points(&driver.config.root).map_err(fault())?;
            begun.dir.remove().map_err(fault())?;
            fs::create_dir_all(begun.dir.containers()).map_err(fault())?;
            state::write(&begun.dir.record(), &begun.record).map_err(fault())?;
            let launched = driver.launcher.launch(&driver.config.shim, &begun.dir).map_err(fault())?;
            // While the shim makes the sandbox. As for the cgroup, who needs it makes it again.
            let _ = begun.dir.container(&first).make_writable();
            begun.set_next(first);
            Ok(launched)
        })
        .await;
        // Over long since; if not, something would be made that was removed already.
        let _ = made.await;
        let launched = launched?;
        pod.set_shim(launched.pid, launched.child, true);
        let client = pod.attach(launched.stream).map_err(system("talk to a shim"))?;
        client.call(Request::Hello).await.map(drop)
    }

    /// Has the sandboxes' directory in memory from the first sandbox on. One that holds some already stays what it is.
    fn keep_in_memory(&self) {
        // One at a time, or a second mount would hide what is in the first.
        let _turn = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = state::sandboxes(&self.config.root);
        if let Err(error) = mounts::keep_in_memory(&dir) {
            tracing::debug!(%error, dir = %dir.display(), "sandboxes are kept on disk, which is slower");
        }
    }

    /// Makes the cgroup of the pod's first container, then has the kernel ready to move processes between cgroups. In this
    /// order, since nothing in a hierarchy can be changed while a move waits. Tells when the first is done.
    fn make_first_cgroup(self: &Arc<Driver>, pod: &Pod, first: &ContainerId) -> oneshot::Receiver<()> {
        let driver = Arc::clone(self);
        let group = pod.record.cgroup.join(&first.0);
        let (made, told) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            // Who needs it makes it again, and says what went wrong.
            let _ = driver.hierarchies.make(&group);
            // Nobody waits any more when the start failed.
            let _ = made.send(());
            driver.hierarchies.warm();
        });
        told
    }

    pub(super) async fn stop_sandbox(self: &Arc<Driver>, uid: &Uid) -> Result<(), RuntimeError> {
        let guard = self.lock(uid).await;
        let result = match self.pod(uid) {
            Some(pod) => self.stop_locked(&pod).await,
            None => Ok(()),
        };
        self.unlock(uid, guard);
        result
    }

    async fn stop_locked(&self, pod: &Arc<Pod>) -> Result<(), RuntimeError> {
        if let Some(client) = pod.begin_stop() {
            // When it ends without an answer, what follows does its work.
            let _ = client.call(Request::Shutdown).await;
        }
        self.release(pod);
        let group = self.hierarchies.group(&pod.record.cgroup);
        let orphans = Arc::clone(pod);
        blocking(move || {
            orphans.end_shim();
            for _ in 0..KILL_ATTEMPTS {
                for id in orphans.container_ids() {
                    orphans.kill_orphan(&id);
                }
                let over =
                    |id| !matches!(orphans.state_of(id), Some(crate::runtime::ContainerState::Running));
                if group.kill() == 0 && orphans.container_ids().iter().all(over) {
                    return Ok(());
                }
                std::thread::sleep(KILL_PAUSE);
            }
            Err(RuntimeError::System {
                operation: format!("kill the processes of pod {}", orphans.uid),
                cause: "they do not die".to_owned(),
            })
        })
        .await
    }

    pub(super) async fn remove_sandbox(self: &Arc<Driver>, uid: &Uid) -> Result<(), RuntimeError> {
        let guard = self.lock(uid).await;
        let result = self.remove_sandbox_locked(uid).await;
        self.unlock(uid, guard);
        result
    }

    async fn remove_sandbox_locked(self: &Arc<Driver>, uid: &Uid) -> Result<(), RuntimeError> {
        let Some(pod) = self.pod(uid) else { return Ok(()) };
        self.stop_locked(&pod).await?;
        // Before the records that tell who pinned: a process that dies in between leaves nothing that nobody knows of.
        for id in pod.container_ids() {
            self.config.images.unpin(&id.0)?;
        }
        self.clear(&pod).await?;
        let mut tables = self.tables();
        for id in pod.container_ids() {
            tables.owners.remove(&id);
        }
        tables.pods.remove(uid);
        Ok(())
    }

    /// Removes what a stopped sandbox has on the node.
    async fn clear(&self, pod: &Arc<Pod>) -> Result<(), RuntimeError> {
        let group = self.hierarchies.group(&pod.record.cgroup);
        let cleared = Arc::clone(pod);
        blocking(move || {
            group.remove().map_err(system(format!("remove the cgroup of pod {}", cleared.uid)))?;
            cleared.dir.remove().map_err(system(format!("remove {}", cleared.dir.0.display())))
        })
        .await?;
        match &pod.record.network {
            Some(network) => self.wait_for_link(&network.veth).await,
            None => Ok(()),
        }
    }

    /// The pair dies with the network namespace, soon and many at a time; to remove one by request takes as long and
    /// keeps everyone else, also pods that start, from the kernel's network tables.
    async fn wait_for_link(&self, veth: &str) -> Result<(), RuntimeError> {
        for _ in 0..LINK_LOOKS {
            // Not by /sys, which may show another network namespace than this one.
            if LinkIndex::of(veth).is_err() {
                return Ok(());
            }
            tokio::time::sleep(LINK_PAUSE).await;
        }
        let veth = veth.to_owned();
        blocking(move || {
            Netlink::open()
                .and_then(|mut netlink| netlink.remove_link(&veth))
                .map_err(system(format!("remove link {veth}")))
        })
        .await
    }

    /// Removes every sandbox, the bridge and the cgroup above the pods'.
    pub(super) async fn destroy(self: &Arc<Driver>) -> Result<(), RuntimeError> {
        let mut removals = tokio::task::JoinSet::new();
        for pod in self.pods() {
            let driver = Arc::clone(self);
            removals.spawn(async move { driver.remove_sandbox(&pod.uid).await });
        }
        removals.join_all().await.into_iter().collect::<Result<Vec<()>, _>>()?;
        let driver = Arc::clone(self);
        blocking(move || {
            driver.launcher.end();
            let sandboxes = state::sandboxes(&driver.config.root);
            mounts::forget_memory(&sandboxes).map_err(system(format!("unmount {}", sandboxes.display())))?;
            let bridge = &driver.config.bridge;
            Netlink::open()
                .and_then(|mut netlink| netlink.remove_link(bridge))
                .map_err(system(format!("remove bridge {bridge}")))?;
            let parent = Path::new("/").join(&driver.config.cgroup_parent);
            driver
                .hierarchies
                .group(&parent)
                .remove()
                .map_err(system(format!("remove cgroup {}", parent.display())))
        })
        .await
    }
}

/// SIGKILL works at once unless a process sits in the kernel waiting for a device; that is waited for this long.
const KILL_ATTEMPTS: u32 = 2000;
const KILL_PAUSE: Duration = Duration::from_millis(5);

/// The kernel ends a namespace within some 10 to 100 ms; after a second something else holds it.
const LINK_LOOKS: u32 = 200;
const LINK_PAUSE: Duration = Duration::from_millis(5);

/// An id for a container.
pub(super) fn new_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Runs what may block on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RuntimeError::System { operation: "run a step".into(), cause: error.to_string() })
    })
}
