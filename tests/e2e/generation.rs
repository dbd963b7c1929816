//! Generations of pods, as kubectl sees them: counted by the server, observed by the node.

use serde_json::{Value, json};

use crate::harness::{bare_pod, check, hello, is_ready, ready, shared};

fn generation(pod: &Value) -> (i64, i64) {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    (number(&pod["metadata"]["generation"]), number(&pod["status"]["observedGeneration"]))
}

#[test]
fn each_change_of_a_pods_spec_is_counted_and_its_node_tells_that_it_knows_of_it() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "generation";
    cluster.namespace(ns);
    let mut container = hello("c", &[]);
    container["resources"] = json!({"requests": {"cpu": "10m"}, "limits": {"cpu": "100m"}});
    let mut pod = bare_pod("web", "Always", &[container]);
    pod["metadata"]["generation"] = 100.into();
    cluster.apply(ns, &pod);
    let first = cluster.until_pod(ns, "web", "ready", is_ready);
    assert_eq!(generation(&first), (1, 1), "what the client says is nothing, and a binding no change");
    let patch = |subresource: &str, patch: &Value| {
        let (patch, subresource) = (patch.to_string(), format!("--subresource={subresource}"));
        let how = if patch.starts_with('[') { "--type=json" } else { "--type=strategic" };
        let mut words = vec!["patch", "pod", "-n", ns, "web", "-p", &patch, how];
        words.extend(Some(subresource.as_str()).filter(|words| !words.ends_with('=')));
        cluster.kubectl(&words).ok();
    };
    let toleration = json!({"key": "a", "operator": "Exists"});
    let debug = json!({"name": "debug", "image": "troupe.local/hello", "args": ["--once", "--sleep", "60s"]});
    let resized = json!({"name": "c", "resources": {"requests": {"cpu": "20m"}}});
    for (subresource, change, expected) in [
        ("", json!([{"op": "add", "path": "/spec/tolerations/-", "value": toleration}]), 2),
        ("", json!({"spec": {"activeDeadlineSeconds": 600}}), 3),
        ("", json!({"metadata": {"annotations": {"a": "b"}, "generation": 7}}), 3),
        ("status", json!({"status": {"message": "hello", "observedGeneration": 9}}), 3),
        ("ephemeralcontainers", json!({"spec": {"ephemeralContainers": [debug]}}), 4),
        ("resize", json!({"spec": {"containers": [resized]}}), 5),
    ] {
        patch(subresource, &change);
        cluster.until_pod(ns, "web", &format!("observed at {expected}"), |pod| {
            generation(pod) == (expected, expected)
                && pod["status"]["conditions"].as_array().unwrap().iter().all(|condition| {
                    condition["observedGeneration"] == expected || condition["type"] == "PodResizeInProgress"
                })
        });
    }
    let columns = "custom-columns=A:.metadata.generation,B:.status.observedGeneration";
    let shown = cluster.kubectl(&["get", "pod", "-n", ns, "web", "-o", columns]).ok();
    assert!(shown.lines().nth(1).is_some_and(|row| row.split_whitespace().eq(["5", "5"])), "{shown}");
    cluster.kubectl(&["wait", "-n", ns, "pod/web", "--for=condition=Ready", "--timeout=20s"]).ok();

    // Changes faster than they are told.
    for n in 0..40 {
        patch("", &json!({"spec": {"activeDeadlineSeconds": 599 - n}}));
    }
    cluster.until_pod(ns, "web", "observed", |pod| generation(pod) == (45, 45));

    // A deletion is one more.
    let held = json!({"metadata": {"finalizers": ["troupe.example/held"]}});
    patch("", &held);
    cluster.kubectl(&["delete", "pod", "-n", ns, "web", "--wait=false"]).ok();
    cluster.until_pod(ns, "web", "observed while it goes", |pod| generation(pod) == (46, 46));
    patch("", &json!({"metadata": {"finalizers": null}}));
    crate::harness::until("the pod is gone", || {
        let found = cluster.pod(ns, "web");
        check(found.is_err(), || format!("{found:?}"))
    });
}
