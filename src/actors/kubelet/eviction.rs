//! Ends pods that use more of the disk than they may, and others when the node runs low.
//!
//! Owns: measuring, and one eviction at a time. What is too much and who goes first is [`crate::logic::eviction`]. Invariants:
//! images that nothing needs go before any pod; what is left is looked at right before somebody has to go for it, so that
//! nobody goes for what the one before has freed. Nothing is measured while no pod is limited and the node is not low on
//! anything, and measuring takes at most a hundredth of the time, or as much as once a minute takes.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::api::core::v1;

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    machine,
    pod::PodEvicted,
};
use crate::{
    actors::outside,
    logic::{
        eviction::{
            Candidate, Left, Signal, TRANSITION, Used, Watch, choose, empty_dirs, is_limited, over_limit,
        },
        image_gc::{Idle, order},
        nodes::{MachineFacts, pressure_changes},
        pod::config::Places,
    },
    model::Uid,
    runtime::{RuntimeError, SandboxStats, disk::tree},
};

/// How often limits and thresholds are looked at: the kubelet's own period.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// A measurement is repeated after so many times as long as it took, at the earliest.
const SHARE: u32 = 100;
/// But no later than this: what is over its limit has to go while there is room.
const LATEST: Duration = Duration::from_secs(60);

/// What is known between two looks.
#[derive(Default)]
pub(super) struct Eviction {
    watch: Watch,
    busy: bool,
    again: Option<Instant>,
}

/// A pod to be measured.
struct Subject {
    uid: Uid,
    pod: Arc<v1::Pod>,
    places: Places,
    is_static: bool,
}

impl Kubelet {
    /// Looks at what is left of the machine: what it is low on.
    fn look(&mut self) -> (Left, Vec<Signal>) {
        // Simulated pods use nothing, so that nothing is won by ending one.
        if !self.seed.node.runtime.has_files() {
            return Default::default();
        }
        let left = machine::left(&self.seed.node.dir);
        let low = self.eviction.watch.look(&self.seed.node.settings.eviction_hard, &left, now_ms());
        (left, low)
    }

    /// Says in the machine's facts how it is.
    pub(super) fn note_pressure(&mut self, facts: &mut MachineFacts) {
        self.look();
        let hold = self.seed.node.settings.eviction_transition.unwrap_or(TRANSITION);
        facts.pressure = self.eviction.watch.pressure(hold, now_ms());
    }

    /// Looks whether a pod has to go.
    pub(super) fn evict_pods(&mut self, ctx: &mut Context<Self>) {
        if self.eviction.busy {
            return;
        }
        let (left, low) = self.look();
        let leaving = self.pods.values().filter(|entry| entry.is_alive()).filter_map(|e| e.evicted_ms);
        let low = Watch::turn(low, leaving, now_ms());
        if self.eviction.again.is_some_and(|again| again > Instant::now()) {
            return;
        }
        let subjects: Vec<Subject> = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.is_alive() && entry.evicted_ms.is_none() && entry.assigned())
            .filter(|(_, entry)| !low.is_empty() || is_limited(&entry.pod()))
            .map(|(uid, entry)| {
                let pod = entry.pod();
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let meta = &pod.metadata;
                let places = self.seed.node.places(&text(&meta.namespace), &text(&meta.name), uid.as_str());
                Subject { uid: uid.clone(), pod, places, is_static: self.manifests.has(uid) }
            })
            .collect();
        if low.is_empty() && subjects.is_empty() {
            return;
        }
        if let Some(worst) = low.first() {
            let message = format!("Attempting to reclaim {}", worst.resource());
            self.tell_of_node(true, "EvictionThresholdMet", message);
        }
        self.eviction.busy = true;
        let node = self.seed.node.clone();
        let begun = Instant::now();
        let work = async move { decide(&node, low, left, subjects).await };
        ctx.spawn(work.into_actor(self).map(move |outcome, kubelet, ctx| {
            kubelet.eviction.busy = false;
            let pause = (begun.elapsed() * SHARE).min(LATEST);
            kubelet.eviction.again = Some(Instant::now() + pause);
            match outcome {
                Ok(Decided { images, evict }) => {
                    if images > 0 {
                        kubelet.report_node(false, ctx);
                    }
                    evict.into_iter().for_each(|(uid, evicted)| kubelet.evict(&uid, evicted));
                }
                Err(error) => tracing::warn!(%error, "what pods use is not known: none is evicted"),
            }
        }));
    }

    fn evict(&mut self, uid: &Uid, evicted: PodEvicted) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        tracing::warn!(pod = %uid, message = evicted.message, "evicting a pod");
        entry.evicted_ms = Some(now_ms());
        if let Some(address) = entry.slot.address() {
            address.do_send(evicted);
        }
    }

    /// Notes how the node is, and records what has become of its conditions.
    pub(super) fn note_status(&mut self, now: &v1::NodeStatus) {
        for reason in self.status.iter().flat_map(|before| pressure_changes(before, now)) {
            let message = format!("Node {} status is now: {reason}", self.seed.node.name);
            self.tell_of_node(false, reason, message);
        }
        self.status = Some(now.clone());
    }
}

