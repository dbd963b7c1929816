//! Cases: what pods and containers use is told.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use troupe::{
    model::Uid,
    runtime::{ContainerId, SandboxStats, Usage},
};

use super::harness::{Bench, Harness, LONG, STEP};

const HELD: u64 = 48 << 20;

async fn of_pod<H: Harness>(bench: &Bench<H>, uid: &str) -> Option<SandboxStats> {
    bench.runtime().stats().await.unwrap().into_iter().find(|pod| pod.uid == Uid::from(uid))
}

async fn of<H: Harness>(bench: &Bench<H>, uid: &str, id: &ContainerId) -> Option<Usage> {
    of_pod(bench, uid).await?.containers.into_iter().find(|(other, _)| other == id).map(|(_, usage)| usage)
}

/// Waits until what a container uses is so.
async fn until_used<H: Harness>(bench: &Bench<H>, id: &ContainerId, done: impl Fn(&Usage) -> bool) -> Usage {
    let deadline = Instant::now() + STEP;
    loop {
        let usage = of(bench, "a", id).await;
        match usage {
            Some(usage) if done(&usage) => return usage,
            _ => assert!(Instant::now() < deadline, "{usage:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn what_a_running_container_uses_is_told_for_it_and_its_pod<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let busy = bench.hello("busy", &["--burn-cpu", "1h", "--allocate", &HELD.to_string()]);
    let busy = bench.start("a", busy).await;
    let idle = bench.start("a", bench.hello("idle", &["--listen", "127.0.0.1:0"])).await;
    let held = |usage: &Usage| usage.working_set_bytes.is_some_and(|bytes| bytes >= HELD);
    let before = until_used(bench, &busy, |usage| held(usage) && usage.cpu_ns.is_some()).await;
    // Processor time goes on, and nobody has more of it than one thread on one core.
    let begun = Instant::now();
    let more = before.cpu_ns.unwrap() + 100_000_000;
    let after = until_used(bench, &busy, |usage| usage.cpu_ns.is_some_and(|ns| ns >= more)).await;
    let elapsed = begun.elapsed().as_nanos() as u64 + 2_000_000_000;
    assert!(after.cpu_ns.unwrap() - before.cpu_ns.unwrap() <= elapsed, "{before:?} {after:?}");
    assert!(after.memory_bytes >= after.working_set_bytes && after.pids.is_none_or(|pids| pids > 0));
    let pod = of_pod(bench, "a").await.unwrap();
    let other = of(bench, "a", &idle).await.unwrap();
    assert!(other.working_set_bytes.unwrap() < HELD, "{other:?}");
    assert_eq!(pod.containers.len(), 2);
    assert!(
        pod.total.cpu_ns >= after.cpu_ns && pod.total.working_set_bytes.is_some_and(|bytes| bytes >= HELD)
    );
    assert!(pod.network.is_some());
}

pub async fn what_has_ended_is_not_told_of<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let ended = bench.start("a", bench.hello("ended", &["--once"])).await;
    let runs = bench.start("a", bench.hello("runs", &["--listen", "127.0.0.1:0"])).await;
    bench.exit(&ended).await;
    assert!(of(bench, "a", &runs).await.is_some());
    assert!(of(bench, "a", &ended).await.is_none());
    bench.runtime().stop_container(&runs, LONG).await.unwrap();
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    assert!(of_pod(bench, "a").await.is_none());
}

/// A container that has written 100,000 bytes to its own disk.
async fn writer<H: Harness>(bench: &mut Bench<H>) -> ContainerId {
    bench.sandbox("a").await;
    let text = format!("/big={}", "x".repeat(100_000));
    let mut config = bench.hello("c", &["--write", &text, "--print", "written"]);
    // The image's own user may not write there.
    config.security.user = Some(0);
    let id = bench.start("a", config).await;
    bench.line("c", "written").await;
    id
}

pub async fn a_writable_layer_is_measured<H: Harness>(bench: &mut Bench<H>) {
    let id = writer(bench).await;
    // Some engines measure by themselves, every now and then.
    let usage =
        until_used(bench, &id, |usage| usage.writable_bytes.is_some_and(|bytes| bytes >= 100_000)).await;
    assert!(usage.writable_bytes.unwrap() < 1_000_000, "{usage:?}");
}

pub async fn what_a_container_writes_to_the_disk_is_counted<H: Harness>(bench: &mut Bench<H>) {
    let id = writer(bench).await;
    // The engine reads cgroups, and those of version 1 count nothing of late: what it does not know it does not tell.
    if bench.runtime().name() == "docker" && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(of(bench, "a", &id).await.unwrap().io_bytes.filter(|io| *io == (0, 0)), None);
        return;
    }
    let written = |usage: &Usage| usage.io_bytes.is_some_and(|(_, written)| written >= 100_000);
    until_used(bench, &id, written).await;
    let pod = of_pod(bench, "a").await.unwrap();
    assert!(written(&pod.total), "{pod:?}");
}

/// All counters of a pod by their names; `None`: not known.
async fn counters<H: Harness>(bench: &Bench<H>) -> Vec<(&'static str, Option<u64>)> {
    let pod = of_pod(bench, "a").await.unwrap();
    let (bytes, operations) = (pod.total.io_bytes, pod.total.io_operations);
    vec![
        ("cpu time", pod.total.cpu_ns),
        ("bytes read", bytes.map(|(read, _)| read)),
        ("bytes written", bytes.map(|(_, written)| written)),
        ("reads", operations.map(|(reads, _)| reads)),
        ("writes", operations.map(|(_, writes)| writes)),
        ("bytes received", pod.network.map(|(received, _)| received)),
        ("bytes sent", pod.network.map(|(_, sent)| sent)),
    ]
}

/// Reads the counters anew; none is less than before, or not known any more.
async fn none_falls<H: Harness>(bench: &Bench<H>, before: &mut Vec<(&'static str, Option<u64>)>) {
    let now = counters(bench).await;
    for ((name, earlier), (_, later)) in before.iter().zip(&now) {
        assert!(later >= earlier, "{name} fell from {earlier:?} to {later:?}: {before:?} {now:?}");
    }
    *before = now;
}

pub async fn no_pod_counter_falls_when_one_of_two_containers_ends<H: Harness>(bench: &mut Bench<H>) {
    let ip = bench.sandbox("a").await.ip.unwrap();
    let stays = bench.start("a", bench.hello("stays", &["--listen", "0.0.0.0:8080"])).await;
    bench.line("stays", "listening").await;
    let text = format!("/big={}", "x".repeat(100_000));
    // Containers of a pod share its ports.
    let busy = ["--burn-cpu", "1h", "--listen", "127.0.0.1:0"];
    let args = [&["--write", &text, "--print", "written"][..], &busy].concat();
    let mut config = bench.hello("ends", &args);
    config.security.user = Some(0);
    let ends = bench.start("a", config).await;
    bench.line("ends", "written").await;
    // Something over the pod's own device.
    drop(std::net::TcpStream::connect((ip, 8080)).unwrap());
    until_used(bench, &ends, |usage| usage.cpu_ns.is_some_and(|ns| ns >= 300_000_000)).await;

    let mut before = counters(bench).await;
    let known = |before: &[(&str, Option<u64>)], name| before.iter().any(|(n, v)| *n == name && *v > Some(0));
    for name in ["cpu time", "bytes received", "bytes sent"] {
        assert!(known(&before, name), "{name}: {before:?}");
    }
    // While it ends, and when it is gone but for its log, then altogether.
    let stop = bench.runtime().stop_container(&ends, Duration::ZERO);
    tokio::pin!(stop);
    loop {
        tokio::select! {
            biased;
            stopped = &mut stop => break stopped.unwrap(),
            () = none_falls(bench, &mut before) => {}
        }
    }
    for _ in 0..5 {
        none_falls(bench, &mut before).await;
    }
    assert!(of(bench, "a", &ends).await.is_none(), "it has ended");
    bench.runtime().remove_container(&ends).await.unwrap();
    for _ in 0..3 {
        none_falls(bench, &mut before).await;
    }
    // Another one in its place is counted beside it.
    let next = bench.start("a", bench.hello("next", &busy)).await;
    let more = before[0].1.unwrap() + 200_000_000;
    let deadline = Instant::now() + STEP;
    while before[0].1.unwrap() < more {
        assert!(Instant::now() < deadline, "{before:?}");
        none_falls(bench, &mut before).await;
    }
    bench.runtime().stop_container(&next, Duration::ZERO).await.unwrap();
    none_falls(bench, &mut before).await;
    assert!(of(bench, "a", &stays).await.is_some());
}
