//! What becomes of a node's documents as it reports, falls silent and comes back.

use super::*;
use crate::model::{Kind, Revision, seal_json};

#[test]
fn a_node_that_shares_no_images_says_so_and_since_when() {
    let off = |status: &v1::NodeStatus| {
        let mut all = status.conditions.iter().flatten();
        let found = all.find(|condition| condition.type_ == IMAGE_SHARING);
        found.map(|of| {
            (of.status.clone(), of.message.clone().unwrap(), of.last_transition_time.clone().unwrap())
        })
    };
    let shares = node_status(&MachineFacts::default(), None, 0);
    assert_eq!(off(&shares), None);
    let apart = MachineFacts { no_image_sharing: true, ..MachineFacts::default() };
    let first = node_status(&apart, Some(&shares), 1000);
    let (status, message, since) = off(&first).unwrap();
    assert!(status == "False" && message.starts_with("the node"), "{message}");
    assert_eq!(off(&node_status(&apart, Some(&first), 5000)).unwrap().2, since);
    // What the master says counts, once, and since it was first said.
    let mut told = shares.clone();
    note_no_image_sharing(&mut told, None, 2000);
    let (_, message, since) = off(&told).unwrap();
    assert!(message.starts_with("the master"), "{message}");
    let mut both = node_status(&apart, None, 9000);
    note_no_image_sharing(&mut both, Some(&told), 9000);
    assert_eq!(off(&both).unwrap(), ("False".into(), message, since));
    let count = both.conditions.iter().flatten().filter(|condition| condition.type_ == IMAGE_SHARING);
    assert_eq!(count.count(), 1);
}

#[test]
fn subnets_are_handed_out_without_overlap_until_none_is_left() {
    assert_eq!(free_subnet("10.244.0.0/16", []), Ok(Some("10.244.0.0/24".into())));
    assert_eq!(
        free_subnet("10.244.0.0/16", ["10.244.0.0/24", "10.244.2.0/24"]),
        Ok(Some("10.244.1.0/24".into()))
    );
    assert_eq!(free_subnet("10.9.8.0/24", ["10.9.8.0/24"]), Ok(None));
    assert_eq!(free_subnet("0.0.0.0/0", []), Ok(Some("0.0.0.0/24".into())));
    for bad in ["", "10.0.0.0", "10.0.0.0/25", "x/8", "10.0.0.0/x", "fd00::/64"] {
        assert!(free_subnet(bad, []).is_err(), "{bad}");
    }
}

#[test]
fn a_node_under_pressure_bears_a_taint_for_as_long_as_that_lasts() {
    let status = |low: &str| {
        let pressure = Pressure { memory: low == "memory", disk: low == "disk", pids: low == "pids" };
        node_status(&MachineFacts { pressure, ..MachineFacts::default() }, None, 0)
    };
    let own = v1::Taint { key: "own".into(), effect: "NoSchedule".into(), ..v1::Taint::default() };
    let mut spec = v1::NodeSpec { taints: Some(vec![own]), ..v1::NodeSpec::default() };
    let keys = |spec: &v1::NodeSpec| -> Vec<String> {
        spec.taints.iter().flatten().map(|taint| taint.key.clone()).collect()
    };
    taint_by_condition(&mut spec, &status("memory"));
    taint_by_condition(&mut spec, &status("memory"));
    assert_eq!(keys(&spec), ["own", "node.kubernetes.io/memory-pressure"]);
    taint_by_condition(&mut spec, &status("disk"));
    assert_eq!(keys(&spec), ["own", "node.kubernetes.io/disk-pressure"]);
    taint_by_condition(&mut spec, &status("pids"));
    assert_eq!(keys(&spec), ["own", "node.kubernetes.io/pid-pressure"]);
    taint_by_condition(&mut spec, &status(""));
    assert_eq!(keys(&spec), ["own"]);
}

#[test]
fn a_pod_that_ended_vanishes_or_waits_for_its_finalizers_without_grace() {
    let object = |finalizers: serde_json::Value| {
        let pod = serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u", "finalizers": finalizers,
                "creationTimestamp": "2030-01-01T00:00:00Z", "deletionTimestamp": "2030-01-01T00:00:00Z",
                "deletionGracePeriodSeconds": 30},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running"}
        });
        Arc::new(seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(5)))
    };
    let report = |object: &Arc<Object>, node: &str, status: &str, terminated: bool| {
        let told = Told { uid: &"u".into(), status: status.as_bytes(), terminated };
        match pod_reported(Some(object), &node.into(), told, 0).unwrap() {
            Report::Write(edit) => Some(*edit),
            Report::Ignore => None,
        }
    };
    let (free, held) = (object(serde_json::Value::Null), object(serde_json::json!(["a/b"])));
    let same = r#"{"phase": "Running"}"#;
    assert!(matches!(report(&free, "n", same, true), Some(Edit::Remove(_))));
    assert!(report(&free, "other", same, true).is_none(), "a node speaks of its own pods only");
    let earlier = Told { uid: &"earlier".into(), status: b"{}", terminated: true };
    let late = pod_reported(Some(&free), &"n".into(), earlier, 0).unwrap();
    assert!(matches!(late, Report::Ignore), "another life of that name");
    assert!(report(&held, "n", same, false).is_none(), "nothing new");
    let Some(Edit::Replace(sealed, _)) = report(&held, "n", same, true) else { panic!("not written") };
    let written = Arc::new(sealed.at(Revision(6)));
    let deleting = written.facet.meta.deleting.unwrap();
    assert_eq!(deleting.grace_seconds, 0);
    assert!(report(&written, "n", same, true).is_none(), "told once");
}

