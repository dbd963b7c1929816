//! A pid namespace for a whole pod (`shareProcessNamespace`), and the process that holds it.
//!
//! Owns: the holder, a fork of the shim that is process 1 of the namespace, takes in orphans and does nothing else.
//! Invariants: it ends when its shim does, however that ends, and all of the pod's processes with it; it holds no
//! descriptor of the shim's. Containers enter by the namespace's path, so the shim itself stays outside.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use ::caps::CapSet;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        prctl,
        signal::{SigSet, Signal, kill},
        wait::waitpid,
    },
    unistd::{Gid, Pid, Uid, chdir, pivot_root, setgroups, setresgid, setresuid},
};

use super::super::sys;

/// The pod's pid namespace while its first process lives.
pub(super) struct Holder {
    pid: i32,
    path: PathBuf,
    /// What the path leads to, where processes of other users could not take it from the holder's.
    _namespace: Option<File>,
}

impl Holder {
    /// Makes the namespace, which belongs to the pod's users if it has some of its own. To be called by a process with one
    /// thread.
    pub(super) fn start(users: Option<&File>) -> io::Result<Holder> {
        let shim = std::process::id();
        if let Some(users) = users {
            return Self::start_among(users, shim);
        }
        // Of this child only: the namespace that the shim's other children are in may be one that it could not return to.
        let pid = sys::fork_into_pids()?;
        if pid == 0 {
            hold(shim, false);
        }
        Ok(Holder { pid, path: format!("/proc/{pid}/ns/pid").into(), _namespace: None })
    }

    /// By way of a child that becomes one of the pod's users and ends; the holder is the shim's child nevertheless.
    fn start_among(users: &File, shim: u32) -> io::Result<Holder> {
        let (mut told, tell) = io::pipe()?;
        let child = sys::fork()?;
        if child == 0 {
            let made = setns(users, CloneFlags::CLONE_NEWUSER)
                .and_then(|()| unshare(CloneFlags::CLONE_NEWPID))
                .map_err(io::Error::from)
                .and_then(|()| sys::fork_sibling());
            match made {
                Ok(0) => hold(shim, true),
                made => {
                    let _ = (&tell).write_all(&made.unwrap_or(0).to_ne_bytes());
                    std::process::exit(0)
                }
            }
        }
        drop(tell);
        let mut pid = [0; size_of::<i32>()];
        let read = told.read_exact(&mut pid);
        let _ = waitpid(Pid::from_raw(child), None);
        read?;
        let pid = i32::from_ne_bytes(pid);
        if pid == 0 {
            return Err(io::Error::other("the kernel refuses it"));
        }
        let namespace = File::open(format!("/proc/{pid}/ns/pid"))?;
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd()).into();
        Ok(Holder { pid, path, _namespace: Some(namespace) })
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
///
/// It is a process of the node's among the pod's, some of which may look into others: it has no rights, and the node's files
/// are out of its reach. Where the pod has users of its own it is one of them.
fn hold(shim: u32, among_users: bool) -> ! {
    // Before it asks to be told of a death: who becomes another user is asked anew.
    if among_users && become_root_here().is_err() {
        std::process::exit(1);
    }
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    let _ = prctl::set_name(NAME);
    // The shim may have died before its death could be asked to be told.
    if parent_of_self() != Some(shim) || sys::close_all_but_standard().is_err() {
        std::process::exit(1);
    }
    if prctl::set_dumpable(false).is_err() || leave_files().is_err() || drop_rights().is_err() {
        std::process::exit(1);
    }
    // The kernel reaps what is adopted here.
    sys::let_children_be_reaped(true);
    let _ = SigSet::empty().thread_set_mask();
    sys::pause()
}

/// Root of the user namespace that this process is in.
fn become_root_here() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(0), Gid::from_raw(0));
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)
}

/// Changes to a root directory with nothing in it.
fn leave_files() -> nix::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Any directory that every machine has.
    mount(Some("nothing"), "/proc", Some("tmpfs"), flags, none)?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn drop_rights() -> Result<(), ::caps::errors::CapsError> {
    [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted]
        .into_iter()
        .try_for_each(|set| ::caps::clear(None, set))
}

/// Kills a process and all below it, where no cgroup knows them: those that it has disowned get away until their pod ends.
pub(in super::super) fn kill_tree(pid: i32) {
    let mut found = BTreeSet::from([pid]);
    let mut new = vec![pid];
    while let Some(parent) = new.pop() {
        new.extend(children(parent).into_iter().filter(|child| found.insert(*child)));
    }
    for pid in found {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// The children of a process, those that it adopted included.
pub(super) fn children(pid: i32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// What people see as process 1 of the pod, as elsewhere.
const NAME: &std::ffi::CStr = c"pause";

/// The parent's pid as the node numbers it: in its own namespace the holder's parent has none.
fn parent_of_self() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
