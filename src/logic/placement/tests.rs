//! Placement under test: a table of refusals, spread and balance, and properties against asking every node.

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{queue::Queue, *};
use crate::{
    logic::testing::stored,
    model::{Kind, KindFacet, Object, Revision},
};

fn node(name: &str, spec: Value, labels: Value) -> Arc<Object> {
    node_with(name, spec, labels, json!({"cpu": "2", "memory": "1Gi", "pods": "10"}), true)
}

fn node_with(name: &str, spec: Value, labels: Value, has: Value, ready: bool) -> Arc<Object> {
    let ready = if ready { "True" } else { "False" };
    stored(
        Kind::Node,
        &json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": labels},
            "spec": spec,
            "status": {"allocatable": has, "conditions": [{"type": "Ready", "status": ready}]},
        }),
        Revision(1),
    )
}

fn pod(name: &str, owner: Option<&str>, spec: Value) -> Arc<Object> {
    let mut value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "spec": {"containers": [{"name": "c"}]},
    });
    if let Some(owner) = owner {
        value["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ReplicationController", "name": owner, "uid": owner, "controller": true,
        }]);
    }
    for (key, part) in spec.as_object().cloned().unwrap_or_default() {
        value["spec"][key] = part;
    }
    stored(Kind::Pod, &value, Revision(1))
}

fn asking(requests: Value) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
}

fn queue(objects: &[Arc<Object>]) -> Queue {
    let mut queue = Queue::default();
    for object in objects {
        queue.apply(None, Some(object));
    }
    queue
}

/// The node of the one waiting pod, or why there is none.
fn outcome(queue: &mut Queue) -> Result<String, String> {
    let round = queue.decide(1);
    match (round.bound.first(), round.refused.first()) {
        (Some((_, node)), None) => Ok(node.to_string()),
        (None, Some((_, why))) => Err(why.to_string()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_explain_themselves_in_kubernetes_words() {
    let plain = || node("a", json!({}), json!({"disk": "ssd", "cores": "4"}));
    let tainted = json!({"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]});
    let affinity = |key: &str, operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}],
        }}}})
    };
    let unmatched = Err("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
    let table = [
        (vec![], json!({}), Err("no nodes available to schedule pods")),
        (vec![plain()], json!({}), Ok("a")),
        (
            vec![node("a", json!({"unschedulable": true}), json!({}))],
            json!({}),
            Err("0/1 nodes are available: 1 node(s) were unschedulable."),
        ),
        (
            vec![node(
                "a",
                json!({"unschedulable": true, "taints": [
                    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}),
                json!({}),
            )],
            json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}),
            Ok("a"),
        ),
        (
            vec![node("a", tainted.clone(), json!({}))],
            json!({}),
            Err("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}."),
        ),
        (
            vec![node("a", tainted.clone(), json!({}))],
            json!({"tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}]}),
            Ok("a"),
        ),
        (vec![node("a", tainted, json!({}))], json!({"tolerations": [{"operator": "Exists"}]}), Ok("a")),
        (
            vec![node_with("a", json!({}), json!({}), json!({"pods": "10"}), false)],
            json!({}),
            Err("0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }."),
        ),
        (vec![plain()], json!({"nodeSelector": {"disk": "hdd"}}), unmatched),
        (vec![plain()], json!({"nodeSelector": {"disk": "ssd"}}), Ok("a")),
        (vec![plain()], affinity("disk", "In", json!(["ssd", "nvme"])), Ok("a")),
        (vec![plain()], affinity("disk", "NotIn", json!(["ssd"])), unmatched),
        (vec![plain()], affinity("zone", "NotIn", json!(["x"])), Ok("a")),
        (vec![plain()], affinity("zone", "Exists", json!([])), unmatched),
        (vec![plain()], affinity("zone", "DoesNotExist", json!([])), Ok("a")),
        (vec![plain()], affinity("cores", "Gt", json!(["3"])), Ok("a")),
        (vec![plain()], affinity("cores", "Lt", json!(["3"])), unmatched),
        (
            vec![plain()],
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}],
            }}}}),
            unmatched,
        ),
        (
            vec![plain()],
            asking(json!({"cpu": "3", "memory": "2Gi"})),
            Err("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory."),
        ),
        (
            vec![
                node("a", json!({"unschedulable": true}), json!({})),
                node("b", json!({}), json!({})),
                node("c", json!({}), json!({})),
            ],
            asking(json!({"memory": "2Gi"})),
            Err("0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory."),
        ),
        (
            vec![plain()],
            asking(json!({"nvidia.com/gpu": "1", "cpu": "3"})),
            Err("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient nvidia.com/gpu."),
        ),
        (
            vec![node_with("a", json!({}), json!({}), json!({"pods": "0"}), true)],
            json!({}),
            Err("0/1 nodes are available: 1 Too many pods."),
        ),
    ];
    for (nodes, spec, expected) in table {
        let mut objects = nodes;
        objects.push(pod("p", None, spec.clone()));
        let found = outcome(&mut queue(&objects));
        assert_eq!(found.as_deref().map_err(String::as_str), expected, "{spec}");
    }
}

