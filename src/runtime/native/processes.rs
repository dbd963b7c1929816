//! What processes use, one by one: for an ordinary user, whose containers have no cgroups, and where the kernel's cgroups do
//! not count what is read and written (version 1 of late, unless something is throttled).
//!
//! Owns: `/proc/PID`, and which processes are a container's: those in the mount namespace of the first one, and children of
//! such. A process' counters hold those of children that it waited for, so nothing counts twice. Limits: such a sum falls
//! when one ends that nobody waited for, or for a moment (a zombie is in no list); `Steady` keeps that from
//! whoever reads it. File cache is nobody's. What cannot be read is `None`.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use crate::runtime::Usage;

/// Linux tells ticks of hundredths of a second, whatever its own clock does.
const NS_PER_TICK: u64 = 10_000_000;

/// A process as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// Its mount namespace's number; `None`: not ours to see.
    mounts: Option<u64>,
}

/// All processes at one moment, by what they are looked up by.
#[derive(Debug, Default)]
pub(super) struct Table {
    mounts: HashMap<i32, Option<u64>>,
    within: HashMap<u64, Vec<i32>>,
    children: HashMap<i32, Vec<i32>>,
}

impl Table {
    /// Reads them: two small files each.
    pub(super) fn read() -> Table {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Table::of(pids.filter_map(|pid| {
            let parent = stat(pid)?.get(PARENT).copied()?;
            let name = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            let mounts = name.and_then(|name| namespace(name.to_str()?));
            Some(Process { pid, parent: i32::try_from(parent).ok()?, mounts })
        }))
    }

    fn of(all: impl IntoIterator<Item = Process>) -> Table {
        let mut table = Table::default();
        for process in all {
            table.mounts.insert(process.pid, process.mounts);
            table.children.entry(process.parent).or_default().push(process.pid);
            if let Some(mounts) = process.mounts {
                table.within.entry(mounts).or_default().push(process.pid);
            }
        }
        table
    }

    /// Those of the container whose first process this is.
    pub(super) fn of_container(&self, first: i32) -> Vec<i32> {
        let Some(mounts) = self.mounts.get(&first) else { return Vec::new() };
        let same = mounts.and_then(|mounts| self.within.get(&mounts));
        let mut waiting: Vec<i32> = same.cloned().unwrap_or_else(|| vec![first]);
        let mut found = HashSet::new();
        while let Some(pid) = waiting.pop() {
            if found.insert(pid) {
                waiting.extend(self.children.get(&pid).into_iter().flatten());
            }
        }
        found.into_iter().collect()
    }
}

/// The number in `mnt:[4026531840]`.
fn namespace(name: &str) -> Option<u64> {
    name.strip_prefix("mnt:[")?.strip_suffix(']')?.parse().ok()
}

const PARENT: usize = 0;
/// Its own in programs and in the kernel, and the same of children that it waited for.
const TIMES: [usize; 4] = [10, 11, 12, 13];
const THREADS: usize = 16;

/// The numbers of `/proc/PID/stat` from the parent on; `None` when it is gone.
fn stat(pid: i32) -> Option<Vec<u64>> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Vec<u64>> {
    // The name may hold anything, parentheses and blanks too. Some numbers are negative: of no use here.
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_ascii_whitespace().skip(1).map(|word| word.parse().unwrap_or(0)).collect())
}

/// What these processes use together, but for memory.
pub(super) fn sum(pids: &[i32]) -> Usage {
    pids.iter().filter_map(|pid| of(*pid)).fold(Usage::default(), |sum, usage| sum.plus(&usage))
}

/// Bytes of memory that these processes use together, and what of that is no file's. The kernel walks through all that they
/// have mapped for it.
pub(super) fn sum_memory(pids: &[i32]) -> Option<(u64, u64)> {
    let all = pids.iter().filter_map(|pid| memory(Path::new(&format!("/proc/{pid}"))));
    all.reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)))
}

/// What they have read and written together, and nothing else.
pub(super) fn sum_io(pids: &[i32]) -> Usage {
    let all = pids.iter().filter_map(|pid| io(Path::new(&format!("/proc/{pid}"))));
    let io_bytes = all.reduce(|a, b| (a.0.saturating_add(b.0), a.1.saturating_add(b.1)));
    Usage { io_bytes, ..Usage::default() }
}

fn of(pid: i32) -> Option<Usage> {
    let numbers = stat(pid)?;
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let ticks: Option<u64> = TIMES.iter().map(|at| numbers.get(*at).copied()).sum();
    Some(Usage {
        cpu_ns: ticks.map(|ticks| ticks.saturating_mul(NS_PER_TICK)),
        io_bytes: io(&dir),
        pids: numbers.get(THREADS).copied(),
        ..Usage::default()
    })
}

/// Its memory, and what of that is no file's. What several share is told of each in part, so that it sums up.
fn memory(dir: &Path) -> Option<(u64, u64)> {
    let kib = |text: &str, name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        Some(rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
    };
    let shared = fs::read_to_string(dir.join("smaps_rollup")).ok().and_then(|text| {
        Some((kib(&text, "Pss:")?, kib(&text, "Pss_Anon:").or_else(|| kib(&text, "Anonymous:"))?))
    });
    // What is ending, and the kernel's own, have none of the one or of both.
    shared.or_else(|| {
        let text = fs::read_to_string(dir.join("status")).ok()?;
        Some((kib(&text, "VmRSS:")?, kib(&text, "RssAnon:")?))
    })
}

/// Bytes that came from disks and were written for them: lines `read_bytes: 4096`.
fn io(dir: &Path) -> Option<(u64, u64)> {
    let text = fs::read_to_string(dir.join("io")).ok()?;
    let value =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    Some((value("read_bytes:")?, value("write_bytes:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_processes_are_those_in_its_mount_namespace_and_their_children() {
        let process = |pid, parent, mounts: &str| Process { pid, parent, mounts: namespace(mounts) };
        let table = Table::of([
            process(1, 0, "mnt:[1]"),
            process(10, 1, "mnt:[2]"),
            process(11, 10, "mnt:[2]"),
            process(12, 11, "mnt:[3]"), // One that unshared,
            process(13, 12, ""),        // and one that became somebody else.
            process(14, 1, "mnt:[2]"),  // An exec.
            process(20, 1, "mnt:[4]"),
            process(30, 1, ""),
            process(31, 30, ""),
        ]);
        let of = |first| {
            let mut found = table.of_container(first);
            found.sort_unstable();
            found
        };
        assert_eq!((of(10), of(20)), (vec![10, 11, 12, 13, 14], vec![20]));
        assert_eq!((of(30), of(99)), (vec![30, 31], vec![]), "what is not ours to see is like nobody else's");
    }

    #[test]
    fn a_process_is_read_from_its_files_and_a_name_cannot_lie() {
        let text = "7 (a) S 99 (b) S 5 7 7 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 6 0 9 1 2";
        let numbers = parse_stat(text).unwrap();
        assert_eq!(numbers[PARENT], 5);
        assert_eq!(TIMES.map(|at| numbers[at]), [100, 20, 3, 4]);
        assert_eq!(numbers[THREADS], 6);
        let pid = i32::try_from(std::process::id()).unwrap();
        let (own, (all, anonymous)) = (sum(&[pid]), sum_memory(&[pid]).unwrap());
        assert!(own.cpu_ns.is_some() && own.pids.unwrap() >= 1, "{own:?}");
        assert!(all > 1 << 20 && anonymous <= all, "{all} {anonymous}");
        assert_eq!((sum(&[0]), sum_memory(&[0])), (Usage::default(), None));
    }
}
