//! SPDY/3.1's frames as bytes: cutting, reading, making. Pure.
//!
//! Owns: the layout of frames and header blocks, and both directions' compression. Invariants: no data is kept until its
//! frame is whole, it goes on in pieces; a control frame or a block beyond its bound is refused before it is kept; every
//! block is inflated, also an unwanted one, since all of a direction's are one stream. Ours are made of stored blocks:
//! they are few and short.

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// No control frame is longer: none says more than a stream's headers.
const MAX_CONTROL: usize = 32 * 1024;
/// Data goes on in pieces of at most this size, as clients send it.
pub(super) const PIECE_BYTES: usize = 32 * 1024;
/// What the headers of a stream may take, inflated: ours have three short ones.
const MAX_HEADERS: usize = 16 * 1024;
/// The version in a control frame.
const VERSION: u16 = 3;
const HEAD_BYTES: usize = 8;
/// The dictionary's Adler-32, by which a zlib stream names it.
const DICTIONARY_ID: [u8; 4] = [0xe3, 0xc6, 0xa7, 0xc2];
/// Of ours, without one.
const OWN_ZLIB_HEAD: [u8; 2] = [0x78, 0x01];

const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is not accepted: the status of a reset.
pub(super) const REFUSED_STREAM: u32 = 3;

/// Names in lower case and values.
pub(super) type Headers = Vec<(String, String)>;

/// What a client said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// It opens a stream; `fin`: and sends nothing on it.
    Open { stream: u32, headers: Headers, fin: bool },
    /// Bytes on a stream: a whole frame's, or the next of one.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// A stream is over, both ways.
    Reset { stream: u32 },
    /// To be answered with the same.
    Ping(u32),
    /// It is about to leave.
    GoAway,
    /// Nothing that matters here: settings, window updates (no client of these heeds any), more headers.
    Other,
}

/// Why bytes are no SPDY.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("control frame of {0} bytes, at most {MAX_CONTROL} are allowed")]
    TooLong(usize),
    #[error("frame of version {0}, only {VERSION} is known")]
    Version(u16),
    #[error("frame is cut short")]
    Short,
    #[error("headers cannot be inflated")]
    Compression,
    #[error("headers of more than {MAX_HEADERS} bytes")]
    Headers,
}

/// Cuts a client's bytes into frames.
pub(super) struct Reader {
    input: BytesMut,
    /// Of a data frame that is not over.
    rest: Option<Rest>,
    inflate: Option<Decompress>,
}

struct Rest {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Reader {
    pub(super) fn new() -> Reader {
        Reader { input: BytesMut::new(), rest: None, inflate: None }
    }

    /// Takes more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next whole control frame, or the next of a data frame.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, Malformed> {
        if let Some(rest) = self.rest.take() {
            return Ok(self.piece(rest));
        }
        let Some(head) = self.input.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let (first, second) = (word(&head[..4]), word(&head[4..]));
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        let fin = flags & FIN != 0;
        if first >> 31 == 0 {
            self.input.advance(HEAD_BYTES);
            return Ok(self.piece(Rest { stream: first, left: length, fin }));
        }
        if length > MAX_CONTROL {
            return Err(Malformed::TooLong(length));
        }
        if self.input.len() < HEAD_BYTES + length {
            return Ok(None);
        }
        self.input.advance(HEAD_BYTES);
        let body = self.input.split_to(length);
        let (version, kind) = ((first >> 16) as u16 & 0x7fff, first as u16);
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        let id =
            |body: &[u8]| body.first_chunk::<4>().map(|id| word(id) & 0x7fff_ffff).ok_or(Malformed::Short);
        Ok(Some(match kind {
            SYN_STREAM => {
                let headers = self.headers(body.get(10..).ok_or(Malformed::Short)?)?;
                Frame::Open { stream: id(&body)?, headers, fin }
            }
            SYN_REPLY | HEADERS => {
                self.headers(body.get(4..).ok_or(Malformed::Short)?)?;
                Frame::Other
            }
            RST_STREAM => Frame::Reset { stream: id(&body)? },
            PING => Frame::Ping(body.first_chunk::<4>().map(|id| word(id)).ok_or(Malformed::Short)?),
            GOAWAY => Frame::GoAway,
            _ => Frame::Other,
        }))
    }

    /// What there is of a data frame.
    fn piece(&mut self, rest: Rest) -> Option<Frame> {
        let Rest { stream, left, fin } = rest;
        let count = left.min(self.input.len()).min(PIECE_BYTES);
        if count == 0 && left > 0 {
            self.rest = Some(rest);
            return None;
        }
        // A copy: a small piece must not keep all that it came with.
        let bytes = Bytes::copy_from_slice(&self.input[..count]);
        self.input.advance(count);
        let left = left - count;
        if left > 0 {
            self.rest = Some(Rest { stream, left, fin });
        }
        Some(Frame::Data { stream, bytes, fin: fin && left == 0 })
    }

