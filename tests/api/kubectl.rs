//! The API as real kubectl sees it: every version next to the one in `KUBECTL`, or on the path.

use std::path::PathBuf;

use crate::harness::Cluster;

/// The kubectls at hand: of `kubectl.VERSION` beside `$KUBECTL` (else the one on the path) every second version and the
/// newest, since neighbours hardly differ; that one itself when it stands alone.
pub fn kubectls() -> Vec<PathBuf> {
    let found = std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("kubectl")).find(|p| p.is_file())
    });
    let Some(found) = found.and_then(|p| p.canonicalize().ok()) else {
        assert!(
            std::env::var_os("CI").is_none(),
            "no kubectl at hand, and CI is set: nothing may be skipped"
        );
        eprintln!("no kubectl at hand: skipped");
        return Vec::new();
    };
    let beside = found.parent().and_then(|d| d.read_dir().ok()).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = beside
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kubectl.")))
        .collect();
    all.sort();
    let newest = all.len().saturating_sub(1);
    let mut index = 0..;
    all.retain(|_| index.next().is_some_and(|at| at % 2 == 0 || at == newest));
    if all.is_empty() {
        all.push(found);
    }
    all
}

const RC: &str = "
apiVersion: v1
kind: ReplicationController
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {app: web}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: 'nginx:local', ports: [{containerPort: 80}]}]}
";

/// Runs a story with each kubectl, on a fresh cluster.
fn each(story: impl Fn(&Cluster, &dyn Fn(&[&str]) -> crate::harness::Ran)) {
    for kubectl in kubectls() {
        let cluster = Cluster::start();
        std::fs::write(cluster.file("rc.yaml"), RC).unwrap();
        eprintln!("with {}", kubectl.display());
        story(&cluster, &|arguments| cluster.kubectl(&kubectl, arguments));
    }
}

#[test]
fn kubectl_creates_reads_and_deletes() {
    each(|_, kubectl| {
        assert!(kubectl(&["version"]).ok().contains("v1.33.1+troupe"));
        assert!(kubectl(&["create", "-f", "rc.yaml"]).ok().contains("replicationcontroller/web created"));
        let again = kubectl(&["create", "-f", "rc.yaml"]).fails();
        let expected =
            "(AlreadyExists): error when creating \"rc.yaml\": replicationcontrollers \"web\" already exists";
        assert!(again.contains(expected), "{again}");
        let table = kubectl(&["get", "rc"]).ok();
        assert!(
            table.starts_with("NAME   DESIRED   CURRENT   READY   AGE\nweb    2         0         0"),
            "{table}"
        );
        assert!(kubectl(&["get", "rc", "web", "-o", "wide"]).ok().contains("nginx:local"));
        assert!(kubectl(&["get", "rc", "web", "-o", "json"]).ok().contains("nginx:local"));
        assert!(kubectl(&["get", "rc", "-A", "-o", "yaml"]).ok().contains("nginx:local"));
        assert_eq!(kubectl(&["get", "rc", "-o", "name"]).ok(), "replicationcontroller/web\n");
        assert_eq!(kubectl(&["get", "rc", "-o", "jsonpath={.items[*].spec.replicas}"]).ok(), "2");
        assert!(kubectl(&["get", "rc", "-l", "app=other"]).fails_or_empty().contains("No resources found"));
        assert!(kubectl(&["get", "all", "--show-labels"]).ok().contains("app=web"));
        assert!(kubectl(&["delete", "-f", "rc.yaml"]).ok().contains("deleted"));
        let gone = kubectl(&["get", "rc", "web"]).fails();
        assert!(
            gone.contains("Error from server (NotFound): replicationcontrollers \"web\" not found"),
            "{gone}"
        );
        let unknown = kubectl(&["get", "frobs"]).fails();
        assert!(unknown.contains("the server doesn't have a resource type \"frobs\""), "{unknown}");
    });
}

