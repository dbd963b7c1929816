//! Images on their way into an engine that keeps images itself: checked here, handed over as one docker-archive.
//!
//! Owns: [`pack`], [`pack_rootfs`], [`pack_program`]. Invariant: what is handed over has passed the same checks as what
//! the image store unpacks (digests, platform, limits, no path that leads out), so that both refuse alike, in the same
//! words. Leaves to others: keeping images.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{
    Limits,
    archive::{Blob, Found, Spread, parse},
    builtin,
    load::{Configuration, full_names},
    manifest::architecture,
    name::normalize,
    stream::{Blocking, Hashing, Limited, bad, decompressed, digest_of, system},
    unpack,
};
use crate::runtime::{Reader, RuntimeError};

/// Checked images in one file; the file goes when this is dropped.
pub struct Packed {
    /// A docker-archive.
    pub archive: PathBuf,
    /// Full names of the images in it.
    pub names: Vec<String>,
    scratch: PathBuf,
}

impl Drop for Packed {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.scratch) {
            tracing::warn!(path = %self.scratch.display(), %error, "left an image archive behind");
        }
    }
}

/// Checks an archive (docker-archive or OCI layout, maybe gzip) and packs its images. `rename` names the only one.
pub async fn pack(archive: Reader, rename: Option<String>, dir: &Path) -> Result<Packed, RuntimeError> {
    let rename = rename.as_deref().map(normalize).transpose()?;
    let (mut work, archive) = (Work::new(dir)?, Blocking::new(archive));
    super::blocking(move || {
        let parts = work.packed.scratch.join("parts");
        fs::create_dir(&parts).map_err(system(format!("create {}", parts.display())))?;
        let found = Spread::read(decompressed(archive)?, &parts, &work.limits)?.images()?;
        let names = full_names(&found, rename)?;
        for (image, names) in found.iter().zip(names) {
            work.image(image, names)?;
        }
        work.finish()
    })
    .await
}

/// Packs a root file system's tar (maybe gzip) as an image of one layer.
pub async fn pack_rootfs(rootfs: Reader, name: &str, dir: &Path) -> Result<Packed, RuntimeError> {
    let name = normalize(name)?;
    let (mut work, rootfs) = (Work::new(dir)?, Blocking::new(rootfs));
    super::blocking(move || {
        let layer = work.layer(rootfs, None)?;
        let config = Configuration::of_layers(vec![layer.clone()]);
        work.add(&serde_json::to_vec(&config).map_err(bad)?, vec![layer], vec![name])?;
        work.finish()
    })
    .await
}

/// The label of packed programs that tells which file they were made of.
pub const PROGRAM_LABEL: &str = "local.troupe.program";

/// What an executable is known by: its label's value.
pub fn program_identity(exe: &Path) -> Result<String, RuntimeError> {
    let of_exe = fs::metadata(exe).map_err(system(format!("read {}", exe.display())))?;
    Ok(digest_of(builtin::identity(&of_exe).as_bytes()))
}

/// Packs our own executable under names with entrypoints: the built-in image, and others of the same one layer.
pub async fn pack_program(
    exe: &Path,
    images: Vec<(String, Vec<String>)>,
    dir: &Path,
) -> Result<Packed, RuntimeError> {
    let (mut work, exe) = (Work::new(dir)?, exe.to_owned());
    super::blocking(move || {
        let identity = program_identity(&exe)?;
        let tar = work.packed.scratch.join("program.tar");
        write_program(&exe, &tar).map_err(system(format!("write {}", tar.display())))?;
        let layer = work.layer(open(&tar)?, None)?;
        for (name, entrypoint) in images {
            let config = json!({
                "architecture": architecture(),
                "os": "linux",
                "config": {
                    "Entrypoint": entrypoint,
                    "User": builtin::USER,
                    "WorkingDir": "/",
                    "Labels": {PROGRAM_LABEL: identity},
                },
                "rootfs": {"type": "layers", "diff_ids": [layer]},
            });
            work.add(config.to_string().as_bytes(), vec![layer.clone()], vec![name])?;
        }
        work.finish()
    })
    .await
}

fn write_program(exe: &Path, tar: &Path) -> io::Result<()> {
    let mut tar = tar::Builder::new(BufWriter::new(File::create(tar)?));
    let mut append = |kind, name: &str, mode, size, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        tar.append_data(&mut header, name, content)
    };
    for (name, mode) in builtin::DIRS.iter().filter(|(name, _)| !name.is_empty()) {
        append(tar::EntryType::Directory, name, *mode, 0, &mut io::empty())?;
    }
    for (name, text) in [("etc/passwd", builtin::PASSWD), ("etc/group", builtin::GROUP)] {
        append(tar::EntryType::Regular, name, 0o644, text.len() as u64, &mut text.as_bytes())?;
    }
    let mut exe = File::open(exe)?;
    let size = exe.metadata()?.size();
    append(tar::EntryType::Regular, "hello", 0o755, size, &mut exe)?;
    tar.into_inner()?.flush()
}

