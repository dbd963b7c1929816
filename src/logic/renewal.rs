//! When a certificate is to be replaced.
//!
//! Owns: the one rule for nodes' certificates and the master's own: when a third of the life is left, long before the end; when
//! somebody is to be told that nobody has replaced one ([`ends_soon`]); and
//! what a master does beside about a clock that was set back. Nodes do not: their certificates are made by the master's
//! clock, so asking for another is no help where the node's own clock is behind.

use std::{ops::RangeInclusive, time::Duration};

/// A certificate's end is looked at at most so often, and at least: a clock that is set takes effect within that time.
pub const LOOK_EVERY: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);
/// A node whose clock is far ahead takes every certificate for an old one; it asks for another once in so long.
const PAUSE_AT_MOST: Duration = Duration::from_secs(3600);
/// The part of its life after which it is replaced.
const RENEW_AT: (i64, i64) = (2, 3);
/// Time enough for a person to see to it.
const SOON_S: i64 = 90 * 86_400;
/// The part of its life that is left then at most: what renews itself has done so long before.
const SOON_PART: i64 = 5;

/// Begin and end of a life, in seconds since the epoch, out of a certificate's span. Certificates begin before they were
/// made; this much of their span is not life.
pub fn life((begin, end): (i64, i64), backdated: Duration) -> (i64, i64) {
    let backdated = i64::try_from(backdated.as_secs()).unwrap_or(0);
    (begin.saturating_add(backdated).min(end), end)
}

/// Whether it is time.
pub fn due((begin, end): (i64, i64), now: i64) -> bool {
    now >= begin.saturating_add((end - begin).saturating_mul(RENEW_AT.0) / RENEW_AT.1)
}

/// Whether it is time for the master's own, out of a certificate's span: also when it has not begun, because it was made by
/// a clock that has been set back since.
pub fn due_here(span: (i64, i64), backdated: Duration, now: i64) -> bool {
    now < span.0 || due(life(span, backdated), now)
}

/// Whether the end is so near that a person has to see to it, because it is not renewed, or that has failed for long.
pub fn ends_soon((begin, end): (i64, i64), now: i64) -> bool {
    let part = end.saturating_sub(begin).max(0) / SOON_PART;
    end.saturating_sub(now) < SOON_S.min(part)
}

/// How often to look: some twenty times in a life, and once a minute at least.
pub fn look_every(life: (i64, i64)) -> Duration {
    pause(life).min(*LOOK_EVERY.end())
}

/// How long a new certificate is kept whatever the clock says: a twentieth of a life.
pub fn pause((begin, end): (i64, i64)) -> Duration {
    let life = u64::try_from(end.saturating_sub(begin)).unwrap_or(0);
    Duration::from_secs(life / 20).clamp(*LOOK_EVERY.start(), PAUSE_AT_MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_when_a_third_of_its_life_is_left() {
        for (now, due_then) in [(0, false), (100, false), (165, false), (166, true), (199, true), (300, true)]
        {
            assert_eq!(due((100, 200), now), due_then, "{now}");
        }
        assert!(due((0, 0), 0));
        let hour = Duration::from_secs(3600);
        assert_eq!(life((0, 5000), hour), (3600, 5000));
        assert_eq!(life((0, 60), hour), (60, 60), "over before it begins");
    }

    #[test]
    fn a_master_whose_clock_was_set_takes_a_new_certificate_in_either_direction() {
        const YEAR: i64 = 365 * 86_400;
        let day = Duration::from_secs(86_400);
        let made_at = |now: i64| (now - 86_400, now + YEAR);
        let now = 1_700_000_000;
        assert!(!due_here(made_at(now), day, now));
        assert!(!due_here(made_at(now), day, now - 3600), "it begins a day before it was made");
        assert!(due_here(made_at(now), day, now - 86_401));
        assert!(due_here(made_at(now), day, now + YEAR), "it is over");
        // What is made then is good until the clock is set again.
        assert!(!due_here(made_at(now + YEAR), day, now + YEAR));
        assert!(due_here(made_at(now + YEAR), day, now));
        assert_eq!(pause((now, now + YEAR)), Duration::from_secs(3600));
    }

    #[test]
    fn an_end_is_told_of_in_time_and_not_while_renewal_is_still_to_come() {
        const DAY: i64 = 86_400;
        for (life, left, soon) in [
            (3650, 91, false),
            (3650, 89, true),
            (3650, -1, true),
            // A year: renewed with four months left, so two months left are a fault.
            (365, 100, false),
            (365, 74, false),
            (365, 72, true),
        ] {
            assert_eq!(ends_soon((0, life * DAY), (life - left) * DAY), soon, "{left} of {life}");
        }
        for now in 0..200 {
            assert!(!ends_soon((0, 300), now), "not before it is due: {now}");
        }
        assert!(ends_soon((5, 0), 1), "nonsense is told of");
    }

    #[test]
    fn it_is_looked_at_often_enough_and_no_oftener() {
        for (life_s, every_s) in [(0, 1), (12, 1), (400, 20), (365 * 86_400, 60), (-5, 1)] {
            assert_eq!(look_every((1000, 1000 + life_s)), Duration::from_secs(every_s), "{life_s}");
        }
    }
}
