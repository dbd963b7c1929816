//! `GET /troupe/v1/status`: how the cluster's own machinery is, for `troupe cluster status`.
//!
//! Owns: [`Inspect`] (whom to ask), the asking, and the document. Administrators only, as every path that is not everyone's.
//! Invariant: it answers within [`WITHIN`] and what nodes are given beside, whatever is stuck; what did not answer is named
//! in `problems` and left out. An actor is shown with its node, those of the master apart.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use actix_web::HttpResponse;
use futures_util::future::{BoxFuture, join3};
use k8s_openapi::{api::core::v1, jiff::Timestamp};
use serde_json::{Value, json};

use super::{
    actors::{self, Untold},
    clock,
    door::Shared,
    links::Links,
    metrics::waits,
    read::json_response,
};
use crate::{
    logic::{
        silence::is_away,
        taints::{is_brake_on, is_given_up, is_silent},
    },
    messages::{ActorState, CertificateState, NodeState, OwnActors, Port, ShowNodes, ShowStore, StoreState},
    model::{Kind, KindFacet, NodeName, Object, Snapshot},
};

/// Where.
pub const PATH: [&str; 3] = ["troupe", "v1", "status"];
/// How long each of those asked may take. Longer than any of them is ever busy when all is well.
const WITHIN: Duration = Duration::from_secs(2);

/// Whom to ask about themselves.
#[derive(Clone)]
pub struct Inspect {
    /// The cluster's name.
    pub cluster: String,
    /// The node registry.
    pub nodes: Port<ShowNodes>,
    /// The store.
    pub store: Port<ShowStore>,
    /// The supervisors: every actor of this process, by its path.
    pub actors: Arc<dyn Fn() -> BoxFuture<'static, OwnActors> + Send + Sync>,
    /// The authority's certificate and the master's own.
    pub certificates: Arc<dyn Fn() -> Vec<CertificateState> + Send + Sync>,
    /// Where machines join at this moment.
    pub links: Arc<dyn Fn() -> Links + Send + Sync>,
}

/// What they said; an error is why one did not.
struct Heard {
    nodes: Result<Vec<NodeState>, String>,
    store: Result<StoreState, String>,
    actors: Result<OwnActors, String>,
    /// Of nodes elsewhere.
    told: Vec<(NodeName, Result<Vec<ActorState>, Untold>)>,
}

/// The answer; `None` where there is nobody to ask.
pub async fn status(shared: &Shared) -> Option<HttpResponse> {
    let inspect = shared.state.inspect.as_ref()?;
    let actors = async {
        let asked = tokio::time::timeout(WITHIN, (inspect.actors)()).await;
        asked.map_err(|_| "the supervisors did not answer in time".to_owned())
    };
    let (nodes, store, actors) =
        join3(inspect.nodes.ask(ShowNodes, WITHIN), inspect.store.ask(ShowStore, WITHIN), actors).await;
    let elsewhere = elsewhere(nodes.as_deref().unwrap_or_default(), actors.as_ref().ok());
    let told = actors::ask(&shared.state.streams, elsewhere).await;
    let (nodes, store) = (nodes.map_err(|error| error.to_string()), store.map_err(|error| error.to_string()));
    let heard = Heard { nodes, store, actors, told };
    let snapshot = shared.state.view.snapshot();
    let mut document = document(&snapshot, &heard);
    document["cluster"] = inspect.cluster.clone().into();
    document["certificates"] = certificates(&(inspect.certificates)(), clock::now());
    document["store"]["watchableSince"] = shared.state.view.oldest().0.into();
    Some(json_response(200, document.to_string()))
}

/// Why nothing happens although nodes are down.
const BRAKE: &str = "most nodes fell silent at once, or none is well: no pod is deleted because of that until some are back or are deleted";

const DISK: &str =
    "the master's disk is full or broken: writes are refused until there is room (its log says more)";
/// Nodes that are named; the others are counted.
const MOST_NAMED: usize = 5;

/// Nodes that are not ready although nobody meant them to be: not those that said goodbye, nor those that are cordoned.
fn unready(nodes: &[Value]) -> Option<String> {
    let meant = |node: &Value| node["saidGoodbye"] == true || node["schedulable"] == false;
    let unready = nodes.iter().filter(|node| node["ready"] != "True" && !meant(node));
    let names: Vec<&str> = unready.filter_map(|node| node["name"].as_str()).collect();
    let named = names.iter().take(MOST_NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        1 => Some(format!("node {named} is not ready")),
        all @ ..=MOST_NAMED => Some(format!("{all} nodes are not ready: {named}")),
        all => Some(format!("{all} nodes are not ready: {named} and {} more", all - MOST_NAMED)),
    }
}

