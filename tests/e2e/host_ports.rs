//! Ports of the machine that lead to pods (`hostPort`), as a user and their clients see them.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, text, until};

/// A port that is free on all addresses of the machine, and not of those that are given to whoever asks for any. No two
/// tests get the same one, though it may be free again before it is used.
fn free() -> (TcpListener, u16) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let below: u32 = range.split_whitespace().next().unwrap().parse().unwrap();
    // An ordinary user's begin there.
    let first = 1024.max(below / 3);
    let tried = |_| {
        let turn = std::process::id().wrapping_mul(16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(first + turn % below.checked_sub(first)?).unwrap();
        let listener = TcpListener::bind(("0.0.0.0", port)).ok()?;
        UdpSocket::bind(("127.0.0.1", port)).ok()?;
        Some((listener, port))
    };
    (first..below).find_map(tried).unwrap_or_else(|| panic!("no port between {first} and {below} is free"))
}

fn pod(name: &str, ports: Value) -> Value {
    let mut container = hello("c", &["--listen", "0.0.0.0:8080"]);
    container["ports"] = ports;
    bare_pod(name, "Always", &[container])
}

/// What a server says at an address, as soon as it says anything.
#[track_caller]
fn answer(address: SocketAddr) -> String {
    until(&format!("something answers at {address}"), || {
        let asked = || -> std::io::Result<String> {
            let mut client = TcpStream::connect(address)?;
            client.set_read_timeout(Some(Duration::from_secs(10)))?;
            client.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            client.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            client.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = asked().map_err(|error| error.to_string())?;
        check(answer.starts_with("HTTP/1."), || format!("it says {answer:?}"))?;
        Ok(answer)
    })
}

#[track_caller]
fn until_free(port: u16) {
    until("the port is free", || {
        TcpListener::bind(("0.0.0.0", port)).map(drop).map_err(|error| error.to_string())
    });
}

/// Echoes one datagram after the other in a pod's network, as long as this process lives.
fn echo_in(pid: i32, port: u16) {
    let (done, made) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        setns(File::open(format!("/proc/{pid}/ns/net")).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        let socket = UdpSocket::bind(("0.0.0.0", port)).unwrap();
        done.send(()).unwrap();
        let mut buffer = vec![0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    made.recv().unwrap();
}

#[test]
fn a_host_port_leads_to_its_pod_through_restarts_and_is_free_after_it() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let (ns, (listener, port)) = ("default", free());
    drop(listener);
    let ports = json!([
        {"containerPort": 8080, "hostPort": port},
        {"containerPort": 5353, "hostPort": port, "protocol": "UDP", "hostIP": "127.0.0.1"},
    ]);
    let applied = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &pod("web", ports).to_string());
    applied.ok();
    assert!(!applied.err().contains("not yet acted on"), "{}", applied.err());
    let web = cluster.until_pod(ns, "web", "ready", is_ready);
    let at = |host: [u8; 4]| SocketAddr::from((host, port));
    assert!(answer(at([127, 0, 0, 1])).contains("web"), "the pod's own name");
    assert!(answer(at([127, 0, 0, 2])).contains("web"), "every address of the machine");
    let v6 = SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    if TcpListener::bind("[::1]:0").is_ok() {
        assert!(answer(v6).contains("web"), "the other family");
    }

    // However many files troupe itself may open.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", cluster.pid(&web))).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1024"), "{files}");

    echo_in(cluster.pid(&web), 5353);
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    client.connect(at([127, 0, 0, 1])).unwrap();
    let echoed = |word: &str| {
        until("a datagram comes back", || {
            let mut buffer = [0; 64];
            client.send(word.as_bytes()).map_err(|error| error.to_string())?;
            let length = client.recv(&mut buffer).map_err(|error| error.to_string())?;
            check(buffer[..length] == *word.as_bytes(), || format!("{:?}", &buffer[..length]))
        });
    };
    echoed("before");

    // The same pod, another process.
    cluster.kill();
    until_free(port);
    cluster.up();
    assert!(answer(at([127, 0, 0, 1])).contains("web"));
    echoed("after");
    let still = cluster.until_pod(ns, "web", "ready", is_ready);
    assert_eq!(still["status"]["containerStatuses"], web["status"]["containerStatuses"]);

    cluster.kubectl(&["delete", "pod", "-n", ns, "web"]).ok();
    assert!(TcpListener::bind(("0.0.0.0", port)).is_ok(), "free as soon as the pod is gone");
}

#[test]
fn a_pod_whose_host_port_is_taken_says_so_and_runs_once_it_is_free() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let (ns, (listener, port)) = ("default", free());
    cluster.apply(ns, &pod("waits", json!([{"containerPort": 8080, "hostPort": port}])));
    let told = cluster.until_event(ns, "waits", "FailedCreatePodSandBox");
    assert!(told.contains(&format!("host port 0.0.0.0:{port}/TCP: address already in use")), "{told}");
    assert!(cluster.pod(ns, "waits").unwrap()["status"]["podIP"].is_null(), "it has no sandbox");
    drop(listener);
    cluster.until_pod(ns, "waits", "ready", is_ready);
    assert!(answer(([127, 0, 0, 1], port).into()).contains("waits"));

    // Taken while troupe is away: the pod runs on, and its port comes when it can be had.
    cluster.kill();
    let thief = until("the port can be taken", || {
        TcpListener::bind(("0.0.0.0", port)).map_err(|error| error.to_string())
    });
    cluster.up();
    let told = cluster.until_event(ns, "waits", "HostPortConflict");
    assert!(told.contains("address already in use"), "{told}");
    drop(thief);
    assert!(answer(([127, 0, 0, 1], port).into()).contains("waits"));
    let pod = cluster.until_pod(ns, "waits", "ready", is_ready);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);

    // The port leads to the pod's next sandbox, too.
    crate::harness::kill9(cluster.shim(&pod));
    cluster.until_pod(ns, "waits", "ready again", |pod| {
        is_ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    assert!(answer(([127, 0, 0, 1], port).into()).contains("waits"));
    cluster.kubectl(&["delete", "pod", "-n", ns, "waits"]).ok();
    until_free(port);
}

#[test]
fn what_no_relay_speaks_is_warned_of_and_told() {
    if !ready() {
        return;
    }
    let cluster = crate::harness::shared();
    let ns = "host-sctp";
    cluster.namespace(ns);
    let ports = json!([{"containerPort": 8080, "hostPort": 9, "protocol": "SCTP"}]);
    let ran = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &pod("sctp", ports).to_string());
    ran.ok();
    assert!(ran.err().contains("ports[0].hostPort: stored but not yet acted on"), "{}", ran.err());
    let told = cluster.until_event(ns, "sctp", "UnsupportedHostPort");
    assert!(told.contains("9/SCTP") && told.contains("only TCP and UDP"), "{told}");
    cluster.until_pod(ns, "sctp", "ready", |pod| is_ready(pod) && !text(&pod["status"]["podIP"]).is_empty());
    cluster.kubectl(&["delete", "pod", "-n", ns, "sctp"]).ok();
}
