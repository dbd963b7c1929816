//! What it is worth that others still reach the machine of a silent node.
//!
//! Owns: how long its pods are spared because of that ([`is_spared`]), and whom one can ask about ([`whereabouts`]).
//! Invariant: a machine that nobody reaches is spared nothing, and none is spared for long, whatever others say: a node
//! that cannot be told anything is of no use, alive or not. Pure. The idea is SWIM's indirect probe (Das and others, 2002);
//! see docs/adr/0014-silence.md.

use std::{net::IpAddr, time::Duration};

use k8s_openapi::api::core::v1;

/// Others are asked again so often while they say that they reach it.
pub const AGAIN: Duration = Duration::from_secs(2);
/// Time for a process to be started again, or a network to be mended. Beyond that a machine that lives is no better than
/// one that does not.
const SPARED: Duration = Duration::from_secs(15);

/// Whether the pods of a node are left alone that has been silent for so long and whose machine somebody has `seen` just
/// now.
pub fn is_spared(silent: Duration, seen: bool) -> bool {
    seen && silent < SPARED
}

/// The address at which others may look for a node's machine; `None` when it has none that means the same to them.
pub fn whereabouts(status: &v1::NodeStatus) -> Option<IpAddr> {
    let addresses = status.addresses.as_ref()?;
    let address = addresses.iter().find(|address| address.type_ == "InternalIP")?;
    address.address.parse().ok().filter(is_elsewhere)
}

/// Whether an address can be another machine's.
pub fn is_elsewhere(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_machine_that_was_seen_is_spared_and_not_for_long() {
        for (silent_s, seen, spared) in
            [(1, true, true), (14, true, true), (15, true, false), (1, false, false)]
        {
            assert_eq!(is_spared(Duration::from_secs(silent_s), seen), spared, "{silent_s} {seen}");
        }
    }

    #[test]
    fn one_asks_about_addresses_that_mean_the_same_everywhere() {
        let status = |address: &str| v1::NodeStatus {
            addresses: Some(vec![
                v1::NodeAddress { type_: "Hostname".into(), address: "10.0.0.9".into() },
                v1::NodeAddress { type_: "InternalIP".into(), address: address.into() },
            ]),
            ..v1::NodeStatus::default()
        };
        assert_eq!(whereabouts(&status("10.0.0.2")), Some(IpAddr::from([10, 0, 0, 2])));
        for nowhere in ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "host", ""] {
            assert_eq!(whereabouts(&status(nowhere)), None, "{nowhere}");
        }
        assert_eq!(whereabouts(&v1::NodeStatus::default()), None);
    }
}
