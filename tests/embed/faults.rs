//! Faults of what surrounds a cluster: its runtime, its ports, its directory, its owner.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use troupe::{
    Cluster, ClusterConfig, Persistence, StartError,
    runtime::{
        RuntimeError,
        sim::{Operation, SimConfig, SimMachine, SimRuntime},
    },
};

use crate::{
    support::{WITHIN, controller, meta, pod_spec, running, system},
    tasks::TaskRuntime,
};

fn durable(directory: &std::path::Path) -> ClusterConfig {
    let mut config = ClusterConfig::simulated(directory).nodes(["sim"]);
    config.master.persistence = Persistence::Directory(directory.into());
    config
}

#[test]
fn a_runtime_that_refuses_everything_once_is_asked_again() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let machine = SimMachine::new(SimConfig::default()).unwrap();
        let refusal = |what: Operation| {
            let error = RuntimeError::System { operation: format!("{what:?}"), cause: "on request".into() };
            machine.fail_next(what, error);
        };
        [Operation::SetPodCidr, Operation::ListPodSandboxes, Operation::RunPodSandbox]
            .into_iter()
            .for_each(refusal);
        let mut config = ClusterConfig::simulated(directory.path()).nodes(["own"]);
        config = config.runtime_of("own", Arc::new(SimRuntime::open(machine.clone())));
        config.crash_loop.initial = std::time::Duration::from_millis(50);
        let cluster = Cluster::start(config).await.unwrap();
        let client = cluster.client();
        cluster.ready(WITHIN).await.unwrap();

        [Operation::CreateContainer, Operation::StartContainer].into_iter().for_each(refusal);
        client.create(&controller("a", 3)).await.unwrap();
        let uids = running(&client, 3).await;

        // A pod's actor that cannot list must not take that for "nothing is here".
        refusal(Operation::ListPodSandboxes);
        refusal(Operation::ListContainers);
        let node = cluster.nodes()[0].supervisor();
        node.inject_panic(&format!("node/pods/{}", uids[0])).await.unwrap();
        assert_eq!(running(&client, 3).await, uids);

        [Operation::StopContainer, Operation::StopPodSandbox, Operation::RemovePodSandbox]
            .into_iter()
            .for_each(refusal);
        client.scale("default", "a", 0).await.unwrap();
        running(&client, 0).await;
        assert!(
            troupe::ContainerRuntime::list_pod_sandboxes(&SimRuntime::open(machine))
                .await
                .unwrap()
                .is_empty()
        );
        cluster.stop().await;
    });
}

#[test]
fn programs_that_fail_or_panic_or_do_not_listen_are_containers_that_do() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let runtime = TaskRuntime::builder()
            .image("example.com/fails", |_| async { 3 })
            .and_then(|b| b.image("example.com/panics", |_| async { panic!("a program's own fault") }))
            .and_then(|b| b.image("example.com/deaf", |_| std::future::pending()))
            .unwrap()
            .build();
        let config = ClusterConfig::simulated(directory.path()).nodes(["own"]);
        let cluster = Cluster::start(config.runtime_of("own", Arc::new(runtime))).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        let client = cluster.client();
        let pod = |name: &str, image: &str| {
            let mut spec = pod_spec(&[]);
            spec.containers[0].image = Some(format!("example.com/{image}"));
            spec.restart_policy = Some("Never".into());
            spec.termination_grace_period_seconds = Some(1);
            Pod { metadata: meta(name), spec: Some(spec), status: None }
        };
        for image in ["fails", "panics", "deaf", "unknown"] {
            client.create(&pod(image, image)).await.unwrap();
        }
        let status = |name: &str| client.get::<Pod>("default", name).unwrap().and_then(|p| p.status);
        let state = |name: &str| status(name)?.container_statuses?.into_iter().next()?.state;
        for (name, code) in [("fails", 3), ("panics", 134)] {
            let code_of = || state(name)?.terminated.map(|t| t.exit_code);
            assert_eq!(client.until(WITHIN, |_| code_of()).await.unwrap(), code, "{name}");
        }
        let reason = || state("unknown")?.waiting?.reason.filter(|r| r.contains("Image"));
        client.until(WITHIN, |_| reason()).await.unwrap();
        client.until(WITHIN, |_| state("deaf")?.running).await.unwrap();
        for name in ["fails", "panics", "deaf", "unknown"] {
            client.delete::<Pod>("default", name).await.unwrap();
        }
        running(&client, 0).await;
        cluster.stop().await;
    });
}

#[test]
fn a_cluster_that_cannot_start_says_why_and_leaves_nothing_behind() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let refused = Cluster::start(durable(directory.path()).api(address)).await.err().unwrap();
        assert!(refused.to_string().contains(&address.to_string()), "{refused}");

        let machine = SimMachine::new(SimConfig::default()).unwrap();
        let stray = durable(directory.path()).runtime_of("smi", Arc::new(SimRuntime::open(machine)));
        let refused = Cluster::start(stray).await.err().unwrap().to_string();
        assert!(refused.contains("smi"), "{refused}");
        let twice = Cluster::start(durable(directory.path()).nodes(["a", "a"])).await.err().unwrap();
        assert!(matches!(twice, StartError::Refused(_)), "{twice}");
        // A file where the node's directory should be.
        std::fs::create_dir_all(directory.path().join("nodes")).unwrap();
        std::fs::write(directory.path().join("nodes/bad"), "").unwrap();
        let refused = Cluster::start(durable(directory.path()).nodes(["sim", "bad"])).await.err().unwrap();
        assert!(refused.to_string().contains("nodes/bad"), "{refused}");

        // The directory's lock is free again, and so is everything else.
        let cluster = Cluster::start(durable(directory.path())).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        let locked = Cluster::start(durable(directory.path())).await.err().unwrap();
        assert!(matches!(locked, StartError::Store(_)), "{locked}");
        cluster.stop().await;
    });
}

#[test]
fn a_cluster_that_is_dropped_stops_by_itself() {
    system(async {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::start(durable(directory.path())).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        let api = cluster.master().api();
        drop(cluster);
        let again = async {
            loop {
                if let Ok(cluster) = Cluster::start(durable(directory.path()).api(api)).await {
                    return cluster;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        let cluster = tokio::time::timeout(WITHIN, again).await.expect("directory and port stay taken");
        cluster.stop().await;
    });
}
