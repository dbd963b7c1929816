//! Reads what the node and its pods use, slowly, and tells it when it is asked for.
//!
//! Owns: the recent readings. The arithmetic is [`crate::logic::usage`]. Limits: a reading costs the runtime a few small
//! files a container; it is taken every 15 s, and once more when somebody asks and the last one is not of this second.

use std::{collections::HashMap, fs};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::io::AsyncWriteExt as _;

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    streams::refuse,
};
use crate::{
    logic::usage::{ContainerReading, Counters, PodReading, Reading},
    model::Uid,
    net::Responder,
    runtime::{ContainerId, RuntimeError, SandboxStats, Usage},
};

/// A reading is as good as new for so long.
const FRESH_MS: i64 = 1_000;

impl Kubelet {
    /// Takes a reading.
    pub(super) fn read_usage(&mut self, ctx: &mut Context<Self>) {
        let (node, known) = (self.seed.node.clone(), self.known());
        let reading = async move { read(&node, &known).await };
        ctx.spawn(reading.into_actor(self).map(|reading, kubelet, _| {
            kubelet.keep_reading(reading.map(|(reading, _)| reading));
        }));
    }

    pub(super) fn keep_reading(&mut self, reading: Result<Reading, RuntimeError>) {
        match reading {
            Ok(reading) => self.readings.add(reading),
            // Said by the answer to whoever asks.
            Err(error) => tracing::debug!(%error, "what pods use is not known"),
        }
    }

    /// Answers with what the node and its pods use, as JSON.
    pub(super) fn tell_usage(&mut self, responder: Responder, ctx: &mut Context<Self>) {
        let fresh = self.readings.latest_ms().is_some_and(|at| now_ms() - at < FRESH_MS);
        let (node, known) = (self.seed.node.clone(), self.known());
        let reading = async move { if fresh { None } else { Some(read(&node, &known).await) } };
        ctx.spawn(reading.into_actor(self).map(|reading, kubelet, _| {
            match reading {
                Some(Err(error)) => return refuse(responder, 503, error.to_string()),
                Some(Ok((reading, _))) => kubelet.keep_reading(Ok(reading)),
                None => {}
            }
            answer(responder, &kubelet.readings.usage());
        }));
    }
}

/// Sends an answer as JSON.
pub(super) fn answer(responder: Responder, answer: &impl serde::Serialize) {
    send(responder, serde_json::to_vec(answer).unwrap_or_default());
}

/// Sends an answer as it is.
pub(super) fn send(responder: Responder, answer: Vec<u8>) {
    tokio::spawn(async move {
        let Ok(mut stream) = responder.accept().await else { return };
        let sent = async {
            stream.write.write_all(&answer).await?;
            stream.write.shutdown().await
        };
        if let Err(error) = sent.await {
            tracing::debug!(%error, "what pods use did not reach the master");
        }
    });
}

/// What the kubelet has been told of its pods: the runtime knows them by their ids.
#[derive(Default)]
pub(super) struct Known {
    /// Namespace and name.
    pub pods: HashMap<Uid, (String, String)>,
    /// Name, and when it started.
    pub containers: HashMap<ContainerId, (String, i64)>,
}

impl Kubelet {
    pub(super) fn known(&self) -> Known {
        let mut known = Known::default();
        for (uid, entry) in &self.pods {
            let pod = entry.pod();
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            known.pods.insert(uid.clone(), (text(&pod.metadata.namespace), text(&pod.metadata.name)));
            known.containers.extend(entry.running_containers());
        }
        known
    }
}

/// What there is to be read: what rates are made of, and all of it.
pub(super) async fn read(
    node: &NodeContext,
    known: &Known,
) -> Result<(Reading, Vec<SandboxStats>), RuntimeError> {
    let stats = node.runtime.stats().await?;
    // After the work: what was read is of now.
    let at_ms = now_ms();
    let pods = stats.iter().filter_map(|pod| {
        let (namespace, name) = known.pods.get(&pod.uid)?.clone();
        let read = pod.containers.iter().filter_map(|(id, usage)| {
            let (name, started_ms) = known.containers.get(id)?.clone();
            Some(ContainerReading { id: id.0.clone(), name, started_ms, counters: counters(usage) })
        });
        Some(PodReading { namespace, name, containers: read.collect() })
    });
    let reading = Reading { at_ms, machine: machine(), pods: pods.collect() };
    Ok((reading, stats))
}

fn counters(usage: &Usage) -> Counters {
    Counters { cpu_ns: usage.cpu_ns, memory_bytes: usage.working_set_bytes }
}

/// The machine's own counters.
fn machine() -> Counters {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    Counters { cpu_ns: busy_ns(&text("/proc/stat")), memory_bytes: memory_used(&text("/proc/meminfo")) }
}

/// Processor time that was not idle, from `/proc/stat`: its ticks are hundredths of a second on every Linux.
fn busy_ns(stat: &str) -> Option<u64> {
    const NS_PER_TICK: u64 = 10_000_000;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    // user nice system idle iowait irq softirq steal; what guests use is within user.
    let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((ticks.iter().sum::<u64>() - idle).saturating_mul(NS_PER_TICK))
}

/// Memory that programs could not have, from `/proc/meminfo`.
fn memory_used(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let rest = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        rest.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    Some(kib("MemTotal:")?.saturating_sub(kib("MemAvailable:")?) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_from_its_files() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1 1 1 1\n";
        assert_eq!(busy_ns(stat), Some(25 * 10_000_000));
        assert_eq!(memory_used("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable:   40 kB\n"), Some(60 * 1024));
        assert_eq!((busy_ns("cpu"), memory_used("")), (None, None));
    }
}
