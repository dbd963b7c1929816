//! A pod's volumes on the node's disk and in its memory.
//!
//! Owns: making what [`crate::logic::pod::volumes`] says, before the pod's sandbox, and keeping files up to date while it
//! runs. Invariants: all of it can be repeated, so that a later kubelet goes on with what is there; contents of secrets
//! are written to memory only; what is mounted lies below the pod's directory, where whoever removes that finds it.

mod atomic;
mod host;
mod memory;

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    sync::Arc,
};

use k8s_openapi::api::core::v1;

use super::context::NodeContext;
use crate::{
    actors::outside,
    logic::pod::{
        config::Places,
        volumes::{Source, Volume, failed, fs_group, volumes},
    },
    runtime::native::unmount_below,
};

/// Makes every volume that the pod's containers mount.
///
/// # Errors
/// Kubernetes' message for each volume that cannot be had.
pub async fn set_up(node: &Arc<NodeContext>, pod: &v1::Pod, places: Places) -> Result<(), Vec<String>> {
    apply(node, pod, places, true).await
}

/// Brings the files of a running pod's volumes up to date.
///
/// # Errors
/// Kubernetes' message for each volume that cannot be; its files stay as they are.
pub async fn refresh(node: &Arc<NodeContext>, pod: &v1::Pod, places: Places) -> Result<(), Vec<String>> {
    apply(node, pod, places, false).await
}

/// Gives back the memory that volumes take when nothing of the pod runs any more; directories stay for its removal.
/// Whether nothing is mounted there any more: only then may what is in them be removed.
pub async fn release(places: Places) -> bool {
    let volumes = places.pod_dir.join("volumes");
    let work = outside::blocking(move || unmount_below(&volumes).map_err(|e| e.to_string()));
    let released = work.await.unwrap_or_else(|error| Err(error.to_string()));
    if let Err(error) = &released {
        tracing::warn!(%error, "volumes of an ended pod could not be unmounted");
    }
    released.is_ok()
}

/// Removes what a pod that was evicted has in its volumes: the node needs the room now, not when the pod is deleted.
pub async fn empty(places: Places) {
    let volumes = places.pod_dir.join("volumes");
    let work = outside::blocking(move || fs::remove_dir_all(&volumes));
    match work.await.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "volumes of an evicted pod could not be removed");
        }
        _ => {}
    }
}

async fn apply(
    node: &Arc<NodeContext>,
    pod: &v1::Pod,
    places: Places,
    fresh: bool,
) -> Result<(), Vec<String>> {
    let (mut wanted, mut messages) = (Vec::new(), Vec::new());
    for volume in volumes(pod, &node.around(None)) {
        match volume {
            Ok(volume) if fresh || matches!(volume.source, Source::Files { .. }) => wanted.push(volume),
            Ok(_) => {}
            Err(message) => messages.push(message),
        }
    }
    let group = fs_group(pod);
    if node.runtime.has_files() && !wanted.is_empty() {
        let work = move || {
            let each = wanted.iter().filter_map(|volume| {
                make(&places, volume, group, fresh).err().map(|cause| failed(&volume.name, &cause))
            });
            each.collect::<Vec<String>>()
        };
        match outside::blocking(work).await {
            Ok(more) => messages.extend(more),
            Err(error) => messages.push(format!("MountVolume.SetUp failed: {error}")),
        }
    }
    if messages.is_empty() { Ok(()) } else { Err(messages) }
}

fn make(places: &Places, volume: &Volume, group: Option<u32>, fresh: bool) -> Result<(), String> {
    let dir = places.volume(&volume.name);
    let cannot = |error: io::Error| format!("{}: {error}", dir.display());
    match &volume.source {
        Source::Host { path, kind } => host::check(path, kind),
        Source::Directory => {
            if !dir.exists() {
                private(places).and_then(|()| fs::create_dir_all(&dir)).map_err(cannot)?;
                open_to_all(&dir, group).map_err(cannot)?;
            }
            Ok(())
        }
        Source::Memory { size } => {
            private(places).and_then(|()| fs::create_dir_all(&dir)).map_err(cannot)?;
            if memory::mount(&dir, *size).map_err(cannot)? {
                open_to_all(&dir, group).map_err(cannot)?;
            }
            Ok(())
        }
        Source::HugePages { page_bytes } => {
            private(places).and_then(|()| fs::create_dir_all(&dir)).map_err(cannot)?;
            if memory::mount_huge_pages(&dir, *page_bytes).map_err(cannot)? {
                open_to_all(&dir, group).map_err(cannot)?;
            }
            Ok(())
        }
        Source::Files { memory, files } => {
            if fresh {
                private(places).and_then(|()| fs::create_dir_all(&dir)).map_err(cannot)?;
                if *memory {
                    memory::mount(&dir, None).map_err(cannot)?;
                }
                hold_files(&dir, *memory, group).map_err(cannot)?;
            }
            if *memory && !memory::is_mounted(&dir).map_err(cannot)? {
                // Rather no update than a secret on disk.
                return Err(format!("{}: it is not mounted any more", dir.display()));
            }
            atomic::write(&dir, files, group).map(drop).map_err(cannot)
        }
    }
}

/// The pod's directory, which only root may enter: whatever modes its files have, they are not the node's users'.
pub(super) fn private(places: &Places) -> io::Result<()> {
    fs::create_dir_all(&places.pod_dir)?;
    fs::set_permissions(&places.pod_dir, fs::Permissions::from_mode(0o700))
}

/// An empty volume can be written by whatever user a container runs as.
fn open_to_all(dir: &Path, group: Option<u32>) -> io::Result<()> {
    let set_gid = if group.is_some() { 0o2000 } else { 0 };
    if let Some(group) = group {
        give(dir, group)?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777 | set_gid))
}

/// The directory of a volume of files. Kubernetes makes it the group's like one that can be written, sticky where it is in
/// memory; containers see it read-only.
fn hold_files(dir: &Path, memory: bool, group: Option<u32>) -> io::Result<()> {
    let Some(group) = group else { return fs::set_permissions(dir, fs::Permissions::from_mode(0o755)) };
    give(dir, group)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(if memory { 0o3777 } else { 0o2777 }))
}

/// Gives a file to a group. In a user namespace that does not have the group it stays with the one user there is.
fn give(path: &Path, group: u32) -> io::Result<()> {
    match chown(path, None, Some(group)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        given => given,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_directory_of_files_is_the_groups_as_kubernetes_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let own = nix::unistd::getegid().as_raw();
        // The last two list as drwxrwsrwt and drwxrwsrwx.
        for (memory, group, mode) in
            [(true, None, 0o755), (true, Some(own), 0o3777), (false, Some(own), 0o2777)]
        {
            hold_files(dir.path(), memory, group).unwrap();
            let found = fs::metadata(dir.path()).unwrap();
            assert_eq!((found.mode() & 0o7777, found.gid()), (mode, own), "{memory} {group:?}");
        }
    }
}
