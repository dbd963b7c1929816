//! Links over real UDP on this machine: messages, byte streams, death, forgery, noise.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout},
};

use super::{identity::MASTER, *};
use crate::messages::wire::{
    ByteStream, EventReport, NodeReport, Open, PodReport, ToMaster, ToNode, Welcome,
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
