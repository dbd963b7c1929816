//! Logs that stay small: when one is full it is renamed, a new one begun and the oldest removed.
//!
//! Owns: [`LogLimits`], the names of rotated files (`0.log.20060102-150405.000000001`, in UTC; `.gz` when packed) and [`LogWriter`].
//! Invariants: names sort in the order of writing, whatever the clock does; a record is in one file as a whole; no file
//! is larger than the limit unless one record is. Whoever writes a log rotates it, between two records, so that no flood
//! outruns it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::pack::{self, unfinished_name};

/// How much is kept of a container's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogLimits {
    /// A file is as large at most: the kubelet's `containerLogMaxSize`.
    pub max_bytes: u64,
    /// So many files at most, the one being written among them: `containerLogMaxFiles`.
    pub max_files: u32,
}

impl Default for LogLimits {
    /// Kubernetes'.
    fn default() -> LogLimits {
        LogLimits { max_bytes: 10 * 1024 * 1024, max_files: 5 }
    }
}

/// A file, however it is called.
pub(super) type FileId = (u64, u64);

pub(super) fn file_id(meta: &fs::Metadata) -> FileId {
    (meta.dev(), meta.ino())
}

/// When a file was rotated: its place among those of one log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    /// Year, month, day, hour, minute and second as one number of 14 digits.
    second: u64,
    nanos: u32,
}

/// Digits of a fraction of a second, so that all are of one length.
const FRACTION: usize = 9;

impl Stamp {
    fn of(time: SystemTime) -> Stamp {
        // 2006-01-02T15:04:05.000000001Z
        let digits: String =
            humantime::format_rfc3339_nanos(time).to_string().chars().filter(char::is_ascii_digit).collect();
        let (second, nanos) = digits.split_at(digits.len().saturating_sub(FRACTION));
        Stamp { second: second.parse().unwrap_or(0), nanos: nanos.parse().unwrap_or(0) }
    }

    /// The next one, should the clock have gone back or stood still.
    fn after(self, last: Option<Stamp>) -> Stamp {
        match last {
            Some(last) if last >= self && last.nanos < 999_999_999 => Stamp { nanos: last.nanos + 1, ..last },
            // Maybe a second that no clock shows; it still sorts.
            Some(last) if last >= self => Stamp { second: last.second + 1, nanos: 0 },
            _ => self,
        }
    }

    /// Reads `20060102-150405`, with or without a fraction: other tools rotate by the second.
    fn parse(text: &str) -> Option<Stamp> {
        let (second, nanos) = text.split_once('.').unwrap_or((text, "0"));
        let (day, time) = second.split_once('-')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if day.len() != 8 || time.len() != 6 || !digits(day) || !digits(time) || !digits(nanos) {
            return None;
        }
        if nanos.len() > FRACTION {
            return None;
        }
        Some(Stamp {
            second: format!("{day}{time}").parse().ok()?,
            nanos: format!("{nanos:0<FRACTION$}").parse().ok()?,
        })
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (day, time) = (self.second / 1_000_000, self.second % 1_000_000);
        write!(f, "{day:08}-{time:06}.{:0FRACTION$}", self.nanos)
    }
}

/// A file that a log was renamed to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rotated {
    pub stamp: Stamp,
    pub path: PathBuf,
    /// It is compressed.
    pub packed: bool,
}

impl Rotated {
    /// With all that a crash may have left of packing it. What it was made of goes last: whatever is left when this fails
    /// is found again.
    fn remove(&self) -> io::Result<()> {
        let plain = if self.packed { self.path.with_extension("") } else { self.path.clone() };
        absent(fs::remove_file(unfinished_name(&plain)))?;
        absent(fs::remove_file(packed_name(&plain)))?;
        absent(fs::remove_file(plain))
    }
}

/// What is not there is removed.
pub(super) fn absent(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

const PACKED: &str = ".gz";

/// What a rotated file is called once it is packed.
pub(super) fn packed_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(PACKED);
    name.into()
}

