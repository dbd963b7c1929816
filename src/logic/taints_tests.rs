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
    world.advance(59);
    assert_eq!(leaving(&world), ["at-once", "none"]);
    world.advance(1);
    world.settle();
    assert_eq!(leaving(&world), ["at-once", "minute", "none"]);
    world.advance(1_000_000);
    world.settle();
    assert_eq!(leaving(&world).len(), 3, "who tolerates it for ever stays, and so do the others' pods");
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
fn when_most_nodes_are_silent_nobody_leaves_until_some_are_heard_again() {
    let mut world = World::new(Evictions::default());
    for name in ["a", "b", "c"] {
        world.put(Kind::Node, &node(name, &json!([])));
        world.put(Kind::Pod, &pod(name, name, &json!([])));
    }
    world.put(Kind::Node, &node("a", &lost("2026-01-01T00:00:00Z")));
    world.put(Kind::Node, &node("b", &lost("2026-01-01T00:00:00Z")));
    world.advance(60);
    world.settle();
    assert!(leaving(&world).is_empty());
    world.put(Kind::Node, &node("b", &json!([])));
    world.settle();
    assert_eq!(leaving(&world), ["a"]);
}

#[test]
fn nodes_that_died_one_after_the_other_are_each_believed() {
    let mut world = World::new(Evictions::default());
    for name in ["a", "b", "c"] {
        world.put(Kind::Node, &node(name, &json!([])));
        world.put(Kind::Pod, &pod(name, name, &json!([])));
    }
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
    taint_by_readiness(&mut spec, Readiness::Unreachable { evict: false }, at(1));
    assert_eq!(shown(&spec), ["own:NoExecute", "unreachable:NoSchedule"]);
    taint_by_readiness(&mut spec, Readiness::Unreachable { evict: true }, at(2));
    taint_by_readiness(&mut spec, Readiness::Unreachable { evict: true }, at(9));
    assert_eq!(shown(&spec), ["own:NoExecute", "unreachable:NoSchedule", "unreachable:NoExecute"]);
    let added = |spec: &v1::NodeSpec| spec.taints.as_ref().unwrap()[2].time_added.clone();
    assert_eq!(added(&spec), Some(Time(at(2))), "the time of the first stays");
    taint_by_readiness(&mut spec, Readiness::NotReady, at(10));
    assert_eq!(shown(&spec), ["own:NoExecute", "not-ready:NoSchedule", "not-ready:NoExecute"]);
    taint_by_readiness(&mut spec, Readiness::Ready, at(11));
    assert_eq!(shown(&spec), ["own:NoExecute"]);
}
