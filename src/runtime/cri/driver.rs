//! The driver: carries out what the trait asks, on a thread and a tokio runtime of its own.
//!
//! Owns: the life cycles of sandboxes. Invariants: the runtime is the one truth (what is remembered here can be asked
//! for again); changes to one pod's sandbox happen one at a time, different ones at once; what carries no label of this
//! root is never touched.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast};

use super::{
    CriConfig, cgroup,
    client::{self, Client, Fault, LONG, SHORT, ended, fault},
    cni, images, labels,
    labels::{Sandbox, SandboxRecord},
    network::Network,
    programs::Programs,
    proto, spec,
    watch::Watch,
};
use crate::{
    model::Uid,
    runtime::{
        RuntimeError, RuntimeEvent, SandboxConfig, SandboxStatus,
        config::check_uid,
        exchange::Exchange,
        hosts,
        native::{cgroup::Hierarchies, steady::Steady},
    },
};

/// A receiver that is further behind has to list again anyway.
const EVENTS: usize = 1024;

pub(super) struct Driver {
    pub config: CriConfig,
    /// The root as label.
    pub root: String,
    pub client: Client,
    /// As in container ids.
    pub name: &'static str,
    /// The runtime's version.
    pub version: String,
    pub events: broadcast::Sender<RuntimeEvent>,
    pub watch: Watch,
    pub images: images::Images,
    pub exchange: Exchange,
    pub network: AsyncMutex<Network>,
    /// Pods' cgroups are made here; systemd's are not.
    pub(super) cgroups: Option<Hierarchies>,
    /// Counters that were summed up over processes.
    pub(super) steady: Steady,
    /// Cgroups are of version 2.
    unified: bool,
    /// It makes mounts read-only all the way down.
    pub recursive_read_only: bool,
    /// Held while a sandbox changes.
    locks: Mutex<HashMap<Uid, Arc<AsyncMutex<()>>>>,
    /// What is run in containers beside their own programs.
    pub programs: Programs,
    /// Sandboxes' addresses, which never change.
    addresses: Mutex<HashMap<String, Option<IpAddr>>>,
}

impl Driver {
    pub(super) async fn new(config: CriConfig) -> Result<Driver, RuntimeError> {
        let (client, name, version) = Client::connect(&config.socket).await?;
        let name = match name.as_str() {
            "containerd" => "containerd",
            "cri-o" => "cri-o",
            _ => "cri",
        };
        let found = super::network::Found::ask(&client).await?;
        let hierarchies = Hierarchies::detect();
        let own = nix::unistd::geteuid().is_root() && hierarchies != Hierarchies::Missing && !found.systemd;
        Ok(Driver {
            root: config.root.to_string_lossy().into_owned(),
            client,
            name,
            version,
            events: broadcast::channel(EVENTS).0,
            watch: Watch::default(),
            images: images::Images::new(found.sandbox_image.clone()),
            exchange: Exchange::new(&config.root),
            recursive_read_only: found.recursive_read_only,
            network: AsyncMutex::new(Network::new(found)),
            unified: hierarchies.unified(),
            cgroups: own.then_some(hierarchies),
            steady: Steady::default(),
            locks: Mutex::default(),
            programs: Programs::default(),
            addresses: Mutex::default(),
            config,
        })
    }

