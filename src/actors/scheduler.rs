//! The scheduler: gives every waiting pod a node, or says why none fits.
//!
//! Owns: the loop feed → queue → decisions → commit. While one batch of bindings is under way the next one gathers.
//! Invariant: bindings compare and swap on the very state they were decided on; the queue books them at once, so a
//! node is never given away twice. Everything it knows is read anew after a restart.

use std::sync::Arc;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, StreamHandler, WrapFuture};
use k8s_openapi::jiff::Timestamp;

use super::{
    commit::{CommitFailed, Outcome, Wiring, commit, settled},
    follow::{Fed, follow, sides},
    outside,
    supervisor::{ChildSpec, Life},
};
use crate::{
    logic::{
        edit::Edit,
        placement::queue::{self, Queue, Round},
        supervision::Backoff,
    },
    messages::{Durability, RecordEvent, Slot},
    model::Object,
};

/// Pods decided at once: as much as one commit carries well.
const BATCH: usize = 512;

/// Who events know the scheduler as.
const COMPONENT: &str = "default-scheduler";

/// The child to put under a supervisor. It has a thread of its own: placing thousands of pods delays nobody.
pub fn child(wiring: &Wiring) -> ChildSpec {
    let wiring = wiring.clone();
    let slot = Slot::new("scheduler");
    ChildSpec::new("scheduler", &slot, move |life| Ok(Scheduler::new(life, wiring.clone()))).own_arbiter()
}

/// See the file.
pub struct Scheduler {
    _life: Life,
    wiring: Wiring,
    queue: Queue,
    committing: bool,
    failures: u32,
}

impl Scheduler {
    /// A scheduler that knows nothing yet.
    pub fn new(life: Life, wiring: Wiring) -> Scheduler {
        Scheduler { _life: life, wiring, queue: Queue::default(), committing: false, failures: 0 }
    }

    /// Decides on waiting pods, unless a batch is under way.
    fn step(&mut self, ctx: &mut Context<Self>) {
        if self.committing || !self.queue.has_waiting() {
            return;
        }
        self.committing = true;
        let round = self.queue.decide(BATCH);
        let (now, wiring) = (outside::now(), self.wiring.clone());
        let binds = edits(round.bound.iter().map(|(pod, node)| queue::bind(pod, node, now).map(Some)));
        let refusals = edits(round.refused.iter().map(|(pod, why)| queue::refuse(pod, why, now)));
        let work = async move {
            let bound = commit(&wiring, binds, Durability::Hard).await;
            let told = commit(&wiring, refusals, Durability::Soft).await;
            (bound, told)
        };
        ctx.spawn(work.into_actor(self).map(move |(bound, told), this, ctx| {
            this.refused(&round, &told, now);
            this.bound(&round, bound, now, ctx);
        }));
    }

    fn bound(
        &mut self,
        round: &Round,
        outcome: Result<Outcome, CommitFailed>,
        now: Timestamp,
        ctx: &mut Context<Self>,
    ) {
        let made = outcome.as_ref().ok();
        for (pod, node) in &round.bound {
            if made.is_some_and(|o| !o.overtaken.contains(&pod.key)) {
                let message =
                    format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
                self.wiring.record(RecordEvent::about(pod, COMPONENT, "Scheduled", message, now));
            } else {
                let snapshot = self.wiring.view.snapshot();
                self.queue.not_bound(pod.uid(), snapshot.find(&pod.key));
            }
        }
        let wait = match outcome {
            Ok(_) => {
                self.failures = 0;
                std::time::Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(%error, pods = round.bound.len(), "bindings not written");
                self.failures = self.failures.saturating_add(1);
                Backoff::ACTOR.delay(self.failures, rand::random())
            }
        };
        let next = |this: &mut Self, ctx: &mut Context<Self>| {
            this.committing = false;
            this.step(ctx);
        };
        if wait.is_zero() {
            next(self, ctx);
        } else {
            ctx.run_later(wait, next);
        }
    }

    fn refused(&mut self, round: &Round, outcome: &Result<Outcome, CommitFailed>, now: Timestamp) {
        for (pod, why) in &round.refused {
            if outcome.as_ref().is_ok_and(|o| !o.overtaken.contains(&pod.key)) {
                let event = RecordEvent::about(pod, COMPONENT, "FailedScheduling", why.to_string(), now);
                self.wiring.record(event.warning());
            } else {
                self.queue.not_told(pod.uid());
            }
        }
    }
}

/// What could be made; the rest is a defect worth a person's time, and no reason to hold up the others.
fn edits<E: std::fmt::Display>(made: impl Iterator<Item = Result<Option<Edit>, E>>) -> Vec<Edit> {
    made.filter_map(|edit| edit.inspect_err(|error| tracing::error!(%error, "cannot edit")).ok().flatten())
        .collect()
}

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // Bindings of an earlier incarnation may be under way: first they are to be seen.
        let wiring = self.wiring.clone();
        ctx.wait(async move { settled(&wiring).await }.into_actor(self).map(|(), this, ctx| {
            ctx.add_stream(follow(this.wiring.view.clone()));
        }));
    }
}

impl StreamHandler<Fed> for Scheduler {
    fn handle(&mut self, fed: Fed, ctx: &mut Context<Self>) {
        match fed {
            Fed::Anew(snapshot) => self.queue = Queue::load(&snapshot),
            Fed::Changes(changes) => {
                for change in &changes {
                    let (before, after): (Option<&Arc<Object>>, Option<&Arc<Object>>) = sides(change);
                    self.queue.apply(before, after);
                }
            }
        }
        self.step(ctx);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        actors::testing::{Bench, system},
        model::{Key, Kind, KindFacet},
    };

    fn pod(name: &str) -> serde_json::Value {
        json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}})
    }

    fn node_of(object: &Object) -> Option<String> {
        match &object.facet.of {
            KindFacet::Pod(pod) => pod.node.as_ref().map(ToString::to_string),
            _ => None,
        }
    }

    #[test]
    fn pods_are_bound_when_a_node_comes_and_are_told_why_not_before() {
        system(async {
            let bench = Bench::new();
            bench.create(Kind::Pod, pod("a")).await;
            bench.create(Kind::Pod, pod("b")).await;
            let _scheduler = Scheduler::new(Life::detached("scheduler"), bench.wiring()).start();
            let key = Key::new(Kind::Pod, "default", "a");
            let told =
                bench.until(&key, |p| matches!(&p.facet.of, KindFacet::Pod(f) if f.unschedulable)).await;
            assert!(std::str::from_utf8(&told.json).unwrap().contains("no nodes available to schedule pods"));
            bench
                .create(
                    Kind::Node,
                    json!({"metadata": {"name": "n"}, "status": {
                        "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"},
                        "conditions": [{"type": "Ready", "status": "True"}],
                    }}),
                )
                .await;
            for name in ["a", "b"] {
                let key = Key::new(Kind::Pod, "default", name);
                let bound = bench.until(&key, |p| node_of(p).is_some()).await;
                assert_eq!(node_of(&bound).as_deref(), Some("n"));
            }
            let reasons = bench.reasons();
            assert_eq!(reasons.iter().filter(|r| *r == "FailedScheduling").count(), 2);
            assert_eq!(reasons.iter().filter(|r| *r == "Scheduled").count(), 2);
        });
    }
}
