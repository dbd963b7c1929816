//! The native runtime: containers without a daemon, by the kernel's own means.
//!
//! Owns: [`NativeRuntime`], its configuration and its thread. The work is split between the driver (this process:
//! images, addresses, life cycles) and one shim process a pod that owns the pod's namespaces and containers and lives
//! on when the driver does not; see `docs/adr/0005-native-runtime.md`.
//!
//! ```text
//! NativeRuntime ─▶ driver ─▶ pod ─▶ client ═══ shim.sock ═══ shim ─▶ libcontainer ─▶ container
//! ```

pub mod beneath;
mod caps;
pub(super) mod cgroup;
mod check;
mod client;
mod console;
mod containers;
mod driver;
mod exec;
pub(super) mod ipam;
mod launch;
mod mounts;
pub(super) mod netlink;
mod pod;
pub(super) mod processes;
mod profile;
mod protocol;
mod resize;
mod seccomp;
mod seccomp_table;
mod shim;
mod spec;
mod state;
pub(super) mod steady;
mod streams;
mod sys;
pub(super) mod usage;
pub(super) mod user;
pub mod userns;
mod v1;

use std::{future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    runtime::{Builder, Handle},
    sync::{broadcast, oneshot},
};

pub(super) use self::sys::{kill as send_signal, sets_mounts_recursively};
pub use self::{check::check, mounts::unmount_below, shim::shim_main, state::holds_sandboxes};
use self::{
    driver::{Driver, blocking},
    state::system,
    usage::Layers,
};
use super::{
    Connection, ContainerConfig, ContainerId, ContainerResources, ContainerRuntime, ContainerStatus,
    ExecOutput, ExecStreams, IdleImage, Image, Origin, PullProgress, Reader, RegistryAuth, RuntimeError,
    RuntimeEvent, SandboxConfig, SandboxStats, SandboxStatus, StreamOptions, netns,
};
use crate::{
    model::Uid,
    runtime::{
        disk::Storage,
        images::{BUILTIN_IMAGE, ImageStore, Pulls, RegistryConfig, normalize},
        share::{PartSource, SharedImage},
    },
};

/// How a native runtime is set up.
#[derive(Clone)]
pub struct NativeConfig {
    /// Where sandboxes and containers are kept; one process at a time may use it.
    pub root: PathBuf,
    /// Where images are.
    pub images: ImageStore,
    /// How the registries are reached that images are pulled from.
    pub registries: RegistryConfig,
    /// The bridge that pods are on, at most 15 bytes; made when needed.
    pub bridge: String,
    /// The program that runs [`shim_main`] when its first argument is `shim`.
    pub shim: PathBuf,
    /// The cgroup that pods' cgroups are in, relative to each hierarchy's root.
    pub cgroup_parent: String,
    /// The pods' MTU; that of the node's default route when absent.
    pub mtu: Option<u32>,
}

impl NativeConfig {
    /// The usual: this very program as shim, bridge `troupe0`, cgroup `troupe`.
    pub fn new(root: PathBuf, images: ImageStore) -> NativeConfig {
        NativeConfig {
            root,
            images,
            registries: RegistryConfig::default(),
            bridge: "troupe0".to_owned(),
            // Through /proc, so that it is this version even after the file was replaced.
            shim: PathBuf::from("/proc/self/exe"),
            cgroup_parent: "troupe".to_owned(),
            mtu: None,
        }
    }
}

/// Runs containers on this machine.
///
/// Its work is done on a thread of its own, so its methods may be called from any tokio runtime, and a call goes on to
/// its end even when its caller stops waiting.
pub struct NativeRuntime {
    driver: Arc<Driver>,
    handle: Handle,
    pulls: Pulls,
    layers: Arc<Layers>,
    /// Dropped with the runtime, which ends the thread.
    _stop: oneshot::Sender<()>,
}

/// Steps that block (files, mounts, waiting for a process) run on at most so many threads.
const BLOCKING_THREADS: usize = 16;

impl NativeRuntime {
    /// Opens the runtime and finds the sandboxes and containers that an earlier process left under the same root. Blocks
    /// for some milliseconds.
    pub fn open(config: NativeConfig) -> Result<NativeRuntime, RuntimeError> {
        let root = config.root.clone();
        let fault = || system(format!("open the native runtime in {}", root.display()));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("native-blocking")
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .map_err(fault())?;
        let handle = runtime.handle().clone();
        let pulls = Pulls::new(config.images.clone(), config.registries.clone());
        let driver = Arc::new(Driver::new(config));
        let (stop, stopped) = oneshot::channel();
        let (opened, open) = std::sync::mpsc::channel();
        let adopting = Arc::clone(&driver);
        std::thread::Builder::new()
            .name("native-runtime".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    // Receiving fails only when `open` below was abandoned.
                    let _ = opened.send(adopting.adopt().await);
                    drop(adopting);
                    let _ = stopped.await;
                });
                runtime.shutdown_background();
            })
            .map_err(fault())?;
        open.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has died"))).map_err(fault())?;
        Ok(NativeRuntime { driver, handle, pulls, layers: Arc::default(), _stop: stop })
    }

    /// Removes every sandbox, the bridge and the cgroups: nothing of this runtime is left on the machine but its
    /// images and its root directory.
    pub async fn destroy(&self) -> Result<(), RuntimeError> {
        self.run(|driver| async move { driver.destroy().await }).await
    }

    /// Runs a step on the runtime's own thread.
    async fn run<T, F>(&self, step: impl FnOnce(Arc<Driver>) -> F) -> Result<T, RuntimeError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, RuntimeError>> + Send + 'static,
    {
        self.handle.spawn(step(Arc::clone(&self.driver))).await.unwrap_or_else(|error| {
            Err(RuntimeError::System { operation: "run a step".into(), cause: error.to_string() })
        })
    }
}

