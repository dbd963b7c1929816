//! The command line: what a person types, turned into requests to a cluster.
//!
//! Owns: the grammar of `troupe` and every client verb. Speaks only HTTP to a cluster; what starts one (`up`, `master`,
//! `node`) is handed back to the program, which owns the processes. Exit codes: 0 ok, 1 failed, 2 wrong usage.

mod api_resources;
mod apply;
mod args;
mod backup;
mod change;
pub mod client;
mod cluster;
mod cordon;
mod create;
mod delete;
pub mod demo;
mod describe;
mod discovery;
mod dry_run;
mod error;
mod events;
mod exec;
mod expose;
mod fetch;
mod get;
mod image;
mod invocation;
mod kubeconfig;
mod label;
mod logs;
mod manifest;
mod merge3;
mod node;
mod output;
mod patch;
mod pod;
mod port_forward;
mod run;
mod scale;
mod seat;
mod session;
mod sink;
mod target;
mod token;
mod top;
mod up;
mod verbs;
mod version;
mod wait;

pub use args::{Cli, Command, DemoArgs, ResetArgs, RestoreArgs};
pub use error::CliError;
pub use invocation::{Invocation, parse};
pub use node::{InstallArgs, MasterArgs, MasterFlags, NodeArgs, NodeFlags};
pub use up::{RuntimeArg, UpArgs, default_data_dir};
pub use verbs::{ClientCommand, Own, Verb, run};
