//! Connections that become something else: WebSockets and SPDY, as streams are spoken.
//!
//! Owns: the handshake's choice of a protocol, the answer 101, and the passage of bytes or messages after it.
//! Invariants: memory is bounded by one message and a few chunks a direction; pings are answered whatever is carried, and
//! sent: a client that has gone is noticed though nothing is read of what it said last ([`Outgoing::gone`]).

use std::time::Duration;

use actix_http::ws;
use actix_web::{HttpRequest, HttpResponse, http::header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::{connection::UPGRADE_TO, error::ApiError, payload::Payload, spdy};

/// No message is longer: kubectl sends 32 KiB.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Chunks on their way to the client.
const QUEUE: usize = 8;
/// How SPDY's clients name what they want to speak on it.
const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";

/// What client and server agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Messages of a WebSocket, of that subprotocol.
    WebSocket(&'static str),
    /// A SPDY connection, of that stream protocol.
    Spdy(&'static str),
}

/// Protocols that a request may be upgraded to, each list in order of preference.
pub struct Known<'a> {
    /// WebSocket subprotocols.
    pub websocket: &'a [&'static str],
    /// What may be spoken on SPDY.
    pub spdy: &'a [&'static str],
}

/// A handshake that will succeed.
pub struct Handshake {
    /// What will be spoken.
    pub protocol: Protocol,
    /// Our half of a WebSocket's key.
    accept: Option<String>,
}

impl Handshake {
    /// Looks at the client's half.
    ///
    /// # Errors
    /// 400 for what is no upgrade, or to nothing that is known.
    pub fn new(request: &HttpRequest, known: &Known<'_>) -> Result<Handshake, ApiError> {
        let refuse = |why: &str| ApiError::BadRequest(format!("unable to upgrade: {why}"));
        let choose = |name: &str, known: &[&'static str]| {
            let offered: Vec<&str> = request
                .headers()
                .get_all(name)
                .filter_map(|value| value.to_str().ok())
                .flat_map(|value| value.split(',').map(str::trim))
                .collect();
            let chosen = known.iter().find(|protocol| offered.contains(protocol)).copied();
            chosen
                .ok_or_else(|| refuse(&format!("none of the protocols {offered:?} is known; {known:?} are")))
        };
        if request.headers().contains_key(UPGRADE_TO) {
            return Ok(Handshake {
                protocol: Protocol::Spdy(choose(STREAM_PROTOCOL, known.spdy)?),
                accept: None,
            });
        }
        ws::verify_handshake(request.head())
            .map_err(|e| refuse(&format!("{e}; streams are spoken over WebSockets or SPDY/3.1")))?;
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| refuse("no key"))?;
        Ok(Handshake {
            protocol: Protocol::WebSocket(choose(header::SEC_WEBSOCKET_PROTOCOL.as_str(), known.websocket)?),
            accept: Some(String::from_utf8_lossy(&ws::hash_key(key.as_bytes())).into_owned()),
        })
    }

    /// The answer, and the two directions of what follows it.
    pub fn answer(self, payload: Payload) -> (HttpResponse, Incoming, Outgoing) {
        let (chunks, queue) = mpsc::channel(QUEUE);
        let mut response = HttpResponse::SwitchingProtocols();
        let framed = match (self.protocol, self.accept) {
            (Protocol::WebSocket(protocol), Some(accept)) => {
                response.upgrade("websocket");
                response.insert_header((header::SEC_WEBSOCKET_ACCEPT, accept));
                response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, protocol));
                true
            }
            (Protocol::Spdy(protocol) | Protocol::WebSocket(protocol), _) => {
                response.upgrade("SPDY/3.1");
                response.insert_header((STREAM_PROTOCOL, protocol));
                false
            }
        };
        let body = futures_util::stream::unfold(queue, |mut queue| async move {
            queue.recv().await.map(|chunk: Bytes| (Ok::<_, std::io::Error>(chunk), queue))
        });
        let out = Outgoing { chunks, framed };
        let messages = framed.then(|| Messages::new(out.clone()));
        (response.streaming(body), Incoming { payload, messages }, out)
    }
}

/// What a client sends.
pub struct Incoming {
    payload: Payload,
    /// Of a WebSocket.
    messages: Option<Messages>,
}

