//! What pods and containers use, as the engine counts it.
//!
//! Owns: the reading of the engine's statistics, one request a running container. How large writable layers are makes the
//! engine walk through them, so that is asked once for all and not again before a hundred times as long has passed.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bollard::{
    models::ContainerStatsResponse,
    query_parameters::{ListContainersOptions, StatsOptions},
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    driver::{Driver, is_running},
    engine::{fault, is_absent, is_over},
    labels::{self, Kind},
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, RuntimeError, SandboxStats, Usage,
        block::{Devices, below},
        native::steady::Steady,
    },
};

/// Containers that are asked about at once: an engine may answer only when it next counts, once a second, and then all of
/// them. A node has some hundred pods.
const ASKED_AT_ONCE: usize = 256;
/// How old sizes may be: the kubelet's own housekeeping looks once a minute.
const LEAST_AGE: Duration = Duration::from_secs(30);
/// The engine is kept busy with it for at most one hundredth of the time.
const SHARE: u32 = 100;

/// Sizes of writable layers as last seen.
#[derive(Debug, Default)]
pub(super) struct Layers {
    bytes: HashMap<String, u64>,
    again: Option<Instant>,
    /// Counters as they were told.
    steady: Arc<Steady>,
}

impl Driver {
    /// What every pod and every running container in it uses.
    pub(super) async fn stats(self: &Arc<Self>) -> Result<Vec<SandboxStats>, RuntimeError> {
        let sandboxes = self.sandboxes(None).await?;
        let mut all: Vec<SandboxStats> = Vec::new();
        let mut wanted = Vec::new();
        for found in sandboxes.into_iter().filter(|found| found.running) {
            if !found.sandbox.host_network {
                wanted.push((found.sandbox.uid.clone(), found.id, Kind::Sandbox));
            }
            let (uid, total) = (found.sandbox.uid, Usage::default());
            all.push(SandboxStats { uid, total, network: None, containers: Vec::new() });
        }
        for found in self.summaries(Kind::Container, None).await?.into_iter().filter(is_running) {
            let pod = found.labels.as_ref().and_then(labels::kind_and_pod).map(|(_, pod)| pod);
            if let (Some(pod), Some(id)) = (pod, found.id) {
                wanted.push((pod, id, Kind::Container));
            }
        }
        let (sizes, steady) = self.layers().await?;
        let mut counted: HashMap<Uid, Vec<(ContainerId, Usage)>> = HashMap::new();
        let known = wanted.iter().map(|(_, id, _)| ContainerId(id.clone())).collect();
        let told = stream::iter(wanted.into_iter().map(|(pod, id, kind)| {
            let driver = Arc::clone(self);
            async move { Ok::<_, RuntimeError>((pod, driver.usage(&id).await?, id, kind)) }
        }));
        let told: Vec<_> = told.buffered(ASKED_AT_ONCE).try_collect().await?;
        for (pod, stats, id, kind) in told {
            let (Some(stats), Some(of)) = (stats, all.iter_mut().find(|of| of.uid == pod)) else { continue };
            let usage = Usage { writable_bytes: sizes.get(&id).copied(), ..usage(&stats) };
            let usage = steady.container(&ContainerId(id.clone()), usage);
            of.total = of.total.plus(&usage);
            counted.entry(pod).or_default().push((ContainerId(id.clone()), usage));
            match kind {
                Kind::Sandbox => of.network = traffic(&stats),
                Kind::Container => of.containers.push((ContainerId(id), usage)),
            }
        }
        for of in &mut all {
            let running = counted.remove(&of.uid).unwrap_or_default();
            of.total = of.total.counted(steady.pod(&of.uid, &Usage::default(), &running));
        }
        steady.keep(&known, &all.iter().map(|of| of.uid.clone()).collect());
        Ok(all)
    }

    /// One container's statistics; `None` when it is gone or has ended meanwhile.
    async fn usage(&self, id: &str) -> Result<Option<ContainerStatsResponse>, RuntimeError> {
        let options = StatsOptions { stream: false, one_shot: true };
        match std::pin::pin!(self.docker.stats(id, Some(options))).next().await {
            None => Ok(None),
            Some(Ok(stats)) => Ok(Some(stats)),
            Some(Err(error)) if is_absent(&error) || is_over(&error) => Ok(None),
            Some(Err(error)) => Err(fault(format!("ask what container {id} uses"))(error)),
        }
    }

    /// Sizes of all containers' writable layers, and the counters as they were told.
    async fn layers(&self) -> Result<(HashMap<String, u64>, Arc<Steady>), RuntimeError> {
        let mut layers = self.layers.lock().await;
        let begun = Instant::now();
        if layers.again.is_none_or(|again| again <= begun) {
            let filters = Some(labels::filter_kind(&self.root, Kind::Container, None));
            let options = ListContainersOptions { size: true, filters, ..ListContainersOptions::default() };
            let found = self.docker.list_containers(Some(options)).await;
            let found = found.map_err(fault("ask for the sizes of containers"))?;
            let size = |of: Option<i64>| u64::try_from(of.unwrap_or(0)).unwrap_or(0);
            layers.bytes = found.into_iter().filter_map(|of| Some((of.id?, size(of.size_rw)))).collect();
            layers.again = Some(Instant::now() + LEAST_AGE.max(begun.elapsed() * SHARE));
        }
        Ok((layers.bytes.clone(), Arc::clone(&layers.steady)))
    }
}

