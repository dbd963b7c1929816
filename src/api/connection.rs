//! A client's connection before HTTP sees it, so that `Upgrade: SPDY/3.1` passes through an HTTP that knows WebSockets only.
//!
//! Owns: the head of a connection's first request. One that asks for SPDY (older kubectl and client libraries, always on a
//! connection of its own) is shown to HTTP as an upgrade to a WebSocket with [`UPGRADE_TO`] beside it; every other byte
//! passes as it came. Invariant: no more than a head is kept.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The header that stands for `Upgrade: SPDY/3.1`.
pub const UPGRADE_TO: &str = "x-troupe-upgrade-to";
/// A longer head passes as it is; HTTP refuses it.
const MAX_HEAD: usize = 64 * 1024;
const READ_BYTES: usize = 4096;
const HEAD_END: &[u8] = b"\r\n\r\n";

/// A connection whose first request's head is looked at.
pub struct Connection<T> {
    io: T,
    head: Head,
}

enum Head {
    /// What has come of it.
    Comes(Vec<u8>),
    /// What HTTP has not taken of it.
    There(Vec<u8>),
}

impl<T> Connection<T> {
    /// Looks at the first head if `spdy`: not where HTTP/2 is spoken.
    pub fn new(io: T, spdy: bool) -> Connection<T> {
        Connection { io, head: if spdy { Head::Comes(Vec::new()) } else { Head::There(Vec::new()) } }
    }

    /// What is below.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

/// The head with its wish for SPDY as HTTP understands it, when it has one.
fn translate(head: &[u8]) -> Option<Vec<u8>> {
    let end = head.windows(HEAD_END.len()).position(|window| window == HEAD_END)?;
    let (lines, rest) = head.split_at(end);
    let mut wished = false;
    let mut translated = Vec::new();
    for line in lines.split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let (name, value) = text.split_once(':').unwrap_or_default();
        if name.eq_ignore_ascii_case("upgrade") && value.trim().eq_ignore_ascii_case("SPDY/3.1") {
            wished = true;
            translated.extend_from_slice(format!("Upgrade: websocket\r\n{UPGRADE_TO}: SPDY/3.1").as_bytes());
            if line.ends_with(b"\n") {
                translated.extend_from_slice(b"\r\n");
            }
        } else {
            translated.extend_from_slice(line);
        }
    }
    translated.extend_from_slice(rest);
    wished.then_some(translated)
}

impl<T: AsyncRead + Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while let Head::Comes(head) = &mut this.head {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            let searched = head.len().saturating_sub(HEAD_END.len() - 1);
            head.extend_from_slice(read.filled());
            let whole = head[searched..].windows(HEAD_END.len()).any(|window| window == HEAD_END);
            if whole || read.filled().is_empty() || head.len() > MAX_HEAD {
                let head = std::mem::take(head);
                this.head = Head::There(translate(&head).unwrap_or(head));
            }
        }
        match &mut this.head {
            Head::There(head) if !head.is_empty() => {
                let count = head.len().min(buffer.remaining());
                buffer.put_slice(&head[..count]);
                head.drain(..count);
                if head.is_empty() {
                    *head = Vec::new();
                }
                Poll::Ready(Ok(()))
            }
            _ => Pin::new(&mut this.io).poll_read(cx, buffer),
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Connection<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn through(parts: &[&[u8]]) -> String {
        let (mut client, server) = tokio::io::duplex(8);
        let parts: Vec<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        tokio::spawn(async move {
            for part in parts {
                client.write_all(&part).await.unwrap();
            }
        });
        let mut text = String::new();
        Connection::new(server, true).read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn a_wish_for_spdy_is_shown_as_one_for_a_websocket() {
        let head =
            "POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nA: b\r\n\r\nmore";
        let shown = "POST /x HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     x-troupe-upgrade-to: SPDY/3.1\r\nA: b\r\n\r\nmore";
        for cut in 0..head.len() {
            let (first, second) = head.as_bytes().split_at(cut);
            assert_eq!(through(&[first, second]).await, shown, "cut at {cut}");
        }
        let last = "GET / HTTP/1.1\r\nupgrade: spdy/3.1\r\n\r\n";
        let shown = "GET / HTTP/1.1\r\nUpgrade: websocket\r\nx-troupe-upgrade-to: SPDY/3.1\r\n\r\n";
        assert_eq!(through(&[last.as_bytes()]).await, shown);
    }

    #[tokio::test]
    async fn everything_else_passes_as_it_came() {
        let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(MAX_HEAD));
        for text in [
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nUpgrade: SPDY/3.1\r\n\r\n",
            "no HTTP",
            "",
            &long,
        ] {
            assert_eq!(through(&[text.as_bytes()]).await, text);
        }
    }
}
