//! A node's object, as its actor keeps it.
//!
//! Owns: the writing of what a node says of itself, and of what is said of it when it falls silent. Invariants: a node
//! of the master's own process that is not there is made; one that joined is not: without its object, or with another
//! key in that, it is no node any more and is sent away; what is not written when the node links or falls silent is never
//! written: it was said before that.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, WrapFuture as _};
use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::Time};
use tokio::time::Instant;

use super::{
    handle::{NodeHandle, RETRY},
    sightings::origin,
};
use crate::{
    actors::{
        commit::{Wiring, commit},
        outside,
    },
    logic::{
        clocks::{is_overwritten, keep_added, said_again, said_in, stamp, told_status},
        edit::{Edit, edit},
        join::{belongs_to, not_a_node, note_linked_from},
        node_events::told_by_change,
        node_labels::may_set,
        nodes::{complete_labels, lost_status, new_node, note_no_image_sharing, taint_by_condition},
        sightings::AGAIN,
        silence::{is_away, note_goodbye, unready},
        taints::{Readiness, is_silent, readiness, taint_by_readiness},
    },
    messages::{Durability, RecordEvent, wire},
    model::{Key, KindFacet, NodeName, Object, extended, seal, taint_by_cordon},
    net::LinkHandle,
};

/// How long a node that said goodbye may be away before its pods are replaced: a restart, an upgrade, a reboot of a
/// small machine.
const GOODBYE: Duration = Duration::from_secs(60);

/// A node's word that others wrote over is said again after this: often enough that nobody is misled for long, and seldom enough
/// that two who write over each other do no harm. Kubernetes' kubelet takes up to ten seconds.
const SAID_AGAIN: Duration = Duration::from_secs(2);

/// One log line of that in so long, however often they do.
const LOGGED_AGAIN: Duration = Duration::from_secs(60);

/// Labels named in one complaint.
const MOST_SHOWN: usize = 10;

/// What was said of labels that the node may not set.
#[derive(Default)]
pub(super) enum LabelsRefused {
    /// Nothing: there were none.
    #[default]
    None,
    /// To be said as soon as there is an object to say it of: these.
    Waits(String),
    /// All.
    Told,
}

/// A node's own word, and whether it is to be said again soon.
#[derive(Default)]
pub(super) struct Word {
    said: Said,
    /// When it was written last.
    at: Option<Instant>,
    /// It is looked at soon whether others have written over it.
    again: bool,
    /// When it was logged last that they have.
    logged: Option<Instant>,
}

/// What it was.
#[derive(Default)]
enum Said {
    #[default]
    Nothing,
    /// As the node reported it.
    Report(wire::NodeReport),
    /// The node's object says it, which is in memory anyway, with so many of its conditions.
    Stored(Arc<Object>, usize),
}

impl Word {
    /// It is not to be said again.
    pub(super) fn forget(&mut self) {
        self.said = Said::Nothing;
    }

    fn is_said(&self) -> bool {
        !matches!(self.said, Said::Nothing)
    }

    fn status(&self) -> Option<v1::NodeStatus> {
        match &self.said {
            Said::Nothing => None,
            Said::Report(report) => told_status(&report.status).ok(),
            Said::Stored(node, conditions) => {
                let status = node.parse::<v1::Node>().ok()?.status?;
                Some(said_again(status, *conditions))
            }
        }
    }
}

/// registry → node: its object has changed.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct ObjectMoved;

impl Handler<ObjectMoved> for NodeHandle {
    type Result = ();

    fn handle(&mut self, _: ObjectMoved, ctx: &mut Self::Context) {
        self.look_again(ctx);
    }
}

impl NodeHandle {
    fn look_again(&mut self, ctx: &mut Context<Self>) {
        if !self.word.is_said() || self.word.again {
            return;
        }
        self.word.again = true;
        ctx.run_later(SAID_AGAIN, |node, ctx| {
            node.word.again = false;
            node.say_again(ctx);
        });
    }