#[async_trait]
impl ContainerRuntime for NativeRuntime {
    fn name(&self) -> &'static str {
        "native"
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn lacks(&self) -> Option<&'static str> {
        userns::lacks()
    }

    fn user_namespaces(&self) -> bool {
        // An ordinary user has but one number to give away.
        !userns::inside()
    }

    fn recursive_read_only(&self) -> bool {
        sys::sets_mounts_recursively()
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError> {
        let cidr = cidr.to_owned();
        self.run(|driver| async move { driver.set_pod_cidr(cidr).await }).await
    }

    async fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        self.run(|driver| async move { driver.run_sandbox(config).await }).await
    }

    async fn stop_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.run(|driver| async move { driver.stop_sandbox(&pod).await }).await
    }

    async fn remove_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.run(|driver| async move { driver.remove_sandbox(&pod).await }).await
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.driver.pods().iter().map(|pod| pod.status()).collect())
    }

    async fn create_container(
        &self,
        pod: &Uid,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let pod = pod.clone();
        self.run(|driver| async move { driver.create_container(&pod, config).await }).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.run(|driver| async move { driver.start_container(&id).await }).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.run(|driver| async move { driver.stop_container(&id, grace).await }).await
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.run(|driver| async move { driver.remove_container(&id).await }).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let id = id.clone();
        self.run(move |driver| async move { driver.exec_sync(&id, command, timeout).await }).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.run(move |driver| async move { driver.exec(&id, command, options).await }).await
    }

    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<ExecStreams, RuntimeError> {
        let id = id.clone();
        self.run(move |driver| async move { driver.attach(&id, options).await }).await
    }

    async fn port_forward(&self, pod: &Uid, port: u16) -> Result<Connection, RuntimeError> {
        let namespace = self.driver.network_namespace(pod)?;
        netns::connect(namespace, port).await
    }

    async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let id = id.clone();
        self.run(move |driver| async move { driver.update_container(&id, resources).await }).await
    }

    async fn update_pod_sandbox(&self, pod: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let pod = pod.clone();
        self.run(move |driver| async move { driver.update_sandbox(&pod, cpu_request_milli).await }).await
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        let layers = Arc::clone(&self.layers);
        self.run(|driver| blocking(move || Ok(usage::of_pods(&driver.hierarchies, &layers, &driver.pods()))))
            .await
    }

    fn rotates_logs(&self) -> bool {
        true
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.driver.pods().iter().flat_map(|pod| pod.container_statuses()).collect())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.driver.events.subscribe()
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        let name = name.to_owned();
        self.run(|driver| {
            blocking(move || driver.config.images.resolve(&name).map(|found| found.map(|found| found.image)))
        })
        .await
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        self.run(|driver| blocking(move || driver.config.images.list())).await
    }

    async fn pull_image(&self, name: &str, auth: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        self.pulls.pull(name, auth).await
    }

    fn pull_progress(&self, name: &str) -> Option<PullProgress> {
        self.pulls.progress(name)
    }

    async fn image_origin(&self, name: &str, _: &Image) -> Result<Origin, RuntimeError> {
        // Many containers have it, and each start asks.
        if name == BUILTIN_IMAGE || normalize(name).is_ok_and(|full| full == BUILTIN_IMAGE) {
            return Ok(Origin::ByHand);
        }
        let name = name.to_owned();
        self.run(|driver| blocking(move || driver.config.images.origin(&name))).await
    }

    async fn shared_images(&self) -> Result<Vec<SharedImage>, RuntimeError> {
        self.run(|driver| blocking(move || driver.config.images.shared())).await
    }

    async fn image_part(&self, image: &str, digest: &str) -> Result<Reader, RuntimeError> {
        let (image, digest) = (image.to_owned(), digest.to_owned());
        self.run(|driver| async move { driver.config.images.part(&image, &digest).await }).await
    }

    fn takes_images(&self) -> bool {
        true
    }

    async fn take_image(
        &self,
        offer: SharedImage,
        source: Arc<dyn PartSource>,
    ) -> Result<Image, RuntimeError> {
        self.pulls.take(offer, source).await
    }

    async fn storage(&self) -> Result<Option<Storage>, RuntimeError> {
        let config = &self.driver.config;
        let layers = state::writable(&config.root);
        // It is made with the first container.
        let layers = if layers.exists() { layers } else { config.root.clone() };
        Ok(Some(Storage { images: config.images.dir().to_owned(), layers }))
    }

    async fn idle_images(&self) -> Result<Vec<IdleImage>, RuntimeError> {
        self.run(|driver| blocking(move || driver.config.images.idle())).await
    }

    async fn load_image(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError> {
        self.run(|driver| async move { driver.config.images.load(archive, rename).await }).await
    }

    async fn import_image(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError> {
        let name = name.to_owned();
        self.run(|driver| async move { driver.config.images.import(rootfs, &name).await }).await
    }

    async fn save_images(&self, names: Vec<String>) -> Result<Reader, RuntimeError> {
        self.run(|driver| async move { driver.config.images.save(names).await }).await
    }

    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let name = name.to_owned();
        self.run(|driver| async move { driver.config.images.remove(&name).await }).await
    }
}
