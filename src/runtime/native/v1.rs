//! Containers' control groups of version 1, by our own hand instead of libcgroups'.
//!
//! Owns: groups in every hierarchy, limits in them, moving the shim in and out, and keeping the hierarchies out of
//! libcgroups' sight. It searches the mount table a dozen times a start and moves processes by `cgroup.procs`, for
//! which the kernel waits for an RCU grace period, some 10 ms. A process of one thread that moves itself by `tasks` has
//! no such wait (Linux 5.16, "cgroup: Optimize single thread migration"): the shim goes into a container's groups, makes
//! the container's process, which is born there, and comes back. Invariant: whatever happens, the shim comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{CGROUP2_SUPER_MAGIC, statfs},
};

use super::{
    cgroup::CGROUP_ROOT,
    state::{ContainerRecord, SandboxRecord},
};
use crate::runtime::limits::CPU_PERIOD_US;

/// Where each controller's hierarchy is mounted.
pub(super) type Mounts = BTreeMap<String, PathBuf>;

const TASKS: &str = "tasks";
/// The process that writes it.
const MYSELF: &str = "0";
const NONE: Option<&str> = None;

/// Makes the group at `path` (absolute, from each hierarchy's root) and those above it. Idempotent.
pub(super) fn make(mounts: &Mounts, path: &Path) -> io::Result<()> {
    for root in roots(mounts) {
        let group = group(root, path);
        // An outer group may be removed by its last pod meanwhile.
        fs::create_dir_all(&group).or_else(|_| fs::create_dir_all(&group))?;
    }
    match mounts.get("cpuset") {
        Some(root) => hand_down_cpus(root, path),
        None => Ok(()),
    }
}

/// No process can be in a group that has no processors or memory nodes, and new groups have none.
fn hand_down_cpus(root: &Path, path: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        // Mostly they have been handed down already, by who made the groups.
        if fs::read_to_string(group(root, path).join(file)).is_ok_and(|own| !own.trim().is_empty()) {
            continue;
        }
        let mut dir = root.to_path_buf();
        let mut above = fs::read_to_string(dir.join(file))?;
        for component in inside(path) {
            dir.push(component);
            let own = fs::read_to_string(dir.join(file))?;
            if own.trim().is_empty() {
                fs::write(dir.join(file), above.trim())?;
            } else {
                above = own;
            }
        }
    }
    Ok(())
}

/// Controllers whose groups limit containers or are read for statistics; a group in another one is a millisecond's work for
/// nothing.
const USED: &[&str] = &["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "blkio", "hugetlb"];

fn used(mounts: &Mounts) -> impl Iterator<Item = (&String, &PathBuf)> {
    mounts.iter().filter(|(name, _)| USED.contains(&name.as_str()))
}

fn roots(mounts: &Mounts) -> BTreeSet<&PathBuf> {
    used(mounts).map(|(_, root)| root).collect()
}

fn group(root: &Path, path: &Path) -> PathBuf {
    root.join(inside(path))
}

fn inside(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// A stay in a container's groups: children born meanwhile belong there. It ends when this is dropped.
pub(super) struct Stay<'a> {
    /// Each hierarchy's root, and this process' own place in it.
    homes: Vec<(&'a PathBuf, PathBuf)>,
}

/// Goes into the groups at `path`, which are there. Only for a process of one thread.
pub(super) fn enter<'a>(mounts: &'a Mounts, path: &Path) -> io::Result<Stay<'a>> {
    let memberships = fs::read_to_string("/proc/self/cgroup")?;
    let mut stay = Stay { homes: Vec::new() };
    let mut entered = BTreeSet::new();
    for (controller, root) in used(mounts) {
        if entered.insert(root) {
            fs::write(group(root, path).join(TASKS), MYSELF)?;
            stay.homes.push((root, group(root, home(&memberships, controller))));
        }
    }
    Ok(stay)
}

