//! Thin shells: each reads its input, calls one function of [`crate::logic`], sends what came out.

pub mod certificates;
pub mod commit;
pub mod events;
pub mod follow;
pub mod kubelet;
pub mod nodes;
pub mod outside;
pub mod reconciler;
pub mod replication;
pub mod scheduler;
pub mod store;
pub mod supervisor;
#[cfg(test)]
pub(crate) mod testing;
pub mod uplink;
