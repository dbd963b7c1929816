//! Image archives: which images one holds, and where their parts are.
//!
//! Owns: reading docker-archives (`manifest.json`) and OCI layouts (`index.json`). The archive is first spread into a
//! staging directory, one file an entry under a name of our own, because its table of contents comes last. Invariant:
//! names in the archive are only ever keys of a table, never paths on this machine. Digests are checked where the
//! format has them; the layers' are the store's to check while it unpacks.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};
use tar::{Archive, EntryType};

use super::{
    Limits,
    manifest::{Descriptor, MAX_DEPTH, MAX_DOCUMENT, OciManifest, choose},
    sparse::Sparse,
    stream::{BUFFER, HeaderGuard, Limited, bad, digest_of, system},
};
use crate::runtime::RuntimeError;

/// Most images in one archive.
const MAX_IMAGES: usize = 1000;

/// One image in an archive.
#[derive(Debug)]
pub(super) struct Found {
    /// As written in the archive.
    pub(super) names: Vec<String>,
    /// Its configuration document.
    pub(super) config: Vec<u8>,
    /// Bottom first.
    pub(super) layers: Vec<Blob>,
}

/// A layer's file.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) path: PathBuf,
    /// Of the file as it is, if the archive tells.
    pub(super) digest: Option<String>,
}

/// An archive spread over a staging directory.
pub(super) struct Spread {
    /// Clean name in the archive → what it is.
    parts: HashMap<String, Part>,
}

enum Part {
    File(PathBuf),
    /// Another part, by its clean name: docker-archives link layers that are the same.
    Link(String),
}

impl Spread {
    /// Spreads a plain tar into a directory.
    pub(super) fn read(tar: impl Read, dir: &Path, limits: &Limits) -> Result<Spread, RuntimeError> {
        let (tar, allowance) = HeaderGuard::new(Limited::new(tar, limits.archive_bytes));
        let mut archive = Archive::new(tar);
        let mut parts = HashMap::new();
        let mut buf = vec![0; BUFFER];
        // Holes of sparse files are not in the archive.
        let mut left = limits.archive_bytes;
        let mut entries = archive.entries().map_err(bad)?;
        loop {
            allowance.headers();
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(|error| match parts.len() {
                0 => bad(format!(
                    "{error}: is it what `docker save` writes, or an OCI layout as a tar, perhaps gzipped?"
                )),
                _ => bad(error),
            })?;
            let sparse = Sparse::of(&mut entry)?;
            allowance.contents();
            if parts.len() as u64 >= limits.entries {
                return Err(bad(format!("more than {} entries", limits.entries)));
            }
            let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
            let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
            let name = clean("", &String::from_utf8_lossy(&name));
            let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
            let part = match (entry.header().entry_type(), link) {
                (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                    let path = dir.join(parts.len().to_string());
                    left -= match sparse {
                        Some(sparse) => write(&mut sparse.whole(&mut entry)?, &path, left, &mut buf)?,
                        None => write(&mut entry, &path, left, &mut buf)?,
                    };
                    Part::File(path)
                }
                (EntryType::Symlink, Some(link)) => {
                    Part::Link(clean(name.rsplit_once('/').map_or("", |(dir, _)| dir), &link))
                }
                (EntryType::Link, Some(link)) => Part::Link(clean("", &link)),
                _ => {
                    while entry.read(&mut buf).map_err(bad)? > 0 {}
                    continue;
                }
            };
            parts.insert(name, part);
        }
        Ok(Spread { parts })
    }

    /// The images in it.
    pub(super) fn images(&self) -> Result<Vec<Found>, RuntimeError> {
        if self.parts.contains_key("manifest.json") {
            return self.docker_images();
        }
        if self.parts.contains_key("index.json") {
            return self.oci_images();
        }
        Err(bad(
            "it has neither manifest.json (docker save) nor index.json (OCI layout); a root file system is imported, not loaded",
        ))
    }

    fn docker_images(&self) -> Result<Vec<Found>, RuntimeError> {
        let manifests: Vec<DockerManifest> = parse("manifest.json", &self.document("manifest.json")?)?;
        let image = |manifest: DockerManifest| {
            let layer = |name: &String| {
                Ok::<_, RuntimeError>(Blob { path: self.file(name)?.to_owned(), digest: None })
            };
            Ok(Found {
                names: manifest.repo_tags.unwrap_or_default(),
                config: self.document(&manifest.config)?,
                layers: manifest.layers.unwrap_or_default().iter().map(layer).collect::<Result<_, _>>()?,
            })
        };
        manifests.into_iter().map(image).collect()
    }