#[test]
fn a_taken_host_port_is_not_given_twice() {
    let port = |ip: &str| json!({"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80, "hostIP": ip}]}]});
    let in_init = |policy: &str| {
        let container =
            json!({"name": "i", "restartPolicy": policy, "ports": [{"containerPort": 80, "hostPort": 80}]});
        json!({"containers": [{"name": "c"}], "initContainers": [container]})
    };
    let mut queue = queue(&[
        node("a", json!({}), json!({})),
        pod("p", None, port("")),
        pod("q", None, port("127.0.0.1")),
        pod("sidecar", None, in_init("Always")),
    ]);
    assert_eq!(outcome(&mut queue).as_deref(), Ok("a"));
    let why = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(outcome(&mut queue), Err(why.to_owned()));
    assert_eq!(outcome(&mut queue), Err(why.to_owned()), "it has its port as long as the pod lives");
    for [first, other] in
        [["::1", "0:0:0:0:0:0:0:1"], ["0:0:0:0:0:0:0:0", "::1"], ["127.0.0.1", "::ffff:127.0.0.1"]]
    {
        let mut queue = self::queue(&[
            node("a", json!({}), json!({})),
            pod("p", None, port(first)),
            pod("q", None, port(other)),
        ]);
        assert_eq!(outcome(&mut queue).as_deref(), Ok("a"));
        assert_eq!(outcome(&mut queue), Err(why.to_owned()), "{first} and {other} are one address");
    }
}

#[test]
fn pods_of_one_owner_spread_before_nodes_are_balanced() {
    let busy =
        json!({"nodeName": "a", "containers": [{"name": "c", "resources": {"requests": {"cpu": "1900m"}}}]});
    let mut objects = vec![node("a", json!({}), json!({})), node("b", json!({}), json!({}))];
    objects.push(pod("busy", None, busy));
    objects.extend((0..2).map(|n| pod(&format!("w{n}"), Some("rc"), json!({}))));
    let mut queue = queue(&objects);
    let mut nodes: Vec<_> = queue.decide(2).bound.iter().map(|(_, n)| n.to_string()).collect();
    nodes.sort();
    assert_eq!(nodes, ["a", "b"]);
    queue.apply(None, Some(&pod("alone", None, json!({}))));
    assert_eq!(outcome(&mut queue).as_deref(), Ok("b"));
}

#[test]
fn a_refused_pod_waits_for_a_change_and_is_told_once() {
    let p = pod("p", None, asking(json!({"memory": "600Mi"})));
    let other = pod(
        "o",
        None,
        json!({"nodeName": "a", "containers": [{"name": "c", "resources": {"requests": {"memory": "600Mi"}}}]}),
    );
    let mut queue = queue(&[node("a", json!({}), json!({})), other.clone(), p.clone()]);
    assert!(outcome(&mut queue).is_err());
    queue.apply(Some(&p), Some(&p));
    assert!(!queue.has_waiting(), "its own condition does not wake it");
    queue.apply(None, Some(&node("b", json!({"unschedulable": true}), json!({}))));
    assert_eq!(queue.decide(8).refused.len(), 1, "another reason is told");
    queue.apply(
        None,
        Some(&node_with("b", json!({"unschedulable": true}), json!({"x": "y"}), json!({}), true)),
    );
    assert_eq!(queue.decide(8).refused.len(), 0, "the same reason is not");
    queue.apply(Some(&other), None);
    assert_eq!(outcome(&mut queue).as_deref(), Ok("a"));
}

#[test]
fn a_pod_with_gates_is_not_placed_before_the_last_is_gone() {
    let gated = |gates: Value| pod("p", None, json!({"schedulingGates": gates}));
    let both = gated(json!([{"name": "a.example/one"}, {"name": "a.example/two"}]));
    let one = gated(json!([{"name": "a.example/two"}]));
    let mut queue = queue(&[node("a", json!({}), json!({})), both.clone()]);
    assert!(!queue.has_waiting());
    queue.apply(Some(&both), Some(&one));
    queue.apply(None, Some(&node("b", json!({"unschedulable": true}), json!({}))));
    assert!(!queue.has_waiting(), "one is still there");
    queue.apply(Some(&one), Some(&gated(json!([]))));
    assert_eq!(outcome(&mut queue).as_deref(), Ok("a"));
}

#[test]
fn higher_priority_comes_first() {
    let mut queue = queue(&[
        node_with("a", json!({}), json!({}), json!({"pods": "1"}), true),
        pod("low", None, json!({})),
        pod("high", None, json!({"priority": 10})),
    ]);
    let round = queue.decide(8);
    assert_eq!(&*round.bound[0].0.key.name, "high");
    assert_eq!(&*round.refused[0].0.key.name, "low");
}

#[test]
fn binding_and_refusing_write_the_condition() {
    let p = pod("p", None, json!({}));
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let sealed = |edit| match edit {
        crate::logic::edit::Edit::Replace(sealed, _) => sealed,
        other => panic!("{other:?}"),
    };
    let refused = Arc::new(sealed(queue::refuse(&p, "why", now).unwrap().unwrap()).at(Revision(2)));
    let KindFacet::Pod(facet) = &refused.facet.of else { panic!() };
    assert!(facet.unschedulable);
    assert!(queue::refuse(&refused, "why", now).unwrap().is_none());
    let bound = sealed(queue::bind(&refused, &NodeName::from("a"), now).unwrap());
    let KindFacet::Pod(facet) = &bound.facet.of else { panic!() };
    assert_eq!((facet.node.as_ref().map(NodeName::as_str), facet.unschedulable), (Some("a"), false));
}

/// Steps of a small cluster's life.
#[derive(Clone, Debug)]
enum Step {
    Node(u8, Option<(u8, bool)>),
    Arrive(u8, u8, u8),
    Leave(u8),
    Decide(usize),
    /// The feed shows the n-th oldest decided binding.
    Confirm,
    /// The n-th oldest decided binding was not made.
    Fail,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0_u8..4, proptest::option::of((1_u8..5, any::<bool>()))).prop_map(|(n, s)| Step::Node(n, s)),
        4 => (0_u8..12, 1_u8..4, 0_u8..3).prop_map(|(p, r, s)| Step::Arrive(p, r, s)),
        2 => (0_u8..12).prop_map(Step::Leave),
        4 => (1_usize..6).prop_map(Step::Decide),
        3 => Just(Step::Confirm),
        1 => Just(Step::Fail),
    ]
}

