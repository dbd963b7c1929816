//! The store's one writer: gives each change its revision, makes it durable, publishes it.
//!
//! Owns: the order of all changes. Commits wait in a queue, unchecked, while a batch is at the disk; then all that
//! gathered is checked in order and becomes the next batch (group commit). Hard changes are published and answered after
//! their fsync, soft ones at once, unless a hard one is before them: publication is in strict order of revisions.
//! Soft changes go to disk with the next hard batch, or a moment later, newest only.
//! Invariant: what is published is never taken back, and a hard change is published only once it is durable. An error
//! of the disk refuses its whole batch; reads go on, and the next commit tries again. Leaves restarts to no one: the
//! store's death ends the process.

use std::{collections::VecDeque, time::Duration};

use actix::{
    Actor, ActorContext, AsyncContext, Context, Handler, MessageResult, ResponseFuture, SpawnHandle,
};
use tokio::sync::oneshot;

mod disk;
mod head;
mod metrics;
#[cfg(test)]
mod tests;

use self::{
    disk::{Disk, Written},
    head::{Applied, Head},
};
use crate::{
    messages::{Change, Commit, CommitError, Committed, Durability, Publisher, ShowStore, StoreState, View},
    model::{Key, Revision},
    store::{Backend, Force, Recovered, StoreError, recover},
};

/// How long a soft change may stay in memory only. Long enough that a pod that starts (some six states) is written
/// once; what a crash loses, the nodes tell again.
const WRITE_BEHIND: Duration = Duration::from_millis(200);
/// Soft changes are written earlier when this many keys wait: a batch of them keeps a hard one from the disk for some
/// 10 ms at most.
const WRITE_BEHIND_KEYS: usize = 1024;
/// How soon to try again by ourselves after the disk failed. Commits try at once.
const RETRY: Duration = Duration::from_secs(1);
/// A batch takes no more commits once it has this many changes: some 30 ms at the disk.
const BATCH_WRITES: usize = 4096;
/// Changes that may wait for the disk, about ten seconds' worth; more are refused.
const QUEUED_WRITES: usize = 262_144;

/// The actor; see the file's header.
pub struct StoreActor {
    head: Head,
    publisher: Publisher,
    disk: Disk,
    queue: VecDeque<Pending>,
    queued_writes: usize,
    flight: Option<Flight>,
    timer: Option<SpawnHandle>,
    /// The most that the disk did not take at once, while it is not known to take as much again. What little is free on
    /// a full disk takes smaller batches.
    failed: Option<usize>,
}

/// A commit that was not looked at yet.
struct Pending {
    commit: Commit,
    answer: Answer,
}

type Answer = oneshot::Sender<Outcome>;
type Outcome = Result<Committed, CommitError>;

/// What is published and answered together.
#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    answers: Vec<(Answer, Outcome)>,
}

/// A batch at the disk.
struct Flight {
    keys: Vec<Key>,
    reserve: Option<Revision>,
    force: Force,
    bytes: usize,
    /// What waits for its end. While this is empty, soft commits go on.
    held: Group,
}

impl StoreActor {
    /// A store that goes on from what was recovered from this backend.
    ///
    /// # Errors
    /// When the thread for the disk cannot be started.
    pub fn new(
        backend: impl Backend,
        recovered: Recovered,
        publisher: Publisher,
    ) -> Result<StoreActor, StoreError> {
        Ok(StoreActor {
            head: Head::new(recovered),
            publisher,
            disk: Disk::start(backend)?,
            queue: VecDeque::new(),
            queued_writes: 0,
            flight: None,
            timer: None,
            failed: None,
        })
    }

    /// Recovers what the backend holds; gives the actor, ready to be started, and the view for its readers.
    ///
    /// # Errors
    /// As [`recover`] and [`StoreActor::new`].
    pub fn open(mut backend: impl Backend) -> Result<(StoreActor, View), StoreError> {
        let recovered = recover(&mut backend)?;
        let (view, publisher) = View::new(recovered.snapshot.clone());
        Ok((StoreActor::new(backend, recovered, publisher)?, view))
    }

    /// Takes from the queue what may go on now, and sends the disk what is due.
    fn advance(&mut self, ctx: &mut Context<Self>) {
        let mut now = Group::default();
        let mut held = Group::default();
        while let Some(next) = self.queue.front() {
            let waits =
                next.commit.durability == Durability::Hard || !self.head.covers(next.commit.writes.len());
            let blocked = self.flight.as_ref().is_some_and(|f| waits || !f.held.is_empty());
            if blocked || held.changes.len() >= BATCH_WRITES {
                break;
            }
            if waits && held.is_empty() {
                self.publish(std::mem::take(&mut now));
            }
            let Some(Pending { commit, answer }) = self.queue.pop_front() else { break };
            self.queued_writes -= commit.writes.len();
            let (outcome, changes) = match self.head.apply(commit.writes) {
                Ok(Applied { committed, changes }) => (Ok(committed), changes),
                Err(refusal) => (Err(refusal), Vec::new()),
            };
            // A refusal waits too when it may rest on a change that is not durable yet.
            let group = if held.is_empty() && (!waits || changes.is_empty()) { &mut now } else { &mut held };
            group.changes.extend(changes);
            group.answers.push((answer, outcome));
        }
        self.publish(now);
        if self.flight.is_some() {
            return;
        }
        let full = self.head.behind() >= WRITE_BEHIND_KEYS && !self.head.is_doubtful();
        if !held.is_empty() || full {
            self.write(held, ctx);
        } else if (self.head.behind() > 0 || self.failed.is_some()) && self.timer.is_none() {
            let waits = self.head.behind() > 0 && !self.head.is_doubtful();
            let delay = if waits { WRITE_BEHIND } else { RETRY };
            self.timer = Some(ctx.run_later(delay, |store, ctx| {
                store.timer = None;
                if store.flight.is_none() {
                    store.write(Group::default(), ctx);
                }
            }));
        }
    }

