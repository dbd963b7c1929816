//! The grammar.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

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
    Up(UpArgs),
    /// End every container of a cluster on this machine and remove its data directory
    Reset(ResetArgs),
}

/// Options of `troupe demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// Do not pause between acts
    #[arg(long)]
    pub fast: bool,
    /// Simulate containers, as without root
    #[arg(long)]
    pub simulate: bool,
}

impl DemoArgs {
    /// Whether containers are to be real ones: they need root.
    pub fn real(&self) -> bool {
        !self.simulate && nix::unistd::geteuid().is_root()
    }
}

/// Options of `troupe up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Where everything is kept [default: /var/lib/troupe for root, else the user's data directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:6443")]
    pub api: SocketAddr,
    /// Where nodes link to (UDP) [default: a free port on loopback]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub nodes: usize,
    /// The first node's name [default: this machine's]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What runs the containers
    #[arg(long, value_enum, default_value_t = RuntimeArg::Auto)]
    pub runtime: RuntimeArg,
    /// The pods' network, of which each node gets a /24 [default: 10.244.0.0/16, or one that is free here]
    #[arg(long, value_name = "CIDR")]
    pub pod_network: Option<String>,
    /// Most pods on each node
    #[arg(long, value_name = "N", default_value_t = 110)]
    pub max_pods: u32,
    /// A further name or address for the API's certificate (repeatable)
    #[arg(long = "api-name", value_name = "NAME")]
    pub api_names: Vec<String>,
    /// First delay before a container that keeps failing is started again [default: 10s, as Kubernetes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub crash_loop_backoff: Option<Duration>,
}

impl UpArgs {
    /// The data directory, given or default.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(default_data_dir)
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

/// `/var/lib/troupe` for root, else `$XDG_DATA_HOME/troupe` or `~/.local/share/troupe`.
pub fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/troupe");
    }
    let home = || std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
    std::env::var_os("XDG_DATA_HOME")
        .map_or_else(|| home().join(".local/share"), PathBuf::from)
        .join("troupe")
}

/// Names of the runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RuntimeArg {
    /// Native when this process may
    Auto,
    /// The embedded OCI runtime
    Native,
    /// Docker's daemon
    Docker,
    /// Simulated containers
    Sim,
}
