//! S2, S7: many pods. A controller from none to many, and back until nothing is left.

use std::time::Instant;

use crate::{
    Options,
    bare::Bare,
    client::Client,
    cluster::{CONTROLLERS, Cluster, PODS, PodWatch},
    machine::until,
    peers,
    row::{Row, Times, ms},
};

/// The controller that is scaled.
const NAME: &str = "web";

/// S2: a controller 0 → 10, 50, 100 pods, all told to be Running.
pub fn up(options: &Options) -> Vec<Row> {
    let bare = Bare::new(&options.program);
    let peers = peers::find(&bare);
    let cluster = Cluster::start(options);
    let (mut client, watch) = prepare(&cluster);
    /// Of what runc takes for as many, four at once: 1.2 s where that takes 1.5 s.
    const OF_RUNC: f64 = 0.8;
    let sizes = [(10, 0.4), (50, 1.0), (100, 1.2)];
    sizes
        .map(|(count, budget)| {
            let (mut running, mut first, mut limit) = (Times::default(), Times::default(), Times::default());
            let mut beside: Vec<_> = peers.iter().map(|peer| (peer, Times::default())).collect();
            for _ in 0..options.rounds(5, 1) {
                let (all_running, all_started) = scale_up(&cluster, &mut client, &watch, count);
                running.push(all_running);
                first.push(all_started);
                scale_down(&cluster, &mut client);
                while watch.next_now() {}
                limit.push(bare.time_many(count));
                beside.iter_mut().for_each(|(peer, times)| times.push(peer.time_many(count)));
            }
            let median = running.median().as_secs_f64();
            let runc = beside.iter().find(|(peer, _)| peer.name() == "runc");
            let ratio = runc.map(|(_, times)| median / times.median().as_secs_f64());
            let of_runc = ratio.map_or(String::new(), |ratio| format!(", {ratio:.2} × runc"));
            let beside: Vec<_> = beside
                .iter()
                .map(|(peer, times)| format!("{} {}", peer.name(), ms(times.median())))
                .collect();
            let beside = match beside.is_empty() {
                true => "crun and runc are not installed".to_owned(),
                false => beside.join(", "),
            };
            Row {
                name: "S2",
                what: format!("controller 0 → {count} pods Running"),
                troupe: format!(
                    "{} (n={}){of_runc}; first instruction of the last {}",
                    ms(running.median()),
                    running.len(),
                    ms(first.median())
                ),
                beside: format!("bare, 4 at once {}; {beside}", ms(limit.median())),
                budget: format!("≤ {budget} s, or {OF_RUNC} × runc"),
                met: median <= budget || ratio.is_some_and(|ratio| ratio <= OF_RUNC),
            }
        })
        .into()
}

/// S7: a controller 100 → 0, until nothing of its pods is left.
pub fn down(options: &Options) -> Vec<Row> {
    const COUNT: usize = 100;
    /// Beyond the containers' own exit.
    const BUDGET_S: f64 = 1.5;
    let bare = Bare::new(&options.program);
    let cluster = Cluster::start(options);
    let (mut client, watch) = prepare(&cluster);
    let (mut gone, mut traceless, mut limit) = (Times::default(), Times::default(), Times::default());
    for _ in 0..options.rounds(5, 1) {
        scale_up(&cluster, &mut client, &watch, COUNT);
        let (api, all) = scale_down(&cluster, &mut client);
        gone.push(api);
        traceless.push(all);
        while watch.next_now() {}
        limit.push(bare.time_end(COUNT));
    }
    let beyond = traceless.median().saturating_sub(limit.median());
    vec![Row {
        name: "S7",
        what: format!("scale {COUNT} → 0 until no pod, process, cgroup, interface or directory is left"),
        troupe: format!(
            "{} (n={}); gone from the API {}",
            ms(traceless.median()),
            traceless.len(),
            ms(gone.median())
        ),
        beside: format!("{COUNT} bare containers end in {}", ms(limit.median())),
        budget: format!("≤ {BUDGET_S} s beyond it"),
        met: beyond.as_secs_f64() <= BUDGET_S,
    }]
}

/// A controller of none, and a watch on pods.
pub fn prepare(cluster: &Cluster) -> (Client, PodWatch) {
    let mut client = cluster.login().connect();
    client.create(CONTROLLERS, &cluster.controller(NAME, 0));
    (client, PodWatch::new(&cluster.login()))
}

/// Until the last is told to run, and until the first instruction of the last.
pub fn scale_up(
    cluster: &Cluster,
    client: &mut Client,
    watch: &PodWatch,
    count: usize,
) -> (std::time::Duration, std::time::Duration) {
    cluster.marks.forget();
    client.warm();
    let begun = Instant::now();
    client.scale(&format!("{CONTROLLERS}/{NAME}"), count);
    let mut running = std::collections::BTreeSet::new();
    let mut last = begun;
    while running.len() < count {
        let (at, name) = watch.running(|_| true);
        if running.insert(name) {
            last = at;
        }
    }
    let started = (0..count).map(|_| cluster.marks.next().1).max().unwrap_or(begun);
    (last - begun, started - begun)
}

/// Until the API has no pod, and until the machine has nothing of them.
pub fn scale_down(cluster: &Cluster, client: &mut Client) -> (std::time::Duration, std::time::Duration) {
    client.warm();
    let begun = Instant::now();
    client.scale(&format!("{CONTROLLERS}/{NAME}"), 0);
    let gone = until("no pods", || client.get(PODS)["items"].as_array().is_none_or(Vec::is_empty));
    let all = until("no remains", || cluster.remains().is_empty());
    (gone - begun, all - begun)
}
