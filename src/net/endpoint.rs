//! Where links begin: a UDP port that accepts them, and the side that dials.
//!
//! Owns: [`Listener`], [`Connector`] and the settings of connections. Invariants: only a peer with a node's certificate
//! under the cluster's authority becomes a link on a listener (one that joins gets to ask one question, `join.rs`), and only the one that was asked for on a connector;
//! handshakes in progress are bounded, under load a peer must first prove its address (a retry), and a peer that
//! keeps failing makes one log line an interval.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use quinn::{Endpoint, IdleTimeout, Incoming, Runtime as _, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    sync::{Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::{
    CaCertificate, CloseReason, Identity, Link, NetError,
    batches::Batches,
    csr::joined_key,
    heartbeat::{self, Hearts},
    identity::{MASTER, Role, node_server_name, peer_role},
    join::{self, JoinAsk},
    link::Session,
    memory, stream, tls,
    transport::{Transport, UNWELCOME, close_reason, problem_of},
};
use crate::model::NodeName;

/// The whole of a handshake, certificates and introduction included.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Handshakes at once: each costs a signature or two, so more would only wait for the processor.
const HANDSHAKES: usize = 64;
/// From here on a peer must prove its address before it costs a signature.
pub(crate) const HANDSHAKES_UNPROVEN: usize = 16;
/// Connection attempts that quinn keeps for us, before any handshake.
const INCOMING: usize = 256;
/// Finished handshakes that wait for the owner.
const READY: usize = 64;
/// Byte streams that a master may have open to a node at once, beside a link's two message streams.
const STREAMS: u32 = 256;
/// Those that a node may have open to its master: parts of images and questions who has them, more than the master serves
/// at once; others wait on the node. QUIC keeps a place ready for each: with these and the two, tables of 32 places are not
/// full, and do not grow when a stream is put back.
pub(super) const NODE_STREAMS: u32 = 25;
/// Those of a node that has not opened any yet, as most have not: with the two, tables of 8 places. With its first it may
/// open them all.
const FIRST_STREAMS: u32 = 4;
/// Bytes under way on one stream: fills 1 Gbit/s at 8 ms. A reader that stops costs this much and no more.
const STREAM_WINDOW: u32 = 1 << 20;
/// Those, and the two.
const ALL_STREAMS: VarInt = VarInt::from_u32(STREAMS + 2);
/// Bytes under way on one link.
const WINDOW: VarInt = VarInt::from_u32((STREAMS + 2) * STREAM_WINDOW);
/// Bytes that a peer may have under way before it has shown who it is: both introductions and a request to join fit.
const STRANGER_WINDOW: u32 = 64 << 10;
/// Streams that it may have open: a link's two message streams, or that of a join.
const STRANGER_STREAMS: u32 = 2;
/// Machines that join at once, beyond which they are told to come again: the other places for handshakes are for links.
const JOINS: usize = 16;
/// One log line per address in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Addresses remembered for that; beyond, nothing is logged until some are old.
const LOG_ADDRESSES: usize = 1024;

/// A dial that is lost is sent again after three times this: who comes back to a master has at least 0.4 s for it. Farther
/// machines get an answer to each, and are measured then.
const FIRST_RTT: Duration = Duration::from_millis(100);

/// How soon silence is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// The dialing side asks when it has heard nothing for so long: heartbeats come more often.
    pub keep_alive: Duration,
    /// A peer silent for so long is gone. The smaller of both sides' values counts.
    pub idle_timeout: Duration,
}

impl Default for LinkConfig {
    /// A heartbeat, the dialer's own question, and what each sends again, before a second is over.
    fn default() -> Self {
        LinkConfig { keep_alive: Duration::from_millis(650), idle_timeout: Duration::from_secs(1) }
    }
}

impl LinkConfig {
    /// For how long at most nothing has come when the listening side finds a peer silent: it says something a heartbeat
    /// after the last sign of life, and waits for the answer.
    pub fn longest_silence(&self) -> Duration {
        self.idle_timeout + heartbeat::PERIOD
    }

