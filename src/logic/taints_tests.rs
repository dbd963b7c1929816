//! Who has to leave which node, and when.

use serde_json::{Value, json};

use super::*;
use crate::logic::testing::World;

const LONG_AGO: &str = "2025-12-31T00:00:00Z";

fn node(name: &str, taints: &Value) -> Value {
    json!({"metadata": {"name": name, "uid": format!("uid-{name}"), "creationTimestamp": LONG_AGO},
        "spec": {"taints": taints}})
}

fn pod(name: &str, node: &str, tolerations: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "creationTimestamp": LONG_AGO},
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": node, "tolerations": tolerations},
        "status": {"phase": "Running"}})
}

fn lost(since: &str) -> Value {
    json!([{"key": UNREACHABLE, "effect": "NoSchedule"}, {"key": UNREACHABLE, "effect": "NoExecute", "timeAdded": since}])
}

fn not_ready(since: &str) -> Value {
    json!([{"key": NOT_READY, "effect": "NoSchedule"}, {"key": NOT_READY, "effect": "NoExecute", "timeAdded": since}])
}

/// Nodes that are well, each with a pod of its name that tolerates nothing.
fn furnished(names: &[&str]) -> World<Evictions> {
    let mut world = World::new(Evictions::default());
    for name in names {
        world.put(Kind::Node, &node(name, &json!([])));
        world.put(Kind::Pod, &pod(name, name, &json!([])));
    }
    world
}

/// Names of pods that are on their way out.
fn leaving(world: &World<Evictions>) -> Vec<String> {
    let pods = world.snapshot.list(Kind::Pod, None);
    pods.filter(|pod| pod.facet.meta.deleting.is_some()).map(|pod| pod.key.name.to_string()).collect()
}

#[test]
fn pods_leave_a_tainted_node_when_their_tolerations_say_so() {
    // The world begins at 2026-01-01T00:00:00Z.
    let now = "2026-01-01T00:00:00Z";
    let mut world = World::new(Evictions::default());
    world.put(Kind::Node, &node("a", &json!([])));
    world.put(Kind::Node, &node("b", &json!([])));
    let bears = |seconds: Value| json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    world.put(Kind::Pod, &pod("none", "a", &json!([])));
    world.put(Kind::Pod, &pod("forever", "a", &json!([{"operator": "Exists"}])));
    world.put(Kind::Pod, &pod("minute", "a", &bears(json!(60))));
    world.put(Kind::Pod, &pod("at-once", "a", &bears(json!(0))));
    world.put(Kind::Pod, &pod("elsewhere", "b", &json!([])));
    let mut mirror = pod("mirror", "a", &json!([]));
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    world.put(Kind::Pod, &mirror);
    world.settle();
    assert!(leaving(&world).is_empty());
    world.put(Kind::Node, &node("a", &lost(now)));
    world.settle();
    assert_eq!(leaving(&world), ["at-once", "none"]);
    world.advance_ms(59_999);
    assert_eq!(leaving(&world), ["at-once", "none"]);
    world.advance_ms(1);
    assert_eq!(leaving(&world), ["at-once", "minute", "none"]);
    world.advance(1_000_000);
    world.settle();
    assert_eq!(leaving(&world).len(), 3, "who tolerates it for ever stays, and so do the others' pods");
}

