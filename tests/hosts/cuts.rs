//! Networks and processes that fail for a while: nobody is taken for dead who is not, and nothing is lost.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    bed::{Bed, Host, node_of, ready, restarts},
    harness::{check, controller, is_deleting, is_ready, text, until},
};

/// Set, a tenth of all packets is lost for ten minutes; else for one.
const LONG: &str = "TROUPE_TEST_LONG";
/// How long, at least, the pods of a silent process are left alone while its machine answers others.
const SPARED: Duration = Duration::from_secs(12);
/// How long a network loses packets, unless asked for more.
const LOSSY: Duration = Duration::from_secs(60);

fn sim_nodes(bed: &mut Bed, master: &Host, names: &[&str]) -> Vec<Host> {
    let token = master.token(&[]);
    let mut nodes: Vec<Host> = names.iter().map(|name| bed.host(name)).collect();
    for node in &mut nodes {
        let name = node.name.clone();
        node.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", &name]);
    }
    names.iter().for_each(|name| master.until_node(name, "True"));
    nodes
}

/// Looks for a while that it holds: some forty times.
#[track_caller]
fn holds_for(time: Duration, what: &str, mut ask: impl FnMut() -> Result<(), String>) {
    let pause = (time / 40).max(Duration::from_millis(200));
    let until = Instant::now() + time;
    while Instant::now() < until {
        if let Err(problem) = ask() {
            panic!("{what}: {problem}");
        }
        std::thread::sleep(pause);
    }
}

/// Whether these are still exactly the pods, none on its way out.
fn same_pods(master: &Host, before: &[Value]) -> Result<(), String> {
    let uids = |pods: &[Value]| {
        let mut all: Vec<String> = pods.iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect();
        all.sort_unstable();
        all
    };
    let now = master.pods();
    check(uids(&now) == uids(before), || format!("{:?} before, now {:?}", uids(before), uids(&now)))?;
    check(!now.iter().any(is_deleting), || "a pod is on its way out".to_owned())
}

#[test]
fn a_master_that_is_cut_off_from_all_replaces_nothing_and_goes_on_when_it_is_back() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, one, two) = bed.trio();
    master.apply(&controller("web", 6, &[]));
    let before = master.until_pods(6);
    let containers = (one.containers(), two.containers());
    master.cut();
    ["one", "two"].iter().for_each(|name| master.until_node(name, "Unknown"));
    // Much longer than the pods of a single silent machine are left alone.
    holds_for(Duration::from_secs(5), "nothing is replaced", || same_pods(&master, &before));
    // What is wanted meanwhile is kept, and has no place yet.
    master.kubectl(&["scale", "rc", "web", "--replicas=8"]).ok();
    until("two pods have no place", || {
        let waiting = master.pods().iter().filter(|pod| node_of(pod).is_empty()).count();
        check(waiting == 2, || format!("{waiting}"))
    });
    master.heal();
    ["one", "two"].iter().for_each(|name| master.until_node(name, "True"));
    let after = master.until_pods(8);
    let (old, now) = (restarts(&before), restarts(&after));
    assert!(old.iter().all(|(uid, count)| now.get(uid) == Some(count)), "{old:?}, now {now:?}");
    let alive = |before: &[(i32, String)], host: &Host| {
        let now = host.containers();
        before.iter().all(|process| now.contains(process))
    };
    assert!(alive(&containers.0, &one) && alive(&containers.1, &two), "no container was touched");
}

#[test]
fn a_tenth_of_all_packets_lost_is_no_death() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let mut master = bed.host("m");
    master.master(&[]);
    let nodes = sim_nodes(&mut bed, &master, &["one", "two", "three"]);
    master.apply(&controller("web", 6, &[]));
    let before = master.until_pods(6);
    master.lose(10);
    nodes.iter().for_each(|node| node.lose(10));
    let long = std::env::var_os(LONG).is_some();
    let time = if long { 10 * LOSSY } else { LOSSY };
    holds_for(time, "all nodes stay ready", || {
        same_pods(&master, &before)?;
        let list = master.get(&["nodes"])?;
        for node in list["items"].as_array().into_iter().flatten() {
            let taints = &node["spec"]["taints"];
            check(taints.is_null(), || format!("{}: {taints}", node["metadata"]["name"]))?;
        }
        Ok(())
    });
    // And it works.
    master.kubectl(&["scale", "rc", "web", "--replicas=9"]).ok();
    master.until_pods(9);
    assert_eq!(master.ever_lost(), None);
    let ended = master.said().lines().filter(|line| line.contains("node's link has ended")).count();
    let counts: Vec<(u64, u64)> = nodes.iter().chain([&master]).map(Host::lost).collect();
    eprintln!("{counts:?} packets lost, of so many, in {time:?}; {ended} links ended");
    assert!(counts.iter().all(|(lost, all)| *lost > 0 && *all > time.as_secs()), "{counts:?}");
    let (lost, all) = counts.iter().fold((0, 0), |(lost, all), of| (lost + of.0, all + of.1));
    assert!((all / 20..all / 5).contains(&lost), "{lost} of {all} packets lost");
}

