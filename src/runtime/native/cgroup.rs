//! Control groups beyond what libcontainer does for a container: the pod's own limits, out-of-memory kills, killing
//! what is left, removal.
//!
//! Owns: where hierarchies are mounted and the paths in them. Both versions: a hybrid machine counts as version 1, as
//! in libcontainer. Invariant: a directory is removed only after everything in it was killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hierarchies {
    /// One mount a controller, by its name.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
    Missing,
}

/// Where both versions are mounted by convention, and where libcontainer looks.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// Controllers whose directories libcontainer makes on version 1.
const V1_CONTROLLERS: &[&str] = &[
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Controllers of version 1 that a container sees.
const SHOWN: &[&str] = &["blkio", "cpu", "cpuacct", "cpuset", "memory", "pids"];
const NONE: Option<&str> = None;

impl Hierarchies {
    /// Reads the mount table.
    pub(super) fn detect() -> Hierarchies {
        fs::read_to_string("/proc/self/mounts").map_or(Hierarchies::Missing, |table| Self::parse(&table))
    }

    fn parse(table: &str) -> Hierarchies {
        let mut v1 = BTreeMap::new();
        for line in table.lines() {
            let mut fields = line.split(' ').skip(1);
            let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            match kind {
                "cgroup2" if path == CGROUP_ROOT => return Hierarchies::V2(path.into()),
                "cgroup" if path.starts_with(CGROUP_ROOT) => {
                    for controller in options.split(',').filter(|option| V1_CONTROLLERS.contains(option)) {
                        v1.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(path));
                    }
                }
                _ => {}
            }
        }
        if v1.is_empty() { Hierarchies::Missing } else { Hierarchies::V1(v1) }
    }

    pub(super) fn unified(&self) -> bool {
        matches!(self, Hierarchies::V2(_))
    }

    /// Has the kernel ready to move processes between groups.
    ///
    /// The first move after a while waits for an RCU grace period, some 10 ms, until every reader of a per-cpu lock has
    /// heard of it; moves that follow soon do not. A move of this process to where it is already changes nothing, and
    /// has that wait over by the time when a container is to be moved.
    pub(super) fn warm(&self) {
        let Ok(memberships) = fs::read_to_string("/proc/self/cgroup") else { return };
        let place = memberships.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, Path::new(fields.next()?));
            match self {
                Hierarchies::V1(mounts) => {
                    let mount = mounts.get(controllers.split(',').next()?)?;
                    Some(mount.join(path.strip_prefix("/").ok()?))
                }
                Hierarchies::V2(root) if controllers.is_empty() => {
                    Some(root.join(path.strip_prefix("/").ok()?))
                }
                Hierarchies::V2(_) | Hierarchies::Missing => None,
            }
        });
        if let Some(place) = place {
            // Only time is lost when this fails.
            let _ = fs::write(place.join("cgroup.procs"), std::process::id().to_string());
        }
    }

    /// A cgroup enforces which device nodes can be opened.
    pub(super) fn guard_devices(&self) -> bool {
        matches!(self, Hierarchies::V1(mounts) if mounts.contains_key("devices"))
    }

    /// Swap can be limited beside memory.
    pub(super) fn swap_limit(&self) -> bool {
        match self {
            Hierarchies::V1(mounts) => {
                mounts.get("memory").is_some_and(|path| path.join("memory.memsw.limit_in_bytes").exists())
            }
            Hierarchies::V2(root) => fs::read_dir(root).is_ok_and(|entries| {
                entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists())
            }),
            Hierarchies::Missing => false,
        }
    }

    /// The group at `path` (absolute, from each hierarchy's root).
    pub(super) fn group(&self, path: &Path) -> Cgroup {
        let inside = path.strip_prefix("/").unwrap_or(path);
        let mounts = match self {
            Hierarchies::V1(mounts) => mounts.clone(),
            Hierarchies::V2(root) => BTreeMap::from([(UNIFIED.to_owned(), root.clone())]),
            Hierarchies::Missing => BTreeMap::new(),
        };
        Cgroup { dirs: mounts.into_iter().map(|(name, root)| (name, root.join(inside))).collect() }
    }

    /// Makes the group at `path` where [`show`](Self::show) looks for it.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        let Hierarchies::V1(mounts) = self else { return Ok(()) };
        let inside = path.strip_prefix("/").unwrap_or(path);
        let mut shown = mounts.iter().filter(|(name, _)| SHOWN.contains(&name.as_str()));
        shown.try_for_each(|(_, root)| fs::create_dir_all(root.join(inside)))
    }

    /// Has `dir` look like a container's own `/sys/fs/cgroup`: the groups at `path` of those controllers whose files
    /// programs read to learn their limits, by the names of the node. Does nothing on version 2, where a namespace does
    /// it. A mount of all of them by the runtime library costs a hundred system calls each.
    pub(super) fn show(&self, path: &Path, dir: &Path, read_only: bool) -> io::Result<()> {
        let Hierarchies::V1(mounts) = self else { return Ok(()) };
        fs::create_dir_all(dir)?;
        let mut shown = BTreeSet::new();
        for (controller, root) in mounts.iter().filter(|(name, _)| SHOWN.contains(&name.as_str())) {
            let name = root.file_name().unwrap_or_default();
            if shown.insert(name) {
                let (group, at) = (root.join(path.strip_prefix("/").unwrap_or(path)), dir.join(name));
                fs::create_dir_all(&group)?;
                fs::create_dir_all(&at)?;
                mount(Some(&group), &at, NONE, MsFlags::MS_BIND, NONE)?;
                if read_only {
                    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                    mount(NONE, &at, NONE, again | flags, NONE)?;
                }
            }
            // Controllers that are mounted together.
            if name != controller.as_str() {
                // After a start that failed it is there already.
                let linked = symlink(name, dir.join(controller));
                linked.or_else(|error| {
                    if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) }
                })?;
            }
        }
        Ok(())
    }

    /// Takes off what [`show`](Self::show) mounted; containers keep their own copies.
    pub(super) fn hide(&self, dir: &Path) {
        let Hierarchies::V1(mounts) = self else { return };
        for root in mounts.values() {
            // What was not shown is no mount.
            let _ = umount2(&dir.join(root.file_name().unwrap_or_default()), MntFlags::MNT_DETACH);
        }
    }

    /// Makes the pod's group and sets its limits; 0 = none.
    pub(super) fn limit_pod(&self, path: &Path, memory: i64, pids: i64) -> io::Result<()> {
        match self {
            Hierarchies::V1(mounts) => {
                let inside = path.strip_prefix("/").unwrap_or(path);
                for (controller, file, value) in
                    [("memory", "memory.limit_in_bytes", memory), ("pids", "pids.max", pids)]
                {
                    if let (Some(root), true) = (mounts.get(controller), value > 0) {
                        let dir = root.join(inside);
                        fs::create_dir_all(&dir)?;
                        fs::write(dir.join(file), value.to_string())?;
                    }
                }
            }
            Hierarchies::V2(root) => {
                let mut dir = root.clone();
                for component in path.strip_prefix("/").unwrap_or(path) {
                    // A controller that the parent does not have cannot be handed on; limits then fail below.
                    for controller in ["+memory", "+pids", "+cpu"] {
                        let _ = fs::write(dir.join("cgroup.subtree_control"), controller);
                    }
                    dir.push(component);
                    fs::create_dir_all(&dir)?;
                }
                for (file, value) in [("memory.max", memory), ("pids.max", pids)] {
                    if value > 0 {
                        fs::write(dir.join(file), value.to_string())?;
                    }
                }
            }
            Hierarchies::Missing => {}
        }
        Ok(())
    }
}

