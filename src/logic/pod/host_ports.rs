//! Which ports of the machine lead to a pod.
//!
//! Owns: what `hostPort`, `hostIP` and `protocol` of all containers come to. Invariant: no address is asked for twice; where
//! an init container and a main one name the same, it is the main one's. Limits: no SCTP, which is named to be told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use k8s_openapi::api::core::v1;

use super::init;
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
    for (_, container) in init::containers(pod) {
        for port in container.ports.iter().flatten() {
            asked.add(&container.name, port);
        }
    }
    asked
}

impl Asked {
    fn add(&mut self, container: &str, port: &v1::ContainerPort) {
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
            Some(text) => match text.parse() {
                Ok(address) => &[(address, false)],
                Err(_) => return,
            },
        };
        for (address, optional) in addresses {
            let (listen, optional) = (SocketAddr::new(*address, number), *optional);
            if !self.ports.iter().any(|other| other.listen == listen && other.protocol == protocol) {
                self.ports.push(HostPort { protocol, listen, optional, port: inside });
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
        // An init container's only where no main one has it; a sidecar's, too.
        let mut init = json!([
            {"name": "i", "ports": [{"containerPort": 9, "hostPort": 8080}]},
            {"name": "s", "restartPolicy": "Always", "ports": [{"containerPort": 7, "hostPort": 7, "hostIP": "::1"}]},
        ]);
        let all = [both[0], both[1], "[::1]:7/TCP to 7"];
        check(json!({"containers": container(one), "initContainers": init}), &all);
        init[1]["ports"] = json!([]);
        check(
            json!({"containers": container(json!([])), "initContainers": init}),
            &["0.0.0.0:8080/TCP to 9", "[::]:8080/TCP to 9 if it can be"],
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
