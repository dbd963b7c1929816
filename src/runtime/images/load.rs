//! Archives become images of the store.
//!
//! Owns: `load`, `import` and `gathered`, the blocking part. Invariant: layers are complete, on disk and checked against their
//! digests before they get their place, and the index names an image only after all its layers have theirs.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    Limits,
    archive::{Blob, Found, Spread, parse},
    index::{Disk, LayerRecord, Origin, Record, Staging},
    manifest::architecture,
    name::given,
    skeleton::{self, Recorder, Tape},
    stream::{Hashing, Limited, bad, decompressed, digest_of, system},
    unpack::unpack,
};
use crate::runtime::RuntimeError;

/// Most layers of an image. Overlayfs takes 500, but its mount options have to fit in a page; Docker's own limit is 127.
const MAX_LAYERS: usize = 127;

/// Loads every image of an archive; returns their names.
pub(super) fn load(
    disk: &Disk,
    limits: &Limits,
    archive: impl Read,
    rename: Option<&str>,
) -> Result<Vec<String>, RuntimeError> {
    let rename = rename.map(given).transpose()?;
    let loading = disk.loading()?;
    let staging = disk.stage()?;
    let parts = staging.path.join("parts");
    fs::create_dir(&parts).map_err(system(format!("create {}", parts.display())))?;
    let spread = Spread::read(decompressed(archive)?, &parts, limits)?;
    let found = spread.images()?;
    let names = full_names(&found, rename)?;
    let mut work = Work { disk, limits, staging: &staging, new: HashMap::new(), bytes: 0, spent: false };
    let images = found
        .iter()
        .map(|image| work.image(image))
        .collect::<Result<Vec<(String, Record)>, RuntimeError>>()?;
    work.place()?;
    commit(disk, names.iter().zip(images), Origin::Hand)?;
    drop(loading);
    disk.sweep()?;
    Ok(names.into_iter().flatten().collect())
}

/// Makes an image of one layer; returns its name.
pub(super) fn import(
    disk: &Disk,
    limits: &Limits,
    rootfs: impl Read,
    name: &str,
) -> Result<String, RuntimeError> {
    let name = given(name)?;
    let loading = disk.loading()?;
    let staging = disk.stage()?;
    let mut work = Work { disk, limits, staging: &staging, new: HashMap::new(), bytes: 0, spent: false };
    let layer = work.layer(rootfs, None)?;
    let config = Configuration::of_layers(vec![layer.diff_id.clone()]);
    let document = serde_json::to_vec(&config).map_err(bad)?;
    let id = digest_of(&document);
    disk.keep_config(&id, &document)?;
    work.place()?;
    commit(disk, [(&vec![name.clone()], (id, config.record(vec![layer])))], Origin::Hand)?;
    drop(loading);
    disk.sweep()?;
    Ok(name)
}

/// Makes the image that a registry or another machine described; layers that are here need no file. The caller holds a
/// staging directory and the lock on loads.
pub(super) fn gathered(
    disk: &Disk,
    limits: &Limits,
    staging: &Staging,
    found: &Found,
    origin: Origin,
) -> Result<(), RuntimeError> {
    let mut work = Work { disk, limits, staging, new: HashMap::new(), bytes: 0, spent: true };
    let image = work.image(found)?;
    work.place()?;
    disk.note_use(&image.0);
    commit(disk, [(&found.names, image)], origin)
}

/// The digests of the unpacked layers that an image's configuration lists, as many as there are.
pub(super) fn all_layers_of(config: &[u8]) -> Result<Vec<String>, RuntimeError> {
    let config: Configuration = parse("image configuration", config)?;
    config.check(config.rootfs.diff_ids.len())?;
    Ok(config.rootfs.diff_ids)
}

/// The digests of the unpacked layers that an image's configuration lists, checked against the machine and against the
/// number of layers there are.
pub(super) fn layers_of(config: &[u8], layers: usize) -> Result<Vec<String>, RuntimeError> {
    let config: Configuration = parse("image configuration", config)?;
    config.check(layers)?;
    Ok(config.rootfs.diff_ids)
}

