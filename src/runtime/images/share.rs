//! Images between machines: parts given away by digest, and images put together from parts that others give.
//!
//! Owns: which names may be handed on, how one part is read, and [`take`]. Invariants: nothing is handed on that came with
//! credentials, and nothing under a digest's name, which a manifest would have to prove; each part is hashed while it is
//! written, and what is not what its digest says never gets further than the staging directory; an image that came whole
//! gets its name in one step, as if pulled, and never takes it from one that was pulled or brought here. A layer that is here
//! with credentials alone stands for nobody else's: it has to come like any other. Bounded: a part is never held; its
//! bytes, those of failures among them, the silence between them and their pace are.

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use super::{
    BUILTIN_IMAGE, ImageStore, Limits,
    archive::{Blob, Found},
    blocking,
    index::{Index, Note, Origin},
    load::{self, all_layers_of},
    manifest::MAX_DOCUMENT,
    name::{is_hex, normalize},
    registry::Progress,
    save,
    stream::{BUFFER, bad, digest_of, format_digest, system},
};
use crate::runtime::{
    Image, Reader, RuntimeError,
    share::{Came, PartSource, SharedImage},
};

/// A part of which nothing more comes for so long is lost; a node that is dead is known to be so much sooner.
const SILENCE: Duration = Duration::from_secs(30);

/// So many times what an image may have is taken in vain at most: from as many givers who each send as much as they may.
const NONSENSE: u64 = 3;

/// So much of a layer comes in each such time, or it is given up: a giver that trickles would keep a turn for ever.
const LEAST: (u64, Duration) = (1 << 20, Duration::from_secs(60));

/// The names that others may have, in the order of names; then those that somebody brought here and removed.
pub(super) fn shared(store: &ImageStore) -> Result<Vec<SharedImage>, RuntimeError> {
    let index = store.disk.read()?;
    let given = index.names.iter().filter_map(|(name, id)| {
        let came = may_go(&index, name)?;
        store.disk.has_config(id).then(|| SharedImage { name: name.clone(), id: id.clone(), came })
    });
    let removed = index.removed.iter().filter(|(name, _)| is_shared_name(name)).map(|(name, removal)| {
        let came = Came::Removed { at_ms: removal.at_ms };
        SharedImage { name: name.clone(), id: removal.id.clone(), came }
    });
    Ok(given.chain(removed).collect())
}

/// The built-in image is everybody's own, and what has a digest for its name would have to be proved by a manifest.
fn is_shared_name(name: &str) -> bool {
    name != BUILTIN_IMAGE && !name.contains('@')
}

/// How a name came, if others may have it.
fn may_go(index: &Index, name: &str) -> Option<Came> {
    if !is_shared_name(name) {
        return None;
    }
    let note = index.notes.get(name).cloned();
    let Note { copy, open, since_ms, .. } = note.unwrap_or_default();
    match index.pulled.contains(name) {
        true => open.then_some(Came::Pulled),
        false if copy => Some(Came::Copied { since_ms }),
        false => Some(Came::ByHand { since_ms }),
    }
}

/// One part of an image that others may have.
pub(super) async fn part(store: &ImageStore, image: &str, digest: &str) -> Result<Reader, RuntimeError> {
    let (store, image, digest) = (store.clone(), image.to_owned(), digest.to_owned());
    let (of, wanted) = (store.clone(), digest.clone());
    let planned = blocking(move || {
        let absent = || RuntimeError::ImageNotFound(image.clone());
        // While held, no layer goes.
        let loading = of.disk.loading()?;
        let index = of.disk.read()?;
        let mut names = index.names.iter().filter(|(_, id)| **id == image);
        if !names.any(|(name, _)| may_go(&index, name).is_some()) {
            return Err(absent());
        }
        if wanted == image {
            return Ok((of.disk.config(&image)?.ok_or_else(absent)?, None));
        }
        let record = index.images.get(&image).ok_or_else(absent)?;
        if !record.layers.iter().any(|layer| layer.diff_id == wanted) {
            return Err(RuntimeError::NotFound(format!("layer {wanted} of image {image}")));
        }
        Ok((Vec::new(), Some(loading)))
    });
    match planned.await? {
        (document, None) => Ok(Box::pin(io::Cursor::new(document))),
        (_, Some(loading)) => Ok(save::written(move |out| {
            let _loading = loading;
            save::layer(&store.disk.layer_home(&digest), &digest, out)
        })),
    }
}

