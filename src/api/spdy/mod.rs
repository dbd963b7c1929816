//! SPDY/3.1 as Kubernetes' clients speak it, the server's side: many streams in one connection.
//!
//! Owns: a session over whatever carries its bytes (an upgraded connection, or messages of a WebSocket). Invariants:
//! a session has a bounded number of streams, and each a bounded number of chunks on their way; whoever does not read
//! holds up its own session and nobody else. Limits: none of these clients heeds SPDY's windows, so neither does this;
//! it opens no streams itself.

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
use tokio::sync::mpsc;

use self::frame::{Frame, Headers, Reader, Writer};
use super::upgrade::{Incoming, Outgoing};

/// More than a client has connections forwarded at once, each with two streams.
const MAX_STREAMS: usize = 512;
/// Chunks of one stream that wait for their reader.
const CHUNKS: usize = 16;
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
pub struct Read(mpsc::Receiver<Bytes>);

/// Our direction of a stream. Dropping it ends it.
pub struct Write {
    id: u32,
    out: Outgoing,
    over: Arc<AtomicBool>,
}

struct Entry {
    /// To the stream's reader; `None` after the client's end.
    chunks: Option<mpsc::Sender<Bytes>>,
    /// Our direction is over.
    over: Arc<AtomicBool>,
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
    while let Some(bytes) = incoming.next().await {
        reader.push(&bytes);
        while let Some(frame) = reader.next()? {
            let answer = match frame {
                Frame::Open { stream: id, headers, fin } => {
                    streams.retain(|_, entry| entry.chunks.is_some() || !entry.over.load(Ordering::Relaxed));
                    if streams.len() >= MAX_STREAMS || streams.contains_key(&id) {
                        Some(frame::reset(id, frame::REFUSED_STREAM))
                    } else {
                        let (chunks, read) = mpsc::channel(CHUNKS);
                        let over = Arc::new(AtomicBool::new(false));
                        let chunks = (!fin).then_some(chunks);
                        streams.insert(id, Entry { chunks, over: Arc::clone(&over) });
                        // The answer goes first: what is written on the stream must come after it.
                        if !out.send(writer.reply(id).into()).await {
                            return Ok(());
                        }
                        let write = Write { id, out: out.clone(), over };
                        if accepted.send(Stream { headers, read: Read(read), write }).await.is_err() {
                            return Ok(());
                        }
                        None
                    }
                }
                Frame::Data { stream, bytes, fin } => {
                    if let Some(entry) = streams.get_mut(&stream) {
                        if let Some(chunks) = entry.chunks.as_ref().filter(|_| !bytes.is_empty()) {
                            // Whoever reads no more has no use for the rest.
                            let _ = chunks.send(bytes.into()).await;
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
                    }
                    None
                }
                Frame::Ping(id) => Some(frame::ping(id)),
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
        self.0.recv().await
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
