//! Manifests and indexes: what an image consists of, and which of several platforms is this machine's.
//!
//! Owns: the documents' form, OCI's and Docker's alike, and the choice by platform. Leaves to others where documents
//! come from and that they are what their digests say.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::stream::bad;
use crate::runtime::RuntimeError;

/// Largest manifest, index or configuration: the distribution specification asks registries for 4 MiB at least, and
/// real ones have a few KiB. These alone are read into memory.
pub(super) const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;
/// Longest chain of indexes (an index of indexes…) that is followed.
pub(super) const MAX_DEPTH: usize = 4;

/// A manifest, or an index in its place.
#[derive(Debug, Deserialize)]
pub(super) struct OciManifest {
    pub(super) manifests: Option<Vec<Descriptor>>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: Option<Vec<Descriptor>>,
}

/// A reference to a document or a layer by its content.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(default)]
    pub(super) size: u64,
    pub(super) platform: Option<Platform>,
    #[serde(default)]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The full name, where a tool wrote one. A bare tag (`latest`) is no name.
    pub(super) fn names(&self) -> Vec<String> {
        ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .filter_map(|key| self.annotations.get(*key))
            .find(|name| name.contains(['/', ':']))
            .into_iter()
            .cloned()
            .collect()
    }
}

/// What a manifest is for.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl Platform {
    fn is_here(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }

    /// Attestations and the like stand in an index as if they were for a platform of this name.
    fn is_unknown(&self) -> bool {
        self.architecture == "unknown"
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// The one of several manifests that is for this machine.
pub(super) fn choose(choices: &[Descriptor]) -> Result<&Descriptor, RuntimeError> {
    let here = choices.iter().find(|d| d.platform.as_ref().is_some_and(Platform::is_here));
    // Without platforms there is nothing to choose by.
    let chosen = here.or_else(|| choices.iter().find(|d| d.platform.is_none()));
    chosen.ok_or_else(|| {
        let known = choices.iter().filter_map(|d| d.platform.as_ref()).filter(|p| !p.is_unknown());
        let has: Vec<String> = known.map(Platform::to_string).collect();
        bad(format!("no matching manifest for linux/{}; there is {}", architecture(), has.join(", ")))
    })
}

/// This machine's architecture in the image specification's (Go's) words.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
