//! The files of one log, read as one: rotated ones in their order, then the one being written.
//!
//! Owns: [`Chain`], and where the last lines begin. Invariant: each file is read to its end before the next one, none
//! twice and none left out, however often the log is rotated meanwhile. Files are known by inode, not by name. What was
//! removed by rotation before a slow reader came to it is lost to it; what was there when it began is not, since all of
//! that is opened at once. Who is at a file that is packed meanwhile has it as it was.

use std::{
    collections::VecDeque,
    fs,
    io::{self, SeekFrom},
    path::{Path, PathBuf},
    time::SystemTime,
};

use tokio::{
    fs::File,
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncSeekExt as _, BufReader},
};

use super::{
    MAX_FRAME, decode,
    pack::{self, Packed},
    rotate::{self, FileId, Rotated, Stamp, file_id, rotated},
};

/// Most bytes of a tail that are searched for its first line at once.
const TAIL_BLOCK: u64 = 64 * 1024;
/// Each read is a trip to the blocking pool, so it should be worth it.
const READ_BUFFER: usize = 64 * 1024;
/// How often files are listed again because they were rotated meanwhile: that takes microseconds, a rotation far longer.
const TRIES: usize = 64;

/// What follows when a file has been read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing now; it may grow.
    Nothing,
    /// There is more to read here.
    More,
    /// The log goes on in another file: the chain is there now. What the old one's last line lacked it will never get.
    Other(Vec<u8>),
}

/// The log being read.
pub(super) struct Chain {
    path: PathBuf,
    /// `None` until there is a file.
    now: Option<Open>,
    /// Files that were there at the beginning, in order.
    rest: VecDeque<Open>,
    /// The beginning of a line whose end is not written yet.
    pub line: Vec<u8>,
}

/// One of its files.
struct Open {
    source: Source,
    id: FileId,
    /// Its own stamp or, for the one being written, that of the newest rotated file: what is later comes after it.
    stamp: Option<Stamp>,
    position: u64,
}

/// Where its bytes come from.
enum Source {
    Plain(BufReader<File>),
    /// A packed file, which grows no more, away while bytes are taken from it; and what of those is not read yet.
    Packed {
        file: Option<Packed>,
        skip: u64,
        piece: Vec<u8>,
        at: usize,
    },
}

impl Open {
    fn new(file: fs::File, id: FileId, stamp: Option<Stamp>, packed: bool) -> Open {
        let source = match packed {
            true => Source::Packed { file: Some(Packed::new(file)), skip: 0, piece: Vec::new(), at: 0 },
            false => Source::Plain(BufReader::with_capacity(READ_BUFFER, File::from_std(file))),
        };
        Open { source, id, stamp, position: 0 }
    }

    /// Finds where its last lines begin, and reads on from there: how many those are, and whether all that are wanted.
    /// `last`: nothing comes after it.
    async fn seek_tail(&mut self, lines: u64, last: bool) -> io::Result<(u64, bool)> {
        let (position, counted, found) = match &mut self.source {
            Source::Plain(reader) => tail_start(reader.get_mut(), lines, last).await?,
            Source::Packed { file, .. } => {
                let Some(packed) = file.take() else { return Ok((0, false)) };
                let (packed, found) = blocking(move || packed.tail_start(lines)).await?;
                *file = Some(packed);
                found
            }
        };
        self.seek(position).await?;
        Ok((counted, found))
    }

    async fn seek(&mut self, position: u64) -> io::Result<()> {
        match &mut self.source {
            Source::Plain(reader) => {
                reader.seek(SeekFrom::Start(position)).await?;
            }
            // Only ever from its beginning.
            Source::Packed { skip, .. } => *skip = position,
        }
        self.position = position;
        Ok(())
    }

