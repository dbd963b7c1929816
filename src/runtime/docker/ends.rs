//! What runs and whose end is still to be told.
//!
//! Owns: the table of running containers, that of logs which are being copied, and what was told. Invariants: an end is told once, and
//! at once: its log may be behind, and who needs the whole of it waits for [`Ends::log_written`].

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::labels::Kind;
use crate::{model::Uid, runtime::Exit};

/// How long a listing waits for the telling of an end: beyond it something is wrong with the engine.
const PATIENCE: Duration = Duration::from_secs(5);
/// When an ended container's output is looked at for the last time, if nobody asks for it before: most are removed by then.
const LAST_LOOK: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Ends {
    table: Mutex<HashMap<String, Running>>,
    /// Logs that are being copied. Dropped: one is complete.
    logs: Mutex<HashMap<String, watch::Sender<Look>>>,
    /// What has ended and is not removed yet, and how, if it is a container.
    exits: Mutex<HashMap<String, Option<Exit>>>,
}

struct Running {
    kind: Kind,
    pod: Uid,
    /// Its end was told, once this is dropped.
    told: watch::Sender<()>,
    telling: bool,
    /// What is known of its memory.
    memory: Memory,
}

/// An end about to be told; [`Ends::forget`] says that it was.
pub(super) struct Telling {
    pub kind: Kind,
    pub pod: Uid,
    pub memory: Memory,
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

/// When what an ended container left is to be looked at.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Look {
    /// When there is time for it.
    #[default]
    Later,
    /// Somebody waits for the whole.
    Now,
    /// It is removed: nothing of it is left.
    Never,
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
            told: watch::Sender::new(()),
            telling: false,
            memory: Memory::default(),
        };
        self.table().insert(id.to_owned(), running);
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

    /// Sandboxes that have ended and are not removed yet.
    pub(super) fn ended_sandboxes(&self) -> Vec<String> {
        self.exits().iter().filter(|(_, exit)| exit.is_none()).map(|(id, _)| id.clone()).collect()
    }

    /// How a container ended, if that was told.
    pub(super) fn exit(&self, id: &str) -> Option<Exit> {
        self.exits().get(id).cloned().flatten()
    }

    /// Whether it has ended, as far as the engine has told.
    pub(super) fn has_ended(&self, id: &str) -> bool {
        self.exits().contains_key(id)
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Look>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its log is being copied from now on.
    pub(super) fn log_begins(&self, id: &str) {
        self.logs().insert(id.to_owned(), watch::Sender::new(Look::Later));
    }

    /// Waits until its log is complete, if that is being copied.
    pub(super) async fn log_written(&self, id: &str) {
        let Some(mut copied) = self.hasten(id, Look::Now) else { return };
        while copied.changed().await.is_ok() {}
    }

    /// Says when what it left is to be looked at.
    fn hasten(&self, id: &str, look: Look) -> Option<watch::Receiver<Look>> {
        let logs = self.logs();
        let log = logs.get(id)?;
        log.send_replace(look);
        Some(log.subscribe())
    }

    /// Waits until what it left is to be looked at for the last time; tells whether it is to be.
    pub(super) async fn last_look(&self, id: &str) -> bool {
        let Some(mut wanted) = self.logs().get(id).map(watch::Sender::subscribe) else { return true };
        let hastened = timeout(LAST_LOOK, wanted.wait_for(|look| *look != Look::Later)).await;
        !matches!(hastened, Ok(Ok(look)) if *look == Look::Never)
    }

    /// It is removed, and nothing of it is there to be looked at.
    pub(super) fn removed(&self, id: &str) {
        self.forget(id);
        self.exits().remove(id);
        self.hasten(id, Look::Never);
    }

    /// Its log is complete.
    pub(super) fn log_ended(&self, id: &str) {
        self.logs().remove(id);
    }

    /// Takes over the telling of an end; `None` when nobody waits for it, or another tells it.
    pub(super) fn begin_telling(&self, id: &str) -> Option<Telling> {
        let mut table = self.table();
        let running = table.get_mut(id).filter(|running| !running.telling)?;
        running.telling = true;
        Some(Telling { kind: running.kind, pod: running.pod.clone(), memory: running.memory })
    }

    /// Completes when the end of what runs was told; never, if it does not run as far as is known.
    pub(super) async fn end(&self, id: &str) {
        let told = self.table().get(id).map(|running| running.told.subscribe());
        match told {
            Some(mut told) => while told.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    }

    /// Waits until the end of what has ended was told.
    pub(super) async fn told(&self, id: &str) {
        self.told_within(id, PATIENCE).await;
    }

    /// Waits so long for the end of what may have ended.
    pub(super) async fn told_within(&self, id: &str, patience: Duration) {
        let Some(mut told) = self.table().get(id).map(|running| running.told.subscribe()) else { return };
        let _ = timeout(patience, async { while told.changed().await.is_ok() {} }).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_end_is_told_once_and_who_asks_meanwhile_waits() {
        let ends = Ends::default();
        ends.expect("c", Kind::Container, &"pod".into());
        assert_eq!(ends.expected(), ["c"]);
        assert!(ends.begin_telling("c").is_some());
        assert!(ends.begin_telling("c").is_none(), "only once");
        assert!(ends.expected().is_empty());
        let begun = Instant::now();
        tokio::join!(ends.told("c"), ends.end("c"), async {
            sleep(SECOND).await;
            ends.forget("c");
        });
        assert_eq!(begun.elapsed(), SECOND);
        ends.told("c").await;
        assert_eq!(begun.elapsed(), SECOND, "what is not expected is not waited for");
        assert!(timeout(SECOND, ends.end("c")).await.is_err(), "it cannot end again");
        // One that is never told holds up nobody for ever.
        ends.expect("d", Kind::Container, &"pod".into());
        ends.told("d").await;
        assert_eq!(begun.elapsed(), 2 * SECOND + PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_a_log_waits_for_the_whole_and_has_it_looked_at_now() {
        let ends = Ends::default();
        ends.log_begins("c");
        let begun = Instant::now();
        let copy = async {
            sleep(SECOND).await;
            assert!(ends.last_look("c").await);
            assert_eq!(begun.elapsed(), SECOND, "it is waited for");
            sleep(SECOND).await;
            ends.log_ended("c");
        };
        tokio::join!(ends.log_written("c"), copy);
        assert_eq!(begun.elapsed(), 2 * SECOND);
        ends.log_written("c").await;
        assert_eq!(begun.elapsed(), 2 * SECOND, "it is complete");
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_looked_at_later_and_not_when_it_is_removed() {
        let ends = Ends::default();
        ends.log_begins("c");
        let begun = Instant::now();
        assert!(ends.last_look("c").await);
        assert_eq!(begun.elapsed(), LAST_LOOK);
        let removed = async {
            sleep(SECOND).await;
            ends.removed("c");
        };
        let (looked, ()) = tokio::join!(ends.last_look("c"), removed);
        assert!(!looked);
        assert_eq!(begun.elapsed(), LAST_LOOK + SECOND);
    }
}
