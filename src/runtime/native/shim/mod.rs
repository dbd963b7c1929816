//! The shim: a pod's parent process, one thread, that outlives the driver.
//!
//! Owns: the pod's namespaces, its containers' processes, logs and exits. It reacts to its socket, its children and
//! their pipes in one poll loop. Invariants: nothing blocks the loop longer than a container's start; an exit is on
//! disk before it is told; a client that does not read is dropped, not waited for. It leaves to the driver when to start
//! and stop anything.
//!
//! ```text
//! driver ──calls──▶ ┌────── poll ──────┐ ──▶ libcontainer ──▶ container
//!        ◀─answers─ │ socket  SIGCHLD  │ ◀──── exit ──────────┘
//!        ◀──exits── │ stdout, stderr   │ ──▶ log, exit.json
//!                   └──────────────────┘
//! ```

mod attach;
mod container;
mod exec;
mod executor;
mod log;
mod mount_points;
mod pids;
mod sandbox;
mod users;
mod volumes;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

pub(super) use self::pids::kill_tree;
use self::{
    container::{Plan, Pod, Running},
    exec::{Caller, Ends, Execs},
    pids::Holder,
    users::Users,
};
use super::{
    cgroup::Hierarchies,
    launch,
    protocol::{self, Call, Fault, Message, Program, Reply, Request},
    state::{self, SandboxDir, SandboxRecord},
    sys, userns,
};
use crate::runtime::{ContainerId, TerminalSize};

/// Runs a shim: `troupe shim SANDBOX-DIR`, with the listening socket as standard input; or a seed of shims, `troupe shim
/// --seed`. To be called before the process has a second thread. Returns the process' exit code.
pub fn shim_main(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let Some(mut dir) = arguments.next().map(PathBuf::from) else {
        eprintln!("the shim is started by troupe itself");
        return EXIT_USAGE;
    };
    if dir.as_os_str() == userns::HOLD {
        userns::hold();
    }
    if dir.as_os_str() == userns::TRY {
        return userns::attempt();
    }
    report_errors();
    if dir.as_os_str() == launch::SEED {
        match launch::seed() {
            Ok(Some(of_shim)) => dir = of_shim,
            Ok(None) => return 0,
            Err(_) => return 1,
        }
    }
    match Shim::begin(SandboxDir(dir)).and_then(Shim::run) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "shim ends");
            1
        }
    }
}

/// A shim's errors go to its log, which is its standard error. A seed reports none: it does this for the shims that it
/// forks.
fn report_errors() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .with_writer(|| -> Box<dyn io::Write> {
            if QUIET.load(Ordering::Relaxed) { Box::new(io::sink()) } else { Box::new(io::stderr()) }
        })
        .init();
}

/// Reports no errors from here on in this process, whose standard error is to become a user's.
fn report_no_errors() {
    QUIET.store(true, Ordering::Relaxed);
}

static QUIET: AtomicBool = AtomicBool::new(false);

const EXIT_USAGE: i32 = 2;
/// Its pod would be lost with it, so it is taken after everything else; as other runtimes' shims have it.
const OOM_SCORE_ADJ: i32 = -998;

struct Shim {
    dir: SandboxDir,
    record: SandboxRecord,
    hierarchies: Hierarchies,
    /// The node's mount namespace, which this process came from.
    node_mounts: File,
    /// The pod's own users, if it has any.
    users: Option<Users>,
    /// The sandbox, or why there is none.
    ready: Result<(), Fault>,
    /// The pod's pid namespace, if its containers share one.
    holder: Option<Holder>,
    listener: UnixListener,
    signals: SignalFd,
    clients: BTreeMap<RawFd, Client>,
    /// Containers created and not yet started.
    planned: BTreeMap<ContainerId, Plan>,
    running: BTreeMap<ContainerId, Running>,
    /// Programs run in them besides their own.
    execs: Execs,
    /// How many clients there were: each has a number of its own, unlike a descriptor.
    connected: u64,
    /// Nothing was started since memory was last given back.
    settled: bool,
    /// Who asked for the end, once someone has.
    ending: Option<(RawFd, u64)>,
}

