//! zstd, decompressed while it is read.
//!
//! Owns: [`Frames`], which reads any number of frames one after the other, as layers are written in that way (each part
//! a frame of its own, with skippable frames between them that hold tables of contents). Invariants: a frame's checksum,
//! where it has one, is checked before the end is told; memory is bounded by [`MAX_WINDOW`] whatever a header claims.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// Largest window: what `zstd --ultra --long=27` makes, the most that a decompressor has to accept unasked.
const MAX_WINDOW: u64 = 128 * 1024 * 1024;

/// Reads what zstd's frames hold.
pub(super) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    pub(super) fn new(source: R) -> Frames<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Frames { source, decoder, inside: false }
    }

    /// Goes to the next frame with contents; false at the end of all.
    fn enter(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut self.source.by_ref().take(length), &mut io::sink())? < length {
                        return Err(bad("it ends within a frame"));
                    }
                }
                Err(error) => return Err(bad(error)),
            }
        }
    }

    fn check(&self) -> io::Result<()> {
        match (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum()) {
            (Some(told), Some(real)) if told != real => Err(bad("a frame's checksum is wrong")),
            _ => Ok(()),
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.inside {
                self.inside = self.enter()?;
                if !self.inside {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(bad)?;
            }
            let n = self.decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            self.check()?;
            self.inside = false;
        }
    }
}

fn bad(error: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("zstd: {error}"))
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn read(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        Frames::new(bytes).read_to_end(&mut all).map(|_| all)
    }

    #[test]
    fn frames_follow_each_other_and_what_is_skippable_is_skipped() {
        let text: Vec<u8> = (0..300_000_u32).flat_map(|n| (n % 997).to_le_bytes()).collect();
        let (a, b) = text.split_at(70_000);
        let mut all = compress_to_vec(a, CompressionLevel::Fastest);
        all.extend([0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
        all.extend(compress_to_vec(b, CompressionLevel::Fastest));
        all.extend([0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]);
        assert!(read(&all).unwrap() == text);
        assert!(read(&compress_to_vec(&[][..], CompressionLevel::Fastest)).unwrap().is_empty());
    }

    #[test]
    fn what_is_cut_changed_or_no_zstd_is_an_error() {
        let text = b"some text that is there twice, some text that is there twice".repeat(50);
        let good = compress_to_vec(&text[..], CompressionLevel::Fastest);
        for cut in [3, 8, good.len() - 1] {
            assert!(read(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut changed = good.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        assert!(read(&changed).unwrap_err().to_string().contains("checksum"));
        assert!(read(b"no zstd at all").is_err());
        assert!(read(&[0x53, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 1]).unwrap_err().to_string().contains("ends"));
        // A window of some terabytes is only claimed: nothing is allocated for it.
        assert!(read(&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0, 0, 0]).is_err());
    }
}
