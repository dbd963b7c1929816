//! What the suite needs of a runtime, and what its cases do again and again.
//!
//! Owns: [`Harness`], the seam to a runtime under test, and [`Bench`], a runtime with its log directory and event
//! receiver. Nothing here sleeps for a fixed time: events are awaited, files are read again until a deadline.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::sync::broadcast;
use troupe::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, ContainerState, ContainerStatus, Exit, RuntimeError,
        RuntimeEvent, SandboxConfig, SandboxStatus, images::BUILTIN_IMAGE,
    },
};

/// A whole case is stuck when one step takes longer.
pub const STEP: Duration = Duration::from_secs(60);
/// A grace that no case waits out.
pub const LONG: Duration = Duration::from_secs(60);
/// The subnet that cases use unless they need a special one: its address parts depend on the process, so that two runs
/// of the suite on one machine do not meet.
pub fn subnet() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("10.{}.{}.0/24", 20 + std::process::id() % 100, number % 256)
}

/// A runtime under test. What it leaves on the machine goes when it is dropped.
pub trait Harness: Sized {
    /// A runtime of its own, in which the built-in image is present and `absent.example/none` is not.
    async fn new(dir: &Path) -> Self;
    /// The runtime; a case does not use it between `close` and `reopen`.
    fn runtime(&self) -> &dyn ContainerRuntime;
    /// The process that drives the runtime ends without a word.
    fn close(&mut self);
    /// Another process takes its place.
    fn reopen(&mut self);
    /// `kill -9` of a container's program, past the runtime.
    fn kill(&self, container: &ContainerStatus);
    /// What holds a sandbox together dies, past the runtime.
    fn lose_sandbox(&self, container: &ContainerStatus);
}

/// A runtime and what is around it.
pub struct Bench<H: Harness> {
    pub harness: H,
    events: broadcast::Receiver<RuntimeEvent>,
    subnet: String,
    dir: TempDir,
}

impl<H: Harness> Bench<H> {
    pub async fn new() -> Bench<H> {
        // Beside the executable, so that the built-in image can be a hard link to it.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        std::fs::create_dir(dir.path().join("logs")).unwrap();
        let harness = H::new(dir.path()).await;
        let events = harness.runtime().events();
        Bench { harness, events, subnet: subnet(), dir }
    }

    pub fn runtime(&self) -> &dyn ContainerRuntime {
        self.harness.runtime()
    }

    /// The driving process dies and another one takes its place, with `meanwhile` in between.
    pub async fn restart(&mut self, meanwhile: impl Future<Output = ()>) {
        self.harness.close();
        meanwhile.await;
        self.harness.reopen();
        self.events = self.runtime().events();
        self.runtime().set_pod_cidr(&self.subnet).await.unwrap();
    }

    /// A directory of the node that every user may write to.
    pub fn shared_dir(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        path
    }

    pub async fn sandbox(&self, uid: &str) -> SandboxStatus {
        self.sandbox_with(sandbox(uid)).await
    }

    pub async fn sandbox_with(&self, config: SandboxConfig) -> SandboxStatus {
        self.runtime().set_pod_cidr(&self.subnet).await.unwrap();
        self.runtime().run_pod_sandbox(config).await.unwrap()
    }

    /// A sandbox as it is listed.
    pub async fn find_sandbox(&self, uid: &str) -> Option<SandboxStatus> {
        let all = self.runtime().list_pod_sandboxes().await.unwrap();
        all.into_iter().find(|sandbox| sandbox.uid.as_str() == uid)
    }

