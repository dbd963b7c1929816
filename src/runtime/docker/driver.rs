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
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, Semaphore, broadcast};

use super::{
    DockerConfig,
    ends::Ends,
    engine::{self, ended, fault, is_absent, is_over},
    files,
    images::Images,
    labels::{self, Kind},
    network::Network,
    share::Exported,
    spec,
    stats::Layers,
    status,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerId, ContainerStatus, RuntimeError, RuntimeEvent, SandboxConfig, SandboxStatus,
        exchange::Exchange,
    },
};

/// A receiver that is further behind has to list again anyway.
const EVENTS: usize = 1024;
/// How long a killed container may take to die: it may be in a system call that the kernel cannot interrupt at once.
pub(super) const DEATH_WAIT: Duration = Duration::from_secs(30);
/// Requests to the engine at the same time on behalf of one call: it works on a few at a time anyway.
pub(super) const AT_ONCE: usize = 8;
/// How long a removal waits for its turn: one that hangs in the engine holds up the others no longer.
const TURN: Duration = Duration::from_secs(2);

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
    /// Sandboxes that were seen to run. Of those whose end is awaited nothing has changed since.
    seen: Mutex<HashMap<Uid, Found>>,
    /// Containers that this process made and has not started yet.
    made: Mutex<HashMap<String, Unstarted>>,
    /// Sizes of writable layers.
    pub layers: AsyncMutex<Layers>,
    /// Removals, of all pods: with more at once an engine takes longer for all of them.
    removals: Semaphore,
}

/// A container that was made.
pub(super) struct Unstarted {
    pub labels: labels::Container,
    /// Its memory has a limit.
    pub limited: bool,
}

/// A sandbox and the engine's id of its container.
#[derive(Clone)]
pub(super) struct Found {
    pub id: String,
    pub sandbox: labels::Sandbox,
    pub running: bool,
    address: Option<String>,
}