/// Of `0/3 nodes are available: 2 Insufficient memory, 1 …` the numbers after the slash: all, then each reason's.
fn refusal_counts(why: &str) -> Vec<usize> {
    let number = |text: &str| text.split(' ').next().and_then(|n| n.parse().ok());
    let Some((total, reasons)) = why.strip_prefix("0/").and_then(|rest| rest.split_once(": ")) else {
        return vec![];
    };
    number(total).into_iter().chain(reasons.split(", ").filter_map(number)).collect()
}

proptest! {
    #[test]
    fn no_pod_is_bound_twice_no_node_is_overbooked_and_the_only_fitting_node_is_found(
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let mut nodes: BTreeMap<u8, Arc<Object>> = BTreeMap::new();
        let mut pods: BTreeMap<u8, Arc<Object>> = BTreeMap::new();
        let mut decided: VecDeque<(u8, Arc<Object>, String)> = VecDeque::new();
        let mut queue = Queue::default();
        let memory = |o: &Object| match &o.facet.of {
            KindFacet::Pod(p) => p.requests.memory_bytes >> 20,
            KindFacet::Node(n) => n.allocatable.memory_bytes >> 20,
            _ => 0,
        };
        let bound_to = |o: &Object| match &o.facet.of {
            KindFacet::Pod(p) => p.node.as_ref().map(|n| n.to_string()),
            _ => None,
        };
        for step in steps {
            match step {
                Step::Node(n, state) => {
                    let name = format!("n{n}");
                    let after = state.map(|(size, cordoned)| node_with(
                        &name, json!({"unschedulable": cordoned}), json!({"zone": (n % 2).to_string()}),
                        json!({"memory": format!("{size}Mi"), "cpu": "4", "pods": "9"}), true,
                    ));
                    queue.apply(nodes.get(&n), after.as_ref());
                    match after {
                        Some(after) => nodes.insert(n, after),
                        None => nodes.remove(&n),
                    };
                }
                Step::Arrive(p, asks, zone) => {
                    if pods.contains_key(&p) {
                        continue;
                    }
                    let mut spec = asking(json!({"memory": format!("{asks}Mi")}));
                    if zone < 2 {
                        spec["nodeSelector"] = json!({"zone": zone.to_string()});
                    }
                    let pod = pod(&format!("p{p}"), Some("rc"), spec);
                    queue.apply(None, Some(&pod));
                    pods.insert(p, pod);
                }
                Step::Leave(p) => {
                    if let Some(pod) = pods.remove(&p) {
                        decided.retain(|(d, ..)| *d != p);
                        queue.apply(Some(&pod), None);
                    }
                }
                Step::Decide(max) => {
                    let round = queue.decide(max);
                    for (pod, node) in round.bound {
                        let p: u8 = pod.key.name[1..].parse().unwrap();
                        prop_assert!(bound_to(&pods[&p]).is_none(), "{} is bound already", pod.key);
                        prop_assert!(decided.iter().all(|(d, ..)| *d != p), "{} is decided already", pod.key);
                        let chosen = nodes.values().find(|n| *n.key.name == *node.as_str());
                        prop_assert!(chosen.is_some(), "{node} does not exist");
                        decided.push_back((p, pod, node.to_string()));
                        let taken: i64 = pods.values()
                            .filter(|o| bound_to(o).as_deref() == Some(node.as_str()))
                            .map(|o| memory(o))
                            .chain(decided.iter().filter(|d| d.2 == node.as_str()).map(|d| memory(&d.1)))
                            .sum();
                        prop_assert!(taken <= memory(chosen.unwrap()), "{node} is overbooked");
                    }
                    for (pod, why) in round.refused {
                        let counts = refusal_counts(&why);
                        prop_assert_eq!(counts.first().copied().unwrap_or(0), nodes.len(), "{}", why);
                        prop_assert!(counts.iter().all(|n| *n <= nodes.len()), "{}", why);
                        prop_assert!(counts.iter().skip(1).sum::<usize>() >= nodes.len(), "{}", why);
                        let KindFacet::Pod(wants) = &pod.facet.of else { unreachable!() };
                        for n in nodes.values() {
                            let KindFacet::Node(facet) = &n.facet.of else { unreachable!() };
                            let taken: i64 = pods.values()
                                .filter(|o| bound_to(o).as_deref() == Some(&n.key.name))
                                .map(|o| memory(o))
                                .chain(decided.iter().filter(|d| *d.2 == *n.key.name).map(|d| memory(&d.1)))
                                .sum();
                            let zone = wants.node_selector.get("zone");
                            let fits = !facet.cordoned
                                && zone.is_none_or(|z| n.facet.meta.labels.get("zone") == Some(z.as_str()))
                                && memory(&pod) <= memory(n) - taken;
                            prop_assert!(!fits, "{} fits {}", pod.key, n.key);
                        }
                    }
                }
                Step::Confirm => {
                    if let Some((p, old, node)) = decided.pop_front() {
                        let edit = queue::bind(&old, &NodeName::from(node), Timestamp::UNIX_EPOCH).unwrap();
                        let crate::logic::edit::Edit::Replace(sealed, _) = edit else { unreachable!() };
                        let new = Arc::new(sealed.at(Revision(2)));
                        queue.apply(Some(&old), Some(&new));
                        pods.insert(p, new);
                    }
                }
                Step::Fail => {
                    if let Some((_, old, _)) = decided.pop_front() {
                        queue.not_bound(old.uid(), Some(&old));
                    }
                }
            }
        }
    }
}

