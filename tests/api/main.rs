//! The API room from outside: over TLS, by raw requests and by every kubectl at hand.
//!
//! Each test starts a server of its own on a free port, with certificates made for it and an in-memory store.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod http2;
mod kubectl;
mod probes;
mod raw;
mod refusals;
mod streams;
mod up;
mod watches;
