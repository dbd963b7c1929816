//! Readiness gates: conditions that others set on a pod, and that it waits for before it is ready.
//!
//! Owns: which conditions are the kubelet's and which are others', and what closed gates say. Invariant: a kubelet's
//! report never takes away what others said. Rules and words: Kubernetes'.

use k8s_openapi::api::core::v1;

/// The conditions that a kubelet (and before it the scheduler) speaks of.
const OWN: [&str; 7] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
    "PodResizePending",
    "PodResizeInProgress",
];

/// Whether a condition is somebody else's.
pub fn is_foreign(condition: &str) -> bool {
    !OWN.contains(&condition)
}

/// Adds to a status the conditions that others have set in another.
pub fn keep_foreign(status: &mut v1::PodStatus, of: Option<&v1::PodStatus>) {
    let kept: Vec<v1::PodCondition> = of
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| is_foreign(&c.type_))
        .cloned()
        .collect();
    if kept.is_empty() {
        return;
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| kept.iter().all(|kept| kept.type_ != c.type_));
    conditions.extend(kept);
}

/// Why the pod's gates are closed; `None` when all are open.
pub fn closed(pod: &v1::Pod) -> Option<String> {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref()).unwrap_or_default();
    let reasons: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let name = &gate.condition_type;
            match conditions.iter().find(|c| c.type_ == *name) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate {name:?} does not exist."))
                }
                Some(c) if c.status != "True" => Some(format!(
                    "the status of pod readiness gate {name:?} is not \"True\", but {}",
                    c.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    (!reasons.is_empty()).then(|| reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_gate_is_open_when_its_condition_holds() {
        for (conditions, why) in [
            (json!([]), Some("corresponding condition of pod readiness gate \"a.b/c\" does not exist.")),
            (
                json!([{"type": "a.b/c", "status": "False"}]),
                Some("the status of pod readiness gate \"a.b/c\" is not \"True\", but False"),
            ),
            (json!([{"type": "a.b/c", "status": "True"}]), None),
        ] {
            let pod = json!({"spec": {"containers": [], "readinessGates": [{"conditionType": "a.b/c"}]},
                "status": {"conditions": conditions}});
            assert_eq!(closed(&serde_json::from_value(pod).unwrap()).as_deref(), why);
        }
        assert_eq!(closed(&v1::Pod::default()), None);
    }

    #[test]
    fn what_others_said_is_kept_once() {
        let status = |json| serde_json::from_value::<v1::PodStatus>(json).unwrap();
        let mut told = status(json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        let stored = status(json!({"conditions": [{"type": "Ready", "status": "False"},
            {"type": "a.b/c", "status": "True"}]}));
        for _ in 0..2 {
            keep_foreign(&mut told, Some(&stored));
            let seen: Vec<_> =
                told.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
            assert_eq!(seen, [("Ready", "True"), ("a.b/c", "True")]);
        }
        // What a kubelet says now and then stays beside a gate's condition, unless others have said it.
        let evicted =
            json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Own"}]});
        let others =
            json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Theirs"}]});
        for (stored, reasons) in [(stored, [Some("Own"), None]), (status(others), [Some("Theirs"), None])] {
            let mut told = status(evicted.clone());
            keep_foreign(&mut told, Some(&stored));
            let all: Vec<_> = told.conditions.iter().flatten().map(|c| c.reason.as_deref()).collect();
            assert!(reasons.starts_with(&all), "{all:?}");
        }
    }
}
