//! Several machines with one node's key, as when a data directory was copied.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    bed::{Bed, Host, node_of, ready, restarts},
    harness::{check, controller, until},
    status::status,
};

/// Makes a host's data directory a copy of another's.
fn copy(of: &Host, to: &Host) {
    let copied =
        Command::new("cp").arg("-a").arg(&of.data).arg(&to.data).env("LC_ALL", "C").output().unwrap();
    // Files come and go meanwhile: it is in use.
    let said = String::from_utf8_lossy(&copied.stderr);
    let only_gone = said.lines().all(|line| line.contains("No such file"));
    assert!(copied.status.success() || (only_gone && !said.is_empty()), "{copied:?}");
    // A copy is not in use by the process that the original is in use by.
    let _ = std::fs::remove_file(to.data.join("ready"));
}

/// Waits until the status names these rivals of the node.
fn until_rivals(master: &Host, expected: &[&str]) {
    until(&format!("the status names {expected:?}"), || {
        let status = status(master);
        let rivals = status["nodes"][0]["rivals"].clone();
        check(rivals == json!(expected), || rivals.to_string())
    });
}

/// From where the node is linked at this moment.
fn linked_from(master: &Host) -> Result<Option<String>, String> {
    let status = status(master);
    let address = status["nodes"][0]["link"]["address"].as_str();
    Ok(address.and_then(|address| address.rsplit_once(':')).map(|(ip, _)| ip.to_owned()))
}

fn is_linked(master: &Host, host: &Host) -> Result<(), String> {
    let from = linked_from(master)?;
    check(from.as_deref() == Some(&host.address), || format!("linked from {from:?}"))
}

#[test]
fn of_three_machines_with_one_key_the_linked_one_stays_and_its_copies_run_nothing_and_are_told_of() {
    if !ready() {
        return;
    }
    let mut bed = Bed::new();
    let (mut master, mut one) = (bed.host("m"), bed.host("one"));
    let (mut copy_a, mut copy_b) = (bed.host("copy-a"), bed.host("copy-b"));
    master.master(&[]);
    one.join(&master);
    master.until_node("one", "True");
    master.apply(&controller("web", 2, &[]));
    let before = master.until_pods(2);
    let containers = one.containers();
    copy(&one, &copy_a);
    copy(&one, &copy_b);
    let node = crate::bed::NODE;
    let _lines = copy_a.launch(&node);
    until_rivals(&master, &[&copy_a.address]);
    let _lines = copy_b.launch(&node);
    until_rivals(&master, &[&copy_a.address, &copy_b.address]);

    // Who operates the cluster is told, at a glance and in events; so is who started the copies.
    let glance = master.run(&["cluster", "status"]);
    assert_eq!(glance.code(), Some(1));
    let glance = glance.out();
    let problem =
        glance.lines().find(|line| line.starts_with("PROBLEM: node one is 3 machines with one key")).unwrap();
    for host in [&one, &copy_a, &copy_b] {
        assert!(problem.contains(&host.address), "{problem}");
    }
    assert!(problem.contains(&format!("linked first: {}", one.address)), "{problem}");
    until("an event names both copies", || {
        let events = master.get(&["events", "-A"])?;
        let all = events["items"].as_array().cloned().unwrap_or_default();
        let told = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == "NodeIdentityCopied"
                && [&one, &copy_a, &copy_b].iter().all(|host| message.contains(&host.address))
        };
        check(all.iter().any(told), || events.to_string())
    });
    for host in [&copy_a, &copy_b] {
        until("the copy says why it has no link", || {
            check(host.said().contains("another machine is linked as this node"), || host.said())
        });
    }

    // Nothing has happened to the one that was there.
    master.until_node("one", "True");
    assert_eq!(master.ever_lost(), None);
    assert_eq!(one.containers(), containers);
    assert_eq!(restarts(&master.until_pods(2)), restarts(&before));

    // Its way is broken for a while, its process begins anew, and so does the master's: it is the node each time.
    one.cut();
    master.until_node("one", "Unknown");
    assert_eq!(linked_from(&master).unwrap(), None, "no copy takes its place");
    one.heal();
    until("it is linked again", || is_linked(&master, &one));
    one.kill();
    until("its link has ended", || check(linked_from(&master)?.is_none(), String::new));
    let _lines = one.launch(&node);
    until("it is linked again", || is_linked(&master, &one));
    master.kill();
    master.master(&[]);
    until("it is linked again", || is_linked(&master, &one));
    until_rivals(&master, &[&copy_a.address, &copy_b.address]);
    is_linked(&master, &one).unwrap();
    master.until_node("one", "True");
    assert_eq!(restarts(&master.until_pods(2)), restarts(&before));
    assert_eq!(one.containers(), containers);
    for host in [&copy_a, &copy_b] {
        assert_eq!(host.containers(), [], "nothing ran twice");
    }

    // A copy ends, and is not spoken of for long; the machine itself ends, and some time later the other copy is the node.
    copy_b.kill();
    until_rivals(&master, &[&copy_a.address]);
    one.crash();
    until("the other copy is linked", || is_linked(&master, &copy_a));
    until("the copy runs them", || {
        check(copy_a.containers().len() == 2, || format!("{:?}", copy_a.containers()))
    });
    master.until_node("one", "True");
    let after = master.until_pods(2);
    assert!(after.iter().all(|pod| node_of(pod) == "one"));
    until_rivals(&master, &[]);
}
