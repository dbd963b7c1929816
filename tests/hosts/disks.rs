//! Full disks: of a node, and of the master.

use crate::{
    bed::{Bed, NODE, node_of, ready, restarts},
    harness::{bare_pod, check, controller, hello, text, until},
};

/// Room for the image, which is this very program, and for some more.
fn room_mib() -> u32 {
    let bytes = std::fs::metadata(env!("CARGO_BIN_EXE_troupe")).unwrap().len();
    u32::try_from(bytes >> 20).unwrap() * 5 / 4 + 32
}

#[test]
fn a_node_with_a_full_disk_says_so_takes_no_pods_and_takes_them_when_there_is_room() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut node) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    node.small_disk(room_mib());
    let token = master.token(&[]);
    let join = ["--join", &master.address, "--token", &token, "--name", "one"];
    let low = ["--eviction-hard", "nodefs.available<10%", "--eviction-pressure-transition-period", "1s"];

    // With no room at all it cannot even keep its name.
    node.fill(0);
    let mut words = vec!["node"];
    words.extend(join);
    let ran = node.run(&words);
    assert_eq!(ran.code(), Some(1), "{}", ran.err());
    assert!(ran.err().contains("No space left on device"), "{}", ran.err());
    node.empty();

    // With too little for its image, it says that.
    node.fill(4 << 20);
    let ran = node.run(&words);
    assert_eq!(ran.code(), Some(1), "{}", ran.err());
    assert!(ran.err().contains("make troupe.local/hello"), "{}", ran.err());
    node.empty();

    // Once it was a node, it is one again on a full disk: it says that it is low, and is spared.
    words.extend(low);
    node.start(&words);
    assert_eq!(node.stop(), Some(0));
    node.fill(4 << 20);
    node.start(&words);
    master.until_node("one", "True");
    let pressure = |status: &str| {
        until(&format!("DiskPressure is {status}"), || {
            let object = master.get(&["node", "one"])?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let disk = conditions.iter().find(|c| c["type"] == "DiskPressure").cloned().unwrap_or_default();
            check(disk["status"] == status, || disk.to_string())
        });
    };
    pressure("True");
    // Whoever looks at the node reads so, too.
    until("the node's events tell it", || {
        let shown = master.kubectl(&["describe", "node", "one"]).result()?;
        let told = ["NodeHasDiskPressure", "EvictionThresholdMet", "KubeletHasDiskPressure"];
        check(told.iter().all(|reason| shown.contains(reason)), || shown)
    });
    master.apply(&controller("web", 2, &[]));
    until("the pods say why they have no node", || {
        let pods = master.pods();
        let says = |pod: &serde_json::Value| {
            text(&pod["status"]["conditions"][0]["message"]).contains("node.kubernetes.io/disk-pressure")
        };
        check(pods.len() == 2 && pods.iter().all(says), || format!("{pods:?}"))
    });
    assert!(node.containers().is_empty());

    node.empty();
    pressure("False");
    let pods = master.until_pods(2);
    assert!(pods.iter().all(|pod| node_of(pod) == "one"));
}

#[test]
fn a_node_whose_disk_fills_up_keeps_its_pods_and_says_why_others_do_not_start() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut node) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    node.small_disk(room_mib());
    node.join(&master);
    master.until_node("one", "True");
    master.apply(&controller("web", 2, &[]));
    let before = master.until_pods(2);
    let containers = node.containers();
    // Nobody is evicted here: thresholds are off, as for a machine that is full of other things.
    node.fill(0);
    master.apply(&bare_pod("late", "Always", &[hello("c", &[])]));
    until("the pod says why it does not start", || {
        let events = master.get(&["events"])?;
        let all = events["items"].as_array().cloned().unwrap_or_default();
        let says = |event: &&serde_json::Value| text(&event["message"]).contains("No space left on device");
        let pod = master.get(&["pod", "late"])?;
        check(all.iter().any(|event| says(&event)), || format!("{}", pod["status"]))
    });
    // Its process, too, may end and begin again.
    node.kill();
    let lines = node.launch(&NODE);
    match lines.recv_timeout(crate::harness::DEADLINE) {
        Ok(line) => assert!(line.starts_with("ready: "), "{line}"),
        Err(error) => panic!("it does not start on a full disk: {error}\n{}", node.said()),
    }
    master.until_node("one", "True");
    assert!(containers.iter().all(|process| node.containers().contains(process)), "no container was touched");
    node.empty();
    let after = master.until_pods(3);
    let (old, now) = (restarts(&before), restarts(&after));
    assert!(old.iter().all(|(uid, count)| now.get(uid) == Some(count)), "{old:?}, now {now:?}");
}

#[test]
fn a_master_with_a_full_disk_refuses_writes_goes_on_reading_and_loses_nothing() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut node) = (bed.host("m"), bed.host("one"));
    master.small_disk(96);
    master.master(&[]);
    let token = master.token(&[]);
    node.node(&["--runtime", "sim", "--join", &master.address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    master.apply(&controller("web", 3, &[]));
    let before = master.until_pods(3);
    // Writes until it can no more: what was acknowledged until then is kept.
    master.fill(0);
    let mut kept = Vec::new();
    let refused = until("a write is refused", || {
        let name = format!("c{}", kept.len());
        let ran = master.kubectl(&["create", "configmap", &name, "--from-literal", &format!("a={name}")]);
        if ran.code() == Some(0) {
            kept.push(name);
            return Err("it was written".to_owned());
        }
        Ok(ran.err())
    });
    assert!(refused.contains("No space left on device"), "{refused}");
    assert!(refused.contains("free some space"), "{refused}");
    // Reads go on, and what runs runs.
    assert_eq!(master.pods().len(), 3);
    master.until_node("one", "True");
    assert!(master.kubectl(&["delete", "pod", text(&before[0]["metadata"]["name"])]).code() == Some(1));

    // With room again, so do writes, in the same process…
    master.empty();
    until("it is written", || master.kubectl(&["create", "configmap", "again"]).result());
    let names = |master: &crate::bed::Host| {
        let list = master.get(&["configmaps"]).unwrap();
        let items = list["items"].as_array().cloned().unwrap_or_default();
        items.iter().map(|item| text(&item["metadata"]["name"]).to_owned()).collect::<Vec<_>>()
    };
    let here = names(&master);
    assert!(kept.iter().all(|name| here.contains(name)), "{kept:?}, there are {here:?}");
    master.kubectl(&["scale", "rc", "web", "--replicas=4"]).ok();
    master.until_pods(4);
    // …and in the next.
    master.kill();
    master.master(&[]);
    master.until_node("one", "True");
    let next = names(&master);
    assert_eq!(next, here);
    let after = master.until_pods(4);
    let (old, now) = (restarts(&before), restarts(&after));
    assert!(old.iter().all(|(uid, count)| now.get(uid) == Some(count)), "{old:?}, now {now:?}");

    // Nor does a start on a full disk lose anything: it says what is wrong, or serves.
    master.kill();
    master.fill(0);
    let lines = master.launch(&["master"]);
    match lines.recv_timeout(crate::harness::DEADLINE) {
        Ok(line) => assert!(line.starts_with("ready: "), "{line}"),
        Err(_) => {
            assert_eq!(master.until_ended(), Some(1));
            let said = master.said();
            assert!(said.lines().last().is_some_and(|line| line.contains("No space left")), "{said}");
        }
    }
    master.kill();
    master.empty();
    master.master(&[]);
    assert_eq!(names(&master), here);
    master.until_pods(4);
}
