//! Those who attach to a container's own program: copies of its output, and what they type.
//!
//! Owns: the shim's ends of their named pipes. Invariant: the program and its log never wait for them: a pipe is the only
//! buffer. One that is full loses what does not fit when it shows a terminal, which is read by eyes; else its attachment
//! ends with an error, since what is missing could not be told.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::Path,
};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{
    super::{
        console,
        protocol::{Fault, Reply},
        state::{INPUT, OUTPUTS},
    },
    exec::Caller,
};
use crate::runtime::TerminalSize;

/// More than people look at one container.
const MAX_ATTACHED: usize = 32;
/// What a client may be behind: as much as a pipe can hold where nothing else was set.
const PIPE_BYTES: i32 = 1024 * 1024;
/// What is read at once of what was typed, and how often in one turn.
const TURN_BYTES: usize = 64 * 1024;
const TURN_READS: usize = 16;

/// A container's program as those see it who attach.
pub(super) struct Attached {
    /// Its standard input, or its terminal, as long as that takes something.
    input: Option<File>,
    /// The master of its terminal.
    terminal: Option<File>,
    /// The input ends with the first who had it.
    once: bool,
    all: Vec<Attachment>,
}

struct Attachment {
    caller: Caller,
    out: Option<File>,
    err: Option<File>,
    /// What is typed; `None` after its end.
    typed: Option<File>,
    /// Has the input: with its end ends what it typed.
    typist: bool,
    /// Typed and not yet taken.
    pending: Vec<u8>,
    lagging: bool,
}

