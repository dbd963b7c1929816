//! Whatever comes to the links' port of a real master: bounded in memory, one log line a peer and interval, never its
//! end, and nobody else notices.

use std::{
    collections::HashSet,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    bed::{Bed, Host, ready},
    harness::{check, text, until},
    raw,
};

/// What a master may have grown by in the end: less than what came in, and than what any of it claimed.
const GROWTH_KIB: u64 = 64 << 10;
/// Datagrams of noise.
const NOISE: usize = 20_000;
/// Handshakes that are begun and never finished: many times as many as may be under way at once.
const HALF_OPEN: usize = 500;

fn links(host: &Host) -> SocketAddr {
    format!("{}:6443", host.address).parse().unwrap()
}

fn resident_kib(host: &Host) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What somebody reads who has not asked for more.
fn log_lines(host: &Host) -> Vec<String> {
    let said = host.said();
    let loud = |line: &&str| ["ERROR", "WARN", "INFO"].iter().any(|level| line.contains(level));
    said.lines().filter(loud).map(str::to_owned).collect()
}

/// First datagrams of handshakes with the master, none like another.
fn first_datagrams(count: usize, protocol: &[u8]) -> Vec<Vec<u8>> {
    /// Dials at once: each has a socket.
    const DIALS: usize = 50;
    let mut all = Vec::new();
    raw::block_on(async {
        let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = sink.local_addr().unwrap();
        while all.len() < count {
            let mut dials = tokio::task::JoinSet::new();
            for _ in 0..DIALS.min(count - all.len()) {
                let protocol = protocol.to_vec();
                dials.spawn(async move { drop(raw::connect(address, &[&protocol], None).await) });
            }
            // The first of each: what follows repeats it, or takes it back.
            let (mut from, mut datagram) = (HashSet::new(), vec![0; 2048]);
            while from.len() < dials.len() {
                let (length, sender) = sink.recv_from(&mut datagram).await.unwrap();
                if from.insert(sender) {
                    all.push(datagram[..length].to_vec());
                }
            }
            dials.shutdown().await;
            while sink.try_recv(&mut datagram).is_ok() {}
        }
    });
    all
}

fn noise(to: SocketAddr, rng: &mut StdRng) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for number in 0..NOISE {
        // A port's buffer is bounded: at full speed it would be others' datagrams that get lost.
        if number % 50 == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut datagram = vec![0; rng.random_range(0..1472)];
        rng.fill_bytes(&mut datagram);
        // Half of them look like a beginning, or like what follows one.
        if let (Some(first), true) = (datagram.first_mut(), rng.random()) {
            *first |= 0x40;
        }
        let _ = socket.send_to(&datagram, to);
    }
}

/// Beginnings that were cut, changed, or are of another version.
fn broken_beginnings(to: SocketAddr, rng: &mut StdRng) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    for datagram in first_datagrams(10, raw::LINK) {
        for length in (0..datagram.len()).step_by(37) {
            let _ = socket.send_to(&datagram[..length], to);
        }
        for _ in 0..200 {
            let mut changed = datagram.clone();
            let at = rng.random_range(0..changed.len());
            changed[at] ^= 1 << rng.random_range(0..8);
            let _ = socket.send_to(&changed, to);
        }
        let mut other = datagram.clone();
        other[1..5].copy_from_slice(&[0xba, 0xba, 0xba, 0xba]);
        let _ = socket.send_to(&other, to);
        // Larger than any datagram of ours.
        let _ = socket.send_to(&[datagram.as_slice(), &[7; 60_000]].concat(), to);
    }
}

fn half_open(to: SocketAddr) {
    // From many ports: a few each.
    for beginnings in first_datagrams(HALF_OPEN, raw::JOIN).chunks(5) {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for datagram in beginnings {
            let _ = socket.send_to(datagram, to);
        }
    }
}

