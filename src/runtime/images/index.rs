//! What the store knows on disk: names, images, and who keeps which.
//!
//! Owns: `index.json`, the locks and the pins. Invariants: the index is replaced in one rename, so every reader finds
//! a whole one; an image it names has all its layers. An image stays while it has a name or a pin; a layer stays while
//! an image has it or a load is under way. Locks are `flock`s: they end with the process that held them.
//!
//! ```text
//! DIR/index.json   DIR/layers/HEX/fs/…   DIR/pins/OWNER = image id   DIR/staging/UUID/… (locked while in use)
//! DIR/used/HEX (its time is that of an image's last use)   DIR/configs/HEX = an image's configuration as it came
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{name::repository, stream::system};
use crate::runtime::{Image, RuntimeError};

/// The index's format; another number is another program's.
const VERSION: u32 = 1;

/// All that is known of images.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    /// Full name → image id.
    pub(super) names: BTreeMap<String, String>,
    /// Those of the names that came from a registry; the others were brought by hand.
    #[serde(default)]
    pub(super) pulled: BTreeSet<String>,
    /// What else is known of how names came.
    #[serde(default)]
    pub(super) notes: BTreeMap<String, Note>,
    /// Names under which somebody had brought an image and then removed it, until somebody brings another under them.
    #[serde(default)]
    pub(super) removed: BTreeMap<String, Removal>,
    /// By image id.
    pub(super) images: BTreeMap<String, Record>,
}

impl Default for Index {
    fn default() -> Index {
        Index {
            version: VERSION,
            names: BTreeMap::new(),
            pulled: BTreeSet::new(),
            notes: BTreeMap::new(),
            removed: BTreeMap::new(),
            images: BTreeMap::new(),
        }
    }
}

/// How an image came by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Somebody brought it.
    Hand,
    /// Somebody brought it to another machine, then; it was taken from there.
    Copy {
        /// Milliseconds since the epoch.
        since_ms: i64,
    },
    /// From its registry, which asked for no credentials if `open`.
    Registry {
        /// See there.
        open: bool,
        /// Of the manifest or index that the name stood for, if it was seen.
        digest: Option<String>,
    },
}

/// What is remembered of a name beside [`Index::pulled`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// It was brought by hand elsewhere.
    pub(super) copy: bool,
    /// Its registry gave it without credentials.
    pub(super) open: bool,
    /// When it was brought by hand, here or elsewhere; milliseconds since the epoch.
    pub(super) since_ms: i64,
    /// Of the manifest or index that its registry gave.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) digest: Option<String>,
}

/// What somebody brought under a name and then removed: copies elsewhere are to be taken back with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Removal {
    /// The image's id.
    pub(super) id: String,
    /// When it was removed; milliseconds since the epoch.
    pub(super) at_ms: i64,
}

/// Removals that are remembered, the newest ones: more than anybody takes back while a machine with copies is away.
const REMOVALS: usize = 256;

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Bottom first, as images list them.
    pub(super) layers: Vec<LayerRecord>,
    pub(super) entrypoint: Vec<String>,
    pub(super) cmd: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) working_dir: String,
    pub(super) user: String,
    pub(super) stop_signal: Option<String>,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// `sha256:…` of its uncompressed tar.
    pub(super) diff_id: String,
    /// Bytes of its files.
    pub(super) bytes: u64,
}

impl Index {
    /// Gives an image a name.
    pub(super) fn name(&mut self, name: &str, id: &str, origin: Origin) {
        self.names.insert(name.to_owned(), id.to_owned());
        // What comes from elsewhere leaves it: what was taken back stays so.
        if origin == Origin::Hand {
            self.removed.remove(name);
        }
        match origin {
            Origin::Registry { .. } => self.pulled.insert(name.to_owned()),
            Origin::Hand | Origin::Copy { .. } => self.pulled.remove(name),
        };
        let note = match origin {
            Origin::Hand => Note { since_ms: now_ms(), ..Note::default() },
            Origin::Copy { since_ms } => Note { copy: true, since_ms, ..Note::default() },
            Origin::Registry { open, digest } => Note { open, digest, ..Note::default() },
        };
        self.notes.insert(name.to_owned(), note);
    }

    /// Takes a name away; whether it was there.
    pub(super) fn unname(&mut self, name: &str) -> bool {
        let Note { copy, since_ms, .. } = self.notes.remove(name).unwrap_or_default();
        let pulled = self.pulled.remove(name);
        let Some(id) = self.names.remove(name) else { return false };
        if !copy && !pulled {
            // Not before it was brought, whatever was done to the clock since.
            self.removed.insert(name.to_owned(), Removal { id, at_ms: now_ms().max(since_ms) });
            if self.removed.len() > REMOVALS {
                let oldest = self.removed.iter().min_by_key(|(_, removal)| removal.at_ms);
                let oldest = oldest.map(|(name, _)| name.clone());
                oldest.map(|name| self.removed.remove(&name));
            }
        }
        true
    }

