//! Images on one machine: loaded from archives, unpacked once, handed out as directories for overlayfs.
//!
//! Owns: [`ImageStore`]. Invariants: a name resolves only to an image whose layers are all unpacked and checked; a crash
//! at any moment leaves no half image; layers with the same content are stored once. Leaves to others: mounting, and
//! when an image is not needed any more.
//!
//! ```text
//! archive → stream (gzip, zstd, limits) → archive (which images) → load → unpack (layer by layer) → index
//! save ← skeleton (a layer's tar out of its files) ← index
//! ```

mod archive;
mod builtin;
mod index;
mod load;
mod manifest;
mod name;
pub mod pack;
mod registry;
mod save;
mod share;
mod skeleton;
mod sparse;
mod stream;
#[cfg(test)]
mod tests;
mod unpack;
mod zstd;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

pub(in crate::runtime) use self::share::wanted;
use self::{
    index::{Disk, Hold, Record},
    stream::Blocking,
};
pub use self::{
    name::{engine_name, normalize, repository},
    registry::{Pulls, RegistryConfig, Threads},
};
use super::{IdleImage, Image, Origin, Reader, RuntimeError, share::SharedImage};

/// The image that needs no archive: our own executable.
pub const BUILTIN_IMAGE: &str = "troupe.local/hello:latest";

/// What one archive may cost. Beyond it loading ends with [`RuntimeError::BadImage`] and leaves nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the archive, decompressed once.
    pub archive_bytes: u64,
    /// Bytes of the files of all new layers together.
    pub unpacked_bytes: u64,
    /// Entries of the archive, and of each layer.
    pub entries: u64,
}

impl Default for Limits {
    /// Far above any real image (large ones with CUDA have 20 GiB and 200,000 files), yet an end to a bomb.
    fn default() -> Limits {
        Limits { archive_bytes: 64 << 30, unpacked_bytes: 64 << 30, entries: 2_000_000 }
    }
}

impl Limits {
    /// What a layer's tar may have: its files, and a header, padding and a long name for each.
    fn tar_bytes(&self) -> u64 {
        const PER_ENTRY: u64 = 8 * 1024;
        self.unpacked_bytes.saturating_add(self.entries.saturating_mul(PER_ENTRY))
    }
}

/// Images in a directory. A handle: clones share it, and several processes may, too.
#[derive(Clone, Debug)]
pub struct ImageStore {
    disk: Arc<Disk>,
    limits: Limits,
}

/// An image ready to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The image.
    pub image: Image,
    /// Its unpacked layers, topmost first: overlayfs' `lowerdir`s. Empty for an image without any.
    pub layers: Vec<PathBuf>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments.
    pub cmd: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where the program starts; may be empty.
    pub working_dir: String,
    /// `user`, `uid`, `user:group`…; may be empty.
    pub user: String,
    /// The signal that asks the program to end, when it is not SIGTERM.
    pub stop_signal: Option<String>,
}

impl ImageStore {
    /// Opens the store in a directory, which is made if missing, and removes what crashes left in it.
    pub fn open(dir: &Path) -> Result<ImageStore, RuntimeError> {
        ImageStore::with_limits(dir, Limits::default())
    }

    /// [`ImageStore::open`] with other limits.
    pub fn with_limits(dir: &Path, limits: Limits) -> Result<ImageStore, RuntimeError> {
        Ok(ImageStore { disk: Arc::new(Disk::open(dir)?), limits })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.disk.dir()
    }

    /// The image of a name (in any form; an image id works too), if it is here. Short: reads one small file.
    pub fn resolve(&self, name: &str) -> Result<Option<ResolvedImage>, RuntimeError> {
        self.find(name)
    }

    /// [`ImageStore::resolve`], and keeps the image's layers until [`ImageStore::unpin`] with the same owner (a
    /// container's id), even when its names go: a running container's root must not vanish. Pins survive restarts.
    pub fn pin(&self, name: &str, owner: &str) -> Result<Option<ResolvedImage>, RuntimeError> {
        let _lock = self.disk.lock(Hold::Shared)?;
        let found = self.find(name)?;
        if let Some(found) = &found {
            self.disk.pin(owner, &found.image.id)?;
        }
        Ok(found)
    }

    /// Ends a pin. Idempotent. What nothing keeps any more goes with the next removal, load or start.
    pub fn unpin(&self, owner: &str) -> Result<(), RuntimeError> {
        self.disk.unpin(owner)
    }

    /// Every image that has a name.
    pub fn list(&self) -> Result<Vec<Image>, RuntimeError> {
        let index = self.disk.read()?;
        Ok(index
            .images
            .keys()
            .filter_map(|id| index.image(id))
            .filter(|image| !image.names.is_empty())
            .collect())
    }

