//! The event recorder: writes what others tell as `Event` objects, and removes old ones.
//!
//! Owns: the batching of writes (soft: an event is never worth waiting for a disk), the regular sweep, and a counter of
//! what operators are to be alarmed by. What is combined or dropped is decided by [`crate::logic::events`].

use std::time::Duration;

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture};
use metrics::{Unit, counter, describe_counter};

use super::{
    commit::{Wiring, commit},
    outside,
    supervisor::{ChildSpec, Life, STUCK_AFTER},
};
use crate::{
    logic::{
        edit::Edit,
        events::{Happening, Recorder, expired},
        namespaces,
        pod::refusal::EVICTED,
        taints::is_eviction,
    },
    messages::{Durability, RecordEvent, Slot},
    model::Kind,
};

/// Repetitions within this time become one write; nobody reads events faster.
const GATHER: Duration = Duration::from_millis(50);
/// Events in one commit: few enough that whoever commits next hardly waits.
const BATCH: usize = 256;
/// How often old events are looked for. With the recorder's rate this bounds how far limits are exceeded meanwhile.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

const EVICTIONS: &str = "troupe_pods_evicted_total";
/// Values of its label: for a taint of the node, or for what the node is low on.
const CAUSES: [&str; 2] = ["taint", "pressure"];

fn cause_of(happening: &Happening) -> Option<&'static str> {
    let [taint, pressure] = CAUSES;
    if is_eviction(happening) {
        Some(taint)
    } else {
        (happening.reason == EVICTED && happening.component == "kubelet").then_some(pressure)
    }
}

/// The child to put under a supervisor; `slot` is where [`Wiring::events`] leads.
pub fn child(slot: &Slot<EventRecorder>, wiring: &Wiring) -> ChildSpec {
    let wiring = wiring.clone();
    ChildSpec::new("events", slot, move |life| Ok(EventRecorder::new(life, wiring.clone())))
        .watchdog(STUCK_AFTER)
}

/// See the file.
pub struct EventRecorder {
    _life: Life,
    wiring: Wiring,
    recorder: Recorder,
    writing: bool,
}

impl EventRecorder {
    /// A recorder that has heard nothing yet.
    pub fn new(life: Life, wiring: Wiring) -> EventRecorder {
        EventRecorder { _life: life, wiring, recorder: Recorder::default(), writing: false }
    }

    fn write_soon(&mut self, ctx: &mut Context<Self>) {
        if !self.writing && self.recorder.has_pending() {
            self.writing = true;
            ctx.run_later(GATHER, Self::write);
        }
    }

    fn write(&mut self, ctx: &mut Context<Self>) {
        let snapshot = self.wiring.view.snapshot();
        let mut edits = self.recorder.take(BATCH).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot write events");
            Vec::new()
        });
        // As with the API: nothing new in a namespace that is terminating.
        edits.retain(|e| namespaces::is_open(&snapshot, &e.key().namespace));
        let wiring = self.wiring.clone();
        let work = async move { (commit(&wiring, edits.clone(), Durability::Soft).await, edits) };
        ctx.spawn(work.into_actor(self).map(|(outcome, edits), this, ctx| {
            this.writing = false;
            match outcome {
                Ok(outcome) => {
                    outcome.made.iter().for_each(|o| this.recorder.stored(o));
                    outcome.overtaken.iter().for_each(|k| this.recorder.forget(k));
                }
                Err(error) => {
                    tracing::warn!(%error, events = edits.len(), "events lost");
                    edits.iter().for_each(|e| this.recorder.forget(e.key()));
                }
            }
            this.write_soon(ctx);
        }));
    }

    fn sweep(&mut self, ctx: &mut Context<Self>) {
        let (snapshot, now) = (self.wiring.view.snapshot(), outside::now());
        self.recorder.let_go(now);
        let gone = expired(snapshot.list(Kind::Event, None), now);
        let wiring = self.wiring.clone();
        let work = async move {
            for batch in gone.chunks(BATCH) {
                let edits = batch.iter().cloned().map(Edit::Remove).collect();
                if let Err(error) = commit(&wiring, edits, Durability::Soft).await {
                    tracing::warn!(%error, "old events not removed");
                    break;
                }
            }
        };
        ctx.spawn(work.into_actor(self));
    }
}

impl Actor for EventRecorder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        let help = "Pods that had to leave their node: for a taint, or for what it is low on";
        describe_counter!(EVICTIONS, Unit::Count, help);
        // They are there before the first one: it is a rise then.
        CAUSES.into_iter().for_each(|cause| counter!(EVICTIONS, "for" => cause).increment(0));
        ctx.run_interval(SWEEP_EVERY, Self::sweep);
    }
}

