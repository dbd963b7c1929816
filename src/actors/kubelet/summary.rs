//! Answers the kubelet's Summary API and its pages for Prometheus: what the node and its pods use, as it is right now.
//!
//! Owns: gathering, and how large pods' files are. The forms are [`crate::logic::summary`] and
//! [`crate::logic::exposition`]. Limits: logs and volumes are measured
//! by walking through them, so what was measured last is told again for a while: a hundred times as long as it took.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::api::core::v1;
use tokio::sync::Mutex;

use super::{
    Kubelet, NodeContext,
    eviction::Files,
    machine,
    stats::{self, Known},
    streams::refuse,
};
use crate::{
    actors::outside,
    logic::{
        disks::{Disks, Io},
        exposition,
        outward::Outward,
        pod::config::{Places, sizes},
        summary::{Amounts, Disk, OfContainer, OfNode, OfPod, summary},
        usage::{NodeUsage, Reading},
    },
    model::Uid,
    net::Responder,
    runtime::{RuntimeError, SandboxStats, Usage, devices},
};

/// How old a measurement may be in any case.
const LEAST_AGE: Duration = Duration::from_secs(10);
/// Measuring takes at most this share of a core: one hundredth.
const SHARE: u32 = 100;

/// What pods' files were measured last.
#[derive(Default)]
pub(super) struct Measured {
    again: Option<Instant>,
    files: Arc<HashMap<Uid, Files>>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    /// `stats/summary`.
    Summary,
    /// `metrics/resource`.
    Resource,
    /// `metrics/cadvisor`.
    Cadvisor,
}

/// A pod to be told of.
struct Subject {
    pod: Arc<v1::Pod>,
    places: Places,
    /// As the master knows it.
    told: Uid,
}

impl Kubelet {
    /// Answers with the summary, or with a page for Prometheus.
    pub(super) fn tell_summary(&mut self, page: Page, responder: Responder, ctx: &mut Context<Self>) {
        let (node, known, measured) = (self.seed.node.clone(), self.known(), self.measured.clone());
        let subjects = self.pods.iter().map(|(uid, entry)| {
            let (pod, text) = (entry.pod(), |text: &Option<String>| text.clone().unwrap_or_default());
            let meta = &pod.metadata;
            let places = node.places(&text(&meta.namespace), &text(&meta.name), uid.as_str());
            (uid.clone(), Subject { told: self.manifests.told_uid(uid.clone()), pod, places })
        });
        let subjects: HashMap<Uid, Subject> = subjects.collect();
        let work = async move {
            let read = stats::read(&node, &known).await?;
            let files = match page {
                Page::Summary => measure(&measured, &subjects).await,
                // Nothing there is about logs and volumes.
                Page::Resource | Page::Cadvisor => Arc::default(),
            };
            Ok::<_, RuntimeError>((node, known, subjects, read, files))
        };
        ctx.spawn(work.into_actor(self).map(move |outcome, kubelet, _| {
            let (node, known, subjects, (reading, all), files) = match outcome {
                Ok(gathered) => gathered,
                Err(error) => return refuse(responder, 503, error.to_string()),
            };
            let (at_ms, mut of_machine) =
                (reading.at_ms, of_node(&node, &reading, &mut kubelet.disks, &mut kubelet.outward));
            kubelet.keep_reading(Ok(reading));
            let rates = kubelet.readings.usage();
            let pods = all.iter().filter_map(|pod| {
                let subject = subjects.get(&pod.uid)?;
                Some(of_pod(pod, subject, &known, files.get(&pod.uid), &rates))
            });
            of_machine.amounts.cpu_nano = rates.machine.map(|rate| rate.cpu_nano);
            let pods: Vec<OfPod> = pods.collect();
            match page {
                Page::Summary => stats::answer(responder, &summary(at_ms, of_machine, pods)),
                Page::Resource => {
                    stats::send(responder, exposition::resource(&of_machine, &pods).into_bytes());
                }
                Page::Cadvisor => {
                    stats::send(responder, exposition::cadvisor(&of_machine, &pods).into_bytes());
                }
            }
        }));
    }
}

