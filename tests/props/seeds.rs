//! Valid inputs for each entrance, from which properties and fuzzers start.

use serde_json::{Value, json};
use troupe::{
    fuzzing::SEPARATOR,
    messages::wire::{Admitted, JoinAnswer, JoinRequest},
    net::{Authority, codec, csr::NodeKey},
};

/// A frame around bytes.
pub fn framed(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).unwrap();
    [&length.to_be_bytes(), content].concat()
}

/// See `fuzzing::wire_frame`.
pub fn wire_frame() -> Vec<Vec<u8>> {
    let encoded = |choice: u8, frames: Vec<Vec<u8>>| {
        let mut seed = vec![choice];
        seed.extend(frames.iter().flat_map(|f| framed(f)));
        seed
    };
    let cap = 1 << 20;
    let all = |of: Vec<Result<Vec<u8>, _>>| of.into_iter().map(Result::unwrap).collect();
    vec![
        encoded(0, all(super::wire::to_master().iter().map(|m| codec::encode(m, cap)).collect())),
        encoded(1, all(super::wire::to_node().iter().map(|m| codec::encode(m, cap)).collect())),
        encoded(2, all(super::wire::open().iter().map(|m| codec::encode(m, cap)).collect())),
        encoded(3, all(super::wire::opened().iter().map(|m| codec::encode(m, cap)).collect())),
    ]
}

fn join_request(name: &str, csr: &[u8]) -> JoinRequest {
    JoinRequest {
        token_id: "8rcmdg".into(),
        secret: "tenwfs0vok4bymlh".into(),
        name: name.into(),
        csr: csr.to_vec().into(),
    }
}

/// See `fuzzing::join`.
pub fn join() -> Vec<Vec<u8>> {
    let csr = NodeKey::generate().unwrap().request().unwrap();
    let request = join_request;
    let requests =
        [request("one", &csr), request("Two_Two", &csr), request("", &[]), request("one", &csr[1..])];
    requests.iter().map(|request| framed(&codec::encode(request, 1 << 20).unwrap())).collect()
}

/// See `fuzzing::join_answer`.
pub fn join_answer() -> Vec<Vec<u8>> {
    let (authority, other) = (Authority::ephemeral().unwrap(), Authority::ephemeral().unwrap());
    let (key, foreign) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let own = key.request().unwrap();
    let seed = |of: &Authority, name: &str, csr: &[u8]| {
        let certificate = of.certify_node(&name.into(), csr, std::time::Duration::from_secs(60)).unwrap();
        let ca = of.certificate().pem().to_owned();
        let answer = JoinAnswer::Admitted(Admitted { certificate, ca, cluster: "c".into() });
        let frames = [
            framed(&codec::encode(&join_request("one", &own), 1 << 20).unwrap()),
            framed(&codec::encode(&answer, 1 << 20).unwrap()),
        ];
        [authority.certificate().public_key_pin().unwrap().to_vec(), frames.concat()].concat()
    };
    vec![
        seed(&authority, "one", &own),
        seed(&other, "one", &own),
        seed(&authority, "two", &own),
        seed(&authority, "one", &foreign.request().unwrap()),
    ]
}

