//! The command line as a person has it: the real binary, a real cluster of simulated containers, and kubectl beside it.

mod alone;
mod harness;
mod parity;
mod verbs;
