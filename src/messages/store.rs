//! What is said to and by the store: commits, changes, and the view readers share.
//!
//! Owns: the write vocabulary ([`Commit`]) and the read side ([`View`]: an immutable snapshot plus a feed of changes).
//! Readers never send the store a message. A watcher has no queue of its own: it keeps a revision and reads on in the
//! shared feed, so a slow watcher costs nothing and, once the feed has moved past it, is told [`TooOld`] (HTTP 410).

use std::{
    collections::VecDeque,
    sync::{Arc, RwLock},
};

use actix::Message;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::model::{Key, Object, Revision, Sealed, Snapshot, Uid};

/// anyone → store: make these changes, all or none. Answered once they are as durable as asked.
#[derive(Message, Debug)]
#[rtype(result = "Result<Committed, CommitError>")]
pub struct Commit {
    /// At most one write a key.
    pub writes: Vec<Write>,
    /// When to answer.
    pub durability: Durability,
}

/// When a commit is acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// After fsync: what users ask for.
    Hard,
    /// At once, written behind: what nodes observe and can tell again.
    Soft,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Write {
    /// A new object; refused when the key is taken.
    Create(Sealed),
    /// A new state of an existing object.
    Replace(Sealed, Expected),
    /// The end of an object.
    Remove(Key, Expected),
}

/// What must still hold for a write to be made (compare-and-swap). `None` holds always.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    /// The object's uid.
    pub uid: Option<Uid>,
    /// The object's present revision.
    pub revision: Option<Revision>,
}

impl Expected {
    /// Exactly this state of the object.
    pub fn state(object: &Object) -> Expected {
        Expected { uid: Some(object.uid().clone()), revision: Some(object.revision) }
    }
}

/// A commit's outcome.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The objects as stored, in the order of the writes; for a removal its last state, under the removal's revision.
    pub objects: Vec<Arc<Object>>,
}

/// Why a commit was refused. Nothing of it was made.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitError {
    /// `Create` of a key that is taken.
    #[error("{0} already exists")]
    AlreadyExists(Key),
    /// `Replace` or `Remove` of a key that does not exist.
    #[error("{0} not found")]
    NotFound(Key),
    /// The object has changed, or is another of the same name.
    #[error("{key} has been modified")]
    Conflict {
        /// The object.
        key: Key,
        /// Its present state.
        current: Arc<Object>,
    },
    /// The backend cannot write (disk full, read-only…). The store keeps serving reads.
    #[error("the store cannot write: {0}")]
    Unavailable(String),
}

/// What happened to an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It has a new state.
    Modified,
    /// It is gone.
    Deleted,
}

/// One change, as published. Revisions in a feed ascend strictly.
#[derive(Clone, Debug)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// The new state; for a deletion the last one, under the deletion's revision.
    pub object: Arc<Object>,
    /// The state before, if there was one: tells whether the object just left a selector.
    pub previous: Option<Arc<Object>>,
}

impl Change {
    /// The change's revision.
    pub fn revision(&self) -> Revision {
        self.object.revision
    }
}

/// The feed has forgotten the asked revision, or it is of another life of the store: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct TooOld {
    /// From where the watch was to go on.
    pub asked: Revision,
    /// The oldest revision from which one can watch.
    pub oldest: Revision,
}

/// Everything the feed may keep is bounded twice: by number of changes and by bytes of documents.
const FEED_CHANGES: usize = 65_536;
/// 64 MiB of documents: some 25,000 changes of ordinary pods, a minute of heavy churn.
const FEED_BYTES: usize = 64 << 20;

/// The changes of the recent past, shared by all watchers.
pub struct Feed {
    changes: VecDeque<Change>,
    bytes: usize,
    /// Watches may begin at this revision or later.
    oldest: Revision,
}

impl Feed {
    fn push(&mut self, change: Change) {
        self.bytes += change.object.json.len();
        self.changes.push_back(change);
        while self.changes.len() > FEED_CHANGES || (self.bytes > FEED_BYTES && self.changes.len() > 1) {
            if let Some(gone) = self.changes.pop_front() {
                self.bytes -= gone.object.json.len();
                self.oldest = gone.revision();
            }
        }
    }
}

/// The read side of the store. Cheap to clone; never blocks on the writer.
#[derive(Clone)]
pub struct View {
    snapshot: Arc<ArcSwap<Snapshot>>,
    feed: Arc<RwLock<Feed>>,
    latest: watch::Receiver<Revision>,
}

impl View {
    /// A view that begins with this snapshot, and the means to publish (for the store alone).
    pub fn new(snapshot: Snapshot) -> (View, Publisher) {
        let revision = snapshot.revision;
        let (sender, latest) = watch::channel(revision);
        let feed = Feed { changes: VecDeque::new(), bytes: 0, oldest: revision };
        let view = View {
            snapshot: Arc::new(ArcSwap::from_pointee(snapshot)),
            feed: Arc::new(RwLock::new(feed)),
            latest,
        };
        (view.clone(), Publisher { view, sender })
    }

    /// The newest published picture.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Changes after `since`, from now on. Nothing is lost between a snapshot and the watch from its revision.
    pub fn watch(&self, since: Revision) -> Watch {
        Watch { view: self.clone(), since }
    }

    /// The oldest revision from which a watch can begin.
    pub fn oldest(&self) -> Revision {
        self.feed.read().unwrap_or_else(std::sync::PoisonError::into_inner).oldest
    }
}

/// A position in the feed.
#[derive(Clone)]
pub struct Watch {
    view: View,
    since: Revision,
}

/// Changes handed out at once: enough to amortise a wake-up, few enough to stay fair.
const WATCH_PAGE: usize = 256;

impl Watch {
    /// Up to 256 changes after the position, which moves on; empty when there are none now.
    ///
    /// # Errors
    /// [`TooOld`] when the feed no longer goes back that far, or the position is ahead of the store.
    pub fn ready(&mut self) -> Result<Vec<Change>, TooOld> {
        let feed = self.view.feed.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let newest = feed.changes.back().map_or(feed.oldest, Change::revision);
        if self.since < feed.oldest || (self.since > newest && self.since > *self.view.latest.borrow()) {
            return Err(TooOld { asked: self.since, oldest: feed.oldest });
        }
        let from = feed.changes.partition_point(|c| c.revision() <= self.since);
        let page: Vec<Change> = feed.changes.range(from..).take(WATCH_PAGE).cloned().collect();
        if let Some(last) = page.last() {
            self.since = last.revision();
        }
        Ok(page)
    }

    /// As [`Watch::ready`], but waits until there is at least one change.
    ///
    /// # Errors
    /// As [`Watch::ready`]. Waits for ever once the store is gone: the process is about to end then.
    pub async fn next(&mut self) -> Result<Vec<Change>, TooOld> {
        let mut latest = self.view.latest.clone();
        loop {
            latest.borrow_and_update();
            let page = self.ready()?;
            if !page.is_empty() {
                return Ok(page);
            }
            if latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The revision up to which changes were handed out.
    pub fn position(&self) -> Revision {
        self.since
    }
}

/// The write side of a [`View`]; the store has the only one.
pub struct Publisher {
    view: View,
    sender: watch::Sender<Revision>,
}

impl Publisher {
    /// Publishes a new picture and the changes that led to it, in ascending revision.
    pub fn publish(&self, snapshot: Snapshot, changes: Vec<Change>) {
        let revision = snapshot.revision;
        {
            let mut feed = self.view.feed.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.view.snapshot.store(Arc::new(snapshot));
            for change in changes {
                feed.push(change);
            }
        }
        self.sender.send_replace(revision);
    }
}
