//! Where pods go, and what a pod says that can go nowhere.

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, hello, ready, text};

fn scheduled(pod: &Value) -> Value {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "PodScheduled").unwrap_or_default()
}

#[test]
fn a_pod_that_fits_nowhere_says_why_and_is_placed_when_there_is_room() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options { arguments: vec!["--nodes", "2"], ..Options::default() });
    let nodes = cluster.get(&["nodes"]);
    let names: Vec<&str> =
        nodes["items"].as_array().unwrap().iter().map(|n| text(&n["metadata"]["name"])).collect();
    assert_eq!(names, ["n1", "n1-2"]);
    // Cordoned: nobody takes it.
    for node in &names {
        cluster.kubectl(&["cordon", node]).ok();
    }
    let mut pinned = bare_pod("pinned", "Always", &[hello("c", &[])]);
    pinned["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1-2"});
    cluster.apply("default", &pinned);
    let pod = cluster.until_pod("default", "pinned", "refused", |pod| scheduled(pod)["status"] == "False");
    let condition = scheduled(&pod);
    assert_eq!(condition["reason"], "Unschedulable");
    let why = text(&condition["message"]);
    assert!(why.starts_with("0/2 nodes are available"), "{why}");
    assert!(cluster.until_event("default", "pinned", "FailedScheduling").starts_with("0/2 nodes"));
    assert_eq!(pod["status"]["phase"], "Pending");
    // As in Kubernetes that is a taint, too, and who tolerates it comes.
    let taints = || cluster.get(&["node", "n1"])["spec"]["taints"].clone();
    assert_eq!(taints()[0]["key"], "node.kubernetes.io/unschedulable");
    assert!(cluster.kubectl(&["describe", "node", "n1"]).ok().contains("unschedulable:NoSchedule"));
    let mut tolerant = bare_pod("tolerant", "Always", &[hello("c", &[])]);
    tolerant["spec"]["tolerations"] =
        json!([{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]);
    cluster.apply("default", &tolerant);
    cluster.until_pod("default", "tolerant", "running", |pod| pod["status"]["phase"] == "Running");
    // Room on the wrong node is no room.
    cluster.kubectl(&["uncordon", "n1"]).ok();
    assert_eq!(cluster.get(&["node", "n1"])["spec"]["taints"], Value::Null);
    let mut free = bare_pod("free", "Always", &[hello("c", &[])]);
    cluster.apply("default", &free);
    let placed = cluster.until_pod("default", "free", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(placed["spec"]["nodeName"], "n1");
    assert_eq!(scheduled(&cluster.pod("default", "pinned").unwrap())["status"], "False");
    cluster.kubectl(&["uncordon", "n1-2"]).ok();
    let placed = cluster.until_pod("default", "pinned", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(placed["spec"]["nodeName"], "n1-2");
    assert_ne!(placed["status"]["podIP"], cluster.pod("default", "free").unwrap()["status"]["podIP"]);
    // More than the machine has.
    free = bare_pod("huge", "Always", &[hello("c", &[])]);
    free["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1000"}});
    cluster.apply("default", &free);
    let pod = cluster.until_pod("default", "huge", "refused", |pod| scheduled(pod)["status"] == "False");
    assert!(text(&scheduled(&pod)["message"]).contains("Insufficient cpu"), "{}", scheduled(&pod));
    // What no node has, until somebody says that one has; its kubelet's own reports do not change that.
    let mut gpu = bare_pod("gpu", "Always", &[hello("c", &[])]);
    gpu["spec"]["containers"][0]["resources"] = json!({"limits": {"nvidia.com/gpu": "1"}});
    cluster.apply("default", &gpu);
    let pod = cluster.until_pod("default", "gpu", "refused", |pod| scheduled(pod)["status"] == "False");
    let why = text(&scheduled(&pod)["message"]).to_owned();
    assert_eq!(why, "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.");
    let patch = r#"{"status":{"capacity":{"nvidia.com/gpu":"1"}}}"#;
    cluster.kubectl(&["patch", "node", "n1-2", "--subresource=status", "-p", patch]).ok();
    let placed = cluster.until_pod("default", "gpu", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(placed["spec"]["nodeName"], "n1-2");
    cluster.kill();
    cluster.up();
    cluster.until_pod("default", "gpu", "running", |pod| pod["status"]["phase"] == "Running");
    gpu["metadata"]["name"] = json!("another");
    cluster.apply("default", &gpu);
    cluster.until_pod("default", "another", "refused", |pod| scheduled(pod)["message"] == why);
    cluster.kubectl(&["delete", "pod", "gpu"]).ok();
    let placed =
        cluster.until_pod("default", "another", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!(placed["spec"]["nodeName"], "n1-2");
}

#[test]
fn a_pod_with_scheduling_gates_waits_until_the_last_is_taken_away() {
    if !ready() {
        return;
    }
    let cluster = Cluster::start(Options::default());
    let mut gated = bare_pod("gated", "Always", &[hello("c", &[])]);
    gated["spec"]["schedulingGates"] = json!([{"name": "a.example/one"}, {"name": "a.example/two"}]);
    let created = cluster.kubectl_in(&["create", "-f", "-"], &gated.to_string());
    assert_eq!((created.ok().as_str(), created.err().as_str()), ("pod/gated created\n", ""));
    let shown = || cluster.kubectl(&["get", "pod", "gated", "--no-headers"]).ok();
    assert!(shown().contains(" SchedulingGated "), "{}", shown());
    // Not even by hand.
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "gated"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    let path = "/api/v1/namespaces/default/pods/gated/binding";
    let refused = cluster.kubectl_in(&["create", "--raw", path, "-f", "-"], &binding.to_string()).result();
    let refused = refused.expect_err("it has gates");
    assert!(refused.contains("pod gated has non-empty .spec.schedulingGates"), "{refused}");
    let patch = |patch: &str| cluster.kubectl(&["patch", "pod", "gated", "--type=json", "-p", patch]);
    patch(r#"[{"op": "remove", "path": "/spec/schedulingGates/0"}]"#).ok();
    let more = r#"[{"op": "add", "path": "/spec/schedulingGates/-", "value": {"name": "a.example/three"}}]"#;
    let refused = patch(more).result().expect_err("none may be added");
    assert!(refused.contains("only deletion is allowed"), "{refused}");
    // Whoever came later is placed meanwhile.
    cluster.apply("default", &bare_pod("free", "Always", &[hello("c", &[])]));
    cluster.until_pod("default", "free", "running", |pod| pod["status"]["phase"] == "Running");
    let waits = cluster.pod("default", "gated").unwrap();
    assert!(
        waits["spec"]["nodeName"].is_null() && scheduled(&waits)["reason"] == "SchedulingGated",
        "{waits}"
    );
    patch(r#"[{"op": "remove", "path": "/spec/schedulingGates"}]"#).ok();
    let placed = cluster.until_pod("default", "gated", "running", |pod| pod["status"]["phase"] == "Running");
    assert_eq!((&placed["spec"]["nodeName"], &scheduled(&placed)["status"]), (&json!("n1"), &json!("True")));
}
