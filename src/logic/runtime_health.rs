//! Whether a node's runtime is believed to be away: its engine was ended, or hangs.
//!
//! Owns: [`RuntimeHealth`], made from what the runtime answers each [`PERIOD`]. Invariants: a hiccup, as when an engine is
//! replaced, is no fault; one answer ends a fault. Kubernetes' kubelet waits 30 seconds. Pure: time is an argument.

use std::time::Duration;

/// How often a runtime is asked.
pub const PERIOD: Duration = Duration::from_secs(2);
/// An answer that takes longer is none: this one looks at nothing, so that even a busy engine has it at once.
pub const ANSWER: Duration = Duration::from_secs(2);
/// A runtime that has not answered for so long, nor a second question, is away. To be replaced takes an engine a second or
/// two.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// See the file's header. Times are those of one monotonic clock.
#[derive(Debug, Default)]
pub struct RuntimeHealth {
    /// When it was asked first what it did not answer, and its latest error.
    failing: Option<(Duration, String)>,
    /// That is a fault.
    is_away: bool,
}

impl RuntimeHealth {
    /// Notes what came of a question that was asked then. Whether that changes what [`RuntimeHealth::fault`] says.
    pub fn note(&mut self, outcome: Result<(), String>, asked: Duration, now: Duration) -> bool {
        let Err(error) = outcome else {
            self.failing = None;
            return std::mem::take(&mut self.is_away);
        };
        let since = self.failing.as_ref().map_or(asked, |(since, _)| *since);
        let is_away = self.failing.is_some() && now.saturating_sub(since) >= PATIENCE;
        let was_away = std::mem::replace(&mut self.is_away, is_away);
        let before = self.failing.replace((since, error));
        self.is_away && (!was_away || before != self.failing)
    }

    /// Why the node can run no pods now.
    pub fn fault(&self) -> Option<&str> {
        self.failing.as_ref().filter(|_| self.is_away).map(|(_, error)| error.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_runtime_is_away_when_it_has_not_answered_for_a_while_and_back_with_one_answer() {
        let mut health = RuntimeHealth::default();
        let no = |text: &str| Err(text.to_owned());
        // When, what it answers, whether that changes something, and what is the fault then.
        for (second, outcome, changed, fault) in [
            (0, Ok(()), false, None),
            (2, no("refused"), false, None),
            (4, no("refused"), false, None),
            (6, Ok(()), false, None),
            (8, no("refused"), false, None),
            (12, no("refused"), false, None),
            (13, no("refused"), true, Some("refused")),
            (15, no("refused"), false, Some("refused")),
            (17, no("no such file"), true, Some("no such file")),
            (19, Ok(()), true, None),
            (21, Ok(()), false, None),
            (23, no("refused"), false, None),
        ] {
            assert_eq!(health.note(outcome, at(second), at(second)), changed, "at {second}");
            assert_eq!(health.fault(), fault, "at {second}");
        }
    }

    #[test]
    fn one_that_hangs_is_away_since_it_was_asked_but_not_for_one_slow_answer() {
        let mut health = RuntimeHealth::default();
        let none = || Err("no answer".to_owned());
        assert!(!health.note(none(), at(10), at(10) + PATIENCE * 2), "one question proves nothing");
        assert!(!health.note(Ok(()), at(21), at(21)));
        let again = at(30) + ANSWER + PERIOD;
        assert!(!health.note(none(), at(30), at(30) + ANSWER));
        assert!(health.note(none(), again, again + ANSWER));
        assert!(health.fault().is_some());
    }
}
