//! Links over real UDP on this machine: messages, byte streams, death, forgery, noise.

mod clocks;
mod hostile;
mod joining;
mod memory_network;

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use super::{identity::MASTER, *};
use crate::{
    messages::wire::{ByteStream, NodeReport, Open, PodReport, ToMaster, ToNode, Welcome},
    model::NodeName,
};

type MasterLink = Link<ToNode, ToMaster>;
type NodeLink = Link<ToMaster, ToNode>;

/// Far beyond anything that works.
const PATIENCE: Duration = Duration::from_secs(20);

struct Cluster {
    authority: Authority,
    listener: Listener,
    connector: Connector,
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Cluster {
    fn new() -> Cluster {
        Cluster::with(LinkConfig::default())
    }

    fn with(config: LinkConfig) -> Cluster {
        let authority = Authority::ephemeral().unwrap();
        let ca = authority.certificate().clone();
        let listener = Listener::bind(local(), &authority.issue_master().unwrap(), &ca, config).unwrap();
        let node = authority.issue_node(&"node-1".into()).unwrap();
        let connector = Connector::new(&node, &ca, config).unwrap();
        Cluster { authority, listener, connector }
    }

    async fn connect(&self) -> NodeLink {
        self.connector.connect(self.listener.local_addr(), MASTER).await.unwrap()
    }

    async fn links(&mut self) -> (MasterLink, NodeLink) {
        let node = self.connect().await;
        (self.listener.accept().await.unwrap(), node)
    }
}

fn welcome(cidr: &str) -> ToNode {
    ToNode::Welcome(Welcome { pod_cidr: cidr.into(), cluster: "test".into() })
}

fn report(text: &str) -> ToMaster {
    ToMaster::Node(NodeReport { status: text.to_owned().into() })
}

fn pod_report(name: &str, sequence: u64, bytes: usize) -> ToMaster {
    ToMaster::Pods(vec![PodReport {
        namespace: "default".into(),
        name: name.into(),
        uid: name.into(),
        sequence,
        status: vec![b'x'; bytes].into(),
        terminated: false,
    }])
}

async fn message<T: serde::de::DeserializeOwned>(events: &mut LinkEvents<T>) -> T {
    match timeout(PATIENCE, events.next()).await.expect("a message in time") {
        LinkEvent::Message(message) => message,
        LinkEvent::Opened(open, _) => panic!("a stream {open:?} instead of a message"),
        LinkEvent::Closed(reason) => panic!("the end ({reason}) instead of a message"),
    }
}

async fn opened<T: serde::de::DeserializeOwned>(events: &mut LinkEvents<T>) -> (Open, Responder) {
    match timeout(PATIENCE, events.next()).await.expect("a stream in time") {
        LinkEvent::Opened(open, responder) => (open, responder),
        _ => panic!("no stream"),
    }
}

async fn end<T: serde::de::DeserializeOwned>(events: &mut LinkEvents<T>) -> CloseReason {
    loop {
        if let LinkEvent::Closed(reason) = timeout(PATIENCE, events.next()).await.expect("the end in time") {
            return reason;
        }
    }
}

#[tokio::test]
async fn messages_of_a_class_arrive_in_order_both_ways_and_the_peer_is_who_its_certificate_says() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    assert_eq!(master.peer().as_str(), "node-1");
    assert_eq!(node.peer().as_str(), MASTER);
    let ((to_node, mut from_node), (to_master, mut from_master)) = (master.split(), node.split());
    for n in 0..200 {
        to_node.send(Class::Control, &welcome(&n.to_string())).unwrap();
        to_master.send(Class::State, &report(&n.to_string())).unwrap();
    }
    for n in 0..200 {
        assert_eq!(message(&mut from_master).await, welcome(&n.to_string()));
        assert_eq!(message(&mut from_node).await, report(&n.to_string()));
    }
    assert!(to_node.stats().rtt > Duration::ZERO);
}

