//! Limits in the kernel's units: what Kubernetes' amounts mean to a cgroup, the same for every runtime.

use super::{ContainerResources, HugePageLimit, SandboxConfig};

const SHARES_PER_CORE: i64 = 1024;
/// The kernel's least and most.
const SHARES: std::ops::RangeInclusive<i64> = 2..=262_144;
/// The period that CPU quotas are for.
pub(super) const CPU_PERIOD_US: i64 = 100_000;
/// The kernel's least.
const CPU_QUOTA_MIN_US: i64 = 1_000;
/// Far more than servers have threads, and far from what makes a machine unusable.
pub(super) const DEFAULT_PIDS: i64 = 4096;

impl ContainerResources {
    /// The weight under contention: who asks for nothing gives way to everybody who did.
    pub(super) fn cpu_shares(&self) -> i64 {
        cpu_shares(self.cpu_request_milli)
    }

    /// The same weight on version 2.
    pub(super) fn cpu_weight(&self) -> i64 {
        cpu_weight(self.cpu_shares())
    }

    /// Microseconds of each [`CPU_PERIOD_US`], if there is a limit.
    pub(super) fn cpu_quota_us(&self) -> Option<i64> {
        let quota = self.cpu_limit_milli * CPU_PERIOD_US / 1000;
        (self.cpu_limit_milli > 0).then(|| quota.max(CPU_QUOTA_MIN_US))
    }
}

/// The weight of a request under contention.
pub(super) fn cpu_shares(milli: i64) -> i64 {
    (milli.max(0).saturating_mul(SHARES_PER_CORE) / 1000).clamp(*SHARES.start(), *SHARES.end())
}

/// The same on version 2, where it goes from 1 to 10,000. (Formula: Kubernetes' and runc's.)
pub(super) fn cpu_weight(shares: i64) -> i64 {
    1 + (shares.clamp(*SHARES.start(), *SHARES.end()) - SHARES.start()) * 9999
        / (SHARES.end() - SHARES.start())
}

impl HugePageLimit {
    /// The size as cgroups and the interfaces of runtimes write it: `2MB`.
    pub(super) fn size(&self) -> String {
        const UNITS: [&str; 3] = ["KB", "MB", "GB"];
        let (mut size, mut unit) = (self.page_bytes / 1024, 0);
        while size >= 1024 && size % 1024 == 0 && unit + 1 < UNITS.len() {
            (size, unit) = (size / 1024, unit + 1);
        }
        format!("{size}{}", UNITS.get(unit).copied().unwrap_or_default())
    }
}

impl SandboxConfig {
    /// Most processes and threads. The kernel cannot even start a program with one.
    pub(super) fn pids(&self) -> i64 {
        if self.pids_limit > 1 { self.pids_limit } else { DEFAULT_PIDS }
    }
}
