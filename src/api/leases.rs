//! Leases of nodes: when each was heard last, where `kubectl describe node` looks for it.
//!
//! Owns: the read-only resource `leases` of `coordination.k8s.io/v1`, made whenever it is read of what the master knows of
//! its nodes, so that heartbeats cost no writes. They can be read and listed in `kube-node-lease`, not watched; others are not
//! kept, so nobody can elect a leader by them.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse};
use k8s_openapi::{
    api::core::v1,
    jiff::{SignedDuration, Timestamp, Unit},
};
use serde_json::{Value, json};

use super::{
    clock,
    door::Shared,
    error::ApiError,
    made::{Made, Resource},
};
use crate::{
    messages::NodeState,
    model::{Kind, Labels, Object, Snapshot, table},
};

/// Its group.
pub const GROUP: &str = "coordination.k8s.io";
/// Its version.
pub const VERSION: &str = "v1";
/// Its name in URLs.
pub const PLURAL: &str = "leases";
/// Its kind.
pub const KIND: &str = "Lease";
const RESOURCE: Resource = Resource {
    kind: KIND,
    group: GROUP,
    version: VERSION,
    plural: PLURAL,
    columns: &["Name", "Holder", "Age"],
};
/// Where they are, as in Kubernetes.
const NAMESPACE: &str = "kube-node-lease";
/// A node that is silent for so long is not ready.
const SECONDS: u32 = 2;

/// Which leases a path names.
#[derive(Debug, PartialEq, Eq)]
pub struct Leases {
    namespace: Option<String>,
    name: Option<String>,
}

/// One lease: its node, and when that was heard last.
struct Lease<'a> {
    node: &'a Object,
    heard: Option<Timestamp>,
}

impl Leases {
    /// The leases that a path names, if it names any.
    pub fn of(segments: &[&str]) -> Option<Leases> {
        let ["apis", GROUP, VERSION, rest @ ..] = segments else { return None };
        let (namespace, name) = match rest {
            [PLURAL] => (None, None),
            ["namespaces", namespace, PLURAL] => (Some(*namespace), None),
            ["namespaces", namespace, PLURAL, name] => (Some(*namespace), Some(*name)),
            _ => return None,
        };
        Some(Leases { namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
    }

    /// GET and LIST.
    ///
    /// # Errors
    /// 404, 405 for watches, 406, 400 for selectors that are malformed or not supported.
    pub async fn answer(
        &self,
        request: &HttpRequest,
        shared: &Arc<Shared>,
    ) -> Result<HttpResponse, ApiError> {
        let asked = RESOURCE.asked(request)?;
        let states = shared.nodes().await.unwrap_or_default();
        let (snapshot, now) = (shared.state.view.snapshot(), clock::now());
        let leases = self.read(&snapshot, &states, now);
        RESOURCE.answer(&asked, self.name.as_deref(), leases, snapshot.revision.0, now)
    }

    fn read<'s>(&self, snapshot: &'s Snapshot, states: &[NodeState], now: Timestamp) -> Vec<Lease<'s>> {
        if self.namespace.as_ref().is_some_and(|namespace| namespace != NAMESPACE) {
            return Vec::new();
        }
        let named = |node: &&Arc<Object>| self.name.as_deref().is_none_or(|name| *name == *node.key.name);
        let lease = |node: &'s Arc<Object>| {
            let state = states.iter().find(|state| *state.node.as_str() == *node.key.name);
            Lease { node, heard: heard(node, state, now) }
        };
        snapshot.list(Kind::Node, None).filter(named).map(lease).collect()
    }
}

/// When a node was heard last. One that has a link was, just now; of one that this master has not heard, its object says it.
fn heard(node: &Object, state: Option<&NodeState>, now: Timestamp) -> Option<Timestamp> {
    match state {
        Some(NodeState { link: Some(_), .. }) => Some(now),
        Some(NodeState { silent: Some(silent), .. }) => {
            now.checked_sub(SignedDuration::try_from(*silent).ok()?).ok()
        }
        _ => {
            let status = node.parse::<v1::Node>().ok()?.status?;
            let mut conditions = status.conditions.into_iter().flatten();
            conditions.find(|condition| condition.type_ == "Ready")?.last_heartbeat_time.map(|time| time.0)
        }
    }
}

impl Made for Lease<'_> {
    fn labels(&self) -> &Labels {
        // They have none.
        static NONE: Labels = Labels::new();
        &NONE
    }

    fn metadata(&self) -> Value {
        let (name, uid) = (&self.node.key.name, self.node.uid().as_str());
        json!({
            "name": name, "namespace": NAMESPACE, "uid": uid,
            "resourceVersion": self.node.revision.to_string(),
            "creationTimestamp": clock::whole_seconds(self.node.facet.meta.created).to_string(),
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": uid }],
        })
    }

    fn content(&self) -> Value {
        let heard = self.heard.and_then(|heard| heard.round(Unit::Microsecond).ok());
        json!({ "spec": {
            "holderIdentity": self.node.key.name,
            "leaseDurationSeconds": SECONDS,
            "renewTime": heard.map(|heard| format!("{heard:.6}")),
        } })
    }

    fn cells(&self, now: Timestamp) -> Value {
        let age = table::since(Some(self.node.facet.meta.created), now);
        json!([self.node.key.name, self.node.key.name, age])
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{Revision, seal_json};

    #[test]
    fn a_nodes_lease_is_of_when_it_was_heard() {
        let mut snapshot = Snapshot::default();
        for name in ["n1", "n2", "n3"] {
            let ready =
                json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2024-01-01T00:00:00Z"}]);
            let node = json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": ready}});
            let sealed = seal_json(Kind::Node, node.to_string().as_bytes()).unwrap();
            snapshot.insert(Arc::new(sealed.at(Revision(1))));
        }
        let silent = NodeState {
            node: "n2".into(),
            link: None,
            silent: Some(Duration::from_millis(1_500)),
            goodbye: false,
            rivals: Vec::new(),
            first: None,
        };
        let now: Timestamp = "2024-01-02T00:00:00Z".parse().unwrap();
        let read = |path: &str| {
            let segments: Vec<&str> = path.split('/').collect();
            let leases = Leases::of(&segments).unwrap().read(&snapshot, std::slice::from_ref(&silent), now);
            leases.iter().map(|lease| RESOURCE.whole(lease)).collect::<Vec<_>>()
        };
        let base = "apis/coordination.k8s.io/v1";
        assert_eq!(read(&format!("{base}/leases")).len(), 3);
        assert_eq!(read(&format!("{base}/namespaces/default/leases")).len(), 0);
        let one = |name: &str| read(&format!("{base}/namespaces/kube-node-lease/leases/{name}"))[0].clone();
        assert_eq!(one("n2")["spec"]["renewTime"], "2024-01-01T23:59:58.500000Z");
        assert_eq!(one("n3")["spec"]["renewTime"], "2024-01-01T00:00:00.000000Z", "as its object says");
        assert_eq!(one("n1")["metadata"]["ownerReferences"][0]["kind"], "Node");
        assert_eq!(Leases::of(&["apis", GROUP, "v2", PLURAL]), None);
    }
}
