//! What lies below a link: a QUIC connection, or its imitation in one process.
//!
//! Owns: [`Transport`] and its stream halves. Invariant: a [`Writer`] dropped before it was shut down resets its
//! direction, so a reader never takes a broken-off flow for a complete one; a dropped [`Reader`] stops the sender.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::BoxFuture;
use quinn::{ConnectionError, VarInt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};

use super::{
    CloseReason,
    endpoint::NODE_STREAMS,
    heartbeat::{Beating, Heard, Hearts},
    memory,
};

/// QUIC application error code of every close and reset; the reason is in the text.
const CODE: VarInt = VarInt::from_u32(1);
/// Closes a connection whose peer need not come again with the certificate it shows.
pub(super) const UNWELCOME: VarInt = VarInt::from_u32(2);
/// A reason's text travels in one packet beside everything else.
const REASON_MAX: usize = 256;

/// How a link's path is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The present estimate of the round trip.
    pub rtt: Duration,
    /// Packets taken for lost.
    pub lost_packets: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent in UDP datagrams.
    pub sent_bytes: u64,
    /// Bytes received in UDP datagrams.
    pub received_bytes: u64,
    /// Where the peer is at present.
    pub peer: Option<SocketAddr>,
}

#[derive(Clone)]
pub(crate) enum Transport {
    Quic(quinn::Connection),
    Memory(memory::Side),
}

impl Transport {
    pub(crate) async fn open(&self) -> io::Result<(Writer, Reader)> {
        match self {
            Transport::Quic(connection) => connection.open_bi().await.map(quic_halves).map_err(Into::into),
            Transport::Memory(side) => side.open().await,
        }
    }

    /// The next stream that the peer opened. Cancel-safe.
    pub(crate) async fn accept(&self) -> io::Result<(Writer, Reader)> {
        match self {
            Transport::Quic(connection) => connection.accept_bi().await.map(quic_halves).map_err(Into::into),
            Transport::Memory(side) => side.accept().await,
        }
    }

    /// As [`Transport::accept`], on its own.
    pub(crate) fn accept_one(&self) -> BoxFuture<'static, io::Result<(Writer, Reader)>> {
        match self.clone() {
            Transport::Quic(connection) => {
                Box::pin(async move { connection.accept_bi().await.map(quic_halves).map_err(Into::into) })
            }
            Transport::Memory(side) => Box::pin(async move { side.accept().await }),
        }
    }

    /// Of the side that listens: the peer opens byte streams, and may have as many as any node.
    pub(crate) fn expect_streams(&self) {
        if let Transport::Quic(connection) = self {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(NODE_STREAMS + 2));
        }
    }

    /// Has heartbeats on the connection as long as what this gives is kept; in memory there is no need.
    pub(crate) fn beat(&self, hearts: &Hearts) -> Option<(Beating, Heard)> {
        match self {
            Transport::Quic(connection) => Some(hearts.join(connection.clone())),
            Transport::Memory(_) => None,
        }
    }

    /// Ends the connection at once; nothing that waits is sent.
    pub(crate) fn close(&self, reason: &str) {
        let reason = shortened(reason, REASON_MAX);
        match self {
            Transport::Quic(connection) => connection.close(CODE, reason.as_bytes()),
            Transport::Memory(side) => side.close(reason),
        }
    }

    /// The same, and the peer need not come again.
    pub(crate) fn expel(&self, reason: &str) {
        match self {
            Transport::Quic(connection) => {
                connection.close(UNWELCOME, shortened(reason, REASON_MAX).as_bytes());
            }
            Transport::Memory(side) => side.expel(shortened(reason, REASON_MAX)),
        }
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        match self {
            Transport::Quic(connection) => close_reason(connection.closed().await),
            Transport::Memory(side) => Box::pin(side.closed()).await,
        }
    }

    /// Why it has ended; `None` while it lives.
    pub(crate) fn close_reason(&self) -> Option<CloseReason> {
        match self {
            Transport::Quic(connection) => connection.close_reason().map(close_reason),
            Transport::Memory(side) => side.close_reason(),
        }
    }

    pub(crate) fn stats(&self) -> LinkStats {
        match self {
            Transport::Quic(connection) => {
                let stats = connection.stats();
                LinkStats {
                    rtt: stats.path.rtt,
                    lost_packets: stats.path.lost_packets,
                    sent_packets: stats.path.sent_packets,
                    sent_bytes: stats.udp_tx.bytes,
                    received_bytes: stats.udp_rx.bytes,
                    peer: Some(connection.remote_address()),
                }
            }
            Transport::Memory(side) => side.stats(),
        }
    }
}