/// Each image's full names.
pub(super) fn full_names(found: &[Found], rename: Option<String>) -> Result<Vec<Vec<String>>, RuntimeError> {
    match (found, rename) {
        ([], _) => Err(bad("it holds no image")),
        ([_], Some(name)) => Ok(vec![vec![name]]),
        (many, Some(_)) => {
            Err(bad(format!("it holds {} images, so they cannot all get one name", many.len())))
        }
        (many, None) => many
            .iter()
            .map(|image| match image.names.as_slice() {
                [] => Err(bad("an image in it has no name; give it one with --name")),
                names => names.iter().map(|name| given(name)).collect(),
            })
            .collect(),
    }
}

fn commit<'a>(
    disk: &Disk,
    images: impl IntoIterator<Item = (&'a Vec<String>, (String, Record))>,
    origin: Origin,
) -> Result<(), RuntimeError> {
    disk.update(|index| {
        for (names, (id, record)) in images {
            for name in names {
                index.name(name, &id, origin.clone());
            }
            index.images.insert(id, record);
        }
        Ok(())
    })
}

/// A load under way.
struct Work<'a> {
    disk: &'a Disk,
    limits: &'a Limits,
    staging: &'a Staging,
    /// Layers unpacked but not yet in their place, by diff id.
    new: HashMap<String, Unplaced>,
    /// Unpacked so far.
    bytes: u64,
    /// A layer's file goes when it is unpacked: nobody else needs it.
    spent: bool,
}

struct Unplaced {
    home: PathBuf,
    bytes: u64,
}

impl Work<'_> {
    fn image(&mut self, found: &Found) -> Result<(String, Record), RuntimeError> {
        let id = digest_of(&found.config);
        let config: Configuration = parse("image configuration", &found.config)?;
        config.check(found.layers.len())?;
        let diff_ids = config.diff_ids();
        let layers = found
            .layers
            .iter()
            .zip(diff_ids)
            .map(|(blob, diff_id)| self.expected_layer(blob, diff_id))
            .collect::<Result<_, _>>()?;
        self.disk.keep_config(&id, &found.config)?;
        Ok((id, config.record(layers)))
    }

    /// A layer that the configuration names: unpacked only when it is not here yet.
    fn expected_layer(&mut self, blob: &Blob, diff_id: &str) -> Result<LayerRecord, RuntimeError> {
        if !diff_id.strip_prefix("sha256:").is_some_and(|hex| super::name::is_hex(hex, 64)) {
            return Err(bad(format!("{diff_id:?} is not a sha256 digest")));
        }
        let here = self.new.get(diff_id).map(|new| new.bytes).or_else(|| self.disk.layer_bytes(diff_id));
        if let Some(bytes) = here {
            return Ok(LayerRecord { diff_id: diff_id.to_owned(), bytes });
        }
        let file = File::open(&blob.path).map_err(system(format!("open {}", blob.path.display())))?;
        let layer = self.layer(file, blob.digest.as_deref())?;
        if layer.diff_id != diff_id {
            return Err(bad(format!("layer {diff_id}: the content's digest is {}", layer.diff_id)));
        }
        if self.spent {
            fs::remove_file(&blob.path).map_err(system(format!("remove {}", blob.path.display())))?;
        }
        Ok(layer)
    }

    /// Unpacks a layer, maybe compressed; `digest` is that of the bytes as they come.
    fn layer(&mut self, blob: impl Read, digest: Option<&str>) -> Result<LayerRecord, RuntimeError> {
        let home = self.staging.path.join(uuid::Uuid::new_v4().to_string());
        let target = home.join("fs");
        fs::create_dir_all(&target).map_err(system(format!("create {}", target.display())))?;
        let mut limits = *self.limits;
        limits.unpacked_bytes = limits.unpacked_bytes.saturating_sub(self.bytes);
        let mut blob = Hashing::new(blob);
        let (unpacked, diff_id) = {
            let kept = skeleton::place(&home);
            let failed = || system(format!("write {}", kept.display()));
            let tape = Tape::create(&kept).map_err(failed())?;
            let tar = Limited::new(decompressed(&mut blob)?, limits.tar_bytes());
            let mut tar = Hashing::new(Recorder::new(tar, tape.clone()));
            let unpacked = unpack(&mut tar, &target, &limits, &tape)?;
            let diff_id = tar.finish().map_err(bad)?;
            tape.finish().map_err(failed())?;
            (unpacked, diff_id)
        };
        if let Some(digest) = digest {
            let real = blob.finish().map_err(bad)?;
            if real != digest {
                return Err(bad(format!("layer {digest}: the content's digest is {real}")));
            }
        }
        self.bytes += unpacked.bytes;
        write_size(&home, unpacked.bytes)?;
        self.new.insert(diff_id.clone(), Unplaced { home, bytes: unpacked.bytes });
        Ok(LayerRecord { diff_id, bytes: unpacked.bytes })
    }

    /// Moves the new layers to their places, after they are on disk for sure.
    fn place(&mut self) -> Result<(), RuntimeError> {
        if self.new.is_empty() {
            return Ok(());
        }
        let staging = &self.staging.path;
        let sync = || -> std::io::Result<()> { Ok(rustix::fs::syncfs(File::open(staging)?)?) };
        sync().map_err(system(format!("sync {}", staging.display())))?;
        for (diff_id, new) in self.new.drain() {
            place(&new.home, &self.disk.layer_home(&diff_id))?;
        }
        Ok(())
    }
}