/// The nodes that can be asked, and whose actors are not in this process.
fn elsewhere(nodes: &[NodeState], own: Option<&OwnActors>) -> Vec<NodeName> {
    let is_own = |name: &NodeName| own.is_some_and(|own| own.nodes.iter().any(|(node, _)| node == name));
    let linked = nodes.iter().filter(|state| state.link.is_some()).map(|state| &state.node);
    linked.filter(|name| !is_own(name)).cloned().collect()
}

/// Each node's actors, or why they are not known.
fn by_node(heard: &Heard) -> HashMap<&NodeName, Result<&[ActorState], &Untold>> {
    let told = heard.told.iter().map(|(node, told)| (node, told.as_deref()));
    let own = heard.actors.iter().flat_map(|own| &own.nodes);
    told.chain(own.map(|(node, actors)| (node, Ok(actors.as_slice())))).collect()
}

fn document(snapshot: &Snapshot, heard: &Heard) -> Value {
    let mut problems: Vec<&str> = Vec::new();
    problems.extend(heard.nodes.as_ref().err().map(String::as_str));
    problems.extend(heard.store.as_ref().err().map(String::as_str));
    problems.extend(heard.actors.as_ref().err().map(String::as_str));
    problems.extend(heard.told.iter().filter_map(|(_, told)| match told {
        Err(Untold::Silent(why)) => Some(why.as_str()),
        // Nothing is wrong with a version that is older.
        Err(Untold::Older) | Ok(_) => None,
    }));
    if heard.store.as_ref().is_ok_and(|store| store.failing) {
        problems.push(DISK);
    }
    if is_brake_on(snapshot) {
        problems.push(BRAKE);
    }
    let copied: Vec<String> = heard.nodes.iter().flatten().filter_map(identity_copied).collect();
    problems.extend(copied.iter().map(String::as_str));
    let states: HashMap<&NodeName, &NodeState> =
        heard.nodes.iter().flatten().map(|state| (&state.node, state)).collect();
    let mut pods: HashMap<&str, u64> = HashMap::new();
    let mut waiting = 0_u64;
    for pod in snapshot.list(Kind::Pod, None) {
        // Gated ones wait for somebody else.
        waiting += u64::from(waits(pod) == Some(false));
        if let KindFacet::Pod(facet) = &pod.facet.of
            && let Some(node) = &facet.node
        {
            *pods.entry(node.as_str()).or_default() += 1;
        }
    }
    let mut actors = by_node(heard);
    let nodes: Vec<Value> = snapshot
        .list(Kind::Node, None)
        .map(|object| {
            let name = NodeName(object.key.name.clone());
            let pods = pods.get(&*object.key.name).copied().unwrap_or(0);
            let mut shown = node(object, states.get(&name).copied(), pods);
            match actors.remove(&name) {
                Some(Ok(actors)) => shown["actors"] = json!(actors),
                Some(Err(Untold::Older)) => shown["actorsUnknown"] = "its version does not tell them".into(),
                Some(Err(Untold::Silent(_))) => shown["actorsUnknown"] = "it did not answer".into(),
                None => {}
            }
            shown
        })
        .collect();
    let mut master: Vec<ActorState> = heard.actors.iter().flat_map(|own| own.master.clone()).collect();
    // A node of this process that has not come so far as to be registered.
    for (node, actors) in actors {
        let named =
            |actor: &ActorState| ActorState { name: format!("node {node}: {}", actor.name), ..actor.clone() };
        master.extend(actors.unwrap_or_default().iter().map(named));
    }
    let unready = unready(&nodes);
    problems.extend(unready.as_deref());
    let (objects, bytes) = sizes(snapshot);
    let mut store = json!({ "revision": snapshot.revision.0, "objects": objects, "bytes": bytes });
    if let Ok(state) = &heard.store {
        store["queuedChanges"] = state.queued_changes.into();
        store["unwrittenObjects"] = state.behind.into();
        store["failing"] = state.failing.into();
    }
    json!({
        "kind": "ClusterStatus",
        "version": env!("CARGO_PKG_VERSION"),
        "store": store,
        "nodes": nodes,
        "podsWithoutNode": waiting,
        "actors": master,
        "problems": problems,
    })
}

