//! Whether, and when, what has ended is started again: actors by their supervisor, containers by their pod.
//!
//! Owns: restart classes, restart intensity (both as in Erlang/OTP's `supervisor`) and backoff (as Kubernetes'
//! CrashLoopBackOff). One mechanism serves both, so `restartPolicy` Always, OnFailure and Never are [`Restart`]'s
//! Permanent, Transient and Temporary.
//! Invariants: no delay exceeds [`Backoff::cap`]; no window of [`Intensity::period`] sees more than
//! [`Intensity::max_restarts`] restarts. Leaves out: waiting, which is the caller's. Time is a [`Duration`] since any
//! origin the caller keeps to; randomness is a number in 0..1.

use std::{collections::VecDeque, time::Duration};

/// Which ends call for a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Restart {
    /// Any: what must always run (`restartPolicy: Always`).
    #[default]
    Permanent,
    /// Only failures: what may finish its work (`OnFailure`).
    Transient,
    /// None (`Never`).
    Temporary,
}

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By itself, with its work done.
    Normal,
    /// A panic, an error, a non-zero exit code.
    Failed,
}

/// How many restarts within which time are still recovery. One more is a fault that restarting does not heal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Intensity {
    /// So many restarts are allowed…
    pub max_restarts: u32,
    /// …within any span of this length.
    pub period: Duration,
}

impl Intensity {
    /// Never gives up: for what backoff alone keeps in check, like containers.
    pub const UNLIMITED: Intensity = Intensity { max_restarts: u32::MAX, period: Duration::ZERO };

    /// `max_restarts` within any `period`.
    pub const fn new(max_restarts: u32, period: Duration) -> Intensity {
        Intensity { max_restarts, period }
    }
}

/// How long to wait before a restart, growing with the restarts in a row.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Backoff {
    /// The first so many restarts in a row come at once: most faults are gone at the second try.
    pub immediate: u32,
    /// The first delay after those.
    pub initial: Duration,
    /// Each further delay is so many times the one before; 0 counts as 1.
    pub factor: u32,
    /// No delay is longer.
    pub cap: Duration,
    /// A run that lasted so long was healthy: the next failure is the first in a row again.
    pub reset_after: Duration,
    /// The share of a delay, 0 to 1, that chance may take away, so that many do not return in one instant.
    pub jitter: f64,
}

impl Backoff {
    /// For actors: at once, then 50 ms doubling to 10 s, a quarter of it random; forgotten after a good minute.
    pub const ACTOR: Backoff = Backoff {
        immediate: 1,
        initial: Duration::from_millis(50),
        factor: 2,
        cap: Duration::from_secs(10),
        reset_after: Duration::from_secs(60),
        jitter: 0.25,
    };

    /// For containers: Kubernetes' CrashLoopBackOff. At once, then 10 s doubling to 5 min; forgotten after a run of
    /// 10 min; no jitter.
    pub const CRASH_LOOP: Backoff = Backoff {
        immediate: 1,
        initial: Duration::from_secs(10),
        factor: 2,
        cap: Duration::from_secs(300),
        reset_after: Duration::from_secs(600),
        jitter: 0.0,
    };

    /// Restarts come at once, always.
    pub const NONE: Backoff = Backoff {
        immediate: u32::MAX,
        initial: Duration::ZERO,
        factor: 1,
        cap: Duration::ZERO,
        reset_after: Duration::ZERO,
        jitter: 0.0,
    };

    /// The delay before the next restart when `earlier` came before it in a row. `random` is in 0..1.
    pub fn delay(&self, earlier: u32, random: f64) -> Duration {
        if earlier < self.immediate {
            return Duration::ZERO;
        }
        let grown = self
            .factor
            .max(1)
            .checked_pow(earlier - self.immediate)
            .and_then(|times| self.initial.checked_mul(times))
            .unwrap_or(self.cap);
        let kept = 1.0 - unit(self.jitter) * unit(random);
        grown.min(self.cap).mul_f64(kept).min(self.cap)
    }
}

/// Any number, also NaN, to 0..=1.
fn unit(number: f64) -> f64 {
    if number > 0.0 { number.min(1.0) } else { 0.0 }
}

/// How one child is to be restarted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Policy {
    /// After which ends.
    pub restart: Restart,
    /// How often at most.
    pub intensity: Intensity,
    /// How soon.
    pub backoff: Backoff,
}

