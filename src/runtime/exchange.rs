//! Images from other machines, for engines that keep images themselves.
//!
//! Owns: taking what others give ([`Exchange::take`]), and what an engine does not remember of its images ([`Notes`], beside
//! the runtime's other files): what was taken from other nodes, and since when the others are there. Invariants: a
//! note counts for the very image it was made of; what somebody brought here is never replaced.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use super::{
    Image, Origin, RuntimeError,
    hand::{now_ms, system},
    images::{
        normalize,
        pack::{self, Packed},
        wanted,
    },
    share::{Came, PartSource, SharedImage},
};

/// What is needed of an engine, and what it can do by that.
pub(super) trait Engine: Sized + Sync {
    /// Its dealings.
    fn exchange(&self) -> &Exchange;
    /// Where files on their way into it are.
    fn scratch(&self) -> PathBuf;
    /// The image of a full name.
    async fn find(&self, name: &str) -> Result<Option<Image>, RuntimeError>;
    /// Gives it images, under their names, which it tells.
    async fn give(&self, packed: Packed) -> Result<Vec<String>, RuntimeError>;
    /// Its images that came from no registry.
    async fn without_registry(&self) -> Result<Vec<Present>, RuntimeError>;

    /// Gives it what somebody brings: whatever was noted of those names is over.
    async fn bring(&self, packed: Packed) -> Result<Vec<String>, RuntimeError> {
        let exchange = self.exchange();
        let _giving = exchange.giving.lock().await;
        let names = self.give(packed).await?;
        exchange.change(self, |notes| notes.brought(&names, now_ms())).await?;
        Ok(names)
    }

    /// Takes an image whose parts others give.
    async fn take_image(&self, offer: SharedImage, source: &dyn PartSource) -> Result<Image, RuntimeError> {
        self.exchange().take(self, offer, source).await
    }
}

/// How an image came, as far as the engine does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    /// Somebody brought it to this engine.
    ByHand,
    /// It was taken from a node to which somebody had brought it.
    Copied,
    /// It was taken from a node that had pulled it.
    Pulled,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    id: String,
    how: How,
    since_ms: i64,
}

/// Whether a name is an image's id.
pub(super) fn is_id(name: &str) -> bool {
    name.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// An image that came from no registry, as the engine tells of it.
pub(super) struct Present {
    /// A full name.
    pub(super) name: String,
    /// Its id.
    pub(super) id: String,
    /// When it was made, here or elsewhere.
    pub(super) made_ms: i64,
}

/// What is noted of images, by full name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Notes {
    here: BTreeMap<String, Note>,
    /// What is being taken. It is noted before the engine has it, which may outlive this process.
    coming: BTreeMap<String, Note>,
}

impl Notes {
    fn read(path: &Path) -> Result<Notes, RuntimeError> {
        let operation = || format!("read {}", path.display());
        let json = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Notes::default()),
            read => read.map_err(system(operation()))?,
        };
        serde_json::from_slice(&json).map_err(|error| system(operation())(error.into()))
    }

    fn write(&self, path: &Path) -> Result<(), RuntimeError> {
        let beside = path.with_extension("new");
        let put = || {
            let mut file = fs::File::create(&beside)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            path.parent().map_or(Ok(()), |dir| fs::File::open(dir)?.sync_all())
        };
        put().map_err(system(format!("write {}", path.display())))
    }

    fn of(&self, name: &str, id: &str) -> Option<&Note> {
        [&self.here, &self.coming].into_iter().find_map(|notes| notes.get(name).filter(|note| note.id == id))
    }

    /// Notes what there is of images without a registry, and forgets the others. What nobody brought through here counts
    /// from when it was made.
    fn note(&mut self, present: &[Present]) {
        let here = present.iter().map(|Present { name, id, made_ms }| {
            let new = || Note { id: id.clone(), how: How::ByHand, since_ms: *made_ms };
            (name.clone(), self.of(name, id).cloned().unwrap_or_else(new))
        });
        self.here = here.collect();
    }

    /// Somebody has brought images under these names.
    fn brought(&mut self, names: &[String], now_ms: i64) {
        for (_, note) in self.here.iter_mut().filter(|(name, _)| names.contains(name)) {
            (note.how, note.since_ms) = (How::ByHand, now_ms);
        }
    }

    /// What others may have.
    pub(super) fn shared(&self) -> Vec<SharedImage> {
        let given = self.here.iter().map(|(name, Note { id, how, since_ms })| {
            let since_ms = *since_ms;
            let came = match how {
                How::ByHand => Came::ByHand { since_ms },
                How::Copied => Came::Copied { since_ms },
                How::Pulled => Came::Pulled,
            };
            SharedImage { name: name.clone(), id: id.clone(), came }
        });
        given.collect()
    }
}

