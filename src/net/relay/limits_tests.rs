//! Limits of room and time: who waits, who gives way, what is forgotten, and that all goes on afterwards.

use std::process::Command;

use nix::sys::resource::{Resource, setrlimit};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::{spawn_blocking, yield_now},
    time::{advance, timeout},
};

use super::{
    connections::SILENT,
    tcp::DRAIN,
    tests::{POD, STEP, free, port, relay},
    udp::IDLE,
    *,
};

/// A machine whose process may have so many open files.
fn small(files: u64) -> Host {
    Host { room: Arc::new(Room::of(files)), ..Host::default() }
}

#[tokio::test]
async fn more_listeners_than_the_process_has_room_for_are_refused_with_the_numbers() {
    let host = small(16);
    let ports: Vec<_> = (0..3).map(|_| port(Protocol::Tcp, free(Protocol::Tcp), 1)).collect();
    let error = relay(&host, "a", ports.clone()).await.err().unwrap().to_string();
    assert!(error.contains("take 3 sockets") && error.contains("2 of 2 are left"), "{error}");
    let relays = relay(&host, "a", ports[..2].to_vec()).await.unwrap();
    let error = relay(&host, "b", ports[2..].to_vec()).await.err().unwrap().to_string();
    assert!(error.contains("0 of 2 are left"), "{error}");
    relays.end().await;
    relay(&host, "b", ports[1..].to_vec()).await.unwrap().end().await;
}

#[tokio::test]
async fn a_connection_beyond_those_that_one_port_may_have_waits_for_one_to_end() {
    let (host, listen, elsewhere) = (small(16), free(Protocol::Tcp), free(Protocol::Tcp));
    let pod = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let other = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let inside = [&pod, &other].map(|pod| pod.local_addr().unwrap().port());
    let relays = relay(&host, "a", vec![port(Protocol::Tcp, listen, inside[0])]).await.unwrap();
    let _others = relay(&host, "b", vec![port(Protocol::Tcp, elsewhere, inside[1])]).await.unwrap();
    let first = connect(listen, &pod).await;
    let mut second = tokio::net::TcpStream::connect(listen).await.unwrap();
    second.write_all(b"2").await.unwrap();
    // The relays' thread has come as far as the second one when it has carried what came later.
    says_one(&mut connect(elsewhere, &other).await).await;
    assert!(pod.accept().now_or_never().is_none(), "one port has half of two places");
    let mut third = tokio::net::TcpStream::connect(listen).await.unwrap();
    third.write_all(b"3").await.unwrap();
    drop(first);
    for (_client, expected) in [(second, *b"2"), (third, *b"3")] {
        let (mut served, _) = timeout(STEP, pod.accept()).await.unwrap().unwrap();
        let mut said = [0];
        timeout(STEP, served.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, expected, "in turn");
    }
    relays.end().await;
}

#[tokio::test]
async fn a_new_client_has_the_place_of_the_longest_silent() {
    let (host, listen) = (small(16), free(Protocol::Udp));
    let pod = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&host, "a", vec![port(Protocol::Udp, listen, inside)]).await.unwrap();
    // Of two places one port has one.
    for name in 0..3_u8 {
        let client = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
        client.connect(listen).await.unwrap();
        client.send(&[name]).await.unwrap();
        let mut buffer = [0; 8];
        let asked = timeout(STEP, pod.recv_from(&mut buffer)).await;
        let (_, from) = asked.expect("a new client has a place").unwrap();
        pod.send_to(&buffer[..1], from).await.unwrap();
        assert_eq!(timeout(STEP, client.recv(&mut buffer)).await.unwrap().unwrap(), 1);
        assert_eq!(buffer[0], name);
    }
    relays.end().await;
}

/// A host on the calling test's own thread, whose clock stands still unless it is advanced.
struct Still {
    host: Host,
    _end: mpsc::Sender<()>,
}

fn still(files: u64) -> Still {
    tokio::time::pause();
    // What blocks keeps the clock from going on by itself.
    let (end, ended) = mpsc::channel::<()>();
    drop(spawn_blocking(move || ended.recv()));
    let (stop, _) = oneshot::channel();
    let thread = Thread { handle: Handle::current(), _stop: stop };
    let host = Host { thread: Mutex::new(Some(thread)), ..small(files) };
    Still { host, _end: end }
}

/// Timers are not more exact than that.
const MOMENT: Duration = Duration::from_millis(10);

type Carried = (tokio::net::TcpStream, tokio::net::TcpStream);

/// A client of a port and what serves it in the pod.
async fn connect(listen: SocketAddr, pod: &tokio::net::TcpListener) -> Carried {
    let client = tokio::net::TcpStream::connect(listen).await.unwrap();
    (client, pod.accept().await.unwrap().0)
}

async fn says_one((client, served): &mut Carried) {
    client.write_all(b"x").await.unwrap();
    assert_eq!(served.read(&mut [0]).await.unwrap(), 1);
}

