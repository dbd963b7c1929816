//! gRPC's calls over HTTP/2, spoken by hand: no more of it than a client of local services needs.
//!
//! Owns: how a message is framed and how a call ends. Invariant: what a server sends is bounded by the caller. Leaves to
//! others: the connection, time limits, and what messages mean. Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md).

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};

/// A message is preceded by a byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// gRPC's codes that callers look at.
pub const NOT_FOUND: u32 = 5;
/// A method that a server does not have.
pub const UNIMPLEMENTED: u32 = 12;

/// Whom a call is for.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The host that the server is told it was called by.
    pub authority: &'a str,
    /// `/package.Service/Method`.
    pub path: &'a str,
    /// Who calls.
    pub user_agent: &'a str,
    /// Further headers.
    pub metadata: &'a [(&'static str, &'static str)],
    /// Bytes of the longest message that is taken.
    pub longest: usize,
}

/// How a call ended, when the server answered at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// gRPC's code; 0 when all went well.
    pub code: u32,
    /// What the server says to it.
    pub text: String,
    /// The message, encoded; empty unless all went well.
    pub message: Bytes,
}

/// Sends one message, receives one.
///
/// # Errors
/// When the connection breaks, or what comes is not gRPC: in words.
pub async fn unary(client: SendRequest<Bytes>, call: Call<'_>, message: &[u8]) -> Result<Reply, String> {
    let mut messages = begin(client, call, message).await?;
    let mut answer = None;
    while let Some(message) = messages.next().await? {
        answer = Some(message);
    }
    let (code, text) = messages.end().await?;
    let message = if code == 0 { answer.ok_or("the server sent no message")? } else { Bytes::new() };
    Ok(Reply { code, text, message })
}

/// Sends one message; what the server sends is read from what is returned, which ends the call when it is dropped.
///
/// # Errors
/// When the connection breaks, or what comes is not gRPC: in words.
pub async fn begin(client: SendRequest<Bytes>, call: Call<'_>, message: &[u8]) -> Result<Messages, String> {
    let mut client = client.ready().await.map_err(said)?;
    let mut request = http::Request::post(format!("http://{}{}", call.authority, call.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", call.user_agent);
    for (name, value) in call.metadata {
        request = request.header(*name, *value);
    }
    let request = request.body(()).map_err(|e| e.to_string())?;
    let (response, mut body) = client.send_request(request, false).map_err(said)?;
    body.send_data(framed(message), true).map_err(said)?;
    let response = response.await.map_err(said)?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("unexpected HTTP status code received from server: {}", response.status()));
    }
    let head = response.headers().clone();
    Ok(Messages { head, body: response.into_body(), read: BytesMut::new(), longest: call.longest })
}

fn said(error: h2::Error) -> String {
    error.to_string()
}

fn framed(message: &[u8]) -> Bytes {
    let mut framed = vec![0];
    framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend_from_slice(message);
    framed.into()
}

/// What a server sends.
pub struct Messages {
    head: http::HeaderMap,
    body: RecvStream,
    read: BytesMut,
    longest: usize,
}

impl Messages {
    /// The next message; `None` after the last one.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no message.
    pub async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            if let Some(message) = take_message(&mut self.read, self.longest)? {
                return Ok(Some(message));
            }
            let Some(part) = self.body.data().await else {
                return if self.read.is_empty() { Ok(None) } else { Err("the answer is cut off".into()) };
            };
            let part = part.map_err(said)?;
            self.read.extend_from_slice(&part);
            self.body.flow_control().release_capacity(part.len()).map_err(said)?;
        }
    }

    /// The code and text at a call's end, after the last message.
    ///
    /// # Errors
    /// When the server did not say how it went.
    pub async fn end(&mut self) -> Result<(u32, String), String> {
        // An answer that is only an error comes without trailers.
        let trailers = self.body.trailers().await.map_err(said)?;
        let trailers = trailers.as_ref().unwrap_or(&self.head);
        let text = |name: &str| {
            trailers.get(name).map(|value| percent_decoded(value.as_bytes())).unwrap_or_default()
        };
        let code =
            text("grpc-status").parse().map_err(|_| "the server did not say how it went".to_owned())?;
        Ok((code, text("grpc-message")))
    }
}

fn take_message(read: &mut BytesMut, longest: usize) -> Result<Option<Bytes>, String> {
    let Some([compressed, length @ ..]) = read.first_chunk::<PREFIX>().copied() else { return Ok(None) };
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err("the answer is compressed, which nobody asked for".into());
    }
    if length > longest {
        return Err("the answer is too long".into());
    }
    if read.len() < PREFIX + length {
        return Ok(None);
    }
    read.advance(PREFIX);
    Ok(Some(read.split_to(length).freeze()))
}

/// Messages come with everything but printable ASCII as `%XX`.
fn percent_decoded(text: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match (first, hex) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_when_they_are_whole() {
        let mut read = BytesMut::from(&[0, 0, 0, 0, 2, 7][..]);
        assert_eq!(take_message(&mut read, 10).unwrap(), None);
        read.extend_from_slice(&[8, 0, 0]);
        assert_eq!(take_message(&mut read, 10).unwrap().unwrap(), [7, 8][..]);
        assert_eq!(take_message(&mut read, 10).unwrap(), None, "the next one is not here");
        assert_eq!(&framed(&[7, 8])[..], [0, 0, 0, 0, 2, 7, 8]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bad in [[1, 0, 0, 0, 0], [0, 0, 0, 0, 11]] {
            assert!(take_message(&mut BytesMut::from(&bad[..]), 10).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn texts_are_decoded() {
        for (coded, text) in [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%BC", "ü")] {
            assert_eq!(percent_decoded(coded.as_bytes()), text);
        }
    }
}
