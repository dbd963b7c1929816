//! Thin shells: each reads its input, calls one function of [`crate::logic`], sends what came out.

pub mod store;
pub mod supervisor;
