//! The throw-away cluster under the story: a directory of its own, a `troupe up` as a child process, and nothing left.
//!
//! Invariant: however the story ends, [`Stage::close`] or the stage's drop kills the cluster, ends its containers and
//! removes the directory.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{Act, PATIENCE, process};

/// How much of the cluster's log is shown when something goes wrong.
const LAST_WORDS: usize = 12;

/// See above.
pub struct Stage {
    program: PathBuf,
    directory: PathBuf,
    real: bool,
    up: Option<Child>,
    log: String,
    /// A cgroup and a network device that must go with the cluster.
    cgroup: Option<String>,
    device: Option<String>,
}

impl Stage {
    /// An empty stage, for real containers or simulated ones.
    pub fn open(real: bool) -> Act<Stage> {
        let program = std::env::current_exe().map_err(|e| format!("cannot find this program's file: {e}"))?;
        let base = std::env::temp_dir();
        let directory = base.join(format!("troupe-demo-{}", std::process::id()));
        fs::create_dir(&directory).map_err(|e| format!("cannot create {}: {e}", directory.display()))?;
        Ok(Stage { program, directory, real, up: None, log: String::new(), cgroup: None, device: None })
    }

    pub fn real(&self) -> bool {
        self.real
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.data().join("admin.kubeconfig")
    }

    /// The process id of `troupe up`, 0 when it does not run.
    pub fn pid(&self) -> u32 {
        self.up.as_ref().map_or(0, Child::id)
    }

    /// Starts the cluster and waits for its ready line; returns how long that took.
    pub async fn start(&mut self) -> Act<Duration> {
        let began = Instant::now();
        let log = File::options().create(true).append(true).open(self.directory.join("up.log"));
        let log = log.map_err(|e| format!("cannot write {}: {e}", self.directory.display()))?;
        let mut child = Command::new(&self.program)
            .arg("up")
            // It is over before a disk that is nearly full matters.
            .args(["--eviction-hard", ""])
            .arg("--data-dir")
            .arg(self.data())
            .args(["--api", "127.0.0.1:0", "--runtime", if self.real { "native" } else { "sim" }])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        let stdout = child.stdout.take().ok_or("troupe up has no standard output")?;
        self.up = Some(child);
        let (send, ready) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = BufReader::new(stdout).read_line(&mut line);
            // The story may have ended meanwhile.
            let _ = send.send(read.is_ok() && line.starts_with("ready"));
        });
        match tokio::time::timeout(PATIENCE, ready).await {
            Ok(Ok(true)) => Ok(began.elapsed()),
            Ok(_) => Err("troupe up did not start".into()),
            Err(_) => Err(format!("troupe up was not ready within {} s", PATIENCE.as_secs())),
        }
    }

    /// Kills the cluster's process, as a power failure would.
    pub fn kill(&mut self) -> Act {
        let Some(mut child) = self.up.take() else { return Ok(()) };
        child.kill().and_then(|()| child.wait()).map_err(|e| format!("cannot kill troupe up: {e}"))?;
        Ok(())
    }

    /// Remembers what this pod has of the machine, to look for it at the end.
    pub fn remember(&mut self, process: i32, address: &str) {
        self.cgroup = process::cgroup(process);
        self.device = process::device(address);
    }

    /// Takes everything down; returns what is left of it all the same.
    pub fn close(&mut self) -> Act<Vec<String>> {
        self.kill()?;
        self.log = fs::read_to_string(self.directory.join("up.log")).unwrap_or_default();
        let reset = Command::new(&self.program)
            .args(["reset", "--yes", "--data-dir"])
            .arg(self.data())
            .stdin(Stdio::null())
            .output()
            .map_err(|e| format!("cannot start {}: {e}", self.program.display()))?;
        if !reset.status.success() {
            return Err(format!("troupe reset failed: {}", String::from_utf8_lossy(&reset.stderr).trim()));
        }
        fs::remove_dir_all(&self.directory)
            .map_err(|e| format!("cannot remove {}: {e}", self.directory.display()))?;
        Ok(self.left())
    }

    /// The end of the cluster's log, for when the story broke.
    pub fn last_words(&self) -> String {
        let lines: Vec<&str> = self.log.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
        if last.is_empty() {
            String::new()
        } else {
            format!("\nthe cluster's last words:\n{}", last.join("\n"))
        }
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn left(&self) -> Vec<String> {
        let name = self.directory.to_string_lossy().into_owned();
        let mut left: Vec<String> =
            process::mentioning(&name).into_iter().map(|(pid, c)| format!("process {pid}: {c}")).collect();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&name)).map(|line| format!("mount {line}")));
        if let Some(cgroup) = &self.cgroup {
            let paths = process::cgroup_directories(cgroup);
            left.extend(paths.into_iter().map(|path| format!("cgroup {}", path.display())));
        }
        if let Some(device) = &self.device
            && Path::new("/sys/class/net").join(device).exists()
        {
            left.push(format!("network device {device}"));
        }
        if self.directory.exists() {
            left.push(name);
        }
        left
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.directory.exists() {
            // Already on the way out because of another fault.
            let _ = self.close();
        }
    }
}
