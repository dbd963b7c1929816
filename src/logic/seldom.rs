//! What may be said once an interval: so that nobody fills the log by trying again and again.
//!
//! Owns: [`Seldom`]. Pure: the time is handed in. Bounded: while more than [`SUBJECTS`] are recent, further ones share one
//! line an interval.

use std::{collections::HashMap, hash::Hash};

/// Subjects that are remembered.
const SUBJECTS: usize = 1024;

/// Counts what is not said, by subject.
#[derive(Debug)]
pub struct Seldom<K> {
    interval_ms: i64,
    /// When it was last said, and what was not said since; under `None` for all that find no place.
    said: HashMap<Option<K>, (i64, u64)>,
}

impl<K: Eq + Hash + Clone> Seldom<K> {
    /// Says a thing once an interval.
    pub fn new(interval_ms: i64) -> Seldom<K> {
        Seldom { interval_ms, said: HashMap::new() }
    }

    /// Whether it is to be said now, and how often it was not since the last time.
    pub fn says(&mut self, subject: &K, now_ms: i64) -> Option<u64> {
        if self.said.len() >= SUBJECTS {
            let interval_ms = self.interval_ms;
            self.said.retain(|_, (at, _)| now_ms - *at < interval_ms);
        }
        let known = Some(subject.clone());
        let subject = if self.said.len() < SUBJECTS || self.said.contains_key(&known) { known } else { None };
        let (at, unsaid) = self.said.entry(subject).or_insert((i64::MIN, 0));
        if now_ms.saturating_sub(*at) < self.interval_ms {
            *unsaid += 1;
            return None;
        }
        *at = now_ms;
        Some(std::mem::take(unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_is_said_once_an_interval_with_the_count_of_what_was_not() {
        let mut seldom = Seldom::new(1000);
        assert_eq!(seldom.says(&"a", 0), Some(0));
        assert_eq!(seldom.says(&"a", 1), None);
        assert_eq!(seldom.says(&"a", 999), None);
        assert_eq!(seldom.says(&"b", 999), Some(0), "another is another");
        assert_eq!(seldom.says(&"a", 1000), Some(2));
    }

    #[test]
    fn a_flood_of_subjects_is_forgotten_in_time_and_takes_bounded_room() {
        let mut seldom = Seldom::new(1000);
        let said = (0..10_000).filter(|subject| seldom.says(subject, 0).is_some()).count();
        assert_eq!(said, SUBJECTS + 1, "those that found no place share one line");
        assert!(seldom.said.len() <= SUBJECTS + 1);
        assert_eq!(seldom.says(&20_000, 5000), Some(0));
        assert!(seldom.said.len() <= 2);
    }
}
