//! S6: what `troupe up` costs while nothing happens, and what each running pod adds.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Options,
    cluster::{CONTROLLERS, Cluster, PodWatch},
    machine::{cpu, memory_sum},
    row::{Row, mib},
};

/// What a pod is measured with.
const PODS: usize = 50;

/// S6.
pub fn idle(options: &Options) -> Vec<Row> {
    let cluster = Cluster::start(options);
    let mut client = cluster.login().connect();
    // The start itself is not idleness.
    thread::sleep(Duration::from_secs(5));
    // The main process and the seed of shims.
    let everything: Vec<i32> = cluster.processes().iter().map(|p| p.pid).collect();
    let rss = memory_sum(&everything, "Rss");
    let main_rss = memory_sum(&[cluster.pid()], "Rss");
    let idle_cpu = cpu_share(&cluster, options);
    let pss_before = memory_sum(&everything, "Pss");

    let watch = PodWatch::new(&cluster.login());
    client.create(CONTROLLERS, &cluster.controller("web", PODS));
    let mut running = std::collections::BTreeSet::new();
    while running.len() < PODS {
        running.insert(watch.running(|_| true).1);
    }
    thread::sleep(Duration::from_secs(5));
    let shims: Vec<i32> = cluster.shims().iter().map(|p| p.pid).collect();
    let containers: Vec<i32> = cluster.containers().iter().map(|p| p.pid).collect();
    assert_eq!((shims.len(), containers.len()), (PODS, PODS), "a shim and a container for each pod");
    let each = |kib: f64| kib / PODS as f64;
    let of_shims = each(memory_sum(&shims, "Pss"));
    let of_containers = each(memory_sum(&containers, "Pss"));
    let of_main = each(memory_sum(&everything, "Pss") - pss_before);
    let busy_cpu = cpu_share(&cluster, options);
    vec![
        Row {
            name: "S6",
            what: "idle `troupe up`: resident memory; processor time".into(),
            troupe: format!("{}, {:.2} % of a core", mib(rss), idle_cpu * 100.0),
            beside: format!("the main process alone {}", mib(main_rss)),
            budget: "≤ 40 MiB, ≤ 0.3 %".into(),
            met: rss <= 40.0 * 1024.0 && idle_cpu <= 0.003,
        },
        Row {
            name: "S6",
            what: format!("each of {PODS} running pods on top (PSS)"),
            troupe: format!(
                "{}: shim {}, growth of the rest {}; {:.2} % of a core with all of them",
                mib(of_shims + of_main),
                mib(of_shims),
                mib(of_main),
                busy_cpu * 100.0
            ),
            beside: format!("the container's own program {}", mib(of_containers)),
            budget: "≤ 1.5 MiB".into(),
            met: of_shims + of_main <= 1.5 * 1024.0,
        },
    ]
}

/// The share of a core that `troupe up` and its shims use.
fn cpu_share(cluster: &Cluster, options: &Options) -> f64 {
    let window = Duration::from_secs(if options.quick { 15 } else { 60 });
    let used = || cluster.processes().iter().map(|p| cpu(p.pid)).sum::<Duration>();
    let (before, begun) = (used(), Instant::now());
    thread::sleep(window);
    (used().saturating_sub(before)).as_secs_f64() / begun.elapsed().as_secs_f64()
}