    pub(super) fn transport(self) -> Result<TransportConfig, NetError> {
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::try_from(self.idle_timeout).map_err(|_| NetError::Connect {
            address: String::new(),
            problem: "idle timeout too long".into(),
        })?;
        transport
            .max_idle_timeout(Some(idle))
            .initial_rtt(FIRST_RTT)
            .max_concurrent_bidi_streams(ALL_STREAMS)
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
            // Streams bind before the connection does, in both directions: a stuck one never starves another.
            .receive_window(WINDOW)
            .send_window(u64::from(STREAMS + 2) * u64::from(STREAM_WINDOW))
            .datagram_receive_buffer_size(Some(heartbeat::UNREAD));
        Ok(transport)
    }
}

/// Accepts links from nodes.
pub struct Listener {
    sessions: mpsc::Receiver<Session>,
    joins: Option<mpsc::Receiver<JoinAsk>>,
    address: SocketAddr,
    shown: Showing,
    serving: Serving,
}

/// What a listener shows to those who connect. Cheap to clone, and of use while the listener is being waited on.
#[derive(Clone)]
pub struct Showing(Option<Arc<tls::Shown>>);

impl Showing {
    /// From now on the listener shows `identity`. Links that are there stay.
    ///
    /// # Errors
    /// [`NetError::Certificate`] when the identity cannot be used; then nothing has changed.
    pub fn show(&self, identity: &Identity, ca: &CaCertificate) -> Result<(), NetError> {
        self.0.as_ref().map_or(Ok(()), |shown| shown.show(identity, ca))
    }
}

enum Serving {
    Quic { endpoint: Endpoint, task: AbortHandle },
    Memory(memory::Registration),
}

impl Listener {
    /// Listens on a UDP address (port 0: any free one). Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`NetError::Bind`] when the port is taken, [`NetError::Certificate`] when the identity cannot be used.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        ca: &CaCertificate,
        config: LinkConfig,
    ) -> Result<Listener, NetError> {
        let bind = |source| NetError::Bind { address, source };
        Listener::on(UdpSocket::bind(address).map_err(bind)?, identity, ca, config)
    }

    /// Listens on a socket that is bound already. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub fn on(
        socket: UdpSocket,
        identity: &Identity,
        ca: &CaCertificate,
        config: LinkConfig,
    ) -> Result<Listener, NetError> {
        let shown = Arc::new(tls::Shown::new(identity, ca)?);
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls::server(shown.clone(), ca)?));
        super::metrics::describe();
        let mut transport = config.transport()?;
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(STRANGER_STREAMS))
            .receive_window(VarInt::from_u32(STRANGER_WINDOW));
        server.transport_config(Arc::new(transport)).max_incoming(INCOMING);
        let address = socket.local_addr().unwrap_or(ANY_PORT);
        let bind = |source| NetError::Bind { address, source };
        let endpoint = endpoint(socket, Some(server)).map_err(bind)?;
        let (ready, sessions) = mpsc::channel(READY);
        let (asks, joins) = mpsc::channel(join::ASKS);
        let task = tokio::spawn(accept_all(endpoint.clone(), ready, asks)).abort_handle();
        let serving = Serving::Quic { endpoint, task };
        Ok(Listener { sessions, joins: Some(joins), address, shown: Showing(Some(shown)), serving })
    }

    pub(crate) fn in_memory(
        sessions: mpsc::Receiver<Session>,
        address: SocketAddr,
        registration: memory::Registration,
    ) -> Listener {
        let serving = Serving::Memory(registration);
        Listener { sessions, joins: None, address, shown: Showing(None), serving }
    }

    /// The requests of machines that join, once; `None` when they were taken already, and in memory. While nobody reads
    /// them, joiners are told to try again.
    pub fn joins(&mut self) -> Option<mpsc::Receiver<JoinAsk>> {
        self.joins.take()
    }

    /// What it shows, to be replaced in time.
    pub fn shown(&self) -> Showing {
        self.shown.clone()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next link, authenticated and introduced. Its task runs on the caller's runtime. Cancel-safe. `None` only
    /// when the port has failed.
    pub async fn accept<Out: Serialize, In: DeserializeOwned>(&mut self) -> Option<Link<Out, In>> {
        self.sessions.recv().await.map(Link::start)
    }

    /// Closes every link that came through this listener and waits until the peers were told and the port is free.
    pub async fn shutdown(mut self) {
        self.sessions.close();
        while self.sessions.recv().await.is_some() {}
        if let Serving::Quic { endpoint, task } = &self.serving {
            task.abort();
            endpoint.close(VarInt::from_u32(1), b"shutting down");
            endpoint.wait_idle().await;
        }
    }
}

