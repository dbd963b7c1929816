//! What is inside a pod: containers that share what Kubernetes says they share, and what keeps one from running.

use serde_json::{Value, json};

use crate::harness::{Cluster, bare_pod, check, hello, is_ready, ready, shared, text, until};

fn waiting(pod: &Value) -> &str {
    text(&pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"])
}

/// A container's log, once it has this line.
#[track_caller]
pub fn until_logged(cluster: &Cluster, ns: &str, pod: &str, container: &str, line: &str) -> String {
    until(&format!("{container} of {pod} says {line:?}"), || {
        let log = cluster.kubectl(&["logs", "-n", ns, pod, "-c", container]).result()?;
        check(log.lines().any(|l| l == line), || log.clone())?;
        Ok(log)
    })
}

#[test]
fn containers_of_a_pod_share_network_host_name_memory_and_volumes() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "sharing";
    cluster.namespace(ns);
    let mounted = |mut container: Value| {
        container["volumeMounts"] = json!([{"name": "shared", "mountPath": "/shared"}]);
        container
    };
    let writer =
        hello("writer", &["--write", "/shared/note=from the volume", "--write", "/dev/shm/note=from memory"]);
    // It crashes until the writer serves, and is started again: so it needs no order.
    let reader = hello(
        "reader",
        &[
            "--read",
            "/shared/note",
            "--read",
            "/dev/shm/note",
            "--fetch",
            "http://127.0.0.1:8080/",
            "--describe",
            "--listen",
            "0.0.0.0:8081",
        ],
    );
    let mut pod = bare_pod("pair", "Always", &[mounted(writer), mounted(reader)]);
    pod["spec"]["volumes"] = json!([{"name": "shared", "emptyDir": {}}]);
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, "pair", "ready", is_ready);
    let log = until_logged(&cluster, ns, "pair", "reader", "listening on 0.0.0.0:8081");
    assert!(log.contains("from the volume\n") && log.contains("from memory\n"), "{log}");
    assert!(log.contains("pair"), "the other container answered over loopback: {log}");
    let described =
        log.lines().find_map(|line| serde_json::from_str::<Value>(line).ok().filter(Value::is_object));
    assert_eq!(described.expect("a description")["hostname"], "pair");
}

#[test]
fn programs_get_the_arguments_and_environment_that_the_spec_says() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "environment";
    cluster.namespace(ns);
    let mut container =
        hello("c", &["hello", "--once", "--describe", "--print", "$(GREETING) $$(NAME) $(NOBODY)"]);
    container["command"] = json!(["/hello"]);
    container["workingDir"] = "/tmp".into();
    container["env"] = json!([
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "GREETING", "value": "hello $(NAME)"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    ]);
    cluster.apply(ns, &bare_pod("env", "Never", &[container]));
    let pod = cluster.until_pod(ns, "env", "over", |pod| pod["status"]["phase"] == "Succeeded");
    let log = cluster.kubectl(&["logs", "-n", ns, "env"]).ok();
    let mut lines = log.lines();
    let described: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(described["env"]["GREETING"], "hello env");
    assert_eq!(described["env"]["NODE"], "n1");
    assert_eq!(described["env"]["IP"], pod["status"]["podIP"]);
    assert_eq!(described["cwd"], "/tmp");
    assert_eq!(lines.next(), Some("hello env $(NAME) $(NOBODY)"));
}

#[test]
fn a_pod_reaches_another_by_its_address() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "addresses";
    cluster.namespace(ns);
    cluster.apply(ns, &bare_pod("server", "Always", &[hello("c", &[])]));
    let server = cluster.until_pod(ns, "server", "ready", is_ready);
    let address = text(&server["status"]["podIP"]).to_owned();
    let url = format!("http://{address}:8080/");
    cluster.apply(ns, &bare_pod("client", "OnFailure", &[hello("c", &["--once", "--fetch", &url])]));
    let client = cluster.until_pod(ns, "client", "over", |pod| pod["status"]["phase"] == "Succeeded");
    assert_ne!(client["status"]["podIP"].as_str(), Some(address.as_str()));
    let log = cluster.kubectl(&["logs", "-n", ns, "client"]).ok();
    assert!(log.contains("server"), "the server says which pod answered: {log}");
}

