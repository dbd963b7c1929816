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

mod container;
mod executor;
mod log;
mod sandbox;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
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

use self::container::{Plan, Pod, Running};
use super::{
    cgroup::Hierarchies,
    launch,
    protocol::{self, Call, Fault, Message, Program, Reply, Request},
    state::{self, SandboxDir, SandboxRecord},
    sys,
};
use crate::runtime::ContainerId;

/// Runs a shim: `troupe shim SANDBOX-DIR`, with the listening socket as standard input; or a seed of shims, `troupe shim
/// --seed`. To be called before the process has a second thread. Returns the process' exit code.
pub fn shim_main(mut arguments: impl Iterator<Item = OsString>) -> i32 {
    let Some(mut dir) = arguments.next().map(PathBuf::from) else {
        eprintln!("the shim is started by troupe itself");
        return EXIT_USAGE;
    };
    if dir.as_os_str() == launch::SEED {
        match launch::seed() {
            Ok(Some(of_shim)) => dir = of_shim,
            Ok(None) => return 0,
            Err(_) => return 1,
        }
    }
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_ansi(false)
        .with_writer(io::stderr)
        .init();
    match Shim::begin(SandboxDir(dir)).and_then(Shim::run) {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(%error, "shim ends");
            1
        }
    }
}

const EXIT_USAGE: i32 = 2;

struct Shim {
    dir: SandboxDir,
    record: SandboxRecord,
    hierarchies: Hierarchies,
    /// The sandbox, or why there is none.
    ready: Result<(), Fault>,
    listener: UnixListener,
    signals: SignalFd,
    clients: BTreeMap<RawFd, Client>,
    /// Containers created and not yet started.
    planned: BTreeMap<ContainerId, Plan>,
    running: BTreeMap<ContainerId, Running>,
    /// Nothing was started since memory was last given back.
    settled: bool,
    /// Who asked for the end, once someone has.
    ending: Option<(RawFd, u64)>,
}

/// A connection; the driver has one, and a second one while it is replaced.
struct Client {
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
        std::env::set_current_dir("/")?;
        let record: SandboxRecord = state::read(&dir.record())?;
        let hierarchies = Hierarchies::detect();
        let ready = sandbox::enter(&dir, &record, &hierarchies);
        Ok(Shim {
            dir,
            record,
            hierarchies,
            ready,
            listener,
            signals,
            clients: BTreeMap::new(),
            planned: BTreeMap::new(),
            settled: true,
            running: BTreeMap::new(),
            ending: None,
        })
    }

    fn run(mut self) -> io::Result<()> {
        loop {
            let mut polled = self.polled();
            sys::poll(&mut polled, -1)?;
            // Output first: what a program wrote before it ended comes before its exit.
            let ready = |fd: RawFd| polled.iter().any(|entry| entry.fd == fd && entry.revents != 0);
            for running in self.running.values_mut() {
                let Running { log, pumps, .. } = running;
                pumps.retain_mut(|pump| !ready(pump.fd()) || pump.turn(log));
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
            if ready(self.listener.as_raw_fd()) {
                self.accept();
            }
            let clients: Vec<RawFd> = self.clients.keys().copied().filter(|fd| ready(*fd)).collect();
            for fd in clients {
                self.serve(fd);
            }
            if self.ended() {
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
        polled
    }

    /// Takes the status of every child that ended: containers', and strays adopted from them.
    fn reap(&mut self) {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "cannot wait for children");
                    return;
                }
            };
            let Some(pid) = status.pid().map(Pid::as_raw) else { continue };
            let Some(id) =
                self.running.iter().find(|(_, running)| running.pid == pid).map(|(id, _)| id.clone())
            else {
                continue;
            };
            let Some(running) = self.running.remove(&id) else { continue };
            let exit = self.pod().ended(&id, running, status);
            self.tell_all(&Message::Exited { id, exit });
        }
    }

    fn pod(&self) -> Pod<'_> {
        Pod { dir: &self.dir, record: &self.record, hierarchies: &self.hierarchies }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() >= MAX_CLIENTS || stream.set_nonblocking(true).is_err() {
                continue;
            }
            let fd = stream.as_raw_fd();
            self.clients.insert(fd, Client { stream, input: Vec::new(), output: Vec::new() });
        }
    }

    /// Reads, answers and flushes one client; forgets it when it is gone or talks nonsense.
    fn serve(&mut self, fd: RawFd) {
        let mut calls = Vec::new();
        let Some(client) = self.clients.get_mut(&fd) else { return };
        let mut alive = client.receive(&mut calls);
        for call in calls {
            match self.answer(&call) {
                Some(result) => {
                    let message = Message::Answer { seq: call.seq, result };
                    if let Some(client) = self.clients.get_mut(&fd) {
                        alive &= client.send(&message);
                    }
                }
                None => self.ending = Some((fd, call.seq)),
            }
        }
        if let Some(client) = self.clients.get_mut(&fd) {
            alive &= client.flush();
        }
        if !alive {
            self.clients.remove(&fd);
        }
    }

    /// `None`: the answer comes when everything has ended.
    fn answer(&mut self, call: &Call) -> Option<Result<Reply, Fault>> {
        if let (Err(fault), false) = (&self.ready, matches!(call.request, Request::Shutdown)) {
            return Some(Err(fault.clone()));
        }
        Some(match &call.request {
            Request::Hello => Ok(Reply::Ready { pid: std::process::id() as i32 }),
            Request::Create { id, program } => self.create(id, program.clone()),
            Request::Start { id } => self.start(id),
            Request::Signal { id, signal, everyone } => self.signal(id, *signal, *everyone),
            Request::Remove { id } => self.remove(id),
            Request::Shutdown => {
                for id in self.running.keys() {
                    self.kill_all(id);
                }
                return None;
            }
        })
    }

    fn create(&mut self, id: &ContainerId, program: Program) -> Result<Reply, Fault> {
        let plan = self.pod().create(id, program)?;
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
        if let Some(running) = self.running.get(id) {
            let _ = kill(Pid::from_raw(running.pid), Signal::SIGKILL);
        }
        if self.record.config.host_pid {
            self.hierarchies.group(&self.record.cgroup.join(&id.0)).kill();
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
        let Some((fd, seq)) = self.ending.filter(|_| self.running.is_empty()) else { return false };
        if let Some(client) = self.clients.get_mut(&fd) {
            client.send(&Message::Answer { seq, result: Ok(Reply::Done) });
            client.flush();
        }
        true
    }
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
