//! One node, as the master sees it: the actor that stands for that machine.
//!
//! Owns: the link to the node while there is one, what was sent on it, and the writing of what the node reports into
//! the store (soft: it can be told again). Invariants: reports on an earlier life of a pod are ignored, and of several
//! on one pod only the newest is written; a node speaks of the pods bound to it and of itself, nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, SpawnHandle, StreamHandler,
    WrapFuture as _,
};
use tokio::time::Instant;

use super::{
    Links, RegistrySeed, bound_to, configs,
    health::Health,
    heard::{Events, Heard},
    images::{Images, Shelves},
    object::{LabelsRefused, Word},
    refusals::{Refusals, Refused},
    sightings::{Silence, origin, silence_of},
    tokens,
};
use crate::{
    actors::{commit::commit, outside, supervisor::Life},
    logic::{
        clocks::happened_at,
        events::Happening,
        mirrors::is_mirror,
        nodes::{Report, Told, pod_reported, tells_end, wanted_mark},
        sightings::Sparing,
        silence::is_away,
    },
    messages::{Durability, Port, RecordEvent, wire},
    model::{Key, Kind, KindFacet, NodeName, Object, Revision, Uid},
    net::{Class, LinkEvent, LinkEvents, LinkHandle, NetError},
};

/// Writing a node's reports is tried again at this pace when the store cannot.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// A master that has just begun gives nodes so long to link: one that had begun to dial gives up after five seconds and pauses for up to
/// one, and they may all come at once.
const BEGIN: Duration = Duration::from_millis(6_500);

/// Between two pictures of many config maps and secrets, other messages have their turn.
const CONFIG_PACE: Duration = Duration::from_millis(200);

/// registry → node: everything the node is to run.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct NodePods {
    /// As of this revision.
    pub(super) revision: Revision,
    /// The pods bound to it.
    pub(super) pods: Vec<Arc<Object>>,
}

/// registry → node: these config maps, secrets or service accounts are not what they were.
#[derive(Message, Clone)]
#[rtype(result = "()")]
pub(super) struct ConfigsMoved(pub(super) Arc<BTreeSet<Key>>);

/// registry → node: the node has connected.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Linked {
    pub(super) link: (LinkHandle<wire::ToNode>, LinkEvents<wire::ToMaster>),
    /// The node's pod subnet.
    pub(super) subnet: String,
    pub(super) pods: NodePods,
}

/// node → registry: an incarnation has begun, and takes a link.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Begun(pub(super) NodeName);

/// The actor.
pub(super) struct NodeHandle {
    life: Life,
    pub(super) name: NodeName,
    pub(super) seed: Arc<RegistrySeed>,
    pub(super) links: Links,
    pub(super) health: Health,
    pub(super) shelves: Shelves,
    begun: Port<Begun>,
    pub(super) link: Option<LinkHandle<wire::ToNode>>,
    /// Tells the present connection's events from late ones of an earlier.
    pub(super) connection: u64,
    /// It came from another machine.
    pub(super) joined: bool,
    pub(super) silence: Silence,
    pub(super) sparing: Sparing,
    /// Since when it has been ready on the present connection.
    pub(super) ready_since: Option<Instant>,
    pub(super) subnet: String,
    /// The node has said hello on this connection, and may be told what to run.
    pub(super) greeted: bool,
    revision: Revision,
    pub(super) pods: BTreeMap<Uid, Arc<Object>>,
    /// The documents sent on this connection, by their marks.
    sent: BTreeMap<Uid, u64>,
    /// Each pod's [`wanted_mark`] as of a revision.
    marks: BTreeMap<Uid, (Revision, u64)>,
    configs: configs::Told,
    tokens: tokens::Given,
    /// More of them is to be sent soon.
    configs_wait: bool,
    /// Reports not yet written, newest only.
    pending: BTreeMap<Uid, wire::PodReport>,
    writing: bool,
    /// Whose reports are being written.
    in_flight: BTreeSet<Uid>,
    /// The states of pods that it was sent, or that its reports have led to.
    own: BTreeMap<Uid, Revision>,
    /// Pods that it knows to be over.
    over: BTreeSet<Uid>,
    /// How often its pods are being said not to be ready: what it reports of them is decided on after that.
    pub(super) unreadying: u32,
    /// The node's static pods as last told, while they are not all written.
    pub(super) mirrors: Option<Vec<wire::Mirror>>,
    pub(super) mirroring: bool,
    pub(super) lost: Option<SpawnHandle>,
    /// The node has said that it goes and comes back.
    pub(super) goodbye: bool,
    /// Counts how often it has linked or fallen silent: writes from before are given up.
    pub(super) turn: Arc<AtomicU64>,
    pub(super) refusals: Refusals,
    pub(super) labels_refused: LabelsRefused,
    /// What the node said of itself last on this connection.
    pub(super) word: Word,
    pub(super) images: Images,
    /// Since when there is the present link, or since when the node is silent.
    pub(super) since: Option<Instant>,
}

