//! Sparse files as GNU tar packs them in the pax format: what follows the header is the file without its holes, and the map of
//! its pieces is among the pax records (versions 0.0 and 0.1) or before the data (1.0). The older format's is in the header,
//! which the tar crate reads.
//!
//! Owns: the map, and the whole file as a reader. Invariant: pieces come in order, within the file; what is not so is
//! refused, since the bytes would become another file. Source: "Storing Sparse Files" in GNU tar's manual.

use std::io::{self, Read};

use tar::Entry;

use super::stream::bad;
use crate::runtime::RuntimeError;

const PREFIX: &[u8] = b"GNU.sparse.";
/// Of one file; more than file systems make of what is packed into images.
const PIECES: u64 = 1 << 16;
/// What a map before the data is filled up to.
const BLOCK: usize = 512;

/// A sparse file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Its name, if that is not the entry's.
    pub(super) name: Option<Vec<u8>>,
    /// Its bytes, holes included.
    pub(super) size: u64,
    /// Its map as numbers, if that does not come before the data.
    map: Option<Vec<u64>>,
}

impl Sparse {
    /// What an entry says of itself as a sparse file, if it is one.
    pub(super) fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Option<Sparse>, RuntimeError> {
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(extensions) = entry.pax_extensions().map_err(bad)? else { return Ok(None) };
        let mut records = Vec::new();
        for extension in extensions {
            let extension = extension.map_err(bad)?;
            if let Some(key) = extension.key_bytes().strip_prefix(PREFIX) {
                records.push((key.to_vec(), extension.value_bytes().to_vec()));
            }
        }
        if records.is_empty() {
            return Ok(None);
        }
        read(records).map(Some).map_err(|why| bad(format!("{path}: a sparse file: {why}")))
    }

    /// The file, of what follows its header.
    pub(super) fn whole<'a, R: Read>(&self, data: &'a mut R) -> Result<Whole<'a, R>, RuntimeError> {
        let map = self.map.clone().map_or_else(|| map_before(data), Ok).map_err(bad)?;
        let pieces: Vec<_> = map.chunks_exact(2).map(|pair| Piece { at: pair[0], bytes: pair[1] }).collect();
        let mut end = 0;
        for piece in &pieces {
            let next = piece.at.checked_add(piece.bytes).filter(|next| *next <= self.size && piece.at >= end);
            end = next.ok_or_else(|| bad("a sparse file's map leads out of the file"))?;
        }
        let mut pieces = pieces.into_iter();
        let piece = pieces.next();
        Ok(Whole { data, pieces, piece, at: 0, size: self.size })
    }
}

/// Reads the records, whose keys are without their common beginning.
fn read(records: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Sparse, &'static str> {
    let (mut version, mut name, mut size) = ((0, 0), None, None);
    let mut map = Vec::new();
    for (key, value) in records {
        match key.as_slice() {
            b"major" => version.0 = number(&value)?,
            b"minor" => version.1 = number(&value)?,
            b"name" => name = Some(value),
            b"size" | b"realsize" => size = Some(number(&value)?),
            b"map" => {
                map = value.split(|byte| *byte == b',').map(number).collect::<Result<_, _>>()?;
            }
            b"offset" | b"numbytes" => map.push(number(&value)?),
            _ => {}
        }
    }
    let size = size.ok_or("its size is not told")?;
    match version {
        (1, 0) => Ok(Sparse { name, size, map: None }),
        (0, _) if map.is_empty() || map.len() % 2 == 1 => Err("its map is not whole"),
        (0, _) => Ok(Sparse { name, size, map: Some(map) }),
        _ => Err(
            "of a version that is not known; make the archive with `tar --format=gnu`, or without --sparse",
        ),
    }
}

fn number(text: &[u8]) -> Result<u64, &'static str> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or("what is to be a number is none")
}

/// The map that comes before the data: its length, then its numbers, each in a line.
fn map_before(data: &mut impl Read) -> io::Result<Vec<u64>> {
    let fault = |why: &str| io::Error::new(io::ErrorKind::InvalidData, format!("a sparse file's map: {why}"));
    let (mut count, mut map, mut line) = (None, Vec::new(), Vec::new());
    loop {
        let mut block = [0; BLOCK];
        data.read_exact(&mut block)?;
        for byte in block {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let value = number(&line).map_err(fault)?;
            line.clear();
            match count {
                None if value > PIECES => return Err(fault("more pieces than a file may have")),
                None => count = Some(value * 2),
                Some(_) => map.push(value),
            }
            if count == Some(map.len() as u64) {
                return Ok(map);
            }
        }
        if line.len() > BLOCK {
            return Err(fault("what is to be a number is none"));
        }
    }
}

/// Bytes of the file that are in the archive: where they belong, and how many are still to come.
#[derive(Debug)]
struct Piece {
    at: u64,
    bytes: u64,
}

