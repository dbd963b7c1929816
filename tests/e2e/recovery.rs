//! `kill -9` of `troupe up` and what a new one on the same data directory does.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{
    Cluster, Options, bare_pod, check, controller, hello, is_ready, kill9, ready, text, until,
};

/// Every object, by kind, namespace and name, without what may differ between two readings.
fn objects(cluster: &Cluster) -> BTreeMap<String, Value> {
    let kinds =
        "namespaces,nodes,pods,replicationcontrollers,services,endpoints,configmaps,secrets,serviceaccounts";
    let list = cluster.get(&[kinds, "-A"]);
    let mut all = BTreeMap::new();
    for mut object in list["items"].as_array().cloned().unwrap_or_default() {
        let name = format!(
            "{} {}/{}",
            text(&object["kind"]),
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"])
        );
        object["metadata"]["resourceVersion"] = Value::Null;
        if object["kind"] == "Node" {
            // The node tells anew how much disk is free, and when.
            object["status"] = Value::Null;
        }
        if name == "Endpoints default/kubernetes" {
            // The API's port is a free one, so another each time.
            object["subsets"] = Value::Null;
        }
        all.insert(name, object);
    }
    all
}

#[track_caller]
fn assert_same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    let names = |map: &BTreeMap<String, Value>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(before), names(after));
    for (name, object) in before {
        assert_eq!(object, &after[name], "{name}");
    }
}