#[test]
fn a_pod_stays_as_long_as_it_says_from_when_the_taint_was_seen_to_come() {
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 1}]);
    let mine = || json!([{"key": "mine", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
    let world = |seen_ms: i64| {
        let mut world = World::new(Evictions::default());
        world.put(Kind::Node, &node("b", &json!([])));
        world.put(Kind::Node, &node("a", &json!([])));
        world.put(Kind::Pod, &pod("p", "a", &bears));
        // It comes then, which it says in whole seconds.
        world.advance_ms(seen_ms);
        world.put(Kind::Node, &node("a", &mine()));
        world.settle();
        world
    };
    for ms in [0, 1, 500, 999] {
        let mut world = world(ms);
        world.advance_ms(999);
        assert!(leaving(&world).is_empty(), "at {ms} ms");
        // What else happens to the node is no matter, nor a reader that has to begin anew.
        let mut changed = mine();
        changed.as_array_mut().unwrap().push(json!({"key": "other", "effect": "NoSchedule"}));
        world.put(Kind::Node, &node("a", &changed));
        let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap();
        let now = now.checked_add(SignedDuration::from_millis(ms + 999)).unwrap();
        world.controller.anew(&world.snapshot, now);
        world.settle();
        assert!(leaving(&world).is_empty(), "at {ms} ms");
        world.advance_ms(1);
        assert_eq!(leaving(&world), ["p"], "at {ms} ms");
    }
    // Seen late, it came no later than it can have come by its own word.
    let mut late = world(1_700);
    late.advance_ms(299);
    assert!(leaving(&late).is_empty());
    late.advance_ms(1);
    assert_eq!(leaving(&late), ["p"]);
}

#[test]
fn a_taint_that_was_there_before_is_taken_to_have_come_as_late_as_it_can_have() {
    let mut world = World::new(Evictions::default());
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 1}]);
    let mine = json!([{"key": "mine", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
    world.put(Kind::Node, &node("a", &mine));
    world.put(Kind::Pod, &pod("p", "a", &bears));
    world.controller = Evictions::default();
    world.controller.anew(&world.snapshot, "2026-01-01T00:00:00.5Z".parse().unwrap());
    world.advance_ms(1_999);
    assert!(leaving(&world).is_empty());
    world.advance_ms(1);
    assert_eq!(leaving(&world), ["p"]);
}

#[test]
fn it_is_told_of_each_pod_that_leaves_and_of_each_that_may_stay_after_all() {
    let mut world = furnished(&["a", "b", "c"]);
    let bears = json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 60}]);
    world.put(Kind::Pod, &pod("minute", "a", &bears));
    world.put(Kind::Pod, &pod("forever", "a", &json!([{"operator": "Exists"}])));
    let mut mirror = pod("mirror", "a", &bears);
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    world.put(Kind::Pod, &mirror);
    assert!(world.recorded.is_empty());
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    world.settle();
    let told = |world: &World<Evictions>| {
        assert!(world.recorded.iter().all(|(reason, _)| reason == "TaintManagerEviction"));
        world.recorded.iter().map(|(_, message)| message.clone()).collect::<Vec<_>>()
    };
    assert_eq!(told(&world), ["Marking for deletion Pod default/a"]);
    world.advance(30);
    world.put(Kind::Node, &node("a", &json!([])));
    world.settle();
    assert_eq!(told(&world)[1..], ["Cancelling deletion of Pod default/minute"]);
    // One that ends by itself has nothing called off.
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:30Z")));
    world.remove(&Key::new(Kind::Pod, "default", "minute"));
    world.put(Kind::Node, &node("a", &json!([])));
    world.settle();
    assert_eq!(told(&world).len(), 2);
}

#[test]
fn a_node_that_comes_back_in_time_keeps_its_pods() {
    let mut world = World::new(Evictions::default());
    world.put(Kind::Node, &node("b", &json!([])));
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    let bears = json!([{"key": UNREACHABLE, "operator": "Exists", "tolerationSeconds": 60}]);
    world.put(Kind::Pod, &pod("p", "a", &bears));
    world.advance(59);
    world.put(Kind::Node, &node("a", &json!([])));
    world.advance(3600);
    world.settle();
    assert!(leaving(&world).is_empty());
}

#[test]
fn somebodys_own_taint_is_obeyed_at_once() {
    let mut world = World::new(Evictions::default());
    world.put(Kind::Pod, &pod("p", "a", &json!([])));
    world.put(Kind::Pod, &pod("q", "a", &json!([{"key": "mine", "value": "x", "effect": "NoExecute"}])));
    world.put(Kind::Node, &node("a", &json!([{"key": "mine", "value": "x", "effect": "NoExecute"}])));
    world.settle();
    assert_eq!(leaving(&world), ["p"]);
}

