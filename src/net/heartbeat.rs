//! Heartbeats: the listening side says something on each link, often enough that silence means something.
//!
//! Owns: whose turn it is, and [`Heard`]: when something came last. A heartbeat is an empty datagram, which the peer has to
//! acknowledge, so both sides hear of each other; every [`LOOK`] one looks who did, or said something else. All links of a
//! listener have one clock, and up to [`AT_ONCE`] are served at a time: a machine that wakes up for
//! one of them wakes up for many. More are spread over the [`PERIOD`], so that no burst of answers overflows the
//! socket. The dialing side asks by itself when it hears nothing (`LinkConfig::keep_alive`).

use std::{
    collections::{BTreeMap, VecDeque},
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
pub(super) const PERIOD: Duration = Duration::from_millis(500);
/// By so much at most a silence seems to have begun later than it did: QUIC does not say when something came, only that.
const LOOK: Duration = Duration::from_millis(50);
/// Looks between two heartbeats.
const LOOKS: u32 = PERIOD.as_millis() as u32 / LOOK.as_millis() as u32;
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
    all: BTreeMap<u64, Beat>,
}

#[derive(Clone)]
struct Beat {
    connection: quinn::Connection,
    heard: Heard,
}

impl Beat {
    fn look(&self) {
        self.heard.look(self.connection.stats().udp_rx.bytes, Instant::now());
    }
}

/// When something came last, as far as one has looked: never earlier than it really did. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Heard(Arc<Mutex<(u64, Instant)>>);

impl Heard {
    fn new(now: Instant) -> Heard {
        Heard(Arc::new(Mutex::new((0, now))))
    }

    /// So many bytes have come until now.
    fn look(&self, bytes: u64, now: Instant) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if last.0 != bytes {
            *last = (bytes, now);
        }
    }

    /// For how long nothing has come.
    pub(super) fn silence(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1.elapsed()
    }
}

/// A link's place among them, until this is dropped.
pub(crate) struct Beating(Hearts, u64);

impl Hearts {
    fn links(&self) -> MutexGuard<'_, Links> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.0.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on there are heartbeats on this connection.
    pub(super) fn join(&self, connection: quinn::Connection) -> (Beating, Heard) {
        let heard = Heard::new(Instant::now());
        let mut links = self.links();
        let number = links.next;
        links.next += 1;
        links.all.insert(number, Beat { connection, heard: heard.clone() });
        drop(links);
        self.0.came.notify_one();
        (Beating(self.clone(), number), heard)
    }

    /// The next ones after one, and the number of the last of them.
    fn some(&self, after: Option<u64>) -> (Vec<Beat>, Option<u64>) {
        let links = self.links();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let some = links.all.range((from, Bound::Unbounded)).take(AT_ONCE);
        let (numbers, beats): (Vec<u64>, Vec<Beat>) =
            some.map(|(number, beat)| (*number, beat.clone())).unzip();
        (beats, numbers.last().copied())
    }

    /// Goes on for ever.
    pub(super) async fn beat(self) {
        let mut next = Instant::now();
        let mut asked = VecDeque::new();
        loop {
            let turns = self.links().all.len().div_ceil(AT_ONCE);
            if turns == 0 {
                asked.clear();
                self.0.came.notified().await;
                next = Instant::now();
                continue;
            }
            let pause = PERIOD / u32::try_from(turns).unwrap_or(u32::MAX);
            let mut after = None;
            for _ in 0..turns {
                next = (next + pause).max(Instant::now());
                see_answers(&mut asked, next).await;
                sleep_until(next).await;
                let (some, last) = self.some(after);
                for beat in &some {
                    // One that takes none, or has ended, needs none.
                    let _ = beat.connection.send_datagram(Bytes::new());
                }
                asked.push_back(Asked { look: next + LOOK, looks: LOOKS, some });
                after = last.or(after);
            }
        }
    }
}

/// Links that had their heartbeat at the same time.
struct Asked {
    /// When to look at them next.
    look: Instant,
    /// How often yet.
    looks: u32,
    some: Vec<Beat>,
}

/// Looks who has said something, as often as it is due by then. The queue stays in order: who was looked at is due last.
async fn see_answers(asked: &mut VecDeque<Asked>, until: Instant) {
    while asked.front().is_some_and(|next| next.look <= until) {
        let Some(mut next) = asked.pop_front() else { return };
        sleep_until(next.look).await;
        next.some.iter().for_each(Beat::look);
        next.looks -= 1;
        if next.looks > 0 {
            next.look += LOOK;
            asked.push_back(next);
        }
    }
}

impl Drop for Beating {
    fn drop(&mut self) {
        self.0.links().all.remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn links_are_looked_at_every_moment_in_the_order_of_their_turns() {
        let begun = Instant::now();
        let asked = |after_ms: u64| Asked {
            look: begun + Duration::from_millis(after_ms) + LOOK,
            looks: LOOKS,
            some: Vec::new(),
        };
        let mut queue = VecDeque::from([asked(0), asked(20)]);
        for (until_ms, left) in [(40, [10, 10]), (60, [10, 9]), (70, [9, 9]), (120, [8, 8]), (470, [1, 1])] {
            see_answers(&mut queue, begun + Duration::from_millis(until_ms)).await;
            assert_eq!(queue.iter().map(|asked| asked.looks).collect::<Vec<_>>(), left, "{until_ms}");
            assert!(queue.iter().is_sorted_by_key(|asked| asked.look));
        }
        see_answers(&mut queue, begun + PERIOD * 2).await;
        assert!(queue.is_empty() && begun.elapsed() == PERIOD + Duration::from_millis(20));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_begins_when_nothing_more_has_come() {
        let heard = Heard::new(Instant::now());
        // How many bytes have come until so many milliseconds later, and how long the silence is then.
        for (bytes, after_ms, silent_ms) in [(90, 500, 0), (90, 500, 500), (90, 900, 1_400), (91, 100, 0)] {
            tokio::time::advance(Duration::from_millis(after_ms)).await;
            heard.look(bytes, Instant::now());
            assert_eq!(heard.silence(), Duration::from_millis(silent_ms), "{bytes} {after_ms}");
        }
    }
}
