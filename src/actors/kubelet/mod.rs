//! The kubelet: makes this machine run what the master assigned to it, and tells the master how it goes.
//!
//! Owns: the set of pods (one supervised [`pod::PodActor`] each), their newest reports, the node's own status.
//! Invariants: it acts only on a whole picture from the master, never on an empty start; a pod's containers are ended
//! only when the picture says so. It keeps nothing on disk: a fresh kubelet lists the runtime and goes on.
//! Leaves out: the link (it speaks through ports) and what a pod's next step is ([`crate::logic::pod`]).

mod configs;
mod context;
mod entry;
mod eviction;
mod exec;
mod found;
mod hooks;
mod host_ports;
mod image_gc;
mod images;
mod last_words;
mod ledger;
mod log_rotation;
mod machine;
mod manifests;
mod peers;
mod pod;
mod probes;
mod pull_secrets;
mod reach;
mod resize;
mod runtime_health;
mod start;
mod stats;
mod stops;
mod streams;
mod summary;
#[cfg(test)]
mod tests;
mod users;
mod volumes;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, StreamHandler, WrapFuture as _,
};
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1;

pub use configs::Configs;
pub use context::{HostIp, KubeletSettings, NodeContext, Starts, now_ms};
use entry::Entry;
use found::{Found, forgotten_dirs, group, remove_dirs, stream_of};
pub use ledger::Ledger;
use machine::Looks;
use manifests::Manifests;
pub use peers::Peers;
use pod::{
    LookAgain, PodActor, PodAssigned, PodNoticed, PodReported, PodSeed, PodUnassigned, RuntimeSaw,
    SourcesMoved, Wanted,
};
pub use reach::{Probe, by_tcp};
pub use streams::StreamAsked;

use crate::{
    actors::{
        supervisor::{ChildSpec, Life, Strategy, SupervisorHandle, SupervisorSpec},
        uplink::{Member, Uplink, UplinkSeed},
    },
    logic::{
        disks::Disks,
        image_gc::PERIOD,
        nodes::MachineFacts,
        outward::Outward,
        pod::sources::references,
        supervision::Intensity,
        usage::{PERIOD_MS, Readings},
    },
    messages::{FromMaster, LinkUp, Port, Slot, TellMaster, wire},
    model::{Revision, Uid},
    net::Dialer,
    runtime::{ContainerStatus, RuntimeEvent, SandboxStatus},
};

/// How often the node's own status is looked at again.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// How often the machine looks whether its address is another: three calls of the kernel.
const ADDRESS_PERIOD: Duration = Duration::from_secs(2);
/// How often it is read what the node and its pods use.
const READING_PERIOD: Duration = Duration::from_millis(PERIOD_MS.unsigned_abs());
/// How soon the runtime is asked again after it refused what a kubelet cannot do without.
const RUNTIME_RETRY: Duration = Duration::from_secs(2);
/// A container nobody owns any more gets this long to end.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// What a kubelet is made of.
#[derive(Clone)]
pub struct KubeletSeed {
    /// The node.
    pub node: Arc<NodeContext>,
    /// Labels for the node object.
    pub labels: std::collections::BTreeMap<String, String>,
    /// The node's address and limits; the rest is read from the machine.
    pub facts: MachineFacts,
    /// To the master.
    pub uplink: Port<TellMaster>,
    /// The kubelet's own slot: its pods report here.
    pub slot: Slot<Kubelet>,
    /// Where its pods are children.
    pub pods: SupervisorHandle,
    /// A directory of pods to run in any case.
    pub manifests: Option<std::path::PathBuf>,
    /// Whether it reaches another machine.
    pub probe: Probe,
    /// Knows where the machine is at present.
    pub whereabouts: Option<Arc<dyn Member>>,
}

