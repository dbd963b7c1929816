//! Byte for byte what kubectl prints: both are run, and their outputs, complaints and exit codes compared.
//!
//! Reads are repeated when they differ, because ages go on between the two. Changes are made by each in a namespace of
//! its own, whose name is made the same before the comparison.

use std::path::{Path, PathBuf};

use crate::harness::{Cluster, Ran, TROUPE, kubectl};

/// How often two reads may differ: once for each age that ticked over in between.
const TRIES: usize = 8;

const RC: &str = "apiVersion: v1
kind: ReplicationController
metadata: {name: web, labels: {app: web}, annotations: {note: 'a: b'}}
spec:
  replicas: 2
  selector: {app: web}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: c
        image: nginx:local
        command: [sh, -c, 'while :; do sleep 1; done']
        env: [{name: A, value: b}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        ports: [{containerPort: 80}]
        resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi}}
        volumeMounts: [{name: v, mountPath: /v}]
      volumes: [{name: v, emptyDir: {}}]
";

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: solo, labels: {app: solo}}
spec: {containers: [{name: c, image: 'busybox:local', args: ['1', 'true', 'a b']}]}
";

/// As `get -o yaml` writes it.
const SAVED: &str = "apiVersion: v1
kind: ConfigMap
metadata:
  creationTimestamp: '2026-01-01T00:00:00Z'
  name: saved
  resourceVersion: '7'
  uid: 0b2c39a5-3f0e-4d7e-8c55-1d4c6b8a6a55
data: {a: b}
";

fn kubectl_or_skip() -> Option<(Cluster, PathBuf)> {
    let kubectl = kubectl()?;
    Some((Cluster::start(), kubectl))
}

/// A read says the same.
#[track_caller]
fn same(cluster: &Cluster, kubectl: &Path, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    same_words(cluster, kubectl, &words);
}

#[track_caller]
fn same_words(cluster: &Cluster, kubectl: &Path, words: &[&str]) {
    let mut differing = None;
    for _ in 0..TRIES {
        let (theirs, ours) = (cluster.run(kubectl, words, ""), cluster.troupe(words));
        if theirs == ours {
            return;
        }
        differing = Some((theirs, ours));
    }
    let (theirs, ours) = differing.unwrap();
    assert_eq!(ours.out, theirs.out, "{words:?}");
    assert_eq!(ours, theirs);
}

/// A change does the same: each in a namespace of its own.
#[track_caller]
fn alike(cluster: &Cluster, kubectl: &Path, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let run = |program: &Path, namespace: &str| {
        let words: Vec<&str> = ["-n", namespace].iter().chain(&words).copied().collect();
        let ran = cluster.run(program, &words, "");
        let neutral = |text: &str| text.replace(namespace, "NAMESPACE");
        Ran { words: String::new(), code: ran.code, out: neutral(&ran.out), err: neutral(&ran.err) }
    };
    let theirs = run(kubectl, "theirs");
    let ours = run(Path::new(TROUPE), "ours-s");
    assert_eq!(ours, theirs, "{line}");
}

#[test]
fn labels_that_are_not_there_and_tails_that_cannot_be_are_kubectls() {
    let Some((cluster, kubectl)) = kubectl_or_skip() else { return };
    let pod = cluster.write("pod.yaml", POD);
    cluster.troupe(&["create", "-f", &pod]).ok();
    cluster.troupe(&["wait", "--for=condition=Ready", "pod/solo", "--timeout=60s"]).ok();
    same(&cluster, &kubectl, "get pods -L app,nope");
    same(&cluster, &kubectl, "get pods -L nope --show-labels");
    same(&cluster, &kubectl, "logs solo --tail=-5");
    same(&cluster, &kubectl, "logs solo --tail=-1");
}

