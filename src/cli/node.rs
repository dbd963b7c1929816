//! Options of `troupe master` and `troupe node`. A file of `--config` is one of `troupe up`'s: of each other only what
//! concerns it is taken.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};

use super::{CliError, RuntimeArg, UpArgs};
use crate::{
    logic::{eviction::Thresholds, node_labels::may_set},
    model::names::{label_value, qualified_name},
};

/// `troupe master`: to run, or to be installed.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct MasterArgs {
    #[command(subcommand)]
    action: Option<MasterAction>,
    #[command(flatten)]
    flags: MasterFlags,
}

#[derive(Debug, Clone, Subcommand)]
enum MasterAction {
    /// Write a systemd unit that starts it with these options
    Install {
        #[command(flatten)]
        flags: Box<MasterFlags>,
        #[command(flatten)]
        install: InstallArgs,
    },
}

/// `troupe node`: to run, or to be installed.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    action: Option<NodeAction>,
    #[command(flatten)]
    flags: NodeFlags,
}

#[derive(Debug, Clone, Subcommand)]
enum NodeAction {
    /// Write a systemd unit that starts it with these options; a token goes into a file that is root's alone
    Install {
        #[command(flatten)]
        flags: Box<NodeFlags>,
        #[command(flatten)]
        install: InstallArgs,
    },
}

/// How to install.
#[derive(Debug, Clone, Args)]
pub struct InstallArgs {
    /// Only show the unit
    #[arg(long, visible_alias = "dry-run")]
    pub print: bool,
    /// Where units are
    #[arg(long, value_name = "DIR", hide = true)]
    pub unit_dir: Option<PathBuf>,
}

impl MasterArgs {
    /// The options, and how to install when that is meant.
    pub fn split(self) -> (MasterFlags, Option<InstallArgs>) {
        match self.action {
            Some(MasterAction::Install { flags, install }) => (*flags, Some(install)),
            None => (self.flags, None),
        }
    }
}

impl NodeArgs {
    /// The options, and how to install when that is meant.
    pub fn split(self) -> (NodeFlags, Option<InstallArgs>) {
        match self.action {
            Some(NodeAction::Install { flags, install }) => (*flags, Some(install)),
            None => (self.flags, None),
        }
    }
}

/// Options of `troupe master`.
#[derive(Debug, Clone, Default, Args)]
pub struct MasterFlags {
    /// A YAML file with options of `troupe up`, of which those of a master are taken; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/troupe for root, else the user's data directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens (TCP) [default: 127.0.0.1:6443]
    #[arg(long, value_name = "ADDR")]
    api: Option<SocketAddr>,
    /// Where machines join and link (UDP) [default: 0.0.0.0:6443]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The pods' network, of which each node gets a /24 [default: 10.244.0.0/16, or one that is free here]
    #[arg(long, value_name = "CIDR")]
    pod_network: Option<String>,
    /// A further name or address for the API's certificate (repeatable)
    #[arg(long = "api-name", value_name = "NAME")]
    api_names: Vec<String>,
    /// No node of the cluster gives images to others, or takes them from others
    #[arg(long)]
    no_image_sharing: bool,
    /// How long the certificates of nodes are valid; they are renewed when a third is left
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, hide = true)]
    pub node_certificate_life: Option<Duration>,
    /// How long the master's own certificates are valid; they are renewed when a third is left
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, hide = true)]
    pub certificate_life: Option<Duration>,
}

impl MasterFlags {
    /// As options of `troupe up`, with what the file adds.
    ///
    /// # Errors
    /// As [`UpArgs::complete`].
    pub fn complete(self) -> Result<UpArgs, CliError> {
        let options = UpArgs {
            config: self.config,
            data_dir: self.data_dir,
            api: self.api,
            listen: self.listen,
            pod_network: self.pod_network,
            api_names: self.api_names,
            no_image_sharing: self.no_image_sharing,
            ..UpArgs::default()
        };
        options.complete()
    }
}

