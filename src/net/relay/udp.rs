//! Datagrams from a port of the machine to a pod and back.
//!
//! Owns: the clients: each has a socket of its own towards the pod, so that answers find their way. Invariants: a client
//! is forgotten when nothing came or went for [`IDLE`], or when another needs its place: those first that never had an answer,
//! then the longest silent, of the same port where that has all it may have, else of any; nothing waits for room to send: such
//! datagrams are dropped, as datagrams may be, so that no client holds up others. Limit: on a machine of several addresses an
//! answer comes from the one that the routes choose.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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

/// All clients of a process.
pub(super) struct Clients {
    pub(super) part: Part,
    known: Mutex<HashMap<Name, Client>>,
    ports: AtomicU64,
}

/// The number of the socket that a client speaks to, and from where.
type Name = (u64, SocketAddr);

struct Client {
    /// Of which port's part it is.
    own: Part,
    pod: Arc<UdpSocket>,
    last: Instant,
    answered: bool,
    _turns: [OwnedSemaphorePermit; 2],
    /// Ends what passes answers on.
    _known: oneshot::Sender<()>,
}

impl Clients {
    pub(super) fn new(part: Part) -> Clients {
        Clients { part, known: Mutex::default(), ports: AtomicU64::new(0) }
    }

    /// What one port may have.
    pub(super) fn of_one_port(&self) -> Part {
        self.part.of_one_port()
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Name, Client>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turns(&self, own: &Part) -> Option<[OwnedSemaphorePermit; 2]> {
        Some([own.try_take(1)?, self.part.try_take(1)?])
    }

    /// A place for one more, if need be another's: of the same port where that has no more, else of any.
    fn place(&self, own: &Part) -> io::Result<[OwnedSemaphorePermit; 2]> {
        if let Some(turns) = self.turns(own) {
            return Ok(turns);
        }
        room::full("client");
        let is_own = own.left() == 0;
        let mut known = self.known();
        let such = known.iter().filter(|(_, client)| !is_own || client.own.is(own));
        let silent = such.min_by_key(|(_, client)| (client.answered, client.last)).map(|(name, _)| *name);
        drop(silent.and_then(|name| known.remove(&name)));
        self.turns(own).ok_or_else(|| io::Error::other("there are too many clients"))
    }
}

/// One socket of the machine.
struct Port {
    socket: UdpSocket,
    number: u64,
    own: Part,
    all: Arc<Clients>,
    /// One for all answers, which are passed on one after the other.
    answer: Mutex<Vec<u8>>,
}

impl Port {
    /// A client's way to the pod, if it has one.
    fn known(&self, from: SocketAddr, answered: bool) -> Option<Arc<UdpSocket>> {
        let mut clients = self.all.known();
        let client = clients.get_mut(&(self.number, from))?;
        client.last = Instant::now();
        client.answered |= answered;
        Some(client.pod.clone())
    }

    /// Forgets a client that has been silent, or says until when it may be.
    fn forget(&self, from: SocketAddr) -> Option<Instant> {
        let mut clients = self.all.known();
        let name = (self.number, from);
        let until = clients.get(&name)?.last + IDLE;
        if until > Instant::now() {
            return Some(until);
        }
        clients.remove(&name);
        None
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.all.known().retain(|(number, _), _| *number != self.number);
    }
}

/// Takes datagrams for ever.
pub(super) async fn serve(socket: UdpSocket, own: Part, carrier: Carrier) {
    let (all, answer) = (carrier.room.clients.clone(), Mutex::new(vec![0; DATAGRAM_BYTES]));
    let number = all.ports.fetch_add(1, Ordering::Relaxed);
    let port = Arc::new(Port { socket, number, own, all, answer });
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
    let turns = port.all.place(&port.own)?;
    let any: IpAddr = match carrier.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let pod = Arc::new(UdpSocket::bind((any, 0)).await?);
    pod.connect(carrier.target).await?;
    let (known, forgotten) = oneshot::channel();
    let client = Client {
        own: port.own.clone(),
        pod: pod.clone(),
        last: Instant::now(),
        answered: false,
        _turns: turns,
        _known: known,
    };
    port.all.known().insert((port.number, from), client);
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
