//! A real `troupe up` for one row: started on a new directory, ended without a trace.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Options,
    calls::Calls,
    client::{Client, Login},
    machine::{Marks, Process, entries, processes, until},
};

/// Where pods are.
pub const PODS: &str = "/api/v1/namespaces/default/pods";
/// Where replication controllers are.
pub const CONTROLLERS: &str = "/api/v1/namespaces/default/replicationcontrollers";
/// The node's name.
pub const NODE: &str = "n1";

/// A data directory, and the program that runs on it.
pub struct Cluster {
    program: PathBuf,
    /// The socket of the engine that its pods run on, and a way to it; `None` for the native runtime.
    engine: Option<(PathBuf, Calls)>,
    dir: TempDir,
    child: Option<Child>,
    /// Where its containers write their marks.
    pub marks: Arc<Marks>,
    /// How long the last start took until the ready line.
    pub ready_line: Duration,
    /// When the last start began.
    pub begun: Instant,
}

impl Cluster {
    /// Starts on a new directory, with pods on the docker engine that listens on this socket, or native ones.
    pub fn start(options: &Options, socket: Option<&Path>) -> Cluster {
        let dir = tempfile::Builder::new().prefix("troupe-bench-").tempdir().expect("a new directory");
        let mut cluster = Cluster {
            program: options.program.clone(),
            engine: socket.map(|socket| (socket.to_owned(), Calls::new(socket))),
            marks: Arc::new(Marks::new(&dir.path().join("marks"))),
            dir,
            child: None,
            ready_line: Duration::ZERO,
            begun: Instant::now(),
        };
        cluster.resume();
        cluster
    }

    /// The socket of the engine that its pods run on.
    pub fn engine(&self) -> Option<&Path> {
        self.engine.as_ref().map(|(socket, _)| socket.as_path())
    }

    /// Where everything is kept.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts the program; returns with its ready line.
    pub fn resume(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).expect("a log");
        let mut command = Command::new(&self.program);
        command.arg("up").arg("--data-dir").arg(self.data()).args(["--api", "127.0.0.1:0"]);
        match &self.engine {
            None => command.args(["--runtime", "native"]),
            Some((socket, _)) => {
                command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
                command.args(["--runtime", "docker"])
            }
        };
        command.args(["--node-name", NODE]);
        command.args(["--max-pods", "250"]);
        self.begun = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn();
        let child = self.child.insert(child.expect("the program starts"));
        let mut line = String::new();
        let output = child.stdout.take().expect("piped");
        let read = BufReader::new(output).read_line(&mut line);
        self.ready_line = self.begun.elapsed();
        let log = || fs::read_to_string(self.log()).unwrap_or_default();
        assert!(read.is_ok() && line.starts_with("ready:"), "troupe up did not start: {line}{}", log());
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("troupe.log")
    }

    /// The program's process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().and_then(|c| i32::try_from(c.id()).ok()).expect("it runs")
    }

    /// A way to its API.
    pub fn login(&self) -> Login {
        Login::read(&self.data().join("admin.kubeconfig"))
    }

    /// Whether its node is ready, as a client sees it.
    pub fn node_ready(&self, client: &mut Client) -> bool {
        let node = client.get(&format!("/api/v1/nodes/{NODE}"));
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    }

    /// Asks it to end, and waits. Its pods run on.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = i32::try_from(child.id()).expect("a pid");
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        let ended = child.wait().expect("our own child");
        assert!(ended.success(), "troupe up ended with {ended}: {}", self.log().display());
    }

    /// A pod whose first act is to write its name into [`Cluster::marks`].
    pub fn pod(&self, name: &str) -> Value {
        let mut pod = self.template();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(name);
        pod
    }

    fn template(&self) -> Value {
        json!({
            "metadata": {"labels": {"app": "bench"}},
            "spec": {
                "containers": [{
                    "name": "main",
                    "image": "troupe.local/hello",
                    "args": ["--write", "/marks/$(POD)=here"],
                    "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                    "volumeMounts": [{"name": "marks", "mountPath": "/marks"}],
                }],
                "volumes": [{"name": "marks", "hostPath": {"path": self.marks.dir()}}],
            },
        })
    }

    /// A replication controller of such pods.
    pub fn controller(&self, name: &str, replicas: usize) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ReplicationController",
            "metadata": {"name": name},
            "spec": {"replicas": replicas, "selector": {"app": "bench"}, "template": self.template()},
        })
    }

    /// The processes on this directory: `troupe up` if it runs, and the shims.
    pub fn processes(&self) -> Vec<Process> {
        let dir = self.data().to_string_lossy().into_owned();
        processes().into_iter().filter(|p| p.command.contains(&dir)).collect()
    }

    /// The shims: what runs on this directory besides `troupe up` and the seed, its child, which shims are forked from.
    pub fn shims(&self) -> Vec<Process> {
        let main = self.child.as_ref().map(|c| c.id().cast_signed());
        let is_main = |pid: i32| Some(pid) == main;
        let is_seed = |p: &Process| is_main(p.parent) && p.command.contains("--seed");
        self.processes().into_iter().filter(|p| !is_main(p.pid) && !is_seed(p)).collect()
    }

    /// The process of a pod's container: the engine tells, or the kernel knows it by its cgroup.
    pub fn container_of(&self, uid: &str) -> i32 {
        if let Some((_, calls)) = &self.engine {
            return calls.container_of(uid);
        }
        let of_pod = |p: &Process| {
            fs::read_to_string(format!("/proc/{}/cgroup", p.pid)).is_ok_and(|groups| groups.contains(uid))
        };
        self.containers().into_iter().find(of_pod).expect("the pod has a container").pid
    }

    /// The containers' own processes.
    pub fn containers(&self) -> Vec<Process> {
        let shims: Vec<i32> = self.shims().iter().map(|p| p.pid).collect();
        processes().into_iter().filter(|p| shims.contains(&p.parent)).collect()
    }

    /// What is still there of pods, apart from the API: shims, containers, cgroups, network interfaces, directories.
    /// Of an engine's, containers and directories.
    pub fn remains(&self) -> Vec<String> {
        let (bridge, cgroup) = troupe::app::network_names(&self.data(), 0);
        let mut all = Vec::new();
        let mut add =
            |what: &str, names: Vec<String>| all.extend(names.iter().map(|n| format!("{what} {n}")));
        add("interface", entries(&Path::new("/sys/class/net").join(bridge).join("brif")));
        let node = self.data().join("nodes").join(NODE);
        add("sandbox", entries(&node.join("runtime/sandboxes")));
        add("directory", entries(&node.join("pods")));
        if !all.is_empty() {
            // Cheap signs first: this is polled beside what is measured.
            return all;
        }
        if let Some((_, calls)) = &self.engine {
            return vec!["a container of the engine".to_owned(); calls.count()];
        }
        let mut add =
            |what: &str, names: Vec<String>| all.extend(names.iter().map(|n| format!("{what} {n}")));
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            let group = Path::new("/sys/fs/cgroup").join(hierarchy).join(&cgroup);
            let groups = entries(&group).into_iter().filter(|name| group.join(name).is_dir());
            add("cgroup", groups.collect());
        }
        add("process", self.shims().into_iter().map(|p| p.command).collect());
        all
    }

    /// Deletes every controller and pod and waits until nothing of them is left.
    pub fn clear(&self) {
        let mut client = self.login().connect();
        for path in [CONTROLLERS, PODS] {
            let list = client.get(path);
            for object in list["items"].as_array().into_iter().flatten() {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                client.try_delete(&format!("{path}/{name}"));
            }
        }
        until("all pods are gone", || {
            let list = client.get(PODS);
            list["items"].as_array().is_none_or(Vec::is_empty) && self.remains().is_empty()
        });
        self.marks.forget();
    }
}