pub fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-0", "labels": {"app": "web", "troupe.example/tier": "front"},
                     "annotations": {"note": "a \"quoted\" text"}, "finalizers": ["a.example/b"]},
        "spec": {
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}],
            "volumes": [{"name": "data", "emptyDir": {}}, {"name": "conf", "configMap": {"name": "c"}}],
            "containers": [{
                "name": "c", "image": "troupe.local/hello:latest", "args": ["--port", "80"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "ports": [{"name": "http", "containerPort": 80, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "1.5Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5},
            }],
            "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5,
        },
        "status": {"phase": "Running", "podIP": "10.244.0.2", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn documents() -> Vec<(u8, Value)> {
    vec![
        (0, json!({"metadata": {"name": "ns"}, "spec": {"finalizers": ["kubernetes"]}})),
        (
            1,
            json!({"metadata": {"name": "n1"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
                   "status": {"capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"}}}),
        ),
        (2, pod()),
        (
            3,
            json!({"metadata": {"name": "rc"}, "spec": {"replicas": 3, "selector": {"app": "web"}, "template": {
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        ),
        (
            4,
            json!({"metadata": {"name": "svc"}, "spec": {"type": "NodePort", "selector": {"app": "web"},
                   "ports": [{"name": "http", "port": 80, "targetPort": "http", "nodePort": 30080}]}}),
        ),
        (7, json!({"metadata": {"name": "cm"}, "data": {"a.txt": "x"}, "binaryData": {"b": "AAEC"}})),
        (8, json!({"metadata": {"name": "s"}, "type": "Opaque", "stringData": {"password": "p"}})),
        (9, json!({"metadata": {"name": "sa"}, "secrets": [{"name": "s"}]})),
    ]
}

/// See `fuzzing::body`.
pub fn body() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (kind, document) in documents() {
        seeds.push([&[3 * kind][..], document.to_string().as_bytes()].concat());
        let yaml = serde_yaml_ng::to_string(&document).unwrap();
        seeds.push([&[3 * kind + 1][..], yaml.as_bytes()].concat());
    }
    seeds.push(b"\x16metadata: &m {name: a}\ndata: {a: &t text, b: *t}\n".to_vec());
    // ConfigMap "a" with data {"k": "v"} as kubectl sends it.
    seeds.push(
        [
            &[3 * 7 + 2][..],
            b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x0d\x0a\x03\x0a\x01a\x12\x06\x0a\x01k\x12\x01v",
        ]
        .concat(),
    );
    seeds
}

fn texts(of: &[&str]) -> Vec<Vec<u8>> {
    of.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// See `fuzzing::quantity`.
pub fn quantity() -> Vec<Vec<u8>> {
    texts(&[
        "100m",
        "1.5",
        "64Mi",
        "2e3",
        "-1",
        "+0.5",
        "9Ei",
        "1E",
        "0.000000001",
        "1n",
        // Found by the fuzzer: written without a suffix, then read as decimals.
        "44444437.5Ki",
        "1e-30",
        "12345678901234567890",
    ])
}

/// See `fuzzing::selector`.
pub fn selector() -> Vec<Vec<u8>> {
    texts(&[
        "app=web,tier!=db",
        "app in (a,b,),!gone,x notin (c)",
        "example.com/a,n>3,m<5,in in (in)",
        "metadata.name=a,metadata.namespace!=b",
        "status.phase!=Running,spec.nodeName=n1,spec.restartPolicy==Always",
        r"metadata.name=a\,b\=c\\",
    ])
}

/// See `fuzzing::patch`.
pub fn patch() -> Vec<Vec<u8>> {
    let container = |image: &str| json!({"spec": {"containers": [{"name": "c", "image": image}]}});
    let mut seeds = Vec::new();
    for (choice, patch) in [
        (
            0,
            json!([{"op": "test", "path": "/metadata/name", "value": "web-0"},
                   {"op": "replace", "path": "/spec/containers/0/image", "value": "b"},
                   {"op": "add", "path": "/metadata/labels/x", "value": "y"},
                   {"op": "copy", "from": "/spec", "path": "/metadata/labels/z"},
                   {"op": "move", "from": "/status", "path": "/spec/volumes/-"},
                   {"op": "remove", "path": "/spec/tolerations/0"}]),
        ),
        (1, json!({"metadata": {"labels": {"app": null, "new": "1"}}, "spec": {"containers": []}})),
        (2, container("b")),
        (
            2,
            json!({"spec": {"$setElementOrder/containers": [{"name": "d"}, {"name": "c"}],
                            "containers": [{"name": "d", "image": "i"}, {"name": "c", "$patch": "delete"}],
                            "volumes": [{"$retainKeys": ["name", "secret"], "name": "conf", "secret": {"secretName": "s"}}]}}),
        ),
        (
            2,
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a.example/b"], "annotations": {"$patch": "replace"}},
                   "status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        ),
    ] {
        // The kind is a pod.
        let head = [3 * 2 + choice];
        seeds.push(
            [&head[..], pod().to_string().as_bytes(), &[SEPARATOR], patch.to_string().as_bytes()].concat(),
        );
    }
    seeds
}
