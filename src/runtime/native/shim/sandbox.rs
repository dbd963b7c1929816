//! The pod's namespaces, which the shim itself lives in, and what is in them.
//!
//! Owns: entering them and filling them: network, host name, shared memory, files for `/etc`. Invariant: all of it ends
//! with the shim and its containers: mounts are made in a mount namespace of the shim's own and the veth pair dies with
//! the network namespace, so not even a killed shim leaves anything on the node.

use std::{
    fs,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AtFlags, OFlag},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
    unistd::{Gid, Uid, fchownat},
};

use super::{
    super::{
        cgroup::Hierarchies,
        netlink::{LinkIndex, Netlink},
        protocol::Fault,
        state::{ContainerDir, SandboxDir, SandboxRecord},
        sys,
    },
    users::Users,
};
use crate::runtime::{hosts, native::userns};

/// The pod's end of its veth pair.
const INTERFACE: &str = "eth0";

/// Enters the pod's namespaces and makes everything its containers share.
pub(super) fn enter(
    dir: &SandboxDir,
    record: &SandboxRecord,
    hierarchies: &mut Hierarchies,
) -> Result<Option<Users>, Fault> {
    let config = &record.config;
    // Opened in the node's network namespace, where it stays.
    let mut node = Netlink::open().map_err(Fault::system("open a netlink socket"))?;
    let network = record.network.as_ref();
    let bridge = network
        .map(|network| LinkIndex::of(&network.bridge))
        .transpose()
        .map_err(Fault::system("find the node's bridge"))?;
    let users = Users::enter(dir, config)?;
    let mut namespaces = CloneFlags::CLONE_NEWNS;
    if !config.host_network && users.is_none() {
        namespaces |= CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    }
    if !config.host_ipc && users.is_none() {
        namespaces |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(namespaces).map_err(Fault::system("make the pod's namespaces"))?;
    let everything = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(None::<&str>, "/", None::<&str>, everything, None::<&str>)
        .map_err(Fault::system("take the mounts apart from the node's"))?;
    hierarchies.put_aside(&dir.cgroups());
    if !config.host_network {
        nix::unistd::sethostname(&config.hostname).map_err(Fault::system("set the pod's host name"))?;
    }
    if let Some((network, bridge)) = network.zip(bridge) {
        let own = std::process::id();
        node.add_veth(&network.veth, INTERFACE, own, bridge, network.mtu)
            .map_err(Fault::system("make the pod's veth pair"))?;
        let mut pod = Netlink::open().map_err(Fault::system("open the pod's netlink socket"))?;
        pod.configure_pod(INTERFACE, network.address, network.prefix, network.gateway)
            .map_err(Fault::system("set up the pod's network"))?;
    }
    for (name, value) in &config.sysctls {
        set_sysctl(name, value, users.as_ref())?;
    }
    share_memory(dir, config.host_ipc)?;
    write_files(dir, record).map_err(Fault::system("write the pod's files for /etc"))?;
    if let Some(users) = &users {
        users.set_stage(dir)?;
    }
    hierarchies.limit_pod(&record.cgroup, config).map_err(Fault::system("limit the pod's cgroup"))?;
    Ok(users)
}

/// Sysctls of the pod's own namespaces only: others would change the node. Some may be changed by those namespaces' root
/// alone, who in a pod with users of its own is not the node's.
fn set_sysctl(name: &str, value: &str, users: Option<&Users>) -> Result<(), Fault> {
    let namespaced = ["net.", "kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) && !name.contains("..");
    if !plain || !namespaced.iter().any(|prefix| name.starts_with(prefix)) {
        return Err(Fault::Config(format!("sysctl {name:?} is not one of a pod's own")));
    }
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    let write = || fs::write(&path, value);
    match users {
        Some(users) => users.as_root(write),
        None => write(),
    }
    .map_err(|error| {
        let of_pod = users.map(Users::last);
        not_set(name, value, of_pod.or(userns::inside().then_some(0)), &error)
    })
}

/// Why a sysctl was not set. Of groups that there are not the kernel only says that they are invalid; `last_group` is the
/// last one that there is, where they are not all those of the node.
fn not_set(name: &str, value: &str, last_group: Option<u32>, error: &std::io::Error) -> Fault {
    let of_groups = name.replace('/', ".") == "net.ipv4.ping_group_range";
    let refused = error.raw_os_error() == Some(libc::EINVAL);
    let why = match last_group.filter(|_| of_groups && refused) {
        Some(0) => {
            format!("{error}: {value:?} has other groups than 0, the only one of an ordinary user's pods")
        }
        Some(last) => format!(
            "{error}: {value:?} has other groups than those of a pod with hostUsers false, 0 to {last}"
        ),
        None => error.to_string(),
    };
    Fault::system(format!("set sysctl {name}"))(why)
}

fn share_memory(dir: &SandboxDir, host_ipc: bool) -> Result<(), Fault> {
    let shm = dir.shm();
    fs::create_dir_all(&shm).map_err(Fault::system("make the pod's shared memory directory"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if host_ipc {
        mount(Some("/dev/shm"), &shm, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    } else {
        mount(Some("shm"), &shm, Some("tmpfs"), flags, Some(SHM_OPTIONS))
    }
    .map_err(Fault::system("mount the pod's shared memory"))
}

/// The size other runtimes give.
const SHM_OPTIONS: &str = "mode=1777,size=65536k";

fn write_files(dir: &SandboxDir, record: &SandboxRecord) -> std::io::Result<()> {
    let file = |name: &str| -> PathBuf { dir.0.join(name) };
    let node = |name: &str| fs::read(Path::new("/etc").join(name)).unwrap_or_default();
    let config = &record.config;
    if config.host_network {
        fs::write(file("hosts"), [node("hosts"), hosts::aliases(config).into_bytes()].concat())?;
        fs::write(file("hostname"), node("hostname"))?;
    } else {
        fs::write(
            file("hosts"),
            hosts::of_pod(config, record.network.as_ref().map(|network| network.address.into())),
        )?;
        fs::write(file("hostname"), format!("{}\n", config.hostname))?;
    }
    let resolv =
        config.dns.as_ref().map_or_else(|| node("resolv.conf"), |dns| hosts::resolv_conf(dns).into_bytes());
    fs::write(file("resolv.conf"), resolv)
}

/// Has the specs of a pod's containers that are there already name their groups, below `pod`.
pub(super) fn name_groups(dir: &SandboxDir, pod: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(dir.containers())? {
        let entry = entry?;
        let file = ContainerDir(entry.path()).spec();
        // One that is being created has none yet, and gets the right one.
        let Ok(text) = fs::read(&file) else { continue };
        let mut spec: serde_json::Value = serde_json::from_slice(&text)?;
        spec["linux"]["cgroupsPath"] = serde_json::json!(pod.join(entry.file_name()));
        fs::write(&file, spec.to_string())?;
    }
    Ok(())
}

/// Who is to own what is made in a root file system, if not this process' user: in a pod with users of its own, its root.
pub(super) fn owner_of(root: &impl AsRawFd) -> nix::Result<Option<(Uid, Gid)>> {
    let root = nix::sys::stat::fstat(root.as_raw_fd())?;
    let owner = (Uid::from_raw(root.st_uid), Gid::from_raw(root.st_gid));
    Ok(Some(owner).filter(|owner| *owner != (Uid::effective(), Gid::effective())))
}

/// Makes a directory and its parents below `root`, which may hold symlinks made by a stranger; they belong to whom it
/// belongs.
pub(super) fn make_dir_in_root(root: &Path, path: &Path) -> nix::Result<()> {
    let root =
        nix::dir::Dir::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let owner = owner_of(&root)?;
    let dir = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let mut reached = PathBuf::new();
    for component in path.components().filter(|part| matches!(part, std::path::Component::Normal(_))) {
        let parent = if reached.as_os_str().is_empty() { Path::new(".") } else { &reached };
        let parent = sys::open_in_root(&root, parent, dir)?;
        let name: &Path = component.as_ref();
        match nix::sys::stat::mkdirat(Some(parent.as_raw_fd()), name, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                if let Some((user, group)) = owner {
                    let at = Some(parent.as_raw_fd());
                    fchownat(at, name, Some(user), Some(group), AtFlags::AT_SYMLINK_NOFOLLOW)?;
                }
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        reached.push(component);
    }
    sys::open_in_root(&root, if reached.as_os_str().is_empty() { Path::new(".") } else { &reached }, dir)
        .map(drop)
}

/// Reads a small text file below `root`; empty when there is none.
pub(super) fn read_in_root(root: &Path, path: &str) -> std::io::Result<String> {
    use std::io::Read;
    let root =
        nix::dir::Dir::open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    // Non-blocking: a pipe in a user database's place must not hang the shim.
    match sys::open_in_root(&root, Path::new(path), OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
        Ok(file) => {
            let mut bytes = Vec::new();
            fs::File::from(file).take(DATABASE_BYTES).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        Err(nix::errno::Errno::ENOENT) => Ok(String::new()),
        Err(errno) => Err(errno.into()),
    }
}

/// No user database of an image is larger.
const DATABASE_BYTES: u64 = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_a_root_cannot_leave_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("passwd"), "secret").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("away")).unwrap();
        assert!(make_dir_in_root(&root, Path::new("/away/made")).is_err());
        assert!(!outside.join("made").exists());
        assert_eq!(read_in_root(&root, "away/passwd").unwrap(), "");
        make_dir_in_root(&root, Path::new("/a/b/c")).unwrap();
        make_dir_in_root(&root, Path::new("/")).unwrap();
        assert!(root.join("a/b/c").is_dir());
    }

    #[test]
    fn groups_that_there_are_not_are_named_where_the_kernel_names_none() {
        let why = |name: &str, last, number| {
            let error = std::io::Error::from_raw_os_error(number);
            match not_set(name, "0 9", last, &error) {
                Fault::System { operation, cause } if operation == format!("set sysctl {name}") => cause,
                other => panic!("{other:?}"),
            }
        };
        let (name, plain) = ("net.ipv4.ping_group_range", "Invalid argument (os error 22)");
        assert_eq!(why(name, None, libc::EINVAL), plain);
        assert_eq!(why("net.ipv4.tcp_rmem", Some(0), libc::EINVAL), plain);
        assert!(!why(name, Some(0), libc::EACCES).contains("groups"));
        for (last, words) in [(0, "than 0, the only one"), (65_535, "hostUsers false, 0 to 65535")] {
            for name in [name, "net/ipv4/ping_group_range"] {
                let why = why(name, Some(last), libc::EINVAL);
                assert!(why.starts_with(plain) && why.contains("\"0 9\"") && why.contains(words), "{why}");
            }
        }
    }

    #[test]
    fn sysctls_of_the_node_are_refused() {
        for name in ["kernel.panic", "vm.swappiness", "net/../kernel/panic", "net.x y"] {
            assert!(matches!(set_sysctl(name, "1", None), Err(Fault::Config(_))), "{name}");
        }
    }
}
