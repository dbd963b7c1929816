//! The command line: what a person types, turned into requests to a cluster.
//!
//! Owns: the grammar of `troupe` and every client verb. Speaks only HTTP to a cluster; what starts one (`up`) is handed
//! back to the program, which owns the processes. Exit codes: 0 ok, 1 failed, 2 wrong usage.

mod args;
pub mod client;
pub mod demo;
mod discovery;
mod dry_run;
mod error;
mod kubeconfig;
mod manifest;
mod session;
mod up;

pub use args::{Cli, Command, DemoArgs, ResetArgs};
pub use error::CliError;
pub use up::{RuntimeArg, UpArgs, default_data_dir};
