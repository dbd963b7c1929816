//! SPDY/3.1 as CRI runtimes' own servers of streams speak it, the client's side: a program's streams in one connection.
//!
//! Owns: the upgrade, the frames, and which stream is which. Invariants: nothing is kept but a piece of a frame and what
//! is said of the program's end, which is bounded. Limits: as these servers, it heeds no windows; what comes in headers
//! means nothing to it, so no header is inflated, and ours are stored.

use std::io;

use serde_json::Value;
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

/// What is spoken on the streams: the end of a program comes as a `Status`.
const PROTOCOL: &str = "v4.channel.k8s.io";
const ERROR: u32 = 1;
pub(super) const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
pub(super) const RESIZE: u32 = 9;

const VERSION: u16 = 3;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const FIN: u32 = 1;
/// An answer's head, a control frame, and what is said of a program's end.
const MAX_HEAD: usize = 16 * 1024;
const MAX_CONTROL: usize = 64 * 1024;
const MAX_STATUS: usize = 64 * 1024;
const PIECE_BYTES: usize = 16 * 1024;

/// Asks for the streams of a URL, and opens those that are wanted.
pub(super) async fn begin(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    authority: &str,
    path: &str,
    wanted: super::StreamOptions,
) -> io::Result<()> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {PROTOCOL}\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
        if head.len() > MAX_HEAD {
            return Err(broken("its answer has no end"));
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    if head.split(' ').nth(1) != Some("101") {
        return Err(broken(head.lines().next().unwrap_or_default()));
    }
    let kinds = [
        (ERROR, "error", true),
        (STDIN, "stdin", wanted.stdin),
        (STDOUT, "stdout", true),
        (STDERR, "stderr", !wanted.tty),
        (RESIZE, "resize", wanted.tty),
    ];
    let mut opening = Vec::new();
    for (id, kind, wanted) in kinds {
        if wanted {
            opening.extend(open(id, kind));
        }
    }
    stream.write_all(&opening).await
}

/// Opens a stream. The first begins the one zlib stream of all headers.
fn open(id: u32, kind: &str) -> Vec<u8> {
    let mut headers = 1_u32.to_be_bytes().to_vec();
    for word in ["streamtype", kind] {
        headers.extend_from_slice(&(word.len() as u32).to_be_bytes());
        headers.extend_from_slice(word.as_bytes());
    }
    let mut body = [id, 0].map(u32::to_be_bytes).concat();
    // Priority and slot.
    body.extend_from_slice(&[0, 0]);
    if id == ERROR {
        body.extend_from_slice(&[0x78, 0x01]);
    }
    // A stored block, and an empty one: with that the server's decoder gives out what it has.
    let length = headers.len() as u16;
    body.push(0);
    body.extend_from_slice(&length.to_le_bytes());
    body.extend_from_slice(&(!length).to_le_bytes());
    body.extend_from_slice(&headers);
    body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
    control(SYN_STREAM, &body)
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = ((1 << 15 | u32::from(VERSION)) << 16 | u32::from(kind)).to_be_bytes().to_vec();
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

/// Answers a ping.
pub(super) fn pong(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes())
}

/// Bytes on a stream; none: its end.
pub(super) fn data(id: u32, bytes: &[u8]) -> Vec<u8> {
    let fin = if bytes.is_empty() { FIN } else { 0 };
    let mut frame = [id, fin << 24 | bytes.len() as u32].map(u32::to_be_bytes).concat();
    frame.extend_from_slice(bytes);
    frame
}

/// Hands on a program's output, and gives what is said of its end. Pings to be answered go to `pings`.
///
/// # Errors
/// When the connection breaks, or nobody takes the output any more.
pub(super) async fn receive(
    read: &mut (impl AsyncBufRead + Unpin),
    out: &mut (impl AsyncWrite + Unpin),
    err: &mut (impl AsyncWrite + Unpin),
    tty: bool,
    pings: &mpsc::UnboundedSender<u32>,
) -> io::Result<Option<Value>> {
    let mut open = vec![ERROR, STDOUT];
    if !tty {
        open.push(STDERR);
    }
    let mut status = Vec::new();
    while !open.is_empty() {
        let first = match read.read_u32().await {
            Ok(word) => word,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        };
        let second = read.read_u32().await?;
        let (flags, length) = (second >> 24, (second & 0x00ff_ffff) as usize);
        if first >> 31 == 0 {
            match first {
                STDOUT => pass(read, length, out).await?,
                STDERR => pass(read, length, err).await?,
                ERROR if status.len() + length <= MAX_STATUS => pass(read, length, &mut status).await?,
                _ => pass(read, length, &mut tokio::io::sink()).await?,
            }
            if flags & FIN != 0 {
                open.retain(|id| *id != first);
            }
            continue;
        }
        if length > MAX_CONTROL {
            return Err(broken("a frame is too long"));
        }
        let mut body = vec![0; length];
        read.read_exact(&mut body).await?;
        let word = body.first_chunk::<4>().map(|word| u32::from_be_bytes(*word));
        match (first as u16, word) {
            (RST_STREAM, Some(id)) => open.retain(|open| *open != id),
            // An odd one is an answer to one of ours, and there is none.
            (PING, Some(id)) if id % 2 == 0 => drop(pings.send(id)),
            _ => {}
        }
    }
    Ok(serde_json::from_slice(&status).ok())
}

async fn pass(
    read: &mut (impl AsyncBufRead + Unpin),
    length: usize,
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut piece = vec![0; length.min(PIECE_BYTES)];
    let mut left = length;
    while left > 0 {
        let room = left.min(piece.len());
        let count = read.read(&mut piece[..room]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&piece[..count]).await?;
        left -= count;
    }
    Ok(())
}

fn broken(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_goes_where_it_belongs_until_all_streams_have_ended() {
        let mut wire = [data(STDOUT, b"out"), data(STDERR, b"err"), pong(2), pong(7)].concat();
        wire.extend(data(ERROR, br#"{"status":"Success"}"#));
        wire.extend(control(RST_STREAM, &[ERROR.to_be_bytes(), [0, 0, 0, 5]].concat()));
        wire.extend(
            [data(STDOUT, b" more"), data(STDOUT, b""), data(STDERR, b""), data(STDOUT, b"late")].concat(),
        );
        let (pings, mut pinged) = mpsc::unbounded_channel();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = receive(&mut wire.as_slice(), &mut out, &mut err, false, &pings).await.unwrap();
        assert_eq!(status.unwrap()["status"], "Success");
        assert_eq!((out.as_slice(), err.as_slice()), (&b"out more"[..], &b"err"[..]));
        assert_eq!((pinged.try_recv().ok(), pinged.try_recv().ok()), (Some(2), None));
        let cut = &wire[..10];
        assert!(receive(&mut &*cut, &mut out, &mut err, false, &pings).await.is_err());
    }
}
