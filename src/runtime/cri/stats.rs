//! What pods and containers use, as a CRI runtime tells.
//!
//! Limits: the runtime interface has no word for what is read from and written to disks, so that is read here off the cgroups
//! of pods, where they are Troupe's own (not with systemd's).

use std::{collections::HashMap, path::Path};

use super::{
    client::{Fault, SHORT, fault},
    driver::Driver,
    labels, proto,
};
use crate::runtime::{
    ContainerId, RuntimeError, SandboxStats, Usage,
    native::{cgroup::Hierarchies, usage},
};

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
        let hierarchies = self.cgroups.as_ref();
        let mut all = Vec::new();
        for sandbox in self.sandboxes(None).await?.into_iter().filter(|sandbox| sandbox.ready) {
            let group = sandbox.record.cgroup.as_deref();
            let of_pod = containers.iter().filter_map(|stats| {
                let id = &stats.attributes.as_ref()?.id;
                (places.get(id)? == &sandbox.id).then(|| {
                    let (id, inside) = (ContainerId(id.clone()), group.map(|group| group.join(id)));
                    let io = hierarchies
                        .zip(inside)
                        .map(|(all, of)| usage::container_io(all, &of, &self.steady, &id));
                    let usage = of_container(stats).plus(&io.unwrap_or_default());
                    (id, usage)
                })
            });
            let of_pod: Vec<_> = of_pod.collect();
            let told = pods.iter().find(|of| of.attributes.as_ref().is_some_and(|of| of.id == sandbox.id));
            let told = told.and_then(|told| told.linux.as_ref());
            let sum = of_pod.iter().fold(Usage::default(), |sum, (_, of)| sum.plus(of));
            let network = told.and_then(|told| {
                let link = told.network.as_ref()?.default_interface.as_ref()?;
                Some((number(&link.rx_bytes)?, number(&link.tx_bytes)?))
            });
            let (of_group, mut total) =
                (io(hierarchies, group), told.map_or(sum, |told| of_sandbox(told, sum)));
            total.io_bytes = of_group.io_bytes.or(total.io_bytes);
            total.io_operations = of_group.io_operations.or(total.io_operations);
            all.push(SandboxStats {
                uid: sandbox.uid,
                total,
                network: network.filter(|_| !sandbox.record.host_network),
                containers: of_pod,
            });
        }
        let known = all.iter().flat_map(|pod: &SandboxStats| &pod.containers).map(|(id, _)| id.clone());
        self.steady.keep(&known.collect());
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

/// What was read and written, and nothing else. A file or two of a file system in memory.
fn io(hierarchies: Option<&Hierarchies>, group: Option<&Path>) -> Usage {
    hierarchies.zip(group).map_or_else(Usage::default, |(all, group)| usage::io(all, group))
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
