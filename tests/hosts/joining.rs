//! How machines become nodes, and how they do not.

use std::fs;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, node_of, ready, restarts},
    harness::{check, controller, text, until},
    status::status,
};

#[test]
fn machines_join_a_master_and_pods_run_and_are_reached_on_both() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    assert_eq!(master.get(&["nodes"]).unwrap()["items"], json!([]), "a master is no node");
    one.join(&master);
    let token = master.token(&[]);
    two.node(&["--join", "10.77.0.1:6443", "--token", &token, "--name", "two", "--label", "zone=b"]);
    master.until_node("one", "True");
    master.until_node("two", "True");

    // Each has a subnet, an address and labels of its own.
    let nodes = master.get(&["nodes"]).unwrap();
    let of = |name: &str| -> Value {
        nodes["items"].as_array().unwrap().iter().find(|n| n["metadata"]["name"] == name).unwrap().clone()
    };
    let (first, second) = (of("one"), of("two"));
    assert_ne!(first["spec"]["podCIDR"], second["spec"]["podCIDR"]);
    assert_eq!(second["metadata"]["labels"]["zone"], "b");
    assert!(second["metadata"]["labels"]["kubernetes.io/arch"].is_string());
    let address = &first["status"]["addresses"][0];
    assert_eq!(address["address"], json!(one.address), "{address}");

    master.apply(&controller("web", 4, &[]));
    let pods = master.until_pods(4);
    for node in ["one", "two"] {
        let pod = pods.iter().find(|pod| node_of(pod) == node).expect("pods are spread over the nodes");
        let name = text(&pod["metadata"]["name"]);
        let log = until("the pod has a log", || {
            let log = master.kubectl(&["logs", name]).result()?;
            if log.is_empty() { Err("empty".to_owned()) } else { Ok(log) }
        });
        assert!(!log.is_empty());
        let words = ["exec", name, "--", "/hello", "hello", "--once", "--print", "from inside"];
        assert!(master.kubectl(&words).ok().contains("from inside"));
    }
    let subnet = |node: &Value| text(&node["spec"]["podCIDR"]).rsplit_once('.').unwrap().0.to_owned();
    for pod in &pods {
        let of = if node_of(pod) == "one" { subnet(&first) } else { subnet(&second) };
        assert!(text(&pod["status"]["podIP"]).starts_with(&of), "{}", pod["status"]["podIP"]);
    }
}

#[test]
fn who_may_not_join_is_told_why_and_what_to_do() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut other) = (bed.host("m"), bed.host("m2"));
    let (mut one, two) = (bed.host("one"), bed.host("two"));
    master.master(&[]);
    other.master(&[]);
    let address = master.address.clone();
    let refused = |host: &crate::bed::Host, words: &[&str], code: i32, says: &[&str]| {
        let mut all = vec!["node", "--runtime", "sim"];
        all.extend(words);
        let ran = host.run(&all);
        assert_eq!(ran.code(), Some(code), "{words:?}: {}", ran.err());
        for word in says {
            assert!(ran.err().contains(word), "{words:?} should say {word:?}: {}", ran.err());
        }
    };

    // Wrong usage.
    refused(&two, &[], 2, &["troupe token create"]);
    refused(&two, &["--join", &address], 2, &["--token"]);
    refused(&two, &["--token", &master.token(&[])], 2, &["--join"]);
    refused(&two, &["--join", &address, "--token", "abc"], 2, &["ID.SECRET.PIN"]);

    // A token of another cluster: nothing was sent to the master.
    let foreign = other.token(&[]);
    refused(
        &two,
        &["--join", &address, "--token", &foreign],
        1,
        &["does not belong to the cluster", &address],
    );
    assert!(!master.said().contains("may not join"), "it never asked");

    // One whose time is over, one that was revoked, one with another secret.
    let expired = master.token(&["--ttl", "1s"]);
    until("the token is over", || {
        let list = master.run(&["token", "ls"]).result()?;
        if list.contains("expired") { Ok(()) } else { Err(list) }
    });
    refused(&two, &["--join", &address, "--token", &expired], 1, &["expired", "troupe token create"]);
    for ttl in ["-5m", "0", "999999999999y", "400d"] {
        for words in [
            ["token", "create", "--ttl", ttl],
            ["token", "create", &format!("--ttl={ttl}"), "--description="],
        ] {
            let ran = master.run(&words);
            assert_eq!(ran.code(), Some(2), "{words:?}: {}", ran.err());
            assert!(ran.err().contains("between 1s and 1y"), "{words:?}: {}", ran.err());
        }
    }
    let revoked = master.token(&[]);
    let id = &revoked[..6];
    assert!(master.run(&["token", "ls"]).ok().contains(id));
    assert!(master.run(&["token", "ls", "-o", "name"]).ok().lines().any(|line| line == id));
    let shown: Value = serde_json::from_str(&master.run(&["token", "ls", "-o", "json"]).ok()).unwrap();
    let listed = shown.as_array().unwrap().iter().find(|token| token["id"] == id).unwrap();
    assert_eq!(listed["expired"], false, "{listed}");
    assert!(master.run(&["token", "ls", "-o", "wide"]).ok().contains(&format!("bootstrap-token-{id}")));
    assert!(master.run(&["token", "ls", "-o", "yaml"]).ok().contains(id));
    master.run(&["token", "rm", id]).ok();
    refused(&two, &["--join", &address, "--token", &revoked], 1, &["no such token"]);
    let token = master.token(&["--description", "for the test"]);
    assert!(master.run(&["token", "ls"]).ok().contains("for the test"));
    let wrong = format!("{}.{}{}", &token[..6], "a".repeat(16), &token[23..]);
    refused(&two, &["--join", &address, "--token", &wrong], 1, &["no such token"]);

    // A name that another machine has, alive or not; one that cannot be.
    one.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"]);
    let taken = ["--join", &address, "--token", &token, "--name", "one"];
    refused(&two, &taken, 1, &["already", "--name", "kubectl delete node one"]);
    one.kill();
    master.until_node("one", "Unknown");
    refused(&two, &taken, 1, &["already", "kubectl delete node one"]);
    refused(&two, &["--join", &address, "--token", &token, "--name", "Two_Two"], 1, &["Two_Two"]);

    // A directory that has joined, with another name or another cluster's token.
    refused(&one, &["--name", "uno"], 1, &["the node one", "--data-dir"]);
    refused(
        &one,
        &["--join", &other.address, "--token", &foreign],
        1,
        &["another cluster's", "troupe reset"],
    );
    // A master's directory is no node's, nor the other way round.
    master.kill();
    refused(&master, &["--join", &address, "--token", &token], 1, &["a master's data directory"]);
    let ran = one.run(&["master"]);
    assert_eq!(ran.code(), Some(1));
    assert!(ran.err().contains("data directory of a node"), "{}", ran.err());
    // Nothing of it is kept in the clear.
    let secret = token.split('.').nth(1).unwrap();
    let kept = grep(&master.data, secret.as_bytes());
    assert!(kept.is_empty(), "the secret is in {kept:?}");
}

