//! Machines whose clocks are hours apart: nobody is taken for dead, and nothing waits hours, or is over, because of it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, node_of, ready, restarts},
    harness::{bare_pod, check, controller, hello, is_deleting, is_ready, kill9, text, until},
    status::status,
    variants::clocks_ready,
};

const HOURS: i32 = 5;
/// How far a time may be from ours that was told of just now. A whole test is shorter.
const NEAR_S: i64 = 20 * 60;
/// Bare pods pinned to a node each print one line.
const LINE: &str = "what time is it";

fn seconds(time: &Value) -> i64 {
    let time: k8s_openapi::jiff::Timestamp = text(time).parse().unwrap();
    time.as_second()
}

/// By how many seconds a time is ahead of ours.
fn ahead_s(time: &Value) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    seconds(time) - i64::try_from(now).unwrap()
}

/// The time at the beginning of the last line of a machine's log.
fn logged_ahead_s(host: &Host) -> i64 {
    let said = host.said();
    let words: Vec<&str> = said.lines().rev().filter_map(|line| line.split_whitespace().next()).collect();
    let time = words.iter().find(|word| word.ends_with('Z') && word.contains('T')).expect("a time");
    ahead_s(&json!(time))
}

fn is_off_by(ahead_s: i64, hours: i32) -> bool {
    (ahead_s - i64::from(hours) * 3600).abs() < NEAR_S
}

/// What `kubectl get` prints has no age of hours, and none that cannot be.
fn ages_make_sense(master: &Host, what: &str) {
    let table = master.kubectl(&["get", what, "-A"]).ok();
    for line in table.lines().skip(1) {
        assert!(!line.contains("<invalid>"), "{table}");
        let number = |word: &str| word.trim_start_matches('(').starts_with(|c: char| c.is_ascii_digit());
        let hours = |word: &&str| number(word) && word.ends_with(['h', 'd']);
        assert_eq!(line.split_whitespace().find(hours), None, "{table}");
    }
}

/// The node's conditions and its events are of now.
fn node_has_our_times(master: &Host, node: &str) {
    let object = master.get(&["node", node]).unwrap();
    for condition in object["status"]["conditions"].as_array().unwrap() {
        for time in ["lastHeartbeatTime", "lastTransitionTime"] {
            let off_s = ahead_s(&condition[time]);
            assert!((-NEAR_S..=1).contains(&off_s), "{time} is ahead by {off_s} s: {condition}");
        }
    }
    let events = master.get(&["events", "-A"]).unwrap();
    let of_node = |event: &&Value| event["source"]["host"] == node;
    let events: Vec<&Value> = events["items"].as_array().unwrap().iter().filter(of_node).collect();
    assert!(!events.is_empty(), "{node} tells of its pods");
    for event in events {
        let off_s = ahead_s(&event["lastTimestamp"]);
        assert!((-NEAR_S..=1).contains(&off_s), "ahead by {off_s} s: {event}");
    }
}

fn pinned(node: &str) -> Value {
    let mut pod = bare_pod(&format!("on-{node}"), "Always", &[hello("c", &["--print", LINE])]);
    pod["spec"]["nodeName"] = node.into();
    pod
}

fn until_on(master: &Host, node: &str, count: usize) {
    until(&format!("{count} pods of the controller are ready on {node}"), || {
        let pods = master.pods();
        let of_controller = |pod: &&Value| pod["metadata"]["labels"]["app"] == "web";
        let there = |pod: &&Value| node_of(pod) == node && is_ready(pod) && !is_deleting(pod);
        let good = pods.iter().filter(of_controller).filter(there).count();
        check(good == count, || format!("{good} of {pods:?}"))
    });
}

