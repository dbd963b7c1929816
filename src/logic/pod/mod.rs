//! A pod's life on its node, as a state machine.
//!
//! Owns: which step comes next ([`Machine::step`]), what a container's program gets ([`config`]) and what is told about
//! it ([`status`]). Kubernetes' pod is an OTP supervisor here: restart policies are restart classes and
//! CrashLoopBackOff is the supervisor's backoff, both from [`super::supervision`].
//! Leaves out: doing any of it. The pod actor carries out the actions and feeds the outcomes back.

pub mod config;
mod failure;
pub mod images;
mod machine;
mod state;
pub mod status;
mod takeover;

pub use machine::Machine;
pub use state::{
    Action, Adopted, Container, ContainerPhase, Ended, Notice, SandboxPhase, StartFailure, Step,
    WaitingReason,
};