impl Policy {
    /// A container of a pod: the pod never gives up on it, it only waits longer and longer.
    pub const fn container(restart: Restart) -> Policy {
        Policy { restart, intensity: Intensity::UNLIMITED, backoff: Backoff::CRASH_LOOP }
    }
}

/// What one child's restarts so far weigh in the next decision. Bounded by [`Intensity::max_restarts`] entries.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Restarts within the last period, oldest first.
    recent: VecDeque<Duration>,
    /// Restarts since the last long run.
    in_a_row: u32,
    total: u64,
}

impl History {
    /// Restarts ever.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Restarts since the last run that was long enough to forget them.
    pub fn in_a_row(&self) -> u32 {
        self.in_a_row
    }

    /// Counts a restart at `now`, unless `intensity` forbids it; then nothing is counted and the answer is false.
    pub fn admit(&mut self, intensity: Intensity, now: Duration) -> bool {
        if intensity.max_restarts != Intensity::UNLIMITED.max_restarts {
            while self.recent.front().is_some_and(|&then| then + intensity.period <= now) {
                self.recent.pop_front();
            }
            if self.recent.len() >= intensity.max_restarts as usize {
                return false;
            }
            self.recent.push_back(now);
        }
        self.total += 1;
        true
    }
}

/// One run that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// When, since the caller's origin.
    pub at: Duration,
    /// How long it lasted.
    pub lasted: Duration,
}

/// What to do about an end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Start it again, so long after the end.
    RestartAfter(Duration),
    /// Leave it ended.
    Stop,
    /// Restarting does not help: whoever is above must act.
    Escalate,
}

