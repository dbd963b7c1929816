//! A cluster started by the real binary, and its guard.
//!
//! Owns: the `troupe up` process (started, killed, started again on the same data directory) and what one asks a cluster
//! in tests. Invariant: dropping a [`Cluster`] ends the process, its containers and all they have on the machine.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, Ran, check, is_deleting, is_ready, sweep, text, until};

/// The binary under test.
fn troupe() -> Command {
    Command::new(env!("CARGO_BIN_EXE_troupe"))
}

/// How a cluster is to be.
pub struct Options {
    /// More arguments for `troupe up`.
    pub arguments: Vec<&'static str>,
    /// What is added to its environment.
    pub environment: Vec<(&'static str, String)>,
    /// CrashLoopBackOff's first delay.
    pub backoff: &'static str,
}

impl Default for Options {
    fn default() -> Options {
        Options { arguments: Vec::new(), environment: Vec::new(), backoff: "300ms" }
    }
}

/// A running `troupe up`.
struct Up {
    child: Child,
    /// Where its API listens.
    api: SocketAddr,
}

impl Up {
    /// Waits for the ready line of a started process.
    fn begun(mut child: Child) -> Result<Up, String> {
        let stdout = child.stdout.take().expect("its output is piped");
        let (sender, lines) = mpsc::channel();
        // Goes on reading to the process' end, so that it never waits for us.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let mut up = Up { child, api: ([127, 0, 0, 1], 0).into() };
        let line = match lines.recv_timeout(DEADLINE) {
            Ok(line) => line,
            Err(_) => {
                up.kill();
                return Err("no ready line".into());
            }
        };
        let address = line.strip_prefix("ready: API https://").and_then(|rest| rest.split(',').next());
        up.api = address.and_then(|a| a.parse().ok()).ok_or(format!("not a ready line: {line:?}"))?;
        Ok(up)
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A cluster with a data directory of its own.
pub struct Cluster {
    /// `None` while it is down.
    up: Option<Up>,
    options: Options,
    /// The data directory.
    pub data: PathBuf,
    dir: TempDir,
}

impl Cluster {
    /// Starts a cluster in a fresh directory.
    #[track_caller]
    pub fn start(options: Options) -> Cluster {
        let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().expect("a directory");
        let data = dir.path().join("data");
        let mut cluster = Cluster::prepared(options, dir, data);
        cluster.up();
        cluster
    }

    /// A cluster that is not up yet, on a data directory of the caller's choice below `dir`.
    pub fn prepared(options: Options, dir: TempDir, data: PathBuf) -> Cluster {
        Cluster { up: None, options, data, dir }
    }

    /// The command line of this cluster's `troupe up`.
    pub fn command(&self) -> Command {
        self.command_at("127.0.0.1:0")
    }

    /// The same with an address for the API.
    pub fn command_at(&self, api: &str) -> Command {
        let mut command = troupe();
        command.arg("up").arg("--data-dir").arg(&self.data);
        command.args(["--api", api, "--node-name", "n1"]);
        command.args(["--crash-loop-backoff", self.options.backoff]).args(&self.options.arguments);
        if !self.options.arguments.contains(&"--eviction-hard") {
            // How full this machine's disk is must not matter.
            command.args(["--eviction-hard", ""]);
        }
        command.env("TROUPE_LOG", "warn,troupe=debug").stdin(Stdio::null());
        command.envs(self.options.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts `troupe up` (again) and waits until it is ready.
    #[track_caller]
    pub fn up(&mut self) {
        assert!(self.up.is_none(), "it is up already");
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let mut command = self.command();
        let child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("troupe starts");
        match Up::begun(child) {
            Ok(up) => self.up = Some(up),
            Err(problem) => {
                self.show_log();
                panic!("troupe up: {problem}");
            }
        }
    }

    /// Starts `troupe up` and kills it again, however far it has come by then.
    pub fn flash(&self, after: Duration) {
        assert!(self.up.is_none(), "it is up already");
        let log = fs::File::options().create(true).append(true).open(self.log()).expect("a log file");
        let child = self.command().stdout(Stdio::null()).stderr(log).spawn().expect("troupe starts");
        let up = Up { child, api: ([127, 0, 0, 1], 0).into() };
        std::thread::sleep(after);
        drop(up);
    }

    /// `kill -9` of `troupe up`.
    pub fn kill(&mut self) {
        drop(self.up.take());
    }

    /// SIGTERM of `troupe up`; returns its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let mut up = self.up.take().expect("it is up");
        kill(Pid::from_raw(up.child.id() as i32), Signal::SIGTERM).expect("it gets SIGTERM");
        until("troupe up ends on SIGTERM", || {
            up.child.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| "it runs".to_owned())
        })
        .code()
    }

    /// Where the API listens.
    pub fn api(&self) -> SocketAddr {
        self.up.as_ref().expect("it is up").api
    }

    /// The pid of `troupe up`.
    #[allow(dead_code, reason = "not every test binary asks for it")]
    pub fn process(&self) -> i32 {
        self.up.as_ref().expect("it is up").child.id() as i32
    }

    /// Its standard error, of all its processes so far.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("up.log")
    }

    fn show_log(&self) {
        const LINES: usize = 120;
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(LINES);
        eprintln!("--- troupe up, last lines\n{}\n---", lines[from..].join("\n"));
    }

    /// Where tests may put files.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// A kubectl command line for this cluster.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::kubectl().expect("kubectl"));
        command
            .args(arguments)
            .env("KUBECONFIG", self.data.join("admin.kubeconfig"))
            .env("HOME", self.dir.path())
            .current_dir(self.dir.path());
        command
    }

