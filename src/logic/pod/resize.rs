//! Resizing in place: whether a node has room for what a pod's containers are to have, and what is to be done for it.
//!
//! Owns: the decision and its words ([`verdict`]), and the [`Machine`]'s steps with it. Invariants: the machine's pod says
//! what was *given*, never what was only asked for; one change of a container at a time is under way; what could not be
//! changed is told and tried again. Rules: Kubernetes' (KEP-1287, as of 1.33).
//!
//! ```text
//! asked (spec) ──fits?──▶ given (allocatedResources) ──runtime──▶ applied (status.resources)
//!              └ Deferred: asked again later; Infeasible: never
//! ```

use k8s_openapi::api::core::v1::{self, ResourceRequirements};

use super::{
    Machine,
    init::containers,
    machine::grace_of,
    state::{Action, ContainerPhase, Notice, Step},
};
use crate::model::Resources;

/// A change that the runtime refused is tried again after this.
const AGAIN_MS: i64 = 5_000;

/// Whether a node has room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has.
    Fits,
    /// Not now: other pods have it. With a sentence.
    Deferred(String),
    /// Never. With a sentence.
    Infeasible(String),
}

impl Verdict {
    /// The reason and the message of the condition `PodResizePending`.
    pub fn pending(&self) -> Option<(&'static str, &str)> {
        match self {
            Verdict::Fits => None,
            Verdict::Deferred(why) => Some(("Deferred", why)),
            Verdict::Infeasible(why) => Some(("Infeasible", why)),
        }
    }
}

/// Whether a pod that asks for `wanted` fits on a node beside others that were given `others`.
pub fn verdict(allocatable: Resources, others: Resources, wanted: Resources) -> Verdict {
    let rows = [
        ("cpu", wanted.cpu_milli, others.cpu_milli, allocatable.cpu_milli),
        ("memory", wanted.memory_bytes, others.memory_bytes, allocatable.memory_bytes),
    ];
    if let Some((name, asked, _, capacity)) = rows.iter().find(|(_, asked, _, capacity)| asked > capacity) {
        return Verdict::Infeasible(format!(
            "Node didn't have enough capacity: {name}, requested: {asked}, capacity: {capacity}"
        ));
    }
    let short = |(_, asked, used, capacity): &&(&str, i64, i64, i64)| asked.saturating_add(*used) > *capacity;
    match rows.iter().find(short) {
        Some((name, asked, used, capacity)) => Verdict::Deferred(format!(
            "Node didn't have enough resource: {name}, requested: {asked}, used: {used}, capacity: {capacity}"
        )),
        None => Verdict::Fits,
    }
}

/// A pod whose containers have what those of the same names have in `given`.
pub fn with_resources_of(asked: &v1::Pod, given: &v1::Pod) -> v1::Pod {
    let mut pod = asked.clone();
    for container in each(&mut pod) {
        if let Some(resources) = resources_in(given, &container.name) {
            container.resources = Some(resources);
        }
    }
    pod
}

/// A pod whose containers have what its status says they were given: what an earlier kubelet decided.
pub fn as_told(asked: &v1::Pod) -> v1::Pod {
    let mut pod = asked.clone();
    let Some(status) = asked.status.as_ref() else { return pod };
    let told = || status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    for container in each(&mut pod) {
        if let Some(resources) = told().find(|s| s.name == container.name).and_then(|s| s.resources.clone()) {
            container.resources = Some(resources);
        }
    }
    pod
}

/// Whether the containers of two states of a pod have the same.
pub fn are_same(a: &v1::Pod, b: &v1::Pod) -> bool {
    containers(a).all(|(_, c)| amounts(c.resources.as_ref()) == amounts(resources_in(b, &c.name).as_ref()))
}

fn each(pod: &mut v1::Pod) -> impl Iterator<Item = &mut v1::Container> {
    let spec = pod.spec.as_mut().map(|spec| (&mut spec.containers, &mut spec.init_containers));
    spec.into_iter().flat_map(|(main, init)| main.iter_mut().chain(init.iter_mut().flatten()))
}

fn resources_in(pod: &v1::Pod, name: &str) -> Option<ResourceRequirements> {
    containers(pod).find(|(_, c)| c.name == name).and_then(|(_, c)| c.resources.clone())
}

type Amounts = std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// Limits and requests; no list and an empty one are the same.
fn amounts(of: Option<&ResourceRequirements>) -> (Amounts, Amounts) {
    let list = |list: Option<&Amounts>| list.cloned().unwrap_or_default();
    (list(of.and_then(|r| r.limits.as_ref())), list(of.and_then(|r| r.requests.as_ref())))
}

