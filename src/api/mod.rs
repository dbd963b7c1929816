//! Kubernetes' REST API over actix-web and TLS. Speaks only messages to actors.
//!
//! The way of a request: [`server`] (TLS, workers) → [`door`] (who is it, limits, what is meant) → [`read`], [`watch`],
//! [`mod@write`], [`delete`], [`subresource`], [`log`], [`mod@exec`], [`port_forward`], [`images`] → [`render`] or [`error`]. One set of handlers serves
//! every kind: what differs between kinds is in [`crate::model::registry`] and [`crate::model::admit`].
//! Invariant: reads never wait for the store's writer; every change is a compare-and-swap.

mod actors;
mod auth;
mod backup;
pub(crate) mod body;
mod certificate;
mod clock;
mod config;
mod connection;
mod delete;
mod discovery;
mod door;
mod error;
mod exec;
mod fixed;
mod health;
mod images;
mod leases;
mod links;
mod log;
mod made;
mod metrics;
mod openapi;
mod openapi_v2;
pub(crate) mod patch;
mod payload;
mod plain;
mod port_forward;
mod protobuf;
mod query;
mod read;
mod render;
mod review;
mod server;
mod services;
mod slices;
mod spdy;
mod status;
mod strategic;
mod subresource;
mod target;
mod tokens;
mod upgrade;
mod usage;
mod watch;
mod write;

pub use backup::Files as BackupFiles;
pub use certificate::ServerCertificate;
pub use config::{ApiConfig, ApiState, Limits, ServiceCidr, Tls, User};
pub use error::ApiError;
pub use links::Links;
pub use server::{ServeError, Server, serve};
pub use status::Inspect;
