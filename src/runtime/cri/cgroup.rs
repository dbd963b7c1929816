//! The end of a pod's cgroup.
//!
//! Owns: removing it from every hierarchy, also those in which a CRI runtime makes groups and we do not (systemd's own
//! on version 1). Making it, with its limits, is the native runtime's. Invariant: only empty groups go.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

/// A killed process leaves its group some scheduler ticks later, so removal is tried for about a second.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Removes the group at `path` with what is below it. Idempotent.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    let dirs: Vec<PathBuf> =
        mounts(&table).map(|mount| mount.join(path.strip_prefix("/").unwrap_or(path))).collect();
    let mut result = Ok(());
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            std::thread::sleep(PAUSE);
        }
        result = dirs.iter().try_for_each(|dir| remove_tree(dir));
        if result.is_ok() {
            break;
        }
    }
    result
}

fn mounts(table: &str) -> impl Iterator<Item = PathBuf> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(path))
    })
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
    fn every_hierarchy_is_found() {
        let table = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                     cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let found: Vec<_> = mounts(table).collect();
        assert_eq!(found, [Path::new("/sys/fs/cgroup/systemd"), Path::new("/sys/fs/cgroup/unified")]);
    }
}
