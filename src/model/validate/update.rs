//! What may change in a pod once it is there.

use k8s_openapi::api::core::v1::{
    Affinity, Container, ContainerStatus, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
};
use serde::Serialize;

use super::pod;
use crate::model::{
    fault::{Faults, Path, Raw},
    names,
};

const FEW_FIELDS: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
/// So many of the fields that changed are named.
const NAMED_MAX: usize = 5;

/// Validates a new state of a pod's main part (metadata excepted).
pub(crate) fn pod_update(new: &Pod, old: &Pod, faults: &mut Faults) {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
    let at = Path::Root("spec");
    pod::any_pod(new, &at, faults);
    let count = |list: &Option<Vec<Container>>| list.as_ref().map_or(0, Vec::len);
    for (field, same) in [
        ("containers", new.containers.len() == old.containers.len()),
        ("initContainers", count(&new.init_containers) == count(&old.init_containers)),
    ] {
        if !same {
            return faults.forbidden(&at.field(field), "pod updates may not add or remove containers");
        }
    }
    deadline(new, old, &at, faults);
    added_tolerations(new, old, &at.field("tolerations"), faults);
    gates(new, old, &at, faults);
    // What may change is put back; then nothing may differ.
    let mut rest = new.clone();
    for (changed, kept) in rest.containers.iter_mut().zip(&old.containers) {
        changed.image.clone_from(&kept.image);
    }
    for (changed, kept) in rest.init_containers.iter_mut().flatten().zip(old.init_containers.iter().flatten())
    {
        changed.image.clone_from(&kept.image);
    }
    rest.active_deadline_seconds = old.active_deadline_seconds;
    rest.tolerations.clone_from(&old.tolerations);
    rest.scheduling_gates.clone_from(&old.scheduling_gates);
    if old.termination_grace_period_seconds.is_some_and(|s| s < 0)
        && new.termination_grace_period_seconds == Some(1)
    {
        rest.termination_grace_period_seconds = old.termination_grace_period_seconds;
    }
    if !old.scheduling_gates.as_deref().unwrap_or_default().is_empty() {
        // A pod that nobody schedules yet may be narrowed down.
        narrowed_selector(new, old, &at.field("nodeSelector"), faults);
        narrowed_affinity(new, old, &at.field("affinity"), faults);
        rest.node_selector.clone_from(&old.node_selector);
        let mut others = rest.affinity.take().unwrap_or_default();
        others.node_affinity = old.affinity.as_ref().and_then(|a| a.node_affinity.clone());
        // One that came with a node affinity alone is none.
        rest.affinity = Some(others).filter(|a| old.affinity.is_some() || *a != Affinity::default());
    }
    if rest != *old {
        let changed = changed_fields(&rest, old);
        let detail = if changed.is_empty() {
            FEW_FIELDS.to_owned()
        } else {
            format!("{FEW_FIELDS}\nchanged: {}", changed.join(", "))
        };
        faults.forbidden(&at, &detail);
    }
}

/// The names of the spec's fields that differ.
fn changed_fields(new: &PodSpec, old: &PodSpec) -> Vec<String> {
    let (Ok(new), Ok(old)) = (serde_json::to_value(new), serde_json::to_value(old)) else {
        return Vec::new();
    };
    let (Some(new), Some(old)) = (new.as_object(), old.as_object()) else { return Vec::new() };
    let names = new.keys().chain(old.keys().filter(|k| !new.contains_key(*k)));
    names.filter(|k| new.get(*k) != old.get(*k)).take(NAMED_MAX).map(|k| format!("spec.{k}")).collect()
}

fn deadline(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let at = at.field("activeDeadlineSeconds");
    match (new.active_deadline_seconds, old.active_deadline_seconds) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            faults.invalid(&at, &seconds, "must be between 0 and 2147483647, inclusive");
        }
        (Some(seconds), Some(before)) if before < seconds => {
            faults.invalid(&at, &seconds, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            faults.invalid(&at, &Raw("null".into()), detail);
        }
        _ => {}
    }
}