/// Options of `troupe node`.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeFlags {
    /// A YAML file with options of `troupe up`, of which those of a node are taken; the command line goes before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The master's address, HOST or HOST:PORT [default port: 6443]; needed once, and when it has changed
    #[arg(long, value_name = "ADDR")]
    pub join: Option<String>,
    /// A token of `troupe token create`; needed once
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// A file with one, which others on this machine cannot read; for the first join alone: not looked at once the node has joined
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// The node's name [default: this machine's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// A label of the node, KEY=VALUE (repeatable); kept for later starts
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The address other machines reach it at [default: the one from which it reaches the master]
    #[arg(long, value_name = "IP", value_parser = address)]
    pub address: Option<IpAddr>,
    /// Where everything is kept [default: /var/lib/troupe for root, else the user's data directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// What runs the containers [default: auto, or what it was]
    #[arg(long, value_enum)]
    runtime: Option<RuntimeArg>,
    /// Where the CRI runtime listens: a path, or unix:// and one [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET", env = "CONTAINER_RUNTIME_ENDPOINT")]
    cri_socket: Option<String>,
    /// Most pods on the node [default: 110]
    #[arg(long, value_name = "N")]
    max_pods: Option<u32>,
    /// First delay before a container that keeps failing is started again [default: 10s, as Kubernetes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    crash_loop_backoff: Option<Duration>,
    /// A registry, HOST or HOST:PORT, that may be spoken to without TLS, as those on loopback may (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST")]
    insecure_registries: Vec<String>,
    /// A certificate authority for registries beside the system's: a PEM file (repeatable)
    #[arg(long = "registry-ca", value_name = "FILE")]
    registry_authorities: Vec<PathBuf>,
    /// Credentials for registries: a file in the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    registry_config: Option<PathBuf>,
    /// A directory of pod manifests that the node runs in any case (static pods)
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
    /// How large a container's log file may become before it is rotated [default: 10Mi, as Kubernetes]
    #[arg(long, value_name = "SIZE", value_parser = super::up::size)]
    container_log_max_size: Option<u64>,
    /// How many log files a container may have, the rotated ones among them [default: 5, as Kubernetes]
    #[arg(long, value_name = "N")]
    container_log_max_files: Option<u32>,
    /// Pods are ended when less is left [default:
    /// memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%, as Kubernetes]
    #[arg(long, value_name = "THRESHOLDS", value_parser = Thresholds::parse)]
    eviction_hard: Option<Thresholds>,
    /// For how long the node says that it is low on something after it no longer is [default: 5m, as Kubernetes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    eviction_pressure_transition_period: Option<Duration>,
    /// It gives no images to other nodes, and takes none from them
    #[arg(long)]
    no_image_sharing: bool,
}

impl NodeFlags {
    /// What it shares with `troupe up`, with what the file adds; the rest is in its own fields.
    ///
    /// # Errors
    /// As [`UpArgs::complete`].
    pub fn complete(&self) -> Result<UpArgs, CliError> {
        let of = self.clone();
        let options = UpArgs {
            config: of.config,
            data_dir: of.data_dir,
            runtime: of.runtime,
            cri_socket: of.cri_socket,
            max_pods: of.max_pods,
            crash_loop_backoff: of.crash_loop_backoff,
            insecure_registries: of.insecure_registries,
            registry_authorities: of.registry_authorities,
            registry_config: of.registry_config,
            manifests: of.manifests,
            container_log_max_size: of.container_log_max_size,
            container_log_max_files: of.container_log_max_files,
            eviction_hard: of.eviction_hard,
            eviction_pressure_transition_period: of.eviction_pressure_transition_period,
            no_image_sharing: of.no_image_sharing,
            ..UpArgs::default()
        };
        options.complete()
    }
}

/// An address that a machine can be reached at.
fn address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text.parse().map_err(|_| format!("{text:?} is no IP address"))?;
    match address.is_unspecified() || address.is_multicast() {
        true => {
            Err(format!("{text} is no machine's address: name the one that others reach this machine at"))
        }
        false => Ok(address),
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let bad = || format!("{text:?} is no label: write KEY=VALUE");
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    match qualified_name(key).into_iter().chain(label_value(value)).next() {
        None if !may_set(key) => Err(format!(
            "{key:?} is not for a node to set on itself; as an administrator: kubectl label node NAME {text}"
        )),
        None => Ok((key.to_owned(), value.to_owned())),
        Some(problem) => Err(format!("{text:?}: {problem}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_address_is_one_that_a_machine_can_have() {
        for (text, good) in [
            ("10.0.0.1", true),
            ("fd00::1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("224.0.0.1", false),
            ("a", false),
        ] {
            assert_eq!(address(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn labels_of_a_node_are_checked_as_the_api_would() {
        assert_eq!(label("zone=a").unwrap(), ("zone".into(), "a".into()));
        assert_eq!(label("a.b/zone=").unwrap(), ("a.b/zone".into(), String::new()));
        assert!(label("topology.kubernetes.io/zone=a").is_ok());
        for bad in [
            "node-role.kubernetes.io/x=",
            "node-restriction.kubernetes.io/x=y",
            "zone",
            "=a",
            "zo ne=a",
            "zone=a b",
            "a/b/c=d",
        ] {
            assert!(label(bad).is_err(), "{bad}");
        }
    }
}
