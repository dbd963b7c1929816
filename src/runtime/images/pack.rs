//! Images on their way into an engine that keeps images itself: checked here, handed over as files or one docker-archive.
//!
//! Owns: [`pack`], [`pack_parts`], [`pack_rootfs`], [`pack_program`]. Invariant: what is handed over has passed the same checks as what
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
    name::given,
    share,
    stream::{Blocking, Hashing, Limited, bad, decompressed, digest_of, system},
    unpack,
};
use crate::runtime::{
    Reader, RuntimeError,
    share::{PartSource, SharedImage},
};

/// Checked images as files, which go when this is dropped.
pub struct Packed {
    /// Full names of the images.
    pub names: Vec<String>,
    /// The images.
    pub images: Vec<PackedImage>,
    /// Layers, uncompressed: digest and file, each once.
    pub layers: Vec<(String, PathBuf)>,
    scratch: PathBuf,
}

/// One image of those.
pub struct PackedImage {
    /// Its full names.
    pub names: Vec<String>,
    /// Its configuration.
    pub config: PathBuf,
    /// The digest of that: the image's id.
    pub id: String,
    /// Digests of its layers, lowest first.
    pub layers: Vec<String>,
}

impl Packed {
    /// Writes all into one docker-archive, which goes with the rest.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn archive(&self) -> Result<PathBuf, RuntimeError> {
        let (archive, table) = (self.scratch.join("archive.tar"), self.scratch.join("manifest.json"));
        let manifest = self.images.iter().map(|image| {
            let layers: Vec<String> = image.layers.iter().map(|digest| layer_name(digest)).collect();
            json!({"Config": config_name(&image.id), "RepoTags": image.names, "Layers": layers})
        });
        fs::write(&table, Value::from_iter(manifest).to_string())
            .map_err(system(format!("write {}", table.display())))?;
        let write = || -> io::Result<()> {
            let mut tar = tar::Builder::new(BufWriter::new(File::create(&archive)?));
            for (digest, path) in &self.layers {
                tar.append_path_with_name(path, layer_name(digest))?;
            }
            for image in &self.images {
                tar.append_path_with_name(&image.config, config_name(&image.id))?;
            }
            tar.append_path_with_name(&table, "manifest.json")?;
            tar.into_inner()?.flush()
        };
        write().map_err(system(format!("write {}", archive.display())))?;
        Ok(archive)
    }
}

/// The image that sandboxes are made of: our own program, which holds namespaces open.
pub const PAUSE_IMAGE: &str = "troupe.local/pause:latest";

/// The images made of our own program: names and entrypoints.
pub fn programs() -> Vec<(String, Vec<String>)> {
    let entrypoint =
        |more: &[&str]| ["/hello", "hello"].iter().chain(more).map(|word| (*word).to_owned()).collect();
    vec![
        (super::BUILTIN_IMAGE.to_owned(), entrypoint(&[])),
        (PAUSE_IMAGE.to_owned(), entrypoint(&["--pause"])),
    ]
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
    let rename = rename.as_deref().map(given).transpose()?;
    let (mut work, archive) = (Work::new(dir)?, Blocking::new(archive));
    super::blocking(move || {
        let parts = work.parts()?;
        let found = Spread::read(decompressed(archive)?, &parts, &work.limits)?.images()?;
        let names = full_names(&found, rename)?;
        for (image, names) in found.iter().zip(names) {
            work.image(image, names)?;
        }
        work.finish()
    })
    .await
}

/// Packs an image that others give, part by part, under its offered name.
pub async fn pack_parts(
    offer: &SharedImage,
    source: &dyn PartSource,
    dir: &Path,
) -> Result<Packed, RuntimeError> {
    let mut work = Work::new(dir)?;
    let parts = work.parts()?;
    let found = share::whole(offer, source, &parts, &work.limits).await?;
    super::blocking(move || {
        work.image(&found, found.names.clone())?;
        work.finish()
    })
    .await
}

/// Packs a root file system's tar (maybe gzip) as an image of one layer.
pub async fn pack_rootfs(rootfs: Reader, name: &str, dir: &Path) -> Result<Packed, RuntimeError> {
    let name = given(name)?;
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
    /// Bytes of layers so far.
    bytes: u64,
}

impl Work {
    fn new(dir: &Path) -> Result<Work, RuntimeError> {
        let scratch = dir.join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(&scratch).map_err(system(format!("create {}", scratch.display())))?;
        let packed = Packed { names: Vec::new(), images: Vec::new(), layers: Vec::new(), scratch };
        Ok(Work { packed, limits: Limits::default(), bytes: 0 })
    }

    /// Where what comes is kept until it is packed.
    fn parts(&self) -> Result<PathBuf, RuntimeError> {
        let parts = self.packed.scratch.join("parts");
        fs::create_dir(&parts).map_err(system(format!("create {}", parts.display())))?;
        Ok(parts)
    }

    fn image(&mut self, found: &Found, names: Vec<String>) -> Result<(), RuntimeError> {
        let config: Configuration = parse("image configuration", &found.config)?;
        config.check(found.layers.len())?;
        let diff_ids = config.diff_ids().to_vec();
        for (Blob { path, digest }, diff_id) in found.layers.iter().zip(&diff_ids) {
            if self.packed.layers.iter().any(|(digest, _)| digest == diff_id) {
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
        let path = self.packed.scratch.join(format!("layer-{}", self.packed.layers.len()));
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
        self.packed.layers.push((diff_id.clone(), path));
        Ok(diff_id)
    }

    /// Notes an image whose layers are kept.
    fn add(&mut self, config: &[u8], diff_ids: Vec<String>, names: Vec<String>) -> Result<(), RuntimeError> {
        let id = digest_of(config);
        let path = self.packed.scratch.join(config_name(&id));
        fs::write(&path, config).map_err(system(format!("write {}", path.display())))?;
        self.packed.names.extend(names.iter().cloned());
        self.packed.images.push(PackedImage { names, config: path, id, layers: diff_ids });
        Ok(())
    }

    fn finish(self) -> Result<Packed, RuntimeError> {
        Ok(self.packed)
    }
}

fn config_name(id: &str) -> String {
    format!("{}.json", id.trim_start_matches("sha256:"))
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
