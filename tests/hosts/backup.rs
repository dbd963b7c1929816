//! A master that is lost, and made again out of a backup.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, ready},
    harness::{check, controller, text, until},
};

const ALL: &str =
    "namespaces,nodes,pods,replicationcontrollers,services,endpoints,configmaps,secrets,serviceaccounts";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}})
}

fn revision(object: &Value) -> u64 {
    text(&object["metadata"]["resourceVersion"]).parse().unwrap()
}

/// Every object's revision.
fn revisions(master: &Host) -> Vec<u64> {
    let list = master.get(&[ALL, "-A"]).unwrap();
    list["items"].as_array().unwrap().iter().map(revision).collect()
}

#[test]
fn a_master_restored_from_a_backup_has_its_objects_its_nodes_and_no_revision_twice() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    one.join(&master);
    master.until_node("one", "True");
    master.apply(&controller("web", 2, &[]));
    master.apply(&map("before"));
    master.until_pods(2);
    let kept = one.containers();
    let file = master.data.with_file_name("backup");
    let file = file.to_str().unwrap();
    let said = master.run(&["backup", file]).ok();
    assert!(said.contains("objects at revision") && said.contains("keys and secrets"), "{said}");
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // What comes after it is lost, and its revisions are never given again.
    master.apply(&map("after"));
    master.apply(&controller("late", 1, &[]));
    master.until_pods(3);
    assert!(one.containers().len() > kept.len());
    let newest = revisions(&master).into_iter().max().unwrap();
    let kubeconfig = fs::read(master.data.join("admin.kubeconfig")).unwrap();

    // The machine's disk is gone.
    master.kill();
    fs::remove_dir_all(&master.data).unwrap();
    let said = master.run(&["restore", file]).ok();
    assert!(
        said.contains("restored the cluster troupe") && said.contains("troupe master --data-dir"),
        "{said}"
    );
    let again = master.run(&["restore", file]);
    assert_eq!(again.code(), Some(1));
    assert!(again.err().contains("is not empty"), "{}", again.err());
    master.master(&[]);
    // Without a token, and without a hand on it.
    master.until_node("one", "True");
    until("what nobody knows any more is ended, and nothing else", || {
        let running = one.containers();
        check(running == kept, || format!("{running:?}, not {kept:?}"))
    });
    for pod in master.until_pods(2) {
        assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{pod}");
    }
    assert!(master.get(&["configmap", "before"]).is_ok());
    assert!(master.get(&["configmap", "after"]).is_err());
    assert!(master.get(&["rc", "late"]).is_err());
    let oldest = revisions(&master).into_iter().min().unwrap();
    assert!(oldest > newest, "{oldest} is not above {newest}");
    let watch = format!("/api/v1/configmaps?watch=true&timeoutSeconds=1&resourceVersion={newest}");
    let answer = master.kubectl(&["get", "--raw", &watch]);
    assert!(
        format!("{}{}", answer.out(), answer.err()).contains("too old resource version"),
        "{}",
        answer.out()
    );
    // A kubeconfig from before is as good as ever.
    let old = master.data.with_file_name("old.kubeconfig");
    fs::write(&old, kubeconfig).unwrap();
    master.run(&["get", "nodes", "--kubeconfig", old.to_str().unwrap()]).ok();
    // The cluster works on.
    master.kubectl(&["scale", "rc", "web", "--replicas=3"]).ok();
    master.until_pods(3);
}
