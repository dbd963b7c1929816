//! `metrics.k8s.io/v1beta1`: what nodes and pods use, as `kubectl top` asks for it, and the kubelet's own pages:
//! `stats/summary`, `metrics/resource` and `metrics/cadvisor`.
//!
//! Owns: the two read-only resources of the metrics server, made whenever they are asked for out of what the nodes say. A
//! node that does not answer is left out, as are pods and nodes that were not read often enough yet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse};
use futures_util::future::join_all;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{
    clock,
    door::Shared,
    error::ApiError,
    log::open,
    query::{Filter, Query},
    read::json_response,
    write::Call,
};
use crate::{
    logic::{
        exposition,
        usage::{NodeUsage, PodUsage, Rate},
    },
    messages::{OpenStream, wire},
    model::{Kind, KindFacet, NodeName, Object},
};

/// Its group.
pub const GROUP: &str = "metrics.k8s.io";
/// Its version.
pub const VERSION: &str = "v1beta1";
/// How long a node may take to say what it uses; the others are shown without it.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer of a node: cAdvisor's page has up to 10 KiB a container and 7 KiB a pod, of some two thousand of each.
const ANSWER_BYTES: u64 = 32 << 20;
/// The longest of what is asked of all nodes at once: some hundred bytes a container.
const STATS_BYTES: u64 = 8 << 20;

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub struct Metrics {
    kind: Kind,
    namespace: Option<String>,
    name: Option<String>,
}

impl Metrics {
    /// What a path names, if it is of this group.
    pub fn of(segments: &[&str]) -> Option<Metrics> {
        let ["apis", GROUP, VERSION, rest @ ..] = segments else { return None };
        let (kind, namespace, name) = match rest {
            ["nodes"] => (Kind::Node, None, None),
            ["nodes", name] => (Kind::Node, None, Some(*name)),
            ["pods"] => (Kind::Pod, None, None),
            ["namespaces", namespace, "pods"] => (Kind::Pod, Some(*namespace), None),
            ["namespaces", namespace, "pods", name] => (Kind::Pod, Some(*namespace), Some(*name)),
            _ => return None,
        };
        Some(Metrics { kind, namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
    }

    /// GET and LIST.
    ///
    /// # Errors
    /// 404, 405 for watches, 400 for malformed selectors.
    pub async fn answer(
        &self,
        request: &HttpRequest,
        shared: &Arc<Shared>,
    ) -> Result<HttpResponse, ApiError> {
        let query = Query::parse(request.query_string())?;
        if query.watch {
            return Err(ApiError::MethodNotAllowed);
        }
        let filter = Filter::parse(self.kind, self.name.as_deref(), &query)?;
        let snapshot = shared.state.view.snapshot();
        let objects: Vec<&Arc<Object>> = snapshot
            .list(self.kind, self.namespace.as_deref())
            .filter(|object| filter.matches(object))
            .collect();
        let mut nodes: Vec<NodeName> = objects.iter().filter_map(|object| node_of(object)).collect();
        nodes.sort();
        nodes.dedup();
        let told = join_all(nodes.into_iter().map(|node| ask(shared, node))).await;
        let told: BTreeMap<NodeName, NodeUsage> = told.into_iter().flatten().collect();
        let mut items = Vec::new();
        for object in objects {
            let Some(usage) = node_of(object).and_then(|node| told.get(&node)) else { continue };
            items.extend(self.item(object, usage));
        }
        let body = match &self.name {
            None => json!({ "kind": format!("{}List", self.kind()), "apiVersion": api_version(),
                "metadata": {}, "items": items }),
            Some(name) => items.pop().ok_or_else(|| ApiError::NotFound {
                resource: format!("{}metrics.{GROUP}", self.kind.name().to_lowercase()),
                name: self.namespace.as_ref().map_or(name.clone(), |namespace| format!("{namespace}/{name}")),
            })?,
        };
        Ok(json_response(200, body.to_string()))
    }

    fn kind(&self) -> &'static str {
        if self.kind == Kind::Node { "NodeMetrics" } else { "PodMetrics" }
    }

    fn item(&self, object: &Object, usage: &NodeUsage) -> Option<Value> {
        if self.kind == Kind::Node {
            let rate = usage.machine?;
            let mut item = self.head(object, &rate);
            item["usage"] = amounts(&rate);
            return Some(item);
        }
        let of_pod =
            |pod: &&PodUsage| *pod.name == *object.key.name && *pod.namespace == *object.key.namespace;
        let pod = usage.pods.iter().find(of_pod)?;
        let widest = pod.containers.iter().map(|(_, rate)| rate).max_by_key(|rate| rate.window_ms)?;
        let mut item = self.head(object, widest);
        item["containers"] = pod
            .containers
            .iter()
            .map(|(name, rate)| json!({ "name": name, "usage": amounts(rate) }))
            .collect();
        Some(item)
    }

    fn head(&self, object: &Object, rate: &Rate) -> Value {
        let mut metadata = json!({ "name": object.key.name, "labels": object.facet.meta.labels,
            "creationTimestamp": clock::whole_seconds(clock::now()).to_string() });
        if self.kind == Kind::Pod {
            metadata["namespace"] = json!(object.key.namespace);
        }
        let at = Timestamp::from_millisecond(rate.at_ms).unwrap_or(Timestamp::UNIX_EPOCH);
        json!({ "kind": self.kind(), "apiVersion": api_version(), "metadata": metadata,
            "timestamp": clock::whole_seconds(at).to_string(),
            "window": format!("{}.{:03}s", rate.window_ms / 1000, rate.window_ms % 1000) })
    }
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}

/// In the metrics server's units.
fn amounts(rate: &Rate) -> Value {
    json!({ "cpu": format!("{}n", rate.cpu_nano), "memory": format!("{}Ki", rate.memory_bytes / 1024) })
}

/// The node that knows what an object uses.
fn node_of(object: &Object) -> Option<NodeName> {
    match &object.facet.of {
        KindFacet::Pod(pod) => pod.node.clone(),
        _ if object.key.kind == Kind::Node => Some(NodeName(object.key.name.clone())),
        _ => None,
    }
}

/// A page of a kubelet, below `nodes/NAME/proxy`.
#[derive(Debug, PartialEq)]
pub struct Page {
    open: wire::Open,
    content_type: &'static str,
}

impl Page {
    /// The page that a path names.
    pub fn of(path: &[&str]) -> Option<Page> {
        let (open, content_type) = match path {
            ["stats", "summary"] => (wire::Open::Summary, "application/json"),
            ["metrics", "resource"] => (wire::Open::ResourceMetrics, exposition::CONTENT_TYPE),
            ["metrics", "cadvisor"] => (wire::Open::CadvisorMetrics, exposition::CONTENT_TYPE),
            _ => return None,
        };
        Some(Page { open, content_type })
    }

