//! What the driver knows of one sandbox and its containers.
//!
//! Owns: the state in memory, fed by the shim's notices and, after a restart, by the files. Invariants: a state only
//! goes forward (created, running, exited); an exit is broadcast once a process; what is found dead ended when that was
//! noticed, since it may have run until then.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    io,
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::Pid;
use tokio::sync::{broadcast, watch};

use super::{
    client::{Client, Notice},
    state::{self, ContainerDir, ContainerRecord, SandboxDir, SandboxRecord, Started},
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, ContainerState, ContainerStatus, Exit, RuntimeError, RuntimeEvent, SandboxStatus,
    },
};

/// One sandbox.
pub(super) struct Pod {
    pub uid: Uid,
    pub dir: SandboxDir,
    pub record: SandboxRecord,
    inner: Mutex<Inner>,
    events: broadcast::Sender<RuntimeEvent>,
}

#[derive(Default)]
struct Inner {
    /// The way to the shim while it lives.
    client: Option<Client>,
    shim: ShimProcess,
    /// The end was asked for, so the shim's is no loss.
    stopping: bool,
    containers: BTreeMap<ContainerId, Container>,
    /// The id of the next container, whose cgroup is there already.
    next: Option<ContainerId>,
}

/// The shim as a process.
#[derive(Default)]
struct ShimProcess {
    /// To be reaped, if this process started it.
    child: Option<Child>,
    pid: i32,
    ticks: u64,
    /// It can run programs in containers: older ones cannot.
    execs: bool,
}

struct Container {
    record: Arc<ContainerRecord>,
    started: Option<Started>,
    exit: Option<Exit>,
    /// The end that nobody saw, since it was noticed.
    unseen: OnceCell<Exit>,
    /// Turns true when the container has ended, or when nobody will tell any more.
    over: watch::Sender<bool>,
}

