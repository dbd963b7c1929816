//! Properties of what comes from outside: nothing panics, what is printed is read back, the wire's bytes stay as they are.
//!
//! `entrances.rs` runs the fuzzers' targets on stable Rust for a moment each; `PROPTEST_CASES` makes it longer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod entrances;
mod model;
mod seeds;
mod wire;