/// What a node consists of, in the order of dependence: its kubelet, the pods' supervisor, the link to the master. When
/// the kubelet or a later part fails, those after it begin anew with it; containers are not touched by that. `tree` is the
/// root of all, which the master may see.
pub fn child(
    seed: impl Fn(&Slot<Kubelet>, &SupervisorHandle, Port<TellMaster>) -> KubeletSeed + Send + Sync + 'static,
    dialer: impl Fn() -> Dialer + Send + Sync + 'static,
    member: Option<Arc<dyn Member>>,
    (uplink, tree): (&Slot<Uplink>, &SupervisorHandle),
) -> ChildSpec {
    let (dialer, uplink, tree) = (Arc::new(dialer), uplink.clone(), tree.clone());
    let spec = SupervisorSpec::new("node").strategy(Strategy::RestForOne);
    let node = SupervisorHandle::new("node");
    ChildSpec::supervisor(spec, &node, move |node| {
        let slot = Slot::new("kubelet");
        let pods = SupervisorHandle::new("pods");
        let made = seed(&slot, &pods, uplink.port());
        let name = made.node.name.clone();
        node.start_child(ChildSpec::new("kubelet", &slot, move |life| Ok(Kubelet::new(life, made.clone()))))
            .detach();
        // Pods are many and independent: one that keeps failing is no reason to end the others.
        let spec = SupervisorSpec::new("pods").limit(Intensity::UNLIMITED).stop_together();
        let kubelet = slot.port::<PodsBegin>();
        node.start_child(ChildSpec::supervisor(spec, &pods, move |_| {
            if let Err(error) = kubelet.tell(PodsBegin) {
                tracing::error!(%error, "pods without a kubelet");
            }
        }))
        .detach();
        let seed = Arc::new(UplinkSeed {
            dialer: dialer.clone(),
            up: slot.port(),
            messages: slot.port(),
            streams: slot.port(),
            member: member.clone(),
            node: name,
            tree: tree.clone(),
        });
        node.start_child(ChildSpec::new("uplink", &uplink, move |life| Ok(Uplink::new(life, seed.clone()))))
            .detach();
    })
}

/// pods' supervisor → kubelet: it has begun, without children.
#[derive(actix::Message)]
#[rtype(result = "()")]
struct PodsBegin;

/// The actor.
pub struct Kubelet {
    life: Life,
    seed: KubeletSeed,
    pods: HashMap<Uid, Entry>,
    /// What the runtime had when this kubelet started; taken over or ended with the first picture.
    found: HashMap<Uid, Found>,
    listed: bool,
    /// What pods left that ended while there was no kubelet has been removed.
    swept: bool,
    /// A picture that came before the runtime was listed.
    early: Option<wire::Assignments>,
    sequence: u64,
    status: Option<v1::NodeStatus>,
    /// Why the runtime cannot be listed.
    list_fault: Option<String>,
    /// Why the pod network cannot be set up.
    network_fault: Option<String>,
    health: runtime_health::Health,
    /// Looks at the machine, which may overtake each other.
    looks: Looks,
    /// The runtime's images, as of the last time that it listed them.
    images: Vec<(Vec<String>, u64)>,
    pod_cidr: String,
    manifests: Manifests,
    /// What the node and its pods used lately.
    readings: Readings,
    eviction: eviction::Eviction,
    measured: Arc<tokio::sync::Mutex<summary::Measured>>,
    disks: Disks,
    /// What the machine received and sent.
    outward: Outward,
    /// What the master was told of this node's images last, over this link.
    images_told: Option<(Vec<wire::HeldImage>, Vec<wire::RemovedImage>)>,
}

impl Kubelet {
    /// A kubelet that knows nothing yet.
    pub fn new(life: Life, seed: KubeletSeed) -> Kubelet {
        Kubelet {
            life,
            manifests: Manifests::new(seed.manifests.clone()),
            seed,
            pods: HashMap::new(),
            found: HashMap::new(),
            listed: false,
            swept: false,
            early: None,
            sequence: 0,
            status: None,
            list_fault: None,
            network_fault: None,
            health: Default::default(),
            looks: Looks::default(),
            images: Vec::new(),
            pod_cidr: String::new(),
            readings: Readings::default(),
            eviction: eviction::Eviction::default(),
            measured: Arc::default(),
            disks: Disks::default(),
            outward: Outward::default(),
            images_told: None,
        }
    }

    fn tell(&self, key: Option<String>, message: wire::ToMaster) {
        // While the link is down nothing is kept: each connection begins with the whole picture.
        let _ = self.seed.uplink.tell(TellMaster { key, message });
    }

    fn list_runtime(&mut self, ctx: &mut Context<Self>) {
        let runtime = self.seed.node.runtime.clone();
        let work = async move {
            let sandboxes = runtime.list_pod_sandboxes().await?;
            Ok((sandboxes, runtime.list_containers().await?))
        };
        ctx.wait(work.into_actor(self).map(
            |listed: Result<(Vec<SandboxStatus>, Vec<ContainerStatus>), crate::runtime::RuntimeError>,
             kubelet,
             ctx| match listed {
                Ok((sandboxes, containers)) => {
                    kubelet.found = group(sandboxes, containers);
                    kubelet.listed = true;
                    if kubelet.list_fault.take().is_some() {
                        kubelet.report_node(false, ctx);
                    }
                    tracing::info!(pods = kubelet.found.len(), "kubelet listed its runtime");
                    kubelet.begin(ctx);
                }
                Err(error) => {
                    tracing::error!(%error, "the runtime cannot be listed; trying again");
                    kubelet.list_fault = Some(error.to_string());
                    kubelet.report_node(false, ctx);
                    ctx.run_later(RUNTIME_RETRY, Kubelet::list_runtime);
                }
            },
        ));
    }

