//! Resources of a container that its environment or a file shows: `resourceFieldRef`.
//!
//! Owns: which resources can be shown, and in what units. Kubernetes' words, down to the value that it shows for a wrong
//! divisor, which is the resource.

use k8s_openapi::api::core::v1::ResourceFieldSelector;

use crate::model::{
    fault::{Faults, Path},
    quantity,
};

const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const HUGE_PAGES: [&str; 2] = ["limits.hugepages-", "requests.hugepages-"];

const CORES: &[&str] = &["1m", "1"];
const BYTES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Validates a reference to a resource; `in_file`: it has to say whose.
pub(super) fn resource_field(
    selector: &ResourceFieldSelector,
    in_file: bool,
    at: &Path<'_>,
    faults: &mut Faults,
) {
    let resource = selector.resource.as_str();
    if in_file && selector.container_name.as_deref().is_none_or(str::is_empty) {
        faults.required(&at.field("containerName"), "");
    } else if resource.is_empty() {
        faults.required(&at.field("resource"), "");
    } else if !RESOURCES.contains(&resource) && !is_huge_pages(resource) {
        faults.unsupported(&at.field("resource"), resource, RESOURCES);
    }
    let Some(divisor) = selector.divisor.as_ref().filter(|d| quantity::parse_nano(&d.0) != Ok(0)) else {
        return;
    };
    let Some((units, words, name)) = units(resource) else { return };
    if !units.contains(&quantity::canonical(&divisor.0).as_str()) {
        let detail = format!("only divisor's values {words} are supported with the {name} resource");
        faults.invalid(&at.field("divisor"), resource, &detail);
    }
}

fn is_huge_pages(resource: &str) -> bool {
    HUGE_PAGES.iter().any(|prefix| resource.starts_with(prefix))
}

/// The divisors of a resource, how they are listed, and what the resource is called there.
fn units(resource: &str) -> Option<(&'static [&'static str], String, &'static str)> {
    let bytes = |name| Some((BYTES, BYTES.join(", "), name));
    match resource {
        "limits.cpu" | "requests.cpu" => Some((CORES, CORES.join(" and "), "cpu")),
        "limits.memory" | "requests.memory" => bytes("memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => bytes("local ephemeral storage"),
        _ if is_huge_pages(resource) => bytes("hugepages"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(resource: &str, divisor: &str) -> Vec<String> {
        let selector = serde_json::from_value(json!({"resource": resource, "divisor": divisor})).unwrap();
        let mut faults = Faults::default();
        resource_field(&selector, false, &Path::Root("r"), &mut faults);
        let causes = faults.into_result().err().unwrap_or_default();
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn divisors_are_units_of_their_resource() {
        for (resource, divisor) in [
            ("limits.cpu", "1"),
            ("limits.cpu", "1m"),
            ("requests.cpu", "0"),
            ("requests.cpu", "1000m"),
            ("limits.memory", "1024Ki"),
            ("requests.memory", "1k"),
            ("limits.ephemeral-storage", "1Ei"),
            ("requests.hugepages-2Mi", "1Mi"),
        ] {
            assert_eq!(told(resource, divisor), [""; 0], "{resource} {divisor}");
        }
        assert_eq!(
            told("limits.cpu", "3"),
            [
                "r.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu \
                 resource"
            ]
        );
        for (resource, divisor, name) in [
            ("limits.memory", "1m", "memory"),
            ("requests.memory", "2Mi", "memory"),
            ("limits.ephemeral-storage", "1024", "local ephemeral storage"),
            ("limits.hugepages-2Mi", "2Mi", "hugepages"),
        ] {
            let expected = format!(
                "r.divisor: Invalid value: \"{resource}\": only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, \
                 1Gi, 1Ti, 1Pi, 1Ei are supported with the {name} resource"
            );
            assert_eq!(told(resource, divisor), [expected]);
        }
        assert_eq!(told("limits.disk", "3").len(), 1);
    }
}
