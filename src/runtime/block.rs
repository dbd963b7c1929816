//! What went through block devices, where some are made of others (LVM, LUKS, RAID).
//!
//! Owns: the sum that counts nothing twice. A cgroup's counters name each device that something was sent to: one that is made
//! of others, and mostly, but not always, those below it: LUKS writes to the disk in the kernel's own name, a mirror writes
//! twice. Invariant: what is sent to a device counts there; one below it adds what it has beyond those above. Limit: what is
//! sent past LUKS or a RAID straight to a disk below it may be hidden by that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Two numbers of what was read and what was written.
pub(super) type Moved = (u64, u64);

/// Higher than any pile that somebody has built.
const STOREYS: usize = 16;

/// How much went to each device that is named, such as `253:0`.
#[derive(Debug, Default)]
pub(super) struct Devices(BTreeMap<String, Moved>);

impl Devices {
    /// Counts what was told of one.
    pub(super) fn add(&mut self, device: String, moved: Moved) {
        let of = self.0.entry(device).or_default();
        *of = plus(*of, moved);
    }

    /// What was read and written in all. `below` tells of which devices one is made.
    pub(super) fn sum(&self, below: impl Fn(&str) -> Vec<String>) -> Moved {
        let mut pile = Pile { own: &self.0, above: BTreeMap::new() };
        for device in self.0.keys() {
            pile.dig(device, &below, STOREYS);
        }
        let beyond = |(device, own): (&String, &Moved)| {
            let above = pile.sent_above(device, STOREYS);
            (own.0.saturating_sub(above.0), own.1.saturating_sub(above.1))
        };
        self.0.iter().map(beyond).fold((0, 0), plus)
    }
}

/// Which devices are on which.
struct Pile<'a> {
    own: &'a BTreeMap<String, Moved>,
    above: BTreeMap<String, BTreeSet<String>>,
}

impl Pile<'_> {
    fn dig(&mut self, device: &str, below: &impl Fn(&str) -> Vec<String>, storeys: usize) {
        let Some(storeys) = storeys.checked_sub(1) else { return };
        for part in below(device) {
            if self.above.entry(part.clone()).or_default().insert(device.to_owned()) {
                self.dig(&part, below, storeys);
            }
        }
    }

    /// What those directly above a device were sent, by their own count or by that of those above them.
    fn sent_above(&self, device: &str, storeys: usize) -> Moved {
        let Some(storeys) = storeys.checked_sub(1) else { return (0, 0) };
        let sent = |above: &String| {
            let own = self.own.get(above).copied().unwrap_or_default();
            let further = self.sent_above(above, storeys);
            (own.0.max(further.0), own.1.max(further.1))
        };
        self.above.get(device).into_iter().flatten().map(sent).fold((0, 0), plus)
    }
}

fn plus(one: Moved, other: Moved) -> Moved {
    (one.0.saturating_add(other.0), one.1.saturating_add(other.1))
}

/// Of which disks a device, given as `253:1`, is made.
pub(super) fn below(device: &str) -> Vec<String> {
    let parts = fs::read_dir(Path::new("/sys/dev/block").join(device).join("slaves"));
    let number = |part: fs::DirEntry| {
        let part = part.path();
        // Counters are the disk's, not its partitions'; `..` is of where the link leads.
        let disk = if part.join("partition").exists() { part.join("..") } else { part };
        Some(fs::read_to_string(disk.join("dev")).ok()?.trim().to_owned())
    };
    parts.into_iter().flatten().flatten().filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Devices with what they have read and written, and which are made of which: what comes of it.
    #[track_caller]
    fn check(devices: &[(&str, Moved)], made_of: &[(&str, &[&str])], expected: Moved) {
        let mut all = Devices::default();
        for (device, moved) in devices {
            all.add((*device).to_owned(), *moved);
        }
        let below = |device: &str| {
            let parts = made_of.iter().find(|(of, _)| *of == device).map(|(_, parts)| *parts);
            parts.unwrap_or_default().iter().map(|part| (*part).to_owned()).collect()
        };
        assert_eq!(all.sum(below), expected, "{devices:?} {made_of:?}");
    }

    #[test]
    fn what_goes_through_several_devices_counts_once_and_on_the_uppermost() {
        check(&[], &[], (0, 0));
        check(&[("sda", (1, 2)), ("sdb", (10, 20))], &[], (11, 22));
        let lvm: &[(&str, &[&str])] = &[("lv", &["sda"]), ("other", &["sda"])];
        check(&[("lv", (5, 6)), ("sda", (5, 6))], lvm, (5, 6));
        check(&[("lv", (5, 6)), ("other", (1, 1)), ("sda", (9, 9))], lvm, (9, 9));
        check(&[("sda", (9, 9))], lvm, (9, 9));
        // LUKS: writes below it are the kernel's.
        let luks: &[(&str, &[&str])] = &[("luks", &["sda"]), ("lv", &["luks"])];
        check(&[("luks", (5, 60)), ("sda", (5, 0))], luks, (5, 60));
        check(&[("lv", (5, 60)), ("luks", (5, 60)), ("sda", (7, 0))], luks, (7, 60));
        check(&[("lv", (5, 60)), ("sda", (7, 61))], luks, (7, 61));
        // RAID: mirrors write twice, stripes in parts.
        let raid: &[(&str, &[&str])] = &[("md", &["sda", "sdb"])];
        check(&[("md", (8, 6)), ("sda", (5, 6)), ("sdb", (3, 6))], raid, (8, 6));
        check(&[("md", (8, 6)), ("sda", (4, 3)), ("sdb", (4, 3))], raid, (8, 6));
        // Nobody builds that; nobody waits for it either.
        check(&[("a", (1, 1)), ("b", (2, 2))], &[("a", &["b"]), ("b", &["a"])], (0, 0));
    }

    #[test]
    fn devices_of_this_machine_are_made_of_disks() {
        assert!(below("none").is_empty() && below("0:0").is_empty());
        for device in fs::read_dir("/sys/dev/block").into_iter().flatten().flatten() {
            for part in below(&device.file_name().to_string_lossy()) {
                let part = Path::new("/sys/dev/block").join(part);
                assert!(part.join("size").exists() && !part.join("partition").exists(), "{part:?}");
            }
        }
    }
}
