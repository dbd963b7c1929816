//! Manifests, and what tests read out of documents.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// `kill -9`.
#[track_caller]
pub fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
}

/// A string of a document.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whether the pod's `Ready` condition holds.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether the pod is on its way out.
pub fn is_deleting(pod: &Value) -> bool {
    !pod["metadata"]["deletionTimestamp"].is_null()
}

/// A replication controller of the built-in image.
pub fn controller(name: &str, replicas: u32, arguments: &[&str]) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"app": name}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"terminationGracePeriodSeconds": 5, "containers": [hello("c", arguments)]}}}
    })
}

/// A pod with these containers.
pub fn bare_pod(name: &str, policy: &str, containers: &[Value]) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 5, "containers": containers}
    })
}

/// A container of the built-in image.
pub fn hello(name: &str, arguments: &[&str]) -> Value {
    serde_json::json!({"name": name, "image": "troupe.local/hello", "args": arguments})
}
