//! A process's handle to a simulated machine: the runtime's methods, with their delays.
//!
//! Owns: [`SimRuntime`] and its clock, a task that runs while the handle is open and anything is due. Invariant: the
//! machine's lock is never held across an `await`.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{
        Arc, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::{
    sync::broadcast,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Behaviour, Operation, SimMachine, exec,
    machine::{State, draw, image_of, seeded},
};
use crate::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerResources, ContainerRuntime, ContainerState, ContainerStatus,
        ExecOutput, IdleImage, Image, Origin, Reader, RegistryAuth, RuntimeError, RuntimeEvent,
        SandboxConfig, SandboxStats, SandboxStatus,
        images::{ImageStore, normalize},
        logs::{self, LogLimits, LogWriter, Stream},
    },
};

/// A process's handle to a simulated machine.
#[derive(Clone)]
pub struct SimRuntime {
    open: Arc<Open>,
}

struct Open {
    machine: Arc<SimMachine>,
    clock_runs: AtomicBool,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.machine.wake.notify_waiters();
    }
}

impl SimRuntime {
    /// Opens a machine; within a tokio runtime. What runs there goes on and is found by the `list_*` methods.
    pub fn open(machine: Arc<SimMachine>) -> SimRuntime {
        let runtime = SimRuntime { open: Arc::new(Open { machine, clock_runs: AtomicBool::new(false) }) };
        if runtime.machine().look().next_due().is_some() {
            runtime.run_clock();
        }
        runtime
    }

    /// The machine behind it.
    pub fn machine(&self) -> &Arc<SimMachine> {
        &self.open.machine
    }

    /// Sees to it that a task lets things happen in time.
    fn run_clock(&self) {
        if self.open.clock_runs.swap(true, Ordering::AcqRel) {
            self.machine().wake.notify_waiters();
            return;
        }
        tokio::spawn(clock(ClockGuard(Arc::downgrade(&self.open)), Arc::clone(self.machine())));
    }

    fn ready_for(&self, operation: Operation) -> Result<MutexGuard<'_, State>, RuntimeError> {
        let mut state = self.machine().look();
        state.ordered_failure(operation)?;
        Ok(state)
    }

    fn find_image(&self, state: &State, name: &str) -> Result<Option<(String, Image)>, RuntimeError> {
        let full = normalize(name)?;
        let found = match state.images.get(&full) {
            Some(image) => Some(image.clone()),
            None => self.machine().config.any_image.then(|| image_of(&full)),
        };
        Ok(found.map(|image| (full, image)))
    }

    /// Lets a real image store read an archive, so that what it would refuse is refused here, too; keeps of it what a
    /// simulation needs: names, id, size and user.
    async fn take_images<F: Future<Output = Result<(), RuntimeError>>>(
        &self,
        read: impl FnOnce(ImageStore) -> F,
    ) -> Result<Vec<String>, RuntimeError> {
        let scratch = Scratch::new()?;
        let store = ImageStore::open(&scratch.0)?;
        read(store.clone()).await?;
        let mut state = self.machine().look();
        let mut names = Vec::new();
        for image in store.list()? {
            for name in &image.names {
                let image = Image { names: vec![name.clone()], ..image.clone() };
                state.images.insert(name.clone(), image);
                state.pulled.remove(name);
                names.push(name.clone());
            }
        }
        Ok(names)
    }

    /// Whether a seeded start fails.
    fn draws_failure(&self, subject: &str) -> bool {
        let config = &self.machine().config;
        draw(config.seed.wrapping_add(1), subject) % 1000 < u64::from(config.start_failures_per_mille)
    }
}

/// Notes that the clock stopped, also when its executor was dropped under it.
struct ClockGuard(Weak<Open>);

impl Drop for ClockGuard {
    fn drop(&mut self) {
        if let Some(open) = self.0.upgrade() {
            open.clock_runs.store(false, Ordering::Release);
        }
    }
}

async fn clock(guard: ClockGuard, machine: Arc<SimMachine>) {
    loop {
        let woken = machine.wake.notified();
        tokio::pin!(woken);
        // From here on no wake-up is missed.
        woken.as_mut().enable();
        let next = machine.look().next_due();
        if guard.0.strong_count() == 0 {
            return;
        }
        match next {
            // Woken for something earlier, or the time has come.
            Some(at) => drop(timeout_at(at, woken).await),
            None => woken.await,
        }
    }
}

