//! A container runtime of the embedder's own: its "containers" are async tasks of this process.
//!
//! Owns: [`TaskRuntime`], which keeps what every [`ContainerRuntime`] must: an exit is told by an event and stays
//! readable until the container is removed; whatever ends something may be repeated. An image is a function, registered
//! under a name. Leaves out what tasks cannot have: files, networks, limits. Tasks end with the process, so there is
//! nothing to find again after its restart.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use troupe::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, ContainerState, ContainerStatus, Exit, Image, Reader,
        RuntimeError, RuntimeEvent, SandboxConfig, SandboxStatus, images,
        logs::{self, Stream},
    },
};

/// Exits that a slow receiver may be behind; one that is further behind lists.
const EVENTS: usize = 256;
/// What a shell says of a program that SIGKILL ended.
const KILLED: i32 = 128 + 9;
/// And of one that aborted.
const ABORTED: i32 = 128 + 6;

/// What a container runs.
type Program = Arc<dyn Fn(Task) -> Pin<Box<dyn Future<Output = i32> + Send>> + Send + Sync>;

/// A container, as its program sees it.
#[derive(Clone)]
pub struct Task {
    args: Vec<String>,
    log: PathBuf,
    stop: CancellationToken,
}

impl Task {
    /// The container's arguments.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Prints a line on standard output: `kubectl logs` shows it.
    pub fn print(&self, line: &str) {
        let mut bytes = Vec::new();
        logs::encode(&mut bytes, SystemTime::now(), Stream::Stdout, true, line.as_bytes());
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        if let Err(error) = file.and_then(|mut file| file.write_all(&bytes)) {
            tracing::warn!(%error, path = %self.log.display(), "a line is lost");
        }
    }

    /// Waits for SIGTERM, so to speak. A program that does not listen is dropped when its grace is over.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

/// The runtime. Cheap to clone: clones are one machine.
#[derive(Clone)]
pub struct TaskRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    programs: BTreeMap<String, Program>,
    state: Mutex<State>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<Uid, SandboxStatus>,
    containers: BTreeMap<ContainerId, Container>,
    made: u64,
}

struct Container {
    status: ContainerStatus,
    task: Task,
    /// Ends the task whether it listens or not.
    kill: CancellationToken,
    ended: watch::Sender<bool>,
}