#[test]
fn kubectl_applies_edits_patches_and_scales() {
    each(|cluster, kubectl| {
        let replicas = || kubectl(&["get", "rc", "web", "-o", "jsonpath={.spec.replicas}"]).ok();
        let label = |name: &str| {
            kubectl(&["get", "rc", "web", "-o", &format!("jsonpath={{.metadata.labels.{name}}}")]).ok()
        };
        assert!(kubectl(&["apply", "-f", "rc.yaml"]).ok().contains("created"));
        assert!(kubectl(&["apply", "-f", "rc.yaml"]).ok().contains("unchanged"));
        std::fs::write(
            cluster.file("rc2.yaml"),
            RC.replace("replicas: 2", "replicas: 5").replace("nginx:local", "nginx:2"),
        )
        .unwrap();
        assert!(kubectl(&["apply", "-f", "rc2.yaml"]).ok().contains("configured"));
        assert_eq!(replicas(), "5");
        let containers =
            kubectl(&["get", "rc", "web", "-o", "jsonpath={.spec.template.spec.containers[*].image}"]);
        assert_eq!(containers.ok(), "nginx:2");
        kubectl(&["patch", "rc", "web", "-p", r#"{"spec":{"replicas":3}}"#]).ok();
        assert_eq!(replicas(), "3");
        kubectl(&["patch", "rc", "web", "--type=merge", "-p", r#"{"metadata":{"labels":{"p":"m"}}}"#]).ok();
        assert_eq!(label("p"), "m");
        kubectl(&[
            "patch",
            "rc",
            "web",
            "--type=json",
            "-p",
            r#"[{"op":"remove","path":"/metadata/labels/p"}]"#,
        ])
        .ok();
        assert_eq!(label("p"), "");
        let bad = [r#"[{"op":"remove","path":"/metadata/labels/p"}]"#];
        assert!(
            kubectl(&["patch", "rc", "web", "--type=json", "-p", bad[0]])
                .fails()
                .contains("The request is invalid")
        );
        kubectl(&["label", "rc", "web", "tier=x"]).ok();
        kubectl(&["label", "rc", "web", "tier=y", "--overwrite"]).ok();
        assert_eq!(label("tier"), "y");
        kubectl(&["annotate", "rc", "web", "note=hello"]).ok();
        assert!(kubectl(&["scale", "rc", "web", "--replicas=4"]).ok().contains("scaled"));
        assert_eq!(replicas(), "4");
        let mismatch = kubectl(&["scale", "rc", "web", "--current-replicas=9", "--replicas=1"]).fails();
        assert!(mismatch.contains("xpected replicas to be 9, was 4"), "{mismatch}");
        assert!(kubectl(&["replace", "-f", "rc.yaml"]).ok().contains("replaced"));
        assert_eq!(replicas(), "2");
        assert!(kubectl(&["delete", "rc", "web", "--cascade=background"]).ok().contains("deleted"));
    });
}

#[test]
fn kubectl_edits_with_an_editor() {
    for kubectl in kubectls() {
        let cluster = Cluster::start();
        std::fs::write(cluster.file("rc.yaml"), RC).unwrap();
        cluster.kubectl(&kubectl, &["create", "-f", "rc.yaml"]).ok();
        let editor = [("KUBE_EDITOR", "sed -i s/replicas:\\ 2/replicas:\\ 7/")];
        assert!(cluster.kubectl_with(&kubectl, &["edit", "rc/web"], &editor).ok().contains("edited"));
        let replicas =
            cluster.kubectl(&kubectl, &["get", "rc", "web", "-o", "jsonpath={.spec.replicas}"]).ok();
        assert_eq!(replicas, "7");
    }
}

#[test]
fn kubectl_refuses_what_the_server_refuses() {
    each(|cluster, kubectl| {
        std::fs::write(cluster.file("typo.yaml"), RC.replace("replicas:", "replicaz:")).unwrap();
        let typo = kubectl(&["create", "-f", "typo.yaml"]).fails();
        assert!(typo.contains("strict decoding error: unknown field \"spec.replicaz\""), "{typo}");
        std::fs::write(
            cluster.file("bad.yaml"),
            RC.replace("{app: web}\n  template", "{app: other}\n  template"),
        )
        .unwrap();
        let bad = kubectl(&["create", "-f", "bad.yaml"]).fails();
        assert!(bad.contains("is invalid: spec.template.metadata.labels"), "{bad}");
        let nowhere = kubectl(&["create", "-n", "nowhere", "-f", "rc.yaml"]).fails();
        assert!(nowhere.contains("namespaces \"nowhere\" not found"), "{nowhere}");
        assert!(
            kubectl(&["create", "-f", "rc.yaml", "--dry-run=server"])
                .ok()
                .contains("created (server dry run)")
        );
        kubectl(&["get", "rc", "web"]).fails();
        let immortal = kubectl(&["delete", "ns", "default"]).fails();
        assert!(
            immortal.contains("namespaces \"default\" is forbidden: this namespace may not be deleted"),
            "{immortal}"
        );
    });
}

#[test]
fn kubectl_lists_resources_and_explains_them() {
    each(|_, kubectl| {
        let resources = kubectl(&["api-resources"]).ok();
        let row = ["replicationcontrollers", "rc", "v1", "true", "ReplicationController"];
        assert!(resources.lines().any(|l| l.split_whitespace().eq(row)), "{resources}");
        assert!(resources.lines().count() > 9, "{resources}");
        let versions = kubectl(&["api-versions"]).ok();
        assert_eq!(
            versions.lines().collect::<Vec<_>>(),
            [
                "authentication.k8s.io/v1",
                "authorization.k8s.io/v1",
                "coordination.k8s.io/v1",
                "discovery.k8s.io/v1",
                "metrics.k8s.io/v1beta1",
                "v1"
            ]
        );
        assert!(kubectl(&["explain", "pods"]).ok().contains("Pod is a collection of containers"));
        assert!(kubectl(&["explain", "pod.spec.containers.image"]).ok().contains("Container image name"));
        assert!(kubectl(&["explain", "rc.spec.replicas"]).ok().contains("number of desired replicas"));
        assert!(kubectl(&["explain", "pod", "--recursive"]).ok().contains("terminationGracePeriodSeconds"));
        assert!(kubectl(&["explain", "pod.frob"]).fails().contains("does not exist"));
        let ready = kubectl(&["get", "--raw", "/readyz?verbose"]).ok();
        assert!(ready.ends_with("readyz check passed\n"), "{ready}");
        assert!(kubectl(&["get", "--raw", "/healthz"]).ok().contains("ok"));
        assert!(kubectl(&["cluster-info"]).ok().contains("is running at"));
        assert!(kubectl(&["get", "nodes"]).ok().contains("n1"));
        let described = kubectl(&["describe", "node", "n1"]).ok();
        assert!(described.contains("HolderIdentity:  n1") && described.contains("RenewTime:"), "{described}");
        let leases = kubectl(&["get", "leases", "-A"]).ok();
        assert!(leases.contains("kube-node-lease") && leases.contains("HOLDER"), "{leases}");
        assert!(kubectl(&["get", "lease", "n1"]).fails().contains("not found"), "it is in another namespace");
        assert!(kubectl(&["get", "events"]).fails_or_empty().contains("No resources found"));
    });
}

#[test]
fn kubectl_waits_watches_and_reads_logs() {
    each(|cluster, kubectl| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web1, labels: {app: solo}}\n\
                   spec: {nodeName: n1, containers: [{name: c, image: x}, {name: d, image: x}]}\n";
        std::fs::write(cluster.file("pod.yaml"), pod).unwrap();
        kubectl(&["create", "-f", "pod.yaml"]).ok();
        assert_eq!(kubectl(&["logs", "web1", "-c", "d", "--tail=2"]).ok(), "log of d in web1 tail Some(2)\n");
        assert!(kubectl(&["describe", "pod", "web1"]).ok().contains("solo"));
        let watched = kubectl(&["get", "pods", "-w", "--request-timeout=1s"]).texts().0;
        assert!(watched.contains("web1"), "{watched}");
        let timeout = kubectl(&["wait", "pod/web1", "--for=condition=Ready", "--timeout=1s"]).fails();
        assert!(timeout.contains("timed out waiting for the condition"), "{timeout}");
        assert!(
            kubectl(&["wait", "pod/web1", "--for=jsonpath={.metadata.name}=web1"])
                .ok()
                .contains("condition met")
        );
        assert!(kubectl(&["delete", "pod", "web1", "--grace-period=0", "--force"]).ok().contains("deleted"));
        kubectl(&["wait", "pod/web1", "--for=delete", "--timeout=5s"]).ok();
        let nope = kubectl(&["delete", "pod", "nope"]).fails();
        assert!(nope.contains("pods \"nope\" not found"), "{nope}");
        kubectl(&["delete", "pod", "nope", "--ignore-not-found"]).ok();
    });
}

#[test]
fn kubectl_exposes_services_with_addresses() {
    each(|_, kubectl| {
        kubectl(&["create", "-f", "rc.yaml"]).ok();
        assert!(kubectl(&["expose", "rc", "web", "--port=80"]).ok().contains("service/web exposed"));
        kubectl(&["expose", "rc", "web", "--name=np", "--port=80", "--type=NodePort"]).ok();
        let ip = kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]).ok();
        assert!(ip.starts_with("10.96."), "{ip}");
        kubectl(&["label", "svc", "web", "a=b"]).ok();
        assert_eq!(kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]).ok(), ip);
        let ports = kubectl(&["get", "svc", "np", "-o", "jsonpath={.spec.ports[0].nodePort}"]).ok();
        assert!(ports.parse::<u16>().is_ok_and(|p| p >= 30_000), "{ports}");
        assert!(kubectl(&["delete", "rc,svc", "-l", "app=web"]).ok().contains("service \"web\" deleted"));
    });
}

