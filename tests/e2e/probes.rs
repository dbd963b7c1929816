//! Probes and lifecycle hooks, as a user sees them.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    os::unix::fs::PermissionsExt as _,
    time::Instant,
};

use serde_json::{Value, json};

use crate::harness::{
    Cluster, DEADLINE, Options, bare_pod, check, hello, is_ready, kill9, ready, shared, text, until,
};

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn restarts(pod: &Value) -> i64 {
    status(pod)["restartCount"].as_i64().unwrap_or(-1)
}

/// A container with these further fields.
fn with(mut container: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        container[name] = value.clone();
    }
    container
}

/// Asks the pod's server for a path, from the node.
#[track_caller]
fn get(pod: &Value, path: &str) -> String {
    let mut stream = TcpStream::connect((text(&pod["status"]["podIP"]), 8080)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn ready_since(pod: &Value) -> Option<Value> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
    Some(json!([ready["status"], ready["lastTransitionTime"]]))
}

#[test]
fn endpoints_and_the_ready_column_follow_a_readiness_probe() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "readiness";
    cluster.namespace(ns);
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 1,
        "failureThreshold": 1});
    let fields = json!({"readinessProbe": probe, "ports": [{"name": "http", "containerPort": 8080}]});
    cluster.apply(ns, &bare_pod("web", "Always", &[with(hello("c", &[]), fields)]));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}});
    cluster.apply(ns, &service);
    let mut pod = cluster.until_pod(ns, "web", "ready", is_ready);
    for (path, column, place) in
        [("/unhealthy", "0/1", "notReadyAddresses"), ("/healthy", "1/1", "addresses")]
    {
        get(&pod, path);
        until(&format!("endpoints follow {path}"), || {
            let endpoints = cluster.try_get(&["endpoints", "-n", ns, "web"])?;
            let found = &endpoints["subsets"][0][place][0]["ip"];
            check(*found == pod["status"]["podIP"], || endpoints.to_string())
        });
        let row = cluster.kubectl(&["get", "pod", "-n", ns, "web", "--no-headers"]).ok();
        assert_eq!(row.split_whitespace().nth(1), Some(column), "{row}");
        pod = cluster.pod(ns, "web").unwrap();
    }
    assert_eq!(restarts(&pod), 0, "nothing was killed");
    // The first one may have come before the program listened.
    until("the failure is told", || {
        let events = cluster.try_get(&["events", "-n", ns, "--field-selector", "involvedObject.name=web"])?;
        let told = |event: &Value| {
            event["reason"] == "Unhealthy"
                && event["message"] == "Readiness probe failed: HTTP probe failed with statuscode: 503"
        };
        check(events["items"].as_array().is_some_and(|all| all.iter().any(told)), || events.to_string())
    });
}

#[test]
fn a_failed_liveness_probe_restarts_the_container() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "liveness";
    cluster.namespace(ns);
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1,
        "failureThreshold": 2});
    let container = with(hello("c", &[]), json!({"livenessProbe": probe}));
    cluster.apply(ns, &bare_pod("web", "Always", &[container]));
    let pod = cluster.until_pod(ns, "web", "ready", is_ready);
    get(&pod, "/unhealthy");
    let pod = cluster.until_pod(ns, "web", "restarted", |pod| restarts(pod) == 1 && is_ready(pod));
    assert_eq!(status(&pod)["lastState"]["terminated"]["exitCode"], 0, "it ended when asked to");
    let event = cluster.until_event(ns, "web", "Killing");
    assert_eq!(event, "Container c failed liveness probe, will be restarted");
    assert!(get(&pod, "/healthz").contains("200 OK"), "the next life is well");
}

#[test]
fn nothing_is_asked_of_a_container_before_its_startup_probe_has_succeeded() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "startup";
    cluster.namespace(ns);
    let probe = |threshold: i32| json!({"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": threshold});
    // Each probe would fail for as long as the program sleeps.
    let fields = json!({"startupProbe": probe(60), "livenessProbe": probe(1), "readinessProbe": probe(1)});
    let container = with(hello("c", &["--sleep", "4s"]), fields);
    cluster.apply(ns, &bare_pod("slow", "Always", &[container]));
    let pod = cluster.until_pod(ns, "slow", "running", |pod| !status(pod)["state"]["running"].is_null());
    assert_eq!((&status(&pod)["started"], &status(&pod)["ready"]), (&json!(false), &json!(false)));
    let pod = cluster.until_pod(ns, "slow", "ready", is_ready);
    assert_eq!((&status(&pod)["started"], restarts(&pod)), (&json!(true), 0));
    let events = cluster.get(&["events", "-n", ns]).to_string();
    assert!(events.contains("Startup probe failed: dial tcp "), "{events}");
    assert!(
        !events.contains("Liveness probe failed") && !events.contains("Readiness probe failed"),
        "{events}"
    );
}

