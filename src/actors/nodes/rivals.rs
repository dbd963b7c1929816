//! Two machines that are one node, by their key: as when a data directory was copied.
//!
//! Owns: what becomes of a link that [`crate::logic::rivals`] takes for a rival's. It is held, unheard, for some seconds: so
//! the two do not take the link from each other again and again, and a node whose process merely begins anew again and again has
//! its next link as soon as the last one is found to be dead.

use std::time::Duration;

use actix::{AsyncContext as _, Context};

use super::{NodeRegistry, ToNodeLink, sightings::origin};
use crate::{
    actors::outside,
    messages::{RecordEvent, wire},
    model::{Key, Kind, NodeName},
    net::LinkHandle,
};

/// One log line and one event a node in this time.
pub(super) const RIVALS_INTERVAL_MS: i64 = 60_000;
/// How often it is looked whether the link that there is still lives, and at what pace. Together longer than a link that is
/// dead takes to be found out, and about what a rival waits between two attempts.
pub(super) const HELD_LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(250);
/// A link of which nothing came for so long is as good as dead.
const ALIVE: Duration = Duration::from_secs(1);

impl NodeRegistry {
    /// Whether a node has a link that works, as far as is known.
    pub(super) fn has_living_link(&self, name: &NodeName) -> bool {
        self.links.get(name).is_some_and(|link| link.silence() < ALIVE)
    }

    /// Keeps a link back while the node has another; then it is taken, or turned away.
    pub(super) fn hold(&self, name: NodeName, link: ToNodeLink, looks: u32, ctx: &mut Context<Self>) {
        ctx.run_later(LOOK, move |registry, ctx| match looks.checked_sub(1) {
            _ if !registry.has_living_link(&name) => registry.admit(&name, link),
            Some(looks) => registry.hold(name, link, looks, ctx),
            None => {
                link.0.close("another machine is linked as this node: they have one key, which was copied")
            }
        });
    }

    /// Says which machines are one node, and what to do about it.
    pub(super) fn tell_of_rivals(&mut self, name: &NodeName, rival: &LinkHandle<wire::ToNode>) {
        let now = outside::now();
        let Some(unsaid) = self.rivals_told.says(name, now.as_millisecond()) else { return };
        let place = |link: &LinkHandle<wire::ToNode>| {
            origin(link).map_or_else(|| "an unknown address".to_owned(), |from| from.to_string())
        };
        let linked = self.links.get(name).map_or_else(String::new, |link| place(&link));
        let rival = place(rival);
        tracing::warn!(
            node = %name, linked, rival, unsaid,
            "two machines are linked as one node: their data directory was copied; end one of them and join it anew \
             with an empty data directory"
        );
        let snapshot = self.seed.wiring.view.snapshot();
        if let Some(object) = snapshot.find(&Key::new(Kind::Node, "", name.0.clone())) {
            let message = format!(
                "Two machines have the key of node {name}: the one at {linked} is linked, that at {rival} is not. Their \
                 data directory was copied: end one of them and join it anew with an empty data directory"
            );
            let event = RecordEvent::about(object, "node-controller", "NodeIdentityCopied", message, now);
            self.seed.wiring.record(event.warning());
        }
    }
}