    /// The image of an id with its names.
    pub(super) fn image(&self, id: &str) -> Option<Image> {
        let record = self.images.get(id)?;
        let names: Vec<String> =
            self.names.iter().filter(|(_, of)| *of == id).map(|(name, _)| name.clone()).collect();
        let digest = |name: &String| {
            let digest = self.notes.get(name)?.digest.as_deref()?;
            Some(format!("{}@{digest}", repository(name)))
        };
        let digests: BTreeSet<String> = names.iter().filter_map(digest).collect();
        Some(Image {
            id: id.to_owned(),
            names,
            size_bytes: record.layers.iter().map(|layer| layer.bytes).sum(),
            user: record.user.clone(),
            digests: digests.into_iter().collect(),
        })
    }
}

/// The store's directory.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
}

/// How a lock is shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Shared,
    Exclusive,
}

impl Disk {
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory ready and removes what crashed processes left.
    pub(super) fn open(dir: &Path) -> Result<Disk, RuntimeError> {
        let disk = Disk { dir: dir.to_owned() };
        for sub in ["layers", "pins", "staging", "used", "configs"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).map_err(system(format!("create {}", path.display())))?;
        }
        disk.read()?;
        disk.clean_staging()?;
        disk.sweep()?;
        Ok(disk)
    }

    /// The index as it is now.
    pub(super) fn read(&self) -> Result<Index, RuntimeError> {
        let path = self.dir.join("index.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Index::default()),
            Err(e) => return Err(system(format!("read {}", path.display()))(e)),
        };
        let damaged =
            |cause: String| RuntimeError::System { operation: format!("read {}", path.display()), cause };
        let index: Index = serde_json::from_slice(&text).map_err(|e| damaged(e.to_string()))?;
        if index.version != VERSION {
            return Err(damaged(format!(
                "it has version {}, this program knows {VERSION}; use the program that wrote it, or remove the directory",
                index.version
            )));
        }
        Ok(index)
    }

    /// Changes the index; nobody else changes it meanwhile. Nothing is written when `change` fails.
    pub(super) fn update<T>(
        &self,
        change: impl FnOnce(&mut Index) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let _lock = self.lock(Hold::Exclusive)?;
        let mut index = self.read()?;
        let result = change(&mut index)?;
        self.write(&index)?;
        Ok(result)
    }

    fn write(&self, index: &Index) -> Result<(), RuntimeError> {
        let (path, new) = (self.dir.join("index.json"), self.dir.join("index.json.new"));
        let put = || {
            let mut file = File::create(&new)?;
            serde_json::to_writer_pretty(io::BufWriter::new(&file), index)?;
            file.flush()?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        put().map_err(system(format!("write {}", path.display())))
    }

    /// Where a layer's files are, whether or not they are there.
    pub(super) fn layer(&self, diff_id: &str) -> PathBuf {
        self.layer_home(diff_id).join("fs")
    }

    /// The directory that stands for a layer: present = complete.
    pub(super) fn layer_home(&self, diff_id: &str) -> PathBuf {
        self.dir.join("layers").join(diff_id.trim_start_matches("sha256:"))
    }

    /// The size of a layer that is present.
    pub(super) fn layer_bytes(&self, diff_id: &str) -> Option<u64> {
        fs::read_to_string(self.layer_home(diff_id).join("bytes")).ok()?.trim().parse().ok()
    }

    /// Guards the index against change (shared) or use (exclusive) by others.
    pub(super) fn lock(&self, hold: Hold) -> Result<File, RuntimeError> {
        self.lock_file("lock", hold)
    }

    /// While held, no layer is removed.
    pub(super) fn loading(&self) -> Result<File, RuntimeError> {
        self.lock_file("loads.lock", Hold::Shared)
    }

    fn lock_file(&self, name: &str, hold: Hold) -> Result<File, RuntimeError> {
        let path = self.dir.join(name);
        let failed = || system(format!("lock {}", path.display()));
        let file = lock_target(&path).map_err(failed())?;
        match hold {
            Hold::Shared => file.lock_shared(),
            Hold::Exclusive => file.lock(),
        }
        .map_err(failed())?;
        Ok(file)
    }

    /// A new directory to work in, removed when the guard drops.
    pub(super) fn stage(&self) -> Result<Staging, RuntimeError> {
        let path = self.dir.join("staging").join(uuid::Uuid::new_v4().to_string());
        let make = || {
            fs::create_dir(&path)?;
            let lock = File::open(&path)?;
            lock.lock()?;
            Ok(lock)
        };
        // Between the two calls another process may take it for a leftover and remove it: then the next use fails with
        // "not found", and the load can be repeated.
        let lock = make().map_err(system(format!("create {}", path.display())))?;
        Ok(Staging { path, _lock: lock })
    }

    fn clean_staging(&self) -> Result<(), RuntimeError> {
        let staging = self.dir.join("staging");
        let failed = || system(format!("clean {}", staging.display()));
        for entry in fs::read_dir(&staging).map_err(failed())? {
            let path = entry.map_err(failed())?.path();
            // In use by another process, or gone meanwhile.
            let Ok(lock) = File::open(&path) else { continue };
            if lock.try_lock().is_ok() {
                remove_tree(&path).map_err(failed())?;
            }
        }
        Ok(())
    }

    /// Keeps an image for an owner.
    pub(super) fn pin(&self, owner: &str, image: &str) -> Result<(), RuntimeError> {
        let path = self.pin_path(owner)?;
        fs::write(&path, image).map_err(system(format!("write {}", path.display())))
    }

    /// Ends an owner's pin.
    pub(super) fn unpin(&self, owner: &str) -> Result<(), RuntimeError> {
        let path = self.pin_path(owner)?;
        if let Ok(image) = fs::read_to_string(&path) {
            self.note_use(&image);
        }
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(system(format!("remove {}", path.display()))(e))
            }
            _ => Ok(()),
        }
    }

    fn pin_path(&self, owner: &str) -> Result<PathBuf, RuntimeError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if owner.is_empty() || owner.starts_with('.') || owner.len() > 200 || !owner.bytes().all(plain) {
            return Err(RuntimeError::Config(format!("{owner:?} cannot own an image: not a plain id")));
        }
        Ok(self.dir.join("pins").join(owner))
    }

    /// The ids of the images that have an owner.
    pub(super) fn pinned(&self) -> Result<BTreeSet<String>, RuntimeError> {
        let dir = self.dir.join("pins");
        let read = || fs::read_dir(&dir)?.map(|e| fs::read_to_string(e?.path())).collect::<io::Result<_>>();
        read().map_err(system(format!("read {}", dir.display())))
    }

    /// Notes that an image was used until now. What is lost of that only makes it look older.
    pub(super) fn note_use(&self, image: &str) {
        if let Err(error) = fs::write(self.used(image), "") {
            tracing::debug!(image, %error, "an image's use could not be noted");
        }
    }

    /// When an image was last used, as far as is known; milliseconds since the epoch.
    pub(super) fn used_ms(&self, image: &str) -> i64 {
        let at = fs::metadata(self.used(image)).and_then(|meta| meta.modified()).ok();
        let since = at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    /// Keeps an image's configuration. Before the index names the image; what is not named in the end is swept.
    pub(super) fn keep_config(&self, image: &str, config: &[u8]) -> Result<(), RuntimeError> {
        let path = self.config_path(image);
        let new = path.with_extension(uuid::Uuid::new_v4().simple().to_string());
        let put = || fs::write(&new, config).and_then(|()| fs::rename(&new, &path));
        put().map_err(system(format!("write {}", path.display())))
    }

    /// An image's configuration as it came; none for those that came without.
    pub(super) fn config(&self, image: &str) -> Result<Option<Vec<u8>>, RuntimeError> {
        let path = self.config_path(image);
        match fs::read(&path) {
            Ok(config) => Ok(Some(config)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(system(format!("read {}", path.display()))(e)),
        }
    }

    /// Whether there is one.
    pub(super) fn has_config(&self, image: &str) -> bool {
        self.config_path(image).exists()
    }

    fn config_path(&self, image: &str) -> PathBuf {
        self.dir.join("configs").join(image.trim_start_matches("sha256:"))
    }

    fn used(&self, image: &str) -> PathBuf {
        self.dir.join("used").join(image.trim_start_matches("sha256:"))
    }

    /// Removes images without name and pin, and layers without image. While a load is under way nothing happens: it
    /// sweeps when it ends.
    pub(super) fn sweep(&self) -> Result<(), RuntimeError> {
        let failed = || system(format!("sweep {}", self.dir.display()));
        let loads = lock_target(&self.dir.join("loads.lock")).map_err(failed())?;
        if loads.try_lock().is_err() {
            return Ok(());
        }
        let trash = self.stage()?;
        let _lock = self.lock(Hold::Exclusive)?;
        let mut index = self.read()?;
        let mut wanted = self.pinned()?;
        wanted.extend(index.names.values().cloned());
        let gone: Vec<String> = index.images.keys().filter(|id| !wanted.contains(*id)).cloned().collect();
        if !gone.is_empty() {
            index.images.retain(|id, _| wanted.contains(id));
            self.write(&index)?;
        }
        for id in gone {
            // Absent for an image that was never used.
            let _ = fs::remove_file(self.used(&id));
        }
        for entry in fs::read_dir(self.dir.join("configs")).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if !index.images.contains_key(&format!("sha256:{}", entry.file_name().to_string_lossy())) {
                fs::remove_file(entry.path()).map_err(failed())?;
            }
        }
        let used: BTreeSet<PathBuf> = (index.images.values())
            .flat_map(|record| &record.layers)
            .map(|layer| self.layer_home(&layer.diff_id))
            .collect();
        for entry in fs::read_dir(self.dir.join("layers")).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            if !used.contains(&entry.path()) {
                fs::rename(entry.path(), trash.path.join(entry.file_name())).map_err(failed())?;
            }
        }
        Ok(())
    }
}

