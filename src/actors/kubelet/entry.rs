//! What a kubelet keeps of one pod: its actor, what is wanted of it and what was last heard of it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1;
use tokio::sync::watch;

use super::pod::{PodActor, Wanted};
use crate::{
    messages::{Slot, wire},
    model::{Key, Revision},
    runtime::ContainerId,
};

/// One pod, as its kubelet keeps it.
pub(super) struct Entry {
    /// Where its actor is.
    pub slot: Slot<PodActor>,
    /// What the pod's next incarnation begins with.
    pub wanted: Arc<ArcSwap<Wanted>>,
    /// Of the document that is wanted.
    pub revision: Revision,
    /// The config maps and secrets that it refers to.
    pub refers: BTreeSet<Key>,
    /// What was last told of it.
    pub report: Option<wire::PodReport>,
    /// The containers as last reported: which log is which.
    pub containers: Vec<v1::ContainerStatus>,
    /// Nothing was made of it: there is nothing to tell of its containers.
    pub refused: bool,
    /// Tells those who follow a container's log whether it runs.
    pub running: HashMap<String, watch::Sender<bool>>,
    /// When it was told to go, since it or the node used up too much: milliseconds since the epoch.
    pub evicted_ms: Option<i64>,
}

impl Entry {
    /// Its document as wanted.
    pub fn pod(&self) -> Arc<v1::Pod> {
        self.wanted.load().pod.clone()
    }

    /// Whether it is still to run here.
    pub fn assigned(&self) -> bool {
        self.wanted.load().assigned
    }

    /// Whether a container of it runs, as far as is known.
    pub fn is_alive(&self) -> bool {
        self.containers.iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
    }

    /// The containers that run, as far as is known: by id their names and when they started.
    pub fn running_containers(&self) -> impl Iterator<Item = (ContainerId, (String, i64))> {
        self.containers.iter().filter_map(|container| {
            let started = container.state.as_ref()?.running.as_ref()?.started_at.as_ref()?;
            let (_, id) = container.container_id.as_deref()?.split_once("://")?;
            Some((ContainerId(id.to_owned()), (container.name.clone(), started.0.as_millisecond())))
        })
    }

    /// Notes what its actor told of it.
    pub fn note(&mut self, status: &v1::PodStatus) {
        let all = status.container_statuses.iter().chain(&status.init_container_statuses);
        let all = all.chain(&status.ephemeral_container_statuses);
        self.containers = all.flatten().cloned().collect();
        self.refused = status.container_statuses.is_none();
        for container in &self.containers {
            let runs = container.state.as_ref().is_some_and(|s| s.running.is_some());
            let sender =
                self.running.entry(container.name.clone()).or_insert_with(|| watch::channel(false).0);
            sender.send_if_modified(|now| std::mem::replace(now, runs) != runs);
        }
    }
}
