//! What pods and nodes use, as the metrics API tells it.
//!
//! Owns: the metrics server's arithmetic. Processor time is a counter, so what is used is the difference of two readings
//! over the time between them; memory is the working set of the latest. Who has not been read twice is left out, unless it
//! started so lately that its start counts as the first reading. Pure; readings are handed in, oldest first.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// How often a node reads: the metrics server's own resolution.
pub const PERIOD_MS: i64 = 15_000;
/// A window should be at least as long: over a shorter one the rate is noise.
const WINDOW_MS: i64 = 10_000;
/// A shorter one than this tells nothing.
const LEAST_WINDOW_MS: i64 = 1_000;
/// Who started no longer ago than this counts from its start.
const FRESH_MS: i64 = 60_000;
/// Readings are kept for so long.
const KEPT_MS: i64 = 60_000;
/// And so many at most: somebody may ask every second.
const KEPT: usize = 8;

/// What counters and gauges said. `None`: not to be had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Nanoseconds of processor time.
    pub cpu_ns: Option<u64>,
    /// Bytes of memory that are not easily given back.
    pub memory_bytes: Option<u64>,
}

/// One container, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerReading {
    /// Tells its lives apart.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    /// What was read.
    pub counters: Counters,
}

/// One pod, read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReading {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its running containers.
    pub containers: Vec<ContainerReading>,
}

/// A node and everything on it, read once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Milliseconds since the epoch.
    pub at_ms: i64,
    /// The whole machine.
    pub machine: Counters,
    /// Its pods.
    pub pods: Vec<PodReading>,
}

/// What is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// When the window ended, milliseconds since the epoch.
    pub at_ms: i64,
    /// How long it was.
    pub window_ms: i64,
    /// Billionths of a core, on average.
    pub cpu_nano: u64,
    /// Bytes at its end.
    pub memory_bytes: u64,
}

/// What a pod's containers use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodUsage {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// By container.
    pub containers: Vec<(String, Rate)>,
}

/// What a node and its pods use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeUsage {
    /// The machine; `None` before there is a second reading.
    pub machine: Option<Rate>,
    /// Pods of which all running containers are known.
    pub pods: Vec<PodUsage>,
}

/// The readings of the recent past.
#[derive(Clone, Debug, Default)]
pub struct Readings(VecDeque<Reading>);

impl Readings {
    /// Adds the latest.
    pub fn add(&mut self, reading: Reading) {
        while self.0.len() >= KEPT || self.0.front().is_some_and(|old| old.at_ms < reading.at_ms - KEPT_MS) {
            // Not the oldest, when many come at once: windows are to be long.
            let at = if self.0.len() >= KEPT { self.0.len() - 1 } else { 0 };
            self.0.remove(at);
        }
        self.0.push_back(reading);
    }

    /// When the latest was taken.
    pub fn latest_ms(&self) -> Option<i64> {
        self.0.back().map(|reading| reading.at_ms)
    }

    /// What is used now.
    pub fn usage(&self) -> NodeUsage {
        let Some(latest) = self.0.back() else { return NodeUsage::default() };
        let earlier = |of: &dyn Fn(&Reading) -> Option<u64>| -> Vec<(i64, u64)> {
            let before = self.0.iter().take(self.0.len() - 1);
            before.filter_map(|reading| Some((reading.at_ms, of(reading)?))).collect()
        };
        let machine = rate(latest.at_ms, latest.machine, earlier(&|reading| reading.machine.cpu_ns));
        let pods = latest.pods.iter().filter_map(|pod| {
            let containers: Option<Vec<(String, Rate)>> = pod
                .containers
                .iter()
                .map(|container| {
                    let mut before = earlier(&|reading| reading.cpu_of(&container.id));
                    if latest.at_ms - container.started_ms <= FRESH_MS {
                        before.insert(0, (container.started_ms, 0));
                    }
                    Some((container.name.clone(), rate(latest.at_ms, container.counters, before)?))
                })
                .collect();
            let containers = containers.filter(|containers| !containers.is_empty())?;
            Some(PodUsage { namespace: pod.namespace.clone(), name: pod.name.clone(), containers })
        });
        NodeUsage { machine, pods: pods.collect() }
    }
}

impl Reading {
    fn cpu_of(&self, id: &str) -> Option<u64> {
        let mut containers = self.pods.iter().flat_map(|pod| &pod.containers);
        containers.find(|container| container.id == id)?.counters.cpu_ns
    }
}