impl Handler<RecordEvent> for EventRecorder {
    type Result = ();

    fn handle(&mut self, RecordEvent(happening): RecordEvent, ctx: &mut Context<Self>) {
        if let Some(cause) = cause_of(&happening) {
            counter!(EVICTIONS, "for" => cause).increment(1);
        }
        let reason = happening.reason.clone();
        if !self.recorder.record(happening, outside::uid) {
            tracing::debug!(%reason, "event dropped");
        }
        self.write_soon(ctx);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Event;
    use serde_json::json;

    use super::*;
    use crate::{
        actors::testing::{Bench, system},
        logic::{reconcile::Reconcile as _, taints::Evictions},
        model::{Key, Revision, Snapshot, seal_json},
    };

    #[test]
    fn pods_that_have_to_leave_their_node_are_told_apart_by_what_for() {
        let happening = |reason: &'static str, message: &str, component: &'static str| Happening {
            about: Key::new(Kind::Pod, "default", "p"),
            uid: "u".into(),
            field_path: None,
            warning: false,
            reason: reason.into(),
            message: message.into(),
            component: component.into(),
            host: None,
            at: outside::now(),
        };
        let taint =
            |component| happening("TaintManagerEviction", "Marking for deletion Pod default/p", component);
        assert_eq!(cause_of(&taint("kubelet")), None, "a node said so, not the taint manager");
        assert_eq!(cause_of(&happening("Evicted", "low on disk", "kubelet")), Some("pressure"));
        assert_eq!(cause_of(&happening("Started", "", "kubelet")), None);
    }

    #[test]
    fn what_the_taint_manager_records_of_a_pod_that_leaves_is_counted_and_of_one_that_stays_is_not() {
        let mut revision = Revision(0);
        let mut object = |kind, document: serde_json::Value| {
            revision = Revision(revision.0 + 1);
            Arc::new(seal_json(kind, document.to_string().as_bytes()).unwrap().at(revision))
        };
        let node = |taints: serde_json::Value| json!({"metadata": {"name": "n1", "uid": "1"}, "spec": {"taints": taints}});
        let lost =
            json!([{"key": "example.org/off", "effect": "NoExecute", "timeAdded": "2030-01-01T00:00:00Z"}]);
        let (tainted, well) = (object(Kind::Node, node(lost)), object(Kind::Node, node(json!([]))));
        let borne = json!([{"operator": "Exists", "tolerationSeconds": 60}]);
        let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "2"},
            "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}], "tolerations": borne}});
        let pod = object(Kind::Pod, pod);
        let mut snapshot = Snapshot::default();
        snapshot.insert(tainted.clone());
        snapshot.insert(pod.clone());
        let now = "2030-01-01T00:00:01Z".parse().unwrap();
        let mut manager = Evictions::default();
        manager.anew(&snapshot, now);
        let causes = |happened: Vec<Happening>| happened.iter().map(cause_of).collect::<Vec<_>>();
        assert_eq!(causes(manager.happenings(std::slice::from_ref(&pod), now)), [Some("taint")]);
        snapshot.insert(well.clone());
        manager.apply(Some(&tainted), Some(&well), &snapshot, now);
        assert_eq!(causes(manager.happenings(&[], now)), [None], "it may stay");
    }

    #[test]
    fn events_are_written_counted_and_swept() {
        system(async {
            let bench = Bench::new();
            let map = json!({"metadata": {"name": "m", "namespace": "default"}});
            let about = bench.create(Kind::ConfigMap, map).await;
            let old = json!({"metadata": {"name": "old", "namespace": "default"}, "involvedObject": {},
                "lastTimestamp": "2020-01-01T00:00:00Z"});
            let mut old = bench.create(Kind::Event, old).await;
            old = bench
                .change(&old.key.clone(), |e| {
                    e["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
                })
                .await;
            let recorder = EventRecorder::new(Life::detached("events"), bench.wiring()).start();
            let event = || RecordEvent::about(&about, "test", "Tested", "a text".into(), outside::now());
            recorder.send(event()).await.unwrap();
            recorder.send(event()).await.unwrap();
            bench.until_all(|s| s.list(Kind::Event, None).count() == 2).await;
            recorder.send(event()).await.unwrap();
            let counted = |o: &crate::model::Object| o.parse::<Event>().is_ok_and(|e| e.count == Some(3));
            bench.until_all(|s| s.list(Kind::Event, None).any(|o| counted(o))).await;
            bench.until_all(|s| s.find(&old.key).is_none()).await;
            let left: Vec<Key> = bench.list(Kind::Event).iter().map(|o| o.key.clone()).collect();
            assert_eq!(left.len(), 1);
            assert!(left[0].name.starts_with("m."), "{left:?}");
        });
    }
}
