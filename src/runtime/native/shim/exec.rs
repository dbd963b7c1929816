//! Programs run in running containers beside their own: start, output, time limit, end.
//!
//! Owns: each such program from its call to its answer. A helper, forked from the shim, joins the container by
//! libcontainer and makes the program a child of the shim, so that not even a container that holds the helper up holds
//! the shim up. Invariants: nothing here blocks; output is kept up to a bound and then thrown away; a call is answered
//! once, when its program has ended or could not be started.
//!
//! ```text
//! Starting (helper: libcontainer) ──pid──▶ Running ──waitpid──▶ Over ──room in the client's buffer──▶ answered
//! ```

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::{Duration, Instant},
};

use k8s_openapi::ByteString;
use libcontainer::{container::builder::ContainerBuilder, syscall::syscall::SyscallType};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        signal::{Signal, kill, killpg},
        wait::WaitStatus,
    },
    unistd::Pid,
};
use oci_spec::runtime::Spec;

use super::{
    super::{
        console::Console,
        protocol::{Fault, Reply},
        state::{self, ContainerDir, INPUT, OUTPUTS},
        sys,
    },
    container::{Plan, Pod, chain, code_of, pipe, read_verdict},
};
use crate::runtime::{ContainerId, EXEC_OUTPUT_BYTES};

/// More than the probes and hooks of a pod's containers run at once.
const MAX_EXECS: usize = 64;
/// Of these as many are users' own, which may run for ever.
const MAX_STREAMED: usize = 32;
/// Beside them as many whose clients went, which nobody can end from outside; then the oldest is ended for the next.
const MAX_LEFT: usize = 128;
/// Children that ended and of whom nothing was known, kept while programs start: one may end before its helper has told
/// its pid, and a pid that is not ours any more must not be killed.
const MAX_STRAYS: usize = 4096;
/// What one turn reads from a pipe.
const TURN_BYTES: usize = 64 * 1024;
/// Turns that empty the pipe of a program that has ended; one that it left behind may go on writing.
const DRAIN_TURNS: usize = 16;
/// What a helper has to tell is shorter.
const REPORT_BYTES: usize = 8 * 1024;
/// libcontainer's record of a container, in its directory of that container.
const STATE: &str = "state.json";

/// Who asked: the client and the number of its call.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub client: u64,
    pub seq: u64,
}

/// Where a program's streams end.
pub(super) enum Ends {
    /// In memory; it is killed after this time.
    Captured(Duration),
    /// In named pipes, whose other ends are the driver's.
    Pipes { dir: PathBuf, stdin: bool },
    /// On a terminal, whose master goes to the driver's socket in there.
    Terminal { dir: PathBuf },
}