/// Files below a directory that contain some bytes.
fn grep(dir: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(grep(&path, bytes));
        } else if fs::read(&path).is_ok_and(|text| text.windows(bytes.len()).any(|window| window == bytes)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn a_node_joins_again_with_its_directory_alone_and_finds_a_master_that_moved() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    let token = master.token(&[]);
    let address = master.address.clone();
    let first =
        ["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one", "--label", "a=b"];
    one.node(&first);
    master.until_node("one", "True");
    // What others write over its status it says again within seconds, once.
    const AGAIN: &str = "others wrote over the node's status";
    assert!(!master.said().contains(AGAIN), "nobody has written over it");
    let condition = |name: &str| json!({"type": name, "status": "False", "reason": "ByHand"});
    let ready = json!({"status": {"conditions": [condition("Ready"), condition("FrequentRestarts")]}});
    master.kubectl(&["patch", "node", "one", "--subresource=status", "-p", &ready.to_string()]).ok();
    until("the node says how it is again", || check(master.said().contains(AGAIN), || "not yet".into()));
    master.until_node("one", "True");
    let node = master.get(&["node", "one"]).unwrap();
    let mut conditions = node["status"]["conditions"].as_array().unwrap().iter();
    assert!(conditions.any(|c| c["type"] == "FrequentRestarts" && c["status"] == "False"), "{node}");
    assert_eq!(one.stop(), Some(0));
    master.until_node("one", "Unknown");
    one.node(&[]);
    master.until_node("one", "True");

    // The very same command, as a unit file has it, when the token is long gone: it is not in the way.
    one.kill();
    master.run(&["token", "rm", &token]).ok();
    one.node(&first);
    master.until_node("one", "True");

    // The node's address changes.
    one.kill();
    one.readdress("10.77.0.201");
    one.node(&[]);
    until("the node tells its new address", || {
        let node = master.get(&["node", "one"])?;
        let address = text(&node["status"]["addresses"][0]["address"]).to_owned();
        if address == "10.77.0.201" { Ok(()) } else { Err(address) }
    });

    // An address where no master is was given by mistake: it is not kept.
    one.kill();
    let _lines = one.launch(&["node", "--join", "10.77.0.99"]);
    until("the node finds no master there", || check(one.said().contains("10.77.0.99"), || one.said()));
    one.kill();
    one.node(&[]);
    master.until_node("one", "True");

    // So does the master's: the node is told once.
    one.kill();
    master.kill();
    master.readdress("10.77.0.200");
    master.master(&[]);
    one.node(&["--join", "10.77.0.200"]);
    master.until_node("one", "True");
    one.kill();
    one.node(&[]);
    let node = master.get(&["node", "one"]).unwrap();
    assert_eq!(node["metadata"]["labels"]["a"], "b");
    assert_eq!(master.said().matches(AGAIN).count(), 1);
}

