//! The order in which a scale-down takes pods.
//!
//! Owns: Kubernetes' order (its `ActivePodsWithRanks`): not yet assigned, then pending, then not ready, then cheapest to
//! delete, then most doubled up on one node, then ready for the shortest time, then most restarted, then newest.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use crate::model::{NodeName, Object, Phase, PodFacet};

/// The annotation with which a pod says how dear its deletion is; lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `n` pods that go first.
pub(super) fn first_to_go(mut pods: Vec<(&Arc<Object>, &PodFacet)>, n: usize) -> Vec<Arc<Object>> {
    if n == 0 {
        return Vec::new();
    }
    if n < pods.len() {
        let mut on_node: HashMap<&NodeName, usize> = HashMap::new();
        for (_, facet) in &pods {
            if let Some(node) = &facet.node {
                *on_node.entry(node).or_default() += 1;
            }
        }
        pods.sort_by_cached_key(|(pod, facet)| {
            let beside = facet.node.as_ref().and_then(|n| on_node.get(n)).copied().unwrap_or(0);
            order(pod, facet, beside)
        });
    }
    pods.into_iter().take(n).map(|(pod, _)| pod.clone()).collect()
}

/// Smaller goes first.
fn order(pod: &Object, facet: &PodFacet, beside: usize) -> impl Ord + use<> {
    let phase = match facet.phase {
        Phase::Pending => 0,
        Phase::Running => 2,
        _ => 1,
    };
    (
        (facet.node.is_some(), phase, facet.ready, deletion_cost(pod)),
        Reverse(beside),
        Reverse(if facet.ready { facet.ready_since } else { i64::MIN }),
        Reverse(facet.restarts),
        Reverse(pod.facet.meta.created),
        pod.key.name.clone(),
    )
}

/// Most pods have no such annotation: the document is only parsed when its text has one.
fn deletion_cost(pod: &Object) -> i32 {
    let annotated = std::str::from_utf8(&pod.json).is_ok_and(|text| text.contains(DELETION_COST));
    if !annotated {
        return 0;
    }
    let typed = pod.parse::<k8s_openapi::api::core::v1::Pod>().ok();
    typed
        .and_then(|p| p.metadata.annotations)
        .and_then(|a| a.get(DELETION_COST).and_then(|c| c.parse().ok()))
        .unwrap_or(0)
}
