//! How many datagrams a connection hands to the kernel at once: two, and as many as the kernel takes once there is much.
//!
//! Owns: the UDP socket that quinn sees ([`Batches`]). Why: a connection keeps room for the largest batch that it may make
//! from its first packet on, 13 KiB where the kernel splits ten; of hundreds of links almost all say nothing but
//! heartbeats. Those keep 3 KiB. Invariant: a stream of many bytes gets whole batches after its first few. Limit: one
//! socket's links share the size; a link that was ever busy keeps its room.

use std::{
    fmt,
    io::{self, IoSliceMut},
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

/// Datagrams of a batch while there is little to send: a handshake's answer is two or three.
const FEW: usize = 2;
/// So many whole batches in a row are much to send; more than those of a handshake.
const RAISED_AFTER: usize = 4;
/// So many single datagrams in a row are little to send again: acknowledgements of a busy link come between its batches.
const LOWERED_AFTER: usize = 256;

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
        self.size.sent(transmit.segment_size.map_or(1, |size| transmit.contents.len().div_ceil(size.max(1))));
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(cx, bufs, meta)
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

/// What is sent decides how much may be sent at once. A race between two threads costs a batch of the other size.
#[derive(Debug, Default)]
struct Size {
    /// Whole batches in a row, up to [`RAISED_AFTER`].
    whole: AtomicUsize,
    /// Single datagrams in a row since there was much.
    single: AtomicUsize,
}

impl Size {
    /// Datagrams that may go at once, of so many that the kernel takes.
    fn of(&self, kernels: usize) -> usize {
        if self.whole.load(Relaxed) >= RAISED_AFTER { kernels } else { kernels.min(FEW) }
    }

    fn sent(&self, datagrams: usize) {
        let much = self.whole.load(Relaxed) >= RAISED_AFTER;
        if datagrams >= FEW {
            self.single.store(0, Relaxed);
            if !much {
                self.whole.fetch_add(1, Relaxed);
            }
        } else if !much || self.single.fetch_add(1, Relaxed) + 1 >= LOWERED_AFTER {
            self.whole.store(0, Relaxed);
            self.single.store(0, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_small_until_much_is_sent() {
        let size = Size::default();
        for datagrams in [1, 2, 2, 2, 1, 2, 2, 2] {
            size.sent(datagrams);
            assert_eq!(size.of(10), FEW, "a handshake and heartbeats are little");
        }
        size.sent(2);
        assert_eq!(size.of(10), 10, "four whole batches in a row are a stream");
    }

    #[test]
    fn a_busy_links_acknowledgements_leave_its_batches_large() {
        let size = Size::default();
        for _ in 0..RAISED_AFTER {
            size.sent(FEW);
        }
        for _ in 0..10 {
            for _ in 1..LOWERED_AFTER {
                size.sent(1);
                assert_eq!(size.of(10), 10);
            }
            size.sent(10);
        }
        for _ in 0..LOWERED_AFTER {
            size.sent(1);
        }
        assert_eq!(size.of(10), FEW, "nothing but single ones: it is idle again");
    }

    #[test]
    fn a_kernel_that_takes_one_at_a_time_gets_one() {
        let size = Size::default();
        assert_eq!(size.of(1), 1);
        for _ in 0..RAISED_AFTER {
            size.sent(FEW);
        }
        assert_eq!(size.of(1), 1);
    }
}
