//! The registry and its nodes' actors under a real supervisor, linked over a network in memory.

#[path = "image_tests.rs"]
mod images;
#[path = "join_tests.rs"]
mod joins;
#[path = "silence_tests.rs"]
mod silence;

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::{
    actors::{
        supervisor::Supervisor,
        testing::{Bench, system, token_key},
    },
    logic::nodes::{MachineFacts, node_status},
    messages::wire::{EventReport, Hello, NodeReport, PodReport, ToMaster, ToNode},
    model::{Key, seal_json},
    net::{Class, CloseReason, LinkEvent, LinkEvents, identity::MASTER, memory::Network},
};

const LOST_AFTER: Duration = Duration::from_secs(2);

type NodeLink = (LinkHandle<ToMaster>, LinkEvents<ToNode>);

/// A master's registry and the network it listens on.
struct Master {
    bench: Bench,
    network: Network,
    address: std::net::SocketAddr,
    root: SupervisorHandle,
    nodes: Slot<NodeRegistry>,
    key: Arc<SigningKey>,
}

impl Master {
    async fn start() -> Master {
        Master::start_with(None).await
    }

    async fn start_with(admission: Option<Arc<Admission>>) -> Master {
        Master::start_on(Bench::new(), admission, |wiring| wiring).await
    }

    /// The same, with something between it and the store.
    async fn start_on(
        bench: Bench,
        admission: Option<Arc<Admission>>,
        between: impl FnOnce(Wiring) -> Wiring,
    ) -> Master {
        Master::start_as(bench, |seed| RegistrySeed { wiring: between(seed.wiring), admission, ..seed }).await
    }

    /// The same, otherwise than usual.
    async fn start_as(bench: Bench, change: impl FnOnce(RegistrySeed) -> RegistrySeed) -> Master {
        let network = Network::new(11);
        let listener = network.listen(&MASTER.into());
        let address = listener.local_addr();
        let key = token_key();
        let seed = RegistrySeed {
            wiring: bench.wiring(),
            listener: Arc::new(Mutex::new(listener)),
            pod_network: "10.244.0.0/16".into(),
            cluster: "test".into(),
            lost_after: LOST_AFTER,
            admission: None,
            token_key: key.clone(),
            no_image_sharing: false,
        };
        let seed = change(seed);
        let (root, nodes) = (Supervisor::start(SupervisorSpec::new("test")), Slot::new("node registry"));
        root.start_child(child(seed, &nodes)).await.unwrap();
        Master { bench, network, address, root, nodes, key }
    }

    async fn link(&self, node: &str) -> NodeLink {
        let connector = self.network.connector(&node.into());
        connector.connect::<ToMaster, ToNode>(self.address, MASTER).await.unwrap().split()
    }

    /// Links, introduces itself, and waits until it is ready and has its first picture.
    async fn join(&self, node: &str) -> NodeLink {
        let (handle, mut events) = self.link(node).await;
        handle.send(Class::Control, &hello()).unwrap();
        assert!(matches!(message(&mut events).await, ToNode::Welcome(_)));
        picture(&mut events, |_| true).await;
        self.bench.until(&node_key(node), |o| is_ready(o) == Some(true)).await;
        (handle, events)
    }

    async fn stop(self) {
        self.root.shutdown().await.unwrap();
    }
}

fn hello() -> ToMaster {
    let status = node_status(&MachineFacts { cpus: 2, ..MachineFacts::default() }, None, 1_000_000);
    let status = serde_json::to_vec(&status).unwrap().into();
    ToMaster::Hello(Hello { labels: BTreeMap::new(), report: NodeReport { status } })
}

fn node_key(name: &str) -> Key {
    Key::new(Kind::Node, "", name)
}

fn is_ready(object: &Object) -> Option<bool> {
    match &object.facet.of {
        KindFacet::Node(node) => Some(node.ready),
        _ => None,
    }
}

