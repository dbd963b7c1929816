//! Troupe: a container orchestrator whose every part is an actor.
//!
//! Layers, top to bottom: `cli` | `app` → `api`, [`actors`] → [`messages`] → [`logic`] → [`model`]; actors also use
//! [`net`], [`store`] and [`runtime`]. A program that wants a cluster inside itself starts a [`Cluster`]:
//!
//! ```
//! use std::time::Duration;
//! use k8s_openapi::api::core::v1::Node;
//! use troupe::{Cluster, ClusterConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! actix::System::new().block_on(async {
//!     let cluster = Cluster::start(ClusterConfig::simulated(directory.path()).nodes(["a", "b"])).await?;
//!     cluster.ready(Duration::from_secs(30)).await?;
//!     let nodes: Vec<Node> = cluster.client().list(None, "")?;
//!     assert_eq!(nodes.len(), 2);
//!     cluster.stop().await;
//!     Ok(())
//! })
//! # }
//! ```

pub mod actors;
pub mod api;
pub mod app;
pub mod cli;
#[doc(hidden)]
pub mod fuzzing;
pub mod hello;
pub mod logic;
pub mod messages;
pub mod model;
pub mod net;
pub mod runtime;
pub mod store;

pub use app::{
    Client, ClientError, Cluster, ClusterConfig, Master, MasterConfig, Node, NodeConfig, NodeLogin,
    Persistence, RegistryOptions, RuntimeChoice, StartError, WatchEvent, Watcher,
};
pub use runtime::ContainerRuntime;