impl Attached {
    /// To a program with a pipe as its input, if it has one.
    pub(super) fn to_pipes(input: Option<OwnedFd>, once: bool) -> Result<Attached, Fault> {
        if let Some(pipe) = &input {
            fcntl(pipe.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                .map_err(Fault::system("set up a pipe"))?;
        }
        Ok(Attached { input: input.map(File::from), terminal: None, once, all: Vec::new() })
    }

    /// To a program on a terminal. Without `input` nothing typed reaches it.
    pub(super) fn to_terminal(master: OwnedFd, input: bool) -> Result<Attached, Fault> {
        let fault = || Fault::system("share a terminal");
        let master = File::from(master);
        let input = input.then(|| master.try_clone()).transpose().map_err(fault())?;
        // A terminal has no end of input.
        Ok(Attached { input, terminal: Some(master), once: false, all: Vec::new() })
    }

    /// Adds one whose pipes are in `dir`; it is answered when it is over.
    pub(super) fn add(&mut self, dir: &Path, stdin: bool, caller: Caller) -> Result<(), Fault> {
        let refuse = |cause: &str| Fault::System { operation: "attach".into(), cause: cause.to_owned() };
        if self.all.len() >= MAX_ATTACHED {
            return Err(refuse(&format!("{MAX_ATTACHED} others are attached to the container")));
        }
        let open = |name: &str, write: bool| -> io::Result<File> {
            let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
            OpenOptions::new().read(!write).write(write).custom_flags(flags.bits()).open(dir.join(name))
        };
        let [out, err] = OUTPUTS;
        let fault = || Fault::system("open the client's pipes");
        let (out, err) = (open(out, true).map_err(fault())?, open(err, true).map_err(fault())?);
        for pipe in [&out, &err] {
            // A smaller one does as well.
            let _ = fcntl(pipe.as_raw_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
        }
        let typed = stdin.then(|| open(INPUT, false)).transpose().map_err(fault())?;
        // Nothing comes of a terminal's other stream.
        let err = Some(err).filter(|_| self.terminal.is_none());
        let (pending, lagging) = (Vec::new(), false);
        self.all.push(Attachment { caller, out: Some(out), err, typist: stdin, typed, pending, lagging });
        // What was typed, and its end, may be there already: of an end that came before our opening nothing is told.
        self.take();
        Ok(())
    }

    /// Moves what was typed on to the program.
    fn take(&mut self) {
        for one in &mut self.all {
            for _ in 0..TURN_READS {
                one.feed(&mut self.input);
                if one.typed.is_none() || !one.pending.is_empty() || !one.read() {
                    break;
                }
            }
            if self.once && one.typist && one.typed.is_none() && one.pending.is_empty() {
                self.input = None;
            }
        }
    }

    /// Sets the size of the program's terminal, if it has one.
    pub(super) fn resize(&self, size: TerminalSize) -> Result<(), Fault> {
        match &self.terminal {
            Some(master) => console::set_size(master, size).map_err(Fault::system("set a terminal's size")),
            None => Ok(()),
        }
    }

    /// What to wait for, and for what.
    pub(super) fn polled(&self) -> impl Iterator<Item = (RawFd, i16)> + '_ {
        let waiting = self.all.iter().any(|one| !one.pending.is_empty());
        let input = self.input.as_ref().filter(|_| waiting).map(|pipe| (pipe.as_raw_fd(), libc::POLLOUT));
        let ends = self.all.iter().flat_map(|one| {
            // That its reader has gone is told whatever is waited for.
            let outputs = [&one.out, &one.err].into_iter().flatten().map(|pipe| (pipe.as_raw_fd(), 0));
            let typed = one.typed.iter().filter(|_| one.pending.is_empty());
            outputs.chain(typed.map(|pipe| (pipe.as_raw_fd(), libc::POLLIN)))
        });
        ends.chain(input)
    }

    /// Takes what was typed, and notices who has gone; those who are over.
    pub(super) fn turn(&mut self, ready: impl Fn(RawFd) -> bool) -> Vec<(Caller, Result<Reply, Fault>)> {
        for one in &mut self.all {
            for output in [&mut one.out, &mut one.err] {
                // Nothing else was waited for than the end of its reader.
                if output.as_ref().is_some_and(|pipe| ready(pipe.as_raw_fd())) {
                    *output = None;
                }
            }
        }
        self.take();
        let over = |one: &mut Attachment| one.lagging || (one.out.is_none() && one.err.is_none());
        let over: Vec<Attachment> = self.all.extract_if(.., over).collect();
        if self.once && over.iter().any(|one| one.typist) {
            self.input = None;
        }
        over.into_iter().map(|one| (one.caller, one.outcome())).collect()
    }

    /// The program has ended: everyone is over.
    pub(super) fn end(&mut self) -> Vec<(Caller, Result<Reply, Fault>)> {
        self.all.drain(..).map(|one| (one.caller, one.outcome())).collect()
    }

    /// Copies what the program wrote.
    pub(super) fn write(&mut self, stream: &str, bytes: &[u8]) {
        let lossy = self.terminal.is_some();
        for one in &mut self.all {
            let output = if stream == "stderr" { &mut one.err } else { &mut one.out };
            let Some(pipe) = output else { continue };
            match pipe.write(bytes) {
                Ok(count) if count == bytes.len() => {}
                Ok(_) => one.lagging |= !lossy,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => one.lagging |= !lossy,
                Err(_) => *output = None,
            }
        }
    }
}

impl Attachment {
    /// Reads what was typed; `false` when there is nothing now.
    fn read(&mut self) -> bool {
        let Some(pipe) = &mut self.typed else { return false };
        let mut buffer = [0; TURN_BYTES];
        match pipe.read(&mut buffer) {
            Ok(count @ 1..) => self.pending.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => self.typed = None,
        }
        true
    }

    /// Gives the program what it takes; what nobody reads any more is thrown away.
    fn feed(&mut self, input: &mut Option<File>) {
        while !self.pending.is_empty() {
            let Some(pipe) = input else { return self.pending.clear() };
            match pipe.write(&self.pending) {
                Ok(count) => drop(self.pending.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => *input = None,
            }
        }
    }

    fn outcome(&self) -> Result<Reply, Fault> {
        if self.lagging {
            return Err(Fault::System {
                operation: "copy a container's output".into(),
                cause: "it came faster than it was read; the log has all of it".into(),
            });
        }
        Ok(Reply::Ran { code: 0, timed_out: false, stdout: Default::default(), stderr: Default::default() })
    }
}
