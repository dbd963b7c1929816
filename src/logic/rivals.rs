//! Whether two machines are linked as one node, and take the link from each other.
//!
//! Owns: [`Rivals`]. A node that links anew while its link lives has most often lost that and does not know it yet, once. Two
//! machines that have one key do so as fast as they can dial. Pure: the time is handed in. Bounded: few times for each node.

use std::collections::{HashMap, VecDeque};

use crate::model::NodeName;

/// So many links in so long, each while another lived, are not one machine's. That one is held for five seconds each time
/// is still one then.
const TOO_MANY: usize = 4;
const WITHIN_MS: i64 = 30_000;

/// See the file's header.
#[derive(Debug, Default)]
pub struct Rivals {
    lately: HashMap<NodeName, VecDeque<i64>>,
}

impl Rivals {
    /// Notes that a link comes for a node which has one that lives; whether it is to be taken for a rival's.
    pub fn comes(&mut self, node: &NodeName, now_ms: i64) -> bool {
        let lately = self.lately.entry(node.clone()).or_default();
        lately.retain(|at| (0..WITHIN_MS).contains(&(now_ms - at)));
        lately.push_back(now_ms);
        if lately.len() > TOO_MANY {
            lately.pop_front();
        }
        lately.len() == TOO_MANY
    }

    /// A node is no more, or was found to be one machine.
    pub fn forget(&mut self, node: &NodeName) {
        self.lately.remove(node);
    }

    /// Forgets those nodes that are no more.
    pub fn retain(&mut self, is_there: impl Fn(&NodeName) -> bool) {
        self.lately.retain(|node, _| is_there(node));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_takes_the_link_again_and_again_is_a_rival_until_it_has_stopped() {
        let mut rivals = Rivals::default();
        let (a, b) = ("a".into(), "b".into());
        let mut comes = |node: &NodeName, ms| rivals.comes(node, ms);
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
            assert!(!rivals.comes(&"a".into(), turn * 12_000));
        }
    }
}
