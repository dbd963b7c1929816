//! What runs when in a pod: init containers, sidecars, and pods that end by their deadline.

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, shared, text, until};

/// The cells of a pod's row, as people see it.
fn row(cluster: &Cluster, ns: &str, name: &str) -> Result<Vec<String>, String> {
    let row = cluster.kubectl(&["get", "pod", "-n", ns, name, "--no-headers"]).result()?;
    Ok(row.split_whitespace().map(str::to_owned).collect())
}

/// Waits until `kubectl get pods` shows these cells after the name.
#[track_caller]
fn until_shown(cluster: &Cluster, ns: &str, name: &str, cells: [&str; 2]) {
    until(&format!("{name} is shown as {cells:?}"), || {
        let row = row(cluster, ns, name)?;
        check(row[1..3] == cells, || format!("{row:?}"))
    });
}

fn mounted(mut container: Value) -> Value {
    container["volumeMounts"] = json!([{"name": "work", "mountPath": "/data"}]);
    container
}

fn with_init(mut pod: Value, init: &[Value]) -> Value {
    pod["spec"]["initContainers"] = init.into();
    pod["spec"]["volumes"] = json!([{"name": "work", "emptyDir": {}}]);
    pod
}

fn sidecar(name: &str, arguments: &[&str]) -> Value {
    let mut container = hello(name, arguments);
    container["restartPolicy"] = "Always".into();
    container
}

/// A time that a status tells.
fn at<'a>(status: &'a Value, state: &str, when: &str) -> &'a str {
    text(&status["state"][state][when])
}

#[test]
fn init_containers_prepare_what_the_main_container_finds() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "init-chain";
    cluster.namespace(ns);
    let init = [
        mounted(hello("fetch", &["--once", "--print", "fetched", "--write", "/data/raw=raw"])),
        // Fails unless the first one has run.
        mounted(hello("build", &["--once", "--read", "/data/raw", "--write", "/data/built=built"])),
    ];
    let main = mounted(hello("serve", &["--read", "/data/built"]));
    cluster.apply(ns, &with_init(bare_pod("chain", "Always", &[main]), &init));
    let pod = cluster.until_pod(ns, "chain", "ready", is_ready);
    let done = pod["status"]["initContainerStatuses"].as_array().cloned().unwrap();
    assert_eq!(done.len(), 2);
    for status in &done {
        assert_eq!(status["state"]["terminated"]["reason"], "Completed");
        assert_eq!((&status["ready"], &status["restartCount"]), (&json!(true), &json!(0)));
    }
    let begun = at(&pod["status"]["containerStatuses"][0], "running", "startedAt");
    assert!(at(&done[0], "terminated", "finishedAt") <= at(&done[1], "terminated", "startedAt"));
    assert!(at(&done[1], "terminated", "finishedAt") <= begun);
    let log = |container: &str| cluster.kubectl(&["logs", "-n", ns, "chain", "-c", container]).ok();
    assert_eq!((log("fetch").trim(), log("build").trim()), ("fetched", "raw"));
    assert!(log("serve").starts_with("built"), "{}", log("serve"));
    assert_eq!(row(&cluster, ns, "chain").unwrap()[1..4], ["1/1", "Running", "0"]);
    let event = cluster.get(&["events", "-n", ns, "--field-selector", "reason=Started"]);
    let paths: Vec<&str> =
        event["items"].as_array().unwrap().iter().map(|e| text(&e["involvedObject"]["fieldPath"])).collect();
    assert!(paths.contains(&"spec.initContainers{fetch}"), "{paths:?}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "chain"]).ok();
}