#[test]
fn what_is_used_is_shown_as_kubectl_shows_it() {
    let Some((cluster, kubectl)) = kubectl_or_skip() else { return };
    same(&cluster, &kubectl, "top pods");
    same(&cluster, &kubectl, "top pod nope");
    let (rc, pod) = (cluster.write("rc.yaml", RC), cluster.write("pod.yaml", POD));
    cluster.troupe(&["create", "-f", &rc, "-f", &pod]).ok();
    cluster.troupe(&["wait", "--for=jsonpath={.status.readyReplicas}=2", "rc/web", "--timeout=60s"]).ok();
    cluster.troupe(&["wait", "--for=condition=Ready", "pod/solo", "--timeout=60s"]).ok();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // A pod is shown once it has run for a second.
    while cluster.troupe(&["top", "pods", "--no-headers"]).out.lines().count() < 3 {
        assert!(std::time::Instant::now() < deadline, "{}", cluster.troupe(&["top", "pods"]).err);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    for line in [
        "top pods",
        "top po -A",
        "top pods --containers",
        "top pods --sum",
        "top pods -A --containers --sum --no-headers",
        "top pods --sort-by=cpu",
        "top pods --sort-by=memory --sum",
        "top pod solo",
        "top pod nope",
        "top pods -l app=web",
        "top pods -l app=none",
        "top pods --field-selector=metadata.name=solo",
        "top node nope",
    ] {
        same(&cluster, &kubectl, line);
    }
    // What the machine uses changes all the time.
    let columns = |ran: Ran| ran.out.lines().next().map(str::to_owned).unwrap_or_default();
    let words = ["top", "nodes"];
    assert_eq!(columns(cluster.troupe(&words)), columns(cluster.run(&kubectl, &words, "")));
}

#[test]
fn objects_are_shown_as_kubectl_shows_them() {
    let Some((cluster, kubectl)) = kubectl_or_skip() else { return };
    let (rc, pod) = (cluster.write("rc.yaml", RC), cluster.write("pod.yaml", POD));
    cluster.troupe(&["create", "-f", &rc, "-f", &pod]).ok();
    cluster.troupe(&["create", "configmap", "c", "--from-literal=a=b", "--from-literal=multi=x\ny\n"]).ok();
    cluster.troupe(&["create", "secret", "generic", "s", "--from-literal=a=b"]).ok();
    cluster.troupe(&["expose", "rc", "web", "--port=80"]).ok();
    cluster.troupe(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s"]).ok();
    cluster.troupe(&["wait", "--for=jsonpath={.status.readyReplicas}=2", "rc/web", "--timeout=60s"]).ok();
    for line in [
        "get pods",
        "get pod solo",
        "get pods -o wide",
        "get pods -A",
        "get pods --no-headers",
        "get pods --show-labels",
        "get pods -L app",
        "get pods -l app=web",
        "get pods -l app=none",
        "get pods --field-selector=status.phase=Running",
        "get pods --sort-by=.metadata.name",
        "get pods --show-kind",
        "get all",
        "get rc,pods",
        "get rc,pods -o wide",
        "get rc/web pod/solo",
        "get pod/nope rc/web",
        "get -n default rc web",
        "get nodes -A",
        "get nodes -o wide",
        "get svc,ep,cm,secrets,sa,ns",
        "get events -A",
        "get frobs",
        "get pods nope",
        "get pods nope --ignore-not-found",
        "get pods -o name",
        "get all -o name",
        "get pods -o json",
        "get pod solo -o yaml",
        "get all -o yaml",
        "get nodes -o yaml",
        "get events -o json",
        "get configmap c -o yaml",
        "get rc web -o jsonpath={.spec.template.spec.containers[*].name}",
        "get rc web -o jsonpath={.metadata.annotations}",
        "get pods -o jsonpath={range.items[*]}{.metadata.name}{end}",
        "get pods -o custom-columns=NAME:.metadata.name,IP:.status.podIP,NONE:.spec.none,L:.metadata.labels",
        "get --raw /version",
        "api-resources",
        "api-resources -o wide",
        "api-resources -o name",
        "api-resources --namespaced=false",
        "api-versions",
    ] {
        same(&cluster, &kubectl, line);
    }
    same_words(
        &cluster,
        &kubectl,
        &[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.metadata.name}{\"\\t\"}{.status.phase}{\"\\n\"}{end}",
        ],
    );
}

#[test]
fn objects_are_described_as_kubectl_describes_them() {
    let Some((cluster, kubectl)) = kubectl_or_skip() else { return };
    let (rc, pod) = (cluster.write("rc.yaml", RC), cluster.write("pod.yaml", POD));
    cluster.troupe(&["create", "-f", &rc, "-f", &pod]).ok();
    cluster.troupe(&["create", "configmap", "c", "--from-literal=a=b", "--from-literal=d=e"]).ok();
    cluster.troupe(&["create", "secret", "generic", "s", "--from-literal=a=b"]).ok();
    cluster.troupe(&["expose", "rc", "web", "--port=80", "--type=NodePort"]).ok();
    cluster.troupe(&["wait", "--for=condition=Ready", "pods", "--all", "--timeout=60s"]).ok();
    for line in [
        "describe pods",
        "describe pod solo",
        "describe pod sol",
        "describe pod nope",
        "describe rc web",
        "describe nodes",
        "describe ns default",
        "describe cm c",
        "describe secret s",
        "describe svc web",
        "describe ep web",
        "describe sa default",
        "describe rc -l app=none",
    ] {
        same(&cluster, &kubectl, line);
    }
}

#[test]
fn changes_are_told_as_kubectl_tells_them() {
    let Some((cluster, kubectl)) = kubectl_or_skip() else { return };
    for namespace in ["theirs", "ours-s"] {
        cluster.troupe(&["create", "namespace", namespace]).ok();
    }
    cluster.write("rc.yaml", RC);
    cluster.write(
        "rc3.yaml",
        &RC.replace("replicas: 2", "replicas: 3").replace(", annotations: {note: 'a: b'}", ""),
    );
    cluster.write("pod.yaml", POD);
    cluster.write("bad.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: []}\n");
    cluster.write("odd.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: odd}\nspec: {frob: 1, containers: [{name: c, image: x}]}\n");
    cluster.write("saved.yaml", SAVED);
    for line in [
        "apply -f rc.yaml",
        "apply -f rc.yaml",
        "get rc web -o jsonpath={.metadata.annotations}",
        "apply -f rc3.yaml --dry-run=client",
        "apply -f rc3.yaml --dry-run=server",
        "apply -f rc3.yaml",
        "get rc web -o jsonpath={.metadata.annotations}{.spec.replicas}",
        "create -f pod.yaml",
        "create -f pod.yaml",
        "apply -f pod.yaml",
        "create -f saved.yaml",
        "delete -f saved.yaml",
        "apply -f saved.yaml",
        "get cm saved -o jsonpath={.metadata.annotations}",
        "create -f bad.yaml",
        "create -f odd.yaml",
        "create -f pod.yaml --dry-run=client -o yaml",
        "create -f rc.yaml --dry-run=client",
        "wait --for=condition=Ready pod/solo --timeout=60s",
        "wait --for=jsonpath={.status.phase}=Running pod/solo --timeout=60s",
        "wait --for=condition=Nope pod/solo --timeout=10ms",
        "wait --for=condition=Ready pod/nope --timeout=1s",
        "wait --for=condition=Ready pod -l app=none --timeout=1s",
        "logs nope",
        "logs -p solo",
        "scale rc web --replicas=1",
        "scale rc web --current-replicas=9 --replicas=3",
        "label pod solo tier=x",
        "label pod solo tier=x",
        "label pod solo tier=y",
        "label pod solo tier=y --overwrite",
        "label pod solo tier-",
        "label pod solo tier-",
        "annotate pod solo note=hello",
        "annotate pod solo note=again",
        "annotate pod solo note-",
        "patch rc web -p {\"metadata\":{\"labels\":{\"p\":\"m\"}}}",
        "patch rc web -p {\"metadata\":{\"labels\":{\"p\":\"m\"}}}",
        "patch rc web --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/p\"}]",
        "patch rc web --type=json -p [{\"op\":\"remove\",\"path\":\"/metadata/labels/p\"}]",
        "expose rc web --port=80",
        "expose rc web --name=other",
        "run r1 --image=x --restart=Never -- sleep 1000",
        "create configmap c --from-literal=a=b",
        "create configmap c --from-literal=a=b",
        "create secret generic s --from-literal=a=b",
        "get cm,secret -o name",
        "delete pod nope",
        "delete pod nope --ignore-not-found",
        "delete pod -l app=none",
        "delete pod r1 --grace-period=1 --wait=false",
        "wait --for=delete pod/r1 --timeout=60s",
        "delete pod nope --force --grace-period=0",
        "delete pod solo --force --grace-period=0",
        "delete cm c -o name",
        "delete secret s --dry-run=client",
        "delete secret s --dry-run=server",
        "delete svc web other",
        "delete -f rc.yaml",
        "delete -f rc.yaml",
        "delete pods --all --now",
        "get rc,pods,svc",
    ] {
        alike(&cluster, &kubectl, line);
    }
    for line in
        ["create namespace theirs", "create namespace third --dry-run=client", "cordon n1", "uncordon n1"]
    {
        let words: Vec<&str> = line.split(' ').collect();
        let theirs = cluster.run(&kubectl, &words, "");
        if line.starts_with("cordon") {
            cluster.troupe(&["uncordon", "n1"]).ok();
        } else if line.starts_with("uncordon") {
            cluster.troupe(&["cordon", "n1"]).ok();
        }
        assert_eq!(cluster.troupe(&words), theirs);
    }
}
