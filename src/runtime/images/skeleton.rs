//! What of a layer's tar is not in its unpacked files: headers, paddings, their order. With it the very same tar can be
//! written again, so a layer is stored once. (Idea: tar-split, as Docker has it.)
//!
//! Owns: [`Tape`] and [`Recorder`], which keep it while a layer is unpacked, and [`replay`]. It lies compressed beside the
//! layer's files, in pieces: bytes as they are, or "so many bytes of this file". Invariant: what is replayed is the
//! layer's only if its digest says so, which the caller checks: files that a later entry replaced cannot be replayed.

use std::{
    cell::RefCell,
    ffi::OsStr,
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use flate2::{Compression, bufread::GzDecoder, write::GzEncoder};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::stream::BUFFER;

/// A piece's first byte.
const BYTES: u8 = 0;
const FILE: u8 = 1;
/// Bytes of one piece: headers are gathered up to this, and a path is far shorter.
const PIECE_BYTES: usize = 64 * 1024;

/// Where a layer's skeleton is kept.
pub(super) fn place(layer_home: &Path) -> PathBuf {
    layer_home.join("skeleton.gz")
}

/// What is being kept; clones share it.
#[derive(Clone)]
pub(super) struct Tape(Rc<RefCell<Kept>>);

struct Kept {
    into: GzEncoder<BufWriter<File>>,
    pending: Vec<u8>,
    /// The file whose content passes, and how much of it has.
    file: Option<(PathBuf, u64)>,
    fault: Option<io::Error>,
}

impl Tape {
    pub(super) fn create(path: &Path) -> io::Result<Tape> {
        let into = GzEncoder::new(BufWriter::new(File::create(path)?), Compression::fast());
        Ok(Tape(Rc::new(RefCell::new(Kept { into, pending: Vec::new(), file: None, fault: None }))))
    }

    /// From here on the content of a file passes, which is kept as that file.
    pub(super) fn file(&self, path: &Path) {
        let mut kept = self.0.borrow_mut();
        kept.flush();
        kept.file = Some((path.to_owned(), 0));
    }

    /// What passes now is kept as it is.
    pub(super) fn bytes(&self) {
        self.0.borrow_mut().close_file();
    }

    /// Writes the rest.
    pub(super) fn finish(self) -> io::Result<()> {
        let mut kept = self.0.borrow_mut();
        kept.close_file();
        kept.flush();
        match kept.fault.take() {
            Some(fault) => Err(fault),
            None => kept.into.try_finish().and_then(|()| kept.into.get_mut().flush()),
        }
    }
}

impl Kept {
    fn pass(&mut self, bytes: &[u8]) {
        if let Some((_, size)) = &mut self.file {
            *size += bytes.len() as u64;
            return;
        }
        self.pending.extend_from_slice(bytes);
        if self.pending.len() >= PIECE_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        for piece in std::mem::take(&mut self.pending).chunks(PIECE_BYTES) {
            self.piece(BYTES, 0, piece);
        }
    }

    fn close_file(&mut self) {
        if let Some((path, size)) = self.file.take() {
            self.piece(FILE, size, path.as_os_str().as_bytes());
        }
    }

    /// Tag, size of the file, length of what follows, that.
    fn piece(&mut self, tag: u8, size: u64, bytes: &[u8]) {
        if self.fault.is_some() {
            return;
        }
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let written = self
            .into
            .write_all(&[tag])
            .and_then(|()| self.into.write_all(&size.to_le_bytes()))
            .and_then(|()| self.into.write_all(&length.to_le_bytes()))
            .and_then(|()| self.into.write_all(bytes));
        self.fault = written.err();
    }
}

/// Passes a tar on and has the tape keep it.
pub(super) struct Recorder<R> {
    inner: R,
    tape: Tape,
}

impl<R: Read> Recorder<R> {
    pub(super) fn new(inner: R, tape: Tape) -> Recorder<R> {
        Recorder { inner, tape }
    }
}

impl<R: Read> Read for Recorder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.tape.0.borrow_mut().pass(&buf[..n]);
        Ok(n)
    }
}

/// How long the tar of a layer is.
pub(super) fn tar_bytes(layer_home: &Path) -> io::Result<u64> {
    let mut total = 0;
    pieces(layer_home, |piece| {
        total += match piece {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File(_, size) => size,
        };
        Ok(())
    })?;
    Ok(total)
}

/// Writes a layer's tar.
pub(super) fn replay(layer_home: &Path, into: &mut impl Write) -> io::Result<()> {
    let files = File::open(layer_home.join("fs"))?;
    let mut buffer = vec![0; BUFFER];
    pieces(layer_home, |piece| match piece {
        Piece::Bytes(bytes) => into.write_all(bytes),
        Piece::File(path, size) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            let mut file = File::from(openat2(&files, path, flags, Mode::empty(), resolve)?).take(size);
            let mut left = size;
            while left > 0 {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    return Err(io::Error::other(format!("{} was changed", path.display())));
                }
                into.write_all(&buffer[..n])?;
                left -= n as u64;
            }
            Ok(())
        }
    })
}

enum Piece<'a> {
    Bytes(&'a [u8]),
    File(&'a Path, u64),
}

fn pieces(layer_home: &Path, mut each: impl FnMut(Piece<'_>) -> io::Result<()>) -> io::Result<()> {
    let mut from = BufReader::new(GzDecoder::new(BufReader::new(File::open(place(layer_home))?)));
    let mut bytes = Vec::new();
    loop {
        let mut tag = [0];
        if from.read(&mut tag)? == 0 {
            return Ok(());
        }
        let (mut size, mut length) = ([0; 8], [0; 4]);
        from.read_exact(&mut size)?;
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if length > PIECE_BYTES || tag[0] > FILE {
            return Err(io::Error::other("the layer's skeleton is damaged"));
        }
        bytes.resize(length, 0);
        from.read_exact(&mut bytes)?;
        each(match tag[0] {
            FILE => Piece::File(Path::new(OsStr::from_bytes(&bytes)), u64::from_le_bytes(size)),
            _ => Piece::Bytes(&bytes),
        })?;
    }
}
