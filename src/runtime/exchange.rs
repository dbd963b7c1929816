//! Images from other machines, for engines that keep images themselves.
//!
//! Owns: taking what others give ([`Exchange::take`]), and what an engine does not remember of its images ([`Notes`], beside
//! the runtime's other files): what was taken from other nodes, and since when the others are there. Invariants: a
//! note counts for the very image it was made of; what somebody brought here is never replaced.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex as AsyncMutex;

use super::{
    Image, RuntimeError,
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
    /// Whether an image came from no registry, as far as the engine knows.
    async fn is_without_registry(&self, name: &str) -> Result<bool, RuntimeError>;
    /// Full names and ids of its images that came from no registry.
    async fn without_registry(&self) -> Result<Vec<(String, String)>, RuntimeError>;

    /// Gives it what somebody brings: whatever was noted of those names is over.
    async fn bring(&self, packed: Packed) -> Result<Vec<String>, RuntimeError> {
        let names = self.give(packed).await?;
        self.exchange().brought(&names).await?;
        Ok(names)
    }

    /// Whether an image is a copy of what somebody brought to another node.
    async fn copied_image(&self, name: &str) -> Result<bool, RuntimeError> {
        Ok(self.exchange().how(self, name).await? == Some(How::Copied))
    }

    /// Whether an image was brought here, or to another node, and is no copy of one that was pulled elsewhere.
    async fn brought_by_hand(&self, name: &str) -> Result<bool, RuntimeError> {
        let known = self.is_without_registry(name).await?;
        Ok(known && self.exchange().how(self, name).await? != Some(How::Pulled))
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

/// What is noted of images, by full name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Notes(BTreeMap<String, Note>);

impl Notes {
    /// Unreadable notes are none: their images count as brought by hand, just now.
    fn read(path: &Path) -> Notes {
        fs::read(path).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    fn write(&self, path: &Path) -> Result<(), RuntimeError> {
        let beside = path.with_extension("new");
        let json = serde_json::to_vec(self).map_err(std::io::Error::from);
        let put = json.and_then(|json| fs::write(&beside, json)).and_then(|()| fs::rename(&beside, path));
        put.map_err(system(format!("write {}", path.display())))
    }

    fn of(&self, name: &str, id: &str) -> Option<&Note> {
        self.0.get(name).filter(|note| note.id == id)
    }

    /// Notes what there is of images without a registry, by name and id, and forgets the others.
    fn take(&mut self, present: &[(String, String)], now_ms: i64) {
        let noted = std::mem::take(&mut self.0);
        self.0 = present
            .iter()
            .map(|(name, id)| {
                let known = noted.get(name).filter(|note| note.id == *id).cloned();
                let new = || Note { id: id.clone(), how: How::ByHand, since_ms: now_ms };
                (name.clone(), known.unwrap_or_else(new))
            })
            .collect();
    }

    /// What others may have.
    pub(super) fn shared(&self) -> Vec<SharedImage> {
        let given = self.0.iter().map(|(name, Note { id, how, since_ms })| {
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
    /// By image id: one take of it at a time.
    takes: Mutex<HashMap<String, Arc<AsyncMutex<()>>>>,
}

impl Exchange {
    /// With its notes in this directory, which one process uses at a time.
    pub(super) fn new(root: &Path) -> Exchange {
        Exchange { file: root.join("images.json"), turn: AsyncMutex::default(), takes: Mutex::default() }
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
        let _turn = self.turn.lock().await;
        self.noted_now(engine, None).await
    }

    async fn noted_now(
        &self,
        engine: &impl Engine,
        taken: Option<(String, Note)>,
    ) -> Result<Notes, RuntimeError> {
        let before = Notes::read(&self.file);
        let mut notes = before.clone();
        notes.0.extend(taken);
        notes.take(&engine.without_registry().await?, now_ms());
        if notes != before {
            notes.write(&self.file)?;
        }
        Ok(notes)
    }

    /// Somebody has brought images of these full names.
    async fn brought(&self, names: &[String]) -> Result<(), RuntimeError> {
        let _turn = self.turn.lock().await;
        let mut notes = Notes::read(&self.file);
        let before = notes.0.len();
        notes.0.retain(|name, _| !names.contains(name));
        if notes.0.len() < before { notes.write(&self.file) } else { Ok(()) }
    }

    /// How the image came that a name stands for, if that is noted.
    async fn how(&self, engine: &impl Engine, name: &str) -> Result<Option<How>, RuntimeError> {
        let full = normalize(name)?;
        let Some(image) = engine.find(&full).await? else { return Ok(None) };
        let _turn = self.turn.lock().await;
        Ok(Notes::read(&self.file).of(&full, &image.id).map(|note| note.how))
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
        // It may have come from its registry, or by hand, since it was asked for.
        if let Some(image) = engine.find(&full).await?
            && (image.id == offer.id || self.how(engine, &full).await? != Some(How::Copied))
        {
            return Ok(image);
        }
        let packed = pack::pack_parts(&offer, source, &engine.scratch()).await?;
        // Nobody looks at what there is between its coming and its note.
        let _turn = self.turn.lock().await;
        engine.give(packed).await?;
        let image = engine.find(&full).await?;
        let image = image.ok_or_else(|| RuntimeError::ImageNotFound(full.clone()))?;
        let (how, since_ms) = match offer.came {
            Came::ByHand { since_ms } | Came::Copied { since_ms } => (How::Copied, since_ms),
            Came::Pulled => (How::Pulled, now_ms()),
            // Refused by `wanted`.
            Came::Removed { at_ms } => (How::Copied, at_ms),
        };
        let note = Note { id: image.id.clone(), how, since_ms };
        self.noted_now(engine, Some((full, note))).await?;
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(images: &[(&str, &str)]) -> Vec<(String, String)> {
        images.iter().map(|(name, id)| ((*name).to_owned(), (*id).to_owned())).collect()
    }

    #[test]
    fn what_is_noted_counts_for_the_very_image_and_as_long_as_that_is_there() {
        let mut notes = Notes::default();
        notes.0.insert("copy".into(), Note { id: "1".into(), how: How::Copied, since_ms: 5 });
        notes.take(&present(&[("copy", "1"), ("own", "2")]), 10);
        let shared = notes.shared();
        let came: Vec<(&str, Came)> = shared.iter().map(|image| (image.name.as_str(), image.came)).collect();
        let (copied, by_hand) = (Came::Copied { since_ms: 5 }, |since_ms| Came::ByHand { since_ms });
        assert_eq!(came, [("copy", copied), ("own", by_hand(10))]);
        // Somebody brought another one under the name of the copy; the time of the other stays.
        notes.take(&present(&[("copy", "3"), ("own", "2")]), 20);
        let came: Vec<Came> = notes.shared().iter().map(|image| image.came).collect();
        assert_eq!(came, [by_hand(20), by_hand(10)]);
        notes.take(&[], 30);
        assert!(notes.shared().is_empty());
    }

    #[test]
    fn notes_outlive_the_process_and_unreadable_ones_are_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        assert_eq!(Notes::read(&path), Notes::default());
        let mut notes = Notes::default();
        notes.take(&present(&[("a", "1")]), 1);
        notes.write(&path).unwrap();
        assert_eq!(Notes::read(&path), notes);
        assert!(notes.of("a", "1").is_some() && notes.of("a", "2").is_none());
        fs::write(&path, "{").unwrap();
        assert_eq!(Notes::read(&path), Notes::default());
    }
}
