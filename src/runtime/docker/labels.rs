//! What is written on containers and networks, so that a later process finds what an earlier one made.
//!
//! Owns: the labels and names of everything in the engine that is ours. Invariant: whatever this runtime makes carries
//! [`ROOT`], and what does not carry this root's is another's, never touched.

use std::{collections::HashMap, path::PathBuf};

use sha2::{Digest, Sha256};

use crate::{
    model::Uid,
    runtime::{ContainerConfig, SandboxConfig, logs::LogLimits},
};

/// The directory of the runtime that made it.
pub(super) const ROOT: &str = "local.troupe.root";
const TYPE: &str = "local.troupe.type";
pub(super) const POD_UID: &str = "local.troupe.pod.uid";
const POD_NAMESPACE: &str = "local.troupe.pod.namespace";
const POD_NAME: &str = "local.troupe.pod.name";
const HOST_NETWORK: &str = "local.troupe.pod.host-network";
const HOST_PID: &str = "local.troupe.pod.host-pid";
const SHARE_PIDS: &str = "local.troupe.pod.share-pids";
const HOST_IPC: &str = "local.troupe.pod.host-ipc";
const PIDS: &str = "local.troupe.pod.pids";
const MEMORY: &str = "local.troupe.pod.memory";
const CREATED_MS: &str = "local.troupe.created-ms";
const CONTAINER: &str = "local.troupe.container.name";
const ATTEMPT: &str = "local.troupe.container.attempt";
const IMAGE: &str = "local.troupe.container.image";
const IMAGE_REF: &str = "local.troupe.container.image-ref";
const LOG: &str = "local.troupe.container.log";
const LOG_LIMITS: &str = "local.troupe.container.log-limits";
const TTY: &str = "local.troupe.container.tty";

/// What a container of the engine is to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Sandbox,
    Container,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Kind::Sandbox => "sandbox",
            Kind::Container => "container",
        }
    }
}

/// Labels as the engine gives them.
pub(super) type Labels = HashMap<String, String>;

/// The filter for what is this root's, as the engine's API takes it.
pub(super) fn filter(root: &str, more: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
    let labels = std::iter::once((ROOT, root)).chain(more.iter().copied());
    HashMap::from([("label".to_owned(), labels.map(|(label, value)| format!("{label}={value}")).collect())])
}

/// [`filter`] for one kind of container, maybe of one pod.
pub(super) fn filter_kind(root: &str, kind: Kind, pod: Option<&Uid>) -> HashMap<String, Vec<String>> {
    let mut more = vec![(TYPE, kind.as_str())];
    more.extend(pod.map(|pod| (POD_UID, pod.as_str())));
    filter(root, &more)
}

/// [`filter`] for all of one pod.
pub(super) fn filter_pod(root: &str, pod: &Uid) -> HashMap<String, Vec<String>> {
    filter(root, &[(POD_UID, pod.as_str())])
}

/// The labels of a sandbox.
pub(super) fn of_sandbox(root: &str, config: &SandboxConfig, created_ms: i64) -> Labels {
    labels([
        (ROOT, root.to_owned()),
        (TYPE, Kind::Sandbox.as_str().to_owned()),
        (POD_UID, config.uid.clone()),
        (POD_NAMESPACE, config.namespace.clone()),
        (POD_NAME, config.name.clone()),
        (HOST_NETWORK, config.host_network.to_string()),
        (HOST_PID, config.host_pid.to_string()),
        (SHARE_PIDS, config.share_pids.to_string()),
        (HOST_IPC, config.host_ipc.to_string()),
        (PIDS, config.pids().to_string()),
        (MEMORY, config.memory_limit_bytes.to_string()),
        (CREATED_MS, created_ms.to_string()),
    ])
}

/// The labels of a container.
pub(super) fn of_container(root: &str, sandbox: &Sandbox, config: &ContainerConfig) -> Labels {
    labels([
        (ROOT, root.to_owned()),
        (TYPE, Kind::Container.as_str().to_owned()),
        (POD_UID, sandbox.uid.to_string()),
        (POD_NAMESPACE, sandbox.namespace.clone()),
        (POD_NAME, sandbox.name.clone()),
        (CONTAINER, config.name.clone()),
        (ATTEMPT, config.attempt.to_string()),
        (IMAGE, config.image.clone()),
        (IMAGE_REF, config.image_ref.clone()),
        (LOG, config.log_path.to_string_lossy().into_owned()),
        (LOG_LIMITS, format!("{}x{}", config.log_limits.max_files, config.log_limits.max_bytes)),
        (TTY, config.tty.to_string()),
    ])
}

fn labels<const N: usize>(labels: [(&str, String); N]) -> Labels {
    labels.into_iter().map(|(label, value)| (label.to_owned(), value)).collect()
}

/// Which kind of ours something is, and of which pod.
pub(super) fn kind_and_pod(labels: &Labels) -> Option<(Kind, Uid)> {
    let kind = [Kind::Sandbox, Kind::Container];
    let kind = kind.into_iter().find(|kind| labels.get(TYPE).is_some_and(|label| label == kind.as_str()))?;
    Some((kind, Uid::from(labels.get(POD_UID)?.as_str())))
}

