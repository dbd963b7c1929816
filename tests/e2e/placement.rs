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
    // Room on the wrong node is no room.
    cluster.kubectl(&["uncordon", "n1"]).ok();
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