/// How large pods' files are: one measures at a time, the others wait for it.
async fn measure(measured: &Mutex<Measured>, subjects: &HashMap<Uid, Subject>) -> Arc<HashMap<Uid, Files>> {
    let mut measured = measured.lock().await;
    let begun = Instant::now();
    if measured.again.is_none_or(|again| again <= begun) {
        let of: Vec<_> = subjects
            .iter()
            .map(|(uid, subject)| (uid.clone(), subject.pod.clone(), subject.places.clone()))
            .collect();
        let work = outside::blocking(move || {
            of.into_iter().map(|(uid, pod, places)| (uid, Files::of(&pod, &places))).collect()
        });
        // A walk that panicked measured nothing.
        measured.files = Arc::new(work.await.unwrap_or_default());
        measured.again = Some(Instant::now() + LEAST_AGE.max(begun.elapsed() * SHARE));
    }
    measured.files.clone()
}

fn amounts(usage: &Usage) -> Amounts {
    Amounts {
        cpu_ns: usage.cpu_ns,
        cpu_nano: None,
        memory_bytes: usage.memory_bytes,
        working_set_bytes: usage.working_set_bytes,
        rss_bytes: usage.rss_bytes,
        limit_bytes: None,
        io_bytes: usage.io_bytes,
        io_operations: usage.io_operations,
    }
}

fn of_pod(
    pod: &SandboxStats,
    subject: &Subject,
    known: &Known,
    files: Option<&Files>,
    rates: &NodeUsage,
) -> OfPod {
    let (namespace, name) = known.pods.get(&pod.uid).cloned().unwrap_or_default();
    let rates = rates.pods.iter().find(|of| of.namespace == namespace && of.name == name);
    let rates = rates.map(|of| of.containers.as_slice()).unwrap_or_default();
    let rate = |name: &str| rates.iter().find(|(of, _)| of == name).map(|(_, rate)| rate.cpu_nano);
    let spec = subject.pod.spec.as_ref();
    let lasting = |name: &str| spec?.containers.iter().find(|container| container.name == name);
    let image = |name: &str| {
        let others = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
        let container = lasting(name).or_else(|| others.into_iter().find(|container| container.name == name));
        let debuggers = spec.and_then(|spec| spec.ephemeral_containers.as_ref()).into_iter().flatten();
        let debugger = debuggers.into_iter().find(|container| container.name == name);
        let image = container.map_or_else(|| debugger?.image.as_ref(), |container| container.image.as_ref());
        image.cloned().unwrap_or_default()
    };
    let limit = |name: &str| {
        let container = lasting(name)?;
        let limit = sizes(container.resources.as_ref()).memory_limit_bytes;
        u64::try_from(limit).ok().filter(|bytes| *bytes > 0)
    };
    let containers: Vec<OfContainer> = pod
        .containers
        .iter()
        .filter_map(|(id, usage)| {
            let (name, started_ms) = known.containers.get(id)?.clone();
            let (cpu_nano, limit_bytes) = (rate(&name), limit(&name));
            Some(OfContainer {
                amounts: Amounts { cpu_nano, limit_bytes, ..amounts(usage) },
                id: id.0.clone(),
                image: image(&name),
                pids: usage.pids,
                writable_bytes: usage.writable_bytes,
                log_bytes: files.map(|files| files.logs.get(&name).copied().unwrap_or(0)),
                name,
                started_ms,
            })
        })
        .collect();
    let cpu_nano = containers.iter().map(|container| container.amounts.cpu_nano).sum();
    let limit_bytes = spec.and_then(|spec| spec.containers.iter().map(|c| limit(&c.name)).sum());
    let started = subject.pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    OfPod {
        namespace,
        name,
        uid: subject.told.to_string(),
        started_ms: started.map_or_else(
            || containers.iter().map(|container| container.started_ms).min().unwrap_or(0),
            |time| time.0.as_millisecond(),
        ),
        amounts: Amounts { cpu_nano, limit_bytes, ..amounts(&pod.total) },
        network: pod.network,
        pids: pod.total.pids,
        containers,
        volumes: files
            .map(|files| files.volumes.iter().map(|(name, bytes)| (name.clone(), *bytes)).collect()),
    }
}