    /// Tells the runtime the pods' subnet, until it takes it.
    fn set_pod_cidr(&mut self, ctx: &mut Context<Self>) {
        let (runtime, cidr) = (self.seed.node.runtime.clone(), self.pod_cidr.clone());
        let work = async move { (runtime.set_pod_cidr(&cidr).await, cidr) };
        ctx.wait(work.into_actor(self).map(|(outcome, cidr), kubelet, ctx| {
            let fault = outcome.err().map(|e| e.to_string());
            if let Some(fault) = &fault {
                tracing::error!(%fault, "the pod network cannot be set up; trying again");
                ctx.run_later(RUNTIME_RETRY, move |kubelet, ctx| {
                    // A later welcome has seen to it otherwise.
                    if kubelet.network_fault.is_some() && kubelet.pod_cidr == cidr {
                        kubelet.set_pod_cidr(ctx);
                    }
                });
            }
            if kubelet.network_fault != fault {
                kubelet.network_fault = fault;
                kubelet.report_node(false, ctx);
            }
        }));
    }

    /// Begins with what is to run, once it is known what runs and what this node's own files say.
    fn begin(&mut self, ctx: &mut Context<Self>) {
        if !self.listed || !self.manifests.known {
            return;
        }
        self.run_manifests();
        if let Some(picture) = self.early.take() {
            self.assign(picture, ctx);
        }
    }

    /// Makes the set of pods what the master's picture says.
    fn assign(&mut self, picture: wire::Assignments, ctx: &mut Context<Self>) {
        if !self.listed || !self.manifests.known {
            self.early = Some(picture);
            return;
        }
        let mut documents: HashMap<Uid, (Revision, Arc<v1::Pod>)> = HashMap::new();
        for document in picture.documents {
            match serde_json::from_slice::<v1::Pod>(&document.json) {
                Ok(pod) => {
                    documents.insert(document.uid, (document.revision, Arc::new(pod)));
                }
                Err(error) => tracing::error!(pod = %document.uid, %error, "the master sent no pod"),
            }
        }
        let wanted: HashSet<&Uid> = picture.pods.iter().map(|p| &p.uid).collect();
        let own = |uid: &Uid| wanted.contains(uid) || self.manifests.has(uid);
        if !std::mem::replace(&mut self.swept, true) {
            let keep = |uid: &Uid| own(uid) || self.found.contains_key(uid) || self.pods.contains_key(uid);
            remove_dirs(forgotten_dirs(&self.seed.node.dir, keep));
        }
        let gone: Vec<Uid> = self.pods.keys().filter(|uid| !own(uid)).cloned().collect();
        let mut mirrored = false;
        for assigned in &picture.pods {
            match documents.remove(&assigned.uid) {
                // What it shows runs already; one that is to vanish is made anew.
                Some((_, pod)) if self.manifests.note_mirror(&pod) => mirrored = true,
                Some((revision, pod)) => self.take(&assigned.uid, revision, pod),
                None => {}
            }
        }
        for uid in gone {
            self.unassign(&uid);
        }
        let manifests = &self.manifests;
        let orphaned = |uid: &Uid| !wanted.contains(uid) && !manifests.has(uid);
        let orphans: Vec<(Uid, Found)> = self.found.extract_if(|uid, _| orphaned(uid)).collect();
        for (uid, found) in orphans {
            self.end_orphan(uid, found, ctx);
        }
        self.seed.node.configs.keep_tokens(|uid| wanted.contains(uid) || self.pods.contains_key(uid));
        if mirrored {
            self.tell_mirrors();
        }
    }

