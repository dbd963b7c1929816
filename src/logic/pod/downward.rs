//! The downward API: what a pod may know of itself, as text for variables and files.
//!
//! Owns: the fields and resources that can be shown and how they are written. Pure. What cannot be shown at a place
//! was refused by validation before; here it is an error with the field's name.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource::Quantity};

use super::config::Around;
use crate::model::quantity;

/// What pods may use of a node together: a container without limits is told this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocatable {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes on disk.
    pub ephemeral_bytes: i64,
}

/// A field of a pod as text.
///
/// # Errors
/// When there is no such field to show.
pub fn field(pod: &v1::Pod, path: &str, around: &Around) -> Result<String, String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let subscript = |map: &Option<BTreeMap<String, String>>, name: &str| {
        path.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix("['"))
            .and_then(|rest| rest.strip_suffix("']"))
            .map(|key| map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => meta.labels.as_ref().map(lines),
        "metadata.annotations" => meta.annotations.as_ref().map(lines),
        "spec.nodeName" => Some(around.node.clone()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
        // A pod of the node's network has the node's address.
        "status.podIP" | "status.podIPs" => Some(ip(around.pod_ip.or(around.host_ip))),
        "status.hostIP" | "status.hostIPs" => Some(ip(around.host_ip)),
        _ => {
            return subscript(&meta.labels, "metadata.labels")
                .or_else(|| subscript(&meta.annotations, "metadata.annotations"))
                .ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    };
    Ok(value.unwrap_or_default())
}

/// Labels or annotations as a file shows them: `key="value"`, one a line, by key.
fn lines(map: &BTreeMap<String, String>) -> String {
    let all: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    all.join("\n")
}

/// A text in double quotes as Go's `%q` writes it.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An amount that a container asks for or is limited to, in units of the divisor, rounded up. `own` is the container
/// that is meant when the selector names none.
///
/// # Errors
/// When there is no such container or resource.
pub fn resource(
    pod: &v1::Pod,
    own: Option<&v1::Container>,
    selector: &v1::ResourceFieldSelector,
    around: &Around,
) -> Result<String, String> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let container = match named {
        Some(name) => all.into_iter().find(|c| c.name == name),
        None => own,
    };
    let container = container.ok_or_else(|| format!("container {} not found", named.unwrap_or_default()))?;
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (list, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    let asked = container.resources.as_ref().and_then(|resources| match list {
        "limits" => resources.limits.as_ref(),
        _ => resources.requests.as_ref(),
    });
    if !known || !matches!(list, "limits" | "requests") {
        return Err(unsupported());
    }
    let milli = |quantity: &Quantity| quantity::parse_milli(&quantity.0).unwrap_or(0);
    let mut amount = asked.and_then(|list| list.get(name)).map_or(0, milli);
    if amount == 0 && list == "limits" {
        let whole = around.allocatable;
        amount = match name {
            "cpu" => whole.cpu_milli.into(),
            "memory" => i128::from(whole.memory_bytes) * 1000,
            "ephemeral-storage" => i128::from(whole.ephemeral_bytes) * 1000,
            _ => 0,
        };
    }
    let mut divisor = selector.divisor.as_ref().map_or(0, milli);
    if divisor <= 0 {
        divisor = 1000;
    }
    Ok((amount / divisor + i128::from(amount % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> v1::Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"b": "2", "a": "say \"hi\"\n"},
                "annotations": {"x/y": "z"}},
            "spec": {"serviceAccountName": "robot", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "d"}]}
        }))
        .unwrap()
    }

    fn around() -> Around {
        Around {
            node: "n1".into(),
            host_ip: Some([10, 0, 0, 1].into()),
            pod_ip: Some([10, 9, 0, 2].into()),
            allocatable: Allocatable { cpu_milli: 4000, memory_bytes: 1 << 30, ephemeral_bytes: 1 << 31 },
            ..Around::default()
        }
    }

    #[test]
    fn every_field_that_kubernetes_shows_is_shown() {
        for (path, text) in [
            ("metadata.name", "web"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"say \\\"hi\\\"\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['x/y']", "z"),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "robot"),
            ("status.hostIP", "10.0.0.1"),
            ("status.hostIPs", "10.0.0.1"),
            ("status.podIP", "10.9.0.2"),
            ("status.podIPs", "10.9.0.2"),
        ] {
            assert_eq!(field(&pod(), path, &around()).as_deref(), Ok(text), "{path}");
        }
        assert_eq!(
            field(&pod(), "spec.hostname", &around()).unwrap_err(),
            "unsupported fieldPath: spec.hostname"
        );
    }

    #[test]
    fn resources_are_rounded_up_to_the_divisor_and_limits_default_to_the_node() {
        for (container, name, divisor, text) in [
            ("c", "limits.cpu", None, "2"),
            ("c", "limits.cpu", Some("1m"), "1500"),
            ("c", "requests.cpu", Some("1m"), "250"),
            ("c", "limits.memory", Some("1Mi"), "64"),
            ("c", "limits.memory", None, "67108864"),
            ("c", "requests.memory", None, "0"),
            ("d", "limits.cpu", None, "4"),
            ("d", "limits.memory", Some("1Gi"), "1"),
            ("d", "limits.ephemeral-storage", Some("1Gi"), "2"),
            ("d", "limits.hugepages-2Mi", None, "0"),
        ] {
            let selector = v1::ResourceFieldSelector {
                container_name: Some(container.into()),
                resource: name.into(),
                divisor: divisor.map(|d| Quantity(d.into())),
            };
            assert_eq!(
                resource(&pod(), None, &selector, &around()).as_deref(),
                Ok(text),
                "{container} {name}"
            );
        }
        let selector = |container: &str, resource: &str| v1::ResourceFieldSelector {
            container_name: Some(container.into()),
            resource: resource.into(),
            divisor: None,
        };
        assert!(resource(&pod(), None, &selector("e", "limits.cpu"), &around()).is_err());
        assert!(resource(&pod(), None, &selector("c", "limits.gpu"), &around()).is_err());
    }
}
