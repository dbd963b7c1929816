//! Whether this process itself stood still, and for how long others are to be waited for because of that.
//!
//! Owns: [`Pulse`], the self-check before a node is declared lost (after Lifeguard's local health, Dadgar and others,
//! 2018). A master that was stopped, or starved, wakes up to timers that have all run out, while what the nodes sent
//! meanwhile is unread, and they have hung up. Their silence is then its own fault: they get time to dial again.
//! Invariants: the pulse of a process that is in time changes nothing; however often it stands still, one silence is not
//! given more than twice the longest doubt. Limit: it reads a clock that stands still while the machine is suspended. Pure:
//! time is an argument.

use std::time::Duration;

/// How often the process looks at its own clock.
pub const PERIOD: Duration = Duration::from_millis(250);
/// So much later than that it was not in time. Half of the silence after which a node hangs up: until then all links live.
const LATE: Duration = Duration::from_millis(500);
/// Who stood still for so long, or longer, waits so long: the nodes give up a dial after five seconds, and pause for up to
/// one before the next.
const LONGEST: Duration = Duration::from_secs(7);

/// See the file's header. Times are those of one monotonic clock.
#[derive(Debug)]
pub struct Pulse {
    last: Duration,
    /// Until then silence proves nothing.
    doubt: Duration,
}

impl Pulse {
    /// The pulse of a process that begins now.
    pub fn new(now: Duration) -> Pulse {
        Pulse { last: now, doubt: Duration::ZERO }
    }

    /// Notes that the process runs; to be called each [`PERIOD`]. How long it stood still, when it did.
    pub fn beat(&mut self, now: Duration) -> Option<Duration> {
        let late = now.saturating_sub(self.last).saturating_sub(PERIOD);
        self.last = self.last.max(now);
        if late < LATE {
            return None;
        }
        // A dial that was begun meanwhile pauses about as long as it has lasted before it tries again.
        self.doubt = self.doubt.max(now + late.min(LONGEST));
        Some(late)
    }

    /// How much longer a node is to be waited for that has been silent for `lost_after` and was `given` so much more
    /// already; `None`: it is lost.
    pub fn patience(&mut self, lost_after: Duration, given: Duration, now: Duration) -> Option<Duration> {
        // The timer of this very question may have run out before that of the beat.
        self.beat(now);
        if self.doubt.is_zero() {
            return None;
        }
        let wait = (self.doubt + lost_after).checked_sub(now)?;
        let left = (lost_after + LONGEST * 2).saturating_sub(given);
        Some(wait.min(left)).filter(|wait| !wait.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A pulse that has been in time until then.
    fn in_time(until: u64) -> Pulse {
        let mut pulse = Pulse::new(ms(0));
        (0..=until).step_by(250).for_each(|now| assert_eq!(pulse.beat(ms(now)), None));
        pulse
    }

    #[test]
    fn silence_is_believed_while_the_process_is_in_time() {
        let mut pulse = in_time(60_000);
        assert_eq!(pulse.patience(ms(1_000), ms(0), ms(60_000)), None);
        // A busy moment is no standing still.
        assert_eq!(pulse.patience(ms(1_000), ms(0), ms(60_600)), None);
    }

    #[test]
    fn who_stood_still_waits_as_long_again_but_not_for_ever() {
        for (still_ms, waits_ms) in [(750, 500), (4_250, 4_000), (10_250, 7_000), (3_600_000, 7_000)] {
            let mut pulse = in_time(5_000);
            let woke = 5_000 + still_ms;
            // Whichever of the two timers comes first.
            for beats_first in [true, false] {
                if beats_first {
                    assert_eq!(pulse.beat(ms(woke)), Some(ms(still_ms - 250)));
                }
                let patience = pulse.patience(ms(1_000), ms(0), ms(woke));
                assert_eq!(patience, Some(ms(waits_ms + 1_000)), "{still_ms}");
            }
            // Silence that goes on is believed at last.
            for now in (woke..woke + waits_ms + 1_000).step_by(250) {
                pulse.beat(ms(now));
            }
            assert_eq!(pulse.patience(ms(1_000), ms(0), ms(woke + waits_ms + 999)), Some(ms(1)));
            assert_eq!(pulse.patience(ms(1_000), ms(0), ms(woke + waits_ms + 1_000)), None);
        }
    }

    #[test]
    fn who_stands_still_again_and_again_believes_silence_at_last() {
        let (mut pulse, mut given) = (in_time(5_000), ms(0));
        // It runs for a second and stands still for another, and so on.
        let (mut now, mut question) = (5_000, 8_000);
        let lost = loop {
            for _ in 0..4 {
                now += 250;
                pulse.beat(ms(now));
                if now < question {
                    continue;
                }
                match pulse.patience(ms(1_000), given, ms(now)) {
                    Some(longer) => (given, question) = (given + longer, now + longer.as_millis() as u64),
                    None => break,
                }
            }
            if now >= question && pulse.patience(ms(1_000), given, ms(now)).is_none() {
                break now;
            }
            now += 1_250;
            assert!(pulse.beat(ms(now)).is_some());
            assert!(now < 60_000, "it is waited for for ever");
        };
        assert!(given <= ms(1_000) + LONGEST * 2, "{given:?}");
        assert!(lost > 20_000, "it was given all that there is: {lost}");
    }

    #[test]
    fn a_clock_that_goes_back_is_no_standing_still() {
        let mut pulse = in_time(5_000);
        assert_eq!(pulse.beat(ms(1_000)), None);
        assert_eq!(pulse.beat(ms(5_250)), None);
    }
}
