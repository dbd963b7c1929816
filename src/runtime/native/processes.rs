//! What processes use, one by one: for an ordinary user, whose containers have no cgroups, and where the kernel's cgroups do
//! not count what is read and written (version 1 of late, unless something is throttled).
//!
//! Owns: `/proc/PID`, which processes are a container's, and counters that only grow. A process is a container's if it is in
//! the mount namespace of the first one, or a child of one that is. Its counters hold those of children that it waited for,
//! so nothing counts twice. Limits: what nobody waited for, or an `exec` that has ended, was counted as of the last look;
//! file cache is nobody's. What cannot be read is `None`.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::runtime::{ContainerId, Usage};

/// Linux tells ticks of hundredths of a second, whatever its own clock does.
const NS_PER_TICK: u64 = 10_000_000;

/// A process as the table has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    /// Its mount namespace's name; `None`: not ours to see.
    mounts: Option<PathBuf>,
}

/// All processes at one moment.
pub(super) struct Table(Vec<Process>);

impl Table {
    /// Reads them: two small files each.
    pub(super) fn read() -> Table {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let process = |pid: i32| {
            let parent = stat(pid)?.get(PARENT).copied()?;
            let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            Some(Process { pid, parent: i32::try_from(parent).ok()?, mounts })
        };
        Table(pids.filter_map(process).collect())
    }

    /// Those of the container whose first process this is.
    pub(super) fn of_container(&self, first: i32) -> Vec<i32> {
        let Some(own) = self.0.iter().find(|process| process.pid == first) else { return Vec::new() };
        let same = |process: &&Process| {
            process.pid == first || (own.mounts.is_some() && process.mounts == own.mounts)
        };
        let mut found: HashSet<i32> = self.0.iter().filter(same).map(|process| process.pid).collect();
        // Each turn goes one generation down, and there is an end to them.
        loop {
            let more: Vec<i32> = self
                .0
                .iter()
                .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
                .map(|process| process.pid)
                .collect();
            if more.is_empty() {
                break;
            }
            found.extend(more);
        }
        found.into_iter().collect()
    }
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

/// What these processes use together.
pub(super) fn sum(pids: &[i32]) -> Usage {
    pids.iter().filter_map(|pid| of(*pid)).fold(Usage::default(), |sum, usage| sum.plus(&usage))
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
    let memory = memory(&dir);
    Some(Usage {
        cpu_ns: ticks.map(|ticks| ticks.saturating_mul(NS_PER_TICK)),
        working_set_bytes: memory.map(|(all, _)| all),
        memory_bytes: memory.map(|(all, _)| all),
        rss_bytes: memory.map(|(_, own)| own),
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

/// Sums over processes fall when one ends that nobody waited for; who reads a counter takes that for a new beginning. Here
/// they go on from where they were.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Steady(Mutex<HashMap<ContainerId, Kept>>);

/// What was read last, and what has gone from sight before.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    last: Usage,
    gone: Usage,
}

impl Steady {
    /// Reads, and lets no counter fall.
    pub(in crate::runtime) fn read(&self, id: &ContainerId, read: impl FnOnce() -> Usage) -> Usage {
        // Readings come in order, since each is made under the lock. One insertion is the only change.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = read();
        let mut kept = all.get(id).copied().unwrap_or_default();
        let fell = |last: Option<u64>, now: Option<u64>| Some(last?.saturating_sub(now?));
        let half = |of: Option<(u64, u64)>, first: bool| of.map(|(a, b)| if first { a } else { b });
        let io = [true, false]
            .map(|first| fell(half(kept.last.io_bytes, first), half(now.io_bytes, first)).unwrap_or(0));
        let gone = Usage {
            cpu_ns: fell(kept.last.cpu_ns, now.cpu_ns),
            io_bytes: kept.last.io_bytes.map(|_| (io[0], io[1])),
            ..Usage::default()
        };
        kept.gone = kept.gone.plus(&gone);
        kept.last = Usage {
            cpu_ns: now.cpu_ns.or(kept.last.cpu_ns),
            io_bytes: now.io_bytes.or(kept.last.io_bytes),
            ..now
        };
        all.insert(id.clone(), kept);
        let known = Usage {
            cpu_ns: now.cpu_ns.and(kept.gone.cpu_ns),
            io_bytes: now.io_bytes.and(kept.gone.io_bytes),
            ..Usage::default()
        };
        now.plus(&known)
    }

    /// Forgets all others.
    pub(in crate::runtime) fn keep(&self, known: &HashSet<ContainerId>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| known.contains(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_processes_are_those_in_its_mount_namespace_and_their_children() {
        let process = |pid, parent, mounts: &str| Process {
            pid,
            parent,
            mounts: (!mounts.is_empty()).then(|| mounts.into()),
        };
        let table = Table(vec![
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
        let own = sum(&[i32::try_from(std::process::id()).unwrap()]);
        assert!(own.working_set_bytes.unwrap() > 1 << 20 && own.pids.unwrap() >= 1, "{own:?}");
        assert!(own.rss_bytes <= own.memory_bytes && own.cpu_ns.is_some(), "{own:?}");
        assert_eq!(sum(&[0]), Usage::default());
    }

    #[test]
    fn counters_do_not_fall_when_a_process_ends() {
        let (steady, id) = (Steady::default(), ContainerId("c".into()));
        let used = |cpu_ns, read| Usage {
            cpu_ns: Some(cpu_ns),
            io_bytes: Some((read, 5)),
            pids: Some(2),
            ..Usage::default()
        };
        let told = |usage: Usage| {
            let told = steady.read(&id, || usage);
            assert_eq!(told.pids, usage.pids);
            (told.cpu_ns, told.io_bytes)
        };
        assert_eq!(told(used(100, 10)), (Some(100), Some((10, 5))));
        assert_eq!(told(used(70, 10)), (Some(100), Some((10, 5))), "30 went with somebody");
        assert_eq!(told(used(90, 4)), (Some(120), Some((10, 5))));
        assert_eq!(told(Usage::default()), (None, None), "not known now");
        assert_eq!(told(used(95, 5)), (Some(125), Some((11, 5))));
        steady.keep(&HashSet::new());
        assert_eq!(told(used(7, 1)), (Some(7), Some((1, 5))), "another life");
    }
}
