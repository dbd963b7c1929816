//! A network in one process, for tests and simulations: links as over QUIC, with every frame really encoded.
//!
//! Owns: [`Network`], whose hosts are called by name, and the imitation of connections and streams. As over QUIC, loss
//! shows as delay, bytes of one stream stay in order while streams overtake one another, and silence ends a
//! connection after the idle timeout. Time is tokio's (pausable); chance comes from the seed alone.
//! Left out: bandwidth, handshakes, certificates: a host is whoever it was made as.

mod pipe;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::{mpsc, watch};

pub(crate) use self::pipe::{PipeReader, PipeWriter};
use self::pipe::{lost, pipe};
use super::{
    CloseReason, Connector, LinkConfig, Listener,
    identity::{MASTER, node_server_name},
    link::Session,
    stream,
    transport::{LinkStats, Reader, Transport, Writer},
};
use crate::model::NodeName;

/// Streams that were opened and not yet accepted.
const STREAMS: usize = 256;
/// Links that wait for the listener's owner.
const READY: usize = 64;
/// A chunk that is lost so often arrives after all: QUIC would go on too.
const LOSSES: u32 = 16;

/// How good every path of a network is.
#[derive(Clone, Debug)]
pub struct Quality {
    /// One way, drawn anew for each chunk of a stream.
    pub delay: RangeInclusive<Duration>,
    /// How likely a chunk must be sent again, which costs three times the longest delay.
    pub loss: f64,
}

impl Default for Quality {
    /// A switch between: 0.1 to 0.2 ms, no loss.
    fn default() -> Self {
        Quality { delay: Duration::from_micros(100)..=Duration::from_micros(200), loss: 0.0 }
    }
}

/// How many connections fell silent, by what did it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silences {
    /// [`Network::cut`].
    pub cut: u64,
    /// [`Network::isolate`].
    pub isolated: u64,
    /// [`Network::crash`].
    pub crashed: u64,
    /// [`Network::sever`].
    pub severed: u64,
}

/// What a connection does not pass.
#[derive(Clone, Copy)]
enum Silence {
    Cut,
    Isolated,
    Crashed,
    Severed,
}

/// A network in one process. Cheap to clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    config: LinkConfig,
    /// Counts changes of paths, so that whoever waits for one looks again.
    changes: watch::Sender<u64>,
}

struct State {
    rng: StdRng,
    quality: Quality,
    cuts: HashSet<(NodeName, NodeName)>,
    isolated: HashSet<NodeName>,
    listeners: HashMap<SocketAddr, Registered>,
    /// Where a host listens, also after a restart.
    addresses: HashMap<NodeName, SocketAddr>,
    /// Counts listeners, and what ended connections: what was made before carries nothing any more.
    turn: u64,
    /// When a host died last, and when two were severed.
    deaths: HashMap<NodeName, u64>,
    severed: HashMap<(NodeName, NodeName), u64>,
    silences: Silences,
}

struct Registered {
    host: NodeName,
    turn: u64,
    sessions: mpsc::Sender<Session>,
}

impl Network {
    /// A network whose chances all come from `seed`.
    pub fn new(seed: u64) -> Network {
        Network::with_config(seed, LinkConfig::default())
    }

    /// As [`Network::new`], with an idle timeout of one's own.
    pub fn with_config(seed: u64, config: LinkConfig) -> Network {
        let state = State {
            rng: StdRng::seed_from_u64(seed),
            quality: Quality::default(),
            cuts: HashSet::new(),
            isolated: HashSet::new(),
            listeners: HashMap::new(),
            addresses: HashMap::new(),
            turn: 0,
            deaths: HashMap::new(),
            severed: HashMap::new(),
            silences: Silences::default(),
        };
        Network(Arc::new(Inner { state: Mutex::new(state), config, changes: watch::Sender::new(0) }))
    }

    /// A listener on the host of that name ([`MASTER`] for the master). It replaces the host's last one, at its address.
    pub fn listen(&self, host: &NodeName) -> Listener {
        let (sender, sessions) = mpsc::channel(READY);
        let mut state = self.state();
        let port = u16::try_from(state.addresses.len() + 1).unwrap_or(u16::MAX);
        let address =
            *state.addresses.entry(host.clone()).or_insert(SocketAddr::from(([127, 0, 0, 1], port)));
        state.turn += 1;
        let turn = state.turn;
        state.listeners.insert(address, Registered { host: host.clone(), turn, sessions: sender });
        drop(state);
        Listener::in_memory(sessions, address, Registration { network: self.clone(), address, turn })
    }

    /// A connector of the host of that name.
    pub fn connector(&self, host: &NodeName) -> Connector {
        Connector::in_memory(Host { network: self.clone(), name: host.clone() })
    }

    /// Changes every path from now on.
    pub fn set_quality(&self, quality: Quality) {
        self.state().quality = quality;
    }

    /// Nothing passes between two hosts any more; they are not told.
    pub fn cut(&self, a: &NodeName, b: &NodeName) {
        self.change(|state| state.cuts.insert(pair(a, b)));
    }

