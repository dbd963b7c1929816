//! Which labels a node may give itself.
//!
//! Owns: [`may_set`], the rule of Kubernetes' NodeRestriction: labels that others rely on to keep pods away from a node are
//! for administrators to set, lest a node that was broken into draws pods to itself.

/// Kept for administrators altogether.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// A node may have any label below these.
const OWN: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// Of the others that belong to Kubernetes a node may set these.
const ALLOWED: [&str; 12] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
];

/// Whether a node may set this label on itself.
pub fn may_set(key: &str) -> bool {
    let Some((space, _)) = key.split_once('/') else { return true };
    let within =
        |domain: &str| space.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if within(RESTRICTED) {
        return false;
    }
    let kubernetes = within("kubernetes.io") || within("k8s.io");
    !kubernetes || OWN.into_iter().any(within) || ALLOWED.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_others_rely_on_are_not_for_nodes_to_set() {
        for (key, may) in [
            ("zone", true),
            ("example.com/zone", true),
            ("notkubernetes.io/zone", true),
            ("topology.kubernetes.io/zone", true),
            ("kubernetes.io/hostname", true),
            ("node.kubernetes.io/instance-type", true),
            ("node.kubernetes.io/anything", true),
            ("my.kubelet.kubernetes.io/anything", true),
            ("kubernetes.io/role", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/pci", false),
            ("team.node-restriction.kubernetes.io/pci", false),
            ("my.k8s.io/x", false),
            ("k8s.io/x", false),
        ] {
            assert_eq!(may_set(key), may, "{key}");
        }
    }
}