/// Puts an image together. It gets its name, and how it came: as a copy of what was brought by hand, or as pulled.
pub(super) async fn take(
    store: &ImageStore,
    offer: &SharedImage,
    source: &dyn PartSource,
    progress: &Progress,
) -> Result<Image, RuntimeError> {
    let full = wanted(offer)?;
    // It may have come from its registry, or by hand, since it was asked for.
    let (of, name) = (store.clone(), full.clone());
    let own = blocking(move || {
        let copy = of.disk.read()?.notes.get(&name).is_some_and(|note| note.copy);
        Ok(of.find(&name)?.filter(|_| !copy).map(|found| found.image))
    });
    if let Some(image) = own.await? {
        return Ok(image);
    }
    let described = Described::of(source, &offer.id).await?;
    let disk = store.disk.clone();
    // While the first is held no layer goes; the second removes what it has when it is dropped.
    let (loading, staging, open) = blocking(move || {
        let loading = disk.loading()?;
        Ok((loading, disk.stage()?, open_layers(&disk.read()?)))
    })
    .await?;
    // Whoever knows the digest of a layer that came with credentials does not have it for that.
    let absent = |id: &&String| !open.contains(*id) || store.disk.layer_bytes(id).is_none();
    let missing: BTreeSet<&String> = described.diff_ids.iter().filter(absent).collect();
    described.fetch(source, &missing, &staging.path, &store.limits, progress).await?;
    let found = described.found(&full, &staging.path);
    let origin = match offer.came {
        Came::ByHand { since_ms } | Came::Copied { since_ms } => Origin::Copy { since_ms },
        // Under which digest the registry has it is not told.
        Came::Pulled => Origin::Registry { open: true, digest: None },
        // Refused above.
        Came::Removed { at_ms } => Origin::Copy { since_ms: at_ms },
    };
    let store = store.clone();
    blocking(move || {
        load::gathered(&store.disk, &store.limits, &staging, &found, origin)?;
        drop((staging, loading));
        store.disk.sweep()?;
        let image = store.find(&full)?.map(|found| found.image);
        image.ok_or_else(|| bad(format!("{full}: it was removed meanwhile")))
    })
    .await
}

/// Fetches all of an image into `dir`, for an engine that keeps images itself.
pub(super) async fn whole(
    offer: &SharedImage,
    source: &dyn PartSource,
    dir: &Path,
    limits: &Limits,
) -> Result<Found, RuntimeError> {
    let full = wanted(offer)?;
    let described = Described::of(source, &offer.id).await?;
    let all: BTreeSet<&String> = described.diff_ids.iter().collect();
    described.fetch(source, &all, dir, limits, &Progress::default()).await?;
    Ok(described.found(&full, dir))
}

/// The full name of what is offered, if that can be taken.
pub(in crate::runtime) fn wanted(offer: &SharedImage) -> Result<String, RuntimeError> {
    let full = normalize(&offer.name)?;
    if !is_shared_name(&full) || !is_digest(&offer.id) || matches!(offer.came, Came::Removed { .. }) {
        return Err(bad(format!("{} is not taken from other nodes", offer.name)));
    }
    Ok(full)
}

/// An image whose configuration is here.
struct Described {
    document: Vec<u8>,
    diff_ids: Vec<String>,
}

impl Described {
    async fn of(source: &dyn PartSource, id: &str) -> Result<Described, RuntimeError> {
        let document = document(source, id).await?;
        let diff_ids = all_layers_of(&document)?;
        match diff_ids.iter().find(|id| !is_digest(id)) {
            Some(other) => Err(bad(format!("{other:?} is not a sha256 digest"))),
            None => Ok(Described { document, diff_ids }),
        }
    }

    /// Fetches some of its layers.
    async fn fetch(
        &self,
        source: &dyn PartSource,
        missing: &BTreeSet<&String>,
        dir: &Path,
        limits: &Limits,
        progress: &Progress,
    ) -> Result<(), RuntimeError> {
        progress.begin(self.diff_ids.len(), missing.len(), 0);
        let good = limits.archive_bytes;
        let mut allowed = Allowance { good, nonsense: good.saturating_mul(NONSENSE) };
        for diff_id in missing {
            layer(source, diff_id, &file_of(dir, diff_id), &mut allowed, progress).await?;
            progress.layer_done();
        }
        Ok(())
    }

    /// It as if an archive had been spread over `dir`.
    fn found(self, full: &str, dir: &Path) -> Found {
        let blobs = self.diff_ids.iter().map(|id| Blob { path: file_of(dir, id), digest: None });
        Found { names: vec![full.to_owned()], layers: blobs.collect(), config: self.document }
    }
}