    /// Whether the runtime answers and is ready. Its network is made, or missed, with the node's subnet.
    pub(super) async fn answers(&self) -> Result<(), RuntimeError> {
        let request = proto::StatusRequest { verbose: false };
        let asked: Result<proto::StatusResponse, Fault> =
            self.client.runtime("Status", &request, SHORT).await;
        let answer = asked.map_err(|fault| client::unreachable(&self.config.socket, &fault))?;
        let conditions = answer.status.unwrap_or_default().conditions;
        match conditions.iter().any(|of| of.kind == "RuntimeReady" && !of.status) {
            true => Err(RuntimeError::System {
                operation: "use the container runtime".to_owned(),
                cause: "it says that it is not ready: look after it (systemctl status containerd)".to_owned(),
            }),
            false => Ok(()),
        }
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<Uid, Arc<AsyncMutex<()>>>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn addresses(&self) -> MutexGuard<'_, HashMap<String, Option<IpAddr>>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to change a sandbox.
    async fn lock(&self, uid: &Uid) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks();
            // Nobody holds or waits for those that only the map has.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(uid.clone()).or_default())
        };
        lock.lock_owned().await
    }

    pub(super) async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError> {
        self.network.lock().await.set_pod_cidr(self, cidr).await
    }

    pub(super) async fn run_sandbox(
        self: &Arc<Self>,
        config: SandboxConfig,
    ) -> Result<SandboxStatus, RuntimeError> {
        let uid = Uid::from(config.uid.as_str());
        check_uid(&config.uid)?;
        if config.user_namespace.is_some() {
            // The interface has words for it since Kubernetes 1.25, which runtimes before containerd 2.0 pass over in
            // silence: the pod's root would be the node's.
            let text = "hostUsers false: the cri runtime does not ask for users of a pod's own";
            return Err(RuntimeError::Config(text.to_owned()));
        }
        let _turn = self.lock(&uid).await;
        let mut attempt = 0;
        for found in self.sandboxes(Some(&uid)).await? {
            if found.ready {
                return self.status(&found).await;
            }
            attempt = attempt.max(found.attempt + 1);
            self.stop_and_remove(&found).await?;
        }
        let network = match config.host_network {
            true => None,
            false => Some(self.network.lock().await.annotation(self).await?),
        };
        self.images.ensure_sandbox_image(self).await?;
        let record = SandboxRecord {
            hostname: config.hostname.clone(),
            host_network: config.host_network,
            host_pid: config.host_pid,
            host_ipc: config.host_ipc,
            share_pids: config.share_pids,
            memory_bytes: config.memory_limit_bytes,
            // Version 2 has a word for it in the interface, version 1 has not.
            pids_each: if self.cgroups.is_none() && self.unified { config.pids() } else { 0 },
            cgroup: self.make_cgroup(&config).await?,
        };
        let id = match self.begin(&config, &record, network, attempt).await {
            Ok(id) => id,
            Err(error) => {
                self.forget_pod(&uid, record.cgroup.as_deref()).await;
                return Err(error);
            }
        };
        let sandbox =
            self.sandboxes(Some(&uid)).await?.into_iter().find(|found| found.id == id && found.ready);
        let Some(sandbox) = sandbox else {
            return Err(RuntimeError::System {
                operation: format!("run the sandbox of pod {uid}"),
                cause: "it ended at once".to_owned(),
            });
        };
        self.watch.expect_sandbox(&id, &uid);
        let status = self.status(&sandbox).await?;
        self.write_hosts(&config, status.ip).await?;
        Ok(status)
    }

    /// Has the runtime run a sandbox: its id.
    async fn begin(
        &self,
        config: &SandboxConfig,
        record: &SandboxRecord,
        network: Option<String>,
        attempt: u32,
    ) -> Result<String, RuntimeError> {
        let mut attempt = attempt;
        let mut again = 1;
        loop {
            let asked = spec::sandbox(&self.root, config, record, network.clone(), attempt);
            let request = proto::RunPodSandboxRequest { config: Some(asked) };
            let made: Result<proto::PodSandboxId, Fault> =
                self.client.runtime("RunPodSandbox", &request, LONG).await;
            match made {
                Ok(made) => return Ok(made.pod_sandbox_id),
                Err(fault) if again > 0 && is_reserved(&fault) => attempt = any_attempt(),
                Err(fault) => return Err(sandbox_refusal(&fault)),
            }
            again -= 1;
        }
    }

    async fn make_cgroup(&self, config: &SandboxConfig) -> Result<Option<PathBuf>, RuntimeError> {
        let Some(hierarchies) = self.cgroups.clone() else { return Ok(None) };
        let path = PathBuf::from("/").join(&self.config.cgroup_parent).join(&config.uid);
        let (made, config) = (path.clone(), SandboxConfig { pids_limit: config.pids(), ..config.clone() });
        blocking(move || {
            hierarchies.limit_pod(&path, &config).map_err(super::system("make the pod's cgroup"))
        })
        .await?;
        Ok(Some(made))
    }

    /// Gives the pod's group its share. (The interface's own `UpdatePodSandboxResources` only tells the runtime of a
    /// change that the caller made.)
    pub(super) async fn update_sandbox(&self, uid: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let Some(hierarchies) = self.cgroups.clone() else { return Ok(()) };
        let found = self.sandboxes(Some(uid)).await?.into_iter().find(|found| found.ready);
        let found = found.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {uid}")))?;
        let Some(path) = found.record.cgroup else { return Ok(()) };
        let failed = super::system(format!("change the share of pod {uid}"));
        blocking(move || hierarchies.weigh(&path, cpu_request_milli).map_err(failed)).await
    }

    /// The directory of a pod's files on the node.
    fn pod_dir(&self, uid: &Uid) -> PathBuf {
        self.config.root.join("pods").join(uid.as_str())
    }

    pub(super) fn hosts_file(&self, uid: &Uid) -> PathBuf {
        self.pod_dir(uid).join("hosts")
    }

    async fn write_hosts(&self, config: &SandboxConfig, address: Option<IpAddr>) -> Result<(), RuntimeError> {
        let uid = Uid::from(config.uid.as_str());
        let text = match config.host_network {
            true => {
                let node = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
                node + &hosts::aliases(config)
            }
            false => hosts::of_pod(config, address),
        };
        let file = self.hosts_file(&uid);
        hosts::write(&file, text).await.map_err(super::system(format!("write {}", file.display())))
    }

    /// Removes what a pod has on the node beside the runtime.
    async fn forget_pod(&self, uid: &Uid, group: Option<&std::path::Path>) {
        let _ = tokio::fs::remove_dir_all(self.pod_dir(uid)).await;
        if let Some(path) = group.map(std::path::Path::to_owned) {
            let removed =
                blocking(move || cgroup::remove(&path).map_err(super::system("remove the pod's cgroup")))
                    .await;
            if let Err(error) = removed {
                tracing::warn!(pod = %uid, %error, "a pod's cgroup is left behind");
            }
        }
    }

    pub(super) async fn stop_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        let _turn = self.lock(uid).await;
        for found in self.sandboxes(Some(uid)).await? {
            self.stop(&found).await?;
        }
        Ok(())
    }

    /// Kills what runs in a sandbox and gives back its address.
    async fn stop(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        // From here on its end is no loss.
        self.watch.forget_sandbox(&sandbox.id);
        self.watch.ending(sandbox.uid.as_str());
        let request = proto::PodSandboxId { pod_sandbox_id: sandbox.id.clone() };
        let stopped = self.client.runtime("StopPodSandbox", &request, LONG).await;
        ended(stopped).map_err(fault(format!("stop the sandbox of pod {}", sandbox.uid)))?;
        // Ends are told before what ended may be gone.
        self.relist().await?;
        self.watch.ended(sandbox.uid.as_str());
        Ok(())
    }

    async fn stop_and_remove(self: &Arc<Self>, sandbox: &Sandbox) -> Result<(), RuntimeError> {
        self.stop(sandbox).await?;
        let request = proto::PodSandboxId { pod_sandbox_id: sandbox.id.clone() };
        let removed = self.client.runtime("RemovePodSandbox", &request, LONG).await;
        ended(removed).map_err(fault(format!("remove the sandbox of pod {}", sandbox.uid)))?;
        self.addresses().remove(&sandbox.id);
        self.forget_pod(&sandbox.uid, sandbox.record.cgroup.as_deref()).await;
        Ok(())
    }

    pub(super) async fn remove_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        let _turn = self.lock(uid).await;
        for found in self.sandboxes(Some(uid)).await? {
            self.stop_and_remove(&found).await?;
        }
        Ok(())
    }

    /// Sandboxes, of one pod or all.
    pub(super) async fn sandboxes(&self, pod: Option<&Uid>) -> Result<Vec<Sandbox>, RuntimeError> {
        let label_selector = match pod {
            Some(pod) => labels::selector_of(&self.root, pod),
            None => labels::selector(&self.root),
        };
        let request =
            proto::ListPodSandboxRequest { filter: Some(proto::PodSandboxFilter { label_selector }) };
        let listed: Result<proto::ListPodSandboxResponse, Fault> =
            self.client.runtime("ListPodSandbox", &request, SHORT).await;
        let listed = listed.map_err(fault("list the runtime's sandboxes"))?;
        Ok(listed.items.into_iter().filter_map(Sandbox::read).collect())
    }

    pub(super) async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let found = self.sandboxes(None).await?;
        let mut all: Vec<SandboxStatus> = Vec::with_capacity(found.len());
        for sandbox in &found {
            all.push(self.status(sandbox).await?);
        }
        Ok(all)
    }

    async fn status(&self, sandbox: &Sandbox) -> Result<SandboxStatus, RuntimeError> {
        Ok(SandboxStatus {
            uid: sandbox.uid.clone(),
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            ready: sandbox.ready,
            ip: if sandbox.record.host_network { None } else { self.address(sandbox).await? },
            created_ms: sandbox.created_ms,
        })
    }

    async fn address(&self, sandbox: &Sandbox) -> Result<Option<IpAddr>, RuntimeError> {
        if let Some(address) = self.addresses().get(&sandbox.id) {
            return Ok(*address);
        }
        let request =
            proto::PodSandboxStatusRequest { pod_sandbox_id: sandbox.id.clone(), ..Default::default() };
        let asked: Result<proto::PodSandboxStatusResponse, Fault> =
            self.client.runtime("PodSandboxStatus", &request, SHORT).await;
        let address = match asked {
            Ok(found) => found.status.and_then(|status| status.network?.ip.parse().ok()),
            Err(fault) if fault.is_absent() => None,
            Err(fault) => return Err(fault.of(format!("look at the sandbox of pod {}", sandbox.uid))),
        };
        // One that has ended has none any more, which is not to be remembered for one that runs.
        if sandbox.ready && address.is_some() {
            self.addresses().insert(sandbox.id.clone(), address);
        }
        Ok(address)
    }

    /// Removes everything of this root from the runtime but images.
    pub(super) async fn destroy(self: &Arc<Self>) -> Result<(), RuntimeError> {
        for sandbox in self.sandboxes(None).await? {
            self.remove_sandbox(&sandbox.uid).await?;
        }
        let parent = PathBuf::from("/").join(&self.config.cgroup_parent);
        blocking(move || cgroup::remove(&parent).map_err(super::system("remove the pods' cgroup"))).await?;
        self.network.lock().await.remove(self).await?;
        let addresses = cni::addresses(&self.config.root);
        match tokio::fs::remove_dir_all(&addresses).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(super::system(format!("remove {}", addresses.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Runs what blocks where it blocks nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RuntimeError::System { operation: "work on the node".into(), cause: error.to_string() })
    })
}

/// Another thing has the same name: names are made of pod, container and attempt, and another root may have those.
pub(super) fn is_reserved(fault: &Fault) -> bool {
    let text = fault.text();
    text.contains("is reserved for") || text.contains("name is in use") || text.contains("already in use")
}

/// A number that no life counted from 0 has.
pub(super) fn any_attempt() -> u32 {
    const FIRST: u32 = 1 << 30;
    FIRST | (rand::random::<u32>() & (FIRST - 1))
}

/// Why a sandbox does not run: most often the network.
fn sandbox_refusal(fault: &Fault) -> RuntimeError {
    let text = fault.text();
    if let Some(at) = text.find(cni::NO_ADDRESS) {
        let cause = text[at..].to_owned();
        return RuntimeError::System { operation: "give the pod an address".to_owned(), cause };
    }
    let own_sysctl = text.contains("sysctl");
    match own_sysctl {
        true => RuntimeError::Config(text),
        false => RuntimeError::System { operation: "start a sandbox".to_owned(), cause: text },
    }
}
