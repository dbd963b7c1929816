//! The whole of it: what is written, rotated and packed is what is read.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, DuplexStream, duplex},
    sync::watch,
};

use super::{
    chain::{Chain, Next},
    *,
};

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
async fn what_is_there_of_a_line_without_an_end_is_the_last_line() {
    for content in ["end".to_owned(), "x".repeat(MAX_PART * 2 + 5)] {
        let (_dir, path) = sample();
        append(&path, Stream::Stdout, false, 6, &content);
        for (lines, expected) in [(0, ""), (1, ""), (2, "\n"), (3, "three\n\n"), (9, "one\ntwo\nthree\n\n")] {
            let text = read_all(&path, LogOptions { tail_lines: Some(lines), ..LogOptions::default() }).await;
            let last = if lines == 0 { "" } else { &content };
            assert!(text == format!("{expected}{last}"), "{lines}: {:?}", text.get(..40));
        }
        // It may be all that a new file has.
        rotate(&path, LogLimits::default(), time(7)).unwrap();
        append(&path, Stream::Stdout, true, 8, "");
        let text = read_all(&path, LogOptions { tail_lines: Some(2), ..LogOptions::default() }).await;
        assert!(text == format!("\n{content}\n"), "{:?}", text.get(..40));
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
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"damaged\n\xff\xfe\ncut").unwrap();
    let mut out = Vec::new();
    let (_tx, ended) = watch::channel(false);
    read(&path, LogOptions { tail_lines: Some(3), ..LogOptions::default() }, &mut out, ended).await.unwrap();
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

#[tokio::test]
async fn the_last_lines_are_no_more_than_were_asked_for_however_much_is_written_meanwhile() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("log");
    let long = "x".repeat(MAX_PART - 8);
    let write = |name: &str, from: u64, many: u64| {
        for at in from..from + many {
            append(&path, Stream::Stdout, true, at, &format!("{name} {at} {long}"));
        }
    };
    write("before", 0, 5);
    // In two files.
    rotate(&path, LogLimits::default(), time(7)).unwrap();
    write("before", 5, 1);
    for (wanted, first) in [(0, None), (1, Some("before 5 ")), (3, Some("before 3 "))] {
        // It reads on when what it has found is taken.
        let (mut ours, theirs) = duplex(64);
        let (_running, receiver) = watch::channel(true);
        let options = LogOptions { tail_lines: Some(wanted), ..LogOptions::default() };
        let (path, write) = (path.clone(), &write);
        let done = tokio::spawn(async move { read(&path, options, theirs, receiver).await });
        let mut text = vec![0; 9 * usize::from(wanted > 0)];
        ours.read_exact(&mut text).await.unwrap();
        write("after", 10, 40);
        ours.read_to_end(&mut text).await.unwrap();
        done.await.unwrap().unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count() as u64, wanted);
        assert!(text.starts_with(first.unwrap_or_default()) && !text.contains("after"), "{wanted}");
        // As it was.
        fs::remove_file(dir.path().join("log")).unwrap();
        write("before", 5, 1);
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
    let packing = path.clone();
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
            if number.is_multiple_of(97) {
                pack(&packing).unwrap();
            }
        }
        pack(&packing).unwrap();
    });
    let line = |number: u64| format!("line {number}{}\n", if number.is_multiple_of(2) { "!" } else { "" });
    for number in 0..5_000 {
        assert_eq!(log.next().await, line(number));
    }
    flood.join().unwrap();
    assert_eq!(log.end().await, "");
    let rotated = rotate::rotated(&path).unwrap();
    assert!(rotated.len() > 40 && rotated.iter().filter(|file| !file.packed).count() == 1);
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

