//! What a node and its pods use in the form of the kubelet's Summary API (`stats/v1alpha1`).
//!
//! Owns: the document and its names. Pure: what was read is handed in. Invariant: what is not known is left out, never told
//! as nothing.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;

use super::pod::status::time;

/// Processor and memory, as read. `None`: not known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Amounts {
    /// Nanoseconds of processor time.
    pub cpu_ns: Option<u64>,
    /// Billionths of a core, of late.
    pub cpu_nano: Option<u64>,
    /// Bytes in all.
    pub memory_bytes: Option<u64>,
    /// Bytes that are not easily given back.
    pub working_set_bytes: Option<u64>,
    /// Bytes that are no file's.
    pub rss_bytes: Option<u64>,
    /// Bytes that there may be.
    pub limit_bytes: Option<u64>,
    /// Bytes read from and written to disks.
    pub io_bytes: Option<(u64, u64)>,
    /// How often that was done.
    pub io_operations: Option<(u64, u64)>,
}

/// A container, as read.
#[derive(Clone, Debug, Default)]
pub struct OfContainer {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its image's name.
    pub image: String,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    /// What it uses.
    pub amounts: Amounts,
    /// Bytes of its writable layer.
    pub writable_bytes: Option<u64>,
    /// Bytes of its logs.
    pub log_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A pod, as read.
#[derive(Clone, Debug, Default)]
pub struct OfPod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    /// What it uses in all.
    pub amounts: Amounts,
    /// Bytes received and sent.
    pub network: Option<(u64, u64)>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Its running containers.
    pub containers: Vec<OfContainer>,
    /// Bytes of its `emptyDir`s on disk; `None`: not measured yet.
    pub volumes: Option<Vec<(String, u64)>>,
}

/// A file system, as read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    /// Bytes.
    pub bytes: u64,
    /// Those that are free.
    pub free_bytes: u64,
    /// Files that there can be.
    pub inodes: u64,
    /// Those that could be made.
    pub free_inodes: u64,
}

/// A node, as read.
#[derive(Clone, Debug, Default)]
pub struct OfNode {
    /// Its name.
    pub name: String,
    /// When the machine was started, milliseconds since the epoch.
    pub started_ms: i64,
    /// What it uses.
    pub amounts: Amounts,
    /// The device that leads to others, and bytes that it received and sent.
    pub network: Option<(String, u64, u64)>,
    /// Where pods and logs are.
    pub disk: Disk,
    /// Where images are.
    pub image_disk: Disk,
    /// What containers write is there, too; else with the logs.
    pub layers_with_images: bool,
    /// Most processes and threads, and those that there are.
    pub pids: (u64, u64),
    /// Cores.
    pub cpus: u64,
}

