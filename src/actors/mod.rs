//! Thin shells: each reads its input, calls one function of [`crate::logic`], sends what came out.

pub mod store;
pub mod commit;
pub mod follow;
pub mod outside;
pub mod replication;
pub mod scheduler;
pub mod kubelet;
pub mod supervisor;
#[cfg(test)]
pub(crate) mod testing;
