//! What pods and containers use: read from their cgroups (else from their processes), network devices and writable layers.
//!
//! Owns: which file of which cgroup version says what. Invariant: what cannot be read is `None`, never a guess. Reading
//! costs a few small files a container; how large a writable layer is takes a walk through it, so that is remembered, and
//! not walked again before a hundred times as long has passed as the walk took.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    cgroup::Hierarchies,
    pod::Pod,
    processes::{self, Table},
    steady::Steady,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, ContainerState, SandboxStats, Usage,
        block::{Devices, below},
        devices,
        disk::tree,
    },
};

/// How old a writable layer's size may be: the kubelet's own housekeeping looks once a minute.
const LEAST_AGE: Duration = Duration::from_secs(30);
/// A walk takes at most this share of a core: one hundredth.
const SHARE: u32 = 100;
/// A look at the memory of containers without cgroups takes less: it is taken all the time, for `top`.
const SHARE_OF_MEMORY: u32 = 400;

/// Sizes of writable layers as last seen, memory of containers without cgroups, and counters as they were told.
#[derive(Debug, Default)]
pub(super) struct Layers {
    sizes: Mutex<HashMap<ContainerId, Seen>>,
    memory: Mutex<Memory>,
    steady: Steady,
}

/// What processes share is told of each in part, which the kernel has to walk through all of their memory for: not again
/// before [`SHARE_OF_MEMORY`] times as long as all of them took.
#[derive(Debug, Default)]
struct Memory {
    of: HashMap<ContainerId, (u64, u64)>,
    again: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    size: (u64, u64),
    again: Instant,
}

impl Layers {
    /// Its bytes, and how many files.
    fn size(&self, id: &ContainerId, dir: &Path) -> (u64, u64) {
        // Each change is one call on the map.
        let lock = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if let Some(seen) = lock().get(id).filter(|seen| seen.again > begun) {
            return seen.size;
        }
        let size = tree(dir);
        let again = Instant::now() + LEAST_AGE.max(begun.elapsed() * SHARE);
        lock().insert(id.clone(), Seen { size, again });
        size
    }

    fn keep(&self, known: &HashSet<ContainerId>, pods: &HashSet<Uid>) {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| known.contains(id));
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).of.retain(|id, _| known.contains(id));
        self.steady.keep(known, pods);
    }
}

impl Memory {
    /// Of a container's processes, and how long it took to find out.
    fn of(&mut self, id: &ContainerId, is_due: bool, processes: &[i32]) -> (Option<(u64, u64)>, Duration) {
        if let Some(known) = self.of.get(id).filter(|_| !is_due) {
            return (Some(*known), Duration::ZERO);
        }
        let begun = Instant::now();
        let memory = processes::sum_memory(processes);
        match memory {
            Some(memory) => self.of.insert(id.clone(), memory),
            None => self.of.remove(id),
        };
        (memory, begun.elapsed())
    }
}

/// What containers without cgroups use: read off their processes.
struct ByProcesses<'a> {
    /// Read when the first container is met: with none there is nothing to look for.
    table: Option<Table>,
    memory: MutexGuard<'a, Memory>,
    is_due: bool,
    took: Duration,
}

