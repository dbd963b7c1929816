//! A port of the machine that leads to a pod: what `hostPort` and `hostIP` of a container's port ask for.

use std::{fmt, net::SocketAddr};

/// What a port of the machine speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// One address of the machine, and the pod's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// What is spoken.
    pub protocol: Protocol,
    /// The machine's address and port.
    pub listen: SocketAddr,
    /// Only where the machine has addresses of that family.
    pub optional: bool,
    /// The pod's port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        write!(f, "{}/{protocol}", self.listen)
    }
}
