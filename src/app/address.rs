//! Addresses as people write them, and as other machines need them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// The port of a master's links (UDP) unless another is said: the number of the API's (TCP).
pub const LINKS_PORT: u16 = 6443;

/// `HOST`, `HOST:PORT`, an IPv6 address or `[IPV6]:PORT` as `HOST:PORT`.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn with_port(text: &str) -> Result<String, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.to_string());
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, LINKS_PORT).to_string());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => (text, Some(LINKS_PORT)),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
    match port {
        Some(port) if port > 0 && !host.is_empty() && host.chars().all(is_name) => {
            Ok(format!("{host}:{port}"))
        }
        _ => Err(format!("{text:?} is no address: write HOST or HOST:PORT")),
    }
}

/// The address of this machine from which it reaches `peer`; nothing is sent.
pub fn towards(peer: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { "::".parse().ok()? };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(peer).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified())
}

/// The address that other machines are told of a listener: its own, or, when it listens on every address, that of the
/// default route, or the first that is not loopback.
pub fn advertised(listen: SocketAddr) -> SocketAddr {
    if !listen.ip().is_unspecified() {
        return listen;
    }
    // A documentation address (RFC 5737): anything beyond the default route.
    let outward = towards(SocketAddr::from(([192, 0, 2, 1], 9)));
    let ip = outward.or_else(first_address).unwrap_or(Ipv4Addr::LOCALHOST.into());
    SocketAddr::new(ip, listen.port())
}

fn first_address() -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        Some(IpAddr::V4(address.as_sockaddr_in()?.ip()))
    });
    addresses.into_iter().find(|ip| !ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_understood_as_people_write_them() {
        for (text, meant) in [
            ("10.0.0.1", Some("10.0.0.1:6443")),
            ("10.0.0.1:7000", Some("10.0.0.1:7000")),
            ("master.example", Some("master.example:6443")),
            ("master:7000", Some("master:7000")),
            ("fd00::1", Some("[fd00::1]:6443")),
            ("[fd00::1]:7000", Some("[fd00::1]:7000")),
            ("", None),
            (":7000", None),
            ("a b", None),
            ("master:", None),
            ("master:0", None),
            ("master:70000", None),
            ("https://master", None),
        ] {
            assert_eq!(with_port(text).ok().as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn a_listener_on_one_address_is_told_as_it_is() {
        let one = SocketAddr::from(([10, 0, 0, 1], 6443));
        assert_eq!(advertised(one), one);
        let all = advertised(SocketAddr::from(([0, 0, 0, 0], 6443)));
        assert!(!all.ip().is_unspecified() && all.port() == 6443);
    }
}
