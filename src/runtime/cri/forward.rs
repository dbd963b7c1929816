//! Where pods' networks are, for connections from inside of them.

use std::path::PathBuf;

use super::{
    client::{Fault, SHORT},
    driver::Driver,
    proto,
};
use crate::{model::Uid, runtime::RuntimeError};

impl Driver {
    /// The network that a pod's ports are in: its namespace, or the node's.
    pub(super) async fn network_of(&self, pod: &Uid) -> Result<Option<PathBuf>, RuntimeError> {
        let found = self.sandboxes(Some(pod)).await?.into_iter().find(|sandbox| sandbox.ready);
        let sandbox = found.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?;
        match sandbox.record.host_network {
            true => Ok(None),
            false => self.network_namespace(&sandbox.id).await.map(|path| Some(path.into())),
        }
    }

    /// Where a sandbox' network namespace is, by its first process: runtimes tell that beyond the interface.
    async fn network_namespace(&self, id: &str) -> Result<String, RuntimeError> {
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let asked: Result<proto::PodSandboxStatusResponse, Fault> =
            self.client.runtime("PodSandboxStatus", &request, SHORT).await;
        let found = asked.map_err(|fault| fault.of("look at a sandbox"))?;
        let info =
            found.info.get("info").and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok());
        let pid = info.and_then(|info| info.get("pid")?.as_i64()).filter(|pid| *pid > 1);
        pid.map(|pid| format!("/proc/{pid}/ns/net"))
            .ok_or(RuntimeError::Unsupported(self.name, "forward ports of pods"))
    }
}
