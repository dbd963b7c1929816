//! Ephemeral containers: what one may say, and that those which are there stay as they are.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{EphemeralContainer, Pod, PodSpec};

use crate::model::{
    fault::{Faults, Path},
    names,
};

/// Validates the pod that a request to `ephemeralcontainers` comes to; nothing but those may have changed by now.
pub(crate) fn ephemeral_update(new: &Pod, old: &Pod, faults: &mut Faults) {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return };
    let at = Path::Root("spec");
    let at = at.field("ephemeralContainers");
    let list = |spec: &PodSpec| spec.ephemeral_containers.clone().unwrap_or_default();
    let (list, before) = (list(new), list(old));
    for container in &before {
        match list.iter().find(|c| c.name == container.name) {
            None => {
                let name = &container.name;
                faults
                    .forbidden(&at, &format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(same) if same == container => {}
            Some(_) => {
                let name = &container.name;
                faults
                    .forbidden(&at, &format!("existing ephemeral containers {name:?} may not be changed\n"));
            }
        }
    }
    let others = || new.containers.iter().chain(new.init_containers.iter().flatten());
    let mut seen: HashSet<&str> = others().map(|c| c.name.as_str()).collect();
    for (index, container) in list.iter().enumerate() {
        let at = at.index(index);
        one(container, &at, faults);
        if !seen.insert(container.name.as_str()) {
            faults.duplicate(&at.field("name"), &container.name);
        }
        if let Some(target) = container.target_container_name.as_deref().filter(|t| !t.is_empty())
            && !others().any(|c| c.name == target)
        {
            faults.not_found(&at.field("targetContainerName"), target);
        }
    }
}

fn one(c: &EphemeralContainer, at: &Path<'_>, faults: &mut Faults) {
    if c.name.is_empty() {
        faults.required(&at.field("name"), "");
    } else {
        faults.invalid_each(&at.field("name"), &c.name, names::dns1123_label(&c.name));
    }
    if c.image.as_deref().is_none_or(str::is_empty) {
        faults.required(&at.field("image"), "");
    }
    for (field, set) in [
        ("ports", c.ports.is_some()),
        ("livenessProbe", c.liveness_probe.is_some()),
        ("readinessProbe", c.readiness_probe.is_some()),
        ("startupProbe", c.startup_probe.is_some()),
        ("lifecycle", c.lifecycle.is_some()),
        ("resources", c.resources.as_ref().is_some_and(|r| r.limits.is_some() || r.requests.is_some())),
        ("restartPolicy", c.restart_policy.is_some()),
        ("resizePolicy", c.resize_policy.is_some()),
    ] {
        if set {
            faults.forbidden(&at.field(field), "cannot be set for an Ephemeral Container");
        }
    }
    for (index, mount) in c.volume_mounts.iter().flatten().enumerate() {
        let at = at.field("volumeMounts");
        let at = at.index(index);
        if mount.sub_path.is_some() {
            faults.forbidden(&at.field("subPath"), "cannot be set for an Ephemeral Container");
        }
        if mount.sub_path_expr.is_some() {
            faults.forbidden(&at.field("subPathExpr"), "cannot be set for an Ephemeral Container");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(ephemeral: &[Value]) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": "i"}],
            "ephemeralContainers": ephemeral}}))
        .unwrap()
    }

    #[test]
    fn ephemeral_containers_are_added_and_stay() {
        let plain = json!({"name": "d", "image": "i", "targetContainerName": "c"});
        let (with, without) = (pod(std::slice::from_ref(&plain)), pod(&[]));
        for (new, old, word) in [
            (with.clone(), &without, ""),
            (with.clone(), &with, ""),
            (pod(&[json!({"name": "d", "image": "other"})]), &with, "may not be changed"),
            (without.clone(), &with, "may not be removed"),
            (pod(&[json!({"name": "c", "image": "i"})]), &without, "Duplicate"),
            (pod(&[json!({"name": "d"})]), &without, "Required"),
            (pod(&[json!({"name": "d", "image": "i", "targetContainerName": "x"})]), &without, "Not found"),
            (
                pod(&[json!({"name": "d", "image": "i", "ports": [{"containerPort": 1}]})]),
                &without,
                "Ephemeral Container",
            ),
        ] {
            let mut faults = Faults::default();
            ephemeral_update(&new, old, &mut faults);
            let told: Vec<String> = match faults.into_result() {
                Ok(()) => Vec::new(),
                Err(causes) => causes.into_iter().map(|cause| cause.message).collect(),
            };
            if word.is_empty() {
                assert_eq!(told, [""; 0]);
            } else {
                assert!(told.iter().any(|text| text.contains(word)), "{word}: {told:?}");
            }
        }
    }
}
