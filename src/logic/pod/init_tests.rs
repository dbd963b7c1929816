//! Tests of init containers, sidecars and pods that fail as a whole.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{
    logic::{
        pod::{Adopted, Ended, SandboxPhase, StartFailure, status},
        supervision::Backoff,
    },
    model::Phase,
};

/// A pod of one main container `main` and these init containers; `+` in front makes one a sidecar.
fn pod(policy: &str, init: &[&str]) -> Arc<v1::Pod> {
    let init: Vec<Value> = init
        .iter()
        .map(|name| match name.strip_prefix('+') {
            Some(name) => json!({"name": name, "image": "i", "restartPolicy": "Always"}),
            None => json!({"name": name, "image": "i"}),
        })
        .collect();
    let json = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 10, "initContainers": init,
            "containers": [{"name": "main", "image": "i"}]}
    });
    Arc::new(serde_json::from_value(json).unwrap())
}

fn with(pod: &v1::Pod, change: impl FnOnce(&mut v1::Pod)) -> Arc<v1::Pod> {
    let mut pod = pod.clone();
    change(&mut pod);
    Arc::new(pod)
}

/// A machine whose sandbox is ready.
fn machine(policy: &str, init: &[&str]) -> Machine {
    begun(pod(policy, init))
}

fn begun(pod: Arc<v1::Pod>) -> Machine {
    let mut m = Machine::new(pod, Backoff::CRASH_LOOP, 0);
    assert_eq!(m.step(0).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    m
}

fn index(m: &Machine, name: &str) -> usize {
    m.containers.iter().position(|c| c.name == name).unwrap()
}

fn id(name: &str, m: &Machine) -> String {
    format!("{name}-{}", m.containers[index(m, name)].attempt)
}

/// What the next step starts, by name; they then run.
fn started(m: &mut Machine, now_ms: i64) -> Vec<String> {
    let mut names = Vec::new();
    for action in m.step(now_ms).actions {
        if let Action::Start(index) = action {
            let name = m.containers[index].name.clone();
            m.container_started(index, id(&name, m), "sha256:1".into(), now_ms);
            names.push(name);
        }
    }
    names
}

/// Which containers the next step asks to end, and within how many seconds.
fn stopped(m: &mut Machine, now_ms: i64) -> Vec<(String, u64)> {
    let actions = m.step(now_ms).actions;
    let stops = actions.into_iter().filter_map(|action| match action {
        Action::Stop { index, grace, .. } => Some((m.containers[index].name.clone(), grace.as_secs())),
        _ => None,
    });
    stops.collect()
}

fn exit(m: &mut Machine, name: &str, code: i32, now_ms: i64) {
    let ended = Ended {
        id: Some(id(name, m)),
        code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: None,
        started_ms: now_ms,
        finished_ms: now_ms,
    };
    m.container_exited(ended);
}

fn shown(m: &Machine) -> v1::PodStatus {
    status::pod_status(m, None, "sim", None, 0)
}

fn condition(m: &Machine, name: &str) -> v1::PodCondition {
    shown(m).conditions.unwrap().into_iter().find(|c| c.type_ == name).unwrap()
}

/// What `kubectl get pods` calls it.
fn word(m: &Machine) -> String {
    let pod = with(&m.pod, |pod| pod.status = Some(shown(m)));
    let cells = crate::model::table_pod::cells(&pod, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    cells[1].as_str().unwrap().to_owned()
}

#[test]
fn init_containers_run_one_by_one_before_the_main_ones() {
    let mut m = machine("Always", &["a", "b"]);
    assert_eq!(word(&m), "Init:0/2");
    assert_eq!(started(&mut m, 0), ["a"]);
    assert_eq!(started(&mut m, 1), [""; 0]);
    let initialized = condition(&m, "Initialized");
    assert_eq!(initialized.reason.as_deref(), Some("ContainersNotInitialized"));
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [a b]"));
    let main = shown(&m).container_statuses.unwrap()[0].state.clone().unwrap().waiting.unwrap();
    assert_eq!(main.reason.as_deref(), Some("PodInitializing"));
    exit(&mut m, "a", 0, 2);
    assert_eq!(started(&mut m, 2), ["b"]);
    assert_eq!((word(&m).as_str(), status::phase(&m)), ("Init:1/2", Phase::Pending));
    let message = condition(&m, "Initialized").message.unwrap();
    assert_eq!(message, "containers with incomplete status: [b]");
    exit(&mut m, "b", 0, 3);
    m.advance_init();
    assert_eq!(word(&m), "PodInitializing");
    assert_eq!(started(&mut m, 3), ["main"]);
    assert_eq!((word(&m).as_str(), status::phase(&m)), ("Running", Phase::Running));
    assert_eq!(condition(&m, "Initialized").status, "True");
    let init = shown(&m).init_container_statuses.unwrap();
    assert!(init.iter().all(|c| c.ready && c.state.as_ref().unwrap().terminated.is_some()));
}

#[test]
fn a_failed_init_container_is_tried_again_unless_the_policy_is_never() {
    for policy in ["Always", "OnFailure"] {
        let mut m = machine(policy, &["a"]);
        assert_eq!(started(&mut m, 0), ["a"]);
        exit(&mut m, "a", 1, 0);
        assert_eq!(started(&mut m, 0), ["a"], "the first time at once");
        exit(&mut m, "a", 1, 0);
        assert_eq!(started(&mut m, 0), [""; 0]);
        assert_eq!((word(&m).as_str(), status::phase(&m)), ("Init:CrashLoopBackOff", Phase::Pending));
        assert_eq!(started(&mut m, 10_000), ["a"]);
        exit(&mut m, "a", 0, 10_000);
        assert_eq!(started(&mut m, 10_000), ["main"]);
    }
    let mut m = machine("Never", &["a", "b"]);
    assert_eq!(started(&mut m, 0), ["a"]);
    exit(&mut m, "a", 3, 0);
    assert_eq!(m.step(0).actions, [Action::StopSandbox]);
    assert_eq!((word(&m).as_str(), status::phase(&m)), ("Init:Error", Phase::Failed));
}

#[test]
fn a_sidecar_need_only_start_and_is_started_again_whatever_the_policy() {
    let mut m = machine("Never", &["a", "+side", "b"]);
    assert_eq!(started(&mut m, 0), ["a"]);
    exit(&mut m, "a", 0, 0);
    assert_eq!(started(&mut m, 0), ["side"]);
    assert_eq!(started(&mut m, 0), ["b"]);
    exit(&mut m, "side", 0, 1);
    exit(&mut m, "b", 0, 1);
    let mut both = started(&mut m, 1);
    both.sort();
    assert_eq!(both, ["main", "side"], "what was passed is not waited for again");
    exit(&mut m, "side", 1, 2);
    let ready = condition(&m, "Ready");
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [side]"));
    assert_eq!(status::phase(&m), Phase::Running);
}

#[test]
fn sidecars_are_ended_after_the_main_containers_from_the_last_to_the_first() {
    let mut m = machine("Never", &["+one", "+two"]);
    for name in ["one", "two", "main"] {
        assert_eq!(started(&mut m, 0), [name]);
    }
    exit(&mut m, "main", 0, 1_000);
    assert_eq!(stopped(&mut m, 1_000), [("two".to_owned(), 10)]);
    assert_eq!(stopped(&mut m, 2_000), []);
    assert_eq!(status::phase(&m), Phase::Running, "until the sidecars have ended");
    exit(&mut m, "two", 143, 4_000);
    assert_eq!(stopped(&mut m, 4_000), [("one".to_owned(), 7)], "the grace is the pod's");
    exit(&mut m, "one", 143, 5_000);
    assert_eq!(m.step(5_000).actions, [Action::StopSandbox]);
    assert_eq!(status::phase(&m), Phase::Succeeded, "how sidecars end does not matter");
}

#[test]
fn a_deleted_pod_ends_its_sidecars_last_but_within_its_grace() {
    let mut m = machine("Always", &["+side"]);
    assert_eq!(started(&mut m, 0), ["side"]);
    assert_eq!(started(&mut m, 0), ["main"]);
    m.assign(with(&m.pod, |pod| {
        pod.metadata.deletion_timestamp = Some(status::time(0));
        pod.metadata.deletion_grace_period_seconds = Some(5);
    }));
    let step = m.step(100);
    assert!(matches!(&step.actions[..], [Action::Stop { index: 0, .. }]), "{step:?}");
    assert_eq!(step.wake_at_ms, Some(5_100));
    // The main container ignores it: the sidecar is asked when the time is up.
    assert_eq!(stopped(&mut m, 5_099), []);
    assert_eq!(stopped(&mut m, 5_100), [("side".to_owned(), 2)]);
    exit(&mut m, "side", 0, 5_200);
    exit(&mut m, "main", 137, 5_200);
    assert_eq!(m.step(5_200).actions, [Action::RemoveSandbox]);
}

#[test]
fn a_sidecars_pre_stop_hook_begins_with_the_others_and_its_end_waits_for_its_turn() {
    let hooked = with(&pod("Always", &["+one", "+two"]), |pod| {
        let lifecycle = json!({"preStop": {"sleep": {"seconds": 1}}});
        let first = &mut pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0];
        first.lifecycle = Some(serde_json::from_value(lifecycle).unwrap());
    });
    let mut m = begun(hooked);
    while !started(&mut m, 0).is_empty() {}
    m.evict();
    let (main, one) = (index(&m, "main"), index(&m, "one"));
    let grace = Duration::from_secs(10);
    let step = m.step(1_000);
    assert!(step.actions.iter().any(|a| matches!(a, Action::Stop { index, .. } if *index == main)));
    let begins = Action::PreStop { index: one, id: id("one", &m), grace };
    assert!(step.actions.contains(&begins), "{step:?}");
    assert_eq!(step.actions.len(), 2, "the other sidecar has no hook, and it is not yet its turn");
    assert_eq!(m.step(1_500).actions, [], "a hook is begun once");
    exit(&mut m, "main", 0, 2_000);
    assert_eq!(stopped(&mut m, 2_000), [("two".to_owned(), 9)]);
    exit(&mut m, "two", 0, 3_000);
    assert_eq!(stopped(&mut m, 3_000), [("one".to_owned(), 8)]);
}

#[test]
fn a_sidecars_startup_probe_holds_the_next_init_container_back() {
    let probed = with(&pod("Always", &["+side", "next"]), |pod| {
        let probe = json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 30});
        let side = &mut pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0];
        side.startup_probe = Some(serde_json::from_value(probe).unwrap());
    });
    let mut m = begun(probed);
    assert_eq!(started(&mut m, 0), ["side"]);
    let kind = crate::logic::pod::probe::ProbeKind::Startup;
    let side = id("side", &m);
    assert_eq!(started(&mut m, 2_000), [""; 0], "it runs, but it has not started");
    m.probed(&side, kind, &crate::logic::pod::probe::Outcome::Failure("no".into()));
    assert_eq!(started(&mut m, 4_000), [""; 0]);
    m.probed(&side, kind, &crate::logic::pod::probe::Outcome::Success);
    assert_eq!(started(&mut m, 6_000), ["next"]);
}

