//! Several machines on this one: a network namespace each, joined by a switch, as in `tests/hosts`.
//!
//! Everything has names of this process, and ends with the bed.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    Options,
    client::Login,
    machine::{Process, entries, processes},
};

fn ip(words: &[&str]) -> bool {
    let status = Command::new("ip").args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Mount points below a directory, in the order in which they were made.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = table.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    places.filter(|place| place.starts_with(dir)).collect()
}

/// The switch, and a master on its first host.
pub struct Bed {
    program: PathBuf,
    dir: TempDir,
    tag: String,
    hosts: Vec<Host>,
}

/// A machine: the number of its namespace, and what runs there.
struct Host {
    space: String,
    running: Vec<(Child, PathBuf)>,
}

impl Bed {
    /// With a master.
    pub fn new(options: &Options) -> Bed {
        let dir = tempfile::Builder::new().prefix("troupe-bench-hosts-").tempdir().expect("a new directory");
        let tag = format!("trb-{}", std::process::id());
        let mut bed = Bed { program: options.program.clone(), dir, tag, hosts: Vec::new() };
        let switch = bed.switch();
        assert!(ip(&["netns", "add", &switch]), "`ip` makes network namespaces");
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        let master = bed.host();
        bed.start(master, "master", &["master", "--api", "10.78.0.1:6443"]);
        bed
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.tag)
    }

    fn port(number: usize) -> String {
        format!("h{number}")
    }

    /// Another machine; its number.
    pub fn host(&mut self) -> usize {
        let number = self.hosts.len();
        let (space, switch, port) = (format!("{}-{number}", self.tag), self.switch(), Bed::port(number));
        let address = format!("10.78.0.{}/16", number + 1);
        let made = ip(&["netns", "add", &space])
            && ip(&["-n", &space, "link", "set", "lo", "up"])
            && ip(&[
                "-n", &space, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch,
            ])
            && ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])
            && ip(&["-n", &space, "link", "set", "eth0", "up"])
            && ip(&["-n", &space, "address", "add", &address, "dev", "eth0"]);
        assert!(made, "`ip` makes hosts");
        self.hosts.push(Host { space, running: Vec::new() });
        number
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `troupe` as it runs on a machine.
    fn command(&self, host: usize, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let space = self.hosts.get(host).map_or("", |host| host.space.as_str());
        command.arg(format!("--net=/run/netns/{space}")).arg(&self.program).args(words);
        command.stdin(Stdio::null());
        command
    }

    /// Starts `troupe` with a data directory of this name; when it was started and when it said that it is ready.
    pub fn start(&mut self, host: usize, name: &str, words: &[&str]) -> (Instant, Instant) {
        let data = self.data(name);
        let log = File::create(self.dir.path().join(format!("{name}.log"))).expect("a log");
        let mut command = self.command(host, words);
        command.env("TROUPE_DATA_DIR", &data).stdout(Stdio::piped()).stderr(log);
        let begun = Instant::now();
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        let read = BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line);
        let ready = Instant::now();
        let log = || fs::read_to_string(self.dir.path().join(format!("{name}.log"))).unwrap_or_default();
        assert!(read.is_ok() && line.starts_with("ready:"), "troupe {words:?}: {line}{}", log());
        self.hosts.get_mut(host).expect("a host").running.push((child, data));
        (begun, ready)
    }

    /// A node; further words as of `troupe node`.
    pub fn node(&mut self, host: usize, name: &str, token: &str, more: &[&str]) -> (Instant, Instant) {
        let mut words = vec!["node", "--join", "10.78.0.1", "--token", token, "--name", name];
        words.extend(["--eviction-hard", ""]);
        words.extend(more);
        self.start(host, name, &words)
    }

    /// A join token.
    pub fn token(&self) -> String {
        let mut command = self.command(0, &["token", "create"]);
        let output = command.env("TROUPE_DATA_DIR", self.data("master")).output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().unwrap_or_else(|| panic!("no token: {output:?}")).to_owned()
    }

    /// Does something in the master's network; threads that it starts are there, too.
    pub fn at_master<T: Send>(&self, work: impl FnOnce(&Login) -> T + Send) -> T {
        let space = File::open(format!("/run/netns/{}-0", self.tag)).expect("a namespace");
        let login = Login::read(&self.data("master").join("admin.kubeconfig"));
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(space, CloneFlags::CLONE_NEWNET).expect("root may do this");
                work(&login)
            });
            thread.join().expect("it works")
        })
    }

    /// Pulls a machine's cable: for all others it is dead.
    pub fn cut(&self, host: usize) {
        assert!(ip(&["-n", &self.switch(), "link", "set", &Bed::port(host), "down"]));
    }

    /// The master's process.
    pub fn master_pid(&self) -> i32 {
        let child = self.hosts.first().and_then(|host| host.running.first()).expect("it runs");
        i32::try_from(child.0.id()).expect("a pid")
    }

    /// Bytes that came to and went from the master's machine so far.
    pub fn master_bytes(&self) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/net/dev", self.master_pid())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.trim().strip_prefix("eth0:").map(str::to_owned));
        let fields: Vec<u64> =
            line.unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
        fields.first().unwrap_or(&0) + fields.get(8).unwrap_or(&0)
    }

    fn processes_of(&self, data: &Path) -> Vec<Process> {
        let dir = data.to_string_lossy().into_owned();
        processes().into_iter().filter(|process| process.command.contains(&dir)).collect()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let switch = self.switch();
        for host in std::mem::take(&mut self.hosts) {
            for (mut child, data) in host.running {
                let _ = child.kill();
                let _ = child.wait();
                let shims = self.processes_of(&data);
                let is_of = |process: &Process| shims.iter().any(|shim| shim.pid == process.parent);
                let containers: Vec<Process> = processes().into_iter().filter(is_of).collect();
                for process in containers.iter().chain(&shims) {
                    let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
                }
                for place in mounts(&data).iter().rev() {
                    let _ = umount2(place, MntFlags::MNT_DETACH);
                }
                let (_, group) = troupe::app::network_names(&data, 0);
                for hierarchy in entries(Path::new("/sys/fs/cgroup")) {
                    crate::cluster::remove_group(&Path::new("/sys/fs/cgroup").join(hierarchy).join(&group));
                }
                crate::cluster::remove_group(&Path::new("/sys/fs/cgroup").join(&group));
            }
            ip(&["netns", "del", &host.space]);
        }
        ip(&["netns", "del", &switch]);
        thread::sleep(Duration::from_millis(50));
    }
}