    fn oci_images(&self) -> Result<Vec<Found>, RuntimeError> {
        let index: OciIndex = parse("index.json", &self.document("index.json")?)?;
        // Manifests under one name are one image for several platforms.
        let mut by_name: BTreeMap<Vec<String>, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in index.manifests {
            by_name.entry(descriptor.names()).or_default().push(descriptor);
        }
        if by_name.len() > MAX_IMAGES {
            return Err(bad(format!("more than {MAX_IMAGES} images")));
        }
        by_name.into_iter().map(|(names, choices)| self.oci_image(names, choices, 0)).collect()
    }

    /// The one of several manifests that is for this machine.
    fn oci_image(
        &self,
        names: Vec<String>,
        choices: Vec<Descriptor>,
        depth: usize,
    ) -> Result<Found, RuntimeError> {
        if depth > MAX_DEPTH {
            return Err(bad("indexes are nested too deep"));
        }
        let chosen = choose(&choices)?;
        let document = self.blob(&chosen.digest)?;
        let manifest: OciManifest = parse(&chosen.digest, &document)?;
        if let Some(nested) = manifest.manifests {
            return self.oci_image(names, nested, depth + 1);
        }
        let config = manifest.config.ok_or_else(|| bad(format!("{}: no configuration", chosen.digest)))?;
        let layer = |d: Descriptor| {
            Ok::<_, RuntimeError>(Blob {
                path: self.blob_file(&d.digest)?.to_owned(),
                digest: Some(d.digest),
            })
        };
        Ok(Found {
            names,
            config: self.blob(&config.digest)?,
            layers: manifest.layers.unwrap_or_default().into_iter().map(layer).collect::<Result<_, _>>()?,
        })
    }

    /// A document by its digest, checked.
    fn blob(&self, digest: &str) -> Result<Vec<u8>, RuntimeError> {
        let path = self.blob_file(digest)?;
        let bytes = read_document(digest, path)?;
        let real = digest_of(&bytes);
        if real != digest {
            return Err(bad(format!("{digest}: the content's digest is {real}")));
        }
        Ok(bytes)
    }

    fn blob_file(&self, digest: &str) -> Result<&Path, RuntimeError> {
        match digest.split_once(':') {
            Some(("sha256", hex)) if super::name::is_hex(hex, 64) => {
                self.file(&format!("blobs/sha256/{hex}"))
            }
            _ => Err(bad(format!("{digest:?} is not a sha256 digest"))),
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, RuntimeError> {
        read_document(name, self.file(name)?)
    }

    fn file(&self, name: &str) -> Result<&Path, RuntimeError> {
        let mut at = clean("", name);
        for _ in 0..=MAX_DEPTH {
            match self.parts.get(&at) {
                Some(Part::File(path)) => return Ok(path),
                Some(Part::Link(to)) => at.clone_from(to),
                None => break,
            }
        }
        Err(bad(format!("{name:?} is missing")))
    }
}

/// A name as a key: relative to a directory, without `.`, `..` and empty parts.
fn clean(dir: &str, name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Writes a file of at most so many bytes, and tells how many they are.
fn write(from: &mut impl Read, path: &Path, most: u64, buf: &mut [u8]) -> Result<u64, RuntimeError> {
    let failed = || system(format!("write {}", path.display()));
    let mut file = File::create(path).map_err(failed())?;
    let mut bytes = 0;
    loop {
        let n = match from.read(buf).map_err(bad)? {
            0 => return Ok(bytes),
            n => n,
        };
        bytes += n as u64;
        if bytes > most {
            return Err(bad("the archive is larger than the image store's limit"));
        }
        file.write_all(&buf[..n]).map_err(failed())?;
    }
}

fn read_document(name: &str, path: &Path) -> Result<Vec<u8>, RuntimeError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(system(format!("read {}", path.display())))?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(bad(format!("{name} is larger than {MAX_DOCUMENT} bytes")));
    }
    Ok(bytes)
}

pub(super) fn parse<T: DeserializeOwned>(name: &str, bytes: &[u8]) -> Result<T, RuntimeError> {
    serde_json::from_slice(bytes).map_err(|e| bad(format!("{name}: {e}")))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct OciIndex {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}