impl Incoming {
    /// The next bytes, or the next binary message whole; `None` when the client has closed or talks nonsense.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(messages) = &mut self.messages {
                match messages.take().await {
                    Taken::Message(bytes) => return Some(bytes),
                    Taken::Over => return None,
                    Taken::More => {}
                }
            }
            let bytes = self.payload.next().await?.ok()?;
            match &mut self.messages {
                Some(messages) => messages.input.extend_from_slice(&bytes),
                None => return Some(bytes),
            }
        }
    }
}

/// The client's side of a WebSocket.
struct Messages {
    codec: ws::Codec,
    input: BytesMut,
    /// A message of which parts have come.
    whole: Vec<u8>,
    /// For pongs.
    out: Outgoing,
}

enum Taken {
    Message(Bytes),
    /// More bytes are needed.
    More,
    Over,
}

impl Messages {
    fn new(out: Outgoing) -> Messages {
        let codec = ws::Codec::new().max_size(MAX_MESSAGE);
        Messages { codec, input: BytesMut::new(), whole: Vec::new(), out }
    }

    async fn take(&mut self) -> Taken {
        loop {
            match self.codec.decode(&mut self.input) {
                Ok(Some(ws::Frame::Binary(bytes))) => return Taken::Message(bytes),
                Ok(Some(ws::Frame::Continuation(item))) => match item {
                    ws::Item::FirstBinary(bytes) | ws::Item::FirstText(bytes) | ws::Item::Continue(bytes) => {
                        self.whole.extend_from_slice(&bytes);
                        if self.whole.len() > MAX_MESSAGE {
                            return Taken::Over;
                        }
                    }
                    ws::Item::Last(bytes) => {
                        self.whole.extend_from_slice(&bytes);
                        return Taken::Message(std::mem::take(&mut self.whole).into());
                    }
                },
                Ok(Some(ws::Frame::Ping(bytes))) => {
                    if !self.out.put(ws::Message::Pong(bytes)).await {
                        return Taken::Over;
                    }
                }
                Ok(Some(ws::Frame::Text(_) | ws::Frame::Pong(_))) => {}
                Ok(None) => return Taken::More,
                Ok(Some(ws::Frame::Close(_))) | Err(_) => return Taken::Over,
            }
        }
    }
}

/// What a client is sent.
#[derive(Clone)]
pub struct Outgoing {
    chunks: mpsc::Sender<Bytes>,
    /// As messages of a WebSocket.
    framed: bool,
}

impl Outgoing {
    /// Sends bytes, as one message if there are messages; `false` when the client has gone.
    pub async fn send(&self, bytes: Bytes) -> bool {
        if self.framed {
            self.put(ws::Message::Binary(bytes)).await
        } else {
            self.chunks.send(bytes).await.is_ok()
        }
    }

    /// Waits for the client to go. Once its process has, its system answers what it is sent with a reset, whatever of its
    /// own is still unread here: so it is sent something now and then. That its machine vanished is TCP's to notice.
    pub async fn gone(&self, ping_every: Duration) {
        loop {
            tokio::select! {
                () = self.chunks.closed() => return,
                () = tokio::time::sleep(ping_every) => {}
            }
            let there = match self.framed {
                true => self.put(ws::Message::Ping(Bytes::new())).await,
                false => self.send(spdy::ping()).await,
            };
            if !there {
                return;
            }
        }
    }

    /// Says goodbye, where there is a word for it.
    pub async fn close(&self) {
        if self.framed {
            self.put(ws::Message::Close(Some(ws::CloseCode::Normal.into()))).await;
        }
    }

    async fn put(&self, message: ws::Message) -> bool {
        let mut frame = BytesMut::new();
        ws::Codec::new().encode(message, &mut frame).is_ok() && self.chunks.send(frame.freeze()).await.is_ok()
    }
}

#[cfg(test)]
impl Outgoing {
    /// To a client that takes what its queue holds.
    pub fn to_nobody() -> (Outgoing, mpsc::Receiver<Bytes>) {
        let (chunks, queue) = mpsc::channel(QUEUE);
        (Outgoing { chunks, framed: true }, queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_is_asked_whether_it_is_there_until_it_is_not() {
        let (out, mut queue) = Outgoing::to_nobody();
        let gone = tokio::spawn(async move { out.gone(Duration::from_secs(5)).await });
        for _ in 0..3 {
            // A ping without words.
            assert_eq!(queue.recv().await.unwrap(), Bytes::from_static(&[0x89, 0]));
        }
        // It takes no more, but is there; then it is not.
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!gone.is_finished());
        drop(queue);
        gone.await.unwrap();
    }
}