/// A connection; the driver has one, and a second one while it is replaced.
struct Client {
    number: u64,
    stream: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

/// A client that lets this much pile up has stopped reading.
const MAX_OUTPUT: usize = 1024 * 1024;
/// More connections than a driver and its successor have.
const MAX_CLIENTS: usize = 16;

impl Shim {
    fn begin(dir: SandboxDir) -> io::Result<Shim> {
        // The terminal's signals and the parent's end are not this pod's business.
        let _ = nix::unistd::setsid();
        if !userns::inside() {
            // Containers that ask for no groups have these; in a user namespace they may not be given up.
            nix::unistd::setgroups(&[])?;
        }
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let listener = UnixListener::from(sys::take_stdin()?);
        listener.set_nonblocking(true)?;
        sys::become_subreaper()?;
        sys::adjust_oom_score(std::process::id() as i32, OOM_SCORE_ADJ);
        std::env::set_current_dir("/")?;
        let record: SandboxRecord = state::read(&dir.record())?;
        let mut hierarchies = Hierarchies::detect();
        let node_mounts = File::open("/proc/self/ns/mnt")?;
        let (mut ready, users) = match sandbox::enter(&dir, &record, &mut hierarchies) {
            Ok(users) => (Ok(()), users),
            Err(fault) => (Err(fault), None),
        };
        let mut holder = None;
        if ready.is_ok() && record.config.share_pids {
            match Holder::start(users.as_ref().map(Users::namespace)) {
                Ok(started) => holder = Some(started),
                Err(error) => ready = Err(Fault::system("make the pod's pid namespace")(error)),
            }
        }
        Ok(Shim {
            dir,
            record,
            hierarchies,
            node_mounts,
            users,
            ready,
            holder,
            listener,
            signals,
            clients: BTreeMap::new(),
            planned: BTreeMap::new(),
            settled: true,
            running: BTreeMap::new(),
            execs: Execs::default(),
            connected: 0,
            ending: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let mut polled = self.polled();
            sys::poll(&mut polled, self.execs.wait_ms())?;
            // Output first: what a program wrote before it ended comes before its exit.
            let ready = |fd: RawFd| polled.iter().any(|entry| entry.fd == fd && entry.revents != 0);
            for running in self.running.values_mut() {
                let Running { log, pumps, attached, .. } = running;
                pumps.retain_mut(|pump| !ready(pump.fd()) || pump.turn(log, attached));
            }
            let left: Vec<_> =
                self.running.values_mut().flat_map(|running| running.attached.turn(ready)).collect();
            self.answer_all(left);
            self.execs.read(ready);
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap()?;
            self.execs.expire();
            if ready(self.listener.as_raw_fd()) {
                self.accept();
            }
            let clients: Vec<RawFd> = self.clients.keys().copied().filter(|fd| ready(*fd)).collect();
            for fd in clients {
                self.serve(fd);
            }
            while self.answer_execs() {}
            if self.ended() {
                if self.hierarchies.missing() {
                    pids::children(std::process::id() as i32).into_iter().for_each(pids::kill_tree);
                }
                if let Some(holder) = self.holder.take() {
                    holder.end();
                }
                return Ok(());
            }
            // After the answer, so that nobody waits for it.
            if !std::mem::replace(&mut self.settled, true) {
                sys::trim_heap();
            }
        }
    }

    fn polled(&self) -> Vec<libc::pollfd> {
        let entry = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut polled = vec![
            entry(self.signals.as_raw_fd(), libc::POLLIN),
            entry(self.listener.as_raw_fd(), libc::POLLIN),
        ];
        polled.extend(self.clients.iter().map(|(fd, client)| {
            let wants_out = if client.output.is_empty() { 0 } else { libc::POLLOUT };
            entry(*fd, libc::POLLIN | wants_out)
        }));
        let pumps = self.running.values().flat_map(|running| &running.pumps);
        polled.extend(pumps.map(|pump| entry(pump.fd(), libc::POLLIN)));
        let attached = self.running.values().flat_map(|running| running.attached.polled());
        polled.extend(attached.map(|(fd, events)| entry(fd, events)));
        polled.extend(self.execs.fds().map(|fd| entry(fd, libc::POLLIN)));
        polled
    }

    /// Takes the status of every child that ended: containers', and strays adopted from them. Fails when the process
    /// ended that held the containers' pid namespace: nothing can be started in it any more.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for children");
                    return Ok(());
                }
            };
            let Some(pid) = status.pid().map(Pid::as_raw) else { continue };
            if self.holder.as_ref().is_some_and(|holder| holder.pid() == pid) {
                return Err(io::Error::other("the pod's pid namespace has ended"));
            }
            let Some(id) =
                self.running.iter().find(|(_, running)| running.pid == pid).map(|(id, _)| id.clone())
            else {
                self.execs.reaped(pid, status);
                continue;
            };
            self.execs.kill(Some(&id));
            let Some(mut running) = self.running.remove(&id) else { continue };
            let exit = self.pod().ended(&id, &mut running, status);
            self.answer_all(running.attached.end());
            self.tell_all(&Message::Exited { id, exit });
        }
    }

    fn pod(&self) -> Pod<'_> {
        Pod {
            dir: &self.dir,
            record: &self.record,
            hierarchies: &self.hierarchies,
            shared_pids: self.holder.as_ref().map(Holder::path),
            node_mounts: &self.node_mounts,
            users: self.users.as_ref(),
            sockets: std::iter::once(self.listener.as_raw_fd()).chain(self.clients.keys().copied()).collect(),
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let fd = stream.as_raw_fd();
            self.connected += 1;
            let (input, output) = (Vec::new(), Vec::new());
            self.clients.insert(fd, Client { number: self.connected, stream, input, output });
        }
    }

    /// Reads, answers and flushes one client; forgets it when it is gone or talks nonsense.
    fn serve(&mut self, fd: RawFd) {
        let mut calls = Vec::new();
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let mut alive = client.receive(&mut calls);
        let number = client.number;
        for Call { seq, request } in calls {
            if let Some(result) = self.answer(&request, fd, Caller { client: number, seq })
                && let Some(client) = self.clients.get_mut(&fd)
            {
                alive &= client.send(&Message::Answer { seq, result });
            }
        }
        if let Some(client) = self.clients.get_mut(&fd) {
            alive &= client.flush();
        }
        if !alive {
            self.clients.remove(&fd);
        }
    }

    /// `None`: the answer comes when something has ended: a program, or everything.
    fn answer(&mut self, request: &Request, fd: RawFd, caller: Caller) -> Option<Result<Reply, Fault>> {
        if let (Err(fault), false) = (&self.ready, matches!(request, Request::Shutdown)) {
            return Some(Err(fault.clone()));
        }
        Some(match request {
            Request::Hello => Ok(Reply::Ready { pid: std::process::id() as i32, execs: true }),
            Request::Create { id, program } => self.create(id, program.clone()),
            Request::Start { id } => self.start(id),
            Request::Signal { id, signal, everyone } => self.signal(id, *signal, *everyone),
            Request::Remove { id } => self.remove(id),
            Request::Exec { id, command, timeout_ms } => {
                let time = Duration::from_millis(*timeout_ms);
                return self.exec(id, command, Ends::Captured(time), caller).err().map(Err);
            }
            Request::ExecStreams { id, command, dir, stdin, tty } => {
                let dir = dir.clone();
                let ends = if *tty { Ends::Terminal { dir } } else { Ends::Pipes { dir, stdin: *stdin } };
                return self.exec(id, command, ends, caller).err().map(Err);
            }
            Request::Attach { id, dir, stdin } => {
                let running = self.running.get_mut(id).ok_or_else(|| not_running("attach to", id));
                return running.and_then(|running| running.attached.add(dir, *stdin, caller)).err().map(Err);
            }
            Request::Resize { id, width, height } => {
                let size = TerminalSize { width: *width, height: *height };
                let running = self.running.get(id).ok_or_else(|| not_running("resize", id));
                running.and_then(|running| running.attached.resize(size)).map(|()| Reply::Done)
            }
            Request::Shutdown => {
                self.ending = Some((fd, caller.seq));
                self.execs.kill(None);
                for id in self.running.keys() {
                    self.kill_all(id);
                }
                return None;
            }
        })
    }

    fn create(&mut self, id: &ContainerId, program: Program) -> Result<Reply, Fault> {
        let record = container::read_record(&self.dir.container(id))?;
        let places: Vec<PathBuf> =
            record.config.mounts.iter().filter_map(|mount| mount.host_path.canonicalize().ok()).collect();
        let back = self
            .hierarchies
            .put_back_for(places.iter().map(PathBuf::as_path), &self.dir.cgroups())
            .map_err(Fault::system("put the node's cgroups back"))?;
        if back {
            sandbox::name_groups(&self.dir, &self.record.cgroup)
                .map_err(Fault::system("name the pod's cgroups"))?;
        }
        let plan = self.pod().create(record, program)?;
        self.planned.insert(id.clone(), plan);
        Ok(Reply::Done)
    }

    fn start(&mut self, id: &ContainerId) -> Result<Reply, Fault> {
        // Kept until the program runs, so that a start that failed can be tried again.
        let Some(plan) = self.planned.get(id).cloned() else {
            return Err(Fault::Start("container was started before".to_owned()));
        };
        let (running, started) = self.pod().start(id, plan)?;
        self.planned.remove(id);
        self.running.insert(id.clone(), running);
        self.settled = false;
        Ok(Reply::Started { pid: started.pid, started_ms: started.started_ms })
    }

    /// Begins to run a program in a container; the answer comes when it has ended.
    fn exec(
        &mut self,
        id: &ContainerId,
        command: &[String],
        ends: Ends,
        caller: Caller,
    ) -> Result<(), Fault> {
        let Some(running) = self.running.get(id).filter(|_| self.ending.is_none()) else {
            return Err(not_running("run a program in", id));
        };
        // Borrows its parts only: `execs` changes.
        let pod = Pod {
            dir: &self.dir,
            record: &self.record,
            hierarchies: &self.hierarchies,
            shared_pids: self.holder.as_ref().map(Holder::path),
            node_mounts: &self.node_mounts,
            users: self.users.as_ref(),
            sockets: Vec::new(),
        };
        self.execs.begin(&pod, id, &running.plan, command, ends, caller)?;
        self.settled = false;
        Ok(())
    }

    /// Tells of programs that have ended, to clients that keep up: what they do not take now they are told later. Whether
    /// there was something to tell.
    fn answer_execs(&mut self) -> bool {
        let clients = &self.clients;
        let room = |number| {
            let client = clients.values().find(|client| client.number == number)?;
            Some(client.output.is_empty())
        };
        let answers = self.execs.answers(room);
        let some = !answers.is_empty();
        self.answer_all(answers);
        // The output that was kept is free again.
        self.settled &= !some;
        some
    }

    /// Answers calls of the past, whose callers may be gone.
    fn answer_all(&mut self, answers: Vec<(Caller, Result<Reply, Fault>)>) {
        for (Caller { client: number, seq }, result) in answers {
            let message = Message::Answer { seq, result };
            self.clients
                .retain(|_, client| client.number != number || (client.send(&message) && client.flush()));
        }
    }

    fn signal(&self, id: &ContainerId, signal: i32, everyone: bool) -> Result<Reply, Fault> {
        let Some(running) = self.running.get(id) else { return Ok(Reply::Done) };
        if everyone && signal == libc::SIGKILL {
            self.kill_all(id);
            return Ok(Reply::Done);
        }
        // Real-time signals are beyond nix' names.
        let result = sys::kill(running.pid, signal);
        result.map(|()| Reply::Done).map_err(Fault::system(format!("signal container {id}")))
    }

    fn kill_all(&self, id: &ContainerId) {
        if self.hierarchies.missing() && (self.record.config.host_pid || self.record.config.share_pids) {
            self.running.get(id).map(|running| running.pid).into_iter().for_each(pids::kill_tree);
            return;
        }
        let group = self.hierarchies.group(&self.record.cgroup.join(&id.0));
        group.unthrottle();
        if let Some(running) = self.running.get(id) {
            let _ = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
        }
        // Elsewhere the rest dies with the first process, whose pid namespace it is.
        if self.record.config.host_pid || self.record.config.share_pids {
            group.kill();
        }
    }

    fn remove(&mut self, id: &ContainerId) -> Result<Reply, Fault> {
        if self.running.contains_key(id) {
            return Err(Fault::System {
                operation: format!("remove container {id}"),
                cause: "it is running".to_owned(),
            });
        }
        self.planned.remove(id);
        self.pod().remove(id);
        Ok(Reply::Done)
    }

    fn tell_all(&mut self, message: &Message) {
        self.clients.retain(|_, client| client.send(message) && client.flush());
    }

    /// The end was asked for and nothing runs any more: says so.
    fn ended(&mut self) -> bool {
        let Some((fd, seq)) = self.ending.filter(|_| self.running.is_empty() && !self.execs.alive()) else {
            return false;
        };
        if let Some(client) = self.clients.get_mut(&fd) {
            client.send(&Message::Answer { seq, result: Ok(Reply::Done) });
            client.flush();
        }
        true
    }
}

fn not_running(what: &str, id: &ContainerId) -> Fault {
    Fault::System { operation: format!("{what} container {id}"), cause: "it is not running".to_owned() }
}

impl Client {
    /// Collects whole calls; `false` when the connection is over.
    fn receive(&mut self, calls: &mut Vec<Call>) -> bool {
        let mut buffer = [0; 8192];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            }
            loop {
                match protocol::decode(&mut self.input) {
                    Ok(Some(call)) => calls.push(call),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::error!(%error, "client dropped");
                        return false;
                    }
                }
            }
        }
    }

    fn send(&mut self, message: &Message) -> bool {
        match protocol::encode(message) {
            Ok(frame) => self.output.extend_from_slice(&frame),
            Err(error) => tracing::error!(%error, "message not sent"),
        }
        self.output.len() <= MAX_OUTPUT
    }

    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match self.stream.write(&self.output) {
                Ok(0) => return false,
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}
