//! The namespaces in which an ordinary user is root: a user, mount, IPC, host name and network namespace.
//!
//! Owns: the kernel's steps to make and to enter them, and what can be asked of the one that this process is in.
//! Invariants: a user and a mount namespace are a whole process', so they are made before it has a second thread; a
//! network namespace is a thread's, so threads that were there before stay outside. Who keeps them, and when, is the
//! app's. One user id is all that the kernel maps without a helper program: 0 to the user.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::{ffi::OsStrExt as _, fs::symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    unistd::{getegid, geteuid},
};

use super::{cgroup, netlink::Netlink, sys};

/// Of the whole process, made and entered at once. The user namespace owns the others.
const WHOLE: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// The shim's argument that makes it a holder of namespaces.
pub(super) const HOLD: &str = "--hold";
/// The shim's argument for trying whether namespaces can be made.
pub(super) const TRY: &str = "--try-namespaces";

/// Whether this process is in a user namespace that is not the machine's own.
pub fn inside() -> bool {
    // The machine's own maps every number to itself.
    mappings("uid_map").is_some_and(|all| !all.iter().any(|&(_, count)| count == u32::MAX))
}

/// What containers lack in here that those of the machine's root have, in words for the user.
fn lacks_of(cgroups: bool, groups: bool) -> &'static str {
    match (cgroups, groups) {
        (false, false) => {
            "limits of cpu, memory and processes are not enforced (cgroups are root's); all files are yours, and \
             containers have one user each and no further groups; pods reach each other and their node, but no other machine"
        }
        (true, false) => {
            "all files are yours, and containers have one user each and no further groups; pods reach each other and their \
             node, but no other machine"
        }
        (false, true) => "limits of cpu, memory and processes are not enforced: cgroups are not this user's",
        (true, true) => "device nodes and the machine's own settings are not this user's",
    }
}

/// The same for this process; `None` in the machine's own user namespace.
pub fn lacks() -> Option<&'static str> {
    inside().then(|| lacks_of(!cgroup::Hierarchies::detect().missing(), may_set_groups()))
}

/// Whether a user's number has a meaning in this process' user namespace.
pub(super) fn has_user(uid: u32) -> bool {
    mappings("uid_map").is_none_or(|all| all.iter().any(|&(first, count)| within(uid, first, count)))
}

/// The same of a group's.
pub(super) fn has_group(gid: u32) -> bool {
    mappings("gid_map").is_none_or(|all| all.iter().any(|&(first, count)| within(gid, first, count)))
}

/// Whether processes here may change the groups they are in.
pub(super) fn may_set_groups() -> bool {
    fs::read_to_string("/proc/self/setgroups").map_or(true, |text| text.trim() != "deny")
}

/// First number inside, and how many.
fn mappings(file: &str) -> Option<Vec<(u32, u32)>> {
    let table = fs::read_to_string(Path::new("/proc/self").join(file)).ok()?;
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
    };
    Some(table.lines().filter_map(line).collect())
}

fn within(id: u32, first: u32, count: u32) -> bool {
    id.checked_sub(first).is_some_and(|offset| offset < count)
}

/// Makes namespaces for the whole process, in which it is root. To be called before it has a second thread.
///
/// # Errors
/// Which step the kernel refused. Unless it was the first, the process is of no use any more.
pub fn make() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    alone(|| unshare(WHOLE)).map_err(at("make a user namespace"))?;
    // In this order: without "deny" the kernel lets nobody but root map groups.
    fs::write("/proc/self/setgroups", "deny").map_err(at_io("give up supplementary groups"))?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(at_io("map the user"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(at_io("map the group"))?;
    cgroup::hide_from_library().map_err(at_io("mount in a namespace of one's own"))
}

/// Enters the namespaces that another process is in, but for the network. To be called before there is a second thread.
///
/// # Errors
/// When that process is gone or another user's.
pub fn enter(of: i32) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{of}/ns/{name}"));
    let (user, rest) = (open("user")?, [open("ipc")?, open("uts")?, open("mnt")?]);
    alone(|| setns(&user, CloneFlags::CLONE_NEWUSER)).map_err(at("enter a user namespace"))?;
    for namespace in rest {
        setns(namespace, CloneFlags::empty()).map_err(at("enter a namespace"))?;
    }
    Ok(())
}

/// Puts the calling thread, and those that it starts later, into a network namespace of its own, with a loopback.
///
/// # Errors
/// Which step the kernel refused.
pub fn make_network() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(at("make a network namespace"))?;
    Netlink::open().and_then(|mut netlink| netlink.loopback_up()).map_err(at_io("set up the loopback"))
}