#[test]
fn a_machine_that_stood_still_ends_what_was_replaced_meanwhile() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, one, two) = bed.trio();
    master.apply(&controller("web", 4, &[]));
    let before = master.until_pods(4);
    let of = |pods: &[Value], node: &str| {
        pods.iter().filter(|p| node_of(p) == node && is_ready(p) && !is_deleting(p)).count()
    };
    let stayed = of(&before, "one");
    let (containers, on_one) = (two.containers(), one.containers());
    two.freeze();
    let begun = Instant::now();
    master.until_node("two", "Unknown");
    until("all run on the other machine", || {
        let now = master.pods();
        check(of(&now, "one") == 4, || format!("{now:?}"))
    });
    // Its machine lives, as the other one says; but not for ever is it waited for because of that.
    assert!(begun.elapsed() > SPARED, "{:?}", begun.elapsed());
    assert!(master.said().contains("its machine is reached"), "the other one was asked");
    assert_eq!(two.containers(), containers, "its containers run on");
    two.thaw();
    master.until_node("two", "True");
    let after = master.until_pods(4);
    until("the machine has ended what was replaced", || {
        let left = two.containers();
        check(left.iter().all(|process| !containers.contains(process)), || format!("{left:?}"))
    });
    let kept = before.iter().filter(|pod| node_of(pod) == "one").map(|pod| &pod["metadata"]["uid"]);
    let now: Vec<&Value> = after.iter().map(|pod| &pod["metadata"]["uid"]).collect();
    assert!(kept.clone().count() == stayed && kept.into_iter().all(|uid| now.contains(&uid)));
    assert!(on_one.iter().all(|process| one.containers().contains(process)), "the others did not notice");
}

#[test]
fn a_process_that_is_away_for_seconds_on_a_machine_that_lives_costs_no_pod() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (master, _one, mut two) = bed.trio();
    master.apply(&controller("web", 4, &[]));
    let before = master.until_pods(4);
    let containers = two.containers();
    two.kill();
    master.until_node("two", "Unknown");
    // A dead machine's pods would have been replaced by then.
    holds_for(Duration::from_secs(6), "nothing is replaced", || same_pods(&master, &before));
    let node = master.get(&["node", "two"]).unwrap();
    let taints = node["spec"]["taints"].to_string();
    assert!(taints.contains("NoSchedule") && !taints.contains("NoExecute"), "{taints}");
    two.node(&[]);
    master.until_node("two", "True");
    let after = master.until_pods(4);
    assert_eq!(restarts(&after), restarts(&before));
    assert_eq!(two.containers(), containers);
}

#[test]
fn a_master_that_stood_still_takes_nobody_for_dead() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let mut master = bed.host("m");
    master.master(&[]);
    let nodes = sim_nodes(&mut bed, &master, &["one", "two", "three"]);
    master.apply(&controller("web", 6, &[]));
    let before = master.until_pods(6);
    // Shorter and longer than the nodes take to hang up and dial again, and once more in between. What comes meanwhile waits
    // for it, or, as with a whole machine that stands still, is lost: then they are not back at once.
    for (ms, lost, wait_ms) in [(1_500, false, 0), (4_000, false, 700), (3_000, true, 0), (10_000, true, 0)] {
        master.freeze();
        if lost {
            master.cut();
        }
        std::thread::sleep(Duration::from_millis(ms));
        master.heal();
        master.thaw();
        std::thread::sleep(Duration::from_millis(wait_ms));
    }
    for node in &nodes {
        until("the node is linked again", || {
            let said = node.said();
            let linked = said.matches("linked to the master").count();
            let ended = said.matches("the link to the master has ended").count();
            check(linked == ended + 1 && ended > 0, || format!("{linked} times linked, {ended} times ended"))
        });
    }
    assert!(master.said().contains("this process stood still"));
    holds_for(Duration::from_secs(4), "nobody is taken for dead", || {
        same_pods(&master, &before)?;
        master.ever_lost().map_or(Ok(()), Err)
    });
    master.until_pods(6);
    // One that really goes is still noticed.
    nodes[0].cut();
    master.until_node("one", "Unknown");
}

#[test]
fn a_program_whose_node_is_cut_off_while_a_user_runs_it_has_not_succeeded() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    one.join(&master);
    master.apply(&controller("web", 1, &[]));
    let pods = master.until_pods(1);
    let pod = text(&pods[0]["metadata"]["name"]);
    let before = one.containers().len();
    let program = ["/hello", "hello", "--listen", "127.0.0.1:0", "--ignore-sigterm"];
    let ran = std::thread::scope(|scope| {
        let running = scope.spawn(|| master.kubectl(&[&["exec", pod, "--"][..], &program].concat()));
        until("the program runs", || {
            let now = one.containers();
            check(now.len() > before, || format!("{now:?}"))
        });
        one.cut();
        running.join().unwrap()
    });
    let said = ran.fails();
    assert!(said.contains("lost the connection to node one"), "{said}");
    one.heal();
}
