//! Ephemeral containers: what one may say, and that those which are there stay as they are.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod, PodSpec};

use super::{container, pod::Around, resize::MIRROR};
use crate::model::fault::{Faults, Path};

/// Validates the pod that a request to `ephemeralcontainers` comes to; nothing but those may have changed by now.
pub(crate) fn ephemeral_update(new: &Pod, old: &Pod, faults: &mut Faults) {
    let is_mirror = |pod: &Pod| pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR));
    let (of_file, new, old) = (is_mirror(old), &new.spec, &old.spec);
    let (Some(new), Some(old)) = (new, old) else { return };
    let at = Path::Root("spec");
    let at = at.field("ephemeralContainers");
    if of_file {
        return faults.forbidden(&at, "static pods do not support ephemeral containers");
    }
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
    // What is wrong with the pod itself is none of this request's.
    let around = Around::of(new, &Path::Root("spec"), &mut Faults::default());
    let others = || new.containers.iter().chain(new.init_containers.iter().flatten());
    let mut seen: HashSet<&str> = others().map(|c| c.name.as_str()).collect();
    for (index, container) in list.iter().enumerate() {
        let at = at.index(index);
        // Those that are there may have come when less was asked of them, and do not change.
        if !before.contains(container) {
            one(container, &around, &at, faults);
        }
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

/// What holds for every container, and what not for one that is only there to look.
fn one(c: &EphemeralContainer, around: &Around<'_>, at: &Path<'_>, faults: &mut Faults) {
    container::container(&plain(c), around, at, faults);
    let image = c.image.as_deref().unwrap_or_default();
    if image.trim() != image {
        faults.invalid(&at.field("image"), image, "must not have leading or trailing whitespace");
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
        if mount.sub_path.as_deref().is_some_and(|path| !path.is_empty()) {
            faults.forbidden(&at.field("subPath"), "cannot be set for an Ephemeral Container");
        }
        if mount.sub_path_expr.as_deref().is_some_and(|path| !path.is_empty()) {
            faults.forbidden(&at.field("subPathExpr"), "cannot be set for an Ephemeral Container");
        }
    }
}

/// The same as a container of the pod: every field but the target is one's, too.
fn plain(c: &EphemeralContainer) -> Container {
    serde_json::to_value(c).and_then(serde_json::from_value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod with these ephemeral containers, complete but for what they say.
    fn pod(ephemeral: &[Value]) -> Pod {
        let complete = |container: &Value| {
            let mut complete = json!({"terminationMessagePolicy": "File", "imagePullPolicy": "IfNotPresent"});
            let fields = container.as_object().cloned().unwrap_or_default();
            complete.as_object_mut().unwrap().extend(fields);
            complete
        };
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "image": "i"}],
            "initContainers": [{"name": "before", "image": "i"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "ephemeralContainers": ephemeral.iter().map(complete).collect::<Vec<_>>()}}))
        .unwrap()
    }

    /// What is wrong with a new state: places and sentences.
    fn told(new: &Pod, old: &Pod) -> Vec<String> {
        let mut faults = Faults::default();
        ephemeral_update(new, old, &mut faults);
        let causes = faults.into_result().err().unwrap_or_default();
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn ephemeral_containers_are_added_and_stay() {
        let plain = json!({"name": "d", "image": "i", "targetContainerName": "c"});
        let (with, without) = (pod(std::slice::from_ref(&plain)), pod(&[]));
        let mut of_file = without.clone();
        of_file.metadata.annotations = Some([(MIRROR.to_owned(), "hash".to_owned())].into());
        let all = "spec.ephemeralContainers";
        for (new, old, expected) in [
            (with.clone(), &without, None),
            (with.clone(), &with, None),
            (
                pod(&[json!({"name": "d", "image": "other"})]),
                &with,
                Some("Forbidden: existing ephemeral containers \"d\" may not be changed\n"),
            ),
            (
                without.clone(),
                &with,
                Some("Forbidden: existing ephemeral containers \"d\" may not be removed\n"),
            ),
            (with.clone(), &of_file, Some("Forbidden: static pods do not support ephemeral containers")),
        ] {
            let expected = expected.map(|sentence| format!("{all}: {sentence}"));
            assert_eq!(told(&new, old), Vec::from_iter(expected));
        }
        // What came when less was asked for does not stand in the way of another.
        let careless = json!({"name": "d", "image": "i", "securityContext": {"runAsUser": -1}});
        let another = json!({"name": "e", "image": "i"});
        let old = pod(std::slice::from_ref(&careless));
        assert_eq!(told(&pod(&[careless, another]), &old), [""; 0]);
    }

    #[test]
    fn what_an_ephemeral_container_says_is_validated_as_a_containers_and_some_of_it_refused() {
        let forbidden = "Forbidden: cannot be set for an Ephemeral Container";
        let probe = json!({"tcpSocket": {"port": 1}});
        for (fields, expected) in [
            (json!({"targetContainerName": "before"}), vec![]),
            (json!({"name": "c"}), vec!["name: Duplicate value: \"c\""]),
            (json!({"name": "before"}), vec!["name: Duplicate value: \"before\""]),
            (json!({"name": ""}), vec!["name: Required value"]),
            (json!({"image": ""}), vec!["image: Required value"]),
            (
                json!({"image": " i"}),
                vec!["image: Invalid value: \" i\": must not have leading or trailing whitespace"],
            ),
            (json!({"targetContainerName": "x"}), vec!["targetContainerName: Not found: \"x\""]),
            (
                json!({"imagePullPolicy": "Sometimes"}),
                vec![
                    "imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \
                     \"Never\"",
                ],
            ),
            (
                json!({"securityContext": {"runAsUser": -1}}),
                vec![
                    "securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                ],
            ),
            (
                json!({"securityContext": {"procMount": "Unmasked"}}),
                vec![
                    "securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`",
                ],
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Some"}}}),
                vec![
                    "securityContext.seccompProfile.type: Unsupported value: \"Some\": supported values: \"Localhost\", \
                     \"RuntimeDefault\", \"Unconfined\"",
                ],
            ),
            (json!({"env": [{"name": ""}]}), vec!["env[0].name: Required value"]),
            (json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}), vec![]),
            (
                json!({"volumeMounts": [{"name": "w", "mountPath": "/v", "subPath": "a"}]}),
                vec![
                    "volumeMounts[0].name: Not found: \"w\"",
                    "volumeMounts[0].subPath: Forbidden: cannot be set for an Ephemeral Container",
                ],
            ),
            (json!({"ports": [{"containerPort": 1, "protocol": "TCP"}]}), vec!["ports"]),
            (json!({"livenessProbe": probe}), vec!["livenessProbe"]),
            (json!({"readinessProbe": probe}), vec!["readinessProbe"]),
            (json!({"startupProbe": probe}), vec!["startupProbe"]),
            (json!({"lifecycle": {}}), vec!["lifecycle"]),
            (json!({"resources": {"limits": {"cpu": "1"}}}), vec!["resources"]),
            (json!({"restartPolicy": "Always"}), vec!["restartPolicy"]),
            (
                json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}]}),
                vec!["resizePolicy"],
            ),
        ] {
            let mut container = json!({"name": "d", "image": "i"});
            container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            let expected: Vec<String> = expected
                .into_iter()
                .map(|of| if of.contains(": ") { of.to_owned() } else { format!("{of}: {forbidden}") })
                .map(|of| format!("spec.ephemeralContainers[0].{of}"))
                .collect();
            assert_eq!(told(&pod(&[container]), &pod(&[])), expected, "{fields}");
        }
    }
}
