//! Tests of the pod state machine.

use proptest::prelude::*;

use super::*;
use crate::logic::pod::{Adopted, StartFailure};
use crate::{logic::pod::status, model::Phase};

fn pod(policy: &str, containers: usize) -> Arc<v1::Pod> {
    let containers: Vec<_> =
        (0..containers).map(|n| serde_json::json!({"name": format!("c{n}"), "image": "i"})).collect();
    let json = serde_json::json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 7, "containers": containers}
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn machine(policy: &str, containers: usize) -> Machine {
    Machine::new(pod(policy, containers), Backoff::CRASH_LOOP, 0)
}

/// Brings a pod up: sandbox and containers.
fn up(machine: &mut Machine) {
    assert_eq!(machine.step(0).actions, [Action::RunSandbox]);
    machine.sandbox_ready("10.0.0.2".parse().ok());
    let starts = machine.step(0).actions;
    assert_eq!(starts.len(), machine.containers.len());
    for index in 0..starts.len() {
        machine.container_started(index, format!("{index}-0"), "sha256:1".into(), 0);
    }
}

fn exit(id: &str, code: i32, at_ms: i64) -> Ended {
    Ended {
        id: Some(id.into()),
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_ms: at_ms,
        finished_ms: at_ms,
    }
}

fn deleting(machine: &Machine, grace: i64) -> Arc<v1::Pod> {
    let mut pod = (*machine.pod).clone();
    pod.metadata.deletion_timestamp = Some(status::time(0));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    Arc::new(pod)
}

#[test]
fn the_first_failure_restarts_at_once_and_later_ones_back_off() {
    let mut m = machine("Always", 1);
    up(&mut m);
    m.container_exited(exit("0-0", 137, 1_000));
    let step = m.step(1_000);
    assert_eq!(step.actions, [Action::Start(0)], "first restart at once");
    m.container_started(0, "0-1".into(), "sha256:1".into(), 1_000);
    m.container_exited(exit("0-1", 1, 2_000));
    let step = m.step(2_000);
    assert_eq!(step.actions, [Action::Forget { id: "0-0".into() }], "only one ended life is kept");
    assert_eq!(step.wake_at_ms, Some(12_000));
    assert!(step.notices.iter().any(|n| n.warning && n.reason == "BackOff"));
    let shown = status::pod_status(&m, None, "sim", None, 2_000);
    let c = &shown.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 1, "the second restart has not been made yet");
    let waiting = c.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=c0 pod=web_default(u1)")
    );
    assert_eq!(c.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!(m.step(11_999).actions, []);
    assert_eq!(m.step(12_000).actions, [Action::Start(0)]);
}

#[test]
fn restart_policies_are_restart_classes() {
    for (policy, code, restarted, phase) in [
        ("Always", 0, true, Phase::Running),
        ("Always", 1, true, Phase::Running),
        ("OnFailure", 0, false, Phase::Succeeded),
        ("OnFailure", 1, true, Phase::Running),
        ("Never", 0, false, Phase::Succeeded),
        ("Never", 1, false, Phase::Failed),
    ] {
        let mut m = machine(policy, 1);
        up(&mut m);
        m.container_exited(exit("0-0", code, 1));
        let actions = m.step(1).actions;
        let expected = if restarted { Action::Start(0) } else { Action::StopSandbox };
        assert_eq!(actions, [expected], "{policy} {code}");
        assert_eq!(status::phase(&m), phase, "{policy} {code}");
    }
}

#[test]
fn deletion_stops_every_container_with_the_grace_then_removes_everything() {
    let mut m = machine("Always", 2);
    up(&mut m);
    m.assign(deleting(&m, 3));
    let step = m.step(0);
    assert_eq!(step.actions.len(), 2);
    assert!(matches!(&step.actions[0], Action::Stop { grace, .. } if *grace == Duration::from_secs(3)));
    assert!(step.notices.iter().any(|n| n.reason == "Killing"));
    assert_eq!(m.step(0).actions, [], "a stop is asked for once");
    m.container_exited(exit("0-0", 143, 10));
    assert_eq!(m.step(10).actions, [], "the other still runs");
    m.container_exited(exit("1-0", 0, 20));
    assert_eq!(m.step(20).actions, [Action::RemoveSandbox]);
    m.sandbox_removed();
    assert!(m.is_removed());
    assert_eq!(m.step(30), Step::default());
}

#[test]
fn a_pod_deleted_while_it_starts_ends_what_it_started() {
    let mut m = machine("Always", 1);
    m.step(0);
    m.sandbox_ready(None);
    assert_eq!(m.step(0).actions, [Action::Start(0)]);
    m.assign(deleting(&m, 30));
    assert_eq!(m.step(0).actions, [], "waits for the start's outcome");
    m.container_started(0, "0-0".into(), String::new(), 5);
    assert!(matches!(m.step(5).actions[..], [Action::Stop { .. }]));
}

