//! What is particular to the native runtime, with real containers: isolation, limits, survival, and that nothing is left.
//!
//! Needs root and a static busybox (`apt install busybox-static`). Each test has a bridge, a subnet, a cgroup and a
//! directory of its own, removed when it ends however it ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod native {
    pub mod bench;
    mod cost;
    mod exec;
    mod groups;
    mod hostile;
    mod hygiene;
    mod isolation;
    mod life;
    mod sandbox;
    mod survival;
}
