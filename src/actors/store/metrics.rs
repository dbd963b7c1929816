//! What the store counts.
//!
//! Owns: the names, units and help texts of its metrics. Labels come from closed sets.

use std::{sync::Once, time::Duration};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use crate::{messages::CommitError, store::Force};

const COMMITS: &str = "troupe_store_commits_total";
const BATCH_WRITES: &str = "troupe_store_batch_writes";
const APPEND_SECONDS: &str = "troupe_store_append_seconds";
const BEHIND: &str = "troupe_store_behind_keys";

/// Tells the recorder what the metrics mean, once a process.
pub(super) fn describe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        describe_counter!(COMMITS, Unit::Count, "Commits answered, by outcome");
        describe_histogram!(BATCH_WRITES, Unit::Count, "Keys in a batch written to disk");
        describe_histogram!(APPEND_SECONDS, Unit::Seconds, "Time to write a batch, by whether it was forced");
        describe_gauge!(BEHIND, Unit::Count, "Keys whose newest state is not on disk yet");
    });
}

pub(super) fn commit_answered(refusal: Option<&CommitError>) {
    let outcome = match refusal {
        None => "committed",
        Some(CommitError::AlreadyExists(_)) => "already_exists",
        Some(CommitError::NotFound(_)) => "not_found",
        Some(CommitError::Conflict { .. }) => "conflict",
        Some(CommitError::Unavailable(_)) => "unavailable",
    };
    counter!(COMMITS, "outcome" => outcome).increment(1);
}

pub(super) fn batch_begins(keys: usize, behind: usize) {
    histogram!(BATCH_WRITES).record(keys as f64);
    gauge!(BEHIND).set(behind as f64);
}

pub(super) fn batch_ends(force: Force, took: Duration) {
    let force = match force {
        Force::Fsync => "fsync",
        Force::Buffered => "buffered",
    };
    histogram!(APPEND_SECONDS, "force" => force).record(took.as_secs_f64());
}
