//! One actor for every controller whose decisions follow from a snapshot: garbage, namespaces, taints, endpoints.
//!
//! Owns: the loop feed → due items → edits → commit, with one commit under way at a time. What was overtaken is decided
//! on again at once, what failed after a backoff. The decisions are those of a [`Reconcile`]: [`garbage`], [`namespaces`],
//! [`evictions`] and [`endpoints`] make the children to put under a supervisor.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, SpawnHandle, StreamHandler, WrapFuture};

use super::{
    commit::{CommitFailed, Outcome, Wiring, commit},
    follow::{Fed, follow, sides},
    outside,
    supervisor::{ChildSpec, Life, STUCK_AFTER},
};
use crate::{
    logic::{
        edit::Edit,
        endpoints::Services,
        garbage::Garbage,
        namespaces::{Bootstrap, Namespaces},
        reconcile::{Means, Reconcile},
        supervision::Backoff,
        taints::Evictions,
    },
    messages::{Durability, RecordEvent, SendFailed, Slot},
    model::{Key, Object},
};

/// Edits in one commit: as much as one carries well.
const BATCH: usize = 256;
/// Items decided on in one turn: many need no edit, and the actor must not be deaf for long.
const ITEMS: usize = 4_096;

/// So long after its time an item is certainly due, whatever timers are rounded to, and never looked at in a busy loop.
const CERTAINLY: Duration = Duration::from_millis(5);

/// The garbage collector.
pub fn garbage(wiring: &Wiring) -> ChildSpec {
    child("garbage collector", Durability::Hard, wiring, Garbage::default)
}

/// The namespaces' controller, which also furnishes a new cluster.
pub fn namespaces(wiring: &Wiring, bootstrap: Bootstrap) -> ChildSpec {
    child("namespaces", Durability::Hard, wiring, move || Namespaces::new(bootstrap.clone()))
}

/// The taint manager: pods leave nodes that bear a `NoExecute` taint.
pub fn evictions(wiring: &Wiring) -> ChildSpec {
    child("taint manager", Durability::Hard, wiring, Evictions::default)
}

/// The endpoints' controller. What it writes follows from services and pods, so it is never waited for.
pub fn endpoints(wiring: &Wiring) -> ChildSpec {
    child("endpoints", Durability::Soft, wiring, Services::default)
}

fn child<R>(
    name: &'static str,
    durability: Durability,
    wiring: &Wiring,
    make: impl Fn() -> R + Send + Sync + 'static,
) -> ChildSpec
where
    R: Reconcile + Unpin + 'static,
{
    let (slot, wiring) = (Slot::new(name), wiring.clone());
    ChildSpec::new(name, &slot, move |life| Ok(Reconciler::new(life, wiring.clone(), durability, make())))
        .watchdog(STUCK_AFTER)
}

/// See the file.
pub struct Reconciler<R: Reconcile> {
    life: Life,
    wiring: Wiring,
    durability: Durability,
    logic: R,
    committing: bool,
    failures: u32,
    alarm: Option<SpawnHandle>,
}

/// A batch of edits, and which item each is for.
struct Batch<I> {
    edits: Vec<Edit>,
    items: HashMap<Key, I>,
}

