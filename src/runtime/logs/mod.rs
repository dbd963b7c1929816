//! Container logs in the CRI's format: lines are framed here, and read back for `logs`.
//!
//! Owns: the format, `TIME stdout|stderr F|P CONTENT`, one a line; `P` parts are joined to the next of their stream.
//! Files of a log are rotated ([`rotate`](mod@rotate)), packed ([`pack`](mod@pack)) and read as one ([`chain`]). Which
//! file belongs to which life of a container is the caller's affair.

mod chain;
mod pack;
mod read;
mod rotate;

use std::time::SystemTime;

pub use self::{
    pack::pack,
    read::read,
    rotate::{LogLimits, LogWriter, last_bytes, put_back, remove, rotate, trim},
};

/// Largest content of one framed line: the kubelet's and containerd's own, so that readers elsewhere cope.
pub const MAX_PART: usize = 16 * 1024;
/// Longest framed line that is read: content, time and tags. Longer ones, which nobody writes, are cut in pieces.
const MAX_FRAME: usize = MAX_PART + 256;

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

#[cfg(test)]
mod tests;
