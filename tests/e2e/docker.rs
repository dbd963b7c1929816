//! `troupe up --runtime docker`: a user's pods on a docker engine that the test starts.

use std::{collections::HashMap, process::Command};

use bollard::query_parameters::{ListContainersOptions, ListNetworksOptions};
use serde_json::Value;

use crate::{
    engine::{Engine, Lease, at_hand},
    harness::{self, Cluster, Options, controller, ready, text},
    recovery::{finished, finished_pods_stay_so},
};

fn on(engine: &Engine) -> Options {
    Options {
        arguments: vec!["--runtime", "docker"],
        environment: vec![("DOCKER_HOST", format!("unix://{}", engine.socket.display()))],
        ..Options::default()
    }
}

/// Names of pods, each with its container's id and how often it was restarted.
pub fn lives(pods: &[Value]) -> Vec<(String, String, i64)> {
    let life = |pod: &Value| {
        let container = &pod["status"]["containerStatuses"][0];
        let (name, id) = (text(&pod["metadata"]["name"]), text(&container["containerID"]));
        (name.to_owned(), id.to_owned(), container["restartCount"].as_i64().unwrap())
    };
    let mut all: Vec<_> = pods.iter().map(life).collect();
    all.sort();
    all
}

#[test]
fn a_controllers_pods_run_on_docker_outlive_troupe_and_go_with_a_reset() {
    if !ready() || !at_hand() {
        return;
    }
    let engine = Lease::fresh();
    let mut cluster = Cluster::start(on(&engine));
    let version =
        text(&cluster.get(&["node", "n1"])["status"]["nodeInfo"]["containerRuntimeVersion"]).to_owned();
    assert!(version.starts_with("docker://"), "{version}");

    // Two pods, kept alive.
    cluster.apply("default", &controller("web", 2, &[]));
    let first = lives(&cluster.until_ready("default", 2));
    assert!(first.iter().all(|(_, id, _)| id.starts_with("docker://")), "{first:?}");
    for (pod, _, _) in &first {
        let log = cluster.kubectl(&["logs", pod]).ok();
        assert!(log.contains("listening on"), "{log}");
    }
    cluster.kubectl(&["delete", "pod", &first[0].0]).ok();
    let second = lives(&cluster.until_ready("default", 2));
    assert!(second.contains(&first[1]) && !second.contains(&first[0]), "{first:?} {second:?}");

    // They outlive troupe, and a new one takes them over as they are.
    cluster.kill();
    cluster.up();
    assert_eq!(lives(&cluster.until_ready("default", 2)), second);
    for (pod, _, _) in &second {
        let log = cluster.kubectl(&["logs", pod]).ok();
        assert_eq!(log.matches("listening on").count(), 1, "{log}");
    }
    let exec = lives_in(&engine);
    assert_eq!(exec.len(), 4, "a sandbox and a container for each pod: {exec:?}");

    let over = finished(&cluster);
    finished_pods_stay_so(&mut cluster, &over);

    // Another runtime does not start beside; a reset ends everything.
    assert_eq!(cluster.stop(), Some(0));
    let mut native = Command::new(env!("CARGO_BIN_EXE_troupe"));
    native.args(["up", "--runtime", "sim", "--api", "127.0.0.1:0", "--node-name", "n1", "--data-dir"]);
    let refused = native.arg(&cluster.data).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--runtime docker"), "{said}");
    let mut reset = Command::new(env!("CARGO_BIN_EXE_troupe"));
    let reset = reset.args(["reset", "--yes", "--data-dir"]).arg(&cluster.data).output().unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    assert!(String::from_utf8_lossy(&reset.stdout).contains("2 pods ended"));
    assert_eq!(lives_in(&engine), [""; 0]);
    let networks = engine.ask(|docker| async move {
        let filters = Some(HashMap::from([("label".to_owned(), vec!["local.troupe.root".to_owned()])]));
        docker.list_networks(Some(ListNetworksOptions { filters })).await
    });
    assert_eq!(networks.unwrap().len(), 0);
}

/// Ids of all containers of the engine.
fn lives_in(engine: &Engine) -> Vec<String> {
    let all = engine.ask(|docker| async move {
        docker.list_containers(Some(ListContainersOptions { all: true, ..Default::default() })).await
    });
    all.unwrap().into_iter().filter_map(|found| found.id).collect()
}

#[test]
fn a_node_whose_engine_is_away_is_not_ready_until_that_is_back() {
    if !ready() || !at_hand() {
        return;
    }
    let engine = Lease::fresh();
    let cluster = Cluster::start(on(&engine));
    cluster.apply("default", &controller("web", 1, &[]));
    cluster.until_ready("default", 1);
    let until = |wanted: &str| {
        harness::until(&format!("the node is ready: {wanted}"), || {
            let node = cluster.try_get(&["node", "n1"])?;
            let all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = all.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
            harness::check(ready["status"] == wanted, || ready.to_string()).map(|()| ready)
        })
    };
    engine.stop();
    let away = until("False");
    engine.begin_again();
    let said = text(&away["message"]);
    assert!(said.contains("docker.sock") && said.contains("start"), "{said}");
    until("True");
    cluster.until_event("default", "n1", "NodeNotReady");
    // What the engine ended with itself runs again.
    cluster.until_ready("default", 1);
}

#[test]
fn an_engine_that_is_not_there_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let mut troupe = Command::new(env!("CARGO_BIN_EXE_troupe"));
    troupe
        .args(["up", "--runtime", "docker", "--api", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"));
    troupe.env("DOCKER_HOST", format!("unix://{}", dir.path().join("none.sock").display()));
    let output = troupe.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("none.sock") && said.contains("systemctl start docker"), "{said}");
    assert!(!dir.path().join("data").join("objects").exists(), "nothing is begun");
}
