//! Whether several machines are linked as one node, and take the link from each other.
//!
//! Owns: [`Rivals`]. A link that comes from elsewhere while a node's link lives is another machine's until that is known to be dead.
//! One from the same address has most often lost the link that there is and does not know it yet, once; machines that have one key and
//! one address (behind a gateway) come as fast as they can dial. While others are at the door the machine that was linked last has some
//! time to come back before another takes its place: a link that breaks is no machine's end. Pure: the time is handed in. Bounded: few
//! times and addresses for each node.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
};

use crate::model::NodeName;

/// So many links in so long, each while another lived, are not one machine's. That one is held for five seconds each time
/// is still one then.
const TOO_MANY: usize = 4;
const WITHIN_MS: i64 = 30_000;
/// Addresses that are remembered of a node's rivals: enough to find the others by.
const MOST_PLACES: usize = 8;
/// Who was linked has so long to come back while others with its key are at the door: its process may begin anew, its way may be mended.
const COMES_BACK_MS: i64 = 15_000;
/// A master that has just begun waits so long for the machine that was linked to the one before. It is to be less than what nodes have
/// to link before they are taken for silent: one that has moved meanwhile comes from elsewhere and is the only one.
const BEGINS_MS: i64 = 5_000;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Rivals {
    began_ms: i64,
    lately: HashMap<NodeName, VecDeque<i64>>,
    /// From where such links were turned away, and when last.
    turned_away: HashMap<NodeName, BTreeMap<IpAddr, i64>>,
    linked: HashMap<NodeName, Linked>,
}

/// Which of the machines that have a node's key is the node.
#[derive(Debug)]
struct Linked {
    /// From where it is linked, or was last.
    place: IpAddr,
    /// When it was last seen to be.
    lived_ms: i64,
    /// From where it was before there was any other.
    first: IpAddr,
}

/// A link that comes while the node has none.
#[derive(Clone, Copy, Debug)]
pub struct Coming {
    /// From where, as far as is known.
    pub from: Option<IpAddr>,
    /// From where the node was linked last, as its object says.
    pub noted: Option<IpAddr>,
    /// The one that was linked has said that it comes back.
    pub away: bool,
    /// Another came while that was linked, and is at the door.
    pub beside: bool,
}

impl Rivals {
    /// Of a master that begins at that time.
    pub fn new(began_ms: i64) -> Rivals {
        Rivals { began_ms, ..Rivals::default() }
    }

    /// Notes that the node's link comes from there now; `noted`: as of [`Coming`].
    pub fn linked(&mut self, node: &NodeName, from: Option<IpAddr>, noted: Option<IpAddr>, now_ms: i64) {
        let Some(from) = from else { return };
        let alone = self.places(node, now_ms).is_empty();
        if let Some(places) = self.turned_away.get_mut(node) {
            places.remove(&from);
        }
        let linked = Linked { place: from, lived_ms: now_ms, first: from };
        match self.linked.get_mut(node) {
            Some(known) if alone => *known = linked,
            Some(known) => *known = Linked { first: known.first, ..linked },
            None => {
                self.linked.insert(node.clone(), Linked { first: noted.unwrap_or(from), ..linked });
            }
        }
    }

    /// Notes that the node's link lives, and comes from there now: a machine may move with its link.
    pub fn lives(&mut self, node: &NodeName, from: Option<IpAddr>, now_ms: i64) {
        let Some(from) = from else { return };
        let fresh = || Linked { place: from, lived_ms: now_ms, first: from };
        let linked = self.linked.entry(node.clone()).or_insert_with(fresh);
        if linked.first == linked.place {
            linked.first = from;
        }
        (linked.place, linked.lived_ms) = (from, now_ms);
    }

    /// Whether a link is to wait for the machine that was linked last.
    pub fn awaits(&self, node: &NodeName, coming: Coming, now_ms: i64) -> bool {
        let Some(from) = coming.from else { return false };
        match self.linked.get(node) {
            Some(linked) if linked.place == from => false,
            Some(linked) => {
                let lately = (0..COMES_BACK_MS).contains(&(now_ms - linked.lived_ms));
                (lately || coming.away) && (coming.beside || !self.places(node, now_ms).is_empty())
            }
            None => {
                coming.noted.is_some_and(|noted| noted != from)
                    && (0..BEGINS_MS).contains(&(now_ms - self.began_ms))
            }
        }
    }

