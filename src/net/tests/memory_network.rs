//! Links over the network in one process: what a simulation relies on to be as over QUIC.

use super::*;
use crate::net::memory::{Network, Quality, Silences};

/// Two hosts and the way of links between them.
struct Pair {
    network: Network,
    master: NodeName,
    node: NodeName,
    listener: Listener,
}

impl Pair {
    fn new() -> Pair {
        let network = Network::new(1);
        let master = NodeName::from(MASTER);
        let listener = network.listen(&master);
        Pair { network, master, node: "n".into(), listener }
    }

    async fn link(&mut self) -> (MasterLink, NodeLink) {
        let (address, connector) = (self.listener.local_addr(), self.network.connector(&self.node));
        let (accepted, connected) = tokio::join!(self.listener.accept(), connector.connect(address, MASTER));
        (accepted.unwrap(), connected.unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_silence_and_what_was_severed_can_be_linked_anew() {
    let mut pair = Pair::new();
    let (network, address) = (pair.network.clone(), pair.listener.local_addr());
    let (here, there) = pair.link().await;
    let ((_here, mut from_node), (_there, mut from_master)) = (here.split(), there.split());
    let first = network.link(&pair.node, &pair.master);
    assert!(first.is_some());
    network.sever(&pair.master, &pair.node);
    assert_eq!(network.link(&pair.master, &pair.node), None);
    assert_eq!(end(&mut from_node).await, CloseReason::Silent);
    assert_eq!(end(&mut from_master).await, CloseReason::Silent);
    let (here, there) = pair.link().await;
    assert_ne!(network.link(&pair.master, &pair.node), first);
    let ((to_node, _from_node), (_there, mut from_master)) = (here.split(), there.split());
    to_node.send(Class::Control, &welcome("x")).unwrap();
    assert_eq!(message(&mut from_master).await, welcome("x"));
    network.crash(&pair.master);
    // The dead say nothing any more, not even that.
    to_node.close("never heard");
    assert_eq!(end(&mut from_master).await, CloseReason::Silent);
    let connector = network.connector(&pair.node);
    assert!(connector.connect::<ToMaster, ToNode>(address, MASTER).await.is_err());
    assert_eq!(network.silences(), Silences { severed: 1, crashed: 1, ..Default::default() });
    let mut again = network.listen(&pair.master);
    assert_eq!(again.local_addr(), address);
    std::mem::swap(&mut again, &mut pair.listener);
    again.shutdown().await;
    pair.link().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_process_sent_before_it_died_arrives_late_and_nothing_that_it_says_after() {
    let mut pair = Pair::new();
    let (here, there) = pair.link().await;
    let ((_here, mut from_node), (to_master, _there)) = (here.split(), there.split());
    let slow = Duration::from_millis(400);
    pair.network.set_quality(Quality { delay: slow..=slow, loss: 0.0 });
    to_master.send(Class::State, &report("last words")).unwrap();
    // It leaves the outbox.
    tokio::time::sleep(Duration::from_millis(1)).await;
    pair.network.crash(&pair.node);
    to_master.send(Class::State, &report("from the grave")).unwrap();
    // Its successor is faster.
    pair.network.set_quality(Quality::default());
    let (again, _there) = pair.link().await;
    assert_eq!(again.peer(), &pair.node);
    assert_eq!(message(&mut from_node).await, report("last words"));
    assert_eq!(end(&mut from_node).await, CloseReason::Silent);
}

#[tokio::test(start_paused = true)]
async fn a_way_that_is_cut_in_one_direction_ends_a_link_on_one_side_first() {
    let mut pair = Pair::new();
    let (here, there) = pair.link().await;
    let ((_here, mut from_node), (to_master, mut from_master)) = (here.split(), there.split());
    pair.network.cut_one_way(&pair.master, &pair.node);
    let began = Instant::now();
    to_master.send(Class::State, &report("heard")).unwrap();
    assert_eq!(message(&mut from_node).await, report("heard"));
    assert_eq!(end(&mut from_master).await, CloseReason::Silent);
    let idle = LinkConfig::default().idle_timeout;
    assert!(began.elapsed() < idle * 3 / 2, "{:?}", began.elapsed());
    // The way is mended, and the node is back before the master knows that it was away.
    pair.network.heal(&pair.master, &pair.node);
    let (_again, _there) = pair.link().await;
    assert_eq!(end(&mut from_node).await, CloseReason::Silent);
    assert!(began.elapsed() >= idle * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_kernel_answers_as_long_as_it_has_power_and_a_way_there_and_back() {
    let pair = Pair::new();
    let (network, peer, node) = (&pair.network, NodeName::from("p"), &pair.node);
    let address = network.address(node);
    let reaches = async || timeout(PATIENCE, network.probe(&peer, address)).await == Ok(true);
    assert!(reaches().await);
    network.cut(&pair.master, node);
    network.crash(node);
    assert!(reaches().await, "a process is no kernel, and its master no peer");
    network.cut_one_way(node, &peer);
    assert!(!reaches().await);
    network.heal(node, &peer);
    network.power_off(node);
    assert!(!reaches().await);
    network.power_on(node);
    assert!(reaches().await);
    assert!(!network.probe(node, address).await, "its own");
    assert!(!network.probe(node, [10, 99, 1, 1].into()).await, "nobody's");
}