fn of_node(node: &NodeContext, reading: &Reading, disks: &mut Disks, outward: &mut Outward) -> OfNode {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let left = machine::left(node);
    let (pids_left, pids) = left.pids;
    let memory = read("/proc/meminfo");
    let line = |name: &str| Some(machine::meminfo(&memory, name)).filter(|bytes| *bytes > 0);
    let io = disks.sum(disks_io(&read("/proc/diskstats"), is_disk));
    OfNode {
        name: node.name.clone(),
        started_ms: booted_ms(&read("/proc/stat")),
        amounts: Amounts {
            cpu_ns: reading.machine.cpu_ns,
            cpu_nano: None,
            memory_bytes: line("MemTotal:").zip(line("MemFree:")).map(|(all, free)| all.saturating_sub(free)),
            working_set_bytes: reading.machine.memory_bytes,
            rss_bytes: line("AnonPages:"),
            limit_bytes: line("MemTotal:"),
            io_bytes: io.map(|io| io.bytes),
            io_operations: io.map(|io| io.operations),
        },
        network: default_device(&read("/proc/net/route"), &read("/proc/net/dev")).map(
            |(name, received, sent)| {
                let (received, sent) = outward.sum(&name, (received, sent));
                (name, received, sent)
            },
        ),
        disk: disk(left.disk, left.inodes),
        image_disk: disk(left.image_disk, left.image_inodes),
        layers_with_images: left.layout.layers == left.layout.images,
        pids: (pids, pids.saturating_sub(pids_left)),
        cpus: std::thread::available_parallelism().map_or(0, |n| u64::try_from(n.get()).unwrap_or(0)),
    }
}

fn disk((free_bytes, bytes): (u64, u64), (free_inodes, inodes): (u64, u64)) -> Disk {
    Disk { bytes, free_bytes, inodes, free_inodes }
}

/// Whether a device is a disk of its own: partitions and what is made of other devices would be counted twice.
fn is_disk(name: &str) -> bool {
    if ["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind)) {
        return false;
    }
    let device = Path::new("/sys/block").join(name.replace('/', "!"));
    let made_of = || fs::read_dir(device.join("slaves")).map_or(0, Iterator::count);
    device.exists() && made_of() == 0
}

/// Bytes read from and written to each disk, and how often, from `/proc/diskstats`: lines
/// `8 0 sda READS merged SECTORS ms WRITES merged SECTORS …`, a sector being 512 bytes whatever the disk's are.
fn disks_io(stats: &str, is_disk: impl Fn(&str) -> bool) -> BTreeMap<String, Io> {
    let of_disk = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        let name = words.next().filter(|name| is_disk(name))?;
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        let at = |index: usize| numbers.get(index).copied();
        let bytes = (at(2)?.saturating_mul(512), at(6)?.saturating_mul(512));
        Some((name.to_owned(), Io { bytes, operations: (at(0)?, at(4)?) }))
    };
    stats.lines().filter_map(of_disk).collect()
}

/// When the machine was started, from `/proc/stat`: a line `btime 1700000000`.
fn booted_ms(stat: &str) -> i64 {
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<i64>().ok());
    seconds.unwrap_or(0).saturating_mul(1000)
}

/// The device of the route to everywhere, and bytes that it received and sent. Lines `eth0 00000000 0100000A …`.
fn default_device(routes: &str, all: &str) -> Option<(String, u64, u64)> {
    let name = routes.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        // Destination and mask.
        (words.next()? == "00000000" && words.nth(5)? == "00000000").then_some(name)
    })?;
    let (_, (received, sent)) = devices(all).find(|(device, _)| *device == name)?;
    Some((name.to_owned(), received, sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_disks_have_read_and_written_is_that_of_whole_ones() {
        let stats = "   8       0 sda 10 1 4 9 20 2 6 9 0 9 9 0 0 0 0\n   8       1 sda1 9 1 4 9 9 2 6 9 0 9 9\n\
                     253 0 vda 1 0 1 0 1 0 1 0 0 0 0\n 7 0 loop0 5\n";
        let whole = |name: &str| ["sda", "vda", "loop0"].contains(&name);
        let io =
            |sectors: (u64, u64), operations| Io { bytes: (sectors.0 * 512, sectors.1 * 512), operations };
        let expected = [("sda".to_owned(), io((4, 6), (10, 20))), ("vda".to_owned(), io((1, 1), (1, 1)))];
        assert_eq!(disks_io(stats, whole), expected.into());
        assert!(disks_io(stats, |_| false).is_empty());
        assert!(!is_disk("none") && !is_disk("loop0"));
    }

    #[test]
    fn the_nodes_network_is_the_device_that_leads_everywhere() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\n\
                      br0\t0000F40A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\n\
                      eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\n";
        let all = "br0: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\neth0: 90 2 0 0 0 0 0 0 70 3 0 0 0 0 0 0\n";
        assert_eq!(default_device(routes, all), Some(("eth0".into(), 90, 70)));
        assert_eq!(default_device("", all), None);
        assert_eq!((booted_ms("cpu 1\nbtime 1700000000\n"), booted_ms("")), (1_700_000_000_000, 0));
    }
}
