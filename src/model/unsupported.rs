//! Fields that are stored and given back, but that nothing in Troupe acts on yet.
//!
//! Owns: the table of such fields. A row goes when its field comes alive.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

type InSpec = (&'static str, fn(&PodSpec) -> bool);
type InContainer = (&'static str, fn(&Container) -> bool);

const IN_SPEC: &[InSpec] = &[
    ("hostUsers", |s| s.host_users == Some(false)),
    ("imagePullSecrets", |s| s.image_pull_secrets.iter().flatten().next().is_some()),
    ("readinessGates", |s| s.readiness_gates.iter().flatten().next().is_some()),
    ("resourceClaims", |s| s.resource_claims.iter().flatten().next().is_some()),
    ("runtimeClassName", |s| s.runtime_class_name.is_some()),
    ("schedulingGates", |s| s.scheduling_gates.iter().flatten().next().is_some()),
    ("topologySpreadConstraints", |s| s.topology_spread_constraints.iter().flatten().next().is_some()),
];

const IN_CONTAINER: &[InContainer] = &[
    ("livenessProbe", |c| c.liveness_probe.is_some()),
    ("readinessProbe", |c| c.readiness_probe.is_some()),
    ("startupProbe", |c| c.startup_probe.is_some()),
    ("lifecycle", |c| c.lifecycle.is_some()),
    ("envFrom", |c| c.env_from.iter().flatten().next().is_some()),
    ("volumeDevices", |c| c.volume_devices.iter().flatten().next().is_some()),
    ("resizePolicy", |c| c.resize_policy.iter().flatten().next().is_some()),
];

/// Volume sources that are mounted.
const MOUNTED: &[&str] = &["emptyDir", "hostPath"];

/// A sentence for each field of this pod that is stored but not acted on.
pub fn unsupported(pod: &Pod) -> Vec<String> {
    pod.spec.as_ref().map(|spec| unsupported_spec(spec, "spec")).unwrap_or_default()
}

/// As [`unsupported`], for a pod's spec that lies at `root`.
pub(crate) fn unsupported_spec(spec: &PodSpec, root: &str) -> Vec<String> {
    let text = |path: String| format!("{root}.{path}: stored but not yet acted on by troupe");
    let in_spec = IN_SPEC.iter().filter(|(_, set)| set(spec)).map(|(name, _)| text((*name).to_owned()));
    let main = spec.containers.iter().enumerate().map(|c| ("containers", c));
    let init = spec.init_containers.iter().flatten().enumerate().map(|c| ("initContainers", c));
    let in_containers = main.chain(init).flat_map(|(list, (index, container))| {
        IN_CONTAINER
            .iter()
            .filter(|(_, set)| set(container))
            .map(move |(name, _)| text(format!("{list}[{index}].{name}")))
            .collect::<Vec<_>>()
    });
    let in_volumes = spec.volumes.iter().flatten().enumerate().filter_map(|(index, volume)| {
        unmounted(volume).map(|source| text(format!("volumes[{index}].{source}")))
    });
    in_spec.chain(in_containers).chain(in_volumes).collect()
}

fn unmounted(volume: &Volume) -> Option<&'static str> {
    super::validate::volume_sources(volume).into_iter().find(|source| !MOUNTED.contains(source))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_is_named_with_its_place() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "runtimeClassName": "r",
            "initContainers": [{"name": "i", "resizePolicy": [{"resourceName": "cpu"}]}],
            "containers": [{"name": "a"}, {"name": "b", "livenessProbe": {"exec": {"command": ["true"]}}}],
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "s"}}],
        }}))
        .unwrap();
        let tail = ": stored but not yet acted on by troupe";
        assert_eq!(
            unsupported(&pod),
            [
                "spec.runtimeClassName",
                "spec.containers[1].livenessProbe",
                "spec.initContainers[0].resizePolicy",
                "spec.volumes[1].secret"
            ]
            .map(|path| format!("{path}{tail}"))
        );
        assert!(unsupported(&Pod::default()).is_empty());
    }
}