    /// From where the node was linked before there was another machine with its key, as far as is known.
    pub fn first(&self, node: &NodeName) -> Option<IpAddr> {
        self.linked.get(node).map(|linked| linked.first)
    }

    /// Whether a machine was turned away from there lately.
    pub fn is_known(&self, node: &NodeName, from: Option<IpAddr>, now_ms: i64) -> bool {
        from.is_some_and(|from| self.places(node, now_ms).contains(&from))
    }

    /// Notes that a link comes for a node which has one that lives; whether it is to be taken for a rival's. `linked` and `from`:
    /// where the two come from, as far as is known.
    pub fn comes(
        &mut self,
        node: &NodeName,
        linked: Option<IpAddr>,
        from: Option<IpAddr>,
        now_ms: i64,
    ) -> bool {
        if linked.is_some() && from.is_some() && linked != from {
            return true;
        }
        let lately = self.lately.entry(node.clone()).or_default();
        lately.retain(|at| (0..WITHIN_MS).contains(&(now_ms - at)));
        lately.push_back(now_ms);
        if lately.len() > TOO_MANY {
            lately.pop_front();
        }
        lately.len() == TOO_MANY
    }

    /// Notes that a rival's link was turned away.
    pub fn turned_away(&mut self, node: &NodeName, from: IpAddr, now_ms: i64) {
        let places = self.turned_away.entry(node.clone()).or_default();
        places.retain(|_, at| (0..WITHIN_MS).contains(&(now_ms - *at)));
        if places.len() < MOST_PLACES || places.contains_key(&from) {
            places.insert(from, now_ms);
        }
    }

    /// From where a node's rivals came lately.
    pub fn places(&self, node: &NodeName, now_ms: i64) -> Vec<IpAddr> {
        let places = self.turned_away.get(node).into_iter().flatten();
        places.filter(|(_, at)| (0..WITHIN_MS).contains(&(now_ms - **at))).map(|(place, _)| *place).collect()
    }

    /// A node has no link that could be taken from it.
    pub fn link_ended(&mut self, node: &NodeName) {
        self.lately.remove(node);
    }

    /// A node is no more.
    pub fn forget(&mut self, node: &NodeName) {
        self.lately.remove(node);
        self.turned_away.remove(node);
        self.linked.remove(node);
    }

