//! N3, N4, N5: a machine that dies, one that joins, and one that is merely there.
//!
//! Machines are network namespaces on this one; what is timed is what a watch on the master's API tells.

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    Options,
    client::Login,
    cluster::{CONTROLLERS, PODS, PodWatch},
    hosts::Bed,
    machine::{cpu, memory},
    row::{Row, Times, ms},
};

const NODES: &str = "/api/v1/nodes";
/// Pods of the machine that dies.
const LOST: usize = 30;

type Events = mpsc::Receiver<(Instant, Value)>;

/// When a node's `Ready` is first told to be this.
fn told(events: &Events, node: &str, status: &str) -> Instant {
    loop {
        let (at, event) = events.recv_timeout(Duration::from_secs(60)).expect("the node changes");
        let object = &event["object"];
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == status);
        if object["metadata"]["name"] == node && is {
            return at;
        }
    }
}

fn controller(replicas: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"app": "web"}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "image": "troupe.local/hello"}]}}},
    })
}

/// N3: a machine dies → `NotReady` → its pods' replacements `Running`.
pub fn lost(options: &Options) -> Vec<Row> {
    const BUDGET: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(5));
    let (mut not_ready, mut replaced) = (Times::default(), Times::default());
    for _ in 0..options.rounds(5, 2) {
        let mut bed = Bed::new(options);
        let token = bed.token();
        let hosts = [bed.host(), bed.host()];
        for (host, name) in hosts.into_iter().zip(["stays", "dies"]) {
            bed.node(host, name, &token, &[]);
        }
        let (silent, running) = bed.at_master(|login: &Login| {
            let (mut client, pods) = (login.connect(), PodWatch::new(login));
            client.create(CONTROLLERS, &controller(2 * LOST));
            let mut names = std::collections::BTreeSet::new();
            while names.len() < 2 * LOST {
                names.insert(pods.running(|_| true).1);
            }
            let list = client.get(PODS);
            let of = |pod: &&Value| pod["spec"]["nodeName"] == "dies";
            let dying = list["items"].as_array().into_iter().flatten().filter(of).count();
            assert_eq!(dying, LOST, "pods are spread evenly");
            let nodes = login.watch(NODES);
            let begun = Instant::now();
            let [_, dies] = hosts;
            bed.cut(dies);
            let mut last = begun;
            let mut new = std::collections::BTreeSet::new();
            while new.len() < LOST {
                let (at, name) = pods.running(|pod| {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                    !names.contains(name) && pod["spec"]["nodeName"] == "stays"
                });
                last = at;
                new.insert(name);
            }
            (told(&nodes, "dies", "Unknown") - begun, last - begun)
        });
        not_ready.push(silent);
        replaced.push(running);
    }
    vec![Row {
        name: "N3",
        what: format!("a machine is cut off → `NotReady` → the last of its {LOST} pods replaced and Running"),
        troupe: format!("{}; {}", not_ready.text(), replaced.text()),
        beside: "1.9 seconds of silence before it is believed".into(),
        budget: "≤ 2 s; ≤ 5 s".into(),
        met: not_ready.quantile(1.0) <= BUDGET.0 && replaced.quantile(1.0) <= BUDGET.1,
    }]
}

/// N4: `troupe node --join` → `Ready`.
pub fn joined(options: &Options) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_secs(1);
    let mut bed = Bed::new(options);
    let token = bed.token();
    let nodes = bed.at_master(|login| login.watch(NODES));
    let (mut ready, mut line, mut bare) = (Times::default(), Times::default(), Times::default());
    for round in 0..options.rounds(20, 5) {
        let (host, name) = (bed.host(), format!("n{round}"));
        let (begun, said) = bed.node(host, &name, &token, &[]);
        ready.push(told(&nodes, &name, "True") - begun);
        line.push(said - begun);
        bare.push(handshakes(options));
    }
    vec![Row {
        name: "N4",
        what: "`troupe node --join` on a new directory → `Ready` as a watch tells it".into(),
        troupe: format!("{}; its own ready line {}", ready.text(), ms(line.median())),
        beside: format!("the program's start, a key pair, two handshakes: {}", bare.text()),
        budget: "≤ 1 s".into(),
        met: ready.median() <= BUDGET,
    }]
}

