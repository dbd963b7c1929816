//! Quality of service: who gives way when processors or memory run short.
//!
//! Owns: the values that Kubernetes' kubelet derives from requests (`pkg/kubelet/qos`, `cm/helpers_linux.go`): which
//! containers the kernel's out-of-memory killer takes first. Pure: the node's memory is an argument.

use k8s_openapi::api::core::v1;

use crate::model::{qos_class, quantity};

/// Taken last, among what may be taken at all.
const GUARANTEED_ADJ: i32 = -997;
/// Taken first.
const BEST_EFFORT_ADJ: i32 = 1000;

/// How much sooner (up to 1000) or later (down to -1000) than by its size alone a container's processes are taken when
/// the node runs out of memory. Between the extremes those go first that asked for little of the node's memory.
pub fn oom_score_adj(spec: &v1::PodSpec, container: &v1::Container, node_memory_bytes: i64) -> i32 {
    match qos_class(spec) {
        "Guaranteed" => GUARANTEED_ADJ,
        "BestEffort" => BEST_EFFORT_ADJ,
        _ => {
            let requests = container.resources.as_ref().and_then(|r| r.requests.as_ref());
            let asked = requests.and_then(|r| r.get("memory"));
            let asked = asked.and_then(|q| quantity::parse_milli(&q.0).ok()).map_or(0, |milli| milli / 1000);
            let share = i128::from(BEST_EFFORT_ADJ) * asked / i128::from(node_memory_bytes.max(1));
            let adj = i128::from(BEST_EFFORT_ADJ) - share;
            // Always after those that asked for nothing and before those with a guarantee.
            adj.clamp(i128::from(BEST_EFFORT_ADJ + GUARANTEED_ADJ), i128::from(BEST_EFFORT_ADJ - 1)) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adj(resources: &[serde_json::Value]) -> i32 {
        let containers: Vec<_> =
            resources.iter().map(|r| serde_json::json!({"name": "c", "resources": r})).collect();
        let spec: v1::PodSpec =
            serde_json::from_value(serde_json::json!({"containers": containers})).unwrap();
        oom_score_adj(&spec, &spec.containers[0], 4 << 30)
    }

    #[test]
    fn those_that_asked_for_less_memory_are_taken_sooner() {
        use serde_json::json;
        for (resources, expected) in [
            (vec![json!({})], 1000),
            (
                vec![
                    json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}),
                ],
                -997,
            ),
            (vec![json!({"requests": {"memory": "1Gi"}})], 750),
            (vec![json!({"requests": {"cpu": "1"}})], 999),
            // Of a pod that asks for something, a container that asks for nothing.
            (vec![json!({}), json!({"requests": {"memory": "1Gi"}})], 999),
            (vec![json!({"requests": {"memory": "64Gi"}})], 3),
        ] {
            assert_eq!(adj(&resources), expected, "{resources:?}");
        }
    }

    #[test]
    fn a_node_of_unknown_size_is_no_division_by_zero() {
        let spec: v1::PodSpec = serde_json::from_value(serde_json::json!({
            "containers": [{"name": "c", "resources": {"requests": {"memory": "1"}}}]
        }))
        .unwrap();
        assert_eq!(oom_score_adj(&spec, &spec.containers[0], 0), 3);
    }
}