impl<R: Reconcile + Unpin + 'static> Reconciler<R> {
    /// A controller that knows nothing yet.
    pub fn new(life: Life, wiring: Wiring, durability: Durability, logic: R) -> Reconciler<R> {
        Reconciler { life, wiring, durability, logic, committing: false, failures: 0, alarm: None }
    }

    /// Decides on what is due, unless a batch is under way.
    fn step(&mut self, ctx: &mut Context<Self>) {
        while !self.committing {
            let (batch, more) = self.gather();
            if !batch.edits.is_empty() {
                self.commit(batch, ctx);
            } else if more {
                self.life.beat();
            } else {
                break;
            }
        }
        self.set_alarm(ctx);
    }

    /// Edits for due items, one write a key; whether more items may be due.
    fn gather(&mut self) -> (Batch<R::Item>, bool) {
        let snapshot = self.wiring.view.snapshot();
        let (now, exact) = (outside::now(), outside::exact_now());
        let mut batch = Batch { edits: Vec::new(), items: HashMap::new() };
        for _ in 0..ITEMS {
            if batch.edits.len() >= BATCH {
                return (batch, true);
            }
            let Some(item) = self.logic.next_due(exact) else { return (batch, false) };
            let mut means = Means { snapshot: &snapshot, now, exact, uid: &mut outside::uid, max: BATCH };
            match self.logic.decide(&item, &mut means) {
                Ok(edits) => batch.add(&item, edits),
                Err(error) => tracing::error!(controller = self.life.name(), %error, "cannot decide"),
            }
        }
        (batch, true)
    }

    fn commit(&mut self, batch: Batch<R::Item>, ctx: &mut Context<Self>) {
        self.committing = true;
        let (wiring, durability, Batch { edits, items }) = (self.wiring.clone(), self.durability, batch);
        let work = async move { commit(&wiring, edits, durability).await };
        ctx.spawn(work.into_actor(self).map(move |outcome, this, ctx| this.committed(items, outcome, ctx)));
    }

    fn committed(
        &mut self,
        mut items: HashMap<Key, R::Item>,
        outcome: Result<Outcome, CommitFailed>,
        ctx: &mut Context<Self>,
    ) {
        let wait = match outcome {
            Ok(outcome) => {
                self.failures = 0;
                self.record(&outcome.made);
                items.retain(|key, _| outcome.overtaken.contains(key));
                Duration::ZERO
            }
            Err(error) => {
                // At a start others begin before the store does.
                if self.failures == 0 && matches!(error, CommitFailed::Unsent(SendFailed::Down(_))) {
                    tracing::debug!(controller = self.life.name(), %error, "nothing written yet");
                } else {
                    tracing::warn!(controller = self.life.name(), %error, "nothing written");
                }
                self.failures = self.failures.saturating_add(1);
                Backoff::ACTOR.delay(self.failures, rand::random())
            }
        };
        items.into_values().for_each(|item| self.logic.mark(item));
        ctx.run_later(wait, |this, ctx| {
            this.committing = false;
            this.step(ctx);
        });
    }

    fn record(&mut self, made: &[Arc<Object>]) {
        for happened in self.logic.happenings(made, outside::now()) {
            self.wiring.record(RecordEvent(happened));
        }
    }

    /// Wakes up when something becomes due by itself.
    fn set_alarm(&mut self, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.alarm.take() {
            ctx.cancel_future(earlier);
        }
        if let Some(at) = self.logic.wake_at() {
            let wait = outside::until(at) + CERTAINLY;
            self.alarm = Some(ctx.run_later(wait, |this, ctx| this.step(ctx)));
        }
    }
}

impl<I: Clone> Batch<I> {
    /// What another item wants of the same object is decided again when the change made by this one comes back.
    fn add(&mut self, item: &I, edits: Vec<Edit>) {
        for edit in edits {
            if let Entry::Vacant(free) = self.items.entry(edit.key().clone()) {
                free.insert(item.clone());
                self.edits.push(edit);
            }
        }
    }
}

impl<R: Reconcile + Unpin + 'static> Actor for Reconciler<R> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.add_stream(follow(self.wiring.view.clone()));
    }
}

impl<R: Reconcile + Unpin + 'static> StreamHandler<Fed> for Reconciler<R> {
    fn handle(&mut self, fed: Fed, ctx: &mut Context<Self>) {
        let now = outside::exact_now();
        match fed {
            Fed::Anew(snapshot) => self.logic.anew(&snapshot, now),
            Fed::Changes(changes) => {
                let snapshot = self.wiring.view.snapshot();
                for change in &changes {
                    let (before, after) = sides(change);
                    self.logic.apply(before, after, &snapshot, now);
                }
            }
        }
        self.record(&[]);
        self.step(ctx);
    }
}

#[cfg(test)]
mod tests;