#[test]
fn a_lost_sandbox_is_made_again_with_its_containers() {
    let mut m = machine("Always", 1);
    up(&mut m);
    let ready =
        |m: &Machine| status::pod_status(m, None, "sim", None, 9).container_statuses.unwrap()[0].ready;
    assert!(ready(&m));
    m.sandbox_lost();
    assert!(!ready(&m), "nothing reaches it");
    assert_eq!(m.step(9).actions, [Action::EndSandbox]);
    assert!(!ready(&m));
    assert_eq!(m.step(9).actions, [], "once");
    m.sandbox_stuck("the engine is away");
    assert_eq!(m.step(9).actions, [Action::EndSandbox]);
    m.sandbox_ended(9);
    assert_eq!(m.step(9).actions, [Action::RemoveSandbox]);
    m.sandbox_removed();
    assert_eq!(m.step(9).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    assert_eq!(m.step(9).actions, [Action::Start(0)]);
    assert_eq!(m.containers[0].attempt, 1);
}

/// A sandbox dies, and nothing is known of how its containers ended.
fn lose(m: &mut Machine, now_ms: i64) {
    m.sandbox_lost();
    assert_eq!(m.step(now_ms).actions, [Action::EndSandbox]);
    m.sandbox_ended(now_ms);
}

#[test]
fn what_had_done_its_work_when_its_sandbox_died_does_not_run_again() {
    for (policy, phase) in
        [("OnFailure", Phase::Succeeded), ("Never", Phase::Succeeded), ("Always", Phase::Running)]
    {
        let mut m = machine(policy, 1);
        up(&mut m);
        m.sandbox_lost();
        assert_eq!(m.step(9).actions, [Action::EndSandbox]);
        // Its end is told by the engine, before or with the outcome.
        m.container_exited(exit("0-0", 0, 9));
        assert_eq!(m.step(9).actions, [], "nothing begins in a dead sandbox");
        m.sandbox_ended(10);
        assert_eq!(status::phase(&m), phase, "{policy}");
        let expected = if policy == "Always" { Action::RemoveSandbox } else { Action::StopSandbox };
        assert_eq!(m.step(10).actions, [expected], "{policy}");
        let last = |m: &Machine| m.containers[0].last.as_ref().map(|last| last.code);
        assert_eq!(last(&m), (policy == "Always").then_some(0));
    }
}

#[test]
fn a_pod_deleted_while_its_lost_sandbox_is_ended_is_removed() {
    let mut m = machine("Always", 1);
    up(&mut m);
    m.sandbox_lost();
    assert_eq!(m.step(9).actions, [Action::EndSandbox]);
    m.assign(deleting(&m, 30));
    assert_eq!(m.step(9).actions, []);
    m.sandbox_ended(10);
    assert_eq!(m.step(10).actions, [Action::RemoveSandbox]);
    m.sandbox_removed();
    assert!(m.is_removed());
}

#[test]
fn adoption_takes_over_running_containers_without_a_restart() {
    let life = |attempt: u32, ended| Adopted {
        name: "c0".into(),
        id: format!("0-{attempt}"),
        attempt,
        image: "i".into(),
        image_id: "sha256:1".into(),
        started_ms: 1,
        ended,
    };
    let mut m = machine("Always", 1);
    m.adopt(true, None, &[life(1, Some(exit("0-1", 1, 1))), life(2, None), life(0, Some(exit("0-0", 1, 1)))]);
    let step = m.step(10);
    assert_eq!(step.actions, [Action::Forget { id: "0-0".into() }]);
    assert_eq!(m.containers[0].attempt, 2);
    assert_eq!(m.containers[0].last.as_ref().unwrap().id.as_deref(), Some("0-1"));
    assert!(matches!(m.containers[0].phase, ContainerPhase::Running { .. }));
}

#[test]
fn of_two_lives_of_one_attempt_the_one_that_runs_is_adopted_and_the_other_forgotten() {
    let life = |id: &str, attempt, started_ms, ended| Adopted {
        name: "c0".into(),
        id: id.into(),
        attempt,
        image: "i".into(),
        image_id: "sha256:1".into(),
        started_ms,
        ended,
    };
    let lives =
        [life("runs", 1, 5, None), life("made", 1, 0, None), life("over", 0, 1, Some(exit("over", 1, 1)))];
    // In whatever order the runtime lists them.
    for turn in 0..lives.len() {
        let mut lives = lives.clone();
        lives.rotate_left(turn);
        let mut m = machine("Always", 1);
        m.adopt(true, None, &lives);
        assert_eq!(m.step(10).actions, [Action::Forget { id: "made".into() }]);
        assert!(matches!(&m.containers[0].phase, ContainerPhase::Running { id, .. } if id == "runs"));
        assert_eq!(m.containers[0].last.as_ref().unwrap().id.as_deref(), Some("over"));
    }
}

#[test]
fn an_exit_while_the_kubelet_was_away_counts_as_one_restart() {
    let mut m = machine("Always", 1);
    let ended = Adopted {
        name: "c0".into(),
        id: "0-0".into(),
        attempt: 0,
        image: "i".into(),
        image_id: String::new(),
        started_ms: 1,
        ended: Some(exit("0-0", 137, 5)),
    };
    m.adopt(true, None, &[ended]);
    assert_eq!(m.step(10).actions, [Action::Start(0)]);
    assert_eq!(m.containers[0].attempt, 1);
}

#[test]
fn a_missing_image_is_tried_again_and_at_once_when_images_come() {
    let mut m = machine("Always", 1);
    m.step(0);
    m.sandbox_ready(None);
    m.step(0);
    let missing = || StartFailure::Image { never: false, message: "no".into() };
    let shown = |m: &Machine| match &m.containers[0].phase {
        ContainerPhase::Waiting { why, .. } => (why.reason, why.message.clone().unwrap_or_default()),
        other => panic!("not waiting: {other:?}"),
    };
    let told = |step: Step| -> Vec<(bool, &'static str, String)> {
        step.notices.into_iter().map(|n| (n.warning, n.reason, n.message)).collect()
    };
    m.container_failed(0, missing(), 0);
    let step = m.step(0);
    assert_eq!((step.wake_at_ms, shown(&m)), (Some(5_000), ("ErrImagePull", "no".into())));
    let expected = [
        (true, "Failed", "Failed to pull image \"i\": no".to_owned()),
        (true, "Failed", "Error: ErrImagePull".to_owned()),
    ];
    assert_eq!(told(step), expected);
    let step = m.step(5_000);
    assert_eq!((&step.actions[..], step.wake_at_ms), (&[][..], Some(10_000)));
    assert_eq!(shown(&m), ("ImagePullBackOff", "Back-off pulling image \"i\": ErrImagePull: no".into()));
    let expected = [
        (false, "BackOff", "Back-off pulling image \"i\"".to_owned()),
        (true, "Failed", "Error: ImagePullBackOff".to_owned()),
    ];
    assert_eq!(told(step), expected);
    assert_eq!(m.step(10_000).actions, [Action::Start(0)]);
    // Twice as long after the second failure, and at once when an image comes.
    m.container_failed(0, missing(), 10_000);
    m.step(15_000);
    assert_eq!(m.step(15_000).wake_at_ms, Some(30_000));
    m.images_changed();
    assert_eq!(m.step(15_001).actions, [Action::Start(0)]);
    // Never more than five minutes.
    let mut now = 15_001;
    for _ in 0..10 {
        m.container_failed(0, missing(), now);
        m.step(now + 5_000);
        let at = m.step(now + 5_000).wake_at_ms.unwrap();
        assert!(at - now <= 300_000, "{}", at - now);
        now = at;
        assert_eq!(m.step(now).actions, [Action::Start(0)]);
    }
    // What got further begins anew with the next failure.
    m.container_failed(0, StartFailure::Create("full".into()), now);
    m.step(now + 10_000);
    m.container_failed(0, missing(), now + 10_000);
    m.step(now + 15_000);
    assert_eq!(m.step(now + 15_000).wake_at_ms, Some(now + 20_000));
}

#[test]
fn a_pull_that_is_given_up_because_the_pod_ends_is_no_news() {
    let mut m = machine("Always", 1);
    m.step(0);
    m.sandbox_ready(None);
    m.step(0);
    m.assign(deleting(&m, 1));
    assert_eq!(m.step(1).actions, [], "the start is under way");
    m.container_failed(0, StartFailure::Image { never: false, message: "the pod is to end".into() }, 2);
    let step = m.step(2);
    assert_eq!((step.actions, step.notices), (vec![Action::RemoveSandbox], vec![]));
}

#[test]
fn a_failing_sandbox_backs_off() {
    let mut m = machine("Always", 1);
    m.step(0);
    m.sandbox_failed("no", 0);
    assert_eq!(m.step(0).wake_at_ms, Some(1_000));
    assert_eq!(m.step(1_000).actions, [Action::RunSandbox]);
    m.sandbox_failed("no", 1_000);
    assert_eq!(m.step(1_000).wake_at_ms, Some(3_000));
}

proptest! {
    /// Whatever happens in whatever order: no container is started twice at once or outside a ready sandbox,
    /// nothing starts once the pod is ending, and an ending pod ends.
    #[test]
    fn any_order_of_events_keeps_the_invariants_and_an_ending_pod_ends(
        events in proptest::collection::vec((0_u8..9, 0_usize..2, 0_i32..3), 1..60)
    ) {
        let mut m = machine("Always", 2);
        let mut starting = [false; 2];
        let mut now = 0;
        let mut life = 0;
        let check = |m: &mut Machine, starting: &mut [bool; 2], now: i64| {
            let ending = m.is_ending();
            for action in m.step(now).actions {
                if let Action::Start(index) = action {
                    assert!(!starting[index], "started twice");
                    assert!(!ending, "started while ending");
                    assert!(matches!(m.sandbox, SandboxPhase::Ready { .. }));
                    starting[index] = true;
                }
            }
            let again = m.step(now).actions;
            assert!(again.is_empty(), "{again:?} a second time");
        };
        for (kind, index, code) in events {
            now += 4_000;
            match kind {
                0 if m.sandbox == SandboxPhase::Starting => m.sandbox_ready(None),
                1 if m.sandbox == SandboxPhase::Starting => m.sandbox_failed("x", now),
                2 | 3 if starting[index] => {
                    starting[index] = false;
                    life += 1;
                    m.container_started(index, format!("{index}-{life}"), String::new(), now);
                }
                4 if starting[index] => {
                    starting[index] = false;
                    m.container_failed(index, StartFailure::Create("x".into()), now);
                }
                5 | 6 => {
                    if let ContainerPhase::Running { id, .. } = m.containers[index].phase.clone() {
                        m.container_exited(exit(&id, code, now));
                    }
                }
                7 => m.sandbox_lost(),
                8 => match m.sandbox {
                    SandboxPhase::Ending => m.sandbox_ended(now),
                    SandboxPhase::Removing { .. } => m.sandbox_removed(),
                    SandboxPhase::Stopping => m.sandbox_stopped(),
                    _ => {}
                },
                _ => {}
            }
            check(&mut m, &mut starting, now);
        }
        m.assign(deleting(&m, 1));
        for _ in 0..20 {
            now += 400_000;
            check(&mut m, &mut starting, now);
            match m.sandbox {
                SandboxPhase::Starting => m.sandbox_ready(None),
                SandboxPhase::Ending => m.sandbox_ended(now),
                SandboxPhase::Stopping => m.sandbox_stopped(),
                SandboxPhase::Removing { .. } => m.sandbox_removed(),
                _ => {}
            }
            for (index, starting) in starting.iter_mut().enumerate() {
                if std::mem::take(starting) {
                    m.container_failed(index, StartFailure::Create("x".into()), now);
                }
                if let ContainerPhase::Running { id, .. } = m.containers[index].phase.clone() {
                    m.container_exited(exit(&id, 0, now));
                }
            }
        }
        prop_assert!(m.is_removed(), "{m:?}");
    }
}

/// The machine's pod with another image for its first container.
fn with_image(machine: &Machine, image: &str) -> Arc<v1::Pod> {
    let mut pod = (*machine.pod).clone();
    pod.spec.as_mut().unwrap().containers[0].image = Some(image.into());
    Arc::new(pod)
}

#[test]
fn a_container_whose_image_changed_is_restarted_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let mut m = machine(policy, 1);
        up(&mut m);
        m.assign(with_image(&m, "two"));
        let step = m.step(10);
        let stop = Action::Stop { index: 0, id: "0-0".into(), grace: Duration::from_secs(7) };
        assert_eq!(step.actions, [stop], "{policy}");
        let told = step.notices.iter().find(|n| n.reason == "Killing").unwrap();
        assert_eq!(told.message, "Container c0 definition changed, will be restarted");
        assert_eq!(m.step(11).actions, [], "a stop is asked for once");
        m.container_exited(exit("0-0", 0, 20));
        assert_eq!(m.step(20).actions, [Action::Start(0)], "{policy}");
        m.container_started(0, "0-1".into(), "sha256:2".into(), 30);
        assert_eq!(m.step(30).actions, []);
        let shown = status::pod_status(&m, None, "sim", None, 30);
        let c = &shown.container_statuses.as_ref().unwrap()[0];
        assert_eq!((c.restart_count, c.image.as_str()), (1, "two"));
    }
}