#[test]
fn a_machine_whose_address_changes_keeps_its_pods_whether_its_process_ran_on_or_not() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    one.join(&master);
    master.until_node("one", "True");
    master.apply(&controller("web", 2, &[]));
    let before = master.until_pods(2);
    let containers = one.containers();
    let until_linked_from = |master: &Host, address: &str| {
        until(&format!("the link comes from {address}"), || {
            let link = status(master)["nodes"][0]["link"]["address"].clone();
            check(text(&link).starts_with(&format!("{address}:")), || link.to_string())
        });
    };
    let kept = |master: &Host, one: &Host| {
        master.until_node("one", "True");
        let after = master.until_pods(2);
        assert_eq!(restarts(&after), restarts(&before), "the same pods, and none restarted");
        assert_eq!(one.containers(), containers, "no container was touched");
        let words =
            ["exec", text(&after[0]["metadata"]["name"]), "--", "/hello", "hello", "--once", "--print", "in"];
        assert!(master.kubectl(&words).ok().contains("in"));
    };
    one.readdress("10.77.0.201");
    until_linked_from(&master, "10.77.0.201");
    until("the node tells its new address, with no hand on it", || {
        let node = master.get(&["node", "one"])?;
        check(node["status"]["addresses"][0]["address"] == "10.77.0.201", || {
            node["status"]["addresses"].to_string()
        })
    });
    kept(&master, &one);
    one.kill();
    one.readdress("10.77.0.202");
    one.node(&[]);
    until_linked_from(&master, "10.77.0.202");
    kept(&master, &one);
    let node = master.get(&["node", "one"]).unwrap();
    assert_eq!(node["status"]["addresses"][0]["address"], "10.77.0.202");
    assert!(!master.said().contains("several machines are linked as one node"), "it is one");
}

/// The command for the machine that is to join, as `token create` prints it.
fn command_to_join(master: &Host) -> (String, Vec<String>) {
    let ran = master.run(&["token", "create"]);
    assert_eq!(ran.code(), Some(0), "{}", ran.err());
    let line = ran.err().lines().rfind(|line| line.starts_with("troupe node ")).unwrap().to_owned();
    (ran.err().to_owned(), line.split(' ').skip(2).map(str::to_owned).collect())
}

#[test]
fn the_command_to_join_names_the_address_that_the_master_has_then() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    // Its address comes after its start, as with a slow DHCP server.
    master.unaddress();
    master.start(&["master"]);
    assert!(master.said().contains("no address but loopback"), "{}", master.said());
    let (said, command) = command_to_join(&master);
    assert!(said.contains("no address but loopback") && command[1] == "ADDRESS:6443", "{said}");
    for address in ["10.77.0.50", "10.77.0.51"] {
        master.readdress(address);
        let (said, command) = command_to_join(&master);
        assert_eq!(command[1], format!("{address}:6443"), "{said}");
        assert!(!said.contains("note:"), "{said}");
    }
    let command = command_to_join(&master).1;
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    one.node(&[&words[..], &["--runtime", "sim", "--name", "one"]].concat());
    master.until_node("one", "True");
    one.kill();
    let loopback = "--address 127.0.0.1: other machines are told";
    assert!(!one.said().contains(loopback), "{}", one.said());
    one.node(&["--address", "127.0.0.1"]);
    assert!(one.said().contains(loopback), "{}", one.said());
    // One that listens on an address which it no longer has, and one that is for this machine alone.
    for (listen, says) in
        [("10.77.0.51:6443", "no address of this machine"), ("127.0.0.1:6443", "this machine alone")]
    {
        master.kill();
        master.start(&["master", "--listen", listen]);
        master.readdress("10.77.0.52");
        let (said, _) = command_to_join(&master);
        assert!(said.contains(says) && said.contains("--listen 0.0.0.0:6443"), "{said}");
    }
    assert!(master.said().contains("this machine alone"), "it is said at the start, too");
}

#[test]
fn who_finds_its_name_taken_is_told_by_whom_and_what_to_do() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    let (token, address) = (master.token(&[]), master.address.clone());
    let join = ["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"];
    let refused = |host: &Host, code: i32, says: &[&str]| {
        let ran = host.run(&[&["node"], &join[..]].concat());
        assert_eq!(ran.code(), Some(code), "{}", ran.err());
        for word in says {
            assert!(ran.err().contains(word), "{word:?}: {}", ran.err());
        }
    };
    // Somebody thought that a node begins with its object.
    master.apply(
        &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one", "labels": {"a": "b"}}}),
    );
    refused(&one, 1, &["was made by hand", "kubectl delete node one", "--name"]);
    master.kubectl(&["delete", "node", "one"]).ok();
    one.node(&join);
    master.until_node("one", "True");
    refused(&two, 1, &["another machine, which is linked at this moment", "kubectl delete node one"]);
    // It was deleted, and its name given to another machine, or to none, meanwhile.
    one.kill();
    master.kubectl(&["delete", "node", "one"]).ok();
    two.node(&join);
    master.until_node("one", "True");
    refused(&one, 3, &["is another machine by now", "kubectl delete node one", "--data-dir"]);
    two.kill();
    master.kubectl(&["delete", "node", "one"]).ok();
    master.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "one"}}));
    refused(&one, 3, &["made by hand, without a key", "kubectl delete node one"]);
    // What they say helps.
    master.kubectl(&["delete", "node", "one"]).ok();
    one.node(&join);
    master.until_node("one", "True");
}