    fn headers(&mut self, mut block: &[u8]) -> Result<Headers, Malformed> {
        if self.inflate.is_none() {
            // Stands for the dictionary, which the decoder cannot be given: a stored block of the same bytes.
            let mut inflate = Decompress::new(false);
            let length = (DICTIONARY.len() as u16).to_le_bytes();
            let inverse = (!(DICTIONARY.len() as u16)).to_le_bytes();
            let stored = [&[0][..], &length, &inverse, DICTIONARY].concat();
            inflate_all(&mut inflate, &stored, &mut Vec::new())?;
            self.inflate = Some(inflate);
            block = after_zlib_head(block).ok_or(Malformed::Compression)?;
        }
        let inflate = self.inflate.as_mut().ok_or(Malformed::Compression)?;
        let mut text = Vec::new();
        inflate_all(inflate, block, &mut text)?;
        read_headers(&text).ok_or(Malformed::Short)
    }
}

/// The block after its zlib head: method and window, level and that there is a dictionary, which.
fn after_zlib_head(block: &[u8]) -> Option<&[u8]> {
    let (head, rest) = block.split_first_chunk::<6>()?;
    (head[0] == OWN_ZLIB_HEAD[0] && head[1] & 0x20 != 0 && head[2..] == DICTIONARY_ID).then_some(rest)
}

fn inflate_all(inflate: &mut Decompress, mut block: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let mut buffer = [0; 4096];
    loop {
        let (in_before, out_before) = (inflate.total_in(), inflate.total_out());
        let status = inflate
            .decompress(block, &mut buffer, FlushDecompress::Sync)
            .map_err(|_| Malformed::Compression)?;
        block = &block[(inflate.total_in() - in_before) as usize..];
        let made = (inflate.total_out() - out_before) as usize;
        out.extend_from_slice(&buffer[..made]);
        if out.len() > MAX_HEADERS {
            return Err(Malformed::Headers);
        }
        match status {
            Status::StreamEnd => return Err(Malformed::Compression),
            _ if block.is_empty() && made < buffer.len() => return Ok(()),
            _ if made == 0 && inflate.total_in() == in_before => return Err(Malformed::Compression),
            _ => {}
        }
    }
}

fn read_headers(mut text: &[u8]) -> Option<Headers> {
    let number = |text: &mut &[u8]| {
        let (number, rest) = text.split_first_chunk::<4>()?;
        *text = rest;
        Some(word(number) as usize)
    };
    let words = |text: &mut &[u8]| {
        let length = number(text)?;
        let (words, rest) = text.split_at_checked(length)?;
        *text = rest;
        Some(String::from_utf8_lossy(words).into_owned())
    };
    let count = number(&mut text)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((words(&mut text)?.to_ascii_lowercase(), words(&mut text)?));
    }
    Some(headers)
}

/// Makes frames; those with headers in the order in which they are sent.
#[derive(Default)]
pub(super) struct Writer {
    begun: bool,
}

impl Writer {
    /// Accepts a stream.
    pub(super) fn reply(&mut self, stream: u32) -> Vec<u8> {
        let mut body = stream.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.begun, true) {
            body.extend_from_slice(&OWN_ZLIB_HEAD);
        }
        // A stored block of four bytes (no headers), and an empty one: with that Go's decoder gives out what it has.
        body.extend_from_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
        body.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        control(SYN_REPLY, &body)
    }
}

