//! What a stranger, or a peer gone wrong, may do to the port: it costs a bounded amount and changes nothing.

use super::*;

/// A host on whose way to the listener nothing ever comes back: it can begin handshakes, but finish none.
struct OneWay {
    address: SocketAddr,
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OneWay {
    fn to(listener: SocketAddr) -> OneWay {
        let socket = std::net::UdpSocket::bind(local()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let address = socket.local_addr().unwrap();
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 2048];
            while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                match socket.recv_from(&mut datagram) {
                    Ok((length, from)) if from != listener => {
                        socket.send_to(&datagram[..length], listener).unwrap();
                    }
                    _ => {}
                }
            }
        });
        OneWay { address, stop, thread: Some(thread) }
    }
}

impl Drop for OneWay {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Begins so many handshakes on a thread of its own, until it is dropped.
struct Crowd {
    stop: tokio::sync::watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Crowd {
    fn dials(count: usize, connector: &Connector, address: SocketAddr) -> Crowd {
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let connector = connector.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                for _ in 0..count {
                    let connector = connector.clone();
                    tokio::spawn(async move {
                        connector.connect::<ToMaster, ToNode>(address, MASTER).await.map(drop)
                    });
                }
                let _ = stopped.wait_for(|stop| *stop).await;
            });
        });
        Crowd { stop, thread: Some(thread) }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[tokio::test]
async fn half_open_handshakes_are_bounded_and_keep_nobody_out() {
    const DIALS: usize = 150;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let mut cluster = Cluster::new();
    let before = tasks();
    let one_way = OneWay::to(cluster.listener.local_addr());
    let crowd = Crowd::dials(DIALS, &cluster.connector, one_way.address);
    let mut most = 0;
    timeout(PATIENCE, async {
        // Until as many are under way as may be without a proof of their address…
        while most < endpoint::HANDSHAKES_UNPROVEN {
            tokio::time::sleep(Duration::from_millis(5)).await;
            most = most.max(tasks() - before);
        }
    })
    .await
    .expect("the crowd dials");
    // …and for a while, in which all others have come.
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
        most = most.max(tasks() - before);
    }
    // A handshake is a task of ours and one of quinn's.
    assert!(most <= 2 * endpoint::HANDSHAKES_UNPROVEN, "{most} tasks for {DIALS} handshakes");
    let (master, node) = timeout(PATIENCE, cluster.links()).await.expect("others get in meanwhile");
    let ((to_node, _from_node), (_to_master, mut from_master)) = (master.split(), node.split());
    to_node.send(Class::Control, &welcome("here")).unwrap();
    assert_eq!(message(&mut from_master).await, welcome("here"));
    drop((crowd, one_way));
}

/// What must live for a connection made by hand to live.
type Held = (quinn::Endpoint, quinn::RecvStream, quinn::RecvStream);

/// A node that was let in and then speaks for itself: its two message streams.
async fn by_hand(cluster: &mut Cluster) -> (MasterEnds, quinn::Connection, [quinn::SendStream; 2], Held) {
    let node = cluster.authority.issue_node(&"node-9".into()).unwrap();
    let address = cluster.listener.local_addr();
    let (endpoint, connection) = raw_connect(address, &cluster.authority, tls::ALPN, Some(node)).await;
    let connection = connection.unwrap();
    let (mut control, answers) = connection.open_bi().await.unwrap();
    let (mut state, more_answers) = connection.open_bi().await.unwrap();
    control.write_all(&[0]).await.unwrap();
    state.write_all(&[1]).await.unwrap();
    let master: MasterLink = timeout(PATIENCE, cluster.listener.accept()).await.unwrap().unwrap();
    (master.split(), connection, [control, state], (endpoint, answers, more_answers))
}

#[tokio::test]
async fn a_message_stream_that_ends_within_a_frame_ends_the_link() {
    let mut cluster = Cluster::new();
    let ((_to_node, mut from_node), connection, [mut control, state], _held) = by_hand(&mut cluster).await;
    control.write_all(&100_u32.to_be_bytes()).await.unwrap();
    control.write_all(b"not a hundred").await.unwrap();
    control.finish().unwrap();
    let CloseReason::Failed(problem) = end(&mut from_node).await else { panic!("wrong end") };
    assert!(problem.contains("ended a message stream"), "{problem}");
    connection.closed().await;
    drop(state);
    cluster.links().await;
}

#[tokio::test]
async fn frames_of_garbage_are_skipped_and_the_next_good_one_is_heard() {
    use rand::{RngExt as _, SeedableRng as _};
    let mut cluster = Cluster::new();
    let ((_to_node, mut from_node), _connection, [_control, mut state], _held) = by_hand(&mut cluster).await;
    let mut rng = rand::rngs::StdRng::seed_from_u64(5);
    let mut sent = Vec::new();
    for _ in 0..500 {
        // Beyond the last variant, so that none is a message by chance.
        let garbage: Vec<u8> =
            (0..rng.random_range(0..200)).map(|n| if n == 0 { 250 } else { rng.random() }).collect();
        sent.extend(u32::try_from(garbage.len()).unwrap().to_be_bytes());
        sent.extend(garbage);
    }
    sent.extend(frame::frame(&report("at last"), codec::STATE_CAP).unwrap());
    // In pieces that end anywhere.
    for piece in sent.chunks(97) {
        state.write_all(piece).await.unwrap();
    }
    assert_eq!(message(&mut from_node).await, report("at last"));
}

#[tokio::test]
async fn streams_that_never_say_what_they_are_for_are_bounded() {
    let mut cluster = Cluster::new();
    let ((_to_node, mut from_node), connection, [_control, mut state], _held) = by_hand(&mut cluster).await;
    let mut silent = Vec::new();
    // More than the transport allows: the rest waits at the peer's own cost.
    while let Ok(stream) = timeout(Duration::from_millis(200), connection.open_bi()).await {
        let (mut writer, reader) = stream.unwrap();
        // Nothing of a stream is seen before its first bytes, which here are half a frame.
        writer.write_all(&[2, 0, 0]).await.unwrap();
        silent.push((writer, reader));
        assert!(silent.len() <= 300, "no bound");
    }
    state.write_all(&frame::frame(&report("heard"), codec::STATE_CAP).unwrap()).await.unwrap();
    assert_eq!(message(&mut from_node).await, report("heard"));
}
