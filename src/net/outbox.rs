//! What waits to be sent on a link: one bounded queue per message class.
//!
//! Owns: [`Class`] and [`Outbox`]. Policy: a message with a key replaces the queued one of the same key, in its place;
//! when a bound is reached, [`Outbox::push`] refuses. Invariant: messages leave in the order in which their keys (or they
//! themselves, without one) entered. Messages wait encoded, so a bound in bytes is a bound in memory.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::codec;

/// Kinds of messages that must not delay one another: each has an ordered stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// What to do, who one is: few, and each counts.
    Control,
    /// What is observed: many, and the newest counts.
    State,
}

impl Class {
    pub(crate) const ALL: [Class; 2] = [Class::Control, Class::State];

    /// The largest message of this class.
    pub fn cap(self) -> usize {
        match self {
            Class::Control => codec::CONTROL_CAP,
            Class::State => codec::STATE_CAP,
        }
    }

    pub(crate) fn label(self) -> &'static str {
        match self {
            Class::Control => "control",
            Class::State => "state",
        }
    }

    /// How many messages may wait. Control: a burst of asks. State: a key for every pod of a crowded node, with room.
    const fn max_messages(self) -> usize {
        match self {
            Class::Control => 256,
            Class::State => 4096,
        }
    }

    /// How many bytes may wait: two of the largest.
    fn max_bytes(self) -> usize {
        2 * self.cap()
    }
}

/// Why a message was not queued: a bound was reached.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct OutboxFull;

/// The queue of one class.
pub(crate) struct Outbox {
    class: Class,
    queue: Mutex<Queue>,
    filled: Notify,
}

#[derive(Default)]
struct Queue {
    entries: VecDeque<Entry>,
    /// Sequence number of the first entry: entry `n` lies at index `n - first`.
    first: u64,
    by_key: HashMap<String, u64>,
    bytes: usize,
}

struct Entry {
    key: Option<String>,
    frame: Bytes,
}

impl Outbox {
    pub(crate) fn new(class: Class) -> Outbox {
        Outbox { class, queue: Mutex::default(), filled: Notify::new() }
    }

    /// Queues a frame; `Ok(true)` when it replaced an older one.
    pub(crate) fn push(&self, key: Option<String>, frame: Bytes) -> Result<bool, OutboxFull> {
        let mut queue = self.lock();
        let replaced = queue.push(self.class, key, frame)?;
        drop(queue);
        self.filled.notify_one();
        Ok(replaced)
    }

    /// Has whoever waits look again, though nothing was pushed.
    pub(crate) fn look(&self) {
        self.filled.notify_one();
    }

    /// Takes frames in order, up to about `budget` bytes but at least one; empty when nothing waits.
    pub(crate) fn take(&self, budget: usize) -> Vec<Bytes> {
        let mut queue = self.lock();
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.entries.front() {
            if !taken.is_empty() && bytes + next.frame.len() > budget {
                break;
            }
            bytes += next.frame.len();
            taken.extend(queue.pop());
        }
        if queue.entries.is_empty() {
            // A link is idle most of the time, and then keeps no room.
            queue.entries = VecDeque::new();
        }
        taken
    }

    /// How many messages wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        let queue = self.lock();
        (queue.entries.len(), queue.bytes)
    }

    /// Resolves after a push; may also resolve without one. One waiter at a time.
    pub(crate) async fn filled(&self) {
        self.filled.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent between statements; a panic elsewhere while it was held cannot have hurt it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn push(&mut self, class: Class, key: Option<String>, frame: Bytes) -> Result<bool, OutboxFull> {
        let queued = key.as_ref().and_then(|key| self.by_key.get(key)).map(|n| (n - self.first) as usize);
        let replaced = queued.and_then(|index| self.entries.get_mut(index));
        let freed = replaced.as_ref().map_or(0, |entry| entry.frame.len());
        if self.bytes - freed + frame.len() > class.max_bytes() {
            return Err(OutboxFull);
        }
        if let Some(entry) = replaced {
            self.bytes = self.bytes - freed + frame.len();
            entry.frame = frame;
            return Ok(true);
        }
        if self.entries.len() >= class.max_messages() {
            return Err(OutboxFull);
        }
        self.bytes += frame.len();
        if let Some(key) = &key {
            self.by_key.insert(key.clone(), self.first + self.entries.len() as u64);
        }
        self.entries.push_back(Entry { key, frame });
        Ok(false)
    }

    fn pop(&mut self) -> Option<Bytes> {
        let entry = self.entries.pop_front()?;
        self.first += 1;
        self.bytes -= entry.frame.len();
        if let Some(key) = &entry.key {
            self.by_key.remove(key);
        }
        Some(entry.frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(outbox: &Outbox) -> Vec<Bytes> {
        outbox.take(usize::MAX)
    }

    #[test]
    fn a_newer_message_takes_the_place_of_the_queued_one_under_its_key() {
        let outbox = Outbox::new(Class::State);
        for (key, text) in [(Some("a"), "a1"), (None, "x"), (Some("b"), "b1"), (Some("a"), "a2"), (None, "y")]
        {
            outbox.push(key.map(Into::into), text.into()).unwrap();
        }
        assert_eq!(drain(&outbox), ["a2", "x", "b1", "y"].map(Bytes::from));
        // Taken messages are not replaced any more.
        assert_eq!(outbox.push(Some("a".into()), "a3".into()), Ok(false));
        assert_eq!(drain(&outbox), [Bytes::from("a3")]);
    }

    #[test]
    fn keys_are_found_again_after_others_left() {
        let outbox = Outbox::new(Class::State);
        outbox.push(Some("a".into()), "a1".into()).unwrap();
        outbox.push(Some("b".into()), "b1".into()).unwrap();
        assert_eq!(outbox.take(1), [Bytes::from("a1")]);
        assert_eq!(outbox.push(Some("b".into()), "b2".into()), Ok(true));
        assert_eq!(outbox.push(Some("a".into()), "a2".into()), Ok(false));
        assert_eq!(drain(&outbox), ["b2", "a2"].map(Bytes::from));
    }

    #[test]
    fn a_full_outbox_refuses_new_messages_but_still_replaces() {
        let outbox = Outbox::new(Class::Control);
        for n in 0..Class::Control.max_messages() {
            outbox.push(Some(n.to_string()), "x".into()).unwrap();
        }
        assert_eq!(outbox.push(None, "x".into()), Err(OutboxFull));
        assert_eq!(outbox.push(Some("7".into()), "y".into()), Ok(true));
        outbox.take(1);
        assert_eq!(outbox.push(None, "x".into()), Ok(false));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let outbox = Outbox::new(Class::State);
        let half = Bytes::from(vec![0; Class::State.cap()]);
        outbox.push(Some("a".into()), half.clone()).unwrap();
        outbox.push(Some("b".into()), half.clone()).unwrap();
        assert_eq!(outbox.push(None, "x".into()), Err(OutboxFull));
        assert_eq!(outbox.push(Some("a".into()), half.clone()), Ok(true));
        assert_eq!(outbox.take(1).len(), 1, "one at least");
        assert_eq!(drain(&outbox).len(), 1);
        assert_eq!(outbox.lock().entries.capacity(), 0, "an empty one keeps no room");
        assert_eq!(outbox.push(None, half), Ok(false), "what left makes room");
    }
}