/// What is to be done.
#[derive(Debug, Default)]
struct Decided {
    /// Images that were removed.
    images: usize,
    evict: Vec<(Uid, PodEvicted)>,
}

async fn decide(
    node: &NodeContext,
    mut low: Vec<Signal>,
    mut left: Left,
    subjects: Vec<Subject>,
) -> Result<Decided, RuntimeError> {
    let thresholds = &node.settings.eviction_hard;
    let mut decided = Decided::default();
    if low.iter().any(|signal| OF_IMAGES.contains(signal)) {
        decided.images = remove_idle_images(node).await?;
        left = Left { memory: left.memory, pids: left.pids, ..machine::left(&node.dir) };
        low.retain(|signal| !OF_IMAGES.contains(signal) || thresholds.is_low(*signal, &left));
    }
    let used = measure(node, &subjects).await?;
    let all: Vec<Candidate<'_>> = subjects
        .iter()
        .zip(&used)
        .map(|(subject, used)| Candidate { pod: &subject.pod, is_static: subject.is_static, used })
        .collect();
    for (subject, candidate) in subjects.iter().zip(&all) {
        let message = over_limit(candidate);
        let evicted = message.map(|message| PodEvicted { message, disrupted: false });
        decided.evict.extend(evicted.map(|evicted| (subject.uid.clone(), evicted)));
    }
    if decided.evict.is_empty()
        && let Some((index, message)) = choose(&low, &left, thresholds, &all)
    {
        let evicted = PodEvicted { message, disrupted: true };
        decided.evict.extend(subjects.get(index).map(|subject| (subject.uid.clone(), evicted)));
    }
    Ok(decided)
}

/// What images take.
const OF_IMAGES: [Signal; 2] = [Signal::Disk, Signal::Inodes];

