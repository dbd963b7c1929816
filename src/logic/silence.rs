//! What is said of a node that says nothing, and of its pods.
//!
//! Owns: the mark of a goodbye, and the readiness of pods whose node is silent: as Kubernetes' node lifecycle controller
//! has it they are not ready, so that no service counts on them, until their node says how they are. Pure: the time is
//! handed in. Invariant: only the `Ready` condition is touched; the node's next report replaces all of it.

use std::sync::Arc;

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

use super::{
    edit::{Edit, EditError, edit},
    taints::has_said_goodbye,
};
use crate::model::{KindFacet, NodeName, Object};

/// The reason of the conditions of a node that has said that it goes and comes back.
const GOODBYE: &str = "NodeGoodbye";
/// That of one which has said nothing of the kind, as Kubernetes'.
const UNKNOWN: &str = "NodeStatusUnknown";
const READY: &str = "Ready";

/// Notes in a silent node's status whether it has said goodbye.
pub fn note_goodbye(status: &mut v1::NodeStatus, goodbye: bool) {
    let (reason, message) = match goodbye {
        true => (GOODBYE, "Kubelet said goodbye: it is to come back."),
        false => (UNKNOWN, "Kubelet stopped posting node status."),
    };
    for condition in status.conditions.iter_mut().flatten().filter(|c| c.status == "Unknown") {
        // What was never heard of at all stays so.
        if [GOODBYE, UNKNOWN].contains(&condition.reason.as_deref().unwrap_or_default()) {
            (condition.reason, condition.message) = (Some(reason.into()), Some(message.into()));
        }
    }
}

/// Whether a node has said goodbye, and nothing since.
pub fn is_away(node: &Object) -> bool {
    let marked = |node: v1::Node| {
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == READY && c.reason.as_deref() == Some(GOODBYE))
    };
    has_said_goodbye(node) && node.parse().is_ok_and(marked)
}

/// The pod of a silent node, not ready any more; `None` when it is not, or not that node's.
///
/// # Errors
/// When the stored pod is none.
pub fn unready(pod: &Arc<Object>, node: &NodeName, now: Timestamp) -> Result<Option<Edit>, EditError> {
    match &pod.facet.of {
        KindFacet::Pod(facet) if facet.ready && facet.node.as_ref() == Some(node) => {}
        _ => return Ok(None),
    }
    let change = |pod: &mut v1::Pod| {
        let generation = pod.metadata.generation;
        let conditions = pod.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in conditions.filter(|c| c.type_ == READY && c.status == "True") {
            condition.status = "False".into();
            condition.reason = Some("NodeNotReady".into());
            condition.message = Some("Node is not ready".into());
            condition.last_transition_time = Some(Time(now));
            condition.observed_generation = generation;
        }
    };
    edit::<v1::Pod>(pod, change).map(Some)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Kind, Revision, seal_json};

    fn object(kind: Kind, value: &Value) -> Arc<Object> {
        Arc::new(seal_json(kind, value.to_string().as_bytes()).unwrap().at(Revision(1)))
    }

    fn pod(ready: &str) -> Arc<Object> {
        object(
            Kind::Pod,
            &json!({
                "metadata": {"name": "p", "namespace": "default", "uid": "u", "generation": 3},
                "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
                "status": {"phase": "Running", "podIP": "10.1.2.3", "conditions": [
                    {"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": ready}]},
            }),
        )
    }

    #[test]
    fn a_silent_nodes_pods_are_not_ready_and_nothing_else_changes() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let Some(Edit::Replace(sealed, _)) = unready(&pod("True"), &"n1".into(), at(100)).unwrap() else {
            panic!("nothing is written")
        };
        let after = sealed.at(Revision(2));
        assert!(matches!(&after.facet.of, KindFacet::Pod(pod) if !pod.ready));
        let after: Value = after.parse().unwrap();
        let [containers, ready] = after["status"]["conditions"].as_array().unwrap().as_slice() else {
            panic!()
        };
        assert_eq!(containers["status"], "True");
        assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("NodeNotReady")));
        assert_eq!(
            (&ready["observedGeneration"], &containers["observedGeneration"]),
            (&json!(3), &Value::Null)
        );
        assert_eq!(after["status"]["phase"], "Running");
        assert!(unready(&pod("False"), &"n1".into(), at(100)).unwrap().is_none(), "it says so already");
        assert!(unready(&pod("True"), &"n2".into(), at(100)).unwrap().is_none(), "it is another node's");
    }

    #[test]
    fn a_goodbye_is_one_until_the_node_links_and_silence_is_none() {
        let node = |goodbye: Option<bool>, effects: &[&str]| {
            let ready = json!({"type": "Ready", "status": "Unknown", "reason": UNKNOWN});
            let mut status: v1::NodeStatus = serde_json::from_value(json!({"conditions": [ready]})).unwrap();
            if let Some(goodbye) = goodbye {
                note_goodbye(&mut status, goodbye);
            }
            let taint = |effect: &&str| json!({"key": crate::logic::taints::UNREACHABLE, "effect": effect});
            let taints: Vec<Value> = effects.iter().map(taint).collect();
            let meta = json!({"name": "n1", "uid": "u", "creationTimestamp": "2030-01-01T00:00:00Z"});
            let node = json!({"metadata": meta, "spec": {"taints": taints}, "status": status});
            object(Kind::Node, &node)
        };
        assert!(is_away(&node(Some(true), &["NoSchedule"])));
        assert!(
            !is_away(&node(None, &["NoSchedule"])),
            "it has linked after a silence and not said how it is"
        );
        assert!(!is_away(&node(Some(false), &["NoSchedule"])));
        assert!(!is_away(&node(Some(true), &["NoSchedule", "NoExecute"])), "it has been away for too long");
        assert!(!is_away(&node(Some(true), &[])));
    }
}