#[test]
fn a_taint_that_does_not_say_when_it_came_came_when_it_was_first_seen() {
    let mut world = World::new(Evictions::default());
    world.put(Kind::Node, &node("a", &json!([])));
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 60}]);
    world.put(Kind::Pod, &pod("p", "a", &bears));
    world.settle();
    let mine = json!([{"key": "mine", "effect": "NoExecute"}]);
    world.put(Kind::Node, &node("a", &mine));
    world.settle();
    world.advance(30);
    // Something else about the node changes, and a pod comes: the first is no later for that, the other stays as long as it
    // says from when it came.
    let another = json!([{"key": "mine", "effect": "NoExecute"}, {"key": "other", "effect": "NoSchedule"}]);
    world.put(Kind::Node, &node("a", &another));
    let mut late = pod("late", "a", &bears);
    late["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:30Z");
    world.put(Kind::Pod, &late);
    world.advance_ms(29_999);
    assert!(leaving(&world).is_empty());
    world.advance_ms(1);
    assert_eq!(leaving(&world), ["p"]);
    world.advance_ms(29_999);
    assert_eq!(leaving(&world), ["p"]);
    world.advance_ms(1);
    assert_eq!(leaving(&world), ["late", "p"]);
    // Taken away and set again, it is a new one.
    world.put(Kind::Node, &node("a", &json!([])));
    world.put(Kind::Pod, &pod("next", "a", &bears));
    world.put(Kind::Node, &node("a", &mine));
    world.advance_ms(59_999);
    assert!(!leaving(&world).contains(&"next".to_owned()));
    world.advance_ms(1);
    assert!(leaving(&world).contains(&"next".to_owned()));
}

#[test]
fn a_pod_that_comes_to_a_node_with_an_old_taint_stays_as_long_as_it_says() {
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 60}]);
    let mine = json!([{"key": "mine", "effect": "NoExecute", "timeAdded": LONG_AGO}]);
    let bound = |created: &str, bound: &str| {
        let mut pod = pod("p", "a", &bears);
        pod["metadata"]["creationTimestamp"] = json!(created);
        pod["status"]["conditions"] =
            json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": bound}]);
        pod
    };
    let now = "2026-01-01T00:00:00Z";
    for (created, placed) in [(now, now), (LONG_AGO, now)] {
        let mut world = World::new(Evictions::default());
        world.put(Kind::Node, &node("a", &mine));
        world.put(Kind::Pod, &bound(created, placed));
        world.advance(30);
        // What is told of it is no new beginning, nor is another manager.
        world.put(Kind::Pod, &bound(created, placed));
        world.controller = Evictions::default();
        world.controller.anew(&world.snapshot, "2026-01-01T00:00:30Z".parse().unwrap());
        world.advance(29);
        assert!(leaving(&world).is_empty());
        // Then its whole second is known only.
        world.advance(2);
        assert_eq!(leaving(&world), ["p"]);
        // The next of its name is another.
        world.remove(&Key::new(Kind::Pod, "default", "p"));
        let mut next = bound("2026-01-01T00:01:01Z", "2026-01-01T00:01:01Z");
        next["metadata"]["uid"] = json!("another");
        world.put(Kind::Pod, &next);
        world.advance(59);
        assert!(leaving(&world).is_empty());
        world.advance(1);
        assert_eq!(leaving(&world), ["p"]);
    }
}

#[test]
fn a_clock_that_is_set_back_delays_nothing_for_longer_than_pods_may_stay() {
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 60}]);
    let mine = json!([{"key": "mine", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}]);
    let mut world = furnished(&["a", "b", "c", "d"]);
    world.controller.anew(&world.snapshot, "2026-01-01T00:00:00Z".parse().unwrap());
    world.put(Kind::Pod, &pod("p", "b", &bears));
    world.put(Kind::Node, &node("b", &mine));
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    world.advance(30);
    assert_eq!(leaving(&world), ["a", "b"]);
    world.advance(-3600);
    // What is tainted from now on is believed.
    world.put(Kind::Node, &node("c", &lost("2025-12-31T23:00:30Z")));
    world.settle();
    assert_eq!(leaving(&world), ["a", "b", "c"]);
    world.advance(59);
    assert_eq!(leaving(&world), ["a", "b", "c"]);
    world.advance(1);
    assert_eq!(leaving(&world), ["a", "b", "c", "p"]);
}

#[test]
fn a_node_made_anew_while_nobody_was_told_has_taints_of_its_own() {
    let bears = json!([{"key": "mine", "operator": "Exists", "tolerationSeconds": 60}]);
    let mut tainted = node("a", &json!([{"key": "mine", "effect": "NoExecute"}]));
    let mut world = World::new(Evictions::default());
    world.put(Kind::Node, &tainted);
    world.put(Kind::Pod, &pod("p", "a", &bears));
    world.advance(59);
    tainted["metadata"]["uid"] = json!("another");
    let sealed = crate::model::seal_json(Kind::Node, tainted.to_string().as_bytes()).unwrap();
    world.snapshot.insert(Arc::new(sealed.at(world.snapshot.revision)));
    world.controller.anew(&world.snapshot, "2026-01-01T00:00:59Z".parse().unwrap());
    world.advance(59);
    assert!(leaving(&world).is_empty());
    world.advance(1);
    assert_eq!(leaving(&world), ["p"]);
}

