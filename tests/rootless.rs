//! `troupe` as an ordinary user runs it: the real binary under a user's id that owns nothing but its home, real kubectl.
//!
//! Root lends each test an id of its own, so that whatever is left of it can be counted and ended.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A whole test is stuck when one step takes longer.
const STEP: Duration = Duration::from_secs(60);
/// Ids that nobody has, neither on this machine nor in a range of `/etc/subuid`.
const FIRST_ID: u32 = 61_000;

/// A user with a home, and a cluster there.
struct User {
    id: u32,
    home: TempDir,
    up: Option<Child>,
}

impl User {
    /// A user of this machine who may have containers; `None`, with the reason, where that cannot be. Under CI there is no
    /// excuse.
    fn new() -> Option<User> {
        static USERS: AtomicU32 = AtomicU32::new(0);
        let own = geteuid();
        let id = if own.is_root() {
            // Other runs of these tests may be under way.
            FIRST_ID + std::process::id() % 300 * 10 + USERS.fetch_add(1, Ordering::Relaxed)
        } else {
            own.as_raw()
        };
        let home = TempDir::new().unwrap();
        let program = home.path().join("troupe");
        let built = Path::new(env!("CARGO_BIN_EXE_troupe"));
        if fs::hard_link(built, &program).is_err() {
            fs::copy(built, &program).unwrap();
        }
        if own.is_root() {
            chown(home.path(), Some(id), Some(id)).unwrap();
        }
        let user = User { id, home, up: None };
        let tried = user.troupe(&["shim", "--try-namespaces"]).output().unwrap();
        let mut missing = Vec::new();
        if !tried.status.success() {
            missing.push(format!("namespaces for ordinary users: {}", said(&tried).trim()));
        }
        if kubectl().is_none() {
            missing.push("kubectl (set KUBECTL, or put it on the path)".to_owned());
        }
        if missing.is_empty() {
            return Some(user);
        }
        let missing = missing.join(" and ");
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no {missing}");
        eprintln!("skipped: no {missing}");
        None
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", self.home.path()).env("TMPDIR", self.home.path());
        command.current_dir(self.home.path()).stdin(Stdio::null());
        if geteuid().is_root() {
            command.uid(self.id).gid(self.id);
        }
        command
    }

    fn troupe(&self, words: &[&str]) -> Command {
        let mut command = self.command(&self.home.path().join("troupe"));
        command.args(words);
        command
    }

    /// The usual data directory of a user.
    fn data(&self) -> PathBuf {
        self.home.path().join(".local/share/troupe")
    }

    fn start(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.troupe(&["up", "--api", "127.0.0.1:0", "--runtime", "native"]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let child = self.up.insert(child);
        let (ready, begun) = (self.home.path().join(".local/share/troupe/ready"), Instant::now());
        // Of an earlier process, until this one has begun.
        let lives =
            |pid: u32| fs::read_to_string(&ready).is_ok() && Path::new(&format!("/proc/{pid}")).exists();
        while !lives(child.id()) {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("troupe up ended ({status}):\n{}", fs::read_to_string(self.log()).unwrap());
            }
            assert!(begun.elapsed() < STEP, "troupe up does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("up.log")
    }

    fn end(&mut self, signal: Signal) {
        let mut up = self.up.take().unwrap();
        kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), signal).unwrap();
        up.wait().unwrap();
        if signal == Signal::SIGKILL {
            fs::remove_file(self.data().join("ready")).unwrap();
        }
    }

    fn kubectl(&self, words: &[&str]) -> Output {
        let mut command = self.command(&kubectl().unwrap());
        command.env("KUBECONFIG", self.data().join("admin.kubeconfig"));
        command.args(words).output().unwrap()
    }

