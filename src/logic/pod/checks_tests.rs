//! Tests of what a running container is asked.

use std::sync::Arc;

use k8s_openapi::api::core::v1;
use serde_json::{Value, json};

use super::*;
use crate::{
    logic::{
        pod::{Adopted, Ended, status},
        supervision::Backoff,
    },
    model::Phase,
};

fn machine(policy: &str, container: Value) -> Machine {
    let mut container = container;
    container["name"] = "web".into();
    container["image"] = "i".into();
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 7, "containers": [container]}
    });
    let mut machine = Machine::new(Arc::new(serde_json::from_value(pod).unwrap()), Backoff::CRASH_LOOP, 0);
    machine.step(0);
    machine.sandbox_ready("10.0.0.2".parse().ok());
    machine.step(0);
    machine.container_started(0, "0-0".into(), "sha256:1".into(), 0);
    machine
}

fn shown(machine: &Machine) -> v1::ContainerStatus {
    let status = status::pod_status(machine, None, "sim", None, 0);
    status.container_statuses.unwrap().remove(0)
}

fn ended(id: &str, code: i32, at_ms: i64) -> Ended {
    Ended {
        id: Some(id.into()),
        code,
        signal: None,
        reason: "Error".into(),
        message: None,
        started_ms: at_ms,
        finished_ms: at_ms,
    }
}

fn probe(kind: ProbeKind) -> Action {
    Action::Probe { index: 0, id: "0-0".into(), kind }
}

fn messages(step: &Step) -> Vec<(&str, &str)> {
    step.notices.iter().map(|n| (n.reason, n.message.as_str())).collect()
}

fn fail(machine: &mut Machine, kind: ProbeKind, at_ms: i64) -> Step {
    machine.step(at_ms);
    let outcome = Outcome::Failure("HTTP probe failed with statuscode: 500".into());
    machine.probed("0-0", kind, &outcome);
    machine.step(at_ms)
}

#[test]
fn readiness_is_what_the_probe_says() {
    let mut m = machine("Always", json!({"readinessProbe": {"periodSeconds": 1, "failureThreshold": 1}}));
    assert!(!shown(&m).ready && shown(&m).started == Some(true));
    let step = m.step(0);
    assert_eq!(step.actions, [probe(ProbeKind::Readiness)]);
    assert_eq!(m.step(5).actions, [], "one at a time");
    m.probed("0-0", ProbeKind::Readiness, &Outcome::Success);
    assert_eq!(m.step(5).wake_at_ms, Some(1000));
    assert!(shown(&m).ready);
    let step = fail(&mut m, ProbeKind::Readiness, 1000);
    assert_eq!(
        messages(&step),
        [("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")]
    );
    assert!(!shown(&m).ready, "and it is not killed: {step:?}");
    assert_eq!(step.actions, []);
    m.probed("0-0", ProbeKind::Readiness, &Outcome::Warning("gone elsewhere".into()));
    let step = m.step(1000);
    assert_eq!(messages(&step), [("ProbeWarning", "Readiness probe warning: gone elsewhere")]);
    assert!(shown(&m).ready);
    m.probed("0-0", ProbeKind::Readiness, &Outcome::Error("no port".into()));
    let step = m.step(1000);
    let text = "Readiness probe errored and resulted in unknown state: no port";
    assert_eq!(messages(&step), [("Unhealthy", text)]);
    assert!(shown(&m).ready, "nothing is known");
}