    /// Whether the disk does not take what it should, as far as is known.
    fn is_failing(&self) -> bool {
        self.head.is_doubtful() || self.failed.is_some()
    }

    fn publish(&mut self, group: Group) {
        if !group.changes.is_empty() {
            self.publisher.publish(self.head.publish(), group.changes);
        }
        for (answer, outcome) in group.answers {
            reply(answer, outcome);
        }
    }

    fn write(&mut self, held: Group, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        let doubtful = self.head.is_doubtful() || self.failed.is_some();
        let behind = self.head.behind();
        let batch = self.head.take_batch();
        let force = if !held.is_empty() || doubtful || batch.reserve.is_some() {
            Force::Fsync
        } else {
            Force::Buffered
        };
        metrics::batch_begins(batch.len(), behind);
        let keys = batch.puts.iter().map(|r| &r.key).chain(&batch.removes).cloned().collect();
        let bytes = batch.puts.iter().map(|record| record.document.len()).sum();
        self.flight = Some(Flight { keys, reserve: batch.reserve, force, bytes, held });
        self.disk.append(batch, force, self.failed, ctx.address().recipient());
    }
}

impl Group {
    fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.answers.is_empty()
    }
}

fn reply(answer: Answer, outcome: Outcome) {
    metrics::commit_answered(outcome.as_ref().err());
    // Who asked may have gone; the change stands all the same.
    let _ = answer.send(outcome);
}

impl Actor for StoreActor {
    type Context = Context<Self>;

    fn started(&mut self, _: &mut Self::Context) {
        metrics::describe();
    }

    /// A stop that was asked for loses nothing: what is still behind is handed to the disk, whose drop waits for it.
    fn stopped(&mut self, ctx: &mut Self::Context) {
        if self.head.behind() > 0 {
            self.disk.append(self.head.take_batch(), Force::Fsync, None, ctx.address().recipient());
        }
    }
}

impl Handler<Commit> for StoreActor {
    type Result = ResponseFuture<Outcome>;

    fn handle(&mut self, commit: Commit, ctx: &mut Self::Context) -> Self::Result {
        let (answer, outcome) = oneshot::channel();
        if self.queued_writes + commit.writes.len() > QUEUED_WRITES && !self.queue.is_empty() {
            let text = format!("{} changes wait for the disk already: try again later", self.queued_writes);
            reply(answer, Err(CommitError::Unavailable(text)));
        } else {
            self.queued_writes += commit.writes.len();
            self.queue.push_back(Pending { commit, answer });
            self.advance(ctx);
        }
        Box::pin(async move {
            outcome
                .await
                .unwrap_or_else(|_| Err(CommitError::Unavailable("the store is stopping".to_owned())))
        })
    }
}

impl Handler<ShowStore> for StoreActor {
    type Result = MessageResult<ShowStore>;

    fn handle(&mut self, _: ShowStore, _: &mut Self::Context) -> Self::Result {
        MessageResult(StoreState {
            queued_changes: self.queued_writes,
            behind: self.head.behind(),
            failing: self.is_failing(),
        })
    }
}

impl Handler<Written> for StoreActor {
    type Result = ();

    fn handle(&mut self, written: Written, ctx: &mut Self::Context) {
        let Some(flight) = self.flight.take() else { return };
        metrics::batch_ends(flight.force, written.took);
        match written.outcome {
            Ok(()) => {
                self.head.keep(flight.reserve);
                // Less than what failed may fit where that does not.
                let is_as_much = |failed: usize| written.has_room || flight.bytes >= failed;
                self.failed =
                    self.failed.filter(|failed| flight.force != Force::Fsync || !is_as_much(*failed));
                self.publish(flight.held);
            }
            Err(error) => {
                let text = error.full_text();
                tracing::error!(error = text, commits = flight.held.answers.len(), "the store cannot write");
                self.head.roll_back(flight.keys);
                self.failed = Some(self.failed.unwrap_or_default().max(flight.bytes));
                for (answer, _) in flight.held.answers {
                    reply(answer, Err(CommitError::Unavailable(text.clone())));
                }
                if matches!(error, StoreError::WriterGone) {
                    ctx.stop();
                    return;
                }
            }
        }
        self.advance(ctx);
    }
}