    /// Undoes [`Network::cut`]. What was under way arrives, if the connection still lives.
    pub fn heal(&self, a: &NodeName, b: &NodeName) {
        self.change(|state| state.cuts.remove(&pair(a, b)));
    }

    /// Nothing passes to or from a host any more: it has lost power, as the others see it.
    pub fn isolate(&self, host: &NodeName) {
        self.change(|state| state.isolated.insert(host.clone()));
    }

    /// Undoes [`Network::isolate`].
    pub fn rejoin(&self, host: &NodeName) {
        self.change(|state| state.isolated.remove(host));
    }

    /// A host's process dies: its listener is gone, its connections carry nothing any more, and nobody is told. What it
    /// makes from now on is a new process'.
    pub fn crash(&self, host: &NodeName) {
        self.change(|state| {
            state.listeners.retain(|_, listener| listener.host != *host);
            state.turn += 1;
            state.deaths.insert(host.clone(), state.turn);
            true
        });
    }

    /// The connections between two hosts carry nothing any more, as when what is between them forgot them; new ones
    /// can be made.
    pub fn sever(&self, a: &NodeName, b: &NodeName) {
        self.change(|state| {
            state.turn += 1;
            state.severed.insert(pair(a, b), state.turn);
            true
        });
    }

    /// How many connections fell silent until now.
    pub fn silences(&self) -> Silences {
        self.state().silences
    }

    fn silenced(&self, by: Silence) {
        let silences = &mut self.state().silences;
        let count = match by {
            Silence::Cut => &mut silences.cut,
            Silence::Isolated => &mut silences.isolated,
            Silence::Crashed => &mut silences.crashed,
            Silence::Severed => &mut silences.severed,
        };
        *count += 1;
    }

    fn change(&self, change: impl FnOnce(&mut State) -> bool) {
        change(&mut self.state());
        self.0.changes.send_modify(|count| *count += 1);
    }

    fn is_cut(&self, a: &NodeName, b: &NodeName) -> bool {
        let turn = self.state().turn;
        self.silence(a, b, turn).is_some()
    }

    /// Why a connection that was made at that turn carries nothing, if it does not.
    fn silence(&self, a: &NodeName, b: &NodeName, born: u64) -> Option<Silence> {
        let state = self.state();
        let ended = |end: Option<&u64>| end.is_some_and(|end| *end > born);
        if ended(state.deaths.get(a)) || ended(state.deaths.get(b)) {
            Some(Silence::Crashed)
        } else if ended(state.severed.get(&pair(a, b))) {
            Some(Silence::Severed)
        } else if state.cuts.contains(&pair(a, b)) {
            Some(Silence::Cut)
        } else if state.isolated.contains(a) || state.isolated.contains(b) {
            Some(Silence::Isolated)
        } else {
            None
        }
    }

    fn delay(&self, rng: &mut StdRng) -> Duration {
        let Quality { delay, loss } = self.state().quality.clone();
        let mut sum = rng.random_range(delay.clone());
        for _ in 0..LOSSES {
            if !rng.random_bool(loss.clamp(0.0, 1.0)) {
                break;
            }
            sum += *delay.end() * 3;
        }
        sum
    }

    fn new_rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.state().rng.next_u64())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pair(a: &NodeName, b: &NodeName) -> (NodeName, NodeName) {
    if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) }
}

/// Keeps a listener findable.
pub(crate) struct Registration {
    network: Network,
    address: SocketAddr,
    turn: u64,
}

impl Registration {
    pub(crate) fn withdraw(&self) {
        let mut state = self.network.state();
        // The host's next listener stays.
        if state.listeners.get(&self.address).is_some_and(|listener| listener.turn == self.turn) {
            state.listeners.remove(&self.address);
        }
    }
}

/// A host that dials.
#[derive(Clone)]
pub(crate) struct Host {
    network: Network,
    name: NodeName,
}

impl Host {
    pub(crate) async fn dial(&self, address: SocketAddr, server_name: &str) -> Result<Session, String> {
        let found = {
            let state = self.network.state();
            state.listeners.get(&address).map(|l| (l.host.clone(), l.sessions.clone()))
        };
        let silent = self.network.0.config.idle_timeout;
        let Some((peer, sessions)) = found.filter(|(peer, _)| !self.network.is_cut(&self.name, peer)) else {
            tokio::time::sleep(silent).await;
            return Err("no answer".into());
        };
        if server_name != (if peer.as_str() == MASTER { MASTER.into() } else { node_server_name(&peer) }) {
            return Err("the certificate is not that of the expected peer".into());
        }
        let (here, there) = Side::pair(&self.network, &self.name, &peer);
        let (here, there) = (Transport::Memory(here), Transport::Memory(there));
        let (dialing, accepting) =
            tokio::try_join!(stream::introduce(&here), stream::await_introduction(&there))
                .map_err(|error| error.to_string())?;
        let session = Session {
            peer: self.name.clone(),
            joined_key: None,
            transport: there,
            streams: accepting,
            hearts: None,
        };
        sessions.send(session).await.map_err(|_| "nobody listens any more".to_owned())?;
        Ok(Session { peer, joined_key: None, transport: here, streams: dialing, hearts: None })
    }
}

