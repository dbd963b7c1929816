//! What pods and containers use, as a CRI runtime tells.
//!
//! Limits: the runtime interface has no word for what is read from and written to disks, so that is read here off the cgroups
//! of pods, where they are Troupe's own (not with systemd's).

use std::{collections::HashMap, path::PathBuf, time::Duration};

use super::{
    client::{Fault, SHORT, fault},
    driver::{Driver, blocking},
    labels,
    labels::Sandbox,
    proto,
};
use crate::runtime::{ContainerId, RuntimeError, SandboxStats, Usage, native::usage};

/// A container that has ended is gone from the runtime's lists after some hundredths of a second. So many pauses has one
/// reading.
const PAUSES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(25);

/// What each has read and written, and nothing else.
type Io<K> = HashMap<K, Usage>;

impl Driver {
    pub(super) async fn stats(&self) -> Result<Vec<SandboxStats>, RuntimeError> {
        let label_selector = labels::selector(&self.root);
        let request = proto::ListContainerStatsRequest {
            filter: Some(proto::ContainerStatsFilter { label_selector: label_selector.clone() }),
        };
        let asked: Result<proto::ListContainerStatsResponse, Fault> =
            self.client.runtime("ListContainerStats", &request, SHORT).await;
        let containers = asked.map_err(fault("ask what containers use"))?.stats;
        let places = self.places().await?;
        let sandboxes: Vec<_> =
            self.sandboxes(None).await?.into_iter().filter(|sandbox| sandbox.ready).collect();
        let pods = self.pod_stats(label_selector, &sandboxes).await?;
        let mut placed: HashMap<&str, Vec<(&String, &proto::ContainerStats)>> = HashMap::new();
        for stats in &containers {
            let id = stats.attributes.as_ref().map(|of| &of.id);
            if let Some((id, place)) = id.and_then(|id| Some((id, places.get(id)?))) {
                placed.entry(place.as_str()).or_default().push((id, stats));
            }
        }
        let of_sandbox_id = |id: &str| placed.get(id).map(Vec::as_slice).unwrap_or_default();
        let mut wanted: Vec<(PathBuf, Vec<String>)> = Vec::new();
        for sandbox in &sandboxes {
            let ids = of_sandbox_id(&sandbox.id).iter().map(|(id, _)| (*id).clone());
            wanted.extend(sandbox.record.cgroup.clone().map(|group| (group, ids.collect())));
        }
        let (io, io_of_pods) = self.io(wanted).await?;
        let mut all = Vec::new();
        for sandbox in &sandboxes {
            let of_pod: Vec<_> = of_sandbox_id(&sandbox.id)
                .iter()
                .map(|(id, stats)| {
                    let usage = of_container(stats).plus(&io.get(*id).copied().unwrap_or_default());
                    let id = ContainerId((*id).clone());
                    let usage = self.steady.container(&id, usage);
                    (id, usage)
                })
                .collect();
            let told = pods.iter().find(|of| of.attributes.as_ref().is_some_and(|of| of.id == sandbox.id));
            let told = told.and_then(|told| told.linux.as_ref());
            let sum = of_pod.iter().fold(Usage::default(), |sum, (_, of)| sum.plus(of));
            let network = told.and_then(|told| {
                let link = told.network.as_ref()?.default_interface.as_ref()?;
                Some((number(&link.rx_bytes)?, number(&link.tx_bytes)?))
            });
            let of_group = sandbox.record.cgroup.as_ref().and_then(|group| io_of_pods.get(group)).copied();
            let cpu_ns = told.and_then(|told| number(&told.cpu.as_ref()?.usage_core_nano_seconds));
            let own = Usage { cpu_ns, ..of_group.unwrap_or_default() };
            let counters = self.steady.pod(&sandbox.uid, &own, &of_pod);
            all.push(SandboxStats {
                uid: sandbox.uid.clone(),
                total: told.map_or(sum, |told| of_sandbox(told, sum)).counted(counters),
                network: network.filter(|_| !sandbox.record.host_network),
                containers: of_pod,
            });
        }
        let known = all.iter().flat_map(|pod: &SandboxStats| &pod.containers).map(|(id, _)| id.clone());
        self.steady.keep(&known.collect(), &all.iter().map(|pod| pod.uid.clone()).collect());
        Ok(all)
    }