/// What any join needs: the program, a key with its certificate, and two mutual handshakes.
fn handshakes(options: &Options) -> Duration {
    let authority = Arc::new(troupe::net::Authority::ephemeral().expect("a key"));
    let master = authority.issue_master().expect("a key");
    let config = troupe::net::LinkConfig::default();
    let local = SocketAddr::from(([127, 0, 0, 1], 0));
    let runtime = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime")
    };
    let (tell, address) = mpsc::channel();
    let side = authority.clone();
    thread::spawn(move || {
        runtime().block_on(async {
            let listener = troupe::net::Listener::bind(local, &master, side.certificate(), config);
            let mut listener = listener.expect("a port");
            tell.send(listener.local_addr()).expect("somebody waits");
            for _ in 0..2 {
                let link = listener.accept::<(), ()>().await.expect("a link");
                let (_handle, mut events) = link.split();
                let _ = events.next().await;
            }
        });
    });
    let address = address.recv().expect("it listens");
    let begun = Instant::now();
    let version = Command::new(&options.program).arg("--version").stdout(Stdio::null()).status();
    assert!(version.is_ok_and(|status| status.success()), "it starts");
    let node = authority.issue_node(&"n1".into()).expect("a key");
    let connector = troupe::net::Connector::new(&node, authority.certificate(), config).expect("an identity");
    runtime().block_on(async {
        for _ in 0..2 {
            let link = connector.connect::<(), ()>(address, troupe::net::identity::MASTER).await;
            drop(link.expect("a link"));
        }
    });
    begun.elapsed()
}

/// N5: what one more idle node costs the master.
pub fn idle(options: &Options) -> Vec<Row> {
    /// Many, since what the machine gives out is whole blocks and pages: one more or less is nothing of a node then.
    const NODES: usize = 40;
    const FIRST: usize = 5;
    /// KiB, share of a core, bytes a second.
    const BUDGET: (f64, f64, f64) = (60.0, 0.0001, 1024.0);
    let mut bed = Bed::new(options);
    let token = bed.token();
    let host = bed.host();
    // What the first ones cost once and for all is not the cost of one more.
    for number in 0..FIRST {
        bed.node(host, &format!("first{number}"), &token, &["--runtime", "sim"]);
    }
    let before = Cost::of(&bed, options);
    for number in 0..NODES {
        bed.node(host, &format!("n{number}"), &token, &["--runtime", "sim"]);
    }
    let after = Cost::of(&bed, options);
    let each = |of: fn(&Cost) -> f64| (of(&after) - of(&before)) / NODES as f64;
    let (memory, cpu, bytes) = (each(|c| c.memory_kib), each(|c| c.cpu), each(|c| c.bytes_per_second));
    vec![Row {
        name: "N5",
        what: format!("each of {NODES} idle nodes more, at the master"),
        troupe: format!("{memory:.0} KiB, {:.3} % of a core, {bytes:.0} bytes/s", cpu * 100.0),
        beside: format!(
            "the master with {FIRST} nodes {:.0} KiB, {:.3} %, {:.0} bytes/s",
            before.memory_kib,
            before.cpu * 100.0,
            before.bytes_per_second
        ),
        budget: "≤ 60 KiB, ≤ 0.01 %, ≤ 1 KiB/s".into(),
        met: memory <= BUDGET.0 && cpu <= BUDGET.1 && bytes <= BUDGET.2,
    }]
}

struct Cost {
    memory_kib: f64,
    cpu: f64,
    bytes_per_second: f64,
}

impl Cost {
    /// Over a minute, after things have settled.
    fn of(bed: &Bed, options: &Options) -> Cost {
        let (settle, window) = if options.quick { (5, 20) } else { (20, 60) };
        thread::sleep(Duration::from_secs(settle));
        let pid = bed.master_pid();
        let (used, bytes, begun) = (cpu(pid), bed.master_bytes(), Instant::now());
        thread::sleep(Duration::from_secs(window));
        let seconds = begun.elapsed().as_secs_f64();
        Cost {
            memory_kib: memory(pid).get("Rss").copied().unwrap_or_default(),
            cpu: cpu(pid).saturating_sub(used).as_secs_f64() / seconds,
            bytes_per_second: (bed.master_bytes() - bytes) as f64 / seconds,
        }
    }
}