#[test]
fn who_is_silent_when_the_brake_comes_off_has_time_to_come_back() {
    let mut world = furnished(&["a", "b", "c", "d"]);
    for name in ["a", "b", "c"] {
        world.put(Kind::Node, &node(name, &lost("2026-01-01T00:00:00Z")));
    }
    world.advance(600);
    assert!(leaving(&world).is_empty());
    // The master's network is whole again; they come back one after the other.
    world.put(Kind::Node, &node("c", &json!([])));
    world.advance(5);
    world.put(Kind::Node, &node("b", &json!([])));
    world.advance(DOUBT_SECONDS - 6);
    assert!(leaving(&world).is_empty());
    assert!(world.controller.wake_at().is_some(), "it is looked at again by itself");
    world.advance(1);
    assert_eq!(leaving(&world), ["a"]);
}

#[test]
fn who_falls_silent_after_the_brake_came_off_is_believed() {
    let mut world = furnished(&["a", "b", "c"]);
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    world.put(Kind::Node, &node("b", &lost("2026-01-01T00:00:00Z")));
    world.advance(60);
    world.put(Kind::Node, &node("a", &json!([])));
    world.put(Kind::Node, &node("b", &json!([])));
    world.advance(2);
    world.put(Kind::Node, &node("c", &lost("2026-01-01T00:01:02Z")));
    world.settle();
    assert_eq!(leaving(&world), ["c"]);
}

#[test]
fn the_brake_stays_on_when_one_more_falls_silent_later() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    let mut world = furnished(&names);
    for name in &names[..6] {
        world.put(Kind::Node, &node(name, &lost("2026-01-01T00:00:00Z")));
    }
    world.advance(600);
    world.put(Kind::Node, &node("g", &lost("2026-01-01T00:10:00Z")));
    world.advance(600);
    assert!(leaving(&world).is_empty());
}

#[test]
fn a_fresh_start_gives_the_silent_time_to_come_back() {
    let mut world = furnished(&["a", "b", "c", "d"]);
    world.put(Kind::Node, &node("a", &lost(LONG_AGO)));
    world.put(Kind::Node, &node("b", &json!([{"key": "own", "effect": "NoExecute"}])));
    let begin: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    world.controller.anew(&world.snapshot, begin);
    world.settle();
    assert_eq!(leaving(&world), ["b"], "somebody's own taint is no matter of doubt");
    world.advance(DOUBT_SECONDS - 1);
    assert_eq!(leaving(&world), ["b"]);
    // What died since then is believed, and a slow reader is no fresh start.
    world.put(Kind::Node, &node("c", &lost("2026-01-01T00:00:14Z")));
    world.settle();
    assert_eq!(leaving(&world), ["b", "c"]);
    let now = begin.checked_add(SignedDuration::from_secs(DOUBT_SECONDS - 1)).unwrap();
    world.controller.anew(&world.snapshot, now);
    world.advance(1);
    assert_eq!(leaving(&world), ["a", "b", "c"]);
}

#[test]
fn when_no_node_is_well_nobody_leaves() {
    let mut world = furnished(&["a"]);
    let bears = json!([{"key": NOT_READY, "operator": "Exists", "tolerationSeconds": 300}]);
    world.put(Kind::Pod, &pod("p", "a", &bears));
    world.put(Kind::Node, &node("a", &not_ready("2026-01-01T00:00:00Z")));
    world.advance(3600);
    assert!(leaving(&world).is_empty());
    // One that only said goodbye is no better.
    world.put(Kind::Node, &node("b", &json!([{"key": UNREACHABLE, "effect": "NoSchedule"}])));
    world.advance(3600);
    assert!(leaving(&world).is_empty());
    world.put(Kind::Node, &node("b", &json!([])));
    world.advance(DOUBT_SECONDS - 1);
    assert!(leaving(&world).is_empty());
    world.advance(1);
    assert_eq!(leaving(&world), ["a", "p"]);
}