/// The rotated files of a log, oldest first.
pub(super) fn rotated(path: &Path) -> io::Result<Vec<Rotated>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let other = entry?.file_name();
        let stamp = || {
            let stamp = other.to_str()?.strip_prefix(name.to_str()?)?.strip_prefix('.')?;
            let plain = stamp.strip_suffix(PACKED);
            Some((Stamp::parse(plain.unwrap_or(stamp))?, plain.is_some()))
        };
        if let Some((stamp, packed)) = stamp() {
            found.push(Rotated { stamp, path: dir.join(&other), packed });
        }
    }
    found.sort();
    // While it is packed a file is there twice: as it was, which sorts first, and packed.
    found.dedup_by_key(|file| file.stamp);
    Ok(found)
}

/// Renames a log that is full and removes the oldest files, so that with the one to be begun there are as many as may
/// be. Returns the log's new name.
///
/// # Errors
/// When it could not be renamed: nothing was removed then.
pub fn rotate(path: &Path, limits: LogLimits, now: SystemTime) -> io::Result<PathBuf> {
    let before = rotated(path)?;
    let stamp = Stamp::of(now).after(before.last().map(|last| last.stamp));
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{stamp}"));
    let renamed = PathBuf::from(name);
    fs::rename(path, &renamed)?;
    let keep = usize::try_from(limits.max_files).unwrap_or(usize::MAX).saturating_sub(2);
    for old in &before[..before.len().saturating_sub(keep)] {
        // The next rotation comes by here again.
        let _ = old.remove();
    }
    Ok(renamed)
}

/// Gives a renamed log its name back, unless there is a new one by now, which stays: whether it did.
///
/// # Errors
/// When that cannot be done for another reason.
pub fn put_back(renamed: &Path, path: &Path) -> io::Result<bool> {
    use rustix::{
        fs::{CWD, RenameFlags, renameat_with},
        io::Errno,
    };
    match renameat_with(CWD, renamed, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // A file system that does not know it: a second name is never given in the place of another file either.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::hard_link(renamed, path) {
            Ok(()) => fs::remove_file(renamed).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        },
        Err(error) => Err(error.into()),
    }
}

/// Shortens a log that nobody writes any more to its newest records: as many bytes as all its files may have.
///
/// # Errors
/// When a file cannot be read, or what is to stay of it written anew; nothing of that one is lost then.
pub fn trim(path: &Path, limits: LogLimits) -> io::Result<()> {
    let older = rotated(path)?;
    let mut room = limits.max_bytes.saturating_mul(u64::from(limits.max_files.max(1)));
    for rotated in [None].into_iter().chain(older.iter().rev().map(Some)) {
        let file = rotated.map_or(path, |rotated| &rotated.path);
        let bytes = match fs::metadata(file) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        match rotated {
            _ if bytes <= room => {}
            Some(rotated) if rotated.packed || room == 0 => rotated.remove()?,
            None if room == 0 => fs::remove_file(file)?,
            _ => cut(file, bytes - room)?,
        }
        room = room.saturating_sub(bytes);
    }
    Ok(())
}

