//! The master's own health, which the registry keeps and its nodes' actors ask.
//!
//! Owns: [`Health`], the clock around [`Pulse`]. It outlives the registry: while that is down no link is handed over, so
//! that then, too, silence is our own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Unit, counter, describe_counter};
use tokio::time::Instant;

use super::sightings::Askers;
use crate::logic::pulse::Pulse;

const STOOD_STILL: &str = "troupe_master_stood_still_total";

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Health {
    begun: Instant,
    pulse: Arc<Mutex<Pulse>>,
    /// Nodes that are being asked about others.
    pub(super) askers: Askers,
}

impl Health {
    pub(super) fn new() -> Health {
        describe_counter!(
            STOOD_STILL,
            Unit::Count,
            "Times that the master did not run for half a second or more"
        );
        let pulse = Arc::new(Mutex::new(Pulse::new(Duration::ZERO)));
        Health { begun: Instant::now(), pulse, askers: Askers::default() }
    }

    /// The process runs.
    pub(super) fn beat(&self) {
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(late) = pulse.beat(self.begun.elapsed()) {
            counter!(STOOD_STILL).increment(1);
            tracing::warn!(
                late_ms = late.as_millis(),
                "this process stood still: silent nodes get more time"
            );
        }
    }

    /// How much longer a node is to be waited for that has been silent for `lost_after` and was `given` so much more
    /// already; `None`: it is lost.
    pub(super) fn patience(&self, lost_after: Duration, given: Duration) -> Option<Duration> {
        self.beat();
        let mut pulse = self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        pulse.patience(lost_after, given, self.begun.elapsed())
    }
}