async fn is_reset((mut client, mut served): Carried) {
    for end in [&mut client, &mut served] {
        assert_eq!(end.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn the_longest_silent_connection_of_any_port_gives_way_when_all_places_are_taken() {
    let still = still(24);
    let pod = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let (mut listens, mut relays) = (Vec::new(), Vec::new());
    for uid in ["a", "b", "c"] {
        let listen = free(Protocol::Tcp);
        listens.push(listen);
        relays.push(relay(&still.host, uid, vec![port(Protocol::Tcp, listen, inside)]).await.unwrap());
    }
    let mut first = connect(listens[0], &pod).await;
    let second = connect(listens[1], &pod).await;
    advance(SILENT / 2).await;
    let mut third = connect(listens[0], &pod).await;
    // From now on the second one is silent for longer.
    says_one(&mut first).await;
    let _fourth = tokio::net::TcpStream::connect(listens[2]).await.unwrap();
    advance(SILENT / 2 + MOMENT).await;
    is_reset(second).await;
    let (mut fourth, _) = pod.accept().await.unwrap();
    says_one(&mut first).await;
    says_one(&mut third).await;
    // Nobody waits: as silent as it likes.
    advance(SILENT * 100).await;
    says_one(&mut first).await;
    fourth.write_all(b"x").await.unwrap();
}

#[tokio::test]
async fn all_addresses_of_a_port_have_one_part_in_which_the_longest_silent_gives_way() {
    let still = still(32);
    let pod = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let (one, other) = (free(Protocol::Tcp), free(Protocol::Tcp));
    let other = SocketAddr::new(other.ip(), one.port());
    let ports = [one, other].map(|listen| port(Protocol::Tcp, listen, inside)).to_vec();
    let elsewhere = free(Protocol::Tcp);
    let _relays = relay(&still.host, "a", ports).await.unwrap();
    let _others = relay(&still.host, "b", vec![port(Protocol::Tcp, elsewhere, inside)]).await.unwrap();
    // The longest silent of all is of a port that nobody waits at.
    let mut stays = connect(elsewhere, &pod).await;
    advance(Duration::from_millis(1)).await;
    let gives_way = connect(one, &pod).await;
    advance(Duration::from_millis(1)).await;
    let mut second = connect(other, &pod).await;
    let _third = tokio::net::TcpStream::connect(other).await.unwrap();
    advance(SILENT + MOMENT).await;
    is_reset(gives_way).await;
    pod.accept().await.unwrap();
    says_one(&mut stays).await;
    says_one(&mut second).await;
}

#[tokio::test]
async fn what_a_pod_said_before_its_end_is_passed_on_to_who_reads_it_in_time() {
    // More than a client's system takes unread.
    const SAID: usize = 256 * 1024;
    let (still, listen) = (still(16), free(Protocol::Tcp));
    let pod = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&still.host, "a", vec![port(Protocol::Tcp, listen, inside)]).await.unwrap();
    let (mut client, mut served) = connect(listen, &pod).await;
    tokio::spawn(async move { served.write_all(&vec![7; SAID]).await });
    client.read_exact(&mut [0]).await.unwrap();
    relays.stop.cancel();
    yield_now().await;
    advance(DRAIN - MOMENT).await;
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest.len(), SAID - 1);
}

/// Lets all others have their turn until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < STEP, "waited in vain until {what}");
        yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_is_silent_for_long_is_forgotten_and_one_that_hears_or_says_something_is_not() {
    let still = still(16);
    let clients = &still.host.room.clients.part;
    let (listen, pod) = (free(Protocol::Udp), tokio::net::UdpSocket::bind((POD, 0)).await.unwrap());
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&still.host, "a", vec![port(Protocol::Udp, listen, inside)]).await.unwrap();
    let client = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    client.connect(listen).await.unwrap();
    client.send(b"x").await.unwrap();
    let (_, way) = pod.recv_from(&mut [0]).await.unwrap();
    let nearly = IDLE - Duration::from_secs(1);
    advance(nearly).await;
    pod.send_to(b"y", way).await.unwrap();
    assert_eq!(client.recv(&mut [0]).await.unwrap(), 1);
    advance(nearly).await;
    client.send(b"x").await.unwrap();
    assert_eq!(pod.recv_from(&mut [0]).await.unwrap().1, way, "an answer is no silence");
    advance(nearly).await;
    client.send(b"x").await.unwrap();
    assert_eq!(pod.recv_from(&mut [0]).await.unwrap().1, way, "nor is a question");
    assert_eq!(clients.left(), 1);
    advance(IDLE + MOMENT).await;
    until("it is forgotten", || clients.left() == 2).await;
    client.send(b"x").await.unwrap();
    pod.recv_from(&mut [0]).await.unwrap();
    relays.end().await;
    until("its place is free with its port", || clients.left() == 2).await;
}

#[tokio::test]
async fn clients_of_all_addresses_of_a_port_have_one_part() {
    let still = still(16);
    let pod = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let (one, other) = (free(Protocol::Udp), free(Protocol::Udp));
    let other = SocketAddr::new(other.ip(), one.port());
    let ports = [one, other].map(|listen| port(Protocol::Udp, listen, inside)).to_vec();
    let _relays = relay(&still.host, "a", ports).await.unwrap();
    let client = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    for listen in [one, other, one] {
        client.send_to(b"x", listen).await.unwrap();
        let (_, way) = pod.recv_from(&mut [0]).await.unwrap();
        assert_eq!(still.host.room.clients.part.left(), 1, "of two places one port has one");
        pod.send_to(b"y", way).await.unwrap();
        assert_eq!(client.recv_from(&mut [0]).await.unwrap().1, listen, "the answer is the port's");
    }
}

