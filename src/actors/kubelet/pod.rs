//! One pod on this node: the supervisor of its containers.
//!
//! Owns: carrying out what [`Machine`] decides, through the runtime, and telling the kubelet how the pod is. Every
//! action's outcome goes back into the machine, which is then stepped again; nothing else changes it.
//! After a panic the supervisor makes a fresh actor, which takes over what the runtime still has of the pod.

mod ended;
mod messages;
mod ports;
mod supply;

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, SpawnHandle, WrapFuture as _};
use arc_swap::{ArcSwap, ArcSwapOption};
use k8s_openapi::api::core::v1;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::{
    messages::{
        HostMoved, ImagesChanged, LookAgain, PodAssigned, PodEvicted, PodNoticed, PodReported, PodUnassigned,
        RuntimeSaw, Wanted,
    },
    supply::SourcesMoved,
};

use self::ended::{adopted, logs_written, spoken};
use super::{
    context::{NodeContext, now_ms},
    found::Found,
    hooks::Hooked,
    host_ports::PodPorts,
    images::Teller,
    probes, resize,
    start::{Started, start_container},
    volumes,
};
use crate::{
    actors::{outside, supervisor::Life},
    logic::pod::{
        Action, Adopted, Machine, Notice, Role, SandboxPhase, StartFailure,
        config::Places,
        ephemeral,
        gates::keep_foreign,
        refusal::keep_end,
        shares_network,
        status::{pod_status, says_otherwise},
    },
    messages::Port,
    model::Uid,
    runtime::{ContainerId, ContainerState, RuntimeError, RuntimeEvent},
};

/// What a pod actor is made of, again after each death.
#[derive(Clone)]
pub struct PodSeed {
    /// The node.
    pub node: Arc<NodeContext>,
    /// What the master wants of the pod, kept up to date by the kubelet: messages to a dead actor are lost.
    pub wanted: Arc<ArcSwap<Wanted>>,
    /// Nothing of the pod was on the node when the kubelet took it: its first incarnation need not look.
    pub fresh: Arc<AtomicBool>,
    /// What was last reported: an incarnation that takes over goes on with it.
    pub told: Arc<ArcSwapOption<v1::PodStatus>>,
    /// Where to report.
    pub report: Port<PodReported>,
    /// Where to tell events.
    pub notice: Port<PodNoticed>,
}

/// The actor.
pub struct PodActor {
    life: Life,
    pub(super) seed: PodSeed,
    pub(super) uid: Uid,
    pub(super) machine: Machine,
    reported: Option<(v1::PodStatus, bool)>,
    /// The master's document holds another status than was reported.
    report_again: bool,
    /// When that was last so.
    told_again: Option<Instant>,
    /// It is so, and waits.
    tell_later: Option<SpawnHandle>,
    /// Lives whose preStop hook was begun: it is not run again when they are to end sooner.
    pub(super) pre_stopped: HashSet<String>,
    /// Those that were begun before their containers' turn to end, until these have ended.
    pub(super) pre_stops: HashMap<String, watch::Receiver<bool>>,
    teller: Teller,
    wake: Option<SpawnHandle>,
    pub(super) sizing: resize::Sizing,
    /// Its volumes are written by one at a time.
    volumes: Arc<tokio::sync::Mutex<()>>,
    ports: PodPorts,
}

impl PodActor {
    /// A pod actor; it begins by taking over what is there.
    pub fn new(life: Life, seed: PodSeed) -> PodActor {
        let wanted = seed.wanted.load_full();
        let uid = Uid::from(wanted.pod.metadata.uid.clone().unwrap_or_default());
        let mut pod = wanted.pod.clone();
        if let Some(told) = seed.told.load_full() {
            let mut status = (*told).clone();
            keep_foreign(&mut status, pod.status.as_ref());
            keep_end(&mut status, pod.status.as_ref());
            Arc::make_mut(&mut pod).status = Some(status);
        }
        let pod = resize::first(&seed.node, &uid, pod);
        let mut machine = Machine::new(pod, seed.node.crash_loop, now_ms());
        machine.recursive_read_only = seed.node.runtime.recursive_read_only();
        if !wanted.assigned {
            machine.evict();
        }
        let ending = CancellationToken::new();
        let teller = Teller { uid: uid.clone(), notice: seed.notice.clone(), ending };
        PodActor {
            life,
            uid,
            machine,
            reported: None,
            report_again: false,
            told_again: None,
            tell_later: None,
            pre_stopped: HashSet::new(),
            pre_stops: HashMap::new(),
            teller,
            wake: None,
            sizing: resize::Sizing::default(),
            volumes: Arc::default(),
            ports: PodPorts::default(),
            seed,
        }
    }

