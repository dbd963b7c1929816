//! Options of `troupe up`: from the command line, the environment and a file, in this order of precedence.
//!
//! Invariant: what can be said on the command line can be said in the file, under the same name and with the same
//! checks; a name that is no option is refused.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::CliError;
use crate::{logic::eviction::Thresholds, model::quantity::parse_units};

/// Most nodes of one `up`: each has a bridge and a `/24` of its own.
const MAX_NODES: usize = 64;

/// Kubernetes wants more than one file; and each reader of a log opens all of its files.
const LOG_FILES: std::ops::RangeInclusive<u32> = 2..=100;

/// Options of `troupe up`; what nobody gave is absent.
#[derive(Debug, Clone, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct UpArgs {
    /// A YAML file with these options under these names; the command line goes before it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/troupe for root, else the user's data directory]
    #[arg(long, value_name = "DIR", env = "TROUPE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API listens [default: 127.0.0.1:6443]
    #[arg(long, value_name = "ADDR")]
    pub api: Option<SocketAddr>,
    /// Where nodes link to (UDP) [default: a free port on loopback]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// How many nodes [default: 1]
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// The first node's name [default: this machine's]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What runs the containers [default: auto]
    #[arg(long, value_enum)]
    pub runtime: Option<RuntimeArg>,
    /// Where the CRI runtime listens: a path, or unix:// and one [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET", env = "CONTAINER_RUNTIME_ENDPOINT")]
    pub cri_socket: Option<String>,
    /// The pods' network, of which each node gets a /24 [default: 10.244.0.0/16, or one that is free here]
    #[arg(long, value_name = "CIDR")]
    pub pod_network: Option<String>,
    /// Most pods on each node [default: 110]
    #[arg(long, value_name = "N")]
    pub max_pods: Option<u32>,
    /// A further name or address for the API's certificate (repeatable)
    #[arg(long = "api-name", value_name = "NAME")]
    #[serde(rename = "api-name")]
    pub api_names: Vec<String>,
    /// First delay before a container that keeps failing is started again [default: 10s, as Kubernetes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub crash_loop_backoff: Option<Duration>,
    /// A registry, HOST or HOST:PORT, that may be spoken to without TLS, as those on loopback may (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST")]
    #[serde(rename = "insecure-registry")]
    pub insecure_registries: Vec<String>,
    /// A certificate authority for registries beside the system's: a PEM file (repeatable)
    #[arg(long = "registry-ca", value_name = "FILE")]
    #[serde(rename = "registry-ca")]
    pub registry_authorities: Vec<PathBuf>,
    /// Credentials for registries: a file in the form of Docker's config.json
    #[arg(long, value_name = "FILE")]
    pub registry_config: Option<PathBuf>,
    /// A directory of pod manifests that the first node runs in any case (static pods)
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// How large a container's log file may become before it is rotated [default: 10Mi, as Kubernetes]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    #[serde(deserialize_with = "size_text")]
    pub container_log_max_size: Option<u64>,
    /// How many log files a container may have, the rotated ones among them [default: 5, as Kubernetes]
    #[arg(long, value_name = "N")]
    pub container_log_max_files: Option<u32>,
    /// Pods are ended when less is left [default:
    /// memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%, as Kubernetes]
    #[arg(long, value_name = "THRESHOLDS", value_parser = Thresholds::parse)]
    #[serde(deserialize_with = "thresholds")]
    pub eviction_hard: Option<Thresholds>,
    /// For how long a node that was low on something says so after it no longer is [default: 5m, as Kubernetes]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub eviction_pressure_transition_period: Option<Duration>,
    /// No node gives images to others, or takes them from others; of a master: in the whole cluster
    #[arg(long)]
    pub no_image_sharing: bool,
}

/// Names of the runtimes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuntimeArg {
    /// Native for root, else docker when its engine answers, else native as an ordinary user
    #[default]
    Auto,
    /// The embedded OCI runtime
    Native,
    /// The Docker engine of this machine (at $DOCKER_HOST or /var/run/docker.sock)
    Docker,
    /// A runtime of this machine that serves Kubernetes' CRI, such as containerd (at --cri-socket)
    Cri,
    /// Simulated containers
    Sim,
}

impl UpArgs {
    /// With what the file of `--config` adds.
    ///
    /// # Errors
    /// When the file cannot be read or says something that is no option; when numbers are out of bounds.
    pub fn complete(self) -> Result<UpArgs, CliError> {
        let all = match &self.config {
            Some(path) => {
                let file = read(path)?;
                self.over(file)
            }
            None => self,
        };
        match all.nodes {
            Some(nodes) if !(1..=MAX_NODES).contains(&nodes) => {
                return Err(CliError::Usage(format!("nodes: must be 1 to {MAX_NODES}, not {nodes}")));
            }
            _ => {}
        }
        match all.container_log_max_files {
            Some(files) if !LOG_FILES.contains(&files) => Err(CliError::Usage(format!(
                "container-log-max-files: must be {} to {}, not {files}",
                LOG_FILES.start(),
                LOG_FILES.end()
            ))),
            _ => Ok(all),
        }
    }

