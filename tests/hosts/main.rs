//! Several machines on one: a network namespace each, real binaries, real containers, real kubectl.
//!
//! Each bed has a switch and hosts with an address, and nothing else: no host reaches another but over the switch.
//! Whatever a test starts is gone when it ends, however it ends (see [`bed::Bed`]). Needs root, kubectl, `ip`, `nsenter` and `nft`;
//! without them the tests say so and are skipped, except under `CI`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod backup;
mod bed;
mod certificates;
mod clocks;
mod cuts;
mod disks;
#[path = "../conformance/engine.rs"]
#[allow(dead_code, reason = "shared with the conformance suite, which needs more of it")]
mod engine;
mod failure;
mod fleet;
#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests, which need more of it")]
mod harness;
mod hostile;
mod images;
mod joining;
mod peers;
mod raw;
mod rivals;
mod status;
mod survival;
mod variants;