#[test]
fn a_failed_init_container_takes_the_sidecars_along() {
    let mut m = machine("Never", &["+side", "a"]);
    assert_eq!(started(&mut m, 0), ["side"]);
    assert_eq!(started(&mut m, 0), ["a"]);
    exit(&mut m, "a", 1, 0);
    assert_eq!(stopped(&mut m, 0), [("side".to_owned(), 10)]);
    exit(&mut m, "side", 0, 1);
    assert_eq!(m.step(1).actions, [Action::StopSandbox]);
    assert_eq!(status::phase(&m), Phase::Failed);
}

#[test]
fn a_sidecar_between_two_lives_is_not_started_again_when_the_pod_is_over() {
    let mut m = machine("Never", &["+side"]);
    started(&mut m, 0);
    started(&mut m, 0);
    exit(&mut m, "side", 1, 0);
    started(&mut m, 0);
    exit(&mut m, "side", 2, 0);
    exit(&mut m, "main", 0, 1);
    let actions = m.step(1).actions;
    assert!(actions.contains(&Action::StopSandbox) && actions.len() == 2, "{actions:?}");
    let side = &shown(&m).init_container_statuses.unwrap()[0];
    assert_eq!(side.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 2);
    assert_eq!((side.restart_count, status::phase(&m)), (1, Phase::Succeeded));
}