#[test]
fn a_failed_liveness_probe_ends_the_container_and_it_is_started_again() {
    for (policy, code, again) in [("Always", 0, true), ("OnFailure", 0, true), ("Never", 0, false)] {
        let spec = json!({"livenessProbe": {"periodSeconds": 1, "failureThreshold": 2,
            "terminationGracePeriodSeconds": 3}});
        let mut m = machine(policy, spec);
        let once = fail(&mut m, ProbeKind::Liveness, 1000);
        assert_eq!(messages(&once)[0].0, "Unhealthy");
        assert_eq!(once.actions, []);
        let step = fail(&mut m, ProbeKind::Liveness, 2000);
        let restarted = if again { ", will be restarted" } else { "" };
        let killing = format!("Container web failed liveness probe{restarted}");
        assert_eq!(messages(&step)[1], ("Killing", killing.as_str()));
        let grace = Duration::from_secs(3);
        assert_eq!(step.actions, [Action::Stop { index: 0, id: "0-0".into(), grace }]);
        assert_eq!(m.step(60_000).actions, [], "once, and no probe while it ends");
        m.container_stuck("0-0", "busy");
        let step = m.step(60_000);
        assert_eq!((step.actions.len(), step.notices.len()), (1, 0), "tried again, told once");
        m.container_exited(ended("0-0", code, 61_000));
        let expected = if again { Action::Start(0) } else { Action::StopSandbox };
        assert_eq!(m.step(61_000).actions, [expected], "{policy}");
        assert_eq!(shown(&m).restart_count, 0);
        if again {
            m.container_started(0, "0-1".into(), "sha256:1".into(), 62_000);
            assert_eq!(shown(&m).restart_count, 1);
            let again = Action::Probe { index: 0, id: "0-1".into(), kind: ProbeKind::Liveness };
            assert_eq!(m.step(72_000).actions, [again]);
        } else {
            assert_eq!(status::phase(&m), Phase::Succeeded);
        }
    }
}

#[test]
fn the_grace_of_a_failed_startup_probe_is_the_pods_when_it_says_none() {
    let mut m = machine(
        "Always",
        json!({"startupProbe": {"periodSeconds": 1, "failureThreshold": 1},
        "livenessProbe": {}, "readinessProbe": {}}),
    );
    assert_eq!((shown(&m).started, shown(&m).ready), (Some(false), false));
    let step = fail(&mut m, ProbeKind::Startup, 0);
    assert_eq!(messages(&step)[1], ("Killing", "Container web failed startup probe, will be restarted"));
    let grace = Duration::from_secs(7);
    assert_eq!(step.actions, [Action::Stop { index: 0, id: "0-0".into(), grace }]);
}

#[test]
fn a_pod_that_ends_is_not_asked_whether_it_lives() {
    let mut m = machine("Always", json!({"livenessProbe": {"failureThreshold": 1}, "readinessProbe": {}}));
    m.step(10_000);
    m.evict();
    m.probed("0-0", ProbeKind::Liveness, &Outcome::Failure("dead".into()));
    m.probed("0-0", ProbeKind::Readiness, &Outcome::Success);
    let step = m.step(30_000);
    assert_eq!(messages(&step), [("Killing", "Stopping container web")]);
    assert_eq!(step.actions[1..], [probe(ProbeKind::Readiness)]);
}

#[test]
fn a_container_is_created_until_its_post_start_hook_is_done() {
    let spec = json!({"lifecycle": {"postStart": {"sleep": {"seconds": 1}}}, "readinessProbe": {}});
    let mut m = machine("Always", spec.clone());
    assert_eq!(m.step(0).actions, [Action::PostStart { index: 0, id: "0-0".into() }]);
    assert_eq!(m.step(60_000).actions, [], "nothing is probed meanwhile");
    let waiting = shown(&m).state.unwrap().waiting.unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(status::phase(&m), Phase::Pending);
    m.post_start_done("0-0", true);
    assert!(shown(&m).state.unwrap().running.is_some());
    assert_eq!(m.step(60_000).actions, [probe(ProbeKind::Readiness)]);

    let mut m = machine("OnFailure", spec);
    m.step(0);
    m.post_start_done("another life", false);
    assert_eq!(m.step(0).notices, []);
    m.post_start_done("0-0", false);
    let step = m.step(0);
    let told = [("FailedPostStartHook", "PostStartHook failed"), ("Killing", "FailedPostStartHook")];
    assert_eq!(messages(&step), told);
    let grace = Duration::from_secs(7);
    assert_eq!(step.actions, [Action::Stop { index: 0, id: "0-0".into(), grace }]);
    assert!(!shown(&m).ready && shown(&m).state.unwrap().running.is_none(), "it never was more than created");
    m.container_exited(ended("0-0", 0, 1000));
    assert_eq!(m.step(1000).actions, [Action::Start(0)], "it counts as failed");
}

