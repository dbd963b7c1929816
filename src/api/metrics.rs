//! The room's metrics: names, help, and the one place that records them.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const REQUESTS: &str = "troupe_api_requests_total";
const SECONDS: &str = "troupe_api_request_duration_seconds";
const PANICS: &str = "troupe_api_panics_total";

/// Describes the metrics to the recorder, once it is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests answered, by verb and status code");
    describe_histogram!(SECONDS, Unit::Seconds, "Time from a request's head to its answer's head, by verb");
    describe_counter!(PANICS, "Handlers that panicked; each is a defect");
}

/// Records an answered request. Verbs come from a closed set: others are counted as one.
pub fn answered(verb: &'static str, code: u16, took: Duration) {
    counter!(REQUESTS, "verb" => verb, "code" => code.to_string()).increment(1);
    histogram!(SECONDS, "verb" => verb).record(took.as_secs_f64());
}

/// Records a panic.
pub fn panicked() {
    counter!(PANICS).increment(1);
}