/// What a program's streams are to be.
enum Streams {
    Pipes {
        /// Else `/dev/null`.
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// A terminal whose master goes to this socket.
    Terminal(PathBuf),
}

impl Streams {
    /// Opens named pipes; fails at once when nobody has opened their other ends.
    fn open(dir: &Path, stdin: bool, plan: &Plan) -> io::Result<Streams> {
        let open = |name: &str, write: bool| -> io::Result<OwnedFd> {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
            let mut options = fs::OpenOptions::new();
            options.read(!write).write(write).custom_flags(flags.bits());
            let pipe = options.open(dir.join(name))?;
            plan.own_pipe(pipe.as_raw_fd())?;
            fcntl(pipe.as_raw_fd(), FcntlArg::F_SETFL(OFlag::empty()))?;
            Ok(pipe.into())
        };
        let [out, err] = OUTPUTS;
        Ok(Streams::Pipes {
            stdin: stdin.then(|| open(INPUT, false)).transpose()?,
            stdout: open(out, true)?,
            stderr: open(err, true)?,
        })
    }
}

/// All programs that run beside containers' own.
#[derive(Default)]
pub(super) struct Execs {
    all: Vec<Exec>,
    strays: VecDeque<(i32, WaitStatus)>,
    started: u64,
}

struct Exec {
    id: ContainerId,
    caller: Caller,
    stage: Stage,
    out: Capture,
    err: Capture,
    deadline: Option<Instant>,
    timed_out: bool,
    /// The named pipes that it writes to.
    outputs: Vec<PathBuf>,
    /// What its start needs; goes with it.
    dir: PathBuf,
}

enum Stage {
    /// `helper` is its pid; 0 once it was waited for.
    Starting {
        helper: i32,
        report: File,
        text: Vec<u8>,
    },
    Running {
        pid: i32,
    },
    Over(Result<i32, String>),
}

impl Execs {
    /// Begins to start a program; the answer comes later.
    pub(super) fn begin(
        &mut self,
        pod: &Pod<'_>,
        id: &ContainerId,
        plan: &Plan,
        command: &[String],
        ends: Ends,
        caller: Caller,
    ) -> Result<(), Fault> {
        // Those without an end to their time must not keep probes and hooks from running.
        let streamed = !matches!(ends, Ends::Captured(_));
        if streamed {
            self.end_left();
        }
        let counts = |exec: &&Exec| (!streamed || exec.deadline.is_none()) && !exec.is_left();
        let others = self.all.iter().filter(counts).count();
        let most = if streamed { MAX_STREAMED } else { MAX_EXECS };
        if others >= most {
            return Err(Fault::System {
                operation: format!("run a program in container {id}"),
                cause: format!("{most} others are running in its pod"),
            });
        }
        let outputs: Vec<PathBuf> = match &ends {
            Ends::Pipes { dir, .. } => OUTPUTS.iter().map(|name| dir.join(name)).collect(),
            Ends::Captured(_) | Ends::Terminal { .. } => Vec::new(),
        };
        self.started += 1;
        let container = pod.dir.container(id);
        let dir = container.0.join(format!("exec-{}", self.started));
        let ((out, err, deadline), theirs) = match ends {
            Ends::Captured(time) => {
                let (out, out_end) = plan.output_pipe()?;
                let (err, err_end) = plan.output_pipe()?;
                let ours = (Capture::new(out), Capture::new(err), Instant::now().checked_add(time));
                (ours, Streams::Pipes { stdin: None, stdout: out_end, stderr: err_end })
            }
            Ends::Pipes { dir, stdin } => {
                let theirs =
                    Streams::open(&dir, stdin, plan).map_err(Fault::system("open the program's pipes"))?;
                ((Capture::none(), Capture::none(), None), theirs)
            }
            Ends::Terminal { dir } => {
                ((Capture::none(), Capture::none(), None), Streams::Terminal(Console::path(&dir)))
            }
        };
        // It does not block either: a report is read when it is there.
        let (report, report_end) = plan.output_pipe()?;
        let helper = sys::fork().map_err(Fault::system("fork a helper"))?;
        if helper == 0 {
            let work = Work { pod, id, plan, command, container: &container, dir: &dir };
            work.help(theirs, File::from(report_end));
        }
        self.all.push(Exec {
            id: id.clone(),
            caller,
            stage: Stage::Starting { helper, report: report.into(), text: Vec::new() },
            out,
            err,
            deadline,
            timed_out: false,
            outputs,
            dir,
        });
        Ok(())
    }

    /// Makes room for another program whose client goes.
    fn end_left(&self) {
        let left: Vec<&Exec> = self.all.iter().filter(|exec| exec.is_left()).collect();
        left.iter().rev().skip(MAX_LEFT - 1).for_each(|exec| exec.kill(&self.strays));
    }

    /// Whether a program or a helper is alive.
    pub(super) fn alive(&self) -> bool {
        self.all.iter().any(|exec| !matches!(exec.stage, Stage::Over(_)))
    }

    /// What to wait for.
    pub(super) fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        self.all.iter().flat_map(Exec::fds)
    }

    /// Milliseconds until the next one's time is up; -1: never.
    pub(super) fn wait_ms(&self) -> i32 {
        let now = Instant::now();
        let next = self.all.iter().filter(|exec| exec.waits()).filter_map(|exec| exec.deadline).min();
        // Rounded up, so that it is up when the wait is over.
        let wait = next.map(|at| at.saturating_duration_since(now).as_millis() + 1);
        wait.map_or(-1, |ms| i32::try_from(ms).unwrap_or(i32::MAX))
    }

