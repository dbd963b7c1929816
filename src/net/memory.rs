//! A network in one process, for tests and simulations: links as over QUIC, with every frame really encoded.
//!
//! Owns: [`Network`], whose hosts are called by name and have addresses of their own; `wire.rs` imitates connections,
//! `pipe.rs` their streams. As over QUIC, loss shows as delay, bytes of one stream stay in order while streams overtake one
//! another, and silence ends a connection after the idle timeout; what was sent arrives, though its sender be dead by then.
//! Time is tokio's (pausable); chance comes from the seed alone.
//! Left out: bandwidth, handshakes, certificates: a host is whoever it was made as.

mod pipe;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::sync::{mpsc, watch};

use self::wire::Wire;
pub(crate) use self::{
    pipe::{PipeReader, PipeWriter},
    wire::Side,
};
use super::{
    Connector, LinkConfig, Listener,
    identity::{MASTER, node_server_name},
    link::Session,
    stream,
    transport::Transport,
};
use crate::model::NodeName;

/// Links that wait for the listener's owner.
const READY: usize = 64;
/// A chunk that is lost so often arrives after all: QUIC would go on too.
const LOSSES: u32 = 16;
/// The first host's address, 10.99.0.1; the others' follow.
const FIRST_ADDRESS: u32 = 0x0A63_0001;

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
    /// From whom to whom nothing passes.
    cuts: HashSet<(NodeName, NodeName)>,
    isolated: HashSet<NodeName>,
    /// Whose kernel does not run either.
    unpowered: HashSet<NodeName>,
    /// All that were ever named; their order is that of their addresses.
    hosts: Vec<NodeName>,
    /// The connections that there are, and some that were; and how many were made.
    wires: Vec<Weak<Wire>>,
    made: u64,
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
            unpowered: HashSet::new(),
            hosts: Vec::new(),
            wires: Vec::new(),
            made: 0,
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

    /// A connector of the host of that name, which belongs to the cluster's own process.
    pub fn connector(&self, host: &NodeName) -> Connector {
        Connector::in_memory(Host { network: self.clone(), name: host.clone(), joined_key: None })
    }

    /// A connector of a host that joined with that key: see [`super::csr::joined_key`].
    pub fn joined_connector(&self, host: &NodeName, key: [u8; 32]) -> Connector {
        Connector::in_memory(Host { network: self.clone(), name: host.clone(), joined_key: Some(key) })
    }

    /// The address of the host of that name, by which others see it.
    pub fn address(&self, host: &NodeName) -> IpAddr {
        self.state().address(host)
    }

    /// Changes every path from now on.
    pub fn set_quality(&self, quality: Quality) {
        self.state().quality = quality;
    }

    /// Nothing passes between two hosts any more; they are not told.
    pub fn cut(&self, a: &NodeName, b: &NodeName) {
        self.change(|state| {
            state.cuts.insert((a.clone(), b.clone()));
            state.cuts.insert((b.clone(), a.clone()))
        });
    }

    /// Nothing passes from one host to another any more, though what the other sends arrives.
    pub fn cut_one_way(&self, from: &NodeName, to: &NodeName) {
        self.change(|state| state.cuts.insert((from.clone(), to.clone())));
    }

    /// Undoes [`Network::cut`] and [`Network::cut_one_way`]. What was under way arrives, if the connection still lives.
    pub fn heal(&self, a: &NodeName, b: &NodeName) {
        self.change(|state| {
            state.cuts.remove(&(a.clone(), b.clone()));
            state.cuts.remove(&(b.clone(), a.clone()))
        });
    }

    /// Nothing passes to or from a host any more: it has lost power, as the others see it.
    pub fn isolate(&self, host: &NodeName) {
        self.change(|state| state.isolated.insert(host.clone()));
    }

    /// Undoes [`Network::isolate`].
    pub fn rejoin(&self, host: &NodeName) {
        self.change(|state| state.isolated.remove(host));
    }

    /// A host's process dies: its listener is gone, its connections take nothing any more, and nobody is told. What it had
    /// sent arrives. Its kernel lives. What it makes from now on is a new process'.
    pub fn crash(&self, host: &NodeName) {
        self.change(|state| {
            state.listeners.retain(|_, listener| listener.host != *host);
            state.turn += 1;
            state.deaths.insert(host.clone(), state.turn);
            true
        });
    }

    /// As [`Network::crash`], and the kernel dies too: nobody reaches the machine until [`Network::power_on`].
    pub fn power_off(&self, host: &NodeName) {
        self.crash(host);
        self.change(|state| state.unpowered.insert(host.clone()));
    }

    /// Undoes [`Network::power_off`].
    pub fn power_on(&self, host: &NodeName) {
        self.change(|state| state.unpowered.remove(host));
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

    /// The connection of two hosts that its listener was given, that neither has ended, and that carries both ways, by a
    /// number of its own.
    pub fn link(&self, a: &NodeName, b: &NodeName) -> Option<u64> {
        let wires = self.state().wires.clone();
        let mut wires =
            wires.iter().filter_map(Weak::upgrade).filter(|wire| wire.joins(a, b) && wire.is_up());
        // The newest, should there be two.
        wires.next_back().map(|wire| wire.number())
    }

    /// Whether packets pass between two hosts at present, both ways, and the second one's kernel lives.
    pub fn is_reached(&self, from: &NodeName, to: &NodeName) -> bool {
        let state = self.state();
        state.blocked(from, to).or(state.blocked(to, from)).is_none() && !state.unpowered.contains(to)
    }

    /// Whether a host gets an answer from the kernel at an address that is not its own; waits for ever if it gets none.
    pub async fn probe(&self, from: &NodeName, address: IpAddr) -> bool {
        let Some(to) = self.state().host_at(address).filter(|to| to != from) else { return false };
        let mut rng = self.new_rng();
        for _ in ["there", "back"] {
            tokio::time::sleep(self.delay(&mut rng)).await;
            if !self.is_reached(from, &to) {
                return std::future::pending().await;
            }
        }
        true
    }

    /// Why a connection that was made at that turn takes nothing from one host to another that is sent at `sent`, or from
    /// now on.
    fn silence(&self, from: &NodeName, to: &NodeName, born: u64, sent: Option<u64>) -> Option<Silence> {
        let state = self.state();
        let after = |end: Option<&u64>| end.copied().filter(|end| *end > born);
        let died = after(state.deaths.get(from));
        if after(state.deaths.get(to)).is_some()
            || died.is_some_and(|died| sent.is_none_or(|sent| sent >= died))
        {
            Some(Silence::Crashed)
        } else if after(state.severed.get(&pair(from, to))).is_some() {
            Some(Silence::Severed)
        } else {
            state.blocked(from, to)
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

impl State {
    /// Why nothing passes from one host to another, whatever is sent.
    fn blocked(&self, from: &NodeName, to: &NodeName) -> Option<Silence> {
        if self.cuts.contains(&(from.clone(), to.clone())) {
            return Some(Silence::Cut);
        }
        (self.isolated.contains(from) || self.isolated.contains(to)).then_some(Silence::Isolated)
    }

    fn address(&mut self, host: &NodeName) -> IpAddr {
        let index = self.hosts.iter().position(|other| other == host).unwrap_or_else(|| {
            self.hosts.push(host.clone());
            self.hosts.len() - 1
        });
        IpAddr::V4(Ipv4Addr::from(FIRST_ADDRESS + u32::try_from(index).unwrap_or_default()))
    }

    fn host_at(&self, address: IpAddr) -> Option<NodeName> {
        let IpAddr::V4(address) = address else { return None };
        let index = u32::from(address).checked_sub(FIRST_ADDRESS)?;
        self.hosts.get(usize::try_from(index).ok()?).cloned()
    }
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
    joined_key: Option<[u8; 32]>,
}

impl Host {
    pub(crate) async fn dial(&self, address: SocketAddr, server_name: &str) -> Result<Session, String> {
        let found = {
            let state = self.network.state();
            state.listeners.get(&address).map(|l| (l.host.clone(), l.sessions.clone()))
        };
        let silent = self.network.0.config.idle_timeout;
        let Some((peer, sessions)) = found.filter(|(peer, _)| self.network.is_reached(&self.name, peer))
        else {
            tokio::time::sleep(silent).await;
            return Err("no answer".into());
        };
        if server_name != (if peer.as_str() == MASTER { MASTER.into() } else { node_server_name(&peer) }) {
            return Err("the certificate is not that of the expected peer".into());
        }
        let (here, there) = Side::pair(&self.network, &self.name, &peer);
        let wire = here.wire().clone();
        let (here, there) = (Transport::Memory(here), Transport::Memory(there));
        let (dialing, accepting) =
            tokio::try_join!(stream::introduce(&here), stream::await_introduction(&there))
                .map_err(|error| error.to_string())?;
        let session = Session {
            peer: self.name.clone(),
            joined_key: self.joined_key,
            transport: there,
            streams: accepting,
            hearts: None,
        };
        sessions.send(session).await.map_err(|_| "nobody listens any more".to_owned())?;
        wire.note_given();
        Ok(Session { peer, joined_key: None, transport: here, streams: dialing, hearts: None })
    }
}