/// A packing under way.
struct Work {
    packed: Packed,
    limits: Limits,
    /// What the archive's table of contents says.
    manifest: Vec<Value>,
    /// Name in the archive and file, each once.
    files: Vec<(String, PathBuf)>,
    /// Bytes of layers so far.
    bytes: u64,
}

impl Work {
    fn new(dir: &Path) -> Result<Work, RuntimeError> {
        let scratch = dir.join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&scratch).map_err(system(format!("create {}", scratch.display())))?;
        let packed = Packed { archive: scratch.join("archive.tar"), names: Vec::new(), scratch };
        Ok(Work { packed, limits: Limits::default(), manifest: Vec::new(), files: Vec::new(), bytes: 0 })
    }

    fn image(&mut self, found: &Found, names: Vec<String>) -> Result<(), RuntimeError> {
        let config: Configuration = parse("image configuration", &found.config)?;
        config.check(found.layers.len())?;
        let diff_ids = config.diff_ids().to_vec();
        for (Blob { path, digest }, diff_id) in found.layers.iter().zip(&diff_ids) {
            if self.files.iter().any(|(name, _)| *name == layer_name(diff_id)) {
                continue;
            }
            let real = self.layer(open(path)?, digest.as_deref())?;
            if real != *diff_id {
                return Err(bad(format!("layer {diff_id}: the content's digest is {real}")));
            }
        }
        self.add(&found.config, diff_ids, names)
    }

    /// Checks and keeps a layer, maybe compressed; `digest` is that of the bytes as they come. Returns its diff id.
    fn layer(&mut self, blob: impl Read, digest: Option<&str>) -> Result<String, RuntimeError> {
        let path = self.packed.scratch.join(format!("layer-{}", self.files.len()));
        let failed = || system(format!("write {}", path.display()));
        let mut blob = Hashing::new(blob);
        let diff_id = {
            let mut tar = Hashing::new(Limited::new(decompressed(&mut blob)?, self.limits.tar_bytes()));
            let mut file = File::create(&path).map_err(failed())?;
            copy(&mut tar, &mut file, failed)?;
            tar.finish().map_err(bad)?
        };
        if let Some(digest) = digest {
            let real = blob.finish().map_err(bad)?;
            if real != digest {
                return Err(bad(format!("layer {digest}: the content's digest is {real}")));
            }
        }
        let mut limits = self.limits;
        limits.unpacked_bytes = limits.unpacked_bytes.saturating_sub(self.bytes);
        self.bytes += unpack::check(open(&path)?, &limits)?.bytes;
        self.files.push((layer_name(&diff_id), path));
        Ok(diff_id)
    }

    /// Notes an image whose layers are kept.
    fn add(&mut self, config: &[u8], diff_ids: Vec<String>, names: Vec<String>) -> Result<(), RuntimeError> {
        let name = format!("{}.json", digest_of(config).trim_start_matches("sha256:"));
        let path = self.packed.scratch.join(&name);
        fs::write(&path, config).map_err(system(format!("write {}", path.display())))?;
        let layers: Vec<String> = diff_ids.iter().map(|diff_id| layer_name(diff_id)).collect();
        self.manifest.push(json!({"Config": name, "RepoTags": names, "Layers": layers}));
        self.files.push((name, path));
        self.packed.names.extend(names);
        Ok(())
    }

    fn finish(self) -> Result<Packed, RuntimeError> {
        let path = self.packed.scratch.join("manifest.json");
        fs::write(&path, Value::from(self.manifest).to_string())
            .map_err(system(format!("write {}", path.display())))?;
        let archive = &self.packed.archive;
        let write = || -> io::Result<()> {
            let mut tar = tar::Builder::new(BufWriter::new(File::create(archive)?));
            for (name, path) in self.files.iter().chain([&("manifest.json".to_owned(), path.clone())]) {
                tar.append_path_with_name(path, name)?;
            }
            tar.into_inner()?.flush()
        };
        write().map_err(system(format!("write {}", archive.display())))?;
        Ok(self.packed)
    }
}

fn layer_name(diff_id: &str) -> String {
    format!("{}/layer.tar", diff_id.trim_start_matches("sha256:"))
}

fn open(path: &Path) -> Result<File, RuntimeError> {
    File::open(path).map_err(system(format!("open {}", path.display())))
}

/// Copies; reading badly is the archive's fault, writing badly the machine's.
fn copy<E: FnOnce(io::Error) -> RuntimeError>(
    from: &mut impl Read,
    to: &mut File,
    failed: impl Fn() -> E,
) -> Result<(), RuntimeError> {
    let mut buffer = vec![0; super::stream::BUFFER];
    loop {
        match from.read(&mut buffer).map_err(bad)? {
            0 => return Ok(()),
            n => to.write_all(&buffer[..n]).map_err(failed())?,
        }
    }
}
