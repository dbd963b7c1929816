//! The hosts: namespaces joined by a switch, and the processes in them.
//!
//! Owns: everything of a bed on this machine: network namespaces named `trh-PID-N-*`, processes, what their containers
//! have. Invariant: dropping a [`Bed`] removes all of it; a bed whose test process was killed is removed by the next one.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    harness::{self, DEADLINE, Ran, check, is_deleting, is_ready, kubectl, program, sweep, text, until},
    variants,
};

/// Namespaces of beds begin so, then comes the test's process.
const PREFIX: &str = "trh-";
/// So do their directories.
const SCRATCH: &str = "troupe-hosts-";
/// And those with programs of their own.
const PROGRAMS: &str = "hosts-";
/// A node as tests start it. How full this machine's disk is must not matter.
pub const NODE: [&str; 5] = ["node", "--eviction-hard", "", "--crash-loop-backoff", "300ms"];
/// Fills a disk.
const BALLAST: &str = "ballast";
/// Commands that are to end by themselves.
const COMMAND: Duration = Duration::from_secs(90);

/// Whether these tests can run here. Says why not; under `CI` that is a failure.
pub fn ready() -> bool {
    if !harness::ready() {
        return false;
    }
    let missing: Vec<&str> =
        ["ip", "nsenter", "nft"].into_iter().filter(|name| program(name).is_none()).collect();
    if missing.is_empty() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no {missing:?}");
    eprintln!("skipped: no {missing:?}");
    false
}

#[track_caller]
fn ip(words: &[&str]) {
    let output = Command::new(program("ip").unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "ip {words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A switch and its hosts.
pub struct Bed {
    tag: String,
    count: u32,
    dir: TempDir,
}

impl Bed {
    /// A switch without hosts.
    pub fn new() -> Bed {
        static BEDS: AtomicU32 = AtomicU32::new(0);
        remove_abandoned();
        let tag = format!("{}{}", own(PREFIX), BEDS.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix(&own(SCRATCH)).tempdir().unwrap();
        let bed = Bed { tag, count: 0, dir };
        let switch = bed.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        bed
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.tag)
    }

    /// A master and the nodes `one` and `two`, ready.
    pub fn trio(&mut self) -> (Host, Host, Host) {
        let (mut master, mut one, mut two) = (self.host("m"), self.host("one"), self.host("two"));
        master.master(&[]);
        one.join(&master);
        two.join(&master);
        ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
        (master, one, two)
    }

    /// A further host: the first has 10.77.0.1. Drop it before the bed.
    pub fn host(&mut self, name: &str) -> Host {
        self.count += 1;
        let number = self.count;
        let (space, switch, port) = (format!("{}-{number}", self.tag), self.switch(), format!("h{number}"));
        ip(&["netns", "add", &space]);
        ip(&["-n", &space, "link", "set", "lo", "up"]);
        ip(&["-n", &space, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &space, "link", "set", "eth0", "up"]);
        let mut host = Host {
            name: name.into(),
            space,
            switch,
            port,
            address: String::new(),
            data: self.dir.path().join(name),
            program: env!("CARGO_BIN_EXE_troupe").into(),
            programs: None,
            docker: None,
            process: None,
            log: self.dir.path().join(format!("{name}.log")),
            scratch: self.dir.path().to_owned(),
        };
        host.readdress(&format!("10.77.0.{number}"));
        host
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for space in spaces().filter(|space| space.starts_with(&format!("{}-", self.tag))) {
            remove_space(&space);
        }
    }
}

fn spaces() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Ends whoever is in a namespace, and removes it.
fn remove_space(space: &str) {
    let ip = program("ip").unwrap();
    sweep::repeated(&format!("{space} cannot be removed"), || {
        let inside = Command::new(&ip).args(["netns", "pids", space]).output();
        let pids = inside.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        for pid in pids.unwrap_or_default().split_whitespace().filter_map(|pid| pid.parse().ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = Command::new(&ip).args(["netns", "del", space]).output();
        !Path::new("/run/netns").join(space).exists()
    });
}

/// This process' own of a kind of names.
fn own(prefix: &str) -> String {
    format!("{prefix}{}-", std::process::id())
}

/// Whether a name was given by a test process that is gone.
fn is_abandoned(name: &str, prefix: &str) -> bool {
    let pid = name.strip_prefix(prefix).and_then(|rest| rest.split_once('-')).map(|(pid, _)| pid);
    // Others' names are not of this form.
    pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists())
}

/// Removes beds whose test process is gone, and all that they still have.
fn remove_abandoned() {
    spaces().filter(|space| is_abandoned(space, PREFIX)).for_each(|space| remove_space(&space));
    let within = |dir: &Path, prefix: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.filter(|entry| is_abandoned(&name(entry), prefix)).map(|entry| entry.path()).collect()
    };
    for scratch in within(&std::env::temp_dir(), SCRATCH) {
        let entries = fs::read_dir(&scratch).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).for_each(|data| sweep::sweep(&data));
        let _ = fs::remove_dir_all(scratch);
    }
    for programs in within(Path::new(env!("CARGO_TARGET_TMPDIR")), PROGRAMS) {
        let _ = fs::remove_dir_all(programs);
    }
}

