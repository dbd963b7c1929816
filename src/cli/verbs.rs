//! The client verbs: their grammar, and the way from a parsed command line to an exit code.
//!
//! Owns: [`Verb`] and [`run`]. A verb is a file; here they are only listed. Verbs of kubectl that are not built are not
//! in the grammar, and say so instead of pretending.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{
    error::{CliError, Outcome},
    get::{self, GetArgs},
    session::{Connection, Session},
};

/// A verb with its connection.
#[derive(Debug, Clone, Args)]
pub struct On<A: Args> {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    args: A,
}

/// What to ask of a cluster.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show objects
    Get(On<GetArgs>),
}

/// kubectl's verbs that are still to come.
pub const NOT_BUILT: &[&str] = &[
    "alpha",
    "attach",
    "auth",
    "autoscale",
    "certificate",
    "cluster-info",
    "config",
    "cp",
    "debug",
    "diff",
    "drain",
    "edit",
    "exec",
    "explain",
    "kustomize",
    "plugin",
    "port-forward",
    "proxy",
    "replace",
    "rollout",
    "set",
    "taint",
    "top",
];

/// Runs a verb to its end; errors go to standard error.
pub fn run(verb: &Verb) -> ExitCode {
    match actix::System::new().block_on(dispatch(verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = error.text();
            if !text.is_empty() {
                eprintln!("{text}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

async fn dispatch(verb: &Verb) -> Outcome {
    match verb {
        Verb::Get(on) => get::run(&open(&on.connection)?, &on.args).await,
    }
}

fn open(connection: &Connection) -> Result<Session, CliError> {
    Session::open(connection)
}