    /// Writes what the node said once more when others have written over it.
    fn say_again(&mut self, ctx: &mut Context<Self>) {
        // What was written just now may not be stored yet.
        if self.word.at.is_some_and(|at| at.elapsed() < SAID_AGAIN) {
            return self.look_again(ctx);
        }
        let Some(status) = self.word.status() else { return };
        let told = self.with_own_conditions(status.clone());
        let snapshot = self.seed.wiring.view.snapshot();
        let Some(object) = snapshot.find(&self.key()) else { return };
        let Ok(stored) = object.parse::<v1::Node>() else { return };
        if is_overwritten(&told, stored.status.as_ref()) {
            if self.word.logged.is_none_or(|at| at.elapsed() >= LOGGED_AGAIN) {
                self.word.logged = Some(Instant::now());
                tracing::info!(node = %self.name, "others wrote over the node's status; it is said again");
            }
            self.write_status(status, BTreeMap::new(), ctx);
        } else if let Some(conditions) = stored.status.and_then(|stored| said_in(&told, &stored)) {
            self.word.said = Said::Stored(object.clone(), conditions);
        }
    }

    /// Writes the node's own status; makes the node object when it is new.
    pub(super) fn write_node(
        &mut self,
        report: wire::NodeReport,
        labels: BTreeMap<String, String>,
        ctx: &mut Context<Self>,
    ) {
        if self.goodbye {
            // It waited behind the goodbye.
            return;
        }
        let status = match told_status(&report.status) {
            Ok(status) => status,
            Err(error) => {
                tracing::error!(node = %self.name, %error, "the node sent no node status");
                return;
            }
        };
        self.word.said = Said::Report(report);
        self.write_status(status, labels, ctx);
    }

    fn write_status(
        &mut self,
        status: v1::NodeStatus,
        labels: BTreeMap<String, String>,
        ctx: &mut Context<Self>,
    ) {
        self.word.at = Some(Instant::now());
        self.ready_since = match readiness(&status) {
            Readiness::Ready => self.ready_since.or_else(|| Some(Instant::now())),
            _ => None,
        };
        let status = self.with_own_conditions(status);
        let (name, subnet) = (self.name.clone(), self.subnet.clone());
        let joined = self.joined_link();
        let from = joined.as_ref().and_then(|(_, link)| origin(link));
        self.change_node(ctx, move |current| match current {
            other if !is_admitted(&name, joined.as_ref(), other) => None,
            Some(object) => edit::<v1::Node>(object, |node| {
                let mut status = status.clone();
                stamp(&mut status, node.status.as_ref(), outside::now());
                keep_added(&mut status, node.status.as_ref());
                extended::keep(&mut status, node.status.as_ref());
                complete_labels(node.metadata.labels.get_or_insert_default(), &status);
                node.metadata.labels.get_or_insert_default().extend(labels.clone());
                if let Some(from) = from {
                    note_linked_from(node, from);
                }
                let spec = node.spec.get_or_insert_default();
                taint_by_condition(spec, &status);
                taint_by_cordon(spec, &Time(outside::now()));
                taint_by_readiness(spec, readiness(&status), outside::now());
                if spec.pod_cidr.is_none() {
                    spec.pod_cidr = Some(subnet.clone());
                    spec.pod_cidrs = Some(vec![subnet.clone()]);
                }
                node.status = Some(status);
            })
            .ok(),
            None => {
                let (uid, now, mut status) = (outside::uid(), outside::now(), status.clone());
                stamp(&mut status, None, now);
                let now_ms = now.as_millisecond();
                let node = new_node(name.as_str(), &labels, &subnet, status, now_ms, uid.as_str());
                seal(&node).ok().map(Edit::Create)
            }
        });
    }

    /// What a node tells, and what its master has to say beside.
    fn with_own_conditions(&self, mut status: v1::NodeStatus) -> v1::NodeStatus {
        if self.seed.no_image_sharing {
            let snapshot = self.seed.wiring.view.snapshot();
            let node = snapshot.find(&self.key()).and_then(|object| object.parse::<v1::Node>().ok());
            let before = node.and_then(|node| node.status);
            note_no_image_sharing(&mut status, before.as_ref(), outside::now().as_millisecond());
        }
        status
    }

    /// Those of the labels that a node may give itself. The others are told of once.
    pub(super) fn own_labels(&mut self, labels: BTreeMap<String, String>) -> BTreeMap<String, String> {
        let (own, refused): (BTreeMap<_, _>, BTreeMap<_, _>) =
            labels.into_iter().partition(|(key, _)| may_set(key));
        if !refused.is_empty() && matches!(self.labels_refused, LabelsRefused::None) {
            let all: Vec<&str> = refused.keys().take(MOST_SHOWN).map(String::as_str).collect();
            let all = all.join(", ");
            tracing::warn!(node = %self.name, labels = all, "labels that are not for a node to set were left out");
            self.labels_refused = LabelsRefused::Waits(all);
        }
        own
    }

