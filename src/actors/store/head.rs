//! The newest state, and what of it the disk does not have yet.
//!
//! Owns: checking and numbering of changes. Pure: no clock, no disk, no mailbox. Three states of the world lie behind
//! each other, and each is the whole state at one revision:
//!
//! ```text
//! disk ── keep() ──◀── published ── publish() ──◀── newest ── apply() ──◀── commits
//! ```
//!
//! Invariant: revisions ascend and are never given twice, not even after [`Head::roll_back`]; a batch holds every key
//! that may differ between disk and newest, so the disk too always has the whole state at one revision.

use std::{collections::HashSet, sync::Arc};

use crate::{
    messages::{Change, ChangeKind, CommitError, Committed, Expected, Write},
    model::{Key, Object, Revision, Snapshot},
    store::{Batch, REVISION_BLOCK, Record, Recovered},
};

/// The store's state; see the file's header.
pub(super) struct Head {
    newest: Snapshot,
    published: Snapshot,
    /// The last revision given. Unlike `newest.revision` it does not go back.
    last: Revision,
    /// Revisions up to here may be published.
    reserved: Revision,
    /// Keys whose state on disk may differ from `newest`.
    dirty: HashSet<Key>,
    /// Whether a batch has failed since one succeeded: the disk may have a state that was never published.
    doubtful: bool,
}

/// What a commit became.
pub(super) struct Applied {
    /// For the one who asked.
    pub(super) committed: Committed,
    /// For the watchers.
    pub(super) changes: Vec<Change>,
}

impl Head {
    pub(super) fn new(recovered: Recovered) -> Head {
        let Recovered { snapshot, reserved } = recovered;
        Head {
            last: snapshot.revision,
            published: snapshot.clone(),
            newest: snapshot,
            reserved,
            dirty: HashSet::new(),
            doubtful: false,
        }
    }

    /// Makes all of the writes in the newest state, or none.
    pub(super) fn apply(&mut self, writes: Vec<Write>) -> Result<Applied, CommitError> {
        let before = (self.newest.revision, self.last);
        let mut changes: Vec<Change> = Vec::with_capacity(writes.len());
        for write in writes {
            match self.check(write) {
                Ok(change) => changes.push(self.make(change)),
                Err(refusal) => {
                    self.unmake(changes);
                    // No one has seen these revisions, so they may be given again.
                    (self.newest.revision, self.last) = before;
                    return Err(refusal);
                }
            }
        }
        self.dirty.extend(changes.iter().map(|c| c.object.key.clone()));
        let objects = changes.iter().map(|c| Arc::clone(&c.object)).collect();
        Ok(Applied { committed: Committed { objects }, changes })
    }

    fn check(&self, write: Write) -> Result<Change, CommitError> {
        let revision = Revision(self.last.0 + 1);
        match write {
            Write::Create(sealed) => match self.newest.find(&sealed.key) {
                Some(_) => Err(CommitError::AlreadyExists(sealed.key)),
                None => Ok(Change {
                    kind: ChangeKind::Added,
                    object: Arc::new(sealed.at(revision)),
                    previous: None,
                }),
            },
            Write::Replace(mut sealed, expected) => {
                let current = self.expect(&sealed.key, &expected)?;
                sealed.facet.meta.share(&current.facet.meta);
                Ok(Change {
                    kind: ChangeKind::Modified,
                    object: Arc::new(sealed.at(revision)),
                    previous: Some(current),
                })
            }
            Write::Remove(key, expected) => {
                let current = self.expect(&key, &expected)?;
                Ok(Change {
                    kind: ChangeKind::Deleted,
                    object: Arc::new(current.restamped(revision)),
                    previous: Some(current),
                })
            }
        }
    }

    fn expect(&self, key: &Key, expected: &Expected) -> Result<Arc<Object>, CommitError> {
        let current = self.newest.find(key).ok_or_else(|| CommitError::NotFound(key.clone()))?;
        let holds = expected.uid.as_ref().is_none_or(|uid| uid == current.uid())
            && expected.revision.is_none_or(|revision| revision == current.revision);
        if holds {
            Ok(Arc::clone(current))
        } else {
            Err(CommitError::Conflict { key: key.clone(), current: Arc::clone(current) })
        }
    }

    fn make(&mut self, change: Change) -> Change {
        match change.kind {
            ChangeKind::Deleted => {
                self.newest.remove(&change.object.key);
            }
            ChangeKind::Added | ChangeKind::Modified => self.newest.insert(Arc::clone(&change.object)),
        }
        self.last = change.revision();
        self.newest.revision = self.last;
        change
    }

    fn unmake(&mut self, changes: Vec<Change>) {
        for change in changes.into_iter().rev() {
            match change.previous {
                Some(previous) => self.newest.insert(previous),
                None => {
                    self.newest.remove(&change.object.key);
                }
            }
        }
    }

    /// Whether this many more changes may be published before another reservation is durable.
    pub(super) fn covers(&self, writes: usize) -> bool {
        self.last.0 + writes as u64 <= self.reserved.0
    }

    /// The newest state becomes the one that readers see.
    pub(super) fn publish(&mut self) -> Snapshot {
        self.published = self.newest.clone();
        self.published.clone()
    }

    /// How many keys the disk does not have yet.
    pub(super) fn behind(&self) -> usize {
        self.dirty.len()
    }

    /// Whether a batch has failed since one succeeded.
    pub(super) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    /// Everything that the disk does not have, newest state only; and a reservation when half of the last is used.
    pub(super) fn take_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        for key in self.dirty.drain() {
            match self.newest.find(&key) {
                Some(object) => batch.puts.push(Record::of(object)),
                None => batch.removes.push(key),
            }
        }
        if self.last.0 + REVISION_BLOCK / 2 > self.reserved.0 {
            batch.reserve = Some(Revision(self.last.0 + REVISION_BLOCK));
        }
        batch
    }

    /// The disk has the batch.
    pub(super) fn keep(&mut self, reserved: Option<Revision>) {
        self.reserved = self.reserved.max(reserved.unwrap_or_default());
        self.doubtful = false;
    }

    /// The disk may or may not have the batch of these keys. The newest state goes back to the published one; the keys
    /// stay due, so the next batch undoes on disk whatever of this one got there.
    pub(super) fn roll_back(&mut self, keys: impl IntoIterator<Item = Key>) {
        self.newest = self.published.clone();
        self.dirty.extend(keys);
        self.doubtful = true;
    }
}
