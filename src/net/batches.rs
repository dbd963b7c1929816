//! How many datagrams are handed to the kernel at once, and taken from it: one, and as many as it takes once there is much.
//!
//! Owns: the UDP socket that quinn sees ([`Batches`]). Why: a connection keeps room for the largest batch that it may make
//! from its first packet on, 13 KiB where the kernel splits ten; of hundreds of links almost all say nothing but
//! heartbeats. Those keep 2 KiB. And of the 3 MiB that an endpoint has to read into, what was never used costs nothing.
//! Invariant: a stream of many bytes gets whole batches after its first few packets. Limit: one socket's links share the
//! size; a link that was ever busy keeps its room.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Datagrams of a batch while there is little to send.
const FEW: usize = 1;
/// So many full datagrams in a row to one peer are much to send: more than those of a handshake, fewer than what QUIC sends
/// at first.
const RAISED_AFTER: usize = 8;
/// The least that any path carries, and so what a full datagram has at least (RFC 9000).
const FULL_BYTES: usize = 1200;
/// So many single datagrams in a row are little to send again: acknowledgements of a busy link come between its batches.
const LOWERED_AFTER: usize = 256;

/// Places for datagrams that one read may fill. The kernel puts up to 64 of a busy stream into one; those of many idle
/// links need one each, and there is another read for more.
const READ_AT_ONCE: usize = 8;

/// A socket that is told of small batches until it sends much.
pub(super) struct Batches {
    socket: Arc<dyn AsyncUdpSocket>,
    size: Size,
}

impl Batches {
    pub(super) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Batches {
        Batches { socket, size: Size::default() }
    }
}

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

impl AsyncUdpSocket for Batches {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        self.socket.try_send(transmit)?;
        let length = transmit.contents.len();
        let datagrams = transmit.segment_size.map_or(1, |size| length.div_ceil(size.max(1)));
        self.size.sent(transmit.destination, length, datagrams);
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let most = READ_AT_ONCE.min(bufs.len()).min(meta.len());
        self.socket.poll_recv(cx, &mut bufs[..most], &mut meta[..most])
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.size.of(self.socket.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

/// What is sent decides how much may be sent at once.
#[derive(Debug, Default)]
struct Size(Mutex<Sent>);

#[derive(Debug, Default)]
struct Sent {
    much: bool,
    /// While it is little: to whom the last one was.
    to: Option<SocketAddr>,
    /// While it is little: full datagrams in a row to that one.
    full: usize,
    /// While it is much: single datagrams in a row.
    single: usize,
}

impl Size {
    fn lock(&self) -> MutexGuard<'_, Sent> {
        // Whatever it says is a size.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Datagrams that may go at once, of so many that the kernel takes.
    fn of(&self, kernels: usize) -> usize {
        if self.lock().much { kernels } else { kernels.min(FEW) }
    }

    fn sent(&self, to: SocketAddr, bytes: usize, datagrams: usize) {
        let mut sent = self.lock();
        if sent.much {
            sent.single = if datagrams > 1 { 0 } else { sent.single + 1 };
            if sent.single >= LOWERED_AFTER {
                *sent = Sent::default();
            }
            return;
        }
        let is_same = sent.to.replace(to) == Some(to);
        sent.full = match bytes >= FULL_BYTES {
            true if is_same => sent.full + 1,
            is_full => usize::from(is_full),
        };
        if sent.full >= RAISED_AFTER {
            *sent = Sent { much: true, ..Sent::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const B: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2);

    fn busy() -> Size {
        let size = Size::default();
        (0..RAISED_AFTER).for_each(|_| size.sent(A, FULL_BYTES, 1));
        size
    }

    #[test]
    fn a_batch_is_small_until_much_is_sent() {
        let size = Size::default();
        for _ in 0..100 {
            for (to, bytes) in [(A, 1200), (A, 1200), (A, 900), (B, 1200), (A, 1200), (B, 40), (A, 1452)] {
                size.sent(to, bytes, 1);
                assert_eq!(size.of(10), FEW, "handshakes, heartbeats and probes of the path are little");
            }
        }
        size.sent(B, 40, 1);
        for _ in 1..RAISED_AFTER {
            size.sent(A, 1452, 1);
            assert_eq!(size.of(10), FEW);
        }
        size.sent(A, 1452, 1);
        assert_eq!(size.of(10), 10, "so many full ones to one peer are a stream");
    }

    #[test]
    fn a_busy_links_acknowledgements_leave_its_batches_large() {
        let size = busy();
        for _ in 0..10 {
            for _ in 1..LOWERED_AFTER {
                size.sent(A, 40, 1);
                assert_eq!(size.of(10), 10);
            }
            size.sent(A, 14_520, 10);
        }
        for _ in 0..LOWERED_AFTER {
            size.sent(A, 40, 1);
        }
        assert_eq!(size.of(10), FEW, "nothing but single ones: it is idle again");
    }

    /// Has as many datagrams as there are places for.
    #[derive(Debug)]
    struct Flooded;

    impl AsyncUdpSocket for Flooded {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing is sent")
        }

        fn try_send(&self, _: &Transmit) -> io::Result<()> {
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            bufs: &mut [IoSliceMut<'_>],
            meta: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bufs.len().min(meta.len())))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(A)
        }
    }

    #[test]
    fn a_read_takes_some_and_leaves_the_rest_for_the_next() {
        let socket = Batches::new(Arc::new(Flooded));
        let mut rooms = [[0; 1]; 32];
        let mut bufs: Vec<IoSliceMut<'_>> = rooms.iter_mut().map(|room| IoSliceMut::new(room)).collect();
        let mut meta = [RecvMeta::default(); 32];
        let mut context = Context::from_waker(std::task::Waker::noop());
        for (places, taken) in [(32, READ_AT_ONCE), (3, 3)] {
            let read = socket.poll_recv(&mut context, &mut bufs[..places], &mut meta);
            assert!(matches!(read, Poll::Ready(Ok(n)) if n == taken), "{read:?}");
        }
    }

    #[test]
    fn a_kernel_that_takes_one_at_a_time_gets_one() {
        assert_eq!(Size::default().of(1), 1);
        assert_eq!(busy().of(1), 1);
    }
}
