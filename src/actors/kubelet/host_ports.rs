//! A pod's ports of the machine, around its sandbox.
//!
//! Owns: the order. Ports are opened before the sandbox is made, so that a pod whose port is taken has none and waits; they
//! lead to its address once it has one; they are closed before the sandbox is. A guard of the pod's actor: they end with it.
//! Which ports is [`crate::logic::pod::host_ports`], the sockets are [`crate::net::relay`].

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::core::v1;
use tokio::sync::Mutex;

use super::{context::NodeContext, start::run_sandbox};
use crate::{
    logic::pod::host_ports::asked,
    model::Uid,
    net::relay::{Held, RelayError, Relays},
    runtime::SandboxStatus,
};

/// One pod's.
#[derive(Clone, Default)]
pub struct PodPorts(Arc<Mutex<Option<Relays>>>);

impl PodPorts {
    /// Makes a pod's sandbox with its ports.
    ///
    /// # Errors
    /// A sentence: then none of the ports is there. A sandbox may be, which the next try takes over.
    pub async fn run_sandbox(
        &self,
        node: Arc<NodeContext>,
        pod: Arc<v1::Pod>,
    ) -> Result<SandboxStatus, String> {
        let mut own = self.0.lock().await;
        let told = |error: RelayError| error.to_string();
        let held = open(&mut own, &node, &pod).await.map_err(told)?;
        let status = run_sandbox(node, pod).await?;
        if let Some(held) = held {
            let ip =
                status.ip.ok_or("its host ports lead nowhere: the runtime names no address of the pod")?;
            *own = Some(held.lead(ip).map_err(told)?);
        }
        Ok(status)
    }

    /// Opens the ports of a pod whose sandbox is there, if they are not: a later sandbox came with its own.
    ///
    /// # Errors
    /// When one cannot be had.
    pub async fn resume(&self, node: &NodeContext, pod: &v1::Pod, ip: IpAddr) -> Result<(), RelayError> {
        let mut own = self.0.lock().await;
        if own.is_some() {
            return Ok(());
        }
        if let Some(held) = open(&mut own, node, pod).await? {
            *own = Some(held.lead(ip)?);
        }
        Ok(())
    }

    /// Waits until the ports that are open now have failed, or have been ended: whether they failed.
    pub async fn failed(&self) -> bool {
        let failed = self.0.lock().await.as_ref().map(Relays::failed);
        match failed {
            Some(failed) => failed.await,
            None => false,
        }
    }

    /// Closes them; they are free when this returns.
    pub async fn end(&self) {
        if let Some(relays) = self.0.lock().await.take() {
            relays.end().await;
        }
    }
}

/// Opens what a pod asks for, after what it had is closed. Nothing where pods have no addresses.
async fn open(
    own: &mut Option<Relays>,
    node: &NodeContext,
    pod: &v1::Pod,
) -> Result<Option<Held>, RelayError> {
    drop(own.take());
    let ports = asked(pod).ports;
    if ports.is_empty() || !node.runtime.has_network() {
        return Ok(None);
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (meta, uid) = (&pod.metadata, Uid::from(text(&pod.metadata.uid)));
    let name = format!("{}/{}", text(&meta.namespace), text(&meta.name));
    node.host.open(&uid, &name, ports).await.map(Some)
}