#[test]
fn an_image_that_changed_while_nobody_watched_is_noticed_at_adoption() {
    let mut m = machine("Always", 1);
    let old = Adopted {
        name: "c0".into(),
        id: "0-0".into(),
        attempt: 0,
        image: "old".into(),
        image_id: String::new(),
        started_ms: 1,
        ended: None,
    };
    m.adopt(true, None, &[old]);
    assert!(matches!(m.step(5).actions[..], [Action::Stop { .. }]));
}

#[test]
fn a_new_image_is_tried_at_once_whatever_the_old_one_did() {
    let mut m = machine("Always", 1);
    m.step(0);
    m.sandbox_ready(None);
    m.step(0);
    m.container_failed(0, StartFailure::Image { never: false, message: "no".into() }, 0);
    assert_eq!(m.step(1).actions, []);
    m.assign(with_image(&m, "two"));
    assert_eq!(m.step(1).actions, [Action::Start(0)]);
    // And when it changes while a start with the old one is under way.
    m.assign(with_image(&m, "three"));
    m.container_failed(0, StartFailure::Image { never: false, message: "no".into() }, 2);
    assert_eq!(m.step(2).actions, [Action::Start(0)]);
    m.container_started(0, "0-0".into(), String::new(), 3);
    for n in 0_u32..3 {
        m.container_exited(exit(&format!("0-{n}"), 1, 4));
        m.step(4);
        m.container_started(0, format!("0-{}", n + 1), String::new(), 4);
    }
    m.container_exited(exit("0-3", 1, 4));
    assert_eq!(m.step(4).actions.iter().filter(|a| matches!(a, Action::Start(_))).count(), 0, "it backs off");
    m.assign(with_image(&m, "four"));
    assert_eq!(m.step(5).actions, [Action::Start(0)]);
}