    /// GET: the node's answer as it is.
    ///
    /// # Errors
    /// 404 for the node, 504 when it does not answer, and the node's.
    pub async fn answer(self, call: &Call) -> Result<HttpResponse, ApiError> {
        let key = call.key()?;
        if call.shared.state.view.snapshot().find(&key).is_none() {
            return Err(ApiError::not_found(&key));
        }
        let stream = open(call, &NodeName(key.name.clone()), self.open).await?;
        let answer = tokio::time::timeout(ASK_TIMEOUT, whole(stream.read, ANSWER_BYTES))
            .await
            .map_err(|_| ApiError::Timeout(format!("node {} did not answer", key.name)))?
            .map_err(|e| unanswered(&key.name, &e))?;
        let no_cache = ("Cache-Control", "no-cache, private");
        Ok(HttpResponse::Ok().content_type(self.content_type).insert_header(no_cache).body(answer))
    }
}

/// Without a word of when to ask again: the next answer would be as long, and is gathered each time.
fn unanswered(node: &str, error: &str) -> ApiError {
    ApiError::Node(503, format!("node {node}: {error}"))
}

/// All of an answer: half of one is none.
async fn whole(read: impl AsyncRead + Unpin, most_bytes: u64) -> Result<Vec<u8>, String> {
    let mut answer = Vec::new();
    let mut read = read.take(most_bytes.saturating_add(1));
    let length = read.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
    if u64::try_from(length).is_ok_and(|length| length > most_bytes) {
        return Err(format!("its answer is longer than {most_bytes} bytes: run fewer pods on it"));
    }
    Ok(answer)
}

async fn ask(shared: &Shared, node: NodeName) -> Option<(NodeName, NodeUsage)> {
    let asked = async {
        let request = OpenStream { node: node.clone(), open: wire::Open::Stats };
        let opened = shared.state.streams.ask(request, ASK_TIMEOUT).await.map_err(|e| e.to_string())?;
        let stream = opened.map_err(|e| e.to_string())?;
        let json = whole(stream.read, STATS_BYTES).await?;
        serde_json::from_slice(&json).map_err(|e| e.to_string())
    };
    match tokio::time::timeout(ASK_TIMEOUT, asked).await.unwrap_or_else(|_| Err("no answer in time".into())) {
        Ok(usage) => Some((node, usage)),
        Err(error) => {
            tracing::debug!(%node, error, "a node does not say what it uses");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Revision, seal_json};

    #[test]
    fn paths_of_the_group_name_nodes_and_pods() {
        let of = |path: &str| Metrics::of(&path.split('/').collect::<Vec<_>>());
        let pods = |namespace: Option<&str>, name: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_owned);
            Some(Metrics { kind: Kind::Pod, namespace: own(namespace), name: own(name) })
        };
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/pods"), pods(None, None));
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/namespaces/a/pods"), pods(Some("a"), None));
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/namespaces/a/pods/b"), pods(Some("a"), Some("b")));
        assert_eq!(of("apis/metrics.k8s.io/v1beta1/nodes/n").unwrap().kind, Kind::Node);
        for other in ["apis/metrics.k8s.io/v1/pods", "apis/metrics.k8s.io/v1beta1", "apis/apps/v1/pods"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn a_kubelets_pages_are_found_by_their_paths() {
        let kinds = ["stats/summary", "metrics/resource", "metrics/cadvisor"].map(|path| {
            let page = Page::of(&path.split('/').collect::<Vec<_>>()).unwrap();
            page.content_type.split_once(';').map_or(page.content_type, |(kind, _)| kind)
        });
        assert_eq!(kinds, ["application/json", "text/plain", "text/plain"]);
        for other in ["metrics", "metrics/probes", "stats", "stats/summary/x"] {
            assert_eq!(Page::of(&other.split('/').collect::<Vec<_>>()), None, "{other}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_is_refused_and_not_cut() {
        assert_eq!(whole(&b"12345"[..], 5).await.unwrap(), b"12345");
        let refused = whole(&b"123456"[..], 5).await.unwrap_err();
        let answer = unanswered("n1", &refused).response();
        assert_eq!((answer.status().as_u16(), answer.headers().get("Retry-After")), (503, None));
        assert_eq!(refused, "its answer is longer than 5 bytes: run fewer pods on it");
    }

    #[test]
    fn what_is_used_is_told_in_the_metrics_servers_form() {
        let pod =
            json!({ "metadata": { "name": "web", "namespace": "a", "uid": "u", "labels": { "l": "1" } } });
        let pod = seal_json(Kind::Pod, pod.to_string().as_bytes()).unwrap().at(Revision(1));
        let rate = Rate { at_ms: 60_000, window_ms: 15_020, cpu_nano: 1_234, memory_bytes: 3 << 20 };
        let containers = vec![("c".to_owned(), rate)];
        let of_pod = PodUsage { namespace: "a".into(), name: "web".into(), containers };
        let usage = NodeUsage { machine: None, pods: vec![of_pod] };
        let metrics = Metrics { kind: Kind::Pod, namespace: None, name: None };
        let item = metrics.item(&pod, &usage).unwrap();
        assert_eq!(item["containers"], json!([{"name": "c", "usage": {"cpu": "1234n", "memory": "3072Ki"}}]));
        assert_eq!(
            (&item["timestamp"], &item["window"]),
            (&json!("1970-01-01T00:01:00Z"), &json!("15.020s"))
        );
        assert_eq!((&item["kind"], &item["metadata"]["labels"]["l"]), (&json!("PodMetrics"), &json!("1")));
        assert_eq!(metrics.item(&pod, &NodeUsage::default()), None);
    }
}
