//! The API as real kubectl sees it: every version next to the one in `KUBECTL`, or on the path.

use std::path::PathBuf;

use crate::harness::Cluster;

/// Every kubectl at hand: `$KUBECTL` (else the one on the path), and `kubectl.VERSION` beside it.
fn kubectls() -> Vec<PathBuf> {
    let found = std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("kubectl")).find(|p| p.is_file())
    });
    let Some(found) = found.and_then(|p| p.canonicalize().ok()) else {
        eprintln!("no kubectl at hand: skipped");
        return Vec::new();
    };
    let beside = found.parent().and_then(|d| d.read_dir().ok()).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = beside
        .map(|e| e.path())
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("kubectl.")))
        .collect();
    all.sort();
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
        assert!(
            again.contains("(AlreadyExists)")
                && again.contains("replicationcontrollers \"web\" already exists")
        );
        assert!(kubectl(&["get", "replicationcontrollers"]).ok().contains("web"));
        assert!(
            kubectl(&["get", "replicationcontrollers", "web", "-o", "json"]).ok().contains("nginx:local")
        );
        assert!(kubectl(&["delete", "-f", "rc.yaml"]).ok().contains("deleted"));
        let gone = kubectl(&["get", "replicationcontrollers", "web"]).fails();
        assert!(
            gone.contains("Error from server (NotFound): replicationcontrollers \"web\" not found"),
            "{gone}"
        );
    });
}