/// An engine's dealings with other machines.
pub(super) struct Exchange {
    file: PathBuf,
    /// Held while the notes change.
    turn: AsyncMutex<()>,
    /// Held while the engine is given something: a name cannot get another image between a look and what follows from it.
    giving: AsyncMutex<()>,
    /// By image id: one take of it at a time.
    takes: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

impl Exchange {
    /// With its notes in this directory, which one process uses at a time.
    pub(super) fn new(root: &Path) -> Exchange {
        Exchange {
            file: root.join("images.json"),
            turn: AsyncMutex::default(),
            giving: AsyncMutex::default(),
            takes: Mutex::default(),
        }
    }

    fn takes(&self) -> MutexGuard<'_, HashMap<String, Arc<AsyncMutex<()>>>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.takes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn_of(&self, image: &str) -> Arc<AsyncMutex<()>> {
        let mut takes = self.takes();
        takes.retain(|_, turn| Arc::strong_count(turn) > 1);
        takes.entry(image.to_owned()).or_default().clone()
    }

    /// The notes, brought up to date.
    pub(super) async fn notes(&self, engine: &impl Engine) -> Result<Notes, RuntimeError> {
        self.change(engine, |_| ()).await
    }

    /// Brings the notes up to date, and changes them then.
    async fn change(
        &self,
        engine: &impl Engine,
        change: impl FnOnce(&mut Notes) + Send,
    ) -> Result<Notes, RuntimeError> {
        let _turn = self.turn.lock().await;
        let before = Notes::read(&self.file)?;
        let mut notes = before.clone();
        notes.note(&engine.without_registry().await?);
        change(&mut notes);
        if notes != before {
            notes.write(&self.file)?;
        }
        Ok(notes)
    }

    /// Where an image came from that a name stands for. The engine is not asked again: what it has of a registry it knows by
    /// that registry's digest.
    pub(super) async fn origin(&self, name: &str, image: &Image) -> Result<Origin, RuntimeError> {
        if is_id(name) {
            // Nobody can be asked for it.
            return Ok(Origin::ByHand);
        }
        if !image.digests.is_empty() {
            return Ok(Origin::Registry);
        }
        Ok(match self.how(&normalize(name)?, image).await? {
            Some(How::Pulled) => Origin::Registry,
            Some(How::Copied) => Origin::Copied,
            Some(How::ByHand) | None => Origin::ByHand,
        })
    }

    /// How an image of a full name came, if that is noted.
    async fn how(&self, full: &str, image: &Image) -> Result<Option<How>, RuntimeError> {
        let _turn = self.turn.lock().await;
        Ok(Notes::read(&self.file)?.of(full, &image.id).map(|note| note.how))
    }

    /// What is here already in an offer's place and is to stay.
    async fn kept(
        &self,
        engine: &impl Engine,
        full: &str,
        offer: &SharedImage,
    ) -> Result<Option<Image>, RuntimeError> {
        let Some(image) = engine.find(full).await? else { return Ok(None) };
        let stays = image.id == offer.id || self.how(full, &image).await? != Some(How::Copied);
        Ok(Some(image).filter(|_| stays))
    }