#[test]
fn machines_whose_clocks_are_hours_apart_make_a_cluster_like_any_other() {
    if !ready() || !clocks_ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut fast, mut slow) = (bed.host("m"), bed.host("fast"), bed.host("slow"));
    fast.set_clock(HOURS);
    slow.set_clock(-HOURS);
    // By the clock that is ahead each certificate is over when it is made.
    master.master(&["--node-certificate-life", "5m"]);
    let begun = Instant::now();
    for node in [&mut fast, &mut slow] {
        let (token, name) = (master.token(&["--ttl", "10m"]), node.name.clone());
        node.node(&["--join", &master.address, "--token", &token, "--name", &name]);
    }
    ["fast", "slow"].iter().for_each(|name| master.until_node(name, "True"));
    for (host, hours) in [(&fast, HOURS), (&slow, -HOURS), (&master, 0)] {
        let ahead_s = logged_ahead_s(host);
        assert!(is_off_by(ahead_s, hours), "{} is ahead by {ahead_s} s", host.name);
    }

    // Pods run, and are available once they were ready for long enough.
    let mut web = controller("web", 4, &[]);
    web["spec"]["minReadySeconds"] = 2.into();
    master.apply(&web);
    ["fast", "slow"].iter().for_each(|node| master.apply(&pinned(node)));
    let pods = master.until_pods(6);
    for (node, hours) in [("fast", HOURS), ("slow", -HOURS)] {
        let pod = pods.iter().find(|pod| text(&pod["metadata"]["name"]) == format!("on-{node}")).unwrap();
        let started = &pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
        assert!(is_off_by(ahead_s(started), hours), "{started}: a pod's status is its machine's word");
    }
    until("all pods of the controller are available", || {
        let status = master.get(&["rc", "web"])?["status"].clone();
        check(status["availableReplicas"] == 4, || status.to_string())
    });

    // Logs of the last seconds are those of the machine's last seconds.
    let log = |node: &str, words: &[&str]| {
        let name = format!("on-{node}");
        master.kubectl(&[&["logs", &name], words].concat()).ok()
    };
    for node in ["fast", "slow"] {
        until("the pod has a log", || check(log(node, &[]).contains(LINE), || log(node, &[])));
    }
    std::thread::sleep(Duration::from_secs(2));
    for node in ["fast", "slow"] {
        assert!(log(node, &["--since=10m"]).contains(LINE), "{node}");
        assert_eq!(log(node, &["--since=1s"]), "", "{node}");
    }

    // A restart has an age that can be, or none.
    for host in [&fast, &slow] {
        let containers = host.containers();
        let pod = pods.iter().find(|pod| text(&pod["metadata"]["name"]) == format!("on-{}", host.name));
        let uid = text(&pod.unwrap()["metadata"]["uid"]).to_owned();
        kill9(containers.iter().find(|(_, group)| group.contains(&uid)).expect("it runs").0);
    }
    until("both run again", || {
        let pods = master.pods();
        let again =
            |pod: &&Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
        let count = pods.iter().filter(again).count();
        check(count == 2, || format!("{count}: {pods:?}"))
    });
    ["pods", "nodes", "events", "rc"].iter().for_each(|what| ages_make_sense(&master, what));
    ["fast", "slow"].iter().for_each(|node| node_has_our_times(&master, node));
    assert_eq!(master.ever_lost(), None);

    // A process that ends, with its directory alone: by its own clock, and by one that was put right.
    let before = restarts(&master.pods());
    let containers = slow.containers();
    for hours in [-HOURS, 0, HOURS] {
        slow.kill();
        slow.set_clock(hours);
        slow.node(&[]);
        master.until_node("slow", "True");
        assert_eq!(restarts(&master.until_pods(6)), before, "{hours} h");
        assert_eq!(slow.containers(), containers, "{hours} h: no container was touched");
        node_has_our_times(&master, "slow");
    }

    // One that is cut off is lost as soon as any, its pods come elsewhere, and when it is back it ends them.
    let gone = fast.containers();
    fast.cut();
    let cut = Instant::now();
    master.until_node("fast", "Unknown");
    until_on(&master, "slow", 4);
    eprintln!("replaced {:.1} s after the cut", cut.elapsed().as_secs_f64());
    // The next master has not heard it yet, and shows no age: the times that it has are of changes.
    master.kill();
    master.master(&[]);
    let status = status(&master);
    let lost = &status["nodes"][0];
    assert!(lost["link"].is_null() && lost["silentSeconds"].is_null(), "{lost}");
    fast.heal();
    ["fast", "slow"].iter().for_each(|name| master.until_node(name, "True"));
    until("the machine has ended what was replaced", || {
        let left = fast.containers();
        check(left.iter().all(|process| !gone.contains(process)), || format!("{left:?}"))
    });
    // Which it asks for once in so long, the twentieth part of a life, not again and again.
    let most = begun.elapsed().as_secs() / 15 + 1;
    let renewed = |host: &Host| {
        let times = host.said().matches("the node has a new certificate").count();
        check(times > 0, || "never".to_owned())?;
        Ok(times as u64)
    };
    let times = until("the certificate was renewed", || renewed(&fast));
    eprintln!("it renewed its certificate {times} times, of {most} at most");
    assert!(times <= most, "{times} times");
    ["pods", "nodes", "events", "rc"].iter().for_each(|what| ages_make_sense(&master, what));
}
