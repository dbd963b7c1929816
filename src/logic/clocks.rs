//! Times that a machine told of by its own clock, which may be hours from ours.
//!
//! Owns: what the master makes of them where it counts on them: the time of an event ([`happened_at`]) and of a node's
//! conditions ([`stamp`]); and since when a pod is ready ([`ready_since`]), which is the master's own time ([`super::nodes`]
//! writes it) and cannot be only if its clock was set. Invariant: nothing lasts hours, and nothing is over at once, because of a
//! clock that is wrong. What else a pod's status says is left as its machine told it: it goes with its logs. Pure.

use k8s_openapi::{
    api::core::v1::{NodeCondition, NodeStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::{SignedDuration, Timestamp},
};

use super::nodes::is_own_condition;
use crate::model::extended;

/// What a node tells of happened just now: while its link is down nothing is kept, and a link that is slower than this is
/// ended. Whatever seems older was stamped by another clock.
const UNDER_WAY: SignedDuration = SignedDuration::from_secs(60);

/// Conditions of a node that are taken from it. Nodes tell fewer than ten; each is looked for among those before.
const MOST_CONDITIONS: usize = 64;

/// When something happened that a node tells of now.
pub fn happened_at(told_ms: i64, now: Timestamp) -> Timestamp {
    let seconds = Timestamp::from_second(told_ms.div_euclid(1000)).ok();
    let earliest = now.checked_sub(UNDER_WAY).unwrap_or(now);
    seconds.filter(|told| (earliest..=now).contains(told)).unwrap_or(now)
}

/// What a node says of itself, as JSON, cut to what is taken of it.
///
/// # Errors
/// When it is no node status.
pub fn told_status(json: &[u8]) -> Result<NodeStatus, serde_json::Error> {
    let mut status: NodeStatus = serde_json::from_slice(json)?;
    if let Some(conditions) = &mut status.conditions {
        conditions.truncate(MOST_CONDITIONS);
    }
    Ok(status)
}

/// Puts our times on what a node says of itself: it was heard of now, and what is new since `before` is so from now on.
pub fn stamp(status: &mut NodeStatus, before: Option<&NodeStatus>, now: Timestamp) {
    let known = before.and_then(|before| before.conditions.as_deref()).unwrap_or_default();
    for condition in status.conditions.iter_mut().flatten() {
        let same = known.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status);
        condition.last_heartbeat_time = Some(Time(now));
        condition.last_transition_time =
            Some(same.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now)));
    }
}

/// Leaves in a node's status what others have added to its conditions.
pub fn keep_added(told: &mut NodeStatus, stored: Option<&NodeStatus>) {
    let stored = stored.and_then(|stored| stored.conditions.as_deref()).unwrap_or_default();
    let is_told = |name: &str| told.conditions.iter().flatten().any(|c| c.type_ == name);
    let added = stored.iter().filter(|c| !is_own_condition(&c.type_) && !is_told(&c.type_));
    let added: Vec<NodeCondition> = added.cloned().collect();
    if !added.is_empty() {
        let all = told.conditions.get_or_insert_default();
        all.extend(added);
        all.truncate(MOST_CONDITIONS);
    }
}

/// Whether others have written over what a node said of itself. What they have added stays, and times are ours.
pub fn is_overwritten(told: &NodeStatus, stored: Option<&NodeStatus>) -> bool {
    let Some(stored) = stored else { return true };
    let stays = |condition: &NodeCondition| {
        let mut all = stored.conditions.iter().flatten().filter(|stored| stored.type_ == condition.type_);
        all.any(|stored| {
            (&stored.status, &stored.reason, &stored.message)
                == (&condition.status, &condition.reason, &condition.message)
        })
    };
    !told.conditions.iter().flatten().all(stays)
        || told.addresses != stored.addresses
        || told.node_info != stored.node_info
        || !extended::says_the_same(told.capacity.as_ref(), stored.capacity.as_ref())
        || !extended::says_the_same(told.allocatable.as_ref(), stored.allocatable.as_ref())
}

/// How many of a stored status' conditions, from the first on, are what a node said of itself, when it says all that the node
/// said and nothing else but times: then [`said_again`] reads it there.
pub fn said_in(told: &NodeStatus, stored: &NodeStatus) -> Option<usize> {
    let count = told.conditions.as_ref().map_or(0, Vec::len);
    (said_again(stored.clone(), count) == said_again(told.clone(), count)).then_some(count)
}

