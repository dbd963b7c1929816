//! What clusters on one machine must not share: the pods' network, and the names of bridges and cgroups.
//!
//! Invariant: a data directory keeps its network for good, since its pods have addresses in it.

use std::{fs, io, net::Ipv4Addr, os::unix::fs::DirBuilderExt as _, path::Path};

use sha2::Digest as _;

/// Where root's cluster lives unless told otherwise.
const DEFAULT_DATA: &str = "/var/lib/troupe";

/// The usual network of pods, as with kubeadm and flannel.
const USUAL: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 0);

/// Pod networks to choose from when the usual one is not ours to take: `10.128.0.0/16` to `10.243.0.0/16`.
const CHOICES: std::ops::Range<u8> = 128..244;

/// The file of a data directory that remembers its network.
const REMEMBERED: &str = "pod-network";

/// The pods' network of a data directory: the one it has, else the one asked for, else one that no route of this
/// machine touches. Root's usual directory tries the usual network first; others, which may be many at once, begin
/// at a place of their own. Remembers it.
///
/// # Errors
/// When the directory cannot be read or written.
pub fn pod_network(data: &Path, wanted: Option<&str>) -> io::Result<String> {
    match (fs::read_to_string(data.join(REMEMBERED)), wanted) {
        (_, Some(wanted)) => {
            remember(data, wanted)?;
            Ok(wanted.to_owned())
        }
        (Ok(remembered), None) => Ok(remembered.trim().to_owned()),
        (Err(error), None) if error.kind() == io::ErrorKind::NotFound => {
            let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
            let network = choose(&routes, data);
            remember(data, &network)?;
            Ok(network)
        }
        (Err(error), None) => Err(error),
    }
}

/// The route of this machine that a network would take away which somebody asks for, as `DESTINATION of INTERFACE`: one that lies
/// within it. A wider one is left to who asks: what is narrower goes before it. That of the directory's own network is no obstacle.
pub fn route_within(data: &Path, wanted: &str) -> Option<String> {
    let own = fs::read_to_string(data.join(REMEMBERED)).is_ok_and(|own| own.trim() == wanted);
    let routes = if own { String::new() } else { fs::read_to_string("/proc/net/route").unwrap_or_default() };
    within(&routes, wanted)
}

fn within(routes: &str, wanted: &str) -> Option<String> {
    let (address, prefix) = wanted.split_once('/')?;
    let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix.parse().ok()?)?).unwrap_or(0);
    let network = u32::from(address.parse::<Ipv4Addr>().ok()?) & mask;
    let mut found = routes.lines().skip(1).filter_map(|line| Some((line, route(line)?)));
    let (line, (to, length)) =
        found.find(|(_, (to, length))| length & mask == mask && *length != 0 && to & mask == network)?;
    let interface = line.split_whitespace().next().unwrap_or_default();
    Some(format!("{}/{} of {interface}", Ipv4Addr::from(to), length.count_ones()))
}

fn remember(data: &Path, network: &str) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
    fs::write(data.join(REMEMBERED), network)
}

fn choose(routes: &str, data: &Path) -> String {
    let usual = format!("{USUAL}/16");
    if data == Path::new(DEFAULT_DATA) && is_free(&taken(routes), USUAL) {
        return usual;
    }
    let digest = sha2::Sha256::digest(data.as_os_str().as_encoded_bytes());
    pick(routes, u32::from_be_bytes([0, 0, digest[0], digest[1]])).unwrap_or(usual)
}

/// The bridge and the cgroup of node number `index` of a data directory: `troupe0` and `troupe` where it is the only
/// one, else names that two clusters on one machine do not share.
pub fn names(data: &Path, index: usize) -> (String, String) {
    if data == Path::new(DEFAULT_DATA) {
        let cgroup = if index == 0 { "troupe".to_owned() } else { format!("troupe-{index}") };
        return (format!("troupe{index}"), cgroup);
    }
    let digest = sha2::Sha256::digest(data.as_os_str().as_encoded_bytes());
    let tag: String = digest.iter().take(3).map(|b| format!("{b:02x}")).collect();
    (format!("tr-{tag}-{index}"), format!("troupe-{tag}-{index}"))
}

