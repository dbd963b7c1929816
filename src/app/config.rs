//! What is chosen at start.

use std::path::PathBuf;

use super::StartError;
use crate::{logic::credentials::Keyring, runtime::images::RegistryConfig};

/// Where a master keeps its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// In this directory, for good.
    Directory(PathBuf),
    /// In memory, for tests and throw-away clusters inside other programs.
    Memory,
}

/// Which container runtime a node uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeChoice {
    /// What the data directory's pods are in; else native when this process may; else docker when its engine answers;
    /// else an explanation. `troupe up` has an ordinary user's process enter namespaces where it may, if no docker does.
    #[default]
    Auto,
    /// The embedded OCI runtime.
    Native,
    /// A Docker engine on this machine.
    Docker,
    /// A runtime of this machine that serves the Container Runtime Interface: containerd, CRI-O.
    Cri,
    /// Simulated containers.
    Sim,
}

impl RuntimeChoice {
    const NAMES: [(RuntimeChoice, &str); 5] = [
        (RuntimeChoice::Auto, "auto"),
        (RuntimeChoice::Native, "native"),
        (RuntimeChoice::Docker, "docker"),
        (RuntimeChoice::Cri, "cri"),
        (RuntimeChoice::Sim, "sim"),
    ];

    /// As on the command line.
    pub(super) fn name(self) -> &'static str {
        Self::NAMES.into_iter().find(|(choice, _)| *choice == self).map_or("auto", |(_, name)| name)
    }

    /// The choice of that name.
    pub(super) fn by_name(name: &str) -> Option<RuntimeChoice> {
        Self::NAMES.into_iter().find(|(_, of)| *of == name).map(|(choice, _)| choice)
    }
}

/// How a node gets images from registries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryOptions {
    /// Registries (`host[:port]`) that may be spoken to without TLS. Those on loopback always may.
    pub insecure: Vec<String>,
    /// Certificate authorities beyond the system's: PEM files.
    pub authorities: Vec<PathBuf>,
    /// Credentials: a file in the form of Docker's `config.json`, read anew for each pull.
    pub credentials: Option<PathBuf>,
}

impl RegistryOptions {
    /// Reads the files, so that what is wrong with them is told at the start.
    pub(super) fn read(&self) -> Result<RegistryConfig, StartError> {
        let mut config = RegistryConfig { insecure: self.insecure.clone(), ..RegistryConfig::default() };
        for path in &self.authorities {
            config.trust(path).map_err(|source| StartError::Unreadable { path: path.clone(), source })?;
        }
        if let Some(path) = &self.credentials {
            let json = std::fs::read(path)
                .map_err(|source| StartError::Unreadable { path: path.clone(), source })?;
            let keyring = Keyring::of_config(&json)
                .map_err(|why| StartError::Refused(format!("--registry-config {}: {why}", path.display())))?;
            if !keyring.elsewhere().is_empty() {
                let elsewhere = keyring.elsewhere().join(", ");
                tracing::warn!(
                    path = %path.display(),
                    elsewhere,
                    "credentials that are kept by credential helpers or as identity tokens are not used"
                );
            }
        }
        Ok(config)
    }
}