    /// What a command that succeeds prints.
    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.kubectl(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn create(&self, object: &Value) {
        let file = self.home.path().join("object.json");
        fs::write(&file, object.to_string()).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        self.ok(&["create", "-f", file.to_str().unwrap()]);
    }

    #[track_caller]
    fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.ok(&["get", "pod", name, "-o", "json"])).unwrap()
    }

    #[track_caller]
    fn until_ready(&self, name: &str) -> Value {
        let begun = Instant::now();
        loop {
            let pod = self.pod(name);
            if pod["status"]["containerStatuses"][0]["ready"] == true {
                return pod;
            }
            let events = || self.ok(&["get", "events"]);
            assert!(begun.elapsed() < STEP, "{name} is not ready: {}\n{}", pod["status"], events());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The user's processes, as far as they can be told from others.
    fn processes(&self) -> Vec<String> {
        let home = self.home.path().to_string_lossy().into_owned();
        let theirs = |pid: &String| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let owner = fs::metadata(format!("/proc/{pid}")).map_or(0, |m| m.uid());
            // One that is dead already, and waits for whoever adopted it, does not count.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let lives = stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'));
            lives && ((geteuid().is_root() && owner == self.id) || command.contains(&home))
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        all.map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.parse::<u32>().is_ok())
            .filter(theirs)
            .collect()
    }

    #[track_caller]
    fn until_no_process_is_left(&self) {
        until("no process of the user is left", || self.processes().is_empty());
    }

    /// What hello says of itself in a pod.
    #[track_caller]
    fn hello(&self, pod: &str, words: &[&str]) -> String {
        self.ok(&[&["exec", pod, "--", "/hello", "hello", "--once"], words].concat())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        if self.data().exists() {
            let _ = self.troupe(&["reset", "--yes"]).output();
        }
        for pid in self.processes() {
            let _ = kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL);
        }
    }
}

fn kubectl() -> Option<PathBuf> {
    let on_path = || {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join("kubectl")).find(|f| f.is_file())
    };
    std::env::var_os("KUBECTL").map(PathBuf::from).or_else(on_path)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < STEP, "not within {STEP:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pod(name: &str, spec: Value, container: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 2,
                 "containers": [{"name": "c", "image": "troupe.local/hello"}]},
    });
    let merge = |into: &mut Value, from: Value| {
        for (key, value) in from.as_object().unwrap() {
            into[key] = value.clone();
        }
    };
    merge(&mut pod["spec"]["containers"][0], container);
    merge(&mut pod["spec"], spec);
    pod
}