/// What a node said of itself, out of what is stored: without what others added to its conditions, of which so many are its
/// own, and without times, which are ours.
pub fn said_again(mut stored: NodeStatus, conditions: usize) -> NodeStatus {
    if let Some(all) = &mut stored.conditions {
        all.truncate(conditions);
        for condition in all {
            (condition.last_heartbeat_time, condition.last_transition_time) = (None, None);
        }
    }
    stored
}

/// Since when a pod has been ready, in seconds: not before it was made, and since now when that is yet to come, as it seems
/// to be after the master's clock was set back.
pub fn ready_since(told_s: i64, created: Timestamp, now: Timestamp) -> i64 {
    let (created_s, now_s) = (created.as_second(), now.as_second());
    // When it was made may be yet to come, too.
    let earliest_s = if created_s > now_s { told_s } else { created_s };
    told_s.max(earliest_s).min(now_s)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const HOURS: i64 = 5 * 3600;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn an_event_is_of_now_unless_it_says_a_time_shortly_before() {
        let now = 1_700_000_000;
        for (told_s, taken_s) in [
            (now, now),
            (now - 60, now - 60),
            (now - 61, now),
            (now + 1, now),
            (now - HOURS, now),
            (now + HOURS, now),
            (i64::MAX / 1000, now),
            (i64::MIN / 1000, now),
        ] {
            assert_eq!(happened_at(told_s * 1000, at(now)), at(taken_s), "{told_s}");
        }
    }

    #[test]
    fn of_a_nodes_conditions_only_so_many_are_taken() {
        let of = |count: usize| {
            let all: Vec<_> =
                (0..count).map(|n| json!({"type": format!("c{n}"), "status": "True"})).collect();
            told_status(json!({"conditions": all}).to_string().as_bytes()).unwrap().conditions.unwrap()
        };
        assert_eq!(of(10).len(), 10);
        let cut = of(100_000);
        assert_eq!((cut.len(), cut[63].type_.as_str()), (MOST_CONDITIONS, "c63"));
        assert_eq!(told_status(b"{}").unwrap().conditions, None);
        assert!(told_status(b"[").is_err());
    }

    #[test]
    fn what_others_write_over_a_nodes_word_is_noticed_and_what_they_add_is_not() {
        let status = |ready: &str, more: &str, address: &str| -> NodeStatus {
            let condition = |name: &str, status: &str| json!({"type": name, "status": status, "reason": "r"});
            let mut all = vec![condition("Ready", ready)];
            all.extend((!more.is_empty()).then(|| condition(more, "True")));
            let addresses = json!([{"type": "InternalIP", "address": address}]);
            serde_json::from_value(json!({"conditions": all, "addresses": addresses})).unwrap()
        };
        let told = status("True", "", "10.0.0.1");
        for (stored, overwritten) in [
            (status("True", "", "10.0.0.1"), false),
            (status("True", "FrequentRestarts", "10.0.0.1"), false),
            (status("False", "", "10.0.0.1"), true),
            (status("True", "", "10.0.0.2"), true),
            (NodeStatus::default(), true),
        ] {
            assert_eq!(is_overwritten(&told, Some(&stored)), overwritten, "{stored:?}");
        }
        assert!(is_overwritten(&told, None));
        // When it is said again, what they have added stays as it is; what the node tells no more does not.
        for (stored, kept) in [
            (status("False", "FrequentRestarts", "10.0.0.1"), vec!["Ready", "FrequentRestarts"]),
            (status("False", "Rootless", "10.0.0.1"), vec!["Ready"]),
            (NodeStatus::default(), vec!["Ready"]),
        ] {
            let mut again = told.clone();
            keep_added(&mut again, Some(&stored));
            let all: Vec<String> = again.conditions.iter().flatten().map(|c| c.type_.clone()).collect();
            assert_eq!(all, kept);
            assert!(!is_overwritten(&told, Some(&again)));
        }
    }

    #[test]
    fn what_a_node_said_is_found_in_what_is_stored_unless_others_changed_it() {
        let condition =
            |name: &str| json!({"type": name, "status": "True", "lastHeartbeatTime": at(7).to_string()});
        let status = |names: &[&str], gpus: Option<&str>| -> NodeStatus {
            let all: Vec<_> = names.iter().map(|name| condition(name)).collect();
            let mut capacity = json!({"cpu": "2"});
            gpus.into_iter().for_each(|gpus| capacity["example.com/gpu"] = gpus.into());
            serde_json::from_value(json!({"conditions": all, "capacity": capacity})).unwrap()
        };
        let told = status(&["Ready", "DiskPressure"], None);
        let kept = |stored: &NodeStatus| said_in(&told, stored);
        let mut stamped = told.clone();
        stamp(&mut stamped, None, at(100));
        assert_eq!(kept(&stamped), Some(2));
        let mut added = status(&["Ready", "DiskPressure", "FrequentRestarts"], None);
        assert_eq!(kept(&added), Some(2));
        added.conditions.as_mut().unwrap().remove(0);
        for other in
            [added, status(&["DiskPressure", "Ready"], None), status(&["Ready", "DiskPressure"], Some("4"))]
        {
            assert_eq!(kept(&other), None, "{other:?}");
        }
        let again = said_again(status(&["Ready", "DiskPressure", "FrequentRestarts"], None), 2);
        assert_eq!(again.conditions.as_ref().unwrap().len(), 2);
        assert!(!is_overwritten(&again, Some(&told)) && !is_overwritten(&told, Some(&again)));
    }

    #[test]
    fn amounts_that_a_node_does_not_have_are_put_right_and_those_that_others_say_stay() {
        let status = |amounts: serde_json::Value, allocatable: serde_json::Value| -> NodeStatus {
            serde_json::from_value(json!({"capacity": amounts, "allocatable": allocatable})).unwrap()
        };
        let own = || json!({"cpu": "2", "memory": "4Gi", "pods": "110", "hugepages-2Mi": "0"});
        let told = status(own(), own());
        let with = |name: &str, amount: Option<&str>| {
            let mut all = own();
            match amount {
                Some(amount) => all[name] = amount.into(),
                None => drop(all.as_object_mut().unwrap().remove(name)),
            }
            all
        };
        for (name, amount, overwritten) in [
            ("cpu", Some("2000m"), false),
            ("memory", Some("4194304Ki"), false),
            ("example.com/gpu", Some("4"), false),
            ("cpu", Some("1000"), true),
            ("memory", Some("0"), true),
            ("pods", None, true),
            ("hugepages-2Mi", Some("2Mi"), true),
            ("hugepages-1Gi", Some("1Gi"), true),
            ("ephemeral-storage", Some("1Gi"), true),
        ] {
            for stored in [status(with(name, amount), own()), status(own(), with(name, amount))] {
                assert_eq!(is_overwritten(&told, Some(&stored)), overwritten, "{name} {amount:?}");
            }
        }
        assert!(is_overwritten(&told, Some(&NodeStatus::default())));
    }

    #[test]
    fn a_nodes_conditions_have_our_times_and_keep_them_while_they_hold() {
        let status = |ready: &str, hour: i64| -> NodeStatus {
            let time = at(1_700_000_000 + hour * 3600).to_string();
            let condition = |name: &str, status: &str| json!({"type": name, "status": status, "lastHeartbeatTime": time, "lastTransitionTime": time});
            serde_json::from_value(
                json!({"conditions": [condition("DiskPressure", "False"), condition("Ready", ready)]}),
            )
            .unwrap()
        };
        let times = |status: &NodeStatus| -> Vec<(i64, i64)> {
            let second = |time: &Option<Time>| time.as_ref().unwrap().0.as_second();
            let all = status.conditions.iter().flatten();
            all.map(|c| (second(&c.last_heartbeat_time), second(&c.last_transition_time))).collect()
        };
        let mut first = status("True", 5);
        stamp(&mut first, None, at(100));
        assert_eq!(times(&first), [(100, 100), (100, 100)]);
        // Its process was started again, with another clock.
        let mut second = status("True", -5);
        stamp(&mut second, Some(&first), at(200));
        assert_eq!(times(&second), [(200, 100), (200, 100)]);
        let mut third = status("False", 5);
        stamp(&mut third, Some(&second), at(300));
        assert_eq!(times(&third), [(300, 100), (300, 300)]);
    }

    #[test]
    fn a_pod_is_ready_within_its_life() {
        for (told_s, taken_s) in [
            (1000, 1000),
            (1500, 1500),
            (2000, 2000),
            (2001, 2000),
            (999, 1000),
            (HOURS, 2000),
            (-HOURS, 1000),
            (0, 1000),
        ] {
            assert_eq!(ready_since(told_s, at(1000), at(2000)), taken_s, "{told_s}");
        }
        // Made before the clock was set back.
        for (told_s, taken_s) in [(1990, 1990), (2000, 2000), (2001, 2000), (HOURS, 2000)] {
            assert_eq!(ready_since(told_s, at(HOURS - 10), at(2000)), taken_s, "{told_s}");
        }
    }
}