/// That other machines have a node's key, too.
fn identity_copied(state: &NodeState) -> Option<String> {
    let linked = state.link.as_ref().and_then(|link| link.peer).map(|peer| peer.ip().to_canonical());
    let others: Vec<String> = state
        .rivals
        .iter()
        .map(|rival| match Some(*rival) == linked {
            true => format!("another at {rival}"),
            false => rival.to_string(),
        })
        .collect();
    let (last, before) = others.split_last()?;
    let are = if before.is_empty() { "is" } else { "are" };
    let listed = if before.is_empty() { last.clone() } else { format!("{} and {last}", before.join(", ")) };
    let linked_one = linked.map_or_else(|| "none".to_owned(), |linked| linked.to_string());
    // Beside others only if it is one of them: the one that was first may have ended.
    let is_there =
        |first: &IpAddr| linked.is_none_or(|linked| *first == linked) || state.rivals.contains(first);
    let first = state.first.filter(is_there);
    let first = first.map(|first| format!(" (linked first: {first})")).unwrap_or_default();
    Some(format!(
        "node {} is {} machines with one key: {linked_one} is linked, {listed} {are} not{first}: end all but one and join \
         those anew with an empty data directory",
        state.node,
        others.len() + 1,
    ))
}

fn certificates(all: &[CertificateState], now: Timestamp) -> Value {
    let shown = all.iter().map(|certificate| {
        let end = Timestamp::from_second(certificate.end_s).unwrap_or(Timestamp::UNIX_EPOCH);
        json!({
            "name": certificate.name,
            "notAfter": end.to_string(),
            "secondsLeft": end.duration_since(now).as_secs(),
            "endsSoon": certificate.ends_soon,
        })
    });
    shown.collect()
}

fn sizes(snapshot: &Snapshot) -> (usize, usize) {
    let all = Kind::ALL.into_iter().flat_map(|kind| snapshot.list(kind, None));
    all.fold((0, 0), |(objects, bytes), object| (objects + 1, bytes + object.json.len()))
}

/// Conditions of a node that say, when they hold, that something is wrong with it.
const TROUBLES: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"];

