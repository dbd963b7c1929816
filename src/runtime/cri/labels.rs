//! What is written on sandboxes and containers, so that a later process finds what an earlier one made.
//!
//! Owns: labels and annotations: Kubernetes' own, by which `crictl` shows pods, and ours. Invariant: whatever this
//! runtime makes carries [`ROOT`], and what does not carry this root's is another's, never touched.

use std::{collections::HashMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::proto;
use crate::{
    model::Uid,
    runtime::{ContainerConfig, SandboxConfig},
};

/// The directory of the runtime that made it.
pub(super) const ROOT: &str = "local.troupe.root";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// What else is to be known of a sandbox or a container: JSON.
const RECORD: &str = "local.troupe.record";
/// What the network plugin is told: JSON.
pub(super) const NETWORK: &str = "local.troupe.network";

pub(super) type Labels = HashMap<String, String>;

/// A sandbox, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub id: String,
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub attempt: u32,
    pub ready: bool,
    pub created_ms: i64,
    pub record: SandboxRecord,
}

/// What the interface has no words for in a sandbox' listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct SandboxRecord {
    pub hostname: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub share_pids: bool,
    /// 0 = none.
    pub memory_bytes: i64,
    /// Most processes of each container, where the pod has no cgroup for all of them; 0 = none.
    pub pids_each: i64,
    /// The pod's cgroup, if it has one of its own; from each hierarchy's root.
    pub cgroup: Option<PathBuf>,
}

/// What the interface has no words for in a container's listing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct ContainerRecord {
    pub attempt: u32,
    /// As asked for.
    pub image: String,
    pub image_id: String,
    /// It has a terminal.
    pub tty: bool,
    /// What it is asked to end with, where that is not the image's to say.
    pub stop_signal: Option<String>,
}

/// The labels that choose what is this root's.
pub(super) fn selector(root: &str) -> Labels {
    HashMap::from([(ROOT.to_owned(), root.to_owned())])
}

/// Those of one pod.
pub(super) fn selector_of(root: &str, pod: &Uid) -> Labels {
    let mut labels = selector(root);
    labels.insert(POD_UID.to_owned(), pod.to_string());
    labels
}

pub(super) fn of_sandbox(root: &str, config: &SandboxConfig) -> Labels {
    let mut labels = selector(root);
    for (label, value) in
        [(POD_NAME, &config.name), (POD_NAMESPACE, &config.namespace), (POD_UID, &config.uid)]
    {
        labels.insert(label.to_owned(), value.clone());
    }
    labels
}

pub(super) fn of_container(root: &str, sandbox: &Sandbox, config: &ContainerConfig) -> Labels {
    let mut labels = selector(root);
    for (label, value) in [
        (POD_NAME, sandbox.name.as_str()),
        (POD_NAMESPACE, &sandbox.namespace),
        (POD_UID, sandbox.uid.as_str()),
        (CONTAINER_NAME, &config.name),
    ] {
        labels.insert(label.to_owned(), value.to_owned());
    }
    labels
}

/// The annotation with a record.
pub(super) fn record<T: Serialize>(record: &T) -> Labels {
    // Records are plain structs of texts and numbers, which always have a JSON form.
    HashMap::from([(RECORD.to_owned(), serde_json::to_string(record).unwrap_or_default())])
}

fn recorded<T: for<'a> Deserialize<'a> + Default>(annotations: &Labels) -> T {
    annotations.get(RECORD).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

impl Sandbox {
    pub(super) fn read(found: proto::PodSandbox) -> Option<Sandbox> {
        let metadata = found.metadata?;
        Some(Sandbox {
            id: found.id,
            uid: Uid::from(metadata.uid.as_str()),
            namespace: metadata.namespace,
            name: metadata.name,
            attempt: metadata.attempt,
            ready: found.state == proto::state::SANDBOX_READY,
            created_ms: found.created_at / NANOS_PER_MS,
            record: recorded(&found.annotations),
        })
    }
}

pub(super) const NANOS_PER_MS: i64 = 1_000_000;

/// A container, read back: pod, name and record. `None` when it is none of ours.
pub(super) fn container(labels: &Labels, annotations: &Labels) -> Option<(Uid, String, ContainerRecord)> {
    let uid = Uid::from(labels.get(POD_UID)?.as_str());
    Some((uid, labels.get(CONTAINER_NAME)?.clone(), recorded(annotations)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let config = SandboxConfig {
            namespace: "ns".into(),
            name: "web".into(),
            uid: "u1".into(),
            ..SandboxConfig::default()
        };
        let written = SandboxRecord { host_pid: true, memory_bytes: 5, ..SandboxRecord::default() };
        let found = proto::PodSandbox {
            id: "s".into(),
            metadata: Some(proto::PodSandboxMetadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "ns".into(),
                attempt: 2,
            }),
            labels: of_sandbox("/data", &config),
            annotations: record(&written),
            created_at: 7_000_000,
            ..proto::PodSandbox::default()
        };
        assert_eq!(found.labels[ROOT], "/data");
        let sandbox = Sandbox::read(found).unwrap();
        assert_eq!((sandbox.uid.as_str(), sandbox.created_ms, sandbox.attempt), ("u1", 7, 2));
        assert_eq!(sandbox.record, written);
        let config = ContainerConfig { name: "c".into(), ..ContainerConfig::default() };
        let written = ContainerRecord {
            attempt: 3,
            image: "app:1".into(),
            image_id: "sha256:1".into(),
            tty: true,
            stop_signal: Some("SIGINT".into()),
        };
        let (uid, name, read) =
            container(&of_container("/data", &sandbox, &config), &record(&written)).unwrap();
        assert_eq!((uid.as_str(), name.as_str(), read), ("u1", "c", written));
        assert_eq!(container(&selector("/data"), &Labels::new()), None, "it is nobody's");
    }
}
