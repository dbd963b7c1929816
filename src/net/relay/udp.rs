//! Datagrams from a port of the machine to a pod and back.
//!
//! Owns: a port's clients, at all of its addresses: each has a socket of its own towards the pod, so that answers find their way. Invariants: a client
//! is forgotten when nothing came or went for [`IDLE`], or when another needs its place: those first that never had an answer,
//! then the longest silent; nothing waits for room to send: such datagrams are dropped, as datagrams may be, so that no
//! client holds up others. Limit: on a machine of several addresses an answer comes from the one that the routes choose.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{self, MsgFlags, SockaddrStorage},
};
use tokio::{
    net::UdpSocket,
    sync::{OwnedSemaphorePermit, oneshot},
    task::coop::consume_budget,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Carrier, RETRY,
    room::{self, Part},
};

/// Longer than most protocols are silent, shorter than would let those who went on fill the room.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// The largest datagram there is.
const DATAGRAM_BYTES: usize = 64 * 1024;

/// The clients of one port of a pod, at all of its addresses.
pub(super) struct Clients {
    known: Mutex<HashMap<Name, Client>>,
    /// This port's part of all clients.
    own: Part,
}

/// Which of the port's sockets a client speaks to, and from where.
type Name = (usize, SocketAddr);

/// One of the port's sockets.
pub(super) struct Way {
    pub(super) socket: UdpSocket,
    /// Its number among them.
    pub(super) index: usize,
    pub(super) clients: Arc<Clients>,
}

struct Port {
    socket: UdpSocket,
    index: usize,
    clients: Arc<Clients>,
    /// One for all answers, which are passed on one after the other.
    answer: Mutex<Vec<u8>>,
}

struct Client {
    pod: Arc<UdpSocket>,
    last: Instant,
    answered: bool,
    turns: [OwnedSemaphorePermit; 2],
    /// Ends what passes answers on.
    _known: oneshot::Sender<()>,
}

impl Clients {
    pub(super) fn new(own: Part) -> Clients {
        Clients { known: Mutex::default(), own }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Name, Client>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for one more, if need be another's.
    fn place(&self, all: &Part) -> io::Result<[OwnedSemaphorePermit; 2]> {
        if let Some(own) = self.own.try_take(1)
            && let Some(turn) = all.try_take(1)
        {
            return Ok([own, turn]);
        }
        room::full("client");
        let mut known = self.known();
        let silent = known.iter().min_by_key(|(_, client)| (client.answered, client.last));
        let silent = silent.map(|(name, _)| *name);
        silent
            .and_then(|name| known.remove(&name))
            .map(|client| client.turns)
            .ok_or_else(|| io::Error::other("other ports have too many clients"))
    }
}

impl Port {
    /// A client's way to the pod, if it has one.
    fn known(&self, from: SocketAddr, answered: bool) -> Option<Arc<UdpSocket>> {
        let mut clients = self.clients.known();
        let client = clients.get_mut(&(self.index, from))?;
        client.last = Instant::now();
        client.answered |= answered;
        Some(client.pod.clone())
    }

    /// Forgets a client that has been silent, or says until when it may be.
    fn forget(&self, from: SocketAddr) -> Option<Instant> {
        let mut clients = self.clients.known();
        let name = (self.index, from);
        let until = clients.get(&name)?.last + IDLE;
        if until > Instant::now() {
            return Some(until);
        }
        clients.remove(&name);
        None
    }
}

/// Takes datagrams for ever.
pub(super) async fn serve(Way { socket, index, clients }: Way, carrier: Carrier) {
    let answer = Mutex::new(vec![0; DATAGRAM_BYTES]);
    let port = Arc::new(Port { socket, index, clients, answer });
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let (length, from) = match port.socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, target = %carrier.target, "no datagram could be received");
                sleep(RETRY).await;
                continue;
            }
        };
        let pod = match port.known(from, false) {
            Some(pod) => Ok(pod),
            None => admit(&port, from, &carrier).await,
        };
        let sent = pod.and_then(|pod| send(&*pod, buffer.get(..length).unwrap_or_default()));
        if let Err(error) = sent {
            tracing::trace!(%error, %from, target = %carrier.target, "a datagram was dropped");
        }
    }
}

async fn admit(port: &Arc<Port>, from: SocketAddr, carrier: &Carrier) -> io::Result<Arc<UdpSocket>> {
    let turns = port.clients.place(&carrier.room.clients)?;
    let any: IpAddr = match carrier.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let pod = Arc::new(UdpSocket::bind((any, 0)).await?);
    pod.connect(carrier.target).await?;
    let (known, forgotten) = oneshot::channel();
    let client = Client { pod: pod.clone(), last: Instant::now(), answered: false, turns, _known: known };
    port.clients.known().insert((port.index, from), client);
    carrier.tasks.spawn(answer(port.clone(), pod.clone(), from, forgotten));
    Ok(pod)
}

/// Sends to what a socket is connected to, without waiting for room.
pub(super) fn send(socket: &impl AsRawFd, datagram: &[u8]) -> io::Result<()> {
    let send = || socket::send(socket.as_raw_fd(), datagram, MsgFlags::MSG_DONTWAIT);
    match send() {
        // That is said of an earlier one, and this was not sent: what listens may have come meanwhile.
        Err(Errno::ECONNREFUSED) => sent(send()),
        other => sent(other),
    }
}

fn sent(outcome: nix::Result<usize>) -> io::Result<()> {
    if let Err(Errno::EAGAIN | Errno::ENOBUFS) = outcome {
        room::full("datagram");
    }
    Ok(outcome.map(drop)?)
}

/// Passes on what the pod says to one client, until neither has said anything for long or another has its place.
async fn answer(
    port: Arc<Port>,
    pod: Arc<UdpSocket>,
    client: SocketAddr,
    mut forgotten: oneshot::Receiver<()>,
) {
    let mut until = Instant::now() + IDLE;
    loop {
        tokio::select! {
            biased;
            _ = &mut forgotten => return,
            readable = pod.readable() => {
                if readable.is_err() {
                    sleep(RETRY).await;
                }
                pass_on(&port, &pod, client);
                // Neither of both takes a turn by itself: a pod that says more than can be passed on would have them all.
                consume_budget().await;
            }
            () = sleep_until(until) => match port.forget(client) {
                Some(later) => until = later,
                None => return,
            },
        }
    }
}

fn pass_on(port: &Port, pod: &UdpSocket, client: SocketAddr) {
    let mut buffer = port.answer.lock().unwrap_or_else(PoisonError::into_inner);
    // An error is an earlier datagram's that nothing took in the pod.
    let Ok(length) = pod.try_recv(&mut buffer) else { return };
    let (answer, to) = (buffer.get(..length).unwrap_or_default(), SockaddrStorage::from(client));
    // A client that has gone is forgotten in time.
    let _ = sent(socket::sendto(port.socket.as_raw_fd(), answer, &to, MsgFlags::MSG_DONTWAIT));
    port.known(client, true);
}
