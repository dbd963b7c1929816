//! Parts of bytes: amounts of memory and storage that are none, `100m` where `100M` was meant.
//!
//! Owns: the warning. Kubernetes accepts them, warns in these words, and takes the next whole byte.

use k8s_openapi::api::core::v1::PodSpec;

use super::quantity;

/// A sentence for each such amount in a pod's spec that lies at `root`.
pub(crate) fn fractions(spec: &PodSpec, root: &str) -> Vec<String> {
    let main = spec.containers.iter().enumerate().map(|c| ("containers", c));
    let init = spec.init_containers.iter().flatten().enumerate().map(|c| ("initContainers", c));
    let mut found = Vec::new();
    for (list, (index, container)) in init.chain(main) {
        let Some(resources) = &container.resources else { continue };
        for name in ["memory", "ephemeral-storage"] {
            for (field, amounts) in [("limits", &resources.limits), ("requests", &resources.requests)] {
                let Some(amount) = amounts.as_ref().and_then(|amounts| amounts.get(name)) else { continue };
                if quantity::parse_milli(&amount.0).is_ok_and(|milli| milli % 1000 != 0) {
                    found.push(format!(
                        "{root}.{list}[{index}].resources.{field}[{name}]: fractional byte value {:?} is invalid, must \
                         be an integer",
                        amount.0
                    ));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_of_bytes_are_told_in_kubernetes_words() {
        let resources =
            json!({"limits": {"memory": "100m", "cpu": "100m"}, "requests": {"ephemeral-storage": "1500m"}});
        let spec: PodSpec = serde_json::from_value(json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"memory": "64Mi"}}}],
            "containers": [{"name": "a"}, {"name": "b", "resources": resources}],
        }))
        .unwrap();
        assert_eq!(
            fractions(&spec, "spec"),
            [
                "spec.containers[1].resources.limits[memory]: fractional byte value \"100m\" is invalid, must be an \
                 integer",
                "spec.containers[1].resources.requests[ephemeral-storage]: fractional byte value \"1500m\" is invalid, \
                 must be an integer",
            ]
        );
    }
}