/// Bytes on a stream.
pub(super) fn data(stream: u32, bytes: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = (stream & 0x7fff_ffff).to_be_bytes().to_vec();
    frame.extend_from_slice(&(u32::from(if fin { FIN } else { 0 }) << 24 | bytes.len() as u32).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// Refuses or ends a stream.
pub(super) fn reset(stream: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, &[stream.to_be_bytes(), status.to_be_bytes()].concat())
}

/// Asks whether the client is there, or answers it.
pub(super) fn ping(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes())
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = ((1 << 15 | u32::from(VERSION)) << 16 | u32::from(kind)).to_be_bytes().to_vec();
    frame.extend_from_slice(&(body.len() as u32).to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first two SYN_STREAMs of a port-forward, their headers compressed with zlib as clients do: one stream.
    const FIRST: &str = include_str!("testdata/streams.hex");

    fn bytes(hex: &str) -> Vec<u8> {
        let hex: String = hex.split_whitespace().collect();
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    fn opened(stream: u32, kind: &str) -> Frame {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = vec![header("port", "8080"), header("requestid", "0"), header("streamtype", kind)];
        Frame::Open { stream, headers, fin: false }
    }

    #[test]
    fn streams_opened_by_a_client_are_understood_however_their_bytes_are_cut() {
        let wire = bytes(FIRST);
        for cut in 0..wire.len() {
            let mut reader = Reader::new();
            let mut frames = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                reader.push(part);
                while let Some(frame) = reader.next().unwrap() {
                    frames.push(frame);
                }
            }
            let sorted = |frame| match frame {
                Frame::Open { stream, mut headers, fin } => {
                    headers.sort();
                    Frame::Open { stream, headers, fin }
                }
                other => other,
            };
            let frames: Vec<Frame> = frames.into_iter().map(sorted).collect();
            assert_eq!(frames, [opened(1, "error"), opened(3, "data")], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        let mut reader = Reader::new();
        for frame in [data(5, b"abc", true), data(7, b"", false), reset(5, REFUSED_STREAM), ping(9)] {
            reader.push(&frame);
        }
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().unwrap() {
            frames.push(frame);
        }
        let data =
            |stream, bytes: &[u8], fin| Frame::Data { stream, bytes: Bytes::copy_from_slice(bytes), fin };
        assert_eq!(
            frames,
            [data(5, b"abc", true), data(7, b"", false), Frame::Reset { stream: 5 }, Frame::Ping(9)]
        );
    }

    #[test]
    fn data_goes_on_as_it_comes_however_long_its_frame_is() {
        let mut reader = Reader::new();
        let frame = data(5, &vec![7; 10 * PIECE_BYTES], true);
        let mut sizes = Vec::new();
        for part in frame.chunks(PIECE_BYTES + 1000).chain([&data(7, b"x", false)[..]]) {
            reader.push(part);
            while let Some(Frame::Data { stream, bytes, fin }) = reader.next().unwrap() {
                assert_eq!(fin, stream == 5 && sizes.iter().sum::<usize>() + bytes.len() == 10 * PIECE_BYTES);
                assert!(!bytes.is_empty() && bytes.len() <= PIECE_BYTES);
                sizes.push(bytes.len());
            }
            assert!(reader.input.is_empty(), "{}", reader.input.len());
        }
        assert_eq!(sizes.iter().sum::<usize>(), 10 * PIECE_BYTES + 1);
    }

    #[test]
    fn many_small_frames_at_once_cost_no_more_each_than_few() {
        const MANY: usize = 256 * 1024;
        let mut reader = Reader::new();
        reader.push(&ping(1).repeat(MANY));
        let begun = std::time::Instant::now();
        for _ in 0..MANY {
            assert_eq!(reader.next().unwrap(), Some(Frame::Ping(1)));
        }
        // It took minutes when each moved all that came after it.
        assert!(begun.elapsed() < std::time::Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn our_headers_are_a_zlib_stream() {
        let mut writer = Writer::default();
        let (first, second) = (writer.reply(1), writer.reply(3));
        let stream = [&first[12..], &second[12..]].concat();
        let mut text = Vec::new();
        let mut inflate = Decompress::new(true);
        inflate_all(&mut inflate, &stream, &mut text).unwrap();
        assert_eq!(text, [0; 8]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (wire, why) in [
            (vec![0x80, 3, 0, 1, 0, 255, 255, 255], Malformed::TooLong(0x00ff_ffff)),
            (vec![0x80, 2, 0, 1, 0, 0, 0, 0], Malformed::Version(2)),
            (vec![0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0], Malformed::Short),
            (vec![0x80, 3, 0, 6, 0, 0, 0, 0], Malformed::Short),
            ([&[0x80, 3, 0, 1, 0, 0, 0, 12][..], &[7; 12]].concat(), Malformed::Compression),
        ] {
            let mut reader = Reader::new();
            reader.push(&wire);
            assert_eq!(reader.next(), Err(why), "{wire:?}");
        }
    }

    #[test]
    fn headers_that_inflate_beyond_their_bound_are_refused() {
        let mut bomb = Vec::new();
        let mut deflate = flate2::Compress::new(flate2::Compression::best(), false);
        bomb.resize(64 * 1024, 0);
        deflate.compress(&vec![0; 1 << 20], &mut bomb, flate2::FlushCompress::Sync).unwrap();
        bomb.truncate(deflate.total_out() as usize);
        let body = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0xf9][..], &DICTIONARY_ID, &bomb].concat();
        let mut reader = Reader::new();
        reader.push(&control(SYN_STREAM, &body));
        assert_eq!(reader.next(), Err(Malformed::Headers));
    }
}
