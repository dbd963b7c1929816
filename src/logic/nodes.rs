//! Nodes as the master and as they themselves describe them.
//!
//! Owns: a node's status out of what its machine says, the node object made when it first appears, which pod subnet it
//! gets, and what becomes of its conditions when it falls silent. Pure: facts and time are handed in.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::Ipv4Addr,
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    edit::Edit,
    eviction::Pressure,
    mirrors::is_mirror,
    pod::{
        gates,
        refusal::keep_end,
        status::{keep_unspoken, time},
    },
};
use crate::model::{KindFacet, NodeName, Object, Phase, SealError, Uid, huge_pages, quantity, seal};

/// What a machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// Cores.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the file system that holds the data directory.
    pub disk_bytes: u64,
    /// Huge pages by their size: bytes of a page, bytes of all of them.
    pub huge_pages: Vec<(i64, i64)>,
    /// What it is low on.
    pub pressure: Pressure,
    /// Most pods on the node.
    pub max_pods: u32,
    /// The node's host name.
    pub hostname: String,
    /// The address other machines reach it at.
    pub address: String,
    /// `uname -r`.
    pub kernel: String,
    /// From `/etc/os-release`.
    pub os_image: String,
    /// From `/etc/machine-id`.
    pub machine_id: String,
    /// From `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `native://0.1.0`.
    pub runtime: String,
    /// The kubelet's version.
    pub version: String,
    /// Set when the runtime is not able to run pods, with what to do about it.
    pub runtime_fault: Option<String>,
    /// What containers lack here that those of root have: the node runs as an ordinary user.
    pub lacks: Option<String>,
    /// It gives no images to other nodes, and takes none.
    pub no_image_sharing: bool,
    /// Its runtime makes mounts read-only all the way down.
    pub recursive_read_only: bool,
    /// Its runtime gives pods users of their own.
    pub user_namespaces: bool,
    /// Names and sizes of the images.
    pub images: Vec<(Vec<String>, u64)>,
}

/// Images named in a node's status, at most (the kubelet's `nodeStatusMaxImages`).
const STATUS_IMAGES: usize = 50;

