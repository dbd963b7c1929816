//! Asking other nodes whether they reach the machine of a silent one.
//!
//! Owns: whom to ask, and the answers of the present silence. Only nodes that joined are asked, and asked about: those of
//! the master's own process are on its machine. Asked is about the address from which the node was linked, not one that it
//! tells. Invariant: no node is asked more than [`AT_ONCE`] questions at a time. What an answer is worth:
//! `logic::sightings`.

use std::{net::IpAddr, sync::Arc, time::Duration};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use dashmap::DashMap;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::handle::NodeHandle;
use crate::{
    logic::sightings::{LATELY, order, whereabouts},
    messages::wire::{Open, ToNode},
    model::NodeName,
    net::{CloseReason, LinkConfig, LinkHandle},
};

/// As in SWIM: several, since one may be cut off as well.
const ASKED: usize = 3;
/// An answer that comes later is of no use: a silent link ends up to 1.5 s after the last sign of life, the decision falls after 1.9 s.
/// Those asked try for a tenth of a second less (`kubelet::reach`).
const WITHIN: Duration = Duration::from_millis(350);
/// Questions under way to one node. When more fall silent at once others are asked, or nobody: the brake is on then.
const AT_ONCE: usize = 8;

/// Who is being asked how much.
#[derive(Clone, Default)]
pub(super) struct Askers(Arc<DashMap<NodeName, Arc<Semaphore>>>);

impl Askers {
    /// A turn to ask that node; `None` while it has enough to answer.
    fn turn(&self, node: &NodeName) -> Option<OwnedSemaphorePermit> {
        let turns = self.0.entry(node.clone()).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE)));
        turns.clone().try_acquire_owned().ok()
    }

    /// Forgets those that are not linked any more.
    fn forget(&self, is_linked: impl Fn(&NodeName) -> bool) {
        self.0.retain(|node, turns| is_linked(node) || turns.available_permits() < AT_ONCE);
    }
}

/// How long a node had been silent when its link ended, of which nothing is known to have come for so long.
pub(super) fn silence_of(reason: &CloseReason, unheard: Duration) -> Duration {
    let config = LinkConfig::default();
    match reason {
        CloseReason::Silent => unheard.clamp(config.idle_timeout, config.longest_silence()),
        _ => Duration::ZERO,
    }
}

/// The time without a link.
#[derive(Default)]
pub(super) struct Silence {
    /// `None` also before the first link.
    pub(super) since: Option<Instant>,
    /// From where the node was linked before.
    pub(super) linked_from: Option<IpAddr>,
    /// How often others were asked.
    round: u32,
    /// Who reached the machine when some were asked last.
    pub(super) seen: Option<NodeName>,
    /// The node's pods are left alone because of that.
    pub(super) spared: bool,
    /// How much more time it was given because the master stood still.
    pub(super) given: Duration,
    /// Its pods were said not to be ready.
    pub(super) told: bool,
}

impl Silence {
    /// Since now.
    pub(super) fn begin(linked_from: Option<IpAddr>) -> Silence {
        Silence { since: Some(Instant::now()), linked_from, ..Silence::default() }
    }
}

/// From where the node at the other end comes at present.
pub(super) fn origin(link: &LinkHandle<ToNode>) -> Option<IpAddr> {
    link.stats().peer.map(|peer| peer.ip().to_canonical())
}

impl NodeHandle {
    /// Asks some; who reaches it is `seen` soon.
    pub(super) fn ask_others(&mut self, ctx: &mut Context<Self>) {
        self.silence.seen = None;
        let from = self.silence.linked_from.filter(|_| self.joined);
        let Some(address) = from.and_then(whereabouts) else { return };
        // Who comes from the same address is on the same machine, or behind the same gateway: that one would answer.
        let others = self.links.iter().filter(|link| {
            *link.key() != self.name && link.joined_key().is_some() && origin(link) != Some(address)
        });
        let others: Vec<NodeName> = others.map(|link| link.key().clone()).collect();
        self.health.askers.forget(|node| self.links.contains_key(node));
        let lately = |other: &NodeName| self.links.get(other).is_some_and(|link| link.silence() < LATELY);
        let asked = order(&self.name, self.silence.round, others, lately).into_iter().filter_map(|other| {
            let turn = self.health.askers.turn(&other)?;
            Some((self.links.get(&other)?.value().clone(), turn))
        });
        let asks: FuturesUnordered<_> = asked
            .take(ASKED)
            .map(|(link, turn)| async move {
                let answer = link.open(Open::Reach(address.to_string()), WITHIN).await;
                drop(turn);
                answer.is_ok().then(|| link.peer().clone())
            })
            .collect();
        self.silence.round += 1;
        let connection = self.connection;
        let first = async move { asks.filter_map(std::future::ready).next().await };
        ctx.spawn(first.into_actor(self).map(move |seen, node, _| {
            if node.connection == connection && node.link.is_none() {
                node.silence.seen = seen;
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_is_asked_about_many_at_once() {
        let (askers, node) = (Askers::default(), NodeName::from("n1"));
        let mut turns: Vec<_> = (0..AT_ONCE).map(|_| askers.turn(&node).unwrap()).collect();
        assert!(askers.turn(&node).is_none());
        assert!(askers.turn(&"n2".into()).is_some());
        turns.pop();
        askers.forget(|_| false);
        assert_eq!(askers.0.len(), 1, "one that is being asked is remembered");
        assert!(askers.turn(&node).is_some());
    }
}
