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

/// Serves these answers, one a connection, and nothing else.
fn serve(answers: Vec<(&'static str, String)>) -> (String, std::thread::JoinHandle<()>) {
    use std::io::Write as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let served = std::thread::spawn(move || {
        for (head, body) in answers {
            let (mut tcp, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(tcp.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            write!(
                tcp,
                "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        }
    });
    (address, served)
}

#[test]
fn a_manifest_comes_from_the_web() {
    let cluster = Cluster::start();
    let (address, served) = serve(vec![
        ("302 Found\r\nLocation: /there", String::new()),
        ("200 OK", POD.to_owned()),
        ("404 Not Found", "no such page".to_owned()),
    ]);
    let url = format!("http://{address}/pod.yaml");
    assert_eq!(cluster.troupe(&["apply", "-f", &url]).ok(), "pod/web created\n");
    let missing = cluster.troupe(&["apply", "-f", &url]);
    let said = format!("unable to read URL {url:?}, server reported 404 Not Found, status code=404");
    assert!(missing.fails(1).contains(&said), "{missing:?}");
    served.join().unwrap();
    let nobody = cluster.troupe(&["apply", "-f", &url]);
    assert!(nobody.fails(1).contains(&format!("unable to read URL {url:?}, ")), "{nobody:?}");
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
    let directory = cluster.troupe(&["image", "load", "/"]);
    assert!(directory.fails(1).contains("/: it is a directory"), "{directory:?}");
    // More than is on its way before the node has looked at the name.
    let tar = cluster.write("root.tar", &"x".repeat(4 << 20));
    // And more than lies between the two, who looks for an answer when it has sent all.
    let much = cluster.write("much.tar", &"x".repeat(60 << 20));
    let names =
        [("BAD NAME", &tar), ("a:b:c/d", &tar), ("Bad//x", &tar), ("Bad//x", &much), ("Bad//y", &much)];
    for (name, tar) in names {
        let bad = cluster.troupe(&["image", "import", tar, name]);
        let said = bad.fails(1);
        assert!(said.contains("BadRequest") && said.contains(name) && !said.contains("stopped"), "{bad:?}");
    }
    let json = cluster.troupe(&["image", "ls", "-o", "json"]);
    let all: serde_json::Value = serde_json::from_str(json.ok()).unwrap();
    assert_eq!(all[0]["node"], "n1", "{all}");
    assert!(all[0]["names"][0].is_string(), "{all}");
    let unknown = cluster.troupe(&["image", "ls", "--node", "nowhere"]);
    assert!(unknown.fails(1).contains("nodes \"nowhere\" not found"), "{unknown:?}");
    let built_in = cluster.troupe(&["image", "rm", "troupe.local/hello"]);
    assert!(built_in.fails(1).contains("is built in"), "{built_in:?}");
    let absent = cluster.troupe(&["image", "rm", "absent:1"]);
    assert!(!absent.fails(1).is_empty(), "{absent:?}");
}

#[test]
fn a_controller_waits_for_its_pods_account_and_says_so() {
    let cluster = Cluster::start();
    let rc = "apiVersion: v1
kind: ReplicationController
metadata: {name: web}
spec:
  replicas: 1
  selector: {app: web}
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: robot, containers: [{name: c, image: 'x:1'}]}
";
    cluster.run(TROUPE, &["create", "-f", "-"], rc).ok();
    let said = "Error creating: pods \"web-\" is forbidden: error looking up service account default/robot: serviceaccount \
                \"robot\" not found";
    let deadline = Instant::now() + Duration::from_secs(60);
    while !cluster.troupe(&["events", "--for", "rc/web"]).ok().contains(said) {
        assert!(Instant::now() < deadline, "no event: {:?}", cluster.troupe(&["events"]));
    }
    let account = "{apiVersion: v1, kind: ServiceAccount, metadata: {name: robot}}";
    cluster.run(TROUPE, &["create", "-f", "-"], account).ok();
    cluster.troupe(&["wait", "--for=jsonpath={.status.readyReplicas}=1", "rc/web", "--timeout=60s"]).ok();
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