impl<'a> ByProcesses<'a> {
    fn new(layers: &'a Layers) -> ByProcesses<'a> {
        let memory = layers.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = memory.again.is_none_or(|again| again <= Instant::now());
        ByProcesses { table: None, memory, is_due, took: Duration::ZERO }
    }

    fn read(&mut self, id: &ContainerId, first: i32) -> Usage {
        let processes = self.table.get_or_insert_with(Table::read).of_container(first);
        let (memory, took) = self.memory.of(id, self.is_due, &processes);
        self.took += took;
        Usage {
            working_set_bytes: memory.map(|(all, _)| all),
            memory_bytes: memory.map(|(all, _)| all),
            rss_bytes: memory.map(|(_, own)| own),
            ..processes::sum(&processes)
        }
    }

    fn end(mut self) {
        if self.is_due {
            self.memory.again = Some(Instant::now() + self.took * SHARE_OF_MEMORY);
        }
    }
}

/// Everything that runs in these pods. Blocks.
pub(super) fn of_pods(
    hierarchies: &Hierarchies,
    layers: &Layers,
    pods: &[std::sync::Arc<Pod>],
) -> Vec<SandboxStats> {
    let (mut known, mut here) = (HashSet::new(), HashSet::new());
    let mut all = Vec::new();
    let mut processes = matches!(hierarchies, Hierarchies::Missing).then(|| ByProcesses::new(layers));
    for pod in pods.iter().filter(|pod| pod.ready()) {
        let group = &pod.record.cgroup;
        let mut containers = Vec::new();
        for status in pod.container_statuses() {
            known.insert(status.id.clone());
            if status.state == ContainerState::Running {
                let read = match (&mut processes, status.pid) {
                    // Without cgroups, the processes themselves.
                    (Some(processes), Some(pid)) => processes.read(&status.id, pid),
                    _ => with_io(hierarchies, &group.join(&status.id.0)),
                };
                let mut usage = layers.steady.container(&status.id, read);
                let layer = pod.dir.container(&status.id).writable().join("upper");
                let (bytes, inodes) = layers.size(&status.id, &layer);
                (usage.writable_bytes, usage.writable_inodes) = (Some(bytes), Some(inodes));
                containers.push((status.id, usage));
            }
        }
        let mut total = read(hierarchies, group);
        // Without a group of its own, the pod is its containers.
        let sum = |of: fn(&Usage) -> Option<u64>| containers.iter().map(|(_, usage)| of(usage)).sum();
        total.working_set_bytes = total.working_set_bytes.or_else(|| sum(|usage| usage.working_set_bytes));
        total.memory_bytes = total.memory_bytes.or_else(|| sum(|usage| usage.memory_bytes));
        total.rss_bytes = total.rss_bytes.or_else(|| sum(|usage| usage.rss_bytes));
        total.pids = total.pids.or_else(|| sum(|usage| usage.pids));
        total.writable_bytes = sum(|usage| usage.writable_bytes);
        let total = total.counted(layers.steady.pod(&pod.uid, &total, &containers));
        let network = pod.network_namespace().ok().flatten().and_then(|namespace| traffic(&namespace));
        here.insert(pod.uid.clone());
        all.push(SandboxStats { uid: pod.uid.clone(), total, network, containers });
    }
    if let Some(processes) = processes {
        processes.end();
    }
    layers.keep(&known, &here);
    all
}

/// What the processes in a group use, and those in groups below it.
fn read(hierarchies: &Hierarchies, group: &Path) -> Usage {
    let inside = group.strip_prefix("/").unwrap_or(group);
    match hierarchies {
        Hierarchies::V1(mounts) => {
            let dir = |controller: &str| mounts.get(controller).map(|root| root.join(inside));
            let memory = dir("memory");
            let memory_bytes = number(memory.as_ref(), "memory.usage_in_bytes");
            Usage {
                cpu_ns: number(dir("cpuacct").as_ref(), "cpuacct.usage"),
                working_set_bytes: working_set(memory.as_ref(), memory_bytes, "total_inactive_file"),
                memory_bytes,
                rss_bytes: text(memory.as_ref(), "memory.stat").and_then(|text| value(&text, "total_rss")),
                pids: number(dir("pids").as_ref(), "pids.current"),
                ..io(hierarchies, group)
            }
        }
        Hierarchies::V2(root) => {
            let dir = Some(root.join(inside));
            let memory_bytes = number(dir.as_ref(), "memory.current");
            Usage {
                cpu_ns: text(dir.as_ref(), "cpu.stat")
                    .and_then(|text| value(&text, "usage_usec"))
                    .map(|us| us.saturating_mul(1000)),
                working_set_bytes: working_set(dir.as_ref(), memory_bytes, "inactive_file"),
                memory_bytes,
                rss_bytes: text(dir.as_ref(), "memory.stat").and_then(|text| value(&text, "anon")),
                pids: number(dir.as_ref(), "pids.current"),
                ..io(hierarchies, group)
            }
        }
        Hierarchies::Missing => Usage::default(),
    }
}

/// What a container's group uses. Where the kernel does not count there what is read and written, its processes' counters.
fn with_io(hierarchies: &Hierarchies, group: &Path) -> Usage {
    let usage = read(hierarchies, group);
    if usage.io_bytes.is_some() {
        return usage;
    }
    Usage { io_bytes: io_of_processes(hierarchies, group), ..usage }
}

/// What a container's processes have read from and written to disks, and nothing else.
pub(in crate::runtime) fn container_io(hierarchies: &Hierarchies, group: &Path) -> Usage {
    let told = io(hierarchies, group);
    let io_bytes = told.io_bytes.or_else(|| io_of_processes(hierarchies, group));
    Usage { io_bytes, ..told }
}

fn io_of_processes(hierarchies: &Hierarchies, group: &Path) -> Option<(u64, u64)> {
    let inside = group.strip_prefix("/").unwrap_or(group);
    let root = match hierarchies {
        Hierarchies::V1(mounts) => mounts.get("pids").or_else(|| mounts.values().next()),
        Hierarchies::V2(root) => Some(root),
        Hierarchies::Missing => None,
    };
    processes::sum_io(&pids(&root?.join(inside))).io_bytes
}

/// The processes in a group and in those below it.
fn pids(group: &Path) -> Vec<i32> {
    let own = text(Some(&group.to_path_buf()), "cgroup.procs").unwrap_or_default();
    let mut all: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(pids(&entry.path()));
        }
    }
    all
}