fn added_tolerations(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let list = new.tolerations.as_deref().unwrap_or_default();
    let kept = old.tolerations.iter().flatten().all(|before| {
        list.iter().any(|now| {
            (&now.key, &now.operator, &now.value, &now.effect)
                == (&before.key, &before.operator, &before.value, &before.effect)
        })
    });
    if !kept {
        faults.forbidden(at, "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// Gates may be taken away, not added.
fn gates(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let before = old.scheduling_gates.as_deref().unwrap_or_default();
    let at = at.field("schedulingGates");
    for (index, gate) in new.scheduling_gates.iter().flatten().enumerate() {
        if !before.contains(gate) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", gate.name);
            faults.forbidden(&at.index(index).field("name"), &detail);
        }
    }
}

/// Labels may be added to those that the node is to have.
fn narrowed_selector(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let has = |(key, value): (&String, &String)| {
        new.node_selector.as_ref().and_then(|now| now.get(key)).is_some_and(|now| now == value)
    };
    if !old.node_selector.iter().flatten().all(has) {
        let detail = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
        faults.invalid(at, &shown(&new.node_selector), detail);
    }
}

/// Expressions may be added to the terms of which the node is to match one; where there is none, terms.
fn narrowed_affinity(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let (terms, before) = (required_terms(new), required_terms(old));
    if before.is_empty() {
        return;
    }
    let (node, required) = (at.field("nodeAffinity"), "requiredDuringSchedulingIgnoredDuringExecution");
    let required = node.field(required);
    let at = required.field("nodeSelectorTerms");
    if terms.len() != before.len() {
        let detail = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        return faults.invalid(&at, &shown(&terms), detail);
    }
    for (index, (term, before)) in terms.iter().zip(before).enumerate() {
        if !only_adds(term, before) {
            let detail = "only additions are allowed (no mutations or deletions)";
            faults.invalid(&at.index(index), &shown(term), detail);
        }
    }
}

fn required_terms(spec: &PodSpec) -> &[NodeSelectorTerm] {
    let node = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = node.and_then(|node| node.required_during_scheduling_ignored_during_execution.as_ref());
    required.map_or(&[], |required| &required.node_selector_terms)
}

/// A term without any expression matches no node: to add one would be to widen it.
fn only_adds(new: &NodeSelectorTerm, old: &NodeSelectorTerm) -> bool {
    type Expressions<'a> = (&'a [NodeSelectorRequirement], &'a [NodeSelectorRequirement]);
    fn of(term: &NodeSelectorTerm) -> Expressions<'_> {
        (
            term.match_expressions.as_deref().unwrap_or_default(),
            term.match_fields.as_deref().unwrap_or_default(),
        )
    }
    let ((new, new_fields), (old, old_fields)) = (of(new), of(old));
    let matched_none = old.is_empty() && old_fields.is_empty();
    let matches_none = new.is_empty() && new_fields.is_empty();
    new.starts_with(old) && new_fields.starts_with(old_fields) && (!matched_none || matches_none)
}

fn shown(value: &impl Serialize) -> Raw {
    Raw(serde_json::to_string(value).unwrap_or_default())
}

/// Validates a new state of a pod's status (metadata excepted).
pub(crate) fn pod_status_update(new: &Pod, old: &Pod, faults: &mut Faults) {
    let at = Path::Root("status");
    let (Some(new), Some(before)) = (&new.status, &old.status) else { return };
    if let Some(node) = new.nominated_node_name.as_deref().filter(|n| !n.is_empty())
        && new.nominated_node_name != before.nominated_node_name
    {
        faults.invalid_each(&at.field("nominatedNodeName"), node, names::dns1123_subdomain(node));
    }
    let restart = old.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always");
    no_resurrection(
        new.container_statuses.as_deref().unwrap_or_default(),
        before.container_statuses.as_deref().unwrap_or_default(),
        restart,
        &at.field("containerStatuses"),
        faults,
    );
}

/// A container that ended for good stays ended.
fn no_resurrection(
    new: &[ContainerStatus],
    old: &[ContainerStatus],
    restart: &str,
    at: &Path<'_>,
    faults: &mut Faults,
) {
    if restart == "Always" {
        return;
    }
    for (index, before) in old.iter().enumerate() {
        let Some(ended) = before.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
        if ended.exit_code != 0 && restart == "OnFailure" {
            continue;
        }
        let runs = |c: &&ContainerStatus| {
            c.name == before.name && c.state.as_ref().is_none_or(|s| s.terminated.is_none())
        };
        if new.iter().find(runs).is_some() {
            faults.forbidden(
                &at.index(index).field("state"),
                "may not be transitioned to non-terminated state",
            );
        }
    }
}
