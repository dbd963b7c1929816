//! What is recorded of a node when its object changes.
//!
//! Owns: [`told_by_change`], in Kubernetes' words: that a node is one of the cluster now, fell silent, is back, or that its machine
//! was started anew. What a node says of itself while it is heard, it tells as an event, too: that is not repeated here.
//! Pure. Invariant: one silence is told of once, whatever becomes of it.

use k8s_openapi::api::core::v1;

use super::nodes::NEVER_HEARD;
use crate::model::Object;

/// One event about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEvent {
    /// One word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
}

/// What a change of a node's object tells; `before` is `None` when it was made.
pub fn told_by_change(before: Option<&Object>, after: &Object) -> Vec<NodeEvent> {
    let name = &after.key.name;
    let event = |reason, message| NodeEvent { reason, message, warning: false };
    let status_is = |reason: &'static str| event(reason, format!("Node {name} status is now: {reason}"));
    let (before, after) = (before.map(Heard::of).unwrap_or_default(), Heard::of(after));
    let mut told = Vec::new();
    match (before.ready.as_deref(), after.ready.as_deref()) {
        (None, Some(_)) => {
            told.push(event(
                "RegisteredNode",
                format!("Node {name} event: Registered Node {name} in Controller"),
            ));
        }
        (Some(UNKNOWN), Some("True")) => told.push(status_is("NodeReady")),
        (Some("True" | "False"), Some(UNKNOWN)) => told.push(status_is("NodeNotReady")),
        _ => {}
    }
    let (was, boot) = (&before.boot, &after.boot);
    if !was.is_empty() && !boot.is_empty() && was != boot {
        let message = format!("Node {name} has been rebooted, boot id: {boot}");
        told.push(NodeEvent { reason: "Rebooted", message, warning: true });
    }
    told
}

const UNKNOWN: &str = "Unknown";

/// What is known of a node.
#[derive(Default)]
struct Heard {
    /// The status of its `Ready` condition; `None` while it was never heard.
    ready: Option<String>,
    /// Which start of its machine it is; empty when it did not say.
    boot: String,
}

impl Heard {
    fn of(node: &Object) -> Heard {
        let status = node.parse::<v1::Node>().ok().and_then(|node| node.status).unwrap_or_default();
        let mut conditions = status.conditions.into_iter().flatten();
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        let ready = ready.filter(|ready| ready.reason.as_deref() != Some(NEVER_HEARD));
        Heard {
            ready: ready.map(|ready| ready.status),
            boot: status.node_info.map(|info| info.boot_id).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        logic::testing::stored,
        model::{Kind, Revision},
    };

    #[test]
    fn one_is_told_that_a_node_joins_falls_silent_and_is_back() {
        let node = |ready: &str, reason: &str, boot: &str| {
            let ready = json!([{"type": "Ready", "status": ready, "reason": reason}]);
            let info = json!({"architecture": "", "bootID": boot, "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "", "osImage": "",
                "systemUUID": ""});
            let status = json!({"conditions": ready, "nodeInfo": info});
            stored(
                Kind::Node,
                &json!({"metadata": {"name": "n1", "uid": "u"}, "status": status}),
                Revision(1),
            )
        };
        let bare = stored(Kind::Node, &json!({"metadata": {"name": "n1", "uid": "u"}}), Revision(1));
        let (joined, well) = (node("Unknown", NEVER_HEARD, ""), node("True", "KubeletReady", "b1"));
        let (silent, away) =
            (node("Unknown", "NodeStatusUnknown", "b1"), node("Unknown", "NodeGoodbye", "b1"));
        let faulty = node("False", "KubeletNotReady", "b1");
        for (before, after, reasons) in [
            (None, &joined, &[][..]),
            (None, &well, &["RegisteredNode"]),
            (Some(&bare), &well, &["RegisteredNode"]),
            (Some(&joined), &well, &["RegisteredNode"]),
            (Some(&joined), &joined, &[]),
            (Some(&well), &well, &[]),
            (Some(&well), &silent, &["NodeNotReady"]),
            (Some(&faulty), &silent, &["NodeNotReady"]),
            // Spared first and given up then, or away for too long: one silence.
            (Some(&silent), &silent, &[]),
            (Some(&away), &silent, &[]),
            (Some(&silent), &well, &["NodeReady"]),
            (Some(&away), &well, &["NodeReady"]),
            // It says so itself.
            (Some(&well), &faulty, &[]),
            (Some(&faulty), &well, &[]),
            (Some(&silent), &node("True", "KubeletReady", "b2"), &["NodeReady", "Rebooted"]),
        ] {
            let told = told_by_change(before.map(|before| &**before), after);
            let told: Vec<&str> = told.iter().map(|event| event.reason).collect();
            assert_eq!(told, reasons, "{before:?} {after:?}");
        }
    }
}
