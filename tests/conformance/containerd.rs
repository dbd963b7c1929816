//! containerd for tests: each one a daemon of its own, in a directory of its own.
//!
//! Owns: [`Containerd`] and the pool of them. Invariants: nothing of the machine's own containerd, network plugins or
//! directories is used; a test has its daemon to itself; a daemon ends with the test process, however that ends: a guard,
//! a process of its own, waits for the end of a pipe that the test process holds.

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Starting it takes a second or two; on a busy machine many.
const START: Duration = Duration::from_secs(120);

/// Ends the daemon ($1, in the directory $2) when its standard input ends, and removes what it and its pods have on the
/// machine: processes, mounts, groups and links (whose names begin with $3 and $4), its directory.
const GUARD: &str = r#"
    cat >/dev/null
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        grep -qs "/$3" "$process/cgroup" && kill -9 "$pid" 2>/dev/null
    done
    kill "$1" 2>/dev/null
    n=0
    while kill -0 "$1" 2>/dev/null && [ $n -lt 300 ]; do sleep 0.1; n=$((n+1)); done
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        [ "$pid" = $$ ] && continue
        grep -aqs "$2/" "$process/cmdline" && kill -9 "$pid" 2>/dev/null
    done
    # What was killed is out of its group some moments later.
    n=0
    while [ $n -lt 100 ]; do
        find /sys/fs/cgroup -mindepth 1 -depth -type d -path "*/$3*" -exec rmdir {} + 2>/dev/null
        [ -z "$(find /sys/fs/cgroup -mindepth 1 -type d -path "*/$3*" 2>/dev/null)" ] && break
        sleep 0.1; n=$((n+1))
    done
    for link in /sys/class/net/$4*; do [ -e "$link" ] && ip link delete "${link##*/}" 2>/dev/null; done
    grep -o " $2/[^ ]*" /proc/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
    rm -rf "$2"
"#;

/// Where a program is.
fn program(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"]
        .map(|dir| Path::new(dir).join(name))
        .into_iter()
        .find(|path| path.exists())
}

/// Whether daemons can be started here. Under `CI` there is no excuse.
pub fn at_hand() -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root (containers need it)"
    } else if program("containerd").is_none() {
        "containerd (apt-get install containerd)"
    } else if program("runc").is_none() {
        "runc (apt-get install runc)"
    } else {
        return true;
    };
    assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no {missing}");
    eprintln!("skipped: no {missing}");
    false
}

/// A running daemon.
pub struct Containerd {
    pub socket: PathBuf,
    pub dir: PathBuf,
    daemon: Mutex<Child>,
    guard: Child,
    /// Among this process' daemons: the end of one must not be the end of another's pods.
    number: u32,
    /// Dropped: the guard ends the daemon.
    alive: Option<ChildStdin>,
}

/// Daemons that no test uses at the moment.
static POOL: Mutex<Vec<Containerd>> = Mutex::new(Vec::new());

/// A daemon for one test, given back when this is dropped.
pub struct Lease(Option<Containerd>);

impl Lease {
    pub fn take() -> Lease {
        let free = POOL.lock().unwrap().pop();
        Lease(Some(free.unwrap_or_else(Containerd::start)))
    }

    pub fn daemon(&self) -> &Containerd {
        self.0.as_ref().expect("there until dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that a failed test may have broken is not for others.
        if let Some(daemon) = self.0.take().filter(|_| !std::thread::panicking()) {
            POOL.lock().unwrap().push(daemon);
        }
    }
}

/// A configuration that keeps everything in a directory, and is containerd's own otherwise. Tests may run where root cannot
/// lower a process' `oom_score_adj`.
fn configuration(dir: &Path) -> String {
    let at = |name: &str| dir.join(name).display().to_string();
    format!(
        r#"version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{networks}"
"#,
        root = at("data"),
        state = at("state"),
        socket = at("c.sock"),
        plugins = at("cni-bin"),
        networks = at("cni-conf"),
    )
}

/// A daemon on a directory.
fn spawn(dir: &Path) -> Child {
    let output = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    Command::new(program("containerd").expect("`at_hand` was asked"))
        .arg("--config")
        .arg(dir.join("config.toml"))
        .args(["--log-level", "warn"])
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        // A terminal's interrupt is for the tests; the guard ends the daemon.
        .process_group(0)
        .spawn()
        .unwrap()
}

fn group_prefix(daemon: u32) -> String {
    format!("troupe-cri-{}-{daemon}-", std::process::id())
}

fn link_prefix(daemon: u32) -> String {
    format!("tb{:x}d{daemon}n", std::process::id())
}

impl Containerd {
    /// A name for the cgroup of a runtime's pods on this daemon.
    #[allow(dead_code, reason = "clusters choose by themselves")]
    pub fn group(&self, number: u32) -> String {
        format!("{}{number}", group_prefix(self.number))
    }

    /// A name for their bridge.
    #[allow(dead_code, reason = "clusters choose by themselves")]
    pub fn link(&self, number: u32) -> String {
        format!("{}{number}", link_prefix(self.number))
    }

    pub fn start() -> Containerd {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // A short path: sockets' names are.
        let dir = tempfile::Builder::new().prefix("troupe-cri-").tempdir_in("/tmp").unwrap().keep();
        std::fs::write(dir.join("config.toml"), configuration(&dir)).unwrap();
        let daemon = spawn(&dir);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut guard = Command::new("/bin/sh")
            .args(["-c", GUARD, "guard", &daemon.id().to_string(), &dir.to_string_lossy()])
            .args([group_prefix(number), link_prefix(number)])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let alive = guard.stdin.take();
        let daemon = Mutex::new(daemon);
        let containerd = Containerd { socket: dir.join("c.sock"), dir, daemon, guard, number, alive };
        containerd.wait_until_it_answers();
        containerd
    }

    /// Ends the daemon in peace, as an upgrade does, and starts another on the same directory; containers run on.
    #[allow(dead_code, reason = "not every test binary does that to daemons")]
    pub fn restart(&self) {
        self.stop();
        self.begin_again();
    }

    /// Ends the daemon in peace; containers run on.
    #[allow(dead_code, reason = "not every test binary does that to daemons")]
    pub fn stop(&self) {
        let mut daemon = self.daemon.lock().unwrap();
        kill(Pid::from_raw(i32::try_from(daemon.id()).unwrap()), Signal::SIGTERM).unwrap();
        daemon.wait().unwrap();
    }

    /// Starts a daemon where one was stopped.
    #[allow(dead_code, reason = "not every test binary does that to daemons")]
    pub fn begin_again(&self) {
        *self.daemon.lock().unwrap() = spawn(&self.dir);
        self.wait_until_it_answers();
    }

    fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + START;
        while troupe::runtime::cri::check(&self.socket).is_err() {
            let ended = self.daemon.lock().unwrap().try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                panic!("containerd does not start ({ended:?}):\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the daemon something past the runtime: the lines that `ctr` prints.
    pub fn ctr(&self, arguments: &[&str]) -> Vec<String> {
        let mut ctr = Command::new(program("ctr").expect("it comes with containerd"));
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]).args(arguments);
        let output = ctr.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        drop(self.alive.take());
        // Reaped first, since the guard waits until its pid is gone.
        if let Ok(daemon) = self.daemon.get_mut() {
            let _ = daemon.wait();
        }
        let _ = self.guard.wait();
    }
}
