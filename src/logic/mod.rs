//! Every decision, pure: no actor, runtime, clock, randomness or I/O. Time, seeds and limits are arguments.

pub mod backup;
pub mod clocks;
pub mod credentials;
pub mod edit;
pub mod endpoints;
pub mod events;
pub mod eviction;
pub mod garbage;
pub mod image_gc;
pub mod image_peers;
pub mod join;
pub mod mirrors;
pub mod namespaces;
pub mod node_labels;
pub mod nodes;
pub mod placement;
pub mod pod;
pub mod pulse;
pub mod reconcile;
pub mod renewal;
pub mod replication;
pub mod seldom;
pub mod select;
pub mod service_accounts;
pub mod sightings;
pub mod silence;
pub mod summary;
pub mod supervision;
pub mod taints;
#[cfg(test)]
pub(crate) mod testing;
pub mod tokens;
pub mod trust;
pub mod usage;
pub mod user_ranges;
