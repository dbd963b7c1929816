//! What the runtime and the disk have of pods, as a kubelet finds it.
//!
//! Owns: the grouping of what the runtime lists, its events as a stream, and the removal of directories. No decisions.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use crate::{
    actors::outside,
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

/// Directories of pods that the node does not know any more: volumes by uid, logs by `NAMESPACE_NAME_UID`.
pub fn forgotten_dirs(node: &Path, keep: impl Fn(&Uid) -> bool) -> Vec<PathBuf> {
    let places = [node.join("pods"), node.join("logs")];
    let entries = places.iter().flat_map(std::fs::read_dir).flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            !keep(&Uid::from(name.rsplit('_').next().unwrap_or_default()))
        })
        .map(|entry| entry.path())
        .collect()
}

/// Removes directories off the actor's thread: a volume may hold much. What is mounted in them is taken off first.
pub fn remove_dirs(dirs: Vec<PathBuf>) {
    drop(outside::blocking(move || {
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
    }));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_forgotten_pods_left_is_found_by_their_uids_and_the_rest_stays() {
        let node = tempfile::tempdir().unwrap();
        for dir in ["pods/known", "pods/gone", "logs/default_web_known", "logs/default_web_gone"] {
            std::fs::create_dir_all(node.path().join(dir)).unwrap();
        }
        let mut found = forgotten_dirs(node.path(), |uid| uid.as_str() == "known");
        found.sort();
        assert_eq!(found, [node.path().join("logs/default_web_gone"), node.path().join("pods/gone")]);
    }
}
