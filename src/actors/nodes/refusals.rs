//! What a node said of things that are not its own: refused, counted, and logged once an interval.
//!
//! Owns: [`Refusals`], one for each node's actor. Invariant: a node that keeps at it cannot fill the log.

use std::{sync::Once, time::Duration};

use metrics::{Unit, counter, describe_counter};
use tokio::time::Instant;

use crate::model::{Key, NodeName};

const REFUSED: &str = "troupe_node_reports_refused_total";
/// One log line a node in this time.
pub(super) const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// What a report was about, for the label.
#[derive(Clone, Copy)]
pub(super) enum Refused {
    /// The status of a pod.
    Pod,
    /// An event.
    Event,
    /// An image that the node says it has.
    Image,
}

impl Refused {
    fn label(self) -> &'static str {
        match self {
            Refused::Pod => "pod",
            Refused::Event => "event",
            Refused::Image => "image",
        }
    }
}

/// Counts a node's refused reports.
#[derive(Default)]
pub(super) struct Refusals {
    logged: Option<Instant>,
    /// Since the last log line.
    unlogged: u64,
}

impl Refusals {
    pub(super) fn note(&mut self, node: &NodeName, what: Refused, about: &Key) {
        static DESCRIBED: Once = Once::new();
        DESCRIBED.call_once(|| {
            describe_counter!(REFUSED, Unit::Count, "Reports of nodes on what is not their own");
        });
        counter!(REFUSED, "report" => what.label()).increment(1);
        self.unlogged += 1;
        if self.logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
            let count = std::mem::take(&mut self.unlogged);
            tracing::warn!(%node, %about, report = what.label(), count, "a node spoke of what is not its own");
            self.logged = Some(Instant::now());
        }
    }
}