/// A machine.
pub struct Host {
    pub name: String,
    space: String,
    switch: String,
    port: String,
    /// Its address on the switch.
    pub address: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Its `troupe`.
    program: PathBuf,
    /// Where that is when it is not everybody's.
    programs: Option<TempDir>,
    /// Where its docker engine listens, if it has one.
    pub docker: Option<PathBuf>,
    process: Option<Child>,
    log: PathBuf,
    scratch: PathBuf,
}

impl Host {
    /// A program as it runs there: in the host's network, everything else as here.
    pub fn command(&self, program_: &Path) -> Command {
        let mut command = Command::new(program("nsenter").unwrap());
        command.arg(format!("--net=/run/netns/{}", self.space)).arg(program_);
        command.env("HOME", &self.scratch).env("TROUPE_LOG", "warn,troupe=debug").stdin(Stdio::null());
        command.current_dir(&self.scratch);
        command
    }

    /// `troupe` with this host's data directory.
    pub fn troupe(&self, words: &[&str]) -> Command {
        let mut command = self.command(&self.program);
        command.args(words).env("TROUPE_DATA_DIR", &self.data);
        if let Some(socket) = &self.docker {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
        command
    }

    /// Runs `troupe` until it ends by itself.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Ran {
        let mut command = self.troupe(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > COMMAND {
                let _ = child.kill();
                let output = child.wait_with_output().unwrap();
                panic!("troupe {words:?} does not end: {output:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output: Output = child.wait_with_output().unwrap();
        Ran::new(format!("troupe {}", words.join(" ")), output)
    }

    /// Starts `troupe` and waits for its ready line.
    #[track_caller]
    pub fn start(&mut self, words: &[&str]) -> String {
        let lines = self.launch(words);
        match lines.recv_timeout(DEADLINE) {
            Ok(line) if line.starts_with("ready: ") => line,
            other => panic!("troupe {words:?} on {} is not ready: {other:?}", self.name),
        }
    }

    /// Starts `troupe`, as whoever switches a machine on; what it prints.
    #[track_caller]
    pub fn launch(&mut self, words: &[&str]) -> mpsc::Receiver<String> {
        assert!(self.process.is_none(), "{} runs already", self.name);
        self.heal();
        let log = fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = self.troupe(words);
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        self.process = Some(child);
        let (sender, lines) = mpsc::channel();
        // Goes on reading to the process' end, so that it never waits for us.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        lines
    }

    /// A master, with what tests want of one.
    #[track_caller]
    pub fn master(&mut self, more: &[&str]) {
        let mut words = vec!["master"];
        words.extend(more);
        let line = self.start(&words);
        assert!(line.contains(&format!("links {}:6443 (UDP)", self.address)), "{line}");
    }

    /// A node that has joined, or joins with these words.
    #[track_caller]
    pub fn node(&mut self, more: &[&str]) {
        let mut words = NODE.to_vec();
        words.extend(more);
        self.start(&words);
    }

    /// Joins a master as a node of the host's name.
    #[track_caller]
    pub fn join(&mut self, master: &Host) {
        let (token, name) = (master.token(&[]), self.name.clone());
        self.node(&["--join", &master.address, "--token", &token, "--name", &name]);
    }

    /// A new token of this master.
    #[track_caller]
    pub fn token(&self, more: &[&str]) -> String {
        let mut words = vec!["token", "create"];
        words.extend(more);
        let printed = self.run(&words).ok();
        printed.lines().next().unwrap().to_owned()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.as_ref().expect("it runs").id()).unwrap()
    }

    /// `kill -9` of the host's `troupe`, and of nothing else.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits until the host's `troupe` ends by itself; its exit code.
    #[track_caller]
    pub fn until_ended(&mut self) -> Option<i32> {
        let name = self.name.clone();
        let child = self.process.as_mut().expect("it runs");
        let status = until(&format!("troupe on {name} ends"), || {
            child.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| "it runs".to_owned())
        });
        self.process = None;
        status.code()
    }

    /// SIGTERM; its exit code.
    #[track_caller]
    pub fn stop(&mut self) -> Option<i32> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        self.until_ended()
    }

