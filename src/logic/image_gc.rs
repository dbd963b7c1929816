//! When a disk fills up, images go: whether, and which.
//!
//! Owns: Kubernetes' thresholds and order. Pure; measuring and removing are the kubelet's.

use std::time::Duration;

/// At so many percent of the disk in use, images begin to go: Kubernetes' `imageGCHighThresholdPercent`.
pub const HIGH_PERCENT: u64 = 85;
/// At so many they stop: `imageGCLowThresholdPercent`.
pub const LOW_PERCENT: u64 = 80;
/// What was used or pulled so recently stays: `imageMinimumGCAge`.
pub const LEAST_AGE: Duration = Duration::from_secs(120);
/// How often a node looks: Kubernetes' own period.
pub const PERIOD: Duration = Duration::from_secs(300);

/// Bytes in use beyond a threshold.
pub fn excess(total: u64, free: u64, percent: u64) -> u64 {
    let allowed = u128::from(total) * u128::from(percent) / 100;
    let used = u128::from(total.saturating_sub(free));
    u64::try_from(used.saturating_sub(allowed)).unwrap_or(u64::MAX)
}

/// An image that nothing needs now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idle {
    /// Its names.
    pub names: Vec<String>,
    /// When it was last used or pulled; milliseconds since the epoch.
    pub used_ms: i64,
}

/// Which go, in this order, until the disk has room again: what was not used for longest first.
pub fn order(mut idle: Vec<Idle>, now_ms: i64) -> Vec<Idle> {
    let age = i64::try_from(LEAST_AGE.as_millis()).unwrap_or(i64::MAX);
    idle.retain(|image| now_ms.saturating_sub(image.used_ms) >= age);
    idle.sort_by(|a, b| a.used_ms.cmp(&b.used_ms).then_with(|| a.names.cmp(&b.names)));
    idle
}

/// Kubernetes' word on a collection that did not help enough.
pub fn failed(wanted: u64, freed: u64) -> String {
    format!(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} \
         bytes eligible to free."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_excess_is_what_is_in_use_beyond_a_threshold() {
        for (total, free, percent, beyond) in [
            (1000, 100, 85, 50),
            (1000, 150, 85, 0),
            (1000, 900, 85, 0),
            (1000, 0, 80, 200),
            (0, 0, 85, 0),
            (u64::MAX, 0, 0, u64::MAX),
            (10, 20, 85, 0),
        ] {
            assert_eq!(excess(total, free, percent), beyond, "{total} {free} {percent}");
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first_and_what_is_fresh_stays() {
        let idle = |name: &str, used_ms| Idle { names: vec![name.to_owned()], used_ms };
        let all =
            vec![idle("new", 900_001), idle("b", 20), idle("old", 10), idle("a", 20), idle("due", 880_000)];
        let names: Vec<String> = order(all, 1_000_000).into_iter().flat_map(|i| i.names).collect();
        assert_eq!(names, ["old", "a", "b", "due"]);
    }
}