impl Drop for Cluster {
    /// However a row ended.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if !thread::panicking() {
                self.child = Some(child);
                self.clear();
                self.stop();
            } else {
                eprintln!("{}", fs::read_to_string(self.log()).unwrap_or_default());
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        for process in self.containers().into_iter().chain(self.processes()) {
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
        }
        let (bridge, cgroup) = troupe::app::network_names(&self.data(), 0);
        let _ = Command::new("ip").args(["link", "delete", &bridge]).stderr(Stdio::null()).status();
        for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
            remove_group(&Path::new("/sys/fs/cgroup").join(hierarchy).join(&cgroup));
        }
        remove_group(&Path::new("/sys/fs/cgroup").join(&cgroup));
        // Another cluster may want the subnet.
        if let Some((_, calls)) = &self.engine {
            calls.remove_all();
        }
    }
}

/// Removes a cgroup and those below it; its processes may need a moment to leave.
pub fn remove_group(group: &Path) {
    for name in entries(group) {
        if group.join(&name).is_dir() {
            remove_group(&group.join(name));
        }
    }
    for _ in 0..100 {
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Pods' events from a watch, and what they have told.
pub struct PodWatch {
    events: mpsc::Receiver<(Instant, Value)>,
}

impl PodWatch {
    /// From now on.
    pub fn new(login: &Login) -> PodWatch {
        PodWatch { events: login.watch(PODS) }
    }

    /// Drops an event that is here already; whether there was one.
    pub fn next_now(&self) -> bool {
        self.events.try_recv().is_ok()
    }

    /// The next event: when, its type, the pod.
    pub fn next(&self) -> (Instant, String, Value) {
        let (at, mut event) = self.events.recv_timeout(Duration::from_secs(60)).expect("pods change");
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        (at, kind, event["object"].take())
    }

    /// When a pod that passes is told to be `Running` (its container too), and its name.
    pub fn running(&self, passes: impl Fn(&Value) -> bool) -> (Instant, String) {
        loop {
            let (at, _, pod) = self.next();
            let runs = pod["status"]["phase"] == "Running"
                && pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
            if runs && passes(&pod) {
                return (at, pod["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// When the next one is gone.
    pub fn any_deleted(&self) -> Instant {
        loop {
            let (at, kind, _) = self.next();
            if kind == "DELETED" {
                return at;
            }
        }
    }

    /// When the pod of this name is gone.
    pub fn deleted(&self, name: &str) -> Instant {
        loop {
            let (at, kind, pod) = self.next();
            if kind == "DELETED" && pod["metadata"]["name"] == name {
                return at;
            }
        }
    }
}
