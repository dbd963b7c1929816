//! What a place that keeps documents must be able to do.
//!
//! Owns: the [`Backend`] trait. It has etcd's shape (records under revisions, atomic batches), so that an etcd cluster
//! can stand behind it one day. Leaves checking, numbering and publishing of changes to the one writer.

use bytes::Bytes;

use super::StoreError;
use crate::model::{Key, Object, Revision};

/// One document as kept.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its name.
    pub key: Key,
    /// The change that made this state.
    pub revision: Revision,
    /// The whole document as JSON.
    pub document: Bytes,
    /// [`Object::record`], when there is the object: a backend that keeps this in memory shares it.
    pub whole: Option<Bytes>,
}

impl PartialEq for Record {
    /// `whole` says nothing that the others do not.
    fn eq(&self, other: &Record) -> bool {
        (&self.key, self.revision, &self.document) == (&other.key, other.revision, &other.document)
    }
}

impl Eq for Record {}

impl Record {
    /// The record of an object; shares its bytes.
    pub fn of(object: &Object) -> Record {
        Record {
            key: object.key.clone(),
            revision: object.revision,
            document: object.json.clone(),
            whole: Some(object.record().clone()),
        }
    }
}

/// Changes that are kept together or not at all. A key occurs at most once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// New states.
    pub puts: Vec<Record>,
    /// Keys that are gone.
    pub removes: Vec<Key>,
    /// No revision above this one has been or will be handed out before another reservation is durable.
    pub reserve: Option<Revision>,
}

impl Batch {
    /// How many keys it touches.
    pub fn len(&self) -> usize {
        self.puts.len() + self.removes.len()
    }

    /// Whether there is nothing to keep.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.reserve.is_none()
    }
}

/// How far a batch must have got when [`Backend::append`] returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Force {
    /// On the disk, and everything appended before it too: survives loss of power.
    Fsync,
    /// With the operating system: survives the end of this process.
    Buffered,
}

/// A place that keeps documents. Used by one thread at a time, and it may block.
pub trait Backend: Send + 'static {
    /// Shows every record, in any order, and gives the highest reservation ever made (0 in a new store).
    ///
    /// # Errors
    /// When something cannot be read or understood; then nothing of it may be used.
    fn load(&mut self, visit: &mut dyn FnMut(Record)) -> Result<Revision, StoreError>;

    /// Keeps a batch, all or none. Later batches never overtake earlier ones.
    ///
    /// # Errors
    /// When it cannot: then the batch may or may not be kept, but never half. The backend stays usable, and a later
    /// `append` tries afresh; the caller settles the doubt by writing the touched keys again.
    fn append(&mut self, batch: &Batch, force: Force) -> Result<(), StoreError>;

    /// Whether a batch of so many bytes would find room. Asked after one was refused: what little is free on a full disk
    /// takes small ones all the same.
    fn has_room(&mut self, _bytes: usize) -> bool {
        true
    }
}
