//! Images on their way out: one tar that is an OCI layout and a docker-archive at once, as `docker save` writes it.
//!
//! Owns: [`save`]. Layers are written from their unpacked files ([`super::skeleton`]), configurations as they came, so a
//! saved image has the same id wherever it is loaded. Invariant: the reader fails if a layer's digest is not its own any
//! more; it never ends early as if all were well. Bounded: a few buffers are on their way.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use super::{
    ImageStore,
    index::{Disk, Record},
    name::{is_hex, normalize},
    skeleton,
    stream::{BUFFER, digest_of, format_digest, system},
};
use crate::runtime::{Reader, RuntimeError};

/// Buffers on their way to a reader that is slower.
const ON_THEIR_WAY: usize = 4;
/// The names of the layout's documents, as the OCI image specification has them.
const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What is to be written.
struct Plan {
    /// Name and content.
    documents: Vec<(String, Vec<u8>)>,
    /// Digest and length of each layer, each once.
    layers: BTreeMap<String, u64>,
    store: ImageStore,
    /// While held, no layer goes.
    _loading: File,
}

/// Writes images as one tar. Fails at once when one of them is not here or cannot be written again.
pub(super) async fn save(store: &ImageStore, names: Vec<String>) -> Result<Reader, RuntimeError> {
    let store = store.clone();
    let plan = super::blocking(move || plan(store, &names)).await?;
    Ok(written(move |out| plan.write(out)))
}

/// What a thread writes, to be read. The reader fails when the thread does.
pub(super) fn written(write: impl FnOnce(&mut Out) -> io::Result<()> + Send + 'static) -> Reader {
    let (sender, receiver) = mpsc::channel(ON_THEIR_WAY);
    tokio::task::spawn_blocking(move || {
        let mut out = Out { sender: Some(sender), buffer: Vec::with_capacity(BUFFER) };
        let written = write(&mut out);
        out.close(written);
    });
    let chunks = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    });
    Box::pin(StreamReader::new(Box::pin(chunks)))
}

/// Writes a layer's tar as it came, and fails in the end if it is not that any more.
pub(super) fn layer(home: &Path, diff_id: &str, out: &mut Out) -> io::Result<()> {
    let mut hashing = Hashed { into: out, hash: sha2::Digest::new() };
    skeleton::replay(home, &mut hashing)?;
    let real = format_digest(&sha2::Digest::finalize(hashing.hash));
    if real != diff_id {
        return Err(io::Error::other(format!("layer {diff_id} cannot be written again")));
    }
    Ok(())
}