    fn take(&mut self, uid: &Uid, revision: Revision, pod: Arc<v1::Pod>) {
        if let Some(entry) = self.pods.get_mut(uid) {
            if entry.revision < revision {
                entry.revision = revision;
                entry.refers = references(&pod);
                entry.wanted.store(Arc::new(Wanted { pod: pod.clone(), assigned: true }));
                if let Some(address) = entry.slot.address() {
                    address.do_send(PodAssigned(pod));
                }
            }
            return;
        }
        let slot = Slot::new("pod");
        let refers = references(&pod);
        let wanted = Arc::new(ArcSwap::from_pointee(Wanted { pod, assigned: true }));
        let seed = PodSeed {
            node: self.seed.node.clone(),
            wanted: wanted.clone(),
            fresh: Arc::new(AtomicBool::new(self.found.remove(uid).is_none())),
            told: Arc::default(),
            report: self.seed.slot.port(),
            notice: self.seed.slot.port(),
        };
        let child = ChildSpec::new(uid.as_str(), &slot, move |life| Ok(PodActor::new(life, seed.clone())));
        self.seed.pods.start_child(child.never_escalate()).detach();
        self.pods.insert(
            uid.clone(),
            Entry {
                slot,
                wanted,
                revision,
                refers,
                report: None,
                containers: Vec::new(),
                refused: false,
                running: HashMap::new(),
                evicted_ms: None,
            },
        );
    }

    fn unassign(&mut self, uid: &Uid) {
        let Some(entry) = self.pods.get_mut(uid) else { return };
        entry.wanted.store(Arc::new(Wanted { pod: entry.pod(), assigned: false }));
        if entry.report.as_ref().is_some_and(|r| r.terminated) {
            self.forget(&uid.clone());
        } else if let Some(address) = entry.slot.address() {
            address.do_send(PodUnassigned);
        }
    }

    /// A pod that is neither assigned nor on the machine any more leaves no trace.
    fn forget(&mut self, uid: &Uid) {
        let Some(entry) = self.pods.remove(uid) else { return };
        self.seed.pods.stop_child(uid.as_str()).detach();
        let pod = entry.pod();
        let meta = &pod.metadata;
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        let places = self.seed.node.places(&text(&meta.namespace), &text(&meta.name), uid.as_str());
        remove_dirs(vec![places.pod_dir, places.log_dir]);
        self.seed.node.ledger.strike(uid);
    }

    fn end_orphan(&mut self, uid: Uid, found: Found, ctx: &mut Context<Self>) {
        tracing::info!(pod = %uid, "ending a pod that is not assigned to this node any more");
        let runtime = self.seed.node.runtime.clone();
        let sandbox = &found.sandbox;
        let places = self.seed.node.places(&sandbox.namespace, &sandbox.name, uid.as_str());
        let (orphan, containers) = (uid.clone(), found.containers.clone());
        let work = async move {
            // All at once: none of them is to use up the others' time.
            let stops = containers.iter().map(|c| runtime.stop_container(&c.id, ORPHAN_GRACE));
            futures_util::future::try_join_all(stops).await?;
            runtime.remove_pod_sandbox(&orphan).await
        };
        ctx.spawn(work.into_actor(self).map(move |outcome, _, ctx| match outcome {
            Ok(()) => remove_dirs(vec![places.pod_dir, places.log_dir]),
            Err(error) => {
                tracing::error!(pod = %uid, %error, "an orphaned pod could not be ended; trying again");
                ctx.run_later(STATUS_PERIOD, move |kubelet, ctx| kubelet.end_orphan(uid, found, ctx));
            }
        }));
    }

    /// Why the node can run no pods.
    fn fault(&self) -> Option<String> {
        let told = self.list_fault.clone().or_else(|| self.network_fault.clone());
        told.or_else(|| self.health.fault().map(str::to_owned))
    }

    fn report_all(&mut self) {
        for (uid, entry) in self.pods.iter().filter(|(uid, _)| !self.manifests.has(uid)) {
            if let Some(report) = &entry.report {
                self.tell(Some(uid.to_string()), wire::ToMaster::Pods(vec![report.clone()]));
            }
        }
        self.tell_mirrors();
    }
}

impl Actor for Kubelet {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // Events first, the list after: an exit in between is told twice rather than never.
        let events = stream_of(self.seed.node.runtime.events());
        ctx.add_stream(events);
        ctx.run_interval(STATUS_PERIOD, |kubelet, ctx| kubelet.report_node(false, ctx));
        ctx.run_interval(ADDRESS_PERIOD, |kubelet, ctx| kubelet.look_where(ctx));
        ctx.run_interval(PERIOD, |kubelet, ctx| kubelet.collect_images(ctx));
        ctx.run_interval(log_rotation::PERIOD, |kubelet, ctx| kubelet.rotate_logs(ctx));
        ctx.run_interval(eviction::PERIOD, |kubelet, ctx| kubelet.evict_pods(ctx));
        // So that the next one is a second one, whenever it comes.
        self.read_usage(ctx);
        ctx.run_interval(READING_PERIOD, |kubelet, ctx| kubelet.read_usage(ctx));
        self.follow_manifests(ctx);
        self.ask_runtime(ctx);
        self.ask_storage(ctx);
    }
}

