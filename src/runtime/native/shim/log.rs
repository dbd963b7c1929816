//! A container's output, in the runtime interface's log format.
//!
//! Owns: cutting bytes into lines (`TIME stdout F LINE`), and pumping a pipe into the log. Invariant: memory is bounded
//! by one line's buffer a stream, and one turn of a pump reads a bounded amount, so that a container that writes without
//! end only slows itself; its log is rotated on the way ([`LogWriter`]). A full disk loses lines rather than blocking the
//! container.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::attach::Attached;
use crate::runtime::logs::LogWriter;

/// Longer lines are written in parts, each but the last tagged `P` (as containerd does).
const MAX_LINE: usize = 16 * 1024;
/// What one turn reads from a pipe: the pipe's own size.
const TURN_BYTES: usize = 64 * 1024;

/// Cuts a stream of bytes into log records.
pub(super) struct Lines {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: &'static str) -> Lines {
        Lines { stream, pending: Vec::new() }
    }

    /// Appends to `out` the records that `bytes` complete.
    pub(super) fn push(&mut self, mut bytes: &[u8], now: &str, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            match window.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.record(now, " F ", &window[..end], out);
                    bytes = &bytes[end + 1..];
                }
                // The buffer is full, and more of the line is to come.
                None if window.len() == room && bytes.get(room) != Some(&b'\n') => {
                    self.record(now, " P ", window, out);
                    bytes = &bytes[room..];
                }
                None if window.len() == room => {
                    self.record(now, " F ", window, out);
                    bytes = &bytes[room + 1..];
                }
                None => {
                    self.pending.extend_from_slice(window);
                    bytes = &[];
                }
            }
        }
    }

    /// Appends the last record, if the stream did not end with a line's end: a part, as none ends it (containerd's way).
    pub(super) fn finish(&mut self, now: &str, out: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            self.record(now, " P ", &[], out);
        }
    }

    fn record(&mut self, now: &str, tag: &str, rest: &[u8], out: &mut Vec<u8>) {
        for part in [now, " ", self.stream, tag] {
            out.extend_from_slice(part.as_bytes());
        }
        out.append(&mut self.pending);
        out.extend_from_slice(rest);
        out.push(b'\n');
    }
}

/// One output pipe of a container.
pub(super) struct Pump {
    pipe: File,
    lines: Lines,
}

impl Pump {
    /// The reading end of a pipe, which must be non-blocking.
    pub(super) fn new(pipe: OwnedFd, stream: &'static str) -> Pump {
        Pump { pipe: pipe.into(), lines: Lines::new(stream) }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// Moves what is there, up to a bound; `false` when the stream has ended.
    pub(super) fn turn(&mut self, log: &mut LogWriter, attached: &mut Attached) -> bool {
        let mut buffer = [0; TURN_BYTES];
        let mut out = Vec::new();
        let now = timestamp(SystemTime::now());
        let open = match self.pipe.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                attached.write(self.lines.stream, &buffer[..count]);
                self.lines.push(&buffer[..count], &now, &mut out);
                true
            }
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        if !open {
            self.lines.finish(&now, &mut out);
        }
        if !out.is_empty() {
            log.write(&out);
        }
        open
    }

    /// Moves what a program that has ended left in the pipe. A descendant that escaped may still hold the other end,
    /// so this stops at an empty pipe, and at a bound if that one floods.
    pub(super) fn drain(mut self, log: &mut LogWriter, attached: &mut Attached) {
        for _ in 0..DRAIN_TURNS {
            let mut buffer = [0; TURN_BYTES];
            match self.pipe.read(&mut buffer) {
                Ok(count) if count > 0 => {
                    attached.write(self.lines.stream, &buffer[..count]);
                    let mut out = Vec::new();
                    self.lines.push(&buffer[..count], &timestamp(SystemTime::now()), &mut out);
                    log.write(&out);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        let mut out = Vec::new();
        self.lines.finish(&timestamp(SystemTime::now()), &mut out);
        if !out.is_empty() {
            log.write(&out);
        }
    }
}

/// A pipe holds at most a mebibyte unless an administrator raised that.
const DRAIN_TURNS: usize = 16;

/// RFC 3339 in UTC with nanoseconds.
pub(super) fn timestamp(time: SystemTime) -> String {
    let age = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let (days, second) = (age.as_secs() / 86_400, age.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        age.subsec_nanos()
    )
}

/// The date that many days after 1970-01-01, by 400-year eras that begin on the first of March.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_EPOCH: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let shifted = days + DAYS_TO_EPOCH;
    let day_of_era = shifted % DAYS_PER_ERA;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + shifted / DAYS_PER_ERA * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records(parts: &[&[u8]]) -> String {
        let (mut lines, mut out) = (Lines::new("stdout"), Vec::new());
        for part in parts {
            lines.push(part, "T", &mut out);
        }
        lines.finish("T", &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_that_end_are_tagged_full_however_they_arrive() {
        assert_eq!(records(&[b"a\nb", b"c\n", b"\n"]), "T stdout F a\nT stdout F bc\nT stdout F \n");
        assert_eq!(records(&[b"no end"]), "T stdout P no end\n");
        assert_eq!(records(&[]), "");
    }

    #[test]
    fn long_lines_are_cut_and_their_parts_tagged() {
        let long = vec![b'x'; MAX_LINE + 1];
        let text = records(&[&long, b"\n"]);
        let tags: Vec<_> = text.lines().map(|line| (&line[..11], line.len() - 11)).collect();
        assert_eq!(tags, [("T stdout P ", MAX_LINE), ("T stdout F ", 1)]);
        let exact: Vec<u8> = std::iter::repeat_n(b'x', MAX_LINE).chain([b'\n']).collect();
        assert_eq!(records(&[&exact]).lines().count(), 1);
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, nanos, expected) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (1_767_323_045, 123_456_789, "2026-01-02T03:04:05.123456789Z"),
            (4_107_542_399, 0, "2100-02-28T23:59:59.000000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, nanos)), expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn no_byte_is_lost_or_made_up(parts in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![9 => Just(b'x'), 1 => Just(b'\n')], 0..40_000), 0..4,
        )) {
            let all: Vec<u8> = parts.concat();
            let slices: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let text = records(&slices);
            let mut back = String::new();
            for line in text.lines() {
                back.push_str(&line[11..]);
                if &line[9..10] == "F" { back.push('\n'); }
                prop_assert!(line.len() <= 11 + MAX_LINE);
            }
            prop_assert_eq!(back, String::from_utf8(all).unwrap());
        }
    }
}