#[test]
fn a_killed_troupe_leaves_its_containers_running_and_its_successor_takes_them_over() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let ns = "default";
    cluster.apply(ns, &controller("web", 3, &[]));
    cluster.apply(
        ns,
        &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"},
        "data": {"key": "value"}}),
    );
    cluster.apply(
        ns,
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
    );
    cluster.apply("default", &bare_pod("over", "Never", &[hello("c", &["--once"])]));
    cluster.apply("default", &bare_pod("crashed", "Always", &[hello("c", &[])]));
    let crashed = cluster.until_pod(ns, "crashed", "ready", is_ready);
    kill9(cluster.pid(&crashed));
    cluster.until_pod(ns, "crashed", "restarted", |p| {
        p["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(p)
    });
    cluster.until_pod(ns, "over", "over", |pod| pod["status"]["phase"] == "Succeeded");
    until("the controller and the service know their pods", || {
        let rc = cluster.try_get(&["rc", "web"])?;
        check(rc["status"]["readyReplicas"] == 3, || rc["status"].to_string())?;
        let endpoints = cluster.try_get(&["endpoints", "web"])?;
        let addresses = endpoints["subsets"][0]["addresses"].as_array().map_or(0, Vec::len);
        check(addresses == 3, || endpoints.to_string())
    });
    let (before, processes) = (objects(&cluster), sorted(cluster.processes()));
    assert_eq!(processes.len(), 4);

    // Nothing at all happens to them while nobody is there, nor when someone is again.
    cluster.kill();
    assert_eq!(sorted(cluster.processes()), processes);
    cluster.up();
    assert_same(&before, &settled(&cluster, &before));
    assert_eq!(sorted(cluster.processes()), processes);
    // An orderly end is no different.
    assert_eq!(cluster.stop(), Some(0));
    assert_eq!(sorted(cluster.processes()), processes);
    cluster.up();
    assert_same(&before, &settled(&cluster, &before));
    assert_eq!(sorted(cluster.processes()), processes);

    // What ends while nobody watches is started again, and counted once.
    let victim = cluster.pod(ns, "crashed").unwrap();
    let pid = cluster.pid(&victim);
    cluster.kill();
    kill9(pid);
    cluster.up();
    let found = cluster.until_pod(ns, "crashed", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 2 && is_ready(pod)
    });
    assert_eq!(found["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(found["status"]["startTime"], victim["status"]["startTime"]);
    let others: Vec<_> = processes.iter().filter(|(p, _)| *p != pid).cloned().collect();
    let now = sorted(cluster.processes());
    assert!(others.iter().all(|process| now.contains(process)), "{others:?} {now:?}");

    // Work goes on at once after a restart: scale, delete, create.
    cluster.kill();
    cluster.up();
    cluster.kubectl(&["scale", "rc", "web", "--replicas=5"]).ok();
    cluster.kubectl(&["delete", "pod", "crashed", "--wait=false"]).ok();
    cluster.apply(ns, &bare_pod("fresh", "Always", &[hello("c", &[])]));
    cluster.until_pod(ns, "fresh", "ready", is_ready);
    until("five replicas are ready and the deleted pod is gone", || {
        let rc = cluster.try_get(&["rc", "web"])?;
        check(rc["status"]["readyReplicas"] == 5 && rc["status"]["replicas"] == 5, || {
            rc["status"].to_string()
        })?;
        check(cluster.pod(ns, "crashed").is_err(), || "it is there".into())
    });
    cluster.kubectl(&["scale", "rc", "web", "--replicas=0"]).ok();
    cluster.kubectl(&["delete", "pod", "fresh", "over"]).ok();
    until("nothing is left", || {
        let left = (cluster.processes(), cluster.shims());
        check(left.0.is_empty() && left.1 == 0, || format!("{left:?}"))
    });
}

/// A pod whose container cannot start, that of one which ended, and what is told of both.
pub fn finished(cluster: &Cluster) -> Vec<Value> {
    let mut none = hello("c", &[]);
    none["command"] = json!(["/none"]);
    cluster.apply("default", &bare_pod("none", "Never", &[none]));
    cluster.apply("default", &bare_pod("over", "Never", &[hello("c", &["--once"])]));
    told_of_finished(cluster)
}

/// The same once both are over.
pub fn told_of_finished(cluster: &Cluster) -> Vec<Value> {
    let ended = [("none", "Failed"), ("over", "Succeeded")].map(|(name, phase)| {
        let mut pod = cluster.until_pod("default", name, phase, |pod| {
            let gone = |c: &Value| c["type"] == "PodReadyToStartContainers" && c["status"] == "False";
            let conditions = pod["status"]["conditions"].as_array();
            pod["status"]["phase"] == phase && conditions.is_some_and(|all| all.iter().any(gone))
        });
        let status = &mut pod["status"]["containerStatuses"][0];
        // Of what did not start this is known later.
        status["imageID"] = Value::Null;
        json!([name, pod["status"]["containerStatuses"], pod["status"]["podIP"], pod["status"]["startTime"]])
    });
    ended.into()
}

/// What is over stays as it was told, and is not begun again, when `troupe` is killed and comes back.
pub fn finished_pods_stay_so(cluster: &mut Cluster, before: &[Value]) {
    let none = &before[0][1][0]["state"]["terminated"];
    assert_eq!((&none["reason"], &none["exitCode"]), (&json!("StartError"), &json!(128)));
    assert!(before.iter().all(|pod| pod[2].is_string()), "no address: {before:?}");
    cluster.kill();
    cluster.up();
    // What comes after them was taken up after them.
    cluster.apply("default", &bare_pod("later", "Never", &[hello("c", &["--once"])]));
    cluster.until_pod("default", "later", "over", |pod| pod["status"]["phase"] == "Succeeded");
    assert_eq!(told_of_finished(cluster), before);
    cluster.kubectl(&["delete", "pod", "none", "over", "later"]).ok();
    // The node follows: their logs are the last that goes.
    until("nothing is left of them", || {
        let left = std::fs::read_dir(cluster.data.join("nodes/n1/logs")).into_iter().flatten().flatten();
        let names: Vec<String> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let gone = |name: &str| names.iter().all(|left| !left.starts_with(&format!("default_{name}_")));
        check(["none", "over", "later"].into_iter().all(gone), || format!("{names:?}"))
    });
}

#[test]
fn pods_that_are_over_stay_over_when_troupe_is_started_again() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let before = finished(&cluster);
    finished_pods_stay_so(&mut cluster, &before);
}

fn sorted(mut processes: Vec<(i32, String)>) -> Vec<(i32, String)> {
    processes.sort();
    processes
}

