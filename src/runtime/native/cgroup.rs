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
    sys::{
        signal::{Signal, kill},
        statfs::{CGROUP_SUPER_MAGIC, statfs},
    },
    unistd::{AccessFlags, Pid, access},
};

use super::{
    state::{ContainerRecord, SandboxRecord},
    sys, userns, v1,
};
use crate::runtime::{
    SandboxConfig,
    limits::{cpu_shares, cpu_weight},
};

/// The hierarchies of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::runtime) enum Hierarchies {
    /// One mount a controller, by its name.
    V1(BTreeMap<String, PathBuf>),
    V2(PathBuf),
    Missing,
}

/// Where both versions are mounted by convention, and where libcontainer looks.
pub(super) const CGROUP_ROOT: &str = "/sys/fs/cgroup";

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
    /// Reads the mount table. In a user namespace only what its root may write to counts.
    pub(in crate::runtime) fn detect() -> Hierarchies {
        let found = Self::read();
        if !userns::inside() {
            return found;
        }
        let ours = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        match found {
            Hierarchies::V1(mut mounts) => {
                mounts.retain(|_, path| {
                    // What hides them is no cgroup.
                    let real =
                        statfs(path.as_path()).is_ok_and(|s| s.filesystem_type() == CGROUP_SUPER_MAGIC);
                    real && ours(path)
                });
                if mounts.is_empty() { Hierarchies::Missing } else { Hierarchies::V1(mounts) }
            }
            Hierarchies::V2(root) if ours(&root) => Hierarchies::V2(root),
            Hierarchies::V2(_) | Hierarchies::Missing => Hierarchies::Missing,
        }
    }

    fn read() -> Hierarchies {
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

    pub(in crate::runtime) fn unified(&self) -> bool {
        matches!(self, Hierarchies::V2(_))
    }

    /// There are none that this process may use: nothing is limited and nothing is shown to containers.
    pub(super) fn missing(&self) -> bool {
        *self == Hierarchies::Missing
    }

    /// Has the kernel ready to move processes between groups where libcontainer does that, on version 2.
    ///
    /// The first move after a while waits for an RCU grace period, some 10 ms, until every reader of a per-cpu lock has
    /// heard of it; moves that follow soon do not. A move of this process to where it is already changes nothing, and
    /// has that wait over by the time when a container is to be moved.
    pub(super) fn warm(&self) {
        let Hierarchies::V2(root) = self else { return };
        let Ok(memberships) = fs::read_to_string("/proc/self/cgroup") else { return };
        let place = memberships.lines().find_map(|line| line.strip_prefix("0::/"));
        if let Some(place) = place {
            // Only time is lost when this fails.
            let _ = fs::write(root.join(place).join("cgroup.procs"), std::process::id().to_string());
        }
    }

    /// Makes a container's group at `path`; on version 2 libcontainer does.
    pub(super) fn make(&self, path: &Path) -> io::Result<()> {
        self.first().map_or(Ok(()), |mounts| v1::make(mounts, path))
    }

    /// Goes into a container's group, see [`v1::enter`]; on version 2 libcontainer moves its process itself.
    pub(super) fn enter(&self, path: &Path) -> io::Result<Option<v1::Stay<'_>>> {
        self.first().map(|mounts| v1::enter(mounts, path)).transpose()
    }

    /// A container's limits as files of its group; none on version 2, where libcontainer sets them.
    pub(super) fn limits(&self, sandbox: &SandboxRecord, record: &ContainerRecord) -> Vec<v1::Setting> {
        let Some(mounts) = self.first() else { return Vec::new() };
        let mut settings = v1::limits(sandbox, record, self.swap_limit(), self.guard_devices());
        if mounts.contains_key(HUGE_PAGES) {
            settings.extend(v1::huge_pages(record));
        }
        settings
    }

    /// Huge pages can be limited on version 2.
    pub(super) fn huge_page_limit(&self) -> bool {
        let Hierarchies::V2(root) = self else { return false };
        let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        controllers.split_whitespace().any(|name| name == HUGE_PAGES)
    }

    /// Sets them.
    pub(super) fn limit(&self, path: &Path, settings: &[v1::Setting]) -> io::Result<()> {
        self.first().map_or(Ok(()), |mounts| v1::limit(mounts, path, settings, userns::inside()))
    }

    /// Hides the hierarchies from libcgroups, in a mount namespace of this process' own; see [`v1`]. What it cannot hide
    /// libcgroups uses as well, which is slower.
    pub(super) fn put_aside(&mut self, aside: &Path) {
        let Some(mounts) = self.first() else { return };
        match v1::put_aside(mounts, aside) {
            Ok(moved) => *self = Hierarchies::V1(moved),
            Err(error) => {
                tracing::error!(%error, "cgroups stay where they are; containers start more slowly")
            }
        }
    }

    /// They are where libcgroups does not find them.
    pub(super) fn are_aside(&self) -> bool {
        self.first().is_some_and(v1::are_aside)
    }

    /// Shows them at their usual place again if that is in one of these paths. Whether it did: libcontainer finds them from then
    /// on, so that each container's spec has to name its own group.
    pub(super) fn put_back_for<'a>(
        &mut self,
        mut paths: impl Iterator<Item = &'a Path>,
        aside: &Path,
    ) -> io::Result<bool> {
        let back = self.are_aside() && paths.any(v1::shows);
        if back {
            v1::put_back(aside)?;
            *self = Hierarchies::detect();
        }
        Ok(back)
    }

    fn first(&self) -> Option<&v1::Mounts> {
        match self {
            Hierarchies::V1(mounts) => Some(mounts),
            Hierarchies::V2(_) | Hierarchies::Missing => None,
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

    /// Has `dir` look like a container's own `/sys/fs/cgroup`: the groups at `path`, which are there, of those controllers
    /// whose files programs read to learn their limits, by the controllers' names. Does nothing on version 2, where a namespace does
    /// it. A mount of all of them by the runtime library costs a hundred system calls each.
    pub(super) fn show(&self, path: &Path, dir: &Path, read_only: bool) -> io::Result<()> {
        let Hierarchies::V1(mounts) = self else { return Ok(()) };
        fs::create_dir_all(dir)?;
        // Of its own, so that all of them go with it: each mount that is taken off alone waits for the whole machine.
        mount(Some(dir), dir, NONE, MsFlags::MS_BIND, NONE)?;
        let mut shown = BTreeSet::new();
        for (controller, root) in mounts.iter().filter(|(name, _)| SHOWN.contains(&name.as_str())) {
            let name = root.file_name().unwrap_or_default();
            if shown.insert(name) {
                let (group, at) = (root.join(path.strip_prefix("/").unwrap_or(path)), dir.join(name));
                fs::create_dir_all(&at)?;
                mount(Some(&group), &at, NONE, MsFlags::MS_BIND, NONE)?;
                if read_only {
                    let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
                    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                    mount(NONE, &at, NONE, again | flags, NONE)?;
                }
            }
            // Controllers that are mounted together, or by another name.
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
        if self.first().is_some() {
            // Nothing is there when it was never shown.
            let _ = umount2(dir, MntFlags::MNT_DETACH);
        }
    }

    /// Makes the pod's group and sets its weight and its limits. The group of all pods weighs as much as the machine has
    /// cores, so that pods together do not give way to what else runs on the node, as in Kubernetes.
    pub(in crate::runtime) fn limit_pod(&self, path: &Path, config: &SandboxConfig) -> io::Result<()> {
        let all = path.parent().filter(|parent| parent.parent().is_some());
        let cores = sys::cores();
        let shares = [(all, cpu_shares(cores * 1000)), (Some(path), cpu_shares(config.cpu_request_milli))];
        let shares = shares.into_iter().filter_map(|(path, shares)| Some((path?, shares)));
        let (memory, pids) = (config.memory_limit_bytes, config.pids_limit);
        match self {
            Hierarchies::V1(mounts) => {
                let inside = |path: &Path| path.strip_prefix("/").unwrap_or(path).to_owned();
                for (path, shares) in shares {
                    if let Some(root) = mounts.get("cpu") {
                        let dir = root.join(inside(path));
                        fs::create_dir_all(&dir)?;
                        fs::write(dir.join("cpu.shares"), shares.to_string())?;
                    }
                }
                for (controller, file, value) in
                    [("memory", "memory.limit_in_bytes", memory), ("pids", "pids.max", pids)]
                {
                    if let (Some(root), true) = (mounts.get(controller), value > 0) {
                        let dir = root.join(inside(path));
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
                for (path, shares) in shares {
                    // Without the controller all are alike, which is no reason to run nothing.
                    let file = root.join(path.strip_prefix("/").unwrap_or(path)).join("cpu.weight");
                    let _ = fs::write(file, cpu_weight(shares).to_string());
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
/// The controller of huge pages.
const HUGE_PAGES: &str = "hugetlb";

/// The group that containers are said to be in where there are [none](Hierarchies::missing).
pub(super) const NONE_GROUP: &str = "troupe-none";

/// In a user namespace, where cgroups of version 1 are never the user's: puts something into their place that the
/// runtime library can write to. Of version 2 it knows to leave them alone.
pub(super) fn hide_from_library() -> io::Result<()> {
    if Hierarchies::detect() != Hierarchies::Missing {
        return Ok(());
    }
    let Hierarchies::V1(mounts) = Hierarchies::read() else { return Ok(()) };
    let names: BTreeSet<PathBuf> =
        mounts.values().filter_map(|path| Some(path.strip_prefix(CGROUP_ROOT).ok()?.to_owned())).collect();
    userns::fake_cgroups(Path::new(CGROUP_ROOT), names)
}

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

    /// Takes the limits of processor time from the group and those below it, which are to end: what is throttled cannot die,
    /// and a fork bomb is deep enough in debt for minutes. Where there is no such limit nothing happens.
    pub(super) fn unthrottle(&self) {
        let Some((dir, unified)) = self.of("cpu") else { return };
        let (file, none) = if unified { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
        walk(dir, &mut |dir| {
            let quota = dir.join(file);
            if quota.exists()
                && let Err(error) = fs::write(&quota, none)
            {
                tracing::debug!(file = %quota.display(), %error, "what is to end stays throttled");
            }
        });
    }

    /// SIGKILL to all of [`processes`](Self::processes), which may run freely to their end; returns how many there were.
    pub(super) fn kill(&self) -> usize {
        self.unthrottle();
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
    fn what_is_to_end_is_throttled_no_more_in_either_version() {
        for (unified, file, limited, free) in
            [(true, "cpu.max", "20000 100000", "max"), (false, "cpu.cfs_quota_us", "20000", "-1")]
        {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("pod/container");
            fs::create_dir_all(place.join("below")).unwrap();
            for limited_dir in [place.parent().unwrap(), &place, &place.join("below")] {
                fs::write(limited_dir.join(file), limited).unwrap();
            }
            let hierarchies = match unified {
                true => Hierarchies::V2(dir.path().into()),
                false => Hierarchies::V1(BTreeMap::from([("cpu".to_owned(), dir.path().into())])),
            };
            hierarchies.group(Path::new("/pod/container")).kill();
            let now = |path: &str| fs::read_to_string(dir.path().join(path).join(file)).unwrap();
            assert_eq!(
                ["pod", "pod/container", "pod/container/below"].map(now),
                [limited, free, free],
                "its neighbours stay limited"
            );
            // Without the controller, and when it is gone.
            fs::remove_dir_all(&place).unwrap();
            hierarchies.group(Path::new("/pod/container")).kill();
            assert!(!place.exists());
        }
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
