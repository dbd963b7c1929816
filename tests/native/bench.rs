//! One runtime for one test, and what tests do with it again and again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tempfile::TempDir;
use tokio::sync::broadcast;
use troupe::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, ContainerState, ContainerStatus, Exit, RuntimeError,
        RuntimeEvent, SandboxConfig,
        images::ImageStore,
        native::{self, NativeConfig, NativeRuntime},
    },
};

/// A whole test is stuck when one step takes longer.
pub const STEP: Duration = Duration::from_secs(60);

/// Whose child a process is: of a container's program, its pod's shim.
pub fn parent(pid: i32) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A runtime of its own.
pub struct Bench {
    runtime: Option<Arc<NativeRuntime>>,
    events: broadcast::Receiver<RuntimeEvent>,
    /// How it was set up, to open it again.
    pub config: NativeConfig,
    dir: TempDir,
    cidr: String,
}

impl Bench {
    pub async fn new() -> Bench {
        if let Err(missing) = native::check() {
            panic!("these tests run real containers and cannot here:\n{}", missing.join("\n"));
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let dir = tempfile::Builder::new().prefix("troupe-native-").tempdir().unwrap();
        let images = ImageStore::open(&dir.path().join("images")).unwrap();
        images.import(Box::pin(busybox()), "busybox").await.unwrap();
        let config = NativeConfig {
            bridge: format!("tt{process:x}n{number}"),
            shim: PathBuf::from(env!("CARGO_BIN_EXE_troupe")),
            cgroup_parent: format!("troupe-test-{process}-{number}"),
            ..NativeConfig::new(dir.path().join("root"), images.clone())
        };
        fs::create_dir(dir.path().join("logs")).unwrap();
        let cidr = format!("10.{}.{number}.0/24", 130 + process % 100);
        let runtime = NativeRuntime::open(config.clone()).unwrap();
        let events = runtime.events();
        Bench { runtime: Some(Arc::new(runtime)), events, config, dir, cidr }
    }

    pub fn runtime(&self) -> &Arc<NativeRuntime> {
        self.runtime.as_ref().unwrap()
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// What happens when the driving process starts anew.
    pub fn reopen(&mut self) {
        self.runtime = None;
        let runtime = NativeRuntime::open(self.config.clone()).unwrap();
        self.events = runtime.events();
        self.runtime = Some(Arc::new(runtime));
    }

    pub async fn sandbox(&self, uid: &str) -> Uid {
        self.sandbox_with(SandboxConfig { uid: uid.to_owned(), ..sandbox_config() }).await
    }

    pub async fn sandbox_with(&self, config: SandboxConfig) -> Uid {
        self.runtime().set_pod_cidr(&self.cidr).await.unwrap();
        self.runtime().run_pod_sandbox(config).await.unwrap().uid
    }

    /// This test's subnet with another prefix length.
    pub fn subnet(&self, prefix: &str) -> String {
        self.cidr.replace("/24", &format!("/{prefix}"))
    }

    /// Where the container of that name logs to.
    pub fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name)
    }

    pub async fn create(&self, pod: &Uid, mut config: ContainerConfig) -> Result<ContainerId, RuntimeError> {
        config.log_path = self.log(&config.name);
        self.runtime().create_container(pod, config).await
    }

    pub async fn start(&self, pod: &Uid, config: ContainerConfig) -> ContainerId {
        self.try_start(pod, config).await.unwrap()
    }

    pub async fn try_start(&self, pod: &Uid, config: ContainerConfig) -> Result<ContainerId, RuntimeError> {
        let id = self.create(pod, config).await?;
        self.runtime().start_container(&id).await.map(|()| id)
    }

    /// Runs a shell script to its end in a new container of a new pod; gives what it said on standard output, and its exit.
    pub async fn script(
        &mut self,
        change: impl FnOnce(&mut ContainerConfig),
        script: &str,
    ) -> (Vec<String>, Exit) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("s{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let pod = self.sandbox(&name).await;
        let mut config = config(&name, &["sh", "-c", script]);
        change(&mut config);
        let id = self.start(&pod, config).await;
        let exit = self.exit(&id).await;
        let output = self.output(&name);
        let lines =
            output.iter().filter_map(|line| line.strip_prefix("stdout F ")).map(str::to_owned).collect();
        (lines, exit)
    }

