//! A pod's life on its node, as a state machine.
//!
//! Owns: which step comes next ([`Machine::step`]), what a container's program gets ([`config`]) and what is told about
//! it ([`status`]). Kubernetes' pod is an OTP supervisor here: restart policies are restart classes and
//! CrashLoopBackOff is the supervisor's backoff, both from [`super::supervision`].
//! Leaves out: doing any of it. The pod actor carries out the actions and feeds the outcomes back.

mod checks;
pub mod config;
pub mod dns;
pub mod downward;
pub mod env;
pub mod ephemeral;
mod failure;
pub mod gates;
pub mod host_ports;
pub mod huge_pages;
pub mod images;
pub mod init;
mod machine;
pub mod probe;
pub mod qos;
mod read_only;
pub mod refusal;
pub mod resize;
mod sandbox;
pub mod sources;
mod state;
pub mod status;
mod takeover;
pub mod volumes;
mod waiting;

pub use checks::Checks;
pub use machine::{Machine, shares_network};
pub use state::{
    Action, Adopted, Container, ContainerPhase, Ended, Notice, Role, STATUS_UNKNOWN, SandboxPhase,
    StartFailure, Step, WaitingReason,
};
pub use takeover::FOUND_DEAD;
