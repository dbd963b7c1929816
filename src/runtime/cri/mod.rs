//! The CRI runtime: containers of any runtime of this machine that serves Kubernetes' Container Runtime Interface.
//!
//! Owns: [`CriRuntime`], its configuration and its thread. The runtime runs the containers, writes their logs and
//! remembers them; what is ours carries labels with this runtime's root, so that a restarted process finds it and another
//! one on the same runtime does not. Pods' networks are made by Troupe as network plugin ([`cni_main`]).
//!
//! ```text
//! CriRuntime ─▶ driver (sandboxes, containers, images) ─▶ client (gRPC) ─▶ the runtime's socket ─▶ cni (a process)
//!   events ◀─ watch (listing) ◀─ the runtime's events, or each second ◀──┘
//! ```

mod cgroup;
mod client;
mod cni;
mod containers;
mod driver;
mod forward;
mod images;
mod labels;
mod network;
mod programs;
mod proto;
mod serve;
mod spdy;
mod spec;
mod stats;
mod status;
mod streams;
mod watch;

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use self::{client::Client, driver::Driver};
pub use self::{
    client::{USUAL_SOCKET, socket},
    cni::{is_meant as is_cni, main as cni_main},
};
use super::{
    Connection, ContainerConfig, ContainerId, ContainerResources, ContainerRuntime, ContainerStatus,
    ExecOutput, ExecStreams, Image, Origin, Reader, RegistryAuth, RuntimeError, RuntimeEvent, SandboxConfig,
    SandboxStats, SandboxStatus, StreamOptions,
    disk::Storage,
    exchange::Engine as _,
    hand::{self, Hand, now_ms, system},
    netns,
    share::{PartSource, SharedImage},
};
use crate::model::Uid;

/// How a CRI runtime is set up.
#[derive(Clone, Debug)]
pub struct CriConfig {
    /// Names what is this runtime's, and holds pods' addresses and files on their way; one process at a time may use it.
    /// Absolute.
    pub root: PathBuf,
    /// The runtime's socket.
    pub socket: PathBuf,
    /// The program that the built-in image and the sandboxes' are made of, and that is the network plugin: this one.
    pub program: PathBuf,
    /// The bridge of this node's pods, when the runtime has no network of its own.
    pub bridge: String,
    /// The cgroup of this node's pods, below the root of each hierarchy.
    pub cgroup_parent: String,
}

impl CriConfig {
    fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    fn used(&self) -> PathBuf {
        self.root.join(USED)
    }
}

/// The file of a root that says which runtime has something of it.
const USED: &str = "runtime.json";

/// What [`USED`] says, so that all can be removed whatever is configured by then.
#[derive(Serialize, Deserialize)]
struct Used {
    socket: PathBuf,
    bridge: String,
    cgroup_parent: String,
}

/// How the runtime was set up that has something of a root, if one has.
pub fn used(root: &Path, program: &Path) -> Option<CriConfig> {
    let used: Used = serde_json::from_slice(&fs::read(root.join(USED)).ok()?).ok()?;
    Some(CriConfig {
        root: root.to_owned(),
        socket: used.socket,
        program: program.to_owned(),
        bridge: used.bridge,
        cgroup_parent: used.cgroup_parent,
    })
}

/// Whether a CRI runtime answers on a socket.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check(socket: &Path) -> Result<(), RuntimeError> {
    let socket = socket.to_owned();
    let advice = "it does not answer: look after it (systemctl status containerd)";
    hand::ask("ask the container runtime", advice, || async move { Client::connect(&socket).await.map(drop) })
}

/// Has containers run by a CRI runtime.
///
/// Its work is done on a thread of its own, so its methods may be called from any tokio runtime, and a call goes on to
/// its end even when its caller stops waiting, but for programs run in containers: those end then.
pub struct CriRuntime {
    hand: Hand<Driver>,
}

impl CriRuntime {
    /// Connects to the runtime and finds what an earlier process left under the same root. Blocks meanwhile; the first
    /// time the runtime is also given the images of our own program.
    ///
    /// # Errors
    /// When it does not answer, or the root cannot be used: what to do.
    pub fn open(config: CriConfig) -> Result<CriRuntime, RuntimeError> {
        CriRuntime::start(config, true)
    }

    /// [`CriRuntime::open`] in order to remove what there is: makes nothing.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn open_to_remove(config: CriConfig) -> Result<CriRuntime, RuntimeError> {
        CriRuntime::start(config, false)
    }

    fn start(config: CriConfig, run: bool) -> Result<CriRuntime, RuntimeError> {
        if run {
            let operation = || system(format!("open the cri runtime in {}", config.root.display()));
            let _ = fs::remove_dir_all(config.scratch());
            fs::create_dir_all(config.scratch()).map_err(operation())?;
        }
        let root = config.root.clone();
        Ok(CriRuntime { hand: Hand::start("cri", &root, move || begin(config, run))? })
    }

    /// Removes every sandbox and the network: nothing of this runtime is left but images.
    ///
    /// # Errors
    /// When something is not removed.
    pub async fn destroy(&self) -> Result<(), RuntimeError> {
        self.hand.run(|driver| async move { driver.destroy().await }).await?;
        let _ = fs::remove_file(self.hand.driver().config.used());
        Ok(())
    }
}