#[test]
fn what_keeps_a_container_from_running_is_told_in_its_state_and_an_event() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "refused";
    cluster.namespace(ns);
    let with = |change: Value| {
        let mut container = hello("c", &[]);
        for (field, value) in change.as_object().unwrap() {
            container[field] = value.clone();
        }
        container
    };
    let rows: [(&str, Value, &[&str], &str, &str); 4] = [
        (
            "missing",
            json!({"image": "nowhere.example/nothing:1"}),
            &["ErrImagePull", "ImagePullBackOff"],
            "Failed",
            "nowhere.example/nothing:1",
        ),
        (
            "never",
            json!({"image": "nowhere.example/nothing:1", "imagePullPolicy": "Never"}),
            &["ErrImageNeverPull"],
            "ErrImageNeverPull",
            "is not present with pull policy of Never",
        ),
        (
            "nocommand",
            json!({"command": ["/nope"]}),
            &["RunContainerError", "CrashLoopBackOff"],
            "Failed",
            "no such file or directory",
        ),
        (
            "badvolume",
            json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
            &["ContainerCreating"],
            "FailedMount",
            "MountVolume.SetUp failed for volume \"v\" : hostPath type check failed: /proc/version is not a directory",
        ),
    ];
    for (name, change, ..) in &rows {
        let mut pod = bare_pod(name, "Always", &[with(change.clone())]);
        if *name == "badvolume" {
            pod["spec"]["volumes"] =
                json!([{"name": "v", "hostPath": {"path": "/proc/version", "type": "Directory"}}]);
        }
        cluster.apply(ns, &pod);
    }
    for (name, _, reasons, event, message) in rows {
        let pod = cluster.until_pod(ns, name, "waiting", |pod| reasons.contains(&waiting(pod)));
        assert_ne!(pod["status"]["phase"], "Failed", "{name}");
        let said = cluster.until_event(ns, name, event);
        assert!(said.contains(message), "{name}: {said}");
    }
    let pod = cluster.until_pod(ns, "nocommand", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["reason"] == "StartError"
    });
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 128);
    let no_log = cluster.kubectl(&["logs", "-n", ns, "missing"]).fails();
    assert!(no_log.contains("is waiting to start"), "{no_log}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn an_image_that_is_imported_lets_waiting_pods_run() {
    if !ready() {
        return;
    }
    let Some(busybox) = crate::harness::program("busybox") else {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        return eprintln!("skipped: no busybox (apt install busybox-static)");
    };
    let cluster = shared();
    let ns = "images";
    cluster.namespace(ns);
    let script = "trap 'echo bye; exit 7' TERM; echo up; while true; do sleep 0.05; done";
    let container = json!({"name": "c", "image": "nowhere.example/busybox", "command": ["sh", "-c", script]});
    cluster.apply(ns, &bare_pod("shell", "Always", &[container]));
    cluster.until_pod(ns, "shell", "waiting for its image", |pod| waiting(pod).contains("Pull"));
    let tar = cluster.scratch().join("busybox.tar");
    rootfs(&busybox, &tar);
    let uri = "/api/v1/nodes/n1/proxy/images/import?name=nowhere.example/busybox";
    cluster.kubectl(&["create", "--raw", uri, "-f", tar.to_str().unwrap()]).ok();
    // Long before its next turn: the coming of an image ends the wait.
    cluster.until_pod(ns, "shell", "running", is_ready);
    until_logged(&cluster, ns, "shell", "c", "up");
    cluster.kubectl(&["delete", "pod", "-n", ns, "shell"]).ok();
}

/// A root file system of busybox alone, as a tar.
pub fn rootfs(busybox: &std::path::Path, tar: &std::path::Path) {
    let mut archive = tar::Builder::new(std::fs::File::create(tar).expect("it is written"));
    archive.append_path_with_name(busybox, "bin/busybox").expect("it is written");
    for name in ["sh", "sleep", "echo", "cat", "tar", "test", "tty", "stty", "true"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_link(&mut header, format!("bin/{name}"), "busybox").expect("it is written");
    }
    archive.into_inner().expect("it is written").sync_all().expect("it is written");
}