    pub async fn status(&self, id: &ContainerId) -> ContainerStatus {
        let all = self.runtime().list_containers().await.unwrap();
        all.into_iter().find(|status| status.id == *id).unwrap()
    }

    /// Waits for the container's end.
    pub async fn exit(&mut self, id: &ContainerId) -> Exit {
        // The receiver was there before the container, so its exit is either listed already or will be told.
        loop {
            if let ContainerState::Exited(exit) = self.status(id).await.state {
                return exit;
            }
            tokio::time::timeout(STEP, self.events.recv()).await.expect("no exit").unwrap();
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

    /// The log's records without their times.
    pub fn output(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.log(name)).unwrap_or_default();
        text.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.to_owned()).collect()
    }

    /// Waits for a line in a log: the file is read again until it is there.
    pub async fn line(&self, name: &str, wanted: &str) {
        let until = std::time::Instant::now() + STEP;
        while !self.output(name).iter().any(|line| line.contains(wanted)) {
            assert!(std::time::Instant::now() < until, "{wanted:?} not in {:?}", self.output(name));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Removes everything and says what is still there: must be nothing.
    pub async fn leftovers(&mut self) -> Vec<String> {
        self.runtime().destroy().await.unwrap();
        self.traces()
    }

    /// What of this runtime can be seen on the machine.
    pub fn traces(&self) -> Vec<String> {
        let mut found = Vec::new();
        let root = self.config.root.to_string_lossy().into_owned();
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        found.extend(text("/proc/self/mounts").lines().filter(|l| l.contains(&root)).map(str::to_owned));
        found.extend(names("/sys/class/net").into_iter().filter(|name| *name == self.config.bridge));
        for entry in names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()) {
            if text(&format!("/proc/{entry}/cmdline")).contains(&root) {
                found.push(format!("process {entry}"));
            }
        }
        for controller in names("/sys/fs/cgroup") {
            let group = Path::new("/sys/fs/cgroup").join(controller).join(&self.config.cgroup_parent);
            found.extend(group.exists().then(|| group.display().to_string()));
        }
        found.extend(names(&format!("{root}/sandboxes")));
        found.extend(names(&format!("{root}/writable")));
        found
    }
}

impl Drop for Bench {
    /// Removes everything, also when the test failed.
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        if std::thread::panicking() {
            for pod in names(&self.config.root.join("sandboxes").to_string_lossy()) {
                let log = self.config.root.join("sandboxes").join(&pod).join("shim.log");
                eprintln!("{pod}: {}", fs::read_to_string(log).unwrap_or_default());
            }
        }
        let cleaned = std::thread::spawn(move || {
            let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            waiting.block_on(runtime.destroy())
        });
        match cleaned.join() {
            Ok(Ok(())) => {}
            other => eprintln!("not cleaned up: {other:?}"),
        }
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub fn sandbox_config() -> SandboxConfig {
    SandboxConfig {
        namespace: "default".into(),
        name: "web".into(),
        hostname: "web".into(),
        ..SandboxConfig::default()
    }
}

pub fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// A container that runs these words.
pub fn config(name: &str, words: &[&str]) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        image: "busybox".to_owned(),
        command: argv(words),
        ..ContainerConfig::default()
    }
}

/// An archive of a root file system made of the machine's static busybox.
pub fn busybox() -> &'static [u8] {
    static TAR: OnceLock<Vec<u8>> = OnceLock::new();
    TAR.get_or_init(|| {
        let mut tar = tar::Builder::new(Vec::new());
        let header = |kind, mode| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header
        };
        for (name, mode) in [("bin", 0o755), ("etc", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
            tar.append_data(&mut header(tar::EntryType::Directory, mode), name, std::io::empty()).unwrap();
        }
        tar.append_path_with_name("/bin/busybox", "bin/busybox")
            .expect("a static busybox is needed: apt install busybox-static");
        let applets = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
        for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
            let path = format!("bin/{applet}");
            tar.append_link(&mut header(tar::EntryType::Symlink, 0o777), path, "busybox").unwrap();
        }
        for (name, text) in [
            ("etc/passwd", "root:x:0:0::/root:/bin/sh\nwww:x:33:34::/srv:/bin/sh\n"),
            ("etc/group", "root:x:0:\nwww:x:34:\naudio:x:29:www\n"),
        ] {
            let mut file = header(tar::EntryType::Regular, 0o644);
            file.set_size(text.len() as u64);
            tar.append_data(&mut file, name, text.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    })
}
