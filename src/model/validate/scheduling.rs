//! Where a pod may run: tolerations, affinities, spread, gates.

use std::collections::HashSet;

use k8s_openapi::{
    api::core::v1::{
        Affinity, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm, PodSchedulingGate, Toleration,
        TopologySpreadConstraint, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};

use super::meta;
use crate::model::{
    fault::{Faults, Path, Raw},
    names,
};

/// What a taint can do to pods.
pub(super) const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];
const LIST_OPERATOR: &str = "must be specified when `operator` is 'In' or 'NotIn'";
const PLAIN_OPERATOR: &str = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
const NO_OPERATOR: &str = "not a valid selector operator";

/// Validates tolerations.
pub(super) fn tolerations(list: &[Toleration], at: &Path<'_>, faults: &mut Faults) {
    for (index, toleration) in list.iter().enumerate() {
        let at = at.index(index);
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let (key, operator) = (text(&toleration.key), text(&toleration.operator));
        let (value, effect) = (text(&toleration.value), text(&toleration.effect));
        if !key.is_empty() {
            faults.invalid_each(&at.field("key"), &key, names::qualified_name(&key));
        } else if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            faults.invalid(&at.field("operator"), &operator, detail);
        }
        if toleration.toleration_seconds.is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            faults.invalid(&at.field("effect"), &effect, detail);
        }
        match operator.as_str() {
            "Equal" | "" => {
                let wrong = names::label_value(&value);
                if !wrong.is_empty() {
                    faults.invalid(&at.field("operator"), &value, &wrong.join(";"));
                }
            }
            "Exists" if value.is_empty() => {}
            "Exists" => {
                let shown = Raw(serde_json::to_string(toleration).unwrap_or_default());
                faults.invalid(
                    &at.field("operator"),
                    &shown,
                    "value must be empty when `operator` is 'Exists'",
                );
            }
            other => faults.unsupported(&at.field("operator"), other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect.as_str()) {
            faults.unsupported(&at.field("effect"), &effect, EFFECTS);
        }
    }
}

/// Validates affinities.
pub(super) fn affinity(affinity: &Affinity, at: &Path<'_>, faults: &mut Faults) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = &affinity.node_affinity {
        let at = at.field("nodeAffinity");
        if let Some(required) = &node.required_during_scheduling_ignored_during_execution {
            let at = at.field(REQUIRED);
            let at = at.field("nodeSelectorTerms");
            if required.node_selector_terms.is_empty() {
                faults.required(&at, "must have at least one node selector term");
            }
            for (index, term) in required.node_selector_terms.iter().enumerate() {
                node_term(term, &at.index(index), faults);
            }
        }
        let at = at.field(PREFERRED);
        let preferred = &node.preferred_during_scheduling_ignored_during_execution;
        for (index, term) in preferred.iter().flatten().enumerate() {
            let at = at.index(index);
            weight(term.weight, &at, faults);
            node_term(&term.preference, &at.field("preference"), faults);
        }
    }
    let mut pods =
        |field: &str, required: Option<&[PodAffinityTerm]>, preferred: Option<&[WeightedPodAffinityTerm]>| {
            let at = at.field(field);
            let hard = at.field(REQUIRED);
            for (index, term) in required.into_iter().flatten().enumerate() {
                pod_term(term, &hard.index(index), faults);
            }
            let soft = at.field(PREFERRED);
            for (index, term) in preferred.into_iter().flatten().enumerate() {
                let at = soft.index(index);
                weight(term.weight, &at, faults);
                pod_term(&term.pod_affinity_term, &at.field("podAffinityTerm"), faults);
            }
        };
    if let Some(near) = &affinity.pod_affinity {
        pods(
            "podAffinity",
            near.required_during_scheduling_ignored_during_execution.as_deref(),
            near.preferred_during_scheduling_ignored_during_execution.as_deref(),
        );
    }
    if let Some(far) = &affinity.pod_anti_affinity {
        pods(
            "podAntiAffinity",
            far.required_during_scheduling_ignored_during_execution.as_deref(),
            far.preferred_during_scheduling_ignored_during_execution.as_deref(),
        );
    }
}

fn weight(weight: i32, at: &Path<'_>, faults: &mut Faults) {
    if !(1..=100).contains(&weight) {
        faults.invalid(&at.field("weight"), &weight, "must be in the range 1-100");
    }
}