    /// Takes over what the node has of the pod, else what is told of it.
    fn adopt(&mut self, found: Option<Found>) {
        let Some(found) = found else { return self.machine.recall() };
        let places = self.places();
        let pod = &self.machine.pod;
        let lives: Vec<Adopted> =
            found.containers.into_iter().map(|life| adopted(life, pod, &places)).collect();
        let ip = self.address(found.sandbox.ip);
        self.machine.adopt(found.sandbox.ready, ip, &lives);
    }

    /// The pod's address: its sandbox's, or the node's when it shares the node's network.
    fn address(&self, own: Option<IpAddr>) -> Option<IpAddr> {
        own.or_else(|| self.seed.node.host_ip.now().filter(|_| shares_network(&self.machine.pod)))
    }

    fn log_dirs(&self) -> Vec<PathBuf> {
        let places = self.places();
        let logs = self.machine.containers.iter().map(|container| places.log(&container.name, 0));
        logs.filter_map(|log| log.parent().map(Path::to_owned)).collect()
    }

    fn places(&self) -> Places {
        let meta = &self.machine.pod.metadata;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        self.seed.node.places(&text(&meta.namespace), &text(&meta.name), self.uid.as_str())
    }

    /// Steps the machine, carries out what it wants, and reports what became of it.
    pub(super) fn advance(&mut self, ctx: &mut Context<Self>) {
        self.life.beat();
        // Both are for ever: nothing will be started any more.
        if self.machine.is_ending() || self.machine.is_over() {
            self.teller.ending.cancel();
        }
        if self.machine.is_finished() {
            self.seed.node.ledger.strike(&self.uid);
        }
        self.weigh(ctx);
        let step = self.machine.step(now_ms());
        for notice in step.notices {
            self.tell_notice(notice);
        }
        for action in step.actions {
            self.perform(action, ctx);
        }
        if let Some(handle) = self.wake.take() {
            ctx.cancel_future(handle);
        }
        if let Some(at) = step.wake_at_ms {
            let wait = Duration::from_millis(u64::try_from(at - now_ms()).unwrap_or(0));
            self.wake = Some(ctx.run_later(wait, |pod, ctx| pod.advance(ctx)));
        }
        self.report();
    }

    fn tell_notice(&self, notice: Notice) {
        self.teller.tell(notice);
    }

    fn report(&mut self) {
        let before = self.reported.as_ref().map(|(s, _)| s).or(self.machine.pod.status.as_ref());
        let node = &self.seed.node;
        let status = pod_status(&self.machine, before, node.runtime.name(), node.host_ip.now(), now_ms());
        let terminated = self.machine.is_removed();
        let again = std::mem::take(&mut self.report_again);
        if !again && self.reported.as_ref().is_some_and(|(s, t)| *s == status && *t == terminated) {
            return;
        }
        self.reported = Some((status.clone(), terminated));
        self.seed.told.store(Some(Arc::new(status.clone())));
        // A kubelet that is being restarted asks every pod again.
        let _ = self.seed.report.tell(PodReported { uid: self.uid.clone(), status, terminated });
    }

    /// Tells the pod's status again if the master has something else of it, now or when it is time.
    fn tell_again(&mut self, ctx: &mut Context<Self>) {
        if let Some(handle) = self.tell_later.take() {
            ctx.cancel_future(handle);
        }
        let document = self.machine.pod.status.as_ref();
        if self.reported.as_ref().is_none_or(|(told, _)| !says_otherwise(document, told)) {
            return;
        }
        let wait = self.told_again.map(|at| TELL_AGAIN.saturating_sub(at.elapsed())).unwrap_or_default();
        if wait.is_zero() {
            (self.report_again, self.told_again) = (true, Some(Instant::now()));
            return;
        }
        self.tell_later = Some(ctx.run_later(wait, |pod, ctx| {
            pod.tell_later = None;
            pod.tell_again(ctx);
            pod.advance(ctx);
        }));
    }

