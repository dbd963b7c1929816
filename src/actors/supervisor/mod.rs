//! Supervision trees, as in Erlang/OTP: what fails is started again, and a fault that persists climbs the tree.
//!
//! Owns every restart in this program. [`Supervisor::start`] makes a tree's root; [`ChildSpec`] says how to make, stop
//! and restart one actor; [`SupervisorHandle`] is how others add, remove and list children. The decisions are
//! [`crate::logic::supervision`]'s.
//! ```text
//! Due ──launch──▶ Starting ──▶ Running ──end──▶ Waiting (backoff) ──▶ Due      any ──stop──▶ Stopping ──▶ forgotten
//! ```
//! Invariants: a child's next incarnation is made only after the state of the one before is dropped (unless that was
//! stuck and abandoned, or the supervisor itself panicked); a dead child's address is withdrawn before its supervisor
//! hears of the death.

mod child;
mod control;
mod handle;
mod incarnation;
mod life;
pub mod metrics;
mod spec;
mod tree;

#[cfg(test)]
mod tests;

pub use handle::{Answer, ChildInfo, ChildState, SupervisorError, SupervisorHandle};
pub use life::{Exit, Life, Pulse};
pub use spec::{BoxError, ChildSpec, Escalation, STUCK_AFTER, Strategy, SupervisorSpec};
pub use tree::Supervisor;