fn plan(store: ImageStore, names: &[String]) -> Result<Plan, RuntimeError> {
    let disk = &store.disk;
    let loading = disk.loading()?;
    let index = disk.read()?;
    // One entry an image, with all of its names that were asked for.
    let mut images: BTreeMap<String, (Vec<String>, &Record)> = BTreeMap::new();
    for name in names {
        let (id, tags) = match name.strip_prefix("sha256:") {
            Some(hex) if is_hex(hex, 64) => {
                let all = index.image(name).map(|image| image.names).unwrap_or_default();
                (Some(name.clone()), all)
            }
            _ => {
                let full = normalize(name)?;
                (index.names.get(&full).cloned(), vec![full])
            }
        };
        let found = id.and_then(|id| Some((index.images.get(&id)?, id)));
        let (record, id) = found.ok_or_else(|| RuntimeError::ImageNotFound(name.clone()))?;
        let known = &mut images.entry(id).or_insert_with(|| (Vec::new(), record)).0;
        known.extend(tags.iter().filter_map(|name| tag(name)));
    }
    let (mut documents, mut layers) = (Vec::new(), BTreeMap::new());
    let (mut docker, mut oci) = (Vec::new(), Vec::new());
    for (id, (mut tags, record)) in images {
        tags.sort();
        tags.dedup();
        let config = disk.config(&id)?.ok_or_else(|| {
            RuntimeError::Config(format!(
                "image {}: it was made here of a program, or by an earlier version, and cannot be saved",
                tags.first().unwrap_or(&id)
            ))
        })?;
        let mut descriptors = Vec::new();
        for layer in &record.layers {
            let bytes = length(disk, &layer.diff_id)?;
            layers.insert(layer.diff_id.clone(), bytes);
            descriptors.push(json!({"mediaType": LAYER, "digest": layer.diff_id, "size": bytes}));
        }
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": id, "size": config.len()},
            "layers": descriptors,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = digest_of(&manifest);
        let entry = |annotations: Value| json!({"mediaType": MANIFEST, "digest": digest, "size": manifest.len(), "annotations": annotations});
        if tags.is_empty() {
            oci.push(entry(json!({})));
        }
        oci.extend(tags.iter().map(|name| {
            let tag = name.rsplit(':').next().unwrap_or_default();
            entry(json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag}))
        }));
        let paths: Vec<String> = record.layers.iter().map(|layer| blob(&layer.diff_id)).collect();
        docker.push(json!({"Config": blob(&id), "RepoTags": tags, "Layers": paths}));
        documents.push((blob(&digest), manifest));
        documents.push((blob(&id), config));
    }
    documents.push(("oci-layout".into(), LAYOUT.as_bytes().to_vec()));
    let index = json!({"schemaVersion": 2, "manifests": oci});
    documents.push(("index.json".into(), index.to_string().into_bytes()));
    documents.push(("manifest.json".into(), Value::from(docker).to_string().into_bytes()));
    Ok(Plan { documents, layers, store, _loading: loading })
}

fn length(disk: &Disk, diff_id: &str) -> Result<u64, RuntimeError> {
    skeleton::tar_bytes(&disk.layer_home(diff_id)).map_err(system(format!("read layer {diff_id} to save it")))
}

/// A name as archives have them: with a tag. What is known by a digest alone has none.
fn tag(full: &str) -> Option<String> {
    let (named, _) = full.split_once('@').unwrap_or((full, ""));
    let slash = named.rfind('/').map_or(0, |at| at + 1);
    named[slash..].contains(':').then(|| named.to_owned())
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

impl Plan {
    fn write(&self, out: &mut Out) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        for (name, content) in &self.documents {
            tar.append(&header(name, content.len() as u64)?, content.as_slice())?;
        }
        for (diff_id, bytes) in &self.layers {
            let header = header(&blob(diff_id), *bytes)?;
            let out = tar.get_mut();
            out.write_all(header.as_bytes())?;
            layer(&self.store.disk.layer_home(diff_id), diff_id, out)?;
            let padding = (BLOCK - bytes % BLOCK) % BLOCK;
            io::copy(&mut io::repeat(0).take(padding), *out)?;
        }
        tar.finish()
    }
}

/// What a tar is measured in.
const BLOCK: u64 = 512;

/// The header of a file; all names here are short.
fn header(name: &str, bytes: u64) -> io::Result<tar::Header> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_path(name)?;
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    Ok(header)
}

struct Hashed<'a, W> {
    into: &'a mut W,
    hash: sha2::Sha256,
}

impl<W: Write> Write for Hashed<'_, W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.into.write(buf)?;
        sha2::Digest::update(&mut self.hash, &buf[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.into.flush()
    }
}

/// The writing thread's end. Dropped without [`close`](Self::close) it tells the reader that something went wrong.
pub(super) struct Out {
    sender: Option<mpsc::Sender<io::Result<Bytes>>>,
    buffer: Vec<u8>,
}

impl Out {
    fn close(mut self, written: io::Result<()>) {
        let last = written.and_then(|()| self.flush());
        if let (Some(sender), Err(error)) = (self.sender.take(), last) {
            // A reader that has gone wants to know nothing.
            let _ = sender.blocking_send(Err(error));
        }
    }
}

impl Write for Out {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(buf);
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(BUFFER)));
        let sender = self.sender.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        sender.blocking_send(Ok(chunk)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.try_send(Err(io::Error::other("the image's writer has died")));
        }
    }
}
