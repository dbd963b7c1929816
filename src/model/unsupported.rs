//! Fields that are stored and given back, but that nothing in Troupe acts on yet.
//!
//! Owns: the table of such fields. A row goes when its field comes alive.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec, Volume};

type InSpec = (&'static str, fn(&PodSpec) -> bool);
type InContainer = (&'static str, fn(&Container) -> bool);

const IN_SPEC: &[InSpec] = &[
    ("resourceClaims", |s| s.resource_claims.iter().flatten().next().is_some()),
    ("runtimeClassName", |s| s.runtime_class_name.is_some()),
    ("securityContext.appArmorProfile", |s| {
        s.security_context.as_ref().is_some_and(|c| confines(c.app_armor_profile.as_ref()))
    }),
    ("securityContext.seLinuxOptions", |s| {
        s.security_context.as_ref().is_some_and(|c| c.se_linux_options.is_some())
    }),
    ("topologySpreadConstraints", |s| s.topology_spread_constraints.iter().flatten().next().is_some()),
];

const IN_CONTAINER: &[InContainer] = &[
    ("resources.claims", |c| {
        c.resources.as_ref().is_some_and(|r| r.claims.iter().flatten().next().is_some())
    }),
    ("volumeDevices", |c| c.volume_devices.iter().flatten().next().is_some()),
    ("securityContext.appArmorProfile", |c| {
        c.security_context.as_ref().is_some_and(|c| confines(c.app_armor_profile.as_ref()))
    }),
    ("securityContext.seLinuxOptions", |c| {
        c.security_context.as_ref().is_some_and(|c| c.se_linux_options.is_some())
    }),
];

fn confines(profile: Option<&AppArmorProfile>) -> bool {
    profile.is_some_and(|profile| profile.type_ != "Unconfined")
}

/// Volume sources that are mounted.
const MOUNTED: &[&str] = &["configMap", "downwardAPI", "emptyDir", "hostPath", "projected", "secret"];

/// A sentence for each field of this pod that is stored but not acted on.
pub fn unsupported(pod: &Pod) -> Vec<String> {
    pod.spec.as_ref().map(|spec| unsupported_spec(spec, "spec")).unwrap_or_default()
}

/// As [`unsupported`], for a pod's spec that lies at `root`.
pub(crate) fn unsupported_spec(spec: &PodSpec, root: &str) -> Vec<String> {
    // On the node's own network a port of the container is one of the node's. Others are relayed, but not every protocol.
    let relays = spec.host_network != Some(true);
    let text = |path: String| format!("{root}.{path}: stored but not yet acted on by troupe");
    let in_spec = IN_SPEC.iter().filter(|(_, set)| set(spec)).map(|(name, _)| text((*name).to_owned()));
    let main = spec.containers.iter().enumerate().map(|c| ("containers", c));
    let init = spec.init_containers.iter().flatten().enumerate().map(|c| ("initContainers", c));
    let in_containers = main.chain(init).flat_map(|(list, (index, container))| {
        let known = IN_CONTAINER.iter().filter(|(_, set)| set(container)).map(|(name, _)| (*name).to_owned());
        let ports = container.ports.iter().flatten().enumerate().filter(|_| relays);
        let ports = ports.filter(|(_, port)| port.host_port.is_some_and(|port| port != 0));
        let ports = ports.filter(|(_, port)| port.protocol.as_deref() == Some("SCTP"));
        let ports = ports.map(|(port, _)| format!("ports[{port}].hostPort"));
        known.chain(ports).map(|name| text(format!("{list}[{index}].{name}"))).collect::<Vec<_>>()
    });
    let in_volumes = spec.volumes.iter().flatten().enumerate().flat_map(|(index, volume)| {
        unmounted(volume).into_iter().map(move |source| text(format!("volumes[{index}].{source}")))
    });
    in_spec.chain(in_containers).chain(in_volumes).collect()
}

fn unmounted(volume: &Volume) -> Vec<String> {
    let all = super::validate::volume_sources(volume).into_iter();
    let mut paths: Vec<String> = all.filter(|source| !MOUNTED.contains(source)).map(str::to_owned).collect();
    let sources = volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).enumerate();
    for (index, source) in sources {
        if source.cluster_trust_bundle.is_some() {
            paths.push(format!("projected.sources[{index}].clusterTrustBundle"));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_field_is_named_with_its_place() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "runtimeClassName": "r",
            "initContainers": [{"name": "i", "volumeDevices": [{"name": "d", "devicePath": "/d"}]}],
            "containers": [{"name": "a"}, {"name": "b", "volumeDevices": [{"name": "d", "devicePath": "/d"}]}],
            "volumes": [
                {"name": "e", "emptyDir": {}},
                {"name": "s", "secret": {"secretName": "s"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "c"}},
                {"name": "l", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "m", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}},
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"clusterTrustBundle": {"path": "t"}}]}}
            ],
        }}))
        .unwrap();
        let tail = ": stored but not yet acted on by troupe";
        assert_eq!(
            unsupported(&pod),
            [
                "spec.runtimeClassName",
                "spec.containers[1].volumeDevices",
                "spec.initContainers[0].volumeDevices",
                "spec.volumes[2].persistentVolumeClaim",
                "spec.volumes[5].projected.sources[1].clusterTrustBundle"
            ]
            .map(|path| format!("{path}{tail}"))
        );
        assert!(unsupported(&Pod::default()).is_empty());
    }

    #[test]
    fn ports_of_the_node_that_lead_nowhere_are_named() {
        for (shares, expected) in [(false, Some("spec.containers[0].ports[1].hostPort")), (true, None)] {
            let ports = json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 81, "protocol": "SCTP"}, {"containerPort": 82, "hostPort": 82}]);
            let pod: Pod = serde_json::from_value(json!({"spec": {
                "hostNetwork": shares, "containers": [{"name": "a", "ports": ports}]}}))
            .unwrap();
            let expected: Vec<String> = expected
                .iter()
                .map(|path| format!("{path}: stored but not yet acted on by troupe"))
                .collect();
            assert_eq!(unsupported(&pod), expected);
        }
    }

    #[test]
    fn profiles_that_nothing_enforces_are_named() {
        let profile = json!({"type": "RuntimeDefault"});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "securityContext": {"appArmorProfile": {"type": "Unconfined"}, "seLinuxOptions": {"level": "s0"}},
            "containers": [{
                "name": "a",
                "securityContext": {"appArmorProfile": profile},
                "resources": {"limits": {"ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi", "memory": "1Mi"}}
            }],
        }}))
        .unwrap();
        let paths: Vec<String> = unsupported(&pod)
            .into_iter()
            .map(|sentence| sentence.split(": ").next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            paths,
            ["spec.securityContext.seLinuxOptions", "spec.containers[0].securityContext.appArmorProfile",]
        );
    }
}