#[test]
fn a_lost_sandbox_runs_the_init_containers_again() {
    let mut m = machine("Always", &["a", "+side"]);
    started(&mut m, 0);
    exit(&mut m, "a", 0, 0);
    assert_eq!((started(&mut m, 0), started(&mut m, 0)), (vec!["side".into()], vec!["main".into()]));
    m.sandbox_lost();
    assert_eq!(m.step(1).actions, [Action::EndSandbox]);
    m.sandbox_ended(1);
    assert_eq!(m.step(1).actions, [Action::RemoveSandbox]);
    m.sandbox_removed();
    assert_eq!(m.step(1).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    for name in ["a", "side", "main"] {
        assert_eq!(started(&mut m, 1), [name]);
        if name == "a" {
            exit(&mut m, "a", 0, 1);
        }
    }
    assert_eq!(m.containers[index(&m, "a")].attempt, 1);
}

#[test]
fn a_start_that_was_under_way_when_the_sandbox_was_lost_is_awaited() {
    let mut m = machine("Always", &["a", "b"]);
    started(&mut m, 0);
    exit(&mut m, "a", 0, 0);
    let b = index(&m, "b");
    assert_eq!(m.step(0).actions, [Action::Start(b)]);
    m.sandbox_lost();
    assert_eq!(m.step(1).actions, [Action::RemoveSandbox]);
    m.sandbox_removed();
    assert_eq!(m.step(1).actions, [], "its outcome would count in the next sandbox");
    m.container_started(b, id("b", &m), String::new(), 2);
    assert_eq!(m.step(2).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    assert_eq!(started(&mut m, 2), ["a"]);
}

fn life(name: &str, code: Option<i32>) -> Adopted {
    let ended = code.map(|code| Ended {
        id: Some(format!("{name}-0")),
        code,
        signal: None,
        reason: "Completed".into(),
        message: None,
        started_ms: 1,
        finished_ms: 1,
    });
    Adopted {
        name: name.into(),
        id: format!("{name}-0"),
        attempt: 0,
        image: "i".into(),
        image_id: String::new(),
        started_ms: 1,
        ended,
    }
}

#[test]
fn what_is_done_is_not_run_again_by_the_next_kubelet() {
    for (lives, starts) in [
        (vec![life("a", Some(0)), life("b", None)], vec![]),
        (vec![life("a", Some(0)), life("b", Some(0))], vec!["main"]),
        (vec![life("a", Some(0)), life("b", Some(1))], vec!["b"]),
        (vec![life("a", Some(0)), life("b", Some(0)), life("main", None)], vec![]),
        // Records of ended lives may be gone: a later one tells enough.
        (vec![life("main", None)], vec![]),
        (vec![life("b", None)], vec![]),
    ] {
        let mut m = Machine::new(pod("Always", &["a", "b"]), Backoff::CRASH_LOOP, 0);
        m.adopt(true, None, &lives);
        assert_eq!(started(&mut m, 10), starts, "{lives:?}");
    }
}

#[test]
fn init_containers_run_again_when_the_next_kubelet_finds_no_sandbox() {
    let mut m = Machine::new(pod("Always", &["a"]), Backoff::CRASH_LOOP, 0);
    m.adopt(false, None, &[life("a", Some(0)), life("main", None)]);
    assert_eq!(m.step(10).actions, [Action::RemoveSandbox]);
    // The same when the node has nothing at all of it, only what was told.
    let mut before = machine("Always", &["a"]);
    started(&mut before, 0);
    exit(&mut before, "a", 0, 0);
    started(&mut before, 0);
    let told = with(&before.pod, |pod| pod.status = Some(shown(&before)));
    let mut after = Machine::new(told, Backoff::CRASH_LOOP, 0);
    after.recall();
    for m in [&mut m, &mut after] {
        m.sandbox_removed();
        m.sandbox = SandboxPhase::Ready { ip: None };
        assert_eq!(started(m, 10), ["a"]);
        exit(m, "a", 0, 20);
        assert_eq!(started(m, 20), ["main"]);
    }
}

#[test]
fn a_pod_that_is_over_with_sidecars_stays_over_under_the_next_kubelet() {
    let mut m = Machine::new(pod("Never", &["+side", "a"]), Backoff::CRASH_LOOP, 0);
    m.adopt(false, None, &[life("side", Some(143)), life("a", Some(0)), life("main", Some(0))]);
    assert_eq!((m.step(1).actions, status::phase(&m)), (vec![], Phase::Succeeded));
    let mut m = Machine::new(pod("Never", &["+side", "a"]), Backoff::CRASH_LOOP, 0);
    m.adopt(false, None, &[life("side", Some(143)), life("a", Some(1))]);
    m.step(1);
    assert_eq!((m.sandbox.clone(), status::phase(&m)), (SandboxPhase::Stopped, Phase::Failed));
}

fn deadline(policy: &str, seconds: i64) -> Arc<v1::Pod> {
    with(&pod(policy, &[]), |pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(seconds))
}

#[test]
fn a_pod_past_its_deadline_is_ended_and_has_failed() {
    let mut m = begun(deadline("Always", 5));
    let first = m.step(0);
    assert_eq!((first.actions, first.wake_at_ms), (vec![Action::Start(0)], Some(5_000)));
    m.container_started(0, "main-0".into(), String::new(), 0);
    assert_eq!(stopped(&mut m, 4_999), []);
    let step = m.step(5_000);
    assert!(matches!(step.actions[..], [Action::Stop { index: 0, .. }]));
    assert!(step.notices.iter().any(|n| n.reason == "DeadlineExceeded" && !n.warning));
    assert_eq!(status::phase(&m), Phase::Running, "until it has ended");
    exit(&mut m, "main", 143, 6_000);
    assert_eq!(m.step(6_000).actions, [Action::StopSandbox]);
    let told = shown(&m);
    assert_eq!(told.phase.as_deref(), Some("Failed"));
    assert_eq!(told.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        told.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline")
    );
    // The next kubelet neither runs it nor tells of it again.
    let mut next = Machine::new(with(&m.pod, |pod| pod.status = Some(told)), Backoff::CRASH_LOOP, 0);
    next.recall();
    let step = next.step(10_000);
    assert_eq!((step.actions, step.notices, status::phase(&next)), (vec![], vec![], Phase::Failed));
}

#[test]
fn a_clock_that_was_set_back_puts_no_deadline_off_for_longer_than_it_was() {
    const HOUR_MS: i64 = 3_600_000;
    let mut m = Machine::new(deadline("Always", 5), Backoff::CRASH_LOOP, HOUR_MS);
    assert_eq!(m.step(HOUR_MS).actions, [Action::RunSandbox]);
    m.sandbox_ready(None);
    assert_eq!(m.step(HOUR_MS).wake_at_ms, Some(HOUR_MS + 5_000));
    m.container_started(0, "main-0".into(), String::new(), HOUR_MS);
    assert_eq!(m.step(1_000).wake_at_ms, Some(6_000));
    assert_eq!(m.step(3_000).wake_at_ms, Some(6_000));
    assert_eq!(stopped(&mut m, 5_999), []);
    assert!(matches!(m.step(6_000).actions[..], [Action::Stop { index: 0, .. }]));
}

#[test]
fn the_deadline_counts_from_the_start_that_was_told_and_not_for_what_is_over() {
    let told = with(&deadline("Never", 5), |pod| {
        pod.status = Some(v1::PodStatus { start_time: Some(status::time(1_000)), ..Default::default() });
    });
    let mut m = Machine::new(told, Backoff::CRASH_LOOP, 60_000);
    m.adopt(true, None, &[life("main", None)]);
    assert_eq!(stopped(&mut m, 6_000), [("main".to_owned(), 10)]);
    let mut m = begun(deadline("Never", 5));
    started(&mut m, 0);
    exit(&mut m, "main", 0, 1);
    m.step(1);
    m.step(60_000);
    assert_eq!(status::phase(&m), Phase::Succeeded);
}

#[test]
fn sysctls_that_are_not_safe_are_refused() {
    let ask = |name: &str, host_network: bool| {
        let pod = with(&pod("Always", &[]), |pod| {
            let spec = pod.spec.as_mut().unwrap();
            spec.host_network = Some(host_network);
            spec.security_context = Some(v1::PodSecurityContext {
                sysctls: Some(vec![v1::Sysctl { name: name.into(), value: "1".into() }]),
                ..Default::default()
            });
        });
        Machine::new(pod, Backoff::CRASH_LOOP, 0)
    };
    for name in ["net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies", "kernel.shm_rmid_forced"] {
        assert_eq!(ask(name, false).step(0).actions, [Action::RunSandbox], "{name}");
    }
    for (name, host, message) in [
        ("kernel.panic", false, "forbidden sysctl: \"kernel.panic\" not allowlisted"),
        ("net.core.somaxconn", false, "forbidden sysctl: \"net.core.somaxconn\" not allowlisted"),
        (
            "net.ipv4.tcp_syncookies",
            true,
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
        ),
    ] {
        let mut m = ask(name, host);
        let step = m.step(0);
        assert_eq!(step.actions, []);
        assert_eq!((step.notices[0].reason, step.notices[0].message.as_str()), ("SysctlForbidden", message));
        let told = shown(&m);
        assert_eq!((told.phase.as_deref(), word(&m).as_str()), (Some("Failed"), "SysctlForbidden"));
        assert_eq!(told.message, Some(format!("Pod was rejected: {message}")));
    }
}

#[test]
fn a_pod_for_another_system_is_refused() {
    for (os, runs) in [("linux", true), ("windows", false)] {
        let pod = with(&pod("Always", &[]), |pod| {
            pod.spec.as_mut().unwrap().os = Some(v1::PodOS { name: os.into() });
        });
        let mut m = Machine::new(pod, Backoff::CRASH_LOOP, 0);
        let step = m.step(0);
        assert_eq!(step.actions == [Action::RunSandbox], runs);
        let told = shown(&m);
        assert_eq!(told.reason.as_deref(), (!runs).then_some("PodOSNotSupported"));
        assert_eq!(step.notices.len(), usize::from(!runs));
        let message = "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS";
        assert_eq!(told.message.as_deref(), (!runs).then_some(message));
    }
}

/// What `kubectl` shows of each container, main ones first: the reason why it waits or has ended, else its state.
fn reasons(m: &Machine) -> Vec<String> {
    let status = shown(m);
    let all = status.container_statuses.into_iter().chain(status.init_container_statuses).flatten();
    let reason = |state: v1::ContainerState| {
        let ended = state.terminated.map(|ended| ended.reason);
        ended.or(state.waiting.map(|waits| waits.reason)).flatten().unwrap_or("running".into())
    };
    all.map(|status| reason(status.state.unwrap())).collect()
}

#[test]
fn of_what_was_to_run_when_its_pod_ended_nobody_knows() {
    const UNKNOWN: &str = "ContainerStatusUnknown";
    let failed = |mut m: Machine| {
        m.fail_evicted("too much".into(), false);
        m.step(9);
        m
    };
    let at_once = failed(begun(pod("Always", &[])));
    assert_eq!((reasons(&at_once), word(&at_once).as_str()), (vec![UNKNOWN.to_owned()], UNKNOWN));
    let ended = shown(&at_once).container_statuses.unwrap().remove(0).state.unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.started_at, ended.finished_at), (137, None, None));
    let message = "The container could not be located when the pod was terminated";
    assert_eq!(ended.message.as_deref(), Some(message));
    // The next kubelet tells the same.
    for finds in [true, false] {
        let told = with(&at_once.pod, |pod| pod.status = Some(shown(&at_once)));
        let mut next = Machine::new(told, Backoff::CRASH_LOOP, 50_000);
        if finds {
            next.adopt(false, None, &[]);
        } else {
            next.recall();
        }
        next.step(50_000);
        assert_eq!(shown(&next).container_statuses, shown(&at_once).container_statuses);
    }
    // Main containers whose turn never came wait on, and so do init containers after the one that was to be next.
    let waits = "PodInitializing";
    assert_eq!(reasons(&failed(machine("Always", &["a", "b"]))), [waits, UNKNOWN, waits]);
    let mut m = machine("Always", &["a", "b"]);
    started(&mut m, 0);
    exit(&mut m, "a", 0, 1);
    assert_eq!(started(&mut m, 1), ["b"]);
    exit(&mut m, "b", 0, 2);
    m.step(2);
    m.container_failed(0, StartFailure::Create("full".into()), 2);
    assert_eq!(reasons(&failed(m)), [UNKNOWN, "Completed", "Completed"]);
    // What failed by itself has its own end.
    let mut m = machine("Never", &["a", "b"]);
    started(&mut m, 0);
    exit(&mut m, "a", 3, 1);
    m.step(1);
    assert_eq!(reasons(&m), [waits, "Error", waits]);
}

