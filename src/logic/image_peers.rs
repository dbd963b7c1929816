//! Which of the nodes that have an image another one is to take it from, and which image a name means to them.
//!
//! Owns: [`choose`], and [`choose_away`] for when nobody is there who could give it. Invariants: of what was brought by hand the newest counts, wherever it is, and copies of it while its machine is
//! away, but not once somebody has removed it where it was brought; of what was pulled nothing
//! does as soon as two nodes have different images under the name: their registry is to be asked then. Leaves out who may
//! have what: only images that everybody may have are told of.

use std::collections::HashMap;

use crate::model::NodeName;

/// How an image came to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Held {
    /// Somebody brought it there.
    ByHand,
    /// It was taken from a node that somebody had brought it to.
    Copied,
    /// From its registry.
    Pulled,
    /// It had been brought by hand, and is not there any more: somebody removed it.
    Removed,
}

/// What a node says that it has under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which node.
    pub node: NodeName,
    /// The image's id.
    pub id: String,
    /// How it came.
    pub held: Held,
    /// When somebody brought it, or removed it; milliseconds since the epoch.
    pub since_ms: i64,
}

/// The image that `asker` is to take, and from whom: at least one node, best first. `by_hand`: what was pulled does not do.
/// `turn` spreads several askers over the nodes that are equally good.
pub fn choose(
    claims: &[Claim],
    asker: &NodeName,
    by_hand: bool,
    turn: usize,
) -> Option<(Claim, Vec<NodeName>)> {
    let removed = removals(claims);
    let brought = claims.iter().filter(|claim| match claim.held {
        Held::ByHand => true,
        // Unless somebody removed it where it had been brought, after it was brought.
        Held::Copied => removed.get(claim.id.as_str()).is_none_or(|at_ms| *at_ms < claim.since_ms),
        Held::Pulled | Held::Removed => false,
    });
    let newest = brought.max_by(|a, b| (a.since_ms, &a.id).cmp(&(b.since_ms, &b.id)));
    let meant = match newest {
        Some(newest) => newest,
        None if by_hand => return None,
        None => {
            let mut pulled = claims.iter().filter(|claim| claim.held == Held::Pulled);
            let first = pulled.next()?;
            pulled.all(|claim| claim.id == first.id).then_some(first)?
        }
    };
    // Whoever has it may give it, whatever became of how it came: the id says what the bytes have to be.
    let has = |claim: &&Claim| claim.id == meant.id && claim.node != *asker && claim.held != Held::Removed;
    let mut holders: Vec<&Claim> = claims.iter().filter(has).collect();
    holders.sort_by(|a, b| (a.held, &a.node).cmp(&(b.held, &b.node)));
    let best = holders.first()?.held;
    let equals = holders.iter().take_while(|claim| claim.held == best).count();
    if let Some(equals) = holders.get_mut(..equals) {
        equals.rotate_left(turn % equals.len().max(1));
    }
    Some((meant.clone(), holders.into_iter().map(|claim| claim.node.clone()).collect()))
}

/// The same among what nodes brought by hand that are `away`, too: which image is meant, and who has it, those that are away
/// among them. For when `claims` alone have nothing: what is there is taken first.
pub fn choose_away(
    claims: &mut Vec<Claim>,
    away: &[Claim],
    asker: &NodeName,
    turn: usize,
) -> Option<(Claim, Vec<NodeName>)> {
    if away.is_empty() {
        return None;
    }
    claims.extend_from_slice(away);
    choose(claims, asker, true, turn)
}