impl NodeHandle {
    pub(super) fn new(
        life: Life,
        name: NodeName,
        seed: Arc<RegistrySeed>,
        (links, health, shelves): (Links, Health, Shelves),
        begun: Port<Begun>,
    ) -> NodeHandle {
        NodeHandle {
            life,
            name,
            seed,
            links,
            health,
            shelves,
            begun,
            link: None,
            connection: 0,
            joined: false,
            silence: Silence::default(),
            sparing: Sparing::default(),
            ready_since: None,
            subnet: String::new(),
            greeted: false,
            revision: Revision::default(),
            pods: BTreeMap::new(),
            sent: BTreeMap::new(),
            marks: BTreeMap::new(),
            configs: configs::Told::default(),
            tokens: tokens::Given::default(),
            configs_wait: false,
            pending: BTreeMap::new(),
            writing: false,
            in_flight: BTreeSet::new(),
            own: BTreeMap::new(),
            over: BTreeSet::new(),
            unreadying: 0,
            mirrors: None,
            mirroring: false,
            lost: None,
            goodbye: false,
            turn: Arc::default(),
            refusals: Refusals::default(),
            labels_refused: LabelsRefused::default(),
            word: Word::default(),
            images: Images::default(),
            since: None,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key::new(Kind::Node, "", self.name.0.clone())
    }

    fn take_pods(&mut self, pods: NodePods, ctx: &mut Context<Self>) {
        self.revision = pods.revision;
        self.pods = pods.pods.into_iter().map(|p| (p.uid().clone(), p)).collect();
        self.images.named.take(&self.pods);
        self.send_assignments(ctx);
    }

    /// Sends what the node's pods refer to, as far as this connection has not carried it yet.
    fn send_configs(&mut self, ctx: &mut Context<Self>) {
        let Some(link) = self.link.as_ref().filter(|_| self.greeted && !self.configs_wait) else { return };
        let Some(next) = self.configs.next(&self.seed.wiring.view.snapshot()) else { return };
        let more = match link.send(Class::Control, &wire::ToNode::Configs(next.message.clone())) {
            Ok(()) => {
                let more = next.more;
                self.configs.carried(next);
                more
            }
            Err(NetError::Full) => true,
            Err(error) => {
                tracing::warn!(node = %self.name, %error, "config maps and secrets not sent; connecting anew");
                link.close("configs not sent");
                return;
            }
        };
        if more {
            self.configs_wait = true;
            ctx.run_later(CONFIG_PACE, |node, ctx| {
                node.configs_wait = false;
                node.send_configs(ctx);
            });
        }
    }

    /// Sends the tokens that the node's pods need and this connection has not carried yet, or not lately.
    fn send_tokens(&mut self) {
        let Some(link) = self.link.as_ref().filter(|_| self.greeted) else { return };
        let all = self.tokens.next(&self.seed.wiring.view.snapshot(), &self.seed.token_key);
        for some in all.chunks(tokens::AT_ONCE) {
            if let Err(error) = link.send(Class::Control, &wire::ToNode::Tokens(some.to_vec())) {
                tracing::warn!(node = %self.name, %error, "tokens not sent; connecting anew");
                link.close("tokens not sent");
                return;
            }
        }
    }

    /// Sends the whole set, with the documents that this connection has not carried yet; what they refer to goes first.
    fn send_assignments(&mut self, ctx: &mut Context<Self>) {
        let Some(link) = self.link.clone().filter(|_| self.greeted) else { return };
        self.sent.retain(|uid, _| self.pods.contains_key(uid));
        self.marks.retain(|uid, _| self.pods.contains_key(uid));
        self.own.retain(|uid, _| self.pods.contains_key(uid));
        self.over.retain(|uid| self.pods.contains_key(uid));
        for pod in self.pods.values() {
            let known = self.marks.get(pod.uid()).is_some_and(|(revision, _)| *revision == pod.revision);
            if !known {
                if is_others(pod, &self.own, &self.in_flight) {
                    self.sent.remove(pod.uid());
                }
                self.marks.insert(pod.uid().clone(), (pod.revision, wanted_mark(&pod.json)));
            }
        }
        let marks = &self.marks;
        self.configs.note_pods(&self.pods, |pod| marks.get(pod.uid()).map(|(_, mark)| *mark));
        let marks = &self.marks;
        self.tokens.note_pods(&self.pods, |pod| marks.get(pod.uid()).map(|(_, mark)| *mark));
        self.send_configs(ctx);
        self.send_tokens();
        let mark = |pod: &Object| self.marks.get(pod.uid()).map(|(_, mark)| *mark);
        let is_news = |pod: &Object| self.sent.get(pod.uid()).copied() != mark(pod) || self.is_to_end(pod);
        let fresh: Vec<&Arc<Object>> = self.pods.values().filter(|pod| is_news(pod)).collect();
        let picture = wire::Assignments {
            revision: self.revision,
            pods: self
                .pods
                .values()
                .map(|p| wire::AssignedPod { uid: p.uid().clone(), revision: p.revision })
                .collect(),
            documents: fresh
                .iter()
                .map(|p| wire::PodDocument {
                    uid: p.uid().clone(),
                    revision: p.revision,
                    json: p.json.clone(),
                })
                .collect(),
        };
        let sent: Vec<(Uid, Revision)> = fresh.iter().map(|p| (p.uid().clone(), p.revision)).collect();
        let over: Vec<Uid> = fresh.iter().filter(|p| is_over(p)).map(|p| p.uid().clone()).collect();
        let marks: Vec<(Uid, u64)> = fresh.iter().filter_map(|p| Some((p.uid().clone(), mark(p)?))).collect();
        if let Err(error) = link.send(Class::Control, &wire::ToNode::Assignments(picture)) {
            tracing::warn!(node = %self.name, %error, "assignments not sent; connecting anew");
            link.close("outbox full");
            return;
        }
        self.sent.extend(marks);
        self.over.extend(over);
        sent.into_iter().for_each(|(uid, revision)| self.note_own(uid, revision));
    }

    /// Notes a state of a pod that is no news to the node. The registry's pictures may be behind what was written.
    fn note_own(&mut self, uid: Uid, revision: Revision) {
        let own = self.own.entry(uid).or_insert(revision);
        *own = revision.max(*own);
    }

    /// Whether others have said that a pod is over, and its node has yet to hear of it.
    fn is_to_end(&self, pod: &Object) -> bool {
        is_over(pod) && !self.over.contains(pod.uid()) && !self.in_flight.contains(pod.uid())
    }

    fn heard(&mut self, message: wire::ToMaster, ctx: &mut Context<Self>) {
        self.life.beat();
        match message {
            wire::ToMaster::Hello(hello) => self.hello(hello, ctx),
            wire::ToMaster::Node(report) => self.write_node(report, BTreeMap::new(), ctx),
            wire::ToMaster::Pods(reports) => {
                for report in reports {
                    let about = Key::new(Kind::Pod, report.namespace.as_str(), report.name.as_str());
                    if self.owns(&about, &report.uid, Refused::Pod) {
                        self.pending.insert(report.uid.clone(), report);
                    }
                }
                self.write_pods(ctx);
            }
            wire::ToMaster::Events(events) => events.into_iter().for_each(|event| self.record(event)),
            wire::ToMaster::Mirrors(told) => self.mirror(told, ctx),
            wire::ToMaster::Renew(csr) => self.renew(&csr),
            wire::ToMaster::Goodbye => self.take_leave(ctx),
            wire::ToMaster::Images(told) => self.note_images(told, ctx),
            wire::ToMaster::ImagesRemoved(told) => self.note_removed(told),
        }
    }

    fn hello(&mut self, hello: wire::Hello, ctx: &mut Context<Self>) {
        let welcome = wire::Welcome { pod_cidr: self.subnet.clone(), cluster: self.seed.cluster.clone() };
        if let Some(link) = &self.link
            && let Err(error) = link.send(Class::Control, &wire::ToNode::Welcome(welcome))
        {
            tracing::warn!(node = %self.name, %error, "no welcome sent");
            return;
        }
        self.greeted = true;
        self.sent.clear();
        self.configs.begin_anew();
        self.tokens.begin_anew();
        self.send_assignments(ctx);
        let labels = self.own_labels(hello.labels);
        self.write_node(hello.report, labels, ctx);
    }

    /// Writes the newest pending report of each pod, one batch at a time.
    pub(super) fn write_pods(&mut self, ctx: &mut Context<Self>) {
        if self.writing || self.unreadying > 0 || self.pending.is_empty() {
            return;
        }
        self.writing = true;
        let batch = std::mem::take(&mut self.pending);
        self.in_flight = batch.keys().cloned().collect();
        let (wiring, node) = (self.seed.wiring.clone(), self.name.clone());
        let work = async move {
            let snapshot = wiring.view.snapshot();
            let mut edits = Vec::new();
            for report in batch.values() {
                let key = Key::new(Kind::Pod, report.namespace.as_str(), report.name.as_str());
                let told = Told { uid: &report.uid, status: &report.status, terminated: report.terminated };
                match pod_reported(snapshot.find(&key), &node, told, outside::now().as_millisecond()) {
                    Ok(Report::Write(edit)) => edits.push(*edit),
                    Ok(Report::Ignore) => {}
                    Err(error) => tracing::error!(pod = %key, %error, "a report could not be used"),
                }
            }
            let outcome = commit(&wiring, edits, Durability::Soft).await;
            (batch, outcome)
        };
        ctx.spawn(work.into_actor(self).map(|(batch, outcome), node, ctx| {
            node.writing = false;
            node.note_written(&batch, outcome.as_ref().map_or(&[], |outcome| &outcome.made), ctx);
            if node.silence.told {
                // It was reported before the silence, and written after what was said then.
                node.unready_pods(ctx);
            }
            // The store needs time to recover; a pod that changed meanwhile does not.
            let pause = if outcome.is_err() { RETRY } else { Duration::ZERO };
            let again: Box<dyn Fn(&wire::PodReport) -> bool> = match outcome {
                Ok(outcome) if outcome.overtaken.is_empty() => return node.write_pods(ctx),
                Ok(outcome) => Box::new(move |r| {
                    let key = Key::new(Kind::Pod, r.namespace.as_str(), r.name.as_str());
                    outcome.overtaken.contains(&key)
                }),
                Err(error) => {
                    tracing::warn!(node = %node.name, %error, "pod statuses not written; trying again");
                    Box::new(|_| true)
                }
            };
            for (uid, report) in batch {
                if again(&report) {
                    node.pending.entry(uid).or_insert(report);
                }
            }
            ctx.run_later(pause, |node, ctx| node.write_pods(ctx));
        }));
    }

    /// Notes what its reports have led to; of what others have changed meanwhile the node hears now.
    fn note_written(
        &mut self,
        batch: &BTreeMap<Uid, wire::PodReport>,
        made: &[Arc<Object>],
        ctx: &mut Context<Self>,
    ) {
        self.in_flight.clear();
        made.iter().for_each(|pod| self.note_own(pod.uid().clone(), pod.revision));
        let said = made.iter().filter(|pod| is_over(pod));
        let said = said.filter(|pod| batch.get(pod.uid()).is_some_and(|report| tells_end(&report.status)));
        self.over.extend(said.map(|pod| pod.uid().clone()));
        let here = || batch.keys().filter_map(|uid| self.pods.get(uid));
        let others: Vec<Uid> = here()
            .filter(|pod| is_others(pod, &self.own, &self.in_flight))
            .map(|pod| pod.uid().clone())
            .collect();
        if !others.is_empty() || here().any(|pod| self.is_to_end(pod)) {
            self.sent.retain(|uid, _| !others.contains(uid));
            self.send_assignments(ctx);
        }
    }

    /// Whether the node may speak of this. What was its own until a moment ago is ignored; anything else is refused.
    fn owns(&mut self, about: &Key, uid: &Uid, what: Refused) -> bool {
        let foreign = match about.kind {
            Kind::Node if *about.name == *self.name.0 => return true,
            Kind::Node => true,
            _ if self.pods.get(uid).is_some_and(|pod| pod.key == *about) => return true,
            _ => self
                .seed
                .wiring
                .view
                .snapshot()
                .find(about)
                .is_some_and(|pod| pod.uid() == uid && bound_to(pod).as_ref() != Some(&self.name)),
        };
        if foreign {
            self.refusals.note(&self.name, what, about);
        }
        false
    }

    fn record(&mut self, event: wire::EventReport) {
        let kind = if event.namespace.is_empty() { Kind::Node } else { Kind::Pod };
        let about = Key::new(kind, event.namespace, event.name);
        if !self.owns(&about, &event.uid, Refused::Event) {
            return;
        }
        self.seed.wiring.record(RecordEvent(Happening {
            about,
            uid: event.uid,
            field_path: event.field_path,
            warning: event.warning,
            reason: event.reason.into(),
            message: event.message,
            component: "kubelet".into(),
            host: Some(self.name.clone()),
            at: happened_at(event.at_ms, outside::now()),
        }));
    }

    pub(super) fn expect_silence(&mut self, within: Duration, ctx: &mut Context<Self>) {
        if let Some(handle) = self.lost.take() {
            ctx.cancel_future(handle);
        }
        self.lost = Some(ctx.run_later(within, |node, ctx| node.mark_lost(ctx)));
    }
}

/// Whether somebody else than the node has changed its pod: it may have been the status, which is the node's to say. It is
/// sent the document, and tells the pod's status again.
pub(super) fn is_others(pod: &Object, own: &BTreeMap<Uid, Revision>, in_flight: &BTreeSet<Uid>) -> bool {
    own.get(pod.uid()).is_some_and(|own| pod.revision > *own)
        && !in_flight.contains(pod.uid())
        // Of static pods the node tells in another way.
        && !pod.parse().is_ok_and(|pod| is_mirror(&pod))
}

fn is_over(pod: &Object) -> bool {
    matches!(&pod.facet.of, KindFacet::Pod(pod) if pod.phase.is_final())
}

impl Actor for NodeHandle {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        // A fresh incarnation has no link: whoever has one must dial again.
        self.shelves.unlink(&self.name);
        if let Some((_, link)) = self.links.remove(&self.name) {
            link.close("the master begins anew");
        }
        // A goodbye said to an earlier incarnation, or an earlier master, counts.
        let snapshot = self.seed.wiring.view.snapshot();
        self.goodbye = snapshot.find(&self.key()).is_some_and(|node| is_away(node));
        let within = if self.goodbye { self.seed.lost_after } else { BEGIN };
        self.expect_silence(within, ctx);
        ctx.add_stream(self.arrivals());
        ctx.run_interval(tokens::PERIOD, |node, _| node.send_tokens());
        // A registry that is down has nothing waiting, and finds this incarnation published.
        let _ = self.begun.tell(Begun(self.name.clone()));
    }
}

