//! Cells of each kind, as kubectl prints them.

use serde_json::json;

use super::*;
use crate::model::{Revision, seal_json};

fn now() -> Timestamp {
    "2026-11-24T02:32:22Z".parse().unwrap()
}

fn row(kind: Kind, mut object: Value) -> Vec<String> {
    let meta = object["metadata"].as_object_mut().unwrap();
    meta.insert("uid".into(), "u".into());
    meta.entry("name").or_insert("web".into());
    meta.insert("creationTimestamp".into(), "2026-11-24T02:22:22Z".into());
    let object = seal_json(kind, object.to_string().as_bytes()).unwrap().at(Revision(1));
    let cells = cells(&object, now());
    assert_eq!(cells.len(), columns(kind).len());
    cells.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect()
}

fn running(ready: bool) -> Value {
    json!({"name": "c", "ready": ready, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}})
}

fn pod(status: Value) -> Vec<String> {
    let spec = json!({"containers": [{"name": "c"}], "nodeName": "vm"});
    row(Kind::Pod, json!({"metadata": {}, "spec": spec, "status": status}))
}

#[test]
fn a_running_pod_reads_like_kubectl() {
    let status = json!({"phase": "Running", "podIP": "10.42.0.7", "containerStatuses": [running(true)]});
    assert_eq!(pod(status), ["web", "1/1", "Running", "0", "10m", "10.42.0.7", "vm", "<none>", "<none>"]);
}

#[test]
fn a_restart_by_a_clock_that_is_wrong_has_no_age() {
    for (at, restarts) in [
        ("2026-11-24T02:32:23Z", "3 (0s ago)"),
        ("2026-11-24T02:32:24Z", "3"),
        ("2026-11-24T07:29:22Z", "3"),
        ("2026-11-24T02:22:22Z", "3 (10m ago)"),
        ("2026-11-24T02:22:21Z", "3"),
        ("2026-11-23T21:29:22Z", "3"),
    ] {
        let status = json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "ready": true, "restartCount": 3, "image": "", "imageID": "", "state": {"running": {}},
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": at}}}]});
        assert_eq!(pod(status)[3], restarts, "{at}");
    }
}