/// Removes images that nothing needs until enough of the disk is free.
async fn remove_idle_images(node: &NodeContext) -> Result<usize, RuntimeError> {
    let idle = node.runtime.idle_images().await?;
    let idle = idle.into_iter().map(|image| Idle { names: image.names, used_ms: image.used_ms }).collect();
    let mut removed = 0;
    for image in order(idle, now_ms()) {
        let left = machine::left(&node.dir);
        if !OF_IMAGES.iter().any(|signal| node.settings.eviction_hard.is_low(*signal, &left)) {
            break;
        }
        for name in image.names {
            node.runtime.remove_image(&name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Bytes of a pod's files on the node.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    /// Each container's logs.
    pub logs: BTreeMap<String, u64>,
    /// Each `emptyDir` on disk.
    pub volumes: BTreeMap<String, u64>,
    /// How many files and directories that is.
    pub inodes: u64,
}

impl Files {
    /// Measures them. Blocks.
    pub(super) fn of(pod: &v1::Pod, places: &Places) -> Files {
        let mut files = Files::default();
        for log in fs::read_dir(&places.log_dir).into_iter().flatten().flatten() {
            let (bytes, inodes) = tree(&log.path());
            files.logs.insert(log.file_name().to_string_lossy().into_owned(), bytes);
            files.inodes += inodes;
        }
        for (volume, _) in empty_dirs(pod) {
            let (bytes, inodes) = tree(&places.volume(volume));
            files.volumes.insert(volume.to_owned(), bytes);
            files.inodes += inodes;
        }
        files
    }
}

/// Files and directories in the layers of all of a pod's containers; `None` where those of any are not known.
fn layers_inodes(stats: &SandboxStats) -> Option<u64> {
    stats.containers.iter().map(|(_, usage)| usage.writable_inodes).sum()
}

/// What each pod uses.
async fn measure(node: &NodeContext, subjects: &[Subject]) -> Result<Vec<Used>, RuntimeError> {
    // Of a runtime that does not tell, volumes and logs are still known.
    let stats = node.runtime.stats().await.unwrap_or_else(|error| {
        tracing::warn!(%error, "what pods use of memory is not known: none goes for that");
        Vec::new()
    });
    let names: HashMap<_, _> = node
        .runtime
        .list_containers()
        .await?
        .into_iter()
        .map(|container| (container.id, container.name))
        .collect();
    let mut all: Vec<Used> = Vec::new();
    for subject in subjects {
        let mut used = Used::default();
        if let Some(stats) = stats.iter().find(|stats| stats.uid == subject.uid) {
            used.memory = stats.total.working_set_bytes;
            used.pids = stats.total.pids;
            used.inodes = layers_inodes(stats);
            for (id, usage) in &stats.containers {
                let Some(name) = names.get(id) else { continue };
                used.container_memory.extend(usage.working_set_bytes.map(|bytes| (name.clone(), bytes)));
                *used.containers.entry(name.clone()).or_default() += usage.writable_bytes.unwrap_or(0);
            }
        }
        all.push(used);
    }
    let of: Vec<_> = subjects.iter().map(|subject| (subject.pod.clone(), subject.places.clone())).collect();
    let measured = outside::blocking(move || {
        for (used, (pod, places)) in all.iter_mut().zip(of) {
            let files = Files::of(&pod, &places);
            for (container, bytes) in files.logs {
                *used.containers.entry(container).or_default() += bytes;
            }
            used.volumes = files.volumes;
            used.inodes = used.inodes.map(|layers| layers + files.inodes);
        }
        all
    });
    measured
        .await
        .map_err(|error| RuntimeError::System { operation: "measure pods".into(), cause: error.to_string() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        actors::{kubelet::Starts, testing::system},
        logic::supervision::Backoff,
        runtime::{
            ContainerId, Usage,
            sim::{SimConfig, SimMachine, SimRuntime},
        },
    };

    fn node(dir: &std::path::Path) -> NodeContext {
        NodeContext {
            name: "n".into(),
            runtime: Arc::new(SimRuntime::open(SimMachine::new(SimConfig::default()).unwrap())),
            dir: dir.into(),
            host_ip: Default::default(),
            crash_loop: Backoff::CRASH_LOOP,
            configs: Default::default(),
            starts: Starts::default(),
            ledger: Default::default(),
            registry_config: None,
            peers: Default::default(),
            host: Default::default(),
            settings: Default::default(),
            packing: Default::default(),
        }
    }

    #[test]
    fn a_pods_inodes_are_known_when_those_of_all_its_layers_are() {
        let of = |layers: &[Option<u64>]| {
            let usage = |writable_inodes| Usage { writable_inodes, ..Usage::default() };
            let containers = layers.iter().map(|inodes| (ContainerId("c".into()), usage(*inodes))).collect();
            let total = Usage::default();
            layers_inodes(&SandboxStats { uid: Uid::from("p"), total, network: None, containers })
        };
        assert_eq!((of(&[Some(3), Some(4)]), of(&[Some(3), None]), of(&[])), (Some(7), None, Some(0)));
    }

    #[test]
    fn who_is_over_its_limit_goes_but_for_static_pods_and_nobody_goes_for_what_is_not_known() {
        system(async {
            let dir = tempfile::tempdir().unwrap();
            let node = node(dir.path());
            let subject = |uid: &str, is_static: bool| {
                let pod: v1::Pod = serde_json::from_value(json!({
                    "metadata": {"name": uid, "namespace": "default", "uid": uid},
                    "spec": {"containers": [{"name": "c"}],
                        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Ki"}}]}
                }))
                .unwrap();
                let places = node.places("default", uid, uid);
                fs::create_dir_all(places.volume("v")).unwrap();
                fs::write(places.volume("v").join("much"), "x".repeat(4096)).unwrap();
                Subject { uid: Uid::from(uid), pod: Arc::new(pod), places, is_static }
            };
            let subjects = vec![subject("own", true), subject("other", false)];
            let decided = decide(&node, Vec::new(), Left::default(), subjects).await.unwrap();
            let gone: Vec<&str> = decided.evict.iter().map(|(uid, _)| uid.as_str()).collect();
            assert_eq!(gone, ["other"]);
            // The runtime knows nothing of it.
            let low = vec![Signal::Memory, Signal::Pids, Signal::Inodes];
            let mut subject = subject("quiet", false);
            subject.pod = Arc::new(v1::Pod::default());
            let decided = decide(&node, low, Left::default(), vec![subject]).await.unwrap();
            assert!(decided.evict.is_empty(), "{decided:?}");
        });
    }
}
