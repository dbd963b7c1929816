//! S1, S3, S4 (S1d, S3d, S4d): one pod. Its start, its container's restart after a kill, its replacement after a delete.
//!
//! The end of each is the program's first act in the new container, seen by the kernel ([`crate::machine::Marks`]); how
//! long the API took to say `Running` stands beside it. On docker the budget is what the bare calls take and a tenth, and
//! a constant for what Troupe does besides ([`OWN`]).

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
    cluster::{CONTROLLERS, Cluster, PODS, PodWatch},
    ground::{Ground, On, of_bare, ratio},
    machine::until,
    peers,
    row::{Row, Times, ms},
};

/// On docker, what Troupe does for one pod or container before its program's first act, besides the bare calls: a request
/// over TLS, two commits to the disk, looks at the image and at the sandbox.
const OWN: Duration = Duration::from_millis(10);
/// And for a container's next life: a look at its image, and the end of the one before told.
const OWN_AGAIN: Duration = Duration::from_millis(3);

/// S1: POST of a pod → first instruction of its container.
pub fn pod_start(options: &Options, on: On) -> Vec<Row> {
    const BUDGET: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(60));
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let cluster = ground.start(options);
    let bare = ground.beside(options, &cluster);
    let peers = bare.peers();
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    let (mut first, mut running, mut limit) = (Times::default(), Times::default(), Times::default());
    let mut of_peers: Vec<(&str, Times)> = peers.iter().map(|(name, _)| (*name, Times::default())).collect();
    for round in 0..options.rounds(on.pick(200, 15), on.pick(30, 5)) {
        let name = format!("pod-{round}");
        let pod = cluster.pod(&name);
        client.warm();
        let begun = Instant::now();
        client.create(PODS, &pod);
        first.push(cluster.marks.of(&name) - begun);
        running.push(watch.running(|pod| pod["metadata"]["name"] == name.as_str()).0 - begun);
        client.delete(&format!("{PODS}/{name}"));
        watch.deleted(&name);
        limit.push(bare.pod());
        if round % on.pick(4, 2) == 0 {
            for ((_, time), (_, times)) in peers.iter().zip(&mut of_peers) {
                times.push(time());
            }
        }
    }
    let (budget, met) = match on {
        On::Native => (
            "p50 ≤ 25 ms, p99 ≤ 60 ms".into(),
            first.median() <= BUDGET.0 && first.quantile(0.99) <= BUDGET.1,
        ),
        On::Docker => of_bare(first.median(), limit.median(), OWN),
    };
    let of_peers = match of_peers.is_empty() {
        true => on.pick("crun and runc are", "docker's client is").to_owned() + " not installed",
        false => peers::text(&of_peers),
    };
    vec![Row {
        name: on.pick("S1", "S1d"),
        what: format!("POST of a pod → first instruction of its container{}", on.pick("", ", on docker")),
        troupe: format!(
            "{}{}; Running told: {}",
            first.text(),
            on.pick(String::new(), ratio(&first, &limit)),
            running.text()
        ),
        beside: format!("{} {}; {of_peers}", on.pick("bare", "bare calls"), limit.text()),
        budget,
        met,
    }]
}

/// S3: kill -9 of a container → running again, for the first, second and third time.
pub fn container_restart(options: &Options, on: On) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_millis(50);
    /// Of so many pods the later restarts are waited for, which the backoff delays by 10 and 20 s.
    const LATER: usize = 5;
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let cluster = ground.start(options);
    let bare = ground.beside(options, &cluster);
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    let (mut limit, mut alone) = (Times::default(), Times::default());
    let mut restarts: [Times; 3] = Default::default();
    let mut names = Vec::new();
    for round in 0..options.rounds(on.pick(40, 8), on.pick(10, 3)) {
        let name = format!("pod-{round}");
        client.create(PODS, &cluster.pod(&name));
        watch.running(|pod| pod["metadata"]["name"] == name.as_str());
        // Its start may be told before its mark was seen, which is not to be taken for that of its next life.
        cluster.marks.of(&name);
        cluster.marks.forget();
        restarts[0].push(kill_one(&cluster, &mut client, &name));
        let [whole, start] = bare.restart();
        limit.push(whole);
        alone.push(start);
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
    let (budget, met) = match on {
        On::Native => ("1st ≤ 50 ms, then as configured".into(), once.median() <= BUDGET),
        On::Docker => {
            let (budget, met) = of_bare(once.median(), limit.median(), OWN_AGAIN);
            (format!("1st {budget}, then as configured"), met)
        }
    };
    vec![Row {
        name: on.pick("S3", "S3d"),
        what: format!("kill -9 of a container → its next one's first instruction{}", on.pick("", ", on docker")),
        troupe: format!(
            "1st {}{}{}",
            once.text(),
            on.pick(String::new(), ratio(once, &limit)),
            if options.quick {
                String::new()
            } else {
                let (second, third) = (ms(twice.median()), ms(thrice.median()));
                format!("; 2nd {second}, 3rd {third} (backoff of 10 and 20 s, Kubernetes' default)")
            }
        ),
        beside: on.pick(
            format!("bare start {}", limit.text()),
            format!(
                "bare: kill, the engine's word of it, create and start of the next {}; the create and start alone {}",
                limit.text(),
                ms(alone.median())
            ),
        ),
        budget,
        met,
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
    cluster.container_of(pod["metadata"]["uid"].as_str().expect("a uid"))
}

/// S4: DELETE of a pod → the first instruction of the one that its controller makes instead.
pub fn replacement(options: &Options, on: On) -> Vec<Row> {
    const BUDGET: Duration = Duration::from_millis(60);
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let cluster = ground.start(options);
    let bare = ground.beside(options, &cluster);
    let (mut client, watch) = (cluster.login().connect(), PodWatch::new(&cluster.login()));
    client.create(CONTROLLERS, &cluster.controller("web", 1));
    let mut current = watch.running(|_| true).1;
    cluster.marks.forget();
    let (mut first, mut running, mut limit) = (Times::default(), Times::default(), Times::default());
    let mut alone = Times::default();
    for _ in 0..options.rounds(on.pick(100, 12), on.pick(20, 4)) {
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
        limit.push(bare.replacement());
        if on == On::Docker {
            alone.push(bare.pod());
        }
        current = name;
    }
    let (budget, met) = match on {
        On::Native => ("≤ 60 ms".into(), running.median() <= BUDGET),
        On::Docker => of_bare(running.median(), limit.median(), OWN),
    };
    vec![Row {
        name: on.pick("S4", "S4d"),
        what: format!("DELETE of a pod → its replacement Running{}", on.pick("", ", on docker")),
        troupe: format!(
            "first instruction {}; Running told {}{}",
            first.text(),
            running.text(),
            on.pick(String::new(), ratio(&running, &limit))
        ),
        beside: on.pick(
            format!("bare start {}", limit.text()),
            format!("bare start while another pod is removed {}, alone {}", limit.text(), ms(alone.median())),
        ),
        budget,
        met,
    }]
}