/// A sparse file with its holes.
#[derive(Debug)]
pub(super) struct Whole<'a, R> {
    data: &'a mut R,
    pieces: std::vec::IntoIter<Piece>,
    piece: Option<Piece>,
    at: u64,
    size: u64,
}

impl<R: Read> Read for Whole<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.as_ref().is_some_and(|piece| piece.bytes == 0) {
            self.piece = self.pieces.next();
        }
        let begins = self.piece.as_ref().map_or(self.size, |piece| piece.at);
        let within = |bytes: u64| usize::try_from(bytes).unwrap_or(usize::MAX).min(buf.len());
        let n = match &mut self.piece {
            Some(piece) if piece.at == self.at => {
                let most = within(piece.bytes);
                let n = self.data.read(&mut buf[..most])?;
                if n == 0 && most > 0 {
                    let cause = "the archive ends within a sparse file";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, cause));
                }
                *piece = Piece { at: piece.at + n as u64, bytes: piece.bytes - n as u64 };
                n
            }
            _ => {
                let n = within(begins - self.at);
                buf[..n].fill(0);
                n
            }
        };
        self.at += n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(size: u64, map: Option<&[u64]>, mut data: &[u8]) -> Result<Vec<u8>, String> {
        let sparse = Sparse { name: None, size, map: map.map(<[u64]>::to_vec) };
        let mut bytes = Vec::new();
        let mut whole = sparse.whole(&mut data).map_err(|e| e.to_string())?;
        whole.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }

    #[test]
    fn a_file_is_its_pieces_and_zeros_between_them() {
        assert_eq!(whole(8, Some(&[2, 3, 6, 1]), b"abcd").unwrap(), b"\0\0abc\0d\0");
        assert_eq!(whole(3, Some(&[0, 2, 2, 1]), b"abc").unwrap(), b"abc");
        assert_eq!(whole(2, Some(&[0, 0]), b"").unwrap(), b"\0\0");
        assert_eq!(whole(0, Some(&[0, 0]), b"").unwrap(), b"");
        let before = |map: &str, data: &str| {
            let mut bytes = map.as_bytes().to_vec();
            bytes.resize(map.len().next_multiple_of(BLOCK), 0);
            bytes.extend(data.as_bytes());
            bytes
        };
        assert_eq!(whole(5, None, &before("2\n1\n2\n4\n1\n", "abc")).unwrap(), b"\0ab\0c");
        let many: String = (0..300).map(|n| format!("{}\n1\n", n * 2)).collect();
        let bytes = whole(600, None, &before(&format!("300\n{many}"), &"x".repeat(300))).unwrap();
        assert_eq!(bytes, b"x\0".repeat(300));
    }

    #[test]
    fn what_is_no_map_of_the_file_is_refused() {
        for (size, map, text) in [
            (4, [2, 3, 0, 0], "leads out"),
            (9, [4, 2, 5, 1], "leads out"),
            (9, [u64::MAX, 2, 0, 0], "leads out"),
            (9, [0, 4, 8, 1], "ends within"),
        ] {
            let error = whole(size, Some(&map), b"abcd").unwrap_err();
            assert!(error.contains(text), "{map:?}: {error}");
        }
        let (many, long) = (format!("{}\n", PIECES + 1), "1".repeat(2_000));
        for map in ["x\n", "-1\n", "1\n0\n", &many, &long] {
            let mut bytes = map.as_bytes().to_vec();
            bytes.resize(map.len().next_multiple_of(BLOCK), 0);
            assert!(whole(9, None, &bytes).is_err(), "{map:.9}");
        }
    }

    #[test]
    fn records_of_each_version_are_read() {
        let read = |records: &[(&str, &str)]| {
            let records = records.iter().map(|(key, value)| (key.as_bytes().into(), value.as_bytes().into()));
            read(records.collect())
        };
        let sparse = |name: Option<&str>, map: Option<&[u64]>| {
            let (name, map) = (name.map(|name| name.as_bytes().to_vec()), map.map(<[u64]>::to_vec));
            Ok(Sparse { name, size: 9, map })
        };
        let old = [
            ("size", "9"),
            ("numblocks", "2"),
            ("offset", "1"),
            ("numbytes", "2"),
            ("offset", "5"),
            ("numbytes", "1"),
        ];
        assert_eq!(read(&old), sparse(None, Some(&[1, 2, 5, 1])));
        assert_eq!(
            read(&[("size", "9"), ("name", "f"), ("map", "1,2,5,1")]),
            sparse(Some("f"), Some(&[1, 2, 5, 1]))
        );
        let new = [("major", "1"), ("minor", "0"), ("name", "f"), ("realsize", "9")];
        assert_eq!(read(&new), sparse(Some("f"), None));
        for wrong in [
            &[("size", "9")][..],
            &[("size", "9"), ("map", "1")],
            &[("size", "x"), ("map", "1,2")],
            &[("map", "1,2")],
            &[("major", "2"), ("minor", "0"), ("size", "9"), ("map", "1,2")],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
