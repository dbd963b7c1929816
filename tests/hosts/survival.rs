//! What ends and comes back: processes of nodes and masters. Containers do not notice.

use crate::{
    bed::{Bed, ready, restarts},
    harness::{check, controller, until},
};

#[test]
fn containers_outlive_their_nodes_process_and_the_master_and_nothing_is_lost() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one, two) = bed.trio();
    master.apply(&controller("web", 4, &[]));
    let before = master.until_pods(4);
    let (on_one, on_two) = (one.containers(), two.containers());
    assert!(!on_one.is_empty() && !on_two.is_empty());

    // The node's process, by signal and by kill.
    for planned in [true, false] {
        if planned {
            assert_eq!(one.stop(), Some(0));
        } else {
            one.kill();
        }
        assert_eq!(one.containers(), on_one);
        one.node(&[]);
        master.until_node("one", "True");
        let after = master.until_pods(4);
        assert_eq!(restarts(&after), restarts(&before), "the same pods, and none restarted");
        assert_eq!(one.containers(), on_one);
    }

    // The master's, with an acknowledged write just before.
    master.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    master.kill();
    master.master(&[]);
    master.until_node("one", "True");
    master.until_node("two", "True");
    assert_eq!(master.get(&["configmap", "kept"]).unwrap()["data"]["a"], "b");
    let after = master.until_pods(4);
    assert_eq!(restarts(&after), restarts(&before));
    assert_eq!((one.containers(), two.containers()), (on_one, on_two));

    // And the cluster still works.
    master.kubectl(&["scale", "rc", "web", "--replicas=6"]).ok();
    master.until_pods(6);
}

#[test]
fn a_node_that_was_cut_off_or_stood_still_is_not_ready_and_is_again_when_it_comes_back() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    master.master(&[]);
    let (token, address) = (master.token(&[]), master.address.clone());
    one.node(&["--runtime", "sim", "--join", &address, "--token", &token, "--name", "one"]);
    master.until_node("one", "True");
    one.cut();
    master.until_node("one", "Unknown");
    one.heal();
    master.until_node("one", "True");
    one.freeze();
    master.until_node("one", "Unknown");
    one.thaw();
    master.until_node("one", "True");
    let node = master.get(&["node", "one"]).unwrap();
    until("the event is there", || {
        let events = master.get(&["events"])?;
        let all = events["items"].as_array().cloned().unwrap_or_default();
        check(all.iter().any(|e| e["reason"] == "NodeNotReady"), || node.to_string())
    });
}
