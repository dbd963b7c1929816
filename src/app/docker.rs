//! The docker runtime of a node: where it is, how it is opened, and its end.
//!
//! Owns: which engine is asked, and what a reset or a clean end of `troupe up` removes from it. Invariant: what a data
//! directory has in an engine is removed from that engine, whatever the environment says by then: the node's directory
//! remembers it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::StartError;
use crate::{
    model::NodeName,
    runtime::{
        ContainerRuntime, RuntimeError,
        docker::{self, DockerConfig, DockerRuntime},
    },
};

/// The directory of a node's docker runtime.
fn root(data: &Path, node: &NodeName) -> PathBuf {
    data.join("nodes").join(node.as_str()).join("docker")
}

/// Whether a node has, or may have, containers in an engine.
pub(super) fn is_used(data: &Path, node: &NodeName) -> bool {
    docker::used_socket(&root(data, node)).is_some()
}

/// Whether any node of a data directory has, or may have, containers in an engine.
pub(super) fn is_used_in(data: &Path) -> bool {
    let nodes = std::fs::read_dir(data.join("nodes")).into_iter().flatten().flatten();
    nodes.into_iter().any(|node| is_used(data, &NodeName::from(&*node.file_name().to_string_lossy())))
}

/// Whether an engine answers.
///
/// # Errors
/// What is wrong, and what to do.
pub(super) fn may_run() -> Result<(), RuntimeError> {
    docker::check(&docker::socket()?)
}

fn config(data: &Path, node: &NodeName, socket: PathBuf) -> Result<DockerConfig, StartError> {
    // What is in the engine is found by this path: it has to be one for however it was typed.
    let data =
        std::fs::canonicalize(data).map_err(|source| StartError::File { path: data.to_owned(), source })?;
    let program = std::env::current_exe()
        .map_err(|source| StartError::File { path: "/proc/self/exe".into(), source })?;
    Ok(DockerConfig { root: root(&data, node), socket, program })
}

/// Opens the docker runtime of a node.
///
/// # Errors
/// When the engine does not answer: what to do. When the node has containers in another engine.
pub(super) async fn open(data: &Path, node: &NodeName) -> Result<Arc<dyn ContainerRuntime>, StartError> {
    let socket = docker::socket()?;
    if let Some(used) = docker::used_socket(&root(data, node)).filter(|used| *used != socket) {
        return Err(StartError::Refused(format!(
            "node {node} has its containers in the docker engine at {}, not at {}: set DOCKER_HOST=unix://{}, or end \
             them with `troupe reset`",
            used.display(),
            socket.display(),
            used.display()
        )));
    }
    let config = config(data, node, socket)?;
    // It waits for the engine, the first time for the load of an image.
    let opened = tokio::task::spawn_blocking(move || DockerRuntime::open(config)).await;
    let opened = opened.map_err(|error| StartError::Refused(format!("open the docker runtime: {error}")))?;
    Ok(Arc::new(opened?))
}

/// What a node has in an engine.
pub(super) struct Left {
    runtime: DockerRuntime,
    /// How many pods, running or not.
    pub pods: usize,
}

impl Left {
    /// What these nodes have.
    ///
    /// # Errors
    /// When an engine that has something does not answer.
    pub(super) async fn find(data: &Path, nodes: &[NodeName]) -> Result<Vec<Left>, StartError> {
        let mut all = Vec::new();
        for node in nodes {
            let root = root(data, node);
            let Some(socket) = docker::used_socket(&root) else { continue };
            let config = config(data, node, socket)?;
            let opened = tokio::task::spawn_blocking(move || DockerRuntime::open_to_remove(config)).await;
            let unreachable = |why: String| {
                StartError::Refused(format!(
                    "the containers of node {node} are in a docker engine: {why}; if that engine is gone for good, \
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
    /// When the engine does not do it.
    pub(super) async fn remove(&self) -> Result<(), StartError> {
        Ok(self.runtime.destroy().await?)
    }
}

/// Takes the networks of nodes without pods out of the engine.
pub(super) async fn tidy(data: &Path, nodes: &[NodeName]) {
    for node in nodes {
        let removed = async {
            for left in
                Left::find(data, std::slice::from_ref(node)).await?.iter().filter(|left| left.pods == 0)
            {
                left.remove().await?;
            }
            Ok::<_, StartError>(())
        };
        if let Err(error) = removed.await {
            tracing::debug!(%node, %error, "something of an empty node is left in the docker engine");
        }
    }
}
