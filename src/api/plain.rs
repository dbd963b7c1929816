//! Clients that speak HTTP without TLS to a port that wants it.
//!
//! Owns: the look at a connection's first byte, and the answer, in Kubernetes' words, to what is no TLS but an HTTP request's
//! head. Everything else goes on to TLS as it came. Limits: [`HEAD_BYTES`] are read of what is answered so.

use std::{io, time::Duration};

use actix_web::rt::net::TcpStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const ANSWER: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
      Client sent an HTTP request to an HTTPS server.\n";
/// What is read of such a request, so that the answer is not lost in a reset: more than heads are long.
const HEAD_BYTES: u64 = 64 << 10;
/// How long the client may take to close.
const LINGER: Duration = Duration::from_secs(1);

/// Gives the connection back when it may become TLS, within the time that a handshake may take.
///
/// # Errors
/// When the client was answered without TLS, said nothing in time, or is gone.
pub async fn look(mut tcp: TcpStream, within: Duration) -> io::Result<TcpStream> {
    let mut first = [0; 1];
    tokio::time::timeout(within, tcp.peek(&mut first)).await??;
    // A handshake begins with 22, a method with a capital letter.
    if !first.iter().all(u8::is_ascii_uppercase) {
        return Ok(tcp);
    }
    let _ = tokio::time::timeout(LINGER, answer(&mut tcp)).await;
    Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak TLS"))
}

async fn answer(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.write_all(ANSWER).await?;
    tcp.shutdown().await?;
    let mut rest = tcp.take(HEAD_BYTES);
    let mut bytes = [0; 1024];
    while rest.read(&mut bytes).await? > 0 {}
    Ok(())
}
