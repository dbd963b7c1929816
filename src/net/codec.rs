//! The wire encoding: the one place that knows of bincode.
//!
//! Owns: [`encode`] and [`decode`]. Decided once and pinned by golden bytes under test: bincode 1.3, variable-length
//! integers, little endian; trailing bytes are refused; nothing beyond a limit is read or written.
//! Invariant: decoding arbitrary bytes never panics and never allocates much more than the bytes are long.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

use super::NetError;

/// Largest control message: `Assignments` carries the documents of all pods of a node (250 pods of some 20 KiB).
pub const CONTROL_CAP: usize = 16 << 20;
/// Largest state message: a page of pod statuses and events.
pub const STATE_CAP: usize = 4 << 20;
/// Largest first frame on a byte stream: names and a few numbers.
pub const OPEN_CAP: usize = 64 << 10;

/// Encodes a message of at most `cap` bytes.
///
/// # Errors
/// [`NetError::TooLarge`], or [`NetError::Encode`] for types that bincode cannot write.
pub fn encode<T: Serialize>(message: &T, cap: usize) -> Result<Vec<u8>, NetError> {
    let mut bytes = Vec::new();
    encode_into(&mut bytes, message, cap)?;
    Ok(bytes)
}

/// As [`encode`], appending to `bytes`, which is left as it was on error.
pub(crate) fn encode_into<T: Serialize>(
    bytes: &mut Vec<u8>,
    message: &T,
    cap: usize,
) -> Result<(), NetError> {
    let start = bytes.len();
    let written = options().with_limit(cap as u64).serialize_into(&mut *bytes, message);
    written.map_err(|error| {
        bytes.truncate(start);
        match *error {
            bincode::ErrorKind::SizeLimit => NetError::TooLarge {
                size: options().serialized_size(message).unwrap_or(u64::MAX),
                limit: cap as u64,
            },
            other => NetError::Encode(other.to_string()),
        }
    })
}

/// Decodes one message that fills `bytes` exactly.
///
/// # Errors
/// [`NetError::Decode`] for anything else: another type's bytes, an unknown variant, missing or trailing bytes.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, NetError> {
    options()
        .with_limit(bytes.len() as u64)
        .deserialize(bytes)
        .map_err(|error| NetError::Decode(error.to_string()))
}

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_varint_encoding().with_little_endian().reject_trailing_bytes()
}