#[test]
fn a_second_deletion_with_less_grace_ends_the_pod_sooner() {
    let mut m = machine("Always", 1);
    up(&mut m);
    m.assign(deleting(&m, 30));
    assert!(matches!(m.step(0).actions[..], [Action::Stop { .. }]));
    m.assign(deleting(&m, 60));
    assert_eq!(m.step(1).actions, [], "never later");
    m.assign(deleting(&m, 1));
    let stop = Action::Stop { index: 0, id: "0-0".into(), grace: Duration::from_secs(1) };
    assert_eq!(m.step(2).actions, [stop]);
}

#[test]
fn a_stop_that_failed_is_asked_for_again() {
    let mut m = machine("Always", 1);
    up(&mut m);
    m.assign(deleting(&m, 3));
    assert!(matches!(m.step(0).actions[..], [Action::Stop { .. }]));
    m.container_stuck("0-0", "no \"answer\"");
    let step = m.step(1);
    assert!(matches!(step.actions[..], [Action::Stop { .. }]));
    let told = |step: &Step| {
        let failed = step.notices.iter().filter(|notice| notice.reason == "FailedKillPod");
        failed.map(|notice| notice.message.clone()).collect::<Vec<_>>()
    };
    let message =
        r#"error killing pod: failed to "KillContainer" for "c0" with KillContainerError: "no \"answer\"""#;
    assert_eq!(told(&step), [message]);
    m.container_exited(exit("0-0", 0, 2));
    assert!(matches!(m.step(2).actions[..], [Action::StopSandbox | Action::RemoveSandbox]));
    m.sandbox_stuck("busy");
    let message =
        r#"error killing pod: failed to "KillPodSandbox" for "u1" with KillPodSandboxError: "busy""#;
    assert_eq!(told(&m.step(3)), [message]);
}

