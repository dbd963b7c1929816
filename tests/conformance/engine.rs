//! Docker engines for tests: each a `dockerd` of its own, in a directory of its own.
//!
//! Owns: [`Engine`] and the pool of them. Invariants: nothing of the machine's own engine, firewall or directories is
//! used; a test has its engine to itself; an engine ends with the test process, however that ends: a guard, a process
//! of its own, waits for the end of a pipe that the test process holds.

use std::{
    collections::HashMap,
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Mutex,
    time::{Duration, Instant},
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    query_parameters::{ListContainersOptions, ListNetworksOptions, RemoveContainerOptions},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Starting it takes a second or two; on a busy machine many.
const START: Duration = Duration::from_secs(120);

/// Ends the engine when its standard input ends, in peace if it can, and removes what it has on the machine: processes,
/// cgroups, mounts, its directory.
const GUARD: &str = r#"
    cat >/dev/null
    name=${2##*/}
    kill "$1" 2>/dev/null
    n=0
    while kill -0 "$1" 2>/dev/null && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        grep -aqs "$2/" "$process/cmdline" && kill -9 "$pid" 2>/dev/null
        grep -qs ":/$name/" "$process/cgroup" && kill -9 "$pid" 2>/dev/null
    done
    # What was killed is out of its group some moments later.
    n=0
    while [ $n -lt 100 ]; do
        find /sys/fs/cgroup -mindepth 1 -maxdepth 4 -depth -type d -path "*/$name*" -exec rmdir {} + 2>/dev/null
        [ -z "$(find /sys/fs/cgroup -mindepth 1 -maxdepth 2 -type d -name "$name" 2>/dev/null)" ] && break
        sleep 0.1; n=$((n+1))
    done
    grep -o " $2/[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
    rm -rf "$2"
"#;

/// Where the daemon is.
fn dockerd() -> Option<&'static Path> {
    ["/usr/sbin/dockerd", "/usr/bin/dockerd", "/usr/local/bin/dockerd"]
        .map(Path::new)
        .into_iter()
        .find(|p| p.exists())
}

/// Whether engines can be started here. Under `CI` there is no excuse.
pub fn at_hand() -> bool {
    let missing = match (nix::unistd::geteuid().is_root(), dockerd()) {
        (true, Some(_)) => return true,
        (false, _) => "root (containers need it)",
        (true, None) => "dockerd (apt-get install docker.io)",
    };
    assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no {missing}");
    eprintln!("skipped: no {missing}");
    false
}

/// A running engine.
pub struct Engine {
    pub socket: PathBuf,
    dir: PathBuf,
    dockerd: Mutex<Child>,
    guard: Child,
    /// Dropped: the guard ends the engine.
    alive: Option<ChildStdin>,
}

/// Engines that no test uses at the moment.
static POOL: Mutex<Vec<Engine>> = Mutex::new(Vec::new());

/// An engine for one test, given back when this is dropped.
pub struct Lease(Option<Engine>);

impl Lease {
    pub fn take() -> Lease {
        let free = POOL.lock().unwrap().pop();
        Lease(Some(free.unwrap_or_else(Engine::start)))
    }

    /// An engine that no other test ever has.
    #[allow(dead_code, reason = "not every test binary does that to engines")]
    pub fn fresh() -> Engine {
        Engine::start()
    }

    pub fn engine(&self) -> &Engine {
        self.0.as_ref().expect("there until dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that a failed test may have broken is not for others.
        if let Some(engine) = self.0.take().filter(|_| !std::thread::panicking()) {
            POOL.lock().unwrap().push(engine);
        }
    }
}

/// A daemon on a directory.
fn spawn(dir: &Path) -> Child {
    let at = |option: &str, name: &str| format!("--{option}={}", dir.join(name).display());
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    let output = std::fs::File::options().create(true).append(true).open(dir.join("dockerd.log")).unwrap();
    Command::new(dockerd().expect("`at_hand` was asked"))
        .arg(format!("--host=unix://{}", dir.join("docker.sock").display()))
        .args([at("data-root", "data"), at("exec-root", "exec"), at("pidfile", "pid")])
        .arg(at("config-file", "none.json"))
        .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"])
        .arg(format!("--containerd-namespace={name}"))
        .arg(format!("--containerd-plugins-namespace={name}-plugins"))
        .arg(format!("--cgroup-parent=/{name}"))
        .args(["--exec-opt=native.cgroupdriver=cgroupfs", "--log-level=warn"])
        .env_remove("DOCKER_HOST")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        // A terminal's interrupt is for the tests; the guard ends the engine.
        .process_group(0)
        .spawn()
        .unwrap()
}

impl Engine {
    fn start() -> Engine {
        // A short path: sockets' names are.
        let dir = tempfile::Builder::new().prefix("troupe-docker-").tempdir_in("/tmp").unwrap().keep();
        std::fs::write(dir.join("none.json"), "{}").unwrap();
        let dockerd = spawn(&dir);
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard", &dockerd.id().to_string(), &dir.to_string_lossy()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let alive = guard.stdin.take();
        let dockerd = Mutex::new(dockerd);
        let engine = Engine { socket: dir.join("docker.sock"), dir, dockerd, guard, alive };
        engine.wait_until_it_answers();
        engine
    }

    /// Ends the daemon in peace, as an upgrade does, and starts another on the same directory.
    #[allow(dead_code, reason = "not every test binary does that to engines")]
    pub fn restart(&self) {
        self.stop();
        self.begin_again();
    }

    /// Ends the daemon in peace.
    #[allow(dead_code, reason = "not every test binary does that to daemons")]
    pub fn stop(&self) {
        let mut dockerd = self.dockerd.lock().unwrap();
        kill(Pid::from_raw(i32::try_from(dockerd.id()).unwrap()), Signal::SIGTERM).unwrap();
        dockerd.wait().unwrap();
    }

    /// Starts a daemon where one was stopped.
    #[allow(dead_code, reason = "not every test binary does that to daemons")]
    pub fn begin_again(&self) {
        *self.dockerd.lock().unwrap() = spawn(&self.dir);
        self.wait_until_it_answers();
    }

    /// Bridges of its networks would outlive it: they are in its own hands alone.
    fn remove_bridges(&self) {
        self.ask(|docker| async move {
            let all = ListContainersOptions { all: true, ..ListContainersOptions::default() };
            for id in docker.list_containers(Some(all)).await?.into_iter().filter_map(|found| found.id) {
                let by_force = RemoveContainerOptions { force: true, ..RemoveContainerOptions::default() };
                let _ = docker.remove_container(&id, Some(by_force)).await;
            }
            let custom = HashMap::from([("type".to_owned(), vec!["custom".to_owned()])]);
            let options = ListNetworksOptions { filters: Some(custom) };
            for id in docker.list_networks(Some(options)).await?.into_iter().filter_map(|found| found.id) {
                let _ = docker.remove_network(&id).await;
            }
            Ok(())
        });
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + START;
        while self.ask(|docker| async move { docker.ping().await }).is_none() {
            let ended = self.dockerd.lock().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("dockerd.log")).unwrap_or_default();
                panic!("dockerd does not start ({ended:?}):\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the engine something past the runtime; `None` when it does not answer so.
    pub fn ask<T, F>(&self, question: impl FnOnce(Docker) -> F + Send + 'static) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, bollard::errors::Error>>,
    {
        let socket = self.socket.to_string_lossy().into_owned();
        // The caller may be inside a runtime.
        let asked = std::thread::spawn(move || {
            let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            waiting.block_on(async {
                let docker = Docker::connect_with_unix(&socket, 60, API_DEFAULT_VERSION).ok()?;
                question(docker.negotiate_version().await.ok()?).await.ok()
            })
        });
        asked.join().ok().flatten()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.remove_bridges();
        if let Some(mut alive) = self.alive.take() {
            let _ = alive.flush();
        }
        // Reaped first, since the guard waits until its pid is gone.
        if let Ok(dockerd) = self.dockerd.get_mut() {
            let _ = dockerd.wait();
        }
        let _ = self.guard.wait();
    }
}
