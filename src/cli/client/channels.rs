//! Streams to a program in a pod, or to a port: a WebSocket whose messages begin with a channel's number.

use actix_http::ws::{Codec, Frame, Message};
use awc::{BoxedSocket, error::WsClientError};
use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};

use super::{CliError, Client, Outcome};

/// No message is longer.
const MAX_MESSAGE: usize = 1 << 20;

type Socket = actix_codec::Framed<BoxedSocket, Codec>;

/// What comes from the other side.
pub struct Receiving(SplitStream<Socket>);

/// What goes there.
pub struct Sending(SplitSink<Socket, Message>);

impl Client {
    /// Opens channels at a path.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn channels(&self, path: &str, protocol: &str) -> Outcome<(Sending, Receiving)> {
        let mut request = self.http.ws(self.url(path)).protocols([protocol]);
        if let Some(literal) = &self.literal {
            request = request.address(literal.address);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        match request.max_frame_size(MAX_MESSAGE).connect().await {
            Ok((_, socket)) => {
                let (sink, stream) = socket.split();
                Ok((Sending(sink), Receiving(stream)))
            }
            // The answer of a refused upgrade is lost; the same without one is refused in the same words.
            Err(WsClientError::InvalidResponseStatus(_)) => {
                let answer = self.get(path).await;
                Err(answer.err().unwrap_or_else(|| CliError::failed("unable to upgrade the connection")))
            }
            Err(WsClientError::SendRequest(error)) => Err(self.unreachable(&error)),
            Err(error) => Err(CliError::Answer { path: path.to_owned(), cause: error.to_string() }),
        }
    }
}

impl Receiving {
    /// The next message: its channel and its bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<(u8, Bytes)> {
        loop {
            match self.0.next().await? {
                Ok(Frame::Binary(mut bytes)) if !bytes.is_empty() => {
                    let channel = bytes.split_to(1)[0];
                    return Some((channel, bytes));
                }
                Ok(Frame::Close(_)) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }
}

impl Sending {
    /// Sends a message; `false` when the other side has gone.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> bool {
        self.0.send(Message::Binary([&[channel], bytes].concat().into())).await.is_ok()
    }
}
