//! What it is worth that others still reach the machine of a silent node.
//!
//! Owns: how long its pods are spared because of that ([`Sparing`]), whom one asks ([`order`]), and about which
//! addresses ([`is_elsewhere`]). Invariants: a machine that nobody reaches is spared nothing, and none is spared for long, whatever
//! others say and however often it links in between: a node that cannot be told anything is of no use, alive or not. Pure.
//! The idea is SWIM's indirect probe (Das and others, 2002); see docs/adr/0014-silence.md.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    time::Duration,
};

use crate::model::NodeName;

/// Others are asked again so often while they say that they reach it.
pub const AGAIN: Duration = Duration::from_secs(2);
/// Time for a process to be started again, or a network to be mended. Beyond that a machine that lives is no better than
/// one that does not.
const SPARED: Duration = Duration::from_secs(15);
/// Who is well is heard of twice a second, or a little later when something was lost. Whose link is about to end was silent for
/// longer.
pub const LATELY: Duration = Duration::from_millis(800);
/// Who has been linked and ready for so long has come back for good.
const WELL: Duration = Duration::from_secs(60);

/// How much of the time in which a node's pods are left alone is spent.
#[derive(Debug, Default)]
pub struct Sparing {
    spent: Duration,
}

impl Sparing {
    /// Whether the pods of a node are left alone that has been silent for so long and whose machine somebody has `seen`
    /// just now.
    pub fn is_spared(&self, silent: Duration, seen: bool) -> bool {
        seen && self.spent.saturating_add(silent) < SPARED
    }

    /// Its pods were left alone in a silence of such length.
    pub fn spend(&mut self, silent: Duration) {
        self.spent = self.spent.saturating_add(silent);
    }

    /// A link has ended on which the node had been ready for so long.
    pub fn link_ended(&mut self, ready: Duration) {
        if ready >= WELL {
            self.spent = Duration::ZERO;
        }
    }
}

/// In which order others are asked about a silent node: first those who were heard of `lately`, since what silenced this one
/// may have silenced others; among them another for each silent node and each time, so that no few are asked about all,
/// and one that is cut off itself is not asked again and again. (Rendezvous hashing.)
pub fn order(
    silent: &NodeName,
    round: u32,
    mut others: Vec<NodeName>,
    lately: impl Fn(&NodeName) -> bool,
) -> Vec<NodeName> {
    others.sort_by_cached_key(|other| {
        let mut hasher = DefaultHasher::new();
        (silent.as_str(), round, other.as_str()).hash(&mut hasher);
        (!lately(other), hasher.finish(), other.clone())
    });
    others
}

/// The address at which others may look for a node's machine, given that from which it was linked; `None` when it means
/// something else to them.
pub fn whereabouts(linked_from: IpAddr) -> Option<IpAddr> {
    Some(linked_from.to_canonical()).filter(is_elsewhere)
}

/// Whether an address can be another machine's, and that machine's alone.
pub fn is_elsewhere(address: &IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [first, ..] = v4.octets();
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_multicast()
                || v4.is_broadcast()
                // "This network" (RFC 791), of which the unspecified address is one.
                || first == 0)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_a_machine_that_was_seen_is_spared_and_not_for_long() {
        for (silent_s, seen, spared) in
            [(1, true, true), (14, true, true), (15, true, false), (1, false, false)]
        {
            assert_eq!(Sparing::default().is_spared(s(silent_s), seen), spared, "{silent_s} {seen}");
        }
        assert!(!Sparing::default().is_spared(Duration::MAX, true));
    }

    #[test]
    fn who_dies_soon_after_each_link_is_spared_no_longer_than_one_silence() {
        let mut sparing = Sparing::default();
        for silence in 0..3 {
            assert!(sparing.is_spared(s(4), true), "{silence}");
            sparing.spend(s(4));
            sparing.link_ended(s(59));
        }
        assert!(!sparing.is_spared(s(3), true));
        sparing.link_ended(s(60));
        assert!(sparing.is_spared(s(14), true), "it was well for a minute");
    }

    #[test]
    fn other_nodes_are_asked_about_each_silent_one_and_each_time() {
        let all = || (0..20).map(|n| NodeName::from(format!("n{n}").as_str())).collect::<Vec<_>>();
        let asked = |silent: &NodeName, round| order(silent, round, all(), |_| true).into_iter().take(3);
        let about_all: BTreeSet<NodeName> = all().iter().flat_map(|silent| asked(silent, 0)).collect();
        assert!(about_all.len() > 12, "{about_all:?}");
        let about_one: BTreeSet<NodeName> = (0..8).flat_map(|round| asked(&"n1".into(), round)).collect();
        assert!(about_one.len() > 6, "{about_one:?}");
        let mut back_to_front = all();
        back_to_front.reverse();
        let anyone = |_: &NodeName| true;
        assert_eq!(order(&"n1".into(), 0, back_to_front, anyone), order(&"n1".into(), 0, all(), anyone));
    }

    #[test]
    fn who_is_silent_as_well_is_asked_last() {
        let all = || (0..20).map(|n| NodeName::from(format!("n{n}").as_str())).collect::<Vec<_>>();
        let speaks = |node: &NodeName| node.as_str().ends_with(['3', '7']);
        for round in 0..8 {
            let asked = order(&"n1".into(), round, all(), speaks);
            assert!(asked.iter().take(4).all(speaks), "{asked:?}");
            assert_eq!(asked.len(), 20, "the others are asked when those do not suffice");
        }
    }

    #[test]
    fn one_asks_about_addresses_that_mean_the_same_everywhere() {
        let at = |address: &str| whereabouts(address.parse().unwrap()).map(|address| address.to_string());
        assert_eq!(at("10.0.0.2").as_deref(), Some("10.0.0.2"));
        assert_eq!(at("::ffff:10.0.0.2").as_deref(), Some("10.0.0.2"));
        assert_eq!(at("fd00::2").as_deref(), Some("fd00::2"));
        for nowhere in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "255.255.255.255",
        ] {
            assert_eq!(at(nowhere), None, "{nowhere}");
        }
    }
}
