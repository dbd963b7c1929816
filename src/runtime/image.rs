//! Images as runtimes speak of them, in the CRI's words. Owns the types alone.

use serde::{Deserialize, Serialize};

/// Who pulls an image.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    /// The user's name.
    pub username: String,
    /// The user's password, or a token in its place.
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").field("username", &self.username).finish_non_exhaustive()
    }
}

/// An image that may go: it can be pulled again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdleImage {
    /// Its full names.
    pub names: Vec<String>,
    /// When a container of it was last removed, or it was pulled; milliseconds since the epoch.
    pub used_ms: i64,
}

/// How far a pull is. What is here already counts as done from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PullProgress {
    /// Layers of the image; 0 before that is known.
    pub layers: u32,
    /// Those that are here.
    pub layers_done: u32,
    /// Bytes fetched.
    pub bytes: u64,
    /// Bytes to be fetched.
    pub total_bytes: u64,
}

/// An image as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:…` of its configuration.
    pub id: String,
    /// Full names, `docker.io/library/busybox:latest`.
    pub names: Vec<String>,
    /// Bytes of its layers, unpacked.
    pub size_bytes: u64,
    /// The numeric user it runs as when nothing else is said, if it names one.
    pub user: String,
}