#[test]
fn a_pod_is_ready_since_the_master_heard_of_it_whatever_its_nodes_clock_says() {
    let pod = serde_json::json!({"metadata": {"name": "web", "namespace": "default", "uid": "u"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let mut object = Arc::new(seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(5)));
    let since = |object: &Object| match &object.facet.of {
        KindFacet::Pod(pod) => (pod.ready, pod.ready_since),
        _ => panic!("no pod"),
    };
    // The node is an hour behind at first, and then, set right, an hour ahead.
    for (status, by_node, now_s, expected) in [
        ("False", "2029-12-31T23:00:00Z", 1_000, Some((false, 0))),
        ("True", "2029-12-31T23:00:09Z", 1_009, Some((true, 1_009))),
        ("True", "2029-12-31T23:00:09Z", 1_020, None),
        ("True", "2030-01-01T01:00:09Z", 1_030, None),
        ("False", "2030-01-01T01:00:40Z", 1_040, Some((false, 0))),
        ("True", "2030-01-01T01:00:50Z", 1_050, Some((true, 1_050))),
    ] {
        let told = serde_json::json!({"phase": "Running", "conditions": [
            {"type": "Ready", "status": status, "lastTransitionTime": by_node}]})
        .to_string();
        let told = Told { uid: &"u".into(), status: told.as_bytes(), terminated: false };
        let report = pod_reported(Some(&object), &"n".into(), told, now_s * 1000).unwrap();
        let written = match report {
            Report::Ignore => None,
            Report::Write(edit) => match *edit {
                Edit::Replace(sealed, _) => Some(Arc::new(sealed.at(Revision(6)))),
                other => panic!("{other:?}"),
            },
        };
        let shown = written.as_deref().map(since);
        let ready_since = |(ready, since): (bool, i64)| (ready, if ready { since } else { 0 });
        assert_eq!(shown.map(ready_since), expected, "{status} {now_s}");
        object = written.unwrap_or(object);
    }
}

#[test]
fn the_end_that_a_pods_status_tells_of_is_not_undone_by_what_was_on_the_way() {
    let object = serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u"},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Failed", "reason": "Decided", "nominatedNodeName": "n"}});
    let object = Arc::new(seal_json(Kind::Pod, object.to_string().as_bytes()).unwrap().at(Revision(5)));
    for (told, phase, reason) in [
        (
            serde_json::json!({"phase": "Running", "podIP": "10.1.1.1", "conditions": [
                {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"},
                {"type": "Initialized", "status": "True"}]}),
            "Failed",
            Some("Decided"),
        ),
        (serde_json::json!({"phase": "Succeeded", "podIP": "10.1.1.1"}), "Succeeded", None),
    ] {
        let told = told.to_string();
        let told = Told { uid: &"u".into(), status: told.as_bytes(), terminated: false };
        let report = pod_reported(Some(&object), &"n".into(), told, 1_000).unwrap();
        let Report::Write(edit) = report else { panic!() };
        let Edit::Replace(sealed, _) = *edit else { panic!() };
        let status = sealed.at(Revision(6)).parse::<v1::Pod>().unwrap().status.unwrap();
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some(phase), reason));
        assert_eq!(status.pod_ip.as_deref(), Some("10.1.1.1"));
        assert_eq!(status.nominated_node_name.as_deref(), Some("n"), "the node does not speak of it");
        let mut ready = status.conditions.iter().flatten().filter(|c| c.type_.ends_with("Ready"));
        assert!(ready.all(|c| c.status == "False"), "{:?}", status.conditions);
    }
}

