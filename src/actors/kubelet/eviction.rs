//! Ends pods that use more of the disk than they may, and others when the node runs low.
//!
//! Owns: measuring, and one eviction at a time. What is too much and who goes first is [`crate::logic::eviction`]. Invariant:
//! images that nothing needs go before any pod. Nothing is measured while no pod is limited and the node is not low on
//! anything, and measuring takes at most a hundredth of the time, or as much as once a minute takes.

use std::{
    collections::HashMap,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::api::core::v1;

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    machine::disk,
    pod::PodEvicted,
};
use crate::{
    logic::{
        eviction::{Candidate, Left, Signal, Used, Watch, choose, empty_dirs, is_limited, over_limit},
        image_gc::{Idle, order},
        nodes::MachineFacts,
        pod::config::Places,
    },
    model::Uid,
    runtime::{RuntimeError, disk::tree_bytes},
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
    low: Vec<Signal>,
    left: Left,
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
    /// Notes what is left of the machine and says in its facts how it is.
    pub(super) fn note_pressure(&mut self, facts: &mut MachineFacts) {
        // Simulated pods use nothing, so that nothing is won by ending one.
        if !self.seed.node.runtime.has_files() {
            return;
        }
        let left = Left {
            memory: (facts.memory_available_bytes, facts.memory_bytes),
            disk: (facts.disk_free_bytes, facts.disk_bytes),
            pids: (facts.pids_available, facts.pids),
        };
        let state = &mut self.eviction;
        state.low = state.watch.look(&self.seed.node.settings.eviction_hard, &left, now_ms());
        state.left = left;
        facts.pressure = state.watch.pressure(now_ms());
    }

    /// Looks whether a pod has to go.
    pub(super) fn evict_pods(&mut self, ctx: &mut Context<Self>) {
        let state = &self.eviction;
        if state.busy || state.again.is_some_and(|again| again > Instant::now()) {
            return;
        }
        // The last one is to be gone before the next is chosen.
        let low =
            state.low.first().copied().filter(|_| !self.pods.values().any(|e| e.evicted && e.is_alive()));
        let subjects: Vec<Subject> = self
            .pods
            .iter()
            .filter(|(_, entry)| entry.is_alive() && !entry.evicted && entry.assigned())
            .filter(|(_, entry)| low.is_some() || is_limited(&entry.pod()))
            .map(|(uid, entry)| {
                let pod = entry.pod();
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let meta = &pod.metadata;
                let places = self.seed.node.places(&text(&meta.namespace), &text(&meta.name), uid.as_str());
                Subject { uid: uid.clone(), pod, places, is_static: self.manifests.has(uid) }
            })
            .collect();
        if low.is_none() && subjects.is_empty() {
            return;
        }
        self.eviction.busy = true;
        let (node, left) = (self.seed.node.clone(), self.eviction.left);
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
                    evict.into_iter().for_each(|(uid, message)| kubelet.evict(&uid, message));
                }
                Err(error) => tracing::warn!(%error, "what pods use is not known: none is evicted"),
            }
        }));
    }

    fn evict(&mut self, uid: &Uid, message: String) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        tracing::warn!(pod = %uid, message, "evicting a pod");
        entry.evicted = true;
        if let Some(address) = entry.slot.address() {
            address.do_send(PodEvicted(message));
        }
    }
}

/// What is to be done.
#[derive(Debug, Default)]
struct Decided {
    /// Images that were removed.
    images: usize,
    evict: Vec<(Uid, String)>,
}

async fn decide(
    node: &NodeContext,
    low: Option<Signal>,
    mut left: Left,
    subjects: Vec<Subject>,
) -> Result<Decided, RuntimeError> {
    let thresholds = &node.settings.eviction_hard;
    let mut decided = Decided::default();
    let mut low = low;
    if low == Some(Signal::Disk) {
        decided.images = remove_idle_images(node).await?;
        let (all, free) = disk(&node.dir);
        left.disk = (free, all);
        low = low.filter(|_| free < thresholds.disk(all));
    }
    let used = measure(node, &subjects).await?;
    for (subject, used) in subjects.iter().zip(&used) {
        if let Some(message) = over_limit(&subject.pod, used) {
            decided.evict.push((subject.uid.clone(), message));
        }
    }
    if let Some(signal) = low.filter(|_| decided.evict.is_empty()) {
        let all: Vec<Candidate<'_>> = subjects
            .iter()
            .zip(&used)
            .map(|(subject, used)| Candidate { pod: &subject.pod, is_static: subject.is_static, used })
            .collect();
        let chosen = choose(signal, &left, thresholds, &all);
        decided.evict.extend(chosen.map(|(index, message)| (subjects[index].uid.clone(), message)));
    }
    Ok(decided)
}

/// Removes images that nothing needs until enough of the disk is free.
async fn remove_idle_images(node: &NodeContext) -> Result<usize, RuntimeError> {
    let idle = node.runtime.idle_images().await?;
    let idle = idle.into_iter().map(|image| Idle { names: image.names, used_ms: image.used_ms }).collect();
    let mut removed = 0;
    for image in order(idle, now_ms()) {
        let (all, free) = disk(&node.dir);
        if free >= node.settings.eviction_hard.disk(all) {
            break;
        }
        for name in image.names {
            node.runtime.remove_image(&name).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What each pod uses.
async fn measure(node: &NodeContext, subjects: &[Subject]) -> Result<Vec<Used>, RuntimeError> {
    // Of a runtime that does not tell, volumes and logs are still known.
    let stats = node.runtime.stats().await.unwrap_or_default();
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
            used.memory = stats.total.working_set_bytes.unwrap_or(0);
            used.pids = stats.total.pids.unwrap_or(0);
            for (id, usage) in &stats.containers {
                let Some(name) = names.get(id) else { continue };
                *used.containers.entry(name.clone()).or_default() += usage.writable_bytes.unwrap_or(0);
            }
        }
        all.push(used);
    }
    let dirs: Vec<(Places, Vec<String>)> = subjects
        .iter()
        .map(|subject| {
            let volumes = empty_dirs(&subject.pod).map(|(name, _)| name.to_owned()).collect();
            (subject.places.clone(), volumes)
        })
        .collect();
    let measured = tokio::task::spawn_blocking(move || {
        for (used, (places, volumes)) in all.iter_mut().zip(dirs) {
            for log in fs::read_dir(&places.log_dir).into_iter().flatten().flatten() {
                let name = log.file_name().to_string_lossy().into_owned();
                *used.containers.entry(name).or_default() += tree_bytes(&log.path());
            }
            for volume in volumes {
                let bytes = tree_bytes(&places.volume(&volume));
                used.volumes.insert(volume, bytes);
            }
        }
        all
    });
    measured
        .await
        .map_err(|error| RuntimeError::System { operation: "measure pods".into(), cause: error.to_string() })
}
