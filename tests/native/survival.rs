//! What happens when processes of ours are killed, what is left when all is removed, and how much goes at once.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use troupe::{
    model::Uid,
    runtime::{ContainerRuntime, ContainerState, RuntimeEvent, SandboxConfig, native::NativeRuntime},
};

use super::bench::{Bench, STEP, config, parent, sandbox_config};

/// Set for the process that drives containers until it is killed.
const DRIVE: &str = "TROUPE_TEST_DRIVE";

/// Has another process, started by this shell script, drive the runtime until two containers run, and kills it.
fn drive(bench: &Bench, script: &str) {
    // It is this very test binary, running the test below.
    let mut driver = Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "native::survival::drives_containers_until_killed", "--nocapture"])
        .env(DRIVE, bench.path())
        .env("TROUPE_TEST_BRIDGE", &bench.config.bridge)
        .env("TROUPE_TEST_CGROUP", &bench.config.cgroup_parent)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    let started = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("started"))).is_some();
    driver.kill().unwrap();
    driver.wait().unwrap();
    assert!(started);
}

#[tokio::test]
async fn signals_that_who_started_troupe_ignores_are_not_ignored_in_containers() {
    let mut bench = Bench::new().await;
    bench.sandbox("warm").await;
    // As a script has it that starts a program in its background, and nohup.
    drive(&bench, r#"trap '' INT QUIT HUP; exec "$@""#);
    bench.reopen();
    let all = bench.runtime().list_containers().await.unwrap();
    let long = all.iter().find(|status| status.name == "long").unwrap();
    let ignored = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        // The C library keeps two for itself (32 and 33), which nobody can set through it.
        u64::from_str_radix(line.trim(), 16).unwrap() & !(0b11 << 31)
    };
    let status = fs::read_to_string(format!("/proc/{}/status", long.pid.unwrap())).unwrap();
    assert_eq!(ignored(&status), 0);
    // Nor in a further program.
    let command = ["cat", "/proc/self/status"].map(str::to_owned).to_vec();
    let further = bench.runtime().exec_sync(&long.id, command, Duration::from_secs(60)).await.unwrap();
    assert_eq!(ignored(&String::from_utf8_lossy(&further.stdout)), 0);
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn containers_survive_the_death_of_their_driver() {
    let mut bench = Bench::new().await;
    bench.sandbox("warm").await;
    drive(&bench, r#"exec "$@""#);
    // It ends while nobody drives: the marker lets it.
    fs::write(bench.path().join("go"), "").unwrap();
    bench.line("short", "ended").await;
    bench.reopen();
    let all = bench.runtime().list_containers().await.unwrap();
    let found = |name: &str| all.iter().find(|status| status.name == name).unwrap();
    let long = found("long").clone();
    assert_eq!(long.state, ContainerState::Running);
    assert!(fs::read_to_string(format!("/proc/{}/cmdline", long.pid.unwrap())).unwrap().contains("sleep"));
    let short = bench.exit(&found("short").id.clone()).await;
    assert_eq!(short.code, 9);
    assert!(bench.runtime().list_pod_sandboxes().await.unwrap().iter().all(|status| status.ready));
    bench.runtime().stop_container(&long.id, Duration::ZERO).await.unwrap();
    assert_eq!(bench.exit(&long.id).await.signal, Some(9));
    assert_eq!(bench.leftovers().await, [""; 0]);
}

/// Not a test by itself: what those above start and kill.
#[tokio::test]
async fn drives_containers_until_killed() {
    let Some(path) = std::env::var_os(DRIVE).map(std::path::PathBuf::from) else { return };
    let images = troupe::runtime::images::ImageStore::open(&path.join("images")).unwrap();
    let config_of_native = troupe::runtime::native::NativeConfig {
        bridge: std::env::var("TROUPE_TEST_BRIDGE").unwrap(),
        cgroup_parent: std::env::var("TROUPE_TEST_CGROUP").unwrap(),
        shim: env!("CARGO_BIN_EXE_troupe").into(),
        ..troupe::runtime::native::NativeConfig::new(path.join("root"), images)
    };
    let runtime = NativeRuntime::open(config_of_native).unwrap();
    let sandbox = SandboxConfig { uid: "p".into(), host_network: true, ..sandbox_config() };
    let pod = runtime.run_pod_sandbox(sandbox).await.unwrap().uid;
    let wait = "until [ -e /go/go ]; do sleep 0.01; done; echo ended; exit 9";
    for (name, words) in [("long", &["sleep", "1000"][..]), ("short", &["sh", "-c", wait])] {
        let mut container = config(name, words);
        container.log_path = path.join("logs").join(name);
        container.mounts = vec![troupe::runtime::Mount {
            host_path: path.clone(),
            container_path: "/go".into(),
            read_only: true,
            ..Default::default()
        }];
        let id = runtime.create_container(&pod, container).await.unwrap();
        runtime.start_container(&id).await.unwrap();
    }
    println!("started");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_shim_is_a_lost_sandbox_whose_containers_can_be_ended() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let id = bench.start(&pod, config("c", &["sleep", "1000"])).await;
    let pid = bench.status(&id).await.pid.unwrap();
    let shim = parent(pid);
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    bench.event(|event| *event == RuntimeEvent::SandboxLost { pod: pod.clone() }).await;
    assert!(!bench.runtime().list_pod_sandboxes().await.unwrap()[0].ready);
    assert_eq!(bench.status(&id).await.state, ContainerState::Running);
    bench.runtime().stop_container(&id, Duration::from_secs(5)).await.unwrap();
    let ended = bench.status(&id).await.state;
    assert!(matches!(&ended, ContainerState::Exited(exit) if exit.code == 137));
    bench.reopen();
    assert!(!bench.runtime().list_pod_sandboxes().await.unwrap()[0].ready);
    assert_eq!(bench.status(&id).await.state, ended, "it does not end anew");
    bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
    assert!(bench.runtime().list_pod_sandboxes().await.unwrap().is_empty());
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn what_is_found_dead_ended_when_that_was_noticed_and_not_anew_with_each_start() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let id = bench.start(&pod, config("c", &["sleep", "1000"])).await;
    let pid = bench.status(&id).await.pid.unwrap();
    let shim = parent(pid);
    let now_ms = || i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    // As when the power fails: nobody is left to record the end.
    for pid in [shim, pid] {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    bench.event(|event| *event == RuntimeEvent::SandboxLost { pod: pod.clone() }).await;
    let gone = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
        })
    };
    let waiting = async {
        while !gone() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(STEP, waiting).await.expect("it is gone");
    let begun_ms = now_ms();
    bench.reopen();
    let ContainerState::Exited(exit) = bench.status(&id).await.state else { panic!("it runs") };
    assert!(exit.unseen && exit.code == 137, "{exit:?}");
    assert!((begun_ms..=now_ms()).contains(&exit.finished_ms), "{begun_ms} {exit:?}");
    bench.reopen();
    assert_eq!(bench.status(&id).await.state, ContainerState::Exited(exit));
    bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn nothing_is_left_of_removed_pods() {
    let mut bench = Bench::new().await;
    for uid in ["a", "b"] {
        let pod = bench.sandbox(uid).await;
        for name in ["running", "ended", "created"] {
            let id = bench.create(&pod, config(name, &["sleep", "1000"])).await.unwrap();
            if name != "created" {
                bench.runtime().start_container(&id).await.unwrap();
            }
            if name == "ended" {
                bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
            }
        }
    }
    assert!(bench.traces().len() > 4, "the traces looked for are not seen: {:?}", bench.traces());
    for uid in ["a", "b", "a"] {
        bench.runtime().remove_pod_sandbox(&Uid::from(uid)).await.unwrap();
    }
    assert_eq!(bench.leftovers().await, [""; 0]);
    let links = fs::read_dir("/sys/class/net").unwrap().flatten();
    let orphaned = links.filter(|link| {
        let name = link.file_name().to_string_lossy().into_owned();
        name.starts_with("tv") && !link.path().join("master").exists()
    });
    assert_eq!(orphaned.count(), 0);
}

#[tokio::test]
async fn fifty_pods_start_at_once() {
    const PODS: usize = 50;
    let mut bench = Bench::new().await;
    bench.sandbox("warm").await;
    let begun = Instant::now();
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..PODS {
        let runtime = Arc::clone(bench.runtime());
        let mut container = config(&format!("c{number}"), &["sleep", "1000"]);
        container.log_path = bench.log(&container.name);
        starting.spawn(async move {
            let sandbox = SandboxConfig { uid: format!("pod-{number}"), ..sandbox_config() };
            let status = runtime.run_pod_sandbox(sandbox).await.unwrap();
            let id = runtime.create_container(&status.uid, container).await.unwrap();
            runtime.start_container(&id).await.unwrap();
            status.ip.unwrap()
        });
    }
    let addresses = starting.join_all().await;
    println!("{PODS} pods in {:?}", begun.elapsed());
    let distinct: std::collections::BTreeSet<_> = addresses.iter().collect();
    assert_eq!(distinct.len(), PODS);
    let all = bench.runtime().list_containers().await.unwrap();
    assert_eq!(all.iter().filter(|status| status.state == ContainerState::Running).count(), PODS);
    let begun = Instant::now();
    assert_eq!(bench.leftovers().await, [""; 0]);
    println!("removed in {:?}", begun.elapsed());
}

/// A program that waits in its container to be started is the shim's child, and lives on for a moment.
#[tokio::test]
async fn shims_killed_in_the_middle_of_starts_are_missed_at_once() {
    const PODS: usize = 24;
    let mut bench = Bench::new().await;
    let mut pods = Vec::new();
    for number in 0..PODS {
        let pod = bench.sandbox(&format!("p{number}")).await;
        let id = bench.create(&pod, config(&format!("c{number}"), &["sleep", "1000"])).await.unwrap();
        pods.push((pod, id));
    }
    let shims: Vec<i32> = shims_below(&bench.config.root);
    assert_eq!(shims.len(), PODS);
    let starts = pods.iter().map(|(_, id)| {
        let (runtime, id) = (Arc::clone(bench.runtime()), id.clone());
        tokio::spawn(async move { runtime.start_container(&id).await })
    });
    let starts: Vec<_> = starts.collect();
    for shim in shims {
        // Spread over the time that the starts take.
        tokio::time::sleep(Duration::from_millis(2)).await;
        kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    }
    let begun = Instant::now();
    for start in starts {
        // Some were faster than their shim's death.
        let _ = start.await.unwrap();
    }
    bench.reopen();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(bench.runtime().list_pod_sandboxes().await.unwrap().iter().all(|status| !status.ready));
    assert_eq!(bench.leftovers().await, [""; 0]);
}

/// Processes whose standard output is a shim's log.
fn shims_below(root: &std::path::Path) -> Vec<i32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
        .filter(|pid: &i32| {
            let log = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap_or_default();
            log.starts_with(root) && log.to_string_lossy().contains("shim.log")
        })
        .collect()
}
