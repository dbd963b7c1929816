//! A pid namespace for a whole pod (`shareProcessNamespace`), and the process that holds it.
//!
//! Owns: the holder, a fork of the shim that is process 1 of the namespace, takes in orphans and does nothing else.
//! Invariants: it ends when its shim does, however that ends, and all of the pod's processes with it; it holds no
//! descriptor of the shim's. Containers enter by the namespace's path, so the shim itself stays outside.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::waitpid,
    },
    unistd::Pid,
};

use super::super::sys;

/// The pod's pid namespace while its first process lives.
pub(super) struct Holder {
    pid: i32,
    path: PathBuf,
}

impl Holder {
    /// Makes the namespace. To be called by a process with one thread.
    pub(super) fn start() -> io::Result<Holder> {
        let own = File::open("/proc/self/ns/pid")?;
        let shim = std::process::id();
        // Concerns children only; and those that come later are to be the shim's, not the holder's.
        unshare(CloneFlags::CLONE_NEWPID)?;
        let forked = sys::fork();
        if forked == Ok(0) {
            hold(shim);
        }
        setns(own, CloneFlags::CLONE_NEWPID)?;
        let pid = forked?;
        Ok(Holder { pid, path: format!("/proc/{pid}/ns/pid").into() })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Where containers find the namespace.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the namespace with whatever is in it.
    pub(super) fn end(self) {
        let pid = Pid::from_raw(self.pid);
        if kill(pid, Signal::SIGKILL).is_ok() {
            let _ = waitpid(pid, None);
        }
    }
}

/// The holder's life. Nothing here allocates much or fails in a way that matters: at worst it ends, which the shim sees.
fn hold(shim: u32) -> ! {
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = prctl::set_name(NAME);
    // The shim may have died before its death could be asked to be told.
    if parent_of_self() != Some(shim) || sys::close_all_but_standard().is_err() {
        std::process::exit(1);
    }
    // The kernel reaps what is adopted here.
    sys::let_children_be_reaped(true);
    let _ = SigSet::empty().thread_set_mask();
    sys::pause()
}

/// What people see as process 1 of the pod, as elsewhere.
const NAME: &std::ffi::CStr = c"pause";

/// The parent's pid as the node numbers it: in its own namespace the holder's parent has none.
fn parent_of_self() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