    fn perform(&mut self, action: Action, ctx: &mut Context<Self>) {
        tracing::debug!(pod = %self.uid, ?action, "pod step");
        let runtime = self.seed.node.runtime.clone();
        let uid = self.uid.clone();
        match action {
            Action::RunSandbox => {
                let (node, spec, places) = (self.seed.node.clone(), self.machine.pod.clone(), self.places());
                let (volumes, known, wanted) = (self.volumes.clone(), node.configs.now(), spec.clone());
                let (dirs, ports) = (self.log_dirs(), self.ports.clone());
                // Meanwhile, so that the containers' starts find them. Those say so if it failed.
                drop(outside::blocking(move || dirs.iter().try_for_each(fs::create_dir_all)));
                let work = async move {
                    let _alone = volumes.lock().await;
                    volumes::set_up(&node, &spec, places).await?;
                    Ok(ports.run_sandbox(node, spec).await)
                };
                ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
                    match outcome {
                        Ok(Ok(status)) => {
                            pod.sizing.made(&wanted);
                            pod.machine.sandbox_ready(pod.address(status.ip));
                            pod.tell_refused_ports();
                            pod.watch_ports(ctx);
                        }
                        Ok(Err(error)) => pod.machine.sandbox_failed(&error, now_ms()),
                        Err(messages) => pod.machine.volumes_failed(messages, now_ms()),
                    }
                    pod.catch_up(&known);
                    if !pod.knows_no_more_than(&known) || !Arc::ptr_eq(&wanted, &pod.machine.pod) {
                        pod.refresh_volumes(ctx);
                    }
                    pod.advance(ctx);
                }));
            }
            Action::Start(index) => self.start(index, ctx),
            Action::Resize { index, id } => self.resize(index, id, ctx),
            Action::PostStart { index, id } => {
                let Some(hooked) = self.hooked(index, &id) else { return };
                ctx.spawn(hooked.post_start().into_actor(self).map(move |outcome, pod, ctx| {
                    if let Err(error) = &outcome {
                        tracing::warn!(pod = %pod.uid, %error, "a postStart hook failed");
                    }
                    pod.machine.post_start_done(&id, outcome.is_ok());
                    pod.advance(ctx);
                }));
            }
            Action::Probe { index, id, kind } => {
                let Some(Hooked { node, pod, name, ip, .. }) = self.hooked(index, &id) else { return };
                let work = probes::run(node, pod, name, id.clone(), kind, ip);
                ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
                    pod.machine.probed(&id, kind, &outcome);
                    pod.advance(ctx);
                }));
            }
            Action::Stop { index, id, grace } => self.stop(index, id, grace, ctx),
            Action::PreStop { index, id, grace } => self.pre_stop(index, id, grace, ctx),
            Action::Forget { id } => {
                ctx.spawn(
                    async move {
                        if let Err(error) = runtime.remove_container(&ContainerId(id)).await {
                            tracing::warn!(%error, "an ended container could not be removed");
                        }
                    }
                    .into_actor(self),
                );
            }
            Action::EndSandbox => self.end_sandbox(ctx),
            Action::StopSandbox => {
                let (places, evicted) = (self.places(), self.machine.is_evicted());
                let ports = self.ports.clone();
                let work = async move {
                    ports.end().await;
                    runtime.stop_pod_sandbox(&uid).await?;
                    if volumes::release(places.clone()).await && evicted {
                        volumes::empty(places).await;
                    }
                    Ok(())
                };
                ctx.spawn(work.into_actor(self).map(|outcome, pod, ctx| {
                    pod.settled(outcome, Machine::sandbox_stopped, ctx);
                }));
            }
            Action::RemoveSandbox => {
                let stays = matches!(self.machine.sandbox, SandboxPhase::Removing { again: true });
                let ports = self.ports.clone();
                let work = async move {
                    ports.end().await;
                    if stays {
                        // The logs of its containers stay: they are to be whole.
                        runtime.stop_pod_sandbox(&uid).await?;
                        let ended = runtime.pod_containers(&uid).await?;
                        logs_written(&*runtime, ended.iter().map(|life| &life.id)).await;
                    }
                    runtime.remove_pod_sandbox(&uid).await
                };
                ctx.spawn(work.into_actor(self).map(|outcome, pod, ctx| {
                    pod.settled(outcome, Machine::sandbox_removed, ctx);
                }));
            }
        }
    }

    pub(super) fn settled(
        &mut self,
        outcome: Result<(), RuntimeError>,
        done: fn(&mut Machine),
        ctx: &mut Context<Self>,
    ) {
        match outcome {
            Ok(()) => {
                done(&mut self.machine);
                self.advance(ctx);
            }
            Err(error) => {
                self.machine.sandbox_stuck(&error.to_string());
                ctx.run_later(RETRY, |pod, ctx| pod.advance(ctx));
            }
        }
    }

    /// A container's present life with all that its hooks and probes need.
    pub(super) fn hooked(&self, index: usize, id: &str) -> Option<Hooked> {
        let container = self.machine.containers.get(index)?;
        Some(Hooked {
            node: self.seed.node.clone(),
            pod: self.machine.pod.clone(),
            name: container.name.clone(),
            id: ContainerId(id.to_owned()),
            ip: self.machine.ip,
        })
    }

    fn start(&mut self, index: usize, ctx: &mut Context<Self>) {
        let Some(container) = self.machine.containers.get(index) else { return };
        let known = self.seed.node.configs.now();
        let target = ephemeral::target(&self.machine.pod, &container.name)
            .map(|name| {
                let id = self.machine.running_id(name).map(|id| ContainerId(id.to_owned()));
                id.ok_or_else(|| format!("unable to find target container {name:?}: it does not run"))
            })
            .transpose();
        let (node, spec, places) = (self.seed.node.clone(), self.machine.pod.clone(), self.places());
        // The others' volumes came before the sandbox.
        let late = (container.role == Role::Ephemeral).then(|| self.volumes.clone());
        let start = start_container(
            node.clone(),
            spec.clone(),
            container.name.clone(),
            container.attempt,
            self.machine.ip,
            self.teller.clone(),
            target,
        );
        let work = async move {
            if let Some(volumes) = late {
                let _alone = volumes.lock().await;
                let set_up = volumes::set_up(&node, &spec, places).await;
                set_up.map_err(|messages| StartFailure::Config(messages.join("; ")))?;
            }
            start.await
        };
        ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
            match outcome {
                Ok(started) => pod.started_one(index, started, ctx),
                Err(failure) => pod.failed_one(index, failure, ctx),
            }
            pod.catch_up(&known);
            pod.advance(ctx);
        }));
    }

    fn started_one(&mut self, index: usize, started: Started, ctx: &mut Context<Self>) {
        if let Some(container) = self.machine.containers.get(index) {
            let name = container.name.clone();
            self.machine.notice(Some(&name), false, "Created", format!("Created container: {name}"));
        }
        for sentence in started.skipped_env {
            self.machine.notice(None, true, "InvalidEnvironmentVariableNames", sentence);
        }
        self.machine.container_started(index, started.id, started.image_id, started.started_ms);
        // Its exit may have been told before we knew its id.
        self.check_exits(ctx);
    }

    fn failed_one(&mut self, index: usize, failure: StartFailure, ctx: &mut Context<Self>) {
        if matches!(failure, StartFailure::Sandbox(_)) {
            ctx.notify(LookAgain);
        }
        self.machine.container_failed(index, failure, now_ms());
    }

    /// Asks the runtime which of this pod's containers there are and have ended: heals what was missed.
    pub(super) fn check_exits(&mut self, ctx: &mut Context<Self>) {
        let runtime = self.seed.node.runtime.clone();
        let uid = self.uid.clone();
        let work = async move { runtime.pod_containers(&uid).await };
        ctx.spawn(work.into_actor(self).map(|outcome, pod, ctx| match outcome {
            Ok(own) => {
                pod.machine.remove_strays(own.iter().map(|s| s.id.0.as_str()));
                for status in own {
                    if let ContainerState::Exited(exit) = status.state {
                        pod.exited(status.id, exit, ctx);
                    }
                }
                pod.advance(ctx);
            }
            Err(error) => tracing::warn!(%error, "containers could not be listed"),
        }));
    }
}