fn usage(stats: &ContainerStatsResponse) -> Usage {
    let memory = stats.memory_stats.as_ref();
    let memory_bytes = memory.and_then(|memory| memory.usage);
    let of = |name: &str| memory?.stats.as_ref()?.get(name).copied();
    // The first is of the cgroups of version 1, the other of version 2.
    let inactive = of("total_inactive_file").or_else(|| of("inactive_file"));
    let blocks = stats.blkio_stats.as_ref();
    Usage {
        cpu_ns: stats.cpu_stats.as_ref().and_then(|cpu| cpu.cpu_usage.as_ref()?.total_usage),
        working_set_bytes: memory_bytes.map(|bytes| bytes.saturating_sub(inactive.unwrap_or(0))),
        memory_bytes,
        rss_bytes: of("total_rss").or_else(|| of("anon")),
        io_bytes: blocks.and_then(|io| moved(io.io_service_bytes_recursive.as_ref()?)),
        // Cgroups of version 2 count operations as well, but the engine tells of them with version 1 alone.
        io_operations: blocks.and_then(|io| moved(io.io_serviced_recursive.as_ref()?)),
        writable_bytes: None,
        writable_inodes: None,
        pids: stats.pids_stats.as_ref().and_then(|pids| pids.current),
    }
}

/// What was read and written, of all devices; `None` where the engine lists none: kernels of late count nothing in cgroups of
/// version 1 while nobody is throttled.
fn moved(entries: &[bollard::models::ContainerBlkioStatEntry]) -> Option<(u64, u64)> {
    if entries.is_empty() {
        return None;
    }
    let mut devices = Devices::default();
    for entry in entries {
        let (device, value) =
            (format!("{}:{}", entry.major.unwrap_or(0), entry.minor.unwrap_or(0)), entry.value.unwrap_or(0));
        match entry.op.as_deref().map(str::to_ascii_lowercase).as_deref() {
            Some("read") => devices.add(device, (value, 0)),
            Some("write") => devices.add(device, (0, value)),
            _ => {}
        }
    }
    Some(devices.sum(below))
}

fn traffic(stats: &ContainerStatsResponse) -> Option<(u64, u64)> {
    let networks = stats.networks.as_ref()?;
    let sum = |of: fn(&bollard::models::ContainerNetworkStats) -> Option<u64>| {
        networks.values().filter_map(of).sum()
    };
    Some((sum(|network| network.rx_bytes), sum(|network| network.tx_bytes)))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::{UnixListener, UnixStream},
        sync::Barrier,
    };

    use super::*;
    use crate::runtime::{ContainerConfig, SandboxConfig, docker::DockerConfig};

    const PODS: usize = 60;

    fn summaries(kind: Kind) -> Value {
        let of = |pod: usize| {
            let config = SandboxConfig { uid: format!("u{pod}"), ..SandboxConfig::default() };
            let labels = labels::of_sandbox("/r", &config, 1);
            let labels = match kind {
                Kind::Sandbox => labels,
                Kind::Container => labels::of_container(
                    "/r",
                    &labels::Sandbox::read(&labels).unwrap(),
                    &ContainerConfig::default(),
                ),
            };
            let id = format!("{}{pod}", kind.as_str());
            let name = format!("/{}", labels::name("/r", &[&id]));
            json!({"Id": id, "Names": [name], "State": "running", "Labels": labels})
        };
        (0..PODS).map(of).collect()
    }

    /// An engine that tells what containers use when it has been asked about all of them.
    async fn answer(stream: UnixStream, asked: Arc<Barrier>) -> std::io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(request) = lines.next_line().await? {
            while lines.next_line().await?.is_some_and(|line| !line.is_empty()) {}
            let body = if request.contains("/version") {
                json!({"Version": "1", "ApiVersion": "1.41"})
            } else if request.contains("/stats") {
                asked.wait().await;
                json!({"pids_stats": {"current": 7}})
            } else if request.contains("size=true") {
                json!([])
            } else {
                summaries(if request.contains("sandbox") { Kind::Sandbox } else { Kind::Container })
            };
            let body = body.to_string();
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
            write.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn an_engine_is_asked_about_all_containers_of_a_full_node_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Barrier::new(2 * PODS));
        let engine = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&asked)));
            }
        });
        let config = DockerConfig { root: PathBuf::from("/r"), socket, program: PathBuf::new() };
        let driver = Arc::new(Driver::new(config).await.unwrap());
        let told = tokio::time::timeout(Duration::from_secs(20), driver.stats()).await;
        let told = told.expect("it waits for the others").unwrap();
        assert_eq!(told.len(), PODS);
        assert!(
            told.iter().all(|pod| pod.total.pids == Some(14) && pod.containers.len() == 1),
            "{:?}",
            told[0]
        );
        engine.abort();
    }
}