/// The rate since the best of the earlier readings, which are in order.
fn rate(at_ms: i64, now: Counters, earlier: Vec<(i64, u64)>) -> Option<Rate> {
    let (cpu_ns, memory_bytes) = (now.cpu_ns?, now.memory_bytes?);
    let long = earlier.iter().rev().find(|(then, _)| at_ms - then >= WINDOW_MS);
    let (then, before) = long.or_else(|| earlier.first())?;
    let window_ms = at_ms - then;
    if window_ms < LEAST_WINDOW_MS {
        return None;
    }
    let used = u128::from(cpu_ns.checked_sub(*before)?);
    // Nanoseconds a millisecond, times 1000, are billionths of a core.
    let cpu_nano = u64::try_from(used * 1000 / u128::try_from(window_ms).ok()?).ok()?;
    Some(Rate { at_ms, window_ms, cpu_nano, memory_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at_ms: i64, containers: &[(&str, i64, u64)]) -> Reading {
        let containers = containers.iter().map(|(id, started_ms, cpu_ms)| ContainerReading {
            id: (*id).into(),
            name: id.trim_end_matches(char::is_numeric).into(),
            started_ms: *started_ms,
            counters: Counters { cpu_ns: Some(cpu_ms * 1_000_000), memory_bytes: Some(7) },
        });
        let pod = PodReading { namespace: "n".into(), name: "p".into(), containers: containers.collect() };
        let machine = Counters { cpu_ns: Some(at_ms as u64 * 500_000), memory_bytes: Some(9) };
        Reading { at_ms, machine, pods: vec![pod] }
    }

    fn usage(readings: &[Reading]) -> NodeUsage {
        let mut all = Readings::default();
        readings.iter().for_each(|reading| all.add(reading.clone()));
        all.usage()
    }

    #[test]
    fn the_processor_is_a_rate_between_two_readings_and_memory_that_of_the_last() {
        let told = usage(&[reading(100_000, &[("a", 0, 1_000)]), reading(115_000, &[("a", 0, 4_000)])]);
        let rate = Rate { at_ms: 115_000, window_ms: 15_000, cpu_nano: 200_000_000, memory_bytes: 7 };
        assert_eq!(told.pods[0].containers, [("a".to_owned(), rate)]);
        assert_eq!(told.machine.unwrap().cpu_nano, 500_000_000);
        // The window is a long one, however often somebody asks.
        let told = usage(&[
            reading(100_000, &[("a", 0, 0)]),
            reading(115_000, &[("a", 0, 15_000)]),
            reading(116_000, &[("a", 0, 15_000)]),
        ]);
        assert_eq!(told.pods[0].containers[0].1.window_ms, 16_000);
    }

    #[test]
    fn who_was_read_once_is_left_out_unless_it_is_fresh() {
        assert_eq!(usage(&[]), NodeUsage::default());
        let told = usage(&[reading(100_000, &[("a", 0, 5)])]);
        assert_eq!((told.machine, told.pods), (None, vec![]));
        let told = usage(&[reading(100_000, &[("a", 98_000, 1_000)])]);
        assert_eq!(told.pods[0].containers[0].1.cpu_nano, 500_000_000);
        assert!(usage(&[reading(100_000, &[("a", 99_500, 100)])]).pods.is_empty(), "too short a time");
        // A life before is another counter, and a pod of which something is missing is left out.
        let told = usage(&[
            reading(100_000, &[("a1", 0, 9_000), ("b", 0, 0)]),
            reading(115_000, &[("a2", 110_000, 500), ("b", 0, 0)]),
        ]);
        assert_eq!(told.pods[0].containers[0].1.cpu_nano, 100_000_000);
        let lost = usage(&[reading(100_000, &[("b", 0, 0)]), reading(115_000, &[("a", 0, 5), ("b", 0, 0)])]);
        assert!(lost.pods.is_empty());
    }

    #[test]
    fn many_questions_do_not_push_out_the_past() {
        let mut all = Readings::default();
        for at in 0..200 {
            all.add(reading(100_000 + at * 500, &[("a", 0, 0)]));
        }
        assert!(all.0.len() <= KEPT && all.usage().pods[0].containers[0].1.window_ms >= WINDOW_MS);
    }
}
