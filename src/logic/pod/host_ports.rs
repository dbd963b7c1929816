//! Which ports of the machine lead to a pod.
//!
//! Owns: what `hostPort`, `hostIP` and `protocol` of main containers and sidecars come to: those that run as long as the pod
//! does, as the scheduler counts them. Invariant: no address is asked for twice, nor one that another covers (`0.0.0.0`,
//! `::`), since the pod would be in its own way. Limits: no SCTP, which is named to be told.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use k8s_openapi::api::core::v1;

use super::{Role, init};
use crate::model::host_port::{HostPort, Protocol};

/// What a pod asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// What is to be opened.
    pub ports: Vec<HostPort>,
    /// A sentence for each that cannot be had.
    pub refused: Vec<String>,
}

/// The ports of the machine that a pod asks for. On the node's network its containers listen there themselves.
pub fn asked(pod: &v1::Pod) -> Asked {
    let mut asked = Asked::default();
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return asked;
    }
    let mut wanted = Vec::new();
    for (role, container) in init::containers(pod) {
        if role == Role::Init {
            continue;
        }
        for port in container.ports.iter().flatten() {
            asked.add(&container.name, port, &mut wanted);
        }
    }
    asked.settle(wanted);
    asked
}

impl Asked {
    fn add(&mut self, container: &str, port: &v1::ContainerPort, wanted: &mut Vec<HostPort>) {
        let Some(number) = port.host_port.filter(|number| *number != 0) else { return };
        let protocol = match port.protocol.as_deref() {
            None | Some("" | "TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => {
                self.refused.push(format!(
                    "host port {number}/{other} of container {container} leads nowhere: only TCP and UDP are relayed"
                ));
                return;
            }
        };
        let (Ok(number), Ok(inside)) = (u16::try_from(number), u16::try_from(port.container_port)) else {
            // No valid pod has such a port.
            return;
        };
        let addresses: &[(IpAddr, bool)] = match port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            None => &[(Ipv4Addr::UNSPECIFIED.into(), false), (Ipv6Addr::UNSPECIFIED.into(), true)],
            Some(text) => match text.parse::<IpAddr>() {
                // Sockets of the other family take no such addresses in.
                Ok(address) => &[(address.to_canonical(), false)],
                Err(_) => return,
            },
        };
        for (address, optional) in addresses {
            let listen = SocketAddr::new(*address, number);
            wanted.push(HostPort { protocol, listen, optional: *optional, port: inside });
        }
    }

    /// Takes the first of each address, and none that the pod listens at already by listening at all of its family.
    fn settle(&mut self, wanted: Vec<HostPort>) {
        let (mut leads, mut taken) = (HashMap::new(), HashSet::new());
        for port in &wanted {
            leads.entry((port.protocol, port.listen)).or_insert(port.port);
        }
        for port in wanted {
            let all: IpAddr = match port.listen {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let covering = SocketAddr::new(all, port.listen.port());
            let covered = leads.get(&(port.protocol, covering)).filter(|_| covering != port.listen);
            let (inside, why) = match (covered, leads.get(&(port.protocol, port.listen))) {
                (Some(inside), _) => (*inside, "asks for all addresses with that port, too"),
                (None, Some(inside)) => (*inside, "asks for that address twice"),
                (None, None) => (port.port, ""),
            };
            if inside != port.port {
                self.refused
                    .push(format!("host port {port} leads to {inside}, not to {}: the pod {why}", port.port));
            } else if covered.is_none() && taken.insert((port.protocol, port.listen)) {
                self.ports.push(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let pod: v1::Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        let ports = asked(&pod).ports;
        let told = |port: &HostPort| {
            format!("{port} to {}{}", port.port, if port.optional { " if it can be" } else { "" })
        };
        assert_eq!(ports.iter().map(told).collect::<Vec<_>>(), expected, "{pod:?}");
    }

    #[test]
    fn ports_of_all_containers_are_asked_for_once_at_the_addresses_they_name() {
        let container = |ports: Value| json!([{"name": "c", "ports": ports}]);
        check(json!({"containers": [{"name": "c"}]}), &[]);
        check(
            json!({"containers": container(json!([{"containerPort": 80}, {"containerPort": 81, "hostPort": 0}]))}),
            &[],
        );
        let both = ["0.0.0.0:8080/TCP to 80", "[::]:8080/TCP to 80 if it can be"];
        let one = json!([{"containerPort": 80, "hostPort": 8080, "protocol": "TCP"}]);
        check(json!({"containers": container(one.clone())}), &both);
        check(json!({"hostNetwork": true, "containers": container(one.clone())}), &[]);
        check(
            json!({"containers": container(json!([
                {"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"},
                {"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1"},
                {"containerPort": 54, "hostPort": 54, "hostIP": "::"},
                {"containerPort": 55, "hostPort": 55, "hostIP": "0.0.0.0"}
            ]))}),
            &[
                "127.0.0.1:53/UDP to 53",
                "127.0.0.1:53/TCP to 53",
                "[::]:54/TCP to 54",
                "0.0.0.0:55/TCP to 55",
            ],
        );
        // A sidecar's, too, but not an init container's, which the scheduler does not count.
        let init = json!([
            {"name": "i", "ports": [{"containerPort": 9, "hostPort": 8080}]},
            {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 7, "hostPort": 7, "hostIP": "::1"}]},
        ]);
        let all = [both[0], both[1], "[::1]:7/TCP to 7"];
        check(json!({"containers": container(one), "initContainers": init}), &all);
        check(json!({"containers": container(json!([])), "initContainers": init}), &all[2..]);
    }

    #[test]
    fn an_address_is_left_out_that_the_pod_has_by_asking_for_all_of_them() {
        let ports = json!([
            {"containerPort": 53, "hostPort": 53, "hostIP": "127.0.0.1", "protocol": "UDP"},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
            {"containerPort": 53, "hostPort": 53, "hostIP": "::1", "protocol": "UDP"},
            {"containerPort": 54, "hostPort": 54, "hostIP": "::"},
            {"containerPort": 54, "hostPort": 54, "hostIP": "127.0.0.1"},
            {"containerPort": 55, "hostPort": 54, "hostIP": "::1"},
        ]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}]});
        check(
            spec.clone(),
            &[
                "0.0.0.0:53/UDP to 53",
                "[::]:53/UDP to 53 if it can be",
                "[::]:54/TCP to 54",
                "127.0.0.1:54/TCP to 54",
            ],
        );
        let pod: v1::Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(
            asked(&pod).refused,
            [
                "host port [::1]:54/TCP leads to 54, not to 55: the pod asks for all addresses with that port, too"
            ]
        );
    }

    #[test]
    fn an_address_that_two_ports_of_a_pod_are_to_have_is_the_first_ones_and_that_is_told() {
        let spec = json!({
            "containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 80, "hostIP": "0:0:0:0:0:0:0:1"},
                {"containerPort": 80, "hostPort": 80, "hostIP": "::1"},
                {"containerPort": 53, "hostPort": 53, "hostIP": "::ffff:127.0.0.1"},
            ]}],
            "initContainers": [{"name": "s", "restartPolicy": "Always", "ports": [
                {"containerPort": 81, "hostPort": 80, "hostIP": "::1"},
                {"containerPort": 54, "hostPort": 53, "hostIP": "127.0.0.1"},
            ]}],
        });
        check(spec.clone(), &["[::1]:80/TCP to 80", "127.0.0.1:53/TCP to 53"]);
        let pod: v1::Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
        assert_eq!(
            asked(&pod).refused,
            [
                "host port [::1]:80/TCP leads to 80, not to 81: the pod asks for that address twice",
                "host port 127.0.0.1:53/TCP leads to 53, not to 54: the pod asks for that address twice"
            ]
        );
    }

    #[test]
    fn what_cannot_be_relayed_is_told() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080, "protocol": "SCTP"}]);
        let pod: v1::Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c", "ports": ports}]}})).unwrap();
        let asked = asked(&pod);
        assert!(asked.ports.is_empty());
        assert_eq!(
            asked.refused,
            ["host port 8080/SCTP of container c leads nowhere: only TCP and UDP are relayed"]
        );
    }
}
