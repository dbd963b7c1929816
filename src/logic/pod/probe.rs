//! When a container's probes run, and what their outcomes mean.
//!
//! Owns: delays, periods, thresholds, and the gate that a startup probe is for the others. One [`Probes`] belongs to one
//! life of a container. Invariants: a probe runs once at a time; after a failed liveness or startup probe has spoken
//! nothing of that kind runs again in this life; an outcome without meaning (the probe itself failed) changes nothing.
//! Leaves out: running them, and ending a container that failed. Rules: Kubernetes' prober.

use k8s_openapi::api::core::v1;

/// What a probe is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeKind {
    /// Whether the program has started: until then the others wait.
    Startup,
    /// Whether it is alive: else it is started again.
    Liveness,
    /// Whether it can serve.
    Readiness,
}

impl ProbeKind {
    /// As events name it.
    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &v1::Container) -> Option<&v1::Probe> {
        match self {
            ProbeKind::Startup => container.startup_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

/// What came of running a probe once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// All is well.
    Success,
    /// It counts as success, but someone should look.
    Warning(String),
    /// It is not.
    Failure(String),
    /// The probe could not be run: nothing is known.
    Error(String),
}

/// A container's probes, in one life of it. Without any, a container has started and is ready while it runs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Probes(Vec<Check>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Check {
    kind: ProbeKind,
    period_ms: i64,
    successes: u32,
    failures: u32,
    /// When to run it next; milliseconds since the epoch.
    next_ms: i64,
    /// It is never further off than this, unless the clock was set back.
    longest_ms: i64,
    under_way: bool,
    /// The last outcome, and how many like it there were in a row.
    last: Option<bool>,
    run: u32,
    /// What is taken for true.
    verdict: Option<bool>,
}

impl Probes {
    /// Those of a life that has just begun. The first runs come right after the initial delay, but for liveness, which
    /// nobody waits for: those are spread over a period, by the life's id.
    pub fn begin(container: &v1::Container, id: &str, started_ms: i64) -> Probes {
        Probes::new(container, started_ms, |kind, period_ms| match kind {
            ProbeKind::Liveness => share(id, kind, period_ms),
            ProbeKind::Startup | ProbeKind::Readiness => 0,
        })
    }

    /// Those of a life that an earlier kubelet began and of which it last told whether it had started and was ready: that
    /// holds until a probe says otherwise. First runs are spread over a period, since all of a node's pods come at once.
    pub fn resume(
        container: &v1::Container,
        id: &str,
        started_ms: i64,
        now_ms: i64,
        (started, ready): (bool, bool),
    ) -> Probes {
        let mut probes = Probes::new(container, started_ms, |kind, period_ms| share(id, kind, period_ms));
        for check in &mut probes.0 {
            check.next_ms = check.next_ms.max(now_ms + share(id, check.kind, check.period_ms));
            check.verdict = match check.kind {
                ProbeKind::Startup => started.then_some(true),
                ProbeKind::Readiness => ready.then_some(true),
                ProbeKind::Liveness => None,
            };
        }
        probes
    }

    fn new(container: &v1::Container, started_ms: i64, offset: impl Fn(ProbeKind, i64) -> i64) -> Probes {
        let count = |n: Option<i32>, default| u32::try_from(n.unwrap_or(default)).unwrap_or(0).max(1);
        let checks = KINDS.into_iter().filter_map(|kind| {
            let probe = kind.of(container)?;
            let period_ms = i64::from(count(probe.period_seconds, 10)) * 1000;
            let delay_ms = i64::from(probe.initial_delay_seconds.unwrap_or(0).max(0)) * 1000;
            Some(Check {
                kind,
                period_ms,
                successes: count(probe.success_threshold, 1),
                failures: count(probe.failure_threshold, 3),
                next_ms: started_ms + delay_ms + offset(kind, period_ms),
                longest_ms: delay_ms + period_ms,
                under_way: false,
                last: None,
                run: 0,
                verdict: None,
            })
        });
        Probes(checks.collect())
    }

    /// Whether its startup probe, if it has one, has succeeded.
    pub fn started(&self) -> bool {
        self.verdict(ProbeKind::Startup).is_none_or(|verdict| verdict == Some(true))
    }

    /// Whether it can serve.
    pub fn ready(&self) -> bool {
        self.started() && self.verdict(ProbeKind::Readiness).is_none_or(|verdict| verdict == Some(true))
    }

    fn verdict(&self, kind: ProbeKind) -> Option<Option<bool>> {
        self.0.iter().find(|check| check.kind == kind).map(|check| check.verdict)
    }

    /// The probes to run now, which are under way from then on, and when to ask again. One that is to end is only asked
    /// whether it is ready.
    pub fn due(&mut self, now_ms: i64, ending: bool) -> (Vec<ProbeKind>, Option<i64>) {
        let started = self.started();
        let (mut due, mut next) = (Vec::new(), None::<i64>);
        for check in &mut self.0 {
            let gated = (check.kind == ProbeKind::Startup) == started;
            let over = check.kind != ProbeKind::Readiness && (ending || check.verdict == Some(false));
            if check.under_way || gated || over {
                continue;
            }
            check.next_ms = check.next_ms.min(now_ms + check.longest_ms);
            if check.next_ms <= now_ms {
                check.under_way = true;
                check.next_ms = now_ms + check.period_ms;
                due.push(check.kind);
            } else {
                next = Some(next.map_or(check.next_ms, |at| at.min(check.next_ms)));
            }
        }
        (due, next)
    }

    /// What came of a run: whether it was a success, if that is known. Returns whether the container has now failed.
    pub fn outcome(&mut self, kind: ProbeKind, success: Option<bool>) -> bool {
        let Some(check) = self.0.iter_mut().find(|check| check.kind == kind) else { return false };
        check.under_way = false;
        let Some(success) = success else { return false };
        check.run = if check.last == Some(success) { check.run.saturating_add(1) } else { 1 };
        check.last = Some(success);
        let threshold = if success { check.successes } else { check.failures };
        if check.run < threshold {
            return false;
        }
        let before = check.verdict.replace(success);
        !success && before != Some(false) && kind != ProbeKind::Readiness
    }
}

/// A part of a period that is the same for the same life and kind, and spread evenly over many (FNV-1a).
fn share(id: &str, kind: ProbeKind, period_ms: i64) -> i64 {
    let hash = id.bytes().chain([kind as u8]).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    i64::try_from((hash >> 20) % period_ms.unsigned_abs().max(1)).unwrap_or(0)
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
