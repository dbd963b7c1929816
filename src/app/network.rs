//! Which networks this machine already uses.

use std::{fs, net::Ipv4Addr, path::Path};

use sha2::Digest as _;

/// Where root's cluster lives unless told otherwise.
const DEFAULT_DATA: &str = "/var/lib/troupe";

/// Pod networks to choose from when the usual one is taken: `10.200.0.0/16` to `10.249.0.0/16`.
const CHOICES: std::ops::Range<u8> = 200..250;

/// A `/16` for pods that no route of this machine touches, beginning the search at `seed`: for throw-away clusters
/// beside another.
pub fn free_pod_network(seed: u32) -> Option<String> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    pick(&routes, seed)
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
    let taken: Vec<(u32, u32)> = routes.lines().skip(1).filter_map(route).collect();
    let count = u32::from(CHOICES.end - CHOICES.start);
    (0..count)
        .map(|n| {
            Ipv4Addr::new(10, CHOICES.start + u8::try_from((seed.wrapping_add(n)) % count).unwrap_or(0), 0, 0)
        })
        .find(|network| {
            let network = u32::from(*network);
            taken.iter().all(|(to, mask)| {
                let common = mask & 0xffff_0000;
                *mask == 0 || (to & common) != (network & common)
            })
        })
        .map(|network| format!("{network}/16"))
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

    #[test]
    fn a_network_that_a_route_touches_is_passed_over() {
        let header = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
        // 10.200.3.0/24 and a default route.
        let routes = format!(
            "{header}b0\t0003C80A\t0\t1\t0\t0\t0\t00FFFFFF\neth0\t00000000\t0\t1\t0\t0\t0\t00000000\n"
        );
        assert_eq!(pick(&routes, 0).as_deref(), Some("10.201.0.0/16"));
        assert_eq!(pick(header, 0).as_deref(), Some("10.200.0.0/16"));
        assert_eq!(pick(header, 51).as_deref(), Some("10.201.0.0/16"));
    }
}
