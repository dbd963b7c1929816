//! SPDY/3.1 as Kubernetes' clients speak it, the server's side: many streams in one connection.
//!
//! Owns: a session over whatever carries its bytes (an upgraded connection, or messages of a WebSocket). Invariants:
//! a session has a bounded number of streams and of bytes on their way; whoever does not read holds up its own session
//! and nobody else. Limits: none of these clients heeds SPDY's windows, so neither does this; it opens no streams itself.

mod dictionary;
mod frame;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use self::frame::{Frame, Headers, Reader, Writer};
use super::upgrade::{Incoming, Outgoing};

/// More than a client has connections forwarded at once, each with two streams.
const MAX_STREAMS: usize = 512;
/// Bytes of a session's streams that wait for their readers: as many as a node takes at once.
const QUEUED_BYTES: usize = 1024 * 1024;
/// What a chunk costs beside its bytes.
const CHUNK_COST: u32 = 128;
/// A ping of ours: the numbers of a server's are even.
const OWN_PING: u32 = 2;
/// Streams that wait to be looked at.
const ACCEPTED: usize = 16;
/// Bytes of ours in one frame.
const FRAME_BYTES: usize = 32 * 1024;

/// A stream that the client opened.
pub struct Stream {
    headers: Headers,
    /// What the client sends; its end is the client's.
    pub read: Read,
    /// What it is sent.
    pub write: Write,
}

/// The client's direction of a stream.
pub struct Read(mpsc::UnboundedReceiver<Chunk>);

/// Bytes, and the room that they take.
type Chunk = (Bytes, OwnedSemaphorePermit);

/// Our direction of a stream. Dropping it ends it.
pub struct Write {
    id: u32,
    out: Outgoing,
    over: Arc<AtomicBool>,
    reset: CancellationToken,
}

struct Entry {
    /// To the stream's reader; `None` after the client's end.
    chunks: Option<mpsc::UnboundedSender<Chunk>>,
    /// Our direction is over.
    over: Arc<AtomicBool>,
    /// The client has ended both.
    reset: CancellationToken,
}

/// Asks a client whether it is there.
pub fn ping() -> Bytes {
    frame::ping(OWN_PING).into()
}

/// Serves a session until the client leaves, errs, or nobody accepts streams any more. To be driven by its caller; the
/// streams come out at the receiver.
pub fn session(incoming: Incoming, out: Outgoing) -> (impl Future<Output = ()>, mpsc::Receiver<Stream>) {
    let (accepted, streams) = mpsc::channel(ACCEPTED);
    let serving = async move {
        if let Err(error) = serve(incoming, out, accepted).await {
            tracing::debug!(%error, "a client's SPDY is not understood");
        }
    };
    (serving, streams)
}

async fn serve(
    mut incoming: Incoming,
    out: Outgoing,
    accepted: mpsc::Sender<Stream>,
) -> Result<(), frame::Malformed> {
    let (mut reader, mut writer) = (Reader::new(), Writer::default());
    let mut streams: HashMap<u32, Entry> = HashMap::new();
    let room = Arc::new(Semaphore::new(QUEUED_BYTES));
    while let Some(bytes) = incoming.next().await {
        reader.push(&bytes);
        while let Some(frame) = reader.next()? {
            let answer = match frame {
                Frame::Open { stream: id, headers, fin } => {
                    streams.retain(|_, entry| entry.chunks.is_some() || !entry.over.load(Ordering::Relaxed));
                    if streams.len() >= MAX_STREAMS || streams.contains_key(&id) {
                        Some(frame::reset(id, frame::REFUSED_STREAM))
                    } else {
                        // Bounded by the session's room.
                        let (chunks, read) = mpsc::unbounded_channel();
                        let over = Arc::new(AtomicBool::new(false));
                        let chunks = (!fin).then_some(chunks);
                        let reset = CancellationToken::new();
                        streams.insert(id, Entry { chunks, over: Arc::clone(&over), reset: reset.clone() });
                        // The answer goes first: what is written on the stream must come after it.
                        if !out.send(writer.reply(id).into()).await {
                            return Ok(());
                        }
                        let write = Write { id, out: out.clone(), over, reset };
                        if accepted.send(Stream { headers, read: Read(read), write }).await.is_err() {
                            return Ok(());
                        }
                        None
                    }
                }
                Frame::Data { stream, bytes, fin } => {
                    if let Some(entry) = streams.get_mut(&stream) {
                        // Whoever reads no more has no use for the rest.
                        let chunks = entry.chunks.as_ref().filter(|c| !bytes.is_empty() && !c.is_closed());
                        if let Some(chunks) = chunks {
                            let cost = CHUNK_COST + bytes.len() as u32;
                            let Ok(held) = Arc::clone(&room).acquire_many_owned(cost).await else { break };
                            let _ = chunks.send((bytes, held));
                        }
                        if fin {
                            entry.chunks = None;
                        }
                    }
                    None
                }
                Frame::Reset { stream } => {
                    if let Some(entry) = streams.remove(&stream) {
                        entry.over.store(true, Ordering::Relaxed);
                        entry.reset.cancel();
                    }
                    None
                }
                // An even one is its answer to ours.
                Frame::Ping(id) => (id % 2 == 1).then(|| frame::ping(id)),
                Frame::GoAway | Frame::Other => None,
            };
            if let Some(answer) = answer
                && !out.send(answer.into()).await
            {
                return Ok(());
            }
        }
    }
    Ok(())
}

impl Stream {
    /// The value of a header, its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

impl Read {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.0.recv().await.map(|(bytes, _)| bytes)
    }
}

impl Write {
    /// Sends bytes; `false` when nobody will read them.
    pub async fn send(&self, bytes: &[u8]) -> bool {
        for part in bytes.chunks(FRAME_BYTES) {
            if self.over.load(Ordering::Relaxed)
                || !self.out.send(frame::data(self.id, part, false).into()).await
            {
                return false;
            }
        }
        true
    }

    /// Waits for the client to end the stream both ways, and for ever if it does not.
    pub fn reset(&self) -> impl Future<Output = ()> + use<> {
        self.reset.clone().cancelled_owned()
    }

    /// Says that no more comes.
    pub async fn close(self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            self.out.send(frame::data(self.id, &[], true).into()).await;
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.over.swap(true, Ordering::Relaxed) {
            let (out, end) = (self.out.clone(), frame::data(self.id, &[], true));
            // Sending may have to wait for the client.
            tokio::spawn(async move { out.send(end.into()).await });
        }
    }
}