#[test]
fn extended_resources_are_given_out_as_far_as_they_go_and_again_when_they_are_free() {
    let has = json!({"cpu": "2", "memory": "1Gi", "pods": "10", "example.com/foo": "3"});
    let asking = |name: &str| pod(name, None, asking(json!({"example.com/foo": "2"})));
    let (first, second) = (asking("p"), asking("q"));
    let mut queue = queue(&[node_with("a", json!({}), json!({}), has.clone(), true), first.clone()]);
    assert_eq!(outcome(&mut queue), Ok("a".into()));
    queue.apply(None, Some(&second));
    let full = Err("0/1 nodes are available: 1 Insufficient example.com/foo.".to_owned());
    assert_eq!(outcome(&mut queue), full);
    // More of it, or the end of who has it, is a reason to look again.
    queue.apply(Some(&first), None);
    assert_eq!(outcome(&mut queue), Ok("a".into()));
    queue.apply(None, Some(&first));
    assert_eq!(outcome(&mut queue), full);
    let mut more = has.clone();
    more["example.com/foo"] = json!("4");
    let before = node_with("a", json!({}), json!({}), has, true);
    queue.apply(Some(&before), Some(&node_with("a", json!({}), json!({}), more, true)));
    assert_eq!(outcome(&mut queue), Ok("a".into()));
}
