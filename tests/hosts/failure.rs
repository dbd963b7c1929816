//! Machines that die, are cut off, or say goodbye: what becomes of their pods.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    bed::{Bed, Host, node_of, ready},
    harness::{check, controller, is_deleting, is_ready, text, until},
};

/// What the design promises is 5 s; this machine may be busy with other tests.
const REPLACED_WITHIN: Duration = Duration::from_secs(15);

fn spread(bed: &mut Bed, replicas: u32) -> (Host, Host, Host, Vec<Value>) {
    let (master, one, two) = bed.trio();
    master.apply(&controller("web", replicas, &[]));
    let pods = master.until_pods(replicas as usize);
    assert!(pods.iter().any(|pod| node_of(pod) == "one") && pods.iter().any(|pod| node_of(pod) == "two"));
    (master, one, two, pods)
}

/// Waits until so many pods of the controller are ready on a node and on their way nowhere.
fn until_on(master: &Host, node: &str, count: usize) {
    until(&format!("{count} pods are ready on {node}"), || {
        let list = master.get(&["pods"])?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let good = pods.iter().filter(|p| node_of(p) == node && is_ready(p) && !is_deleting(p)).count();
        check(good == count, || format!("{good}: {list}"))
    });
}

#[test]
fn pods_of_a_machine_that_dies_run_elsewhere_soon() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, mut one, mut two, _) = spread(&mut bed, 4);
    two.crash();
    let begun = Instant::now();
    until_on(&master, "one", 4);
    let took = begun.elapsed();
    eprintln!("replaced after {:.1} s", took.as_secs_f64());
    assert!(took < REPLACED_WITHIN, "{took:?}");
    let node = master.get(&["node", "two"]).unwrap();
    let taints = node["spec"]["taints"].to_string();
    assert!(taints.contains("node.kubernetes.io/unreachable") && taints.contains("NoExecute"), "{taints}");
    // The machine comes back, empty: the old pods are gone for good, and the taints with them.
    two.node(&[]);
    master.until_node("two", "True");
    master.until_pods(4);
    let node = master.get(&["node", "two"]).unwrap();
    assert!(node["spec"]["taints"].is_null(), "{node}");
    assert!(two.containers().is_empty());
    assert!(!one.containers().is_empty());
    one.crash();
}

#[test]
fn what_is_killed_on_a_machine_that_lives_begins_again_there_or_is_replaced_elsewhere() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, one, mut two, before) = spread(&mut bed, 4);
    let on_one = one.containers();
    // All its processes, and the containers. Somebody starts it again soon: its pods stay, and their containers begin anew.
    two.kill_all();
    assert!(two.containers().is_empty());
    master.until_node("two", "Unknown");
    two.node(&[]);
    master.until_node("two", "True");
    let after = master.until_pods(4);
    for pod in &before {
        let again = i64::from(node_of(pod) == "two");
        let now = after.iter().find(|now| now["metadata"]["uid"] == pod["metadata"]["uid"]);
        let now = now.unwrap_or_else(|| panic!("{} was replaced", pod["metadata"]["name"]));
        assert_eq!(now["status"]["containerStatuses"][0]["restartCount"], again, "{}", now["status"]);
    }
    // Nobody does: they are replaced, though the machine is reached all the while.
    two.kill_all();
    let begun = Instant::now();
    until_on(&master, "one", 4);
    let took = begun.elapsed();
    eprintln!("replaced after {:.1} s", took.as_secs_f64());
    assert!(took < 2 * REPLACED_WITHIN, "{took:?}");
    assert!(on_one.iter().all(|process| one.containers().contains(process)), "the others did not notice");
    assert!(two.containers().is_empty());
}

#[test]
fn a_machine_that_was_cut_off_ends_what_was_replaced_meanwhile() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, one, two, pods) = spread(&mut bed, 4);
    let old: Vec<&str> =
        pods.iter().filter(|p| node_of(p) == "two").map(|p| text(&p["metadata"]["uid"])).collect();
    two.cut();
    until_on(&master, "one", 4);
    assert!(!two.containers().is_empty(), "nobody could tell it to end them");
    two.heal();
    master.until_node("two", "True");
    // Exactly the four, no more; and on the machine nothing of the old ones.
    let now = master.until_pods(4);
    assert!(now.iter().all(|pod| !old.contains(&text(&pod["metadata"]["uid"]))));
    until("the machine has ended what was replaced", || {
        let left = two.containers();
        check(left.is_empty(), || format!("{left:?}"))
    });
    assert!(!one.containers().is_empty());
}

#[test]
fn a_node_that_says_goodbye_keeps_its_pods() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, _one, mut two, before) = spread(&mut bed, 4);
    let containers = two.containers();
    assert_eq!(two.stop(), Some(0));
    // Nobody reaches its machine either: it is not spared because of that.
    two.cut();
    master.until_node("two", "Unknown");
    // Twice as long as the pods of a dead machine would have been left alone.
    let until = Instant::now() + Duration::from_secs(6);
    let uids = |pods: &[Value]| {
        let mut all: Vec<String> = pods.iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect();
        all.sort_unstable();
        all
    };
    while Instant::now() < until {
        let list = master.get(&["pods"]).unwrap();
        let now = list["items"].as_array().unwrap().clone();
        assert_eq!(uids(&now), uids(&before), "nothing was replaced");
        assert!(!now.iter().any(is_deleting));
        std::thread::sleep(Duration::from_millis(200));
    }
    let node = master.get(&["node", "two"]).unwrap();
    let taints = node["spec"]["taints"].to_string();
    assert!(taints.contains("NoSchedule") && !taints.contains("NoExecute"), "{taints}");
    two.node(&[]);
    master.until_node("two", "True");
    let after = master.until_pods(4);
    assert_eq!(uids(&after), uids(&before));
    assert_eq!(two.containers(), containers);
}
