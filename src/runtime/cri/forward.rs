//! Connections into pods, from inside their network.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use super::{
    client::{Fault, SHORT},
    driver::Driver,
    proto,
};
use crate::{model::Uid, runtime::RuntimeError};

/// On a pod's own loopback a connection is made or refused at once.
const CONNECT: Duration = Duration::from_secs(10);

impl Driver {
    /// A connection to a port of a pod's loopback.
    pub(super) async fn port_forward(&self, pod: &Uid, port: u16) -> Result<TcpStream, RuntimeError> {
        let found = self.sandboxes(Some(pod)).await?.into_iter().find(|sandbox| sandbox.ready);
        let sandbox = found.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?;
        let namespace = match sandbox.record.host_network {
            true => None,
            false => Some(self.network_namespace(&sandbox.id).await?),
        };
        super::driver::blocking(move || {
            // The thread goes into the pod's network for good, so it is one of its own.
            let connecting = std::thread::Builder::new().spawn(move || {
                if let Some(namespace) = namespace {
                    setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?;
                }
                let stream =
                    TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), CONNECT)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            });
            let connected = connecting.and_then(|thread| {
                thread.join().unwrap_or_else(|_| Err(std::io::Error::other("the thread has died")))
            });
            connected.map_err(super::system(format!("connect to port {port} of the pod")))
        })
        .await
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