/// At most `max` bytes of a text, cut between characters.
pub(crate) fn shortened(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// Why a connection ended, in the words of a link.
pub(super) fn close_reason(error: ConnectionError) -> CloseReason {
    match error {
        ConnectionError::TimedOut => CloseReason::Silent,
        ConnectionError::LocallyClosed => CloseReason::Local("connection closed".into()),
        ConnectionError::ApplicationClosed(close) => {
            let text = String::from_utf8_lossy(&close.reason).into_owned();
            if close.error_code == UNWELCOME { CloseReason::Unwelcome(text) } else { CloseReason::Peer(text) }
        }
        ConnectionError::ConnectionClosed(close) => match certificate_alert(close.error_code.into()) {
            Some(problem) => CloseReason::Unwelcome(format!("{NOT_ACCEPTED}: {problem}")),
            // One of the clocks may be wrong, and will be right again: it may be shown again then.
            None if u64::from(close.error_code) == NOT_NOW => CloseReason::Failed(format!(
                "{NOT_ACCEPTED}: it has expired, or the clock of one of the machines is wrong: set the clocks; if it has \
                 expired indeed, this node has to join again with a token"
            )),
            None => CloseReason::Failed(problem_of(&ConnectionError::ConnectionClosed(close))),
        },
        other => CloseReason::Failed(problem_of(&other)),
    }
}

const NOT_ACCEPTED: &str = "this certificate is not accepted";

/// `certificate_expired` (RFC 8446), which is also said of one that does not hold yet.
const NOT_NOW: u64 = 0x100 + 45;

/// What is wrong with a connection, as a person may understand it.
pub(super) fn problem_of(error: &ConnectionError) -> String {
    /// TLS' alert `no_application_protocol` (RFC 7301), from either side.
    const NO_PROTOCOL: u64 = 0x100 + 120;
    /// `unknown_ca` and `decrypt_error`: all authorities have one name, so it may be either.
    const ANOTHER_AUTHORITY: [u64; 2] = [0x100 + 48, 0x100 + 51];
    let code = match error {
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        ConnectionError::TransportError(error) => error.code.into(),
        _ => 0,
    };
    match code {
        NO_PROTOCOL => {
            "one side speaks another version of the protocol between machines than the other (here: \
                        troupe/1): run the same version of troupe on both"
                .to_owned()
        }
        NOT_NOW => format!("{error}; is the clock of one of the machines wrong by a day or more?"),
        _ if ANOTHER_AUTHORITY.contains(&code) => format!("{error}; is the other side of another cluster?"),
        _ => error.to_string(),
    }
}

/// What a peer that did not accept a certificate has against it, and will have for good: TLS' alerts (RFC 8446) as QUIC
/// carries them (RFC 9001).
fn certificate_alert(code: u64) -> Option<&'static str> {
    Some(match code.checked_sub(0x100)? {
        42 | 43 | 46 => "it cannot be used",
        44 => "it was revoked",
        // All authorities have one name: which of these it is depends on where the difference shows.
        48 | 51 => "another authority signed it",
        _ => return None,
    })
}

fn quic_halves((send, receive): (quinn::SendStream, quinn::RecvStream)) -> (Writer, Reader) {
    (Writer::Quic(QuicWriter { stream: send, finished: false }), Reader::Quic(receive))
}

/// The sending half of a stream.
pub(crate) enum Writer {
    Quic(QuicWriter),
    Memory(Box<memory::PipeWriter>),
}

pub(crate) struct QuicWriter {
    stream: quinn::SendStream,
    finished: bool,
}

impl Drop for QuicWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Fails only when the stream has ended already.
            let _ = self.stream.reset(CODE);
        }
    }
}

impl Writer {
    /// Bytes of a stream with a higher priority leave first.
    pub(crate) fn set_priority(&self, priority: i32) {
        if let Writer::Quic(writer) = self {
            // Fails only when the stream has ended already.
            let _ = writer.stream.set_priority(priority);
        }
    }

    /// Waits for the peer to let go of the stream, also while nothing is written; for ever when it takes all to its end.
    pub(crate) fn refused(&self) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        match self {
            Writer::Quic(writer) => {
                let stopped = writer.stream.stopped();
                Box::pin(async move {
                    if let Ok(None) = stopped.await {
                        std::future::pending().await
                    }
                })
            }
            Writer::Memory(writer) => Box::pin(writer.refused()),
        }
    }

    /// Says that no more comes, and waits until the peer has everything.
    pub(crate) async fn finish(mut self) -> io::Result<()> {
        self.shutdown().await?;
        match &mut self {
            Writer::Quic(writer) => writer.stream.stopped().await.map(drop).map_err(Into::into),
            Writer::Memory(writer) => {
                writer.delivered().await;
                Ok(())
            }
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Writer::Quic(writer) => AsyncWrite::poll_write(Pin::new(&mut writer.stream), cx, buf),
            Writer::Memory(writer) => Pin::new(&mut **writer).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Writer::Quic(writer) => Pin::new(&mut writer.stream).poll_flush(cx),
            Writer::Memory(writer) => Pin::new(&mut **writer).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Writer::Quic(writer) => {
                writer.finished = true;
                Pin::new(&mut writer.stream).poll_shutdown(cx)
            }
            Writer::Memory(writer) => Pin::new(&mut **writer).poll_shutdown(cx),
        }
    }
}

/// The receiving half of a stream.
pub(crate) enum Reader {
    Quic(quinn::RecvStream),
    Memory(memory::PipeReader),
}

impl AsyncRead for Reader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Reader::Quic(reader) => AsyncRead::poll_read(Pin::new(reader), cx, buf),
            Reader::Memory(reader) => Pin::new(reader).poll_read(cx, buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use quinn::{ConnectionClose, TransportErrorCode};

    use super::*;

    #[test]
    fn a_certificate_that_a_clock_speaks_against_may_be_shown_again_and_one_that_is_forged_or_revoked_may_not()
     {
        let told = |alert| {
            let error_code = TransportErrorCode::crypto(alert);
            close_reason(ConnectionError::ConnectionClosed(ConnectionClose {
                error_code,
                frame_type: None,
                reason: Default::default(),
            }))
        };
        for alert in [42, 43, 44, 46, 48, 51] {
            assert!(matches!(told(alert), CloseReason::Unwelcome(_)), "{alert}");
        }
        let CloseReason::Failed(text) = told(45) else { panic!("it is not tried again") };
        assert!(text.contains("clock") && text.contains("token"), "{text}");
    }
}