#[test]
fn nothing_under_way_is_lost_while_the_brake_comes_and_goes() {
    let mut world = furnished(&["a", "b", "c"]);
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    let first = world.controller.next_due("2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
    world.put(Kind::Node, &node("b", &lost("2026-01-01T00:00:00Z")));
    world.put(Kind::Node, &node("b", &json!([])));
    // It could not be written.
    world.controller.mark(first);
    world.settle();
    assert!(leaving(&world).is_empty());
    world.advance(DOUBT_SECONDS);
    assert_eq!(leaving(&world), ["a"]);
}

#[test]
fn nodes_that_died_one_after_the_other_are_each_believed() {
    let mut world = furnished(&["a", "b", "c"]);
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    world.advance(600);
    world.put(Kind::Node, &node("b", &lost("2026-01-01T00:10:00Z")));
    world.settle();
    assert_eq!(leaving(&world), ["a", "b"]);
}

#[test]
fn taints_follow_readiness_and_others_stay() {
    let own = v1::Taint { key: "own".into(), effect: NO_EXECUTE.into(), ..v1::Taint::default() };
    let mut spec = v1::NodeSpec { taints: Some(vec![own]), ..v1::NodeSpec::default() };
    let shown = |spec: &v1::NodeSpec| -> Vec<String> {
        let all = spec.taints.iter().flatten();
        all.map(|t| format!("{}:{}", t.key.rsplit('/').next().unwrap_or_default(), t.effect)).collect()
    };
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    taint_by_readiness(&mut spec, Readiness::Away, at(1));
    assert_eq!(shown(&spec), ["own:NoExecute", "unreachable:NoSchedule"]);
    taint_by_readiness(&mut spec, Readiness::Unreachable, at(2));
    taint_by_readiness(&mut spec, Readiness::Unreachable, at(9));
    assert_eq!(shown(&spec), ["own:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]);
    let added = |spec: &v1::NodeSpec| spec.taints.as_ref().unwrap()[2].time_added.clone();
    assert_eq!(added(&spec), Some(Time(at(2))), "the time of the first stays");
    taint_by_readiness(&mut spec, Readiness::NotReady, at(10));
    assert_eq!(shown(&spec), ["own:NoExecute", "not-ready:NoSchedule", "not-ready:NoExecute"]);
    taint_by_readiness(&mut spec, Readiness::Ready, at(11));
    assert_eq!(shown(&spec), ["own:NoExecute"]);
}

#[test]
fn nodes_that_are_spared_are_silent_like_others() {
    let mut world = furnished(&["a", "b", "c"]);
    let taints = |readiness| {
        let mut spec = v1::NodeSpec::default();
        taint_by_readiness(&mut spec, readiness, "2026-01-01T00:00:00Z".parse().unwrap());
        serde_json::to_value(spec.taints).unwrap()
    };
    world.put(Kind::Node, &node("b", &taints(Readiness::Spared)));
    world.put(Kind::Node, &node("c", &taints(Readiness::Unreachable)));
    world.advance(3600);
    assert!(leaving(&world).is_empty(), "two of three are silent");
    // One that said goodbye is not.
    let mut world = furnished(&["a", "b", "c"]);
    world.put(Kind::Node, &node("b", &taints(Readiness::Away)));
    world.put(Kind::Node, &node("c", &taints(Readiness::Unreachable)));
    world.advance(60);
    assert_eq!(leaving(&world), ["c"]);
}

#[test]
fn a_spared_node_is_not_away_and_one_that_links_is_silent_no_more() {
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let mut spec = v1::NodeSpec::default();
    let state = |spec: &v1::NodeSpec| {
        let mut world = World::new(Evictions::default());
        world.put(Kind::Node, &node("a", &serde_json::to_value(&spec.taints).unwrap()));
        let node = world.snapshot.find(&Key::new(Kind::Node, "", "a")).unwrap();
        (is_silent(node), has_said_goodbye(node))
    };
    for (second, readiness, wanted) in [
        (1, Readiness::Away, (false, true)),
        (2, Readiness::Spared, (true, false)),
        (3, Readiness::Spared, (true, false)),
        (4, Readiness::Unreachable, (true, false)),
        (5, Readiness::Spared, (true, false)),
        (6, Readiness::Away, (false, true)),
        (7, Readiness::Ready, (false, false)),
    ] {
        taint_by_readiness(&mut spec, readiness, at(second));
        assert_eq!(state(&spec), wanted, "{readiness:?}");
        if second == 3 {
            assert_eq!(
                spec.taints.as_ref().unwrap()[0].time_added,
                Some(Time(at(2))),
                "the first time stays"
            );
        }
    }
}
