//! Resizing in place: what kubectl asks of a running pod's cpu and memory, and what becomes of it.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Cluster, bare_pod, hello, is_ready, ready, shared, text};

fn sized(name: &str, cpu: &str, memory: &str) -> Value {
    let mut container = hello("c", &[]);
    let amounts = json!({"cpu": cpu, "memory": memory});
    container["resources"] = json!({"requests": amounts, "limits": amounts});
    container["resizePolicy"] = json!([
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
    ]);
    bare_pod(name, "Always", &[container])
}

fn resize(cluster: &Cluster, ns: &str, name: &str, resources: &Value) -> crate::harness::Ran {
    let patch = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}}).to_string();
    cluster.kubectl(&["patch", "pod", "-n", ns, name, "--subresource", "resize", "-p", &patch])
}

fn both(cpu: &str, memory: &str) -> Value {
    let amounts = json!({"cpu": cpu, "memory": memory});
    json!({"requests": amounts, "limits": amounts})
}

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn condition<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == name)
}

/// A file of the cgroup that a pod's only process is in: by its name in version 1 or 2.
fn cgroup(cluster: &Cluster, pod: &Value, controller: &str, files: [&str; 2]) -> String {
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", cluster.pid(pod))).unwrap();
    let place = |wanted: &str| {
        let mut lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        lines.find(|(names, _)| names.split(',').any(|n| n == wanted)).map(|(_, path)| path.to_owned())
    };
    let file = match place(controller) {
        Some(path) => format!("/sys/fs/cgroup/{controller}{path}/{}", files[0]),
        None => format!("/sys/fs/cgroup{}/{}", place("").unwrap(), files[1]),
    };
    fs::read_to_string(file).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn a_running_pod_gets_other_limits_in_place_or_is_told_why_not() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "resize";
    cluster.namespace(ns);
    cluster.apply(ns, &sized("web", "100m", "64Mi"));
    let before = cluster.until_pod(ns, "web", "running", is_ready);
    assert_eq!(status(&before)["allocatedResources"], json!({"cpu": "100m", "memory": "64Mi"}));
    let quota = ["cpu.cfs_quota_us", "cpu.max"];
    assert_eq!(cgroup(&cluster, &before, "cpu", quota), "10000");

    // In place.
    resize(&cluster, ns, "web", &both("200m", "64Mi")).ok();
    let after =
        cluster.until_pod(ns, "web", "resized", |p| status(p)["resources"]["limits"]["cpu"] == "200m");
    assert_eq!(cgroup(&cluster, &after, "cpu", quota), "20000");
    assert_eq!(status(&after)["restartCount"], 0);
    assert_eq!(status(&after)["containerID"], status(&before)["containerID"]);
    assert_eq!(
        (condition(&after, "PodResizePending"), condition(&after, "PodResizeInProgress")),
        (None, None)
    );

    // With a restart, as its policy says.
    resize(&cluster, ns, "web", &both("200m", "96Mi")).ok();
    let restarted = cluster.until_pod(ns, "web", "restarted", |p| {
        is_ready(p) && status(p)["restartCount"] == 1 && status(p)["resources"]["limits"]["memory"] == "96Mi"
    });
    let bytes = (96 << 20).to_string();
    assert_eq!(cgroup(&cluster, &restarted, "memory", ["memory.limit_in_bytes", "memory.max"]), bytes);

    // What no node has room for stays as it was, and says so.
    resize(&cluster, ns, "web", &both("10000", "96Mi")).ok();
    let pending = cluster.until_pod(ns, "web", "told why", |p| condition(p, "PodResizePending").is_some());
    let told = condition(&pending, "PodResizePending").unwrap();
    assert_eq!((text(&told["status"]), text(&told["reason"])), ("True", "Infeasible"));
    assert!(text(&told["message"]).contains("cpu"), "{told}");
    assert_eq!(status(&pending)["allocatedResources"]["cpu"], "200m");
    resize(&cluster, ns, "web", &both("150m", "96Mi")).ok();
    cluster.until_pod(ns, "web", "resized again", |p| {
        condition(p, "PodResizePending").is_none() && status(p)["resources"]["limits"]["cpu"] == "150m"
    });

    // What Kubernetes refuses.
    let class = resize(&cluster, ns, "web", &json!({"requests": {"cpu": "100m"}})).fails();
    assert!(class.contains("Pod QOS Class may not change as a result of resizing"), "{class}");
    let main =
        json!({"spec": {"containers": [{"name": "c", "resources": both("300m", "96Mi")}]}}).to_string();
    let refused = cluster.kubectl(&["patch", "pod", "-n", ns, "web", "-p", &main]).fails();
    assert!(refused.contains("pod updates may not change fields other than"), "{refused}");
    let listed = cluster.kubectl(&["get", "--raw", "/api/v1"]).ok();
    assert!(listed.contains("pods/resize"));
    cluster.kubectl(&["delete", "pod", "-n", ns, "web"]).ok();
}