/// Takes at least so many bytes from a file's beginning, up to the end of a record. Who reads it goes on reading.
fn cut(path: &Path, bytes: u64) -> io::Result<()> {
    let mut from = BufReader::new(File::open(path)?);
    // The byte before: the record may begin right here.
    from.seek(io::SeekFrom::Start(bytes.saturating_sub(1)))?;
    from.skip_until(b'\n')?;
    let mut name = path.as_os_str().to_owned();
    // No stamp, so it is no rotated file.
    name.push(".short");
    let short = PathBuf::from(name);
    let written = (|| {
        let mut to = File::create(&short)?;
        to.set_permissions(from.get_ref().metadata()?.permissions())?;
        io::copy(&mut from, &mut to)?;
        fs::rename(&short, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&short);
    }
    written
}

/// Removes a log with its rotated files. One that is not there is removed.
pub fn remove(path: &Path) -> io::Result<()> {
    for file in rotated(path)? {
        file.remove()?;
    }
    absent(fs::remove_file(path))
}

/// At most so many bytes from a log's end, rotated files included, and whether there are more before them.
pub fn last_bytes(path: &Path, bytes: u64) -> io::Result<(Vec<u8>, bool)> {
    let files = rotated(path)?.into_iter().map(|file| (file.path, file.packed));
    let files: Vec<(PathBuf, bool)> = files.chain([(path.to_owned(), false)]).collect();
    let mut tail = Vec::new();
    for (path, packed) in files.into_iter().rev() {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let room = bytes.saturating_sub(tail.len() as u64);
        if packed {
            let (mut part, cut) = pack::last_bytes(file, room)?;
            part.append(&mut tail);
            tail = part;
            if cut {
                return Ok((tail, true));
            }
            continue;
        }
        let skip = file.metadata()?.len().saturating_sub(room);
        file.seek(io::SeekFrom::Start(skip))?;
        let mut part = Vec::new();
        file.take(room).read_to_end(&mut part)?;
        part.append(&mut tail);
        tail = part;
        if skip > 0 {
            return Ok((tail, true));
        }
    }
    Ok((tail, false))
}

/// The file that a container's records go to. When someone moves it away, a new one is begun.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    limits: LogLimits,
    file: Option<File>,
    bytes: u64,
}

impl LogWriter {
    /// Opens for appending.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, limits: LogLimits) -> io::Result<LogWriter> {
        let mut log = LogWriter { path: path.to_owned(), limits, file: None, bytes: 0 };
        log.begin()?;
        Ok(log)
    }

    fn begin(&mut self) -> io::Result<()> {
        self.file = None;
        let file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.bytes = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    /// Appends whole records. What the disk does not take is lost: a container never waits for a log.
    pub fn write(&mut self, mut records: &[u8]) {
        let moved = match (&self.file, fs::metadata(&self.path)) {
            (Some(file), Ok(there)) => !file.metadata().is_ok_and(|own| file_id(&own) == file_id(&there)),
            _ => true,
        };
        if moved && self.begin().is_err() {
            return;
        }
        while !records.is_empty() {
            let mut take = whole(records, self.limits.max_bytes.saturating_sub(self.bytes));
            if take == 0 && self.bytes > 0 {
                if self.rotate().is_err() {
                    return;
                }
                take = whole(records, self.limits.max_bytes);
            }
            if take == 0 {
                take = records.iter().position(|byte| *byte == b'\n').map_or(records.len(), |at| at + 1);
            }
            let Some(file) = &mut self.file else { return };
            // Nobody could be told but the log itself.
            let _ = file.write_all(&records[..take]);
            self.bytes += take as u64;
            records = &records[take..];
        }
    }

    fn rotate(&mut self) -> io::Result<()> {
        if rotate(&self.path, self.limits, SystemTime::now()).is_err()
            && let Some(file) = &self.file
        {
            // Rather the past is lost than the disk filled.
            file.set_len(0)?;
        }
        self.begin()
    }
}

