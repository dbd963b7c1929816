//! Nodes that fall silent while commits are slow, and what is said of their pods; a gate before the store holds commits
//! back or refuses them.

use actix::Addr;
use tokio::sync::watch;

use super::*;
use crate::{
    messages::{Commit, CommitError, Committed},
    net::memory::Quality,
};

/// What the gate does with commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Pass,
    Hold,
    Refuse,
}

/// Stands before the store.
struct Gate {
    store: Port<Commit>,
    does: watch::Receiver<Does>,
    /// Those that came so far.
    came: watch::Sender<usize>,
}

impl Actor for Gate {
    type Context = Context<Self>;
}

impl Handler<Commit> for Gate {
    type Result = ResponseFuture<Result<Committed, CommitError>>;

    fn handle(&mut self, commit: Commit, _: &mut Self::Context) -> Self::Result {
        let (store, mut does) = (self.store.clone(), self.does.clone());
        self.came.send_modify(|came| *came += 1);
        Box::pin(async move {
            let does = *does.wait_for(|does| *does != Does::Hold).await.unwrap();
            match does {
                Does::Refuse => Err(CommitError::Unavailable("the gate refuses".into())),
                _ => store.ask(commit, Duration::from_secs(5)).await.unwrap(),
            }
        })
    }
}

/// A master behind a gate, what moves the gate, and how many commits came to it.
async fn gated(admission: Option<Arc<Admission>>) -> (Master, watch::Sender<Does>, watch::Receiver<usize>) {
    let (move_it, does) = watch::channel(Does::Pass);
    let (came, counted) = watch::channel(0);
    let master = Master::start_on(Bench::new(), admission, |wiring| {
        let gate: Addr<Gate> = Gate { store: wiring.commits.clone(), does, came }.start();
        Wiring { commits: Port::fixed("store", gate.recipient()), ..wiring }
    })
    .await;
    (master, move_it, counted)
}

#[test]
fn what_was_to_be_said_of_a_silent_node_is_not_said_once_it_has_linked_again() {
    system(async {
        let (master, gate, mut came) = gated(None).await;
        let (handle, events) = master.join("n1").await;
        master.bench.quiet().await;
        // It falls silent, and the store is slow just then.
        gate.send_replace(Does::Hold);
        let before = *came.borrow_and_update();
        handle.close("it falls silent");
        drop((handle, events));
        came.wait_for(|came| *came > before).await.unwrap();
        // Somebody changes the node meanwhile, so that what waits has to be decided again.
        master.bench.change(&node_key("n1"), |node| node["metadata"]["labels"]["who"] = "me".into()).await;
        let (handle, mut events) = master.link("n1").await;
        handle.send(Class::Control, &hello()).unwrap();
        assert!(matches!(message(&mut events).await, ToNode::Welcome(_)));
        gate.send_replace(Does::Pass);
        master.bench.quiet().await;
        let node = master.bench.find(&node_key("n1")).unwrap();
        assert_eq!((is_ready(&node), effects(&node)), (Some(true), Vec::new()), "{:?}", node.json);
        master.stop().await;
    });
}

fn conditions(pod: &Object) -> Vec<(String, String)> {
    let pod: Value = pod.parse().unwrap();
    let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    all.iter().map(|c| (text(&c["status"]), text(&c["reason"]))).collect()
}

