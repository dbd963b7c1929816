//! Filters: whether a node may run a pod, and if not, why, in Kubernetes' words.
//!
//! Owns: the checks in the order of Kubernetes' default scheduler (cordon, taints, affinity and selector, ports,
//! resources). The first check that fails explains the node. Leaves choosing among nodes that pass to [`super::Placer`].

use std::{borrow::Cow, collections::HashSet};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::Node;
use crate::model::{LabelSet, NodeFacet, PodFacet, Resources, UNSCHEDULABLE};

/// The taint that a node that is not ready bears.
const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The taint that a node low on memory bears.
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";
/// The one field a `matchFields` term may name.
const NAME_FIELD: &str = "metadata.name";

/// One reason, as it is counted in a refusal.
pub(super) type Reason = Cow<'static, str>;

/// A port on a node: (host IP or "", protocol, port).
pub(super) type HostPort = (String, String, i32);

/// Whether the node may run the pod now.
pub(super) fn passes(pod: &PodFacet, node: &Node) -> bool {
    let Some(known) = &node.known else { return false };
    !cordoned(pod, &known.facet)
        && untolerated(pod, &known.facet).is_none()
        && chosen(pod, node.name.as_str(), &known.labels)
        && ports_free(pod, &node.ports)
        && insufficient(pod.requests, known.facet.allocatable.minus(node.used)).next().is_none()
        && lacking(pod, node, &known.facet).next().is_none()
}

/// Why it may not; empty when it may.
pub(super) fn reasons(pod: &PodFacet, node: &Node) -> Vec<Reason> {
    let Some(known) = &node.known else { return Vec::new() };
    if cordoned(pod, &known.facet) {
        return vec!["node(s) were unschedulable".into()];
    }
    if let Some((key, value)) = untolerated(pod, &known.facet) {
        return vec![format!("node(s) had untolerated taint {{{key}: {value}}}").into()];
    }
    if !chosen(pod, node.name.as_str(), &known.labels) {
        return vec!["node(s) didn't match Pod's node affinity/selector".into()];
    }
    if !ports_free(pod, &node.ports) {
        return vec!["node(s) didn't have free ports for the requested pod ports".into()];
    }
    let insufficient = insufficient(pod.requests, known.facet.allocatable.minus(node.used));
    let lacking = lacking(pod, node, &known.facet).map(|name| format!("Insufficient {name}").into());
    insufficient.map(Reason::Borrowed).chain(lacking).collect()
}

fn cordoned(pod: &PodFacet, node: &NodeFacet) -> bool {
    node.cordoned && !pod.tolerations.iter().any(|t| tolerates(t, UNSCHEDULABLE, "", "NoSchedule"))
}

/// The first taint that keeps the pod away.
fn untolerated<'a>(pod: &PodFacet, node: &'a NodeFacet) -> Option<(&'a str, &'a str)> {
    let keeps_away = |t: &&Taint| t.effect == "NoSchedule" || t.effect == "NoExecute";
    let bears = |key: &str, value: &str, effect: &str| {
        pod.tolerations.iter().any(|t| tolerates(t, key, value, effect))
    };
    // Who asked for something copes with little memory; who asked for nothing would be the first to go.
    let copes = |t: &&Taint| {
        t.key == MEMORY_PRESSURE && (pod.requests.cpu_milli > 0 || pod.requests.memory_bytes > 0)
    };
    let value = |t: &'a Taint| t.value.as_deref().unwrap_or("");
    let tainted =
        node.taints.iter().filter(keeps_away).find(|t| !copes(t) && !bears(&t.key, value(t), &t.effect));
    if let Some(taint) = tainted {
        return Some((&taint.key, value(taint)));
    }
    // A node that is not ready is kept free whether or not its taint has been written yet.
    (!node.ready && !bears(NOT_READY, "", "NoSchedule")).then_some((NOT_READY, ""))
}

/// Whether a toleration bears a taint.
pub(in crate::logic) fn tolerates(toleration: &Toleration, key: &str, value: &str, effect: &str) -> bool {
    let any = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    let exists = toleration.operator.as_deref() == Some("Exists");
    (any(&toleration.effect) || toleration.effect.as_deref() == Some(effect))
        && (toleration.key.as_deref() == Some(key) || (any(&toleration.key) && exists))
        && (exists || toleration.value.as_deref().unwrap_or("") == value)
}

/// Whether the pod's node selector and required node affinity choose the node.
fn chosen(pod: &PodFacet, name: &str, labels: &LabelSet) -> bool {
    if !pod.node_selector.iter().all(|(k, v)| labels.get(k) == Some(v.as_str())) {
        return false;
    }
    let required = pod
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    required.is_none_or(|r| r.node_selector_terms.iter().any(|term| term_matches(term, name, labels)))
}

/// Every requirement of a term must hold; a term without any matches nothing.
fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &LabelSet) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|r| holds(r, labels.get(&r.key)))
        && fields.iter().all(|r| r.key == NAME_FIELD && holds(r, Some(name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = || value.is_some_and(|v| values.iter().any(|x| x == v));
    let bound = || values.first().and_then(|v| v.parse::<i64>().ok());
    let number = || value.and_then(|v| v.parse::<i64>().ok());
    match requirement.operator.as_str() {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number().zip(bound()).is_some_and(|(n, b)| n > b),
        "Lt" => number().zip(bound()).is_some_and(|(n, b)| n < b),
        _ => false,
    }
}

fn ports_free(pod: &PodFacet, taken: &HashSet<HostPort>) -> bool {
    let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
    pod.host_ports.iter().all(|(ip, protocol, port)| {
        !taken.iter().any(|(i, p, n)| n == port && p == protocol && (i == ip || any(i) || any(ip)))
    })
}

/// The resources of which too little is free. What a pod does not ask for cannot be lacking.
fn insufficient(asked: Resources, free: Resources) -> impl Iterator<Item = &'static str> {
    let plain = [
        ("Too many pods", asked.pods, free.pods),
        ("Insufficient cpu", asked.cpu_milli, free.cpu_milli),
        ("Insufficient memory", asked.memory_bytes, free.memory_bytes),
        ("Insufficient ephemeral-storage", asked.ephemeral_bytes, free.ephemeral_bytes),
    ];
    let huge = HUGE.into_iter().zip(asked.huge_bytes).zip(free.huge_bytes);
    let huge = huge.map(|((reason, asked), free)| (reason, asked, free));
    plain
        .into_iter()
        .chain(huge)
        .filter(|(_, asked, free)| *asked > 0 && asked > free)
        .map(|(reason, ..)| reason)
}

/// The extended resources of which too little is free.
fn lacking<'a>(pod: &'a PodFacet, node: &'a Node, facet: &'a NodeFacet) -> impl Iterator<Item = &'a String> {
    let has = |name: &String| facet.extended.as_ref().and_then(|all| all.get(name)).copied().unwrap_or(0);
    let used = |name: &String| node.extended.get(name).copied().unwrap_or(0);
    let asked = pod.extended.iter().flat_map(|all| all.iter());
    asked
        .filter(move |(name, asked)| **asked > 0 && **asked > has(name).saturating_sub(used(name)))
        .map(|(name, _)| name)
}

/// In the order of [`Resources::huge_bytes`].
const HUGE: [&str; 5] = [
    "Insufficient hugepages-64Ki",
    "Insufficient hugepages-2Mi",
    "Insufficient hugepages-32Mi",
    "Insufficient hugepages-1Gi",
    "Insufficient hugepages of that size",
];
