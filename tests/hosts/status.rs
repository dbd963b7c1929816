//! `troupe cluster status` of several machines.

use std::time::Instant;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, node_of, ready},
    harness::{check, controller, text, until},
};

/// What it says as JSON. Its exit code says whether there are problems.
#[track_caller]
pub fn status(master: &Host) -> Value {
    let ran = master.run(&["cluster", "status", "-o", "json"]);
    let status: Value =
        serde_json::from_str(&ran.out()).unwrap_or_else(|error| panic!("{error}: {}", ran.err()));
    let code = if status["problems"] == json!([]) { 0 } else { 1 };
    assert_eq!(ran.code(), Some(code), "{status}");
    status
}

#[test]
fn a_node_that_is_cut_off_is_shown_as_silent_and_since_when() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    for host in [&mut one, &mut two] {
        let (token, name) = (master.token(&[]), host.name.clone());
        host.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", &name]);
        master.until_node(&name, "True");
    }
    master.apply(&controller("web", 4, &[]));
    let pods = master.until_pods(4);
    let pod = pods.iter().find(|pod| node_of(pod) == "two").expect("pods are spread over the nodes");
    let shown = status(&master);
    let link = &shown["nodes"][1]["link"];
    assert!(link["address"].as_str().unwrap().starts_with(&format!("{}:", two.address)), "{link}");
    assert!(link["roundTripSeconds"].as_f64().unwrap() > 0.0, "{link}");
    two.cut();
    let cut = Instant::now();
    master.until_node("two", "Unknown");
    let asked = Instant::now();
    let shown = status(&master);
    let (took, gone) = (asked.elapsed(), cut.elapsed());
    assert!(took.as_secs() < 10, "{took:?}: a silent node holds nothing up");
    assert_eq!(shown["nodes"][1]["link"], Value::Null);
    let silent = shown["nodes"][1]["silentSeconds"].as_f64().unwrap();
    assert!(silent > 0.5 && silent < gone.as_secs_f64() + 1.0, "{silent} s of {gone:?}");
    assert!(shown["nodes"][0]["link"].is_object(), "{shown}");
    let ran = master.run(&["cluster", "status"]);
    let text = ran.out();
    assert_eq!(ran.code(), Some(1), "scripts need no more than that: {text}");
    assert!(
        text.starts_with("PROBLEM: node two is not ready\n") && ran.err().is_empty(),
        "{text} {}",
        ran.err()
    );
    assert!(text.contains("Nodes: 1 of 2 ready"), "{text}");
    assert!(text.lines().any(|line| line.starts_with("two") && line.contains("silent ")), "{text}");
    // What such a node has of images is not known, which is said.
    for (words, shown) in [(&["image", "ls"][..], ""), (&["image", "ls", "-o", "json"][..], "\"error\"")] {
        let ran = master.run(words);
        assert_eq!(ran.code(), Some(1), "{}", ran.err());
        assert!(ran.err().contains("asking for the images of \"two\""), "{}", ran.err());
        assert!(ran.out().contains(shown) && !ran.err().contains("\"one\""), "{} {}", ran.out(), ran.err());
    }
    // Who asks for a log of one of its pods is told so at once, not after tries.
    let asked = Instant::now();
    let ran = master.kubectl(&["logs", pod["metadata"]["name"].as_str().unwrap()]);
    assert!(asked.elapsed().as_secs() < 5, "{:?}", asked.elapsed());
    assert!(ran.err().contains("node two is not connected"), "{}", ran.err());
    // A master that has just begun has not heard it, and shows no age.
    master.kill();
    master.master(&[]);
    let node = status(&master)["nodes"][1].clone();
    assert!(node["link"].is_null() && node["silentSeconds"].is_null(), "{node}");
    let text = master.run(&["cluster", "status"]).out();
    assert!(text.lines().any(|line| line.starts_with("two") && line.contains("silent  ")), "{text}");
    // That somebody knows of it can be said.
    master.kubectl(&["cordon", "two"]).ok();
    until("no problem is left", || {
        let ran = master.run(&["cluster", "status"]);
        check(ran.code() == Some(0), || ran.out())
    });
    two.heal();
    until("the node is linked again", || {
        let node = status(&master)["nodes"][1].clone();
        check(node["link"].is_object(), || node.to_string())
    });
    // When it was heard last is shown where kubectl looks for it.
    let described = master.kubectl(&["describe", "node", "two"]).ok();
    assert!(
        described.contains("HolderIdentity:  two") && !described.contains("RenewTime:       <unset>"),
        "{described}"
    );
}

/// Whether a node's actors as shown have one of this name, running.
fn has(node: &Value, actor: &str) -> bool {
    let actors = node["actors"].as_array().into_iter().flatten();
    actors.into_iter().any(|shown| shown["name"] == actor && shown["state"] == "running")
}

#[test]
fn the_actors_of_every_machine_are_shown_and_one_that_hangs_is_named_and_holds_nobody_up() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    master.master(&[]);
    for host in [&mut one, &mut two] {
        let (token, name) = (master.token(&[]), host.name.clone());
        host.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", &name]);
        master.until_node(&name, "True");
    }
    let container = json!({"name": "c", "image": "example.com/any:1"});
    master.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeName": "two", "containers": [container]}}));
    let uid = text(&master.until_pods(1)[0]["metadata"]["uid"]).to_owned();
    let pod = format!("node/pods/{uid}");
    // On a busy machine one may be late to answer once.
    until("all actors are shown", || {
        let shown = status(&master);
        check(shown["problems"] == json!([]), || shown["problems"].to_string())?;
        for node in shown["nodes"].as_array().unwrap() {
            for actor in ["node", "node/kubelet", "node/pods", "node/uplink"] {
                check(has(node, actor), || format!("{actor} of {node}"))?;
            }
        }
        check(has(&shown["nodes"][1], &pod) && !has(&shown["nodes"][0], &pod), || shown.to_string())
    });
    until("all actors are shown as text", || {
        let text = master.run(&["cluster", "status"]).ok();
        for row in ["store ", "node one: node/kubelet ", &format!("node two: {pod} ")] {
            check(text.lines().any(|line| line.starts_with(row)), || format!("{row} in {text}"))?;
        }
        assert!(text.contains("started again 0 times"), "{text}");
        Ok(())
    });
    // A process that stands still has a link for two seconds yet.
    let problem = "node two did not tell its actors within 1 s";
    until("the node that hangs is named", || {
        two.freeze();
        let asked = Instant::now();
        let shown = status(&master);
        let took = asked.elapsed();
        two.thaw();
        master.until_node("two", "True");
        assert!(took.as_secs() < 10, "{took:?}");
        check(has(&shown["nodes"][0], "node/kubelet"), || shown.to_string())?;
        let named = shown["problems"].as_array().unwrap().iter().any(|told| told == problem);
        check(named && shown["nodes"][1]["actorsUnknown"] == "it did not answer", || shown.to_string())
    });
    until("it tells them again", || {
        let node = status(&master)["nodes"][1].clone();
        check(has(&node, "node/kubelet"), || node.to_string())
    });
}