impl Drop for Listener {
    /// Stops accepting. Links live on, and keep the port until the last one ends.
    fn drop(&mut self) {
        match &self.serving {
            Serving::Quic { endpoint, task } => {
                endpoint.set_server_config(None);
                task.abort();
            }
            Serving::Memory(registration) => registration.withdraw(),
        }
    }
}

/// Where an address is asked for that a broken socket does not tell.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

fn endpoint(socket: UdpSocket, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let (config, runtime) = (quinn::EndpointConfig::default(), Arc::new(quinn::TokioRuntime));
    let socket = Arc::new(Batches::new(runtime.wrap_udp_socket(socket)?));
    Endpoint::new_with_abstract_socket(config, server, socket, runtime)
}

/// How a connector comes by its UDP sockets: bound to an address.
pub type Sockets = Arc<dyn Fn(SocketAddr) -> io::Result<UdpSocket> + Send + Sync>;

/// An endpoint of one connection: an UDP port of its own for a peer at `address`.
pub(super) fn client_endpoint(address: SocketAddr, sockets: Option<&Sockets>) -> io::Result<Endpoint> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let any = SocketAddr::new(any, 0);
    let socket = sockets.map_or_else(|| UdpSocket::bind(any), |sockets| sockets(any))?;
    endpoint(socket, None)
}

/// Shakes hands with whoever dials, and keeps the links that come of it alive.
async fn accept_all(endpoint: Endpoint, ready: mpsc::Sender<Session>, asks: mpsc::Sender<JoinAsk>) {
    let mut handshakes = JoinSet::new();
    let joins = Arc::new(Semaphore::new(JOINS));
    let log = Arc::new(LogLimit::default());
    let hearts = Hearts::default();
    let mut beating = pin!(hearts.clone().beat());
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            () = &mut beating => continue,
            Some(_) = handshakes.join_next(), if !handshakes.is_empty() => continue,
        };
        let Some(incoming) = incoming else { return };
        let running = handshakes.len();
        if running >= HANDSHAKES {
            log.failed(incoming.remote_address(), "too many handshakes at once");
            incoming.refuse();
        } else if running >= HANDSHAKES_UNPROVEN && !incoming.remote_address_validated() {
            // Fails only for a validated address.
            let _ = incoming.retry();
        } else {
            let (ready, asks, joins, log) = (ready.clone(), asks.clone(), joins.clone(), log.clone());
            handshakes.spawn(handshake(incoming, ready, asks, joins, log, hearts.clone()));
        }
    }
}

async fn handshake(
    incoming: Incoming,
    ready: mpsc::Sender<Session>,
    asks: mpsc::Sender<JoinAsk>,
    joins: Arc<Semaphore>,
    log: Arc<LogLimit>,
    hearts: Hearts,
) {
    let address = incoming.remote_address();
    let shake = async {
        let connection = incoming.await.map_err(|error| problem_of(&error))?;
        if protocol(&connection).is_some_and(|protocol| protocol == join::ALPN) {
            let Ok(_place) = joins.try_acquire() else {
                connection.close(VarInt::from_u32(0), b"too many machines join at once; try again");
                return Err("too many machines join at once".to_owned());
            };
            return join::serve(&connection, &asks).await.map(|()| None);
        }
        let certificate = certificate_of(&connection);
        let peer = match certificate.as_ref().and_then(|certificate| peer_role(certificate)) {
            Some(Role::Node(name)) => name,
            _ => return Err(refused(&connection, "not a node's certificate")),
        };
        let joined_key = certificate.and_then(|certificate| joined_key(&certificate));
        connection.set_max_concurrent_bi_streams(VarInt::from_u32(FIRST_STREAMS + 2));
        connection.set_receive_window(VarInt::from_u32((NODE_STREAMS + 2) * STREAM_WINDOW));
        let transport = Transport::Quic(connection);
        let streams = stream::await_introduction(&transport).await.map_err(|error| error.to_string())?;
        Ok(Some(Session { peer, joined_key, transport, streams, hearts: Some(hearts) }))
    };
    match tokio::time::timeout(HANDSHAKE, shake).await {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(session))) => {
            // Fails only when the listener has gone meanwhile; the peer hears its connection close.
            let _ = ready.send(session).await;
        }
        Ok(Err(problem)) => log.failed(address, &problem),
        Err(_) => log.failed(address, "the peer was too slow"),
    }
}