impl TaskRuntime {
    /// A machine without images.
    pub fn builder() -> Builder {
        Builder { programs: BTreeMap::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half way while it is held.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn program(&self, image: &str) -> Result<Option<(String, Program)>, RuntimeError> {
        let name = images::normalize(image)?;
        Ok(self.inner.programs.get(&name).map(|program| (name.clone(), program.clone())))
    }

    /// Notes how a container ended, once, and tells it.
    fn ended(&self, id: &ContainerId, code: i32, signal: Option<i32>) {
        let exit = Exit { code, signal, oom_killed: false, finished_ms: now_ms(), unseen: false };
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(id) else { return };
        if matches!(container.status.state, ContainerState::Exited(_)) {
            return;
        }
        container.status.state = ContainerState::Exited(exit.clone());
        container.ended.send_replace(true);
        let pod = container.status.pod.clone();
        // Nobody listens when the node is down; the list says the same.
        let _ = self.inner.events.send(RuntimeEvent::Exited { pod, id: id.clone(), exit });
    }

    /// Kills what runs of these containers and waits until it is dead.
    async fn kill(&self, doomed: impl Fn(&ContainerStatus) -> bool) {
        let ends: Vec<watch::Receiver<bool>> = {
            let state = self.state();
            let running = state.containers.values().filter(|c| doomed(&c.status));
            running.filter(|c| c.status.state == ContainerState::Running).map(Container::kill).collect()
        };
        for mut end in ends {
            let _ = end.wait_for(|ended| *ended).await;
        }
    }
}

impl Container {
    fn kill(&self) -> watch::Receiver<bool> {
        self.kill.cancel();
        self.ended.subscribe()
    }
}

/// Collects images before the machine runs.
pub struct Builder {
    programs: BTreeMap<String, Program>,
}

impl Builder {
    /// An image: what its containers do, and their exit code.
    ///
    /// # Errors
    /// When the name is no image name.
    pub fn image<F, Run>(mut self, name: &str, run: F) -> Result<Builder, RuntimeError>
    where
        F: Fn(Task) -> Run + Send + Sync + 'static,
        Run: Future<Output = i32> + Send + 'static,
    {
        let program: Program = Arc::new(move |task| Box::pin(run(task)));
        self.programs.insert(images::normalize(name)?, program);
        Ok(self)
    }

    /// The machine.
    pub fn build(self) -> TaskRuntime {
        let (events, _) = broadcast::channel(EVENTS);
        let inner = Inner { programs: self.programs, state: Mutex::default(), events };
        TaskRuntime { inner: Arc::new(inner) }
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn image_of(name: &str) -> Image {
    Image {
        id: format!("task:{name}"),
        names: vec![name.to_owned()],
        digests: Vec::new(),
        size_bytes: 0,
        user: String::new(),
    }
}

#[async_trait]
impl ContainerRuntime for TaskRuntime {
    fn name(&self) -> &'static str {
        "task"
    }

    fn version(&self) -> String {
        "1".to_owned()
    }

    async fn set_pod_cidr(&self, _cidr: &str) -> Result<(), RuntimeError> {
        // Tasks share the network of their process.
        Ok(())
    }

    async fn run_pod_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        let uid = Uid::from(config.uid);
        let fresh = SandboxStatus {
            uid: uid.clone(),
            namespace: config.namespace,
            name: config.name,
            ready: true,
            ip: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            created_ms: now_ms(),
        };
        let mut state = self.state();
        let sandbox = state.sandboxes.entry(uid).or_insert_with(|| fresh.clone());
        if !sandbox.ready {
            *sandbox = fresh;
        }
        Ok(sandbox.clone())
    }

    async fn stop_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        if let Some(sandbox) = self.state().sandboxes.get_mut(pod) {
            sandbox.ready = false;
        }
        self.kill(|c| c.pod == *pod).await;
        Ok(())
    }

    async fn remove_pod_sandbox(&self, pod: &Uid) -> Result<(), RuntimeError> {
        self.stop_pod_sandbox(pod).await?;
        let mut state = self.state();
        state.sandboxes.remove(pod);
        state.containers.retain(|_, c| c.status.pod != *pod);
        Ok(())
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    async fn create_container(
        &self,
        pod: &Uid,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let found = self.program(&config.image)?;
        let (full, _) = found.ok_or_else(|| RuntimeError::ImageNotFound(config.image.clone()))?;
        let mut state = self.state();
        if !state.sandboxes.get(pod).is_some_and(|s| s.ready) {
            return Err(RuntimeError::NotFound(format!("a ready sandbox of pod {pod}")));
        }
        state.made += 1;
        let id = ContainerId(format!("{pod}-{}", state.made));
        let status = ContainerStatus {
            id: id.clone(),
            pod: pod.clone(),
            name: config.name,
            attempt: config.attempt,
            image_id: image_of(&full).id,
            image: config.image,
            state: ContainerState::Created,
            started_ms: 0,
            pid: None,
        };
        let args = config.command.into_iter().chain(config.args).collect();
        let task = Task { args, log: config.log_path, stop: CancellationToken::new() };
        let container =
            Container { status, task, kill: CancellationToken::new(), ended: watch::channel(false).0 };
        state.containers.insert(id.clone(), container);
        Ok(id)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (program, task, kill) = {
            let mut state = self.state();
            let container =
                state.containers.get_mut(id).ok_or_else(|| RuntimeError::NotFound(id.to_string()))?;
            if container.status.state != ContainerState::Created {
                return Err(RuntimeError::Start(format!("{id} was started before")));
            }
            let (_, program) = self
                .program(&container.status.image)?
                .ok_or_else(|| RuntimeError::ImageNotFound(container.status.image.clone()))?;
            container.status.state = ContainerState::Running;
            container.status.started_ms = now_ms();
            (program, container.task.clone(), container.kill.clone())
        };
        let (runtime, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            // A task of its own, so that a program's panic is an exit code and nobody else's trouble.
            let mut run = tokio::spawn(async move { program(task).await });
            tokio::select! {
                ended = &mut run => match ended {
                    Ok(code) => runtime.ended(&id, code, None),
                    Err(_panicked) => runtime.ended(&id, ABORTED, Some(6)),
                },
                () = kill.cancelled() => {
                    run.abort();
                    // It is dead once it is dropped.
                    let _ = run.await;
                    runtime.ended(&id, KILLED, Some(9));
                }
            }
        });
        Ok(())
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let mut end = {
            let state = self.state();
            let Some(container) = state.containers.get(id) else { return Ok(()) };
            if container.status.state != ContainerState::Running {
                return Ok(());
            }
            container.task.stop.cancel();
            container.ended.subscribe()
        };
        if tokio::time::timeout(grace, end.wait_for(|ended| *ended)).await.is_err() {
            self.kill(|c| c.id == *id).await;
        }
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.kill(|c| c.id == *id).await;
        self.state().containers.remove(id);
        Ok(())
    }

    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError> {
        Ok(self.state().containers.values().map(|c| c.status.clone()).collect())
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.inner.events.subscribe()
    }

    async fn image(&self, name: &str) -> Result<Option<Image>, RuntimeError> {
        Ok(self.program(name)?.map(|(name, _)| image_of(&name)))
    }

    async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        Ok(self.inner.programs.keys().map(|name| image_of(name)).collect())
    }

    async fn load_image(&self, _: Reader, _: Option<String>) -> Result<Vec<String>, RuntimeError> {
        Err(RuntimeError::Unsupported("task", "load images: they are functions of the program"))
    }

    async fn import_image(&self, _: Reader, _: &str) -> Result<String, RuntimeError> {
        Err(RuntimeError::Unsupported("task", "import images: they are functions of the program"))
    }

    async fn remove_image(&self, _: &str) -> Result<(), RuntimeError> {
        Err(RuntimeError::Unsupported("task", "remove images: they are functions of the program"))
    }
}