/// A process' own group in a controller's hierarchy.
fn home<'a>(memberships: &'a str, controller: &str) -> &'a Path {
    let found = memberships.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    });
    Path::new(found.unwrap_or("/"))
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        for (root, home) in &self.homes {
            // A home that was removed meanwhile: anywhere but in a container's group, which could not be removed then.
            let back = fs::write(home.join(TASKS), MYSELF);
            if let Err(error) = back.or_else(|_| fs::write(root.join(TASKS), MYSELF)) {
                tracing::error!(%error, hierarchy = %root.display(), "the shim cannot leave a container's cgroup");
            }
        }
    }
}

/// A value for a file of a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
}

/// What limits a container, in the order in which it is to be set.
pub(super) fn limits(
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    swap_limit: bool,
    guard_devices: bool,
) -> Vec<Setting> {
    let limits = &record.config.resources;
    let set = |controller, file, value: String| Setting { controller, file, value };
    let mut settings = vec![
        set("pids", "pids.max", sandbox.config.pids().to_string()),
        set("cpu", "cpu.shares", limits.cpu_shares().to_string()),
    ];
    if let Some(quota) = limits.cpu_quota_us() {
        settings.push(set("cpu", "cpu.cfs_period_us", CPU_PERIOD_US.to_string()));
        settings.push(set("cpu", "cpu.cfs_quota_us", quota.to_string()));
    }
    if limits.memory_limit_bytes > 0 {
        // Together with swap it cannot be less than alone.
        let files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];
        let files = &files[..if swap_limit { 2 } else { 1 }];
        settings.extend(files.iter().map(|file| set("memory", file, limits.memory_limit_bytes.to_string())));
    }
    if guard_devices && !record.config.security.privileged {
        settings.push(set("devices", "devices.deny", "a".to_owned()));
        let allow = |device: &&str| set("devices", "devices.allow", (*device).to_owned());
        settings.extend(DEVICES.iter().map(allow));
    }
    settings
}

/// What limits a container's huge pages.
pub(super) fn huge_pages(record: &ContainerRecord) -> impl Iterator<Item = Setting> + '_ {
    record.config.huge_pages.iter().filter_map(|limit| {
        let file = match limit.size().as_str() {
            "64KB" => "hugetlb.64KB.limit_in_bytes",
            "2MB" => "hugetlb.2MB.limit_in_bytes",
            "32MB" => "hugetlb.32MB.limit_in_bytes",
            "512MB" => "hugetlb.512MB.limit_in_bytes",
            "1GB" => "hugetlb.1GB.limit_in_bytes",
            "16GB" => "hugetlb.16GB.limit_in_bytes",
            _ => return None,
        };
        Some(Setting { controller: "hugetlb", file, value: limit.limit_bytes.to_string() })
    })
}

/// Sets a container's limits in its groups. What the machine has no controller for is an error; in a user namespace
/// (`partly`), where some hierarchies may be the user's and others not, only what can be set is, and the rest is told.
pub(super) fn limit(mounts: &Mounts, path: &Path, settings: &[Setting], partly: bool) -> io::Result<()> {
    for setting in settings {
        match set(mounts, path, setting) {
            Err(error) if partly && is_anothers(&error) => {
                static TOLD: std::sync::Once = std::sync::Once::new();
                TOLD.call_once(
                    || tracing::warn!(%error, "some limits are not enforced: they are not the user's"),
                );
            }
            done => done?,
        }
    }
    Ok(())
}

