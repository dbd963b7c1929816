//! The last steps in the container, from libcontainer's set-up to the program's first instruction.
//!
//! Owns: finding the program, the system call filter, the final capabilities, exec. Runs in the forked child, inside
//! the container's root. Invariant: a program never runs without the filter it was to have; whatever goes wrong is told
//! through a pipe that exec closes, so its end without a word means success.

use std::{
    collections::HashMap,
    ffi::CString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd, RawFd},
        unix::fs::PermissionsExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
};

use caps::{CapSet, CapsHashSet};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::SigSet;
use oci_spec::runtime::Spec;
use seccompiler::BpfProgram;

use super::super::{sys, userns};

/// What to do before the program, and the program.
#[derive(Clone)]
pub(super) struct ProgramStart {
    pub arguments: Vec<String>,
    pub environment: Vec<String>,
    /// The user and group to seem to be, where the user namespace has no such.
    pub seem: Option<(u32, u32)>,
    /// To be put on in this order; none: every system call is allowed.
    pub filters: Rc<Vec<BpfProgram>>,
    /// Set when putting on the filter needed more capabilities than the program gets.
    pub final_capabilities: Option<CapsHashSet>,
    /// Where to say what went wrong.
    pub failures: Rc<OwnedFd>,
    /// The shim's sockets. A child that waits to be started keeps none of them open: when the shim is killed, whoever is
    /// connected hears of it, and nobody connects to a socket that no shim will ever answer at.
    pub sockets: Vec<RawFd>,
}

impl ProgramStart {
    fn tell(&self, failure: &str) {
        let pipe: BorrowedFd<'_> = self.failures.as_fd();
        // The reader is the shim; if it is gone nobody wants to know.
        let _ = nix::unistd::write(pipe, failure.as_bytes());
    }

    /// Everything up to exec, which does not return.
    fn run(&self) -> Result<std::convert::Infallible, String> {
        let program = self.program()?;
        let to_c = |text: &str| CString::new(text).map_err(|_| format!("exec: {text:?}: holds a NUL byte"));
        let path = CString::new(program.as_os_str().as_encoded_bytes())
            .map_err(|_| format!("exec: {program:?}: holds a NUL byte"))?;
        let arguments = self.arguments.iter().map(|text| to_c(text)).collect::<Result<Vec<_>, _>>()?;
        let environment = self.environment.iter().map(|text| to_c(text)).collect::<Result<Vec<_>, _>>()?;
        // What is ignored, and what the shim blocks, would be inherited.
        sys::reset_signals();
        SigSet::empty().thread_set_mask().map_err(|errno| format!("signal mask: {errno}"))?;
        if let Some((uid, gid)) = self.seem {
            userns::seem(uid, gid).map_err(|error| format!("user {uid}: {error}"))?;
        }
        for filter in self.filters.iter() {
            sys::install_seccomp_filter(filter).map_err(|error| format!("seccomp filter: {error}"))?;
        }
        if let Some(last) = &self.final_capabilities {
            self.narrow(last).map_err(|error| format!("capabilities: {error}"))?;
        }
        nix::unistd::execve(&path, &arguments, &environment)
            .map_err(|errno| format!("exec: {:?}: {}", self.arguments[0], reason(errno)))
    }

    fn narrow(&self, last: &CapsHashSet) -> Result<(), caps::errors::CapsError> {
        for capability in caps::read(None, CapSet::Bounding)?.difference(last) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
        caps::clear(None, CapSet::Ambient)?;
        caps::set(None, CapSet::Inheritable, &CapsHashSet::new())?;
        caps::set(None, CapSet::Effective, last)?;
        caps::set(None, CapSet::Permitted, last)
    }

    /// The file to run, looked up as a shell does. Errors read as those of runc, which users know.
    fn program(&self) -> Result<PathBuf, String> {
        let name = self.arguments.first().ok_or("exec: no command")?;
        if name.contains('/') {
            return match check(Path::new(name)) {
                Ok(()) => Ok(name.into()),
                Err(nix::errno::Errno::ENOENT) => {
                    Err(format!("exec: {name:?}: stat {name}: no such file or directory"))
                }
                Err(errno) => Err(format!("exec: {name:?}: {}", reason(errno))),
            };
        }
        let path = self.environment.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
        let mut failure = format!("exec: {name:?}: executable file not found in $PATH");
        for dir in path.split(':').filter(|_| !name.is_empty()) {
            let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
            match check(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(nix::errno::Errno::EACCES) => failure = format!("exec: {name:?}: permission denied"),
                Err(_) => {}
            }
        }
        Err(failure)
    }
}

fn check(path: &Path) -> Result<(), nix::errno::Errno> {
    let metadata = std::fs::metadata(path).map_err(|error| errno_of(&error))?;
    if metadata.is_dir() {
        return Err(nix::errno::Errno::EISDIR);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(nix::errno::Errno::EACCES);
    }
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK)
}

fn errno_of(error: &io::Error) -> nix::errno::Errno {
    nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

fn reason(errno: nix::errno::Errno) -> String {
    match errno {
        nix::errno::Errno::ENOEXEC => "exec format error".to_owned(),
        other => other.desc().to_lowercase(),
    }
}

impl Executor for ProgramStart {
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        match self.run() {
            Ok(never) => match never {},
            Err(failure) => {
                self.tell(&failure);
                Err(ExecutorError::Other(failure))
            }
        }
    }

    /// Runs in the child, before it waits for its start.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        for socket in &self.sockets {
            // This process' copy; the shim's own stays open.
            let _ = nix::unistd::close(*socket);
        }
        self.program().map(|_| ()).map_err(|failure| {
            self.tell(&failure);
            ExecutorValidationError::ArgValidationError(failure)
        })
    }

    /// The environment goes to exec as it is, in its order; this process' own is not touched.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }
}
