//! S6 (S6d): what `troupe up` costs while nothing happens, and what each running pod adds.
//!
//! On docker the engine's own is beside it, in the same window: its daemons, and for each pod two shims, the sandbox'
//! process and the program.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Options,
    calls::Calls,
    cluster::{CONTROLLERS, Cluster, PodWatch},
    ground::{Ground, On},
    machine::{cpu, memory_sum},
    row::{Row, mib},
};

/// What everything that Troupe runs may hold in memory and use of a core.
const IDLE: (f64, f64) = (40.0, 0.003);
/// What Troupe may hold for each pod.
const POD_MIB: f64 = 1.5;
/// After a start, and after that of many pods: they are not idleness.
const SETTLED: Duration = Duration::from_secs(5);

/// S6.
pub fn idle(options: &Options, on: On) -> Vec<Row> {
    let Some(ground) = Ground::open(on) else { return Vec::new() };
    let pods = on.pick(50, 20);
    let window = Duration::from_secs(if options.quick { 15 } else { on.pick(60, 30) });
    // The engine's own, before anybody asks it for something.
    let alone = ground.socket().map(|_| {
        thread::sleep(SETTLED);
        cpu_shares(&[ground.engine_processes().concat()], window)[0]
    });
    let cluster = ground.start(options);
    let mut client = cluster.login().connect();
    thread::sleep(SETTLED);
    // The main process and the seed of shims.
    let own: Vec<i32> = cluster.processes().iter().map(|p| p.pid).collect();
    let [daemons, _] = ground.engine_processes();
    let rss = memory_sum(&own, "Rss");
    let beside = match on {
        On::Native => format!("the main process alone {}", mib(memory_sum(&[cluster.pid()], "Rss"))),
        On::Docker => mib(memory_sum(&daemons, "Rss")),
    };
    let [idle_cpu, engine_cpu] = cpu_shares(&[own.clone(), daemons.clone()], window);
    let before = [&own, &daemons].map(|pids| memory_sum(pids, "Pss"));

    let watch = PodWatch::new(&cluster.login());
    client.create(CONTROLLERS, &cluster.controller("web", pods));
    let mut running = BTreeSet::new();
    while running.len() < pods {
        running.insert(watch.running(|_| true).1);
    }
    thread::sleep(SETTLED);
    let each = |kib: f64| kib / pods as f64;
    let per_pod = |pids: &[i32]| each(memory_sum(pids, "Pss"));
    let [of_own, of_daemons] = [per_pod(&own) - each(before[0]), per_pod(&daemons) - each(before[1])];
    let (of_troupe, parts, beside_pods) = match on {
        On::Native => {
            let (shims, containers) = (shims(&cluster), containers(&cluster));
            assert_eq!((shims.len(), containers.len()), (pods, pods), "a shim and a container for each pod");
            let of_shims = per_pod(&shims);
            let all: Vec<i32> = own.iter().chain(&shims).copied().collect();
            let [busy] = cpu_shares(&[all], window);
            (
                of_shims + of_own,
                format!(
                    "shim {}, growth of the rest {}; {:.2} % of a core with all of them",
                    mib(of_shims),
                    mib(of_own),
                    busy * 100.0
                ),
                format!("the container's own program {}", mib(per_pod(&containers))),
            )
        }
        On::Docker => {
            let [_, shims] = ground.engine_processes();
            let containers =
                ground.socket().map_or(Vec::new(), |socket| Calls::new(socket).container_processes());
            let twice = 2 * pods;
            assert_eq!(
                (shims.len(), containers.len()),
                (twice, twice),
                "two shims and processes for each pod"
            );
            let (of_shims, of_containers) = (per_pod(&shims), per_pod(&containers));
            let engine: Vec<i32> = daemons.iter().chain(&shims).copied().collect();
            let [busy, engine_busy] = cpu_shares(&[own.clone(), engine], window);
            (
                of_own,
                format!("growth of its one process; {:.2} % of a core with all of them", busy * 100.0),
                format!(
                    "the engine's {}: two shims {}, growth of its daemons {}; {:.2} % of a core with all of them; \
                     the containers' own two programs {}",
                    mib(of_shims + of_daemons),
                    mib(of_shims),
                    mib(of_daemons),
                    engine_busy * 100.0,
                    mib(of_containers)
                ),
            )
        }
    };
    let docker = on.pick("", " with `--runtime docker`");
    vec![
        Row {
            name: on.pick("S6", "S6d"),
            what: format!("idle `troupe up`{docker}: resident memory; processor time"),
            troupe: format!("{}, {:.2} % of a core", mib(rss), idle_cpu * 100.0),
            beside: match on {
                On::Native => beside,
                On::Docker => format!(
                    "dockerd and containerd {beside}, {:.2} % of a core ({:.2} % without Troupe)",
                    engine_cpu * 100.0,
                    alone.unwrap_or_default() * 100.0
                ),
            },
            budget: format!("≤ {} MiB, ≤ {} %", IDLE.0, IDLE.1 * 100.0),
            met: rss <= IDLE.0 * 1024.0 && idle_cpu <= IDLE.1,
        },
        Row {
            name: on.pick("S6", "S6d"),
            what: format!("each of {pods} running pods on top (PSS){}", on.pick("", ", on docker")),
            troupe: format!("{}: {parts}", mib(of_troupe)),
            beside: beside_pods,
            budget: format!("≤ {POD_MIB} MiB"),
            met: of_troupe <= POD_MIB * 1024.0,
        },
    ]
}

fn shims(cluster: &Cluster) -> Vec<i32> {
    cluster.shims().iter().map(|p| p.pid).collect()
}

fn containers(cluster: &Cluster) -> Vec<i32> {
    cluster.containers().iter().map(|p| p.pid).collect()
}

/// The shares of a core that these use, each of them together.
fn cpu_shares<const N: usize>(of: &[Vec<i32>; N], window: Duration) -> [f64; N] {
    let used = || of.each_ref().map(|pids| pids.iter().map(|pid| cpu(*pid)).sum::<Duration>());
    let (before, begun) = (used(), Instant::now());
    thread::sleep(window);
    let (after, took) = (used(), begun.elapsed().as_secs_f64());
    std::array::from_fn(|at| after[at].saturating_sub(before[at]).as_secs_f64() / took)
}
