//! What every pod of a node shares: the runtime, the directories, the node's name and address.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use crate::{
    logic::{
        pod::config::{Around, Places},
        supervision::Backoff,
    },
    runtime::ContainerRuntime,
};

/// The part of a node that its pods see.
pub struct NodeContext {
    /// The node's name.
    pub name: String,
    /// What drives the containers.
    pub runtime: Arc<dyn ContainerRuntime>,
    /// Holds `pods/UID` and `logs/NAMESPACE_NAME_UID`.
    pub dir: PathBuf,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
    /// CrashLoopBackOff.
    pub crash_loop: Backoff,
}

impl NodeContext {
    /// Where the things of one pod are.
    pub fn places(&self, namespace: &str, name: &str, uid: &str) -> Places {
        Places {
            pod_dir: self.dir.join("pods").join(uid),
            log_dir: self.dir.join("logs").join(format!("{namespace}_{name}_{uid}")),
        }
    }

    /// What a pod may ask about its surroundings.
    pub fn around(&self, pod_ip: Option<IpAddr>) -> Around {
        Around { node: self.name.clone(), host_ip: self.host_ip, pod_ip }
    }
}

/// Milliseconds since the epoch. The one place where a kubelet reads the wall clock.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}