/// The node's own status. `before` is the last one: its conditions' times stay where nothing changed.
pub fn node_status(facts: &MachineFacts, before: Option<&v1::NodeStatus>, now_ms: i64) -> v1::NodeStatus {
    let mut capacity: BTreeMap<String, Quantity> = [
        ("cpu", facts.cpus.to_string()),
        ("memory", format!("{}Ki", facts.memory_bytes / 1024)),
        ("ephemeral-storage", format!("{}Ki", facts.disk_bytes / 1024)),
        ("pods", facts.max_pods.to_string()),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), Quantity(v)))
    .collect();
    for (page, bytes) in &facts.huge_pages {
        capacity
            .insert(huge_pages::name(*page), Quantity(quantity::canonical(&format!("{}Ki", bytes / 1024))));
    }
    let mut allocatable = capacity.clone();
    // What is set aside in huge pages is no memory for anything else.
    let huge: i64 = facts.huge_pages.iter().map(|(_, bytes)| bytes).sum();
    let memory = facts.memory_bytes.saturating_sub(huge.unsigned_abs());
    allocatable.insert("memory".to_owned(), Quantity(format!("{}Ki", memory / 1024)));
    let (ready, reason, message) = match &facts.runtime_fault {
        None => (true, "KubeletReady", "kubelet is posting ready status".to_owned()),
        Some(fault) => (false, "ContainerRuntimeNotReady", fault.clone()),
    };
    let condition = |name: &str, holds: bool, reason: &str, message: String| {
        node_condition(name, if holds { "True" } else { "False" }, reason, message, before, now_ms)
    };
    let pressure = |name: &str, holds: bool, [low, well]: [(&str, &str); 2]| {
        let (reason, message) = if holds { low } else { well };
        condition(name, holds, reason, message.into())
    };
    // One of our own, and only where there is something to say.
    let lacking = facts.lacks.clone().map(|lacks| condition(ROOTLESS, true, "OrdinaryUser", lacks));
    let apart = facts.no_image_sharing.then(|| no_image_sharing(KEEPS_IMAGES, before, now_ms));
    v1::NodeStatus {
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: Some(vec![
            v1::NodeAddress { type_: "InternalIP".into(), address: facts.address.clone() },
            v1::NodeAddress { type_: "Hostname".into(), address: facts.hostname.clone() },
        ]),
        conditions: Some(Vec::from_iter(lacking.into_iter().chain(apart).chain([
            pressure(
                "MemoryPressure",
                facts.pressure.memory,
                [
                    ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
                    ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                ],
            ),
            pressure(
                "DiskPressure",
                facts.pressure.disk,
                [
                    ("KubeletHasDiskPressure", "kubelet has disk pressure"),
                    ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                ],
            ),
            pressure(
                "PIDPressure",
                facts.pressure.pids,
                [
                    ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
                    ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                ],
            ),
            condition("Ready", ready, reason, message),
        ]))),
        node_info: Some(v1::NodeSystemInfo {
            architecture: facts.architecture.clone(),
            boot_id: facts.boot_id.clone(),
            container_runtime_version: facts.runtime.clone(),
            kernel_version: facts.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: facts.version.clone(),
            machine_id: facts.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: facts.os_image.clone(),
            system_uuid: facts.machine_id.clone(),
            ..v1::NodeSystemInfo::default()
        }),
        runtime_handlers: Some(vec![v1::NodeRuntimeHandler {
            // The usual one: there is no other.
            name: Some(String::new()),
            features: Some(v1::NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(facts.recursive_read_only),
                user_namespaces: Some(facts.user_namespaces),
            }),
        }]),
        images: Some(
            facts
                .images
                .iter()
                .take(STATUS_IMAGES)
                .map(|(names, size)| v1::ContainerImage {
                    names: Some(names.clone()),
                    size_bytes: i64::try_from(*size).ok(),
                })
                .collect(),
        ),
        ..v1::NodeStatus::default()
    }
}

/// Its condition is "False" on a node that gives no images to others and takes none; others do not have it.
pub const IMAGE_SHARING: &str = "ImageSharing";
const ROOTLESS: &str = "Rootless";
/// What a node and its master tell of it. Other conditions are others' word: the problem detector's, the network's.
const OWN_CONDITIONS: [&str; 6] =
    ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure", IMAGE_SHARING, ROOTLESS];

/// Whether a node's condition is told by the node itself, or by its master.
pub fn is_own_condition(name: &str) -> bool {
    OWN_CONDITIONS.contains(&name)
}

const KEEPS_IMAGES: &str = "the node was started with --no-image-sharing";
const CLUSTER_KEEPS_IMAGES: &str = "the master was started with --no-image-sharing";

fn no_image_sharing(why: &str, before: Option<&v1::NodeStatus>, now_ms: i64) -> v1::NodeCondition {
    node_condition(IMAGE_SHARING, "False", "SwitchedOff", why.into(), before, now_ms)
}

/// Says in a status that a node told that its cluster has no image sharing. `before` is the one that the cluster has.
pub fn note_no_image_sharing(status: &mut v1::NodeStatus, before: Option<&v1::NodeStatus>, now_ms: i64) {
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != IMAGE_SHARING);
    conditions.insert(0, no_image_sharing(CLUSTER_KEEPS_IMAGES, before, now_ms));
}

fn node_condition(
    name: &str,
    status: &str,
    reason: &str,
    message: String,
    before: Option<&v1::NodeStatus>,
    now_ms: i64,
) -> v1::NodeCondition {
    let since = before
        .and_then(|b| b.conditions.as_ref())
        .and_then(|c| c.iter().find(|c| c.type_ == name && c.status == status))
        .and_then(|c| c.last_transition_time.clone());
    v1::NodeCondition {
        type_: name.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_heartbeat_time: Some(time(now_ms)),
        last_transition_time: Some(since.unwrap_or_else(|| time(now_ms))),
    }
}