fn node(object: &Object, state: Option<&NodeState>, pods: u64) -> Value {
    let read: Option<v1::Node> = serde_json::from_slice(&object.json).ok();
    let status = read.and_then(|node| node.status).unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|condition| condition.type_ == "Ready");
    let cordoned = matches!(&object.facet.of, KindFacet::Node(facet) if facet.cordoned);
    let link = state.and_then(|state| state.link.as_ref());
    // Not known of one that this master has not heard yet: a condition's times are those of changes.
    let silent = state.and_then(|state| state.silent).map(|silent| silent.as_secs_f64());
    let away = link.is_none() && (is_away(object) || state.is_some_and(|state| state.goodbye));
    let spared = link.is_none() && is_silent(object) && !is_given_up(object);
    let troubles = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
    let troubles: Vec<&str> =
        troubles.map(|condition| condition.type_.as_str()).filter(|name| TROUBLES.contains(name)).collect();
    json!({
        "name": object.key.name,
        "ready": ready.map_or("Unknown", |ready| ready.status.as_str()),
        "reason": ready.and_then(|ready| ready.reason.clone()),
        "version": status.node_info.map(|info| info.kubelet_version),
        "schedulable": !cordoned,
        "troubles": troubles,
        "saidGoodbye": away,
        "podsStay": pods > 0 && (away || spared),
        "rivals": state.map(|state| state.rivals.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap_or_default(),
        "pods": pods,
        "silentSeconds": silent.filter(|_| link.is_none()),
        "link": link.map(|link| json!({
            "seconds": link.age.as_secs_f64(),
            "address": link.peer.map(|peer| peer.to_string()),
            "roundTripSeconds": link.rtt.as_secs_f64(),
            "lostPackets": link.lost_packets,
            "sentPackets": link.sent_packets,
            "streams": link.streams,
            "queuedMessages": link.queued_messages,
            "queuedBytes": link.queued_bytes,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        messages::LinkState,
        model::{Revision, seal_json},
    };

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let heartbeat = json!([{ "type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown",
            "lastHeartbeatTime": "2024-01-01T00:00:00Z" }]);
        let documents = [
            (Kind::Node, json!({"metadata": {"name": "n1", "uid": "1"}})),
            (
                Kind::Node,
                json!({"metadata": {"name": "n2", "uid": "2"}, "spec": {"unschedulable": true},
                    "status": {"conditions": heartbeat}}),
            ),
            (
                Kind::Pod,
                json!({"metadata": {"name": "p", "namespace": "ns", "uid": "3"},
                "spec": {"nodeName": "n2", "containers": []}}),
            ),
        ];
        for (kind, document) in documents {
            let sealed = seal_json(kind, document.to_string().as_bytes()).unwrap();
            snapshot.insert(Arc::new(sealed.at(Revision(7))));
        }
        snapshot.revision = Revision(9);
        snapshot
    }

    #[test]
    fn that_pods_are_kept_because_most_nodes_are_silent_is_said() {
        let node = |name: &str, silent: bool| {
            let taint = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute",
                "timeAdded": "2024-01-01T00:00:00Z"});
            let taints = if silent { vec![taint] } else { Vec::new() };
            json!({"metadata": {"name": name, "uid": name}, "spec": {"taints": taints}})
        };
        for (silent, problems) in [(1, 0), (2, 1), (3, 1)] {
            let mut snapshot = Snapshot::default();
            for index in 0..3 {
                let node = node(&format!("n{index}"), index < silent);
                let sealed = seal_json(Kind::Node, node.to_string().as_bytes()).unwrap();
                snapshot.insert(Arc::new(sealed.at(Revision(1))));
            }
            let heard = Heard {
                nodes: Ok(Vec::new()),
                store: Ok(StoreState { queued_changes: 0, behind: 0, failing: false }),
                actors: Ok(OwnActors::default()),
                told: Vec::new(),
            };
            let shown = document(&snapshot, &heard);
            let braked = shown["problems"].as_array().unwrap().iter().filter(|problem| **problem == BRAKE);
            assert_eq!(braked.count(), problems, "{silent}: {shown}");
        }
    }

    #[test]
    fn a_silent_node_has_an_age_once_it_was_heard_and_a_linked_one_its_link() {
        let link = LinkState {
            age: Duration::from_secs(3),
            peer: Some("10.0.0.2:7".parse().unwrap()),
            rtt: Duration::from_millis(2),
            lost_packets: 1,
            sent_packets: 100,
            streams: 2,
            queued_messages: 3,
            queued_bytes: 40,
        };
        let linked = NodeState {
            node: "n1".into(),
            link: Some(link),
            silent: None,
            goodbye: false,
            rivals: vec![[10, 0, 0, 3].into(), [10, 0, 0, 4].into()],
            first: Some([10, 0, 0, 2].into()),
        };
        let silent = |silent| NodeState {
            node: "n2".into(),
            link: None,
            silent,
            goodbye: false,
            rivals: Vec::new(),
            first: None,
        };
        let store = StoreState { queued_changes: 4, behind: 5, failing: true };
        let heard = |of| Heard {
            nodes: Ok(vec![linked.clone(), silent(of)]),
            store: Ok(store),
            actors: Ok(OwnActors::default()),
            told: Vec::new(),
        };
        // This master has not heard it: when the condition changed says nothing of that.
        assert_eq!(document(&snapshot(), &heard(None))["nodes"][1]["silentSeconds"], Value::Null);
        let heard = heard(Some(Duration::from_secs(100)));
        let shown = document(&snapshot(), &heard);
        let (one, two) = (&shown["nodes"][0], &shown["nodes"][1]);
        assert_eq!(one["link"]["roundTripSeconds"], 0.002);
        assert_eq!(one["rivals"], json!(["10.0.0.3", "10.0.0.4"]));
        let problems = shown["problems"].as_array().unwrap();
        assert!(problems.contains(&json!(DISK)), "{problems:?}");
        assert_eq!(problems.last().unwrap(), "node n1 is not ready", "somebody cordoned the other");
        let problem = problems[1].as_str().unwrap();
        let expected = "node n1 is 3 machines with one key: 10.0.0.2 is linked, 10.0.0.3 and 10.0.0.4 are not (linked first: \
                        10.0.0.2): end all but one";
        assert!(problem.starts_with(expected), "{problem}");
        assert_eq!((&one["link"]["streams"], &one["silentSeconds"]), (&json!(2), &Value::Null));
        assert_eq!((&two["link"], &two["silentSeconds"]), (&Value::Null, &json!(100.0)));
        assert_eq!(
            (&two["ready"], &two["schedulable"], &two["pods"]),
            (&"Unknown".into(), &false.into(), &1.into())
        );
        assert_eq!(shown["store"]["revision"], 9);
        assert_eq!((&shown["store"]["queuedChanges"], &shown["store"]["failing"]), (&json!(4), &json!(true)));
    }

    #[test]
    fn what_a_node_is_low_on_is_shown_and_that_a_silent_ones_pods_stay_and_how_many_pods_wait() {
        let taint = |effect: &str, added: Value| json!({"key": "node.kubernetes.io/unreachable", "effect": effect, "timeAdded": added});
        let now = json!("2024-01-01T00:00:00Z");
        let ready = |status: &str| json!({"type": "Ready", "status": status});
        let holds = |name: &str, status: &str| json!({"type": name, "status": status});
        let (spared, gone) = (taint("NoSchedule", now.clone()), taint("NoExecute", now));
        let mut snapshot = Snapshot::default();
        let mut put = |kind, document: Value| {
            let sealed = seal_json(kind, document.to_string().as_bytes()).unwrap();
            snapshot.insert(Arc::new(sealed.at(Revision(1))));
        };
        for (name, taints, conditions) in [
            (
                "low",
                json!([]),
                json!([ready("True"), holds("DiskPressure", "True"), holds("PIDPressure", "False")]),
            ),
            ("spared", json!([spared]), json!([ready("Unknown"), holds("DiskPressure", "Unknown")])),
            ("gone", json!([spared, gone]), json!([ready("Unknown")])),
        ] {
            let meta = json!({"name": name, "uid": name});
            put(
                Kind::Node,
                json!({"metadata": meta, "spec": {"taints": taints}, "status": {"conditions": conditions}}),
            );
            let spec = json!({"nodeName": name, "containers": []});
            put(Kind::Pod, json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec}));
        }
        for (name, gates) in [("waits", json!([])), ("gated", json!([{"name": "g"}]))] {
            let spec = json!({"schedulingGates": gates, "containers": []});
            put(Kind::Pod, json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": spec}));
        }
        let store = StoreState { queued_changes: 0, behind: 0, failing: false };
        let heard = Heard {
            nodes: Ok(Vec::new()),
            store: Ok(store),
            actors: Ok(OwnActors::default()),
            told: Vec::new(),
        };
        let shown = document(&snapshot, &heard);
        assert_eq!(shown["podsWithoutNode"], 1);
        let of =
            |name: &str| shown["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name).unwrap();
        assert_eq!(
            (&of("low")["troubles"], &of("low")["podsStay"]),
            (&json!(["DiskPressure"]), &json!(false))
        );
        assert_eq!((&of("spared")["troubles"], &of("spared")["podsStay"]), (&json!([]), &json!(true)));
        assert_eq!(of("gone")["podsStay"], false);
    }

    #[test]
    fn nodes_that_are_not_ready_are_a_problem_unless_somebody_meant_it() {
        let node = |name: &str, ready: &str, away: bool, cordoned: bool| json!({"name": name, "ready": ready, "saidGoodbye": away, "schedulable": !cordoned});
        let well = [
            node("a", "True", false, false),
            node("b", "Unknown", true, false),
            node("c", "False", false, true),
        ];
        assert_eq!(unready(&well), None);
        let mut nodes = well.to_vec();
        let mut said = Vec::new();
        for name in ["d", "e", "f", "g", "h", "i"] {
            nodes.push(node(name, "Unknown", false, false));
            said.push(unready(&nodes).unwrap());
        }
        assert_eq!(said[0], "node d is not ready");
        assert_eq!(said[4], "5 nodes are not ready: d, e, f, g, h");
        assert_eq!(said[5], "6 nodes are not ready: d, e, f, g, h and 1 more");
    }

    #[test]
    fn away_is_a_node_that_said_so_and_no_other_silent_one() {
        let shown = |reason: &str, goodbye| {
            let taint = json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}]);
            let ready = json!([{"type": "Ready", "status": "Unknown", "reason": reason}]);
            let document = json!({"metadata": {"name": "n", "uid": "1"}, "spec": {"taints": taint},
                "status": {"conditions": ready}});
            let sealed = seal_json(Kind::Node, document.to_string().as_bytes()).unwrap();
            let state = NodeState {
                node: "n".into(),
                link: None,
                silent: None,
                goodbye,
                rivals: Vec::new(),
                first: None,
            };
            node(&sealed.at(Revision(1)), Some(&state), 0)["saidGoodbye"].clone()
        };
        assert_eq!(shown("NodeGoodbye", false), true);
        assert_eq!(
            shown("NodeStatusUnknown", false),
            false,
            "its pods are spared, or it is only just silent"
        );
        assert_eq!(shown("KubeletReady", true), true, "its link has ended, and that is not written yet");
    }

    #[test]
    fn who_does_not_answer_is_named_and_the_others_are_shown() {
        let heard = Heard {
            nodes: Err("a".into()),
            store: Err("b".into()),
            actors: Err("c".into()),
            told: vec![("n1".into(), Err(Untold::Silent("d".into())))],
        };
        let shown = document(&snapshot(), &heard);
        assert_eq!(shown["problems"], json!(["a", "b", "c", "d", "node n1 is not ready"]));
        assert_eq!(shown["nodes"].as_array().unwrap().len(), 2);
        assert_eq!(shown["store"]["objects"], 3);
    }
    #[test]
    fn actors_are_shown_with_their_node_and_who_is_asked_is_who_is_linked_elsewhere() {
        let actor = |name: &str| ActorState {
            name: name.into(),
            state: "running".into(),
            restarts: 1,
            last_error: Some("panicked".into()),
        };
        let told = |name: &str| vec![actor(name)];
        let own = OwnActors {
            master: told("store"),
            nodes: vec![("n1".into(), told("kubelet")), ("n9".into(), told("uplink"))],
        };
        let link = LinkState {
            age: Duration::ZERO,
            peer: None,
            rtt: Duration::ZERO,
            lost_packets: 0,
            sent_packets: 0,
            streams: 0,
            queued_messages: 0,
            queued_bytes: 0,
        };
        let state = |node: &str, link: Option<&LinkState>| NodeState {
            node: node.into(),
            link: link.cloned(),
            silent: None,
            goodbye: false,
            rivals: Vec::new(),
            first: None,
        };
        let nodes = vec![state("n1", Some(&link)), state("n2", Some(&link)), state("n3", None)];
        assert_eq!(elsewhere(&nodes, Some(&own)), ["n2".into()]);
        let store = StoreState { queued_changes: 0, behind: 0, failing: false };
        for (answer, actors, unknown, problems) in [
            (Ok(told("node/kubelet")), 1, Value::Null, 0),
            (Err(Untold::Older), 0, "its version does not tell them".into(), 0),
            (Err(Untold::Silent("late".into())), 0, "it did not answer".into(), 1),
        ] {
            let told = vec![("n2".into(), answer)];
            let heard = Heard { nodes: Ok(nodes.clone()), store: Ok(store), actors: Ok(own.clone()), told };
            let shown = document(&snapshot(), &heard);
            assert_eq!(shown["nodes"][0]["actors"][0]["name"], "kubelet");
            let other = &shown["nodes"][1];
            assert_eq!(other["actors"].as_array().map_or(0, Vec::len), actors, "{other}");
            assert_eq!(other["actorsUnknown"], unknown);
            // And one that is not ready.
            assert_eq!(shown["problems"].as_array().unwrap().len(), problems + 1);
            let expected = json!([
                {"name": "store", "state": "running", "restarts": 1, "lastError": "panicked"},
                {"name": "node n9: uplink", "state": "running", "restarts": 1, "lastError": "panicked"},
            ]);
            assert_eq!(shown["actors"], expected, "one that is not registered is shown all the same");
        }
    }
    #[test]
    fn certificates_are_shown_with_their_end() {
        let authority = CertificateState { name: "authority", end_s: 1_704_067_300, ends_soon: true };
        let shown = certificates(&[authority], "2024-01-01T00:00:00Z".parse().unwrap());
        let expected = json!([{"name": "authority", "notAfter": "2024-01-01T00:01:40Z", "secondsLeft": 100,
            "endsSoon": true}]);
        assert_eq!(shown, expected);
    }
}