    async fn take(
        &self,
        engine: &impl Engine,
        offer: SharedImage,
        source: &dyn PartSource,
    ) -> Result<Image, RuntimeError> {
        let full = wanted(&offer)?;
        let turn = self.turn_of(&offer.id);
        let _one_at_a_time = turn.lock().await;
        if let Some(image) = self.kept(engine, &full, &offer).await? {
            return Ok(image);
        }
        let packed = pack::pack_parts(&offer, source, &engine.scratch()).await?;
        let _giving = self.giving.lock().await;
        // It may have come from its registry, or by hand, meanwhile.
        if let Some(image) = self.kept(engine, &full, &offer).await? {
            return Ok(image);
        }
        let (how, since_ms) = match offer.came {
            Came::ByHand { since_ms } | Came::Copied { since_ms } => (How::Copied, since_ms),
            Came::Pulled => (How::Pulled, now_ms()),
            Came::Removed { .. } => return Err(RuntimeError::ImageNotFound(full)),
        };
        let note = Note { id: offer.id, how, since_ms };
        let name = full.clone();
        self.change(engine, |notes| drop(notes.coming.insert(name, note))).await?;
        let given = engine.give(packed).await;
        // Whatever became of it: what the engine has is noted by what came.
        self.change(engine, |notes| drop(notes.coming.remove(&full))).await?;
        given?;
        let image = engine.find(&full).await?;
        image.ok_or(RuntimeError::ImageNotFound(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(images: &[(&str, &str)]) -> Vec<Present> {
        let one = |&(name, id): &(&str, &str)| Present { name: name.into(), id: id.into(), made_ms: 1 };
        images.iter().map(one).collect()
    }

    fn came(notes: &Notes) -> Vec<Came> {
        notes.shared().iter().map(|image| image.came).collect()
    }

    const fn by_hand(since_ms: i64) -> Came {
        Came::ByHand { since_ms }
    }

    #[test]
    fn what_is_noted_counts_for_the_very_image_and_as_long_as_that_is_there() {
        let mut notes = Notes::default();
        notes.here.insert("copy".into(), Note { id: "1".into(), how: How::Copied, since_ms: 5 });
        notes.note(&present(&[("copy", "1"), ("own", "2")]));
        assert_eq!(
            came(&notes),
            [Came::Copied { since_ms: 5 }, by_hand(1)],
            "it counts from when it was made"
        );
        notes.brought(&["own".into()], 10);
        // Somebody brought another one under the name of the copy; the time of the other stays.
        notes.note(&present(&[("copy", "3"), ("own", "2")]));
        notes.brought(&["copy".into()], 20);
        assert_eq!(came(&notes), [by_hand(20), by_hand(10)]);
        notes.note(&[]);
        assert!(notes.shared().is_empty());
    }

    #[test]
    fn what_comes_is_a_copy_from_the_moment_the_engine_has_it() {
        let mut notes = Notes::default();
        notes.note(&present(&[("a", "old")]));
        notes.coming.insert("a".into(), Note { id: "new".into(), how: How::Copied, since_ms: 5 });
        notes.note(&present(&[("a", "old")]));
        assert_eq!(came(&notes), [by_hand(1)], "it is on its way");
        // Also when the process ended in between.
        notes.note(&present(&[("a", "new")]));
        assert_eq!(came(&notes), [Came::Copied { since_ms: 5 }]);
        notes.coming.clear();
        notes.note(&present(&[("a", "new")]));
        assert_eq!(came(&notes), [Came::Copied { since_ms: 5 }]);
    }

    #[test]
    fn notes_outlive_the_process_and_are_never_lost_in_silence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        assert_eq!(Notes::read(&path).unwrap(), Notes::default());
        let mut notes = Notes::default();
        notes.note(&present(&[("a", "1")]));
        notes.write(&path).unwrap();
        assert_eq!(Notes::read(&path).unwrap(), notes);
        assert!(notes.of("a", "1").is_some() && notes.of("a", "2").is_none());
        fs::write(&path, "{").unwrap();
        assert!(Notes::read(&path).unwrap_err().to_string().contains("images.json"));
    }
}