#[test]
fn a_grace_below_none_is_the_least() {
    for (asked, seconds) in [(-1, 1), (0, 0), (5, 5)] {
        let mut pod = (*pod("Always", 1)).clone();
        pod.spec.as_mut().unwrap().termination_grace_period_seconds = Some(asked);
        assert_eq!(grace_of(&pod), seconds);
    }
}

#[test]
fn a_pod_that_is_over_when_its_sandbox_is_lost_is_stopped_and_kept() {
    let mut m = machine("Never", 1);
    up(&mut m);
    lose(&mut m, 9);
    assert_eq!(status::phase(&m), Phase::Failed);
    assert_eq!(m.step(9).actions, [Action::StopSandbox]);
    m.sandbox_stopped();
    assert!(!m.is_removed());
    // The same when nobody watched: what outlived the sandbox must be ended.
    let mut m = machine("Never", 1);
    let running = Adopted {
        name: "c0".into(),
        id: "0-0".into(),
        attempt: 0,
        image: "i".into(),
        image_id: String::new(),
        started_ms: 1,
        ended: None,
    };
    m.adopt(false, None, &[running]);
    assert_eq!(m.step(9).actions, [Action::StopSandbox]);
}

fn told(machine: &Machine) -> Arc<v1::Pod> {
    let mut pod = (*machine.pod).clone();
    pod.status = Some(status::pod_status(machine, None, "sim", None, 100));
    Arc::new(pod)
}

#[test]
fn a_pod_that_is_over_stays_over_when_the_node_has_nothing_of_it() {
    for (code, phase) in [(0, Phase::Succeeded), (3, Phase::Failed)] {
        let mut before = machine("Never", 1);
        up(&mut before);
        before.container_exited(exit("0-0", code, 5_000));
        let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
        m.recall();
        assert_eq!(m.step(9_000).actions, [], "{code}");
        assert_eq!(status::phase(&m), phase);
        assert_eq!(
            status::pod_status(&m, m.pod.status.as_ref(), "sim", None, 9_000).container_statuses,
            m.pod.status.as_ref().unwrap().container_statuses,
        );
    }
}

#[test]
fn restarts_are_counted_on_when_the_node_has_nothing_of_the_pod() {
    let mut before = machine("Always", 1);
    up(&mut before);
    before.container_exited(exit("0-0", 1, 1_000));
    before.step(1_000);
    before.container_started(0, "0-1".into(), String::new(), 1_000);
    let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
    m.recall();
    assert_eq!(m.step(9_000).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    assert_eq!(m.step(9_000).actions, [Action::Start(0)]);
    m.container_started(0, "0-2".into(), String::new(), 9_000);
    let shown = status::pod_status(&m, m.pod.status.as_ref(), "sim", None, 9_000);
    let c = &shown.container_statuses.as_ref().unwrap()[0];
    assert_eq!(c.restart_count, 2);
    let last = c.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
}

/// What is said of the pod's sandbox in one step.
fn sandbox_notices(m: &mut Machine, now_ms: i64) -> Vec<&'static str> {
    let notices = m.step(now_ms).notices;
    notices.iter().map(|notice| notice.reason).filter(|reason| reason.starts_with("Sandbox")).collect()
}

#[test]
fn what_ran_until_its_sandbox_was_found_lost_ended_when_that_was_noticed_and_an_event_tells_of_it() {
    let life = |ended| Adopted {
        name: "c0".into(),
        id: "0-0".into(),
        attempt: 0,
        image: "i".into(),
        image_id: String::new(),
        started_ms: 1_000,
        ended,
    };
    let found = |policy, ready, ended| {
        let mut m = Machine::new(machine(policy, 1).pod, Backoff::CRASH_LOOP, 900_000);
        m.adopt(ready, None, &[life(ended)]);
        m
    };
    let mut m = found("Always", false, None);
    let last = m.containers[0].last.clone().unwrap();
    assert_eq!((last.started_ms, last.finished_ms, m.containers[0].attempt), (1_000, 900_000, 1));
    assert_eq!(sandbox_notices(&mut m, 900_000), ["SandboxChanged"]);
    // What had ended before, or is over, or goes on, needs no such event.
    assert_eq!(sandbox_notices(&mut found("Never", false, None), 900_000), [""; 0]);
    assert_eq!(sandbox_notices(&mut found("Always", true, None), 900_000), [""; 0]);
    // The node has nothing of the pod any more: what was told of it is believed.
    let mut before = machine("Always", 1);
    let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 900_000);
    m.recall();
    assert_eq!(sandbox_notices(&mut m, 900_000), [""; 0], "it never ran");
    up(&mut before);
    let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 900_000);
    m.recall();
    assert_eq!(sandbox_notices(&mut m, 900_000), ["SandboxChanged"]);
    assert_eq!(m.containers[0].last.as_ref().unwrap().finished_ms, 900_000);
}

#[test]
fn a_life_that_nobody_knows_is_removed_but_not_one_that_is_just_being_started() {
    let mut m = machine("Always", 2);
    up(&mut m);
    m.container_exited(exit("0-0", 1, 1_000));
    assert_eq!(m.step(1_000).actions, [Action::Start(0)]);
    let all = ["0-0", "0-1", "1-0", "stray"];
    m.remove_strays(all);
    assert_eq!(m.step(1_000).actions, [], "one of them may be what is being started");
    m.container_started(0, "0-1".into(), String::new(), 1_000);
    m.remove_strays(all);
    assert_eq!(m.step(1_000).actions, [Action::Forget { id: "stray".into() }]);
}

