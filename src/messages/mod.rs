//! What actors say to each other.
//!
//! Owns: message types, the [`Port`] through which they are sent, and [`wire`], the part that crosses machines.
//! Invariant: a message that would hurt when handled late carries a revision or an incarnation.

mod events;
mod exec;
mod kubelet;
mod node;
mod port;
mod status;
mod store;
pub mod wire;

pub use events::RecordEvent;
pub use kubelet::*;
pub use node::*;
pub use port::{Port, SendFailed, Slot};
pub use status::{
    ActorState, CertificateState, LinkState, NodeState, OwnActors, ShowNodes, ShowStore, StoreState,
};
pub use store::{
    Change, ChangeKind, Commit, CommitError, Committed, Durability, Expected, Publisher, TooOld, View, Watch,
    Write,
};
