//! Heartbeats: the listening side says something on each link, often enough that silence means something.
//!
//! Owns: whose turn it is. A heartbeat is an empty datagram, which the peer has to acknowledge, so both sides hear of each
//! other. All links of a listener have one clock, and up to [`AT_ONCE`] are served at a time: a machine that wakes up for
//! one of them wakes up for many. More are spread over the [`PERIOD`], so that no burst of answers overflows the
//! socket. The dialing side asks by itself when it hears nothing (`LinkConfig::keep_alive`).

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// Each link has a heartbeat so often: two, and what each side sends again when it is lost, before silence counts.
pub(super) const PERIOD: Duration = Duration::from_millis(400);
/// Answers to so many fit into a socket's usual buffer several times.
const AT_ONCE: usize = 64;
/// What is kept of heartbeats that nobody reads: some, in bytes; the oldest go.
pub(super) const UNREAD: usize = 256;

/// The links of a listener. A handle.
#[derive(Clone, Default)]
pub(crate) struct Hearts(Arc<Shared>);

#[derive(Default)]
struct Shared {
    links: Mutex<Links>,
    came: Notify,
}

#[derive(Default)]
struct Links {
    next: u64,
    all: BTreeMap<u64, quinn::Connection>,
}

/// A link's place among them, until this is dropped.
pub(crate) struct Beating(Hearts, u64);

impl Hearts {
    fn links(&self) -> MutexGuard<'_, Links> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there are heartbeats on this connection.
    pub(super) fn join(&self, connection: quinn::Connection) -> Beating {
        let mut links = self.links();
        let number = links.next;
        links.next += 1;
        links.all.insert(number, connection);
        drop(links);
        self.0.came.notify_one();
        Beating(self.clone(), number)
    }

    /// The next ones after one, and the number of the last of them.
    fn some(&self, after: Option<u64>) -> (Vec<quinn::Connection>, Option<u64>) {
        let links = self.links();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let some = links.all.range((from, Bound::Unbounded)).take(AT_ONCE);
        let (numbers, connections): (Vec<u64>, Vec<_>) =
            some.map(|(number, link)| (*number, link.clone())).unzip();
        (connections, numbers.last().copied())
    }

    /// Goes on for ever.
    pub(super) async fn beat(self) {
        let mut next = Instant::now();
        loop {
            let turns = self.links().all.len().div_ceil(AT_ONCE);
            if turns == 0 {
                self.0.came.notified().await;
                next = Instant::now();
                continue;
            }
            let pause = PERIOD / u32::try_from(turns).unwrap_or(u32::MAX);
            let mut after = None;
            for _ in 0..turns {
                next = (next + pause).max(Instant::now());
                sleep_until(next).await;
                let (some, last) = self.some(after);
                for link in some {
                    // One that takes none, or has ended, needs none.
                    let _ = link.send_datagram(Bytes::new());
                }
                after = last.or(after);
            }
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.links().all.remove(&self.1);
    }
}
