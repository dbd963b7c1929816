//! The client verbs: their grammar, and the way from a parsed command line to an exit code.
//!
//! Owns: [`Verb`] and [`run`]. A verb is a file; here they are only listed. Verbs of kubectl that are not built are not
//! in the grammar, and say so instead of pretending.

use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Subcommand};

use super::{
    api_resources, apply,
    args::{Cli, Kubectl},
    backup, cluster, cordon, create, delete, describe,
    error::Outcome,
    events, exec, expose, get, image, label, logs, patch, port_forward, run as run_verb, scale,
    session::{Connection, Session, raw},
    token, top, version, wait,
};

/// A verb with its connection.
#[derive(Debug, Clone, Args)]
pub struct On<A: Args> {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    args: A,
}

impl<A: Args> On<A> {
    fn open(&self) -> Outcome<Session> {
        Session::open(&self.connection)
    }
}

/// What to ask of a cluster.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Show objects
    Get(On<get::GetArgs>),
    /// Show objects in detail, with their events
    Describe(On<describe::DescribeArgs>),
    /// Make the cluster have what files say
    Apply(On<apply::ApplyArgs>),
    /// Create objects
    Create(On<create::CreateArgs>),
    /// Delete objects
    Delete(On<delete::DeleteArgs>),
    /// Run one pod of one container
    Run(On<run_verb::RunArgs>),
    /// Set how many replicas there shall be
    Scale(On<scale::ScaleArgs>),
    /// Put a service in front of pods
    Expose(On<expose::ExposeArgs>),
    /// Set and remove labels
    Label(On<label::LabelArgs>),
    /// Set and remove annotations
    Annotate(On<label::LabelArgs>),
    /// Change an object by a patch
    Patch(On<patch::PatchArgs>),
    /// Show the logs of containers
    Logs(On<logs::LogsArgs>),
    /// Run a program in a container
    Exec(On<exec::ExecArgs>),
    /// See and type what a container's own program writes and reads
    Attach(On<exec::AttachArgs>),
    /// Have ports of this machine lead into a pod
    PortForward(On<port_forward::PortForwardArgs>),
    /// Show what happened
    Events(On<events::EventsArgs>),
    /// Show what nodes and pods use of processors and memory
    Top(On<top::TopArgs>),
    /// Wait until something holds
    Wait(On<wait::WaitArgs>),
    /// Let a node take no new pods
    Cordon(On<cordon::CordonArgs>),
    /// Let a node take pods again
    Uncordon(On<cordon::CordonArgs>),
    /// Show the kinds of objects there are
    ApiResources(On<api_resources::ApiResourcesArgs>),
    /// Show the versions of the API
    ApiVersions(Connection),
    /// Show the versions of this program and of the cluster
    Version(On<version::VersionArgs>),
    /// Print a script that completes commands in a shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// What only `troupe` can, not kubectl.
#[derive(Debug, Clone, Subcommand)]
pub enum Own {
    /// Load, show and remove images of the nodes
    Image(On<image::ImageArgs>),
    /// Make, show and revoke what machines need to join
    Token(On<token::TokenArgs>),
    /// Show how the cluster itself is: nodes, links, actors, store
    Cluster(On<cluster::ClusterArgs>),
    /// Write what a master cannot do without into a file, while it runs
    Backup(On<backup::BackupArgs>),
}

/// kubectl's verbs that are still to come.
pub const NOT_BUILT: &[&str] = &[
    "alpha",
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
    "explain",
    "kustomize",
    "plugin",
    "proxy",
    "replace",
    "rollout",
    "set",
    "taint",
];

/// A client command, as the program got it.
#[derive(Debug, Clone)]
pub enum ClientCommand {
    /// One of kubectl's, and whether we are called kubectl.
    Verb(Box<Verb>, bool),
    /// One of our own.
    Own(Box<Own>),
}

/// Runs a command to its end; errors go to standard error.
pub fn run(client: &ClientCommand) -> ExitCode {
    let outcome = actix::System::new().block_on(async {
        match client {
            ClientCommand::Verb(verb, kubectl) => dispatch(verb, *kubectl).await,
            ClientCommand::Own(own) => match &**own {
                Own::Image(on) => image::run(&on.open()?, &on.args).await,
                Own::Token(on) => token::run(&on.open()?, &on.args).await,
                Own::Cluster(on) => cluster::run(&on.open()?, &on.args).await,
                Own::Backup(on) => backup::run(&on.open()?, &on.args).await,
            },
        }
    });
    match outcome {
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

async fn dispatch(verb: &Verb, kubectl: bool) -> Outcome {
    match verb {
        Verb::Get(on) => get::run(&on.open()?, &on.args).await,
        Verb::Describe(on) => describe::run(&on.open()?, &on.args).await,
        Verb::Apply(on) => apply::run(&on.open()?, &on.args).await,
        Verb::Create(on) => create::run(&on.open()?, &on.args).await,
        Verb::Delete(on) => delete::run(&on.open()?, &on.args).await,
        Verb::Run(on) => run_verb::run(&on.open()?, &on.args).await,
        Verb::Scale(on) => scale::run(&on.open()?, &on.args).await,
        Verb::Expose(on) => expose::run(&on.open()?, &on.args).await,
        Verb::Label(on) => label::run(&on.open()?, &on.args, label::Field::Labels).await,
        Verb::Annotate(on) => label::run(&on.open()?, &on.args, label::Field::Annotations).await,
        Verb::Patch(on) => patch::run(&on.open()?, &on.args).await,
        Verb::Logs(on) => logs::run(&on.open()?, &on.args).await,
        Verb::Exec(on) => exec::exec(&on.open()?, &on.args).await,
        Verb::Attach(on) => exec::attach(&on.open()?, &on.args).await,
        Verb::PortForward(on) => port_forward::run(on.open()?, &on.args).await,
        Verb::Events(on) => events::run(&on.open()?, &on.args).await,
        Verb::Top(on) => top::run(&on.open()?, &on.args).await,
        Verb::Wait(on) => wait::run(&on.open()?, &on.args).await,
        Verb::Cordon(on) => cordon::run(&on.open()?, &on.args, true).await,
        Verb::Uncordon(on) => cordon::run(&on.open()?, &on.args, false).await,
        Verb::ApiResources(on) => api_resources::run(&on.open()?, &on.args).await,
        Verb::ApiVersions(connection) => api_resources::versions(&Session::open(connection)?).await,
        Verb::Version(on) => version::run(&on.connection, &on.args).await,
        Verb::Completion { shell } => completion(*shell, kubectl),
    }
}

fn completion(shell: clap_complete::Shell, kubectl: bool) -> Outcome {
    let (mut grammar, name) = match kubectl {
        true => (Kubectl::command(), "kubectl"),
        false => (Cli::command(), "troupe"),
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut grammar, name, &mut script);
    raw(script)
}