impl Pod {
    pub(super) fn new(
        dir: SandboxDir,
        record: SandboxRecord,
        events: broadcast::Sender<RuntimeEvent>,
    ) -> Arc<Pod> {
        let uid = Uid::from(record.config.uid.as_str());
        Arc::new(Pod { uid, dir, record, inner: Mutex::default(), events })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Every change below is one assignment or insertion, so a panic elsewhere leaves nothing half done.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to hear the shim at the other end of `stream`. To be called on the driver's runtime.
    pub(super) fn attach(self: &Arc<Pod>, stream: std::os::unix::net::UnixStream) -> io::Result<Client> {
        let pod = Arc::downgrade(self);
        let client = Client::start(stream, move |notice| {
            if let Some(pod) = pod.upgrade() {
                pod.hear(notice);
            }
        })?;
        self.inner().client = Some(client.clone());
        Ok(client)
    }

    fn hear(&self, notice: Notice) {
        match notice {
            Notice::Exited { id, exit } => self.exited(&id, exit),
            Notice::Gone => {
                let mut inner = self.inner();
                inner.client = None;
                let expected = inner.stopping;
                let child = inner.shim.child.take();
                for container in inner.containers.values() {
                    container.over.send_replace(true);
                }
                drop(inner);
                if let Some(mut child) = child {
                    tokio::task::spawn_blocking(move || child.wait());
                }
                if !expected {
                    tracing::warn!(pod = %self.uid, "a pod's shim has died");
                    // Nobody may be listening.
                    let _ = self.events.send(RuntimeEvent::SandboxLost { pod: self.uid.clone() });
                }
            }
        }
    }

    fn exited(&self, id: &ContainerId, exit: Exit) {
        let mut inner = self.inner();
        let Some(container) = inner.containers.get_mut(id).filter(|container| container.exit.is_none())
        else {
            return;
        };
        container.exit = Some(exit.clone());
        container.over.send_replace(true);
        drop(inner);
        let _ = self.events.send(RuntimeEvent::Exited { pod: self.uid.clone(), id: id.clone(), exit });
    }

    /// The way to the shim, or why there is none.
    pub(super) fn client(&self) -> Result<Client, RuntimeError> {
        let inner = self.inner();
        let client = inner.client.clone().filter(|_| !inner.stopping);
        client.ok_or_else(|| RuntimeError::SandboxNotReady(self.uid.clone()))
    }

    pub(super) fn ready(&self) -> bool {
        self.client().is_ok()
    }

    /// Says which process the shim is; takes over the duty to reap it when it is this process' own child.
    pub(super) fn set_shim(&self, pid: i32, child: Option<Child>, execs: bool) {
        let ticks = state::start_ticks(pid).unwrap_or_default();
        self.inner().shim = ShimProcess { child, pid, ticks, execs };
    }

    /// Whether the shim can run programs in its containers.
    pub(super) fn execs(&self) -> bool {
        self.inner().shim.execs
    }

    /// Returns when the shim's process is gone, and with it its namespaces and mounts; helps it after a while. Blocks.
    pub(super) fn end_shim(&self) {
        let (child, pid, ticks) = {
            let mut inner = self.inner();
            inner.client = None;
            (inner.shim.child.take(), inner.shim.pid, inner.shim.ticks)
        };
        let alive = || pid > 0 && state::start_ticks(pid) == Some(ticks);
        let mut waited = Duration::ZERO;
        while alive() && waited < SHIM_END {
            std::thread::sleep(SHIM_PAUSE);
            waited += SHIM_PAUSE;
        }
        if alive() {
            tracing::warn!(pod = %self.uid, pid, "a shim does not end and is killed");
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(mut child) = child {
            let _ = child.wait();
        }
    }

    /// The pod's network namespace as a file; `None`: the node's.
    pub(super) fn network_namespace(&self) -> Result<Option<PathBuf>, RuntimeError> {
        if self.record.network.is_none() {
            return Ok(None);
        }
        let gone = RuntimeError::System {
            operation: format!("enter the network of pod {}", self.uid),
            cause: "its sandbox is not ready".to_owned(),
        };
        let inner = self.inner();
        let ShimProcess { pid, ticks, .. } = inner.shim;
        let alive = inner.client.is_some() && pid > 0 && state::start_ticks(pid) == Some(ticks);
        if alive { Ok(Some(format!("/proc/{pid}/ns/net").into())) } else { Err(gone) }
    }

    /// From now on the shim's end is expected; gives the way to it if it lives.
    pub(super) fn begin_stop(&self) -> Option<Client> {
        let mut inner = self.inner();
        inner.stopping = true;
        inner.client.clone()
    }

    /// Takes the shim for dead.
    pub(super) fn detach(&self) {
        self.inner().client = None;
    }

    /// Says which id the next container is to have.
    pub(super) fn set_next(&self, id: ContainerId) {
        self.inner().next = Some(id);
    }

    pub(super) fn take_next(&self) -> Option<ContainerId> {
        self.inner().next.take()
    }

    pub(super) fn add(&self, record: ContainerRecord) {
        let container = Container {
            started: None,
            exit: None,
            unseen: OnceCell::new(),
            over: watch::Sender::new(false),
            record: Arc::new(record),
        };
        self.inner().containers.insert(container.record.id.clone(), container);
    }

    /// Reads what is on disk about a container into memory.
    pub(super) fn adopt(&self, dir: &ContainerDir) -> io::Result<ContainerId> {
        let record: ContainerRecord = state::read(&dir.record())?;
        let id = record.id.clone();
        let (started, mut exit) = (dir.read_started(), dir.read_exit());
        let mut inner = self.inner();
        let orphaned = inner.client.is_none();
        if let (true, None, Some(dead)) = (orphaned, &exit, started.as_ref().filter(|of| !of.alive())) {
            exit = Some(unseen(dead, dir));
        }
        inner.containers.insert(
            id.clone(),
            Container {
                record: Arc::new(record),
                started,
                over: watch::Sender::new(orphaned || exit.is_some()),
                exit,
                unseen: OnceCell::new(),
            },
        );
        Ok(id)
    }

    pub(super) fn forget(&self, id: &ContainerId) {
        self.inner().containers.remove(id);
    }

    pub(super) fn record_of(&self, id: &ContainerId) -> Option<Arc<ContainerRecord>> {
        self.inner().containers.get(id).map(|container| Arc::clone(&container.record))
    }

    pub(super) fn container_ids(&self) -> Vec<ContainerId> {
        self.inner().containers.keys().cloned().collect()
    }

    pub(super) fn started(&self, id: &ContainerId, pid: i32, started_ms: i64) {
        if let Some(container) = self.inner().containers.get_mut(id) {
            // The shim wrote the same, with the ticks; only a dead shim's containers need those.
            let ticks = state::start_ticks(pid).unwrap_or_default();
            container.started = Some(Started { pid, ticks, started_ms });
        }
    }

    /// Turns true when the container is over; `None` when it is not known.
    pub(super) fn over(&self, id: &ContainerId) -> Option<watch::Receiver<bool>> {
        self.inner().containers.get(id).map(|container| container.over.subscribe())
    }

    pub(super) fn state_of(&self, id: &ContainerId) -> Option<ContainerState> {
        let inner = self.inner();
        inner.containers.get(id).map(|container| container.state(inner.client.is_none(), &self.dir))
    }

    pub(super) fn status(&self) -> SandboxStatus {
        SandboxStatus {
            uid: self.uid.clone(),
            namespace: self.record.config.namespace.clone(),
            name: self.record.config.name.clone(),
            ready: self.ready(),
            ip: self.record.network.as_ref().map(|network| network.address.into()),
            created_ms: self.record.created_ms,
        }
    }

    pub(super) fn container_statuses(&self) -> Vec<ContainerStatus> {
        let inner = self.inner();
        let orphaned = inner.client.is_none();
        inner
            .containers
            .values()
            .map(|container| {
                let state = container.state(orphaned, &self.dir);
                let record = &container.record;
                ContainerStatus {
                    id: record.id.clone(),
                    pod: self.uid.clone(),
                    name: record.config.name.clone(),
                    attempt: record.config.attempt,
                    image: record.config.image.clone(),
                    image_id: match record.config.image_ref.as_str() {
                        "" => record.image.id.clone(),
                        told => told.to_owned(),
                    },
                    started_ms: container.started.as_ref().map_or(0, |started| started.started_ms),
                    pid: container
                        .started
                        .as_ref()
                        .filter(|_| state == ContainerState::Running)
                        .map(|started| started.pid),
                    state,
                }
            })
            .collect()
    }

    /// Kills the first process of an orphaned container; the rest of its pid namespace dies with it.
    pub(super) fn kill_orphan(&self, id: &ContainerId) {
        let inner = self.inner();
        if let Some(started) = inner.containers.get(id).and_then(|container| container.started.as_ref())
            && started.alive()
        {
            let _ = nix::sys::signal::kill(Pid::from_raw(started.pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

impl Container {
    /// `orphaned`: the shim is gone, so nobody reports this container's exit.
    fn state(&self, orphaned: bool, pod: &SandboxDir) -> ContainerState {
        match (&self.exit, &self.started) {
            (Some(exit), _) => ContainerState::Exited(exit.clone()),
            (None, None) => ContainerState::Created,
            (None, Some(started)) if !orphaned || started.alive() => ContainerState::Running,
            (None, Some(started)) => {
                let dir = pod.container(&self.record.id);
                // The shim may have recorded it before it died.
                let found = || dir.read_exit().unwrap_or_else(|| unseen(started, &dir));
                ContainerState::Exited(self.unseen.get_or_init(found).clone())
            }
        }
    }
}

/// The end of what is dead, and was not seen to die. Recorded, so that it does not end anew with every start of this process.
fn unseen(started: &Started, dir: &ContainerDir) -> Exit {
    let exit = Exit {
        code: UNSEEN_EXIT,
        signal: Some(libc::SIGKILL),
        oom_killed: false,
        // The clock may have been set back.
        finished_ms: state::now_ms().max(started.started_ms),
        unseen: true,
    };
    if let Err(error) = state::write(&dir.exit(), &exit) {
        tracing::warn!(container = %dir.0.display(), %error, "cannot record when a container was found dead");
    }
    exit
}

/// An ending shim needs milliseconds.
const SHIM_END: Duration = Duration::from_secs(2);
const SHIM_PAUSE: Duration = Duration::from_millis(1);

/// Nobody saw it end; Kubernetes too reports such containers as killed.
const UNSEEN_EXIT: i32 = 137;

impl Started {
    /// That very process still runs.
    pub(super) fn alive(&self) -> bool {
        state::start_ticks(self.pid) == Some(self.ticks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerConfig, SandboxConfig};

    #[test]
    fn an_end_that_was_recorded_is_told_and_what_was_not_is_made_up_once() {
        let root = tempfile::tempdir().unwrap();
        let record = SandboxRecord {
            config: SandboxConfig { uid: "u".into(), ..SandboxConfig::default() },
            network: None,
            cgroup: "/none".into(),
            created_ms: 1,
        };
        let dir = SandboxDir::new(root.path(), "u");
        let pod = Pod::new(dir.clone(), record, broadcast::channel(1).0);
        let mut dead = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(dead.id()).unwrap();
        dead.wait().unwrap();
        // Its shim has recorded how one of them ended, and was killed before it told.
        let recorded = Exit { code: 0, signal: None, oom_killed: false, finished_ms: 7, unseen: false };
        for (id, exit) in [("told", Some(&recorded)), ("untold", None)] {
            let id = ContainerId(id.into());
            let (config, image) = (ContainerConfig::default(), state::ImageRecord::default());
            pod.add(ContainerRecord { id: id.clone(), config, image, created_ms: 1 });
            pod.started(&id, pid, 5);
            let of_container = dir.container(&id);
            std::fs::create_dir_all(&of_container.0).unwrap();
            if let Some(exit) = exit {
                state::write(&of_container.exit(), exit).unwrap();
            }
            let Some(ContainerState::Exited(found)) = pod.state_of(&id) else { panic!("{id} runs") };
            assert_eq!(found.unseen, exit.is_none());
            assert_eq!(of_container.read_exit(), Some(found), "so it is told again by the next process");
        }
    }
}
