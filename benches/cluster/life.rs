//! S1, S3, S4: one pod. Its start, its container's restart after a kill, its replacement after a delete.
//!
//! The end of each is the program's first act in the new container, seen by the kernel ([`crate::machine::Marks`]); how
//! long the API took to say `Running` stands beside it.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Options,
    bare::Bare,
    cluster::{CONTROLLERS, Cluster, PODS, PodWatch},
    machine::until,
    peers,
    row::{Row, Times, ms},
};

/// S1: POST of a pod → first instruction of its container.
pub fn pod_start(options: &Options) -> Vec<Row> {
    const BUDGET: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(60));
    let bare = Bare::new(&options.program);
    let peers = peers::find(&bare);
    let cluster = Cluster::start(options);
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    let (mut first, mut running, mut limit) = (Times::default(), Times::default(), Times::default());
    let mut of_peers: Vec<(&str, Times)> = peers.iter().map(|p| (p.name(), Times::default())).collect();
    for round in 0..options.rounds(200, 30) {
        let name = format!("pod-{round}");
        let pod = cluster.pod(&name);
        client.warm();
        let begun = Instant::now();
        client.create(PODS, &pod);
        first.push(cluster.marks.of(&name) - begun);
        running.push(watch.running(|pod| pod["metadata"]["name"] == name.as_str()).0 - begun);
        client.delete(&format!("{PODS}/{name}"));
        watch.deleted(&name);
        limit.push(bare.time_one());
        if round % 4 == 0 {
            for (peer, (_, times)) in peers.iter().zip(&mut of_peers) {
                times.push(peer.time_one());
            }
        }
    }
    vec![Row {
        name: "S1",
        what: "POST of a pod → first instruction of its container".into(),
        troupe: format!("{}; Running told: {}", first.text(), running.text()),
        beside: format!("bare {}; {}", limit.text(), peers::text(&of_peers)),
        budget: "p50 ≤ 25 ms, p99 ≤ 60 ms".into(),
        met: first.median() <= BUDGET.0 && first.quantile(0.99) <= BUDGET.1,
    }]
}

/// S3: kill -9 of a container → running again, for the first, second and third time.
pub fn container_restart(options: &Options) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_millis(50);
    /// Of so many pods the later restarts are waited for, which the backoff delays by 10 and 20 s.
    const LATER: usize = 5;
    let bare = Bare::new(&options.program);
    let cluster = Cluster::start(options);
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    let mut limit = Times::default();
    let mut restarts: [Times; 3] = Default::default();
    let mut names = Vec::new();
    for round in 0..options.rounds(40, 10) {
        let name = format!("pod-{round}");
        client.create(PODS, &cluster.pod(&name));
        watch.running(|pod| pod["metadata"]["name"] == name.as_str());
        // Its start may be told before its mark was seen, which is not to be taken for that of its next life.
        cluster.marks.of(&name);
        cluster.marks.forget();
        restarts[0].push(kill_one(&cluster, &mut client, &name));
        limit.push(bare.time_one());
        names.push(name);
    }
    for name in names.iter().skip(LATER) {
        client.delete(&format!("{PODS}/{name}"));
    }
    names.truncate(LATER);
    if !options.quick {
        for times in restarts.iter_mut().skip(1) {
            // One after the other, but a pause apart: each is alone when its time comes.
            let mut due = Vec::new();
            for name in &names {
                until("the container runs", || restarted(&mut client, name).1);
                let pid = container_of(&cluster, &mut client, name);
                due.push((name.clone(), Instant::now()));
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                thread::sleep(Duration::from_millis(300));
            }
            for (name, begun) in due {
                times.push(cluster.marks.of(&name) - begun);
            }
        }
    }
    let [once, twice, thrice] = &restarts;
    vec![Row {
        name: "S3",
        what: "kill -9 of a container → its next one's first instruction".into(),
        troupe: format!(
            "1st {}{}",
            once.text(),
            if options.quick {
                String::new()
            } else {
                let (second, third) = (ms(twice.median()), ms(thrice.median()));
                format!("; 2nd {second}, 3rd {third} (backoff of 10 and 20 s, Kubernetes' default)")
            }
        ),
        beside: format!("bare start {}", limit.text()),
        budget: "1st ≤ 50 ms, then as configured".into(),
        met: once.median() <= BUDGET,
    }]
}

fn kill_one(cluster: &Cluster, client: &mut crate::client::Client, name: &str) -> Duration {
    let pid = container_of(cluster, client, name);
    let begun = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the container runs");
    let time = cluster.marks.of(name) - begun;
    until("the restart is counted", || restarted(client, name) == (1, true));
    time
}

/// How often a pod's container was restarted, and whether it runs.
fn restarted(client: &mut crate::client::Client, name: &str) -> (u64, bool) {
    let pod = client.get(&format!("{PODS}/{name}"));
    let status = &pod["status"]["containerStatuses"][0];
    (status["restartCount"].as_u64().unwrap_or(0), status["state"]["running"].is_object())
}

/// The pid of a pod's container.
fn container_of(cluster: &Cluster, client: &mut crate::client::Client, name: &str) -> i32 {
    let pod = client.get(&format!("{PODS}/{name}"));
    cluster.container_of(pod["metadata"]["uid"].as_str().expect("a uid")).pid
}

/// S4: DELETE of a pod → the first instruction of the one that its controller makes instead.
pub fn replacement(options: &Options) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_millis(60);
    let bare = Bare::new(&options.program);
    let cluster = Cluster::start(options);
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    client.create(CONTROLLERS, &cluster.controller("web", 1));
    let mut current = watch.running(|_| true).1;
    cluster.marks.forget();
    let (mut first, mut running, mut limit) = (Times::default(), Times::default(), Times::default());
    for _ in 0..options.rounds(100, 20) {
        client.warm();
        let begun = Instant::now();
        client.delete(&format!("{PODS}/{current}"));
        let (name, at) = cluster.marks.next();
        assert_ne!(name, current);
        first.push(at - begun);
        running.push(watch.running(|pod| pod["metadata"]["name"] == name.as_str()).0 - begun);
        until("the old pod is gone", || {
            client.get(PODS)["items"].as_array().is_some_and(|pods| pods.len() == 1)
        });
        limit.push(bare.time_one());
        current = name;
    }
    vec![Row {
        name: "S4",
        what: "DELETE of a pod → its replacement Running".into(),
        troupe: format!("first instruction {}; Running told {}", first.text(), running.text()),
        beside: format!("bare start {}", limit.text()),
        budget: "≤ 60 ms".into(),
        met: running.median() <= BUDGET,
    }]
}
