//! What is chosen at start.

use std::path::PathBuf;

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
    /// else an explanation.
    #[default]
    Auto,
    /// The embedded OCI runtime.
    Native,
    /// A Docker engine on this machine.
    Docker,
    /// Simulated containers.
    Sim,
}
