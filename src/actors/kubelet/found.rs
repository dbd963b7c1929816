//! What the runtime and the disk have of pods, as a kubelet finds it.
//!
//! Owns: the grouping of what the runtime lists, its events as a stream, and the removal of directories. No decisions.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    model::Uid,
    runtime::{ContainerStatus, RuntimeEvent, SandboxStatus, native::unmount_below},
};

/// What the runtime has of a pod.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its sandbox.
    pub sandbox: SandboxStatus,
    /// Its containers' lives.
    pub containers: Vec<ContainerStatus>,
}

/// Directories of pods that the node does not know any more.
pub fn forgotten_dirs(pods: &Path, keep: impl Fn(&Uid) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(pods).into_iter().flatten().flatten();
    entries
        .filter(|entry| !keep(&Uid::from(entry.file_name().to_string_lossy().as_ref())))
        .map(|entry| entry.path())
        .collect()
}

/// Removes directories off the actor's thread: a volume may hold much. What is mounted in them is taken off first.
pub fn remove_dirs(dirs: Vec<PathBuf>) {
    tokio::task::spawn_blocking(move || {
        for dir in dirs {
            if let Err(error) = unmount_below(&dir) {
                // Without this a removal would reach into what is mounted.
                tracing::warn!(dir = %dir.display(), %error, "a pod's volumes could not be unmounted");
                continue;
            }
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::warn!(dir = %dir.display(), %error, "a pod's directory could not be removed");
                }
                _ => {}
            }
        }
    });
}

/// What was listed, by pod.
pub fn group(sandboxes: Vec<SandboxStatus>, containers: Vec<ContainerStatus>) -> HashMap<Uid, Found> {
    let mut found: HashMap<Uid, Found> = sandboxes
        .into_iter()
        .map(|sandbox| (sandbox.uid.clone(), Found { sandbox, containers: Vec::new() }))
        .collect();
    for container in containers {
        if let Some(found) = found.get_mut(&container.pod) {
            found.containers.push(container);
        }
    }
    found
}

/// The runtime's events as a stream; `None` stands for events that were missed.
pub fn stream_of(
    receiver: tokio::sync::broadcast::Receiver<RuntimeEvent>,
) -> impl futures_util::Stream<Item = Option<RuntimeEvent>> {
    use tokio::sync::broadcast::error::RecvError;
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        match receiver.recv().await {
            Ok(event) => Some((Some(event), receiver)),
            Err(RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "runtime events were missed");
                Some((None, receiver))
            }
            Err(RecvError::Closed) => None,
        }
    })
}