    /// A container of the built-in image with these arguments, logging to a file named as itself.
    pub fn hello(&self, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            name: name.to_owned(),
            image: BUILTIN_IMAGE.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            log_path: self.dir.path().join("logs").join(name),
            ..ContainerConfig::default()
        }
    }

    pub async fn create(&self, pod: &str, config: ContainerConfig) -> Result<ContainerId, RuntimeError> {
        self.runtime().create_container(&Uid::from(pod), config).await
    }

    pub async fn start(&self, pod: &str, config: ContainerConfig) -> ContainerId {
        let id = self.create(pod, config).await.unwrap();
        self.runtime().start_container(&id).await.unwrap();
        id
    }

    /// A pod with one container that runs until it is stopped.
    pub async fn running(&self, pod: &str) -> ContainerId {
        self.sandbox(pod).await;
        self.start(pod, self.hello(pod, &[])).await
    }

    /// Runs the program to its end in a new container of a pod: its lines on standard output, and its exit.
    pub async fn output_of(&mut self, pod: &str, config: ContainerConfig) -> (Vec<String>, Exit) {
        let name = config.name.clone();
        let id = self.start(pod, config).await;
        let exit = self.exit(&id).await;
        let out = self.log(&name);
        (out.iter().filter_map(|line| line.strip_prefix("stdout F ").map(str::to_owned)).collect(), exit)
    }

    /// A container as it is listed.
    pub async fn find(&self, id: &ContainerId) -> Option<ContainerStatus> {
        let all = self.runtime().list_containers().await.unwrap();
        all.into_iter().find(|container| container.id == *id)
    }

    pub async fn state(&self, id: &ContainerId) -> ContainerState {
        self.find(id).await.unwrap().state
    }

    /// Waits for the end of a container's program, and for the whole of its log, and says how the listing tells it.
    pub async fn exit(&mut self, id: &ContainerId) -> Exit {
        // The receiver was there before the container, so an exit is either listed already or will be told.
        loop {
            if let ContainerState::Exited(exit) = self.state(id).await {
                self.runtime().log_written(id).await;
                return exit;
            }
            tokio::time::timeout(STEP, self.events.recv()).await.expect("no exit is told").unwrap();
        }
    }

    /// Waits for an event.
    pub async fn event(&mut self, wanted: impl Fn(&RuntimeEvent) -> bool) -> RuntimeEvent {
        loop {
            let event = tokio::time::timeout(STEP, self.events.recv()).await.expect("no such event").unwrap();
            if wanted(&event) {
                return event;
            }
        }
    }

    /// Waits for the event of a container's exit.
    pub async fn told_exit(&mut self, wanted: &ContainerId) -> Exit {
        match self.event(|event| matches!(event, RuntimeEvent::Exited { id, .. } if id == wanted)).await {
            RuntimeEvent::Exited { exit, .. } => exit,
            RuntimeEvent::SandboxLost { .. } => unreachable!("not what was waited for"),
        }
    }

    /// A log's records without their times: `stdout F text`.
    pub fn log(&self, name: &str) -> Vec<String> {
        let lines = self.raw_log(name);
        lines.iter().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.to_owned()).collect()
    }

    /// A log's records as they are: `TIME stdout F text`.
    pub fn raw_log(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.dir.path().join("logs").join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The files of a log, oldest first: the rotated ones, then the one being written.
    pub fn log_files(&self, name: &str) -> Vec<PathBuf> {
        let dir = self.dir.path().join("logs");
        let names =
            std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut rotated: Vec<String> = names.filter(|file| file.starts_with(&format!("{name}."))).collect();
        rotated.sort();
        rotated.into_iter().chain([name.to_owned()]).map(|file| dir.join(file)).collect()
    }

    /// Waits until a log has a line with this text.
    pub async fn line(&self, name: &str, wanted: &str) {
        until(|| self.log(name).iter().any(|line| line.contains(wanted)))
            .await
            .unwrap_or_else(|| panic!("{wanted:?} is not in {:?}", self.log(name)));
    }
}

/// Asks again and again; `None` when it took too long.
pub async fn until(mut done: impl FnMut() -> bool) -> Option<()> {
    let deadline = Instant::now() + STEP;
    while !done() {
        if Instant::now() > deadline {
            return None;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Some(())
}

pub fn sandbox(uid: &str) -> SandboxConfig {
    SandboxConfig {
        namespace: "default".into(),
        name: format!("pod-{uid}"),
        uid: uid.to_owned(),
        hostname: format!("host-{uid}"),
        ..SandboxConfig::default()
    }
}
