//! Which pod has which address of the node's subnet.
//!
//! Owns: the set of addresses in use. Nothing is stored here: each sandbox' record names its address, and a restarted
//! process adopts those. Invariant: an address is given out once until released, and a released one as late as possible
//! (a dying network namespace may still answer for it for some milliseconds).

use std::{collections::BTreeSet, net::Ipv4Addr};

/// An IPv4 subnet, of which `.0` and the broadcast address are unused and `.1` is the bridge's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runtime) struct Subnet {
    base: u32,
    prefix: u8,
}

/// Prefixes longer than this leave no room for a bridge and a pod.
const LONGEST_PREFIX: u8 = 30;
/// Larger subnets than this are a mistake: a node never runs so many pods.
const SHORTEST_PREFIX: u8 = 8;

impl Subnet {
    /// Parses `10.244.1.0/24`; host bits must be zero.
    pub(in crate::runtime) fn parse(cidr: &str) -> Result<Subnet, String> {
        let (address, prefix) = cidr.split_once('/').ok_or("expected ADDRESS/PREFIX")?;
        let address: Ipv4Addr = address.parse().map_err(|_| format!("{address:?} is no IPv4 address"))?;
        let prefix: u8 = prefix.parse().map_err(|_| format!("{prefix:?} is no prefix length"))?;
        if !(SHORTEST_PREFIX..=LONGEST_PREFIX).contains(&prefix) {
            return Err(format!("the prefix must be {SHORTEST_PREFIX} to {LONGEST_PREFIX}"));
        }
        let base = u32::from(address);
        if base & (u32::MAX >> prefix) != 0 {
            return Err("host bits must be zero".into());
        }
        Ok(Subnet { base, prefix })
    }

    /// The bridge's address and the pods' default route.
    pub(in crate::runtime) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    pub(in crate::runtime) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The offset of the broadcast address; pods have those from 2 to one less.
    fn last(&self) -> u32 {
        u32::MAX >> self.prefix
    }
}

/// The addresses of one node's pods.
#[derive(Debug, Default)]
pub(in crate::runtime) struct Ipam {
    subnet: Option<Subnet>,
    used: BTreeSet<Ipv4Addr>,
    /// The offset handed out last.
    last: u32,
}

const FIRST_POD: u32 = 2;

impl Ipam {
    pub(in crate::runtime) fn set_subnet(&mut self, subnet: Subnet) {
        if self.subnet != Some(subnet) {
            self.subnet = Some(subnet);
            let highest = self
                .used
                .iter()
                .map(|&address| u32::from(address))
                .filter(|a| a.checked_sub(subnet.base).is_some_and(|offset| offset < subnet.last()));
            // Going on behind the highest one in use keeps an address that was released just before a restart unused
            // for a while.
            self.last = highest.max().map_or(FIRST_POD - 1, |address| address - subnet.base);
        }
    }

    pub(super) fn subnet(&self) -> Option<Subnet> {
        self.subnet
    }

    /// Marks an address that a sandbox found on disk has.
    pub(in crate::runtime) fn adopt(&mut self, address: Ipv4Addr) {
        self.used.insert(address);
    }

    pub(super) fn release(&mut self, address: Ipv4Addr) {
        self.used.remove(&address);
    }

    /// The next free address; `None` when the subnet is full or not known yet.
    pub(in crate::runtime) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let subnet = self.subnet?;
        let room = subnet.last() - FIRST_POD;
        for step in 1..=room {
            let offset = FIRST_POD + (self.last.max(FIRST_POD - 1) - (FIRST_POD - 1) + step - 1) % room;
            let address = Ipv4Addr::from(subnet.base + offset);
            if self.used.insert(address) {
                self.last = offset;
                return Some(address);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subnets_that_cannot_hold_pods_are_refused() {
        for bad in
            ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/31", "10.0.0.0/33", "::/64", "10.0.0/24", "0.0.0.0/0"]
        {
            assert!(Subnet::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Subnet::parse("10.1.2.0/24").unwrap().gateway(), Ipv4Addr::new(10, 1, 2, 1));
    }

    #[test]
    fn a_subnet_gives_every_address_but_network_bridge_and_broadcast() {
        let mut ipam = Ipam::default();
        assert_eq!(ipam.allocate(), None, "no subnet yet");
        ipam.set_subnet(Subnet::parse("10.0.0.0/29").unwrap());
        let got: Vec<_> = std::iter::from_fn(|| ipam.allocate()).map(|a| a.octets()[3]).collect();
        assert_eq!(got, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn a_released_address_is_the_last_to_be_used_again() {
        let mut ipam = Ipam::default();
        ipam.set_subnet(Subnet::parse("10.0.0.0/29").unwrap());
        let first = ipam.allocate().unwrap();
        ipam.release(first);
        let next: Vec<_> = (0..5).map(|_| ipam.allocate().unwrap()).collect();
        assert_eq!(next.last(), Some(&first));
    }

    proptest! {
        #[test]
        fn no_address_is_ever_held_twice(ops in proptest::collection::vec(any::<Option<u8>>(), 0..200)) {
            let mut ipam = Ipam::default();
            ipam.set_subnet(Subnet::parse("10.9.0.0/27").unwrap());
            let mut held: Vec<Ipv4Addr> = Vec::new();
            for op in ops {
                match op {
                    None => if let Some(address) = ipam.allocate() {
                        prop_assert!(!held.contains(&address));
                        held.push(address);
                    } else {
                        prop_assert_eq!(held.len(), 29);
                    },
                    Some(pick) if !held.is_empty() => {
                        let address = held.swap_remove(pick as usize % held.len());
                        ipam.release(address);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
