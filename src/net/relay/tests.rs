//! Relays over loopback: what is carried, how it ends, and when ports are free again.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::atomic::{AtomicU8, Ordering},
};

use tokio::task::spawn_blocking;

use super::*;

pub(super) const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(super) fn port(protocol: Protocol, listen: SocketAddr, port: u16) -> HostPort {
    HostPort { protocol, listen, optional: false, port }
}

/// A port of loopback that is free, and stays so: nobody else is at that address.
pub(super) fn free(protocol: Protocol) -> SocketAddr {
    static LAST: AtomicU8 = AtomicU8::new(0);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 128 + LAST.fetch_add(1, Ordering::Relaxed), high, low);
    let any = SocketAddr::new(address.into(), 0);
    match protocol {
        Protocol::Tcp => TcpListener::bind(any).unwrap().local_addr().unwrap(),
        Protocol::Udp => UdpSocket::bind(any).unwrap().local_addr().unwrap(),
    }
}

pub(super) async fn relay(host: &Host, uid: &str, ports: Vec<HostPort>) -> Result<Relays, RelayError> {
    host.open(&Uid::from(uid), &format!("default/{uid}"), ports).await?.lead(POD)
}

#[tokio::test]
async fn a_connection_is_carried_both_ways_and_closed_in_halves() {
    let (host, listen) = (Host::default(), free(Protocol::Tcp));
    let pod = TcpListener::bind((POD, 0)).unwrap();
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&host, "a", vec![port(Protocol::Tcp, listen, inside)]).await.unwrap();
    let served = spawn_blocking(move || {
        let (mut stream, _) = pod.accept().unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        // The client has closed its half, and still hears the rest: more than any buffer.
        stream.write_all(text.repeat(300_000).as_bytes()).unwrap();
    });
    let length = spawn_blocking(move || {
        let mut client = TcpStream::connect(listen).unwrap();
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        answer.len()
    });
    assert_eq!(length.await.unwrap(), 1_500_000);
    served.await.unwrap();
    relays.end().await;
    // Not only refused: it can be had by others.
    drop(TcpListener::bind(listen).unwrap());
}

#[tokio::test]
async fn what_the_pod_does_not_take_ends_at_once_and_later_works() {
    let (host, listen, inside) = (Host::default(), free(Protocol::Tcp), free(Protocol::Tcp));
    let ports = vec![port(Protocol::Tcp, listen, inside.port())];
    let _relays = host.open(&Uid::from("a"), "default/a", ports).await.unwrap().lead(inside.ip()).unwrap();
    let ask = move || -> io::Result<usize> {
        let mut client = TcpStream::connect(listen)?;
        client.read(&mut [0])
    };
    let error = spawn_blocking(ask).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    let pod = TcpListener::bind(inside).unwrap();
    let served = spawn_blocking(move || pod.accept().unwrap().0.write_all(b"x").unwrap());
    assert_eq!(spawn_blocking(ask).await.unwrap().unwrap(), 1);
    served.await.unwrap();
}

#[tokio::test]
async fn datagrams_find_the_pod_and_each_answer_its_client() {
    let (host, listen) = (Host::default(), free(Protocol::Udp));
    let pod = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&host, "a", vec![port(Protocol::Udp, listen, inside)]).await.unwrap();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = tokio::net::UdpSocket::bind((POD, 0)).await.unwrap();
        client.connect(listen).await.unwrap();
        clients.push(client);
    }
    let mut buffer = vec![0; DATAGRAM];
    for round in 0..3_u8 {
        let mut asked = Vec::new();
        for (client, name) in clients.iter().zip([b'a', b'b']) {
            client.send(&[name, round]).await.unwrap();
            let (length, from) = pod.recv_from(&mut buffer).await.unwrap();
            asked.push((buffer[..length].to_vec(), from));
        }
        assert_ne!(asked[0].1, asked[1].1, "each has a way of its own");
        for (question, from) in asked.iter().rev() {
            pod.send_to(&[question.as_slice(), &vec![7; 9000]].concat(), from).await.unwrap();
        }
        for (client, name) in clients.iter().zip([b'a', b'b']) {
            let length = client.recv(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..2], length), (&[name, round][..], 9002));
        }
    }
    relays.end().await;
    drop(UdpSocket::bind(listen).unwrap());
}

const DATAGRAM: usize = 64 * 1024;

