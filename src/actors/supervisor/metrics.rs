//! Figures about supervision. The label `actor` is a child's class, from a closed set, never its name.

use metrics::{Unit, counter, describe_counter};

const RESTARTS: &str = "troupe_actor_restarts_total";
const ESCALATIONS: &str = "troupe_supervisor_escalations_total";
const ABANDONED: &str = "troupe_actor_abandoned_total";

/// Tells the recorder units and help.
pub fn describe() {
    describe_counter!(RESTARTS, Unit::Count, "Actors that ended and were started again");
    describe_counter!(ESCALATIONS, Unit::Count, "Times a supervisor gave up on its children");
    describe_counter!(ABANDONED, Unit::Count, "Actors that did not end when killed: their thread is blocked");
}

/// A child was started for the first time: its figures are there from now on, so that the first restart is a rise.
pub(super) fn known(class: &'static str, supervisor: &'static str) {
    counter!(RESTARTS, "actor" => class).increment(0);
    counter!(ESCALATIONS, "supervisor" => supervisor).increment(0);
}

pub(super) fn restarted(class: &'static str) {
    counter!(RESTARTS, "actor" => class).increment(1);
}

pub(super) fn escalated(supervisor: &'static str) {
    counter!(ESCALATIONS, "supervisor" => supervisor).increment(1);
}

pub(super) fn abandoned(class: &'static str) {
    counter!(ABANDONED, "actor" => class).increment(1);
}