/// A sandbox' labels, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sandbox {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub host_network: bool,
    pub host_pid: bool,
    pub share_pids: bool,
    pub host_ipc: bool,
    pub pids: i64,
    /// 0 = none.
    pub memory_bytes: i64,
    pub created_ms: i64,
}

impl Sandbox {
    pub(super) fn read(labels: &Labels) -> Option<Sandbox> {
        let (Kind::Sandbox, uid) = kind_and_pod(labels)? else { return None };
        let text = |label: &str| labels.get(label).cloned().unwrap_or_default();
        let is = |label: &str| labels.get(label).is_some_and(|value| value == "true");
        Some(Sandbox {
            uid,
            namespace: text(POD_NAMESPACE),
            name: text(POD_NAME),
            host_network: is(HOST_NETWORK),
            host_pid: is(HOST_PID),
            share_pids: is(SHARE_PIDS),
            host_ipc: is(HOST_IPC),
            pids: text(PIDS).parse().unwrap_or(crate::runtime::limits::DEFAULT_PIDS),
            memory_bytes: text(MEMORY).parse().unwrap_or(0),
            created_ms: text(CREATED_MS).parse().unwrap_or(0),
        })
    }
}

/// A container's labels, read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Container {
    pub pod: Uid,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_ref: String,
    pub log: PathBuf,
    pub log_limits: LogLimits,
    pub tty: bool,
}

impl Container {
    pub(super) fn read(labels: &Labels) -> Option<Container> {
        let (Kind::Container, pod) = kind_and_pod(labels)? else { return None };
        let text = |label: &str| labels.get(label).cloned().unwrap_or_default();
        Some(Container {
            pod,
            name: text(CONTAINER),
            attempt: text(ATTEMPT).parse().unwrap_or(0),
            image: text(IMAGE),
            image_ref: text(IMAGE_REF),
            log: PathBuf::from(text(LOG)),
            log_limits: log_limits(&text(LOG_LIMITS)).unwrap_or_default(),
            tty: text(TTY) == "true",
        })
    }
}

/// Reads `FILESxBYTES`.
fn log_limits(text: &str) -> Option<LogLimits> {
    let (files, bytes) = text.split_once('x')?;
    Some(LogLimits { max_files: files.parse().ok()?, max_bytes: bytes.parse().ok()? })
}

/// The name of something of this root: unique in the engine, and to be recognised by a person.
pub(super) fn name(root: &str, parts: &[&str]) -> String {
    let mut name = name_prefix(root);
    name.pop();
    for part in parts {
        name.push('-');
        // What the engine takes in names.
        name.extend(part.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')));
    }
    name
}

/// What names of this root's begin with.
fn name_prefix(root: &str) -> String {
    let digest = Sha256::digest(root);
    format!("troupe-{:02x}{:02x}{:02x}{:02x}-", digest[0], digest[1], digest[2], digest[3])
}

/// Whether what has these labels is this root's. The labels alone do not tell: a container has those of its image, too, and
/// whoever made that could name any pod and any file there. Names come from whoever makes the container.
pub(super) fn is_ours<'a>(root: &str, mut names: impl Iterator<Item = &'a String>) -> bool {
    let prefix = name_prefix(root);
    names.any(|name| name.trim_start_matches('/').starts_with(&prefix))
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
            host_pid: true,
            ..SandboxConfig::default()
        };
        let written = of_sandbox("/data", &config, 17);
        let sandbox = Sandbox::read(&written).unwrap();
        assert_eq!((sandbox.uid.as_str(), sandbox.name.as_str(), sandbox.created_ms), ("u1", "web", 17));
        assert!(sandbox.host_pid && !sandbox.host_network && !sandbox.host_ipc);
        assert_eq!(Container::read(&written), None, "a sandbox is no container");
        let config = ContainerConfig {
            name: "c".into(),
            attempt: 3,
            image: "app:1".into(),
            log_path: "/logs/c".into(),
            tty: true,
            ..ContainerConfig::default()
        };
        let written = of_container("/data", &sandbox, &config);
        let container = Container::read(&written).unwrap();
        assert_eq!((container.pod.as_str(), container.attempt, container.tty), ("u1", 3, true));
        assert_eq!((container.image.as_str(), container.log.to_str()), ("app:1", Some("/logs/c")));
        assert_eq!(Sandbox::read(&written), None);
    }

    #[test]
    fn names_of_two_roots_differ_and_hold_no_strange_letters() {
        let ours = |name: String| is_ours("/a", [name].iter());
        assert!(ours(name("/a", &["x"])) && ours(format!("/{}", name("/a", &["x"]))), "as engines tell it");
        assert!(!ours(name("/b", &["x"])) && !ours("evil".into()) && !is_ours("/a", [].iter()));

        assert_ne!(name("/a", &["x"]), name("/b", &["x"]));
        assert!(name("/a", &["a b/ü:c"]).ends_with("-abc"));
    }
}
