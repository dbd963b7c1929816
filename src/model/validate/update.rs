//! What may change in a pod once it is there.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

use super::scheduling;
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
    let before = faults.len();
    let empty = Vec::new();
    containers(&new.containers, &old.containers, &at.field("containers"), faults);
    containers(
        new.init_containers.as_ref().unwrap_or(&empty),
        old.init_containers.as_ref().unwrap_or(&empty),
        &at.field("initContainers"),
        faults,
    );
    if faults.len() > before {
        return;
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
        rest.node_selector.clone_from(&old.node_selector);
        rest.affinity.clone_from(&old.affinity);
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

fn containers(new: &[Container], old: &[Container], at: &Path<'_>, faults: &mut Faults) {
    if new.len() != old.len() {
        return faults.forbidden(at, "pod updates may not add or remove containers");
    }
    for (index, container) in new.iter().enumerate() {
        let item = at.index(index);
        match container.image.as_deref().unwrap_or_default() {
            "" => faults.required(&item.field("image"), ""),
            image if image.trim() != image => {
                faults.invalid(&item.field("image"), image, "must not have leading or trailing whitespace");
            }
            _ => {}
        }
    }
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
    } else {
        scheduling::tolerations(list, at, faults);
    }
}

/// Gates may be taken away, not added.
fn gates(new: &PodSpec, old: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let before = old.scheduling_gates.as_deref().unwrap_or_default();
    let mut added: Vec<&str> = new
        .scheduling_gates
        .iter()
        .flatten()
        .filter(|g| !before.contains(g))
        .map(|g| g.name.as_str())
        .collect();
    added.sort_unstable();
    if !added.is_empty() {
        let detail =
            format!("only deletion is allowed, but found new scheduling gates '{}'", added.join(","));
        faults.forbidden(&at.field("schedulingGates"), &detail);
    }
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
