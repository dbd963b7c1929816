//! `troupe up --runtime cri`: a user's pods on a containerd that the test starts.

use std::process::Command;

use crate::{
    containerd::{Containerd, at_hand},
    docker::lives,
    harness::{Cluster, Options, controller, ready, sweep, text, until},
    recovery::{finished, finished_pods_stay_so},
};

fn on(containerd: &Containerd) -> Options {
    Options {
        arguments: vec!["--runtime", "cri"],
        environment: vec![("CONTAINER_RUNTIME_ENDPOINT", format!("unix://{}", containerd.socket.display()))],
        ..Options::default()
    }
}

#[test]
fn a_controllers_pods_run_on_containerd_outlive_troupe_and_go_with_a_reset() {
    if !ready() || !at_hand() {
        return;
    }
    let containerd = Containerd::start();
    let mut cluster = Cluster::start(on(&containerd));
    let version =
        text(&cluster.get(&["node", "n1"])["status"]["nodeInfo"]["containerRuntimeVersion"]).to_owned();
    assert!(version.starts_with("containerd://1."), "{version}");

    // Two pods, kept alive, and reached at their addresses.
    cluster.apply("default", &controller("web", 2, &[]));
    let first = lives(&cluster.until_ready("default", 2));
    assert!(first.iter().all(|(_, id, _)| id.starts_with("containerd://")), "{first:?}");
    for (pod, _, _) in &first {
        let log = cluster.kubectl(&["logs", pod]).ok();
        assert!(log.contains("listening on"), "{log}");
        let said =
            cluster.kubectl(&["exec", pod, "--", "/hello", "hello", "--print", "inside", "--once"]).ok();
        assert!(said.contains("inside"), "{said}");
        let program = ["/hello", "hello", "--once", "--print", "fed", "--exit-code", "3"];
        let fed = cluster.kubectl_in(&[&["exec", "-i", pod, "--"][..], &program].concat(), "some words");
        assert_eq!((fed.code(), fed.out().trim()), (Some(3), "fed"), "{}", fed.err());
    }
    cluster.kubectl(&["delete", "pod", &first[0].0]).ok();
    let second = lives(&cluster.until_ready("default", 2));
    assert!(second.contains(&first[1]) && !second.contains(&first[0]), "{first:?} {second:?}");

    // A container that is killed past both of them is started again in its pod.
    let killed = first[1].1.trim_start_matches("containerd://").to_owned();
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", &killed]);
    until("the killed container is replaced", || {
        let now = lives(&cluster.until_ready("default", 2));
        let same = now.iter().find(|(pod, _, _)| *pod == first[1].0);
        same.filter(|(_, id, restarts)| *restarts == 1 && *id != first[1].1)
            .map(drop)
            .ok_or_else(|| format!("{now:?}"))
    });
    let second = lives(&cluster.until_ready("default", 2));

    // They outlive troupe, and a new one takes them over as they are.
    cluster.kill();
    cluster.up();
    assert_eq!(lives(&cluster.until_ready("default", 2)), second);
    let running = containerd.ctr(&["tasks", "list", "--quiet"]);
    assert_eq!(running.len(), 4, "a sandbox and a container for each pod: {running:?}");

    let over = finished(&cluster);
    finished_pods_stay_so(&mut cluster, &over);

    // Another runtime does not start beside; a reset ends everything.
    assert_eq!(cluster.stop(), Some(0));
    let mut other = Command::new(env!("CARGO_BIN_EXE_troupe"));
    other.args(["up", "--runtime", "sim", "--api", "127.0.0.1:0", "--node-name", "n1", "--data-dir"]);
    let refused = other.arg(&cluster.data).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--runtime cri"), "{said}");
    assert!(!sweep::links(&cluster.data).is_empty() && !sweep::cgroups(&cluster.data).is_empty());
    let mut reset = Command::new(env!("CARGO_BIN_EXE_troupe"));
    let reset = reset.args(["reset", "--yes", "--data-dir"]).arg(&cluster.data).output().unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    assert!(String::from_utf8_lossy(&reset.stdout).contains("2 pods ended"));
    for what in ["containers", "tasks"] {
        assert_eq!(containerd.ctr(&[what, "list", "--quiet"]), [""; 0]);
    }
    assert_eq!(sweep::links(&cluster.data), [""; 0]);
    assert!(sweep::cgroups(&cluster.data).is_empty(), "{:?}", sweep::cgroups(&cluster.data));
    let networks = std::fs::read_dir(containerd.dir.join("cni-conf")).unwrap().count();
    assert_eq!(networks, 0, "the network's configuration is left");
}

#[test]
fn a_runtime_that_is_not_there_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let mut troupe = Command::new(env!("CARGO_BIN_EXE_troupe"));
    troupe.args(["up", "--runtime", "cri", "--api", "127.0.0.1:0", "--cri-socket"]);
    troupe.arg(dir.path().join("none.sock")).arg("--data-dir").arg(dir.path().join("data"));
    let output = troupe.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{said}");
    if nix::unistd::geteuid().is_root() {
        assert!(said.contains("none.sock") && said.contains("--cri-socket"), "{said}");
    }
    assert!(!dir.path().join("data").join("objects").exists(), "nothing is begun");
}