    /// Reads what is there.
    pub(super) fn read(&mut self, ready: impl Fn(RawFd) -> bool) {
        for exec in &mut self.all {
            for capture in [&mut exec.out, &mut exec.err] {
                if capture.fd().is_some_and(&ready) {
                    capture.turn();
                }
            }
            let reports = matches!(&exec.stage, Stage::Starting { report, .. } if ready(report.as_raw_fd()));
            if reports && exec.hear() {
                exec.conclude(&mut self.strays);
            }
        }
    }

    /// A child ended; whether it was one of these.
    pub(super) fn reaped(&mut self, pid: i32, status: WaitStatus) -> bool {
        for exec in &mut self.all {
            match &mut exec.stage {
                Stage::Running { pid: own } if *own == pid => {
                    exec.over(status);
                    return true;
                }
                Stage::Starting { helper, .. } if *helper == pid => {
                    *helper = 0;
                    // It has told all it had to. A program that it could not bring to run may hold its pipe open.
                    exec.hear();
                    exec.conclude(&mut self.strays);
                    return true;
                }
                _ => {}
            }
        }
        if self.all.iter().any(|exec| matches!(exec.stage, Stage::Starting { .. })) {
            if self.strays.len() == MAX_STRAYS {
                self.strays.pop_front();
            }
            self.strays.push_back((pid, status));
        }
        false
    }

    /// Kills those whose time is up.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        for exec in &mut self.all {
            if exec.waits() && exec.deadline.is_some_and(|at| at <= now) {
                exec.timed_out = true;
                exec.kill(&self.strays);
            }
        }
        if !self.all.iter().any(|exec| matches!(exec.stage, Stage::Starting { .. })) {
            self.strays.clear();
        }
    }

    /// Kills what runs in a container, or in all.
    pub(super) fn kill(&mut self, of: Option<&ContainerId>) {
        for exec in &mut self.all {
            if of.is_none_or(|id| *id == exec.id) {
                exec.kill(&self.strays);
            }
        }
    }

    /// Takes out what can be answered: `room` says whether a client takes an answer now, `None` that it is gone.
    pub(super) fn answers(
        &mut self,
        room: impl Fn(u64) -> Option<bool>,
    ) -> Vec<(Caller, Result<Reply, Fault>)> {
        let mut answers = Vec::new();
        let mut served = Vec::new();
        self.all.retain_mut(|exec| {
            let Stage::Over(result) = &mut exec.stage else { return true };
            let client = exec.caller.client;
            match room(client) {
                // One answer at a time: a client that drains its buffer is asked again.
                Some(false) => return true,
                Some(true) if served.contains(&client) => return true,
                Some(true) => {
                    served.push(client);
                    let result = std::mem::replace(result, Ok(0));
                    let (stdout, stderr) = (exec.out.take(), exec.err.take());
                    let reply = match result {
                        // Killed before it ran: what went wrong is that its time was up.
                        Err(_) if exec.timed_out => Ok(TIMED_OUT_CODE),
                        other => other,
                    };
                    let timed_out = exec.timed_out;
                    answers.push((
                        exec.caller,
                        reply
                            .map(|code| Reply::Ran { code, timed_out, stdout, stderr })
                            .map_err(Fault::Start),
                    ));
                }
                None => {}
            }
            let _ = state::remove_tree(&exec.dir);
            false
        });
        answers
    }
}

/// As if SIGKILL had ended it.
const TIMED_OUT_CODE: i32 = 128 + libc::SIGKILL;