/// Whether a limit could not be set for want of a hierarchy or of the right to write to it.
fn is_anothers(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(error.kind(), NotFound | PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

fn set(mounts: &Mounts, path: &Path, Setting { controller, file, value }: &Setting) -> io::Result<()> {
    let Some(root) = mounts.get(*controller) else {
        let text = format!("{file} cannot be set: this machine has no cgroup controller {controller:?}");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    };
    fs::write(group(root, path).join(file), value)
        .map_err(|error| io::Error::new(error.kind(), format!("set {file} to {value}: {error}")))
}

/// What a container may open: any node may be made, the usual ones used (the OCI's default devices and terminals).
const DEVICES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// In a mount namespace of this process' own: moves the hierarchies' whole tree to `aside`, and gives where they are then.
/// In its place libcgroups finds a unified hierarchy whose root it is told to use, with a list of processes that
/// takes everything: it then reads two files where it would search the mount table a dozen times.
pub(super) fn put_aside(mounts: &Mounts, aside: &Path) -> io::Result<Mounts> {
    let moved: Option<Mounts> = mounts
        .iter()
        .map(|(name, path)| Some((name.clone(), aside.join(path.strip_prefix(CGROUP_ROOT).ok()?))))
        .collect();
    let moved = moved.ok_or_else(|| io::Error::other("hierarchies elsewhere than below /sys/fs/cgroup"))?;
    fs::create_dir_all(aside)?;
    mount(Some(CGROUP_ROOT), aside, NONE, MsFlags::MS_MOVE, NONE)?;
    let stood_in = stand_in(aside).and_then(|()| {
        let root = Path::new(CGROUP_ROOT);
        // In a cgroup namespace the root can be killed, which libcgroups does when a start fails.
        let written = ["cgroup.procs", "cgroup.kill"].map(|file| root.join(file));
        written
            .iter()
            .filter(|file| file.exists())
            .try_for_each(|file| mount(Some("/dev/null"), file, NONE, MsFlags::MS_BIND, NONE))
    });
    if let Err(error) = stood_in {
        put_back(aside)?;
        return Err(error.into());
    }
    Ok(moved)
}

/// Puts a unified hierarchy where the others were.
fn stand_in(aside: &Path) -> nix::Result<()> {
    let unified = aside.join("unified");
    if statfs(&unified).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return mount(Some(&unified), CGROUP_ROOT, NONE, MsFlags::MS_BIND, NONE);
    }
    // Not every machine has one at hand, and to mount it anew takes an RCU grace period, some 10 ms.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("cgroup2"), CGROUP_ROOT, Some("cgroup2"), flags, NONE)
}

/// Undoes [`put_aside`], for containers that see the node's `/sys/fs/cgroup`.
pub(super) fn put_back(aside: &Path) -> io::Result<()> {
    // Not there when it could not be mounted.
    let _ = umount2(CGROUP_ROOT, MntFlags::MNT_DETACH);
    Ok(mount(Some(aside), CGROUP_ROOT, NONE, MsFlags::MS_MOVE, NONE)?)
}

/// Whether they are where [`put_aside`] has moved them.
pub(super) fn are_aside(mounts: &Mounts) -> bool {
    mounts.values().any(|path| !path.starts_with(CGROUP_ROOT))
}

/// Whether a container with this path of the node in it would see where the hierarchies are.
pub(super) fn shows(path: &Path) -> bool {
    let root = Path::new(CGROUP_ROOT);
    root.starts_with(path) || path.starts_with(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerConfig, ContainerId, SandboxConfig, native::state::ImageRecord};

    fn records() -> (SandboxRecord, ContainerRecord) {
        let sandbox = SandboxRecord {
            config: SandboxConfig { pids_limit: 100, ..SandboxConfig::default() },
            network: None,
            cgroup: "/troupe/u1".into(),
            created_ms: 0,
        };
        let record = ContainerRecord {
            id: ContainerId("c1".into()),
            config: ContainerConfig::default(),
            image: ImageRecord::default(),
            created_ms: 0,
        };
        (sandbox, record)
    }

    #[test]
    fn limits_become_files_and_only_privileged_containers_may_use_any_device() {
        let (sandbox, mut record) = records();
        record.config.resources.cpu_request_milli = 250;
        record.config.resources.cpu_limit_milli = 500;
        record.config.resources.memory_limit_bytes = 4096;
        let told = |record: &ContainerRecord, swap| -> Vec<String> {
            let limits = limits(&sandbox, record, swap, true);
            limits.into_iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
        };
        let plain = told(&record, true);
        let expected = [
            "pids.max=100",
            "cpu.shares=256",
            "cpu.cfs_period_us=100000",
            "cpu.cfs_quota_us=50000",
            "memory.limit_in_bytes=4096",
            "memory.memsw.limit_in_bytes=4096",
            "devices.deny=a",
        ];
        assert_eq!(plain[..7], expected);
        assert!(plain[7..].iter().all(|setting| setting.starts_with("devices.allow=")));
        assert_eq!(plain.len(), 7 + DEVICES.len());
        assert!(!told(&record, false).contains(&expected[5].to_owned()));
        record.config.huge_pages = vec![
            crate::runtime::HugePageLimit { page_bytes: 2 << 20, limit_bytes: 4 << 20 },
            crate::runtime::HugePageLimit { page_bytes: 1 << 30, limit_bytes: 0 },
        ];
        let huge: Vec<String> =
            huge_pages(&record).map(|setting| format!("{}={}", setting.file, setting.value)).collect();
        assert_eq!(huge, ["hugetlb.2MB.limit_in_bytes=4194304", "hugetlb.1GB.limit_in_bytes=0"]);
        record.config.security.privileged = true;
        assert_eq!(told(&record, true).last().map(String::as_str), Some(expected[5]));
    }

    #[test]
    fn a_limit_without_its_controller_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = Mounts::from(["cpu", "pids"].map(|name| (name.to_owned(), dir.path().join(name))));
        let path = Path::new("/pod/container");
        make(&mounts, path).unwrap();
        let (sandbox, mut record) = records();
        limit(&mounts, path, &limits(&sandbox, &record, false, false), false).unwrap();
        let set = |file| fs::read_to_string(dir.path().join(file)).unwrap();
        assert_eq!(set("pids/pod/container/pids.max"), "100");
        assert_eq!(set("cpu/pod/container/cpu.shares"), "2");
        record.config.resources.memory_limit_bytes = 1 << 20;
        let error = limit(&mounts, path, &limits(&sandbox, &record, false, false), false).unwrap_err();
        assert!(error.to_string().contains("no cgroup controller \"memory\""), "{error}");
    }

    #[test]
    fn in_a_user_namespace_only_what_is_the_users_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        // That of processes is someone else's, that of cpu cannot be written either.
        let mounts = Mounts::from(["cpu", "memory"].map(|name| (name.to_owned(), dir.path().join(name))));
        let path = Path::new("/pod/container");
        fs::create_dir_all(dir.path().join("memory/pod/container")).unwrap();
        let (sandbox, mut record) = records();
        record.config.resources.memory_limit_bytes = 1 << 20;
        limit(&mounts, path, &limits(&sandbox, &record, false, false), true).unwrap();
        let set = fs::read_to_string(dir.path().join("memory/pod/container/memory.limit_in_bytes")).unwrap();
        assert_eq!(set, (1 << 20).to_string());
    }

    #[test]
    fn processors_are_handed_down_to_groups_that_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = Mounts::from([("cpuset".to_owned(), dir.path().to_path_buf())]);
        for (place, cpus) in [("", "0-3\n"), ("a", "1\n"), ("a/b", "\n"), ("a/b/c", "")] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
            fs::write(dir.path().join(place).join("cpuset.cpus"), cpus).unwrap();
            fs::write(dir.path().join(place).join("cpuset.mems"), "0").unwrap();
        }
        make(&mounts, Path::new("/a/b/c")).unwrap();
        let cpus = |place| fs::read_to_string(dir.path().join(place).join("cpuset.cpus")).unwrap();
        assert_eq!((cpus("").as_str(), cpus("a").as_str()), ("0-3\n", "1\n"));
        assert_eq!((cpus("a/b").as_str(), cpus("a/b/c").as_str()), ("1", "1"));
    }

    #[test]
    fn a_process_finds_its_own_place_in_each_hierarchy() {
        let table = "4:cpu,cpuacct:/kubelet\n3:memory:/a:b\n1:name=systemd:/x\n0::/unified\n";
        for (controller, place) in [("cpuacct", "/kubelet"), ("memory", "/a:b"), ("pids", "/")] {
            assert_eq!(home(table, controller), Path::new(place), "{controller}");
        }
    }

    #[test]
    fn paths_above_and_below_the_hierarchies_show_them() {
        for (path, shown) in [
            ("/", true),
            ("/sys", true),
            ("/sys/fs/cgroup/memory", true),
            ("/sys/fs/bpf", false),
            ("/s", false),
        ] {
            assert_eq!(shows(Path::new(path)), shown, "{path}");
        }
    }
}