/// Five hours.
const SET_BACK_MS: i64 = 5 * 3_600_000;

#[test]
fn a_clock_that_is_set_back_makes_nobody_wait_for_hours() {
    // While it waits for its next life…
    let mut m = machine("Always", 1);
    up(&mut m);
    m.container_exited(exit("0-0", 1, SET_BACK_MS));
    m.step(SET_BACK_MS);
    m.container_started(0, "0-1".into(), "sha256:1".into(), SET_BACK_MS);
    m.container_exited(exit("0-1", 1, SET_BACK_MS));
    assert_eq!(m.step(SET_BACK_MS).wake_at_ms, Some(SET_BACK_MS + 10_000));
    assert_eq!(
        m.step(1_000).wake_at_ms,
        Some(1_000 + millis(Backoff::CRASH_LOOP.cap)),
        "no longer than ever"
    );
    assert_eq!(m.step(1_000 + millis(Backoff::CRASH_LOOP.cap)).actions, [Action::Start(0)]);

    // …while nobody watched…
    let mut m = machine("Always", 1);
    let ended = |attempt| Adopted {
        name: "c0".into(),
        id: format!("0-{attempt}"),
        attempt,
        ended: Some(exit("0-1", 1, SET_BACK_MS)),
        started_ms: SET_BACK_MS,
        image: "i".into(),
        image_id: "sha256:1".into(),
    };
    m.adopt(true, None, &[ended(1)]);
    assert!(m.step(0).actions.contains(&Action::Start(0)), "it ended before now");

    // …while its sandbox fails…
    let mut m = machine("Always", 1);
    m.step(SET_BACK_MS);
    m.sandbox_failed("no", SET_BACK_MS);
    m.step(SET_BACK_MS);
    m.sandbox_failed("no", SET_BACK_MS);
    assert_eq!(m.step(SET_BACK_MS).wake_at_ms, Some(SET_BACK_MS + 2_000));
    assert_eq!(m.step(0).wake_at_ms, Some(60_000));
    assert_eq!(m.step(60_000).actions, [Action::RunSandbox]);
}

#[test]
fn the_time_to_end_is_counted_from_now_when_the_clock_was_set_back() {
    let mut m = Machine::new(
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
                "spec": {
                    "containers": [{"name": "c0", "image": "i"}],
                    "initContainers": [{"name": "side", "image": "i", "restartPolicy": "Always"}],
                }
            }))
            .unwrap(),
        ),
        Backoff::CRASH_LOOP,
        0,
    );
    m.step(0);
    m.sandbox_ready(None);
    for index in [1, 0] {
        assert_eq!(m.step(0).actions, [Action::Start(index)]);
        m.container_started(index, format!("{index}-0"), "sha256:1".into(), 0);
    }
    m.assign(deleting(&m, 3));
    let stops = |step: &Step| step.actions.iter().filter(|a| matches!(a, Action::Stop { .. })).count();
    let step = m.step(SET_BACK_MS);
    assert_eq!(
        (stops(&step), step.wake_at_ms),
        (1, Some(SET_BACK_MS + 3_000)),
        "sidecars end after the others"
    );
    assert_eq!(m.step(1_000).wake_at_ms, Some(4_000));
    assert_eq!(stops(&m.step(4_000)), 1, "its time is over");
}

fn made(id: &str, attempt: u32, ended: Option<Ended>) -> Adopted {
    Adopted {
        name: "c0".into(),
        id: id.into(),
        attempt,
        image: "i".into(),
        image_id: String::new(),
        started_ms: 0,
        ended,
    }
}

/// A pod whose container did not start, as it was told.
fn not_started(policy: &str) -> Machine {
    let mut m = machine(policy, 1);
    m.step(0);
    m.sandbox_ready("10.0.0.2".parse().ok());
    m.step(0);
    m.container_failed(0, StartFailure::Run { id: "0-0".into(), message: "no such file".into() }, 5_000);
    m
}

#[test]
fn what_failed_to_start_is_not_started_again_because_the_kubelet_was() {
    let before = not_started("Never");
    // Runtimes have such a container as one that was never started, or as one that ended at once.
    let ended = Ended { reason: "Error".into(), started_ms: 0, ..exit("0-0", 128, 6_000) };
    for (ready, ended) in [(true, None), (false, None), (true, Some(ended.clone())), (false, Some(ended))] {
        let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
        m.adopt(ready, None, &[made("0-0", 0, ended.clone())]);
        let expected: &[Action] = if ready { &[Action::StopSandbox] } else { &[] };
        assert_eq!(m.step(9_000).actions, expected, "{ready} {ended:?}");
        let shown = status::pod_status(&m, m.pod.status.as_ref(), "sim", None, 9_000);
        let before = m.pod.status.as_ref().unwrap();
        assert_eq!(shown.container_statuses, before.container_statuses, "{ready} {ended:?}");
        assert_eq!((&shown.phase, &shown.pod_ip), (&before.phase, &before.pod_ip), "{ready} {ended:?}");
    }
    // With another policy the failure counts, as it did.
    let mut m = Machine::new(told(&not_started("Always")), Backoff::CRASH_LOOP, 5_000);
    m.adopt(true, None, &[made("0-0", 0, None)]);
    assert_eq!(m.step(5_000).actions, [Action::Start(0)]);
    assert_eq!((m.containers[0].attempt, m.containers[0].last.as_ref().map(|l| l.code)), (1, Some(128)));
}

