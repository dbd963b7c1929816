//! Troupe: a container orchestrator whose every part is an actor.
//!
//! Layers, top to bottom: `cli` | `app` → `api`, [`actors`] → [`messages`] → [`logic`] → [`model`]; actors also use
//! [`net`], [`store`] and [`runtime`].

pub mod actors;
pub mod api;
pub mod app;
pub mod cli;
#[doc(hidden)]
pub mod fuzzing;
pub mod hello;
pub mod logic;
pub mod messages;
pub mod model;
pub mod net;
pub mod runtime;
pub mod store;
