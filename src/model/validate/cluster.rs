//! Replication controllers, namespaces, nodes, events.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Event, Namespace, Node, ReplicationController};

use super::{NOT_NEGATIVE, container, meta, pod, scheduling::EFFECTS};
use crate::model::{
    fault::{Faults, Path, Raw, Shown},
    names,
};

/// Longest `reason` of an event.
const REASON_MAX: usize = 128;

/// Validates a replication controller (metadata excepted).
pub(crate) fn replication_controller(rc: &ReplicationController, faults: &mut Faults) {
    let at = Path::Root("spec");
    let Some(spec) = &rc.spec else {
        return faults.required(&at, "");
    };
    if let Some(seconds) = spec.min_ready_seconds.filter(|s| *s < 0) {
        faults.invalid(&at.field("minReadySeconds"), &seconds, NOT_NEGATIVE);
    }
    let selector = spec.selector.as_ref().filter(|s| !s.is_empty());
    if selector.is_none() {
        faults.required(&at.field("selector"), "");
    }
    if let Some(replicas) = spec.replicas.filter(|r| *r < 0) {
        faults.invalid(&at.field("replicas"), &replicas, NOT_NEGATIVE);
    }
    let at = at.field("template");
    let Some(template) = &spec.template else {
        return faults.required(&at, "");
    };
    let metadata = at.field("metadata");
    let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    if let Some(selector) = selector {
        let bears = |(key, value): (&String, &String)| labels.and_then(|l| l.get(key)) == Some(value);
        if !selector.iter().all(bears) {
            let shown: Vec<String> =
                labels.into_iter().flatten().map(|(k, v)| format!("{}:{}", k.shown(), v.shown())).collect();
            faults.invalid(
                &metadata.field("labels"),
                &Raw(format!("map[string]string{{{}}}", shown.join(", "))),
                "`selector` does not match template `labels`",
            );
        }
    }
    meta::labels(labels, &metadata.field("labels"), faults);
    let annotations = template.metadata.as_ref().and_then(|m| m.annotations.as_ref());
    meta::annotations(annotations, &metadata.field("annotations"), faults);
    let at = at.field("spec");
    let Some(pod_spec) = &template.spec else {
        return faults.required(&at, "");
    };
    pod::pod_spec(pod_spec, &at, faults);
    if let Some(policy) = pod_spec.restart_policy.as_deref().filter(|p| *p != "Always") {
        faults.unsupported(&at.field("restartPolicy"), policy, &["Always"]);
    }
    if pod_spec.active_deadline_seconds.is_some() {
        let detail = "activeDeadlineSeconds in ReplicationController is not Supported";
        faults.forbidden(&at.field("activeDeadlineSeconds"), detail);
    }
}

/// What is refused of late in a replication controller's template. One whose template had such before may keep it.
pub(crate) fn replication_controller_of_late(
    rc: &ReplicationController,
    old: Option<&ReplicationController>,
    faults: &mut Faults,
) {
    let at = Path::Root("spec");
    let at = at.field("template");
    let at = at.field("spec");
    let check = |rc: &ReplicationController, faults: &mut Faults| {
        let template = rc.spec.as_ref().and_then(|spec| spec.template.as_ref()?.spec.as_ref());
        if let Some(spec) = template {
            pod::of_late(spec, &at, faults);
        }
    };
    let mut before = Faults::default();
    old.inspect(|old| check(old, &mut before));
    if before.len() == 0 {
        check(rc, faults);
    }
}

/// Validates a replication controller's status.
pub(crate) fn replication_controller_status(rc: &ReplicationController, faults: &mut Faults) {
    let at = Path::Root("status");
    let Some(status) = &rc.status else { return };
    let fields = [
        ("fullyLabeledReplicas", status.fully_labeled_replicas.unwrap_or(0)),
        ("readyReplicas", status.ready_replicas.unwrap_or(0)),
        ("availableReplicas", status.available_replicas.unwrap_or(0)),
    ];
    if status.replicas < 0 {
        faults.invalid(&at.field("replicas"), &status.replicas, NOT_NEGATIVE);
    }
    for (field, value) in fields {
        if value < 0 {
            faults.invalid(&at.field(field), &value, NOT_NEGATIVE);
        }
        if value > status.replicas {
            faults.invalid(&at.field(field), &value, "cannot be greater than status.replicas");
        }
    }
    if let Some(seen) = status.observed_generation.filter(|g| *g < 0) {
        faults.invalid(&at.field("observedGeneration"), &seen, NOT_NEGATIVE);
    }
}