/// Machines that get through the handshake of a join and then say something else.
async fn bad_joins(to: SocketAddr) {
    let mut held = Vec::new();
    let oversized = [u32::MAX.to_be_bytes().to_vec(), vec![9; 30_000]].concat();
    let announced = 16_000_u32.to_be_bytes().to_vec();
    let rubbish = raw::framed(&[0xff; 16_000]);
    for words in [oversized, announced, rubbish, Vec::new()].iter().cycle().take(40) {
        let (endpoint, connection) = raw::connect(to, &[raw::JOIN], None).await;
        // Beyond so many at once they are turned away.
        let Ok(connection) = connection else { continue };
        if let Ok((mut send, receive)) = connection.open_bi().await {
            let _ = send.write_all(words).await;
            held.push((endpoint, connection, send, receive));
        }
    }
    for _ in 0..40 {
        let (_endpoint, connection) = raw::connect(to, &[b"h3"], None).await;
        assert!(connection.is_err(), "another protocol");
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
}

/// A node of the cluster that has been taken over: what it says is well formed, in part.
async fn bad_node(to: SocketAddr, identity: &troupe::net::Identity, foreign: &[u8], rng: &mut StdRng) {
    // Each of these ends its link, or not; it comes again as it likes.
    for round in 0..6 {
        let (_endpoint, connection) = raw::connect(to, &[raw::LINK], Some(identity)).await;
        let connection = connection.unwrap();
        let mut streams = raw::introduce(&connection).await;
        let said = async {
            match round {
                // Frames that nobody understands, large and small.
                0 => {
                    for _ in 0..300 {
                        let mut garbage = vec![250; rng.random_range(1..20_000)];
                        rng.fill_bytes(&mut garbage[1..]);
                        streams.state.0.write_all(&raw::framed(&garbage)).await?;
                    }
                }
                // A frame that is announced and never comes.
                1 => streams.state.0.write_all(&200_000_u32.to_be_bytes()).await?,
                // One that may not be.
                2 => streams.control.0.write_all(&u32::MAX.to_be_bytes()).await?,
                // What is not its own to say, again and again.
                3 => {
                    for _ in 0..5_000 {
                        streams.state.0.write_all(&raw::framed(foreign)).await?;
                    }
                }
                // Byte streams without end and without a word.
                4 => {
                    let mut silent = Vec::new();
                    while let Ok(Ok((mut send, receive))) =
                        tokio::time::timeout(Duration::from_millis(200), connection.open_bi()).await
                    {
                        send.write_all(&[2, 0]).await?;
                        silent.push((send, receive));
                    }
                    assert!(silent.len() < 300, "no bound");
                }
                // The end of a stream in the middle of a frame.
                _ => {
                    streams.control.0.write_all(&[0, 0, 0, 99, 1]).await?;
                    let _ = streams.control.0.finish();
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok::<(), quinn::WriteError>(())
        };
        // The master may hang up in the middle.
        let _ = said.await;
        connection.close(quinn::VarInt::from_u32(1), b"");
    }
}

#[test]
fn whatever_comes_to_the_port_is_bounded_and_the_cluster_does_not_notice() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    let (mut bad, mut late) = (bed.host("bad"), bed.host("late"));
    master.master(&[]);
    let (token, address) = (master.token(&[]), master.address.clone());
    let join = |host: &mut Host| {
        let name = host.name.clone();
        host.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", &name]);
    };
    join(&mut one);
    join(&mut bad);
    ["one", "bad"].iter().for_each(|name| master.until_node(name, "True"));
    let pod = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "foreign"},
        "spec": {"nodeName": "one", "containers": [crate::harness::hello("c", &[])]},
    });
    master.apply(&pod);
    master.until_pods(1);
    bad.kill();

    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let (before_kib, before_lines) = (resident_kib(&master), log_lines(&master).len());
    let (to, identity) = (links(&master), raw::identity(&bad.data));
    let report = troupe::messages::wire::PodReport {
        namespace: "default".into(),
        name: "foreign".into(),
        uid: text(&master.pods()[0]["metadata"]["uid"]).into(),
        sequence: 1,
        status: b"{\"phase\":\"Failed\"}".as_slice().into(),
        terminated: true,
    };
    let foreign = troupe::messages::wire::ToMaster::Pods(vec![report]);
    let foreign = troupe::net::codec::encode(&foreign, 1 << 20).unwrap();
    bad.inside(|| {
        noise(to, &mut rng);
        broken_beginnings(to, &mut rng);
        half_open(to);
        raw::block_on(async {
            bad_joins(to).await;
            bad_node(to, &identity, &foreign, &mut rng).await;
        });
    });

    // Others get in, at once.
    let begun = std::time::Instant::now();
    join(&mut late);
    master.until_node("late", "True");
    eprintln!("joined after {:?}", begun.elapsed());
    // Nobody else was taken for dead, and what was said of others' pods changed nothing.
    let events = master.get(&["events", "-A"]).unwrap();
    let all = events["items"].as_array().cloned().unwrap_or_default();
    let lost = |e: &&serde_json::Value| e["reason"] == "NodeNotReady" && e["involvedObject"]["name"] != "bad";
    assert_eq!(all.iter().find(lost), None);
    assert_eq!(master.pods()[0]["status"]["phase"], "Running");
    let lines = log_lines(&master).split_off(before_lines);
    eprintln!("{} log lines", lines.len());
    assert!(lines.len() < 60, "{}", lines.join("\n"));
    for said in ["turned a peer away", "a node spoke of what is not its own"] {
        let count = lines.iter().filter(|line| line.contains(said)).count();
        assert!((1..=4).contains(&count), "{count} times {said:?}: {}", lines.join("\n"));
    }
    let grown = until("the memory is given back", || {
        let grown = resident_kib(&master).saturating_sub(before_kib);
        check(grown < GROWTH_KIB, || format!("{grown} KiB more than before"))?;
        Ok(grown)
    });
    eprintln!("grown by {grown} KiB");
}
