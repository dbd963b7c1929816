//! The docker runtime: containers of a Docker engine on this machine.
//!
//! Owns: [`DockerRuntime`], its configuration and its thread. The engine runs the containers and remembers them; what is
//! ours carries labels with the runtime's root, so that a restarted process finds it and another one on the same engine
//! does not. Leaves to others: nothing of the engine's own set-up is changed.
//!
//! ```text
//! DockerRuntime ─▶ driver (sandboxes, containers, exec, images) ─▶ engine's socket
//!   events ◀─ events (die) ─▶ ends ◀─ logs (one follower a container) ◀─┘
//! ```

mod containers;
mod driver;
mod ends;
mod engine;
mod events;
mod exec;
mod files;
mod images;
mod labels;
mod logs;
mod network;
mod pods;
mod share;
mod spec;
mod stats;
mod status;
mod streams;
mod turns;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::broadcast;

use self::driver::Driver;
pub use self::engine::socket;
use super::{
    Connection, ContainerConfig, ContainerId, ContainerResources, ContainerRuntime, ContainerStatus,
    ExecOutput, ExecStreams, Image, Origin, Reader, RegistryAuth, RuntimeError, RuntimeEvent, SandboxConfig,
    SandboxStats, SandboxStatus, StreamOptions,
    disk::Storage,
    exchange::Engine as _,
    hand::{self, Hand, now_ms, system},
    share::{PartSource, SharedImage},
};
use crate::model::Uid;

/// How a docker runtime is set up.
#[derive(Clone, Debug)]
pub struct DockerConfig {
    /// Names what is this runtime's in the engine, and holds files on their way into it; one process at a time may use
    /// it. Absolute.
    pub root: PathBuf,
    /// The engine's socket: [`socket`] for the usual one.
    pub socket: PathBuf,
    /// The program that the built-in image and the sandboxes' are made of: this one.
    pub program: PathBuf,
}

impl DockerConfig {
    fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    fn used_socket(&self) -> PathBuf {
        self.root.join(USED)
    }
}

/// The file of a root that says which engine has something of it.
const USED: &str = "socket";

/// The engine that has something of a runtime with this root, if one has.
pub fn used_socket(root: &Path) -> Option<PathBuf> {
    fs::read_to_string(root.join(USED)).ok().map(PathBuf::from)
}

/// Whether an engine answers on a socket.
///
/// # Errors
/// What is wrong, and what to do.
pub fn check(socket: &Path) -> Result<(), RuntimeError> {
    let socket = socket.to_owned();
    let advice = "it does not answer: look after dockerd (systemctl status docker)";
    hand::ask("ask the docker engine", advice, || async move { engine::connect(&socket).await.map(drop) })
}

/// Has containers run by a Docker engine.
///
/// Its work is done on a thread of its own, so its methods may be called from any tokio runtime, and a call goes on to
/// its end even when its caller stops waiting.
pub struct DockerRuntime {
    hand: Hand<Driver>,
}

impl DockerRuntime {
    /// Connects to the engine and finds what an earlier process left under the same root. Blocks meanwhile; the first
    /// time the engine is also given the images of our own program.
    ///
    /// # Errors
    /// When the engine does not answer, or the root cannot be used: what to do.
    pub fn open(config: DockerConfig) -> Result<DockerRuntime, RuntimeError> {
        DockerRuntime::start(config, true)
    }

    /// [`DockerRuntime::open`] in order to remove what there is: makes nothing.
    ///
    /// # Errors
    /// When the engine does not answer.
    pub fn open_to_remove(config: DockerConfig) -> Result<DockerRuntime, RuntimeError> {
        DockerRuntime::start(config, false)
    }

    fn start(config: DockerConfig, run: bool) -> Result<DockerRuntime, RuntimeError> {
        if run {
            let operation = || system(format!("open the docker runtime in {}", config.root.display()));
            let _ = fs::remove_dir_all(config.scratch());
            fs::create_dir_all(config.scratch()).map_err(operation())?;
        }
        let root = config.root.clone();
        Ok(DockerRuntime { hand: Hand::start("docker", &root, move || begin(config, run))? })
    }

    /// Removes every sandbox and the networks: nothing of this runtime is left in the engine but images.
    ///
    /// # Errors
    /// When the engine does not remove something.
    pub async fn destroy(&self) -> Result<(), RuntimeError> {
        self.hand.run(|driver| async move { driver.destroy().await }).await?;
        let _ = fs::remove_file(self.hand.driver().config.used_socket());
        Ok(())
    }
}

async fn begin(config: DockerConfig, run: bool) -> Result<Arc<Driver>, RuntimeError> {
    let driver = Arc::new(Driver::new(config).await?);
    if run {
        let (used, socket) =
            (driver.config.used_socket(), driver.config.socket.to_string_lossy().into_owned());
        fs::write(&used, socket).map_err(system(format!("write {}", used.display())))?;
        driver.ensure_images().await?;
        events::adopt(&driver).await?;
        tokio::spawn(events::follow(Arc::clone(&driver)));
    }
    Ok(driver)
}

#[async_trait]
impl ContainerRuntime for DockerRuntime {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn version(&self) -> String {
        self.hand.driver().version.clone()
    }

    async fn status(&self) -> Result<(), RuntimeError> {
        self.hand.run_along(|driver| async move { driver.answers().await }).await
    }

    fn recursive_read_only(&self) -> bool {
        engine::mounts_recursively(&self.hand.driver().docker)
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
        self.hand.run(|driver| async move { driver.exec_sync(&id, command, timeout).await }).await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.hand.run(move |driver| async move { driver.update_container(&id, resources).await }).await
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        self.hand.run(|driver| async move { driver.stats().await }).await
    }

    async fn log_written(&self, id: &ContainerId) {
        self.hand.driver().ends.log_written(&id.0).await;
    }

    fn rotates_logs(&self) -> bool {
        true
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.hand.run(move |driver| async move { driver.exec(&id, command, options).await }).await
    }

    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.hand.run(move |driver| async move { driver.attach(&id, options).await }).await
    }

    async fn port_forward(&self, pod: &Uid, port: u16) -> Result<Connection, RuntimeError> {
        let pod = pod.clone();
        let reach = self.hand.run(|driver| async move { driver.network_namespace(&pod).await }).await?;
        reach.connect(port).await
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        self.hand.run(|driver| async move { driver.list_containers(None).await }).await
    }

    async fn pod_containers(&self, pod: &Uid) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let pod = pod.clone();
        self.hand.run(|driver| async move { driver.list_containers(Some(&pod)).await }).await
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

    async fn shared_images(&self) -> Result<Vec<SharedImage>, RuntimeError> {
        self.hand.run(|driver| async move { driver.shared_images().await }).await
    }

    async fn image_part(&self, image: &str, digest: &str) -> Result<Reader, RuntimeError> {
        let (image, digest) = (image.to_owned(), digest.to_owned());
        self.hand.run(|driver| async move { driver.image_part(&image, &digest).await }).await
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

    async fn save_images(&self, names: Vec<String>) -> Result<Reader, RuntimeError> {
        self.hand.run(|driver| async move { driver.save_images(names).await }).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let name = name.to_owned();
        self.hand.run(|driver| async move { driver.remove_image(&name).await }).await
    }
}
