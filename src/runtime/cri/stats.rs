//! What pods and containers use, as a CRI runtime tells.

use std::collections::HashMap;

use super::{
    client::{Fault, SHORT, fault},
    driver::Driver,
    labels, proto,
};
use crate::runtime::{ContainerId, RuntimeError, SandboxStats, Usage};

impl Driver {
    pub(super) async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        let label_selector = labels::selector(&self.root);
        let request = proto::ListContainerStatsRequest {
            filter: Some(proto::ContainerStatsFilter { label_selector: label_selector.clone() }),
        };
        let asked: Result<proto::ListContainerStatsResponse, Fault> =
            self.client.runtime("ListContainerStats", &request, SHORT).await;
        let containers = asked.map_err(fault("ask what containers use"))?.stats;
        let request = proto::ListPodSandboxStatsRequest {
            filter: Some(proto::PodSandboxStatsFilter { label_selector }),
        };
        let asked: Result<proto::ListPodSandboxStatsResponse, Fault> =
            self.client.runtime("ListPodSandboxStats", &request, SHORT).await;
        let pods = match asked {
            Ok(asked) => asked.stats,
            // Runtimes older than Kubernetes 1.23 tell of containers alone.
            Err(fault) if fault.is_unimplemented() => Vec::new(),
            Err(other) => return Err(other.of("ask what pods use")),
        };
        let places = self.places().await?;
        let mut all = Vec::new();
        for sandbox in self.sandboxes(None).await?.into_iter().filter(|sandbox| sandbox.ready) {
            let of_pod = containers.iter().filter_map(|stats| {
                let id = &stats.attributes.as_ref()?.id;
                (places.get(id)? == &sandbox.id).then(|| (ContainerId(id.clone()), of_container(stats)))
            });
            let of_pod: Vec<_> = of_pod.collect();
            let told = pods.iter().find(|of| of.attributes.as_ref().is_some_and(|of| of.id == sandbox.id));
            let told = told.and_then(|told| told.linux.as_ref());
            let sum = of_pod.iter().fold(Usage::default(), |sum, (_, of)| add(sum, of));
            let network = told.and_then(|told| {
                let link = told.network.as_ref()?.default_interface.as_ref()?;
                Some((number(&link.rx_bytes)?, number(&link.tx_bytes)?))
            });
            all.push(SandboxStats {
                uid: sandbox.uid,
                total: told.map_or(sum, |told| of_sandbox(told, sum)),
                network: network.filter(|_| !sandbox.record.host_network),
                containers: of_pod,
            });
        }
        Ok(all)
    }

    /// Which sandbox each running container is in.
    async fn places(&self) -> Result<HashMap<String, String>, RuntimeError> {
        let request = proto::ListContainersRequest {
            filter: Some(proto::ContainerFilter { label_selector: labels::selector(&self.root) }),
        };
        let listed: Result<proto::ListContainersResponse, Fault> =
            self.client.runtime("ListContainers", &request, SHORT).await;
        let listed = listed.map_err(fault("list the runtime's containers"))?.containers.into_iter();
        let running = listed.filter(|found| found.state == proto::state::RUNNING);
        Ok(running.map(|found| (found.id, found.pod_sandbox_id)).collect())
    }
}

fn number(value: &Option<proto::UInt64Value>) -> Option<u64> {
    value.as_ref().map(|value| value.value)
}

fn of_container(stats: &proto::ContainerStats) -> Usage {
    Usage {
        cpu_ns: stats.cpu.as_ref().and_then(|cpu| number(&cpu.usage_core_nano_seconds)),
        working_set_bytes: stats.memory.as_ref().and_then(|memory| number(&memory.working_set_bytes)),
        memory_bytes: stats
            .memory
            .as_ref()
            .and_then(|memory| number(&memory.usage_bytes).filter(|bytes| *bytes > 0)),
        rss_bytes: stats
            .memory
            .as_ref()
            .and_then(|memory| number(&memory.rss_bytes).filter(|bytes| *bytes > 0)),
        writable_bytes: stats.writable_layer.as_ref().and_then(|layer| number(&layer.used_bytes)),
        ..Usage::default()
    }
}

/// What is told of a pod, else what its containers use together.
fn of_sandbox(told: &proto::LinuxPodSandboxStats, sum: Usage) -> Usage {
    Usage {
        cpu_ns: told.cpu.as_ref().and_then(|cpu| number(&cpu.usage_core_nano_seconds)).or(sum.cpu_ns),
        working_set_bytes: told
            .memory
            .as_ref()
            .and_then(|memory| number(&memory.working_set_bytes))
            .or(sum.working_set_bytes),
        memory_bytes: told
            .memory
            .as_ref()
            .and_then(|memory| number(&memory.usage_bytes))
            .or(sum.memory_bytes),
        rss_bytes: told.memory.as_ref().and_then(|memory| number(&memory.rss_bytes)).or(sum.rss_bytes),
        pids: told.process.as_ref().and_then(|process| number(&process.process_count)),
        ..sum
    }
}

fn add(sum: Usage, of: &Usage) -> Usage {
    let both = |a: Option<u64>, b: Option<u64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (a, b) => a.or(b),
    };
    Usage {
        cpu_ns: both(sum.cpu_ns, of.cpu_ns),
        working_set_bytes: both(sum.working_set_bytes, of.working_set_bytes),
        memory_bytes: both(sum.memory_bytes, of.memory_bytes),
        rss_bytes: both(sum.rss_bytes, of.rss_bytes),
        writable_bytes: both(sum.writable_bytes, of.writable_bytes),
        ..sum
    }
}