impl Handler<NodePods> for NodeHandle {
    type Result = ();

    fn handle(&mut self, pods: NodePods, ctx: &mut Self::Context) {
        self.life.beat();
        self.take_pods(pods, ctx);
    }
}

impl Handler<ConfigsMoved> for NodeHandle {
    type Result = ();

    fn handle(&mut self, moved: ConfigsMoved, ctx: &mut Self::Context) {
        self.life.beat();
        if self.configs.concerns(&moved.0) {
            self.send_configs(ctx);
            self.send_tokens();
        }
    }
}

impl Handler<Linked> for NodeHandle {
    type Result = ();

    fn handle(&mut self, linked: Linked, ctx: &mut Self::Context) {
        tracing::info!(node = %self.name, "node linked");
        if let Some(handle) = self.lost.take() {
            ctx.cancel_future(handle);
        }
        let (handle, events) = linked.link;
        if let Some(before) = self.link.replace(handle.clone()) {
            before.close("the node has connected anew");
        }
        self.joined = handle.joined_key().is_some();
        if let Some(since) = self.silence.since.filter(|_| self.silence.spared) {
            self.sparing.spend(since.elapsed());
        }
        self.note_link_end();
        self.silence = Silence::default();
        self.links.insert(self.name.clone(), handle);
        self.shelves.unlink(&self.name);
        self.since = Some(Instant::now());
        self.connection += 1;
        self.supersede();
        self.goodbye = false;
        self.greeted = false;
        self.sent.clear();
        self.subnet = linked.subnet;
        ctx.add_stream(Events::of(self.connection, events));
        self.take_pods(linked.pods, ctx);
        self.write_linked(ctx);
    }
}

impl StreamHandler<Heard> for NodeHandle {
    fn handle(&mut self, heard: Heard, ctx: &mut Self::Context) {
        let Heard(connection, event) = heard;
        if connection != self.connection {
            return;
        }
        match event {
            LinkEvent::Message(message) => self.heard(message, ctx),
            LinkEvent::Opened(open, responder) => self.stream_asked(open, responder),
            LinkEvent::Closed(reason) => {
                tracing::info!(node = %self.name, %reason, "node's link has ended");
                let link = self.link.take();
                let unheard = link.as_ref().map(LinkHandle::silence).unwrap_or_default();
                let silent = silence_of(&reason, unheard);
                self.greeted = false;
                self.note_link_end();
                // A link's end is noticed some time after the last sign of life.
                self.since = Instant::now().checked_sub(silent);
                self.links.remove(&self.name);
                self.shelves.unlink(&self.name);
                self.silence = Silence::begin(link.and_then(|link| origin(&link)));
                self.ask_others(ctx);
                self.expect_silence(self.seed.lost_after.saturating_sub(silent), ctx);
            }
        }
    }

    /// One connection's events end with it; the actor goes on.
    fn finished(&mut self, _: &mut Self::Context) {}
}
