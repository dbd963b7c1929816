//! Tests of delays, periods, thresholds and gates.

use serde_json::{Value, json};

use super::*;

fn container(probes: Value) -> v1::Container {
    let mut container = json!({"name": "web"});
    for (kind, probe) in probes.as_object().unwrap() {
        container[kind] = probe.clone();
    }
    serde_json::from_value(container).unwrap()
}

/// Runs what is due until `until_ms`, with the answer that `answer` gives; tells when what ran.
fn play(
    probes: &mut Probes,
    until_ms: i64,
    mut answer: impl FnMut(ProbeKind, i64) -> Option<bool>,
) -> Vec<(i64, ProbeKind, bool)> {
    let (mut now, mut ran) = (0, Vec::new());
    while now <= until_ms {
        let (due, next) = probes.due(now, false);
        for kind in &due {
            let failed = probes.outcome(*kind, answer(*kind, now));
            ran.push((now, *kind, failed));
        }
        if due.is_empty() {
            let Some(next) = next else { break };
            assert!(next > now, "what is due is run, not waited for");
            now = next;
        }
    }
    ran
}

#[test]
fn without_probes_a_container_has_started_and_is_ready() {
    let mut probes = Probes::begin(&container(json!({})), "id", 0);
    assert!(probes.started() && probes.ready());
    assert_eq!(probes.due(1_000_000, false), (vec![], None));
}