#[test]
fn a_pod_that_is_deleted_before_it_runs_has_failed_when_nothing_is_left_of_it() {
    for init in [&[][..], &["a"]] {
        let mut m = machine("Always", init);
        m.assign(with(&m.pod, |pod| {
            pod.metadata.deletion_timestamp = Some(status::time(0));
            pod.metadata.deletion_grace_period_seconds = Some(3);
        }));
        assert_eq!(m.step(1).actions, [Action::RemoveSandbox]);
        m.sandbox_removed();
        assert_eq!(status::phase(&m), Phase::Failed, "{init:?}");
    }
}

#[test]
fn termination_messages_of_a_pod_share_twelve_kibibytes() {
    let told = |init: &[&str], text: &str| {
        let mut m = machine("Never", init);
        for name in init {
            started(&mut m, 0);
            exit(&mut m, name, 0, 1);
        }
        started(&mut m, 1);
        let id = id("main", &m);
        let end = Ended { id: Some(id), message: Some(text.into()), ..not_located() };
        m.container_exited(end);
        m.step(2);
        let state = shown(&m).container_statuses.unwrap().remove(0).state.unwrap();
        state.terminated.unwrap().message.unwrap()
    };
    let long = "x".repeat(4096);
    assert_eq!(told(&["a", "b"], &long).len(), 4096);
    assert_eq!(told(&["a", "b", "c"], &long).len(), 3072);
    assert_eq!(told(&["a", "b", "c"], &format!("y{}", "ö".repeat(2000))).len(), 3071, "no character is cut");
}