#[test]
fn a_container_that_ends_in_its_hook_is_started_again_and_hooked_again() {
    let mut m = machine("Always", json!({"lifecycle": {"postStart": {"exec": {"command": ["x"]}}}}));
    m.step(0);
    m.container_exited(ended("0-0", 1, 1000));
    assert_eq!(m.step(1000).actions, [Action::Start(0)]);
    m.post_start_done("0-0", false);
    assert_eq!(m.step(1000).notices, [], "of a life that is over");
    m.container_started(0, "0-1".into(), "sha256:1".into(), 2000);
    assert!(m.step(2000).actions.contains(&Action::PostStart { index: 0, id: "0-1".into() }));
}

#[test]
fn a_kubelet_that_takes_over_keeps_what_was_told() {
    for ready in [true, false] {
        let mut pod = (*machine(
            "Always",
            json!({"readinessProbe": {}, "startupProbe": {},
            "lifecycle": {"postStart": {"sleep": {"seconds": 1}}}}),
        )
        .pod)
            .clone();
        let status = json!({"containerStatuses": [{"name": "web", "containerID": "sim://0-0", "ready": ready,
            "started": true, "image": "i", "imageID": "", "restartCount": 0}]});
        pod.status = serde_json::from_value(status).unwrap();
        let mut m = Machine::new(Arc::new(pod), Backoff::CRASH_LOOP, 1_000_000);
        let life = Adopted {
            name: "web".into(),
            id: "0-0".into(),
            attempt: 0,
            image: "i".into(),
            image_id: String::new(),
            started_ms: 1000,
            ended: None,
        };
        m.adopt(true, None, std::slice::from_ref(&life));
        assert_eq!((shown(&m).ready, shown(&m).started), (ready, Some(true)));
        let step = m.step(1_000_000);
        assert!(step.actions.is_empty() && step.wake_at_ms.is_some_and(|at| at < 1_010_000), "{step:?}");
        // Another life is another matter.
        let mut m = Machine::new(m.pod.clone(), Backoff::CRASH_LOOP, 1_000_000);
        m.adopt(true, None, &[Adopted { id: "0-1".into(), attempt: 1, ..life }]);
        assert!(!shown(&m).ready);
    }
}

proptest::proptest! {
    /// Whatever is answered in whatever order: a probe is under way once at a time, nothing is probed in the hook, a life is
    /// asked to end once, and it is told to be ready only when its last readiness outcome that counts was a success.
    #[test]
    fn any_order_of_answers_keeps_the_invariants(
        events in proptest::collection::vec((0_u8..8, proptest::bool::ANY, 0_i64..3_000), 1..80)
    ) {
        let spec = json!({"lifecycle": {"postStart": {"sleep": {"seconds": 1}}},
            "startupProbe": {"periodSeconds": 1, "failureThreshold": 2},
            "livenessProbe": {"periodSeconds": 1, "failureThreshold": 2},
            "readinessProbe": {"periodSeconds": 1, "failureThreshold": 1}});
        let mut m = machine("Always", spec);
        let (mut now, mut life, mut starting) = (0, 0, false);
        let (mut asked, mut hooked, mut stopped) = (Vec::new(), false, false);
        for (event, good, later) in events {
            now += later;
            let id = format!("0-{life}");
            match event {
                0..=3 => if let Some(kind) = asked.pop() {
                    let outcome = if good { Outcome::Success } else { Outcome::Failure("no".into()) };
                    m.probed(&id, kind, &outcome);
                    if kind == ProbeKind::Readiness && !stopped {
                        assert_eq!(m.containers[0].checks.ready(), good);
                    }
                },
                4 | 5 if std::mem::take(&mut hooked) => m.post_start_done(&id, good),
                6 if !starting => {
                    m.container_exited(ended(&id, i32::from(good), now));
                    asked.clear();
                    (hooked, stopped) = (false, false);
                }
                7 if std::mem::take(&mut starting) => {
                    life += 1;
                    m.container_started(0, format!("0-{life}"), String::new(), now);
                }
                _ => {}
            }
            for action in m.step(now).actions {
                match action {
                    Action::Probe { kind, .. } => {
                        assert!(!asked.contains(&kind), "twice at once");
                        assert!(!m.containers[0].checks.in_post_start());
                        asked.push(kind);
                    }
                    Action::PostStart { .. } => hooked = true,
                    Action::Stop { .. } => assert!(!std::mem::replace(&mut stopped, true), "stopped twice"),
                    Action::Start(_) => starting = true,
                    _ => {}
                }
            }
            assert!(m.step(now).actions.is_empty(), "a second time");
        }
    }
}
