//! What may change by a resize of a pod: the cpu and memory of its containers, within Kubernetes' bounds.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerResizePolicy, Pod},
    apimachinery::pkg::api::resource::Quantity,
};

use super::pod;
use crate::model::{
    defaults::qos_class,
    fault::{Faults, Path},
    quantity,
};

/// Names a pod that stands for one out of a file on its node.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";
const RESTART: &str = "RestartContainer";

/// Validates the pod that a request to `resize` comes to; only resources of containers differ by now.
pub(crate) fn resize_update(new: &Pod, old: &Pod, faults: &mut Faults) {
    let (Some(spec), Some(before)) = (&new.spec, &old.spec) else { return };
    let at = Path::Root("spec");
    if old.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR)) {
        return faults.forbidden(&at, "static pods cannot be resized");
    }
    pod::any_pod(spec, &at, faults);
    if qos_class(spec) != qos_class(before) {
        faults.invalid(&at, qos_class(spec), "Pod QOS Class may not change as a result of resizing");
    }
    let empty = Vec::new();
    for (field, list, old_list) in [
        ("containers", &spec.containers, &before.containers),
        (
            "initContainers",
            spec.init_containers.as_ref().unwrap_or(&empty),
            before.init_containers.as_ref().unwrap_or(&empty),
        ),
    ] {
        let at = at.field(field);
        for (index, (container, old)) in list.iter().zip(old_list).enumerate() {
            one(container, old, &at.index(index).field("resources"), faults);
        }
    }
    // What may change is put back; then nothing may differ.
    let mut rest = spec.clone();
    let pairs = rest.containers.iter_mut().zip(&before.containers);
    let inits = rest.init_containers.iter_mut().flatten().zip(before.init_containers.iter().flatten());
    for (changed, kept) in pairs.chain(inits.filter(|(_, c)| c.restart_policy.as_deref() == Some("Always"))) {
        put_back(changed, kept);
    }
    if rest != *before {
        faults.forbidden(&at, "only cpu and memory resources are mutable");
    }
}

fn one(new: &Container, old: &Container, at: &Path<'_>, faults: &mut Faults) {
    let (new_has, old_has) = (new.resources.as_ref(), old.resources.as_ref());
    let list = |has: Option<&BTreeMap<String, Quantity>>| has.cloned().unwrap_or_default();
    let requests =
        (list(new_has.and_then(|r| r.requests.as_ref())), list(old_has.and_then(|r| r.requests.as_ref())));
    let limits =
        (list(new_has.and_then(|r| r.limits.as_ref())), list(old_has.and_then(|r| r.limits.as_ref())));
    let removed = |(new, old): &(BTreeMap<String, Quantity>, BTreeMap<String, Quantity>)| {
        old.keys().any(|name| !new.contains_key(name))
    };
    if removed(&requests) {
        faults.forbidden(&at.field("requests"), "resource requests cannot be removed");
    }
    if removed(&limits) {
        faults.forbidden(&at.field("limits"), "resource limits cannot be removed");
    }
    let memory = |list: &BTreeMap<String, Quantity>| {
        list.get("memory").and_then(|amount| quantity::parse_milli(&amount.0).ok())
    };
    let restarts = old.resize_policy.iter().flatten();
    let restarts = restarts.filter(|p| p.resource_name == "memory").any(|p| p.restart_policy == RESTART);
    if let (Some(now), Some(before)) = (memory(&limits.0), memory(&limits.1))
        && now < before
        && !restarts
    {
        let detail = format!("memory limits cannot be decreased unless resizePolicy is {RESTART}");
        faults.forbidden(&at.field("limits"), &detail);
    }
}

/// Gives a container the cpu and memory that it had.
fn put_back(changed: &mut Container, kept: &Container) {
    let (Some(now), Some(before)) = (&mut changed.resources, &kept.resources) else {
        let plain =
            |c: &Container| c.resources.as_ref().is_none_or(|r| r.limits.is_none() && r.requests.is_none());
        if plain(changed) && plain(kept) {
            changed.resources.clone_from(&kept.resources);
        }
        return;
    };
    for (list, old) in [(&mut now.limits, &before.limits), (&mut now.requests, &before.requests)] {
        let mut all = list.take().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match old.as_ref().and_then(|old| old.get(name)) {
                Some(amount) => drop(all.insert(name.to_owned(), amount.clone())),
                None => drop(all.remove(name)),
            }
        }
        *list = if all.is_empty() && old.is_none() { None } else { Some(all) };
    }
}

/// Validates a container's `resizePolicy`; `never` tells that its pod's containers are not started again.
pub(super) fn policies(list: &[ContainerResizePolicy], never: bool, at: &Path<'_>, faults: &mut Faults) {
    let mut seen = std::collections::HashSet::new();
    for (index, policy) in list.iter().enumerate() {
        let at = at.index(index);
        if !seen.insert(policy.resource_name.as_str()) {
            faults.duplicate(&at, &policy.resource_name);
        }
        if !matches!(policy.resource_name.as_str(), "cpu" | "memory") {
            faults.unsupported(&at.field("resourceName"), &policy.resource_name, &["cpu", "memory"]);
        }
        match policy.restart_policy.as_str() {
            "NotRequired" => {}
            RESTART if never => {
                let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
                faults.invalid(&at.field("restartPolicy"), &policy.restart_policy, detail);
            }
            RESTART => {}
            "" => faults.required(&at.field("restartPolicy"), ""),
            other => faults.unsupported(&at.field("restartPolicy"), other, &["NotRequired", RESTART]),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(resources: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "containers": [
                {"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "resources": resources},
                {"name": "plain", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}
            ]}
        }))
        .unwrap()
    }

    #[test]
    fn only_cpu_and_memory_change_and_only_as_kubernetes_lets_them() {
        let sized = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": "2", "memory": memory}});
        let old = pod(&sized("1", "64Mi"));
        for (new, word) in [
            (pod(&sized("500m", "64Mi")), ""),
            (pod(&sized("1500m", "128Mi")), ""),
            (pod(&sized("1", "32Mi")), "memory limits cannot be decreased"),
            (pod(&sized("2", "64Mi")), ""),
            (
                pod(&json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2", "memory": "64Mi"}})),
                "requests cannot be removed",
            ),
            (pod(&json!({})), "QOS Class may not change"),
            (pod(&sized("3", "64Mi")), "must be less than or equal to cpu limit"),
            (
                pod(&json!({"requests": {"cpu": "1", "memory": "64Mi", "ephemeral-storage": "1Gi"},
                    "limits": {"cpu": "2", "memory": "64Mi"}})),
                "only cpu and memory resources are mutable",
            ),
        ] {
            let mut faults = Faults::default();
            resize_update(&new, &old, &mut faults);
            let told: Vec<String> = match faults.into_result() {
                Ok(()) => Vec::new(),
                Err(causes) => causes.into_iter().map(|cause| cause.message).collect(),
            };
            if word.is_empty() {
                assert_eq!(told, [""; 0], "{:?}", new.spec.unwrap().containers[0].resources);
            } else {
                assert!(told.iter().any(|text| text.contains(word)), "{word}: {told:?}");
            }
        }
    }
}