/// The wall clock, for what was brought by hand.
fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn lock_target(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}

/// A directory to work in.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    _lock: File,
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path) {
            // The next open tries again.
            tracing::warn!(path = %self.path.display(), %error, "left a staging directory behind");
        }
    }
}

/// Removes a tree, also one with directories that their owner may not change (as an unprivileged user).
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn open_up(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_and_removed_is_remembered_until_somebody_brings_that_name_again() {
        let mut index = Index::default();
        for (name, origin) in [
            ("hand", Origin::Hand),
            ("copy", Origin::Copy { since_ms: 5 }),
            ("pulled", Origin::Registry { open: true, digest: None }),
        ] {
            index.name(name, "sha256:1", origin);
            assert!(index.unname(name) && !index.unname(name));
        }
        assert_eq!(index.removed.keys().collect::<Vec<_>>(), ["hand"]);
        assert_eq!(index.removed["hand"].id, "sha256:1");
        for origin in [Origin::Registry { open: true, digest: None }, Origin::Copy { since_ms: 5 }] {
            index.name("hand", "sha256:2", origin);
            assert_eq!(index.removed["hand"].id, "sha256:1", "else copies elsewhere outdo what is here");
            assert!(index.unname("hand"));
            assert_eq!(index.removed["hand"].id, "sha256:1");
        }
        index.name("hand", "sha256:2", Origin::Hand);
        assert!(index.removed.is_empty());
        for number in 0..REMOVALS + 10 {
            let name = number.to_string();
            index.name(&name, "sha256:1", Origin::Hand);
            index.unname(&name);
        }
        assert_eq!(index.removed.len(), REMOVALS);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_a_removal_void() {
        let mut index = Index::default();
        index.name("a", "sha256:1", Origin::Hand);
        let ahead = now_ms() + 3_600_000;
        index.notes.get_mut("a").unwrap().since_ms = ahead;
        index.unname("a");
        assert_eq!(index.removed["a"].at_ms, ahead);
    }

    #[test]
    fn the_digest_that_a_name_was_pulled_with_stays_until_the_name_stands_for_something_else() {
        let (first, second) = (format!("sha256:{}", "1".repeat(64)), format!("sha256:{}", "2".repeat(64)));
        let mut index = Index::default();
        index.images.insert("sha256:a".into(), Record::default());
        let pulled = |digest: &str| Origin::Registry { open: true, digest: Some(digest.to_owned()) };
        index.name("r.io/a:1", "sha256:a", pulled(&first));
        index.name("r.io/a:2", "sha256:a", pulled(&first));
        index.name(&format!("r.io/b@{second}"), "sha256:a", pulled(&second));
        let text = serde_json::to_vec(&index).unwrap();
        let mut index: Index = serde_json::from_slice(&text).unwrap();
        let digests = index.image("sha256:a").unwrap().digests;
        assert_eq!(digests, [format!("r.io/a@{first}"), format!("r.io/b@{second}")]);
        index.unname(&format!("r.io/b@{second}"));
        index.unname("r.io/a:2");
        index.name("r.io/a:1", "sha256:a", Origin::Hand);
        assert!(index.image("sha256:a").unwrap().digests.is_empty());
    }

    #[test]
    fn an_index_without_digests_is_read() {
        let text = r#"{"version": 1, "names": {"r.io/a:1": "sha256:a"}, "pulled": ["r.io/a:1"],
            "notes": {"r.io/a:1": {"copy": false, "open": true, "since_ms": 0}}, "removed": {},
            "images": {"sha256:a": {"layers": [], "entrypoint": [], "cmd": [], "env": [], "working_dir": "",
                "user": "", "stop_signal": null}}}"#;
        let index: Index = serde_json::from_str(text).unwrap();
        let image = index.image("sha256:a").unwrap();
        assert_eq!(image.reference("r.io/a:1"), "sha256:a");
    }
}
