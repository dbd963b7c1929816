//! Bytes on their way: from async readers into blocking code, hashed, decompressed and counted.
//!
//! Owns: the adapters that image archives pass through. Invariant: nothing here holds more than a buffer of the bytes
//! that pass, and a decompressor's window.

use std::{
    cell::Cell,
    fmt::Write as _,
    io::{self, BufRead, BufReader, Read},
    rc::Rc,
};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest, Sha256};
use tokio::{io::AsyncReadExt, runtime::Handle};

use super::zstd::Frames;
use crate::runtime::{Reader, RuntimeError};

/// Size of the buffers that bytes pass through: large enough that system calls do not count.
pub(super) const BUFFER: usize = 128 * 1024;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// An async reader as a blocking one, for a thread of the blocking pool.
pub(super) struct Blocking {
    reader: Reader,
    runtime: Handle,
}

impl Blocking {
    /// Must be called inside a tokio runtime; read only outside of its worker threads.
    pub(super) fn new(reader: Reader) -> Blocking {
        Blocking { reader, runtime: Handle::current() }
    }
}

impl Read for Blocking {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.runtime.block_on(self.reader.read(buf))
    }
}

/// Passes on at most so many bytes and fails at one more.
pub(super) struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Limited<R> {
    pub(super) fn new(inner: R, limit: u64) -> Limited<R> {
        Limited { inner, left: limit }
    }
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::other("the archive is larger than the image store's limit"))?;
        Ok(n)
    }
}

/// Passes bytes on and remembers their SHA-256.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hash: Sha256::new() }
    }

    /// Reads to the end and tells the digest, `sha256:…`.
    pub(super) fn finish(mut self) -> io::Result<String> {
        let mut buf = vec![0; BUFFER];
        while self.read(&mut buf)? > 0 {}
        Ok(format_digest(&self.hash.finalize()))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.hash.update(&buf[..n]);
        Ok(n)
    }
}

/// The digest of bytes at hand.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    format_digest(&Sha256::digest(bytes))
}

/// A hash as a digest.
pub(super) fn format_digest(hash: &[u8]) -> String {
    hash.iter().fold(String::from("sha256:"), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Decompresses what begins with gzip's or zstd's magic bytes and passes everything else as it is.
pub(super) fn decompressed<'a>(reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>, RuntimeError> {
    let mut reader = BufReader::with_capacity(BUFFER, Peeked::new(reader).map_err(bad)?);
    let magic = reader.fill_buf().map_err(bad)?;
    // zstd may begin with a frame to be skipped, which has sixteen magic numbers of its own.
    let skippable = matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    Ok(if magic.starts_with(&GZIP) {
        Box::new(MultiGzDecoder::new(reader))
    } else if skippable || magic.starts_with(&ZSTD) {
        Box::new(Frames::new(reader))
    } else {
        Box::new(reader)
    })
}

/// A reader whose first read yields the magic bytes in one piece, however small the pieces below.
struct Peeked<R> {
    head: io::Cursor<Vec<u8>>,
    rest: R,
}

impl<R: Read> Peeked<R> {
    fn new(mut rest: R) -> io::Result<Peeked<R>> {
        let mut head = Vec::with_capacity(ZSTD.len());
        rest.by_ref().take(ZSTD.len() as u64).read_to_end(&mut head)?;
        Ok(Peeked { head: io::Cursor::new(head), rest })
    }
}

impl<R: Read> Read for Peeked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match Read::read(&mut self.head, buf)? {
            0 => self.rest.read(buf),
            n => Ok(n),
        }
    }
}

/// Bounds what a tar parser may read while it is parsing headers: extended headers (long names, attributes) are held
/// in memory, and their length is the archive's to claim.
pub(super) struct HeaderGuard<R> {
    inner: R,
    allowance: Allowance,
}

/// How much may still be read; shared between the guard and the loop over the entries.
#[derive(Clone, Default)]
pub(super) struct Allowance(Rc<Cell<Option<u64>>>);

/// What one entry's headers may take: paths and links of 4 KiB and attributes of 64 KiB fit many times.
const HEADER_BYTES: u64 = 1024 * 1024;

impl Allowance {
    /// From here on headers are read.
    pub(super) fn headers(&self) {
        self.0.set(Some(HEADER_BYTES));
    }

    /// From here on contents are read, which are counted elsewhere.
    pub(super) fn contents(&self) {
        self.0.set(None);
    }
}

impl<R: Read> HeaderGuard<R> {
    pub(super) fn new(inner: R) -> (HeaderGuard<R>, Allowance) {
        let allowance = Allowance::default();
        (HeaderGuard { inner, allowance: allowance.clone() }, allowance)
    }
}

impl<R: Read> Read for HeaderGuard<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        if let Some(left) = self.allowance.0.get() {
            let left = left
                .checked_sub(n as u64)
                .ok_or_else(|| io::Error::other("an entry's extended headers are too large"))?;
            self.allowance.0.set(Some(left));
        }
        Ok(n)
    }
}

/// An error while reading an archive: the archive's fault.
pub(super) fn bad(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::BadImage(error.to_string())
}

/// An error of the machine.
pub(super) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let operation = operation.into();
    move |cause| RuntimeError::System { operation, cause: cause.to_string() }
}
