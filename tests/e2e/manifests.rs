//! Static pods: a directory of manifests that a node runs in any case, and their mirrors in the API.

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, text, until};

fn manifest(name: &str, said: &str) -> String {
    let mut pod = bare_pod(name, "Always", &[hello("c", &["--print", said])]);
    pod["spec"]["terminationGracePeriodSeconds"] = 1.into();
    pod.to_string()
}

#[test]
fn a_directory_of_manifests_runs_whatever_becomes_of_its_mirrors() {
    if !ready() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().unwrap();
    let (data, manifests) = (dir.path().join("data"), dir.path().join("manifests"));
    std::fs::create_dir(&manifests).unwrap();
    let write = |name: &str, text: &str| std::fs::write(manifests.join(name), text).unwrap();
    write("web.yaml", &manifest("web", "first"));
    write("broken.yaml", "kind: [");
    // A test's options live as long as it does.
    let path: &'static str = Box::leak(manifests.display().to_string().into_boxed_str());
    let options = Options { arguments: vec!["--manifests", path], ..Options::default() };
    let mut cluster = Cluster::prepared(options, dir, data);
    cluster.up();
    let ns = "default";
    let pod = cluster.until_pod(ns, "web-n1", "ready", is_ready);
    let hash = |pod: &Value, name: &str| {
        text(&pod["metadata"]["annotations"][format!("kubernetes.io/config.{name}")]).to_owned()
    };
    assert!(
        !hash(&pod, "hash").is_empty() && hash(&pod, "mirror") == hash(&pod, "hash"),
        "{}",
        pod["metadata"]
    );
    assert_eq!((hash(&pod, "source").as_str(), text(&pod["spec"]["nodeName"])), ("file", "n1"));
    assert_eq!(pod["metadata"]["ownerReferences"][0]["kind"], "Node");
    let log = || cluster.kubectl(&["logs", "-n", ns, "web-n1"]).ok();
    assert!(log().starts_with("first"), "{}", log());
    cluster.until_event(ns, "web-n1", "Started");
    let processes = cluster.processes();
    assert_eq!(processes.len(), 1);

    // To delete what shows it does not end it. kubectl sees it go before it comes again.
    cluster.kubectl(&["delete", "pod", "-n", ns, "web-n1", "--timeout=60s"]).ok();
    let again = cluster.until_pod(ns, "web-n1", "ready again", is_ready);
    assert_ne!(again["metadata"]["uid"], pod["metadata"]["uid"]);
    assert_eq!(cluster.processes(), processes);
    // Nor does a kill -9 of troupe.
    cluster.kill();
    cluster.up();
    until("the kubelet has listed its runtime", || {
        let all = std::fs::read_to_string(cluster.log()).unwrap_or_default();
        let last = all.rsplit("serving the API").next().unwrap_or_default().to_owned();
        check(last.contains("kubelet listed its runtime"), || last.clone())
    });
    cluster.apply(ns, &bare_pod("beside", "Always", &[hello("c", &[])]));
    let beside = cluster.until_pod(ns, "beside", "ready", is_ready);
    let others: Vec<_> = {
        let pids = cluster.pids(&beside);
        cluster.processes().into_iter().filter(|(pid, _)| !pids.contains(pid)).collect()
    };
    assert_eq!(others, processes);
    cluster.kubectl(&["delete", "pod", "-n", ns, "beside"]).ok();

    // Another content is another pod.
    let manifests = std::path::Path::new(path);
    std::fs::write(manifests.join("web.yaml"), manifest("web", "second")).unwrap();
    until("the new content runs", || {
        let log = cluster.kubectl(&["logs", "-n", ns, "web-n1"]).result()?;
        check(log.starts_with("second"), || log.clone())?;
        check(cluster.processes().len() == 1, || format!("{:?}", cluster.processes()))
    });
    std::fs::remove_file(manifests.join("web.yaml")).unwrap();
    until("nothing is left of it", || {
        check(cluster.pod(ns, "web-n1").is_err(), || "its mirror is there".into())?;
        check(cluster.processes().is_empty() && cluster.shims() == 0, || format!("{:?}", cluster.processes()))
    });
    let log = std::fs::read_to_string(cluster.log()).unwrap();
    assert_eq!(log.matches("broken.yaml").count(), 2, "once for each process");
    let all = cluster.get(&["pods", "-A"]);
    assert_eq!(all["items"], json!([]));
}