    /// These options where given, the others' elsewhere.
    fn over(self, file: UpArgs) -> UpArgs {
        UpArgs {
            config: self.config,
            data_dir: self.data_dir.or(file.data_dir),
            api: self.api.or(file.api),
            listen: self.listen.or(file.listen),
            nodes: self.nodes.or(file.nodes),
            node_name: self.node_name.or(file.node_name),
            runtime: self.runtime.or(file.runtime),
            cri_socket: self.cri_socket.or(file.cri_socket),
            pod_network: self.pod_network.or(file.pod_network),
            max_pods: self.max_pods.or(file.max_pods),
            api_names: either(self.api_names, file.api_names),
            crash_loop_backoff: self.crash_loop_backoff.or(file.crash_loop_backoff),
            insecure_registries: either(self.insecure_registries, file.insecure_registries),
            registry_authorities: either(self.registry_authorities, file.registry_authorities),
            registry_config: self.registry_config.or(file.registry_config),
            manifests: self.manifests.or(file.manifests),
            container_log_max_size: self.container_log_max_size.or(file.container_log_max_size),
            eviction_hard: self.eviction_hard.or(file.eviction_hard),
            eviction_pressure_transition_period: self
                .eviction_pressure_transition_period
                .or(file.eviction_pressure_transition_period),
            container_log_max_files: self.container_log_max_files.or(file.container_log_max_files),
            no_image_sharing: self.no_image_sharing || file.no_image_sharing,
        }
    }

    /// The data directory, given or default, from the root.
    pub fn data_dir(&self) -> PathBuf {
        let given = self.data_dir.clone().unwrap_or_else(default_data_dir);
        // Others than this process use it, who are elsewhere.
        std::path::absolute(&given).unwrap_or(given)
    }
}

/// What the command line says, else what the file says.
fn either<T>(given: Vec<T>, file: Vec<T>) -> Vec<T> {
    if given.is_empty() { file } else { given }
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

fn read(path: &Path) -> Result<UpArgs, CliError> {
    let text = fs::read_to_string(path).map_err(|source| CliError::File { path: path.into(), source })?;
    if text.trim().is_empty() {
        return Ok(UpArgs::default());
    }
    serde_yaml_ng::from_str(&text).map_err(|e| CliError::Usage(format!("{}: {e}", path.display())))
}

/// Reads a Kubernetes quantity of bytes, `10Mi`.
pub(super) fn size(text: &str) -> Result<u64, String> {
    match parse_units(text).map(u64::try_from) {
        Ok(Ok(bytes)) if bytes > 0 => Ok(bytes),
        Ok(_) => Err(format!("{text:?}: must be greater than 0")),
        Err(error) => Err(format!("{text:?}: {error}")),
    }
}

fn size_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    size(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn thresholds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Thresholds>, D::Error> {
    Thresholds::parse(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map(Some).map_err(|e| D::Error::custom(format!("{text:?}: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completed(args: UpArgs, file: &str) -> Result<UpArgs, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("troupe.yaml");
        fs::write(&path, file).unwrap();
        UpArgs { config: Some(path), ..args }.complete()
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let args = UpArgs { nodes: Some(3), ..UpArgs::default() };
        let file = "nodes: 2\napi: 127.0.0.1:7000\nruntime: sim\ncrash-loop-backoff: 300ms\napi-name: [a, b]\n\
             container-log-max-size: 1Mi\nno-image-sharing: true\n";
        let all = completed(args, file).unwrap();
        assert_eq!(all.nodes, Some(3));
        assert_eq!(all.api, Some("127.0.0.1:7000".parse().unwrap()));
        assert_eq!(all.runtime, Some(RuntimeArg::Sim));
        assert_eq!(all.crash_loop_backoff, Some(Duration::from_millis(300)));
        assert_eq!(all.api_names, ["a", "b"]);
        assert_eq!(all.container_log_max_size, Some(1024 * 1024));
        assert!(
            all.no_image_sharing && !completed(UpArgs::default(), "nodes: 1\n").unwrap().no_image_sharing
        );
        assert!(completed(UpArgs::default(), "").unwrap().nodes.is_none());
    }

    #[test]
    fn what_is_no_option_is_refused_by_its_name() {
        for (file, named) in [
            ("replicas: 3\n", "replicas"),
            ("nodes: many\n", "nodes"),
            ("nodes: 0\n", "nodes"),
            ("nodes: 1000\n", "nodes"),
            ("crash-loop-backoff: soon\n", "soon"),
            ("runtime: rkt\n", "rkt"),
            ("api: everywhere\n", "api"),
            ("container-log-max-size: big\n", "big"),
            ("container-log-max-size: 0Mi\n", "greater than 0"),
            ("container-log-max-files: 1\n", "container-log-max-files"),
            ("eviction-hard: memory.available<lots\n", "lots"),
        ] {
            let error = completed(UpArgs::default(), file).unwrap_err().to_string();
            assert!(error.contains(named), "{file}: {error}");
        }
    }
}