/// The layers of images that everybody may have.
fn open_layers(index: &Index) -> BTreeSet<String> {
    let open = index.names.iter().filter(|(name, _)| may_go(index, name).is_some());
    let records = open.filter_map(|(_, id)| index.images.get(id));
    records.flat_map(|record| &record.layers).map(|layer| layer.diff_id.clone()).collect()
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| is_hex(hex, 64))
}

fn file_of(staging: &Path, diff_id: &str) -> PathBuf {
    staging.join(diff_id.replace(':', "-"))
}

/// The configuration, from whoever has the one of this digest.
async fn document(source: &dyn PartSource, digest: &str) -> Result<Vec<u8>, RuntimeError> {
    loop {
        let read = async {
            let mut part = source.part(digest).await?.take(MAX_DOCUMENT + 1);
            let mut bytes = Vec::new();
            let all = tokio::time::timeout(SILENCE, part.read_to_end(&mut bytes)).await;
            all.map_err(|_| silent())?.map_err(|error| error.to_string())?;
            if bytes.len() as u64 > MAX_DOCUMENT {
                return Err(format!("{digest} is larger than {MAX_DOCUMENT} bytes"));
            }
            match digest_of(&bytes) {
                real if real == digest => Ok(bytes),
                real => Err(another_digest(digest, &real)),
            }
        };
        match read.await {
            Ok(bytes) => return Ok(bytes),
            Err(why) => {
                if !source.another(why.clone()).await {
                    return Err(RuntimeError::Pull(why));
                }
            }
        }
    }
}

/// What may come yet of an image: of use, and of no use.
struct Allowance {
    /// The layers themselves.
    good: u64,
    /// What others sent in vain. It is not the layers' loss, so whoever sends nonsense starves no honest one; and in sum
    /// it has an end, so many who send nonsense send no more than a few.
    nonsense: u64,
}

/// Fetches a layer into a file, from whoever has it, and charges what came.
async fn layer(
    source: &dyn PartSource,
    digest: &str,
    file: &Path,
    allowed: &mut Allowance,
    progress: &Progress,
) -> Result<(), RuntimeError> {
    loop {
        let mut got = 0;
        let why = match fetch(source, digest, file, allowed.good, &mut got, progress).await {
            Ok(()) => {
                allowed.good = allowed.good.saturating_sub(got);
                return Ok(());
            }
            // This machine's disk is nobody's fault, and will not do better for another.
            Err(Failed::Here(error)) => return Err(system(format!("write {}", file.display()))(error)),
            Err(Failed::There(why)) => why,
        };
        progress.lost(got);
        let Some(left) = allowed.nonsense.checked_sub(got) else {
            return Err(RuntimeError::Pull(format!("too much came that was of no use; the last: {why}")));
        };
        allowed.nonsense = left;
        if !source.another(why.clone()).await {
            return Err(RuntimeError::Pull(why));
        }
    }
}

/// Whose fault it was.
enum Failed {
    Here(io::Error),
    There(String),
}

async fn fetch(
    source: &dyn PartSource,
    digest: &str,
    file: &Path,
    allowed: u64,
    got: &mut u64,
    progress: &Progress,
) -> Result<(), Failed> {
    let mut part = source.part(digest).await.map_err(Failed::There)?;
    let mut file = tokio::fs::File::create(file).await.map_err(Failed::Here)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    let (least, within) = LEAST;
    let (mut since, mut moved) = (Instant::now(), 0);
    loop {
        if moved >= least {
            (since, moved) = (Instant::now(), 0);
        } else if since.elapsed() > within {
            return Err(Failed::There(format!("layer {digest} came too slowly")));
        }
        let read = tokio::time::timeout(SILENCE, part.read(&mut buffer)).await;
        let read = read.map_err(|_| Failed::There(silent()))?;
        let n = read.map_err(|error| Failed::There(format!("layer {digest} broke off: {error}")))?;
        let Some(bytes) = buffer.get(..n).filter(|bytes| !bytes.is_empty()) else { break };
        *got += n as u64;
        moved += n as u64;
        progress.got(n as u64);
        if *got > allowed {
            return Err(Failed::There("the layers are larger than the image store's limit".into()));
        }
        hash.update(bytes);
        file.write_all(bytes).await.map_err(Failed::Here)?;
    }
    file.flush().await.map_err(Failed::Here)?;
    match format_digest(&hash.finalize()) {
        real if real == digest => Ok(()),
        real => Err(Failed::There(another_digest(digest, &real))),
    }
}

fn silent() -> String {
    format!("nothing came for {} s", SILENCE.as_secs())
}

fn another_digest(digest: &str, real: &str) -> String {
    format!("{digest} was asked for, and what came has the digest {real}")
}

#[cfg(test)]
#[path = "share_tests.rs"]
mod tests;
