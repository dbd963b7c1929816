//! What a pod costs beyond its program: memory of its shim, time to its first instruction.
//!
//! The bounds asserted are far above what a release build on an idle machine needs, so that they only fail when
//! something grew; the figures themselves are printed: `cargo test --release --test native cost -- --nocapture`.

use std::{
    fs,
    time::{Duration, Instant},
};

use troupe::runtime::ContainerRuntime;

use super::bench::{Bench, config, parent};

/// A page of the executable that all shims use counts a share in each, so more than a few are measured.
const PODS: usize = 20;
/// The budget is 1.5 MiB in release; unoptimised code touches more pages.
const MAX_PSS_KIB: u64 = if cfg!(debug_assertions) { 4096 } else { 1536 };
const STARTS: usize = 25;
/// The budget is 25 ms from request to first instruction in release, on a machine that does nothing else.
const MAX_START: Duration = Duration::from_millis(if cfg!(debug_assertions) { 2000 } else { 500 });

#[tokio::test]
async fn a_shim_takes_little_memory() {
    let bench = Bench::new().await;
    let mut shims = Vec::new();
    for number in 0..PODS {
        let pod = bench.sandbox(&format!("p{number}")).await;
        let id = bench.start(&pod, config(&format!("c{number}"), &["sleep", "1000"])).await;
        shims.push(parent(bench.status(&id).await.pid.unwrap()));
    }
    let of = |what: &str| -> u64 {
        let each = shims.iter().map(|shim| {
            let text = fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
        });
        each.sum::<u64>() / PODS as u64
    };
    let (pss, private, anonymous) = (of("Pss:"), of("Private_Dirty:"), of("Anonymous:"));
    println!("a shim: {pss} KiB PSS, {private} KiB private and dirty, {anonymous} KiB anonymous");
    assert!(pss <= MAX_PSS_KIB, "{pss} KiB");
}

#[tokio::test]
async fn a_pod_runs_soon() {
    let bench = Bench::new().await;
    bench.sandbox("warm").await;
    let mut steps: [Vec<Duration>; 5] = Default::default();
    for number in 0..STARTS {
        let name = format!("c{number}");
        let begun = Instant::now();
        let pod = bench.sandbox(&name).await;
        let sandboxed = Instant::now();
        let id = bench.create(&pod, config(&name, &["sleep", "1000"])).await.unwrap();
        let created = Instant::now();
        bench.runtime().start_container(&id).await.unwrap();
        let started = Instant::now();
        bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
        steps[0].push(sandboxed - begun);
        steps[1].push(created - sandboxed);
        steps[2].push(started - created);
        steps[3].push(started - begun);
        steps[4].push(started.elapsed());
    }
    let names = ["sandbox", "create", "start", "all three", "remove"];
    for (name, times) in names.iter().zip(&mut steps) {
        times.sort();
        println!("{name}: p50 {:?}, least {:?}, most {:?}", times[STARTS / 2], times[0], times[STARTS - 1]);
    }
    assert!(steps[3][STARTS / 2] < MAX_START, "{:?}", steps[3][STARTS / 2]);
}