    /// What is there to be read; empty at its end.
    async fn fill(&mut self) -> io::Result<&[u8]> {
        match &mut self.source {
            Source::Plain(reader) => reader.fill_buf().await,
            Source::Packed { file, skip, piece, at } => {
                if *at >= piece.len()
                    && let Some(mut packed) = file.take()
                {
                    let from = std::mem::take(skip);
                    let (packed, next) = blocking(move || {
                        let next = packed.piece(from);
                        Ok((packed, next))
                    })
                    .await?;
                    (*file, *piece, *at) = (Some(packed), next, 0);
                }
                Ok(piece.get(*at..).unwrap_or_default())
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        match &mut self.source {
            Source::Plain(reader) => reader.consume(bytes),
            Source::Packed { at, .. } => *at += bytes,
        }
        self.position += bytes as u64;
    }

    /// It has got more since it was read.
    async fn has_grown(&self) -> io::Result<bool> {
        match &self.source {
            Source::Plain(reader) => Ok(reader.get_ref().metadata().await?.len() > self.position),
            Source::Packed { .. } => Ok(false),
        }
    }
}

impl Chain {
    /// Opens what there is, from the last lines on if only those are wanted, and without files that are wholly older
    /// than `since`.
    pub(super) async fn open(path: &Path, tail: Option<u64>, since: Option<SystemTime>) -> io::Result<Chain> {
        let name = path.to_owned();
        let mut rest: VecDeque<Open> = blocking(move || present(&name, since)).await?.into();
        if let Some(lines) = tail {
            let mut left = lines;
            let mut first = 0;
            for (at, open) in rest.iter_mut().enumerate().rev() {
                let (counted, found) = open.seek_tail(left, left == lines).await?;
                (first, left) = (at, left - counted);
                if found {
                    break;
                }
            }
            rest.drain(..first);
        }
        let now = rest.pop_front();
        Ok(Chain { path: path.to_owned(), now, rest, line: Vec::new() })
    }

    /// The next whole line, or `None` when this file has none at the moment.
    pub(super) async fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(open) = &mut self.now else { return Ok(None) };
        loop {
            let available = open.fill().await?;
            if available.is_empty() {
                return Ok(None);
            }
            let (take, whole) = match available.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (available.len(), false),
            };
            let room = MAX_FRAME.saturating_sub(self.line.len());
            let (take, whole) = if take > room { (room, true) } else { (take, whole) };
            self.line.extend_from_slice(&available[..take]);
            open.consume(take);
            if whole {
                if self.line.last() == Some(&b'\n') {
                    self.line.pop();
                }
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }

    /// Goes on to the next file once this one is over. `known`: only to one that was there at the beginning.
    pub(super) async fn go_on(&mut self, known: bool) -> io::Result<Next> {
        if let Some(next) = self.rest.pop_front() {
            // Where a later file is, nobody writes to an earlier one any more.
            self.now = Some(next);
            return Ok(Next::Other(std::mem::take(&mut self.line)));
        }
        if known {
            return Ok(Next::Nothing);
        }
        let there = match tokio::fs::metadata(&self.path).await {
            Ok(there) => there,
            // Being rotated, removed with its pod, or not there yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Next::Nothing),
            Err(error) => return Err(error),
        };
        let mut after = (None, None);
        if let Some(open) = &mut self.now {
            if file_id(&there) == open.id {
                if there.len() >= open.position {
                    return Ok(Next::Nothing);
                }
                // Truncated.
                open.seek(0).await?;
                return Ok(Next::Other(std::mem::take(&mut self.line)));
            }
            // It may have got lines since it was read; it gets no more now that there is another.
            if open.has_grown().await? {
                return Ok(Next::More);
            }
            after = (Some(open.id), open.stamp);
        }
        let path = self.path.clone();
        match blocking(move || successor(&path, after.0, after.1)).await? {
            Some(next) => {
                self.now = Some(next);
                Ok(Next::Other(std::mem::take(&mut self.line)))
            }
            None => Ok(Next::Nothing),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A rotated file with its identity.
struct Listed {
    stamp: Stamp,
    path: PathBuf,
    id: FileId,
    packed: bool,
    /// Which file it was before it was packed. Another may have that identity by now, but none that is still open.
    was: Option<FileId>,
}

fn list(path: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    'again: for _ in 0..TRIES {
        listed.clear();
        for Rotated { stamp, path, packed } in rotated(path)? {
            match open(&path)? {
                Some((file, id)) => {
                    let was = if packed { pack::was(file) } else { None };
                    listed.push(Listed { stamp, path, id, packed, was });
                }
                // Packed meanwhile: it is there by another name.
                None if !packed && rotate::packed_name(&path).exists() => continue 'again,
                // Removed meanwhile.
                None => {}
            }
        }
        break;
    }
    Ok(listed)
}

fn open(path: &Path) -> io::Result<Option<(fs::File, FileId)>> {
    match fs::File::open(path) {
        Ok(file) => {
            let id = file_id(&file.metadata()?);
            Ok(Some((file, id)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the file being written, if it directly follows the last one listed; `Err(())`: the log was rotated meanwhile.
fn open_current(path: &Path, listed: &[Listed]) -> io::Result<Result<Option<Open>, ()>> {
    let Some((file, id)) = open(path)? else { return Ok(Ok(None)) };
    // By now it may itself have been rotated; what matters is what is before it.
    let again = list(path)?;
    let before = again.iter().position(|other| other.id == id).map_or(&again[..], |at| &again[..at]);
    let last = listed.last();
    Ok(match before.last().map(|other| other.id) == last.map(|other| other.id) {
        true => Ok(Some(Open::new(file, id, last.map(|other| other.stamp), false))),
        false => Err(()),
    })
}

/// Every file there is now, in order.
fn present(path: &Path, since: Option<SystemTime>) -> io::Result<Vec<Open>> {
    let mut found = Vec::new();
    'again: for _ in 0..TRIES {
        found.clear();
        let listed = list(path)?;
        for other in &listed {
            match open(&other.path)? {
                Some((file, id)) if id == other.id => {
                    let last = file.metadata()?.modified()?;
                    if since.is_none_or(|since| last >= since) {
                        found.push(Open::new(file, id, Some(other.stamp), other.packed));
                    }
                }
                _ => continue 'again,
            }
        }
        if let Ok(current) = open_current(path, &listed)? {
            found.extend(current);
            break;
        }
    }
    Ok(found)
}

/// The file after the one of that identity and stamp.
fn successor(path: &Path, after: Option<FileId>, stamp: Option<Stamp>) -> io::Result<Option<Open>> {
    for _ in 0..TRIES {
        let listed = list(path)?;
        // One that was removed is older than all that are here, but for those before it.
        let own = |other: &Listed| {
            Some(other.id) == after || (other.was == after && after.is_some() && Some(other.stamp) > stamp)
        };
        let next = match listed.iter().position(own) {
            Some(at) => listed.get(at + 1),
            None => listed.iter().find(|other| Some(other.stamp) > stamp),
        };
        if let Some(next) = next {
            match open(&next.path)? {
                Some((file, id)) if id == next.id => {
                    return Ok(Some(Open::new(file, id, Some(next.stamp), next.packed)));
                }
                _ => continue,
            }
        }
        if let Ok(current) = open_current(path, &listed)? {
            return Ok(current);
        }
    }
    // It goes on the next time.
    Ok(None)
}

/// Where the last lines begin in a file, counting only ends of whole lines (`F`), and in the last file what is there of
/// one without an end; how many there are from there on, and whether that is where they begin: else some are in the file
/// before.
async fn tail_start(file: &mut File, lines: u64, last: bool) -> io::Result<(u64, u64, bool)> {
    let mut end = file.seek(SeekFrom::End(0)).await?;
    let mut count = 0_u64;
    // The bytes after `end` up to the line feed that closes the line being looked at.
    let mut rest: Vec<u8> = Vec::new();
    let mut boundary = None;
    let mut at_end = last;
    let mut ends = |line: &[u8]| {
        let counts = ends_line(line) || (at_end && !line.is_empty());
        at_end &= line.is_empty();
        counts
    };
    while end > 0 {
        let start = end.saturating_sub(TAIL_BLOCK);
        file.seek(SeekFrom::Start(start)).await?;
        let mut block = vec![0; usize::try_from(end - start).unwrap_or_default()];
        file.read_exact(&mut block).await?;
        block.extend_from_slice(&rest);
        let mut to = block.len();
        while let Some(at) = block[..to].iter().rposition(|b| *b == b'\n') {
            // The line after this line feed.
            if ends(&block[at + 1..to]) {
                if count == lines {
                    return Ok((boundary.unwrap_or(start + to as u64), count, true));
                }
                count += 1;
            }
            boundary = Some(start + at as u64 + 1);
            to = at;
        }
        block.truncate(to);
        // What is longer than a line may be is no line's beginning: the rest of it does not matter.
        block.truncate(MAX_FRAME);
        (rest, end) = (block, start);
    }
    if ends(&rest) {
        if count == lines {
            return Ok((boundary.unwrap_or(0), count, true));
        }
        count += 1;
    }
    Ok((0, count, false))
}

/// A line that is complete: whole, or not in the format.
pub(super) fn ends_line(line: &[u8]) -> bool {
    !line.is_empty() && decode(line).is_none_or(|frame| frame.full)
}
