//! A backend without a disk, which fails and stalls on request.
//!
//! Owns: [`Memory`], for tests and for clusters that need not outlive their process. It keeps batches in order and
//! remembers which were forced, so [`Memory::crashed`] can show what a crash would have left.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use super::{Backend, Batch, Force, Record, StoreError};
use crate::model::{Key, Revision};

/// Documents in memory. Clones share them, so a test keeps one while the store owns the other.
#[derive(Clone, Default)]
pub struct Memory {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What survives a crash whatever happens.
    forced: Contents,
    /// Batches appended since, oldest first: a crash may take any number of the last ones.
    buffered: Vec<Batch>,
    /// How each batch was appended.
    log: Vec<(usize, Force)>,
    /// The error of the next appends, if they shall fail.
    failing: Option<io::ErrorKind>,
    /// Larger batches find no room, if there is a limit.
    room: Option<usize>,
    /// Whether appends shall wait, and how many do.
    held: bool,
    waiting: usize,
}

#[derive(Clone, Default)]
struct Contents {
    records: BTreeMap<Key, Record>,
    reserved: Revision,
}

impl Contents {
    fn add(&mut self, batch: &Batch) {
        for record in &batch.puts {
            self.records.insert(record.key.clone(), record.clone());
        }
        for key in &batch.removes {
            self.records.remove(key);
        }
        self.reserved = self.reserved.max(batch.reserve.unwrap_or_default());
    }
}

impl Memory {
    /// An empty one.
    pub fn new() -> Memory {
        Memory::default()
    }

    /// What would be found after a crash that spared only the first `kept` of the batches that were not forced.
    pub fn crashed(&self, kept: usize) -> Memory {
        let state = self.lock();
        let mut forced = state.forced.clone();
        for batch in state.buffered.iter().take(kept) {
            forced.add(batch);
        }
        let state = State { forced, ..State::default() };
        Memory { shared: Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() }) }
    }

    /// How many batches a crash could take.
    pub fn buffered(&self) -> usize {
        self.lock().buffered.len()
    }

    /// Makes appends fail with this error, or work again.
    pub fn fail(&self, with: Option<io::ErrorKind>) {
        self.lock().failing = with;
    }

    /// From now on there is room for so many bytes at once, or for any number.
    pub fn room(&self, bytes: Option<usize>) {
        self.lock().room = bytes;
    }

    /// Makes appends wait until [`Memory::release`].
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Lets the waiting appends go on.
    pub fn release(&self) {
        self.lock().held = false;
        self.shared.changed.notify_all();
    }

    /// Blocks until an append waits in [`Memory::hold`].
    pub fn wait_until_held(&self) {
        let mut state = self.lock();
        while state.waiting == 0 {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until so many appends were made.
    pub fn wait_for_appends(&self, count: usize) {
        let mut state = self.lock();
        while state.log.len() < count {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The appends so far: how many keys each touched, and how it was forced.
    pub fn appends(&self) -> Vec<(usize, Force)> {
        self.lock().log.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backend for Memory {
    fn load(&mut self, visit: &mut dyn FnMut(Record)) -> Result<Revision, StoreError> {
        let state = self.lock();
        let mut contents = state.forced.clone();
        for batch in &state.buffered {
            contents.add(batch);
        }
        contents.records.into_values().for_each(visit);
        Ok(contents.reserved)
    }

    fn append(&mut self, batch: &Batch, force: Force) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.waiting += 1;
        self.shared.changed.notify_all();
        while state.held {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.waiting -= 1;
        let bytes: usize = batch.puts.iter().map(|record| record.document.len()).sum();
        let full = state.room.is_some_and(|room| bytes > room).then_some(io::ErrorKind::StorageFull);
        if let Some(kind) = state.failing.or(full) {
            return Err(StoreError::Io {
                doing: "write",
                path: PathBuf::from("(memory)"),
                source: kind.into(),
            });
        }
        state.log.push((batch.len(), force));
        state.buffered.push(batch.clone());
        self.shared.changed.notify_all();
        if force == Force::Fsync {
            let buffered = std::mem::take(&mut state.buffered);
            buffered.iter().for_each(|b| state.forced.add(b));
        }
        Ok(())
    }

    fn has_room(&mut self, bytes: usize) -> bool {
        self.lock().room.is_none_or(|room| bytes <= room)
    }
}
