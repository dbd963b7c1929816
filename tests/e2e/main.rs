//! The whole of Troupe as people use it: the real binary, real containers, real kubectl.
//!
//! Each cluster here has a data directory, ports, a pod network, a bridge and cgroups of its own, and whatever a test
//! starts is gone when the test ends, however it ends (see [`harness::Cluster`]). Needs root, kubectl (`$KUBECTL`, else
//! the one on the path), `ip` and `setpriv`; without them the tests say so and are skipped, except under `CI`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chaos;
mod configs;
#[path = "../conformance/containerd.rs"]
#[allow(dead_code, reason = "shared with the conformance suite, which needs more of it")]
mod containerd;
mod cri;
mod disk;
mod docker;
#[path = "../conformance/engine.rs"]
#[allow(dead_code, reason = "shared with the conformance suite, which needs more of it")]
mod engine;
mod exec;
mod generation;
mod harness;
mod host_ports;
mod life;
mod manifests;
mod node;
mod order;
mod placement;
mod pods;
mod probes;
mod recovery;
mod refusals;
mod registry;
mod resize;
mod sandbox;
mod streams;
mod tokens;
mod usage;