/// Whoever writes a pod's status whenever it changes does not have its node write as often.
const TELL_AGAIN: Duration = Duration::from_secs(1);

/// What the runtime could not end is tried again at this pace.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// What the runtime has of one pod.
async fn find(node: &NodeContext, uid: &Uid) -> Result<Option<Found>, RuntimeError> {
    let sandboxes = node.runtime.list_pod_sandboxes().await?;
    let Some(sandbox) = sandboxes.into_iter().find(|s| s.uid == *uid) else { return Ok(None) };
    Ok(Some(Found { sandbox, containers: node.runtime.pod_containers(uid).await? }))
}

impl Actor for PodActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if self.seed.fresh.swap(false, Ordering::Relaxed) {
            self.machine.recall();
            self.ask_again(ctx);
            return;
        }
        let (node, uid) = (self.seed.node.clone(), self.uid.clone());
        let (of, places) = (self.machine.pod.clone(), self.places());
        let look = async move {
            let found = find(&node, &uid).await?;
            if let Some(found) = &found {
                spoken(&node, &of, &places, &found.containers).await;
            }
            Ok::<_, RuntimeError>(found)
        };
        ctx.wait(look.into_actor(self).map(|found, pod, ctx| match found {
            Ok(found) => {
                pod.adopt(found);
                pod.resume_ports(0, ctx);
                pod.refresh_volumes(ctx);
                pod.ask_again(ctx);
            }
            // Without knowing what there is, anything would be wrong; the supervisor tries again.
            Err(error) => pod.life.fail(error),
        }));
    }
}