#[test]
fn a_pod_whose_shim_is_killed_gets_a_new_sandbox() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "shim";
    cluster.namespace(ns);
    cluster
        .apply(ns, &bare_pod("web", "Always", &[hello("a", &[]), hello("b", &["--listen", "0.0.0.0:8081"])]));
    cluster.apply(ns, &bare_pod("once", "Never", &[hello("c", &[])]));
    let before = cluster.until_pod(ns, "web", "ready", is_ready);
    let once = cluster.until_pod(ns, "once", "ready", is_ready);
    let (old, over) = (cluster.pids(&before), cluster.pids(&once));
    assert_eq!((old.len(), over.len()), (2, 1));
    crate::harness::kill9(cluster.shim(&before));
    crate::harness::kill9(cluster.shim(&once));
    let after = cluster.until_pod(ns, "web", "ready again", |pod| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        is_ready(pod) && all.len() == 2 && all.iter().all(|c| c["restartCount"] == 1)
    });
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    until("the old processes are gone", || {
        let now = cluster.pids(&after);
        check(now.len() == 2 && now.iter().all(|pid| !old.contains(pid)), || format!("{old:?} {now:?}"))
    });
    cluster.until_event(ns, "web", "SandboxChanged");
    // What may not be started again has failed, is not left running, and can be deleted.
    let failed = cluster.until_pod(ns, "once", "failed", |pod| pod["status"]["phase"] == "Failed");
    until("its process is gone", || {
        let now = cluster.pids(&failed);
        check(now.is_empty(), || format!("{now:?}"))
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn what_came_of_read_only_mounts_is_told() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "mounts";
    cluster.namespace(ns);
    let can = cluster.get(&["node", "n1"])["status"]["runtimeHandlers"][0].clone();
    assert_eq!(can["name"], "");
    let can = can["features"]["recursiveReadOnlyMounts"].as_bool().unwrap();
    let mut container = hello("c", &[]);
    container["volumeMounts"] = json!([
        {"name": "v", "mountPath": "/plain"},
        {"name": "v", "mountPath": "/fixed", "readOnly": true},
        {"name": "v", "mountPath": "/all", "readOnly": true, "recursiveReadOnly": "IfPossible"},
    ]);
    let mut pod = bare_pod("told", "Always", &[container]);
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    cluster.apply(ns, &pod);
    let told = cluster.until_pod(ns, "told", "ready", is_ready);
    let mode = if can { "Enabled" } else { "Disabled" };
    assert_eq!(
        told["status"]["containerStatuses"][0]["volumeMounts"],
        json!([
            {"name": "v", "mountPath": "/plain"},
            {"name": "v", "mountPath": "/fixed", "readOnly": true, "recursiveReadOnly": "Disabled"},
            {"name": "v", "mountPath": "/all", "readOnly": true, "recursiveReadOnly": mode},
        ])
    );
    // A must is fulfilled, or the container waits and says why.
    pod["metadata"]["name"] = "must".into();
    pod["spec"]["containers"][0]["volumeMounts"][2]["recursiveReadOnly"] = "Enabled".into();
    cluster.apply(ns, &pod);
    if can {
        cluster.until_pod(ns, "must", "ready", is_ready);
    } else {
        let waits = |pod: &Value| waiting(pod) == "CreateContainerConfigError";
        let told = cluster.until_pod(ns, "must", "told why", waits).to_string();
        assert!(told.contains("it is not supported by the runtime"), "{told}");
    }
    pod["metadata"]["name"] = "wrong".into();
    pod["spec"]["containers"][0]["volumeMounts"][2]["readOnly"] = false.into();
    let refused = cluster.kubectl_in(&["create", "-n", ns, "-f", "-"], &pod.to_string()).fails();
    assert!(refused.contains("may only be specified when readOnly is true"), "{refused}");
}
