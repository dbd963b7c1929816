//! The CRI runtime of a node: where it is, how it is opened, and its end.
//!
//! Owns: which socket is asked, and what a reset or a clean end of `troupe up` removes. Invariant: what a data directory
//! has in a runtime is removed from that runtime, whatever the options say by then: the node's directory remembers it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{StartError, network};
use crate::{
    model::NodeName,
    runtime::{
        ContainerRuntime,
        cri::{self, CriConfig, CriRuntime, USUAL_SOCKET},
    },
};

/// The directory of a node's CRI runtime.
fn root(data: &Path, node: &NodeName) -> PathBuf {
    data.join("nodes").join(node.as_str()).join("cri")
}

fn used(data: &Path, node: &NodeName) -> Option<CriConfig> {
    let program = std::env::current_exe().unwrap_or_default();
    cri::used(&root(data, node), &program)
}

/// Whether a node has, or may have, containers in a CRI runtime.
pub(super) fn is_used(data: &Path, node: &NodeName) -> bool {
    used(data, node).is_some()
}

/// The socket: the one asked for, else that which has the nodes' containers, else the usual one.
fn socket(wanted: Option<&str>, data: &Path, nodes: &[NodeName]) -> Result<PathBuf, StartError> {
    match wanted {
        Some(endpoint) => Ok(cri::socket(endpoint)?),
        None => {
            let used = nodes.iter().find_map(|node| used(data, node));
            Ok(used.map_or_else(|| PathBuf::from(USUAL_SOCKET), |used| used.socket))
        }
    }
}

/// Whether a runtime answers.
///
/// # Errors
/// What is wrong, and what to do.
pub(super) fn may_run(wanted: Option<&str>, data: &Path, nodes: &[NodeName]) -> Result<(), StartError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::Refused(
            "the cri runtime needs root, for pods' volumes, cgroups and network (sudo)".to_owned(),
        ));
    }
    Ok(cri::check(&socket(wanted, data, nodes)?)?)
}

/// Opens the CRI runtime of node number `index` of a data directory.
///
/// # Errors
/// When it does not answer: what to do. When the node has containers in another one.
pub(super) async fn open(
    data: &Path,
    node: &NodeName,
    index: usize,
    wanted: Option<&str>,
) -> Result<Arc<dyn ContainerRuntime>, StartError> {
    // What is in the runtime is found by this path: it has to be one for however it was typed.
    let data =
        &std::fs::canonicalize(data).map_err(|source| StartError::File { path: data.to_owned(), source })?;
    let socket = socket(wanted, data, std::slice::from_ref(node))?;
    if let Some(used) = used(data, node).filter(|used| used.socket != socket) {
        return Err(StartError::Refused(format!(
            "node {node} has its containers in the container runtime at {used}, not at {}: use --cri-socket {used}, or \
             end them with `troupe reset`",
            socket.display(),
            used = used.socket.display()
        )));
    }
    let program = std::env::current_exe()
        .map_err(|source| StartError::File { path: "/proc/self/exe".into(), source })?;
    let (bridge, cgroup_parent) = network::names(data, index);
    let config = CriConfig { root: root(data, node), socket, program, bridge, cgroup_parent };
    // It waits for the runtime, the first time for the load of an image.
    let opened = tokio::task::spawn_blocking(move || CriRuntime::open(config)).await;
    let opened = opened.map_err(|error| StartError::Refused(format!("open the cri runtime: {error}")))?;
    Ok(Arc::new(opened?))
}

/// What a node has in a CRI runtime.
pub(super) struct Left {
    runtime: CriRuntime,
    /// How many pods, running or not.
    pub pods: usize,
}

impl Left {
    /// What these nodes have.
    ///
    /// # Errors
    /// When a runtime that has something does not answer.
    pub(super) async fn find(data: &Path, nodes: &[NodeName]) -> Result<Vec<Left>, StartError> {
        let mut all = Vec::new();
        for node in nodes {
            let Some(config) = used(data, node) else { continue };
            let root = config.root.clone();
            let opened = tokio::task::spawn_blocking(move || CriRuntime::open_to_remove(config)).await;
            let unreachable = |why: String| {
                StartError::Refused(format!(
                    "the containers of node {node} are in a container runtime: {why}; if that runtime is gone for good, \
                     remove {} and try again",
                    root.display()
                ))
            };
            let runtime =
                opened.map_err(|e| unreachable(e.to_string()))?.map_err(|e| unreachable(e.to_string()))?;
            let pods = runtime.list_pod_sandboxes().await?.len();
            all.push(Left { runtime, pods });
        }
        Ok(all)
    }

    /// Removes it.
    ///
    /// # Errors
    /// When the runtime does not do it.
    pub(super) async fn remove(&self) -> Result<(), StartError> {
        Ok(self.runtime.destroy().await?)
    }
}

/// Takes what nodes without pods have beside them off the machine.
pub(super) async fn tidy(data: &Path, nodes: &[NodeName]) {
    for node in nodes {
        let removed = async {
            let found = Left::find(data, std::slice::from_ref(node)).await?;
            for left in found.iter().filter(|left| left.pods == 0) {
                left.remove().await?;
            }
            Ok::<_, StartError>(())
        };
        if let Err(error) = removed.await {
            tracing::debug!(%node, %error, "something of an empty node is left in the container runtime");
        }
    }
}
