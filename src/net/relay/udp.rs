//! Datagrams from a port of the machine to a pod and back.
//!
//! Owns: a port's clients: each has a socket of its own towards the pod, so that answers find their way. Invariants: a client
//! is forgotten when nothing came or went for [`IDLE`]; as many as there may be are kept, others' datagrams are dropped, as
//! datagrams may be. Limit: on a machine of several addresses an answer comes from the one that the routes choose.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, sleep_until},
};

use super::{Carrier, RETRY, TURNS};

/// Longer than most protocols are silent, shorter than would let those who went on fill the room.
const IDLE: Duration = Duration::from_secs(60);
/// The largest datagram there is.
const DATAGRAM_BYTES: usize = 64 * 1024;

struct Port {
    socket: UdpSocket,
    clients: Mutex<HashMap<SocketAddr, Client>>,
    /// One for all answers, which are passed on one after the other.
    answer: tokio::sync::Mutex<Vec<u8>>,
}

struct Client {
    pod: Arc<UdpSocket>,
    last: Instant,
    _turns: [OwnedSemaphorePermit; 2],
}

impl Port {
    fn clients(&self) -> MutexGuard<'_, HashMap<SocketAddr, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A client's way to the pod, if it has one.
    fn known(&self, from: SocketAddr) -> Option<Arc<UdpSocket>> {
        let mut clients = self.clients();
        let client = clients.get_mut(&from)?;
        client.last = Instant::now();
        Some(client.pod.clone())
    }

    /// Forgets a client that has been silent, or says until when it may be.
    fn forget(&self, from: SocketAddr) -> Option<Instant> {
        let mut clients = self.clients();
        let until = clients.get(&from)?.last + IDLE;
        if until > Instant::now() {
            return Some(until);
        }
        clients.remove(&from);
        None
    }
}

/// Takes datagrams for ever.
pub(super) async fn serve(socket: UdpSocket, carrier: Carrier) {
    let answer = tokio::sync::Mutex::new(vec![0; DATAGRAM_BYTES]);
    let port = Arc::new(Port { socket, clients: Mutex::default(), answer });
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
        let pod = match port.known(from) {
            Some(pod) => Ok(pod),
            None => admit(&port, from, &carrier).await,
        };
        let sent = match pod {
            Ok(pod) => pod.send(buffer.get(..length).unwrap_or_default()).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::trace!(%error, %from, target = %carrier.target, "a datagram was dropped");
        }
    }
}

async fn admit(port: &Arc<Port>, from: SocketAddr, carrier: &Carrier) -> io::Result<Arc<UdpSocket>> {
    let full = |_| io::Error::other("too many clients");
    let own = carrier.own.clone().try_acquire_owned().map_err(full)?;
    let turn = Arc::clone(&TURNS.1).try_acquire_owned().map_err(full)?;
    let any: IpAddr = match carrier.target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let pod = Arc::new(UdpSocket::bind((any, 0)).await?);
    pod.connect(carrier.target).await?;
    port.clients().insert(from, Client { pod: pod.clone(), last: Instant::now(), _turns: [own, turn] });
    carrier.tasks.spawn(answer(port.clone(), pod.clone(), from));
    Ok(pod)
}

/// Passes on what the pod says to one client, until neither has said anything for long.
async fn answer(port: Arc<Port>, pod: Arc<UdpSocket>, client: SocketAddr) {
    let mut until = Instant::now() + IDLE;
    loop {
        tokio::select! {
            readable = pod.readable() => {
                if readable.is_err() {
                    sleep(RETRY).await;
                }
                let mut buffer = port.answer.lock().await;
                // That nothing listens in the pod is told here, too: it may come.
                if let Ok(length) = pod.try_recv(&mut buffer) {
                    // A client that has gone is forgotten in time.
                    let _ = port.socket.send_to(buffer.get(..length).unwrap_or_default(), client).await;
                    port.known(client);
                }
            }
            () = sleep_until(until) => match port.forget(client) {
                Some(later) => until = later,
                None => return,
            },
        }
    }
}