impl Handler<PodAssigned> for PodActor {
    type Result = ();

    fn handle(&mut self, message: PodAssigned, ctx: &mut Self::Context) {
        let given = self.give(message.0, ctx);
        self.machine.assign(given);
        self.tell_again(ctx);
        self.refresh_volumes(ctx);
        self.advance(ctx);
    }
}

impl Handler<PodUnassigned> for PodActor {
    type Result = ();

    fn handle(&mut self, _: PodUnassigned, ctx: &mut Self::Context) {
        self.machine.evict();
        self.advance(ctx);
    }
}

impl Handler<PodEvicted> for PodActor {
    type Result = ();

    fn handle(&mut self, message: PodEvicted, ctx: &mut Self::Context) {
        self.machine.fail_evicted(message.message, message.disrupted);
        self.advance(ctx);
    }
}

impl Handler<LookAgain> for PodActor {
    type Result = ();

    fn handle(&mut self, _: LookAgain, ctx: &mut Self::Context) {
        let (node, uid) = (self.seed.node.clone(), self.uid.clone());
        let look = async move { find(&node, &uid).await };
        ctx.wait(look.into_actor(self).map(|found, pod, ctx| {
            if found.is_ok_and(|f| f.is_some_and(|f| !f.sandbox.ready)) {
                pod.machine.sandbox_lost();
            }
            pod.check_exits(ctx);
        }));
    }
}

impl Handler<HostMoved> for PodActor {
    type Result = ();

    fn handle(&mut self, _: HostMoved, ctx: &mut Self::Context) {
        self.machine.host_moved(self.seed.node.host_ip.now());
        self.advance(ctx);
    }
}

impl Handler<ImagesChanged> for PodActor {
    type Result = ();

    fn handle(&mut self, _: ImagesChanged, ctx: &mut Self::Context) {
        self.machine.images_changed();
        self.advance(ctx);
    }
}

impl Handler<RuntimeSaw> for PodActor {
    type Result = ();

    fn handle(&mut self, message: RuntimeSaw, ctx: &mut Self::Context) {
        match message.0 {
            RuntimeEvent::Exited { id, exit, .. } => self.exited(id, exit, ctx),
            // When the word of its end comes before that of its beginning, the first start in it finds that out.
            RuntimeEvent::SandboxLost { .. } => self.machine.sandbox_lost(),
        }
        self.advance(ctx);
    }
}
