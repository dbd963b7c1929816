//! What a machine has received and sent over the device that leads everywhere, as a counter that goes on when that is another
//! device: who reads a counter takes a fall for a new beginning, and a rise for traffic.
//!
//! Owns: what was moved over former devices. Limit: what the old one moved since the last look, and the new one until this
//! one, is not known to have led anywhere and does not count.

use super::disks::Moved;

/// The device of the default route, since it is looked at.
#[derive(Debug, Default)]
pub struct Outward {
    /// Its name and what it told last.
    device: Option<(String, Moved)>,
    sum: Moved,
}

impl Outward {
    /// What was received and sent by now, given the device of this moment and its own counters.
    pub fn sum(&mut self, name: &str, now: Moved) -> Moved {
        let (received, sent) = match &self.device {
            None => now,
            Some((before, _)) if before != name => (0, 0),
            // One that tells less is another of that name.
            Some((_, before)) if now.0 < before.0 || now.1 < before.1 => now,
            Some((_, before)) => (now.0 - before.0, now.1 - before.1),
        };
        self.device = Some((name.to_owned(), now));
        self.sum = (self.sum.0.saturating_add(received), self.sum.1.saturating_add(sent));
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_that_moves_makes_the_counter_neither_fall_nor_jump() {
        let mut outward = Outward::default();
        for (name, now, sum) in [
            ("eth0", (100, 10), (100, 10)),
            ("eth0", (130, 15), (130, 15)),
            ("wlan0", (9_000, 1), (130, 15)),
            ("wlan0", (9_007, 3), (137, 17)),
            ("eth0", (200, 30), (137, 17)),
            ("eth0", (201, 30), (138, 17)),
            ("eth0", (5, 5), (143, 22)),
        ] {
            assert_eq!(outward.sum(name, now), sum, "{name} {now:?}");
        }
    }
}
