//! The few kernel calls that have no safe wrapper among the crates in use.
//!
//! Owns: all `unsafe` of the native runtime. Each function is safe to call and says why its inside is sound.

#![allow(unsafe_code)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    sync::OnceLock,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag},
};
use seccompiler::sock_filter;
use tokio::io::unix::AsyncFd;

/// Waits until one of `fds` is ready, or `timeout_ms` passed (-1: for ever). Interruptions count as "nothing ready".
pub(super) fn poll(fds: &mut [libc::pollfd], timeout_ms: i32) -> io::Result<usize> {
    // SAFETY: the pointer and length come from one live, exclusively borrowed slice of the very type the kernel writes.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout_ms) };
    if ready >= 0 {
        return Ok(ready as usize);
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(0) } else { Err(error) }
}

/// Puts a system call filter on the calling thread; it cannot be taken off again.
pub(super) fn install_seccomp_filter(program: &[sock_filter]) -> io::Result<()> {
    let len = u16::try_from(program.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "seccomp program too long"))?;
    let filter = libc::sock_fprog { len, filter: program.as_ptr() as *mut libc::sock_filter };
    // SAFETY: seccompiler's `sock_filter` has the kernel's `repr(C)` layout, as libc's has; the kernel copies `len` of
    // them from a slice that lives across the call and writes nothing back, so the cast to `*mut` is never used as such.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives all signals their default action back: Rust's start-up code ignores SIGPIPE, and who started troupe in the
/// background of a script, or by nohup, has others ignored.
pub(super) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: `SIG_DFL` installs no handler, so no code of ours can run in signal context. Two signals refuse.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Sends any signal, real-time ones too. A process that is gone is no error.
pub(in crate::runtime) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes plain integers and touches no memory of ours.
    let result = unsafe { libc::kill(pid, signal) };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// Says how soon a process is to be taken when memory runs out. What is refused is left: some machines let nobody make it
/// later.
pub(super) fn adjust_oom_score(pid: i32, adj: i32) {
    if let Err(error) = std::fs::write(format!("/proc/{pid}/oom_score_adj"), adj.to_string()) {
        tracing::debug!(%error, pid, adj, "oom_score_adj stays as it is");
    }
}

/// Becomes the parent of orphaned descendants, so that they can be reaped.
pub(super) fn become_subreaper() -> io::Result<()> {
    // SAFETY: takes plain integers and touches no memory of ours.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor beyond the standard three.
pub(super) fn close_all_but_standard() -> io::Result<()> {
    // SAFETY: the caller's child process uses none of its parent's descriptors from here on; the kernel reads integers.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 0_u32) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for signals for ever.
pub(super) fn pause() -> ! {
    loop {
        // SAFETY: takes nothing and touches no memory of ours.
        unsafe { libc::pause() };
    }
}

/// Forks the process: 0 in the child. To be called by a process with one thread only, where a fork is whole.
pub(super) fn fork() -> nix::Result<i32> {
    // SAFETY: seeds and shims have one thread, so no lock is held by a thread that the child lacks, and the child may go
    // on with any code.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(0),
        nix::unistd::ForkResult::Parent { child } => Ok(child.as_raw()),
    }
}

/// The same, the child being a child of this process' parent.
pub(super) fn fork_sibling() -> io::Result<i32> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: as in `fork_into_pids`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) }
}

/// The same, the child being process 1 of a new pid namespace.
pub(super) fn fork_into_pids() -> io::Result<i32> {
    let flags = libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without a stack and without shared memory this is a fork; for the rest see `fork`. What the C library would
    // do beside is to reset its own locks, which nobody holds.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(pid as i32) }
}

/// Whether the kernel throws the status of children away (`true`), or keeps it to be waited for.
pub(super) fn let_children_be_reaped(ignored: bool) {
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither action installs a handler, so no code of ours can run in signal context.
    unsafe { libc::signal(libc::SIGCHLD, action) };
}

/// Gives back to the kernel what the allocator holds free: a shim waits for months with what a start needed for
/// milliseconds.
pub(super) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer, and touches only free memory, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Owns a descriptor that was received in a message.
pub(super) fn own(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for the message that was just read, and it is taken out of that once.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// Has the current reactor watch a descriptor.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor stays open and itself as long as it lives, and it lives in what is returned.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A copy of what is mounted at `path` and below it, which is mounted nowhere yet. What is shared stays so.
pub(super) fn copy_mounts(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: the kernel reads a string that lives across the call, and integers.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(tree as RawFd) })
}

