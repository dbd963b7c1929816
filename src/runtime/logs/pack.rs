//! Rotated files made small: gzip, as the kubelet does, all but the newest one, which a reader may still be at.
//!
//! Owns: [`pack`], and reading what it made. Invariants: a packed file has its name only once it is whole and on the
//! disk, and the file that it was made of stays until then; so a crash leaves both or a rest that the next attempt writes
//! over. It says which file it was, so that who follows a log through that one goes on after it. Memory is bounded by
//! pieces. Damage ends a file early, with a warning.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _},
    path::{Path, PathBuf},
};

use flate2::{Compression, GzBuilder, read::MultiGzDecoder};

use super::{
    MAX_FRAME,
    chain::ends_line,
    rotate::{FileId, Rotated, absent, file_id, packed_name, rotated},
};

/// What is read of a packed file at once.
pub(super) const PIECE_BYTES: usize = 64 * 1024;
/// The field of a gzip header that says which file it was: device and inode (RFC 1952, 2.3.1.1).
const FIELD: [u8; 4] = [b'T', b'i', 16, 0];

/// What is not finished yet, whose name is no rotated file's.
pub(super) fn unfinished_name(path: &Path) -> PathBuf {
    let mut name = packed_name(path).into_os_string();
    name.push(".tmp");
    name.into()
}

/// Packs the rotated files of a log but the newest.
///
/// # Errors
/// When one cannot be read or written; it then stays as it was.
pub fn pack(path: &Path) -> io::Result<()> {
    let mut files = rotated(path)?;
    files.pop();
    files.iter().filter(|file| !file.packed).try_for_each(pack_one)
}

fn pack_one(file: &Rotated) -> io::Result<()> {
    let packed = packed_name(&file.path);
    let mut from = match File::open(&file.path) {
        Ok(from) => from,
        // The next rotation was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let meta = from.metadata()?;
    let unfinished = unfinished_name(&file.path);
    let written = (|| {
        let (device, inode) = file_id(&meta);
        let said = [&FIELD[..], &device.to_le_bytes(), &inode.to_le_bytes()].concat();
        let to = File::create(&unfinished)?;
        to.set_permissions(meta.permissions())?;
        let mut encoder = GzBuilder::new().extra(said).write(to, Compression::fast());
        io::copy(&mut from, &mut encoder)?;
        let to = encoder.finish()?;
        // Who wants lines since a time passes over files that are older.
        to.set_modified(meta.modified()?)?;
        to.sync_all()?;
        fs::rename(&unfinished, &packed)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&unfinished);
        // Removed meanwhile: nobody wants it any more.
        return if file.path.exists() { Err(error) } else { Ok(()) };
    }
    match fs::remove_file(&file.path) {
        // Removed meanwhile: nobody wants it any more.
        Err(error) if error.kind() == io::ErrorKind::NotFound => absent(fs::remove_file(packed)),
        other => other,
    }
}

/// Which file a packed one was.
pub(super) fn was(file: File) -> Option<FileId> {
    let mut decoder = MultiGzDecoder::new(file);
    // The header is read with the first byte at the latest.
    let _ = decoder.read_exact(&mut [0]);
    let said = decoder.header()?.extra()?.strip_prefix(&FIELD)?;
    let (device, inode) = (said.first_chunk::<8>()?, said.last_chunk::<8>()?);
    Some((u64::from_le_bytes(*device), u64::from_le_bytes(*inode)))
}

/// A packed file that is being read.
pub(super) struct Packed(MultiGzDecoder<File>);

impl Packed {
    pub(super) fn new(file: File) -> Packed {
        Packed(MultiGzDecoder::new(file))
    }

    /// [`tail_start`], before anything was read.
    pub(super) fn tail_start(self, lines: u64) -> io::Result<(Packed, (u64, u64, bool))> {
        let mut file = self.0.into_inner();
        let found = tail_start(&mut file, lines)?;
        Ok((Packed::new(file), found))
    }

    /// The next bytes after so many; none at its end.
    pub(super) fn piece(&mut self, skip: u64) -> Vec<u8> {
        let mut piece = Vec::new();
        let mut read = || {
            io::copy(&mut (&mut self.0).take(skip), &mut io::sink())?;
            (&mut self.0).take(PIECE_BYTES as u64).read_to_end(&mut piece)
        };
        if let Err(error) = read() {
            tracing::warn!(%error, "a rotated log is damaged");
        }
        piece
    }
}

/// Where the last lines begin in what a file was, how many there are from there on, and whether that is where they begin:
/// else some are in the file before.
fn tail_start(file: &mut File, lines: u64) -> io::Result<(u64, u64, bool)> {
    let mut all = 0_u64;
    each_line(file, |_| all += 1)?;
    let before = all.saturating_sub(lines);
    if before == 0 {
        return Ok((0, all, false));
    }
    let (mut seen, mut position) = (0_u64, 0);
    each_line(file, |end| {
        seen += 1;
        if seen == before {
            position = end;
        }
    })?;
    Ok((position, lines, true))
}

/// Tells where each complete line ends.
fn each_line(file: &mut File, mut tell: impl FnMut(u64)) -> io::Result<()> {
    file.rewind()?;
    let mut reader = BufReader::with_capacity(PIECE_BYTES, MultiGzDecoder::new(&*file));
    let (mut position, mut line) = (0, Vec::new());
    loop {
        let available = match reader.fill_buf() {
            Ok(available) if !available.is_empty() => available,
            // Its end, or damage, of which whoever reads it hears.
            _ => break,
        };
        let (take, whole) = match available.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (available.len(), false),
        };
        let content = &available[..take - usize::from(whole)];
        let room = MAX_FRAME.saturating_sub(line.len());
        line.extend_from_slice(&content[..content.len().min(room)]);
        reader.consume(take);
        position += take as u64;
        if whole {
            if ends_line(&line) {
                tell(position);
            }
            line.clear();
        }
    }
    if ends_line(&line) {
        tell(position);
    }
    drop(reader);
    file.rewind()
}

/// At most so many bytes from the end of what a file was, and whether there are more before them.
pub(super) fn last_bytes(file: File, bytes: u64) -> io::Result<(Vec<u8>, bool)> {
    let room = usize::try_from(bytes).unwrap_or(usize::MAX);
    let (mut packed, mut tail, mut cut) = (Packed::new(file), Vec::new(), false);
    loop {
        let piece = packed.piece(0);
        if piece.is_empty() {
            return Ok((tail, cut));
        }
        tail.extend_from_slice(&piece);
        let over = tail.len().saturating_sub(room);
        cut |= over > 0;
        tail.drain(..over);
    }
}
