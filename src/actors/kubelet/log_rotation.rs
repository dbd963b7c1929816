//! Keeps logs small that a runtime writes and does not rotate by itself.
//!
//! Owns: Kubernetes' container log manager: full logs are renamed and the runtime is told to begin new ones. Invariant: a
//! log that the runtime does not begin anew gets its name back, so that nothing is written where nobody reads it.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use actix::{AsyncContext as _, Context, WrapFuture as _};

use super::{Kubelet, NodeContext};
use crate::runtime::{ContainerId, ContainerState, RuntimeError, logs};

/// How often logs are looked at: the kubelet's `containerLogMonitorInterval`.
pub(super) const PERIOD: Duration = Duration::from_secs(10);

impl Kubelet {
    /// Looks at the logs of all running containers, if the runtime leaves that to us.
    pub(super) fn rotate_logs(&mut self, ctx: &mut Context<Self>) {
        let node = self.seed.node.clone();
        if node.runtime.rotates_logs() {
            return;
        }
        ctx.spawn(
            async move {
                if let Err(error) = rotate_logs(&node).await {
                    tracing::warn!(%error, "logs could not be rotated");
                }
            }
            .into_actor(self),
        );
    }
}

async fn rotate_logs(node: &Arc<NodeContext>) -> Result<(), RuntimeError> {
    let sandboxes = node.runtime.list_pod_sandboxes().await?;
    for container in node.runtime.list_containers().await? {
        let Some(sandbox) = sandboxes.iter().find(|sandbox| sandbox.uid == container.pod) else { continue };
        if container.state != ContainerState::Running {
            continue;
        }
        let places = node.places(&sandbox.namespace, &sandbox.name, sandbox.uid.as_str());
        let log = places.log(&container.name, container.attempt);
        if let Err(error) = rotate_log(node, &container.id, &log).await {
            tracing::warn!(container = %container.id, %error, "its log is not rotated");
        }
    }
    Ok(())
}

/// Rotates a log if it is full.
async fn rotate_log(node: &NodeContext, id: &ContainerId, log: &Path) -> Result<(), RuntimeError> {
    let limits = node.settings.container_log;
    let failed = |cause: std::io::Error| RuntimeError::System {
        operation: format!("rotate {}", log.display()),
        cause: cause.to_string(),
    };
    if !std::fs::metadata(log).is_ok_and(|meta| meta.len() >= limits.max_bytes) {
        return Ok(());
    }
    let renamed = logs::rotate(log, limits, SystemTime::now()).map_err(failed)?;
    if let Err(error) = node.runtime.reopen_log(id).await {
        std::fs::rename(&renamed, log).map_err(failed)?;
        return Err(error);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actors::{kubelet::Starts, testing::system},
        logic::supervision::Backoff,
        runtime::sim::{SimConfig, SimMachine, SimRuntime},
    };

    #[test]
    fn a_log_that_the_runtime_does_not_begin_anew_keeps_its_name() {
        system(async {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("0.log");
            std::fs::write(&log, "0123456789").unwrap();
            let limits = logs::LogLimits { max_bytes: 10, max_files: 2 };
            let node = NodeContext {
                name: "n".into(),
                // It refuses to reopen logs.
                runtime: Arc::new(SimRuntime::open(SimMachine::new(SimConfig::default()).unwrap())),
                dir: dir.path().into(),
                host_ip: None,
                crash_loop: Backoff::CRASH_LOOP,
                configs: Default::default(),
                starts: Starts::default(),
                ledger: Default::default(),
                registry_config: None,
                settings: super::super::KubeletSettings { container_log: limits, ..Default::default() },
            };
            assert!(rotate_log(&node, &ContainerId("c".into()), &log).await.is_err());
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "0123456789");
            std::fs::write(&log, "small").unwrap();
            rotate_log(&node, &ContainerId("c".into()), &log).await.unwrap();
        });
    }
}
