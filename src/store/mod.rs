//! The durable store's lower half: where documents are kept, and how they are found again.
//!
//! Owns: the [`Backend`] trait and its two backends ([`Durable`] on an embedded database, [`Memory`] for tests and
//! throw-away clusters), the data directory with its lock and format ([`DataDir`]), and recovery ([`recover()`]).
//! Invariant: what a backend gives back after a crash is the state at one revision, never half a batch, and every
//! batch that was appended with [`Force::Fsync`] is in it. Revisions, compare-and-swap and publication are the
//! writer's business: see [`crate::actors::store`].

mod backend;
mod dir;
mod durable;
mod error;
mod memory;
mod recover;

pub use backend::{Backend, Batch, Force, Record};
pub use dir::DataDir;
pub use durable::Durable;
pub use error::StoreError;
pub use memory::Memory;
pub use recover::{REVISION_BLOCK, Recovered, recover};
