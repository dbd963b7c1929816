//! Length-delimited frames on a byte stream: a big-endian `u32`, then so many bytes.
//!
//! Owns: making frames ([`frame`]) and finding them again ([`FrameReader`], cancel-safe; [`read_frame`], which takes not
//! one byte too many). Invariant: no buffer grows before the length is known to be within the cap, and none grows ahead
//! of the bytes that really came.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::{NetError, codec};

/// Bytes of the length before each frame.
const HEADER: usize = 4;
/// Room made for one read while more comes than fits into less.
const READ_CHUNK: usize = 16 << 10;
/// What a reader that waits reads first, by way of the stack: most messages are no longer, and most links say nothing
/// most of the time, for which they hold nothing.
const FIRST: usize = 4 << 10;

/// A message as a whole frame.
pub(crate) fn frame<T: Serialize>(message: &T, cap: usize) -> Result<Bytes, NetError> {
    let mut bytes = vec![0; HEADER];
    codec::encode_into(&mut bytes, message, cap)?;
    let too_large = |size: usize| NetError::TooLarge { size: size as u64, limit: u64::from(u32::MAX) };
    let length = u32::try_from(bytes.len() - HEADER).map_err(|_| too_large(bytes.len()))?;
    bytes[..HEADER].copy_from_slice(&length.to_be_bytes());
    Ok(bytes.into())
}

/// Reads frames from a stream that carries nothing else.
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    /// The last read brought all that there was room for.
    much: bool,
    cap: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, cap: usize) -> Self {
        FrameReader { stream, buffer: BytesMut::new(), much: false, cap }
    }

    /// The next frame's content; `None` at the stream's end. Cancel-safe.
    ///
    /// # Errors
    /// When the stream fails, ends inside a frame, or announces a frame beyond the cap.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// As [`FrameReader::next`].
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "stream ended inside a frame"))
                });
            }
        }
    }

    /// Reads what there is; how much that was.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        if self.much {
            self.buffer.reserve(READ_CHUNK);
            let outcome = poll_read_buf(stream, cx, &mut self.buffer);
            self.much = outcome.is_ready() && self.buffer.len() == self.buffer.capacity();
            if outcome.is_pending() && self.buffer.is_empty() {
                self.buffer = BytesMut::new();
            }
            return outcome;
        }
        let mut first = [const { MaybeUninit::uninit() }; FIRST];
        let mut read = ReadBuf::uninit(&mut first);
        ready!(stream.poll_read(cx, &mut read))?;
        self.much = read.remaining() == 0;
        self.buffer.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    fn take_frame(&mut self) -> io::Result<Option<Bytes>> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = checked_length(*header, self.cap)?;
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let frame = self.buffer.split_to(length).freeze();
        if self.buffer.is_empty() {
            // A large frame's allocation goes with the frame; a reader that waits keeps little.
            self.buffer = BytesMut::new();
        }
        Ok(Some(frame))
    }
}

/// Reads exactly one frame; what follows it stays in the stream. Not cancel-safe.
pub(crate) async fn read_frame<R: AsyncRead + Unpin>(stream: &mut R, cap: usize) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).await?;
    let mut frame = vec![0; checked_length(header, cap)?];
    stream.read_exact(&mut frame).await?;
    Ok(frame)
}

fn checked_length(header: [u8; HEADER], cap: usize) -> io::Result<usize> {
    let length = u32::from_be_bytes(header) as usize;
    if length > cap {
        let text = format!("frame of {length} bytes exceeds the limit of {cap}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn frames_of_any_size_are_read_and_a_reader_that_waits_holds_nothing() {
        const CAP: usize = 1 << 20;
        let (mut peer, stream) = duplex(8 << 10);
        let mut reader = FrameReader::new(stream, CAP);
        let sizes = [
            0,
            1,
            FIRST - HEADER - 1,
            FIRST - HEADER,
            FIRST - HEADER + 1,
            READ_CHUNK,
            3 * READ_CHUNK,
            100_000,
            2,
        ];
        let sending = tokio::spawn(async move {
            for size in sizes {
                let frame = [&(size as u32).to_be_bytes()[..], &vec![size as u8; size]].concat();
                peer.write_all(&frame).await.unwrap();
            }
            peer
        });
        for size in sizes {
            let frame = reader.next().await.unwrap().unwrap();
            assert!(frame.len() == size && frame.iter().all(|byte| *byte == size as u8), "{size}");
        }
        let peer = sending.await.unwrap();
        // Also after a read that brought all that there was room for.
        for much in [false, true] {
            reader.much = much;
            assert!(reader.poll_next(&mut Context::from_waker(Waker::noop())).is_pending());
            assert_eq!(reader.buffer.capacity(), 0);
        }
        drop(peer);
        assert!(reader.next().await.unwrap().is_none());
    }
}