async fn message(events: &mut LinkEvents<ToNode>) -> ToNode {
    match events.next().await {
        LinkEvent::Message(message) => message,
        LinkEvent::Opened(..) => panic!("a byte stream"),
        LinkEvent::Closed(reason) => panic!("the link has ended: {reason}"),
    }
}

/// Assignments until one is as asked.
async fn picture(
    events: &mut LinkEvents<ToNode>,
    is: impl Fn(&wire::Assignments) -> bool,
) -> wire::Assignments {
    loop {
        if let ToNode::Assignments(picture) = message(events).await
            && is(&picture)
        {
            return picture;
        }
    }
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "generation": 1},
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": node},
    })
}

#[test]
fn the_first_link_of_an_unknown_node_is_kept() {
    system(async {
        let master = Master::start().await;
        let (handle, mut events) = master.link("n1").await;
        handle.send(Class::Control, &hello()).unwrap();
        let ToNode::Welcome(welcome) = message(&mut events).await else { panic!("no welcome") };
        assert_eq!(welcome.pod_cidr, "10.244.0.0/24");
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        picture(&mut events, |p| p.pods.iter().any(|p| p.uid == *bound.uid())).await;
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(true)).await;
        master.bench.quiet().await;
        assert!(handle.send(Class::Control, &hello()).is_ok(), "the link holds");
        master.stop().await;
    });
}

#[test]
fn a_node_is_told_of_its_own_pods_alone() {
    system(async {
        let master = Master::start().await;
        let (mut first, mut second) = (master.join("n1").await, master.join("n2").await);
        let bound = master.bench.create(Kind::Pod, pod("p", "n2")).await;
        let seen = picture(&mut second.1, |p| !p.pods.is_empty()).await;
        assert_eq!(seen.documents[0].uid, *bound.uid());
        // The other one is told nothing of it.
        let nothing = tokio::time::timeout(LOST_AFTER, first.1.next()).await;
        assert!(nothing.is_err());
        master.stop().await;
    });
}

/// Pictures of configs until one has this many objects and documents: their names, and the documents' text.
async fn configs(
    events: &mut LinkEvents<ToNode>,
    objects: usize,
    documents: usize,
) -> (Vec<String>, Vec<String>) {
    loop {
        let ToNode::Configs(picture) = message(events).await else { continue };
        let named: Vec<_> =
            picture.objects.iter().filter(|o| o.kind != wire::ConfigKind::ServiceAccount).collect();
        if (named.len(), picture.documents.len()) == (objects, documents) {
            let texts = picture.documents.iter().map(|d| String::from_utf8(d.json.to_vec()).unwrap());
            return (named.iter().map(|o| o.name.clone()).collect(), texts.collect());
        }
    }
}