#[test]
fn a_pod_that_was_not_ready_between_two_reports_is_ready_anew() {
    let status = |containers: &str, ready: &str| -> v1::PodStatus {
        serde_json::from_value(serde_json::json!({"conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": "2020-01-01T00:00:00Z"},
            {"type": "ContainersReady", "status": "True", "lastTransitionTime": containers}]}))
        .unwrap()
    };
    let mut stored: Option<v1::PodStatus> = None;
    for (containers, ready, now_s, since_s) in [
        ("2029-12-31T23:00:09Z", "True", 1_009, 1_009),
        ("2029-12-31T23:00:09Z", "True", 1_020, 1_009),
        // It crashed, and was ready again before its node told of that.
        ("2029-12-31T23:00:25Z", "True", 1_030, 1_030),
        ("2029-12-31T23:00:25Z", "True", 1_040, 1_030),
        // Less than a second is not stored: told again and again, it is no news.
        ("2029-12-31T23:00:25.5Z", "True", 1_050, 1_030),
        // A gate holds it up whatever its containers do.
        ("2029-12-31T23:00:25Z", "False", 1_060, 1_060),
        ("2029-12-31T23:01:25Z", "False", 1_070, 1_060),
    ] {
        let mut told = status(containers, ready);
        ready_by_our_clock(&mut told, stored.as_ref(), now_s * 1000);
        let since = condition(&told, "Ready").unwrap().last_transition_time.clone().unwrap();
        assert_eq!(since.0.as_second(), since_s, "at {now_s}");
        stored = Some(told);
    }
}

#[test]
fn a_node_hears_again_of_what_it_acts_on_and_of_nothing_else() {
    let pod = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut pod = serde_json::json!({
            "metadata": {"name": "web", "uid": "u", "resourceVersion": "5", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "one"}]},
            "status": {"phase": "Pending"}
        });
        change(&mut pod);
        wanted_mark(pod.to_string().as_bytes())
    };
    let first = pod(&|_| {});
    let news: [&dyn Fn(&mut serde_json::Value); 6] = [
        &|p| p["metadata"]["generation"] = 3.into(),
        &|p| p["status"]["conditions"] = serde_json::json!([{"type": "a.b/c", "status": "True"}]),
        &|p| p["spec"]["containers"][0]["image"] = "two".into(),
        &|p| p["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into(),
        &|p| p["metadata"]["deletionGracePeriodSeconds"] = 3.into(),
        &|p| p["metadata"]["labels"]["a"] = "c".into(),
    ];
    for (row, change) in news.iter().enumerate() {
        assert_ne!(pod(change), first, "{row}");
    }
    assert_eq!(pod(&|p| p["status"]["phase"] = "Running".into()), first);
    let own = serde_json::json!([{"type": "Ready", "status": "True"}]);
    assert_eq!(pod(&|p| p["status"]["conditions"] = own.clone()), first);
    assert_eq!(pod(&|p| p["metadata"]["resourceVersion"] = "6".into()), first);
    assert_ne!(wanted_mark(b"no pod"), first);
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let facts = MachineFacts { cpus: 2, disk_bytes: 100, ..MachineFacts::default() };
    let first = node_status(&facts, None, 1_000_000);
    let second = node_status(&facts, Some(&first), 2_000_000);
    let full = node_status(
        &MachineFacts { pressure: Pressure { disk: true, ..Pressure::default() }, ..facts },
        Some(&second),
        3_000_000,
    );
    let at = |s: &v1::NodeStatus, name: &str| {
        let c = s.conditions.as_ref().unwrap().iter().find(|c| c.type_ == name).unwrap();
        (c.status.clone(), c.last_transition_time.clone())
    };
    assert_eq!(at(&first, "DiskPressure"), at(&second, "DiskPressure"));
    assert_eq!(at(&full, "DiskPressure"), ("True".into(), Some(time(3_000_000))));
    assert_eq!(at(&full, "Ready"), at(&first, "Ready"));
}

#[test]
fn what_a_node_is_low_on_is_told_when_it_changes() {
    let status = |memory, pids| {
        let pressure = Pressure { memory, disk: true, pids };
        node_status(&MachineFacts { pressure, ..MachineFacts::default() }, None, 0)
    };
    let none: [&str; 0] = [];
    assert_eq!(pressure_changes(&status(true, false), &status(true, false)), none);
    let changes = pressure_changes(&status(false, true), &status(true, false));
    assert_eq!(changes, ["NodeHasInsufficientMemory", "NodeHasSufficientPID"]);
}

#[test]
fn a_lost_node_is_unknown_and_stays_so_since_then() {
    let first = node_status(&MachineFacts::default(), None, 1_000_000);
    let lost = lost_status(&first, 5_000_000);
    assert!(lost.conditions.as_ref().unwrap().iter().all(|c| c.status == "Unknown"));
    assert_eq!(lost_status(&lost, 9_000_000), lost);
    // What others have added they say on.
    let mut added = first;
    let problem = v1::NodeCondition {
        type_: "FrequentRestarts".into(),
        status: "True".into(),
        ..v1::NodeCondition::default()
    };
    added.conditions.get_or_insert_default().push(problem.clone());
    assert_eq!(lost_status(&added, 5_000_000).conditions.unwrap().last(), Some(&problem));
}
