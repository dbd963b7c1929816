//! The API room from outside: over TLS, by raw requests and by every kubectl at hand.
//!
//! Each test starts a server of its own on a free port, with certificates made for it and an in-memory store.

mod harness;
mod kubectl;