/// Taints that follow from a node's conditions: who does not tolerate them is not brought there.
const PRESSURE_TAINTS: [(&str, &str); 3] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

/// Makes a node's taints what its conditions say; others stay.
pub fn taint_by_condition(spec: &mut v1::NodeSpec, status: &v1::NodeStatus) {
    let low = |name: &str| {
        let mut all = status.conditions.iter().flatten();
        all.any(|condition| condition.type_ == name && condition.status == "True")
    };
    let mut taints = spec.taints.take().unwrap_or_default();
    for (condition, key) in PRESSURE_TAINTS {
        let there = taints.iter().any(|taint| taint.key == key && taint.effect == "NoSchedule");
        if low(condition) && !there {
            taints.push(v1::Taint { key: key.into(), effect: "NoSchedule".into(), ..v1::Taint::default() });
        } else if !low(condition) && there {
            taints.retain(|taint| taint.key != key || taint.effect != "NoSchedule");
        }
    }
    spec.taints = Some(taints).filter(|taints| !taints.is_empty());
}

/// What the conditions of pressure have become since `before`, as events say it.
pub fn pressure_changes(before: &v1::NodeStatus, now: &v1::NodeStatus) -> Vec<&'static str> {
    let holds = |status: &v1::NodeStatus, name: &str| {
        let mut all = status.conditions.iter().flatten();
        all.any(|condition| condition.type_ == name && condition.status == "True")
    };
    let words = [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
    ];
    let changed = words.into_iter().filter(|(name, ..)| holds(before, name) != holds(now, name));
    changed.map(|(name, low, well)| if holds(now, name) { low } else { well }).collect()
}

/// Adds the label that only the machine itself can say.
pub fn complete_labels(labels: &mut BTreeMap<String, String>, status: &v1::NodeStatus) {
    if let Some(info) = status.node_info.as_ref().filter(|info| !info.architecture.is_empty()) {
        labels.entry("kubernetes.io/arch".to_owned()).or_insert_with(|| info.architecture.clone());
    }
}

/// Kubernetes' reason of the `Ready` condition of a node that was never heard of.
pub const NEVER_HEARD: &str = "NodeStatusNeverUpdated";

/// The status of a node that has been admitted and was never heard of.
pub fn unheard_status(now_ms: i64) -> v1::NodeStatus {
    let condition = v1::NodeCondition {
        type_: "Ready".into(),
        status: "Unknown".into(),
        reason: Some(NEVER_HEARD.into()),
        message: Some("Kubelet never posted node status.".into()),
        last_heartbeat_time: Some(time(now_ms)),
        last_transition_time: Some(time(now_ms)),
    };
    v1::NodeStatus { conditions: Some(vec![condition]), ..v1::NodeStatus::default() }
}

/// The node object for a node that appears for the first time.
pub fn new_node(
    name: &str,
    labels: &BTreeMap<String, String>,
    pod_cidr: &str,
    status: v1::NodeStatus,
    now_ms: i64,
    uid: &str,
) -> v1::Node {
    let mut all = BTreeMap::from([
        ("kubernetes.io/hostname".to_owned(), name.to_owned()),
        ("kubernetes.io/os".to_owned(), "linux".to_owned()),
    ]);
    complete_labels(&mut all, &status);
    all.extend(labels.clone());
    let mut spec = v1::NodeSpec {
        pod_cidr: Some(pod_cidr.to_owned()),
        pod_cidrs: Some(vec![pod_cidr.to_owned()]),
        ..v1::NodeSpec::default()
    };
    taint_by_condition(&mut spec, &status);
    v1::Node {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            creation_timestamp: Some(time(now_ms)),
            labels: Some(all),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
        status: Some(status),
    }
}