/// What must hold whenever a pod steps.
fn check(m: &mut Machine, now_ms: i64, starting: &mut BTreeSet<usize>) {
    for action in m.step(now_ms).actions {
        match action {
            Action::Start(index) => {
                assert!(starting.insert(index), "started twice at once");
                let role = m.containers[index].role;
                let before: Vec<&Container> = m.containers[m.mains..].iter().collect();
                if role == Role::Main {
                    assert!(before.iter().all(|c| c.role == Role::Sidecar || c.is_passed()), "too early");
                } else {
                    let earlier = &before[..index - m.mains];
                    assert!(earlier.iter().all(|c| c.role == Role::Sidecar || c.is_passed()), "out of order");
                }
            }
            Action::Stop { index, grace, .. } if m.containers[index].role == Role::Sidecar => {
                let outlived = m.main().iter().any(Container::is_alive);
                assert!(!outlived || grace <= Duration::from_secs(2), "a sidecar before a main container");
            }
            _ => {}
        }
    }
    let running = m.init().iter().filter(|c| c.role == Role::Init && c.is_alive()).count();
    assert!(running <= 1, "two init containers at once");
    if running == 1 {
        assert!(!m.main().iter().any(Container::is_alive), "a main container beside an init container");
    }
}

proptest! {
    /// Whatever exits and fails, and whenever: init containers run in order and one at a time, never beside a main
    /// container; sidecars are asked to end after the main ones; and a pod whose programs all end comes to an end.
    #[test]
    fn init_containers_keep_their_order_and_sidecars_outlive_the_others(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        events in proptest::collection::vec((0_u8..9, 0_usize..5, 0_i32..2, 0_i64..9_000), 1..80),
    ) {
        let mut m = Machine::new(pod(policy, &["a", "+one", "b", "+two"]), Backoff::CRASH_LOOP, 0);
        let mut starting = BTreeSet::new();
        let mut now = 0;
        for (kind, index, code, wait) in events {
            now += wait;
            match (kind, &m.sandbox) {
                (0, SandboxPhase::Starting) => m.sandbox_ready(None),
                (0, SandboxPhase::Ending) => m.sandbox_ended(now),
                (0, SandboxPhase::Removing { .. }) => m.sandbox_removed(),
                (1..4, _) if starting.remove(&index) => {
                    let id = format!("{index}-{now}-{}", m.containers[index].attempt);
                    m.container_started(index, id, String::new(), now);
                }
                (4..7, _) => {
                    if let ContainerPhase::Running { id, .. } = m.containers[index].phase.clone() {
                        let mut ended = life("x", Some(code)).ended.unwrap();
                        (ended.id, ended.started_ms, ended.finished_ms) = (Some(id), now, now);
                        m.container_exited(ended);
                    }
                }
                (7, _) if code == 0 && wait < 1_000 => m.sandbox_lost(),
                _ => {}
            }
            check(&mut m, now, &mut starting);
        }
        // From now on every program ends well, sidecars when they are told to.
        for _ in 0..60 {
            now += 400_000;
            check(&mut m, now, &mut starting);
            match m.sandbox {
                SandboxPhase::Starting => m.sandbox_ready(None),
                SandboxPhase::Ending => m.sandbox_ended(now),
                SandboxPhase::Stopping => m.sandbox_stopped(),
                SandboxPhase::Removing { .. } => m.sandbox_removed(),
                _ => {}
            }
            for index in std::mem::take(&mut starting) {
                m.container_started(index, format!("{index}-{now}"), String::new(), now);
            }
            for index in 0..m.containers.len() {
                if let ContainerPhase::Running { id, stopping, .. } = m.containers[index].phase.clone()
                    && (m.containers[index].role != Role::Sidecar || stopping.is_some())
                    && (policy != "Always" || m.containers[index].role == Role::Init)
                {
                    let mut ended = life("x", Some(0)).ended.unwrap();
                    (ended.id, ended.started_ms, ended.finished_ms) = (Some(id), now, now);
                    m.container_exited(ended);
                }
            }
        }
        if policy == "Always" {
            prop_assert_eq!(status::phase(&m), Phase::Running);
            prop_assert!(m.containers.iter().all(|c| c.role == Role::Init || c.has_started()), "{:?}", m);
        } else {
            prop_assert!(m.is_finished(), "{:?}", m);
            prop_assert!(matches!(status::phase(&m), Phase::Succeeded | Phase::Failed));
        }
    }
}