/// Whether a container has to be started anew for what differs.
fn restarts(container: &v1::Container, before: &ResourceRequirements, now: &ResourceRequirements) -> bool {
    let (before, now) = (amounts(Some(before)), amounts(Some(now)));
    let policies =
        container.resize_policy.iter().flatten().filter(|p| p.restart_policy == "RestartContainer");
    policies
        .map(|p| &p.resource_name)
        .any(|name| before.0.get(name) != now.0.get(name) || before.1.get(name) != now.1.get(name))
}

impl Machine {
    /// What a container has been given.
    pub fn given(&self, name: &str) -> ResourceRequirements {
        resources_in(&self.pod, name).unwrap_or_default()
    }

    /// Notes that what containers are given changes with this state of the pod, if it does.
    pub(super) fn note_sizes(&mut self, pod: &v1::Pod) {
        if !are_same(pod, &self.pod) {
            self.sized = pod.metadata.generation.filter(|generation| *generation > 0);
        }
    }

    /// Which generation a change of what containers have was begun for, now or by an earlier kubelet.
    pub(super) fn sized_generation(&self, before: Option<&v1::PodStatus>) -> Option<i64> {
        let told = || {
            let mut all = before?.conditions.iter().flatten();
            all.find(|condition| condition.type_ == "PodResizeInProgress")?.observed_generation
        };
        self.sized.or_else(told).or_else(|| self.generation())
    }

    /// Takes over what the running containers of an earlier kubelet have, as it told.
    pub(super) fn resume_sizes(&mut self) {
        for index in 0..self.containers.len() {
            let given = self.given(&self.containers[index].name);
            self.containers[index].applied = Some(given);
        }
    }

    /// Gives running containers what they were promised.
    pub(super) fn step_sizes(&mut self, now_ms: i64, step: &mut Step) {
        let grace = grace_of(&self.pod);
        for index in 0..self.containers.len() {
            let given = self.given(&self.containers[index].name);
            let container = &mut self.containers[index];
            let Some(applied) = &container.applied else { continue };
            let ContainerPhase::Running { id, stopping: stopping @ None, .. } = &mut container.phase else {
                continue;
            };
            if container.resizing || amounts(Some(applied)) == amounts(Some(&given)) {
                continue;
            }
            let spec = containers(&self.pod).find(|(_, c)| c.name == container.name);
            if spec.is_some_and(|(_, spec)| restarts(&spec, applied, &given)) {
                *stopping = Some(grace);
                container.replacing = true;
                let id = id.clone();
                let grace = std::time::Duration::from_secs(grace.unsigned_abs());
                step.actions.push(Action::Stop { index, id, grace });
                self.notices.push(Notice {
                    container: Some(container.name.clone()),
                    warning: false,
                    reason: "Killing",
                    message: format!("Container {} resize requires restart", container.name),
                });
            } else if container.resize_again_ms > now_ms {
                // The clock may have been set back since.
                container.resize_again_ms = container.resize_again_ms.min(now_ms + AGAIN_MS);
                step.wake(container.resize_again_ms);
            } else {
                container.resizing = true;
                step.actions.push(Action::Resize { index, id: id.clone() });
            }
        }
    }

    /// Outcome of [`Action::Resize`]: what the container has now, or why not.
    pub fn resized(&mut self, index: usize, outcome: Result<ResourceRequirements, String>, now_ms: i64) {
        let Some(container) = self.containers.get_mut(index) else { return };
        container.resizing = false;
        match outcome {
            Ok(applied) => {
                container.applied = Some(applied);
                container.resize_fault = None;
            }
            Err(why) => {
                container.resize_again_ms = now_ms + AGAIN_MS;
                container.resize_fault = Some(format!("container {}: {why}", container.name));
            }
        }
    }

    /// Why the condition `PodResizeInProgress` holds, if it does: `Some(None)` when nothing has gone wrong.
    pub(super) fn resize_in_progress(&self) -> Option<Option<String>> {
        let differs = |c: &&super::Container| {
            let runs = matches!(c.phase, ContainerPhase::Running { .. });
            let given = self.given(&c.name);
            runs && c.applied.as_ref().is_some_and(|a| amounts(Some(a)) != amounts(Some(&given)))
        };
        let mut late = self.containers.iter().filter(differs).peekable();
        late.peek()?;
        Some(late.find_map(|c| c.resize_fault.clone()))
    }
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