#[tokio::test]
async fn a_port_that_is_taken_says_so_and_none_of_the_others_stays_open() {
    let host = Host::default();
    let taken = TcpListener::bind(free(Protocol::Tcp)).unwrap();
    let (listen, other) = (taken.local_addr().unwrap(), free(Protocol::Tcp));
    let ports = vec![port(Protocol::Tcp, other, 1), port(Protocol::Tcp, listen, 1)];
    let error = relay(&host, "a", ports.clone()).await.err().unwrap().to_string();
    let told =
        format!("host port {listen}/TCP: address already in use: something else on this machine has it");
    assert!(error.starts_with(&told), "{error}");
    drop(TcpListener::bind(other).unwrap());
    drop(taken);
    let first = relay(&host, "a", ports.clone()).await.unwrap();
    // Another pod waits for it; the same pod's next life has it as soon as the last one gives it up, however that ends.
    let error = relay(&host, "b", ports.clone()).await.err().unwrap();
    assert_eq!(error.reason(), "HostPortConflict");
    assert!(error.to_string().contains(": pod default/a has it"), "{error}");
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), listen.port());
    let error = relay(&Host::default(), "c", vec![port(Protocol::Tcp, any, 1)]).await.err().unwrap();
    assert!(error.to_string().contains(": pod default/a has it"), "its address is one of all: {error}");
    for _ in 0..20 {
        let (dropped, anew) = (first.stop.clone(), relay(&host, "a", ports.clone()));
        dropped.cancel();
        drop(anew.await.unwrap());
    }
    relay(&host, "a", ports).await.unwrap().end().await;
}

#[tokio::test]
async fn what_breaks_is_told_and_what_is_ended_is_not() {
    let host = Host::default();
    let relays = relay(&host, "a", vec![port(Protocol::Tcp, free(Protocol::Tcp), 1)]).await.unwrap();
    let failed = relays.failed();
    relays.end().await;
    assert!(!failed.await);
    let (stop, broken) = (CancellationToken::new(), CancellationToken::new());
    let (alive, ended) = watch::channel(());
    let relays = Relays { stop: stop.clone(), broken: broken.clone(), ended };
    let room = Arc::new(Room::of(8));
    let place = room.listeners.try_take(1).unwrap();
    let tasks = Tasks { stop, broken, _alive: Arc::new((Holds::new(room, "a"), place, alive)) };
    tasks.spawn_watched(&Handle::current(), async { panic!("a listener fails") });
    assert!(relays.failed().await);
}

#[tokio::test]
async fn a_family_that_the_machine_lacks_is_left_out_where_it_may_be() {
    let open_here: Opener = Arc::new(|port| match port.listen {
        SocketAddr::V4(_) => open(port),
        SocketAddr::V6(_) => Err(io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT)),
    });
    let host = Host::by(Some(open_here));
    let v4 = port(Protocol::Tcp, free(Protocol::Tcp), 1);
    let v6 = HostPort { listen: "[::]:1".parse().unwrap(), ..v4 };
    relay(&host, "a", vec![v4, HostPort { optional: true, ..v6 }]).await.unwrap().end().await;
    assert!(relay(&host, "a", vec![v4, v6]).await.is_err());
}

#[tokio::test]
async fn an_address_that_is_not_the_machines_is_told() {
    let elsewhere = port(Protocol::Tcp, "192.0.2.1:80".parse().unwrap(), 1);
    let error = relay(&Host::default(), "a", vec![elsewhere]).await.err().unwrap();
    assert_eq!(error.reason(), "HostPortFailed");
    assert!(error.to_string().contains("hostIP is no address of this machine"), "{error}");
}

/// Long enough for anything that has to come.
pub(super) const STEP: Duration = Duration::from_secs(20);

/// A pod that says all of `bytes` and closes, to a client that has read the first one only.
async fn says(bytes: usize) -> (Host, Relays, TcpStream) {
    let (host, listen) = (Host::default(), free(Protocol::Tcp));
    let pod = TcpListener::bind((POD, 0)).unwrap();
    let inside = pod.local_addr().unwrap().port();
    let relays = relay(&host, "a", vec![port(Protocol::Tcp, listen, inside)]).await.unwrap();
    let client = spawn_blocking(move || {
        let mut client = TcpStream::connect(listen).unwrap();
        client.set_read_timeout(Some(STEP)).unwrap();
        let (mut served, _) = pod.accept().unwrap();
        // It goes on alone: what nobody takes blocks it until the relay goes.
        thread::spawn(move || served.write_all(&vec![7; bytes]));
        client.read_exact(&mut [0]).unwrap();
        client
    });
    (host, relays, client.await.unwrap())
}