#[tokio::test]
async fn a_waiting_state_message_is_replaced_by_the_newest_under_its_key() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((_to_node, mut from_node), (to_master, _from_master)) = (master.split(), node.split());
    // On this single-threaded runtime nothing is written before the first await.
    for sequence in 0..100 {
        to_master.send_keyed(Class::State, "a", &pod_report("a", sequence, 10)).unwrap();
        to_master.send_keyed(Class::State, "b", &pod_report("b", sequence, 10)).unwrap();
    }
    assert_eq!(message(&mut from_node).await, pod_report("a", 99, 10));
    assert_eq!(message(&mut from_node).await, pod_report("b", 99, 10));
}

#[tokio::test]
async fn a_peer_that_does_not_read_fills_the_outbox_and_then_sends_are_refused() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((_to_node, mut from_node), (to_master, _from_master)) = (master.split(), node.split());
    let mut sent = 0;
    let refused = timeout(PATIENCE, async {
        loop {
            match to_master.send(Class::State, &pod_report("a", sent, 256 << 10)) {
                Ok(()) => sent += 1,
                Err(error) => return error,
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(matches!(refused.await.unwrap(), NetError::Full));
    // Control still passes, and what was accepted arrives, in order, once the peer reads.
    to_master.send(Class::Control, &ToMaster::Goodbye).unwrap();
    let mut control = 0;
    let mut next = 0;
    while next < sent || control == 0 {
        match message(&mut from_node).await {
            ToMaster::Goodbye => control += 1,
            ToMaster::Pods(pods) => {
                assert_eq!(pods[0].sequence, next);
                next += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    to_master.send(Class::State, &report("room again")).unwrap();
}

#[tokio::test]
async fn a_message_beyond_its_class_is_refused_and_the_link_lives_on() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((_to_node, mut from_node), (to_master, _from_master)) = (master.split(), node.split());
    let huge = pod_report("a", 0, codec::STATE_CAP);
    assert!(matches!(to_master.send(Class::State, &huge), Err(NetError::TooLarge { .. })));
    let large = pod_report("a", 1, codec::STATE_CAP - 100);
    to_master.send(Class::State, &large).unwrap();
    assert!(message(&mut from_node).await == large);
}

#[tokio::test]
async fn frames_of_an_unknown_kind_are_skipped() {
    #[derive(serde::Serialize)]
    enum Newer {
        #[allow(dead_code)]
        A,
        #[allow(dead_code)]
        B,
        C(u64),
    }
    let mut cluster = Cluster::new();
    let node: Link<Newer, ToNode> =
        cluster.connector.connect(cluster.listener.local_addr(), MASTER).await.unwrap();
    let master: MasterLink = cluster.listener.accept().await.unwrap();
    let ((_to_node, mut from_node), (to_master, _events)) = (master.split(), node.split());
    to_master.send(Class::Control, &Newer::C(7)).unwrap();
    drop((to_master, _events));
    assert!(matches!(end(&mut from_node).await, CloseReason::Peer(_)), "skipped, and the link went on");
}

async fn flow(cluster: &mut Cluster) -> (MasterEnds, NodeEnds, ByteStream, ByteStream) {
    let (master, node) = cluster.links().await;
    let ((to_node, from_node), (to_master, mut from_master)) = (master.split(), node.split());
    let (ours, theirs) = tokio::join!(to_node.open(Open::ImageList, PATIENCE), async {
        let (open, responder) = opened(&mut from_master).await;
        assert_eq!(open, Open::ImageList);
        responder.accept().await.unwrap()
    });
    ((to_node, from_node), (to_master, from_master), ours.unwrap(), theirs)
}

#[tokio::test]
async fn a_node_that_opens_a_stream_may_open_all_that_a_node_may() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((_to_node, mut from_node), (to_master, _from_master)) = (master.split(), node.split());
    let mut open = Vec::new();
    for _ in 0..super::endpoint::NODE_STREAMS {
        open.push(tokio::join!(to_master.open(Open::ImageList, PATIENCE), async {
            opened(&mut from_node).await.1.accept().await.unwrap()
        }));
    }
    assert!(open.iter().all(|(ours, _)| ours.is_ok()));
    let more = to_master.open(Open::ImageList, Duration::from_millis(50)).await;
    assert!(matches!(more, Err(NetError::TimedOut(_))), "{:?}", more.err());
}

#[tokio::test]
async fn a_flow_counts_on_both_sides_whoever_opened_it_until_it_is_let_go() {
    let mut cluster = Cluster::new();
    let ((to_node, mut from_node), (to_master, from_master), ours, theirs) = flow(&mut cluster).await;
    let count = || (to_node.streams(), to_master.streams());
    assert_eq!(count(), (1, 1), "opened by the master");
    let (asked, responder) = tokio::join!(to_master.open(Open::ImageList, PATIENCE), async {
        let responder = opened(&mut from_node).await.1;
        assert_eq!(to_node.streams(), 2, "one that is being decided on is there");
        responder.accept().await.unwrap()
    });
    assert_eq!(count(), (2, 2), "opened by the node");
    // A half is enough.
    let ByteStream { read, write } = responder;
    drop(read);
    assert_eq!(count(), (2, 2));
    drop((write, asked));
    assert_eq!(count(), (1, 1));
    drop((ours, theirs, from_master));
    assert_eq!(count(), (0, 0));
}

type MasterEnds = (LinkHandle<ToNode>, LinkEvents<ToMaster>);
type NodeEnds = (LinkHandle<ToMaster>, LinkEvents<ToNode>);

#[tokio::test]
async fn megabytes_flow_both_ways_and_control_stays_quick() {
    const SIZE: usize = 16 << 20;
    let mut cluster = Cluster::new();
    let ((to_node, _from_node), (_to_master, mut from_master), ours, mut theirs) = flow(&mut cluster).await;
    let data: Vec<u8> = (0..SIZE).map(|n| (n * 31 % 251) as u8).collect();
    let expected = data.clone();
    let echo = tokio::spawn(async move {
        tokio::io::copy(&mut theirs.read, &mut theirs.write).await.unwrap();
        theirs.write.shutdown().await.unwrap();
    });
    let ByteStream { mut read, mut write } = ours;
    let sending = tokio::spawn(async move {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let reading = tokio::spawn(async move {
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.unwrap();
        back
    });
    let mut slowest = Duration::ZERO;
    let mut asked = 0;
    while !reading.is_finished() {
        let at = Instant::now();
        to_node.send(Class::Control, &welcome(&asked.to_string())).unwrap();
        assert_eq!(message(&mut from_master).await, welcome(&asked.to_string()));
        slowest = slowest.max(at.elapsed());
        asked += 1;
    }
    assert!(reading.await.unwrap() == expected, "the bytes that came back");
    sending.await.unwrap();
    echo.await.unwrap();
    // Milliseconds in truth; a busy machine must not fail the test.
    assert!(asked > 3 && slowest < Duration::from_secs(2), "{asked} messages, the slowest took {slowest:?}");
}

#[tokio::test]
async fn flows_that_nobody_reads_do_not_delay_messages() {
    let mut cluster = Cluster::new();
    let ((to_node, mut from_node), (to_master, mut from_master), ours, theirs) = flow(&mut cluster).await;
    let mut stuck = vec![];
    for _ in 0..8 {
        let (ours, theirs) = tokio::join!(to_node.open(Open::ImageList, PATIENCE), async {
            opened(&mut from_master).await.1.accept().await.unwrap()
        });
        stuck.push((ours.unwrap(), theirs));
    }
    stuck.push((ours, theirs));
    for (ours, _) in &mut stuck {
        // Writes until the window is full and nothing moves any more.
        let chunk = vec![0; 64 << 10];
        while timeout(Duration::from_millis(100), ours.write.write_all(&chunk)).await.is_ok() {}
    }
    let at = Instant::now();
    to_node.send(Class::Control, &welcome("x")).unwrap();
    to_master.send(Class::State, &report("y")).unwrap();
    assert_eq!(message(&mut from_master).await, welcome("x"));
    assert_eq!(message(&mut from_node).await, report("y"));
    assert!(at.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn a_refused_flow_says_why() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((to_node, _from_node), (_to_master, mut from_master)) = (master.split(), node.split());
    let (outcome, ()) = tokio::join!(to_node.open(Open::ImageRemove("x".into()), PATIENCE), async {
        let (open, responder) = opened(&mut from_master).await;
        assert_eq!(open, Open::ImageRemove("x".into()));
        responder.refuse(404, "no such image").await.unwrap();
    });
    assert!(matches!(outcome, Err(NetError::Refused(404, text)) if text == "no such image"));
    // Without any answer, the opener hears an error or its timeout, not silence for ever.
    let (outcome, ()) = tokio::join!(to_node.open(Open::ImageList, PATIENCE), async {
        drop(opened(&mut from_master).await);
    });
    assert!(matches!(outcome, Err(NetError::Stream(_))));
    let outcome = to_node.open(Open::ImageList, Duration::from_millis(50)).await;
    assert!(matches!(outcome, Err(NetError::TimedOut(_))));
}

#[tokio::test]
async fn a_dropped_flow_is_an_error_at_the_other_end_and_a_finished_one_is_not() {
    let mut cluster = Cluster::new();
    let (_master, _node, mut ours, mut theirs) = flow(&mut cluster).await;
    ours.write.write_all(b"all of it").await.unwrap();
    ours.write.shutdown().await.unwrap();
    let mut text = String::new();
    theirs.read.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "all of it");
    theirs.write.write_all(b"only a part").await.unwrap();
    drop(theirs);
    let outcome = timeout(PATIENCE, ours.read.read_to_end(&mut Vec::new())).await.unwrap();
    assert!(outcome.is_err(), "a broken flow must not look complete");
}

/// A flow whose node's side was asked to tell when the master's has gone.
async fn watched(cluster: &mut Cluster) -> (MasterEnds, NodeEnds, ByteStream, ByteStream, Gone) {
    let (master, node) = cluster.links().await;
    let ((to_node, from_node), (to_master, mut from_master)) = (master.split(), node.split());
    let (ours, (theirs, gone)) = tokio::join!(to_node.open(Open::ImageList, PATIENCE), async {
        let (_, responder) = opened(&mut from_master).await;
        let gone = responder.gone();
        (responder.accept().await.unwrap(), gone)
    });
    ((to_node, from_node), (to_master, from_master), ours.unwrap(), theirs, gone)
}

#[tokio::test]
async fn who_lets_go_of_a_flow_is_noticed_though_nothing_is_read_or_written() {
    let mut cluster = Cluster::new();
    let (_master, _node, mut ours, theirs, gone) = watched(&mut cluster).await;
    // More than anybody reads.
    let chunk = vec![0; 64 << 10];
    while timeout(Duration::from_millis(100), ours.write.write_all(&chunk)).await.is_ok() {}
    drop(ours);
    timeout(PATIENCE, gone).await.expect("its end is told");
    drop(theirs);
}

#[tokio::test]
async fn an_orderly_end_of_a_flow_is_no_going_away() {
    let mut cluster = Cluster::new();
    let (_master, _node, mut ours, mut theirs, mut gone) = watched(&mut cluster).await;
    ours.write.shutdown().await.unwrap();
    theirs.write.shutdown().await.unwrap();
    assert_eq!(ours.read.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(theirs.read.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert!(timeout(Duration::from_millis(100), &mut gone).await.is_err());
}

#[tokio::test]
async fn what_was_sent_before_a_close_arrives_before_it() {
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((_to_node, mut from_node), (to_master, mut from_master)) = (master.split(), node.split());
    for n in 0..50 {
        to_master.send(Class::State, &report(&n.to_string())).unwrap();
    }
    to_master.send(Class::Control, &ToMaster::Goodbye).unwrap();
    to_master.close("upgrade");
    assert!(matches!(to_master.send(Class::Control, &ToMaster::Goodbye), Err(NetError::Closed(_))));
    // The owner looks only after the peer has gone altogether.
    assert_eq!(to_master.closed().await, CloseReason::Local("upgrade".into()));
    assert_eq!(end(&mut from_master).await, CloseReason::Local("upgrade".into()));
    let mut seen = vec![];
    let reason = loop {
        match timeout(PATIENCE, from_node.next()).await.unwrap() {
            LinkEvent::Message(message) => seen.push(message),
            LinkEvent::Closed(reason) => break reason,
            LinkEvent::Opened(..) => panic!(),
        }
    };
    assert_eq!(reason, CloseReason::Peer("upgrade".into()));
    assert_eq!(seen.len(), 51);
    assert!(seen.contains(&ToMaster::Goodbye));
    assert_eq!(end(&mut from_node).await, reason, "the end is told again");
}

/// Dials on a runtime of its own, which stops dead when `killed` says so: no goodbye, no close, no more packets.
fn victim(
    connector: Connector,
    address: SocketAddr,
    killed: std::sync::mpsc::Receiver<()>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let link = runtime.block_on(async {
            let link = connector.connect::<ToMaster, ToNode>(address, MASTER).await.unwrap();
            while killed.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            link
        });
        // Dropping them would say goodbye.
        std::mem::forget((link, runtime));
    })
}

#[tokio::test]
async fn a_peer_that_dies_silently_is_noticed_within_the_idle_timeout() {
    let mut cluster = Cluster::new();
    let (kill, killed) = std::sync::mpsc::channel();
    let thread = victim(cluster.connector.clone(), cluster.listener.local_addr(), killed);
    let master: MasterLink = timeout(PATIENCE, cluster.listener.accept()).await.unwrap().unwrap();
    let (to_node, mut from_node) = master.split();
    // Nothing but keep-alives, for longer than the idle timeout: the link holds.
    assert!(timeout(Duration::from_millis(1500), from_node.next()).await.is_err());
    assert!(to_node.silence() < LinkConfig::default().idle_timeout, "heartbeats are answered");
    kill.send(()).unwrap();
    thread.join().unwrap();
    let at = Instant::now();
    assert_eq!(end(&mut from_node).await, CloseReason::Silent);
    assert!(at.elapsed() < Duration::from_millis(1900), "{:?}", at.elapsed());
    // Silence began with the last answer, not with the last question, from which the timeout counts.
    let (unheard, config) = (to_node.silence(), LinkConfig::default());
    assert!(unheard > config.idle_timeout + Duration::from_millis(200), "{unheard:?}");
    assert!(unheard < config.longest_silence() + Duration::from_millis(300), "{unheard:?}");
}

#[tokio::test]
async fn heartbeats_of_the_listening_side_alone_keep_many_links() {
    // More than are served at a time.
    const LINKS: usize = 70;
    let never = Duration::from_secs(3600);
    let mut cluster = Cluster::with(LinkConfig { keep_alive: never, ..LinkConfig::default() });
    let mut events = Vec::new();
    for _ in 0..LINKS {
        let (master, node) = cluster.links().await;
        let ((to_node, from_node), (to_master, from_master)) = (master.split(), node.split());
        events.push((to_node, to_master, from_node, from_master));
    }
    tokio::time::sleep(LinkConfig::default().idle_timeout * 5 / 2).await;
    for (to_node, to_master, ..) in &events {
        to_node.send(Class::Control, &welcome("")).unwrap();
        to_master.send(Class::State, &report("")).unwrap();
    }
    for (.., from_node, from_master) in &mut events {
        assert_eq!(message(from_node).await, report(""));
        assert_eq!(message(from_master).await, welcome(""));
    }
}

#[tokio::test]
async fn a_dialer_comes_back_after_its_link_ended() {
    let mut cluster = Cluster::new();
    let backoff = Backoff { first: Duration::from_millis(10), cap: Duration::from_millis(50) };
    let address = cluster.listener.local_addr();
    let mut dialer = Dialer::new(cluster.connector.clone(), address.to_string(), MASTER, backoff);
    for round in 0..3 {
        let node: NodeLink = timeout(PATIENCE, dialer.next()).await.unwrap();
        let master: MasterLink = cluster.listener.accept().await.unwrap();
        let ((to_node, _from_node), (_to_master, mut from_master)) = (master.split(), node.split());
        to_node.send(Class::Control, &welcome(&round.to_string())).unwrap();
        assert_eq!(message(&mut from_master).await, welcome(&round.to_string()));
        to_node.close("again");
        assert_eq!(end(&mut from_master).await, CloseReason::Peer("again".into()));
    }
    // The master is restarted on its port.
    let ca = cluster.authority.certificate().clone();
    cluster.listener.shutdown().await;
    let again = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let identity = cluster.authority.issue_master().unwrap();
        let mut listener = Listener::bind(address, &identity, &ca, LinkConfig::default()).unwrap();
        let link: MasterLink = listener.accept().await.unwrap();
        (listener, link)
    };
    let (_node, (_listener, master)) =
        timeout(PATIENCE, async { tokio::join!(dialer.next::<ToMaster, ToNode>(), again) }).await.unwrap();
    assert_eq!(master.peer().as_str(), "node-1");
}

#[tokio::test]
async fn a_link_that_nobody_holds_leaves_no_task_behind() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let mut cluster = Cluster::new();
    let (master, node, ours, theirs) = flow(&mut cluster).await;
    let listening = tasks();
    assert!(listening > before);
    drop((master, ours));
    let (_handle, mut events) = node;
    assert!(matches!(end(&mut events).await, CloseReason::Peer(_)));
    drop((_handle, events, theirs));
    cluster.listener.shutdown().await;
    drop(cluster.connector);
    timeout(PATIENCE, async {
        while tasks() > before {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} tasks are left", tasks() - before));
}

#[tokio::test]
async fn only_a_node_of_this_cluster_gets_a_link() {
    let mut cluster = Cluster::new();
    let address = cluster.listener.local_addr();
    let ca = cluster.authority.certificate();
    let foreign = Authority::ephemeral().unwrap();
    let dial = async |identity: Identity, ca: &CaCertificate, name: &str| {
        let connector = Connector::new(&identity, ca, LinkConfig::default()).unwrap();
        let outcome = connector.connect::<ToMaster, ToNode>(address, name).await;
        outcome.err().expect("no link").to_string()
    };
    let node = "node-1".into();
    // The master does not know the node's authority.
    dial(foreign.issue_node(&node).unwrap(), ca, MASTER).await;
    // The node does not know the master's.
    let problem = dial(cluster.authority.issue_node(&node).unwrap(), foreign.certificate(), MASTER).await;
    assert!(problem.contains("UnknownIssuer") || problem.contains("BadSignature"), "{problem}");
    assert!(problem.contains("another cluster"), "{problem}");
    // A client of the API has no business here, not even the administrator.
    let problem = dial(cluster.authority.issue_admin().unwrap(), ca, MASTER).await;
    assert!(problem.contains("not a node's certificate"), "{problem}");
    // The master is not a node, whatever it is asked for.
    dial(cluster.authority.issue_node(&node).unwrap(), ca, "node-2.node.troupe.internal").await;
    let nothing = timeout(Duration::from_millis(50), cluster.listener.accept::<ToNode, ToMaster>()).await;
    assert!(nothing.is_err(), "none of them became a link");
    cluster.links().await;
}

#[tokio::test]
async fn a_node_cannot_pass_as_the_master() {
    let authority = Authority::ephemeral().unwrap();
    let ca = authority.certificate();
    let impostor = authority.issue_node(&"node-2".into()).unwrap();
    let listener = Listener::bind(local(), &impostor, ca, LinkConfig::default()).unwrap();
    let node = authority.issue_node(&"node-1".into()).unwrap();
    let connector = Connector::new(&node, ca, LinkConfig::default()).unwrap();
    let outcome = connector.connect::<ToMaster, ToNode>(listener.local_addr(), MASTER).await;
    assert!(matches!(outcome, Err(NetError::Connect { .. })));
    // As itself it is found.
    let name = identity::node_server_name(&"node-2".into());
    assert!(connector.connect::<ToMaster, ToNode>(listener.local_addr(), &name).await.is_ok());
}

/// A client made by hand: with these protocols, and a certificate or none.
async fn raw_connect(
    address: SocketAddr,
    authority: &Authority,
    alpn: &[u8],
    identity: Option<Identity>,
) -> (quinn::Endpoint, Result<quinn::Connection, quinn::ConnectionError>) {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.certificate().der().clone()).unwrap();
    let builder =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain().to_vec(), identity.key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let endpoint = quinn::Endpoint::client(local()).unwrap();
    let mut config = quinn::ClientConfig::new(std::sync::Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(LinkConfig::default().keep_alive));
    config.transport_config(std::sync::Arc::new(transport));
    let connection = endpoint.connect_with(config, address, MASTER).unwrap().await;
    (endpoint, connection)
}

#[tokio::test]
async fn peers_without_certificate_or_of_another_protocol_are_turned_away() {
    let mut cluster = Cluster::new();
    let address = cluster.listener.local_addr();
    let (_endpoint, connection) = raw_connect(address, &cluster.authority, tls::ALPN, None).await;
    // The client believes to be connected until it hears of the refusal.
    if let Ok(connection) = connection {
        let reason = timeout(PATIENCE, connection.closed()).await.unwrap();
        assert!(matches!(reason, quinn::ConnectionError::ApplicationClosed(_)), "{reason}");
    }
    let node = cluster.authority.issue_node(&"node-1".into()).unwrap();
    let (_endpoint, connection) = raw_connect(address, &cluster.authority, b"h3", Some(node)).await;
    assert!(connection.is_err(), "wrong protocol");
    cluster.links().await;
}

#[tokio::test]
async fn an_oversized_frame_ends_the_link_and_nothing_else() {
    let mut cluster = Cluster::new();
    let node = cluster.authority.issue_node(&"node-9".into()).unwrap();
    let address = cluster.listener.local_addr();
    let (_endpoint, connection) = raw_connect(address, &cluster.authority, tls::ALPN, Some(node)).await;
    let connection = connection.unwrap();
    let (mut control, _answers) = connection.open_bi().await.unwrap();
    let (mut state, _more_answers) = connection.open_bi().await.unwrap();
    control.write_all(&[0]).await.unwrap();
    state.write_all(&[1]).await.unwrap();
    let master: MasterLink = timeout(PATIENCE, cluster.listener.accept()).await.unwrap().unwrap();
    let (_to_node, mut from_node) = master.split();
    control.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    let CloseReason::Failed(problem) = end(&mut from_node).await else { panic!("wrong end") };
    assert!(problem.contains("exceeds the limit"), "{problem}");
    assert!(matches!(connection.closed().await, quinn::ConnectionError::ApplicationClosed(_)));
    cluster.links().await;
}

#[tokio::test]
async fn noise_on_the_port_changes_nothing() {
    use rand::{RngExt as _, SeedableRng as _};
    let mut cluster = Cluster::new();
    let (master, node) = cluster.links().await;
    let ((to_node, _from_node), (_to_master, mut from_master)) = (master.split(), node.split());
    let socket = std::net::UdpSocket::bind(local()).unwrap();
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for round in 0..500 {
        let mut noise: Vec<u8> = (0..rng.random_range(1..1400)).map(|_| rng.random()).collect();
        if round % 2 == 0 {
            // Looks like a first packet of QUIC version 1.
            noise.resize(1200, 0);
            noise[0] = 0xc3;
            noise[1..5].copy_from_slice(&1_u32.to_be_bytes());
            noise[5] = 8;
        }
        socket.send_to(&noise, cluster.listener.local_addr()).unwrap();
        if round % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    to_node.send(Class::Control, &welcome("still here")).unwrap();
    assert_eq!(message(&mut from_master).await, welcome("still here"));
    cluster.links().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let cluster = Cluster::new();
    let address = cluster.listener.local_addr();
    let identity = cluster.authority.issue_master().unwrap();
    let outcome = Listener::bind(address, &identity, cluster.authority.certificate(), LinkConfig::default());
    let Err(NetError::Bind { address: named, .. }) = outcome else { panic!("bound twice") };
    assert_eq!(named, address);
}