/// Lets time pass. No time is none: tokio's shortest sleep is a millisecond.
async fn pass(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

#[async_trait]
impl ContainerRuntime for SimRuntime {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn version(&self) -> String {
        env!("CARGO_PKG_VERSION").to_owned()
    }

    fn has_network(&self) -> bool {
        false
    }

    fn user_namespaces(&self) -> bool {
        true
    }

    async fn status(&self) -> Result<(), RuntimeError> {
        self.ready_for(Operation::Status).map(drop)
    }

    async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError> {
        self.ready_for(Operation::SetPodCidr)?.addresses.set(cidr)
    }

    async fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        drop(self.ready_for(Operation::RunPodSandbox)?);
        let of_machine = &self.machine().config;
        pass(seeded(of_machine.seed, &config.uid, &of_machine.sandbox_delay)).await;
        let told = self.machine().look().run_sandbox(&config)?;
        pass(of_machine.sandbox_answer_delay).await;
        Ok(told)
    }

    async fn stop_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        self.ready_for(Operation::StopPodSandbox)?.stop_sandbox(pod);
        Ok(())
    }

    async fn remove_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        self.ready_for(Operation::RemovePodSandbox)?.remove_sandbox(pod);
        Ok(())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        let state = self.ready_for(Operation::ListPodSandboxes)?;
        Ok(state.sandboxes.keys().filter_map(|uid| state.sandbox_status(uid)).collect())
    }

    async fn create_container(
        &self,
        pod: &Uid,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let mut state = self.ready_for(Operation::CreateContainer)?;
        let (full, image) = self
            .find_image(&state, &config.image)?
            .ok_or_else(|| RuntimeError::ImageNotFound(config.image.clone()))?;
        let user = config.security.user.map_or(image.user, |user| user.to_string());
        if config.security.run_as_non_root && matches!(user.as_str(), "" | "0" | "root") {
            return Err(RuntimeError::Config(
                "container has runAsNonRoot and image will run as root".to_owned(),
            ));
        }
        let hostname = state.sandboxes.get(pod).map(|sandbox| sandbox.hostname.clone()).unwrap_or_default();
        let of_image = self.machine().config.images.get(&full);
        let mut behaviour = Behaviour::foretell(of_image, &full, &config, &hostname);
        if self.draws_failure(&format!("{pod}/{}/{}", config.name, config.attempt)) {
            behaviour.fail_start = Some("simulated failure".to_owned());
        }
        state.create(pod, &config, image.id, behaviour)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        drop(self.ready_for(Operation::StartContainer)?);
        let of_machine = &self.machine().config;
        pass(seeded(of_machine.seed, &id.0, &of_machine.start_delay)).await;
        let (output, ends) = {
            let mut state = self.machine().look();
            state.start(id)?;
            let container = state.container_mut(id)?;
            (
                Output::of(container.log_path.clone(), container.log_limits, &container.behaviour),
                container.behaviour.exit_after.is_some(),
            )
        };
        if let Some(output) = output {
            output.write().await?;
        }
        if ends {
            self.run_clock();
        }
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let mut events = {
            let mut state = self.ready_for(Operation::StopContainer)?;
            let events = state.events.subscribe();
            state.signal(id, nix::libc::SIGTERM);
            events
        };
        let deadline = Instant::now() + grace;
        while !self.machine().look().stopped_by(id, deadline) {
            // Whatever happened, the state tells.
            let _ = timeout_at(deadline, events.recv()).await;
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.ready_for(Operation::RemoveContainer)?.forget_container(id);
        Ok(())
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        drop(self.ready_for(Operation::ExecSync)?);
        exec::run(self.machine(), id, &command, timeout).await
    }

    /// Simulated programs use nothing, so nothing limits them.
    async fn update_container(&self, id: &ContainerId, _: ContainerResources) -> Result<(), RuntimeError> {
        let all = self.ready_for(Operation::UpdateContainer)?.container_statuses();
        let runs = all.iter().any(|c| c.id == *id && c.state == ContainerState::Running);
        runs.then_some(()).ok_or_else(|| RuntimeError::NotFound(format!("running container {id}")))
    }

    async fn update_pod_sandbox(&self, pod: &Uid, cpu_request_milli: i64) -> Result<(), RuntimeError> {
        let mut state = self.ready_for(Operation::UpdatePodSandbox)?;
        let sandbox = state.sandboxes.get_mut(pod).filter(|sandbox| sandbox.ready);
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(format!("sandbox {pod}")))?;
        sandbox.cpu_request_milli = cpu_request_milli;
        Ok(())
    }

    async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        Ok(self.machine().look().stats())
    }

    fn rotates_logs(&self) -> bool {
        true
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.ready_for(Operation::ListContainers)?.container_statuses())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.machine().look().events.subscribe()
    }

    /// Nothing is written through any mount.
    fn recursive_read_only(&self) -> bool {
        true
    }

    /// Nothing runs, so nothing looks at files.
    fn has_files(&self) -> bool {
        false
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        let state = self.ready_for(Operation::Image)?;
        Ok(self.find_image(&state, name)?.map(|(_, image)| image))
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let state = self.ready_for(Operation::ListImages)?;
        let mut by_id: BTreeMap<&str, Image> = BTreeMap::new();
        for (name, image) in &state.images {
            let listed =
                by_id.entry(&image.id).or_insert_with(|| Image { names: Vec::new(), ..image.clone() });
            listed.names.push(name.clone());
        }
        Ok(by_id.into_values().collect())
    }

    async fn pull_image(&self, name: &str, _: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        drop(self.ready_for(Operation::PullImage)?);
        let full = normalize(name)?;
        let delay = self.machine().config.registry.get(&full);
        let delay = delay.ok_or_else(|| RuntimeError::Pull(format!("{full}: manifest unknown")))?;
        pass(*delay).await;
        let mut state = self.machine().look();
        let image = state.images.entry(full.clone()).or_insert_with(|| image_of(&full)).clone();
        state.pulled.insert(full);
        Ok(image)
    }

    async fn image_origin(&self, name: &str, _: &Image) -> Result<Origin, RuntimeError> {
        let state = self.machine().look();
        let found = self.find_image(&state, name)?;
        let by_hand = found.is_some_and(|(full, _)| !state.pulled.contains(&full));
        Ok(if by_hand { Origin::ByHand } else { Origin::Registry })
    }

    async fn idle_images(&self) -> Result<Vec<IdleImage>, RuntimeError> {
        let state = self.machine().look();
        let in_use: Vec<String> = state.container_statuses().into_iter().map(|c| c.image_id).collect();
        let pulled = state
            .pulled
            .iter()
            .filter(|name| state.images.get(*name).is_some_and(|image| !in_use.contains(&image.id)));
        Ok(pulled.map(|name| IdleImage { names: vec![name.clone()], used_ms: 0 }).collect())
    }

    async fn load_image(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError> {
        drop(self.ready_for(Operation::LoadImage)?);
        self.take_images(|store| async move { store.load(archive, rename).await.map(drop) }).await
    }

    async fn import_image(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError> {
        drop(self.ready_for(Operation::ImportImage)?);
        self.take_images(|store| async move { store.import(rootfs, name).await.map(drop) }).await?;
        normalize(name)
    }

    async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let mut state = self.ready_for(Operation::RemoveImage)?;
        let full = normalize(name)?;
        state.pulled.remove(&full);
        state.images.remove(&full).map(drop).ok_or_else(|| RuntimeError::ImageNotFound(name.to_owned()))
    }
}

