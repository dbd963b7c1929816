//! Services at the door: defaults, and what an update keeps or drops of what the cluster has given out.
//!
//! Owns: the service's side of admission. Which address or node port a service gets is decided elsewhere; here only
//! what was given stays given, and what a service's new type has no use for goes.

use k8s_openapi::{
    api::core::v1::{LoadBalancerStatus, Service, ServiceSpec, ServiceStatus},
    apimachinery::pkg::{apis::meta::v1::Time, util::intstr::IntOrString},
};

use super::{admit::Part, defaults::text, fault::Faults, rules::Rules, validate};

/// How long a client stays with its pod under `ClientIP` affinity.
const AFFINITY_SECONDS: i32 = 10_800;

impl Rules for Service {
    fn prepare_create(&mut self, _now: &Time) {
        self.status = Some(ServiceStatus {
            load_balancer: Some(LoadBalancerStatus::default()),
            ..ServiceStatus::default()
        });
    }

    fn fill_in(&mut self) {
        let spec = self.spec.get_or_insert_default();
        text(&mut spec.type_, "ClusterIP");
        text(&mut spec.session_affinity, "None");
        let type_ = spec.type_.clone().unwrap_or_default();
        if spec.session_affinity.as_deref() == Some("None") {
            spec.session_affinity_config = None;
        } else if spec.session_affinity.as_deref() == Some("ClientIP") {
            let config = spec.session_affinity_config.get_or_insert_default();
            config.client_ip.get_or_insert_default().timeout_seconds.get_or_insert(AFFINITY_SECONDS);
        }
        for port in spec.ports.iter_mut().flatten() {
            text(&mut port.protocol, "TCP");
            let missing = match &port.target_port {
                None | Some(IntOrString::Int(0)) => true,
                Some(IntOrString::String(name)) => name.is_empty(),
                Some(IntOrString::Int(_)) => false,
            };
            if missing {
                port.target_port = Some(IntOrString::Int(port.port));
            }
        }
        let outside = type_ == "NodePort" || type_ == "LoadBalancer";
        if outside || (type_ == "ClusterIP" && spec.external_ips.iter().flatten().next().is_some()) {
            text(&mut spec.external_traffic_policy, "Cluster");
        }
        if outside || type_ == "ClusterIP" {
            text(&mut spec.internal_traffic_policy, "Cluster");
            text(&mut spec.ip_family_policy, "SingleStack");
            if spec.ip_families.as_ref().is_none_or(Vec::is_empty) {
                spec.ip_families = Some(vec!["IPv4".into()]);
            }
            let ip = spec.cluster_ip.as_ref().filter(|ip| !ip.is_empty());
            if let (Some(ip), true) = (ip, spec.cluster_ips.as_ref().is_none_or(Vec::is_empty)) {
                spec.cluster_ips = Some(vec![ip.clone()]);
            }
        }
        if type_ == "LoadBalancer" {
            spec.allocate_load_balancer_node_ports.get_or_insert(true);
        }
        let status = self.status.get_or_insert_default();
        status.load_balancer.get_or_insert_default();
    }

    fn prepare_update(&mut self, old: &Self, part: Part) {
        if part == Part::Status {
            self.spec.clone_from(&old.spec);
            return;
        }
        self.status.clone_from(&old.status);
        if let (Some(new), Some(old)) = (&mut self.spec, &old.spec) {
            keep_allocations(new, old);
            drop_by_type(new, old);
        }
    }

    fn validate(&self, faults: &mut Faults) {
        validate::service(self, faults);
    }

    fn validate_update(&self, old: &Self, part: Part, faults: &mut Faults) {
        if part == Part::Main {
            validate::service_update(self, old, faults);
        }
    }
}

/// Whether services of its type have an address in the cluster.
fn has_cluster_ip(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("ClusterIP" | "NodePort" | "LoadBalancer"))
}

/// Whether services of its type have ports on the nodes.
fn has_node_ports(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// What the cluster has given out stays given out when the client does not name it again.
fn keep_allocations(new: &mut ServiceSpec, old: &ServiceSpec) {
    if has_cluster_ip(new) && has_cluster_ip(old) && new.cluster_ip.as_deref().is_none_or(str::is_empty) {
        new.cluster_ip.clone_from(&old.cluster_ip);
        new.cluster_ips.clone_from(&old.cluster_ips);
    }
    if has_node_ports(new) && has_node_ports(old) {
        for port in new.ports.iter_mut().flatten().filter(|p| p.node_port.unwrap_or(0) == 0) {
            let same = |p: &&k8s_openapi::api::core::v1::ServicePort| {
                p.name == port.name && p.protocol == port.protocol && p.port == port.port
            };
            port.node_port = old.ports.iter().flatten().find(same).and_then(|p| p.node_port);
        }
        if new.health_check_node_port.unwrap_or(0) == 0 {
            new.health_check_node_port = old.health_check_node_port;
        }
    }
}

/// A service whose type changed loses what its new type has no use for, unless the client changed that as well.
fn drop_by_type(new: &mut ServiceSpec, old: &ServiceSpec) {
    if has_cluster_ip(old) && !has_cluster_ip(new) {
        if new.cluster_ip == old.cluster_ip {
            new.cluster_ip = None;
            new.cluster_ips = None;
        }
        if new.ip_families == old.ip_families {
            new.ip_families = None;
        }
        if new.ip_family_policy == old.ip_family_policy {
            new.ip_family_policy = None;
        }
        if new.internal_traffic_policy == old.internal_traffic_policy {
            new.internal_traffic_policy = None;
        }
    }
    if has_node_ports(old) && !has_node_ports(new) {
        let numbers = |spec: &ServiceSpec| -> Vec<Option<i32>> {
            spec.ports.iter().flatten().map(|p| p.node_port).collect()
        };
        if numbers(new) == numbers(old) {
            new.ports.iter_mut().flatten().for_each(|p| p.node_port = None);
        }
        let still_outside = new.external_ips.iter().flatten().next().is_some();
        if new.external_traffic_policy == old.external_traffic_policy && !still_outside {
            new.external_traffic_policy = None;
        }
        if new.health_check_node_port == old.health_check_node_port {
            new.health_check_node_port = None;
        }
    }
    let balanced = |spec: &ServiceSpec| spec.type_.as_deref() == Some("LoadBalancer");
    if balanced(old) && !balanced(new) {
        if new.allocate_load_balancer_node_ports == old.allocate_load_balancer_node_ports {
            new.allocate_load_balancer_node_ports = None;
        }
        if new.load_balancer_class == old.load_balancer_class {
            new.load_balancer_class = None;
        }
    }
}