#[test]
fn a_node_is_told_of_what_its_own_pods_refer_to_and_again_when_that_changes() {
    system(async {
        let master = Master::start().await;
        let bench = &master.bench;
        let map = |name: &str, value: &str| json!({"metadata": {"name": name, "namespace": "default"}, "data": {"k": value}});
        for name in ["own", "foreign"] {
            bench.create(Kind::ConfigMap, map(name, "1")).await;
        }
        let secret = json!({"metadata": {"name": "pull", "namespace": "default"}, "data": {"p": "Z2g="}});
        bench.create(Kind::Secret, secret).await;
        let (mut first, mut second) = (master.join("n1").await, master.join("n2").await);
        let mut bound = pod("p", "n1");
        bound["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "own"}}]);
        let bound = bench.create(Kind::Pod, bound).await;
        let (names, texts) = configs(&mut first.1, 1, 1).await;
        assert_eq!((names, texts), (vec!["own".to_owned()], vec![r#"{"data":{"k":"1"}}"#.to_owned()]));
        picture(&mut first.1, |p| p.pods.iter().any(|p| p.uid == *bound.uid())).await;
        // It changes, is deleted, and comes back.
        let key = Key::new(Kind::ConfigMap, "default", "own");
        bench.change(&key, |map| map["data"]["k"] = "2".into()).await;
        assert_eq!(configs(&mut first.1, 1, 1).await.1, [r#"{"data":{"k":"2"}}"#]);
        bench.remove(&key).await;
        assert_eq!(configs(&mut first.1, 1, 0).await.0, ["own"]);
        bench.create(Kind::ConfigMap, map("own", "3")).await;
        assert_eq!(configs(&mut first.1, 1, 1).await.1, [r#"{"data":{"k":"3"}}"#]);
        // What its service account pulls images with belongs to it, also when that is said later.
        let account = json!({"metadata": {"name": "default", "namespace": "default"},
            "imagePullSecrets": [{"name": "pull"}]});
        bench.create(Kind::ServiceAccount, account).await;
        let (names, texts) = configs(&mut first.1, 2, 2).await;
        assert_eq!(names, ["own", "pull"]);
        assert!(texts.contains(&r#"{"data":{"p":"Z2g="}}"#.to_owned()), "{texts:?}");
        // A new connection begins with everything.
        let (handle, mut events) = master.link("n1").await;
        handle.send(Class::Control, &hello()).unwrap();
        assert_eq!(configs(&mut events, 2, 3).await.0, ["own", "pull"]);
        let foreign = Key::new(Kind::ConfigMap, "default", "foreign");
        bench.change(&foreign, |map| map["data"]["k"] = "2".into()).await;
        bench.remove(&bound.key).await;
        assert_eq!(configs(&mut events, 0, 0).await.0.len(), 0);
        let nothing = tokio::time::timeout(LOST_AFTER, second.1.next()).await;
        assert!(nothing.is_err(), "the other node is told of nothing");
        master.stop().await;
    });
}

#[test]
fn a_node_gets_the_tokens_of_its_own_pods_alone_and_before_the_pods() {
    system(async {
        let master = Master::start().await;
        let account = json!({"metadata": {"name": "default", "namespace": "default"}});
        let account = master.bench.create(Kind::ServiceAccount, account).await;
        let (mut first, mut second) = (master.join("n1").await, master.join("n2").await);
        let mut bound = pod("p", "n1");
        bound["spec"]["serviceAccountName"] = "default".into();
        let token =
            json!({"serviceAccountToken": {"path": "t", "audience": "vault", "expirationSeconds": 600}});
        bound["spec"]["volumes"] = json!([{"name": "t", "projected": {"sources": [token]}}]);
        let bound = master.bench.create(Kind::Pod, bound).await;
        let tokens = loop {
            match message(&mut first.1).await {
                ToNode::Tokens(tokens) => break tokens,
                ToNode::Assignments(picture) => assert!(picture.pods.is_empty(), "the pod came first"),
                ToNode::Welcome(_) | ToNode::Configs(_) | ToNode::Certificate(_) | ToNode::ImagesCame => {}
            }
        };
        let [token] = tokens.as_slice() else { panic!("{tokens:?}") };
        assert_eq!((&token.uid, token.audience.as_str(), token.life_s), (bound.uid(), "vault", 600));
        let claims = master.key.verify(&token.token).unwrap();
        assert_eq!(claims.kubernetes.pod.unwrap().uid, bound.uid().as_str());
        assert_eq!(claims.kubernetes.serviceaccount.uid, account.uid().as_str());
        assert!(!format!("{token:?}").contains(&token.token), "it is never printed");
        picture(&mut first.1, |p| p.pods.iter().any(|p| p.uid == *bound.uid())).await;
        let nothing = tokio::time::timeout(LOST_AFTER, second.1.next()).await;
        assert!(nothing.is_err(), "the other node is told of nothing");
        master.stop().await;
    });
}

#[test]
fn a_node_that_dials_while_its_actor_is_restarted_gets_the_next_incarnation() {
    system(async {
        let master = Master::start().await;
        for _ in 0..5 {
            let (_handle, mut events) = master.join("n1").await;
            master.root.inject_panic("nodes/node handles/n1").await.unwrap();
            // The old link ends with the actor that held it; the next one is taken, whatever is there to take it.
            while !matches!(events.next().await, LinkEvent::Closed(_)) {}
        }
        let _link = master.join("n1").await;
        master.stop().await;
    });
}

#[test]
fn a_node_that_connects_anew_has_its_earlier_link_closed() {
    system(async {
        let master = Master::start().await;
        let (_old, mut old_events) = master.join("n1").await;
        let (_new, mut new_events) = master.join("n1").await;
        let reason = loop {
            if let LinkEvent::Closed(reason) = old_events.next().await {
                break reason;
            }
        };
        assert_eq!(reason, CloseReason::Peer("the node has connected anew".into()));
        let nothing = tokio::time::timeout(LOST_AFTER * 2, new_events.next()).await;
        assert!(nothing.is_err(), "the newer link holds");
        assert_eq!(is_ready(&master.bench.find(&node_key("n1")).unwrap()), Some(true));
        master.stop().await;
    });
}

#[test]
fn a_silent_node_is_not_ready_and_one_that_returns_is() {
    system(async {
        let master = Master::start().await;
        let link = master.join("n1").await;
        master.network.isolate(&"n1".into());
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        drop(link);
        master.network.rejoin(&"n1".into());
        let _link = master.join("n1").await;
        master.bench.quiet().await;
        assert_eq!(is_ready(&master.bench.find(&node_key("n1")).unwrap()), Some(true));
        assert_eq!(master.bench.reasons(), ["RegisteredNode", "NodeNotReady", "NodeReady"]);
        master.stop().await;
    });
}

#[test]
fn a_master_that_stood_still_waits_for_its_nodes_as_long_again() {
    system(async {
        let master = Master::start().await;
        drop(master.join("n1").await);
        // In time it would be too late now, several times over.
        tokio::time::advance(LOST_AFTER * 2).await;
        tokio::time::sleep(LOST_AFTER * 2).await;
        assert_eq!(is_ready(&master.bench.find(&node_key("n1")).unwrap()), Some(true));
        let link = master.join("n1").await;
        tokio::time::sleep(LOST_AFTER * 10).await;
        assert!(!master.bench.reasons().contains(&"NodeNotReady".to_owned()));
        // Who does not come back is lost after all.
        drop(link);
        tokio::time::advance(LOST_AFTER * 2).await;
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        master.stop().await;
    });
}

/// The effects of a node's taints.
fn effects(object: &Object) -> Vec<String> {
    let KindFacet::Node(node) = &object.facet.of else { return Vec::new() };
    node.taints.iter().map(|taint| taint.effect.clone()).collect()
}

#[test]
fn a_node_s_pods_may_stay_as_soon_as_it_links_and_new_ones_wait_for_its_word() {
    system(async {
        let master = Master::start().await;
        drop(master.join("n1").await);
        master.bench.until(&node_key("n1"), |o| effects(o) == ["NoSchedule", "NoExecute"]).await;
        let _link = master.link("n1").await;
        let node = master.bench.until(&node_key("n1"), |o| effects(o) == ["NoSchedule"]).await;
        assert_eq!(is_ready(&node), Some(false));
        master.stop().await;
    });
}

#[test]
fn a_goodbye_said_to_an_earlier_master_counts() {
    system(async {
        let master = Master::start().await;
        let (handle, events) = master.join("n1").await;
        handle.send(Class::Control, &ToMaster::Goodbye).unwrap();
        handle.close("it goes");
        let key = node_key("n1");
        let gone = master.bench.until(&key, |o| effects(o) == ["NoSchedule"]).await;
        drop((handle, events));
        master.stop().await;
        // The next master finds what the earlier one wrote.
        let master = Master::start().await;
        master.bench.create(Kind::Node, gone.parse().unwrap()).await;
        let evicted = master.bench.until(&key, |o| effects(o) == ["NoSchedule", "NoExecute"]);
        // Much later than another would be given up.
        let early = tokio::time::timeout(LOST_AFTER * 10, evicted).await;
        assert!(early.is_err());
        master.bench.until(&key, |o| effects(o) == ["NoSchedule", "NoExecute"]).await;
        master.stop().await;
    });
}

#[test]
fn a_deleted_node_may_come_back_at_once() {
    system(async {
        let master = Master::start().await;
        let link = master.join("n1").await;
        drop(link);
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        for _ in 0..3 {
            master.bench.remove(&node_key("n1")).await;
            // Its actor may still be stopping.
            let (_handle, _events) = master.join("n1").await;
            drop((_handle, _events));
            master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        }
        assert!(master.nodes.address().is_some());
        master.stop().await;
    });
}

/// Whether there is an actor for a node.
async fn has_actor(master: &Master, node: &str) -> bool {
    let path = format!("nodes/node handles/{node}");
    master.root.tree().await.iter().any(|child| child.name.ends_with(&path))
}

#[test]
fn two_machines_that_are_one_node_do_not_take_the_link_from_each_other_for_ever() {
    system(async {
        let master = Master::start().await;
        let mut links = Vec::new();
        // At first each that comes is believed: it may have lost the link that is there.
        for _ in 0..4 {
            links.push(master.join("n1").await);
        }
        assert!(!master.bench.reasons().contains(&"NodeIdentityCopied".to_owned()));
        let (_rival, mut heard) = master.link("n1").await;
        let LinkEvent::Closed(CloseReason::Peer(why)) = heard.next().await else { panic!("it was taken") };
        assert!(why.contains("another machine"), "{why}");
        let told = master.bench.reasons().iter().filter(|reason| *reason == "NodeIdentityCopied").count();
        assert_eq!(told, 1);
        // The one that is linked stays.
        let (handle, mut events) = links.pop().unwrap();
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        picture(&mut events, |picture| picture.pods.iter().any(|pod| pod.uid == *bound.uid())).await;
        // A link that is held is taken as soon as the other one has gone.
        let (rival, mut heard) = master.link("n1").await;
        rival.send(Class::Control, &hello()).unwrap();
        let early = tokio::time::timeout(Duration::from_secs(1), heard.next()).await;
        assert!(early.is_err(), "it is held");
        handle.close("it ends");
        assert!(matches!(message(&mut heard).await, ToNode::Welcome(_)));
        master.stop().await;
    });
}

#[test]
fn whoever_is_the_node_after_the_linked_one_has_ended_is_believed_like_any() {
    system(async {
        let master = Master::start().await;
        let mut links = Vec::new();
        for _ in 0..4 {
            links.push(master.join("n1").await);
        }
        let (_rival, mut heard) = master.link("n1").await;
        assert!(matches!(heard.next().await, LinkEvent::Closed(_)), "it is turned away");
        // The other one ends while nobody is at the door.
        links.clear();
        master.bench.until(&node_key("n1"), |o| is_ready(o) == Some(false)).await;
        let _link = master.join("n1").await;
        // It may lose that link and not know it.
        let (again, mut heard) = master.link("n1").await;
        again.send(Class::Control, &hello()).unwrap();
        assert!(matches!(message(&mut heard).await, ToNode::Welcome(_)));
        master.stop().await;
    });
}

#[test]
fn one_machine_whose_process_begins_anew_again_and_again_is_not_taken_for_two() {
    system(async {
        let master = Master::start().await;
        let mut links = Vec::new();
        for _ in 0..4 {
            links.push(master.join("n1").await);
        }
        // Those that come while the last one is not known to be dead are held, the newest of them only.
        let (_given_up, mut unheard) = master.link("n1").await;
        let (newest, mut heard) = master.link("n1").await;
        newest.send(Class::Control, &hello()).unwrap();
        let LinkEvent::Closed(CloseReason::Peer(why)) = unheard.next().await else { panic!("it was taken") };
        assert!(why.contains("anew"), "{why}");
        links.last().unwrap().0.close("it is found to be dead");
        assert!(matches!(message(&mut heard).await, ToNode::Welcome(_)));
        // That proves that it is one: it counts from the beginning.
        let (after, mut heard) = master.link("n1").await;
        after.send(Class::Control, &hello()).unwrap();
        assert!(matches!(message(&mut heard).await, ToNode::Welcome(_)));
        assert!(!master.bench.reasons().contains(&"NodeIdentityCopied".to_owned()));
        master.stop().await;
    });
}

fn pod_report(pod: &Object, phase: &str) -> PodReport {
    PodReport {
        namespace: pod.key.namespace.to_string(),
        name: pod.key.name.to_string(),
        uid: pod.uid().clone(),
        sequence: 1,
        status: json!({"phase": phase}).to_string().into(),
        terminated: false,
    }
}

fn event(namespace: &str, name: &str, uid: &Uid) -> EventReport {
    EventReport {
        namespace: namespace.into(),
        name: name.into(),
        uid: uid.clone(),
        field_path: None,
        warning: false,
        reason: "Forged".into(),
        message: "says a node".into(),
        at_ms: 1_000,
    }
}

fn phase(pod: &Object) -> Value {
    pod.parse::<Value>().unwrap()["status"]["phase"].clone()
}

/// What a test wrote into the log.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Does this, with what this thread logs meanwhile written here.
    fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        // While there are two, a line of the program that another thread comes by first is asked of all who listen, not
        // of that thread's own listener alone.
        let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
        let writer = self.clone();
        let subscriber =
            tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        tracing::subscriber::with_default(subscriber, work)
    }

    fn lines(&self, with: &str) -> usize {
        String::from_utf8(self.0.lock().unwrap().clone())
            .unwrap()
            .lines()
            .filter(|l| l.contains(with))
            .count()
    }
}

#[test]
fn reports_on_what_is_not_the_nodes_own_are_refused_counted_and_logged_once_an_interval() {
    let heard = Log::default();
    let log = heard.clone();
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let figures = recorder.handle();
    let test = async move {
        let master = Master::start().await;
        let bench = &master.bench;
        let (theirs, ours) =
            (bench.create(Kind::Pod, pod("a", "n1")).await, bench.create(Kind::Pod, pod("b", "n2")).await);
        let (_n1, (n2, _from_master)) = (master.join("n1").await, master.join("n2").await);
        let say = |message: &ToMaster| n2.send(Class::State, message).unwrap();
        for _ in 0..3 {
            let end = PodReport { terminated: true, ..pod_report(&theirs, "Failed") };
            say(&ToMaster::Pods(vec![pod_report(&theirs, "Failed"), end]));
            say(&ToMaster::Events(vec![
                event("default", "a", theirs.uid()),
                // Its own uid does not open another's name.
                event("", "n1", ours.uid()),
            ]));
        }
        // Of an earlier life, or of nothing at all: late, but no offence.
        let gone = Uid::from("gone");
        say(&ToMaster::Pods(vec![PodReport { uid: gone.clone(), ..pod_report(&theirs, "Failed") }]));
        say(&ToMaster::Events(vec![event("default", "nothing", &gone)]));
        // In order behind all of that: its own.
        say(&ToMaster::Pods(vec![pod_report(&ours, "Running")]));
        say(&ToMaster::Events(vec![event("default", "b", ours.uid()), event("", "n2", &gone)]));
        bench.until(&ours.key, |o| phase(o) == "Running").await;
        bench.quiet().await;
        assert_eq!(bench.find(&theirs.key).unwrap().revision, theirs.revision, "nothing was written");
        assert_eq!(bench.reasons().iter().filter(|r| *r == "Forged").count(), 2);
        assert_eq!(log.lines("not its own"), 1);
        for line in [
            r#"troupe_node_reports_refused_total{report="pod"} 6"#,
            r#"troupe_node_reports_refused_total{report="event"} 6"#,
        ] {
            assert!(figures.render().contains(line), "{line} in\n{}", figures.render());
        }
        tokio::time::sleep(refusals::LOG_INTERVAL).await;
        say(&ToMaster::Pods(vec![pod_report(&theirs, "Failed")]));
        bench.quiet().await;
        assert_eq!(log.lines("not its own"), 2);
        assert_eq!(log.lines("count=12"), 1, "with those that had no line of their own");
        master.stop().await;
    };
    metrics::with_local_recorder(&recorder, || {
        heard.during(|| system(test));
    });
}

#[test]
fn a_node_hears_of_what_others_make_of_its_pods_status_and_not_of_what_it_said_itself() {
    system(async {
        let master = Master::start().await;
        let (handle, mut events) = master.join("n1").await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        picture(&mut events, |p| p.documents.iter().any(|p| p.uid == *bound.uid())).await;
        let said = |picture: &wire::Assignments| -> Option<Value> {
            let document = picture.documents.first()?;
            Some(serde_json::from_slice::<Value>(&document.json).unwrap()["status"].clone())
        };
        for round in 0..3 {
            let report = ToMaster::Pods(vec![pod_report(&bound, "Running")]);
            handle.send(Class::State, &report).unwrap();
            master.bench.until(&bound.key, |pod| phase(pod) == "Running").await;
            let bogus = json!({"phase": "Bogus", "message": format!("{round}")});
            master.bench.change(&bound.key, |pod| pod["status"] = bogus.clone()).await;
            let told = picture(&mut events, |picture| said(picture).is_some()).await;
            assert_eq!(said(&told), Some(bogus));
        }
        master.stop().await;
    });
}

#[test]
fn what_a_node_says_of_its_pods_never_comes_back_to_it() {
    system(async {
        let master = Master::start().await;
        let (handle, mut events) = master.join("n1").await;
        let bound = master.bench.create(Kind::Pod, pod("p", "n1")).await;
        picture(&mut events, |p| p.documents.iter().any(|p| p.uid == *bound.uid())).await;
        // One after the other, faster than the registry tells of what they led to; the last says that it is over.
        for round in 0..5 {
            for said in ["Pending", "Running"] {
                let mut report = pod_report(&bound, said);
                report.status = json!({"phase": said, "message": format!("{round}")}).to_string().into();
                handle.send(Class::State, &ToMaster::Pods(vec![report])).unwrap();
            }
        }
        handle.send(Class::State, &ToMaster::Pods(vec![pod_report(&bound, "Succeeded")])).unwrap();
        master.bench.until(&bound.key, |pod| phase(pod) == "Succeeded").await;
        master.bench.quiet().await;
        // The next document is of what somebody else has changed then.
        master.bench.change(&bound.key, |pod| pod["metadata"]["labels"] = json!({"a": "b"})).await;
        let told = picture(&mut events, |picture| !picture.documents.is_empty()).await;
        let document: Value = serde_json::from_slice(&told.documents[0].json).unwrap();
        assert_eq!(document["metadata"]["labels"], json!({"a": "b"}));
        master.stop().await;
    });
}

#[test]
fn only_newer_states_than_its_own_are_others_and_those_of_mirrors_are_not() {
    let at = |revision, annotations: Value| {
        let mut pod = pod("p", "n1");
        pod["metadata"]["uid"] = json!("u");
        pod["metadata"]["annotations"] = annotations;
        seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(revision))
    };
    let mirror = json!({"kubernetes.io/config.mirror": "hash"});
    let own = BTreeMap::from([(Uid::from("u"), Revision(7))]);
    // A picture of before its last report was written is behind.
    for (revision, annotations, others) in
        [(5, json!({}), false), (7, json!({}), false), (8, json!({}), true), (8, mirror, false)]
    {
        let pod = at(revision, annotations);
        assert_eq!(handle::is_others(&pod, &own, &BTreeSet::new()), others, "{revision}");
        assert!(!handle::is_others(&pod, &own, &BTreeSet::from([Uid::from("u")])));
    }
}
