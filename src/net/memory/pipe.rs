//! Streams of the network in one process: what is written on one side is read on the other, chunk by chunk.
//!
//! Owns: both halves and what carries between them. Invariants: chunks of one stream stay in order; a half that is let go
//! is noticed by the other, and so is the end of the connection.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::{CancellationToken, PollSender};

use super::wire::Wire;
use crate::net::transport::{Reader, Writer};

/// Bytes under way on one stream: so many chunks of at most this size.
const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 32;

struct Chunk {
    sent: Instant,
    /// The network's turn when it was sent.
    turn: u64,
    /// `None`: the end.
    data: Option<Bytes>,
}

/// A stream in one direction, from this side of a connection to the other.
pub(super) fn pipe(wire: &Arc<Wire>, from: usize) -> (Writer, Reader) {
    let (sender, sent) = mpsc::channel(CHUNKS);
    let (deliver, delivered) = mpsc::channel(CHUNKS);
    let refused = CancellationToken::new();
    tokio::spawn(carry(wire.clone(), from, sent, deliver, refused.clone()));
    let chunks = Some(PollSender::new(sender.clone()));
    let writer = PipeWriter { wire: wire.clone(), from, chunks, sender, refused };
    let reader = PipeReader { chunks: delivered, rest: Bytes::new(), ended: false };
    (Writer::Memory(Box::new(writer)), Reader::Memory(reader))
}

/// Carries chunks of one direction of one stream, each after its delay, until the reader's side ends or lets go. What the
/// other side had sent before it ended arrives, if nothing holds it up.
async fn carry(
    wire: Arc<Wire>,
    from: usize,
    mut sent: mpsc::Receiver<Chunk>,
    deliver: mpsc::Sender<Chunk>,
    refused: CancellationToken,
) {
    let mut rng = wire.network.new_rng();
    let carry = async {
        while let Some(chunk) = sent.recv().await {
            tokio::time::sleep_until(chunk.sent + wire.network.delay(&mut rng)).await;
            if !wire.passes(from, chunk.turn) {
                // It is sent again, for as long as there is somebody who does.
                tokio::select! {
                    () = wire.until_passes(from, chunk.turn) => {}
                    _ = wire.closed(from) => return false,
                }
            }
            let last = chunk.data.is_none();
            if deliver.send(chunk).await.is_err() || last {
                return last;
            }
        }
        false
    };
    let hang_up = async {
        wire.closed(from).await;
        refused.cancel();
        std::future::pending::<()>().await;
    };
    let whole = tokio::select! {
        whole = carry => whole,
        () = deliver.closed() => false,
        _ = wire.closed(1 - from) => false,
        () = hang_up => false,
    };
    if !whole {
        refused.cancel();
    }
}

/// The sending half of a stream. Dropped before its end was said, it leaves the reader with an error.
pub(crate) struct PipeWriter {
    wire: Arc<Wire>,
    from: usize,
    /// `None` once the end was said.
    chunks: Option<PollSender<Chunk>>,
    sender: mpsc::Sender<Chunk>,
    refused: CancellationToken,
}

impl PipeWriter {
    /// Waits until nothing is carried any more, although the end was not said.
    pub(crate) fn refused(&self) -> impl Future<Output = ()> + Send + use<> {
        self.refused.clone().cancelled_owned()
    }

    /// Waits until the end has been delivered, or never will be.
    pub(crate) async fn delivered(&self) {
        self.sender.closed().await;
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let (over, turn) = (self.wire.is_closed(self.from), self.wire.turn());
        let Some(chunks) = self.chunks.as_mut().filter(|_| !over) else { return Poll::Ready(Err(lost())) };
        ready!(chunks.poll_reserve(cx)).map_err(|_| lost())?;
        let taken = buf.len().min(CHUNK);
        let data = Some(Bytes::copy_from_slice(&buf[..taken]));
        chunks.send_item(Chunk { sent: Instant::now(), turn, data }).map_err(|_| lost())?;
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let turn = self.wire.turn();
        if let Some(chunks) = &mut self.chunks {
            ready!(chunks.poll_reserve(cx)).map_err(|_| lost())?;
            chunks.send_item(Chunk { sent: Instant::now(), turn, data: None }).map_err(|_| lost())?;
            self.chunks = None;
        }
        Poll::Ready(Ok(()))
    }
}

/// The receiving half of a stream.
pub(crate) struct PipeReader {
    chunks: mpsc::Receiver<Chunk>,
    rest: Bytes,
    ended: bool,
}

impl AsyncRead for PipeReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && !self.ended {
            match ready!(self.chunks.poll_recv(cx)) {
                Some(Chunk { data: Some(data), .. }) => self.rest = data,
                Some(Chunk { data: None, .. }) => self.ended = true,
                None => return Poll::Ready(Err(lost())),
            }
        }
        let taken = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest[..taken]);
        self.rest.advance(taken);
        Poll::Ready(Ok(()))
    }
}

/// What was being carried when the connection ended.
pub(super) fn lost() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the stream was broken off")
}
