//! Services and endpoints.

use std::collections::HashSet;

use k8s_openapi::{
    api::core::v1::{Endpoints, Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{meta, pod::ip, probe};
use crate::model::{
    fault::{Faults, Path, Raw, Shown, one_of, one_of_if_set},
    names,
};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// A day: longer memory of a client is not offered.
const AFFINITY_SECONDS_MAX: i32 = 86_400;

/// Validates a service (metadata excepted).
pub(crate) fn service(service: &Service, faults: &mut Faults) {
    let at = Path::Root("spec");
    let Some(spec) = &service.spec else {
        return faults.required(&at, "");
    };
    let type_ = spec.type_.as_deref().unwrap_or_default();
    let ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if ports.is_empty() && !headless && type_ != "ExternalName" {
        faults.required(&at.field("ports"), "");
    }
    match type_ {
        "LoadBalancer" | "NodePort" if headless => {
            let detail = format!("may not be set to 'None' for {type_} services");
            faults.invalid(&at.field("clusterIPs").index(0), "None", &detail);
        }
        "ExternalName" => {
            if spec.cluster_ip.as_deref().is_some_and(|ip| !ip.is_empty()) {
                faults.forbidden(&at.field("clusterIPs"), "may not be set for ExternalName services");
            }
            let name = spec.external_name.as_deref().unwrap_or_default();
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                faults.required(&at.field("externalName"), "");
            } else {
                faults.invalid_each(&at.field("externalName"), name, names::dns1123_subdomain(name));
            }
        }
        _ => {}
    }
    one_of(
        faults,
        &at.field("type"),
        spec.type_.as_deref(),
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    service_ports(ports, type_, &at.field("ports"), faults);
    meta::labels(spec.selector.as_ref(), &at.field("selector"), faults);
    affinity(spec, &at, faults);
    let addresses = at.field("clusterIPs");
    let given = spec.cluster_ips.as_deref().unwrap_or_default();
    for (index, address) in given.iter().enumerate() {
        if address != "None" {
            ip(address, &addresses.index(index), faults);
        } else if given.len() > 1 {
            faults.invalid(&addresses, &Raw(format!("{given:?}")), "'None' must be the first and only value");
        }
    }
    if let (Some(one), Some(first)) = (spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty()), given.first())
        && one != first
    {
        faults.invalid(&addresses, &Raw(format!("{given:?}")), "first value must match `clusterIP`");
    }
    let outside = at.field("externalIPs");
    for (index, address) in spec.external_ips.iter().flatten().enumerate() {
        ip(address, &outside.index(index), faults);
    }
    one_of_if_set(
        faults,
        &at.field("externalTrafficPolicy"),
        spec.external_traffic_policy.as_deref(),
        &["Cluster", "Local"],
    );
    one_of_if_set(
        faults,
        &at.field("internalTrafficPolicy"),
        spec.internal_traffic_policy.as_deref(),
        &["Cluster", "Local"],
    );
    one_of_if_set(
        faults,
        &at.field("ipFamilyPolicy"),
        spec.ip_family_policy.as_deref(),
        &["SingleStack", "PreferDualStack", "RequireDualStack"],
    );
}

fn affinity(spec: &ServiceSpec, at: &Path<'_>, faults: &mut Faults) {
    one_of(faults, &at.field("sessionAffinity"), spec.session_affinity.as_deref(), &["ClientIP", "None"]);
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    if let Some(seconds) = config.and_then(|c| c.timeout_seconds)
        && !(1..=AFFINITY_SECONDS_MAX).contains(&seconds)
    {
        let at = at.field("sessionAffinityConfig");
        let at = at.field("clientIP");
        let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
        faults.invalid(&at.field("timeoutSeconds"), &seconds, &detail);
    }
}

fn service_ports(list: &[ServicePort], type_: &str, at: &Path<'_>, faults: &mut Faults) {
    let (mut by_name, mut by_number, mut by_node) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in list.iter().enumerate() {
        let item = at.index(index);
        let name = port.name.as_deref().unwrap_or_default();
        if name.is_empty() {
            if list.len() > 1 {
                faults.required(&item.field("name"), "");
            }
        } else {
            faults.invalid_each(&item.field("name"), name, names::dns1123_label(name));
            if !by_name.insert(name) {
                faults.duplicate(&item.field("name"), name);
            }
        }
        for detail in names::port_number(port.port) {
            faults.invalid(&item.field("port"), &port.port, &detail);
        }
        one_of(faults, &item.field("protocol"), port.protocol.as_deref(), PROTOCOLS);
        if let Some(target) = &port.target_port {
            probe::port(target, &item.field("targetPort"), faults);
        }
        if let Some(protocol) = port.app_protocol.as_deref() {
            faults.invalid_each(&item.field("appProtocol"), protocol, names::qualified_name(protocol));
        }
        if let Some(node) = port.node_port.filter(|n| *n != 0) {
            if type_ == "ClusterIP" {
                faults.forbidden(&item.field("nodePort"), "may not be used when `type` is 'ClusterIP'");
            }
            for detail in names::port_number(node) {
                faults.invalid(&item.field("nodePort"), &node, &detail);
            }
            if !by_node.insert((port.protocol.as_deref(), node)) {
                faults.duplicate(&item.field("nodePort"), &node);
            }
        }
        if !by_number.insert((port.protocol.as_deref(), port.port)) {
            faults.duplicate(&item, &Raw(serde_json::to_string(port).unwrap_or_default()));
        }
    }
}

/// Validates a service's new state: an address stays once it is given.
pub(crate) fn service_update(new: &Service, old: &Service, faults: &mut Faults) {
    if let (Some(now), Some(before)) = (&new.spec, &old.spec) {
        let external = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
        let before_ip = before.cluster_ip.as_deref().unwrap_or_default();
        let now_ip = now.cluster_ip.as_deref().unwrap_or_default();
        if !external(now) && !external(before) && !before_ip.is_empty() && before_ip != now_ip {
            let shown = Raw(format!("[]string{{{}}}", now_ip.shown()));
            let at = Path::Root("spec");
            faults.invalid(&at.field("clusterIPs").index(0), &shown, "may not change once set");
        }
    }
    service(new, faults);
}

/// Validates endpoints (metadata excepted).
pub(crate) fn endpoints(endpoints: &Endpoints, faults: &mut Faults) {
    let at = Path::Root("subsets");
    for (index, subset) in endpoints.subsets.iter().flatten().enumerate() {
        let at = at.index(index);
        let lists = [("addresses", &subset.addresses), ("notReadyAddresses", &subset.not_ready_addresses)];
        if lists.iter().all(|(_, list)| list.iter().flatten().next().is_none()) {
            faults.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, list) in lists {
            let at = at.field(field);
            for (index, address) in list.iter().flatten().enumerate() {
                let at = at.index(index);
                endpoint_ip(&address.ip, &at.field("ip"), faults);
                if let Some(host) = address.hostname.as_deref().filter(|h| !h.is_empty()) {
                    faults.invalid_each(&at.field("hostname"), host, names::dns1123_label(host));
                }
            }
        }
        let ports = subset.ports.as_deref().unwrap_or_default();
        let at = at.field("ports");
        for (index, port) in ports.iter().enumerate() {
            let item = at.index(index);
            match port.name.as_deref().unwrap_or_default() {
                "" if ports.len() > 1 => faults.required(&item.field("name"), ""),
                "" => {}
                name => faults.invalid_each(&item.field("name"), name, names::dns1123_label(name)),
            }
            probe::port(&IntOrString::Int(port.port), &item.field("port"), faults);
            one_of(faults, &item.field("protocol"), port.protocol.as_deref(), PROTOCOLS);
        }
    }
}

fn endpoint_ip(text: &str, at: &Path<'_>, faults: &mut Faults) {
    let Ok(address) = text.parse::<std::net::IpAddr>() else { return ip(text, at, faults) };
    let link_local = match address {
        std::net::IpAddr::V4(v4) => v4.is_link_local(),
        std::net::IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let detail = if address.is_unspecified() {
        format!("may not be unspecified ({text})")
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if address.is_multicast() {
        "may not be in the multicast range (224.0.0.0/4, ff00::/8)".to_owned()
    } else {
        return;
    };
    faults.invalid(at, text, &detail);
}