const LARGE: usize = 16 * 1024 * 1024;

#[tokio::test]
async fn what_is_read_while_the_relays_end_is_all_of_it_or_ends_in_an_error() {
    let (_host, relays, mut client) = says(LARGE).await;
    let read = spawn_blocking(move || client.read_to_end(&mut Vec::new()));
    relays.end().await;
    // On a slow machine there is no time for all; never a part that looks whole.
    if let Ok(length) = read.await.unwrap() {
        assert_eq!(length, LARGE - 1);
    }
}

#[tokio::test]
async fn what_a_client_does_not_read_in_time_ends_in_a_reset_not_in_a_clean_end() {
    let (_host, relays, mut client) = says(LARGE).await;
    relays.end().await;
    let read = spawn_blocking(move || client.read_to_end(&mut Vec::new())).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_vanishes_after_closing_its_half_ends_the_connection() {
    let (host, listen) = (Host::default(), free(Protocol::Tcp));
    let pod = TcpListener::bind((POD, 0)).unwrap();
    let inside = pod.local_addr().unwrap().port();
    let _relays = relay(&host, "a", vec![port(Protocol::Tcp, listen, inside)]).await.unwrap();
    let served = spawn_blocking(move || {
        let client = TcpStream::connect(listen).unwrap();
        let (mut served, _) = pod.accept().unwrap();
        served.set_read_timeout(Some(STEP)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(served.read(&mut [0]).unwrap(), 0);
        // Unread bytes make its end a reset, as a keepalive's failure is.
        served.write_all(b"unread").unwrap();
        client.peek(&mut [0]).unwrap();
        served
    });
    let served = served.await.unwrap();
    served.set_nonblocking(true).unwrap();
    let served = tokio::net::TcpStream::from_std(served).unwrap();
    // The pod says nothing more, and hears of it all the same.
    tokio::time::timeout(STEP, served.ready(tokio::io::Interest::ERROR)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_pod_that_says_more_than_can_be_passed_on_holds_up_no_other() {
    // More than one turn is worth, less than a socket takes.
    const SAID: usize = 150;
    let (stop, _) = oneshot::channel();
    // On this thread, so that it is known who has a turn when.
    let thread = Thread { handle: Handle::current(), _stop: stop };
    let host = Host { thread: Mutex::new(Some(thread)), ..Host::default() };
    let (listen, pod) = (free(Protocol::Udp), tokio::net::UdpSocket::bind((POD, 0)).await.unwrap());
    let inside = pod.local_addr().unwrap().port();
    let _relays = relay(&host, "a", vec![port(Protocol::Udp, listen, inside)]).await.unwrap();
    let client = UdpSocket::bind((POD, 0)).unwrap();
    client.set_nonblocking(true).unwrap();
    client.send_to(b"more", listen).unwrap();
    let (_, way) = pod.recv_from(&mut [0; 8]).await.unwrap();
    let pod = pod.into_std().unwrap();
    for _ in 0..SAID {
        pod.send_to(&[7], way).unwrap();
    }
    let (mut turns, begun) = (Vec::new(), std::time::Instant::now());
    while turns.iter().sum::<usize>() < SAID {
        assert!(begun.elapsed() < Duration::from_secs(20), "{turns:?}");
        tokio::task::yield_now().await;
        turns.push(std::iter::from_fn(|| client.recv(&mut [0]).ok()).count());
    }
    turns.retain(|heard| *heard > 0);
    assert!(turns.len() > 1, "others have a turn before all of it is passed on: {turns:?}");
}

#[test]
fn the_first_datagram_after_what_listens_came_back_arrives() {
    let inside = free(Protocol::Udp);
    let client = UdpSocket::bind((POD, 0)).unwrap();
    client.connect(inside).unwrap();
    // Refused, which the next one would be told.
    udp::send(&client, b"lost").unwrap();
    let pod = UdpSocket::bind(inside).unwrap();
    pod.set_read_timeout(Some(STEP)).unwrap();
    udp::send(&client, b"heard").unwrap();
    let mut buffer = [0; 8];
    assert_eq!(pod.recv(&mut buffer).unwrap(), 5);
}
