//! What pods and containers use.
//!
//! Owns: the figures that a runtime reads off its machine. Invariant: what cannot be told is `None`, never a guess.

use serde::{Deserialize, Serialize};

use super::ContainerId;
use crate::model::Uid;

/// What a pod uses. `None`: the runtime cannot tell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxStats {
    /// The pod's uid.
    pub uid: Uid,
    /// All of its containers and the sandbox itself.
    pub total: Usage,
    /// Bytes received and sent since the sandbox was made; `None` with the node's network.
    pub network: Option<(u64, u64)>,
    /// Its running containers.
    pub containers: Vec<(ContainerId, Usage)>,
}

/// What a container uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Nanoseconds of processor time since it started.
    pub cpu_ns: Option<u64>,
    /// Bytes of memory that cannot be reclaimed without its noticing (usage less inactive file cache).
    pub working_set_bytes: Option<u64>,
    /// Bytes of memory in all.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that are no file's.
    pub rss_bytes: Option<u64>,
    /// Bytes read from and written to disks since it started.
    pub io_bytes: Option<(u64, u64)>,
    /// How often it read from and wrote to them.
    pub io_operations: Option<(u64, u64)>,
    /// Bytes of its writable layer.
    pub writable_bytes: Option<u64>,
    /// Files and directories in it.
    pub writable_inodes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Usage {
    /// What both have used; what only one is known to have is that.
    pub fn plus(&self, other: &Usage) -> Usage {
        let sum = |a: Option<u64>, b: Option<u64>| match (a, b) {
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
            (a, b) => a.or(b),
        };
        let both = |a: Option<(u64, u64)>, b: Option<(u64, u64)>| match (a, b) {
            (Some(a), Some(b)) => Some((a.0.saturating_add(b.0), a.1.saturating_add(b.1))),
            (a, b) => a.or(b),
        };
        Usage {
            cpu_ns: sum(self.cpu_ns, other.cpu_ns),
            working_set_bytes: sum(self.working_set_bytes, other.working_set_bytes),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
            rss_bytes: sum(self.rss_bytes, other.rss_bytes),
            io_bytes: both(self.io_bytes, other.io_bytes),
            io_operations: both(self.io_operations, other.io_operations),
            writable_bytes: sum(self.writable_bytes, other.writable_bytes),
            writable_inodes: sum(self.writable_inodes, other.writable_inodes),
            pids: sum(self.pids, other.pids),
        }
    }
}

impl Usage {
    /// The same with these counters.
    pub fn counted(self, counters: Usage) -> Usage {
        let Usage { cpu_ns, io_bytes, io_operations, .. } = counters;
        Usage { cpu_ns, io_bytes, io_operations, ..self }
    }
}

/// Network devices and the bytes that each received and sent, as `/proc/net/dev` has them: lines
/// `  eth0: 90 1 0 0 0 0 0 0 70 …`, received bytes first, sent ones ninth.
pub fn devices(text: &str) -> impl Iterator<Item = (&str, (u64, u64))> {
    text.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let mut numbers = numbers.split_whitespace().map_while(|number| number.parse::<u64>().ok());
        Some((name.trim(), (numbers.next()?, numbers.nth(7)?)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_with_what_they_received_and_sent() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets\n\
                    lo: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n\
                    \x20 eth0:  90 2 0 0 0 0 0 0 70 3 0 0 0 0 0 0\nnet1: 5\n";
        assert_eq!(devices(text).collect::<Vec<_>>(), [("lo", (5, 6)), ("eth0", (90, 70))]);
    }
}
