//! Container logs in the CRI's format: lines are framed here, and read back for `logs`.
//!
//! Owns: [`encode`] and [`read`]. The format is `TIME stdout|stderr F|P CONTENT`, one a line; `P` parts are joined to
//! the next of their stream. Invariants: reading and following lose and double no line over a rotation
//! ([`chain`]); following ends only after the container did and the file is drained. A line that is damaged (cut
//! by a crash) is given out as it is. Which file belongs to which life of a container is the caller's affair.

mod chain;
mod rotate;

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime},
};

use rustix::fs::inotify;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    net::unix::pipe,
    sync::watch,
};

use self::chain::{Chain, Next};
pub use self::rotate::{LogLimits, LogWriter, last_bytes, put_back, remove, rotate, trim};

/// Largest content of one framed line: the kubelet's and containerd's own, so that readers elsewhere cope.
pub const MAX_PART: usize = 16 * 1024;
/// Longest framed line that is read: content, time and tags. Longer ones, which nobody writes, are cut in pieces.
const MAX_FRAME: usize = MAX_PART + 256;
/// So much is written at once: each write is a frame's worth of work for whoever sends it on.
const WRITE_BYTES: usize = 32 * 1024;
/// How often a followed file is looked at although nothing was heard: inotify may be missing (its limits are a user's)
/// or overflow.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Where a line was printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// What of a log is wanted: the fields of Kubernetes' `PodLogOptions`.
#[derive(Clone, Debug, Default)]
pub struct LogOptions {
    /// Go on until the container ends.
    pub follow: bool,
    /// Only this many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<SystemTime>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// Each line begins with its time.
    pub timestamps: bool,
    /// Only one stream's lines.
    pub stream: Option<Stream>,
}

/// Appends a framed line to a buffer; `full` is false when the line goes on in the next one. Line feeds within the
/// content would break the frame: the caller splits there. Content beyond [`MAX_PART`] is split here.
pub fn encode(out: &mut Vec<u8>, time: SystemTime, stream: Stream, full: bool, content: &[u8]) {
    let time = humantime::format_rfc3339_nanos(time).to_string();
    let mut parts = content.chunks(MAX_PART).peekable();
    loop {
        let part = parts.next().unwrap_or_default();
        let last = parts.peek().is_none();
        out.extend_from_slice(time.as_bytes());
        out.push(b' ');
        out.extend_from_slice(stream.as_str().as_bytes());
        out.extend_from_slice(if last && full { b" F " } else { b" P " });
        out.extend_from_slice(part);
        out.push(b'\n');
        if last {
            return;
        }
    }
}

/// A framed line, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Frame<'a> {
    time: &'a str,
    stream: Stream,
    full: bool,
    content: &'a [u8],
}

/// Takes a line (without its line feed) apart; `None` when it has not the format.
fn decode(line: &[u8]) -> Option<Frame<'_>> {
    let mut words = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(words.next()?).ok()?;
    let stream = match words.next()? {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // Further tags may follow the first after a colon.
    let full = match words.next()?.split(|b| *b == b':').next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Frame { time, stream, full, content: words.next()? })
}