/// Has such a copy show owners as a user namespace has them: its 0 for the file system's 0.
pub(super) fn map_owners(tree: &OwnedFd, users: &impl AsRawFd) -> io::Result<()> {
    let attributes = MountAttributes {
        set: MOUNT_ATTR_IDMAP,
        clear: 0,
        propagation: 0,
        users: u64::try_from(users.as_raw_fd()).unwrap_or_default(),
    };
    // SAFETY: the kernel reads a string and a struct of its own layout that live across the call, and integers.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether this kernel (Linux 5.12 and newer), as far as we may ask, can change a mount with all below it.
pub(in crate::runtime) fn sets_mounts_recursively() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| {
        let attributes = MountAttributes { set: 0, clear: 0, propagation: 0, users: 0 };
        // SAFETY: the kernel reads a string and a struct of its own layout that live across the call, and integers; there is no
        // such descriptor, so that nothing is changed.
        let set = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                -1,
                c"".as_ptr(),
                libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
                &raw const attributes,
                size_of::<MountAttributes>(),
            )
        };
        set == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EBADF)
    })
}

/// The kernel's `struct mount_attr`.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    users: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// Mounts such a copy on `place`.
pub(super) fn mount_copy(tree: &OwnedFd, place: &Path) -> io::Result<()> {
    let place = CString::new(place.as_os_str().as_bytes())?;
    let (from, here) = (tree.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: the kernel reads strings that live across the call, and integers.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, from, c"".as_ptr(), here, place.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    if moved == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The kernel's numbers (`linux/mount.h`), which not every C library's headers have.
const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// Moves what is open as standard input to a high descriptor and puts `/dev/null` in its place.
///
/// The shim gets its listening socket as standard input, because that is the one descriptor that can be handed to a
/// child without running code between fork and exec.
pub(super) fn take_stdin() -> io::Result<OwnedFd> {
    let moved = nix::fcntl::fcntl(libc::STDIN_FILENO, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(FIRST_HIGH_FD))?;
    // SAFETY: `fcntl` just made this descriptor and nobody else knows of it.
    let moved = unsafe { OwnedFd::from_raw_fd(moved) };
    let null = std::fs::File::open("/dev/null")?;
    nix::unistd::dup2(std::os::fd::AsRawFd::as_raw_fd(&null), libc::STDIN_FILENO)?;
    Ok(moved)
}

/// Descriptors below this one are left to libcontainer, which hands some on by number.
const FIRST_HIGH_FD: RawFd = 10;

/// Opens `path` as a process would that has `root` as its root directory: symlinks and `..` cannot leave it.
pub(super) fn open_in_root(
    root: &impl std::os::fd::AsRawFd,
    path: &Path,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    open_as(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT)
}

/// The same; makes the file if `flags` say so.
pub(super) fn create_in_root(
    root: &impl std::os::fd::AsRawFd,
    path: &Path,
    flags: OFlag,
    mode: u32,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().mode(nix::sys::stat::Mode::from_bits_truncate(mode));
    open_how(root, path, how.flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT))
}

/// Opens `path` below `root`; refused when a symlink or `..` leads out of it (`EXDEV`).
pub(super) fn open_beneath(
    root: &impl std::os::fd::AsRawFd,
    path: &Path,
    flags: OFlag,
) -> nix::Result<OwnedFd> {
    open_as(root, path, flags, ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

fn open_as(
    root: &impl std::os::fd::AsRawFd,
    path: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> nix::Result<OwnedFd> {
    open_how(root, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

/// The kernel gives a walk through `..` up when anything was renamed or mounted meanwhile, wherever that was. It is begun
/// again as often as libpathrs does, which has the same to do.
const MOST_WALKS: usize = 128;

fn open_how(root: &impl std::os::fd::AsRawFd, path: &Path, how: OpenHow) -> nix::Result<OwnedFd> {
    let mut walks = 1;
    let fd = loop {
        match nix::fcntl::openat2(root.as_raw_fd(), path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) if walks < MOST_WALKS => walks += 1,
            opened => break opened?,
        }
    };
    // SAFETY: `openat2` just made this descriptor and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Processors that this process may run on, at least one. The standard library's count reads cgroups for it, a dozen
/// calls, and would not find those that were put aside.
pub(super) fn cores() -> i64 {
    let Ok(set) = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)) else { return 1 };
    let cores = (0..nix::sched::CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).count();
    cores.max(1) as i64
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[test]
    fn paths_with_steps_up_are_opened_while_others_rename() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        fs::create_dir_all(dir.path().join("one")).unwrap();
        let root = fs::File::open(dir.path().join("root")).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, two) = (dir.path().join("one"), dir.path().join("two"));
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&one, &two).unwrap();
                    fs::rename(&two, &one).unwrap();
                }
            });
            let path = Path::new("a/b/../b/../../a/b/../..");
            let failed = (0..2_000).find_map(|_| open_in_root(&root, path, OFlag::O_PATH).err());
            done.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
