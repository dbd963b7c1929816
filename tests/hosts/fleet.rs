//! A master with machines as one buys them: many pods, everything restarted in turn, and the power failure.

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, NODE, ready, restarts},
    harness::{DEADLINE, bare_pod, check, controller, hello, text, until},
};

fn fleet(bed: &mut Bed, names: &[&str]) -> (Host, Vec<Host>) {
    let mut master = bed.host("m");
    master.master(&[]);
    let mut nodes: Vec<Host> = names.iter().map(|name| bed.host(name)).collect();
    nodes.iter_mut().for_each(|node| node.join(&master));
    nodes.iter().for_each(|node| master.until_node(&node.name, "True"));
    (master, nodes)
}

fn all_containers(nodes: &[Host]) -> Vec<Vec<(i32, String)>> {
    nodes.iter().map(Host::containers).collect()
}

#[test]
fn thirty_pods_on_three_machines_notice_no_restart_of_any_process() {
    const PODS: u32 = 30;
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut nodes) = fleet(&mut bed, &["one", "two", "three"]);
    master.apply(&controller("web", PODS, &[]));
    let before = master.until_pods(PODS as usize);
    let containers = all_containers(&nodes);
    assert!(containers.iter().all(|all| all.len() >= PODS as usize / 6), "spread: {containers:?}");

    // Each machine's process in turn, alternately by kill and by signal…
    for (turn, node) in nodes.iter_mut().enumerate() {
        if turn % 2 == 0 {
            node.kill();
        } else {
            assert_eq!(node.stop(), Some(0));
        }
        node.node(&[]);
        let name = node.name.clone();
        master.until_node(&name, "True");
    }
    // …and the master's.
    master.kill();
    master.master(&[]);
    nodes.iter().for_each(|node| master.until_node(&node.name, "True"));
    let after = master.until_pods(PODS as usize);
    assert_eq!(restarts(&after), restarts(&before), "the same pods, and none restarted");
    assert_eq!(all_containers(&nodes), containers);
}

#[test]
fn everything_that_is_wanted_runs_again_after_a_power_failure_with_no_hand_on_it() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut nodes) = fleet(&mut bed, &["one", "two"]);
    master.kubectl(&["create", "configmap", "settings", "--from-literal=greeting=hi"]).ok();
    let mut configured = hello("c", &[]);
    configured["envFrom"] = json!([{"configMapRef": {"name": "settings"}}]);
    master.apply(&bare_pod("alone", "Always", &[configured]));
    master.apply(&controller("web", 4, &[]));
    let before = master.until_pods(5);
    // The last thing that the master acknowledges.
    master.kubectl(&["scale", "rc", "web", "--replicas=6"]).ok();

    master.kill();
    nodes.iter_mut().for_each(Host::crash);
    master.crash();
    assert!(nodes.iter().all(|node| node.containers().is_empty()));

    // They come up in any order: here a machine before its master, the other after it.
    let early = nodes[0].launch(&NODE);
    master.master(&[]);
    nodes[1].node(&[]);
    let said = early.recv_timeout(DEADLINE);
    assert!(said.as_ref().is_ok_and(|line| line.starts_with("ready: ")), "{said:?}");
    let after = master.until_pods(7);
    let uids = |pods: &[Value]| -> Vec<String> {
        pods.iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect()
    };
    let now = uids(&after);
    assert!(uids(&before).iter().all(|uid| now.contains(uid)), "each pod came back on its machine");
    for pod in after.iter().filter(|pod| uids(&before).contains(&text(&pod["metadata"]["uid"]).to_owned())) {
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["restartCount"], 1, "{status}");
        assert!(!status["lastState"]["terminated"].is_null(), "it says that it was ended: {status}");
    }
    // Nothing else runs: as many containers as pods.
    until("there is one container a pod", || {
        let all: usize = all_containers(&nodes).iter().map(Vec::len).sum();
        check(all == 7, || format!("{all}: {:?}", all_containers(&nodes)))
    });
    let alone = master.kubectl(&["exec", "alone", "--", "/hello", "hello", "--once", "--print", "up"]).ok();
    assert!(alone.contains("up"));
}

#[test]
fn an_upgrade_of_every_process_touches_no_container_and_what_ran_before_is_still_reached() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, mut two) = (bed.host("m"), bed.host("one"), bed.host("two"));
    let old = [&mut master, &mut one, &mut two].map(|host| host.upgrade(7)).concat();
    master.master(&[]);
    one.join(&master);
    two.join(&master);
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    let until_version = |master: &Host, node: &str, version: &str| {
        until(&format!("{node} tells that it is {version}"), || {
            let told = master.get(&["node", node])?["status"]["nodeInfo"]["kubeletVersion"].clone();
            check(text(&told).ends_with(version), || told.to_string())
        });
    };
    master.apply(&controller("web", 4, &[]));
    let before = master.until_pods(4);
    let containers = (one.containers(), two.containers());
    assert!(old.ends_with("7") && !containers.0.is_empty() && !containers.1.is_empty());

    // The master first, then one machine after the other; versions are mixed meanwhile.
    let new = master.upgrade(8);
    assert_eq!(master.stop(), Some(0));
    master.master(&[]);
    let served: Value = serde_json::from_str(&master.kubectl(&["get", "--raw", "/version"]).ok()).unwrap();
    assert!(text(&served["gitVersion"]).ends_with(&new), "{served}");
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    for host in [&mut one, &mut two] {
        assert!(
            !text(&master.get(&["node", &host.name]).unwrap()["status"]["nodeInfo"]["kubeletVersion"])
                .ends_with(&new)
        );
        host.upgrade(8);
        assert_eq!(host.stop(), Some(0));
        host.node(&[]);
        until_version(&master, &host.name, &new);
        master.until_node(&host.name, "True");
    }
    let after = master.until_pods(4);
    assert_eq!(restarts(&after), restarts(&before), "the same pods, and none restarted");
    assert_eq!((one.containers(), two.containers()), containers);

    // Shims of the old version obey the new one.
    for pod in &after {
        let name = text(&pod["metadata"]["name"]);
        let words = ["exec", name, "--", "/hello", "hello", "--once", "--print", "inside"];
        assert!(master.kubectl(&words).ok().contains("inside"));
    }
    master.kubectl(&["scale", "rc", "web", "--replicas=6"]).ok();
    master.until_pods(6);
    master.kubectl(&["delete", "pod", text(&after[0]["metadata"]["name"])]).ok();
    master.until_pods(6);
    master.kubectl(&["delete", "rc", "web"]).ok();
    until("all has ended", || {
        let left = [one.containers(), two.containers()].concat();
        check(left.is_empty(), || format!("{left:?}"))
    });
}