    /// Records which labels were refused, once there is a node to say it of.
    fn tell_refused_labels(&mut self) {
        let LabelsRefused::Waits(all) = &self.labels_refused else { return };
        let snapshot = self.seed.wiring.view.snapshot();
        let Some(object) = snapshot.find(&self.key()) else { return };
        let message = format!("Labels that a node may not set on itself were left out: {all}");
        let event =
            RecordEvent::about(object, "node-controller", "NodeLabelsRefused", message, outside::now());
        self.seed.wiring.record(event);
        self.labels_refused = LabelsRefused::Told;
    }

    /// A link has ended, if there was one.
    pub(super) fn note_link_end(&mut self) {
        self.word.forget();
        let ready = self.ready_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        self.sparing.link_ended(ready);
    }

    /// The node has linked or fallen silent: what was to be written before is no longer true.
    pub(super) fn supersede(&self) {
        self.turn.fetch_add(1, Ordering::Relaxed);
    }

    /// The node has linked: its pods may stay. New ones wait until it has said how it is.
    pub(super) fn write_linked(&self, ctx: &mut Context<Self>) {
        let (name, joined) = (self.name.clone(), self.joined_link());
        self.change_node(ctx, move |current| {
            let object = current.filter(|node| is_silent(node) || is_away(node))?;
            if !is_admitted(&name, joined.as_ref(), current) {
                return None;
            }
            edit::<v1::Node>(object, |node| {
                // Should it fall silent now, it has not said goodbye.
                if let Some(status) = &mut node.status {
                    note_goodbye(status, false);
                }
                let readiness = Readiness::Away;
                taint_by_readiness(node.spec.get_or_insert_default(), readiness, outside::now());
            })
            .ok()
        });
    }