    /// Forgets those nodes that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&NodeName) -> bool) {
        self.lately.retain(|node, _| is_there(node));
        self.turned_away.retain(|node, _| is_there(node));
        self.linked.retain(|node, _| is_there(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_the_link_again_and_again_is_a_rival_until_it_has_stopped() {
        let mut rivals = Rivals::default();
        let (a, b) = ("a".into(), "b".into());
        let here = Some(IpAddr::from([10, 0, 0, 1]));
        let mut comes = |node: &NodeName, ms| rivals.comes(node, here, here, ms);
        assert_eq!([0, 100, 200].map(|ms| comes(&a, ms)), [false; 3]);
        assert!(!comes(&b, 250), "another node is another matter");
        assert!(comes(&a, 300) && comes(&a, 5_400) && comes(&a, 10_500), "also one that is held each time");
        assert!(!comes(&a, 10_500 + WITHIN_MS), "that was long ago");
        // A clock that is set back proves nothing.
        assert!(!comes(&a, 0));
        rivals.retain(|node| *node == b);
        assert_eq!(rivals.lately.keys().collect::<Vec<_>>(), [&b]);
    }

    #[test]
    fn a_node_that_links_anew_now_and_then_is_none() {
        let mut rivals = Rivals::default();
        for turn in 0..100 {
            assert!(!rivals.comes(&"a".into(), None, None, turn * 12_000));
        }
    }

    #[test]
    fn who_comes_from_elsewhere_is_a_rival_at_once_and_all_their_places_are_known_for_a_while() {
        let mut rivals = Rivals::default();
        let (node, place) = ("a".into(), |last: u8| IpAddr::from([10, 0, 0, last]));
        assert!(rivals.comes(&node, Some(place(1)), Some(place(2)), 0));
        assert!(!rivals.comes(&node, None, Some(place(2)), 0), "nothing is known of the one that is linked");
        rivals.turned_away(&node, place(3), 0);
        rivals.turned_away(&node, place(2), 10_000);
        assert_eq!(rivals.places(&node, 10_000), [place(2), place(3)]);
        assert_eq!(rivals.places(&node, WITHIN_MS), [place(2)], "the other one has stopped");
        assert!(rivals.places(&"b".into(), 0).is_empty());
        for last in 0..100 {
            rivals.turned_away(&node, place(last), WITHIN_MS);
        }
        assert_eq!(rivals.places(&node, WITHIN_MS).len(), MOST_PLACES);
        rivals.forget(&node);
        assert!(rivals.places(&node, WITHIN_MS).is_empty());
    }

    fn place(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn coming(from: u8) -> Coming {
        Coming { from: Some(place(from)), noted: None, away: false, beside: false }
    }

    #[test]
    fn while_copies_are_at_the_door_the_machine_that_was_linked_has_time_to_come_back() {
        let (mut rivals, node) = (Rivals::new(0), NodeName::from("a"));
        rivals.linked(&node, Some(place(1)), None, 10_000);
        assert!(!rivals.awaits(&node, coming(2), 20_000), "it is the only one: it has moved");
        assert!(
            rivals.awaits(&node, Coming { beside: true, ..coming(2) }, 20_000),
            "it came beside the other"
        );
        rivals.lives(&node, Some(place(1)), 100_000);
        rivals.turned_away(&node, place(2), 100_000);
        for (from, now_ms, away, awaits) in [
            (2, 114_999, false, true),
            (3, 114_999, false, true),
            (1, 114_999, false, false),
            (2, 115_000, false, false),
            (2, 115_000, true, true),
            // It is long since there was another.
            (2, 100_000 + WITHIN_MS, true, false),
            // A clock that is set back proves nothing.
            (2, 99_999, false, false),
        ] {
            assert_eq!(
                rivals.awaits(&node, Coming { away, ..coming(from) }, now_ms),
                awaits,
                "{from} {now_ms} {away}"
            );
        }
        assert!(!rivals.awaits(&node, Coming { from: None, ..coming(2) }, 100_000), "who knows who that is");
        rivals.forget(&node);
        assert!(!rivals.awaits(&node, coming(2), 100_000));
    }

    #[test]
    fn a_master_that_begins_waits_for_the_machine_that_the_nodes_object_names_but_not_for_long() {
        let (rivals, node) = (Rivals::new(50_000), NodeName::from("a"));
        for (from, noted, now_ms, awaits) in [
            (2, Some(place(1)), 54_999, true),
            (2, Some(place(1)), 55_000, false),
            (1, Some(place(1)), 50_000, false),
            (2, None, 50_000, false),
        ] {
            let coming = Coming { noted, away: true, ..coming(from) };
            assert_eq!(rivals.awaits(&node, coming, now_ms), awaits, "{from} {noted:?} {now_ms}");
        }
    }

    #[test]
    fn who_was_linked_first_is_known_while_there_are_others() {
        let (mut rivals, node) = (Rivals::new(0), NodeName::from("a"));
        assert_eq!(rivals.first(&node), None);
        rivals.linked(&node, Some(place(1)), None, 0);
        rivals.linked(&node, Some(place(2)), None, 1_000);
        assert_eq!(rivals.first(&node), Some(place(2)), "there was one, and it has moved");
        rivals.lives(&node, Some(place(3)), 2_000);
        assert_eq!(rivals.first(&node), Some(place(3)), "with its link, too");
        rivals.turned_away(&node, place(4), 2_000);
        rivals.linked(&node, Some(place(4)), None, 20_000);
        assert_eq!(rivals.first(&node), Some(place(3)), "a copy took its place");
        assert!(rivals.places(&node, 20_000).is_empty(), "it is none of those that are not linked");
        // A master that has begun since has it from the node's object.
        let mut rivals = Rivals::new(0);
        rivals.linked(&node, Some(place(4)), Some(place(3)), 6_000);
        assert_eq!(rivals.first(&node), Some(place(3)));
    }
}