type Streams = mpsc::Receiver<(Writer, Reader)>;

/// One side of a connection. The connection ends when all clones of a side are gone.
#[derive(Clone)]
pub(crate) struct Side(Arc<SideInner>);

struct SideInner {
    wire: Arc<Wire>,
    index: usize,
    incoming: tokio::sync::Mutex<Streams>,
    outgoing: mpsc::Sender<(Writer, Reader)>,
}

impl Drop for SideInner {
    fn drop(&mut self) {
        self.wire.close(self.index, "dropped");
    }
}

/// What both sides share.
struct Wire {
    network: Network,
    ends: [NodeName; 2],
    /// The network's turn when it was made.
    born: u64,
    closed: [watch::Sender<Option<CloseReason>>; 2],
}

impl Side {
    fn pair(network: &Network, here: &NodeName, there: &NodeName) -> (Side, Side) {
        let wire = Arc::new(Wire {
            network: network.clone(),
            ends: [here.clone(), there.clone()],
            born: network.state().turn,
            closed: [watch::Sender::new(None), watch::Sender::new(None)],
        });
        let (to_there, from_here) = mpsc::channel(STREAMS);
        let (to_here, from_there) = mpsc::channel(STREAMS);
        tokio::spawn(watch_over(wire.clone(), network.new_rng()));
        let side = |index, incoming: Streams, outgoing| {
            let incoming = tokio::sync::Mutex::new(incoming);
            Side(Arc::new(SideInner { wire: wire.clone(), index, incoming, outgoing }))
        };
        (side(0, from_there, to_there), side(1, from_here, to_here))
    }

    pub(crate) async fn open(&self) -> io::Result<(Writer, Reader)> {
        let wire = &self.0.wire;
        let (here_writes, there_reads) = pipe(wire);
        let (there_writes, here_reads) = pipe(wire);
        tokio::select! {
            sent = self.0.outgoing.send((there_writes, there_reads)) => sent.map_err(|_| lost())?,
            _ = self.closed() => return Err(lost()),
        }
        Ok((here_writes, here_reads))
    }

    pub(crate) async fn accept(&self) -> io::Result<(Writer, Reader)> {
        let mut incoming = self.0.incoming.lock().await;
        tokio::select! {
            stream = incoming.recv() => stream.ok_or_else(lost),
            _ = self.closed() => Err(lost()),
        }
    }

    pub(crate) fn close(&self, reason: &str) {
        self.0.wire.close(self.0.index, reason);
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        self.0.wire.closed(self.0.index).await
    }

    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        self.0.wire.closed[self.0.index].borrow().clone()
    }

    pub(crate) fn stats(&self) -> LinkStats {
        let rtt = *self.0.wire.network.state().quality.delay.end() * 2;
        LinkStats { rtt, ..LinkStats::default() }
    }
}

impl Wire {
    fn close(&self, side: usize, reason: &str) {
        self.end(side, CloseReason::Local(reason.to_owned()));
    }

    /// Whether this is what ended it.
    fn end(&self, side: usize, reason: CloseReason) -> bool {
        self.closed[side].send_if_modified(|closed| {
            let first = closed.is_none();
            closed.get_or_insert(reason);
            first
        })
    }

    async fn closed(&self, side: usize) -> CloseReason {
        match self.closed[side].subscribe().wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            // The sender lives in `self`.
            _ => CloseReason::Silent,
        }
    }

    async fn either_closed(&self) -> (usize, CloseReason) {
        tokio::select! {
            reason = self.closed(0) => (0, reason),
            reason = self.closed(1) => (1, reason),
        }
    }

    fn silence(&self) -> Option<Silence> {
        let [a, b] = &self.ends;
        self.network.silence(a, b, self.born)
    }

    fn is_cut(&self) -> bool {
        self.silence().is_some()
    }

    async fn until_cut(&self, cut: bool) {
        let mut changes = self.network.0.changes.subscribe();
        while self.is_cut() != cut {
            // The sender lives in the network.
            let _ = changes.changed().await;
        }
    }
}

/// Carries a close to the other side, and silence to both.
async fn watch_over(wire: Arc<Wire>, mut rng: StdRng) {
    let idle = wire.network.0.config.idle_timeout;
    loop {
        let (side, reason) = tokio::select! {
            closed = wire.either_closed() => closed,
            () = async {
                wire.until_cut(true).await;
                // Silence that ends in time is none.
                let _ = tokio::time::timeout(idle, wire.until_cut(false)).await;
            } => {
                if let Some(by) = wire.silence() {
                    wire.end(0, CloseReason::Silent);
                    wire.end(1, CloseReason::Silent);
                    wire.network.silenced(by);
                    return;
                }
                continue;
            }
        };
        let CloseReason::Local(text) = reason else { return };
        tokio::time::sleep(wire.network.delay(&mut rng)).await;
        if let Some(by) = wire.silence() {
            tokio::time::sleep(idle).await;
            if wire.end(1 - side, CloseReason::Silent) {
                wire.network.silenced(by);
            }
        }
        wire.end(1 - side, CloseReason::Peer(text));
        return;
    }
}