#[test]
fn an_ordinary_user_runs_pods_that_reach_each_other() {
    let Some(mut user) = User::new() else { return };
    user.start();
    user.create(&pod("a", json!({}), json!({})));
    let limits = json!({"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1},
        "securityContext": {"runAsUser": 1234, "runAsGroup": 4321, "runAsNonRoot": true, "allowPrivilegeEscalation": false},
        "volumeMounts": [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]});
    let volumes = json!({"volumes": [{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}],
        "securityContext": {"fsGroup": 2000, "supplementalGroups": [3000]}, "shareProcessNamespace": true});
    user.create(&pod("b", volumes, limits));
    user.create(&pod(
        "host",
        json!({"hostNetwork": true, "hostPID": true, "hostIPC": true}),
        json!({"securityContext": {"privileged": true, "runAsUser": 0}, "args": ["--listen", "0.0.0.0:8081"]}),
    ));
    user.until_ready("a");
    let ready = user.until_ready("b");
    let address = ready["status"]["podIP"].as_str().unwrap().to_owned();
    user.until_ready("host");
    for from in ["a", "host"] {
        let page = user.hello(from, &["--fetch", &format!("http://{address}:8080/")]);
        assert!(page.contains("Hello from b"), "{page}");
    }
    // What they said to each other is counted.
    let node = ready["spec"]["nodeName"].as_str().unwrap();
    let summary = user.ok(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/stats/summary")]);
    let summary: Value = serde_json::from_str(&summary).unwrap();
    for pod in summary["pods"].as_array().unwrap() {
        let (own, network) = (pod["podRef"]["name"] != "host", &pod["network"]);
        let counted = |name: &str| network[name].as_u64().is_some_and(|bytes| bytes > 0);
        assert_eq!(counted("rxBytes") && counted("txBytes"), own, "{pod}");
    }
    // Without cgroups its processes are looked at one by one.
    let of_a = summary["pods"].as_array().unwrap().iter().find(|pod| pod["podRef"]["name"] == "a").unwrap();
    for memory in [&of_a["memory"], &of_a["containers"][0]["memory"]] {
        assert!(memory["workingSetBytes"].as_u64() > Some(100_000), "{of_a}");
    }
    // What it holds is what the program of its image was told to, and somebody else's is not among it.
    user.create(&pod("busy", json!({}), json!({"args": ["--burn-cpu", "1h", "--allocate", "40Mi"]})));
    let top = |name: &str| -> Option<(u64, u64)> {
        let out = said(&user.kubectl(&["top", "pod", name, "--no-headers"]));
        let mut words = out.strip_prefix(name)?.split_whitespace();
        let mut number = |unit: &str| words.next()?.strip_suffix(unit)?.parse().ok();
        Some((number("m")?, number("Mi")?))
    };
    until("top shows what they use", || {
        let (busy, idle) = (top("busy"), top("a"));
        busy.is_some_and(|(cpu, memory)| cpu >= 50 && (40..200).contains(&memory))
            && idle.is_some_and(|(cpu, memory)| cpu < 50 && memory < 40)
    });
    user.ok(&["delete", "pod", "busy", "--now"]);
    // Each sees the user that it asked for, its programs and those that are run beside them.
    for (name, uid, gid) in [("a", 65_532, 65_532), ("b", 1234, 4321), ("host", 0, 0)] {
        let seen: Value = serde_json::from_str(&user.hello(name, &["--describe"])).unwrap();
        assert_eq!((&seen["uid"], &seen["gid"]), (&json!(uid), &json!(gid)), "{name}: {seen}");
    }
    assert!(user.ok(&["logs", "a"]).contains("listening on"));
    user.ok(&["delete", "pod", "a", "b", "host", "--wait"]);
    user.end(Signal::SIGTERM);
    user.until_no_process_is_left();
    assert!(!user.data().join("namespaces").exists());
}

#[test]
fn what_an_ordinary_user_cannot_have_is_said_once_and_shown_in_the_node() {
    let Some(mut user) = User::new() else { return };
    user.start();
    let node: Value = serde_json::from_str(&user.ok(&["get", "nodes", "-o", "json"])).unwrap();
    let conditions = node["items"][0]["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|c| c["type"] == "Rootless").unwrap();
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("True"), &json!("OrdinaryUser")));
    let lacks = condition["message"].as_str().unwrap();
    assert!(lacks.contains("no other machine"), "{lacks}");
    let log = fs::read_to_string(user.log()).unwrap();
    assert_eq!(log.matches(lacks).count(), 1, "{log}");
    // What the kernel calls invalid is named.
    let pinging = |groups: &str| {
        let sysctl = json!({"name": "net.ipv4.ping_group_range", "value": groups});
        json!({"securityContext": {"sysctls": [sysctl]}})
    };
    user.create(&pod("own", pinging("0 0"), json!({})));
    user.create(&pod("all", pinging("0 2147483647"), json!({})));
    user.until_ready("own");
    let of_all = "involvedObject.name=all,reason=FailedCreatePodSandBox";
    until("it is said why there is no sandbox", || {
        said(&user.kubectl(&["get", "events", "--field-selector", of_all])).contains("other groups than 0")
    });
    user.ok(&["delete", "pod", "own", "all", "--wait"]);
    // Another process finds the directory in use, and says so before it makes anything.
    let second = user.troupe(&["up", "--api", "127.0.0.1:0", "--runtime", "native"]).output().unwrap();
    assert!(!second.status.success() && said(&second).contains("in use"), "{}", said(&second));
}

