//! Length-delimited frames on a byte stream: a big-endian `u32`, then so many bytes.
//!
//! Owns: making frames ([`frame`]) and finding them again ([`FrameReader`], cancel-safe; [`read_frame`], which takes not
//! one byte too many). Invariant: no buffer grows before the length is known to be within the cap, and none grows ahead
//! of the bytes that really came.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{NetError, codec};

/// Bytes of the length before each frame.
const HEADER: usize = 4;
/// Room made for one read while more comes than fits into less.
const READ_CHUNK: usize = 16 << 10;
/// Room of a reader that waits: most messages are no longer, and most links say nothing most of the time.
const WAITING: usize = 512;

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
    /// What the next read may bring: much only when the last one brought all that there was room for.
    room: usize,
    cap: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, cap: usize) -> Self {
        FrameReader { stream, buffer: BytesMut::new(), room: WAITING, cap }
    }

    /// The next frame's content; `None` at the stream's end. Cancel-safe.
    ///
    /// # Errors
    /// When the stream fails, ends inside a frame, or announces a frame beyond the cap.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(self.room);
            let read = self.stream.read_buf(&mut self.buffer).await?;
            self.room = if self.buffer.len() == self.buffer.capacity() { READ_CHUNK } else { WAITING };
            if read == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "stream ended inside a frame"))
                };
            }
        }
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
