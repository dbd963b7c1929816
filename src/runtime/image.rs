//! Images as runtimes speak of them, in the CRI's words. Owns the types, and which of an image's
//! names a container's status tells.

use serde::{Deserialize, Serialize};

use super::images::{normalize, repository};

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

/// Where an image that is here came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its registry.
    Registry,
    /// Somebody brought it here: loaded, imported or built in. Nobody is asked for a newer one.
    ByHand,
    /// Another node, to which somebody had brought it.
    Copied,
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
    /// What its registries know it by, `docker.io/library/busybox@sha256:…`; none if it did not come from one.
    #[serde(default)]
    pub digests: Vec<String>,
}

impl Image {
    /// What a container of it that asked for this name is said to run, as CRI runtimes say it: the digest in the name's
    /// repository, else another repository's, else the id.
    pub fn reference(&self, name: &str) -> String {
        let full = normalize(name).unwrap_or_default();
        let within = |digest: &&String| !full.is_empty() && repository(digest) == repository(&full);
        let found = self.digests.iter().find(within).or(self.digests.first());
        found.unwrap_or(&self.id).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_goes_by_its_digest_where_it_came_from_or_by_its_id() {
        let digest = |repository: &str, digit: &str| format!("{repository}@sha256:{}", digit.repeat(64));
        let (a, b) = (digest("docker.io/library/a", "1"), digest("r.io:5000/b", "2"));
        let mut image = Image {
            id: "sha256:3".into(),
            names: Vec::new(),
            size_bytes: 0,
            user: String::new(),
            digests: vec![a.clone(), b.clone()],
        };
        for (name, wanted) in [
            ("a", &a),
            ("docker.io/a:1", &a),
            ("r.io:5000/b:2", &b),
            (b.as_str(), &b),
            ("elsewhere", &a),
            ("No Name", &a),
        ] {
            assert_eq!(image.reference(name), *wanted, "{name}");
        }
        image.digests.clear();
        assert_eq!(image.reference("a"), "sha256:3");
        let old = r#"{"id": "sha256:3", "names": [], "size_bytes": 0, "user": ""}"#;
        assert_eq!(serde_json::from_str::<Image>(old).unwrap(), image);
    }
}