async fn begin(config: CriConfig, run: bool) -> Result<Arc<Driver>, RuntimeError> {
    let driver = Arc::new(Driver::new(config).await?);
    if run {
        let config = driver.config.clone();
        let path = config.used();
        let used = Used { socket: config.socket, bridge: config.bridge, cgroup_parent: config.cgroup_parent };
        let json = serde_json::to_vec(&used).map_err(io::Error::from);
        json.and_then(|json| fs::write(&path, json)).map_err(system(format!("write {}", path.display())))?;
        driver.ensure_images().await?;
        watch::adopt(&driver).await?;
        tokio::spawn(watch::follow(Arc::clone(&driver)));
    }
    Ok(driver)
}

#[async_trait]
impl ContainerRuntime for CriRuntime {
    fn name(&self) -> &'static str {
        self.hand.driver().name
    }

    fn version(&self) -> String {
        self.hand.driver().version.clone()
    }

    async fn status(&self) -> Result<(), RuntimeError> {
        self.hand.run_along(|driver| async move { driver.answers().await }).await
    }

    fn recursive_read_only(&self) -> bool {
        self.hand.driver().recursive_read_only
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError> {
        let cidr = cidr.to_owned();
        self.hand.run(|driver| async move { driver.set_pod_cidr(&cidr).await }).await
    }

    async fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        self.hand.run(|driver| async move { driver.run_sandbox(config).await }).await
    }

    async fn stop_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.hand.run(|driver| async move { driver.stop_sandbox(&pod).await }).await
    }

    async fn remove_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.hand.run(|driver| async move { driver.remove_sandbox(&pod).await }).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        self.hand.run(|driver| async move { driver.list_sandboxes().await }).await
    }

    async fn create_container(
        &self,
        pod: &Uid,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let pod = pod.clone();
        self.hand.run(|driver| async move { driver.create_container(&pod, config).await }).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.start_container(&id).await }).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.stop_container(&id, grace).await }).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.remove_container(&id).await }).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let id = id.clone();
        self.hand.run_along(|driver| async move { driver.exec_sync(&id, command, timeout).await }).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.exec(&id, command, options).await }).await
    }

    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.attach(&id, options).await }).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.hand.run(|driver| async move { driver.relist().await }).await
    }

    async fn port_forward(&self, pod: &Uid, port: u16) -> Result<Connection, RuntimeError> {
        let pod = pod.clone();
        let namespace = self.hand.run(|driver| async move { driver.network_of(&pod).await }).await?;
        // On the caller's runtime, which is where it is used.
        netns::connect(namespace, port).await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.update_container(&id, resources).await }).await
    }

    async fn update_pod_sandbox(&self, pod: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.hand.run(move |driver| async move { driver.update_sandbox(&pod, cpu_request_milli).await }).await
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        self.hand.run(|driver| async move { driver.stats().await }).await
    }

    async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(|driver| async move { driver.reopen_log(&id).await }).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.hand.driver().events.subscribe()
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        let name = name.to_owned();
        self.hand.run(|driver| async move { driver.find_image(&name).await }).await
    }

    async fn image_origin(&self, name: &str, image: &Image) -> Result<Origin, RuntimeError> {
        self.hand.driver().exchange.origin(name, image).await
    }

    fn takes_images(&self) -> bool {
        true
    }

    async fn take_image(
        &self,
        offer: SharedImage,
        source: Arc<dyn PartSource>,
    ) -> Result<Image, RuntimeError> {
        self.hand.run(|driver| async move { driver.take_image(offer, &*source).await }).await
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.hand.run(|driver| async move { driver.list_images().await }).await
    }

    async fn pull_image(&self, name: &str, auth: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        let name = name.to_owned();
        self.hand.run(|driver| async move { driver.pull_image(&name, auth).await }).await
    }

    async fn load_image(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError> {
        self.hand.run(|driver| async move { driver.load_image(archive, rename).await }).await
    }

    async fn import_image(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError> {
        let name = name.to_owned();
        self.hand.run(|driver| async move { driver.import_image(rootfs, &name).await }).await
    }

    async fn storage(&self) -> Result<Option<Storage>, RuntimeError> {
        self.hand.run_along(|driver| async move { driver.storage().await }).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let name = name.to_owned();
        self.hand.run(|driver| async move { driver.remove_image(&name).await }).await
    }
}