/// When each image was removed last, by id.
fn removals(claims: &[Claim]) -> HashMap<&str, i64> {
    let mut last = HashMap::new();
    for gone in claims.iter().filter(|claim| claim.held == Held::Removed) {
        let at_ms = last.entry(gone.id.as_str()).or_insert(gone.since_ms);
        *at_ms = gone.since_ms.max(*at_ms);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: &str, id: &str, held: Held, since_ms: i64) -> Claim {
        Claim { node: node.into(), id: id.into(), held, since_ms }
    }

    #[track_caller]
    fn check(claims: &[Claim], by_hand: bool, expected: Option<(&str, &[&str])>) {
        let chosen = choose(claims, &"me".into(), by_hand, 0);
        let chosen = chosen.map(|(image, nodes)| (image.id, nodes));
        let nodes = |names: &[&str]| names.iter().map(|name| NodeName::from(*name)).collect::<Vec<_>>();
        assert_eq!(chosen, expected.map(|(id, names)| (id.to_owned(), nodes(names))));
    }

    #[test]
    fn what_was_brought_by_hand_last_is_meant_and_taken_from_where_it_was_brought_first() {
        use Held::{ByHand, Copied, Pulled};
        check(&[], false, None);
        check(&[claim("a", "1", ByHand, 5)], true, Some(("1", &["a"])));
        let two = [claim("a", "1", ByHand, 5), claim("b", "2", ByHand, 6), claim("c", "1", Copied, 5)];
        check(&two, false, Some(("2", &["b"])));
        let copy = [claim("a", "1", ByHand, 5), claim("b", "2", Copied, 6), claim("c", "2", Pulled, 0)];
        check(&copy, false, Some(("2", &["b", "c"])));
        let equal = [claim("c", "1", Copied, 5), claim("b", "1", ByHand, 5), claim("a", "1", Copied, 5)];
        check(&equal, true, Some(("1", &["b", "a", "c"])));
    }

    #[test]
    fn what_was_pulled_counts_while_all_agree_and_a_registry_is_not_to_be_asked() {
        use Held::Pulled;
        let one = [claim("a", "1", Pulled, 0), claim("b", "1", Pulled, 0)];
        check(&one, false, Some(("1", &["a", "b"])));
        check(&one, true, None);
        check(&[claim("a", "1", Pulled, 0), claim("b", "2", Pulled, 0)], false, None);
    }

    #[test]
    fn whoever_has_the_newest_itself_is_told_of_nobody() {
        use Held::{ByHand, Copied};
        check(&[claim("me", "2", Copied, 6), claim("a", "1", ByHand, 5)], true, None);
        check(&[claim("me", "1", Copied, 5), claim("a", "2", ByHand, 6)], true, Some(("2", &["a"])));
        check(&[claim("me", "1", Copied, 5), claim("a", "1", ByHand, 5)], true, Some(("1", &["a"])));
    }

    #[test]
    fn a_copy_counts_while_its_origin_is_away_and_no_longer_once_that_was_removed() {
        use Held::{ByHand, Copied, Pulled, Removed};
        let copy = claim("b", "2", Copied, 6);
        check(std::slice::from_ref(&copy), true, Some(("2", &["b"])));
        let removed = claim("a", "2", Removed, 9);
        check(&[copy.clone(), removed.clone()], false, None);
        // What is older, or what a registry has, counts again.
        check(&[copy.clone(), removed.clone(), claim("c", "1", ByHand, 5)], false, Some(("1", &["c"])));
        check(&[copy.clone(), removed.clone(), claim("c", "1", Pulled, 0)], false, Some(("1", &["c"])));
        // It was brought to another node as well, or again: then copies may be given, too.
        check(&[copy.clone(), removed.clone(), claim("c", "2", ByHand, 6)], false, Some(("2", &["c", "b"])));
        check(&[claim("b", "2", Copied, 10), removed], false, Some(("2", &["b"])));
        // That something else was removed is no matter.
        check(&[copy, claim("a", "1", Removed, 9)], false, Some(("2", &["b"])));
    }

    #[test]
    fn what_was_brought_to_a_node_that_is_away_is_meant_unless_somebody_removed_it() {
        use Held::{ByHand, Copied, Removed};
        let check = |claims: &[Claim], away: &[Claim], expected: Option<&[&str]>| {
            let chosen = choose_away(&mut claims.to_vec(), away, &"me".into(), 0).map(|(_, nodes)| nodes);
            let expected = expected.map(|all| all.iter().map(|node| NodeName::from(*node)).collect());
            assert_eq!(chosen, expected);
        };
        check(&[], &[], None);
        check(&[], &[claim("a", "1", ByHand, 5), claim("b", "1", Copied, 5)], Some(&["a", "b"]));
        // The copy that the asker has itself is that of the node that is away.
        check(&[claim("me", "1", Copied, 5)], &[claim("a", "1", ByHand, 5)], Some(&["a"]));
        check(&[claim("b", "1", Removed, 9)], &[claim("a", "1", Copied, 5)], None);
        check(&[claim("b", "1", Removed, 9)], &[claim("a", "1", ByHand, 5)], Some(&["a"]));
        // It is linked again, and has not told yet what it has.
        check(&[], &[claim("me", "1", ByHand, 5)], None);
    }

    #[test]
    fn the_last_of_several_removals_counts_and_many_of_them_cost_little() {
        use Held::{Copied, Removed};
        let two =
            |a, b| [claim("a", "1", Removed, a), claim("c", "1", Removed, b), claim("b", "1", Copied, 6)];
        check(&two(9, 3), true, None);
        check(&two(3, 9), true, None);
        check(&two(3, 5), true, Some(("1", &["b"])));
        const MANY: i64 = 20_000;
        let removed = (0..MANY).map(|n| claim("a", &format!("r{n}"), Removed, n));
        let copied = (0..MANY).map(|n| claim("b", &format!("c{n}"), Copied, n));
        let all: Vec<Claim> = removed.chain(copied).collect();
        let begun = std::time::Instant::now();
        assert!(choose(&all, &"me".into(), true, 0).is_some());
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn askers_are_spread_over_those_that_are_equally_good() {
        let all: Vec<Claim> = ["a", "b", "c"].map(|node| claim(node, "1", Held::Pulled, 0)).into();
        let first = |turn| choose(&all, &"me".into(), false, turn).unwrap().1[0].to_string();
        assert_eq!([first(0), first(1), first(2), first(3)], ["a", "b", "c", "a"]);
    }
}