#[test]
fn kubectl_creates_without_files() {
    each(|_, kubectl| {
        assert!(kubectl(&["create", "namespace", "team"]).ok().contains("namespace/team created"));
        kubectl(&["create", "configmap", "c", "--from-literal=a=b", "-n", "team"]).ok();
        assert_eq!(kubectl(&["get", "cm", "c", "-n", "team", "-o", "jsonpath={.data.a}"]).ok(), "b");
        kubectl(&["create", "secret", "generic", "s", "--from-literal=a=b"]).ok();
        assert_eq!(kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.a}"]).ok(), "Yg==");
        kubectl(&["create", "serviceaccount", "robot"]).ok();
        kubectl(&["create", "service", "clusterip", "svc", "--tcp=80:8080"]).ok();
        assert_eq!(
            kubectl(&["get", "svc", "svc", "-o", "jsonpath={.spec.ports[0].targetPort}"]).ok(),
            "8080"
        );
        kubectl(&["run", "one", "--image=x"]).ok();
        assert!(kubectl(&["get", "pods"]).ok().contains("Pending"));
        kubectl(&["delete", "namespace", "team", "--wait=false"]).ok();
        let phase = kubectl(&["get", "ns", "team", "-o", "jsonpath={.status.phase}"]).ok();
        assert_eq!(phase, "Terminating");
        let late = kubectl(&["create", "configmap", "late", "-n", "team"]).fails();
        assert!(late.contains("namespace team because it is being terminated"), "{late}");
    });
}