    /// Runs kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Ran {
        let output = self.kubectl_command(arguments).stdin(Stdio::null()).output().expect("kubectl runs");
        Ran::new(format!("kubectl {}", arguments.join(" ")), output)
    }

    /// Runs kubectl with an input.
    pub fn kubectl_in(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.kubectl_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl runs");
        let mut stdin = child.stdin.take().expect("its input is piped");
        // It may end before it has read everything; its output then says why.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        Ran::new(format!("kubectl {}", arguments.join(" ")), child.wait_with_output().expect("kubectl ends"))
    }

    /// Creates a namespace.
    #[track_caller]
    pub fn namespace(&self, name: &str) {
        self.kubectl(&["create", "namespace", name]).ok();
    }

    /// Applies manifests in a namespace.
    #[track_caller]
    pub fn apply(&self, namespace: &str, manifest: &Value) {
        self.kubectl_in(&["apply", "-n", namespace, "-f", "-"], &manifest.to_string()).ok();
    }

    /// What `kubectl get … -o json` says, or why it says nothing.
    pub fn try_get(&self, arguments: &[&str]) -> Result<Value, String> {
        let mut all = vec!["get"];
        all.extend(arguments);
        all.extend(["-o", "json"]);
        let text = self.kubectl(&all).result()?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// What `kubectl get … -o json` says.
    #[track_caller]
    pub fn get(&self, arguments: &[&str]) -> Value {
        self.try_get(arguments).unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// One pod.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Value, String> {
        self.try_get(&["pod", "-n", namespace, name])
    }

    /// All pods of a namespace, by name.
    pub fn pods(&self, namespace: &str) -> Result<Vec<Value>, String> {
        let list = self.try_get(&["pods", "-n", namespace])?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Waits until a pod is as wanted.
    #[track_caller]
    pub fn until_pod(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        until(&format!("pod {name} is {what}"), || {
            let pod = self.pod(namespace, name)?;
            check(wanted(&pod), || pod["status"].to_string())?;
            Ok(pod)
        })
    }

    /// Waits until a namespace has exactly so many pods, all ready and none on its way out.
    #[track_caller]
    pub fn until_ready(&self, namespace: &str, count: usize) -> Vec<Value> {
        until(&format!("{count} pods are ready"), || {
            let pods = self.pods(namespace)?;
            let good = pods.iter().filter(|pod| is_ready(pod) && !is_deleting(pod)).count();
            let excuse = || {
                let shown: Vec<String> =
                    pods.iter().map(|p| format!("{} {}", p["metadata"]["name"], p["status"])).collect();
                format!("{good} of {}: {}", pods.len(), shown.join("\n"))
            };
            check(good == count && pods.len() == count, excuse)?;
            Ok(pods)
        })
    }

    /// Waits for an event on an object with this reason; returns its message.
    #[track_caller]
    pub fn until_event(&self, namespace: &str, object: &str, reason: &str) -> String {
        let field = format!("involvedObject.name={object}");
        until(&format!("there is an event {reason} on {object}"), || {
            let events = self.try_get(&["events", "-n", namespace, "--field-selector", &field])?;
            let all = events["items"].as_array().cloned().unwrap_or_default();
            let found = all.iter().find(|event| event["reason"] == reason);
            let others: Vec<String> =
                all.iter().map(|e| format!("{} {}", e["reason"], e["message"])).collect();
            found.map(|event| text(&event["message"]).to_owned()).ok_or_else(|| others.join("; "))
        })
    }

    /// The processes of a pod's containers on this machine.
    pub fn pids(&self, pod: &Value) -> Vec<i32> {
        let uid = text(&pod["metadata"]["uid"]);
        let all = sweep::processes(&self.data);
        let mut pids: Vec<i32> =
            all.iter().filter(|(_, group)| group.starts_with(uid)).map(|(pid, _)| *pid).collect();
        pids.sort_unstable();
        pids
    }

    /// The one process of a pod of one container.
    #[track_caller]
    pub fn pid(&self, pod: &Value) -> i32 {
        let pids = self.pids(pod);
        assert_eq!(pids.len(), 1, "one process in {}", pod["metadata"]["name"]);
        pids[0]
    }

    /// The shim of a pod.
    #[track_caller]
    pub fn shim(&self, pod: &Value) -> i32 {
        let uid = text(&pod["metadata"]["uid"]);
        let all = sweep::shims(&self.data);
        all.into_iter().find(|(_, of)| of == uid).expect("the pod has a shim").0
    }

    /// Every process of this cluster's containers, as `POD-UID/CONTAINER-ID`.
    pub fn processes(&self) -> Vec<(i32, String)> {
        sweep::processes(&self.data)
    }

    /// Ends every process of this cluster on the machine and removes what else it has there, except its files.
    pub fn lose_processes(&self) {
        assert!(self.up.is_none(), "troupe is up");
        sweep::sweep(&self.data);
    }

    /// How many shims there are.
    pub fn shims(&self) -> usize {
        sweep::shims(&self.data).len()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_log();
        }
        self.kill();
        sweep::sweep(&self.data);
    }
}