#[test]
fn a_start_that_failed_and_was_not_told_of_has_its_own_time_and_reason() {
    let mut m = machine("Never", 1);
    let ended = Ended { reason: "Error".into(), started_ms: 0, ..exit("0-0", 128, 6_000) };
    m.adopt(true, None, &[made("0-0", 0, Some(ended))]);
    let ContainerPhase::Exited(ended) = &m.containers[0].phase else { panic!("{:?}", m.containers) };
    assert_eq!((ended.reason.as_str(), ended.started_ms), ("StartError", 6_000));
    // One that ran, whenever that was.
    for (code, reason) in [(0, "Completed"), (137, "OOMKilled")] {
        let mut m = machine("Never", 1);
        let ended = Ended { reason: reason.into(), started_ms: 0, ..exit("0-0", code, 6_000) };
        m.adopt(true, None, &[made("0-0", 0, Some(ended))]);
        let ContainerPhase::Exited(ended) = &m.containers[0].phase else { panic!("{:?}", m.containers) };
        assert_eq!((ended.reason.as_str(), ended.started_ms), (reason, 6_000));
    }
    // What was made and of whose end nobody knows is yet to begin.
    let mut m = machine("Never", 1);
    m.adopt(true, None, &[made("0-0", 0, None)]);
    assert_eq!(m.step(0).actions, [Action::Start(0), Action::Forget { id: "0-0".into() }]);
}

#[test]
fn the_address_of_a_pod_that_is_over_is_kept_when_the_runtime_knows_it_no_more() {
    let mut before = machine("Never", 1);
    up(&mut before);
    before.container_exited(exit("0-0", 1, 5_000));
    let life = Adopted { started_ms: 1, ..made("0-0", 0, Some(exit("0-0", 1, 5_000))) };
    for lives in [vec![life], vec![]] {
        for found in [true, false] {
            let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
            if found {
                m.adopt(false, None, &lives)
            } else {
                m.recall()
            }
            assert_eq!(m.step(9_000).actions, []);
            assert_eq!(m.ip, "10.0.0.2".parse().ok(), "{found}");
        }
    }
}

#[test]
fn what_ended_for_good_in_an_earlier_sandbox_is_not_run_again() {
    let mut before = machine("OnFailure", 2);
    up(&mut before);
    before.container_exited(exit("0-0", 0, 5_000));
    before.step(5_000);
    lose(&mut before, 6_000);
    before.step(6_000);
    before.sandbox_removed();
    before.step(6_000);
    before.sandbox_ready(None);
    assert_eq!(before.step(6_000).actions, [Action::Start(1)]);
    before.container_started(1, "1-1".into(), String::new(), 7_000);
    let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
    let second = Adopted { name: "c1".into(), started_ms: 7_000, ..made("1-1", 1, None) };
    m.adopt(true, None, &[second]);
    assert_eq!(m.step(9_000).actions, []);
    assert!(matches!(&m.containers[0].phase, ContainerPhase::Exited(ended) if ended.code == 0));
}

#[test]
fn a_container_that_waits_for_its_back_off_counts_on_when_its_sandbox_was_lost() {
    let mut before = machine("Always", 2);
    up(&mut before);
    for (life, at) in [("0-0", 1_000), ("0-1", 2_000)] {
        before.container_exited(exit(life, 1, at));
        before.step(at);
        if life == "0-0" {
            before.container_started(0, "0-1".into(), String::new(), 1_500);
        }
    }
    let waiting = told(&before);
    let status = &waiting.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    assert!(status.state.as_ref().unwrap().waiting.is_some() && status.restart_count == 1, "{status:?}");
    let mut m = Machine::new(waiting, Backoff::CRASH_LOOP, 2_500);
    let second = Adopted { name: "c1".into(), started_ms: 2_400, ..made("1-1", 1, None) };
    m.adopt(true, None, &[second]);
    let step = m.step(2_500);
    let ended = m.containers[0].last.as_ref().map(|ended| ended.code);
    assert_eq!((m.containers[0].attempt, ended), (2, Some(1)), "{step:?}");
}

#[test]
fn a_pod_whose_status_says_that_it_is_over_ends_and_stays_what_was_said() {
    for phase in ["Failed", "Succeeded"] {
        let mut m = machine("Always", 1);
        up(&mut m);
        m.step(0);
        let mut pod = (*told(&m)).clone();
        let told = pod.status.as_mut().unwrap();
        (told.phase, told.reason) = (Some(phase.to_owned()), Some("Decided".to_owned()));
        let pod = Arc::new(pod);
        m.assign(pod.clone());
        let grace = Duration::from_secs(7);
        assert_eq!(m.step(10).actions, [Action::Stop { index: 0, id: "0-0".into(), grace }]);
        let shown = status::pod_status(&m, None, "sim", None, 10);
        assert_eq!((shown.phase.as_deref(), shown.reason.as_deref()), (Some(phase), Some("Decided")));
        assert!(shown.conditions.iter().flatten().all(|c| c.type_ != "Ready" || c.status == "False"));
        m.container_exited(exit("0-0", 143, 20));
        assert_eq!(m.step(20).actions, [Action::StopSandbox], "nothing begins again");
        let shown = status::pod_status(&m, None, "sim", None, 10);
        assert_eq!((shown.phase.as_deref(), shown.reason.as_deref()), (Some(phase), Some("Decided")));
        // One that never had anything on its node stays so.
        let mut m = Machine::new(pod, Backoff::CRASH_LOOP, 0);
        m.recall();
        assert_eq!(m.step(0).actions, []);
    }
}

