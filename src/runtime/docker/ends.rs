//! What runs and whose end is still to be told.
//!
//! Owns: the table of running containers, that of logs which are being copied, and what was told. Invariants: an end is told once, and a
//! moment late, if that completes its log: whoever hears of the end then finds what the engine's stream gave. Limit: a last line
//! without an end comes after it, and one that left a long backlog is told to have ended while that is copied; who needs the whole
//! log waits for [`Ends::log_written`].

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::labels::Kind;
use crate::{model::Uid, runtime::Exit};

/// How long a listing, or an end, waits for the other: beyond it something is wrong with the engine, and an end without
/// the last lines is better than none.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long an end waits for a log that goes on: the tail is there in a moment, or much is to be copied yet.
const TAIL_PATIENCE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Ends {
    table: Mutex<HashMap<String, Running>>,
    /// Logs that are being copied. Dropped: one is complete.
    logs: Mutex<HashMap<String, watch::Sender<()>>>,
    /// What has ended and is not removed yet, and how, if it is a container.
    exits: Mutex<HashMap<String, Option<Exit>>>,
}

struct Running {
    kind: Kind,
    pod: Uid,
    /// Nothing more comes into its log.
    log: watch::Sender<Log>,
    /// Its end was told, once this is dropped.
    told: watch::Sender<()>,
    telling: bool,
    /// What is known of its memory.
    memory: Memory,
    /// It ended before this process came, and only its log is waited for.
    past: bool,
}

/// An end about to be told; [`Ends::forget`] says that it was.
pub(super) struct Telling {
    pub kind: Kind,
    pub pod: Uid,
    pub memory: Memory,
    log: watch::Receiver<Log>,
}

/// What is known of a container's memory before the engine is asked how it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Memory {
    /// It has no limit of its own.
    #[default]
    Unlimited,
    /// It has a limit, or that is not known: it may have run out without a word of it yet.
    Limited,
    /// It ran out, the engine says.
    Exhausted,
}

/// How far a log is written.
#[derive(Clone, Copy, Default)]
struct Log {
    ended: bool,
}

impl Telling {
    /// Waits until the log is written to the end, or goes on for a while.
    pub(super) async fn log_ended(&mut self) {
        if self.log.borrow_and_update().ended
            || !matches!(timeout(PATIENCE, self.log.changed()).await, Ok(Ok(())))
        {
            return;
        }
        let written =
            async { while !self.log.borrow_and_update().ended && self.log.changed().await.is_ok() {} };
        let _ = timeout(TAIL_PATIENCE, written).await;
    }
}