/// A directory that goes with its last use.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Scratch, RuntimeError> {
        let path = std::env::temp_dir().join(format!("troupe-sim-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&path).map_err(|cause| RuntimeError::System {
            operation: format!("make {}", path.display()),
            cause: cause.to_string(),
        })?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left in a directory for temporary files hurts nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a container prints when it starts.
struct Output {
    path: PathBuf,
    limits: LogLimits,
    bytes: Vec<u8>,
}

impl Output {
    fn of(path: PathBuf, limits: LogLimits, behaviour: &Behaviour) -> Option<Output> {
        let (out, err) = (&behaviour.stdout, &behaviour.stderr);
        if path.as_os_str().is_empty() || (out.is_empty() && err.is_empty()) {
            return None;
        }
        let mut bytes = Vec::new();
        for (stream, lines) in [(Stream::Stdout, out), (Stream::Stderr, err)] {
            for line in lines {
                logs::encode(&mut bytes, SystemTime::now(), stream, true, line.as_bytes());
            }
        }
        Some(Output { path, limits, bytes })
    }

    async fn write(self) -> Result<(), RuntimeError> {
        let failed =
            |cause: String| RuntimeError::System { operation: "write the container's log".into(), cause };
        let append = move || {
            LogWriter::open(&self.path, self.limits)?.write(&self.bytes);
            Ok(())
        };
        match tokio::task::spawn_blocking(append).await {
            Ok(done) => done.map_err(|e: std::io::Error| failed(e.to_string())),
            Err(e) => Err(failed(e.to_string())),
        }
    }
}