#[test]
fn readiness_begins_after_its_delay_and_runs_each_period() {
    let spec = json!({"readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 2}});
    let mut probes = Probes::begin(&container(spec), "id", 1000);
    assert!(!probes.ready(), "nobody has asked yet");
    let ran = play(&mut probes, 12_000, |_, _| Some(true));
    assert_eq!(ran.iter().map(|(at, ..)| *at).collect::<Vec<_>>(), [6000, 8000, 10_000, 12_000]);
    assert!(probes.ready());
}

#[test]
fn thresholds_count_outcomes_in_a_row() {
    let spec = json!({"readinessProbe": {"periodSeconds": 1, "successThreshold": 2, "failureThreshold": 3}});
    let mut probes = Probes::begin(&container(spec), "id", 0);
    let mut says = |success: bool| {
        probes.due(i64::MAX / 2, false);
        probes.outcome(ProbeKind::Readiness, Some(success));
        probes.ready()
    };
    let told = [true, false, true, true, false, false, true, false, false, false, true, true];
    let ready = told.map(&mut says);
    assert_eq!(ready, [false, false, false, true, true, true, true, true, true, false, false, true]);
}

#[test]
fn an_outcome_without_meaning_neither_counts_nor_ends_a_row() {
    let spec = json!({"livenessProbe": {"periodSeconds": 1, "failureThreshold": 2}});
    let mut probes = Probes::begin(&container(spec), "id", 0);
    let failed: Vec<bool> = [Some(false), None, Some(false)]
        .into_iter()
        .map(|success| probes.outcome(ProbeKind::Liveness, success))
        .collect();
    assert_eq!(failed, [false, false, true]);
}

#[test]
fn a_startup_probe_gates_the_others() {
    let spec = json!({
        "startupProbe": {"periodSeconds": 1, "failureThreshold": 30},
        "livenessProbe": {"periodSeconds": 1},
        "readinessProbe": {"periodSeconds": 1},
    });
    let mut probes = Probes::begin(&container(spec), "id", 0);
    assert!(!probes.started() && !probes.ready());
    let ran = play(&mut probes, 6000, |kind, now| Some(kind != ProbeKind::Startup || now >= 3000));
    let kinds_at = |from: i64, to: i64| {
        let mut kinds: Vec<_> =
            ran.iter().filter(|(at, ..)| (from..to).contains(at)).map(|(_, kind, _)| kind.name()).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(kinds_at(0, 3000), ["Startup"]);
    assert!(!kinds_at(3001, 6000).contains(&"Startup"), "once is enough");
    assert!(kinds_at(3000, 5000).contains(&"Liveness") && kinds_at(3000, 3001).contains(&"Readiness"));
    assert!(probes.started() && probes.ready());
}

#[test]
fn a_failed_container_is_told_once_and_left_alone() {
    for kind in ["livenessProbe", "startupProbe"] {
        let spec = json!({kind: {"periodSeconds": 10, "failureThreshold": 3}});
        let mut probes = Probes::begin(&container(spec), "id", 0);
        let ran = play(&mut probes, 100_000, |_, _| Some(false));
        assert_eq!(
            ran.iter().map(|(.., failed)| *failed).collect::<Vec<_>>(),
            [false, false, true],
            "{kind}"
        );
    }
}

#[test]
fn a_run_that_takes_long_is_not_doubled() {
    let spec = json!({"readinessProbe": {"periodSeconds": 1}});
    let mut probes = Probes::begin(&container(spec), "id", 0);
    assert_eq!(probes.due(0, false).0, [ProbeKind::Readiness]);
    assert_eq!(probes.due(50_000, false), (vec![], None));
    probes.outcome(ProbeKind::Readiness, Some(true));
    assert_eq!(probes.due(50_000, false).0, [ProbeKind::Readiness]);
    assert_eq!(probes.due(50_000, false), (vec![], None));
}

#[test]
fn one_that_is_to_end_is_only_asked_whether_it_is_ready() {
    let spec = json!({"livenessProbe": {}, "readinessProbe": {}});
    let mut probes = Probes::begin(&container(spec), "id", 0);
    assert_eq!(probes.due(100_000, true).0, [ProbeKind::Readiness]);
}

#[test]
fn after_a_restart_what_was_told_holds_until_a_probe_says_otherwise() {
    let spec = container(
        json!({"startupProbe": {}, "livenessProbe": {}, "readinessProbe": {"failureThreshold": 1}}),
    );
    let mut probes = Probes::resume(&spec, "id", 0, 500_000, (true, true));
    assert!(probes.started() && probes.ready());
    let (due, next) = probes.due(500_000, false);
    assert!(due.is_empty() || next.is_some(), "{due:?}");
    let ran = play(&mut probes, 520_000, |_, _| Some(false));
    assert!(ran.iter().all(|(at, kind, _)| *at < 520_001 && *kind != ProbeKind::Startup));
    assert!(probes.started() && !probes.ready());
    let probes = Probes::resume(&spec, "id", 0, 500_000, (false, false));
    assert!(!probes.started() && !probes.ready());
}

#[test]
fn first_runs_of_many_are_spread_over_a_period() {
    let spec = container(json!({"livenessProbe": {"periodSeconds": 10}}));
    let mut firsts: Vec<i64> = (0..100)
        .map(|n| Probes::begin(&spec, &format!("container-{n}"), 0).due(-1, false).1.unwrap())
        .collect();
    firsts.sort_unstable();
    assert!(firsts[0] < 1500 && firsts[99] > 8500 && firsts[99] < 10_000, "{firsts:?}");
}

#[test]
fn a_clock_that_is_set_back_does_not_silence_probes() {
    const SET_BACK_MS: i64 = 5 * 3_600_000;
    let spec = json!({"readinessProbe": {"initialDelaySeconds": 5, "periodSeconds": 2}});
    let mut probes = Probes::begin(&container(spec.clone()), "id", SET_BACK_MS);
    assert_eq!(probes.due(SET_BACK_MS + 5_000, false).0, [ProbeKind::Readiness]);
    probes.outcome(ProbeKind::Readiness, Some(true));
    assert_eq!(probes.due(0, false), (vec![], Some(7_000)), "its delay and a period, at most");
    assert_eq!(probes.due(7_000, false).0, [ProbeKind::Readiness]);
    // Of a life that began by the clock as it was.
    let mut probes = Probes::resume(&container(spec), "id", SET_BACK_MS, 0, (true, true));
    assert_eq!(probes.due(0, false), (vec![], Some(7_000)));
}
