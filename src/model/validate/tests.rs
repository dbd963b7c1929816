//! Rows of validation: a document, and the fields and reasons of its refusal.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use crate::model::{
    Kind, Revision,
    admit::{Admission, FieldValidation, Part, Rejection, admit_create, admit_update},
};

fn admission() -> Admission<'static> {
    Admission {
        namespace: "default",
        name: None,
        now: "2026-11-24T02:22:22Z".parse::<Timestamp>().unwrap(),
        uid: "u".into(),
        suffix: "abcde",
        fields: FieldValidation::Strict,
    }
}

fn texts(result: Result<crate::model::admit::Admitted, Rejection>) -> Vec<String> {
    match result {
        Ok(_) => Vec::new(),
        Err(Rejection::Invalid(causes)) => {
            causes.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn create(kind: Kind, object: &Value) -> Vec<String> {
    texts(admit_create(kind, object.to_string().as_bytes(), &admission()))
}

fn update(kind: Kind, old: &Value, new: &Value) -> Vec<String> {
    let old = admit_create(kind, old.to_string().as_bytes(), &admission()).unwrap().sealed.at(Revision(1));
    texts(admit_update(kind, &old, new.to_string().as_bytes(), Part::Main, &admission()))
}

/// A good pod with these fields put over its spec.
fn pod(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    overlay(&mut pod["spec"], spec);
    pod
}

/// A good pod with these fields put over its only container.
fn container(fields: Value) -> Value {
    let mut pod = pod(json!({}));
    overlay(&mut pod["spec"]["containers"][0], fields);
    pod
}

fn overlay(target: &mut Value, fields: Value) {
    for (key, value) in fields.as_object().unwrap() {
        target[key] = value.clone();
    }
}

fn check(kind: Kind, rows: Vec<(Value, Vec<&str>)>) {
    for (object, expected) in rows {
        assert_eq!(create(kind, &object), expected, "{object}");
    }
}

#[test]
fn pods_are_validated_as_kubernetes_does() {
    const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                         must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex \
                         used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let bad_name = format!("spec.containers[0].name: Invalid value: \"A_b\": {LABEL}");
    check(
        Kind::Pod,
        vec![
            (pod(json!({})), vec![]),
            (pod(json!({"containers": []})), vec!["spec.containers: Required value"]),
            (container(json!({"image": ""})), vec!["spec.containers[0].image: Required value"]),
            (container(json!({"name": "A_b"})), vec![&bad_name]),
            (container(json!({"name": ""})), vec!["spec.containers[0].name: Required value"]),
            (
                pod(json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]})),
                vec!["spec.containers[1].name: Duplicate value: \"c\""],
            ),
            (
                pod(json!({"restartPolicy": "Sometimes"})),
                vec![
                    "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                     \"OnFailure\", \"Never\"",
                ],
            ),
            (
                container(json!({"imagePullPolicy": "Maybe"})),
                vec![
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"Maybe\": supported values: \
                     \"Always\", \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                container(json!({"ports": [{"containerPort": 0}, {"containerPort": 70000}]})),
                vec![
                    "spec.containers[0].ports[0].containerPort: Required value",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, \
                     inclusive",
                ],
            ),
            (
                container(
                    json!({"ports": [{"containerPort": 1, "hostPort": 5}, {"containerPort": 2, "hostPort": 5}]}),
                ),
                vec!["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//5\""],
            ),
            (
                container(json!({"env": [{"name": ""}, {"name": "a=b"}]})),
                vec![
                    "spec.containers[0].env[0].name: Required value",
                    "spec.containers[0].env[1].name: Invalid value: \"a=b\": a valid environment variable name must \
                     consist only of printable ASCII characters other than '='",
                ],
            ),
            (
                container(
                    json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
                ),
                vec![
                    "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error \
                     converting fieldPath: field label not supported: spec.foo",
                ],
            ),
            (
                container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
                vec!["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
            ),
            (
                container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
                vec![
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu \
                     limit of 1",
                ],
            ),
            (
                container(json!({"resources": {"limits": {"memory": "-1Mi"}}})),
                vec![
                    "spec.containers[0].resources.limits[memory]: Invalid value: \"-1Mi\": must be greater than or \
                     equal to 0",
                    "spec.containers[0].resources.requests[memory]: Invalid value: \"-1Mi\": must be greater than \
                     or equal to 0",
                ],
            ),
            (
                container(json!({"resources": {"limits": {"a.b/c": "1500m"}}})),
                vec![
                    "spec.containers[0].resources.limits[a.b/c]: Invalid value: \"1500m\": must be an integer",
                    "spec.containers[0].resources.requests[a.b/c]: Invalid value: \"1500m\": must be an integer",
                ],
            ),
            (
                container(json!({"livenessProbe": {"successThreshold": 2}})),
                vec![
                    "spec.containers[0].livenessProbe: Required value: must specify a handler type",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (pod(json!({"terminationGracePeriodSeconds": -1})), vec![]),
            (
                pod(
                    json!({"initContainers": [{"name": "c", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
                ),
                vec![
                    "spec.initContainers[0].name: Duplicate value: \"c\"",
                    "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without \
                     restartPolicy=Always",
                ],
            ),
            (
                pod(json!({"volumes": [{"name": "v", "projected": {"sources": [
                    {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}},
                    {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}, {"key": "k", "path": "q"}]}},
                    {"downwardAPI": {"items": [{"path": "q", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                ]}}]})),
                vec![
                    "spec.volumes[0].projected: Invalid value: \"m\": conflicting duplicate paths",
                    "spec.volumes[0].projected: Invalid value: \"q\": conflicting duplicate paths",
                ],
            ),
            (
                pod(json!({"volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]})),
                vec!["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                pod(json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "Never"}]})),
                vec![
                    "spec.tolerations[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \
                     \"PreferNoSchedule\", \"NoExecute\"",
                ],
            ),
            (
                pod(json!({"dnsPolicy": "None"})),
                vec!["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
            ),
            (
                pod(
                    json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                    [{"topologyKey": "", "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}}}),
                ),
                vec![
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].labelSelector.\
                     matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                     Required value: can not be empty",
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                     Invalid value: \"\": name part must be non-empty",
                    "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: \
                     Invalid value: \"\": name part must consist of alphanumeric characters, '-', '_' or '.', and \
                     must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
                     regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                ],
            ),
        ],
    );
}

#[test]
fn what_pods_ask_of_their_node_is_validated_as_kubernetes_does() {
    let mut on_linux = container(json!({"lifecycle": {"stopSignal": "SIGRTMAX-14"}}));
    on_linux["spec"]["os"] = json!({"name": "linux"});
    let mut unknown = on_linux.clone();
    unknown["spec"]["os"]["name"] = "windows".into();
    let volume = json!([{"name": "v", "hostPath": {"path": "/x"}}]);
    let mounting = |privileged: bool| {
        let mut pod = container(json!({
            "volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}],
            "securityContext": {"privileged": privileged}
        }));
        pod["spec"]["volumes"] = volume.clone();
        pod
    };
    let recursive = |mut mount: Value| {
        (mount["name"], mount["mountPath"]) = ("v".into(), "/v".into());
        let mut pod = container(json!({"volumeMounts": [mount]}));
        pod["spec"]["volumes"] = volume.clone();
        pod
    };
    let unmasked = |fields: Value| {
        let mut pod = container(json!({"securityContext": {"procMount": "Unmasked"}}));
        overlay(&mut pod["spec"], fields);
        pod
    };
    let asking = |list: Value| container(json!({"resources": {"limits": list}}));
    check(
        Kind::Pod,
        vec![
            (on_linux, vec![]),
            (
                unknown,
                vec![
                    "spec.containers[0].lifecycle.stopSignal: Unsupported value: \"SIGRTMAX-14\": supported values: \
                     \"SIGKILL\", \"SIGTERM\"",
                ],
            ),
            (
                container(json!({"lifecycle": {"stopSignal": "SIGTERM"}})),
                vec![
                    "spec.containers[0].lifecycle.stopSignal: Forbidden: may not be set for containers with empty \
                     `spec.os.name`",
                ],
            ),
            (mounting(true), vec![]),
            (
                mounting(false),
                vec![
                    "spec.containers[0].volumeMounts[0].mountPropagation: Forbidden: Bidirectional mount propagation is \
                     available only to privileged containers",
                ],
            ),
            (
                recursive(
                    json!({"readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "None"}),
                ),
                vec![],
            ),
            (recursive(json!({"readOnly": true, "recursiveReadOnly": "IfPossible"})), vec![]),
            (recursive(json!({"recursiveReadOnly": "Disabled"})), vec![]),
            (
                recursive(json!({"recursiveReadOnly": "IfPossible", "mountPropagation": "HostToContainer"})),
                vec![
                    "spec.containers[0].volumeMounts[0].recursiveReadOnly: Forbidden: may only be specified when readOnly is \
                     true",
                    "spec.containers[0].volumeMounts[0].recursiveReadOnly: Forbidden: may only be specified when \
                     mountPropagation is None or not specified",
                ],
            ),
            (
                recursive(json!({"readOnly": true, "recursiveReadOnly": "Always"})),
                vec![
                    "spec.containers[0].volumeMounts[0].recursiveReadOnly: Unsupported value: \"Always\": supported values: \
                     \"Disabled\", \"Enabled\", \"IfPossible\"",
                ],
            ),
            (
                pod(json!({"hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true})),
                vec![
                    "spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false",
                    "spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false",
                    "spec.HostIPC: Forbidden: when `pod.Spec.HostUsers` is false",
                ],
            ),
            (unmasked(json!({"hostUsers": false})), vec![]),
            (
                unmasked(json!({})),
                vec![
                    "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be \
                     false to use `Unmasked`",
                ],
            ),
            (asking(json!({"hugepages-2Mi": "4Mi", "memory": "1Mi"})), vec![]),
            (
                asking(json!({"hugepages-2Mi": "4Mi"})),
                vec!["spec.containers[0].resources: Forbidden: HugePages require cpu or memory"],
            ),
            (
                asking(json!({"hugepages-2Mi": "3Mi", "cpu": "1"})),
                vec![
                    "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive \
                     integer multiple of hugepages-2Mi",
                    "spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive \
                     integer multiple of hugepages-2Mi",
                ],
            ),
            (
                asking(json!({"hugepages-none": "2Mi", "cpu": "1"})),
                vec![
                    "spec.containers[0].resources.limits[hugepages-none]: Invalid value: \"2Mi\": 2Mi is not positive \
                     integer multiple of hugepages-none",
                    "spec.containers[0].resources.requests[hugepages-none]: Invalid value: \"2Mi\": 2Mi is not positive \
                     integer multiple of hugepages-none",
                ],
            ),
        ],
    );
}

#[test]
fn a_pod_has_no_fields_that_its_system_does_not_have() {
    let fields = json!({
        "hostPID": true, "hostIPC": false, "shareProcessNamespace": false,
        "securityContext": {"runAsUser": 1, "supplementalGroups": [], "sysctls": [], "runAsNonRoot": true},
        "containers": [{"name": "c", "image": "i", "securityContext": {"privileged": false, "capabilities": {}}}],
        "initContainers": [{"name": "d", "image": "i", "securityContext": {"runAsGroup": 1, "windowsOptions": {}}}],
    });
    let of = |system: Option<&str>| {
        let mut pod = pod(fields.clone());
        if let Some(name) = system {
            pod["spec"]["os"] = json!({"name": name});
        }
        pod
    };
    let windows: Vec<String> = [
        "hostPID",
        "shareProcessNamespace",
        "securityContext.runAsUser",
        "securityContext.supplementalGroups",
        "initContainers[0].securityContext.runAsGroup",
        "containers[0].securityContext.capabilities",
        "containers[0].securityContext.privileged",
    ]
    .map(|field| format!("spec.{field}: Forbidden: cannot be set for a windows pod"))
    .into();
    let linux = "spec.initContainers[0].securityContext.windowsOptions: Forbidden: windows options cannot be set for a \
                 linux pod";
    check(
        Kind::Pod,
        vec![
            (of(None), vec![]),
            (of(Some("linux")), vec![linux]),
            (of(Some("windows")), windows.iter().map(String::as_str).collect()),
            (pod(json!({"os": {"name": "windows"}})), vec![]),
        ],
    );
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": of(Some("linux"))["spec"]});
    let linux = format!("spec.template.{linux}");
    check(Kind::ReplicationController, vec![(controller(json!({"template": template})), vec![&linux])]);
}

#[test]
fn bad_quantities_are_told_once_where_they_are() {
    let got = create(Kind::Pod, &container(json!({"resources": {"requests": {"cpu": "lots"}}})));
    assert_eq!(got.len(), 1);
    assert!(
        got[0].starts_with(
            "spec.containers[0].resources.requests[cpu]: Invalid value: \"lots\": quantities must"
        ),
        "{got:?}"
    );
}

fn controller(spec: Value) -> Value {
    let mut rc = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    overlay(&mut rc["spec"], spec);
    rc
}

#[test]
fn controllers_are_validated_as_kubernetes_does() {
    check(
        Kind::ReplicationController,
        vec![
            (controller(json!({})), vec![]),
            (
                controller(json!({"replicas": -1})),
                vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
            ),
            (
                controller(json!({"selector": {"app": "other"}})),
                vec![
                    "spec.template.metadata.labels: Invalid value: map[string]string{\"app\":\"web\"}: `selector` \
                     does not match template `labels`",
                ],
            ),
            (
                json!({"metadata": {"name": "web"}, "spec": {}}),
                vec!["spec.selector: Required value", "spec.template: Required value"],
            ),
            (
                controller(json!({"template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}})),
                vec![
                    "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                ],
            ),
            (
                controller(
                    json!({"template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}),
                ),
                vec!["spec.template.spec.containers[0].image: Required value"],
            ),
        ],
    );
}

#[test]
fn sysctls_of_what_a_pod_shares_with_its_node_are_refused() {
    let with = |names: &[&str], fields: Value| {
        let sysctls: Vec<Value> = names.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        let mut spec = json!({"securityContext": {"sysctls": sysctls}});
        overlay(&mut spec, fields);
        spec
    };
    let all = [
        "net.ipv4.tcp_syncookies",
        "net/ipv4/tcp_fin_timeout",
        "kernel.shm_rmid_forced",
        "kernel.sem",
        "fs.mqueue.msg_max",
    ];
    let fault = |at: usize, field: &str| {
        let detail = format!("may not be specified when '{field}' is true");
        format!("spec.securityContext.sysctls[{at}].name: Invalid value: {:?}: {detail}", all[at])
    };
    for (fields, faults) in [
        (json!({}), vec![]),
        (json!({"hostPID": true}), vec![]),
        (json!({"hostNetwork": true}), vec![fault(0, "hostNetwork"), fault(1, "hostNetwork")]),
        (json!({"hostIPC": true}), vec![fault(2, "hostIPC"), fault(3, "hostIPC"), fault(4, "hostIPC")]),
    ] {
        assert_eq!(create(Kind::Pod, &pod(with(&all, fields.clone()))), faults, "{fields}");
        let mut rc = controller(json!({}));
        overlay(&mut rc["spec"]["template"]["spec"], with(&all, fields.clone()));
        let faults: Vec<String> =
            faults.into_iter().map(|fault| fault.replace("spec.sec", "spec.template.spec.sec")).collect();
        assert_eq!(create(Kind::ReplicationController, &rc), faults, "{fields}");
        assert_eq!(update(Kind::ReplicationController, &controller(json!({})), &rc), faults, "{fields}");
    }
}

#[test]
fn services_are_validated_as_kubernetes_does() {
    let service = |spec: Value| json!({"metadata": {"name": "web"}, "spec": spec});
    check(
        Kind::Service,
        vec![
            (service(json!({"ports": [{"port": 80}]})), vec![]),
            (service(json!({})), vec!["spec.ports: Required value"]),
            (service(json!({"clusterIP": "None"})), vec![]),
            (
                service(json!({"ports": [{"port": 80}, {"name": "b", "port": 81}]})),
                vec!["spec.ports[0].name: Required value"],
            ),
            (
                service(json!({"ports": [{"port": 80, "nodePort": 30000}]})),
                vec!["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
            ),
            (
                service(json!({"type": "X", "ports": [{"port": 80, "protocol": "tcp"}]})),
                vec![
                    "spec.ports[0].protocol: Unsupported value: \"tcp\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                    "spec.type: Unsupported value: \"X\": supported values: \"ClusterIP\", \"ExternalName\", \
                     \"LoadBalancer\", \"NodePort\"",
                ],
            ),
            (service(json!({"type": "ExternalName"})), vec!["spec.externalName: Required value"]),
        ],
    );
    let with = |ip: &str| service(json!({"clusterIP": ip, "ports": [{"port": 80}]}));
    assert_eq!(
        update(Kind::Service, &with("10.0.0.1"), &with("10.0.0.2")),
        ["spec.clusterIPs[0]: Invalid value: []string{\"10.0.0.2\"}: may not change once set"]
    );
    let unnamed = service(json!({"ports": [{"port": 81}]}));
    assert_eq!(update(Kind::Service, &with("10.0.0.1"), &unnamed), Vec::<String>::new());
}

#[test]
fn configmaps_and_secrets_are_validated_as_kubernetes_does() {
    let map = |fields: Value| {
        let mut map = json!({"metadata": {"name": "m"}});
        overlay(&mut map, fields);
        map
    };
    let big = "x".repeat((1 << 20) + 1);
    check(
        Kind::ConfigMap,
        vec![
            (map(json!({"data": {"a": "1"}})), vec![]),
            (
                map(json!({"data": {"a": "1"}, "binaryData": {"a": "MQ=="}})),
                vec!["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
            ),
            (map(json!({"data": {"a": big}})), vec![": Too long: may not be more than 1048576 bytes"]),
        ],
    );
    check(
        Kind::Secret,
        vec![
            (map(json!({"stringData": {"a": "1"}})), vec![]),
            (
                map(json!({"type": "kubernetes.io/tls"})),
                vec!["data[tls.crt]: Required value", "data[tls.key]: Required value"],
            ),
            (
                map(
                    json!({"type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "secret"}}),
                ),
                vec![
                    "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": is not a JSON object \
                     (line 1, column 1)",
                ],
            ),
        ],
    );
    let frozen = map(json!({"immutable": true, "data": {"a": "MQ=="}}));
    assert_eq!(
        update(Kind::Secret, &frozen, &map(json!({"immutable": true, "data": {"a": "Mg=="}}))),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        update(Kind::ConfigMap, &frozen, &map(json!({"data": {"a": "MQ=="}}))),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        update(Kind::Secret, &map(json!({"type": "a/b"})), &map(json!({"type": "c/d"}))),
        ["type: Invalid value: \"c/d\": field is immutable"]
    );
}

#[test]
fn metadata_is_validated_as_kubernetes_does() {
    let map = |metadata: Value| json!({"metadata": metadata});
    let long = "x".repeat(300 << 10);
    check(
        Kind::ConfigMap,
        vec![
            (map(json!({})), vec!["metadata.name: Required value: name or generateName is required"]),
            (map(json!({"generateName": "a-"})), vec![]),
            (
                map(json!({"name": "a", "annotations": {"a": long}})),
                vec!["metadata.annotations: Too long: may not be more than 262144 bytes"],
            ),
            (
                map(json!({"name": "a", "finalizers": ["mine"]})),
                vec![
                    "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor \
                     is it fully qualified",
                ],
            ),
            (
                map(
                    json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "", "uid": "x"}]}),
                ),
                vec!["metadata.ownerReferences[0].name: Invalid value: \"\": must not be empty"],
            ),
        ],
    );
    let labelled = create(Kind::ConfigMap, &map(json!({"name": "a", "labels": {"a b": "-"}})));
    assert!(
        labelled[0].starts_with("metadata.labels: Invalid value: \"a b\": name part must consist"),
        "{labelled:?}"
    );
    assert!(
        labelled[1].starts_with("metadata.labels: Invalid value: \"-\": a valid label must be"),
        "{labelled:?}"
    );
}

#[test]
fn a_pod_changes_only_in_a_few_fields() {
    let old = pod(json!({}));
    for (change, expected) in [
        (json!({"containers": [{"name": "c", "image": "other"}]}), None),
        (json!({"activeDeadlineSeconds": 10}), None),
        (
            json!({"containers": [{"name": "c", "image": "i", "command": ["x"]}]}),
            Some(
                "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initC",
            ),
        ),
        (json!({"nodeName": "vm"}), Some("spec: Forbidden: pod updates may not change")),
        (
            json!({"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}]}),
            Some("spec.containers: Forbidden: pod updates may not add or remove containers"),
        ),
    ] {
        let mut new = old.clone();
        overlay(&mut new["spec"], change);
        // The pull policy was drawn from the tag at first, and stays.
        new["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        let got = update(Kind::Pod, &old, &new);
        match expected {
            None => assert!(got.is_empty(), "{got:?}"),
            Some(start) => assert!(got[0].starts_with(start), "{got:?}"),
        }
    }
}

#[test]
fn the_rest_is_validated_as_kubernetes_does() {
    let node = |taints: Value| json!({"metadata": {"name": "n"}, "spec": {"taints": taints}});
    check(
        Kind::Node,
        vec![
            (node(json!([{"key": "a", "effect": "NoExecute"}])), vec![]),
            (node(json!([{"key": "a", "effect": ""}])), vec!["spec.taints[0].effect: Required value"]),
            (
                json!({"metadata": {"name": "n"}, "status": {"capacity": {"cpu": "1500m", "a.b/c": "1500m"}}}),
                vec![
                    "status.capacity[a.b/c]: Invalid value: \"1500m\": must be an integer",
                    "status.allocatable[a.b/c]: Invalid value: \"1500m\": must be an integer",
                ],
            ),
        ],
    );
    check(
        Kind::Endpoints,
        vec![
            (json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "10.0.0.1"}]}]}), vec![]),
            (
                json!({"metadata": {"name": "e"}, "subsets": [{"addresses": [{"ip": "127.0.0.1"}]}]}),
                vec![
                    "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
                     (127.0.0.0/8, ::1/128)",
                ],
            ),
            (
                json!({"metadata": {"name": "e"}, "subsets": [{}]}),
                vec!["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
            ),
        ],
    );
    check(
        Kind::Event,
        vec![
            (json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}}), vec![]),
            (json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Node"}}), vec![]),
            (
                json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "other"}}),
                vec!["involvedObject.namespace: Invalid value: \"other\": does not match event.namespace"],
            ),
        ],
    );
    let dotted = create(Kind::Namespace, &json!({"metadata": {"name": "a.b"}}));
    assert_eq!(dotted[0], "metadata.name: Invalid value: \"a.b\": must not contain dots");
}