#[test]
fn an_ordinary_users_containers_outlive_troupe_and_are_taken_over() {
    let Some(mut user) = User::new() else { return };
    user.start();
    for name in ["a", "b"] {
        user.create(&pod(name, json!({}), json!({})));
    }
    let life = |user: &User, name: &str| {
        let pod = user.until_ready(name);
        let status = &pod["status"];
        let container = &status["containerStatuses"][0];
        (status["podIP"].clone(), container["containerID"].clone(), container["restartCount"].clone())
    };
    let before = [life(&user, "a"), life(&user, "b")];
    user.end(Signal::SIGKILL);
    assert!(user.processes().len() >= 4, "shims and programs: {:?}", user.processes());
    user.start();
    assert_eq!([life(&user, "a"), life(&user, "b")], before);
    let page = user.hello("a", &["--fetch", &format!("http://{}:8080/", before[1].0.as_str().unwrap())]);
    assert!(page.contains("Hello from b"), "{page}");
    user.ok(&["delete", "pod", "a", "--wait"]);
}

#[test]
fn an_ordinary_users_host_ports_are_the_machines() {
    let Some(mut user) = User::new() else { return };
    user.start();
    // Nobody else is at that address, so that the port stays free.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = std::net::Ipv4Addr::new(127, 98, high, low);
    let listen = TcpListener::bind((address, 0)).unwrap().local_addr().unwrap();
    let ports = json!({"ports": [{"containerPort": 8080, "hostPort": listen.port(), "hostIP": address}]});
    user.create(&pod("web", json!({}), ports));
    user.until_ready("web");
    let page = || {
        let mut client = std::net::TcpStream::connect(listen).ok()?;
        client.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        client.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        client.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    let answers = || page().is_some_and(|page| page.contains("Hello from web"));
    until("the pod answers at the machine's port", answers);
    user.end(Signal::SIGKILL);
    assert!(page().is_none());
    user.start();
    until("it answers again", answers);
    user.ok(&["delete", "pod", "web", "--wait"]);
    assert!(TcpListener::bind(listen).is_ok());
}

#[test]
fn pods_whose_namespaces_nobody_held_are_ended_and_run_anew() {
    let Some(mut user) = User::new() else { return };
    user.start();
    user.create(&pod("a", json!({}), json!({})));
    user.create(&pod("b", json!({}), json!({})));
    let id = |user: &User| user.until_ready("a")["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&user);
    user.until_ready("b");
    user.end(Signal::SIGKILL);
    let lost = user.processes();
    let holder: Value = serde_json::from_slice(&fs::read(user.data().join("namespaces")).unwrap()).unwrap();
    kill(Pid::from_raw(i32::try_from(holder["pid"].as_i64().unwrap()).unwrap()), Signal::SIGKILL).unwrap();
    user.start();
    until("another container runs", || id(&user) != before);
    let left = user.processes();
    assert!(lost.iter().all(|pid| !left.contains(pid)), "{lost:?} {left:?}");
    let address = user.until_ready("b")["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(user.hello("a", &["--fetch", &format!("http://{address}:8080/")]).contains("Hello from b"));
}

#[test]
fn reset_ends_an_ordinary_users_pods_and_removes_everything() {
    let Some(mut user) = User::new() else { return };
    user.start();
    user.create(&pod("a", json!({}), json!({})));
    user.until_ready("a");
    user.end(Signal::SIGKILL);
    let reset = user.troupe(&["reset", "--yes"]).output().unwrap();
    assert!(reset.status.success() && said(&reset).contains("1 pods ended"), "{}", said(&reset));
    user.until_no_process_is_left();
    assert!(!user.data().exists());
}

#[test]
fn an_ordinary_users_images_are_pulled_by_the_machines_network() {
    let Some(mut user) = User::new() else { return };
    user.start();
    let registry = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("127.0.0.1:{}/some/image:1", registry.local_addr().unwrap().port());
    user.create(&pod("a", json!({}), json!({"image": image})));
    registry.set_nonblocking(true).unwrap();
    let mut caller = None;
    until("the registry is asked", || {
        caller = registry.accept().ok();
        caller.is_some()
    });
    let (mut stream, _) = caller.unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
}

#[test]
fn the_demo_is_true_with_an_ordinary_users_containers() {
    let Some(user) = User::new() else { return };
    let output = user.troupe(&["demo", "--fast"]).output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for seen in
        ["As an ordinary user", "Hello from hello-", "the same ten processes", "All of it happened as shown"]
    {
        assert!(text.contains(seen), "{seen:?} is not in:\n{text}");
    }
    user.until_no_process_is_left();
}
