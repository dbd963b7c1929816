//! The driver: carries out what the trait asks, on a thread and a tokio runtime of its own.
//!
//! Owns: the connection to the engine and the life cycles of sandboxes. Invariants: the engine is the one truth (what is
//! remembered here can be asked for again); changes to one pod's sandbox happen one at a time, different ones at once;
//! what carries no label of this root is never touched.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{
    Docker,
    models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::{
        CreateContainerOptions, InspectContainerOptions, KillContainerOptions, ListContainersOptions,
        RemoveContainerOptions, StartContainerOptions, WaitContainerOptions,
    },
};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, broadcast};

use super::{
    DockerConfig,
    ends::Ends,
    engine::{self, ended, fault, is_absent, is_over},
    files,
    images::Images,
    labels::{self, Kind},
    network::Network,
    pods::{Found, Pods, Whole},
    share::Exported,
    spec,
    stats::Layers,
    status,
    turns::Turns,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, ContainerStatus, RuntimeError, RuntimeEvent, SandboxConfig, SandboxStatus,
        config::check_uid, exchange::Exchange,
    },
};

/// A receiver that is further behind has to list again anyway.
const EVENTS: usize = 1024;
/// How long a killed container may take to die: it may be in a system call that the kernel cannot interrupt at once.
pub(super) const DEATH_WAIT: Duration = Duration::from_secs(30);
/// Requests to the engine at the same time on behalf of one call: it works on a few at a time anyway.
pub(super) const AT_ONCE: usize = 8;
/// How long a removal waits for its turn: nobody waits for it.
const REMOVAL_TURN: Duration = Duration::from_secs(10);
/// How long a container that is to end waits for its turn to hear of it.
pub(super) const END_TURN: Duration = Duration::from_secs(1);

pub(super) struct Driver {
    pub config: DockerConfig,
    /// The root as label.
    pub root: String,
    pub docker: Docker,
    /// The engine's version.
    pub version: String,
    pub events: broadcast::Sender<RuntimeEvent>,
    pub ends: Ends,
    pub images: Images,
    pub exchange: Exchange,
    pub exported: Exported,
    network: AsyncMutex<Option<Network>>,
    /// Held while a sandbox changes.
    locks: Mutex<HashMap<Uid, Arc<AsyncMutex<()>>>>,
    /// What is known of containers, so that a listing asks only for what changed.
    known: Mutex<HashMap<String, (Option<ContainerSummaryStateEnum>, ContainerStatus)>>,
    pub pods: Pods,
    /// Containers that this process made and has not started yet.
    made: Mutex<HashMap<String, Unstarted>>,
    /// Sizes of writable layers.
    pub layers: AsyncMutex<Layers>,
    /// For ends and removals, of all pods.
    pub turns: Turns,
}

/// A container that was made.
pub(super) struct Unstarted {
    pub labels: labels::Container,
    /// Its memory has a limit.
    pub limited: bool,
}

/// A sandbox that was asked for.
enum Made {
    /// Its id; it does not run yet.
    Now(String),
    /// It ran already.
    Before(Found),
}

/// What there is of a pod.
struct OfPod {
    containers: Vec<Part>,
    sandboxes: Vec<Part>,
}

/// A container, or that of a sandbox.
struct Part {
    id: String,
    running: bool,
}

impl Driver {
    pub(super) async fn new(config: DockerConfig) -> Result<Driver, RuntimeError> {
        let (docker, version) = engine::connect(&config.socket).await?;
        Ok(Driver {
            root: config.root.to_string_lossy().into_owned(),
            exchange: Exchange::new(&config.root),
            config,
            docker,
            version,
            events: broadcast::channel(EVENTS).0,
            ends: Ends::default(),
            images: Images::default(),
            exported: Exported::default(),
            network: AsyncMutex::default(),
            locks: Mutex::default(),
            known: Mutex::default(),
            pods: Pods::default(),
            made: Mutex::default(),
            layers: AsyncMutex::default(),
            turns: Turns::default(),
        })
    }