fn pick(routes: &str, seed: u32) -> Option<String> {
    let taken = taken(routes);
    let count = u32::from(CHOICES.end - CHOICES.start);
    (0..count)
        .map(|n| {
            Ipv4Addr::new(10, CHOICES.start + u8::try_from((seed.wrapping_add(n)) % count).unwrap_or(0), 0, 0)
        })
        .find(|network| is_free(&taken, *network))
        .map(|network| format!("{network}/16"))
}

/// Destinations and masks of the routes, the default one aside.
fn taken(routes: &str) -> Vec<(u32, u32)> {
    routes.lines().skip(1).filter_map(route).filter(|(_, mask)| *mask != 0).collect()
}

/// Whether none of the routes shares an address with this `/16`.
fn is_free(taken: &[(u32, u32)], network: Ipv4Addr) -> bool {
    let network = u32::from(network);
    taken.iter().all(|(to, mask)| {
        let common = mask & 0xffff_0000;
        (to & common) != (network & common)
    })
}

/// Destination and mask of a line of `/proc/net/route`, which has both in the machine's (little-endian) order.
fn route(line: &str) -> Option<(u32, u32)> {
    let mut words = line.split_whitespace();
    let to = u32::from_str_radix(words.nth(1)?, 16).ok()?;
    let mask = u32::from_str_radix(words.nth(5)?, 16).ok()?;
    Some((u32::from_be(to.to_be().swap_bytes()), u32::from_be(mask.to_be().swap_bytes())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";

    #[test]
    fn a_network_that_is_asked_for_takes_no_route_away() {
        // 10.77.3.0/24 on a bridge, 10.0.0.0/8 by a gateway, and a default route.
        let routes = format!(
            "{HEADER}br0\t00034D0A\t0\t1\t0\t0\t0\t00FFFFFF\ntun0\t0000000A\t0100000A\t3\t0\t0\t0\t000000FF\n\
             eth0\t00000000\t0\t1\t0\t0\t0\t00000000\n"
        );
        for wanted in ["10.77.0.0/16", "10.77.3.0/24", "10.77.2.0/23"] {
            assert_eq!(within(&routes, wanted).as_deref(), Some("10.77.3.0/24 of br0"), "{wanted}");
        }
        assert_eq!(within(&routes, "10.0.0.0/8").as_deref(), Some("10.77.3.0/24 of br0"));
        for wanted in ["10.78.0.0/16", "10.77.4.0/24", "192.168.0.0/16", "no network"] {
            assert_eq!(within(&routes, wanted), None, "{wanted}");
        }
        let data = tempfile::tempdir().unwrap();
        remember(data.path(), "127.0.0.0/8").unwrap();
        assert_eq!(route_within(data.path(), "127.0.0.0/8"), None, "it is its own");
    }

    #[test]
    fn a_network_that_a_route_touches_is_passed_over() {
        // 10.128.3.0/24 and a default route.
        let routes = format!(
            "{HEADER}b0\t0003800A\t0\t1\t0\t0\t0\t00FFFFFF\neth0\t00000000\t0\t1\t0\t0\t0\t00000000\n"
        );
        assert_eq!(pick(&routes, 0).as_deref(), Some("10.129.0.0/16"));
        assert_eq!(pick(HEADER, 0).as_deref(), Some("10.128.0.0/16"));
        assert_eq!(pick(HEADER, 117).as_deref(), Some("10.129.0.0/16"));
    }

    #[test]
    fn the_usual_network_is_for_the_usual_directory_when_it_is_free() {
        assert_eq!(choose(HEADER, Path::new(DEFAULT_DATA)), "10.244.0.0/16");
        let routes = format!("{HEADER}cni0\t0000F40A\t0\t1\t0\t0\t0\t00FFFFFF\n");
        assert_ne!(choose(&routes, Path::new(DEFAULT_DATA)), "10.244.0.0/16");
        assert_ne!(choose(HEADER, Path::new("/tmp/other")), "10.244.0.0/16");
    }

    #[test]
    fn a_directory_keeps_its_network_unless_told_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let first = pod_network(dir.path(), None).unwrap();
        assert_eq!(pod_network(dir.path(), None).unwrap(), first);
        assert_eq!(pod_network(dir.path(), Some("10.9.0.0/16")).unwrap(), "10.9.0.0/16");
        assert_eq!(pod_network(dir.path(), None).unwrap(), "10.9.0.0/16");
    }
}