impl StreamHandler<Option<RuntimeEvent>> for Kubelet {
    fn handle(&mut self, event: Option<RuntimeEvent>, _: &mut Self::Context) {
        let Some(event) = event else {
            for address in self.pods.values().filter_map(|e| e.slot.address()) {
                address.do_send(LookAgain);
            }
            return;
        };
        let (RuntimeEvent::Exited { pod, .. } | RuntimeEvent::SandboxLost { pod }) = &event;
        if let Some(address) = self.pods.get(pod).and_then(|e| e.slot.address()) {
            address.do_send(RuntimeSaw(event));
        }
    }

    fn finished(&mut self, _: &mut Self::Context) {
        // A runtime never ends its events while it lives; the default would stop the actor.
        tracing::error!("the runtime ended its event stream");
    }
}

impl Handler<PodsBegin> for Kubelet {
    type Result = ();

    /// No pod has an actor: what there is on this machine is to be taken over.
    fn handle(&mut self, _: PodsBegin, ctx: &mut Self::Context) {
        for (uid, _) in self.pods.drain() {
            self.seed.node.ledger.strike(&uid);
        }
        self.listed = false;
        self.list_runtime(ctx);
    }
}

impl Handler<LinkUp> for Kubelet {
    type Result = ();

    fn handle(&mut self, _: LinkUp, ctx: &mut Self::Context) {
        self.report_node(true, ctx);
    }
}

impl Handler<FromMaster> for Kubelet {
    type Result = ();

    fn handle(&mut self, message: FromMaster, ctx: &mut Self::Context) {
        self.life.beat();
        match message.0 {
            wire::ToNode::Assignments(picture) => self.assign(picture, ctx),
            wire::ToNode::Configs(picture) => {
                let changed = self.seed.node.configs.take(picture);
                let sources = self.seed.node.configs.now();
                for entry in self.pods.values().filter(|e| sources.concerns(&e.refers, &changed)) {
                    if let Some(address) = entry.slot.address() {
                        address.do_send(SourcesMoved);
                    }
                }
            }
            wire::ToNode::Tokens(tokens) => {
                for uid in self.seed.node.configs.take_tokens(tokens) {
                    if let Some(address) = self.pods.get(&uid).and_then(|entry| entry.slot.address()) {
                        address.do_send(SourcesMoved);
                    }
                }
            }
            wire::ToNode::Welcome(welcome) => {
                self.pod_cidr = welcome.pod_cidr;
                self.set_pod_cidr(ctx);
            }
            wire::ToNode::ImagesCame => self.images_changed(),
            // The link's own matter.
            wire::ToNode::Certificate(_) => {}
        }
    }
}

impl Handler<PodReported> for Kubelet {
    type Result = ();

    fn handle(&mut self, message: PodReported, _: &mut Self::Context) {
        let Some(entry) = self.pods.get_mut(&message.uid) else { return };
        let Ok(json) = serde_json::to_vec(&message.status) else { return };
        entry.note(&message.status);
        self.sequence += 1;
        let pod = entry.pod();
        let meta = &pod.metadata;
        let report = wire::PodReport {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: message.uid.clone(),
            sequence: self.sequence,
            status: json.into(),
            terminated: message.terminated,
        };
        entry.report = Some(report.clone());
        let leaves = message.terminated && !entry.assigned();
        if self.manifests.has(&message.uid) {
            self.tell_mirrors();
        } else {
            self.tell(Some(message.uid.to_string()), wire::ToMaster::Pods(vec![report]));
        }
        if leaves {
            self.forget(&message.uid);
        }
    }
}

impl Handler<PodNoticed> for Kubelet {
    type Result = ();

    fn handle(&mut self, message: PodNoticed, _: &mut Self::Context) {
        let Some(entry) = self.pods.get(&message.uid) else { return };
        let pod = entry.pod();
        let meta = &pod.metadata;
        let notice = message.notice;
        let event = wire::EventReport {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: self.manifests.told_uid(message.uid),
            field_path: notice.container.map(|c| crate::logic::pod::init::field_path(&pod, &c)),
            warning: notice.warning,
            reason: notice.reason.into(),
            message: notice.message,
            at_ms: now_ms(),
        };
        self.tell(None, wire::ToMaster::Events(vec![event]));
    }
}