impl Exec {
    fn fds(&self) -> impl Iterator<Item = RawFd> + '_ {
        let report = match &self.stage {
            Stage::Starting { report, .. } => Some(report.as_raw_fd()),
            Stage::Running { .. } | Stage::Over(_) => None,
        };
        [self.out.fd(), self.err.fd()].into_iter().flatten().chain(report)
    }

    /// Its client went: nobody reads what it writes. A terminal hangs up then, which ends most.
    fn is_left(&self) -> bool {
        let unread = |path: &PathBuf| {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
            // Without a reader it cannot be opened, nor when its driver has removed it.
            fs::OpenOptions::new().write(true).custom_flags(flags.bits()).open(path).is_err()
        };
        let runs = matches!(self.stage, Stage::Running { .. });
        runs && !self.outputs.is_empty() && self.outputs.iter().all(unread)
    }

    /// Its end is still to come, and its time not up.
    fn waits(&self) -> bool {
        !self.timed_out && !matches!(self.stage, Stage::Over(_))
    }

    /// Takes what the helper has told by now; whether that is all.
    fn hear(&mut self) -> bool {
        let Stage::Starting { report, text, .. } = &mut self.stage else { return false };
        let mut buffer = [0; REPORT_BYTES];
        loop {
            match report.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => text.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
            }
            if text.ends_with(END) {
                return true;
            }
        }
    }

    /// Goes on with what the helper told.
    fn conclude(&mut self, strays: &mut VecDeque<(i32, WaitStatus)>) {
        let Stage::Starting { text, .. } = &self.stage else { return };
        let text = String::from_utf8_lossy(text.strip_suffix(END).unwrap_or_default()).into_owned();
        let Some(pid) = text.strip_prefix(STARTED).and_then(|pid| pid.parse().ok()) else {
            self.kill(strays);
            let text = if text.is_empty() { "the program's start was cut short".to_owned() } else { text };
            self.stage = Stage::Over(Err(text));
            return;
        };
        self.stage = Stage::Running { pid };
        if let Some(at) = strays.iter().rposition(|(stray, _)| *stray == pid) {
            let (_, status) = strays.remove(at).unwrap_or((pid, WaitStatus::StillAlive));
            self.over(status);
        } else if self.timed_out {
            self.kill(strays);
        }
    }

    fn over(&mut self, status: WaitStatus) {
        for capture in [&mut self.out, &mut self.err] {
            capture.drain();
        }
        self.stage = Stage::Over(Ok(code_of(status).0));
    }

    /// Ends the program with what it started in its session's first group, or the attempt to start it.
    fn kill(&self, strays: &VecDeque<(i32, WaitStatus)>) {
        let pid = match &self.stage {
            Stage::Starting { helper, .. } => {
                if *helper > 0 {
                    let _ = kill(Pid::from_raw(*helper), Signal::SIGKILL);
                }
                let noted = fs::read_to_string(self.dir.join(PID)).ok();
                // One that was waited for is nobody's any more, or somebody else's.
                noted
                    .and_then(|text| text.trim().parse().ok())
                    .filter(|pid| !strays.iter().any(|(stray, _)| stray == pid))
            }
            Stage::Running { pid } => Some(*pid),
            Stage::Over(_) => None,
        };
        if let Some(pid) = pid.filter(|pid| *pid > 1).map(Pid::from_raw) {
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

/// How a helper's report begins when the program runs; its pid follows. Else the report is why it does not.
const STARTED: &str = "pid ";
/// How every report ends.
const END: &[u8] = b"\0";
/// Where libcontainer notes the program's pid as soon as it has one.
const PID: &str = "pid";

/// What a helper has to do.
struct Work<'a> {
    pod: &'a Pod<'a>,
    id: &'a ContainerId,
    plan: &'a Plan,
    command: &'a [String],
    container: &'a ContainerDir,
    dir: &'a Path,
}

impl Work<'_> {
    /// The helper's life.
    fn help(&self, streams: Streams, mut report: File) -> ! {
        // It shares the shim's connections, and must not keep them open when the shim is killed.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        // libcontainer reports each failed start on standard error, and a probe may fail for ever: the shim's log is
        // not for that, and no more is the program's own, which follows. Standard input is /dev/null.
        super::report_no_errors();
        let _ = nix::unistd::dup2(libc::STDIN_FILENO, libc::STDERR_FILENO);
        let text = match self.start(streams) {
            Ok(pid) => format!("{STARTED}{pid}"),
            Err(text) => text,
        };
        let end = text.floor_char_boundary(REPORT_BYTES);
        let _ = report.write_all(&[&text.as_bytes()[..end], END].concat());
        std::process::exit(0)
    }

    fn start(&self, streams: Streams) -> Result<i32, String> {
        let terminal = matches!(streams, Streams::Terminal(_));
        let process = self.prepare(terminal).map_err(|error| format!("prepare the program: {error}"))?;
        if let Some(users) = self.pod.users {
            users.show_apart().map_err(text_of)?;
        }
        let (verdict, failures) = pipe().map_err(text_of)?;
        let failures = Rc::new(failures);
        let executor = self
            .plan
            .program_start(self.command.to_vec(), terminal, Rc::clone(&failures))
            .map_err(text_of)?;
        let builder =
            ContainerBuilder::new(self.id.0.clone(), SyscallType::default()).with_executor(executor);
        let builder = match streams {
            Streams::Pipes { stdin, stdout, stderr } => {
                let builder = builder.with_stdout(stdout).with_stderr(stderr);
                if let Some(stdin) = stdin { builder.with_stdin(stdin) } else { builder }
            }
            Streams::Terminal(socket) => builder.with_console_socket(Some(socket)),
        };
        sys::adjust_oom_score(std::process::id() as i32, self.plan.oom_score_adj);
        // For good: this process ends with its work.
        let group = self.pod.record.cgroup.join(&self.id.0);
        let _stay = self
            .pod
            .hierarchies
            .enter(&group)
            .map_err(|error| format!("enter the container's cgroups: {error}"))?;
        if let Some(users) = self.pod.users {
            users.join().map_err(text_of)?;
        }
        let built = builder
            .with_pid_file(Some(self.dir.join(PID)))
            .and_then(|builder| builder.with_root_path(self.dir))
            .and_then(ContainerBuilder::validate_id)
            .and_then(|builder| {
                builder.as_tenant().with_process(Some(&process)).with_detach(true).as_sibling(true).build()
            });
        drop(failures);
        let told = read_verdict(verdict);
        match (built, told) {
            (Ok(pid), None) => Ok(pid.as_raw()),
            // It ends by itself then.
            (Ok(_), Some(text)) => Err(text),
            (Err(error), told) => Err(told.unwrap_or_else(|| chain(&error))),
        }
    }

    /// Describes the program as the container's own process, but for what it runs. libcontainer gets a directory for
    /// this start alone: it leaves sockets lying about, and others may be starting.
    fn prepare(&self, terminal: bool) -> Result<PathBuf, Box<dyn std::error::Error>> {
        let root = self.dir.join(&self.id.0);
        fs::create_dir_all(&root)?;
        fs::copy(self.pod.dir.libcontainer().join(&self.id.0).join(STATE), root.join(STATE))?;
        let spec = Spec::load(self.container.spec())?;
        let mut process = spec.process().clone().ok_or("the container's spec has no process")?;
        process.set_args(Some(self.command.to_vec())).set_terminal(Some(terminal));
        let path = self.dir.join("process.json");
        fs::write(&path, serde_json::to_vec(&process)?)?;
        Ok(path)
    }
}