/// A log of so many rotated files, of one line each, and the one being written.
fn rotated_log(lines: u64) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("0.log");
    for at in 0..=lines {
        append(&path, Stream::Stdout, true, at, &at.to_string());
        if at < lines {
            rotate(&path, LogLimits { max_bytes: 1, max_files: 1000 }, time(at)).unwrap();
        }
    }
    (dir, path)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn all_rotated_files_but_the_newest_are_packed_and_read_as_before() {
    let (dir, path) = rotated_log(3);
    let kept = |at: u64| format!("0.log.19700101-00000{at}.000000000");
    let old = time(1_000);
    fs::File::open(dir.path().join(kept(0))).unwrap().set_modified(old).unwrap();
    pack(&path).unwrap();
    pack(&path).unwrap();
    let packed = |at: u64| kept(at) + ".gz";
    assert_eq!(names(&dir), ["0.log".to_owned(), packed(0), packed(1), kept(2)]);
    assert_eq!(fs::metadata(dir.path().join(packed(0))).unwrap().modified().unwrap(), old);
    assert_eq!(read_all(&path, LogOptions::default()).await, "0\n1\n2\n3\n");
    assert_eq!(read_all(&path, LogOptions { tail_lines: Some(3), ..Default::default() }).await, "1\n2\n3\n");
    let (tail, cut) = last_bytes(&path, 150).unwrap();
    assert!(tail.len() == 150 && cut && tail.ends_with(b" F 3\n"));
    assert!(!last_bytes(&path, 1 << 20).unwrap().1);
    // One that is damaged is over early, and the rest is read.
    let bytes = fs::read(dir.path().join(packed(0))).unwrap();
    fs::write(dir.path().join(packed(0)), &bytes[..bytes.len() / 2]).unwrap();
    assert!(read_all(&path, LogOptions::default()).await.ends_with("1\n2\n3\n"));
    remove(&path).unwrap();
    assert_eq!(names(&dir), [""; 0]);
}

#[tokio::test]
async fn what_a_crash_leaves_of_packing_is_read_once_and_made_good() {
    let (dir, path) = rotated_log(3);
    let first = rotate::rotated(&path).unwrap().remove(0).path;
    // In the middle of writing; and before what is packed was removed.
    fs::write(pack::unfinished_name(&first), "half").unwrap();
    assert_eq!(read_all(&path, LogOptions::default()).await, "0\n1\n2\n3\n");
    let plain = fs::read(&first).unwrap();
    pack(&path).unwrap();
    fs::write(&first, &plain).unwrap();
    assert_eq!(read_all(&path, LogOptions::default()).await, "0\n1\n2\n3\n");
    pack(&path).unwrap();
    assert_eq!((first.exists(), names(&dir).len()), (false, 4));
    fs::write(&first, plain).unwrap();
    fs::write(pack::unfinished_name(&first), "half").unwrap();
    // The oldest of too many does not come back by its other name.
    rotate(&path, LogLimits { max_bytes: 1, max_files: 4 }, time(9)).unwrap();
    let left = rotate::rotated(&path).unwrap();
    assert!(left.len() == 3 && !rotate::packed_name(&first).exists(), "{left:?}");
}

#[tokio::test]
async fn what_is_trimmed_does_not_come_back_by_what_a_crash_left_of_packing_it() {
    let (dir, path) = rotated_log(2);
    let plain: Vec<_> = rotate::rotated(&path).unwrap().into_iter().map(|file| file.path).collect();
    fs::copy(&plain[0], dir.path().join("kept")).unwrap();
    pack(&path).unwrap();
    // One is still there as it was, of the other only what was packed; both were to be packed anew.
    fs::rename(dir.path().join("kept"), &plain[0]).unwrap();
    fs::write(pack::unfinished_name(&plain[0]), "half").unwrap();
    fs::rename(&plain[1], rotate::packed_name(&plain[1])).unwrap();
    fs::write(pack::unfinished_name(&plain[1]), "half").unwrap();
    let bytes = fs::metadata(&path).unwrap().len();
    trim(&path, LogLimits { max_bytes: bytes, max_files: 1 }).unwrap();
    assert_eq!(names(&dir), ["0.log"]);
    assert_eq!(read_all(&path, LogOptions::default()).await, "2\n");
}

#[tokio::test]
async fn who_reads_a_file_that_is_rotated_and_packed_goes_on_after_it() {
    let (_dir, path) = rotated_log(2);
    let mut chain = Chain::open(&path, Some(1), None).await.unwrap();
    let mut read = Vec::new();
    for at in 3..6 {
        rotate(&path, LogLimits { max_bytes: 1, max_files: 1000 }, time(at)).unwrap();
        append(&path, Stream::Stdout, true, at, &at.to_string());
        pack(&path).unwrap();
    }
    loop {
        while let Some(line) = chain.next_line().await.unwrap() {
            read.push(String::from_utf8_lossy(decode(&line).unwrap().content).into_owned());
        }
        if chain.go_on(false).await.unwrap() == Next::Nothing {
            break;
        }
    }
    assert_eq!(read, ["2", "3", "4", "5"]);
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
            } else if step == 1 {
                pack(&path).unwrap();
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
