//! Ends pods that use more of the disk than they may, and others when the node runs low.
//!
//! Owns: measuring, and one eviction at a time. What is too much and who goes first is [`crate::logic::eviction`]. Invariants:
//! images that nothing needs go before any pod where that gives the room that is needed; what is left is looked at right before somebody has to go for it, so that
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
use tokio::time::timeout;

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
/// How long a runtime may take to say where images are.
const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// What is known between two looks.
#[derive(Default)]
pub(super) struct Eviction {
    watch: Watch,
    busy: bool,
    again: Option<Instant>,
    /// When the runtime is asked again where images are.
    ask_again: Option<Instant>,
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
        let left = machine::left(&self.seed.node);
        let low = self.eviction.watch.look(&self.seed.node.settings.eviction_hard, &left, now_ms());
        (left, low)
    }

    /// Says in the machine's facts how it is.
    pub(super) fn note_pressure(&mut self, facts: &mut MachineFacts) {
        self.look();
        let hold = self.seed.node.settings.eviction_transition.unwrap_or(TRANSITION);
        facts.pressure = self.eviction.watch.pressure(hold, now_ms());
    }

    /// Asks where images are, and what containers write, now and then: a runtime that is away now, or will be set up
    /// anew, says so later.
    pub(super) fn ask_storage(&mut self, ctx: &mut Context<Self>) {
        let now = Instant::now();
        if self.eviction.ask_again.is_some_and(|again| again > now) || !self.seed.node.runtime.has_files() {
            return;
        }
        self.eviction.ask_again = Some(now + LATEST);
        let node = self.seed.node.clone();
        let work = async move {
            match timeout(TOLD_WITHIN, node.runtime.storage()).await {
                Ok(Ok(storage)) => node.storage.store(storage.map(Arc::new)),
                Ok(Err(error)) => tracing::debug!(%error, "it is not known where images are"),
                Err(_) => tracing::debug!("the runtime does not say where images are"),
            }
        };
        ctx.spawn(work.into_actor(self));
    }

    /// Looks whether a pod has to go.
    pub(super) fn evict_pods(&mut self, ctx: &mut Context<Self>) {
        self.ask_storage(ctx);
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
        let work = async move {
            let measure = || machine::left(&node);
            decide(&node, low, left, measure, subjects).await
        };
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

    /// Notes how the node is, and records what has become of its conditions. What holds already at the start has come, too.
    pub(super) fn note_status(&mut self, now: &v1::NodeStatus) {
        let before = self.status.take().unwrap_or_default();
        for reason in pressure_changes(&before, now) {
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
    look: impl Fn() -> Left,
    subjects: Vec<Subject>,
) -> Result<Decided, RuntimeError> {
    let thresholds = &node.settings.eviction_hard;
    let mut decided = Decided::default();
    let layout = left.layout;
    // Images go only for the file system that they are on.
    let of_images: Vec<Signal> = low.iter().copied().filter(|signal| layout.is_of_images(*signal)).collect();
    if !of_images.is_empty() {
        let enough = || {
            let left = look();
            !of_images.iter().any(|signal| thresholds.is_low(*signal, &left))
        };
        decided.images = remove_idle_images(node, enough).await?;
        left = Left { memory: left.memory, pids: left.pids, ..look() };
        low.retain(|signal| !of_images.contains(signal) || thresholds.is_low(*signal, &left));
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

/// Removes images that nothing needs until there is room enough.
async fn remove_idle_images(node: &NodeContext, enough: impl Fn() -> bool) -> Result<usize, RuntimeError> {
    let idle = node.runtime.idle_images().await?;
    let idle = idle.into_iter().map(|image| Idle { names: image.names, used_ms: image.used_ms }).collect();
    let mut removed = 0;
    for image in order(idle, now_ms()) {
        if enough() {
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
            used.layer_inodes = layers_inodes(stats);
            for (id, usage) in &stats.containers {
                let Some(name) = names.get(id) else { continue };
                used.container_memory.extend(usage.working_set_bytes.map(|bytes| (name.clone(), bytes)));
                if let Some(bytes) = usage.writable_bytes {
                    *used.containers.entry(name.clone()).or_default() += bytes;
                    *used.layers.get_or_insert(0) += bytes;
                }
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
            used.inodes = files.inodes;
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
        logic::{eviction::Layout, supervision::Backoff},
        runtime::{
            ContainerId, ContainerRuntime as _, Usage,
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
            storage: Default::default(),
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
            let decided = decide(&node, Vec::new(), Left::default(), Left::default, subjects).await.unwrap();
            let gone: Vec<&str> = decided.evict.iter().map(|(uid, _)| uid.as_str()).collect();
            assert_eq!(gone, ["other"]);
            // The runtime knows nothing of it.
            let low = vec![Signal::Memory, Signal::Pids, Signal::Inodes];
            let mut subject = subject("quiet", false);
            subject.pod = Arc::new(v1::Pod::default());
            let decided = decide(&node, low, Left::default(), Left::default, vec![subject]).await.unwrap();
            assert!(decided.evict.is_empty(), "{decided:?}");
        });
    }

    /// What is removed, and who goes, on a node with two idle images of 100 bytes each and a pod that writes logs; `low` is
    /// low until so many images are gone.
    async fn outcome(layout: Layout, low: Signal, until: usize) -> (usize, usize) {
        let dir = tempfile::tempdir().unwrap();
        let names = ["r.io/a:1", "r.io/b:1"];
        let registry = names.iter().map(|name| ((*name).to_owned(), Duration::ZERO)).collect();
        let config = SimConfig { any_image: false, registry, ..SimConfig::default() };
        let runtime = SimRuntime::open(SimMachine::new(config).unwrap());
        for name in names {
            runtime.pull_image(name, None).await.unwrap();
        }
        let node = NodeContext { runtime: Arc::new(runtime.clone()), ..node(dir.path()) };
        let pod: v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "p"}, "spec": {"containers": [{"name": "c"}]}
        }))
        .unwrap();
        let places = node.places("default", "p", "p");
        fs::create_dir_all(places.log_dir.join("c")).unwrap();
        fs::write(places.log_dir.join("c/0.log"), "x".repeat(4096)).unwrap();
        let subject = Subject { uid: Uid::from("p"), pod: Arc::new(pod), places, is_static: false };
        let count = move || {
            let all = runtime.clone();
            let listed =
                futures_util::FutureExt::now_or_never(async move { all.list_images().await.unwrap() });
            listed
                .unwrap()
                .iter()
                .filter(|image| image.names.iter().any(|name| names.contains(&name.as_str())))
                .count()
        };
        let look = || {
            let share = if names.len() - count() < until { (1, 100) } else { (99, 100) };
            let well = Left { disk: (99, 100), image_disk: (99, 100), layout, ..Left::default() };
            match low {
                Signal::Disk => Left { disk: share, ..well },
                _ => Left { image_disk: share, ..well },
            }
        };
        let decided = decide(&node, vec![low], look(), look, vec![subject]).await.unwrap();
        (decided.images, decided.evict.len())
    }

    #[test]
    fn images_go_for_the_file_system_that_they_are_on_and_pods_for_that_which_they_fill() {
        system(async {
            let beside = Layout { node: 1, images: 1, layers: 1 };
            let apart = Layout { node: 1, images: 2, layers: 2 };
            assert_eq!(outcome(beside, Signal::Disk, 1).await, (1, 0), "one image is enough");
            assert_eq!(outcome(beside, Signal::Disk, 9).await, (2, 1), "all images are not");
            assert_eq!(outcome(apart, Signal::ImageDisk, 2).await, (2, 0));
            assert_eq!(outcome(apart, Signal::ImageDisk, 9).await, (2, 0), "the pod has nothing there");
            assert_eq!(outcome(apart, Signal::Disk, 1).await, (0, 1), "no image takes room there");
        });
    }
}
