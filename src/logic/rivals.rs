//! Whether several machines are linked as one node, and take the link from each other.
//!
//! Owns: [`Rivals`]. A link that comes from elsewhere while a node's link lives is another machine's until that is known to be dead.
//! One from the same address has most often lost the link that there is and does not know it yet, once; machines that have one key and
//! one address (behind a gateway) come as fast as they can dial. Pure: the time is handed in. Bounded: few times and addresses for each node.

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

/// See the file's header.
#[derive(Debug, Default)]
pub struct Rivals {
    lately: HashMap<NodeName, VecDeque<i64>>,
    /// From where such links were turned away, and when last.
    turned_away: HashMap<NodeName, BTreeMap<IpAddr, i64>>,
}

impl Rivals {
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

    /// A node is no more, or was found to be one machine.
    pub fn forget(&mut self, node: &NodeName) {
        self.lately.remove(node);
        self.turned_away.remove(node);
    }

    /// Forgets those nodes that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&NodeName) -> bool) {
        self.lately.retain(|node, _| is_there(node));
        self.turned_away.retain(|node, _| is_there(node));
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
}