#[test]
fn kubectl_asks_who_it_is_and_what_it_may() {
    for kubectl in kubectls() {
        let cluster = Cluster::start();
        let run = |arguments: &[&str]| cluster.kubectl(&kubectl, arguments);
        assert_eq!(run(&["auth", "can-i", "create", "pods"]).ok(), "yes\n");
        assert_eq!(run(&["auth", "can-i", "get", "/metrics"]).ok(), "yes\n");
        assert!(run(&["auth", "can-i", "--list"]).ok().contains("*.*"));
        // kubectl 1.27 knows only versions of this review that Kubernetes no longer serves.
        let who = run(&["auth", "whoami"]).fails_or_empty();
        let asks_v1 = !kubectl.to_string_lossy().ends_with(".1.27");
        assert!(!asks_v1 || (who.contains("admin") && who.contains("system:masters")), "{who}");
    }
}

#[test]
fn kubectl_describes_services_with_their_endpoints() {
    each(|cluster, kubectl| {
        kubectl(&["create", "-f", "rc.yaml"]).ok();
        kubectl(&["expose", "rc", "web", "--port=80"]).ok();
        let endpoints = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\n\
                         subsets: [{addresses: [{ip: 10.9.8.7}], ports: [{port: 80}]}]\n";
        std::fs::write(cluster.file("ep.yaml"), endpoints).unwrap();
        kubectl(&["create", "-f", "ep.yaml"]).ok();
        let described = kubectl(&["describe", "svc", "web"]).ok();
        let line = described.lines().find(|l| l.starts_with("Endpoints:")).unwrap_or("no endpoints");
        assert!(line.ends_with(" 10.9.8.7:80"), "{described}");
        assert!(kubectl(&["get", "endpointslices"]).ok().contains("10.9.8.7"));
        assert!(kubectl(&["get", "endpointslices", "web", "-o", "yaml"]).ok().contains("addressType: IPv4"));
    });
}