/// Notes a layer's size beside it.
pub(super) fn write_size(home: &Path, bytes: u64) -> Result<(), RuntimeError> {
    let path = home.join("bytes");
    fs::write(&path, bytes.to_string()).map_err(system(format!("write {}", path.display())))
}

/// Moves a layer to its place; when another load was faster, its layer is as good.
pub(super) fn place(home: &Path, place: &Path) -> Result<(), RuntimeError> {
    match fs::rename(home, place) {
        Err(e) if !place.join("bytes").exists() => Err(system(format!("create {}", place.display()))(e)),
        _ => Ok(()),
    }
}

/// An image's configuration, as far as it matters here (OCI image specification, `config.md`).
#[derive(Serialize, Deserialize)]
pub(super) struct Configuration {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<Settings>,
    rootfs: RootFs,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Settings {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: Option<String>,
    user: Option<String>,
    stop_signal: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

impl Configuration {
    /// An image of layers alone.
    pub(super) fn of_layers(diff_ids: Vec<String>) -> Configuration {
        Configuration {
            architecture: architecture().to_owned(),
            os: "linux".to_owned(),
            config: None,
            rootfs: RootFs { diff_ids },
        }
    }

    /// Its layers, bottom first.
    pub(super) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    /// Whether it is for this machine and for an image of so many layers.
    pub(super) fn check(&self, layers: usize) -> Result<(), RuntimeError> {
        self.check_platform()?;
        self.check_layers(layers)
    }

    fn check_platform(&self) -> Result<(), RuntimeError> {
        let here = architecture();
        if (self.os.is_empty() || self.os == "linux")
            && (self.architecture.is_empty() || self.architecture == here)
        {
            return Ok(());
        }
        Err(bad(format!("the image is for {}/{}; this machine is linux/{here}", self.os, self.architecture)))
    }

    fn check_layers(&self, layers: usize) -> Result<(), RuntimeError> {
        let listed = self.rootfs.diff_ids.len();
        if layers != listed {
            return Err(bad(format!("{layers} layers, but the configuration lists {listed}")));
        }
        if listed > MAX_LAYERS {
            return Err(bad(format!("{listed} layers; {MAX_LAYERS} are possible")));
        }
        Ok(())
    }

    fn record(&self, layers: Vec<LayerRecord>) -> Record {
        let settings = self.config.clone().unwrap_or_default();
        Record {
            layers,
            entrypoint: settings.entrypoint.unwrap_or_default(),
            cmd: settings.cmd.unwrap_or_default(),
            env: settings.env.unwrap_or_default(),
            working_dir: settings.working_dir.unwrap_or_default(),
            user: settings.user.unwrap_or_default(),
            stop_signal: settings.stop_signal.filter(|signal| !signal.is_empty()),
        }
    }
}