/// What the processes in a group have read from and written to disks, and nothing else.
pub(in crate::runtime) fn io(hierarchies: &Hierarchies, group: &Path) -> Usage {
    let inside = group.strip_prefix("/").unwrap_or(group);
    let (io_bytes, io_operations) = match hierarchies {
        Hierarchies::V1(mounts) => {
            let dir = mounts.get("blkio").map(|root| root.join(inside));
            let of = |file: &str| text(dir.as_ref(), file).and_then(|text| v1_io(&text, below));
            (of("blkio.throttle.io_service_bytes_recursive"), of("blkio.throttle.io_serviced_recursive"))
        }
        Hierarchies::V2(root) => {
            let stat = text(Some(&root.join(inside)), "io.stat");
            let of =
                |read: &str, written: &str| stat.as_ref().map(|text| v2_io(text, (read, written), below));
            (of("rbytes=", "wbytes="), of("rios=", "wios="))
        }
        Hierarchies::Missing => (None, None),
    };
    Usage { io_bytes, io_operations, ..Usage::default() }
}

fn text(dir: Option<&PathBuf>, file: &str) -> Option<String> {
    fs::read_to_string(dir?.join(file)).ok()
}

fn number(dir: Option<&PathBuf>, file: &str) -> Option<u64> {
    text(dir, file)?.trim().parse().ok()
}

/// The number after a name at a line's beginning.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// As the kubelet counts: file cache that nobody touched lately can go at any time.
fn working_set(dir: Option<&PathBuf>, usage: Option<u64>, inactive: &str) -> Option<u64> {
    let inactive = value(&text(dir, "memory.stat")?, inactive)?;
    Some(usage?.saturating_sub(inactive))
}

/// Lines `8:0 Read 4096`. Kernels of late count nothing at all there while nobody is throttled: then there is no device.
fn v1_io(text: &str, below: impl Fn(&str) -> Vec<String>) -> Option<(u64, u64)> {
    let mut devices = Devices::default();
    let mut known = false;
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(name), Some(Ok(bytes))) =
            (words.next(), words.next(), words.next().map(str::parse::<u64>))
        else {
            continue;
        };
        match name {
            "Read" => devices.add(device.to_owned(), (bytes, 0)),
            "Write" => devices.add(device.to_owned(), (0, bytes)),
            _ => continue,
        }
        known = true;
    }
    known.then(|| devices.sum(below))
}

/// Lines `8:0 rbytes=4096 wbytes=0 rios=1 …`.
fn v2_io(text: &str, (read, written): (&str, &str), below: impl Fn(&str) -> Vec<String>) -> (u64, u64) {
    let mut devices = Devices::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let Some(device) = words.next() else { continue };
        let value = |name: &str| words.clone().find_map(|word| word.strip_prefix(name)?.parse().ok());
        devices.add(device.to_owned(), (value(read).unwrap_or(0), value(written).unwrap_or(0)));
    }
    devices.sum(below)
}

/// Bytes that came into and left a network namespace, given as `/proc/PID/ns/net`. The node's end of a pod's pair would
/// tell the same, but an ordinary user's is in a network whose `/sys` nobody sees.
fn traffic(namespace: &Path) -> Option<(u64, u64)> {
    let process = namespace.parent()?.parent()?.to_path_buf();
    sum_of(&text(Some(&process), "net/dev")?)
}