fn node_term(term: &NodeSelectorTerm, at: &Path<'_>, faults: &mut Faults) {
    let expressions = at.field("matchExpressions");
    for (index, requirement) in term.match_expressions.iter().flatten().enumerate() {
        let at = expressions.index(index);
        node_requirement(requirement, &at, faults);
        faults.invalid_each(&at.field("key"), &requirement.key, names::qualified_name(&requirement.key));
    }
    let fields = at.field("matchFields");
    for (index, requirement) in term.match_fields.iter().flatten().enumerate() {
        let at = fields.index(index);
        if requirement.values.as_ref().is_none_or(|v| v.len() != 1) {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            faults.required(&at.field("values"), detail);
        }
        if requirement.key != "metadata.name" {
            faults.invalid(&at.field("key"), &requirement.key, "not a valid field selector key");
        }
    }
}

fn node_requirement(requirement: &NodeSelectorRequirement, at: &Path<'_>, faults: &mut Faults) {
    let count = requirement.values.as_ref().map_or(0, Vec::len);
    match requirement.operator.as_str() {
        "In" | "NotIn" if count == 0 => faults.required(&at.field("values"), LIST_OPERATOR),
        "Exists" | "DoesNotExist" if count > 0 => faults.forbidden(&at.field("values"), PLAIN_OPERATOR),
        "Gt" | "Lt" if count != 1 => {
            let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            faults.required(&at.field("values"), detail);
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => faults.invalid(&at.field("operator"), other, NO_OPERATOR),
    }
}

fn pod_term(term: &PodAffinityTerm, at: &Path<'_>, faults: &mut Faults) {
    for (field, selector) in
        [("labelSelector", &term.label_selector), ("namespaceSelector", &term.namespace_selector)]
    {
        if let Some(selector) = selector {
            label_selector(selector, &at.field(field), faults);
        }
    }
    for name in term.namespaces.iter().flatten() {
        faults.invalid_each(&at.field("namespace"), name, names::dns1123_label(name));
    }
    if term.topology_key.is_empty() {
        faults.required(&at.field("topologyKey"), "can not be empty");
    }
    faults.invalid_each(
        &at.field("topologyKey"),
        &term.topology_key,
        names::qualified_name(&term.topology_key),
    );
}

/// Validates a label selector in a document.
pub(super) fn label_selector(selector: &LabelSelector, at: &Path<'_>, faults: &mut Faults) {
    meta::labels(selector.match_labels.as_ref(), &at.field("matchLabels"), faults);
    let expressions = at.field("matchExpressions");
    for (index, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let at = expressions.index(index);
        let count = requirement.values.as_ref().map_or(0, Vec::len);
        match requirement.operator.as_str() {
            "In" | "NotIn" if count == 0 => faults.required(&at.field("values"), LIST_OPERATOR),
            "Exists" | "DoesNotExist" if count > 0 => faults.forbidden(&at.field("values"), PLAIN_OPERATOR),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => faults.invalid(&at.field("operator"), other, NO_OPERATOR),
        }
        faults.invalid_each(&at.field("key"), &requirement.key, names::qualified_name(&requirement.key));
        let values = at.field("values");
        for (index, value) in requirement.values.iter().flatten().enumerate() {
            faults.invalid_each(&values.index(index), value, names::label_value(value));
        }
    }
}

/// Validates how pods spread.
pub(super) fn topology_spread(list: &[TopologySpreadConstraint], at: &Path<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, constraint) in list.iter().enumerate() {
        let at = at.index(index);
        if constraint.max_skew <= 0 {
            faults.invalid(&at.field("maxSkew"), &constraint.max_skew, "must be greater than zero");
        }
        let key = constraint.topology_key.as_str();
        if key.is_empty() {
            faults.required(&at.field("topologyKey"), "can not be empty");
        } else {
            faults.invalid_each(&at.field("topologyKey"), key, names::qualified_name(key));
        }
        let otherwise = constraint.when_unsatisfiable.as_str();
        match otherwise {
            "DoNotSchedule" | "ScheduleAnyway" => {}
            "" => faults.required(&at.field("whenUnsatisfiable"), "can not be empty"),
            other => faults.unsupported(
                &at.field("whenUnsatisfiable"),
                other,
                &["DoNotSchedule", "ScheduleAnyway"],
            ),
        }
        if !seen.insert((key, otherwise)) {
            let at = at.field("{topologyKey, whenUnsatisfiable}");
            faults.duplicate(&at, format!("{{{key}, {otherwise}}}").as_str());
        }
        if let Some(selector) = &constraint.label_selector {
            label_selector(selector, &at.field("labelSelector"), faults);
        }
    }
}

/// Validates scheduling gates.
pub(super) fn gates(list: &[PodSchedulingGate], at: &Path<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, gate) in list.iter().enumerate() {
        let item = at.index(index);
        faults.invalid_each(&item, &gate.name, names::qualified_name(&gate.name));
        if !seen.insert(gate.name.as_str()) {
            faults.duplicate(&item, &gate.name);
        }
    }
}
