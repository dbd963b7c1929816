//! A runtime without containers: what others do in the kernel, this one keeps in memory.
//!
//! Owns: [`SimRuntime`], one process's handle to a [`SimMachine`]. The machine outlives the handle, as containers
//! outlive the process that drives a real runtime. Start times and failures come from a seed; time is tokio's and can
//! be paused. Invariant: an idle container costs its record and nothing else, so that 100,000s of them fit.
//!
//! ```text
//! SimRuntime (tasks, delays) ──locks briefly──▶ SimMachine{ State: sandboxes, containers, images, what is due }
//! ```

mod behaviour;
mod exec;
mod handle;
mod machine;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;

use self::machine::{BY_SIGNAL, State, image_of};
pub use self::{behaviour::Behaviour, handle::SimRuntime};
use super::{
    ContainerId, ContainerStatus, RuntimeError,
    images::{BUILTIN_IMAGE, normalize},
};
use crate::model::Uid;

/// How a simulated machine behaves.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Delays and failures follow from it alone.
    pub seed: u64,
    /// How long a sandbox takes to be made.
    pub sandbox_delay: RangeInclusive<Duration>,
    /// How long after that it is told to run: it may have died by then.
    pub sandbox_answer_delay: Duration,
    /// How long a container takes to start.
    pub start_delay: RangeInclusive<Duration>,
    /// How many of a thousand starts fail.
    pub start_failures_per_mille: u16,
    /// Images that are here, by any form of their name, and what their containers do.
    pub images: BTreeMap<String, Behaviour>,
    /// Every other valid image name is here, too, and its containers run until they are stopped.
    pub any_image: bool,
    /// Images that the simulated registry has, by any form of their name. Pulling one takes this long.
    pub registry: BTreeMap<String, Duration>,
    /// Events kept for a slow receiver. Memory is taken for all of them at once, so it is small for many machines.
    pub event_capacity: usize,
}

impl Default for SimConfig {
    /// Prompt, without failures, and every image is present.
    fn default() -> SimConfig {
        SimConfig {
            seed: 0,
            sandbox_delay: Duration::ZERO..=Duration::ZERO,
            sandbox_answer_delay: Duration::ZERO,
            start_delay: Duration::ZERO..=Duration::ZERO,
            start_failures_per_mille: 0,
            images: BTreeMap::new(),
            any_image: true,
            registry: BTreeMap::new(),
            event_capacity: 256,
        }
    }
}

/// What can be made to fail: the trait's methods.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs)]
pub enum Operation {
    Status,
    SetPodCidr,
    RunPodSandbox,
    StopPodSandbox,
    RemovePodSandbox,
    ListPodSandboxes,
    CreateContainer,
    StartContainer,
    StopContainer,
    RemoveContainer,
    UpdateContainer,
    UpdatePodSandbox,
    ExecSync,
    ListContainers,
    Image,
    ListImages,
    PullImage,
    LoadImage,
    ImportImage,
    RemoveImage,
}

/// A machine that only exists in memory. Keep it to open it again, as after a restart of the process.
pub struct SimMachine {
    config: SimConfig,
    state: Mutex<State>,
    /// Something new is due, or a handle was closed.
    wake: Notify,
}

impl SimMachine {
    /// A machine with the configured images and the built-in one, and nothing running.
    pub fn new(config: SimConfig) -> Result<Arc<SimMachine>, RuntimeError> {
        let epoch_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let mut state = State::new(i64::try_from(epoch_ms).unwrap_or(i64::MAX), config.event_capacity.max(1));
        let mut images = BTreeMap::new();
        for (name, behaviour) in &config.images {
            images.insert(normalize(name)?, behaviour.clone());
        }
        let mut registry = BTreeMap::new();
        for (name, delay) in &config.registry {
            registry.insert(normalize(name)?, *delay);
        }
        images.entry(BUILTIN_IMAGE.to_owned()).or_default();
        for name in images.keys() {
            state.images.insert(name.clone(), image_of(name));
        }
        Ok(Arc::new(SimMachine {
            config: SimConfig { images, registry, ..config },
            state: Mutex::new(state),
            wake: Notify::new(),
        }))
    }

    /// Lets the next call of an operation fail. Several orders are served one by one.
    pub fn fail_next(&self, operation: Operation, error: RuntimeError) {
        self.look().failures.entry(operation).or_default().push_back(error);
    }

    /// `kill -9` of a container's program. Unknown and ended ones are left alone.
    pub fn kill(&self, id: &ContainerId) {
        self.look().signal(id, nix::libc::SIGKILL);
    }

    /// A container's program ends by itself with a code.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        let mut state = self.look();
        let now = state.now_ms();
        state.end(id, code, None, false, now);
    }

    /// From now on programs run in a container end with this code, unless they are the built-in one.
    pub fn set_exec_code(&self, id: &ContainerId, code: i32) {
        if let Ok(container) = self.look().container_mut(id) {
            container.behaviour.exec_code = code;
        }
    }

    /// The kernel ends a container over its memory limit.
    pub fn oom_kill(&self, id: &ContainerId) {
        let mut state = self.look();
        let now = state.now_ms();
        state.end(id, BY_SIGNAL + nix::libc::SIGKILL, Some(nix::libc::SIGKILL), true, now);
    }

    /// Thousandths of a core that a pod's share is for.
    pub fn cpu_request_milli(&self, pod: &Uid) -> Option<i64> {
        self.look().sandboxes.get(pod).map(|sandbox| sandbox.cpu_request_milli)
    }

    /// A sandbox dies under its containers.
    pub fn lose_sandbox(&self, pod: &Uid) {
        self.look().lose_sandbox(pod);
    }

    /// Whether a sandbox's address is told.
    pub fn hide_address(&self, pod: &Uid, hidden: bool) {
        if let Some(sandbox) = self.look().sandboxes.get_mut(pod) {
            sandbox.address_hidden = hidden;
        }
    }

    /// Every container, whatever operations are to fail.
    pub fn containers(&self) -> Vec<ContainerStatus> {
        self.look().container_statuses()
    }

    /// Every sandbox, by pod, and whether it is ready.
    pub fn sandboxes(&self) -> Vec<(Uid, bool)> {
        self.look().sandboxes.iter().map(|(uid, sandbox)| (uid.clone(), sandbox.ready)).collect()
    }

    /// The state after everything due has happened.
    fn look(&self) -> MutexGuard<'_, State> {
        // State's methods do not panic half way; if one did, going on is right for a simulation.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.settle();
        state
    }
}
