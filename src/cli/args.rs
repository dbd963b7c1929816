//! The grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{
    node::{MasterArgs, NodeArgs},
    up::UpArgs,
    verbs::{Own, Verb},
};

/// A container orchestrator in one file: Kubernetes' API without the weight.
#[derive(Debug, Parser)]
#[command(name = "troupe", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole story on a throw-away cluster, in a minute
    Demo(DemoArgs),
    /// Run a cluster on this machine, in the foreground
    Up(Box<UpArgs>),
    /// Run a master for other machines, in the foreground
    Master(Box<MasterArgs>),
    /// Make this machine a node of a master, in the foreground
    Node(Box<NodeArgs>),
    /// End every container of a cluster on this machine and remove its data directory
    Reset(ResetArgs),
    /// Make a master's data directory out of a backup
    Restore(RestoreArgs),
    /// kubectl's verbs.
    #[command(flatten)]
    Client(Verb),
    /// What only we can.
    #[command(flatten)]
    Own(Own),
}

/// The same program under the name of `kubectl`.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl",
    disable_help_subcommand = true,
    about = "Kubernetes' command line, as Troupe speaks it"
)]
pub struct Kubectl {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of `troupe demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Do not pause between acts
    #[arg(long)]
    pub fast: bool,
    /// Simulate containers, as where the kernel allows none
    #[arg(long)]
    pub simulate: bool,
}

impl DemoArgs {
    /// Whether containers are to be real ones: they need root, be it in namespaces of an ordinary user's own.
    pub fn real(&self) -> bool {
        !self.simulate && nix::unistd::geteuid().is_root()
    }
}

/// Options of `troupe reset`.
#[derive(Debug, Clone, Args)]
pub struct ResetArgs {
    /// Whose cluster [default: /var/lib/troupe for root, else the user's data directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
}

/// Options of `troupe restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// A file that `troupe backup` wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The directory to make; it must not be there, or be empty [default: /var/lib/troupe for root, else the user's data
    /// directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
}