#[test]
fn pods_of_a_silent_node_are_not_ready_until_it_says_how_they_are() {
    system(async {
        let master = Master::start().await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        let ready = PodReport {
            status: json!({"phase": "Running", "podIP": "10.244.0.2",
                "conditions": [{"type": "Ready", "status": "True"}]})
            .to_string()
            .into(),
            ..pod_report(&bound, "Running")
        };
        let is_ready = |object: &Object| matches!(&object.facet.of, KindFacet::Pod(pod) if pod.ready);
        let link = master.join("n1").await;
        link.0.send(Class::State, &ToMaster::Pods(vec![ready.clone()])).unwrap();
        master.bench.until(&bound.key, is_ready).await;
        drop(link);
        let silent = master.bench.until(&bound.key, |o| !is_ready(o)).await;
        assert_eq!(conditions(&silent), [("False".to_owned(), "NodeNotReady".to_owned())]);
        assert_eq!(phase(&silent), "Running", "it is not said to have ended");
        // It may be deleted by then, which is another matter.
        let link = master.join("n1").await;
        link.0.send(Class::State, &ToMaster::Pods(vec![ready])).unwrap();
        let again = master.bench.until(&bound.key, is_ready).await;
        assert_eq!(conditions(&again), [("True".to_owned(), String::new())]);
        master.bench.quiet().await;
        assert!(is_ready(&master.bench.find(&bound.key).unwrap()));
        master.stop().await;
    });
}