/// Writes what is wanted of a log. `running` tells whether the container still runs; its sender may be dropped to say
/// that it ended. A file that does not exist (yet) is an empty log.
pub async fn read(
    path: &Path,
    options: LogOptions,
    writer: impl AsyncWrite + Unpin,
    mut running: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut out = Out::new(writer, &options);
    let watcher = if options.follow { Watcher::new(path) } else { None };
    let mut log = Chain::open(path, options.tail_lines, options.since).await?;
    loop {
        // Asked before reading: what was printed before the end is then found below.
        let ended = !*running.borrow() || running.has_changed().is_err();
        while let Some(line) = log.next_line().await? {
            if !out.line(&line).await? {
                return out.finish().await;
            }
        }
        match log.go_on(!options.follow).await? {
            Next::Nothing => {}
            Next::More => continue,
            Next::Other(line) => {
                out.rest(&line).await?;
                continue;
            }
        }
        if ended {
            out.rest(&log.line).await?;
        }
        if ended || !options.follow {
            return out.finish().await;
        }
        out.flush().await?;
        tokio::select! {
            () = changed(watcher.as_ref()) => {}
            _ = running.changed() => {}
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

async fn changed(watcher: Option<&Watcher>) {
    match watcher {
        Some(watcher) => watcher.changed().await,
        None => std::future::pending().await,
    }
}

/// Where lines go: filtered, unframed, counted.
struct Out<W> {
    writer: W,
    /// What is not written yet.
    buffer: Vec<u8>,
    since: Option<SystemTime>,
    stream: Option<Stream>,
    timestamps: bool,
    left: Option<u64>,
    /// By stream: whether the last part was not the line's end.
    continued: [bool; 2],
}

impl<W: AsyncWrite + Unpin> Out<W> {
    fn new(writer: W, options: &LogOptions) -> Out<W> {
        Out {
            writer,
            buffer: Vec::new(),
            since: options.since,
            stream: options.stream,
            timestamps: options.timestamps,
            left: options.limit_bytes,
            continued: [false; 2],
        }
    }

    /// Puts out a framed line; false when no more is wanted.
    async fn line(&mut self, line: &[u8]) -> io::Result<bool> {
        let Some(frame) = decode(line) else {
            return Ok(self.put(line).await? && self.put(b"\n").await?);
        };
        if self.stream.is_some_and(|stream| stream != frame.stream) || self.is_too_old(&frame) {
            return Ok(true);
        }
        let continued = std::mem::replace(&mut self.continued[frame.stream as usize], !frame.full);
        if self.timestamps
            && !continued
            && !(self.put(frame.time.as_bytes()).await? && self.put(b" ").await?)
        {
            return Ok(false);
        }
        Ok(self.put(frame.content).await? && (!frame.full || self.put(b"\n").await?))
    }

    fn is_too_old(&self, frame: &Frame<'_>) -> bool {
        self.since.is_some_and(|since| humantime::parse_rfc3339(frame.time).is_ok_and(|time| time < since))
    }

    /// Writes bytes as far as the limit allows; false when it is reached.
    async fn put(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let room = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let take = bytes.len().min(room);
        self.buffer.extend_from_slice(&bytes[..take]);
        if self.buffer.len() >= WRITE_BYTES {
            self.write().await?;
            // Who has a flood to read must not keep its thread from the others on it.
            tokio::task::yield_now().await;
        }
        let Some(left) = &mut self.left else { return Ok(true) };
        *left -= take as u64;
        Ok(*left > 0)
    }

    async fn write(&mut self) -> io::Result<()> {
        self.writer.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }

    /// Puts out what is left of a line that will never be finished.
    async fn rest(&mut self, line: &[u8]) -> io::Result<()> {
        if !line.is_empty() {
            self.line(line).await?;
        }
        Ok(())
    }

    async fn flush(&mut self) -> io::Result<()> {
        self.write().await?;
        self.writer.flush().await
    }

    async fn finish(mut self) -> io::Result<()> {
        self.write().await?;
        self.writer.shutdown().await
    }
}

/// Hears of changes to a file and to its name.
struct Watcher {
    /// Inotify's descriptor reads as a pipe does, and tokio's type for pipes is its safe way to wait for one.
    inotify: pipe::Receiver,
}

impl Watcher {
    /// `None` when the system has no more of them: the reader then looks at intervals.
    fn new(path: &Path) -> Option<Watcher> {
        use inotify::{CreateFlags, WatchFlags};
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).ok()?;
        // The directory tells of writes to the file as well as of another file under its name.
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, path.parent()?, flags).ok()?;
        Some(Watcher { inotify: pipe::Receiver::from_file_unchecked(fd.into()).ok()? })
    }

    async fn changed(&self) {
        let mut buf = [0; 4096];
        // What changed does not matter: the file is looked at anyway.
        match self.inotify.readable().await {
            Ok(()) => while self.inotify.try_read(&mut buf).is_ok_and(|n| n > 0) {},
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, path::PathBuf};

    use proptest::prelude::*;
    use tempfile::TempDir;
    use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, DuplexStream, duplex};

    use super::*;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn append(path: &Path, stream: Stream, full: bool, at: u64, content: &str) {
        let mut bytes = Vec::new();
        encode(&mut bytes, time(at), stream, full, content.as_bytes());
        fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(&bytes).unwrap();
    }

    async fn read_all(path: &Path, options: LogOptions) -> String {
        let mut out = Vec::new();
        let (_tx, ended) = watch::channel(false);
        read(path, options, &mut out, ended).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    fn sample() -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("0.log");
        append(&path, Stream::Stdout, true, 1, "one");
        append(&path, Stream::Stderr, true, 2, "two");
        append(&path, Stream::Stdout, false, 3, "thr");
        append(&path, Stream::Stdout, true, 4, "ee");
        append(&path, Stream::Stdout, true, 5, "");
        (dir, path)
    }

    #[tokio::test]
    async fn options_choose_what_is_given_out() {
        let (_dir, path) = sample();
        let rows = [
            (LogOptions::default(), "one\ntwo\nthree\n\n"),
            (LogOptions { tail_lines: Some(0), ..LogOptions::default() }, ""),
            (LogOptions { tail_lines: Some(1), ..LogOptions::default() }, "\n"),
            (LogOptions { tail_lines: Some(2), ..LogOptions::default() }, "three\n\n"),
            (LogOptions { tail_lines: Some(3), ..LogOptions::default() }, "two\nthree\n\n"),
            (LogOptions { tail_lines: Some(4), ..LogOptions::default() }, "one\ntwo\nthree\n\n"),
            (LogOptions { tail_lines: Some(9), ..LogOptions::default() }, "one\ntwo\nthree\n\n"),
            (LogOptions { since: Some(time(2)), ..LogOptions::default() }, "two\nthree\n\n"),
            (LogOptions { limit_bytes: Some(5), ..LogOptions::default() }, "one\nt"),
            (LogOptions { limit_bytes: Some(0), ..LogOptions::default() }, ""),
            (LogOptions { stream: Some(Stream::Stderr), ..LogOptions::default() }, "two\n"),
            (
                LogOptions { timestamps: true, tail_lines: Some(2), ..LogOptions::default() },
                "1970-01-01T00:00:03.000000000Z three\n1970-01-01T00:00:05.000000000Z \n",
            ),
        ];
        for (options, expected) in rows {
            assert_eq!(read_all(&path, options.clone()).await, expected, "{options:?}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_an_empty_log() {
        let dir = TempDir::new().unwrap();
        assert_eq!(read_all(&dir.path().join("none"), LogOptions::default()).await, "");
    }

    #[tokio::test]
    async fn damaged_lines_are_given_out_as_they_are() {
        let (_dir, path) = sample();
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(b"damaged\n\xff\xfe\ncut")
            .unwrap();
        let mut out = Vec::new();
        let (_tx, ended) = watch::channel(false);
        read(&path, LogOptions { tail_lines: Some(3), ..LogOptions::default() }, &mut out, ended)
            .await
            .unwrap();
        assert_eq!(out, b"damaged\n\xff\xfe\ncut\n");
    }

    #[tokio::test]
    async fn tails_reach_over_blocks() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        let long = "x".repeat(MAX_PART * 3 + 5);
        for at in 0..40 {
            append(&path, Stream::Stdout, true, at, &format!("{at} {long}"));
        }
        for lines in [1, 2, 13, 39, 40, 41] {
            let text = read_all(&path, LogOptions { tail_lines: Some(lines), ..LogOptions::default() }).await;
            let expected = lines.min(40) as usize;
            assert_eq!(text.lines().count(), expected, "{lines}");
            assert!(text.starts_with(&format!("{} {long}\n", 40 - expected)), "{lines}");
        }
    }

    /// A log that is being followed.
    struct Following {
        reader: BufReader<DuplexStream>,
        running: watch::Sender<bool>,
        done: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl Following {
        fn start(path: &Path, tail_lines: Option<u64>) -> Following {
            let (ours, theirs) = duplex(1 << 16);
            let (running, receiver) = watch::channel(true);
            let path = path.to_owned();
            let options = LogOptions { follow: true, tail_lines, ..LogOptions::default() };
            let done = tokio::spawn(async move { read(&path, options, theirs, receiver).await });
            Following { reader: BufReader::new(ours), running, done }
        }

        async fn next(&mut self) -> String {
            let mut line = String::new();
            let reading = self.reader.read_line(&mut line);
            tokio::time::timeout(Duration::from_secs(20), reading).await.unwrap().unwrap();
            line
        }

        async fn end(mut self) -> String {
            self.running.send(false).unwrap();
            let mut rest = String::new();
            self.reader.read_to_string(&mut rest).await.unwrap();
            self.done.await.unwrap().unwrap();
            rest
        }
    }

    #[tokio::test]
    async fn following_begins_before_the_file_and_ends_with_the_container_after_the_last_line() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        let mut log = Following::start(&path, None);
        append(&path, Stream::Stdout, true, 1, "first");
        assert_eq!(log.next().await, "first\n");
        append(&path, Stream::Stdout, true, 2, "second");
        assert_eq!(log.next().await, "second\n");
        append(&path, Stream::Stdout, true, 3, "last words");
        assert_eq!(log.end().await, "last words\n");
    }

    #[tokio::test]
    async fn following_loses_nothing_over_rotation_and_truncation() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("log");
        append(&path, Stream::Stdout, true, 1, "old");
        append(&path, Stream::Stdout, true, 1, "old 2");
        let mut log = Following::start(&path, Some(1));
        assert_eq!(log.next().await, "old 2\n");
        append(&path, Stream::Stdout, true, 2, "late");
        fs::rename(&path, dir.path().join("log.1")).unwrap();
        append(&dir.path().join("log.1"), Stream::Stdout, true, 2, "later");
        append(&path, Stream::Stdout, true, 3, "new");
        for line in ["late\n", "later\n", "new\n"] {
            assert_eq!(log.next().await, line);
        }
        fs::write(&path, "").unwrap();
        append(&path, Stream::Stdout, true, 4, "x");
        assert_eq!(log.next().await, "x\n");
        assert_eq!(log.end().await, "");
    }

    #[tokio::test]
    async fn following_a_flood_loses_and_doubles_no_line_however_often_it_is_rotated() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("0.log");
        let limits = LogLimits { max_bytes: 4096, max_files: 100_000 };
        let mut writer = LogWriter::open(&path, limits).unwrap();
        let mut log = Following::start(&path, None);
        let flood = std::thread::spawn(move || {
            for number in 0..5_000_u64 {
                let mut record = Vec::new();
                // Every other line in two parts, between which a rotation may come.
                let text = format!("line {number}");
                if number.is_multiple_of(2) {
                    encode(&mut record, time(number), Stream::Stdout, false, text.as_bytes());
                    writer.write(&std::mem::take(&mut record));
                    encode(&mut record, time(number), Stream::Stdout, true, b"!");
                } else {
                    encode(&mut record, time(number), Stream::Stdout, true, text.as_bytes());
                }
                writer.write(&record);
            }
        });
        let line =
            |number: u64| format!("line {number}{}\n", if number.is_multiple_of(2) { "!" } else { "" });
        for number in 0..5_000 {
            assert_eq!(log.next().await, line(number));
        }
        flood.join().unwrap();
        assert_eq!(log.end().await, "");
        assert!(rotate::rotated(&path).unwrap().len() > 40);
        // And what is read afterwards is the same.
        assert_eq!(read_all(&path, LogOptions::default()).await, (0..5_000).map(line).collect::<String>());
    }

    #[tokio::test]
    async fn a_reader_that_is_overtaken_goes_on_with_what_is_left() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("0.log");
        let mut writer = LogWriter::open(&path, LogLimits { max_bytes: 100, max_files: 2 }).unwrap();
        let write = |writer: &mut LogWriter, text: &str| {
            let mut record = Vec::new();
            encode(&mut record, time(1), Stream::Stdout, true, text.as_bytes());
            writer.write(&record);
        };
        write(&mut writer, "first");
        let mut chain = Chain::open(&path, None, None).await.unwrap();
        assert!(chain.next_line().await.unwrap().is_some());
        for number in 0..20 {
            write(&mut writer, &number.to_string());
        }
        let mut left = Vec::new();
        loop {
            while let Some(line) = chain.next_line().await.unwrap() {
                let frame = decode(&line).unwrap();
                left.push(String::from_utf8_lossy(frame.content).parse::<u32>().unwrap());
            }
            if chain.go_on(false).await.unwrap() == Next::Nothing {
                break;
            }
        }
        assert!(left.is_sorted() && left.windows(2).all(|two| two[0] != two[1]), "{left:?}");
        assert!(left.ends_with(&[17, 18, 19]), "{left:?}");
    }

    #[tokio::test]
    async fn following_ends_when_nobody_knows_the_container_any_more() {
        let (_dir, path) = sample();
        let Following { running, done, .. } = Following::start(&path, Some(0));
        drop(running);
        done.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn following_ends_when_the_reader_leaves() {
        let (_dir, path) = sample();
        let Following { reader, running, done } = Following::start(&path, None);
        drop(reader);
        assert!(done.await.unwrap().is_err());
        drop(running);
    }

    proptest! {
        #[test]
        fn framing_round_trips(
            lines in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40), 0..4_usize), 0..8)
        ) {
            let (mut framed, mut expected) = (Vec::new(), [Vec::new(), Vec::new()]);
            for (is_err, line, repeat) in lines {
                let line: Vec<u8> = line.iter().map(|b| if *b == b'\n' { 0 } else { *b }).collect();
                let line = line.repeat(repeat * 500 + 1);
                let stream = if is_err { Stream::Stderr } else { Stream::Stdout };
                encode(&mut framed, time(1), stream, true, &line);
                expected[stream as usize].extend(line);
                expected[stream as usize].push(b'\n');
            }
            let mut found = [Vec::new(), Vec::new()];
            for line in framed.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let frame = decode(line).unwrap();
                prop_assert!(frame.content.len() <= MAX_PART);
                found[frame.stream as usize].extend(frame.content);
                if frame.full {
                    found[frame.stream as usize].push(b'\n');
                }
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn whatever_is_rotated_when_the_end_of_a_log_is_found_and_read_on_from(
            steps in proptest::collection::vec((0..6_u8, any::<bool>()), 0..40), tail in 0..12_u64, since in 0..40_u64,
        ) {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("0.log");
            let mut lines: Vec<String> = Vec::new();
            let mut open = false;
            for (at, (step, full)) in steps.into_iter().enumerate() {
                if step == 0 && path.exists() {
                    rotate(&path, LogLimits { max_bytes: 1, max_files: 1000 }, time(1)).unwrap();
                } else {
                    append(&path, Stream::Stdout, full, 0, &format!("<{at}>"));
                    if !open {
                        lines.push(String::new());
                    }
                    lines.last_mut().unwrap().push_str(&format!("<{at}>"));
                    open = !full;
                }
            }
            if open {
                append(&path, Stream::Stdout, true, 0, "end");
                lines.last_mut().unwrap().push_str("end");
            }
            let all: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let last: String =
                lines.iter().skip(lines.len().saturating_sub(tail as usize)).map(|line| format!("{line}\n")).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let read = |options| read_all(&path, options);
                assert_eq!(read(LogOptions::default()).await, all);
                assert_eq!(read(LogOptions { tail_lines: Some(tail), ..LogOptions::default() }).await, last);
                let since = Some(time(since));
                let expected = if since == Some(time(0)) { &*all } else { "" };
                assert_eq!(read(LogOptions { since, ..LogOptions::default() }).await, expected);
            });
        }

        #[test]
        fn decoding_never_panics(line in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&line);
        }
    }
}