const UNIFIED: &str = "";

/// One group: its directory in each hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Cgroup {
    dirs: BTreeMap<String, PathBuf>,
}

impl Cgroup {
    /// The group's directory for a controller, and whether it is one of version 2.
    pub(super) fn of(&self, controller: &str) -> Option<(&Path, bool)> {
        let own = self.dirs.get(controller).map(|dir| (dir.as_path(), false));
        own.or_else(|| self.dirs.get(UNIFIED).map(|dir| (dir.as_path(), true)))
    }

    /// How many processes the out-of-memory killer took in this group.
    pub(super) fn oom_kills(&self) -> u64 {
        let (dir, file) = match (self.dirs.get("memory"), self.dirs.get(UNIFIED)) {
            (Some(dir), _) => (dir, "memory.oom_control"),
            (None, Some(dir)) => (dir, "memory.events"),
            (None, None) => return 0,
        };
        let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or_default()
    }

    /// Processes in the group and those below it.
    pub(super) fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for dir in self.dirs.values() {
            walk(dir, &mut |dir| {
                let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
                found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 1));
            });
        }
        found.remove(&(std::process::id() as i32));
        found
    }

    /// SIGKILL to all of [`processes`](Self::processes); returns how many there were.
    pub(super) fn kill(&self) -> usize {
        let processes = self.processes();
        for &pid in &processes {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        processes.len()
    }

    /// Kills what is in the group and removes it with all below it. Idempotent.
    pub(super) fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for attempt in 0..REMOVE_ATTEMPTS {
            if attempt > 0 {
                self.kill();
                std::thread::sleep(REMOVE_PAUSE);
            }
            result = self.dirs.values().try_for_each(|dir| remove_tree(dir));
            if result.is_ok() {
                break;
            }
        }
        result
    }
}

/// A killed process leaves its group some scheduler ticks later, so removal is tried for about a second.
const REMOVE_ATTEMPTS: u32 = 200;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// Calls `visit` for `dir` and every group below it; none if it is not there.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    visit(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), visit);
        }
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_tables_tell_the_version() {
        let v1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                  cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                  cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                  cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let Hierarchies::V1(mounts) = Hierarchies::parse(v1) else { panic!("not version 1") };
        assert_eq!(mounts.keys().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(Hierarchies::parse(v2), Hierarchies::V2(CGROUP_ROOT.into()));
        assert_eq!(Hierarchies::parse("proc /proc proc rw 0 0\n"), Hierarchies::Missing);
    }

    #[test]
    fn kills_are_counted_in_either_version_and_removal_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("pod/container");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("memory.events"), "low 0\noom 3\noom_kill 2\n").unwrap();
        let hierarchies = Hierarchies::V2(dir.path().into());
        assert_eq!(hierarchies.group(Path::new("/pod/container")).oom_kills(), 2);
        fs::remove_file(group.join("memory.events")).unwrap();
        let pod = hierarchies.group(Path::new("/pod"));
        pod.remove().unwrap();
        assert!(!group.exists() && !dir.path().join("pod").exists());
        pod.remove().unwrap();
    }
}
