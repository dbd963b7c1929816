//! What a machine's disks have read and written in all, as a counter that does not fall when one of them goes.
//!
//! Owns: what disks that went have moved. Who reads a counter takes a fall for a new beginning and adds all of it once more,
//! which after years of one disk is what the other one did in them. Limit: what a disk moved between the last look and its end
//! is not known.

use std::collections::{BTreeMap, HashMap};

/// Two numbers of what was read and what was written.
pub type Moved = (u64, u64);

/// Bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Io {
    /// So many.
    pub bytes: Moved,
    /// So often.
    pub operations: Moved,
}

impl Io {
    fn plus(self, other: Io) -> Io {
        let plus = |a: Moved, b: Moved| (a.0.saturating_add(b.0), a.1.saturating_add(b.1));
        Io { bytes: plus(self.bytes, other.bytes), operations: plus(self.operations, other.operations) }
    }

    /// Whether this can be what the same disk tells later.
    fn follows(self, before: Io) -> bool {
        let no_less = |a: Moved, b: Moved| a.0 >= b.0 && a.1 >= b.1;
        no_less(self.bytes, before.bytes) && no_less(self.operations, before.operations)
    }
}

/// The disks of a machine since they are looked at.
#[derive(Debug, Default)]
pub struct Disks {
    here: HashMap<String, Io>,
    gone: Io,
}

impl Disks {
    /// What all have moved, those that have gone as well. Nothing where there never was any.
    pub fn sum(&mut self, now: BTreeMap<String, Io>) -> Option<Io> {
        for (name, before) in &self.here {
            // One that tells less is another of that name.
            if !now.get(name).is_some_and(|now| now.follows(*before)) {
                self.gone = self.gone.plus(*before);
            }
        }
        if now.is_empty() && self.gone == Io::default() {
            return None;
        }
        self.here = now.into_iter().collect();
        Some(self.here.values().fold(self.gone, |sum, of| sum.plus(*of)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_goes_takes_nothing_away_and_one_that_comes_adds_what_it_tells() {
        let mut disks = Disks::default();
        let io = |n: u64| Io { bytes: (n * 512, n), operations: (n, 1) };
        let mut sum = |now: &[(&str, Io)]| {
            let now = now.iter().map(|(name, io)| ((*name).to_owned(), *io)).collect();
            disks.sum(now).map(|sum| sum.bytes.1)
        };
        assert_eq!(sum(&[]), None);
        assert_eq!(sum(&[("a", io(10)), ("b", io(5))]), Some(15));
        assert_eq!(sum(&[("a", io(11))]), Some(16), "b has gone");
        assert_eq!(sum(&[("a", io(12)), ("b", io(2))]), Some(19), "another b");
        assert_eq!(sum(&[("a", io(12)), ("b", io(1))]), Some(20), "and another");
        assert_eq!(sum(&[("a", io(12)), ("b", io(3))]), Some(22));
        assert_eq!(sum(&[]), Some(22));
        assert_eq!(sum(&[("a", io(1))]), Some(23));
    }
}
