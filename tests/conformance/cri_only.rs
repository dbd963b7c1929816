//! What only the CRI runtime has to get right: its part of a runtime that others use, too, and that comes and goes.

use std::time::Duration;

use troupe::runtime::{
    ContainerResources, ContainerRuntime, ContainerState, RuntimeError, RuntimeEvent, cri::CriRuntime,
};

use super::{
    containerd,
    cri::{OnContainerd, config},
    harness::{Bench, LONG, STEP, sandbox, subnet, until},
};

#[tokio::test]
async fn two_runtimes_on_one_containerd_do_not_see_each_other() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let other = config(bench.shared_dir("other"), &bench.harness.config.socket);
    let other = CriRuntime::open(other).unwrap();
    assert!(other.list_pod_sandboxes().await.unwrap().is_empty());
    assert!(other.list_containers().await.unwrap().is_empty());
    // Not even by id, and not even a pod of the same uid.
    other.set_pod_cidr(&subnet()).await.unwrap();
    other.run_pod_sandbox(sandbox("a")).await.unwrap();
    other.stop_container(&id, Duration::ZERO).await.unwrap();
    other.remove_container(&id).await.unwrap();
    assert!(matches!(other.start_container(&id).await, Err(RuntimeError::NotFound(_))));
    other.remove_pod_sandbox(&"a".into()).await.unwrap();
    other.destroy().await.unwrap();
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    assert!(bench.find_sandbox("a").await.unwrap().ready);
    // The network is still there for the next pod.
    bench.running("b").await;
}

#[tokio::test]
async fn containers_run_on_while_containerd_is_replaced_and_are_heard_after() {
    if !containerd::at_hand() {
        return;
    }
    let mut bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    bench.line("a", "listening").await;
    let pid = bench.find(&id).await.unwrap().pid;
    bench.harness.containerd.daemon().restart();
    assert_eq!(bench.find(&id).await.unwrap().pid, pid);
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    assert_eq!(bench.told_exit(&id).await.code, 0);
    let again = bench.start("a", bench.hello("again", &["--once", "--exit-code", "3"])).await;
    assert_eq!(bench.told_exit(&again).await.code, 3);
}

#[tokio::test]
async fn limits_are_kept_changed_and_used_is_told() {
    if !containerd::at_hand() {
        return;
    }
    let mut bench = Bench::<OnContainerd>::new().await;
    bench.sandbox("a").await;
    let mut limited = bench.hello("c", &["--allocate", "256Mi"]);
    limited.resources.memory_limit_bytes = 64 << 20;
    let id = bench.start("a", limited).await;
    let exit = bench.told_exit(&id).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    let id = bench.start("a", bench.hello("d", &[])).await;
    let resources = ContainerResources { memory_limit_bytes: 200 << 20, ..ContainerResources::default() };
    bench.runtime().update_container(&id, resources).await.unwrap();
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    assert_eq!(memory_limit(pid), Some(200 << 20));
    let deadline = tokio::time::Instant::now() + STEP;
    loop {
        let stats = bench.runtime().stats().await.unwrap();
        assert_eq!(stats.len(), 1);
        let (of, usage) = &stats[0].containers[0];
        assert_eq!((stats[0].containers.len(), of), (1, &id));
        if usage.working_set_bytes > Some(0) && usage.cpu_ns > Some(0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the kernel has for a process.
fn memory_limit(pid: i32) -> Option<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let file = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("memory", path) => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => None,
        }
    });
    let unified = || Some(format!("/sys/fs/cgroup{}/memory.max", groups.trim().strip_prefix("0::")?));
    std::fs::read_to_string(file.or_else(unified)?).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn a_log_goes_on_in_a_new_file_when_it_is_asked_to() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    bench.sandbox("a").await;
    let config = bench.hello("c", &["--print", "tick", "--every", "10ms"]);
    let log = config.log_path.clone();
    let id = bench.start("a", config).await;
    bench.line("c", "tick").await;
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    bench.runtime().reopen_log(&id).await.unwrap();
    until(|| log.exists() && !bench.log("c").is_empty()).await.expect("the log goes on");
}

#[tokio::test]
async fn a_lost_sandbox_takes_its_containers_along_within_a_listing() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let mut events = bench.runtime().events();
    let container = bench.find(&id).await.unwrap();
    super::harness::Harness::lose_sandbox(&bench.harness, &container);
    let (mut exited, mut lost) = (0, 0);
    while exited == 0 || lost == 0 {
        match tokio::time::timeout(STEP, events.recv()).await.expect("nothing is told").unwrap() {
            RuntimeEvent::Exited { id: of, .. } if of == id => exited += 1,
            RuntimeEvent::SandboxLost { pod } if pod.as_str() == "a" => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(_)));
    // And life goes on, at an address of its own.
    assert!(bench.sandbox("a").await.ip.is_some());
}