/// Decides about one end, and remembers the restart in `history` if there is to be one. `random` is in 0..1.
pub fn decide(policy: &Policy, history: &mut History, run: Run, random: f64) -> Decision {
    match (policy.restart, run.end) {
        (Restart::Temporary, _) | (Restart::Transient, End::Normal) => return Decision::Stop,
        (Restart::Permanent, _) | (Restart::Transient, End::Failed) => {}
    }
    if run.lasted >= policy.backoff.reset_after {
        history.in_a_row = 0;
    }
    if !history.admit(policy.intensity, run.at) {
        return Decision::Escalate;
    }
    let delay = policy.backoff.delay(history.in_a_row, random);
    history.in_a_row = history.in_a_row.saturating_add(1);
    Decision::RestartAfter(delay)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn secs(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn failed(at: u64, lasted: u64) -> Run {
        Run { end: End::Failed, at: secs(at), lasted: secs(lasted) }
    }

    #[test]
    fn each_restart_class_answers_each_end() {
        let again = Decision::RestartAfter(Duration::ZERO);
        for (restart, end, expected) in [
            (Restart::Permanent, End::Normal, again),
            (Restart::Permanent, End::Failed, again),
            (Restart::Transient, End::Normal, Decision::Stop),
            (Restart::Transient, End::Failed, again),
            (Restart::Temporary, End::Normal, Decision::Stop),
            (Restart::Temporary, End::Failed, Decision::Stop),
        ] {
            let policy = Policy { restart, intensity: Intensity::new(3, secs(5)), backoff: Backoff::NONE };
            let run = Run { end, at: secs(1), lasted: secs(1) };
            let decision = decide(&policy, &mut History::default(), run, 0.5);
            assert_eq!(decision, expected, "{restart:?} {end:?}");
        }
    }

    #[test]
    fn a_crash_looping_container_waits_as_in_kubernetes() {
        let policy = Policy::container(Restart::Permanent);
        let mut history = History::default();
        for expected in [0, 10, 20, 40, 80, 160, 300, 300] {
            let decision = decide(&policy, &mut history, failed(1, 599), 0.9);
            assert_eq!(decision, Decision::RestartAfter(secs(expected)));
        }
        let after_ten_minutes = decide(&policy, &mut history, failed(1, 600), 0.9);
        assert_eq!(after_ten_minutes, Decision::RestartAfter(Duration::ZERO));
        assert_eq!(history.total(), 9);
    }

    #[test]
    fn one_restart_more_than_the_intensity_allows_escalates_until_the_window_has_passed() {
        let policy = Policy {
            restart: Restart::Permanent,
            intensity: Intensity::new(2, secs(10)),
            backoff: Backoff::NONE,
        };
        let mut history = History::default();
        let again = Decision::RestartAfter(Duration::ZERO);
        for (at, expected) in [(0, again), (5, again), (9, Decision::Escalate), (10, again), (15, again)] {
            assert_eq!(decide(&policy, &mut history, failed(at, 0), 0.0), expected, "at {at} s");
        }
    }

    #[test]
    fn no_restart_is_allowed_by_an_intensity_of_zero() {
        let policy = Policy {
            restart: Restart::Permanent,
            intensity: Intensity::new(0, secs(10)),
            backoff: Backoff::ACTOR,
        };
        assert_eq!(decide(&policy, &mut History::default(), failed(0, 0), 0.0), Decision::Escalate);
    }

    #[test]
    fn jitter_only_shortens_and_by_no_more_than_its_share() {
        let backoff = Backoff { immediate: 0, jitter: 0.5, ..Backoff::CRASH_LOOP };
        for (random, expected) in [(0.0, 10.0), (0.5, 7.5), (1.0, 5.0), (f64::NAN, 10.0), (-3.0, 10.0)] {
            assert_eq!(backoff.delay(0, random), Duration::from_secs_f64(expected), "random {random}");
        }
    }

    fn backoffs() -> impl Strategy<Value = Backoff> {
        (0..3u32, 0..100_000u64, 0..5u32, 0..1_000_000u64, -0.5..2.0f64).prop_map(
            |(immediate, initial, factor, cap, jitter)| Backoff {
                immediate,
                initial: Duration::from_millis(initial),
                factor,
                cap: Duration::from_millis(cap),
                reset_after: secs(60),
                jitter,
            },
        )
    }

    proptest! {
        #[test]
        fn no_delay_is_beyond_the_cap(backoff in backoffs(), earlier: u32, random: f64) {
            prop_assert!(backoff.delay(earlier, random) <= backoff.cap);
        }

        #[test]
        fn delays_never_shrink_without_jitter(backoff in backoffs(), earlier in 0..u32::MAX, random: f64) {
            let backoff = Backoff { jitter: 0.0, ..backoff };
            prop_assert!(backoff.delay(earlier, random) <= backoff.delay(earlier + 1, random));
        }

        #[test]
        fn jitter_takes_at_most_its_share(backoff in backoffs(), earlier in 0..40u32, random in 0.0..1.0f64) {
            let full = Backoff { jitter: 0.0, ..backoff }.delay(earlier, random);
            let least = full.mul_f64(1.0 - backoff.jitter.clamp(0.0, 1.0));
            let delay = backoff.delay(earlier, random);
            prop_assert!(delay <= full);
            prop_assert!(delay + Duration::from_nanos(2) >= least);
        }

        #[test]
        fn no_window_sees_more_restarts_than_the_intensity_allows(
            max_restarts in 0..6u32,
            period in 1..30u64,
            gaps in proptest::collection::vec(0..10u64, 0..60),
        ) {
            let policy = Policy {
                restart: Restart::Permanent,
                intensity: Intensity::new(max_restarts, secs(period)),
                backoff: Backoff::ACTOR,
            };
            let mut history = History::default();
            let (mut now, mut restarts) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                if decide(&policy, &mut history, failed(now, gap), 0.3) != Decision::Escalate {
                    restarts.push(now);
                }
                prop_assert!(history.recent.len() <= max_restarts as usize);
            }
            for &start in &restarts {
                let within = restarts.iter().filter(|&&at| (start..start + period).contains(&at)).count();
                prop_assert!(within <= max_restarts as usize);
            }
        }

        #[test]
        fn a_long_run_always_makes_the_next_restart_as_fast_as_the_first(
            backoff in backoffs(), crashes in 0..50u64, random in 0.0..1.0f64,
        ) {
            let policy =
                Policy { restart: Restart::Transient, intensity: Intensity::UNLIMITED, backoff };
            let mut history = History::default();
            let first = decide(&policy, &mut history, failed(0, 0), random);
            for at in 0..crashes {
                decide(&policy, &mut history, failed(at, 0), random);
            }
            prop_assert_eq!(decide(&policy, &mut history, failed(crashes, 60), random), first);
        }
    }
}