#[test]
fn a_probe_program_that_hangs_fails_and_holds_up_nobody() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "hanging";
    cluster.namespace(ns);
    let hangs = json!({"exec": {"command": ["/hello", "hello", "--listen", "127.0.0.1:0", "--ignore-sigterm"]},
        "periodSeconds": 1, "failureThreshold": 1});
    let well = json!({"exec": {"command": ["/hello", "hello", "--once", "--fetch", "http://127.0.0.1:8081/healthz"]},
        "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10});
    let containers = [
        with(hello("hangs", &[]), json!({"readinessProbe": hangs})),
        with(hello("well", &["--listen", "0.0.0.0:8081"]), json!({"readinessProbe": well})),
    ];
    cluster.apply(ns, &bare_pod("both", "Always", &containers));
    let of = |pod: &Value, name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["name"] == name).unwrap_or_default()
    };
    let pod = cluster.until_pod(ns, "both", "half ready", |pod| of(pod, "well")["ready"] == true);
    assert_eq!(of(&pod, "hangs")["ready"], false);
    let event = cluster.until_event(ns, "both", "Unhealthy");
    assert!(event.starts_with("Readiness probe failed: command timed out: "), "{event}");
    // What hung is dead: of many rounds at most one program is there beside the containers' own.
    let pids = cluster.pids(&pod);
    assert!((2..=3).contains(&pids.len()), "{pids:?}");
    assert_eq!((restarts(&pod), is_ready(&pod)), (0, false));
    let begun = Instant::now();
    cluster.kubectl(&["delete", "pod", "-n", ns, "both", "--wait=true"]).ok();
    assert!(begun.elapsed() < DEADLINE);
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "hooks";
    cluster.namespace(ns);
    let notes = cluster.scratch().join("notes");
    std::fs::create_dir(&notes).unwrap();
    // The image's program is not root.
    std::fs::set_permissions(&notes, std::fs::Permissions::from_mode(0o777)).unwrap();
    let write = |name: &str, more: &[&str]| {
        let note = format!("/notes/{name}=done");
        let command: Vec<&str> =
            ["/hello", "hello", "--once", "--write", &note].into_iter().chain(more.iter().copied()).collect();
        json!({"exec": {"command": command}})
    };
    let starting = write("starting", &[]);
    // Fails when the program does not serve any more.
    let stopping = write("stopping", &["--fetch", "http://127.0.0.1:8080/"]);
    let mut pod = bare_pod(
        "web",
        "Always",
        &[with(
            hello("c", &[]),
            json!({"lifecycle": {"postStart": starting, "preStop": stopping},
                "volumeMounts": [{"name": "notes", "mountPath": "/notes"}]}),
        )],
    );
    pod["spec"]["volumes"] = json!([{"name": "notes", "hostPath": {"path": notes, "type": "Directory"}}]);
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, "web", "ready", is_ready);
    assert_eq!(std::fs::read_to_string(notes.join("starting")).unwrap(), "done");
    assert!(!notes.join("stopping").exists());
    cluster.kubectl(&["delete", "pod", "-n", ns, "web", "--wait=true"]).ok();
    // Its program was still there to be asked.
    assert_eq!(std::fs::read_to_string(notes.join("stopping")).unwrap(), "done");
    let events = cluster.get(&["events", "-n", ns]).to_string();
    assert!(!events.contains("FailedPreStopHook"), "{events}");

    let fails = json!({"exec": {"command": ["/hello", "hello", "--once", "--exit-code", "1"]}});
    let container =
        with(hello("c", &[]), json!({"lifecycle": {"postStart": fails.clone(), "preStop": fails}}));
    cluster.apply(ns, &bare_pod("sad", "Always", &[container]));
    cluster.until_pod(ns, "sad", "started again", |pod| restarts(pod) > 0);
    assert_eq!(cluster.until_event(ns, "sad", "FailedPostStartHook"), "PostStartHook failed");
    assert_eq!(cluster.until_event(ns, "sad", "FailedPreStopHook"), "PreStopHook failed");
    assert!(!is_ready(&cluster.pod(ns, "sad").unwrap()));
    cluster.kubectl(&["delete", "pod", "-n", ns, "sad", "--wait=true"]).ok();
}

#[test]
fn a_pod_that_was_ready_stays_so_over_a_restart_of_its_kubelet() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let ns = "default";
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 30});
    let probed = with(hello("c", &[]), json!({"readinessProbe": probe.clone(), "startupProbe": probe}));
    cluster.apply(ns, &bare_pod("probed", "Always", &[probed]));
    cluster.apply(ns, &bare_pod("other", "Always", &[hello("c", &[])]));
    let before = cluster.until_pod(ns, "probed", "ready", is_ready);
    cluster.until_pod(ns, "other", "ready", is_ready);
    cluster.kill();
    cluster.up();
    // The new kubelet is at work when it notices this.
    kill9(cluster.pid(&cluster.pod(ns, "other").unwrap()));
    cluster.until_pod(ns, "other", "restarted", |pod| restarts(pod) == 1 && is_ready(pod));
    let after = cluster.pod(ns, "probed").unwrap();
    assert_eq!(ready_since(&after), ready_since(&before), "{}", after["status"]);
    assert!(is_ready(&after) && restarts(&after) == 0);
}

#[test]
fn a_pod_waits_for_its_readiness_gates() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "gates";
    cluster.namespace(ns);
    let mut pod = bare_pod("gated", "Always", &[hello("c", &[])]);
    pod["spec"]["readinessGates"] = json!([{"conditionType": "example.com/open"}]);
    cluster.apply(ns, &pod);
    let condition = |pod: &Value, name: &str| {
        let all = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["type"] == name).unwrap_or_default()
    };
    let pod =
        cluster.until_pod(ns, "gated", "up", |pod| condition(pod, "ContainersReady")["status"] == "True");
    assert_eq!(condition(&pod, "Ready")["reason"], "ReadinessGatesNotReady");
    for (status, is) in [("True", true), ("False", false)] {
        let patch =
            json!({"status": {"conditions": [{"type": "example.com/open", "status": status}]}}).to_string();
        cluster.kubectl(&["patch", "pod", "-n", ns, "gated", "--subresource=status", "-p", &patch]).ok();
        let pod = cluster.until_pod(ns, "gated", "as its gate says", |pod| is_ready(pod) == is);
        assert_eq!(condition(&pod, "example.com/open")["status"], status, "others' words are kept");
    }
}