#[test]
fn a_pods_status_is_the_word_that_explains_it() {
    let with = |state: Value| {
        json!({"phase": "Running", "containerStatuses": [
            {"name": "c", "ready": false, "restartCount": 3, "image": "", "imageID": "", "state": state,
             "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-11-24T02:29:22Z"}}}]})
    };
    for (status, word, restarts) in [
        (json!({"phase": "Pending"}), "Pending", "0"),
        (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted", "0"),
        (with(json!({"waiting": {"reason": "CrashLoopBackOff"}})), "CrashLoopBackOff", "3 (3m ago)"),
        (with(json!({"terminated": {"exitCode": 2, "reason": "Error"}})), "Error", "3 (3m ago)"),
        (with(json!({"terminated": {"exitCode": 2}})), "ExitCode:2", "3 (3m ago)"),
        (with(json!({"terminated": {"exitCode": 0, "signal": 9}})), "Signal:9", "3 (3m ago)"),
        (
            json!({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "SchedulingGated",
            "0",
        ),
    ] {
        let cells = pod(status.clone());
        assert_eq!((cells[2].as_str(), cells[3].as_str()), (word, restarts), "{status}");
    }
}

#[test]
fn a_pod_with_one_container_done_and_one_running_is_running() {
    let done = json!({"name": "d", "ready": false, "restartCount": 0, "image": "", "imageID": "",
                      "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
    let status = |conditions: Value| json!({"phase": "Running", "conditions": conditions, "containerStatuses": [running(true), done]});
    assert_eq!(pod(status(json!([{"type": "Ready", "status": "True"}])))[2], "Running");
    assert_eq!(pod(status(json!([])))[2], "NotReady");
}

#[test]
fn a_pod_that_initialises_says_how_far_it_is() {
    let init = |state: Value| {
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
        let done = json!({"name": "i", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                          "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        let second = json!({"name": "j", "ready": false, "restartCount": 1, "image": "", "imageID": "", "state": state});
        row(
            Kind::Pod,
            json!({"metadata": {}, "spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [done, second]}}),
        )
    };
    assert_eq!(init(json!({"running": {}}))[2], "Init:1/2");
    assert_eq!(init(json!({"waiting": {"reason": "PodInitializing"}}))[2], "Init:1/2");
    assert_eq!(
        init(json!({"waiting": {"reason": "CrashLoopBackOff"}}))[2..4],
        ["Init:CrashLoopBackOff", "1"]
    );
    assert_eq!(init(json!({"terminated": {"exitCode": 3}}))[2], "Init:ExitCode:3");
}

#[test]
fn a_pod_on_its_way_out_is_terminating() {
    let deleted = |status: Value| {
        row(
            Kind::Pod,
            json!({"metadata": {"deletionTimestamp": "2026-11-24T02:32:22Z"}, "spec": {"containers": []}, "status": status}),
        )
    };
    assert_eq!(deleted(json!({"phase": "Running"}))[2], "Terminating");
    assert_eq!(deleted(json!({"phase": "Succeeded"}))[2], "Succeeded");
    assert_eq!(deleted(json!({"phase": "Running", "reason": "NodeLost"}))[2], "Unknown");
}

#[test]
fn the_other_kinds_read_like_kubectl() {
    let template = json!({"spec": {"containers": [{"name": "c", "image": "nginx:local"}]}});
    assert_eq!(
        row(
            Kind::ReplicationController,
            json!({"metadata": {}, "spec": {"replicas": 2, "selector": {"app": "web"}, "template": template},
                   "status": {"replicas": 2, "readyReplicas": 1}}),
        ),
        ["web", "2", "2", "1", "10m", "c", "nginx:local", "app=web"]
    );
    assert_eq!(
        row(
            Kind::Node,
            json!({"metadata": {"labels": {"node-role.kubernetes.io/master": "", "node-role.kubernetes.io/control-plane": ""}},
                   "spec": {"unschedulable": true},
                   "status": {"conditions": [{"type": "Ready", "status": "True"}],
                              "addresses": [{"type": "InternalIP", "address": "192.0.2.2"}],
                              "nodeInfo": {"kubeletVersion": "v1.33.1", "osImage": "Debian", "kernelVersion": "6", "architecture": "",
                                           "bootID": "", "containerRuntimeVersion": "troupe://1", "kubeProxyVersion": "",
                                           "machineID": "", "operatingSystem": "", "systemUUID": ""}}}),
        ),
        [
            "web",
            "Ready,SchedulingDisabled",
            "control-plane,master",
            "10m",
            "v1.33.1",
            "192.0.2.2",
            "<none>",
            "Debian",
            "6",
            "troupe://1"
        ]
    );
    assert_eq!(
        row(
            Kind::Service,
            json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "selector": {"app": "web"},
                   "ports": [{"port": 80, "nodePort": 31357, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        ),
        ["web", "NodePort", "10.43.0.9", "<none>", "80:31357/TCP,53/UDP", "10m", "app=web"]
    );
    let addresses = json!([{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}, {"ip": "10.0.0.3"}, {"ip": "10.0.0.4"}]);
    assert_eq!(
        row(
            Kind::Endpoints,
            json!({"metadata": {}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]})
        ),
        ["web", "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more...", "10m"]
    );
    assert_eq!(row(Kind::Endpoints, json!({"metadata": {}})), ["web", "<none>", "10m"]);
    assert_eq!(
        row(Kind::Namespace, json!({"metadata": {}, "status": {"phase": "Active"}})),
        ["web", "Active", "10m"]
    );
    assert_eq!(row(Kind::ConfigMap, json!({"metadata": {}, "data": {"a": "1"}})), ["web", "1", "10m"]);
    assert_eq!(
        row(Kind::Secret, json!({"metadata": {}, "type": "Opaque", "data": {"a": "MQ=="}})),
        ["web", "Opaque", "1", "10m"]
    );
    assert_eq!(row(Kind::ServiceAccount, json!({"metadata": {}})), ["web", "0", "10m"]);
}

#[test]
fn an_event_reads_like_kubectl() {
    assert_eq!(
        row(
            Kind::Event,
            json!({"metadata": {"name": "web.1"}, "type": "Normal", "reason": "Started", "message": "Started container c",
                   "involvedObject": {"kind": "Pod", "name": "web1", "fieldPath": "spec.containers{c}"},
                   "source": {"component": "kubelet", "host": "vm"}, "count": 2,
                   "firstTimestamp": "2026-11-24T02:31:15Z", "lastTimestamp": "2026-11-24T02:31:22Z"}),
        ),
        [
            "60s",
            "Normal",
            "Started",
            "pod/web1",
            "spec.containers{c}",
            "kubelet, vm",
            "Started container c",
            "67s",
            "2",
            "web.1"
        ]
    );
}

#[test]
fn ages_are_told_with_the_precision_that_matters() {
    for (seconds, text) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_000, "3h3m"),
        (28_800, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (180_000, "2d2h"),
        (700_000, "8d"),
        (63_072_000, "2y"),
        (66_000_000, "2y33d"),
        (300_000_000, "9y"),
    ] {
        assert_eq!(human_duration(seconds), text, "{seconds}");
    }
}