#[test]
fn a_container_that_is_about_to_start_again_is_told_to_be_what_it_was() {
    let mut m = machine("Always", 1);
    up(&mut m);
    m.container_exited(exit("0-0", 137, 1_000));
    let shown = |m: &Machine| {
        let status = status::pod_status(m, None, "sim", None, 1_000);
        status.container_statuses.unwrap().remove(0)
    };
    let state = |status: &v1::ContainerStatus| {
        let ended = status.state.as_ref().unwrap().terminated.as_ref()?;
        Some((ended.exit_code, ended.reason.clone().unwrap()))
    };
    assert_eq!(m.step(1_000).actions, [Action::Start(0)]);
    let status = shown(&m);
    assert_eq!(state(&status), Some((137, "Error".into())));
    assert_eq!((status.restart_count, status.container_id.as_deref()), (0, Some("sim://0-0")));
    assert_eq!(status.last_state, Some(v1::ContainerState::default()));
    m.container_started(0, "0-1".into(), "sha256:1".into(), 2_000);
    let status = shown(&m);
    assert_eq!((state(&status), status.restart_count), (None, 1));
    assert_eq!(status.last_state.unwrap().terminated.unwrap().exit_code, 137);
    // What is to be said of the next life goes before.
    m.container_exited(exit("0-1", 1, 3_000));
    m.step(3_000);
    assert_eq!(state(&shown(&m)), None);
    // A kubelet that begins in between counts it once.
    let mut m = machine("Always", 1);
    up(&mut m);
    m.container_exited(exit("0-0", 137, 1_000));
    m.step(1_000);
    let mut next = Machine::new(told(&m), Backoff::CRASH_LOOP, 9_000);
    next.adopt(true, None, &[]);
    assert_eq!(next.step(9_000).actions, [Action::Start(0)]);
    assert_eq!(next.containers[0].attempt, 1);
}

#[test]
fn a_pod_that_goes_for_its_nodes_sake_says_so_and_one_that_took_too_much_does_not() {
    for disrupted in [true, false] {
        let mut m = machine("Always", 1);
        up(&mut m);
        m.fail_evicted("too little".into(), disrupted);
        let told = |m: &Machine| {
            let status = status::pod_status(m, None, "sim", None, 0);
            let all = status.conditions.into_iter().flatten();
            all.filter(|c| c.type_ == "DisruptionTarget").map(|c| (c.status, c.reason, c.message)).next()
        };
        let said =
            ("True".to_owned(), Some("TerminationByKubelet".to_owned()), Some("too little".to_owned()));
        let expected = disrupted.then_some(said);
        assert_eq!(told(&m), expected);
        // So does the next kubelet.
        let mut pod = (*m.pod).clone();
        pod.status = Some(status::pod_status(&m, None, "sim", None, 0));
        let next = Machine::new(Arc::new(pod), Backoff::CRASH_LOOP, 0);
        assert_eq!(told(&next), expected);
    }
}

#[test]
fn an_ephemeral_container_runs_once_whatever_became_of_its_sandbox() {
    let mut pod = (*pod("Always", 1)).clone();
    let debug = serde_json::json!([{"name": "debug", "image": "i"}]);
    pod.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(debug).unwrap();
    let mut before = Machine::new(Arc::new(pod), Backoff::CRASH_LOOP, 0);
    up(&mut before);
    let main = Adopted { started_ms: 7_000, ..made("0-1", 1, None) };
    for lost in [false, true] {
        if lost {
            lose(&mut before, 6_000);
        }
        let mut m = Machine::new(told(&before), Backoff::CRASH_LOOP, 9_000);
        m.adopt(true, None, std::slice::from_ref(&main));
        assert_eq!(m.step(9_000).actions, [], "{lost}");
        assert!(matches!(m.containers[1].phase, ContainerPhase::Exited(_)), "{lost}");
    }
}

#[test]
fn a_start_that_fails_because_the_sandbox_died_under_it_is_no_failure_of_the_container() {
    let text = || "the sandbox of pod u1 is not ready".to_owned();
    for (told_first, said) in [(true, true), (false, true), (true, false), (false, false)] {
        let error = || if said { StartFailure::Sandbox(text()) } else { StartFailure::Create(text()) };
        let mut m = machine("Always", 1);
        up(&mut m);
        // Its end is told before its sandbox'.
        m.container_exited(exit("0-0", 137, 1_000));
        assert_eq!(m.step(1_000).actions, [Action::Start(0)]);
        if !told_first {
            m.container_failed(0, error(), 1_000);
            assert_eq!(m.step(1_000).notices.is_empty(), said);
        }
        m.sandbox_lost();
        assert_eq!(m.step(1_000).actions, [Action::RemoveSandbox]);
        if told_first {
            m.container_failed(0, error(), 1_001);
            assert_eq!(m.step(1_001).notices, [], "nobody need hear of it");
        }
        m.sandbox_removed();
        assert_eq!(m.step(1_100).actions, [Action::RunSandbox]);
        m.sandbox_ready(None);
        assert_eq!(m.step(1_200).actions, [Action::Start(0)], "at once");
        assert_eq!(m.containers[0].attempt, 1);
    }
}