    /// What pods use, as far as the runtime tells.
    async fn pod_stats(
        &self,
        label_selector: HashMap<String, String>,
        sandboxes: &[Sandbox],
    ) -> Result<Vec<proto::PodSandboxStats>, RuntimeError> {
        let request = proto::ListPodSandboxStatsRequest {
            filter: Some(proto::PodSandboxStatsFilter { label_selector }),
        };
        let asked: Result<proto::ListPodSandboxStatsResponse, Fault> =
            self.client.runtime("ListPodSandboxStats", &request, SHORT).await;
        let mut all = match asked {
            Ok(asked) => asked.stats,
            // Runtimes older than Kubernetes 1.23 tell of containers alone.
            Err(fault) if fault.is_unimplemented() => return Ok(Vec::new()),
            // While a container ends containerd leaves its pod out, or refuses the whole list.
            Err(Fault::Refused(_, why)) => {
                tracing::debug!(why, "what pods use is asked one by one");
                Vec::new()
            }
            Err(other) => return Err(other.of("ask what pods use")),
        };
        let mut pauses = PAUSES;
        for sandbox in sandboxes {
            let is_told =
                |of: &proto::PodSandboxStats| of.attributes.as_ref().is_some_and(|of| of.id == sandbox.id);
            let request = proto::PodSandboxStatsRequest { pod_sandbox_id: sandbox.id.clone() };
            while !all.iter().any(is_told) {
                let asked: Result<proto::PodSandboxStatsResponse, Fault> =
                    self.client.runtime("PodSandboxStats", &request, SHORT).await;
                match asked {
                    Ok(asked) => {
                        all.extend(asked.stats);
                        break;
                    }
                    Err(fault) if fault.is_unimplemented() => return Ok(all),
                    Err(Fault::Refused(..)) if pauses > 0 => {
                        pauses -= 1;
                        tokio::time::sleep(PAUSE).await;
                    }
                    // One that is gone, or is refused for good: its containers are told alone.
                    Err(Fault::Refused(_, why)) => {
                        tracing::debug!(why, pod = %sandbox.uid, "what a pod uses is not told");
                        break;
                    }
                    Err(other) => return Err(other.of("ask what a pod uses")),
                }
            }
        }
        Ok(all)
    }

    /// What containers have read and written, by their ids, and pods, by their groups: given are groups with the containers
    /// in each.
    async fn io(&self, of: Vec<(PathBuf, Vec<String>)>) -> Result<(Io<String>, Io<PathBuf>), RuntimeError> {
        let Some(hierarchies) = self.cgroups.clone() else { return Ok(Default::default()) };
        blocking(move || {
            let (mut containers, mut pods) = (HashMap::new(), HashMap::new());
            for (group, ids) in of {
                for id in ids {
                    // As CRI-O has it.
                    let groups = [group.join(&id), group.join(format!("crio-{id}"))];
                    let told = groups.iter().map(|group| usage::container_io(&hierarchies, group));
                    let told = told.reduce(|one, other| if one.io_bytes.is_some() { one } else { other });
                    containers.insert(id, told.unwrap_or_default());
                }
                let told = usage::io(&hierarchies, &group);
                pods.insert(group, told);
            }
            Ok((containers, pods))
        })
        .await
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
        writable_inodes: stats.writable_layer.as_ref().and_then(|layer| number(&layer.inodes_used)),
        ..Usage::default()
    }
}

/// What is told of a pod, else what its containers use together.
fn of_sandbox(told: &proto::LinuxPodSandboxStats, sum: Usage) -> Usage {
    Usage {
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