/// Dials links. Cheap to clone.
#[derive(Clone)]
pub struct Connector(Dialing);

#[derive(Clone)]
enum Dialing {
    /// What it shows and trusts may change while it lives.
    Quic(Arc<Mutex<quinn::ClientConfig>>, Sockets),
    Memory(memory::Host),
}

impl Connector {
    /// A connector that shows `identity` and trusts `ca` alone.
    ///
    /// # Errors
    /// [`NetError::Certificate`] when the identity cannot be used.
    pub fn new(identity: &Identity, ca: &CaCertificate, config: LinkConfig) -> Result<Connector, NetError> {
        let client = client_config(identity, ca, config)?;
        Ok(Connector(Dialing::Quic(Arc::new(Mutex::new(client)), Arc::new(UdpSocket::bind))))
    }

    /// From now on this connector and its clones show `identity`. Links that are there stay.
    ///
    /// # Errors
    /// [`NetError::Certificate`] when the identity cannot be used; then nothing has changed.
    pub fn show(&self, identity: &Identity, ca: &CaCertificate, config: LinkConfig) -> Result<(), NetError> {
        if let Dialing::Quic(shown, _) = &self.0 {
            let client = client_config(identity, ca, config)?;
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = client;
        }
        Ok(())
    }

    /// Has it use sockets that are made elsewhere, such as in another network namespace.
    #[must_use]
    pub fn with_sockets(self, sockets: Sockets) -> Connector {
        match self.0 {
            Dialing::Quic(config, _) => Connector(Dialing::Quic(config, sockets)),
            memory => Connector(memory),
        }
    }

    pub(crate) fn in_memory(host: memory::Host) -> Connector {
        Connector(Dialing::Memory(host))
    }

    /// Connects to the peer that calls itself `server_name` in its certificate: [`MASTER`], or what
    /// [`node_server_name`] says. Returns once the peer has accepted this side's certificate too. Every link has a UDP
    /// port of its own.
    ///
    /// # Errors
    /// [`NetError::Connect`].
    pub async fn connect<Out: Serialize, In: DeserializeOwned>(
        &self,
        address: SocketAddr,
        server_name: &str,
    ) -> Result<Link<Out, In>, NetError> {
        let connect = async {
            match &self.0 {
                Dialing::Quic(config, sockets) => {
                    let config = config.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    dial(config, sockets, address, server_name).await
                }
                Dialing::Memory(host) => host.dial(address, server_name).await.map_err(Undialed::Failed),
            }
        };
        let problem = match tokio::time::timeout(HANDSHAKE, connect).await {
            Ok(Ok(session)) => return Ok(Link::start(session)),
            Ok(Err(Undialed::Unwelcome(problem))) => {
                return Err(NetError::Unwelcome { address: address.to_string(), problem });
            }
            Ok(Err(Undialed::Failed(problem))) => problem,
            Err(_) => "no answer in time".into(),
        };
        Err(NetError::Connect { address: address.to_string(), problem })
    }
}

fn client_config(
    identity: &Identity,
    ca: &CaCertificate,
    config: LinkConfig,
) -> Result<quinn::ClientConfig, NetError> {
    let mut client = quinn::ClientConfig::new(Arc::new(tls::client(identity, ca)?));
    let mut transport = config.transport()?;
    transport.keep_alive_interval(Some(config.keep_alive));
    client.transport_config(Arc::new(transport));
    Ok(client)
}