#[tokio::test]
async fn a_new_client_has_the_place_of_the_longest_silent_of_any_port_when_all_are_taken() {
    let still = still(24);
    let (mut pods, mut relays, mut ways) = (Vec::new(), Vec::new(), Vec::new());
    for uid in ["a", "b", "c"] {
        let (listen, pod) = (free(Protocol::Udp), tokio::net::UdpSocket::bind((POD, 0)).await.unwrap());
        let inside = pod.local_addr().unwrap().port();
        relays.push(relay(&still.host, uid, vec![port(Protocol::Udp, listen, inside)]).await.unwrap());
        pods.push((listen, pod));
    }
    let mut clients = Vec::new();
    for _ in 0..2 {
        clients.push(tokio::net::UdpSocket::bind((POD, 0)).await.unwrap());
    }
    // Two of the first port, one of the second: all three places.
    for (of, client) in [(0, 0), (0, 1), (1, 1)] {
        let (listen, pod) = &pods[of];
        clients[client].send_to(b"x", listen).await.unwrap();
        let (_, way) = pod.recv_from(&mut [0]).await.unwrap();
        pod.send_to(b"y", way).await.unwrap();
        clients[client].recv_from(&mut [0]).await.unwrap();
        ways.push(way);
        advance(MOMENT).await;
    }
    let (listen, pod) = &pods[2];
    clients[0].send_to(b"x", listen).await.unwrap();
    pod.recv_from(&mut [0]).await.unwrap();
    assert_eq!(still.host.room.clients.part.left(), 0);
    for (of, way) in [(0, ways[1]), (1, ways[2])] {
        let (listen, pod) = &pods[of];
        clients[1].send_to(b"x", listen).await.unwrap();
        assert_eq!(pod.recv_from(&mut [0]).await.unwrap().1, way, "they are not the longest silent");
    }
}

const ALONE: &str = "TROUPE_TEST_FEW_FILES";

/// The limit is a process', so the test is one of its own.
#[test]
fn a_process_without_a_file_left_carries_on_and_takes_in_who_waits_when_it_has_some() {
    const NAME: &str = "a_process_without_a_file_left_carries_on_and_takes_in_who_waits_when_it_has_some";
    if std::env::var_os(ALONE).is_some() {
        return tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(few_files());
    }
    let path = module_path!().split_once("::").unwrap().1;
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{path}::{NAME}"), "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    let said = [ran.stdout, ran.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

async fn few_files() {
    setrlimit(Resource::RLIMIT_NOFILE, 64, 64).unwrap();
    let (host, listen, datagrams) = (small(800), free(Protocol::Tcp), free(Protocol::Udp));
    let pod = tokio::net::TcpListener::bind((POD, 0)).await.unwrap();
    let pod_udp = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    let inside = [pod.local_addr().unwrap().port(), pod_udp.local_addr().unwrap().port()];
    let ports = vec![port(Protocol::Tcp, listen, inside[0]), port(Protocol::Udp, datagrams, inside[1])];
    let relays = relay(&host, "a", ports).await.unwrap();
    let mut first = connect(listen, &pod).await;
    let known = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    let unknown = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    known.send_to(b"k", datagrams).await.unwrap();
    let (_, way) = timeout(STEP, pod_udp.recv_from(&mut [0])).await.unwrap().unwrap();
    let second = tokio::net::TcpSocket::new_v4().unwrap();

    let mut files = Vec::new();
    while let Ok(file) = std::fs::File::open("/dev/null") {
        files.push(file);
    }
    let mut second = second.connect(listen).await.unwrap();
    second.write_all(b"x").await.unwrap();
    unknown.send_to(b"u", datagrams).await.unwrap();
    // What is there already goes on.
    for _ in 0..100 {
        timeout(STEP, says_one(&mut first)).await.unwrap();
        known.send_to(b"k", datagrams).await.unwrap();
        let mut heard = [0];
        let (_, from) = timeout(STEP, pod_udp.recv_from(&mut heard)).await.unwrap().unwrap();
        assert_eq!((heard, from), (*b"k", way), "there is no file for the other client");
    }
    assert_eq!(host.room.connections.part.left(), 99, "there is no file for the other connection");

    drop(files);
    let (mut served, _) = timeout(STEP, pod.accept()).await.unwrap().unwrap();
    assert_eq!(timeout(STEP, served.read(&mut [0])).await.unwrap().unwrap(), 1);
    unknown.send_to(b"u", datagrams).await.unwrap();
    let mut heard = [0];
    timeout(STEP, pod_udp.recv_from(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, *b"u");
    relays.end().await;
    drop((TcpListener::bind(listen).unwrap(), UdpSocket::bind(datagrams).unwrap()));
}