    /// Loads the images of an archive (docker-archive or OCI layout, maybe gzip): returns their full names. `rename`
    /// names the only image in it.
    pub async fn load(&self, archive: Reader, rename: Option<String>) -> Result<Vec<String>, RuntimeError> {
        let (store, archive) = (self.clone(), Blocking::new(archive));
        blocking(move || load::load(&store.disk, &store.limits, archive, rename.as_deref())).await
    }

    /// Writes images (names in any form, or ids) as one tar that is an OCI layout and a docker-archive.
    pub async fn save(&self, names: Vec<String>) -> Result<Reader, RuntimeError> {
        save::save(self, names).await
    }

    /// Makes an image of one layer out of a root file system's tar (maybe gzip): returns its full name.
    pub async fn import(&self, rootfs: Reader, name: &str) -> Result<String, RuntimeError> {
        let (store, rootfs, name) = (self.clone(), Blocking::new(rootfs), name.to_owned());
        blocking(move || load::import(&store.disk, &store.limits, rootfs, &name)).await
    }

    /// Where the image of a name came from. What is named by its id nobody can be asked for; of a name that nothing has, its
    /// registry can be.
    pub fn origin(&self, name: &str) -> Result<Origin, RuntimeError> {
        let index = self.disk.read()?;
        if index.images.contains_key(name) {
            return Ok(Origin::ByHand);
        }
        let full = normalize(name)?;
        Ok(if index.notes.get(&full).is_some_and(|note| note.copy) {
            Origin::Copied
        } else if index.names.contains_key(&full) && !index.pulled.contains(&full) {
            Origin::ByHand
        } else {
            Origin::Registry
        })
    }

    /// The images that have only names that were pulled, and that nothing keeps.
    pub fn idle(&self) -> Result<Vec<IdleImage>, RuntimeError> {
        let _lock = self.disk.lock(Hold::Shared)?;
        let index = self.disk.read()?;
        let kept = self.disk.pinned()?;
        let images = index.images.keys().filter(|id| !kept.contains(*id)).filter_map(|id| index.image(id));
        let idle = images.filter(|i| !i.names.is_empty() && i.names.iter().all(|n| index.pulled.contains(n)));
        Ok(idle.map(|i| IdleImage { used_ms: self.disk.used_ms(&i.id), names: i.names }).collect())
    }
    /// The names that other machines may have from this one.
    pub fn shared(&self) -> Result<Vec<SharedImage>, RuntimeError> {
        share::shared(self)
    }

    /// One part of an image that others may have: its configuration, or a layer as an uncompressed tar. The reader fails
    /// in the end when it is not what its digest says.
    pub async fn part(&self, image: &str, digest: &str) -> Result<Reader, RuntimeError> {
        share::part(self, image, digest).await
    }

    /// Removes a name, and the image's content that nothing else needs: no other name, no other image, no pin.
    pub async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        let (store, asked) = (self.clone(), name.to_owned());
        let full = normalize(name)?;
        blocking(move || {
            store.disk.update(|index| {
                if index.unname(&full) { Ok(()) } else { Err(RuntimeError::ImageNotFound(asked)) }
            })?;
            store.disk.sweep()
        })
        .await
    }

    /// Makes the built-in image [`BUILTIN_IMAGE`] out of an executable, or refreshes it when that changed.
    pub async fn ensure_builtin(&self, exe: &Path) -> Result<(), RuntimeError> {
        let (store, exe) = (self.clone(), exe.to_owned());
        blocking(move || builtin::ensure(&store.disk, &exe)).await
    }

    /// The full form of a name: [`normalize`].
    pub fn normalize(&self, name: &str) -> Result<String, RuntimeError> {
        normalize(name)
    }

    fn find(&self, name: &str) -> Result<Option<ResolvedImage>, RuntimeError> {
        let index = self.disk.read()?;
        let id = match name.strip_prefix("sha256:") {
            Some(hex) if name::is_hex(hex, 64) => Some(name.to_owned()),
            _ => index.names.get(&normalize(name)?).cloned(),
        };
        let Some((id, record)) = id.and_then(|id| Some((index.images.get(&id)?, id))).map(|(r, id)| (id, r))
        else {
            return Ok(None);
        };
        Ok(index.image(&id).map(|image| self.resolved(image, record)))
    }

    fn resolved(&self, image: Image, record: &Record) -> ResolvedImage {
        ResolvedImage {
            image,
            layers: record.layers.iter().rev().map(|layer| self.disk.layer(&layer.diff_id)).collect(),
            entrypoint: record.entrypoint.clone(),
            cmd: record.cmd.clone(),
            env: record.env.clone(),
            working_dir: record.working_dir.clone(),
            user: record.user.clone(),
            stop_signal: record.stop_signal.clone(),
        }
    }
}

/// Runs blocking work where it blocks nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(RuntimeError::System { operation: "image work".into(), cause: error.to_string() })
    })
}
