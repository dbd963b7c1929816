//! The command line as a person has it: the real binary, a real cluster of simulated containers, and kubectl beside it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod alone;
mod cluster;
mod harness;
mod parity;
mod service;
mod verbs;
