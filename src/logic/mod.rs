//! Every decision, pure: no actor, runtime, clock, randomness or I/O. Time, seeds and limits are arguments.

pub mod nodes;
pub mod pod;
pub mod edit;
pub mod placement;
pub mod replication;
pub mod select;
pub mod supervision;
#[cfg(test)]
pub(crate) mod testing;
