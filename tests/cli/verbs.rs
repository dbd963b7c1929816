//! What verbs do, whether or not kubectl is at hand to compare with.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{Cluster, TROUPE};

const POD: &str = "apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: a, image: 'x:1'}, {name: b, image: 'x:1'}]}
";

#[test]
fn a_manifest_comes_and_goes_through_standard_input() {
    let cluster = Cluster::start();
    let apply = |text: &str| cluster.run(TROUPE, &["apply", "-f", "-"], text);
    assert_eq!(apply(POD).ok(), "pod/web created\n");
    assert_eq!(apply(POD).ok(), "pod/web unchanged\n");
    let labelled = POD.replace("app: web}", "app: web, tier: t}");
    assert_eq!(apply(&labelled).ok(), "pod/web configured\n");
    let label = ["get", "pod", "web", "-o", "jsonpath={.metadata.labels}"];
    assert_eq!(cluster.troupe(&label).ok(), r#"{"app":"web","tier":"t"}"#);
    assert_eq!(apply(POD).ok(), "pod/web configured\n");
    assert_eq!(cluster.troupe(&label).ok(), r#"{"app":"web"}"#);
    let both = format!("{POD}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: b}}\n");
    assert_eq!(apply(&both).ok(), "pod/web unchanged\nconfigmap/c created\n");
    let deleted = cluster.run(TROUPE, &["delete", "-f", "-"], &both);
    assert_eq!(deleted.ok(), "pod \"web\" deleted\nconfigmap \"c\" deleted\n");
    assert_eq!(cluster.troupe(&["get", "pods"]).err, "No resources found in default namespace.\n");
    let nonsense = apply("apiVersion: v1\nkind: Frob\nmetadata: {name: x}\n");
    assert!(nonsense.fails(1).contains("no matches for kind \"Frob\""), "{nonsense:?}");
}

#[test]
fn logs_are_of_one_container_or_of_all() {
    let cluster = Cluster::start();
    cluster.run(TROUPE, &["create", "-f", "-"], POD).ok();
    cluster.troupe(&["wait", "--for=condition=Ready", "pod/web", "--timeout=60s"]).ok();
    let ran = cluster.troupe(&["logs", "web"]);
    ran.ok();
    assert_eq!(ran.err, "Defaulted container \"a\" out of: a, b\n");
    assert_eq!(cluster.troupe(&["logs", "web", "b"]).err, "");
    cluster.troupe(&["logs", "-l", "app=web", "--all-containers", "--prefix", "--timestamps"]).ok();
    let wrong = cluster.troupe(&["logs", "web", "-c", "z"]);
    assert!(wrong.fails(1).contains("container z is not valid for pod web"), "{wrong:?}");
}

#[test]
fn a_watch_shows_what_changes_while_it_runs() {
    let cluster = Cluster::start();
    let mut child = Command::new(TROUPE)
        .args(["get", "pods", "--watch", "--output-watch-events"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cluster.run(TROUPE, &["create", "-f", "-"], POD).ok();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let header = lines.next().unwrap_or_default();
    let first = lines.next().unwrap_or_default();
    let running = lines.find(|l| l.contains("Running"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(header.starts_with("EVENT"), "{header}");
    assert!(first.starts_with("ADDED") && first.contains("web"), "{first}");
    assert!(running.is_some_and(|l| l.starts_with("MODIFIED")));
}

#[test]
fn events_tell_of_one_object_or_of_all() {
    let cluster = Cluster::start();
    assert_eq!(cluster.troupe(&["events"]).err, "No events found in default namespace.\n");
    cluster.run(TROUPE, &["create", "-f", "-"], POD).ok();
    let deadline = Instant::now() + Duration::from_secs(60);
    let words = ["events", "--for", "pod/web", "--no-headers"];
    while !cluster.troupe(&words).ok().contains("Started") {
        assert!(Instant::now() < deadline, "no event: {:?}", cluster.troupe(&words));
    }
    let all = cluster.troupe(&["events", "-A"]);
    assert!(all.ok().starts_with("NAMESPACE   LAST SEEN   TYPE"), "{all:?}");
    assert_eq!(cluster.troupe(&["events", "--types=Warning"]).out, "");
    cluster.troupe(&["events", "--types=Frob"]).fails(2);
}

#[test]
fn images_are_loaded_listed_and_removed() {
    let cluster = Cluster::start();
    let listed = cluster.troupe(&["image", "ls"]);
    assert!(listed.ok().starts_with("IMAGE "), "{listed:?}");
    assert!(listed.out.contains("n1"), "{listed:?}");
    let missing = cluster.troupe(&["image", "load", "nowhere.tar"]);
    assert!(missing.fails(1).contains("nowhere.tar"), "{missing:?}");
    let unknown = cluster.troupe(&["image", "ls", "--node", "nowhere"]);
    assert!(unknown.fails(1).contains("nodes \"nowhere\" not found"), "{unknown:?}");
    let built_in = cluster.troupe(&["image", "rm", "troupe.local/hello"]);
    assert!(built_in.fails(1).contains("is built in"), "{built_in:?}");
    let absent = cluster.troupe(&["image", "rm", "absent:1"]);
    assert!(!absent.fails(1).is_empty(), "{absent:?}");
}

#[test]
fn output_that_nobody_reads_ends_the_command_quietly() {
    let cluster = Cluster::start();
    let mut child = Command::new(TROUPE)
        .args(["get", "nodes", "-o", "json"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn a_context_and_options_before_the_verb_are_heard() {
    let cluster = Cluster::start();
    let ran = cluster.troupe(&["-n", "kube-system", "get", "pods"]);
    assert_eq!(ran.err, "No resources found in kube-system namespace.\n");
    let wrong = cluster.troupe(&["--context=none", "get", "pods"]);
    assert!(wrong.fails(1).contains("context \"none\" does not exist"), "{wrong:?}");
}