/// The objects once they are what they were, or what they are when the time is up.
fn settled(cluster: &Cluster, before: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    // The node must have linked: only then has the new kubelet reported.
    until("the node is linked", || {
        let log = std::fs::read_to_string(cluster.log()).unwrap_or_default();
        let last = log.rsplit("serving the API").next().unwrap_or_default().to_owned();
        check(last.contains("kubelet listed its runtime"), || last.clone())
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let now = objects(cluster);
        if now == *before || std::time::Instant::now() > deadline {
            return now;
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

#[test]
fn a_pod_deleted_just_before_the_kill_is_ended_by_the_successor() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let mut slow = bare_pod("slow", "Always", &[hello("c", &["--ignore-sigterm"])]);
    slow["spec"]["terminationGracePeriodSeconds"] = 3.into();
    cluster.apply("default", &slow);
    cluster.until_pod("default", "slow", "ready", is_ready);
    cluster.kubectl(&["delete", "pod", "slow", "--wait=false"]).ok();
    cluster.kill();
    assert_eq!(cluster.processes().len(), 1);
    cluster.up();
    until("it is gone", || {
        check(cluster.pod("default", "slow").is_err(), || "it is there".into())?;
        check(cluster.processes().is_empty() && cluster.shims() == 0, || format!("{:?}", cluster.processes()))
    });
}

#[test]
fn after_everything_died_pods_come_back_and_what_was_over_stays_over() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options { arguments: vec!["--nodes", "2"], ..Options::default() });
    let ns = "default";
    cluster.apply(ns, &controller("web", 4, &[]));
    let last_words = ["--once", "--print", "said", "--write", "/dev/termination-log=all is well"];
    cluster.apply(ns, &bare_pod("over", "Never", &[hello("c", &last_words)]));
    cluster.apply(ns, &bare_pod("once", "Never", &[hello("c", &[])]));
    let over = cluster.until_pod(ns, "over", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let told = &over["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(told["message"], "all is well");
    cluster.until_pod(ns, "once", "ready", is_ready);
    let before = until("four replicas are ready", || ready_replicas(&cluster, 4));
    let nodes: std::collections::BTreeSet<&str> =
        before.iter().map(|pod| text(&pod["spec"]["nodeName"])).collect();
    assert_eq!(nodes.len(), 2, "spread over both nodes");

    // As after the machine itself has restarted: no process, no bridge, no cgroup.
    let restarted = |cluster: &mut Cluster, times: u64| {
        cluster.kill();
        cluster.lose_processes();
        let lost = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
        if times == 2 {
            // And worse: the nodes know nothing of their pods any more.
            std::fs::remove_dir_all(cluster.data.join("nodes")).unwrap();
        }
        cluster.up();
        let after = until("the replicas are back", || {
            let pods = ready_replicas(cluster, 4)?;
            let counted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == times;
            check(pods.iter().all(counted), || pods.iter().map(|p| p["status"].to_string()).collect())?;
            Ok(pods)
        });
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(old["metadata"]["uid"], new["metadata"]["uid"]);
            assert_eq!(old["status"]["startTime"], new["status"]["startTime"]);
            let last = &new["status"]["containerStatuses"][0]["lastState"]["terminated"];
            assert_eq!((&last["exitCode"], &last["reason"]), (&137.into(), &"ContainerStatusUnknown".into()));
            // Not when it had begun: it may have run for a month.
            let finished = humantime::parse_rfc3339(last["finishedAt"].as_str().unwrap()).unwrap();
            assert!(finished >= lost, "{last}");
            cluster.until_event(ns, new["metadata"]["name"].as_str().unwrap(), "SandboxChanged");
        }
        let running = cluster.processes();
        assert_eq!(running.len(), 4, "one process for each replica and no other: {running:?}");
        let once = cluster.until_pod(ns, "once", "failed", |pod| pod["status"]["phase"] == "Failed");
        assert_eq!(once["status"]["containerStatuses"][0]["restartCount"], 0);
        let still = cluster.pod(ns, "over").unwrap();
        assert_eq!(still["status"]["phase"], "Succeeded");
        assert_eq!(&still["status"]["containerStatuses"][0]["state"]["terminated"], told);
    };
    restarted(&mut cluster, 1);
    assert_eq!(cluster.kubectl(&["logs", "over"]).ok(), "said\n");
    restarted(&mut cluster, 2);
    cluster.kubectl(&["delete", "rc,pods", "--all"]).ok();
    until("nothing is left", || {
        check(cluster.processes().is_empty() && cluster.shims() == 0, || format!("{:?}", cluster.processes()))
    });
}

/// The controller's pods by name, once so many are ready.
fn ready_replicas(cluster: &Cluster, count: usize) -> Result<Vec<Value>, String> {
    let mut pods = cluster.pods("default")?;
    pods.retain(|pod| pod["metadata"]["labels"]["app"] == "web" && is_ready(pod));
    pods.sort_by_key(|pod| text(&pod["metadata"]["name"]).to_owned());
    check(pods.len() == count, || format!("{} ready", pods.len()))?;
    Ok(pods)
}
