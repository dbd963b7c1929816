//! A container's volumes before its start: which later mounts are seen on whose side (`mountPropagation`).
//!
//! Owns: holding volumes at places of the container's own. All mounts of the pod are slaves of the node's, so one under
//! which mounts reach the node (`Bidirectional`) is copied in the node's mount namespace, where it is one of those that tell
//! each other; and so is one that the node began to share after the pod had begun. Invariants: the shim comes back from there or ends; a held copy is taken out of their circle before it is
//! taken off, or the node's mounts would go with it.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns},
};

use super::super::{
    beneath, mounts,
    protocol::Fault,
    state::{ContainerDir, ContainerRecord},
    sys,
};
use crate::runtime::{Mount, Propagation};

/// Checks volumes, and holds some at a place of the container's own: parts of volumes, where no stranger can put a
/// symlink in their place before the container starts; and those that are not to see what the node mounts later.
pub(super) fn prepare(
    dir: &ContainerDir,
    record: &mut ContainerRecord,
    node_mounts: &File,
) -> Result<(), Fault> {
    let table = fs::read("/proc/self/mountinfo").map_err(Fault::system("read the mounts"))?;
    for (index, mount) in record.config.mounts.iter_mut().enumerate() {
        let held = dir.held().join(index.to_string());
        let fault = |mount: &Mount| format!("hold {} of container {}", mount.host_path.display(), record.id);
        let place = fs::canonicalize(&mount.host_path).unwrap_or_else(|_| mount.host_path.clone());
        let receives = mounts::receives(&table, &place);
        let listens = mount.propagation == Propagation::HostToContainer;
        if mount.propagation == Propagation::Bidirectional || (listens && !receives) {
            let tree = copy(node_mounts, mount)?;
            let source = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
            make_place(&source, &held)
                .and_then(|()| sys::mount_copy(&tree, &held))
                .and_then(|()| if listens { only_listen(&held).map_err(io::Error::from) } else { Ok(()) })
                .map_err(Fault::system(fault(mount)))?;
            mount.host_path = held;
            continue;
        }
        let private = receives && mount.propagation == Propagation::Private;
        let part =
            match &mount.within {
                Some(root) => Some(beneath::open(root, &mount.host_path).map_err(|error| {
                    Fault::Config(format!("subPath {}: {error}", mount.host_path.display()))
                })?),
                // What is not there is told when the container starts.
                None if private && place.exists() => None,
                None => continue,
            };
        let source = match &part {
            Some(part) => PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd())),
            None => mount.host_path.clone(),
        };
        hold(&source, &held, private).map_err(Fault::system(fault(mount)))?;
        mount.host_path = held;
    }
    Ok(())
}

/// Makes a directory or file for a directory or file to be mounted on.
fn make_place(source: &Path, held: &Path) -> io::Result<()> {
    fs::create_dir_all(held.parent().unwrap_or(held))?;
    if fs::metadata(source)?.is_dir() { fs::create_dir(held) } else { File::create(held).map(drop) }
}

/// Binds a file or directory to a new place.
fn hold(source: &Path, held: &Path, private: bool) -> io::Result<()> {
    make_place(source, held)?;
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), held, None::<&str>, bind, None::<&str>)?;
    if private {
        part(held)?;
    }
    Ok(())
}

/// A copy of a volume's mount that shares with the node what is mounted below it later, or is told of it if no more is
/// asked for; `node` is its mount namespace.
fn copy(node: &File, volume: &Mount) -> Result<OwnedFd, Fault> {
    let path = volume.host_path.display();
    let (how, suits): (_, fn(&[u8], &Path) -> bool) = match volume.propagation {
        Propagation::Bidirectional => ("Bidirectional", mounts::shared),
        Propagation::HostToContainer | Propagation::Private => ("HostToContainer", mounts::receives),
    };
    let copied = inside(node, || -> io::Result<Option<OwnedFd>> {
        let part = volume.within.as_ref().map(|root| beneath::open(root, &volume.host_path)).transpose()?;
        let place = match &part {
            Some(part) => PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd())),
            None => volume.host_path.clone(),
        };
        let real = fs::canonicalize(&place)?;
        let table = fs::read("/proc/self/mountinfo")?;
        suits(&table, &real).then(|| sys::copy_mounts(&place)).transpose()
    });
    match copied.map_err(Fault::system("look at the node's mounts"))? {
        Ok(Some(tree)) => Ok(tree),
        Ok(None) => Err(Fault::Config(format!(
            "path {path} is not on a shared mount of the node: mountPropagation {how} cannot work; on the node: mount \
             --make-rshared /"
        ))),
        Err(error) => Err(Fault::Config(format!("path {path}: {error}"))),
    }
}

/// Does something in another mount namespace. Only for a process of one thread.
fn inside<T>(namespace: &File, work: impl FnOnce() -> T) -> io::Result<T> {
    let own = File::open("/proc/self/ns/mnt")?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let done = work();
    if let Err(error) = setns(&own, CloneFlags::CLONE_NEWNS) {
        // Whatever it mounted from here on would be the node's.
        tracing::error!(%error, "the shim cannot come back from the node's mounts");
        std::process::exit(1);
    }
    std::env::set_current_dir("/")?;
    Ok(done)
}

/// Has what is mounted at a place, and below, be told what is mounted, and tell nobody.
fn only_listen(place: &Path) -> nix::Result<()> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)
}

/// Has what is mounted at a place, and below, tell nobody any more.
pub(super) fn part(place: &Path) -> nix::Result<()> {
    mount(None::<&str>, place, None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
}