/// The answer.
#[derive(Debug, Serialize)]
pub struct Summary {
    node: NodeStats,
    pods: Vec<PodStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeStats {
    node_name: String,
    start_time: Time,
    cpu: CpuStats,
    memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<IoStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    fs: FsStats,
    runtime: RuntimeStats,
    rlimit: RlimitStats,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeStats {
    image_fs: FsStats,
    container_fs: FsStats,
}

#[derive(Debug, Serialize)]
struct RlimitStats {
    time: Time,
    maxpid: u64,
    curproc: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodStats {
    pod_ref: PodReference,
    start_time: Time,
    containers: Vec<ContainerStats>,
    cpu: CpuStats,
    memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<IoStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<NetworkStats>,
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<VolumeStats>,
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    ephemeral_storage: Option<FsStats>,
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    processes: Option<ProcessStats>,
}

#[derive(Debug, Serialize)]
struct PodReference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Debug, Serialize)]
struct ProcessStats {
    process_count: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStats {
    name: String,
    start_time: Time,
    cpu: CpuStats,
    memory: MemoryStats,
    #[serde(skip_serializing_if = "Option::is_none")]
    io: Option<IoStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rootfs: Option<FsStats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logs: Option<FsStats>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_nano_cores: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_core_nano_seconds: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MemoryStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_set_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
}

/// Kubernetes' has the pressure of it alone: the counters are Troupe's own.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct IoStats {
    time: Time,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    read_operations: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_operations: Option<u64>,
}

#[derive(Debug, Serialize)]
struct NetworkStats {
    time: Time,
    #[serde(flatten)]
    own: InterfaceStats,
    interfaces: Vec<InterfaceStats>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct InterfaceStats {
    name: String,
    rx_bytes: u64,
    tx_bytes: u64,
}

#[derive(Debug, Serialize)]
struct VolumeStats {
    #[serde(flatten)]
    fs: FsStats,
    name: String,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FsStats {
    time: Time,
    available_bytes: u64,
    capacity_bytes: u64,
    used_bytes: u64,
    inodes_free: u64,
    inodes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    inodes_used: Option<u64>,
}

/// The name of a pod's device, as all network plugins call it.
pub(super) const POD_DEVICE: &str = "eth0";

/// The summary of what was read at this time.
pub fn summary(at_ms: i64, node: OfNode, pods: Vec<OfPod>) -> Summary {
    let part = |disk: Disk, used_bytes: u64| FsStats {
        time: time(at_ms),
        available_bytes: disk.free_bytes,
        capacity_bytes: disk.bytes,
        used_bytes,
        inodes_free: disk.free_inodes,
        inodes: disk.inodes,
        inodes_used: None,
    };
    let whole = |disk: Disk| FsStats {
        inodes_used: Some(disk.inodes.saturating_sub(disk.free_inodes)),
        ..part(disk, disk.bytes.saturating_sub(disk.free_bytes))
    };
    let of_layers = if node.layers_with_images { node.image_disk } else { node.disk };
    let fs = Parts { logs: &|used| part(node.disk, used), layers: &|used| part(of_layers, used) };
    let pods = pods.into_iter().map(|pod| of_pod(at_ms, pod, &fs)).collect();
    let (cpu, memory) = both(at_ms, &node.amounts);
    let node = NodeStats {
        node_name: node.name,
        start_time: time(node.started_ms),
        cpu,
        memory,
        io: io(at_ms, &node.amounts),
        network: node.network.map(|(name, received, sent)| network(at_ms, name, (received, sent))),
        runtime: RuntimeStats { image_fs: whole(node.image_disk), container_fs: whole(of_layers) },
        fs: whole(node.disk),
        rlimit: RlimitStats { time: time(at_ms), maxpid: node.pids.0, curproc: node.pids.1 },
    };
    Summary { node, pods }
}

/// So many bytes of the disk with pods' files, and of the one with what containers write.
struct Parts<'a> {
    logs: &'a dyn Fn(u64) -> FsStats,
    layers: &'a dyn Fn(u64) -> FsStats,
}

fn of_pod(at_ms: i64, pod: OfPod, fs: &Parts<'_>) -> PodStats {
    let (cpu, memory) = both(at_ms, &pod.amounts);
    let own = pod.containers.iter().flat_map(|container| [container.writable_bytes, container.log_bytes]);
    let volumes = pod.volumes.clone().unwrap_or_default();
    // A part that is not known makes the whole unknown.
    let own: Option<u64> = own.sum();
    let whole = own.zip(pod.volumes).map(|(own, all)| own + all.iter().map(|(_, bytes)| bytes).sum::<u64>());
    PodStats {
        pod_ref: PodReference { name: pod.name, namespace: pod.namespace, uid: pod.uid },
        start_time: time(pod.started_ms),
        containers: pod.containers.into_iter().map(|container| of_container(at_ms, container, fs)).collect(),
        cpu,
        memory,
        io: io(at_ms, &pod.amounts),
        network: pod.network.map(|bytes| network(at_ms, POD_DEVICE.into(), bytes)),
        volumes: volumes
            .into_iter()
            .map(|(name, bytes)| VolumeStats { fs: (fs.logs)(bytes), name })
            .collect(),
        ephemeral_storage: whole.map(fs.logs),
        processes: pod.pids.map(|process_count| ProcessStats { process_count }),
    }
}

fn of_container(at_ms: i64, container: OfContainer, fs: &Parts<'_>) -> ContainerStats {
    let (cpu, memory) = both(at_ms, &container.amounts);
    ContainerStats {
        name: container.name,
        start_time: time(container.started_ms),
        cpu,
        memory,
        io: io(at_ms, &container.amounts),
        rootfs: container.writable_bytes.map(fs.layers),
        logs: container.log_bytes.map(fs.logs),
    }
}

fn both(at_ms: i64, of: &Amounts) -> (CpuStats, MemoryStats) {
    let cpu =
        CpuStats { time: time(at_ms), usage_nano_cores: of.cpu_nano, usage_core_nano_seconds: of.cpu_ns };
    let memory = MemoryStats {
        time: time(at_ms),
        available_bytes: of
            .limit_bytes
            .zip(of.working_set_bytes)
            .map(|(most, used)| most.saturating_sub(used)),
        usage_bytes: of.memory_bytes,
        working_set_bytes: of.working_set_bytes,
        rss_bytes: of.rss_bytes,
    };
    (cpu, memory)
}

fn io(at_ms: i64, of: &Amounts) -> Option<IoStats> {
    (of.io_bytes.is_some() || of.io_operations.is_some()).then(|| IoStats {
        time: time(at_ms),
        read_bytes: of.io_bytes.map(|(read, _)| read),
        write_bytes: of.io_bytes.map(|(_, written)| written),
        read_operations: of.io_operations.map(|(reads, _)| reads),
        write_operations: of.io_operations.map(|(_, writes)| writes),
    })
}

fn network(at_ms: i64, name: String, (rx_bytes, tx_bytes): (u64, u64)) -> NetworkStats {
    let own = InterfaceStats { name, rx_bytes, tx_bytes };
    NetworkStats { time: time(at_ms), interfaces: vec![own.clone()], own }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_names_are_kubernetes_and_what_is_not_known_is_left_out() {
        let amounts = Amounts {
            cpu_ns: Some(9),
            cpu_nano: Some(5),
            memory_bytes: Some(40),
            working_set_bytes: Some(30),
            rss_bytes: Some(20),
            limit_bytes: Some(100),
            io_bytes: Some((11, 12)),
            io_operations: None,
        };
        let container = OfContainer {
            name: "c".into(),
            amounts,
            writable_bytes: Some(1),
            log_bytes: Some(2),
            ..OfContainer::default()
        };
        let pod = OfPod {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
            network: Some((7, 8)),
            pids: Some(3),
            containers: vec![container, OfContainer { name: "d".into(), ..OfContainer::default() }],
            volumes: Some(vec![("v".into(), 4)]),
            ..OfPod::default()
        };
        let mut whole = pod.clone();
        whole.containers.pop();
        let node = OfNode {
            name: "m".into(),
            disk: Disk { bytes: 100, free_bytes: 60, inodes: 10, free_inodes: 4 },
            image_disk: Disk { bytes: 1000, free_bytes: 900, inodes: 50, free_inodes: 20 },
            layers_with_images: true,
            pids: (9, 2),
            ..OfNode::default()
        };
        let told = serde_json::to_value(summary(1_000, node, vec![pod, whole])).unwrap();
        let at = "1970-01-01T00:00:01Z";
        let start = "1970-01-01T00:00:00Z";
        let fs = |used: u64| {
            json!({"time": at, "availableBytes": 60, "capacityBytes": 100, "usedBytes": used, "inodesFree": 4,
                "inodes": 10})
        };
        let mut of_node = fs(40);
        of_node["inodesUsed"] = json!(6);
        let of_images = json!({"time": at, "availableBytes": 900, "capacityBytes": 1000, "usedBytes": 100,
            "inodesFree": 20, "inodes": 50, "inodesUsed": 30});
        let rootfs = json!({"time": at, "availableBytes": 900, "capacityBytes": 1000, "usedBytes": 1,
            "inodesFree": 20, "inodes": 50});
        assert_eq!(
            told["node"],
            json!({"nodeName": "m", "startTime": start, "cpu": {"time": at}, "memory": {"time": at}, "fs": of_node,
                "runtime": {"imageFs": of_images, "containerFs": of_images}, "rlimit": {"time": at, "maxpid": 9, "curproc": 2}})
        );
        let pod = &told["pods"][0];
        assert_eq!(
            pod["containers"],
            json!([
                {"name": "c", "startTime": start,
                 "cpu": {"time": at, "usageNanoCores": 5, "usageCoreNanoSeconds": 9},
                 "memory": {"time": at, "availableBytes": 70, "usageBytes": 40, "workingSetBytes": 30, "rssBytes": 20},
                 "io": {"time": at, "readBytes": 11, "writeBytes": 12},
                 "rootfs": rootfs, "logs": fs(2)},
                {"name": "d", "startTime": start, "cpu": {"time": at}, "memory": {"time": at}},
            ])
        );
        assert_eq!(pod["podRef"], json!({"name": "p", "namespace": "n", "uid": "u"}));
        let device = json!({"name": "eth0", "rxBytes": 7, "txBytes": 8});
        let network = json!({"time": at, "name": "eth0", "rxBytes": 7, "txBytes": 8, "interfaces": [device]});
        assert_eq!(pod["network"], network);
        let mut volume = fs(4);
        volume["name"] = json!("v");
        assert_eq!((&pod["volume"], &pod["process_stats"]), (&json!([volume]), &json!({"process_count": 3})));
        assert_eq!(pod.get("ephemeral-storage"), None, "one container's part is not known");
        assert_eq!(told["pods"][1]["ephemeral-storage"], fs(7));
    }
}
