//! Reading a log for a user: chosen lines, unframed, followed as long as the container runs.
//!
//! Owns: [`read`]. Invariants: reading and following lose and double no line over a rotation ([`Chain`]); following ends
//! only after the container did and the file is drained. A line that is damaged (cut by a crash) is given out as it is.

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

use super::{
    Frame, LogOptions, Stream,
    chain::{Chain, Next, ends_line},
    decode,
};

/// So much is written at once: each write is a frame's worth of work for whoever sends it on.
const WRITE_BYTES: usize = 32 * 1024;
/// How often a followed file is looked at although nothing was heard: inotify may be missing (its limits are a user's)
/// or overflow.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

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
    // The last lines are those of the beginning: what is printed meanwhile is for who follows. Else a flood had no end.
    let mut wanted = Wanted(options.tail_lines.filter(|_| !options.follow));
    if wanted.is_over() {
        return out.finish().await;
    }
    loop {
        // Asked before reading: what was printed before the end is then found below.
        let ended = !*running.borrow() || running.has_changed().is_err();
        while let Some(line) = log.next_line().await? {
            if !out.line(&line).await? || wanted.had(&line) {
                return out.finish().await;
            }
        }
        match log.go_on(!options.follow).await? {
            Next::Nothing => {}
            Next::More => continue,
            Next::Other(line) => {
                out.rest(&line).await?;
                if wanted.had(&line) {
                    return out.finish().await;
                }
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

/// How many lines are still to be read, as [`Chain::open`] counted them; `None`: all.
struct Wanted(Option<u64>);

impl Wanted {
    fn is_over(&self) -> bool {
        self.0 == Some(0)
    }

    /// Counts what was read; tells whether it was the last.
    fn had(&mut self, line: &[u8]) -> bool {
        if let Some(left) = &mut self.0 {
            *left = left.saturating_sub(u64::from(ends_line(line)));
        }
        self.is_over()
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