    /// The end of the machine, until something is started on it: nobody reaches it any more; `troupe`, shims and containers at once, and what its kernel kept for them.
    pub fn crash(&mut self) {
        self.cut();
        self.kill();
        if self.docker.is_some() {
            // Its containers and networks are the engine's, which nobody can switch off with the machine.
            let _ = self.troupe(&["reset", "--yes"]).stdout(Stdio::null()).status();
        }
        sweep::sweep(&self.data);
        let Ok(output) = Command::new(program("ip").unwrap())
            .args(["-n", &self.space, "-brief", "link", "show", "type", "bridge"])
            .output()
        else {
            return;
        };
        for bridge in String::from_utf8_lossy(&output.stdout).lines().filter_map(|l| l.split(' ').next()) {
            let _ = Command::new(program("ip").unwrap())
                .args(["-n", &self.space, "link", "delete", bridge])
                .output();
        }
    }

    /// `kill -9` of the host's `troupe`, its shims and its containers. The machine itself lives.
    pub fn kill_all(&mut self) {
        self.kill();
        sweep::kill_all(&self.data);
    }

    /// Stops the host's `troupe` where it stands (SIGSTOP).
    pub fn freeze(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGSTOP).unwrap();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGCONT).unwrap();
    }

    /// Pulls the cable.
    pub fn cut(&self) {
        let words = ["-n", &self.switch, "link", "set", &self.port, "down"];
        // The bed may be gone already when a host goes.
        let _ = Command::new(program("ip").unwrap()).args(words).output();
    }

    /// Puts it back.
    pub fn heal(&self) {
        ip(&["-n", &self.switch, "link", "set", &self.port, "up"]);
    }

    /// From now on so many percent of the packets that come over its cable are lost.
    #[track_caller]
    pub fn lose(&self, percent: u32) {
        let rules = format!(
            "table inet trh {{ chain lossy {{ type filter hook input priority -10; policy accept; \
             iifname \"eth0\" counter; \
             iifname \"eth0\" numgen random mod 100 < {percent} counter drop; }}; }};"
        );
        let output = self.command(&program("nft").unwrap()).arg(&rules).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// How many were lost so far, and of how many.
    #[track_caller]
    pub fn lost(&self) -> (u64, u64) {
        let words = ["list", "chain", "inet", "trh", "lossy"];
        let output = self.command(&program("nft").unwrap()).args(words).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let counts = text.split("packets ").skip(1);
        let counts: Vec<u64> = counts.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
        let [all, lost] = counts[..] else { panic!("no counts in {text}") };
        (lost, all)
    }

    /// Has its data directory on a disk of its own, with room for so many MiB.
    #[track_caller]
    pub fn small_disk(&self, mib: u32) {
        fs::create_dir_all(&self.data).unwrap();
        let options = format!("size={mib}m");
        nix::mount::mount(
            Some("trh"),
            &self.data,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
    }

    /// Writes a file into the data directory until its disk has no more than so many bytes left.
    #[track_caller]
    pub fn fill(&self, left: u64) {
        use std::io::Write as _;
        let mut file = fs::File::create(self.data.join(BALLAST)).unwrap();
        let piece = vec![1; 4096];
        loop {
            let stat = nix::sys::statvfs::statvfs(&self.data).unwrap();
            if stat.blocks_available() * stat.fragment_size() <= left || file.write_all(&piece).is_err() {
                return;
            }
        }
    }

    /// Removes that file.
    pub fn empty(&self) {
        fs::remove_file(self.data.join(BALLAST)).unwrap();
    }

    /// Has a clock that is so many hours ahead, from the next start on.
    pub fn set_clock(&mut self, hours: i32) {
        self.install(&variants::of_clock(hours));
    }

    /// Gets a `troupe` of another version, which its next start uses; what that tells of itself.
    pub fn upgrade(&mut self, digit: u8) -> String {
        let (version, program) = variants::of_version(digit);
        self.install(&program);
        version
    }

    /// Puts a program where the old one was, which may run: written beside it, then renamed.
    fn install(&mut self, program: &[u8]) {
        // Beside the program under test: there is room for its like.
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = || tempfile::Builder::new().prefix(&own(PROGRAMS)).tempdir_in(place).unwrap();
        let dir = self.programs.get_or_insert_with(dir).path();
        let (new, path) = (dir.join("troupe.new"), dir.join("troupe"));
        fs::write(&new, program).unwrap();
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&new, executable).unwrap();
        fs::rename(&new, &path).unwrap();
        self.program = path;
    }

    /// Does something in the host's network, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = fs::File::open(format!("/run/netns/{}", self.space)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                nix::sched::setns(space, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Takes its address away: it has loopback alone.
    pub fn unaddress(&self) {
        ip(&["-n", &self.space, "address", "flush", "dev", "eth0"]);
    }

    /// Gives the host another address.
    pub fn readdress(&mut self, address: &str) {
        self.unaddress();
        ip(&["-n", &self.space, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        self.address = address.into();
    }

    /// What its `troupe` wrote to standard error so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The processes of its containers.
    pub fn containers(&self) -> Vec<(i32, String)> {
        let mut all = sweep::processes(&self.data);
        all.sort_unstable();
        all
    }

    // What one asks a master.

    /// kubectl on this master's host.
    pub fn kubectl(&self, words: &[&str]) -> Ran {
        self.kubectl_in(words, "")
    }

    /// kubectl with an input.
    pub fn kubectl_in(&self, words: &[&str], input: &str) -> Ran {
        use std::io::Write as _;
        let mut command = self.command(&kubectl().unwrap());
        command.args(words).env("KUBECONFIG", self.data.join("admin.kubeconfig"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // It may end before it has read everything; its output then says why.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        Ran::new(format!("kubectl {}", words.join(" ")), child.wait_with_output().unwrap())
    }

    #[track_caller]
    pub fn apply(&self, manifest: &Value) {
        self.kubectl_in(&["apply", "-f", "-"], &manifest.to_string()).ok();
    }

    /// What `kubectl get … -o json` says, or why it says nothing.
    pub fn get(&self, words: &[&str]) -> Result<Value, String> {
        let mut all = vec!["get"];
        all.extend(words);
        all.extend(["-o", "json"]);
        let text = self.kubectl(&all).result()?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// Waits until a node's `Ready` condition has this status.
    #[track_caller]
    pub fn until_node(&self, node: &str, status: &str) {
        until(&format!("node {node} has Ready={status}"), || {
            let object = self.get(&["node", node])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.iter().find(|c| c["type"] == "Ready").cloned().unwrap_or_default();
            check(ready["status"] == status, || ready.to_string())
        });
    }

    /// All pods of the default namespace, as they are at this moment.
    #[track_caller]
    pub fn pods(&self) -> Vec<Value> {
        self.get(&["pods"]).unwrap()["items"].as_array().cloned().unwrap_or_default()
    }

    /// Whether any node was ever taken for not ready.
    #[track_caller]
    pub fn ever_lost(&self) -> Option<String> {
        let events = self.get(&["events", "-A"]).unwrap();
        let all = events["items"].as_array().cloned().unwrap_or_default();
        all.iter().find(|event| event["reason"] == "NodeNotReady").map(|event| event.to_string())
    }

    /// Waits until the default namespace has exactly so many pods, all ready and none on its way out.
    #[track_caller]
    pub fn until_pods(&self, count: usize) -> Vec<Value> {
        until(&format!("{count} pods are ready"), || {
            let list = self.get(&["pods"])?;
            let pods = list["items"].as_array().cloned().unwrap_or_default();
            let good = pods.iter().filter(|pod| is_ready(pod) && !is_deleting(pod)).count();
            let shown = || {
                let all: Vec<String> =
                    pods.iter().map(|p| format!("{} {}", p["metadata"]["name"], p["status"])).collect();
                format!("{good} of {}: {}", pods.len(), all.join("\n"))
            };
            check(good == count && pods.len() == count, shown)?;
            Ok(pods)
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            const LINES: usize = 60;
            let said = self.said();
            let lines: Vec<&str> = said.lines().collect();
            let from = lines.len().saturating_sub(LINES);
            eprintln!("--- {}, last lines\n{}\n---", self.name, lines[from..].join("\n"));
        }
        self.crash();
    }
}

/// Restarts of each pod's container, by the pod's uid.
pub fn restarts(pods: &[Value]) -> BTreeMap<String, i64> {
    let of = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or(-1);
    pods.iter().map(|pod| (text(&pod["metadata"]["uid"]).to_owned(), of(pod))).collect()
}

/// Where a pod runs.
pub fn node_of(pod: &Value) -> &str {
    text(&pod["spec"]["nodeName"])
}