/// Validates a namespace (metadata excepted).
pub(crate) fn namespace(namespace: &Namespace, faults: &mut Faults) {
    let at = Path::Root("spec");
    let at = at.field("finalizers");
    for finalizer in namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()) {
        faults.invalid_each(&at, finalizer, names::qualified_name(finalizer));
        if !finalizer.contains('/') && finalizer != "kubernetes" {
            let detail = "name is neither a standard finalizer name nor is it fully qualified";
            faults.invalid(&at, finalizer, detail);
        }
    }
}

/// Validates a namespace's status: its phase says whether it is being deleted, and nothing else.
pub(crate) fn namespace_status(namespace: &Namespace, faults: &mut Faults) {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    let (expected, detail) = if namespace.metadata.deletion_timestamp.is_none() {
        ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
    } else {
        ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
    };
    if phase != expected {
        let at = Path::Root("status");
        faults.invalid(&at.field("Phase"), phase, detail);
    }
}

/// Validates a node (metadata excepted).
pub(crate) fn node(node: &Node, faults: &mut Faults) {
    let spec = Path::Root("spec");
    let taints = spec.field("taints");
    let mut seen = HashSet::new();
    for (index, taint) in node.spec.iter().flat_map(|s| s.taints.iter().flatten()).enumerate() {
        let at = taints.index(index);
        faults.invalid_each(&at.field("key"), &taint.key, names::qualified_name(&taint.key));
        let value = taint.value.as_deref().unwrap_or_default();
        let wrong = names::label_value(value);
        if !wrong.is_empty() {
            faults.invalid(&at.field("value"), value, &wrong.join(";"));
        }
        match taint.effect.as_str() {
            "" => faults.required(&at.field("effect"), ""),
            effect if EFFECTS.contains(&effect) => {}
            effect => faults.unsupported(&at.field("effect"), effect, EFFECTS),
        }
        if !seen.insert((&taint.key, &taint.effect)) {
            faults.duplicate(&at, &Raw(serde_json::to_string(taint).unwrap_or_default()));
        }
    }
    let cidrs = spec.field("podCIDRs");
    for (index, cidr) in node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten()).enumerate() {
        if !is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            faults.invalid(&cidrs.index(index), cidr, detail);
        }
    }
    let status = Path::Root("status");
    for (field, list) in [
        ("capacity", node.status.as_ref().and_then(|s| s.capacity.as_ref())),
        ("allocatable", node.status.as_ref().and_then(|s| s.allocatable.as_ref())),
    ] {
        if let Some(list) = list {
            container::amounts(list, &status.field(field), faults);
            container::integers(list, &status.field(field), faults);
        }
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let most = match address.parse() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|b| b <= most)
}

/// Validates a node's new state: what it was given stays.
pub(crate) fn node_update(new: &Node, old: &Node, faults: &mut Faults) {
    let at = Path::Root("spec");
    let text = |field: Option<&String>| field.cloned().unwrap_or_default();
    let cidr = |node: &Node| text(node.spec.as_ref().and_then(|s| s.pod_cidr.as_ref()));
    let provider = |node: &Node| text(node.spec.as_ref().and_then(|s| s.provider_id.as_ref()));
    for (field, name, before, now) in [
        ("podCIDRs", "podCIDR", cidr(old), cidr(new)),
        ("providerID", "providerID", provider(old), provider(new)),
    ] {
        if !before.is_empty() && before != now {
            let detail = format!("node updates may not change {name} except from \"\" to valid");
            faults.forbidden(&at.field(field), &detail);
        }
    }
    node(new, faults);
}

/// Validates an event (metadata excepted).
pub(crate) fn event(event: &Event, faults: &mut Faults) {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let involved = event.involved_object.namespace.as_deref().unwrap_or_default();
    // What lives outside namespaces has its events in the default one.
    let home = if involved.is_empty() { "default" } else { involved };
    if namespace != home {
        let at = Path::Root("involvedObject");
        faults.invalid(&at.field("namespace"), involved, "does not match event.namespace");
    }
    if event.reason.as_ref().is_some_and(|r| r.len() > REASON_MAX) {
        let reason = event.reason.as_deref().unwrap_or_default();
        faults.invalid(&Path::Root("reason"), reason, "can have at most 128 characters");
    }
    if event.event_time.is_none() {
        return;
    }
    // Events with an exact time are of the newer sort, which asks for more.
    for (field, value) in [
        ("reportingController", &event.reporting_component),
        ("reportingInstance", &event.reporting_instance),
        ("action", &event.action),
        ("reason", &event.reason),
    ] {
        if value.as_deref().is_none_or(str::is_empty) {
            faults.required(&Path::Root(field), "");
        }
    }
}
