//! S2, S7 (S7d): many pods. A controller from none to many, and back until nothing is left.
//!
//! On docker the bare limit of the end is the forced removal of as many pods' two containers, at the engine's best
//! concurrency: Troupe asks each to end first, waits for the end of its log, and ends the sandbox after its containers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::{
    Options,
    bare::Bare,
    client::Client,
    cluster::{CONTROLLERS, Cluster, PODS, PodWatch},
    ground::{Ground, On, of_bare},
    machine::until,
    peers,
    row::{Row, Times, ms},
};

/// The controller that is scaled.
const NAME: &str = "web";
/// How many pods bare calls make at once: the best for an engine is somewhere here on a few cores.
pub const AT_ONCE: [usize; 2] = [4, 8];

/// S2: a controller 0 → 10, 50, 100 pods, all told to be Running.
pub fn up(options: &Options) -> Vec<Row> {
    let bare = Bare::new(&options.program);
    let peers = peers::find(&bare);
    let cluster = Cluster::start(options, None);
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
                scale_down(&cluster, &mut client, &watch, count);
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

/// S7: a controller 100 → 0, until nothing of its pods is left; on docker 30.
pub fn down(options: &Options, on: On) -> Vec<Row> {
    let count = on.pick(100, 30);
    /// Beyond the containers' own exit.
    const NATIVE: Duration = Duration::from_millis(1500);
    /// The first word of it to the node (a commit each), the last pod's directory and its document's end.
    const OWN: Duration = Duration::from_millis(100);
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let cluster = ground.start(options);
    let bare = ground.beside(options, &cluster);
    let (mut client, _) = prepare(&cluster);
    let (mut gone, mut traceless) = (Times::default(), Times::default());
    // What the kernel ends needs nobody to ask several times at once. An engine is asked for all containers together, as
    // Troupe does, or for a few at a time.
    let at_once = on.pick(vec![1], vec![2 * count, AT_ONCE[1]]);
    let mut limits: Vec<_> = at_once.into_iter().map(|at_once| (at_once, Times::default())).collect();
    for _ in 0..options.rounds(on.pick(5, 3), 1) {
        // A watch of its own: one that hears nothing while the bare ones end would be given up.
        let watch = PodWatch::new(&cluster.login());
        scale_up(&cluster, &mut client, &watch, count);
        let (api, all) = scale_down(&cluster, &mut client, &watch, count);
        gone.push(api);
        traceless.push(all);
        for (at_once, times) in &mut limits {
            times.push(bare.end(count, *at_once));
        }
    }
    // Of few: the mean.
    let of = |times: &Times| on.pick(times.median(), times.mean());
    let limit = limits.iter().map(|(_, times)| of(times)).min().unwrap_or_default();
    let whole = of(&traceless);
    let (budget, met) = match on {
        On::Native => {
            (format!("≤ {} s beyond it", NATIVE.as_secs_f64()), whole.saturating_sub(limit) <= NATIVE)
        }
        On::Docker => of_bare(whole, limit, OWN),
    };
    let each: Vec<_> =
        limits.iter().map(|(at_once, times)| format!("{at_once} at once {}", ms(of(times)))).collect();
    let ratio = whole.as_secs_f64() / limit.as_secs_f64();
    vec![Row {
        name: on.pick("S7", "S7d"),
        what: on.pick(
            format!("scale {count} → 0 until no pod, process, cgroup, interface or directory is left"),
            format!("scale {count} → 0 on docker until no pod, container or directory is left"),
        ),
        troupe: format!(
            "{} (n={}){}; gone from the API {}",
            ms(whole),
            traceless.len(),
            on.pick(String::new(), format!(", {ratio:.2} × bare")),
            ms(of(&gone))
        ),
        beside: on.pick(
            format!("{count} bare containers end in {}", ms(limit)),
            format!("bare removal of as many pods' two containers, {}", each.join(", ")),
        ),
        budget,
        met,
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
) -> (Duration, Duration) {
    cluster.marks.forget();
    client.warm();
    let begun = Instant::now();
    client.scale(&format!("{CONTROLLERS}/{NAME}"), count);
    let mut running = BTreeSet::new();
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

/// Until the API has told that so many pods are gone, and until the machine has nothing of them.
pub fn scale_down(
    cluster: &Cluster,
    client: &mut Client,
    watch: &PodWatch,
    count: usize,
) -> (Duration, Duration) {
    client.warm();
    let begun = Instant::now();
    client.scale(&format!("{CONTROLLERS}/{NAME}"), 0);
    // Told, not asked for: a list of so many each moment would be a load of its own.
    let gone = (0..count).map(|_| watch.any_deleted()).max().unwrap_or(begun);
    assert!(client.get(PODS)["items"].as_array().is_none_or(Vec::is_empty), "pods are left");
    let all = until("no remains", || cluster.remains().is_empty());
    (gone - begun, all - begun)
}