/// A node's status after its link has been silent for too long: what it said of itself is unknown now.
pub fn lost_status(before: &v1::NodeStatus, now_ms: i64) -> v1::NodeStatus {
    let mut status = before.clone();
    for condition in status.conditions.iter_mut().flatten().filter(|c| is_own_condition(&c.type_)) {
        if condition.status != "Unknown" {
            condition.status = "Unknown".into();
            condition.reason = Some("NodeStatusUnknown".into());
            condition.message = Some("Kubelet stopped posting node status.".into());
            condition.last_transition_time = Some(time(now_ms));
        }
    }
    status
}

/// Subnets of 254 pods each: `/24`s of the cluster's pod network.
const NODE_PREFIX: u8 = 24;

/// The first free node subnet of the cluster's pod network (`10.244.0.0/16`), or `None` when all are taken.
///
/// # Errors
/// When `cluster` is no IPv4 network of at least one `/24`.
pub fn free_subnet<'a>(
    cluster: &str,
    taken: impl IntoIterator<Item = &'a str>,
) -> Result<Option<String>, String> {
    let bad = || format!("pod network {cluster:?} must be an IPv4 network with a prefix of at most 24");
    let (address, prefix) = cluster.split_once('/').ok_or_else(bad)?;
    let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
    let prefix: u8 = prefix.parse().map_err(|_| bad())?;
    if prefix > NODE_PREFIX {
        return Err(bad());
    }
    let count: u64 = 1 << (NODE_PREFIX - prefix);
    let mask = u32::MAX.checked_shl(u32::from(32 - prefix)).unwrap_or(0);
    let base = u32::from(address) & mask;
    let taken: BTreeSet<&str> = taken.into_iter().collect();
    Ok((0..count)
        .map(|n| {
            let offset = u32::try_from(n << (32 - NODE_PREFIX)).unwrap_or(0);
            format!("{}/{NODE_PREFIX}", Ipv4Addr::from(base | offset))
        })
        .find(|subnet| !taken.contains(subnet.as_str())))
}

/// What of a pod's document its node acts on: another mark means that the node must hear of it again. A node's own
/// status reports come back to it in every new state of a pod; without this each report would carry its document back.
pub fn wanted_mark(document: &[u8]) -> u64 {
    #[derive(Deserialize, Default, Hash)]
    #[serde(rename_all = "camelCase", default)]
    struct Meta {
        /// Of a spec that was changed and changed back.
        generation: i64,
        deletion_timestamp: Option<String>,
        deletion_grace_period_seconds: Option<i64>,
        labels: BTreeMap<String, String>,
        annotations: BTreeMap<String, String>,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Status {
        conditions: Vec<Condition>,
    }
    #[derive(Deserialize, Hash)]
    struct Condition {
        #[serde(rename = "type")]
        name: String,
        status: String,
    }
    #[derive(Deserialize)]
    struct Wanted<'a> {
        #[serde(default)]
        metadata: Meta,
        /// Of which only what others say is wanted: gates wait for it.
        #[serde(default)]
        status: Status,
        #[serde(borrow)]
        spec: Option<&'a RawValue>,
    }
    let mut hasher = DefaultHasher::new();
    match serde_json::from_slice::<Wanted<'_>>(document) {
        Ok(wanted) => {
            (wanted.metadata, wanted.spec.map(RawValue::get)).hash(&mut hasher);
            let foreign = wanted.status.conditions.into_iter().filter(|c| gates::is_foreign(&c.name));
            foreign.for_each(|condition| condition.hash(&mut hasher));
        }
        // No pod: the node will say so.
        Err(_) => document.hash(&mut hasher),
    }
    hasher.finish()
}

/// Whether a pod's report says that it is over.
pub fn tells_end(status: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Status {
        phase: Option<String>,
    }
    let status = serde_json::from_slice::<Status>(status);
    status.is_ok_and(|status| Phase::parse(status.phase.as_deref()).is_final())
}

/// What a pod's report comes to.
#[derive(Debug)]
pub enum Report {
    /// A change of the pod's object.
    Write(Box<Edit>),
    /// It speaks of an earlier life, says nothing new, or is none of that node's business.
    Ignore,
}