#[test]
fn kubectl_reads_lists_of_documents_and_pages_of_objects() {
    each(|cluster, kubectl| {
        let documents = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\
                         apiVersion: v1\nkind: Secret\nmetadata: {name: b}\nstringData: {k: v}\n";
        std::fs::write(cluster.file("many.yaml"), documents).unwrap();
        let list = r#"{"apiVersion":"v1","kind":"List","items":[
            {"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"c"}},
            {"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"d"}}]}"#;
        std::fs::write(cluster.file("list.json"), list).unwrap();
        let created = kubectl(&["create", "-f", "many.yaml", "-f", "list.json"]).ok();
        assert_eq!(
            created,
            "configmap/a created\nsecret/b created\nconfigmap/c created\nserviceaccount/d created\n"
        );
        let names = kubectl(&["get", "cm", "--chunk-size=1", "-o", "name"]).ok();
        assert_eq!(names, "configmap/a\nconfigmap/c\n");
        let one = kubectl(&["get", "cm", "--field-selector", "metadata.name=c", "-o", "name"]).ok();
        assert_eq!(one, "configmap/c\n");
        let columns = kubectl(&["get", "cm", "-o", "custom-columns=N:.metadata.name"]).ok();
        assert_eq!(columns, "N\na\nc\n");
        assert!(kubectl(&["get", "cm,secret,sa"]).ok().contains("serviceaccount/d"));
        let watched =
            kubectl(&["get", "cm", "-w", "--output-watch-events", "--request-timeout=1s"]).texts().0;
        let seen = |l: &str| l.split_whitespace().take(2).eq(["ADDED", "a"]);
        assert!(watched.lines().any(seen), "{watched}");
        assert!(kubectl(&["apply", "-f", "many.yaml"]).texts().0.contains("configmap/a configured"));
        let different = documents.replace("{name: a}", "{name: a, labels: {x: z}}");
        std::fs::write(cluster.file("many.yaml"), different).unwrap();
        let diff = kubectl(&["diff", "-f", "many.yaml"]).fails_or_empty();
        assert!(diff.contains("+    x: z"), "{diff}");
        let dry =
            kubectl(&["create", "cm", "dry", "--from-literal=a=b", "--dry-run=server", "-o", "yaml"]).ok();
        assert!(dry.contains("namespace: default"), "{dry}");
        assert!(kubectl(&["delete", "cm", "--all"]).ok().contains("configmap \"c\" deleted"));
        assert!(kubectl(&["delete", "-f", "many.yaml", "--ignore-not-found"]).ok().contains("secret \"b\""));
    });
}

#[test]
fn kubectl_drains_a_node_by_evictions() {
    each(|cluster, kubectl| {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: solo}\n\
                   spec: {nodeName: n1, containers: [{name: c, image: x}]}\n";
        std::fs::write(cluster.file("pod.yaml"), pod).unwrap();
        kubectl(&["create", "-f", "pod.yaml"]).ok();
        assert!(kubectl(&["cordon", "n1"]).ok().contains("node/n1 cordoned"));
        assert!(kubectl(&["get", "nodes"]).ok().contains("SchedulingDisabled"));
        let dry = kubectl(&["drain", "n1", "--force", "--dry-run=server"]).ok();
        assert!(dry.contains("solo"), "{dry}");
        kubectl(&["get", "pod", "solo"]).ok();
        let drained = kubectl(&["drain", "n1", "--force", "--grace-period=0", "--timeout=20s"]).ok();
        assert!(drained.contains("pod/solo evicted") && drained.contains("node/n1 drained"), "{drained}");
        kubectl(&["get", "pod", "solo"]).fails();
        assert!(kubectl(&["uncordon", "n1"]).ok().contains("node/n1 uncordoned"));
        assert!(kubectl(&["taint", "node", "n1", "k=v:NoSchedule"]).ok().contains("tainted"));
        assert!(kubectl(&["taint", "node", "n1", "k-"]).ok().contains("untainted"));
    });
}

#[test]
fn kubectl_debugs_with_copies_and_on_nodes() {
    each(|_, kubectl| {
        let run = ["run", "web", "--image=x:1", "--restart=Never", "--env=A=b", "--port=80", "--", "serve"];
        kubectl(&run).ok();
        kubectl(&["debug", "web", "--copy-to=copy", "--image=y:1", "--container=d", "--", "look"]).ok();
        let read = |pod: &str, path: &str| {
            kubectl(&["get", "pod", pod, "-o", &format!("jsonpath={{.spec.{path}}}")]).ok()
        };
        assert_eq!(read("copy", "containers[*].name"), "web d");
        assert_eq!(read("copy", "containers[*].image"), "x:1 y:1");
        assert_eq!(read("copy", "containers[0].env[0]"), r#"{"name":"A","value":"b"}"#);
        assert_eq!(read("copy", "containers[0].ports[0]"), r#"{"containerPort":80,"protocol":"TCP"}"#);
        assert_eq!(read("copy", "containers[*].args"), r#"["serve"]"#);
        assert_eq!(read("copy", "restartPolicy"), "Never");
        kubectl(&["debug", "node/n1", "--image=y:1"]).ok();
        let names = kubectl(&["get", "pods", "-o", "name"]).ok();
        let debugger = names.lines().find_map(|line| line.strip_prefix("pod/node-debugger-n1"));
        let debugger = format!("node-debugger-n1{}", debugger.expect("a debugger"));
        assert_eq!(read(&debugger, "nodeName"), "n1");
        assert_eq!(read(&debugger, "hostPID"), "true");
        assert_eq!(read(&debugger, "volumes[0].hostPath.path"), "/");
    });
}

#[test]
fn kubectl_asks_for_tokens_scales_and_other_peoples_eyes() {
    each(|_, kubectl| {
        kubectl(&["create", "serviceaccount", "robot"]).ok();
        assert_eq!(kubectl(&["create", "token", "robot"]).ok().matches('.').count(), 2);
        kubectl(&["create", "-f", "rc.yaml"]).ok();
        let scale = kubectl(&["get", "rc", "web", "--subresource=scale"]).ok();
        assert!(scale.starts_with("NAME   DESIRED   AVAILABLE   AGE\nweb    2         0 "), "{scale}");
        let other = kubectl(&["get", "pods", "--as=bob"]).fails();
        assert!(other.contains("users \"bob\" is forbidden: User \"admin\" cannot impersonate"), "{other}");
        kubectl(&["auth", "can-i", "get", "pods", "--as=bob"]).fails();
        let slices = kubectl(&["explain", "endpointslices.endpoints"]);
        assert!(slices.ok().contains("addresses"));
    });
}

#[test]
fn kubectl_is_told_that_server_side_apply_is_not_there() {
    each(|_, kubectl| {
        let refused = kubectl(&["apply", "--server-side", "-f", "rc.yaml"]).fails();
        assert!(refused.contains("use `kubectl apply` without --server-side"), "{refused}");
    });
}