    /// Whether the engine answers.
    pub(super) async fn answers(&self) -> Result<(), RuntimeError> {
        let answer = self.docker.ping().await;
        answer.map(drop).map_err(|error| engine::unreachable(&self.config.socket, &error))
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, (Option<ContainerSummaryStateEnum>, ContainerStatus)>> {
        // Each change is one call on the map, so a panic elsewhere leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a pod has a sandbox that runs, other than this one.
    pub(super) fn has_other_sandbox(&self, pod: &Uid, id: &str) -> bool {
        self.pods.seen(pod).is_some_and(|found| found.id != id && self.ends.is_expected(&found.id))
    }

    pub(super) fn made(&self) -> MutexGuard<'_, HashMap<String, Unstarted>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<Uid, Arc<AsyncMutex<()>>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn to change a sandbox.
    async fn lock(&self, uid: &Uid) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks();
            // Nobody holds or waits for those that only the map has.
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            Arc::clone(locks.entry(uid.clone()).or_default())
        };
        lock.lock_owned().await
    }

    pub(super) async fn set_pod_cidr(&self, cidr: &str) -> Result<(), RuntimeError> {
        let network = Network::ensure(self, cidr).await?;
        *self.network.lock().await = Some(network);
        Ok(())
    }

    pub(super) async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxStatus, RuntimeError> {
        check_uid(&config.uid)?;
        let uid = Uid::from(config.uid.as_str());
        if config.user_namespace.is_some() {
            // The engine knows one range for all of its containers, and that only if it is started with it.
            let text = "hostUsers false: the docker runtime cannot give a pod users of its own";
            return Err(RuntimeError::Config(text.to_owned()));
        }
        let _turn = self.lock(&uid).await;
        let id = match self.create_sandbox(&config).await? {
            Made::Before(found) => return Ok(found.status()),
            Made::Now(id) => id,
        };
        self.ends.expect(&id, Kind::Sandbox, &uid);
        let begun = match self.docker.start_container(&id, None::<StartContainerOptions>).await {
            Ok(()) => self.inspect(&id).await,
            Err(error) => Err(sandbox_refusal(error)),
        };
        match begun.map(|found| found.and_then(Found::inspected).filter(|found| found.running)) {
            Ok(Some(found)) => {
                let status = found.status();
                self.pods.saw(&uid, &found);
                Ok(status)
            }
            failed => {
                self.ends.forget(&id);
                if let Err(left) = self.remove(&id).await {
                    tracing::warn!(pod = %uid, error = %left, "a failed sandbox is left in the engine");
                }
                failed.and(Err(RuntimeError::System {
                    operation: format!("run the sandbox of pod {uid}"),
                    cause: "it ended at once".to_owned(),
                }))
            }
        }
    }

    /// Has the engine make a sandbox, looking only at what it refuses: most often nothing is in the way.
    async fn create_sandbox(&self, config: &SandboxConfig) -> Result<Made, RuntimeError> {
        /// Both refusals that can be mended, and once more.
        const ATTEMPTS: usize = 3;
        let network = match config.host_network {
            true => None,
            false => Some(self.network.lock().await.clone().ok_or_else(|| RuntimeError::System {
                operation: "give the pod an address".to_owned(),
                cause: "the node has no pod subnet yet".to_owned(),
            })?),
        };
        let uid = Uid::from(config.uid.as_str());
        // The pod's own: two sandboxes of one pod cannot be.
        let name = labels::name(&self.root, &[&config.namespace, &config.name, &config.uid]);
        let created_ms = crate::runtime::docker::now_ms();
        let files = files::write(&self.config.root, config).await?;
        let network = network.as_ref().map(|n| n.name.as_str());
        let body = spec::sandbox(&self.root, config, network, &files, created_ms);
        let (mut attempt, mut first) = (1, true);
        loop {
            let options =
                CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
            let error = match self.docker.create_container(Some(options), body.clone()).await {
                Ok(made) => {
                    self.pods.sandbox_made(&uid, &made.id, first);
                    return Ok(Made::Now(made.id));
                }
                Err(error) => error,
            };
            match engine::status(&error) {
                _ if attempt == ATTEMPTS => return Err(refusal("create a sandbox", error)),
                // It has one.
                Some(409) => {
                    first = false;
                    for found in self.sandboxes(Some(&uid)).await? {
                        if found.running && self.still_runs(&uid, &found).await? {
                            return Ok(Made::Before(found));
                        }
                        self.remove(&found.id).await?;
                    }
                }
                // Somebody removed its image.
                Some(404) => self.ensure_program().await?,
                _ => return Err(refusal("create a sandbox", error)),
            }
            attempt += 1;
        }
    }