fn text_of(fault: Fault) -> String {
    fault.into_error().to_string()
}

/// One output pipe of a program: its beginning is kept.
struct Capture {
    pipe: Option<File>,
    bytes: Vec<u8>,
}

impl Capture {
    /// Of a program whose output goes elsewhere.
    fn none() -> Capture {
        Capture { pipe: None, bytes: Vec::new() }
    }

    /// The reading end of a pipe, which must be non-blocking.
    fn new(pipe: OwnedFd) -> Capture {
        Capture { pipe: Some(pipe.into()), bytes: Vec::new() }
    }

    fn fd(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Reads once; `false` when there is nothing to read now or ever.
    fn turn(&mut self) -> bool {
        let Some(pipe) = &mut self.pipe else { return false };
        let mut buffer = [0; TURN_BYTES];
        match pipe.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let room = EXEC_OUTPUT_BYTES - self.bytes.len();
                self.bytes.extend_from_slice(&buffer[..count.min(room)]);
                true
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            _ => {
                self.pipe = None;
                false
            }
        }
    }

    fn drain(&mut self) {
        for _ in 0..DRAIN_TURNS {
            if !self.turn() {
                break;
            }
        }
        self.pipe = None;
    }

    fn take(&mut self) -> ByteString {
        ByteString(std::mem::take(&mut self.bytes))
    }
}
