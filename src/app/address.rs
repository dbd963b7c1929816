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

/// Where other machines reach a listener of this one as it is now, which may change while it runs: its own address, or,
/// when it listens on every one, that of the default route, or the first that is not loopback.
///
/// # Errors
/// When they do not reach it: why, and what to do.
pub fn reachable_at(listen: SocketAddr) -> Result<SocketAddr, String> {
    let (ip, port) = (listen.ip(), listen.port());
    if ip.is_loopback() {
        return Err(format!(
            "other machines cannot join: nodes link to {listen}, which is this machine alone; start it with --listen 0.0.0.0:{port}, \
             or an address of this machine, to have others"
        ));
    }
    if !ip.is_unspecified() {
        let mut any_port = listen;
        any_port.set_port(0);
        return UdpSocket::bind(any_port).map(|_| listen).map_err(|_| {
            format!(
                "other machines cannot join: nodes link to {listen}, which is no address of this machine any more; start it with \
                 --listen 0.0.0.0:{port} for every address that it has or gets"
            )
        });
    }
    // Documentation addresses (RFC 5737, RFC 3849): anything beyond the default route.
    let outward = || towards(SocketAddr::from(([192, 0, 2, 1], 9)));
    let outward_v6 = || towards(SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 9)));
    let found = outward().or_else(|| first_address(IpAddr::is_ipv4));
    let found = found.or_else(|| match listen.is_ipv6() {
        true => outward_v6().or_else(|| first_address(IpAddr::is_ipv6)),
        false => None,
    });
    found.filter(|ip| !ip.is_loopback()).map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| {
        "other machines cannot join yet: this machine has no address but loopback; give it one, and `troupe token create` names it"
            .into()
    })
}

/// That an address is no use to other machines, which are told of it as a node's.
pub fn of_itself_alone(address: IpAddr) -> Option<String> {
    address.is_loopback().then(|| {
        format!(
            "--address {address}: other machines are told to reach this node there, and each of them is itself at that address; \
             leave it out, or name one that they reach"
        )
    })
}

/// The first address that others could use, of this kind.
fn first_address(kind: fn(&IpAddr) -> bool) -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|of| IpAddr::V4(of.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    let local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    addresses.into_iter().find(|ip| kind(ip) && !ip.is_loopback() && !local(ip))
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
    fn a_listener_is_told_as_it_is_reached_by_others_if_it_is() {
        let on = |ip: [u8; 4]| SocketAddr::from((ip, 6443));
        // 192.0.2.0/24 is for documentation: no machine's.
        for (listen, says) in
            [([127, 0, 0, 1], "this machine alone"), ([192, 0, 2, 7], "no address of this machine")]
        {
            let why = reachable_at(on(listen)).unwrap_err();
            assert!(why.contains(says) && why.contains("--listen 0.0.0.0:6443"), "{why}");
        }
        match reachable_at(on([0, 0, 0, 0])) {
            Ok(all) => {
                assert!(!all.ip().is_unspecified() && !all.ip().is_loopback() && all.port() == 6443);
                assert_eq!(reachable_at(all), Ok(all), "it is one of this machine");
            }
            Err(why) => assert!(why.contains("no address but loopback"), "{why}"),
        }
    }
}