    /// Changes the node's object, again from its newest state when that was overtaken; not once it was superseded.
    fn change_node(
        &self,
        ctx: &mut Context<Self>,
        change: impl Fn(Option<&Arc<Object>>) -> Option<Edit> + 'static,
    ) {
        let (wiring, key) = (self.seed.wiring.clone(), self.key());
        let (turn, of) = (self.turn.clone(), self.turn.load(Ordering::Relaxed));
        let work = async move {
            while turn.load(Ordering::Relaxed) == of {
                let snapshot = wiring.view.snapshot();
                let before = snapshot.find(&key);
                let Some(edit) = change(before) else { return };
                let durability = match &edit {
                    // A subnet, too, is for good.
                    Edit::Replace(_, base) if has_subnet(base) => Durability::Soft,
                    _ => Durability::Hard,
                };
                match commit(&wiring, vec![edit], durability).await {
                    Ok(outcome) if outcome.overtaken.is_empty() => {
                        outcome.made.iter().for_each(|made| record_change(&wiring, before, made));
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(node = %key.name, %error, "node status not written");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        };
        // Mirrors wait for their node's object, which owns them.
        ctx.spawn(work.into_actor(self).map(|(), node, ctx| {
            node.tell_refused_labels();
            node.write_mirrors(ctx);
        }));
    }

    /// The node has said goodbye. That is certain, so it gets no new pods from now on; those it has are left as they are
    /// for as long as those of any silent node: it may be back in a moment.
    pub(super) fn take_leave(&mut self, ctx: &mut Context<Self>) {
        self.goodbye = true;
        self.word.forget();
        self.supersede();
        tracing::info!(node = %self.name, "node is not ready: it said goodbye");
        self.write_silent(Readiness::Away, ctx);
    }

    /// Writes that nothing is heard of the node.
    fn write_silent(&self, readiness: Readiness, ctx: &mut Context<Self>) {
        self.change_node(ctx, move |current| {
            let (object, now) = (current?, outside::now());
            edit::<v1::Node>(object, |node| {
                node.status = node.status.as_ref().map(|s| lost_status(s, now.as_millisecond()));
                if let Some(status) = &mut node.status {
                    note_goodbye(status, readiness == Readiness::Away);
                }
                taint_by_readiness(node.spec.get_or_insert_default(), readiness, now);
            })
            .ok()
        });
    }

    /// The link has been down for too long, unless it is us who were away.
    pub(super) fn mark_lost(&mut self, ctx: &mut Context<Self>) {
        if let Some(longer) = self.health.patience(self.seed.lost_after, self.silence.given) {
            self.silence.given += longer;
            tracing::info!(node = %self.name, ?longer, "a silent node gets more time");
            return self.expect_silence(longer, ctx);
        }
        let planned = std::mem::take(&mut self.goodbye);
        let silent = self.silence.since.map_or(Duration::MAX, |since| since.elapsed());
        let seen = self.silence.seen.take().filter(|_| !planned && self.sparing.is_spared(silent, true));
        if seen.is_some() {
            self.lost = Some(ctx.run_later(AGAIN, |node, ctx| node.mark_lost(ctx)));
            self.ask_others(ctx);
            if self.silence.spared {
                return;
            }
        }
        if std::mem::replace(&mut self.silence.spared, seen.is_some()) {
            self.sparing.spend(silent);
        }
        self.silence.told = true;
        if planned {
            // The node's object says so since its goodbye. When it is not back by then, it is lost like any other.
            self.silence.given = Duration::ZERO;
            self.lost = Some(ctx.run_later(GOODBYE, |node, ctx| node.mark_lost(ctx)));
            return self.unready_pods(ctx);
        }
        self.supersede();
        // One that was deleted has its actor until its pods are gone, which are not ready either.
        if let Some(by) = &seen {
            tracing::warn!(node = %self.name, %by, "node is not ready: its link is down, but its machine is reached");
        } else if self.seed.wiring.view.snapshot().find(&self.key()).is_some() {
            tracing::warn!(node = %self.name, "node is not ready: its link is down");
        }
        let readiness = if seen.is_some() { Readiness::Spared } else { Readiness::Unreachable };
        self.write_silent(readiness, ctx);
        self.unready_pods(ctx);
    }

    /// Nothing is to count on the pods of a silent node: until it says how they are they are not ready. What it says
    /// meanwhile waits: a report that says what was stored before would say nothing new, and be undone by this.
    pub(super) fn unready_pods(&mut self, ctx: &mut Context<Self>) {
        self.unreadying += 1;
        let (wiring, name) = (self.seed.wiring.clone(), self.name.clone());
        let pods: Vec<Key> = self.pods.values().map(|pod| pod.key.clone()).collect();
        let (turn, of) = (self.turn.clone(), self.turn.load(Ordering::Relaxed));
        let work = async move {
            while turn.load(Ordering::Relaxed) == of {
                let (snapshot, now) = (wiring.view.snapshot(), outside::now());
                let pods = pods.iter().filter_map(|key| snapshot.find(key));
                let edits: Vec<Edit> =
                    pods.filter_map(|pod| unready(pod, &name, now).ok().flatten()).collect();
                match commit(&wiring, edits, Durability::Soft).await {
                    Ok(outcome) => {
                        for pod in &outcome.made {
                            let message = "Node is not ready".to_owned();
                            let component = "node-controller";
                            wiring.record(RecordEvent::about(pod, component, "NodeNotReady", message, now));
                        }
                        if outcome.overtaken.is_empty() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(node = %name, %error, "pods of a silent node not marked");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
        };
        ctx.spawn(work.into_actor(self).map(|(), node, ctx| {
            node.unreadying = node.unreadying.saturating_sub(1);
            node.write_pods(ctx);
        }));
    }

    /// The link and the key of a node that joined.
    fn joined_link(&self) -> Option<([u8; 32], LinkHandle<wire::ToNode>)> {
        let link = self.link.as_ref()?;
        Some((link.joined_key()?, link.clone()))
    }
}

/// Whether whoever is linked is still the node: it is sent away if not.
fn is_admitted(
    name: &NodeName,
    joined: Option<&([u8; 32], LinkHandle<wire::ToNode>)>,
    node: Option<&Arc<Object>>,
) -> bool {
    let Some((key, link)) = joined else { return true };
    let admitted = node.is_some_and(|node| belongs_to(node, *key));
    if !admitted {
        link.expel(&not_a_node(name.as_str(), node.map(|node| &**node), *key));
    }
    admitted
}

fn record_change(wiring: &Wiring, before: Option<&Arc<Object>>, after: &Object) {
    for told in told_by_change(before.map(|before| &**before), after) {
        let event = RecordEvent::about(after, "node-controller", told.reason, told.message, outside::now());
        wiring.record(if told.warning { event.warning() } else { event });
    }
}

fn has_subnet(node: &Object) -> bool {
    matches!(&node.facet.of, KindFacet::Node(facet) if facet.pod_cidr.is_some())
}
