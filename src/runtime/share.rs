//! Images between machines, in words of the trait: what one may give, and where the parts of what it takes come from.
//!
//! Owns the types alone. An image is its configuration, whose digest is the image's id, and the layers that this lists by
//! the digests of their uncompressed tars. So the id says what every byte has to be, whoever sends it.

use async_trait::async_trait;

use super::Reader;

/// How an image came to a machine that may give it away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Somebody brought it: loaded or imported.
    ByHand {
        /// Milliseconds since the epoch, by that machine's clock.
        since_ms: i64,
    },
    /// It was taken from a machine to which somebody had brought it, then.
    Copied {
        /// Milliseconds since the epoch, by that machine's clock.
        since_ms: i64,
    },
    /// From its registry, which asked for no credentials.
    Pulled,
    /// It had come by hand, and somebody removed it again: it is not there, and copies of it are taken back.
    Removed {
        /// Milliseconds since the epoch, by that machine's clock.
        at_ms: i64,
    },
}

/// An image under one of its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedImage {
    /// The full name.
    pub name: String,
    /// `sha256:…` of its configuration.
    pub id: String,
    /// How it came.
    pub came: Came,
}

/// Where the parts of an image come from. What comes is not believed: whoever takes it compares digests.
#[async_trait]
pub trait PartSource: Send + Sync {
    /// The bytes of one part: the configuration (its digest is the image's id) or a layer (its uncompressed tar).
    ///
    /// # Errors
    /// A sentence: why there are none.
    async fn part(&self, digest: &str) -> Result<Reader, String>;

    /// What came is of no use, and why. Whether there is somebody else to ask; what was got already stays.
    async fn another(&self, why: String) -> bool;
}
