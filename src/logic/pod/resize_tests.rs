//! Tests of resizing in place.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::*;
use crate::logic::{pod::status, supervision::Backoff};

fn pod(cpu: &str, memory: &str, policy: &Value) -> v1::Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"terminationGracePeriodSeconds": 10, "containers": [{
            "name": "c", "image": "i", "resizePolicy": policy,
            "resources": {"limits": {"cpu": cpu, "memory": memory}, "requests": {"cpu": cpu, "memory": memory}}
        }]}
    }))
    .unwrap()
}

fn running(pod: v1::Pod) -> Machine {
    let mut m = Machine::new(Arc::new(pod), Backoff::CRASH_LOOP, 0);
    m.step(0);
    m.sandbox_ready(None);
    assert_eq!(m.step(0).actions, [Action::Start(0)]);
    m.container_started(0, "c-0".into(), "sha256:1".into(), 0);
    assert_eq!(m.step(0).actions, []);
    m
}

fn shown(m: &Machine) -> Value {
    serde_json::to_value(status::pod_status(m, None, "sim", None, 0)).unwrap()
}

fn condition(m: &Machine, name: &str) -> Option<Value> {
    let all = shown(m)["conditions"].as_array().cloned().unwrap();
    all.into_iter().find(|c| c["type"] == name)
}

#[test]
fn a_node_has_room_now_later_or_never() {
    let of = |cpu_milli, memory_bytes| Resources { cpu_milli, memory_bytes, ..Resources::default() };
    for (others, wanted, reason) in [
        (of(500, 10), of(1500, 90), None),
        (of(501, 10), of(1500, 90), Some("Deferred")),
        (of(0, 11), of(0, 90), Some("Deferred")),
        (of(0, 0), of(2001, 0), Some("Infeasible")),
        (of(1000, 0), of(1500, 101), Some("Infeasible")),
    ] {
        let verdict = verdict(of(2000, 100), others, wanted);
        assert_eq!(verdict.pending().map(|(reason, _)| reason), reason, "{verdict:?}");
    }
}

#[test]
fn what_was_given_is_applied_to_the_running_container_and_told() {
    let none = json!([]);
    let mut m = running(pod("1", "64Mi", &none));
    assert_eq!(shown(&m)["containerStatuses"][0]["allocatedResources"]["cpu"], "1");
    m.assign(Arc::new(pod("2", "64Mi", &none)));
    assert_eq!(m.step(1).actions, [Action::Resize { index: 0, id: "c-0".into() }]);
    assert_eq!(m.step(1).actions, [], "one at a time");
    assert_eq!(condition(&m, "PodResizeInProgress").unwrap()["status"], "True");
    let status = &shown(&m)["containerStatuses"][0];
    assert_eq!(
        (&status["allocatedResources"]["cpu"], &status["resources"]["limits"]["cpu"]),
        (&json!("2"), &json!("1"))
    );
    // What the runtime refuses is told, and tried again.
    m.resized(0, Err("memory is in use".into()), 10);
    let told = condition(&m, "PodResizeInProgress").unwrap();
    assert_eq!(
        (&told["reason"], &told["message"]),
        (&json!("Error"), &json!("container c: memory is in use"))
    );
    let step = m.step(20);
    assert_eq!((step.actions.len(), step.wake_at_ms), (0, Some(10 + AGAIN_MS)));
    // The clock is set back by an hour, and set right again.
    const HOUR_MS: i64 = 3_600_000;
    assert_eq!(m.step(20 - HOUR_MS).wake_at_ms, Some(20 - HOUR_MS + AGAIN_MS));
    assert_eq!(m.step(20 - HOUR_MS + 10).wake_at_ms, Some(20 - HOUR_MS + AGAIN_MS));
    assert_eq!(m.step(10 + AGAIN_MS).actions.len(), 1);
    let given = m.given("c");
    m.resized(0, Ok(given), 6_000);
    assert_eq!((m.step(6_000).actions.len(), condition(&m, "PodResizeInProgress")), (0, None));
    assert_eq!(shown(&m)["containerStatuses"][0]["resources"]["limits"]["cpu"], "2");
}

#[test]
fn a_container_is_started_anew_where_its_policy_says_so() {
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let mut m = running(pod("1", "64Mi", &policy));
    m.assign(Arc::new(pod("2", "64Mi", &policy)));
    assert!(matches!(m.step(1).actions[..], [Action::Resize { .. }]), "cpu may change");
    let given = m.given("c");
    m.resized(0, Ok(given), 1);
    m.assign(Arc::new(pod("2", "32Mi", &policy)));
    let grace = Duration::from_secs(10);
    assert_eq!(m.step(2).actions, [Action::Stop { index: 0, id: "c-0".into(), grace }]);
}

#[test]
fn what_is_only_asked_for_is_not_given() {
    let none = json!([]);
    let (before, asked) = (pod("1", "64Mi", &none), pod("100", "64Mi", &none));
    let kept = with_resources_of(&asked, &before);
    assert!(are_same(&kept, &before) && !are_same(&kept, &asked));
    let mut m = running(before);
    m.assign(Arc::new(kept));
    m.pending = Verdict::Infeasible("too much".into());
    assert_eq!(m.step(1).actions, []);
    let told = condition(&m, "PodResizePending").unwrap();
    assert_eq!((&told["reason"], &told["message"]), (&json!("Infeasible"), &json!("too much")));
    // When it is over nobody takes it for somebody else's condition.
    let old: v1::PodStatus = serde_json::from_value(shown(&m)).unwrap();
    m.pending = Verdict::Fits;
    let mut new: v1::PodStatus = serde_json::from_value(shown(&m)).unwrap();
    crate::logic::pod::gates::keep_foreign(&mut new, Some(&old));
    assert!(new.conditions.unwrap().iter().all(|c| c.type_ != "PodResizePending"));
    m.pending = Verdict::Infeasible("too much".into());
    // The next kubelet reads it out of the status.
    let mut stored = asked;
    stored.status = Some(serde_json::from_value(shown(&m)).unwrap());
    assert!(are_same(&as_told(&stored), &m.pod));
}

#[test]
fn a_status_says_which_generation_it_speaks_of_and_a_change_which_it_was_begun_for() {
    let none = json!([]);
    let of = |generation: i64, cpu: &str| {
        let mut pod = pod(cpu, "64Mi", &none);
        pod.metadata.generation = Some(generation);
        pod
    };
    let observed = |m: &Machine, name: &str| condition(m, name).unwrap()["observedGeneration"].clone();
    let mut m = running(of(1, "1"));
    assert_eq!((&shown(&m)["observedGeneration"], observed(&m, "Ready")), (&json!(1), json!(1)));
    m.assign(Arc::new(of(2, "2")));
    m.assign(Arc::new(of(3, "2")));
    m.pending = Verdict::Deferred("others have it".into());
    assert_eq!(shown(&m)["observedGeneration"], 3);
    for (name, expected) in
        [("PodScheduled", 3), ("Ready", 3), ("PodResizePending", 3), ("PodResizeInProgress", 2)]
    {
        assert_eq!(observed(&m, name), expected, "{name}");
    }
    // The next kubelet reads it out of the status.
    let told: v1::PodStatus = serde_json::from_value(shown(&m)).unwrap();
    m.sized = None;
    assert_eq!(m.sized_generation(Some(&told)), Some(2));
    // Static pods have none.
    let m = running(pod("1", "64Mi", &none));
    assert_eq!((shown(&m).get("observedGeneration"), observed(&m, "Ready")), (None, Value::Null));
}
