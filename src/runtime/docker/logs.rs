//! Containers' output, from the engine into their log files in CRI's format.
//!
//! Owns: one follower for each container, its place in the engine's stream, and finding that place again after a restart.
//! Invariant: no line is lost or doubled over a restart of ours. Each stream's times only grow, and a record is written
//! with the engine's time: so the log itself tells where to go on. Limits: the engine keeps 64 MiB of a container's
//! output; a full disk loses lines rather than blocking the container.

use std::{
    fs::OpenOptions,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{container::LogOutput, query_parameters::LogsOptions};
use futures_util::{Stream, StreamExt as _};

use super::{driver::Driver, engine, labels::Container};
use crate::runtime::logs::{self, LogWriter, MAX_PART, encode, last_bytes};

/// Records written at once, when so many are there.
const BATCH: usize = 512;
/// How long further records are waited for: nobody who follows a log sees that, and a flood fills a batch meanwhile.
const MOMENT: Duration = Duration::from_millis(5);
/// Before the engine is asked again.
const PAUSE: Duration = Duration::from_millis(200);
/// How much later than another a record may be in the engine's log although its time is before it: the streams are
/// stamped and written by threads of their own.
const STRAGGLE_SECONDS: u64 = 5;
/// What is read of a log's end to find the place: many records of the longest kind.
const TAIL: u64 = 64 * MAX_PART as u64;

/// Follows a container that was just started.
pub(super) fn begin(driver: &Arc<Driver>, id: String, container: Container) {
    spawn(driver, id, container, false);
}

/// Goes on where an earlier process was.
pub(super) fn resume(driver: &Arc<Driver>, id: String, container: Container) {
    spawn(driver, id, container, true);
}

fn spawn(driver: &Arc<Driver>, id: String, container: Container, resume: bool) {
    let driver = Arc::clone(driver);
    driver.ends.log_begins(&id);
    tokio::spawn(async move {
        if let Err(error) = follow(&driver, &id, &container, resume).await {
            tracing::warn!(container = %id, log = %container.log.display(), %error, "its output is not logged any more");
        }
        driver.ends.log_ended(&id);
    });
}

async fn follow(driver: &Driver, id: &str, container: &Container, resume: bool) -> io::Result<()> {
    let path = &container.log;
    if resume && !path.parent().is_some_and(Path::exists) {
        // Its pod's directory is gone: nobody wants to read it.
        return Ok(());
    }
    let (of, limits) = (path.clone(), container.log_limits);
    let (mut log, mut place) = blocking(move || {
        let place = if resume { Place::find(&of)? } else { Place::default() };
        Ok((LogWriter::open(&of, limits)?, place))
    })
    .await?;
    // A stream that is followed may end before the last words: the engine writes a line without an end when its program
    // is gone, and hangs up at that. So what an ended container left is asked for once more, by then being there.
    let mut ended = false;
    loop {
        // That is not much, most often nothing, and the engine has better to do when containers end.
        if ended && !driver.ends.last_look(id).await {
            return Ok(());
        }
        let since = if ended { place.since_all() } else { place.since() };
        let options = LogsOptions {
            follow: !ended,
            stdout: true,
            stderr: true,
            timestamps: true,
            since: i32::try_from(since).unwrap_or(0),
            ..LogsOptions::default()
        };
        let mut resumed = place.clone();
        let mut outputs = std::pin::pin!(driver.docker.logs(id, Some(options)).fuse());
        let mut broken = None;
        loop {
            let batch = gather(&mut outputs).await;
            if batch.is_empty() {
                break;
            }
            let mut out = Vec::new();
            for output in batch {
                let output = match output {
                    Ok(output) => output,
                    Err(error) => {
                        broken = Some(error);
                        continue;
                    }
                };
                let Some(record) = record(&output).filter(|record| resumed.is_new(record)) else { continue };
                place.pass(&record);
                encode(&mut out, record.time, record.stream, record.full, record.content);
            }
            log = blocking(move || {
                log.write(&out);
                Ok(log)
            })
            .await?;
        }
        if broken.is_none() && !ended {
            // The engine tells the end in a moment: nothing is asked that is told.
            driver.ends.told_within(id, PAUSE).await;
        }
        match broken {
            Some(error) if engine::is_absent(&error) => return Ok(()),
            // Told to the end of a container that has ended.
            None if ended => return Ok(()),
            None if !driver.ends.is_expected(id) => {
                ended = true;
                continue;
            }
            _ => {}
        }
        match (broken, driver.inspect(id).await) {
            (None, Ok(found)) => {
                let running = found.and_then(|found| found.state).and_then(|state| state.running);
                if running != Some(true) {
                    ended = true;
                    continue;
                }
            }
            (Some(_), Ok(None)) => return Ok(()),
            (_, _) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is written at once: the next that comes, and what follows it within a moment. The engine hands out each line by
/// itself, and to have a thread write each would cost many times what reading them does. Nothing: the stream has ended.
async fn gather<T>(outputs: &mut (impl Stream<Item = T> + Unpin)) -> Vec<T> {
    let mut batch = Vec::from_iter(outputs.next().await);
    let mut moment = std::pin::pin!(tokio::time::sleep(MOMENT));
    while !batch.is_empty() && batch.len() < BATCH {
        tokio::select! {
            biased;
            next = outputs.next() => match next {
                Some(output) => batch.push(output),
                None => break,
            },
            () = &mut moment => break,
        }
    }
    batch
}

/// Files are written by the blocking threads: a slow disk must not hold up the driver.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// A line, or a part of one, as the engine gives it out.
struct Record<'a> {
    time: SystemTime,
    stream: logs::Stream,
    full: bool,
    content: &'a [u8],
}

/// Takes `TIME CONTENT` apart; a part of a line has no line feed. `None` when it has not that form.
fn record(output: &LogOutput) -> Option<Record<'_>> {
    let (stream, bytes) = match output {
        LogOutput::StdErr { message } => (logs::Stream::Stderr, message),
        // A terminal has one stream.
        LogOutput::StdOut { message } | LogOutput::Console { message } => (logs::Stream::Stdout, message),
        LogOutput::StdIn { .. } => return None,
    };
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let time = humantime::parse_rfc3339(std::str::from_utf8(&bytes[..space]).ok()?).ok()?;
    let content = &bytes[space + 1..];
    let line = content.strip_suffix(b"\n");
    Some(Record { time, stream, full: line.is_some(), content: line.unwrap_or(content) })
}

/// How far each stream is written.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
struct Place {
    /// For [`logs::Stream::Stdout`], then [`logs::Stream::Stderr`]: the last record's time, and how many records have it.
    last: [Option<(SystemTime, u32)>; 2],
}

impl Place {
    fn of(&mut self, stream: logs::Stream) -> &mut Option<(SystemTime, u32)> {
        &mut self.last[usize::from(stream == logs::Stream::Stderr)]
    }

    /// Notes a record as written.
    fn pass(&mut self, record: &Record<'_>) {
        let last = self.of(record.stream);
        *last = match *last {
            Some((time, count)) if time == record.time => Some((time, count + 1)),
            _ => Some((record.time, 1)),
        };
    }

    /// Whether a record comes after this place. Asked in the stream's order: it counts those of the last time.
    fn is_new(&mut self, record: &Record<'_>) -> bool {
        match self.of(record.stream) {
            Some((time, _)) if record.time < *time => false,
            Some((time, count)) if record.time == *time && *count > 0 => {
                *count -= 1;
                false
            }
            _ => true,
        }
    }

    /// The second from which both streams have to be read again.
    fn since(&self) -> u64 {
        let seconds = |last: &Option<(SystemTime, u32)>| {
            last.and_then(|(time, _)| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
        };
        self.last.iter().map(seconds).min().unwrap_or(0)
    }

    /// The same where all before this place was read in the engine's own order, so that a silent stream has nothing there.
    fn since_all(&self) -> u64 {
        let last = self.last.iter().flatten().map(|(time, _)| *time).max();
        let age = last.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        age.map_or(0, |age| age.as_secs().saturating_sub(STRAGGLE_SECONDS))
    }

    /// The place that a log is written to; cuts off a record that a crash left incomplete.
    fn find(path: &Path) -> io::Result<Place> {
        let (tail, cut) = last_bytes(path, TAIL)?;
        let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let incomplete = (tail.len() - whole) as u64;
        if incomplete > 0 && (whole > 0 || !cut) {
            let log = OpenOptions::new().write(true).open(path)?;
            // Only the file being written has such a record.
            log.set_len(log.metadata()?.len().saturating_sub(incomplete))?;
        }
        // The first line of a part of a file may be half of one.
        let first = if cut { tail.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1) } else { 0 };
        Ok(Place::read(&tail[first.min(whole)..whole], cut))
    }

    /// The place after these records. `cut`: others came before them, so that a stream with none here is taken to be
    /// as far as the first one.
    fn read(records: &[u8], cut: bool) -> Place {
        let mut place = Place::default();
        let mut first = None;
        for line in records.split(|byte| *byte == b'\n') {
            let mut words = line.splitn(3, |byte| *byte == b' ');
            let time =
                words.next().and_then(|word| humantime::parse_rfc3339(std::str::from_utf8(word).ok()?).ok());
            let stream = match words.next() {
                Some(b"stdout") => logs::Stream::Stdout,
                Some(b"stderr") => logs::Stream::Stderr,
                _ => continue,
            };
            let Some(time) = time else { continue };
            first.get_or_insert(time);
            place.pass(&Record { time, stream, full: true, content: &[] });
        }
        if cut {
            for last in &mut place.last {
                *last = last.or(first.map(|time| (time, 0)));
            }
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &str) -> LogOutput {
        LogOutput::StdOut { message: bytes::Bytes::copy_from_slice(text.as_bytes()) }
    }

    fn err(text: &str) -> LogOutput {
        LogOutput::StdErr { message: bytes::Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[tokio::test(start_paused = true)]
    async fn lines_that_come_one_by_one_are_written_many_at_a_time() {
        // Between two lines the stream has to be waited for, as that of an engine.
        let lines = futures_util::stream::unfold(0, |line| async move {
            tokio::task::yield_now().await;
            (line < 2 * BATCH + 3).then_some((line, line + 1))
        });
        let mut lines = std::pin::pin!(lines.fuse());
        let mut sizes = Vec::new();
        loop {
            match gather(&mut lines).await.len() {
                0 => break,
                size => sizes.push(size),
            }
        }
        assert_eq!(sizes, [BATCH, BATCH, 3]);
        // One that is followed by nothing waits for a moment only.
        let begun = tokio::time::Instant::now();
        let once = futures_util::stream::once(async { 1 }).chain(futures_util::stream::pending());
        assert_eq!(gather(&mut std::pin::pin!(once)).await, [1]);
        assert!(begun.elapsed() <= MOMENT * 2);
    }

    #[test]
    fn lines_and_parts_are_told_apart() {
        let line = out("2024-05-06T07:08:09.000000001Z a b\n");
        let taken = record(&line).unwrap();
        assert_eq!((taken.content, taken.full, taken.stream), (&b"a b"[..], true, logs::Stream::Stdout));
        let part = err("2024-05-06T07:08:09.000000001Z part");
        let taken = record(&part).unwrap();
        assert_eq!((taken.content, taken.full, taken.stream), (&b"part"[..], false, logs::Stream::Stderr));
        for bad in ["", "now x\n", "2024"] {
            assert!(record(&out(bad)).is_none(), "{bad}");
        }
    }

    /// What a follower writes when it resumes after `written` and is given all of `stream` again.
    fn resumed(written: &[LogOutput], stream: &[LogOutput]) -> Vec<String> {
        let mut log = Vec::new();
        for output in written {
            let record = record(output).unwrap();
            encode(&mut log, record.time, record.stream, record.full, record.content);
        }
        let mut place = Place::read(&log, false);
        let new = stream.iter().filter(|output| place.is_new(&record(output).unwrap()));
        new.map(|output| String::from_utf8_lossy(record(output).unwrap().content).into_owned()).collect()
    }

    #[test]
    fn a_resumed_log_loses_and_doubles_nothing() {
        let (one, two) = ("2024-05-06T07:08:09.000000001Z", "2024-05-06T07:08:09.000000002Z");
        let stream = [
            out(&format!("{two} a\n")),
            // The streams' times are not ordered among each other.
            err(&format!("{one} b\n")),
            // And one time may be several records'.
            out(&format!("{two} c\n")),
            out(&format!("{two} d\n")),
            err(&format!("{two} e\n")),
        ];
        let all = ["a", "b", "c", "d", "e"];
        for written in 0..=stream.len() {
            assert_eq!(resumed(&stream[..written], &stream), all[written..], "after {written}");
        }
    }

    #[test]
    fn what_an_ended_container_left_is_looked_for_at_the_end_alone() {
        assert_eq!(Place::default().since_all(), 0);
        let place = Place::read(b"1970-01-01T01:00:00.000000001Z stdout F a\n", false);
        assert_eq!((place.since(), place.since_all()), (0, 3600 - STRAGGLE_SECONDS));
    }

    #[test]
    fn a_record_cut_by_a_crash_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "2024-05-06T07:08:09.000000001Z stdout F a\n2024-05-06T07:08:09.0000").unwrap();
        let place = Place::find(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "2024-05-06T07:08:09.000000001Z stdout F a\n");
        assert!(place.last[0].is_some() && place.last[1].is_none());
        assert_eq!(Place::find(&path).unwrap(), place);
        // Right after a rotation the place is in the file before.
        crate::runtime::logs::rotate(&path, Default::default(), SystemTime::now()).unwrap();
        std::fs::write(&path, "").unwrap();
        assert_eq!(Place::find(&path).unwrap(), place);
    }

    #[test]
    fn a_stream_that_is_silent_in_the_tail_goes_on_from_its_beginning() {
        let record = b"2024-05-06T07:08:09.000000001Z stdout F a\n";
        assert!(Place::read(record, false).last[1].is_none());
        let silent = Place::read(record, true).last[1].unwrap();
        assert_eq!((silent.0, silent.1), (Place::read(record, true).last[0].unwrap().0, 0));
    }
}
