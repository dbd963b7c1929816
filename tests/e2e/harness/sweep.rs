//! Removes whatever a cluster has on the machine, without trusting the program under test.
//!
//! Owns: the knowledge where a native cluster leaves traces: processes in its cgroups, shims, mounts below its data
//! directory, its bridges, its cgroups. All of them carry a tag derived from the data directory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sha2::Digest as _;

/// What a data directory's bridges and cgroups have in their names.
pub fn tag(data: &Path) -> String {
    let digest = sha2::Sha256::digest(data.as_os_str().as_encoded_bytes());
    digest.iter().take(3).map(|byte| format!("{byte:02x}")).collect()
}

/// Every cgroup of a data directory's nodes, in every hierarchy.
pub fn cgroups(data: &Path) -> Vec<PathBuf> {
    let prefix = format!("troupe-{}-", tag(data));
    let entries = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let root = Path::new("/sys/fs/cgroup");
    let mut places = entries(root);
    places.push(root.to_owned());
    places
        .iter()
        .filter(|path| !path.is_symlink())
        .flat_map(|place| entries(place))
        .chain(entries(root))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect()
}

/// Processes in a data directory's cgroups, with the cgroup below the node's: `POD-UID/CONTAINER-ID`.
pub fn processes(data: &Path) -> Vec<(i32, String)> {
    let prefix = format!("/troupe-{}-", tag(data));
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let group = groups.lines().find_map(|line| {
            let path = line.rsplit(':').next()?;
            let below = path.split_once(&prefix)?.1;
            Some(below.split_once('/')?.1.to_owned())
        });
        found.extend(group.map(|group| (pid, group)));
    }
    found
}

/// A data directory's shims, each with the uid of its pod: their standard output is a log in the pod's sandbox.
pub fn shims(data: &Path) -> Vec<(i32, String)> {
    let place = data.join("nodes");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(log) = fs::read_link(entry.path().join("fd/1")) else { continue };
        let is_log = log.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shim.log"));
        if is_log && log.starts_with(&place) {
            let sandbox = log.parent().and_then(Path::file_name);
            found.extend(sandbox.map(|uid| (pid, uid.to_string_lossy().into_owned())));
        }
    }
    found
}

/// Ends every process of a data directory's pods.
pub fn kill_all(data: &Path) {
    repeated(&format!("{}: its processes do not die", data.display()), || {
        let mut pids: Vec<i32> = shims(data).into_iter().map(|(pid, _)| pid).collect();
        pids.extend(processes(data).into_iter().map(|(pid, _)| pid));
        for &pid in &pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        pids.is_empty()
    });
}

/// Ends and removes everything of a data directory, except its files.
pub fn sweep(data: &Path) {
    kill_all(data);
    // One below may be shown once the one above it is gone.
    repeated(&format!("{}: its mounts cannot be removed", data.display()), || {
        for mount in mounts(data).iter().rev() {
            let _ = umount2(mount, MntFlags::MNT_DETACH);
        }
        mounts(data).is_empty()
    });
    repeated(&format!("{}: its bridges cannot be removed", data.display()), || {
        for link in links(data) {
            let _ = Command::new(super::program("ip").unwrap_or_else(|| "ip".into()))
                .args(["link", "delete", &link])
                .output();
        }
        links(data).is_empty()
    });
    // A killed process is out of /proc some scheduler ticks before it is out of its groups.
    repeated(&format!("{}: its cgroups cannot be removed", data.display()), || {
        cgroups(data).iter().for_each(|group| remove_group(group));
        cgroups(data).is_empty()
    });
}

/// Does something until it is done, within a time; says so where it is not.
pub fn repeated(or: &str, mut done: impl FnMut() -> bool) {
    const WITHIN: Duration = Duration::from_secs(20);
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > WITHIN {
            eprintln!("{or}");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Mount points below a directory, in the order in which they were made.
pub fn mounts(data: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(data))
        .collect()
}

/// The data directory's bridges.
pub fn links(data: &Path) -> Vec<String> {
    let prefix = format!("tr-{}-", tag(data));
    let names = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

fn remove_group(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
