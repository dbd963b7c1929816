//! Relays over loopback: what is carried, how it ends, and when ports are free again.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
};

use tokio::task::spawn_blocking;

use super::*;

const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn port(protocol: Protocol, listen: SocketAddr, port: u16) -> HostPort {
    HostPort { protocol, listen, optional: false, port }
}

/// A port of loopback that is free.
fn free(protocol: Protocol) -> SocketAddr {
    let any = SocketAddr::new(POD, 0);
    match protocol {
        Protocol::Tcp => TcpListener::bind(any).unwrap().local_addr().unwrap(),
        Protocol::Udp => UdpSocket::bind(any).unwrap().local_addr().unwrap(),
    }
}

async fn relay(host: &Host, uid: &str, ports: Vec<HostPort>) -> Result<Relays, RelayError> {
    host.open(&Uid::from(uid), ports).await?.lead(POD)
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
    let _relays = relay(&host, "a", vec![port(Protocol::Tcp, listen, inside.port())]).await.unwrap();
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
    let taken = TcpListener::bind((POD, 0)).unwrap();
    let (listen, other) = (taken.local_addr().unwrap(), free(Protocol::Tcp));
    let ports = vec![port(Protocol::Tcp, other, 1), port(Protocol::Tcp, listen, 1)];
    let error = relay(&host, "a", ports.clone()).await.err().unwrap().to_string();
    assert!(error.starts_with(&format!("host port {listen}/TCP: address already in use")), "{error}");
    drop(TcpListener::bind(other).unwrap());
    drop(taken);
    let first = relay(&host, "a", ports.clone()).await.unwrap();
    // Another pod waits for it; the same pod's next life has it as soon as the last one gives it up, however that ends.
    assert!(relay(&host, "b", ports.clone()).await.is_err());
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
    let tasks = Tasks { stop, broken, _alive: Arc::new(alive) };
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