#[test]
fn a_failing_init_container_is_shown_and_keeps_the_others_from_running() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "init-fails";
    cluster.namespace(ns);
    let fails = hello("fails", &["--once", "--exit-code", "3", "--print", "no"]);
    let waits = hello("waits", &["--sleep", "1h"]);
    for (name, policy, init) in
        [("never", "Never", &fails), ("again", "Always", &fails), ("waiting", "Always", &waits)]
    {
        let pod = bare_pod(name, policy, &[hello("main", &[])]);
        cluster.apply(ns, &with_init(pod, std::slice::from_ref(init)));
    }
    until_shown(&cluster, ns, "never", ["0/1", "Init:Error"]);
    until_shown(&cluster, ns, "again", ["0/1", "Init:CrashLoopBackOff"]);
    until_shown(&cluster, ns, "waiting", ["0/1", "Init:0/1"]);
    let never = cluster.until_pod(ns, "never", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(never["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    let waiting = cluster.pod(ns, "waiting").unwrap();
    assert_eq!(waiting["status"]["phase"], "Pending");
    let main = &waiting["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(main["reason"], "PodInitializing");
    let initialized = waiting["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|c| c["type"] == "Initialized")
        .cloned()
        .unwrap();
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(initialized["message"], "containers with incomplete status: [waits]");
    let log = cluster.kubectl(&["logs", "-n", ns, "again", "-c", "fails", "--previous"]).ok();
    assert_eq!(log.trim(), "no");
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn a_sidecar_outlives_the_main_container_and_ends_after_it() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "sidecars";
    cluster.namespace(ns);
    // The main container can only work because the sidecar serves already, and says so before it ends.
    let main = hello("job", &["--fetch", "http://127.0.0.1:8080/healthz", "--once", "--sleep", "1s"]);
    let init =
        [sidecar("proxy", &[]), hello("check", &["--fetch", "http://127.0.0.1:8080/healthz", "--once"])];
    cluster.apply(ns, &with_init(bare_pod("job", "Never", &[main]), &init));
    let both = cluster.until_pod(ns, "job", "running", |pod| {
        pod["status"]["containerStatuses"][0]["state"]["running"].is_object()
    });
    assert_eq!(both["status"]["initContainerStatuses"][0]["started"], true);
    assert_eq!(cluster.pids(&both).len(), 2);
    let over = cluster.until_pod(ns, "job", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let (side, job) = (&over["status"]["initContainerStatuses"][0], &over["status"]["containerStatuses"][0]);
    assert!(at(job, "terminated", "finishedAt") <= at(side, "terminated", "finishedAt"));
    assert_eq!(job["state"]["terminated"]["exitCode"], 0);
    assert!(cluster.pids(&over).is_empty());
    // A sidecar that crashes is started again although the pod's policy is Never.
    let side = sidecar("side", &["--exit-after", "300ms", "--exit-code", "1"]);
    cluster.apply(
        ns,
        &with_init(bare_pod("crash", "Never", &[hello("main", &["--listen", "0.0.0.0:9000"])]), &[side]),
    );
    let pod = cluster.until_pod(ns, "crash", "restarted", |pod| {
        pod["status"]["initContainerStatuses"][0]["restartCount"].as_i64() >= Some(2)
    });
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(row(&cluster, ns, "crash").unwrap()[1].split('/').nth(1), Some("2"));
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn a_pod_past_its_deadline_fails() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "deadline";
    cluster.namespace(ns);
    let mut pod = bare_pod("short", "Always", &[hello("c", &[])]);
    pod["spec"]["activeDeadlineSeconds"] = 2.into();
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, "short", "ready", is_ready);
    let failed = cluster.until_pod(ns, "short", "failed", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(failed["status"]["reason"], "DeadlineExceeded");
    assert!(cluster.pids(&failed).is_empty());
    let said = cluster.until_event(ns, "short", "DeadlineExceeded");
    assert_eq!(said, "Pod was active on the node longer than the specified deadline");
    cluster.kubectl(&["delete", "pod", "-n", ns, "short"]).ok();
}

#[test]
fn a_killed_troupe_runs_no_init_container_twice() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let ns = "default";
    // It serves until it is told to end well.
    let long = hello("long", &["--listen", "0.0.0.0:8081"]);
    let init =
        [mounted(hello("first", &["--once", "--write", "/data/first=done"])), sidecar("side", &[]), long];
    cluster.apply(
        ns,
        &with_init(
            bare_pod("chain", "Always", &[mounted(hello("main", &["--listen", "0.0.0.0:8082"]))]),
            &init,
        ),
    );
    until_shown(&cluster, ns, "chain", ["1/2", "Init:2/3"]);
    let before = cluster.processes();
    assert_eq!(before.len(), 2);
    let pod = cluster.pod(ns, "chain").unwrap();
    cluster.kill();
    cluster.up();
    until("it is taken over", || {
        check(cluster.pod(ns, "chain")? == pod, || "its status is another one".into())
    });
    assert_eq!(cluster.processes(), before);
    // While nobody watches, the init container ends well.
    let address = text(&pod["status"]["podIP"]).to_owned();
    cluster.kill();
    exit_over_http(&address, 8081);
    cluster.up();
    let after = cluster.until_pod(ns, "chain", "ready", is_ready);
    for status in after["status"]["initContainerStatuses"].as_array().unwrap() {
        assert_eq!(status["restartCount"], 0, "{status}");
    }
    assert_eq!(cluster.processes().len(), 2);
    // And once more with everything up: nothing is disturbed.
    let (pod, before) = (cluster.pod(ns, "chain").unwrap(), cluster.processes());
    cluster.kill();
    cluster.up();
    until("it is taken over", || {
        check(cluster.pod(ns, "chain")? == pod, || "its status is another one".into())
    });
    assert_eq!(cluster.processes(), before);
    cluster.kubectl(&["delete", "pod", "-n", ns, "chain"]).ok();
}

/// Tells a hello program to end with 0.
fn exit_over_http(address: &str, port: u16) {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect((address, port)).expect("it listens");
    stream.write_all(b"GET /exit?code=0 HTTP/1.0\r\n\r\n").expect("it reads");
    let _ = stream.read(&mut [0; 64]);
}