/// What a node says of one of its pods.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Which life of the pod.
    pub uid: &'a Uid,
    /// Kubernetes' `PodStatus` as JSON.
    pub status: &'a [u8],
    /// Nothing of the pod is left on the node.
    pub terminated: bool,
}

/// Has a pod be ready, or not, since the master heard of it. Nodes' clocks may be apart from ours and from each other, and
/// others count from that moment (`minReadySeconds`), or compare it (which pod goes first). A node may tell only of the end of
/// what happened: if its containers are ready since another moment, by its clock both, the pod was not ready meanwhile.
fn ready_by_our_clock(status: &mut v1::PodStatus, before: Option<&v1::PodStatus>, now_ms: i64) {
    let again = match (before.and_then(containers_ready_s), containers_ready_s(status)) {
        (Some(known_s), Some(told_s)) => known_s != told_s,
        _ => false,
    };
    let known = before.and_then(|before| condition(before, "Ready"));
    let told = status.conditions.iter_mut().flatten().find(|condition| condition.type_ == "Ready");
    let Some(told) = told else { return };
    let kept = known.filter(|known| known.status == told.status && !(again && told.status == "True"));
    told.last_transition_time =
        Some(kept.and_then(|known| known.last_transition_time.clone()).unwrap_or_else(|| time(now_ms)));
}

/// Since when a node says that a pod's containers are ready: whole seconds, as they are stored.
fn containers_ready_s(status: &v1::PodStatus) -> Option<i64> {
    let since = &condition(status, "ContainersReady")?.last_transition_time;
    since.as_ref().map(|time| time.0.as_second())
}

fn condition<'a>(status: &'a v1::PodStatus, name: &str) -> Option<&'a v1::PodCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == name)
}

/// What to do about a node's report on a pod whose object is `current`. Now is `now_ms` by the master's clock.
///
/// # Errors
/// When the report or the stored pod cannot be read.
pub fn pod_reported(
    current: Option<&Arc<Object>>,
    node: &NodeName,
    told: Told<'_>,
    now_ms: i64,
) -> Result<Report, ReportError> {
    let Some(object) = current.filter(|o| o.uid() == told.uid) else { return Ok(Report::Ignore) };
    match &object.facet.of {
        KindFacet::Pod(pod) if pod.node.as_ref() == Some(node) => {}
        _ => return Ok(Report::Ignore),
    }
    let deleting = object.facet.meta.deleting.is_some();
    if told.terminated && deleting && object.facet.meta.finalizers.is_empty() {
        return Ok(Report::Write(Box::new(Edit::Remove(object.clone()))));
    }
    let mut status: v1::PodStatus = serde_json::from_slice(told.status)?;
    let mut pod: v1::Pod = object.parse()?;
    gates::keep_foreign(&mut status, pod.status.as_ref());
    keep_unspoken(&mut status, pod.status.as_ref());
    // What a file of its node says to run nobody ends by saying so.
    if !is_mirror(&pod) {
        keep_end(&mut status, pod.status.as_ref());
    }
    ready_by_our_clock(&mut status, pod.status.as_ref(), now_ms);
    // Only finalizers hold it now: with no grace left, whoever takes the last one away ends it.
    let held = told.terminated && deleting && pod.metadata.deletion_grace_period_seconds != Some(0);
    if pod.status.as_ref() == Some(&status) && !held {
        return Ok(Report::Ignore);
    }
    pod.status = Some(status);
    if held {
        pod.metadata.deletion_grace_period_seconds = Some(0);
    }
    let sealed = seal(&pod)?;
    Ok(Report::Write(Box::new(Edit::Replace(sealed, object.clone()))))
}

/// Why a report could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not what it should be.
    #[error("it cannot be read: {0}")]
    Read(#[from] serde_json::Error),
    /// The pod's new state cannot be stored.
    #[error("the pod cannot be written: {0}")]
    Write(#[from] SealError),
}

#[cfg(test)]
#[path = "nodes_tests.rs"]
mod tests;
