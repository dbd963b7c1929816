//! The composition root: the only place that starts actors.
//!
//! Owns: which actors make a [`Master`], a [`Node`] and a whole [`Cluster`], in which order they start and stop, and the
//! data directory's layout. Leaves out every decision: it only wires.
//!
//! ```text
//! DIR/lock format …      the store            DIR/images         images, shared by this machine's nodes
//! DIR/pki/ca.crt ca.key  the authority        DIR/nodes/NAME     a node's containers, pods and logs
//! DIR/pki/sa.key         signs tokens         DIR/ready          exists while the API serves
//! DIR/admin.kubeconfig   for kubectl          DIR/node.json      whose a joined node is, and where
//! DIR/pki/node.*         a joined node's own
//!                                             DIR/namespaces     who holds an ordinary user's
//! ```

mod address;
mod certificates;
mod client;
mod cluster;
mod config;
mod cri;
mod docker;
mod files;
mod guard;
mod install;
mod joined;
mod kubeconfig;
mod login;
mod master;
mod membership;
mod network;
mod node;
mod notify;
mod reset;
mod restore;
pub mod rootless;
mod runtime;
mod said;
#[doc(hidden)]
pub mod simulation;
mod telemetry;
mod token_key;
mod trees;
mod up;

pub use client::{Client, ClientError, WatchEvent, Watcher};
pub use cluster::{Cluster, ClusterConfig};
pub use config::{Persistence, RegistryOptions, RuntimeChoice};
pub use files::raise_open_files;
pub use install::{InstallOptions, Role, install};
pub use joined::{NodeOptions, node};
pub use login::NodeLogin;
pub use master::{CERTIFICATES, Master, MasterConfig};
pub use network::names as network_names;
pub use node::{Node, NodeConfig};
pub use reset::{ResetOptions, reset};
pub use restore::{RestoreOptions, restore};
pub use telemetry::{Render, init_metrics, init_tracing};
pub use up::{UpOptions, up};

pub use crate::actors::kubelet::KubeletSettings;
use crate::{api::ServeError, net::NetError, runtime::RuntimeError, store::StoreError};

/// Why something did not start. The text names what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Certificates or the links' port.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The API.
    #[error(transparent)]
    Api(#[from] ServeError),
    /// The container runtime.
    #[error("the container runtime cannot be used: {0}")]
    Runtime(#[from] RuntimeError),
    /// What this process may not or cannot do, line by line.
    #[error("{0}")]
    Refused(String),
    /// A file that somebody named.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of the data directory.
    #[error("cannot write {path}: {source}")]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}
