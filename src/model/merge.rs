//! Which lists a strategic merge patch merges, and by which key.
//!
//! Owns: the `patchStrategy` and `patchMergeKey` tags of Kubernetes' Go types, for every field that can be reached from
//! the stored kinds. A list that is not named here is replaced as a whole, as are all lists under JSON merge patch.

use super::Kind;

/// How a list merges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeStrategy {
    /// The field that tells items apart; `None` for lists of plain values, which merge as sets.
    pub key: Option<&'static str>,
    /// An item given with `$retainKeys` keeps only those fields (volumes: one source replaces another).
    pub retain_keys: bool,
}

const fn by(key: &'static str) -> MergeStrategy {
    MergeStrategy { key: Some(key), retain_keys: false }
}

const fn retaining(key: &'static str) -> MergeStrategy {
    MergeStrategy { key: Some(key), retain_keys: true }
}

const SET: MergeStrategy = MergeStrategy { key: None, retain_keys: false };

/// How the list at `path` (field names from the document's root, without indices) merges; `None`: it does not.
pub fn merge_key(kind: Kind, path: &[&str]) -> Option<MergeStrategy> {
    match (kind, path) {
        (_, ["metadata", rest @ ..]) => metadata(rest),
        (Kind::Pod, ["spec", rest @ ..]) => pod_spec(rest),
        (Kind::Pod, ["status", rest @ ..]) => pod_status(rest),
        (Kind::ReplicationController, ["spec", "template", "metadata", rest @ ..]) => metadata(rest),
        (Kind::ReplicationController, ["spec", "template", "spec", rest @ ..]) => pod_spec(rest),
        (
            Kind::ReplicationController | Kind::Service | Kind::Namespace | Kind::Node,
            ["status", "conditions"],
        ) => Some(by("type")),
        (Kind::Node, ["status", "addresses"]) => Some(by("type")),
        (Kind::Node, ["spec", "podCIDRs"]) => Some(SET),
        (Kind::Service, ["spec", "ports"]) => Some(by("port")),
        (Kind::ServiceAccount, ["secrets"]) => Some(by("name")),
        _ => None,
    }
}

fn metadata(path: &[&str]) -> Option<MergeStrategy> {
    match path {
        ["ownerReferences"] => Some(by("uid")),
        ["finalizers"] => Some(SET),
        _ => None,
    }
}

fn pod_spec(path: &[&str]) -> Option<MergeStrategy> {
    match path {
        ["volumes"] => Some(retaining("name")),
        ["volumes", "ephemeral", "volumeClaimTemplate", "metadata", rest @ ..] => metadata(rest),
        ["containers" | "initContainers" | "ephemeralContainers"] => Some(by("name")),
        ["containers" | "initContainers" | "ephemeralContainers", field] => match *field {
            "ports" => Some(by("containerPort")),
            "env" => Some(by("name")),
            "volumeMounts" => Some(by("mountPath")),
            "volumeDevices" => Some(by("devicePath")),
            _ => None,
        },
        ["imagePullSecrets" | "schedulingGates"] => Some(by("name")),
        ["hostAliases"] => Some(by("ip")),
        ["topologySpreadConstraints"] => Some(by("topologyKey")),
        ["resourceClaims"] => Some(retaining("name")),
        _ => None,
    }
}

fn pod_status(path: &[&str]) -> Option<MergeStrategy> {
    match path {
        ["conditions"] => Some(by("type")),
        ["podIPs" | "hostIPs"] => Some(by("ip")),
        ["resourceClaimStatuses"] => Some(retaining("name")),
        ["containerStatuses" | "initContainerStatuses" | "ephemeralContainerStatuses", field] => match *field
        {
            "volumeMounts" => Some(by("mountPath")),
            "allocatedResourcesStatus" => Some(by("name")),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_merge_as_the_go_types_say() {
        let rows: &[(Kind, &str, Option<MergeStrategy>)] = &[
            (Kind::Pod, "spec.containers", Some(by("name"))),
            (Kind::Pod, "spec.containers.ports", Some(by("containerPort"))),
            (Kind::Pod, "spec.containers.env", Some(by("name"))),
            (Kind::Pod, "spec.containers.envFrom", None),
            (Kind::Pod, "spec.containers.command", None),
            (Kind::Pod, "spec.containers.volumeMounts", Some(by("mountPath"))),
            (Kind::Pod, "spec.volumes", Some(retaining("name"))),
            (Kind::Pod, "spec.volumes.projected.sources", None),
            (Kind::Pod, "spec.tolerations", None),
            (Kind::Pod, "status.conditions", Some(by("type"))),
            (Kind::ReplicationController, "spec.template.spec.initContainers.env", Some(by("name"))),
            (Kind::ReplicationController, "spec.template.metadata.finalizers", Some(SET)),
            (Kind::ReplicationController, "spec.containers", None),
            (Kind::Service, "spec.ports", Some(by("port"))),
            (Kind::ServiceAccount, "secrets", Some(by("name"))),
            (Kind::ServiceAccount, "imagePullSecrets", None),
            (Kind::Node, "spec.taints", None),
            (Kind::Node, "status.addresses", Some(by("type"))),
            (Kind::ConfigMap, "metadata.ownerReferences", Some(by("uid"))),
            (Kind::Endpoints, "subsets", None),
        ];
        for (kind, path, strategy) in rows {
            let steps: Vec<&str> = path.split('.').collect();
            assert_eq!(merge_key(*kind, &steps), *strategy, "{kind} {path}");
        }
    }
}