/// A sandbox that was asked for.
enum Made {
    /// Its id; it does not run yet.
    Now(String),
    /// It ran already.
    Before(Found),
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
            seen: Mutex::default(),
            made: Mutex::default(),
            layers: AsyncMutex::default(),
            removals: Semaphore::new(AT_ONCE),
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
        self.seen().get(pod).is_some_and(|found| found.id != id && self.ends.is_expected(&found.id))
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<Uid, Found>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
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
                self.seen().insert(uid, found);
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
        let mut attempt = 1;
        loop {
            let options =
                CreateContainerOptions { name: Some(name.clone()), ..CreateContainerOptions::default() };
            let error = match self.docker.create_container(Some(options), body.clone()).await {
                Ok(made) => return Ok(Made::Now(made.id)),
                Err(error) => error,
            };
            match engine::status(&error) {
                _ if attempt == ATTEMPTS => return Err(refusal("create a sandbox", error)),
                // It has one.
                Some(409) => {
                    for found in self.sandboxes(Some(&uid)).await? {
                        if found.running {
                            self.seen().insert(uid, found.clone());
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

    /// A pod's sandbox, the running one first.
    pub(super) async fn sandbox_of(&self, pod: &Uid) -> Result<Option<Found>, RuntimeError> {
        let seen = self.seen().get(pod).cloned();
        // One that has ended meanwhile is expected to run no more.
        if let Some(found) = seen.filter(|found| self.ends.is_expected(&found.id)) {
            return Ok(Some(found));
        }
        let mut all = self.sandboxes(Some(pod)).await?;
        all.sort_by_key(|found| !found.running);
        let found = all.into_iter().next();
        if let Some(running) = found.as_ref().filter(|found| found.running) {
            self.seen().insert(pod.clone(), running.clone());
        }
        Ok(found)
    }

    pub(super) async fn stop_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        let _turn = self.lock(uid).await;
        self.stop_locked(uid).await
    }

    async fn stop_locked(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        self.seen().remove(uid);
        let (containers, sandboxes) = self.of_pod(uid).await?;
        self.end_all(&containers).await?;
        for id in sandboxes.into_iter().filter(is_running).filter_map(|found| found.id) {
            // From here on its end is no loss.
            self.ends.forget(&id);
            self.kill_and_wait(&id).await?;
        }
        Ok(())
    }

    /// Kills all containers of a pod and waits until their ends are told.
    pub(super) async fn end_containers(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        self.end_all(&self.summaries(Kind::Container, Some(uid)).await?).await
    }

    async fn end_all(self: &Arc<Self>, containers: &[ContainerSummary]) -> Result<(), RuntimeError> {
        let running: Vec<String> = containers
            .iter()
            .filter(|found| is_running(found))
            .filter_map(|found| found.id.clone())
            // It may be listed as running for a moment when its end was told.
            .filter(|id| !self.ends.has_ended(id))
            .collect();
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
        .await
    }

    /// A sandbox that runs still is killed by its removal: nobody waits for its end, since containers have ended before.
    pub(super) async fn remove_sandbox(self: &Arc<Self>, uid: &Uid) -> Result<(), RuntimeError> {
        let _turn = self.lock(uid).await;
        self.seen().remove(uid);
        let (containers, sandboxes) = self.of_pod(uid).await?;
        self.end_all(&containers).await?;
        // From here on its end is no loss.
        sandboxes.iter().flat_map(|found| &found.id).for_each(|id| self.ends.forget(id));
        stream::iter(containers.into_iter().chain(sandboxes).filter_map(|found| found.id).map(|id| {
            let driver = Arc::clone(self);
            async move { driver.remove(&id).await }
        }))
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
        files::remove(&self.config.root, uid).await;
        Ok(())
    }

    /// Sandboxes, of one pod or all.
    pub(super) async fn sandboxes(&self, pod: Option<&Uid>) -> Result<Vec<Found>, RuntimeError> {
        let all = self.summaries(Kind::Sandbox, pod).await?;
        let all = all.into_iter().filter_map(Found::read);
        Ok(all
            .map(|found| Found { running: found.running && !self.ends.has_ended(&found.id), ..found })
            .collect())
    }

    pub(super) async fn list_sandboxes(&self) -> Result<Vec<SandboxStatus>, RuntimeError> {
        Ok(self.sandboxes(None).await?.iter().map(Found::status).collect())
    }

    pub(super) async fn summaries(
        &self,
        kind: Kind,
        pod: Option<&Uid>,
    ) -> Result<Vec<ContainerSummary>, RuntimeError> {
        self.listed(labels::filter_kind(&self.root, kind, pod)).await
    }

    /// A pod's containers and its sandboxes.
    async fn of_pod(
        &self,
        pod: &Uid,
    ) -> Result<(Vec<ContainerSummary>, Vec<ContainerSummary>), RuntimeError> {
        let all = self.listed(labels::filter_pod(&self.root, pod)).await?;
        let kind = |found: &ContainerSummary| Some(labels::kind_and_pod(found.labels.as_ref()?)?.0);
        Ok(all.into_iter().partition(|found| kind(found) == Some(Kind::Container)))
    }

    async fn listed(
        &self,
        filters: HashMap<String, Vec<String>>,
    ) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let options =
            ListContainersOptions { all: true, filters: Some(filters), ..ListContainersOptions::default() };
        self.docker.list_containers(Some(options)).await.map_err(fault("list the engine's containers"))
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
                let ours = labels.and_then(|labels| labels.get(labels::ROOT)) == Some(&self.root);
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
        self.signal(id, "SIGKILL").await?;
        match tokio::time::timeout(DEATH_WAIT, self.wait_dead(id)).await {
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
        let removed = {
            let _turn = tokio::time::timeout(TURN, self.removals.acquire()).await;
            self.docker.remove_container(id, Some(options)).await
        };
        self.ends.forget(id);
        self.ends.exits().remove(id);
        self.made().remove(id);
        match removed {
            // Somebody else is at it: that ends when it does.
            Err(error) if engine::status(&error) == Some(409) => {
                let options = WaitContainerOptions { condition: "removed".to_owned() };
                let mut gone = std::pin::pin!(self.docker.wait_container(id, Some(options)));
                let _ = tokio::time::timeout(DEATH_WAIT, gone.next()).await;
                Ok(())
            }
            other => ended(other).map_err(fault(format!("remove container {id}"))),
        }
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

impl Found {
    fn read(found: ContainerSummary) -> Option<Found> {
        let running = is_running(&found);
        let mut networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.drain().find_map(|(_, network)| network.ip_address);
        Some(Found { id: found.id?, sandbox: labels::Sandbox::read(&found.labels?)?, running, address })
    }

    fn inspected(found: ContainerInspectResponse) -> Option<Found> {
        let running = found.state.as_ref().and_then(|state| state.running) == Some(true);
        let mut networks = found.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
        let address = networks.drain().find_map(|(_, network)| network.ip_address);
        let sandbox = labels::Sandbox::read(&found.config?.labels?)?;
        Some(Found { id: found.id?, sandbox, running, address })
    }

    pub(super) fn status(&self) -> SandboxStatus {
        status::sandbox(&self.sandbox, self.running, self.address.as_deref())
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
