//! Asking other nodes whether they reach the machine of a silent one.
//!
//! Owns: whom to ask, and the answers of the present silence. Only nodes that joined are asked, and asked about: those of
//! the master's own process are on its machine. What an answer is worth: `logic::sightings`.

use std::time::Duration;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use k8s_openapi::api::core::v1;
use tokio::time::Instant;

use super::handle::NodeHandle;
use crate::{
    logic::sightings::whereabouts,
    messages::wire::Open,
    model::NodeName,
    net::{CloseReason, LinkConfig},
};

/// As in SWIM: several, since one may be cut off as well.
const ASKED: usize = 3;
/// An answer that comes later is of no use: the decision falls a second after the link's end.
const WITHIN: Duration = Duration::from_millis(900);

/// How long a node had been silent when its link ended.
pub(super) fn silence_of(reason: &CloseReason) -> Duration {
    match reason {
        CloseReason::Silent => LinkConfig::default().idle_timeout,
        _ => Duration::ZERO,
    }
}

/// The time without a link.
#[derive(Default)]
pub(super) struct Silence {
    /// `None` also before the first link.
    pub(super) since: Option<Instant>,
    /// Who reached the machine when some were asked last.
    pub(super) seen: Option<NodeName>,
    /// The node's pods are left alone because of that.
    pub(super) spared: bool,
}

impl Silence {
    /// Since now.
    pub(super) fn begin() -> Silence {
        Silence { since: Some(Instant::now()), ..Silence::default() }
    }
}

impl NodeHandle {
    /// Asks some; who reaches it is `seen` soon.
    pub(super) fn ask_others(&mut self, ctx: &mut Context<Self>) {
        self.silence.seen = None;
        let snapshot = self.seed.wiring.view.snapshot();
        let node = snapshot.find(&self.key()).filter(|_| self.joined);
        let status = node.and_then(|node| node.parse::<v1::Node>().ok()?.status);
        let Some(address) = status.as_ref().and_then(whereabouts) else { return };
        let others = self.links.iter().filter(|link| *link.key() != self.name && link.joined_key().is_some());
        let asks: FuturesUnordered<_> = others
            .take(ASKED)
            .map(|link| link.value().clone())
            .map(|link| async move {
                let answer = link.open(Open::Reach(address.to_string()), WITHIN).await;
                answer.is_ok().then(|| link.peer().clone())
            })
            .collect();
        let connection = self.connection;
        let first = async move { asks.filter_map(std::future::ready).next().await };
        ctx.spawn(first.into_actor(self).map(move |seen, node, _| {
            if node.connection == connection && node.link.is_none() {
                node.silence.seen = seen;
            }
        }));
    }
}
