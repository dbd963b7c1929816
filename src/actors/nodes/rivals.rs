//! Several machines that are one node, by their key: as when a data directory was copied, or a virtual machine cloned.
//!
//! Owns: what becomes of links that [`crate::logic::rivals`] takes for rivals'. They are held, unheard, for some seconds: so
//! that they do not take the link from each other again and again, and a node whose process merely begins anew again and again has
//! its next link as soon as the last one is found to be dead. Those that come from elsewhere are held, too, while the machine that was
//! linked last may come back. Invariant: who is held is told nothing, so it runs nothing that it did not run before.

use std::{net::IpAddr, time::Duration};

use actix::{AsyncContext as _, Context};
use tokio::time::Instant;

use super::{NodeRegistry, ToNodeLink, sightings::origin};
use crate::{
    actors::outside,
    logic::{join::linked_from, rivals::Coming, silence::is_away},
    messages::{RecordEvent, wire},
    model::{Key, Kind, NodeName},
    net::{LinkConfig, LinkHandle},
};

/// One log line and one event a rival in this time.
pub(super) const RIVALS_INTERVAL_MS: i64 = 60_000;
/// How often it is looked whether the link that there is still lives, and at what pace. Together longer than a link that is
/// dead takes to be found out, and about what a rival waits between two attempts.
const HELD_LOOKS: u32 = 50;
const LOOK: Duration = Duration::from_millis(100);
/// Links that are held of one node: one for each place they come from. More are turned away as they come.
const MOST_HELD: usize = 8;
/// What those are told that are turned away.
const TURNED_AWAY: &str = "another machine is linked as this node: they have one key, which was copied; end one of them and join it \
                           anew with an empty data directory";

/// A link that is held.
pub(super) struct Held {
    link: ToNodeLink,
    from: Option<IpAddr>,
    /// How often it is still to be looked.
    looks: u32,
    /// When the first link from there came.
    came: Instant,
    /// Another was heard of since, so there are two. One whose link is merely not yet known to be dead may be the same machine,
    /// which comes from another address now.
    beside: bool,
}

/// A link seems to have been heard of so much later than it was, at most: looks are not quite so far apart.
const SEEN_WITHIN: Duration = Duration::from_millis(100);

/// Whether something may come of a link yet: a single lost heartbeat is no death.
fn is_living(link: &LinkHandle<wire::ToNode>) -> bool {
    !link.is_over() && link.silence() < LinkConfig::default().longest_silence()
}

impl NodeRegistry {
    /// The link of a node that works, as far as is known; also one that its actor has not got yet.
    pub(super) fn living_link(&self, name: &NodeName) -> Option<LinkHandle<wire::ToNode>> {
        let waiting = || self.nodes.get(name)?.waiting.as_ref().map(|waiting| waiting.0.0.clone());
        self.links
            .get(name)
            .map(|link| link.value().clone())
            .filter(is_living)
            .or_else(|| waiting().filter(is_living))
    }

    /// Keeps a link back while the node has another one; then it is taken, or turned away. One is held of each place: the
    /// newest, for who comes anew has given up the one before.
    pub(super) fn hold(&mut self, name: NodeName, link: ToNodeLink, ctx: &mut Context<Self>) {
        let from = origin(&link.0);
        let before = self.let_go(&name, from);
        let beside = before.as_ref().is_some_and(|before| before.beside)
            || self.rivals.is_known(&name, from, outside::now().as_millisecond());
        let (looks, came) = before.map_or((HELD_LOOKS, Instant::now()), |before| (before.looks, before.came));
        let held = self.held.entry(name.clone()).or_insert_with(|| {
            Self::look(name.clone(), ctx);
            Vec::new()
        });
        let held_now = Held { link, from, looks, came, beside };
        if held.len() < MOST_HELD {
            held.push(held_now);
        } else {
            self.turn_away(&name, &held_now);
        }
    }

    /// Another link from there is taken, or held. The one before, which is closed: for how long it was still to be held matters,
    /// since several machines at one address are told of in time, too.
    pub(super) fn let_go(&mut self, name: &NodeName, from: Option<IpAddr>) -> Option<Held> {
        let held = self.held.get_mut(name)?;
        let before = held.iter().position(|held| held.from == from).map(|place| held.remove(place))?;
        before.link.0.close("the node has connected anew");
        Some(before)
    }