fn sum_of(text: &str) -> Option<(u64, u64)> {
    let others = devices(text).filter(|(name, _)| *name != "lo").map(|(_, bytes)| bytes);
    others.reduce(|(received, sent), (more, too)| (received.saturating_add(more), sent.saturating_add(too)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(dir).unwrap();
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn what_comes_in_and_goes_out_is_that_of_all_devices_but_the_loopback() {
        let loopback = "lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n";
        let more = "eth0: 90 2 0 0 0 0 0 0 70 3 0 0 0 0 0 0\nnet1: 1 2 0 0 0 0 0 0 2 3 0 0 0 0 0 0\n";
        assert_eq!(sum_of(&format!("{loopback}{more}")), Some((91, 72)));
        assert_eq!(sum_of(loopback), None);
        // This process' own.
        let own = text(Some(&PathBuf::from("/proc/self")), "net/dev").unwrap();
        assert_eq!(traffic(Path::new("/proc/self/ns/net")).is_some(), sum_of(&own).is_some());
    }

    #[test]
    fn what_goes_through_a_device_that_is_made_of_others_counts_once() {
        let below =
            |device: &str| -> Vec<String> { if device == "253:1" { vec!["8:0".into()] } else { Vec::new() } };
        let v1 = "8:0 Read 10\n8:0 Write 3\n253:1 Read 10\n253:1 Write 9\nTotal 32\n";
        assert_eq!(v1_io(v1, below), Some((10, 9)));
        assert_eq!(v1_io("Total 0\n", below), None, "nothing is counted");
        let v2 = "253:1 rbytes=6 wbytes=9 rios=1 wios=2\n8:0 rbytes=7 wbytes=0 rios=2 wios=0\n";
        assert_eq!(v2_io(v2, ("rbytes=", "wbytes="), below), (7, 9));
        assert_eq!(v2_io("", ("rbytes=", "wbytes="), below), (0, 0));
    }

    #[test]
    fn memory_is_not_looked_at_again_before_its_time() {
        let layers = Layers::default();
        let (id, own) = (ContainerId("c".into()), i32::try_from(std::process::id()).unwrap());
        let mut memory = layers.memory.lock().unwrap();
        let first = memory.of(&id, false, &[own]);
        assert!(first.0.is_some_and(|(all, _)| all > 0), "{first:?}");
        assert_eq!(memory.of(&id, false, &[]), (first.0, Duration::ZERO), "as it was");
        assert_eq!(memory.of(&id, true, &[]).0, None, "now is the time");
        drop(memory);
        let mut reader = ByProcesses::new(&layers);
        assert!(reader.table.is_none() && reader.is_due);
        assert!(reader.read(&id, own).memory_bytes.is_some());
        reader.end();
        assert!(layers.memory.lock().unwrap().again.is_some());
        // Without cgroups and pods nothing is read at all.
        assert_eq!(of_pods(&Hierarchies::Missing, &layers, &[]), []);
    }

    #[test]
    fn both_versions_tell_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let expected = Usage {
            cpu_ns: Some(7_000),
            working_set_bytes: Some(900),
            memory_bytes: Some(1000),
            rss_bytes: Some(1),
            io_bytes: Some((10, 3)),
            io_operations: Some((3, 2)),
            writable_bytes: None,
            writable_inodes: None,
            pids: Some(4),
        };
        let unified = dir.path().join("v2");
        write(
            &unified.join("troupe/u"),
            &[
                ("cpu.stat", "usage_usec 7\nuser_usec 5\n"),
                ("memory.current", "1000\n"),
                ("memory.stat", "anon 1\ninactive_file_x 5\ninactive_file 100\n"),
                ("io.stat", "8:0 rbytes=6 wbytes=3 rios=1 wios=2\n8:16 rbytes=4 wbytes=0 rios=2 wios=0\n"),
                ("pids.current", "4\n"),
            ],
        );
        assert_eq!(read(&Hierarchies::V2(unified), Path::new("/troupe/u")), expected);
        let mounts: BTreeMap<String, PathBuf> = ["cpuacct", "memory", "blkio", "pids"]
            .map(|name| (name.to_owned(), dir.path().join("v1").join(name)))
            .into();
        let group = |name: &str| mounts[name].join("troupe/u");
        write(&group("cpuacct"), &[("cpuacct.usage", "7000\n")]);
        let stat = "rss 5\ntotal_rss 1\ninactive_file 1\ntotal_inactive_file 100\n";
        write(&group("memory"), &[("memory.usage_in_bytes", "1000\n"), ("memory.stat", stat)]);
        let io = "8:0 Read 10\n8:0 Write 3\n8:0 Total 13\nTotal 13\n";
        let served = "8:0 Read 3\n8:0 Write 2\n8:0 Total 5\nTotal 5\n";
        let throttle = |name: &str| format!("blkio.throttle.{name}_recursive");
        let (bytes, operations) = (throttle("io_service_bytes"), throttle("io_serviced"));
        write(&group("blkio"), &[(&bytes, io), (&operations, served)]);
        write(&group("pids"), &[("pids.current", "4\n")]);
        assert_eq!(read(&Hierarchies::V1(mounts), Path::new("/troupe/u")), expected);
        assert_eq!(read(&Hierarchies::Missing, Path::new("/troupe/u")), Usage::default());
    }
}
