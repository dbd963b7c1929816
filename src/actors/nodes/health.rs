//! The master's own health, which the registry keeps and its nodes' actors ask.
//!
//! Owns: [`Health`], the clock around [`Pulse`] and [`Heard`]. It outlives the registry: while that is down no link is handed over, so
//! that then, too, silence is our own.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Unit, counter, describe_counter};
use tokio::time::Instant;

use super::{Links, sightings::Askers};
use crate::{
    logic::{
        pulse::Pulse,
        sightings::{Heard, order},
    },
    model::NodeName,
};

const STOOD_STILL: &str = "troupe_master_stood_still_total";

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Health {
    begun: Instant,
    pulse: Arc<Mutex<Pulse>>,
    heard: Arc<Mutex<Heard>>,
    /// Nodes that are being asked about others.
    pub(super) askers: Askers,
}

impl Health {
    pub(super) fn new() -> Health {
        describe_counter!(
            STOOD_STILL,
            Unit::Count,
            "Times that the master did not run for half a second or more."
        );
        let pulse = Arc::new(Mutex::new(Pulse::new(Duration::ZERO)));
        Health { begun: Instant::now(), pulse, heard: Arc::default(), askers: Askers::default() }
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

    /// Notes who has said anything, were it only that it is there.
    pub(super) fn look(&self, links: &Links) {
        let received = links.iter().map(|link| (link.key().clone(), link.stats().received_bytes));
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.look(received, self.begun.elapsed());
    }

    /// In which order others are asked about a silent node.
    pub(super) fn order(&self, silent: &NodeName, round: u32, others: Vec<NodeName>) -> Vec<NodeName> {
        let (heard, now) = (self.heard.lock().unwrap_or_else(PoisonError::into_inner), self.begun.elapsed());
        order(silent, round, others, |node| heard.lately(node, now))
    }
}
