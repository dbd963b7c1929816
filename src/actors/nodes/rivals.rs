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
    net::{LinkConfig, LinkHandle},
};

/// One log line and one event a node in this time.
pub(super) const RIVALS_INTERVAL_MS: i64 = 60_000;
/// How often it is looked whether the link that there is still lives, and at what pace. Together longer than a link that is
/// dead takes to be found out, and about what a rival waits between two attempts.
const HELD_LOOKS: u32 = 20;
const LOOK: Duration = Duration::from_millis(250);

/// A link that is held.
pub(super) struct Held {
    link: ToNodeLink,
    /// The link that the node has.
    other: LinkHandle<wire::ToNode>,
}

/// Whether something may come of a link yet: a single lost heartbeat is no death.
fn is_living(link: &LinkHandle<wire::ToNode>) -> bool {
    link.silence() < LinkConfig::default().longest_silence()
}

impl NodeRegistry {
    /// The link of a node that works, as far as is known.
    pub(super) fn living_link(&self, name: &NodeName) -> Option<LinkHandle<wire::ToNode>> {
        self.links.get(name).map(|link| link.value().clone()).filter(is_living)
    }

    /// Keeps a link back while the node has that other one; then it is taken, or turned away. One is held of a node: the
    /// newest, for who comes anew has given up the one before.
    pub(super) fn hold(
        &mut self,
        name: NodeName,
        link: ToNodeLink,
        other: LinkHandle<wire::ToNode>,
        ctx: &mut Context<Self>,
    ) {
        let handle = link.0.clone();
        self.let_go(&name);
        self.held.insert(name.clone(), Held { link, other });
        Self::look(name, handle, HELD_LOOKS, ctx);
    }

    /// Another link of that node is taken.
    pub(super) fn let_go(&mut self, name: &NodeName) {
        if let Some(before) = self.held.remove(name) {
            before.link.0.close("the node has connected anew");
        }
    }

    fn look(name: NodeName, handle: LinkHandle<wire::ToNode>, looks: u32, ctx: &mut Context<Self>) {
        ctx.run_later(LOOK, move |registry, ctx| {
            if !registry.held.get(&name).is_some_and(|held| held.link.0.is_same(&handle)) {
                return;
            }
            let Some(held) = registry.held.remove(&name) else { return };
            let linked = registry.links.get(&name).map(|link| link.value().clone());
            let lives = linked.is_some_and(|link| link.is_same(&held.other)) && is_living(&held.other);
            match looks.checked_sub(1).filter(|_| lives) {
                Some(looks) => {
                    registry.held.insert(name.clone(), held);
                    Self::look(name, handle, looks, ctx);
                }
                // The other one has lived all the time.
                None if lives => {
                    registry.tell_of_rivals(&name, &held.link.0);
                    held.link
                        .0
                        .close("another machine is linked as this node: they have one key, which was copied");
                }
                // The other one has died: most likely both are one machine's.
                None => {
                    registry.rivals.forget(&name);
                    registry.admit(&name, held.link);
                }
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
