//! The UDP socket, and what the machine refuses to send.
//!
//! Owns: [`Socket`], which is quinn's own for tokio but for one thing: a datagram that the machine itself refuses (its
//! firewall, no route) is told of in a sentence, once for each peer and [`INTERVAL`], with how many there were. It counts as
//! sent: QUIC sends again what is lost. Bounded: [`PEERS`] are remembered.

use std::{
    collections::HashMap,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use nix::errno::Errno;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit, UdpSocketState},
};
use tokio::{io::Interest, net::UdpSocket};

/// One line a peer in this time: as often as a person looks again.
const INTERVAL: Duration = Duration::from_secs(60);
/// More peers at once share a line.
const PEERS: usize = 256;

/// See the file.
pub(super) struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
    refused: Mutex<Refused>,
}

impl Socket {
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Socket> {
        let state = UdpSocketState::new((&socket).into())?;
        Ok(Socket { io: UdpSocket::from_std(socket)?, state, refused: Mutex::default() })
    }

    fn note(&self, peer: SocketAddr, error: &io::Error) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(more) = refused.says(peer, Instant::now()) {
            tracing::warn!(%peer, %error, more, "{}", sentence(error.kind()));
        }
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waits: None })
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let sent = self.io.try_io(Interest::WRITABLE, || self.state.try_send((&self.io).into(), transmit));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
            // A probe for the largest datagram that gets through: this one does not.
            Err(error) if error.raw_os_error() == Some(Errno::EMSGSIZE as i32) => Ok(()),
            Err(error) => {
                self.note(transmit.destination, &error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [io::IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.io.poll_recv_ready(cx))?;
            let received =
                self.io.try_io(Interest::READABLE, || self.state.recv((&self.io).into(), bufs, meta));
            if let Ok(count) = received {
                return Poll::Ready(Ok(count));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }
}

/// One connection's wait until the socket takes more.
struct Writable {
    socket: Arc<Socket>,
    waits: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = self.socket.clone();
        let waits = self.waits.get_or_insert_with(|| Box::pin(async move { socket.io.writable().await }));
        let outcome = ready!(waits.as_mut().poll(cx));
        self.waits = None;
        Poll::Ready(outcome)
    }
}

/// What was told of peers.
#[derive(Default)]
struct Refused {
    /// When it was said last, and how many were not said since.
    said: HashMap<SocketAddr, (Instant, u64)>,
}

impl Refused {
    /// Whether it is to be said now, and how many were not since the last time.
    fn says(&mut self, peer: SocketAddr, now: Instant) -> Option<u64> {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < INTERVAL;
        if self.said.len() >= PEERS && !self.said.contains_key(&peer) {
            self.said.retain(|_, (at, _)| is_recent(*at));
            if self.said.len() >= PEERS {
                return None;
            }
        }
        match self.said.get_mut(&peer) {
            Some((at, unsaid)) if is_recent(*at) => {
                *unsaid += 1;
                None
            }
            Some((at, unsaid)) => {
                *at = now;
                Some(std::mem::take(unsaid))
            }
            None => {
                self.said.insert(peer, (now, 0));
                Some(0)
            }
        }
    }
}

/// What a person is told.
fn sentence(why: io::ErrorKind) -> &'static str {
    match why {
        io::ErrorKind::PermissionDenied => {
            "this machine refuses to send packets of the link: a firewall on it drops them (see nft list ruleset, iptables -S)"
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkDown => {
            "this machine cannot send packets of the link: it has no route there (see ip route)"
        }
        _ => "this machine did not send packets of the link",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_of_once_an_interval_and_many_are_not_remembered() {
        let mut refused = Refused::default();
        let peer = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let begun = Instant::now();
        assert_eq!(refused.says(peer(1), begun), Some(0));
        assert_eq!(refused.says(peer(1), begun), None);
        assert_eq!(refused.says(peer(2), begun), Some(0), "another is another");
        assert_eq!(refused.says(peer(1), begun + INTERVAL), Some(1));
        for port in 0..2_000 {
            refused.says(peer(port), begun + INTERVAL);
        }
        assert_eq!(refused.said.len(), PEERS);
    }

    #[tokio::test]
    async fn what_the_machine_refuses_counts_as_sent_and_is_noted() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let socket = Socket::new(socket).unwrap();
        // Nobody may send to all without asking for it first.
        let destination = SocketAddr::from(([255, 255, 255, 255], 9));
        let transmit = Transmit { destination, ecn: None, contents: b"x", segment_size: None, src_ip: None };
        socket.io.writable().await.unwrap();
        for _ in 0..3 {
            socket.try_send(&transmit).unwrap();
        }
        let refused = socket.refused.lock().unwrap();
        assert_eq!(refused.said[&destination].1, 2);
    }
}