/// Why there is no session.
enum Undialed {
    /// The peer does not want this side as long as it shows the same certificate.
    Unwelcome(String),
    /// Anything else; another attempt may succeed.
    Failed(String),
}

impl Undialed {
    fn failed(error: impl std::fmt::Display) -> Undialed {
        Undialed::Failed(error.to_string())
    }
}

impl From<CloseReason> for Undialed {
    fn from(reason: CloseReason) -> Undialed {
        match reason {
            CloseReason::Unwelcome(problem) => Undialed::Unwelcome(problem),
            reason => Undialed::Failed(reason.to_string()),
        }
    }
}

async fn dial(
    config: quinn::ClientConfig,
    sockets: &Sockets,
    address: SocketAddr,
    server_name: &str,
) -> Result<Session, Undialed> {
    let endpoint = client_endpoint(address, Some(sockets)).map_err(Undialed::failed)?;
    let connecting = endpoint.connect_with(config, address, server_name).map_err(Undialed::failed)?;
    let connection = connecting.await.map_err(close_reason)?;
    let role = certificate_of(&connection).and_then(|certificate| peer_role(&certificate));
    let peer = match role {
        Some(Role::Master) if server_name == MASTER => NodeName::from(MASTER),
        Some(Role::Node(name)) if server_name == node_server_name(&name) => name,
        _ => {
            let problem = "the certificate is not that of the expected peer";
            return Err(Undialed::Failed(refused(&connection, problem)));
        }
    };
    let transport = Transport::Quic(connection);
    let streams = stream::introduce(&transport).await.map_err(|error| match transport.close_reason() {
        Some(reason) => reason.into(),
        None => Undialed::failed(error),
    })?;
    Ok(Session { peer, joined_key: None, transport, streams, hearts: None })
}

/// The certificate that the peer showed.
fn certificate_of(connection: &quinn::Connection) -> Option<CertificateDer<'static>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().cloned()
}

/// The protocol that the peer wants to speak.
fn protocol(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let data = connection.handshake_data()?.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?;
    data.protocol
}

fn refused(connection: &quinn::Connection, problem: &str) -> String {
    connection.close(UNWELCOME, problem.as_bytes());
    problem.to_owned()
}

/// Counts failed handshakes, and logs one per address and interval.
#[derive(Default)]
struct LogLimit {
    logged: Mutex<HashMap<IpAddr, Instant>>,
}

impl LogLimit {
    fn failed(&self, address: SocketAddr, problem: &str) {
        metrics::counter!(super::metrics::HANDSHAKES_FAILED).increment(1);
        if self.permits(address.ip(), Instant::now()) {
            tracing::warn!(peer = %address, problem, "turned a peer away");
        }
    }

    fn permits(&self, address: IpAddr, now: Instant) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.len() >= LOG_ADDRESSES {
            logged.retain(|_, at| now.duration_since(*at) < LOG_INTERVAL);
        }
        if logged.get(&address).is_some_and(|at| now.duration_since(*at) < LOG_INTERVAL)
            || logged.len() >= LOG_ADDRESSES
        {
            return false;
        }
        logged.insert(address, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialer_has_no_need_to_ask_while_there_are_heartbeats() {
        let config = LinkConfig::default();
        assert!(config.keep_alive > heartbeat::PERIOD && config.keep_alive < config.idle_timeout);
    }

    #[test]
    fn an_address_that_keeps_failing_makes_one_log_line_an_interval() {
        let (log, now) = (LogLimit::default(), Instant::now());
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        let logged = |at: Instant| (0..100).filter(|_| log.permits(address(1), at)).count();
        assert_eq!(logged(now), 1);
        assert_eq!(logged(now + LOG_INTERVAL / 2), 0);
        assert_eq!(logged(now + LOG_INTERVAL), 1);
        // Many addresses (they are easily forged) make a bounded number of lines, and of entries.
        let lines = (2..100_000).filter(|n| log.permits(address(*n), now + LOG_INTERVAL)).count();
        assert!(lines < LOG_ADDRESSES, "{lines}");
        assert!(log.logged.lock().unwrap().len() <= LOG_ADDRESSES);
        assert!(log.permits(address(7), now + 3 * LOG_INTERVAL));
    }
}
