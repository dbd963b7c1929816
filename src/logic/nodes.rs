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

/// The status of a node that has been admitted and was never heard of.
pub fn unheard_status(now_ms: i64) -> v1::NodeStatus {
    let condition = v1::NodeCondition {
        type_: "Ready".into(),
        status: "Unknown".into(),
        reason: Some("NodeStatusNeverUpdated".into()),
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
mod tests {
    use super::*;
    use crate::model::{Kind, Revision, seal_json};

    #[test]
    fn a_node_that_shares_no_images_says_so_and_since_when() {
        let off = |status: &v1::NodeStatus| {
            let mut all = status.conditions.iter().flatten();
            let found = all.find(|condition| condition.type_ == IMAGE_SHARING);
            found.map(|of| {
                (of.status.clone(), of.message.clone().unwrap(), of.last_transition_time.clone().unwrap())
            })
        };
        let shares = node_status(&MachineFacts::default(), None, 0);
        assert_eq!(off(&shares), None);
        let apart = MachineFacts { no_image_sharing: true, ..MachineFacts::default() };
        let first = node_status(&apart, Some(&shares), 1000);
        let (status, message, since) = off(&first).unwrap();
        assert!(status == "False" && message.starts_with("the node"), "{message}");
        assert_eq!(off(&node_status(&apart, Some(&first), 5000)).unwrap().2, since);
        // What the master says counts, once, and since it was first said.
        let mut told = shares.clone();
        note_no_image_sharing(&mut told, None, 2000);
        let (_, message, since) = off(&told).unwrap();
        assert!(message.starts_with("the master"), "{message}");
        let mut both = node_status(&apart, None, 9000);
        note_no_image_sharing(&mut both, Some(&told), 9000);
        assert_eq!(off(&both).unwrap(), ("False".into(), message, since));
        let count = both.conditions.iter().flatten().filter(|condition| condition.type_ == IMAGE_SHARING);
        assert_eq!(count.count(), 1);
    }

    #[test]
    fn subnets_are_handed_out_without_overlap_until_none_is_left() {
        assert_eq!(free_subnet("10.244.0.0/16", []), Ok(Some("10.244.0.0/24".into())));
        assert_eq!(
            free_subnet("10.244.0.0/16", ["10.244.0.0/24", "10.244.2.0/24"]),
            Ok(Some("10.244.1.0/24".into()))
        );
        assert_eq!(free_subnet("10.9.8.0/24", ["10.9.8.0/24"]), Ok(None));
        assert_eq!(free_subnet("0.0.0.0/0", []), Ok(Some("0.0.0.0/24".into())));
        for bad in ["", "10.0.0.0", "10.0.0.0/25", "x/8", "10.0.0.0/x", "fd00::/64"] {
            assert!(free_subnet(bad, []).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_node_under_pressure_bears_a_taint_for_as_long_as_that_lasts() {
        let status = |low: &str| {
            let pressure = Pressure { memory: low == "memory", disk: low == "disk", pids: low == "pids" };
            node_status(&MachineFacts { pressure, ..MachineFacts::default() }, None, 0)
        };
        let own = v1::Taint { key: "own".into(), effect: "NoSchedule".into(), ..v1::Taint::default() };
        let mut spec = v1::NodeSpec { taints: Some(vec![own]), ..v1::NodeSpec::default() };
        let keys = |spec: &v1::NodeSpec| -> Vec<String> {
            spec.taints.iter().flatten().map(|taint| taint.key.clone()).collect()
        };
        taint_by_condition(&mut spec, &status("memory"));
        taint_by_condition(&mut spec, &status("memory"));
        assert_eq!(keys(&spec), ["own", "node.kubernetes.io/memory-pressure"]);
        taint_by_condition(&mut spec, &status("disk"));
        assert_eq!(keys(&spec), ["own", "node.kubernetes.io/disk-pressure"]);
        taint_by_condition(&mut spec, &status("pids"));
        assert_eq!(keys(&spec), ["own", "node.kubernetes.io/pid-pressure"]);
        taint_by_condition(&mut spec, &status(""));
        assert_eq!(keys(&spec), ["own"]);
    }

    #[test]
    fn a_pod_that_ended_vanishes_or_waits_for_its_finalizers_without_grace() {
        let object = |finalizers: serde_json::Value| {
            let pod = serde_json::json!({
                "metadata": {"name": "web", "namespace": "default", "uid": "u", "finalizers": finalizers,
                    "creationTimestamp": "2030-01-01T00:00:00Z", "deletionTimestamp": "2030-01-01T00:00:00Z",
                    "deletionGracePeriodSeconds": 30},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
                "status": {"phase": "Running"}
            });
            Arc::new(seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(5)))
        };
        let report = |object: &Arc<Object>, node: &str, status: &str, terminated: bool| {
            let told = Told { uid: &"u".into(), status: status.as_bytes(), terminated };
            match pod_reported(Some(object), &node.into(), told, 0).unwrap() {
                Report::Write(edit) => Some(*edit),
                Report::Ignore => None,
            }
        };
        let (free, held) = (object(serde_json::Value::Null), object(serde_json::json!(["a/b"])));
        let same = r#"{"phase": "Running"}"#;
        assert!(matches!(report(&free, "n", same, true), Some(Edit::Remove(_))));
        assert!(report(&free, "other", same, true).is_none(), "a node speaks of its own pods only");
        let earlier = Told { uid: &"earlier".into(), status: b"{}", terminated: true };
        let late = pod_reported(Some(&free), &"n".into(), earlier, 0).unwrap();
        assert!(matches!(late, Report::Ignore), "another life of that name");
        assert!(report(&held, "n", same, false).is_none(), "nothing new");
        let Some(Edit::Replace(sealed, _)) = report(&held, "n", same, true) else { panic!("not written") };
        let written = Arc::new(sealed.at(Revision(6)));
        let deleting = written.facet.meta.deleting.unwrap();
        assert_eq!(deleting.grace_seconds, 0);
        assert!(report(&written, "n", same, true).is_none(), "told once");
    }

    #[test]
    fn a_pod_is_ready_since_the_master_heard_of_it_whatever_its_nodes_clock_says() {
        let pod = serde_json::json!({"metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
        let mut object = Arc::new(seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(5)));
        let since = |object: &Object| match &object.facet.of {
            KindFacet::Pod(pod) => (pod.ready, pod.ready_since),
            _ => panic!("no pod"),
        };
        // The node is an hour behind at first, and then, set right, an hour ahead.
        for (status, by_node, now_s, expected) in [
            ("False", "2029-12-31T23:00:00Z", 1_000, Some((false, 0))),
            ("True", "2029-12-31T23:00:09Z", 1_009, Some((true, 1_009))),
            ("True", "2029-12-31T23:00:09Z", 1_020, None),
            ("True", "2030-01-01T01:00:09Z", 1_030, None),
            ("False", "2030-01-01T01:00:40Z", 1_040, Some((false, 0))),
            ("True", "2030-01-01T01:00:50Z", 1_050, Some((true, 1_050))),
        ] {
            let told = serde_json::json!({"phase": "Running", "conditions": [
                {"type": "Ready", "status": status, "lastTransitionTime": by_node}]})
            .to_string();
            let told = Told { uid: &"u".into(), status: told.as_bytes(), terminated: false };
            let report = pod_reported(Some(&object), &"n".into(), told, now_s * 1000).unwrap();
            let written = match report {
                Report::Ignore => None,
                Report::Write(edit) => match *edit {
                    Edit::Replace(sealed, _) => Some(Arc::new(sealed.at(Revision(6)))),
                    other => panic!("{other:?}"),
                },
            };
            let shown = written.as_deref().map(since);
            let ready_since = |(ready, since): (bool, i64)| (ready, if ready { since } else { 0 });
            assert_eq!(shown.map(ready_since), expected, "{status} {now_s}");
            object = written.unwrap_or(object);
        }
    }

    #[test]
    fn the_end_that_a_pods_status_tells_of_is_not_undone_by_what_was_on_the_way() {
        let object = serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Failed", "reason": "Decided", "nominatedNodeName": "n"}});
        let object = Arc::new(seal_json(Kind::Pod, object.to_string().as_bytes()).unwrap().at(Revision(5)));
        for (told, phase, reason) in [
            (
                serde_json::json!({"phase": "Running", "podIP": "10.1.1.1", "conditions": [
                    {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"},
                    {"type": "Initialized", "status": "True"}]}),
                "Failed",
                Some("Decided"),
            ),
            (serde_json::json!({"phase": "Succeeded", "podIP": "10.1.1.1"}), "Succeeded", None),
        ] {
            let told = told.to_string();
            let told = Told { uid: &"u".into(), status: told.as_bytes(), terminated: false };
            let report = pod_reported(Some(&object), &"n".into(), told, 1_000).unwrap();
            let Report::Write(edit) = report else { panic!() };
            let Edit::Replace(sealed, _) = *edit else { panic!() };
            let status = sealed.at(Revision(6)).parse::<v1::Pod>().unwrap().status.unwrap();
            assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some(phase), reason));
            assert_eq!(status.pod_ip.as_deref(), Some("10.1.1.1"));
            assert_eq!(status.nominated_node_name.as_deref(), Some("n"), "the node does not speak of it");
            let mut ready = status.conditions.iter().flatten().filter(|c| c.type_.ends_with("Ready"));
            assert!(ready.all(|c| c.status == "False"), "{:?}", status.conditions);
        }
    }

    #[test]
    fn a_pod_that_was_not_ready_between_two_reports_is_ready_anew() {
        let status = |containers: &str, ready: &str| -> v1::PodStatus {
            serde_json::from_value(serde_json::json!({"conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": "2020-01-01T00:00:00Z"},
                {"type": "ContainersReady", "status": "True", "lastTransitionTime": containers}]}))
            .unwrap()
        };
        let mut stored: Option<v1::PodStatus> = None;
        for (containers, ready, now_s, since_s) in [
            ("2029-12-31T23:00:09Z", "True", 1_009, 1_009),
            ("2029-12-31T23:00:09Z", "True", 1_020, 1_009),
            // It crashed, and was ready again before its node told of that.
            ("2029-12-31T23:00:25Z", "True", 1_030, 1_030),
            ("2029-12-31T23:00:25Z", "True", 1_040, 1_030),
            // Less than a second is not stored: told again and again, it is no news.
            ("2029-12-31T23:00:25.5Z", "True", 1_050, 1_030),
            // A gate holds it up whatever its containers do.
            ("2029-12-31T23:00:25Z", "False", 1_060, 1_060),
            ("2029-12-31T23:01:25Z", "False", 1_070, 1_060),
        ] {
            let mut told = status(containers, ready);
            ready_by_our_clock(&mut told, stored.as_ref(), now_s * 1000);
            let since = condition(&told, "Ready").unwrap().last_transition_time.clone().unwrap();
            assert_eq!(since.0.as_second(), since_s, "at {now_s}");
            stored = Some(told);
        }
    }

    #[test]
    fn a_node_hears_again_of_what_it_acts_on_and_of_nothing_else() {
        let pod = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut pod = serde_json::json!({
                "metadata": {"name": "web", "uid": "u", "resourceVersion": "5", "labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "one"}]},
                "status": {"phase": "Pending"}
            });
            change(&mut pod);
            wanted_mark(pod.to_string().as_bytes())
        };
        let first = pod(&|_| {});
        let news: [&dyn Fn(&mut serde_json::Value); 5] = [
            &|p| p["status"]["conditions"] = serde_json::json!([{"type": "a.b/c", "status": "True"}]),
            &|p| p["spec"]["containers"][0]["image"] = "two".into(),
            &|p| p["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into(),
            &|p| p["metadata"]["deletionGracePeriodSeconds"] = 3.into(),
            &|p| p["metadata"]["labels"]["a"] = "c".into(),
        ];
        for (row, change) in news.iter().enumerate() {
            assert_ne!(pod(change), first, "{row}");
        }
        assert_eq!(pod(&|p| p["status"]["phase"] = "Running".into()), first);
        let own = serde_json::json!([{"type": "Ready", "status": "True"}]);
        assert_eq!(pod(&|p| p["status"]["conditions"] = own.clone()), first);
        assert_eq!(pod(&|p| p["metadata"]["resourceVersion"] = "6".into()), first);
        assert_ne!(wanted_mark(b"no pod"), first);
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let facts = MachineFacts { cpus: 2, disk_bytes: 100, ..MachineFacts::default() };
        let first = node_status(&facts, None, 1_000_000);
        let second = node_status(&facts, Some(&first), 2_000_000);
        let full = node_status(
            &MachineFacts { pressure: Pressure { disk: true, ..Pressure::default() }, ..facts },
            Some(&second),
            3_000_000,
        );
        let at = |s: &v1::NodeStatus, name: &str| {
            let c = s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == name).unwrap();
            (c.status.clone(), c.last_transition_time.clone())
        };
        assert_eq!(at(&first, "DiskPressure"), at(&second, "DiskPressure"));
        assert_eq!(at(&full, "DiskPressure"), ("True".into(), Some(time(3_000_000))));
        assert_eq!(at(&full, "Ready"), at(&first, "Ready"));
    }

    #[test]
    fn what_a_node_is_low_on_is_told_when_it_changes() {
        let status = |memory, pids| {
            let pressure = Pressure { memory, disk: true, pids };
            node_status(&MachineFacts { pressure, ..MachineFacts::default() }, None, 0)
        };
        let none: [&str; 0] = [];
        assert_eq!(pressure_changes(&status(true, false), &status(true, false)), none);
        let changes = pressure_changes(&status(false, true), &status(true, false));
        assert_eq!(changes, ["NodeHasInsufficientMemory", "NodeHasSufficientPID"]);
    }

    #[test]
    fn a_lost_node_is_unknown_and_stays_so_since_then() {
        let first = node_status(&MachineFacts::default(), None, 1_000_000);
        let lost = lost_status(&first, 5_000_000);
        assert!(lost.conditions.as_ref().unwrap().iter().all(|c| c.status == "Unknown"));
        assert_eq!(lost_status(&lost, 9_000_000), lost);
        // What others have added they say on.
        let mut added = first;
        let problem = v1::NodeCondition {
            type_: "FrequentRestarts".into(),
            status: "True".into(),
            ..v1::NodeCondition::default()
        };
        added.conditions.get_or_insert_default().push(problem.clone());
        assert_eq!(lost_status(&added, 5_000_000).conditions.unwrap().last(), Some(&problem));
    }
}