    /// Awaits the end of a sandbox that was found; tells whether it has not ended by then.
    async fn still_runs(&self, uid: &Uid, found: &Found) -> Result<bool, RuntimeError> {
        if !self.ends.is_expected(&found.id) {
            self.ends.expect(&found.id, Kind::Sandbox, uid);
            let now = self.inspect(&found.id).await?.and_then(Found::inspected);
            if !now.is_some_and(|now| now.running) {
                self.ends.forget(&found.id);
                return Ok(false);
            }
        }
        self.pods.saw(uid, found);
        Ok(true)
    }

    /// A pod's sandbox, the running one first.
    pub(super) async fn sandbox_of(&self, pod: &Uid) -> Result<Option<Found>, RuntimeError> {
        // One that has ended meanwhile is expected to run no more.
        if let Some(found) = self.pods.seen(pod).filter(|found| self.ends.is_expected(&found.id)) {
            return Ok(Some(found));
        }
        let mut all = self.sandboxes(Some(pod)).await?;
        all.sort_by_key(|found| !found.running);
        let found = all.into_iter().next();
        if let Some(running) = found.as_ref().filter(|found| found.running) {
            self.pods.saw(pod, running);
        }
        Ok(found)
    }

    pub(super) async fn stop_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        let _turn = self.lock(uid).await;
        self.stop_locked(uid).await
    }

    async fn stop_locked(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        self.pods.unsee(uid);
        let OfPod { containers, sandboxes } = self.of_pod(uid).await?;
        self.end_all(containers).await?;
        for Part { id, .. } in sandboxes.into_iter().filter(|part| part.running) {
            // From here on its end is no loss.
            self.ends.forget(&id);
            if let Err(error) = self.kill_and_wait(&id).await {
                // Somebody tries again.
                self.pods.inherited(uid);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Kills all containers of a pod and waits until their ends are told.
    pub(super) async fn end_containers(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        self.end_all(self.of_pod(uid).await?.containers).await.map(drop)
    }

    /// Ends those that run, and gives all their ids.
    async fn end_all(self: &Arc<Self>, containers: Vec<Part>) -> Result<Vec<String>, RuntimeError> {
        // It may be listed as running for a moment when its end was told.
        let runs = |part: &&Part| part.running && !self.ends.has_ended(&part.id);
        let running: Vec<String> = containers.iter().filter(runs).map(|part| part.id.clone()).collect();
        stream::iter(running.into_iter().map(|id| {
            let driver = Arc::clone(self);
            async move {
                driver.kill_and_wait(&id).await?;
                driver.ends.told(&id).await;
                Ok::<_, RuntimeError>(())
            }
        }))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
        Ok(containers.into_iter().map(|part| part.id).collect())
    }

    /// A sandbox that runs still is killed by its removal: nobody waits for its end, since containers have ended before.
    pub(super) async fn remove_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        check_uid(uid.as_str())?;
        let _turn = self.lock(uid).await;
        self.pods.unsee(uid);
        let OfPod { containers, sandboxes } = self.of_pod(uid).await?;
        let containers = self.end_all(containers).await?;
        // From here on its end is no loss.
        sandboxes.iter().for_each(|part| self.ends.forget(&part.id));
        stream::iter(containers.into_iter().chain(sandboxes.into_iter().map(|part| part.id)).map(|id| {
            let driver = Arc::clone(self);
            async move { driver.remove(&id).await }
        }))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
        self.pods.forget(uid);
        files::remove(&self.config.root, uid).await;
        Ok(())
    }

    /// Sandboxes, of one pod or all.
    pub(super) async fn sandboxes(&self, pod: Option<&Uid>) -> Result<Vec<Found>, RuntimeError> {
        let all = self.summaries(Kind::Sandbox, pod).await?;
        let mut all: Vec<Found> = all.into_iter().filter_map(Found::read).collect();
        for found in &mut all {
            found.running &= !self.ends.has_ended(&found.id);
        }
        Ok(all)
    }

    pub(super) async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        // In this order: what is made meanwhile is not taken for gone.
        let (known, ended) = (self.pods.known(), self.ends.ended_sandboxes());
        let all = self.sandboxes(None).await?;
        // Somebody else may have removed them.
        let there: HashSet<&Uid> = all.iter().map(|found| &found.sandbox.uid).collect();
        known.iter().filter(|uid| !there.contains(uid)).for_each(|uid| self.pods.lost(uid));
        let there: HashSet<&String> = all.iter().map(|found| &found.id).collect();
        ended.iter().filter(|id| !there.contains(id)).for_each(|id| self.ends.removed(id));
        Ok(all.iter().map(Found::status).collect())
    }

    pub(super) async fn summaries(
        &self,
        kind: Kind,
        pod: Option<&Uid>,
    ) -> Result<Vec<ContainerSummary>, RuntimeError> {
        self.listed(labels::filter_kind(&self.root, kind, pod)).await
    }

    /// What there is of a pod.
    async fn of_pod(&self, pod: &Uid) -> Result<OfPod, RuntimeError> {
        if let Some(Whole { containers, sandboxes }) = self.pods.whole(pod) {
            // What is known of its start may be wrong. That none of it runs the engine says at once.
            let part = |id: String| Part { running: !self.ends.has_ended(&id), id };
            let parts = |ids: Vec<String>| ids.into_iter().map(part).collect();
            return Ok(OfPod { containers: parts(containers), sandboxes: parts(sandboxes) });
        }
        let all = self.listed(labels::filter_pod(&self.root, pod)).await?;
        let (mut containers, mut sandboxes) = (Vec::new(), Vec::new());
        for found in all {
            let running = is_running(&found);
            let kind = found.labels.as_ref().and_then(labels::kind_and_pod).map(|(kind, _)| kind);
            let of = if kind == Some(Kind::Container) { &mut containers } else { &mut sandboxes };
            of.extend(found.id.map(|id| Part { id, running }));
        }
        Ok(OfPod { containers, sandboxes })
    }

    async fn listed(
        &self,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let options =
            ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        let mut all = self
            .docker
            .list_containers(Some(options))
            .await
            .map_err(fault("list the engine's containers"))?;
        all.retain(|found| labels::is_ours(&self.root, found.names.iter().flatten()));
        Ok(all)
    }

    /// Every container, of one pod or all, and none as ended before its end was told.
    pub(super) async fn list_containers(
        self: &Arc<Self>,
        pod: Option<&Uid>,
    ) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let found = self.summaries(Kind::Container, pod).await?;
        let asked: Vec<_> = found.into_iter().filter_map(|found| Some((found.id?, found.state))).collect();
        if pod.is_none() {
            let there: HashSet<&String> = asked.iter().map(|(id, _)| id).collect();
            self.known().retain(|id, _| there.contains(id));
            self.ends.exits().retain(|id, exit| exit.is_none() || there.contains(id));
        }
        let statuses = stream::iter(asked.into_iter().map(|(id, state)| {
            let driver = Arc::clone(self);
            async move { driver.container_status(id, state).await }
        }));
        let all: Vec<Option<ContainerStatus>> = statuses.buffered(AT_ONCE).try_collect().await?;
        Ok(all.into_iter().flatten().collect())
    }

    async fn container_status(
        &self,
        id: String,
        state: Option<ContainerSummaryStateEnum>,
    ) -> Result<Option<ContainerStatus>, RuntimeError> {
        // The engine tells an end before it lists it, and what was told once holds.
        let exit = self.ends.exit(&id);
        if let Some((of, status)) = self.known().get(&id)
            && (*of == state || exit.is_some() && status.started_ms > 0)
        {
            return Ok(Some(status::ended(status.clone(), exit)));
        }
        let Some(found) = self.inspect(&id).await? else { return Ok(None) };
        let Some(status) = status::container(&found) else { return Ok(None) };
        if matches!(status.state, crate::runtime::ContainerState::Exited(_)) {
            self.ends.told(&id).await;
        }
        let exit = self.ends.exit(&id);
        let status = status::ended(status, exit);
        self.known().insert(id, (state, status.clone()));
        Ok(Some(status))
    }

    /// A container of this root.
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => {
                let labels = found.config.as_ref().and_then(|config| config.labels.as_ref());
                let ours = labels.and_then(|labels| labels.get(labels::ROOT)) == Some(&self.root)
                    && labels::is_ours(&self.root, found.name.iter());
                Ok(Some(found).filter(|_| ours))
            }
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(fault(format!("look at container {id}"))(error)),
        }
    }

    /// [`Driver::inspect`] of what has to be there.
    pub(super) async fn expected(&self, id: &ContainerId) -> Result<ContainerInspectResponse, RuntimeError> {
        self.inspect(&id.0).await?.ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    /// Kills what runs, and returns once it is dead.
    pub(super) async fn kill_and_wait(&self, id: &str) -> Result<(), RuntimeError> {
        let work = async {
            self.signal(id, "SIGKILL").await?;
            self.wait_dead(id).await
        };
        match tokio::time::timeout(END_TURN + DEATH_WAIT, self.turns.within(END_TURN, work)).await {
            Ok(dead) => dead,
            Err(_) => Err(RuntimeError::System {
                operation: format!("kill container {id}"),
                cause: "it does not die".to_owned(),
            }),
        }
    }

    /// Sends a signal to what runs.
    pub(super) async fn signal(&self, id: &str, signal: &str) -> Result<(), RuntimeError> {
        let options = KillContainerOptions { signal: signal.to_owned() };
        let sent = self.docker.kill_container(id, Some(options)).await;
        ended(sent).map_err(fault(format!("send {signal} to container {id}")))
    }

    /// Returns once a container does not run (any more).
    pub(super) async fn wait_dead(&self, id: &str) -> Result<(), RuntimeError> {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut waiting = std::pin::pin!(self.docker.wait_container(id, Some(options)));
        match waiting.next().await {
            // Exit codes other than 0 come as errors.
            None | Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) if is_over(&error) => Ok(()),
            Some(Err(error)) => Err(fault(format!("wait for container {id}"))(error)),
        }
    }

    /// Removes a container that has ended, with the volumes that its image declares.
    pub(super) async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptions { v: true, force: true, ..RemoveContainerOptions::default() };
        let removed = self.turns.within(REMOVAL_TURN, self.docker.remove_container(id, Some(options))).await;
        match removed {
            // Somebody else is at it: that ends when it does.
            Err(error) if engine::status(&error) == Some(409) => {
                let options = WaitContainerOptions { condition: "removed".to_owned() };
                let mut gone = std::pin::pin!(self.docker.wait_container(id, Some(options)));
                let _ = tokio::time::timeout(DEATH_WAIT, gone.next()).await;
            }
            other => ended(other).map_err(fault(format!("remove container {id}")))?,
        }
        self.ends.removed(id);
        self.made().remove(id);
        self.known().remove(id);
        self.pods.removed(id);
        Ok(())
    }

    /// Removes everything of this root from the engine but images.
    pub(super) async fn destroy(self: &Arc<Self>) -> Result<(), RuntimeError> {
        let mut pods: Vec<Uid> = Vec::new();
        for kind in [Kind::Sandbox, Kind::Container] {
            let labels = self.summaries(kind, None).await?.into_iter().filter_map(|found| found.labels);
            pods.extend(labels.filter_map(|labels| labels::kind_and_pod(&labels)).map(|(_, pod)| pod));
        }
        pods.sort();
        pods.dedup();
        for pod in pods {
            self.remove_sandbox(&pod).await?;
        }
        *self.network.lock().await = None;
        Network::remove_unused(self, None).await
    }
}

pub(super) fn is_running(found: &ContainerSummary) -> bool {
    use ContainerSummaryStateEnum::{PAUSED, RUNNING};
    matches!(found.state, Some(RUNNING | PAUSED))
}

/// A configuration that the engine does not take, in Kubernetes' distinction.
pub(super) fn refusal(operation: &str, error: bollard::errors::Error) -> RuntimeError {
    match engine::status(&error) {
        Some(400) => RuntimeError::Config(engine::message(&error)),
        _ => fault(operation)(error),
    }
}

/// Why a sandbox does not start: most often the network.
fn sandbox_refusal(error: bollard::errors::Error) -> RuntimeError {
    let text = engine::message(&error);
    match text.contains("address") {
        true => RuntimeError::System { operation: "give the pod an address".to_owned(), cause: text },
        false => RuntimeError::System { operation: "start a sandbox".to_owned(), cause: text },
    }
}