#[test]
fn pods_of_a_node_that_does_not_come_back_to_the_next_master_are_not_ready_either() {
    system(async {
        let bench = Bench::new();
        let mut bound = pod("p", "n1");
        bound["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        bench.create(Kind::Node, json!({"metadata": {"name": "n1"}})).await;
        let bound = bench.create(Kind::Pod, bound).await;
        let master = Master::start_on(bench, None, |wiring| wiring).await;
        let is_ready = |object: &Object| matches!(&object.facet.of, KindFacet::Pod(pod) if pod.ready);
        assert!(is_ready(&bound));
        let silent = master.bench.until(&bound.key, |o| !is_ready(o));
        let silent = tokio::time::timeout(LOST_AFTER * 5, silent).await.expect("it is said in time");
        assert_eq!(conditions(&silent), [("False".to_owned(), "NodeNotReady".to_owned())]);
        master.stop().await;
    });
}

#[test]
fn pods_of_a_node_that_said_goodbye_to_the_master_before_are_not_ready_either() {
    system(async {
        let bench = Bench::new();
        let mut bound = pod("p", "n1");
        bound["status"] = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
        let away = json!({"type": "Ready", "status": "Unknown", "reason": "NodeGoodbye"});
        let taint = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"});
        let node = json!({"metadata": {"name": "n1"}, "spec": {"taints": [taint]},
            "status": {"conditions": [away]}});
        bench.create(Kind::Node, node).await;
        let bound = bench.create(Kind::Pod, bound).await;
        let master = Master::start_on(bench, None, |wiring| wiring).await;
        let is_ready = |object: &Object| matches!(&object.facet.of, KindFacet::Pod(pod) if pod.ready);
        assert!(is_ready(&bound));
        let silent = master.bench.until(&bound.key, |o| !is_ready(o));
        tokio::time::timeout(LOST_AFTER * 5, silent).await.expect("it is said as of any silent node");
        assert_eq!(effects(&master.bench.find(&node_key("n1")).unwrap()), ["NoSchedule"]);
        master.stop().await;
    });
}

#[test]
fn a_pod_that_is_reported_ready_while_it_is_said_not_to_be_stays_ready() {
    system(async {
        let (master, gate, mut came) = gated(None).await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        let ready = PodReport {
            status: json!({"phase": "Running", "podIP": "10.244.0.2",
                "conditions": [{"type": "Ready", "status": "True"}]})
            .to_string()
            .into(),
            ..pod_report(&bound, "Running")
        };
        let is_ready = |object: &Object| matches!(&object.facet.of, KindFacet::Pod(pod) if pod.ready);
        let link = master.join("n1").await;
        link.0.send(Class::State, &ToMaster::Pods(vec![ready.clone()])).unwrap();
        master.bench.until(&bound.key, is_ready).await;
        master.bench.quiet().await;
        // What is said of the node and of its pod is under way, and slow.
        gate.send_replace(Does::Hold);
        let before = *came.borrow_and_update();
        drop(link);
        came.wait_for(|came| *came >= before + 2).await.unwrap();
        let (handle, mut events) = master.link("n1").await;
        handle.send(Class::Control, &hello()).unwrap();
        assert!(matches!(message(&mut events).await, ToNode::Welcome(_)));
        handle.send(Class::State, &ToMaster::Pods(vec![ready])).unwrap();
        // Time for the master to hear it.
        tokio::time::sleep(LOST_AFTER).await;
        gate.send_replace(Does::Pass);
        master.bench.quiet().await;
        let pod = master.bench.find(&bound.key).unwrap();
        assert!(pod.revision > bound.revision && is_ready(&pod), "{:?}", pod.json);
        master.stop().await;
    });
}

#[test]
fn what_a_process_of_a_node_said_last_is_not_heard_once_the_next_one_has_linked() {
    system(async {
        let master = Master::start().await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        let (before, _events) = master.join("n1").await;
        let slow = Duration::from_millis(400);
        master.network.set_quality(Quality { delay: slow..=slow, loss: 0.0 });
        before.send(Class::State, &ToMaster::Pods(vec![pod_report(&bound, "Failed")])).unwrap();
        // It leaves the outbox; then the process dies, and its successor is faster.
        tokio::time::sleep(Duration::from_millis(1)).await;
        master.network.crash(&"n1".into());
        master.network.set_quality(Quality::default());
        let (next, _events) = master.join("n1").await;
        next.send(Class::State, &ToMaster::Pods(vec![pod_report(&bound, "Running")])).unwrap();
        master.bench.until(&bound.key, |o| phase(o) == "Running").await;
        tokio::time::sleep(slow * 2).await;
        master.bench.quiet().await;
        assert_eq!(phase(&master.bench.find(&bound.key).unwrap()), "Running");
        assert_eq!(is_ready(&master.bench.find(&node_key("n1")).unwrap()), Some(true));
        master.stop().await;
    });
}

#[test]
fn a_silence_after_a_link_is_no_goodbye_to_the_next_master() {
    system(async {
        let master = Master::start().await;
        drop(master.join("n1").await);
        let key = node_key("n1");
        master.bench.until(&key, |o| effects(o) == ["NoSchedule", "NoExecute"]).await;
        // It links, and before it says hello the master ends.
        let _link = master.link("n1").await;
        let linked = master.bench.until(&key, |o| effects(o) == ["NoSchedule"]).await;
        master.stop().await;
        let master = Master::start().await;
        master.bench.create(Kind::Node, linked.parse().unwrap()).await;
        let lost = master.bench.until(&key, |o| effects(o) == ["NoSchedule", "NoExecute"]);
        tokio::time::timeout(LOST_AFTER * 5, lost).await.expect("it is given up like any other");
        master.stop().await;
    });
}

#[test]
fn a_node_that_says_goodbye_gets_no_new_pods_from_then_on_and_keeps_those_it_has() {
    system(async {
        let master = Master::start().await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        let (handle, events) = master.join("n1").await;
        let status = json!({"phase": "Running", "podIP": "10.244.0.2", "conditions": [{"type": "Ready", "status": "True"}]});
        let ready = PodReport { status: status.to_string().into(), ..pod_report(&bound, "Running") };
        handle.send(Class::State, &ToMaster::Pods(vec![ready])).unwrap();
        let is_pod_ready = |object: &Object| matches!(&object.facet.of, KindFacet::Pod(pod) if pod.ready);
        master.bench.until(&bound.key, is_pod_ready).await;
        handle.send(Class::Control, &ToMaster::Goodbye).unwrap();
        // Its link is still up.
        let away = master.bench.until(&node_key("n1"), |o| effects(o) == ["NoSchedule"]).await;
        assert_eq!(is_ready(&away), Some(false));
        assert!(is_pod_ready(&master.bench.find(&bound.key).unwrap()), "it may be back in a moment");
        // What waited behind the goodbye does not undo it.
        let ToMaster::Hello(hello) = hello() else { panic!("no hello") };
        handle.send(Class::State, &ToMaster::Node(hello.report)).unwrap();
        master.bench.quiet().await;
        assert_eq!(effects(&master.bench.find(&node_key("n1")).unwrap()), ["NoSchedule"]);
        handle.close("it goes");
        drop((handle, events));
        let (handle, _events) = master.link("n1").await;
        handle.send(Class::Control, &super::hello()).unwrap();
        let back = master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
        assert_eq!(effects(&back), Vec::<String>::new());
        assert_eq!(master.bench.reasons().iter().filter(|reason| *reason == "NodeNotReady").count(), 1);
        master.stop().await;
    });
}

#[test]
fn labels_that_are_not_for_a_node_to_set_are_left_out_and_told_of_once() {
    system(async {
        let master = Master::start().await;
        let ToMaster::Hello(mut hello) = hello() else { panic!("no hello") };
        for label in
            ["zone", "topology.kubernetes.io/zone", "node-restriction.kubernetes.io/secure", "k8s.io/x"]
        {
            hello.labels.insert(label.into(), "a".into());
        }
        for _ in 0..3 {
            let (handle, mut events) = master.link("n1").await;
            handle.send(Class::Control, &ToMaster::Hello(hello.clone())).unwrap();
            assert!(matches!(message(&mut events).await, ToNode::Welcome(_)));
            let node = master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
            let labels = node.facet.meta.labels.to_map();
            assert!(labels.contains_key("zone") && labels.contains_key("topology.kubernetes.io/zone"));
            assert!(
                !labels.contains_key("node-restriction.kubernetes.io/secure")
                    && !labels.contains_key("k8s.io/x")
            );
            drop((handle, events));
            master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        }
        let told = master.bench.reasons().iter().filter(|reason| *reason == "NodeLabelsRefused").count();
        assert_eq!(told, 1);
        master.stop().await;
    });
}

#[test]
fn a_join_that_could_not_be_written_gives_its_subnet_back() {
    use super::joins::{LIFE, ask, create_token, token};
    use crate::{
        messages::wire::JoinAnswer,
        net::{Authority, csr::NodeKey},
    };
    system(async {
        let (asks, asked) = tokio::sync::mpsc::channel(4);
        let authority = Arc::new(Authority::ephemeral().unwrap());
        let (master, gate, _) = gated(Some(Arc::new(Admission::new(authority, asked, LIFE)))).await;
        create_token(&master).await;
        let good = token().secret;
        gate.send_replace(Does::Refuse);
        for number in 0..3 {
            let key = NodeKey::generate().unwrap();
            let refused = ask(&asks, &format!("never{number}"), &key, &good, 1).await;
            assert!(matches!(refused, JoinAnswer::Refused(..)), "{refused:?}");
        }
        gate.send_replace(Does::Pass);
        let key = NodeKey::generate().unwrap();
        let admitted = ask(&asks, "n1", &key, &good, 1).await;
        assert!(matches!(admitted, JoinAnswer::Admitted(_)), "{admitted:?}");
        let node = master.bench.find(&node_key("n1")).unwrap();
        let KindFacet::Node(facet) = &node.facet.of else { panic!("no node") };
        assert_eq!(facet.pod_cidr.as_deref(), Some("10.244.0.0/24"));
        master.stop().await;
    });
}

#[test]
fn a_token_that_expired_a_while_ago_is_removed_and_no_other() {
    use super::joins::{create_token_until, outside_now_plus};
    system(async {
        let master = Master::start().await;
        let long_over = create_token_until(&master, "abcdef", outside_now_plus(-3600)).await;
        let just_over = create_token_until(&master, "bbbbbb", outside_now_plus(-5)).await;
        let good = create_token_until(&master, "cccccc", outside_now_plus(3600)).await;
        master.bench.until_all(|all| all.find(&long_over).is_none()).await;
        master.bench.quiet().await;
        assert!(master.bench.find(&just_over).is_some() && master.bench.find(&good).is_some());
        master.stop().await;
    });
}