/// How many bytes of whole records fit into so many.
fn whole(records: &[u8], room: u64) -> usize {
    let room = usize::try_from(room).unwrap_or(usize::MAX);
    if records.len() <= room {
        return records.len();
    }
    records[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn names_sort_whatever_the_clock_does() {
        let time =
            |nanos: u64| SystemTime::UNIX_EPOCH + Duration::from_nanos(1_136_214_245_000_000_000 + nanos);
        assert_eq!(Stamp::of(time(1)).to_string(), "20060102-150405.000000001");
        let mut last = None;
        for nanos in [5, 5, 4, 0, 6, 1_000_000_000, 0] {
            let next = Stamp::of(time(nanos)).after(last);
            assert!(last.is_none_or(|last: Stamp| last < next && last.to_string() < next.to_string()));
            assert_eq!(Stamp::parse(&next.to_string()), Some(next));
            last = Some(next);
        }
        let end = Stamp { second: 20_060_102_150_405, nanos: 999_999_999 };
        assert!(Stamp::of(time(0)).after(Some(end)) > end);
        assert_eq!(Stamp::parse("20060102-150405"), Some(Stamp { second: 20_060_102_150_405, nanos: 0 }));
        for other in
            ["", "1", "20060102-150405.gz", "20060102-15040", "2006010-2150405", "20060102-150405.", "tmp"]
        {
            assert_eq!(Stamp::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_log_stays_within_its_limits_and_keeps_what_is_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        fs::write(dir.path().join("10.log"), "another's").unwrap();
        let limits = LogLimits { max_bytes: 100, max_files: 3 };
        let mut log = LogWriter::open(&path, limits).unwrap();
        let line = |number: u32| format!("{number:09}\n");
        log.write((0..25).map(line).collect::<String>().as_bytes());
        for number in 25..95 {
            log.write(line(number).as_bytes());
        }
        let files: Vec<PathBuf> =
            rotated(&path).unwrap().into_iter().map(|file| file.path).chain([path.clone()]).collect();
        assert_eq!(files.len(), 3);
        let texts: Vec<String> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        assert!(texts.iter().all(|text| text.len() <= 100));
        assert_eq!(texts.concat(), (70..95).map(line).collect::<String>());
        // One record is never cut, and a file that was moved away is begun anew.
        log.write(format!("{}\n", "x".repeat(300)).as_bytes());
        assert_eq!(fs::metadata(&path).unwrap().len(), 301);
        fs::rename(&path, dir.path().join("elsewhere")).unwrap();
        log.write(b"new\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        drop(log);
        LogWriter::open(&path, limits).unwrap().write(b"again\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\nagain\n");
        remove(&path).unwrap();
        remove(&path).unwrap();
        let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["10.log", "elsewhere"]);
    }

    #[test]
    fn a_log_gets_its_name_back_only_where_there_is_no_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let (renamed, path) = (dir.path().join("0.log.20060102-150405"), dir.path().join("0.log"));
        fs::write(&renamed, "old").unwrap();
        fs::write(&path, "new").unwrap();
        assert!(!put_back(&renamed, &path).unwrap());
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!((text(&renamed).as_str(), text(&path).as_str()), ("old", "new"));
        fs::remove_file(&path).unwrap();
        assert!(put_back(&renamed, &path).unwrap());
        assert!(text(&path) == "old" && !renamed.exists());
        assert!(put_back(&renamed, &path).is_err());
    }

    #[test]
    fn a_log_that_is_over_keeps_as_many_of_its_newest_records_as_there_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let limits = LogLimits { max_bytes: 100, max_files: 2 };
        let line = |number: u32| format!("{number:09}\n");
        let lines = |numbers: std::ops::Range<u32>| numbers.map(line).collect::<String>();
        let older = |second: u32| dir.path().join(format!("0.log.20060102-15040{second}"));
        let put = |path: &Path, numbers| fs::write(path, lines(numbers)).unwrap();
        let all = || {
            let files = rotated(&path).unwrap().into_iter().map(|file| file.path).chain([path.clone()]);
            files.map(|file| fs::read_to_string(file).unwrap()).collect::<Vec<_>>()
        };
        put(&older(1), 0..10);
        put(&older(2), 10..20);
        put(&path, 20..30);
        trim(&path, limits).unwrap();
        assert_eq!(all(), [lines(10..20), lines(20..30)]);
        // Within its limits nothing happens to it, beyond them it is cut between two records.
        trim(&path, limits).unwrap();
        assert_eq!(all(), [lines(10..20), lines(20..30)]);
        fs::write(&path, lines(20..35) + "x\n").unwrap();
        trim(&path, limits).unwrap();
        assert_eq!(all(), [lines(16..20), lines(20..35) + "x\n"]);
        put(&path, 0..50);
        trim(&path, limits).unwrap();
        assert_eq!(all(), [lines(30..50)]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        trim(&dir.path().join("none.log"), limits).unwrap();
    }
}
