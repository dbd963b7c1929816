//! The simulation itself: time, seeds, orders to fail, and what survives a restart.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use super::*;
use crate::runtime::{ContainerConfig, ContainerRuntime, ContainerState, RuntimeEvent, SandboxConfig};

fn sandbox(uid: &str) -> SandboxConfig {
    SandboxConfig {
        uid: uid.into(),
        name: uid.into(),
        namespace: "default".into(),
        ..SandboxConfig::default()
    }
}

fn container(env: &[(&str, &str)]) -> ContainerConfig {
    ContainerConfig {
        name: "c".into(),
        image: "app".into(),
        env: env.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
        ..ContainerConfig::default()
    }
}

async fn open(config: SimConfig) -> SimRuntime {
    let runtime = SimRuntime::open(SimMachine::new(config).unwrap());
    runtime.set_pod_cidr("10.1.0.0/29").await.unwrap();
    runtime
}

async fn run(runtime: &SimRuntime, uid: &str, env: &[(&str, &str)]) -> ContainerId {
    runtime.run_pod_sandbox(sandbox(uid)).await.unwrap();
    let id = runtime.create_container(&uid.into(), container(env)).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    id
}

async fn exit_of(runtime: &SimRuntime, id: &ContainerId) -> Option<(i32, i64)> {
    let all = runtime.list_containers().await.unwrap();
    match &all.iter().find(|c| c.id == *id).unwrap().state {
        ContainerState::Exited(exit) => Some((exit.code, exit.finished_ms)),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_ends_when_its_time_has_come_and_an_event_tells() {
    let runtime = open(SimConfig::default()).await;
    let mut events = runtime.events();
    let begin = Instant::now();
    let later = run(&runtime, "b", &[("SIM_EXIT_AFTER_MS", "3600000")]).await;
    let sooner = run(&runtime, "a", &[("SIM_EXIT_AFTER_MS", "60000"), ("SIM_EXIT_CODE", "7")]).await;
    for (id, code, after) in [(&sooner, 7, 60), (&later, 0, 3600)] {
        match events.recv().await.unwrap() {
            RuntimeEvent::Exited { id: ended, exit, .. } => assert_eq!((&ended, exit.code), (id, code)),
            other => panic!("{other:?}"),
        }
        assert_eq!(begin.elapsed().as_secs(), after);
    }
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_no_process_looked_is_found_with_its_time() {
    let runtime = open(SimConfig::default()).await;
    let id = run(&runtime, "a", &[("SIM_EXIT_AFTER_MS", "1000")]).await;
    let started = runtime.list_containers().await.unwrap()[0].started_ms;
    let machine = runtime.machine().clone();
    drop(runtime);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let again = SimRuntime::open(machine);
    assert_eq!(exit_of(&again, &id).await, Some((0, started + 1000)));
}

#[tokio::test(start_paused = true)]
async fn a_reopened_machine_goes_on() {
    let runtime = open(SimConfig::default()).await;
    let id = run(&runtime, "a", &[("SIM_EXIT_AFTER_MS", "1000")]).await;
    let machine = runtime.machine().clone();
    drop(runtime);
    let again = SimRuntime::open(machine);
    let mut events = again.events();
    assert!(matches!(events.recv().await.unwrap(), RuntimeEvent::Exited { id: ended, .. } if ended == id));
}

#[tokio::test(start_paused = true)]
async fn an_idle_container_costs_no_task() {
    let runtime = open(SimConfig::default()).await;
    run(&runtime, "a", &[]).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    let ends = run(&runtime, "b", &[("SIM_EXIT_AFTER_MS", "1000")]).await;
    run(&runtime, "c", &[("SIM_EXIT_AFTER_MS", "2000")]).await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 1);
    runtime.stop_container(&ends, Duration::ZERO).await.unwrap();
    drop(runtime);
    tokio::task::yield_now().await;
    assert_eq!(
        tokio::runtime::Handle::current().metrics().num_alive_tasks(),
        0,
        "the clock ends with its handle"
    );
}

#[tokio::test(start_paused = true)]
async fn grace_is_waited_for_only_by_those_who_ignore_the_signal() {
    let runtime = open(SimConfig::default()).await;
    let begin = Instant::now();
    let polite = run(&runtime, "a", &[]).await;
    runtime.stop_container(&polite, Duration::from_secs(30)).await.unwrap();
    assert_eq!((begin.elapsed(), exit_of(&runtime, &polite).await.unwrap().0), (Duration::ZERO, 0));
    let rude = run(&runtime, "b", &[("SIM_IGNORE_SIGTERM", "1")]).await;
    runtime.stop_container(&rude, Duration::from_secs(30)).await.unwrap();
    assert_eq!((begin.elapsed().as_secs(), exit_of(&runtime, &rude).await.unwrap().0), (30, 137));
    let leaving = run(&runtime, "c", &[("SIM_IGNORE_SIGTERM", "1"), ("SIM_EXIT_AFTER_MS", "5000")]).await;
    runtime.stop_container(&leaving, Duration::from_secs(30)).await.unwrap();
    assert_eq!((begin.elapsed().as_secs(), exit_of(&runtime, &leaving).await.unwrap().0), (35, 0));
}

#[tokio::test(start_paused = true)]
async fn delays_and_failures_follow_from_the_seed_alone() {
    let history = async |seed: u64, order: [&str; 4]| {
        let runtime = open(SimConfig {
            seed,
            start_delay: Duration::ZERO..=Duration::from_secs(10),
            sandbox_delay: Duration::from_secs(1)..=Duration::from_secs(2),
            start_failures_per_mille: 500,
            ..SimConfig::default()
        })
        .await;
        let mut history = BTreeMap::new();
        for uid in order {
            let begin = Instant::now();
            runtime.run_pod_sandbox(sandbox(uid)).await.unwrap();
            let sandboxed = begin.elapsed();
            assert!((1..=2).contains(&sandboxed.as_secs()));
            let id = runtime.create_container(&uid.into(), container(&[])).await.unwrap();
            history.insert(uid.to_owned(), (sandboxed, runtime.start_container(&id).await.is_ok()));
        }
        history
    };
    let first = history(1, ["a", "b", "c", "d"]).await;
    assert_eq!(first, history(1, ["d", "c", "b", "a"]).await, "whatever the order");
    assert_ne!(first, history(2, ["a", "b", "c", "d"]).await);
}

#[tokio::test]
async fn an_ordered_failure_happens_once_and_changes_nothing() {
    let runtime = open(SimConfig::default()).await;
    runtime.machine().fail_next(Operation::RunPodSandbox, RuntimeError::Config("ordered".into()));
    let error = runtime.run_pod_sandbox(sandbox("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "ordered");
    assert!(runtime.list_pod_sandboxes().await.unwrap().is_empty());
    runtime.run_pod_sandbox(sandbox("a")).await.unwrap();
}

#[tokio::test]
async fn addresses_run_out_and_come_back() {
    let runtime = open(SimConfig::default()).await;
    for uid in ["a", "b", "c", "d", "e"] {
        runtime.run_pod_sandbox(sandbox(uid)).await.unwrap();
    }
    let error = runtime.run_pod_sandbox(sandbox("f")).await.unwrap_err().to_string();
    assert!(error.contains("all 5 addresses"), "{error}");
    runtime.remove_pod_sandbox(&"c".into()).await.unwrap();
    let status = runtime.run_pod_sandbox(sandbox("f")).await.unwrap();
    assert_eq!(status.ip.unwrap().to_string(), "10.1.0.4");
    for cidr in ["", "10.1.0.0", "10.1.0.0/33", "10.1.0.0/31", "fd00::/64", "x/24", "10.0.0.0/0"] {
        assert!(matches!(runtime.set_pod_cidr(cidr).await, Err(RuntimeError::Config(_))), "{cidr}");
    }
}

#[tokio::test]
async fn crashes_and_memory_limits_end_containers_as_ordered() {
    let runtime = open(SimConfig::default()).await;
    let id = run(&runtime, "a", &[]).await;
    runtime.machine().oom_kill(&id);
    let status = runtime.list_containers().await.unwrap().remove(0);
    assert!(matches!(status.state, ContainerState::Exited(exit) if exit.oom_killed && exit.code == 137));
    runtime.machine().exit(&id, 1);
    assert_eq!(exit_of(&runtime, &id).await.unwrap().0, 137, "it ends once");
}

#[tokio::test]
async fn only_known_images_are_here_when_told_so() {
    let images = [("known".to_owned(), Behaviour { exit_code: 4, ..Behaviour::default() })].into();
    let runtime = open(SimConfig { any_image: false, images, ..SimConfig::default() }).await;
    assert!(runtime.image("known").await.unwrap().is_some());
    assert!(runtime.image("unknown").await.unwrap().is_none());
    assert!(matches!(runtime.image("Not A Name").await, Err(RuntimeError::InvalidImageName(..))));
    runtime.run_pod_sandbox(sandbox("a")).await.unwrap();
    let error = runtime.create_container(&"a".into(), container(&[])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageNotFound(_)));
    let known = ContainerConfig { image: "known:latest".into(), ..container(&[]) };
    let id = runtime.create_container(&"a".into(), known).await.unwrap();
    runtime.start_container(&id).await.unwrap();
    runtime.stop_container(&id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(exit_of(&runtime, &id).await.unwrap().0, 4);
}

#[tokio::test]
async fn a_hundred_thousand_containers_are_cheap() {
    let runtime = SimRuntime::open(SimMachine::new(SimConfig::default()).unwrap());
    runtime.set_pod_cidr("10.0.0.0/8").await.unwrap();
    for n in 0..100_000 {
        run(&runtime, &n.to_string(), &[]).await;
    }
    assert_eq!(runtime.list_containers().await.unwrap().len(), 100_000);
}
