//! `troupe reset` and the clean end of `troupe up`, with the real binary: what is left on the machine afterwards.
//!
//! The parts with real containers need root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::json;
use sha2::Digest as _;
use tempfile::TempDir;
use troupe::cli::client::Client;

/// A whole test is stuck when one step takes longer.
const STEP: Duration = Duration::from_secs(60);

/// `troupe up` on a directory of its own; what it leaves goes with it, however the test ends.
struct Up {
    child: Child,
    data: PathBuf,
    _dir: TempDir,
}

impl Up {
    fn start(runtime: &str) -> Up {
        // Beside the executable, so that the built-in image can be a hard link to it.
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let data = fs::canonicalize(dir.path()).unwrap().join("data");
        let child =
            troupe(&["up", "--api", "127.0.0.1:0", "--runtime", runtime, "--eviction-hard", ""], &data)
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
        let up = Up { child, data, _dir: dir };
        until("troupe up serves", || up.data.join("ready").exists());
        up
    }

    fn end(&mut self, signal: Signal) {
        let _ = kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal);
        self.child.wait().unwrap();
    }

    /// The bridge and the cgroup of the only node.
    fn names(&self) -> (PathBuf, String) {
        let digest = sha2::Sha256::digest(self.data.as_os_str().as_encoded_bytes());
        let tag: String = digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect();
        (Path::new("/sys/class/net").join(format!("tr-{tag}-0")), format!("troupe-{tag}-0"))
    }

    /// What of it can be seen on the machine: processes, bridge, cgroups, mounts.
    fn traces(&self) -> Vec<String> {
        let data = self.data.to_string_lossy().into_owned();
        let (bridge, group) = self.names();
        let mut found: Vec<String> = Vec::new();
        for process in names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()) {
            let text = fs::read_to_string(format!("/proc/{process}/cmdline")).unwrap_or_default();
            if text.contains(&data) && process != self.child.id().to_string() {
                found.push(text);
            }
        }
        found.extend(bridge.exists().then(|| bridge.display().to_string()));
        for controller in names("/sys/fs/cgroup") {
            let dir = Path::new("/sys/fs/cgroup").join(controller).join(&group);
            found.extend(dir.exists().then(|| dir.display().to_string()));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        found.extend(mounts.lines().filter(|line| line.contains(&data)).map(str::to_owned));
        found
    }

    /// The processes of its pods' containers.
    fn programs(&self) -> Vec<String> {
        let group = self.names().1;
        let within = |process: &String| {
            let groups = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
            groups.contains(&group)
        };
        names("/proc").into_iter().filter(|name| name.parse::<u32>().is_ok()).filter(within).collect()
    }

    /// Makes a pod and waits until it runs.
    fn run_pod(&self) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "c", "image": "troupe.local/hello"}]},
        });
        actix::System::new().block_on(async {
            let client = Client::from_kubeconfig(self.data.join("admin.kubeconfig")).unwrap();
            client.post("/api/v1/namespaces/default/pods", &pod).await.unwrap();
            let begun = Instant::now();
            loop {
                let pod = client.get("/api/v1/namespaces/default/pods/web").await.unwrap();
                if pod["status"]["phase"] == "Running" {
                    return;
                }
                assert!(begun.elapsed() < STEP, "{}", pod["status"]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = reset(&["--yes"], &self.data);
    }
}

fn troupe(words: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troupe"));
    command.args(words).arg("--data-dir").arg(data).stdin(Stdio::null());
    command
}

fn reset(words: &[&str], data: &Path) -> Output {
    troupe(&[&["reset"], words].concat(), data).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < STEP, "not within {STEP:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Real containers, or the reason why not. Under CI there is no excuse.
fn may_run_containers() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI is set, but this is not root");
    eprintln!("skipped: real containers need root");
    false
}

#[test]
fn reset_ends_all_containers_and_removes_the_cluster_but_only_when_agreed_to_and_nobody_runs_it() {
    if !may_run_containers() {
        return;
    }
    let mut up = Up::start("native");
    up.run_pod();
    let (traces, programs) = (up.traces(), up.programs());
    assert!(traces.iter().any(|trace| trace.contains("shim")) && traces.len() > 2, "{traces:?}");
    assert_eq!(programs.len(), 1, "the container's program");

    let refused = reset(&["--yes"], &up.data);
    let pid = format!("pid {}", up.child.id());
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains(&pid), "{}", said(&refused));

    up.end(Signal::SIGKILL);
    let unasked = reset(&[], &up.data);
    assert_eq!(unasked.status.code(), Some(2));
    assert!(said(&unasked).contains("--yes") && said(&unasked).contains("1 pods"), "{}", said(&unasked));
    assert_eq!(up.programs(), programs, "the pod runs on");

    let done = reset(&["--yes"], &up.data);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert!(!up.data.exists());
    assert_eq!([up.traces(), up.programs()].concat(), [""; 0]);

    let again = reset(&["--yes"], &up.data);
    assert_eq!(again.status.code(), Some(0));
    assert!(said(&again).contains("nothing to reset"), "{}", said(&again));
}

#[test]
fn reset_leaves_what_is_not_a_clusters() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("precious"), "x").unwrap();
    let refused = reset(&["--yes"], dir.path());
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("no cluster's data directory"), "{}", said(&refused));
    assert!(dir.path().join("precious").exists());

    let mut up = Up::start("sim");
    up.end(Signal::SIGTERM);
    fs::write(up.data.join("precious"), "x").unwrap();
    let done = reset(&["--yes"], &up.data);
    assert_eq!(done.status.code(), Some(0), "{}", said(&done));
    assert_eq!(names(&up.data.to_string_lossy()), ["precious"]);
}

#[test]
fn a_clean_end_without_pods_leaves_no_bridge_and_one_with_pods_leaves_them_running() {
    if !may_run_containers() {
        return;
    }
    let mut up = Up::start("native");
    let bridge = up.names().0;
    until("the node has its bridge", || bridge.exists());
    up.end(Signal::SIGTERM);
    assert_eq!(up.traces(), [""; 0]);

    let mut up = Up::start("native");
    up.run_pod();
    up.end(Signal::SIGTERM);
    assert!(up.names().0.exists());
    assert_eq!(up.programs().len(), 1);
}