    /// Whether a link from there waits for the machine that was linked last, which has none now.
    pub(super) fn awaits(&self, name: &NodeName, from: Option<IpAddr>, beside: bool) -> bool {
        let snapshot = self.seed.wiring.view.snapshot();
        let object = snapshot.find(&Key::new(Kind::Node, "", name.0.clone()));
        let noted = object.and_then(|node| linked_from(node));
        let away = object.is_some_and(|node| is_away(node));
        let beside = beside || self.held.get(name).is_some_and(|held| held.iter().any(|held| held.beside));
        self.rivals.awaits(name, Coming { from, noted, away, beside }, outside::now().as_millisecond())
    }

    fn look(name: NodeName, ctx: &mut Context<Self>) {
        ctx.run_later(LOOK, move |registry, ctx| {
            let Some(held) = registry.held.remove(&name) else { return };
            let held = registry.judge(&name, held);
            if !held.is_empty() {
                registry.held.insert(name.clone(), held);
                Self::look(name, ctx);
            }
        });
    }

    /// Takes one, or turns away whose time is over; the others are held on.
    fn judge(&mut self, name: &NodeName, mut held: Vec<Held>) -> Vec<Held> {
        held.retain(|held| is_living(&held.link.0));
        match self.living_link(name) {
            Some(link) => {
                self.rivals.lives(name, origin(&link), outside::now().as_millisecond());
                for held in &mut held {
                    held.beside |= link.silence() + SEEN_WITHIN < held.came.elapsed();
                }
            }
            None => {
                let beside = held.iter().any(|held| held.beside);
                // Of those that need not wait the newest, most likely of the one that has died.
                if let Some(next) = held.iter().rposition(|held| !self.awaits(name, held.from, beside)) {
                    let next = held.remove(next);
                    self.rivals.link_ended(name);
                    self.admit(name, next.link);
                    return held;
                }
            }
        }
        held.iter_mut().for_each(|held| held.looks = held.looks.saturating_sub(1));
        let (on, over): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|held| held.looks > 0);
        over.iter().for_each(|held| self.turn_away(name, held));
        on
    }

    fn turn_away(&mut self, name: &NodeName, held: &Held) {
        if held.beside {
            if let Some(from) = held.from {
                self.rivals.turned_away(name, from, outside::now().as_millisecond());
            }
            self.tell_of_rivals(name, held.from);
        }
        held.link.0.close(TURNED_AWAY);
    }

    /// Says which machines are one node, and what to do about it.
    fn tell_of_rivals(&mut self, name: &NodeName, rival: Option<IpAddr>) {
        let now = outside::now();
        let Some(unsaid) = self.rivals_told.says(&(name.clone(), rival), now.as_millisecond()) else {
            return;
        };
        let place = |from: Option<IpAddr>| {
            from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string())
        };
        let linked = match self.living_link(name) {
            Some(link) => format!("the one at {} is linked", place(origin(&link))),
            None => "none is linked at this moment".to_owned(),
        };
        let first = place(self.rivals.first(name));
        tracing::warn!(
            node = %name, linked, rival = place(rival), first, unsaid,
            "several machines are linked as one node: their data directory was copied; end all but one of them and join \
             those anew with an empty data directory"
        );
        let mut others = self.rivals.places(name, now.as_millisecond());
        others.extend(rival);
        others.sort_unstable();
        others.dedup();
        let mut others: Vec<String> = others.iter().map(IpAddr::to_string).collect();
        others.extend(rival.is_none().then(|| place(rival)));
        let snapshot = self.seed.wiring.view.snapshot();
        if let Some(object) = snapshot.find(&Key::new(Kind::Node, "", name.0.clone())) {
            let message = format!(
                "{} machines have the key of node {name}: {linked}, not linked: {}; linked first: {first}. Their data \
                 directory was copied: end all but one of them and join those anew with an empty data directory",
                others.len() + 1,
                others.join(", ")
            );
            let event = RecordEvent::about(object, "node-controller", "NodeIdentityCopied", message, now);
            self.seed.wiring.record(event.warning());
        }
    }
}