/// Puts the calling thread, and those that it starts later, into the network namespace of another process.
///
/// # Errors
/// When that process is gone.
pub fn enter_network(of: i32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{of}/ns/net"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(at("enter a network namespace"))
}

/// Has this process, root of a user namespace with no more users, seem to be another one: in a namespace of its own, where
/// that number stands for the same user. It has all capabilities there, until its next program.
///
/// # Errors
/// Which step the kernel refused.
pub(super) fn seem(uid: u32, gid: u32) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).map_err(at("make a user namespace"))?;
    fs::write("/proc/self/uid_map", format!("{uid} 0 1")).map_err(at_io("map the user"))?;
    fs::write("/proc/self/gid_map", format!("{gid} 0 1")).map_err(at_io("map the group"))
}

/// A thread that was joined is still counted for some microseconds.
fn alone(mut step: impl FnMut() -> nix::Result<()>) -> nix::Result<()> {
    for _ in 0..ALONE_ATTEMPTS {
        match step() {
            Err(Errno::EINVAL) => std::thread::sleep(ALONE_PAUSE),
            done => return done,
        }
    }
    step()
}

const ALONE_ATTEMPTS: u32 = 50;
const ALONE_PAUSE: Duration = Duration::from_millis(1);

fn at(step: &'static str) -> impl FnOnce(Errno) -> io::Error {
    move |errno| at_io(step)(errno.into())
}

fn at_io(step: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{step}: {error}"))
}

/// Whether [`make`] and [`make_network`] would succeed: tried by a process that ends at once.
///
/// # Errors
/// What the kernel refused.
pub fn possible() -> Result<(), String> {
    let tried = Command::new(SELF).args(["shim", TRY]).stdin(Stdio::null()).output();
    let tried = tried.map_err(|error| format!("start {SELF}: {error}"))?;
    if tried.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&tried.stderr).trim().to_owned();
    Err(if said.is_empty() { "a process that tried was ended".to_owned() } else { said })
}

/// This very program, also after its file was replaced.
const SELF: &str = "/proc/self/exe";

/// What the process of [`possible`] does; its exit code.
pub(super) fn attempt() -> i32 {
    match make().and_then(|()| make_network()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}

/// Starts a process that does nothing but to keep the calling thread's namespaces until it is killed; gives its pid.
/// `of` only says to people who look at processes whose it is.
///
/// # Errors
/// When it cannot be started.
pub fn start_holder(of: &Path) -> io::Result<i32> {
    let child = Command::new(SELF)
        .args([OsStr::new("shim"), OsStr::new(HOLD), of.as_os_str()])
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child.id() as i32)
}

/// What such a process does.
pub(super) fn hold() -> ! {
    let _ = nix::unistd::setsid();
    // Nothing of its parent's but the namespaces.
    let _ = sys::close_all_but_standard();
    sys::trim_heap();
    sys::pause()
}

/// Kills this user's shims below a directory, with all that they have started: for when nobody holds their namespaces any
/// more, so that they can neither be reached nor reach anything.
pub fn end_orphans(below: &Path) {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0).skip(1).map(OsStr::from_bytes);
        if words.next() == Some(OsStr::new("shim")) && words.any(|word| Path::new(word).starts_with(below)) {
            super::shim::kill_tree(pid);
        }
    }
}

/// What a process that holds namespaces is known by, beside its pid: when it was started, as the kernel counts.
pub fn started(pid: i32) -> Option<u64> {
    super::state::start_ticks(pid)
}

/// Fills a directory with what the runtime library writes to instead of cgroups of version 1 that are not the user's:
/// without them it refuses to start containers, and it cannot be told to leave them alone.
pub(super) fn fake_cgroups(root: &Path, names: impl IntoIterator<Item = PathBuf>) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("troupe"), root, Some("tmpfs"), flags, Some("mode=755,size=4m"))?;
    for name in names {
        let group = root.join(name).join(cgroup::NONE_GROUP);
        fs::create_dir_all(&group)?;
        // Nothing is to be remembered there: the library kills what it reads when a start fails.
        symlink("/dev/null", group.join("cgroup.procs"))?;
        for dir in group.ancestors().take(2) {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                fs::write(dir.join(file), "0\n")?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_within_what_is_mapped() {
        assert!(within(0, 0, 1) && !within(1, 0, 1));
        assert!(within(u32::MAX - 1, 0, u32::MAX) && !within(4, 5, 10));
    }

    #[test]
    fn the_machines_own_namespace_maps_everyone() {
        if !inside() {
            assert!(has_user(0) && has_user(65_534) && has_group(12_345));
        }
    }
}