impl Ends {
    fn table(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the end of this is to be told. Before it starts, lest a short life be missed.
    pub(super) fn expect(&self, id: &str, kind: Kind, pod: &Uid) {
        let running = Running {
            kind,
            pod: pod.clone(),
            log: watch::Sender::new(Log::default()),
            told: watch::Sender::new(()),
            telling: false,
            memory: Memory::default(),
            past: false,
        };
        self.table().insert(id.to_owned(), running);
    }

    /// It ended while nobody drove: its end is not told any more, but who looks at it waits until its log is complete.
    pub(super) fn expect_log(&self, id: &str, kind: Kind, pod: &Uid) {
        self.expect(id, kind, pod);
        if let Some(running) = self.table().get_mut(id) {
            (running.telling, running.past) = (true, true);
        }
    }

    /// Its memory has a limit, or that is not known.
    pub(super) fn limited(&self, id: &str) {
        if let Some(running) = self.table().get_mut(id).filter(|running| running.memory == Memory::Unlimited)
        {
            running.memory = Memory::Limited;
        }
    }

    /// It ran out of memory.
    pub(super) fn exhausted(&self, id: &str) {
        if let Some(running) = self.table().get_mut(id) {
            running.memory = Memory::Exhausted;
        }
    }

    /// Its end was told, or nobody is to hear of it.
    pub(super) fn forget(&self, id: &str) {
        self.table().remove(id);
    }

    /// Everything whose end was not told.
    pub(super) fn expected(&self) -> Vec<String> {
        self.table().iter().filter(|(_, running)| !running.telling).map(|(id, _)| id.clone()).collect()
    }

    /// Whether it runs, as far as the engine has told.
    pub(super) fn is_expected(&self, id: &str) -> bool {
        self.table().get(id).is_some_and(|running| !running.telling)
    }

    /// What has ended, and how, if it is a container: the engine tells an end before it lists it.
    pub(super) fn exits(&self) -> MutexGuard<'_, HashMap<String, Option<Exit>>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How a container ended, if that was told.
    pub(super) fn exit(&self, id: &str) -> Option<Exit> {
        self.exits().get(id).cloned().flatten()
    }

    /// Whether it has ended, as far as the engine has told.
    pub(super) fn has_ended(&self, id: &str) -> bool {
        self.exits().contains_key(id)
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its log is being copied from now on.
    pub(super) fn log_begins(&self, id: &str) {
        self.logs().insert(id.to_owned(), watch::Sender::new(()));
    }

    /// Waits until its log is complete, if that is being copied.
    pub(super) async fn log_written(&self, id: &str) {
        let Some(mut copied) = self.logs().get(id).map(watch::Sender::subscribe) else { return };
        while copied.changed().await.is_ok() {}
    }

    /// Something more is in its log.
    pub(super) fn log_goes_on(&self, id: &str) {
        if let Some(running) = self.table().get(id) {
            running.log.send_modify(|_| ());
        }
    }

    /// Its log has all that the stream gave to who followed it; a last line without an end may be to come.
    pub(super) fn log_followed(&self, id: &str) {
        if let Some(running) = self.table().get(id) {
            running.log.send_modify(|log| log.ended = true);
        }
    }

    /// Its log is complete.
    pub(super) fn log_ended(&self, id: &str) {
        self.logs().remove(id);
        let mut table = self.table();
        if table.get(id).is_some_and(|running| running.past) {
            table.remove(id);
        } else if let Some(running) = table.get(id) {
            running.log.send_modify(|log| log.ended = true);
        }
    }

    /// Takes over the telling of an end; `None` when nobody waits for it, or another tells it.
    pub(super) fn begin_telling(&self, id: &str) -> Option<Telling> {
        let mut table = self.table();
        let running = table.get_mut(id).filter(|running| !running.telling)?;
        running.telling = true;
        let log = running.log.subscribe();
        Some(Telling { kind: running.kind, pod: running.pod.clone(), memory: running.memory, log })
    }

    /// Waits until the end of what has ended was told.
    pub(super) async fn told(&self, id: &str) {
        let Some(mut told) = self.table().get(id).map(|running| running.told.subscribe()) else { return };
        let _ = tokio::time::timeout(PATIENCE, async { while told.changed().await.is_ok() {} }).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_looks_at_what_ended_while_nobody_drove_waits_for_its_log() {
        let ends = Ends::default();
        ends.expect_log("c", Kind::Container, &"pod".into());
        assert!(ends.expected().is_empty() && ends.begin_telling("c").is_none(), "its end is no news");
        let begun = tokio::time::Instant::now();
        tokio::join!(ends.told("c"), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ends.log_ended("c");
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        ends.told("c").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_once_and_after_its_log() {
        let ends = Ends::default();
        ends.expect("c", Kind::Container, &"pod".into());
        assert_eq!(ends.expected(), ["c"]);
        let mut telling = ends.begin_telling("c").unwrap();
        assert!(ends.begin_telling("c").is_none(), "only once");
        assert!(ends.expected().is_empty());
        let begun = tokio::time::Instant::now();
        tokio::join!(telling.log_ended(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ends.log_ended("c");
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
        // Who asks meanwhile waits for the telling.
        tokio::join!(ends.told("c"), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ends.forget("c");
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        ends.told("c").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2), "what is not expected is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_does_not_wait_for_the_last_look_at_a_log_that_was_followed_but_who_reads_it_does() {
        let ends = Ends::default();
        ends.expect("c", Kind::Container, &"pod".into());
        ends.log_begins("c");
        let begun = tokio::time::Instant::now();
        ends.log_followed("c");
        ends.begin_telling("c").unwrap().log_ended().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        tokio::join!(ends.log_written("c"), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            ends.log_ended("c");
        });
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_never_ends_does_not_hold_back_an_end_for_ever() {
        let ends = Ends::default();
        ends.expect("c", Kind::Container, &"pod".into());
        let begun = tokio::time::Instant::now();
        ends.begin_telling("c").unwrap().log_ended().await;
        assert_eq!(begun.elapsed(), PATIENCE);
        // One that goes on is a backlog, which takes its time.
        ends.expect("flood", Kind::Container, &"pod".into());
        ends.log_begins("flood");
        let (begun, mut telling) = (tokio::time::Instant::now(), ends.begin_telling("flood").unwrap());
        let flood = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_millis(250)).await;
                ends.log_goes_on("flood");
            }
        };
        let told = async {
            telling.log_ended().await;
            assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
            ends.forget("flood");
            // Who reads it to its end waits for that all the same.
            ends.log_written("flood").await;
            assert_eq!(begun.elapsed(), Duration::from_secs(25));
        };
        let copied = async {
            flood.await;
            ends.log_ended("flood");
        };
        tokio::join!(copied, told);
        ends.log_written("flood").await;
        assert_eq!(begun.elapsed(), Duration::from_secs(25), "it is complete");
    }
}
