//! The durable backend: documents in an embedded database (fjall 3).
//!
//! Owns: how records lie in the database (one keyspace; key `tag/namespace/name`, value 8 bytes of big-endian revision
//! and the document; [`RESERVED_KEY`] holds the reservation) and what happens after an I/O error. fjall refuses all
//! writes after one, so it is closed and opened again at the next append: recovery cuts off a half-written batch.
//! The database is made under another name and renamed, so a start that was killed leaves none that cannot be opened.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::{
    Backend, Batch, DataDir, Force, Record, StoreError,
    dir::{refused, sync_dir},
};
use crate::model::{Key, Kind, Revision};

const DATABASE: &str = "objects";
const DRAFT: &str = "objects.new";
/// Written and removed to find out whether there is room.
const ROOM: &str = "room";
/// Where so much fits, more does, too; it is looked each second.
const ROOM_BYTES: usize = 1 << 20;
/// What the database needs beside the documents.
const ROOM_SPARE: usize = 64 << 10;
const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
const KEYSPACE: &str = "objects";
/// Holds the highest reserved revision. It has no `/`, so it is no object's key.
const RESERVED_KEY: &str = "!reserved";
/// Everything is read once, at the start, and never again: the cache is the least that is of use for that.
const CACHE_BYTES: u64 = 1 << 20;
/// Every write also sits in a memtable until it is flushed. Small, because all objects are in memory already; large
/// enough that thousands of changes of one pod become one record on disk.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The least that fjall accepts: what is older is flushed and its journals are removed.
const JOURNAL_BYTES: u64 = 64 << 20;
/// One thread flushes and compacts; the machine's other cores have better things to do.
const WORKERS: usize = 1;
/// How long to wait for a closed database's worker to let go of its files, and how often to look.
const CLOSE_TRIES: u32 = 200;
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// Documents in an embedded database on disk.
pub struct Durable {
    path: PathBuf,
    /// `None` after an error, until the next append opens it again.
    open: Option<Open>,
}

struct Open {
    objects: Keyspace,
    database: Database,
}

impl Durable {
    /// Opens the database of a data directory, or makes one.
    ///
    /// # Errors
    /// When it cannot be made, read or repaired.
    pub fn open(dir: &DataDir) -> Result<Durable, StoreError> {
        let path = dir.path().join(DATABASE);
        if !path.try_exists().map_err(refused("open", &path))? {
            create(dir.path(), &path)?;
        }
        let open = Open::at(&path)?;
        Ok(Durable { path, open: Some(open) })
    }

    fn close(&mut self) {
        if self.open.take().is_some() {
            wait_until_closed(&self.path);
        }
    }

    fn opened(&mut self) -> Result<&Open, StoreError> {
        let open = match self.open.take() {
            Some(open) => open,
            None => {
                tracing::warn!(path = %self.path.display(), "opening the database again after an error");
                Open::at(&self.path)?
            }
        };
        Ok(self.open.insert(open))
    }

    fn write(&mut self, batch: &Batch, force: Force) -> Result<(), fjall::Error> {
        let Some(Open { objects, database }) = &self.open else { return Err(fjall::Error::Poisoned) };
        let mut write = database.batch().durability(Some(match force {
            Force::Fsync => PersistMode::SyncData,
            Force::Buffered => PersistMode::Buffer,
        }));
        for record in &batch.puts {
            write.insert(objects, encode_key(&record.key), encode_value(record));
        }
        for key in &batch.removes {
            write.remove(objects, encode_key(key));
        }
        if let Some(reserved) = batch.reserve {
            write.insert(objects, RESERVED_KEY, reserved.0.to_be_bytes());
        }
        write.commit()
    }
}

impl Backend for Durable {
    fn load(&mut self, visit: &mut dyn FnMut(Record)) -> Result<Revision, StoreError> {
        let path = self.path.clone();
        let damaged = |reason: &str| StoreError::Damaged { path: path.clone(), reason: reason.to_owned() };
        let mut reserved = Revision(0);
        for item in self.opened()?.objects.iter() {
            let (key, value) = item.into_inner().map_err(|e| translate("read", &path, e))?;
            let (revision, document) =
                value.split_first_chunk().ok_or_else(|| damaged("a record without a revision"))?;
            let revision = Revision(u64::from_be_bytes(*revision));
            if &*key == RESERVED_KEY.as_bytes() {
                reserved = revision;
                continue;
            }
            let key = decode_key(&key).ok_or_else(|| StoreError::UnknownKey {
                path: path.clone(),
                key: String::from_utf8_lossy(&key).into_owned(),
            })?;
            visit(Record { key, revision, document: Bytes::copy_from_slice(document), whole: None });
        }
        Ok(reserved)
    }

    fn append(&mut self, batch: &Batch, force: Force) -> Result<(), StoreError> {
        if batch.is_empty() && force == Force::Buffered {
            return Ok(());
        }
        self.opened()?;
        let mut outcome = self.write(batch, force);
        if matches!(outcome, Err(fjall::Error::Poisoned)) {
            // An error of the background flush, not of this batch: it is worth a try on a fresh database.
            self.close();
            self.opened()?;
            outcome = self.write(batch, force);
        }
        outcome.map_err(|error| {
            self.close();
            translate("write", &self.path, error)
        })
    }

    /// Writes as much into a file beside the database, and removes it.
    fn has_room(&mut self, bytes: usize) -> bool {
        let path = self.path.with_file_name(ROOM);
        let fits = fill(&path, bytes.min(ROOM_BYTES) + ROOM_SPARE);
        // What cannot be removed now is written over, and removed, next time.
        let removed = fs::remove_file(&path);
        let outcome = fits.and(removed);
        if let Err(error) = &outcome {
            tracing::debug!(path = %path.display(), %error, bytes, "no room yet for what was refused");
        }
        outcome.is_ok()
    }
}

/// Makes a file of so many bytes that is on the disk.
fn fill(path: &Path, bytes: usize) -> io::Result<()> {
    let (mut file, mut left) = (fs::File::create(path)?, bytes);
    while left > 0 {
        let some = left.min(ZEROS.len());
        file.write_all(ZEROS.get(..some).unwrap_or_default())?;
        left -= some;
    }
    file.sync_data()
}

impl Open {
    fn at(path: &Path) -> Result<Open, StoreError> {
        let open = || {
            let database = Database::builder(path)
                .cache_size(CACHE_BYTES)
                .max_journaling_size(JOURNAL_BYTES)
                .worker_threads(WORKERS)
                .open()?;
            let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
            let objects = database.keyspace(KEYSPACE, options)?;
            Ok(Open { objects, database })
        };
        open().map_err(|error| translate("open", path, error))
    }
}

/// Makes an empty database: whole under its name, or not at all.
fn create(dir: &Path, path: &Path) -> Result<(), StoreError> {
    let draft = dir.join(DRAFT);
    match fs::remove_dir_all(&draft) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(refused("remove", &draft)(e)),
        _ => {}
    }
    // Secrets lie in it, and the data directory may be an older one that others can enter.
    DirBuilder::new().mode(0o700).create(&draft).map_err(refused("create", &draft))?;
    drop(Open::at(&draft)?);
    wait_until_closed(&draft);
    fs::rename(&draft, path).map_err(refused("create", path))?;
    sync_dir(dir).map_err(refused("sync", dir))
}

/// A dropped database's worker may hold its journal a moment longer, and flushes what it could not write as it lets
/// go. Nothing may be read from the files before that; our own list of open files tells.
fn wait_until_closed(path: &Path) {
    for _ in 0..CLOSE_TRIES {
        let open = fs::read_dir("/proc/self/fd")
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(path)));
        if !open {
            return;
        }
        thread::sleep(CLOSE_PAUSE);
    }
    tracing::warn!(path = %path.display(), "files of the closed database are still open");
}

fn encode_key(key: &Key) -> String {
    format!("{}/{}/{}", key.kind.tag(), key.namespace, key.name)
}

fn decode_key(bytes: &[u8]) -> Option<Key> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (tag, rest) = text.split_once('/')?;
    let (namespace, name) = rest.split_once('/')?;
    Some(Key::new(Kind::from_tag(tag)?, namespace, name))
}

/// The database's memtable shares an object's own bytes.
fn encode_value(record: &Record) -> Bytes {
    if let Some(whole) = &record.whole {
        return whole.clone();
    }
    let mut value = Vec::with_capacity(8 + record.document.len());
    value.extend_from_slice(&record.revision.0.to_be_bytes());
    value.extend_from_slice(&record.document);
    value.into()
}

fn translate(doing: &'static str, path: &Path, error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            StoreError::Io { doing, path: path.into(), source }
        }
        fjall::Error::Locked => {
            StoreError::Locked { path: path.into(), owner: "holding the database's own lock".to_owned() }
        }
        fjall::Error::Poisoned => StoreError::Io {
            doing,
            path: path.into(),
            source: io::Error::other("the disk failed in the background"),
        },
        other => StoreError::Damaged { path: path.into(), reason: format!("{other:?}") },
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt};

    use proptest::prelude::*;

    use super::*;

    fn record(name: &str, revision: u64, document: Vec<u8>) -> Record {
        let key = Key::new(Kind::Pod, "default", name);
        Record { key, revision: Revision(revision), document: document.into(), whole: None }
    }

    fn load(backend: &mut Durable) -> (BTreeMap<Key, Record>, Revision) {
        let mut records = BTreeMap::new();
        let reserved = backend.load(&mut |r| {
            records.insert(r.key.clone(), r);
        });
        (records, reserved.unwrap())
    }

    #[test]
    fn an_objects_bytes_are_kept_as_they_are_and_not_copied() {
        let json = br#"{"metadata":{"name":"a","namespace":"ns","uid":"u"},"data":{"a":"b"}}"#;
        let object = crate::model::seal_json(Kind::ConfigMap, json).unwrap().at(Revision(3));
        for object in [object.restamped(Revision(4)), object] {
            let record = Record::of(&object);
            let value = encode_value(&record);
            assert_eq!(value.as_ptr(), object.record().as_ptr());
            assert_eq!(value, encode_value(&Record { whole: None, ..record }));
            let slice = fjall::Slice::from(value.clone());
            assert_eq!(slice.as_ptr(), value.as_ptr(), "nor by the database");
        }
    }

    #[test]
    fn keys_survive_the_way_to_disk_and_back() {
        for (kind, namespace, name) in
            [(Kind::Node, "", "n1"), (Kind::Pod, "default", "web-1"), (Kind::Secret, "a", "b:c/d")]
        {
            let key = Key::new(kind, namespace, name);
            assert_eq!(decode_key(encode_key(&key).as_bytes()), Some(key));
        }
        for foreign in ["", "pods", "pods/default", "unicorns/a/b", RESERVED_KEY] {
            assert_eq!(decode_key(foreign.as_bytes()), None, "{foreign}");
        }
    }

    #[test]
    fn a_start_that_was_killed_while_making_the_database_does_not_stop_the_next() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        fs::create_dir(temp.path().join(DRAFT)).unwrap();
        fs::write(temp.path().join(DRAFT).join("0.jnl"), "half").unwrap();
        let mut backend = Durable::open(&dir).unwrap();
        assert_eq!(load(&mut backend), (BTreeMap::new(), Revision(0)));
        assert!(!temp.path().join(DRAFT).exists());
        let mode = fs::metadata(temp.path().join(DATABASE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn an_error_does_not_end_it_and_what_was_written_before_is_still_there() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let mut backend = Durable::open(&dir).unwrap();
        let first = record("first", 1, b"1".to_vec());
        let batch = Batch { puts: vec![first.clone()], ..Batch::default() };
        backend.append(&batch, Force::Fsync).unwrap();

        // As after an error: closed, and for a while it cannot be opened.
        backend.close();
        let aside = temp.path().join("aside");
        fs::rename(&backend.path, &aside).unwrap();
        fs::write(&backend.path, "in the way").unwrap();
        let second = record("second", 2, b"2".to_vec());
        let batch = Batch { puts: vec![second.clone()], ..Batch::default() };
        let error = backend.append(&batch, Force::Fsync).unwrap_err().full_text();
        assert!(error.contains(backend.path.to_str().unwrap()), "{error}");

        fs::remove_file(&backend.path).unwrap();
        fs::rename(&aside, &backend.path).unwrap();
        backend.append(&batch, Force::Fsync).unwrap();
        let (records, _) = load(&mut backend);
        assert_eq!(records.into_values().collect::<Vec<_>>(), vec![first, second]);
    }

    #[test]
    fn a_look_for_room_leaves_nothing_behind() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let mut backend = Durable::open(&dir).unwrap();
        assert!(backend.has_room(100_000));
        assert!(!temp.path().join(ROOM).exists());
        // Where it cannot be written there is none.
        fs::create_dir(temp.path().join(ROOM)).unwrap();
        assert!(!backend.has_room(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        #[test]
        fn what_was_appended_is_loaded_again(
            batches in prop::collection::vec(
                (prop::collection::btree_map("[a-c]", prop::option::of(any::<Vec<u8>>()), 0..4), any::<bool>()),
                0..12,
            ),
            reopen_at in 0usize..12,
        ) {
            let temp = tempfile::tempdir().unwrap();
            let dir = DataDir::open(temp.path()).unwrap();
            let mut backend = Durable::open(&dir).unwrap();
            let mut model = BTreeMap::new();
            let mut reserved = Revision(0);
            for (at, (changes, fsync)) in batches.into_iter().enumerate() {
                let revision = at as u64 + 1;
                let mut batch = Batch { reserve: fsync.then_some(Revision(revision)), ..Batch::default() };
                for (name, change) in changes {
                    let key = Key::new(Kind::Pod, "default", name.as_str());
                    match change {
                        Some(document) => {
                            let record = record(&name, revision, document);
                            model.insert(key, record.clone());
                            batch.puts.push(record);
                        }
                        None => {
                            model.remove(&key);
                            batch.removes.push(key);
                        }
                    }
                }
                reserved = batch.reserve.unwrap_or(reserved);
                backend.append(&batch, if fsync { Force::Fsync } else { Force::Buffered }).unwrap();
                if at == reopen_at {
                    backend.close();
                }
            }
            backend.close();
            prop_assert_eq!(load(&mut backend), (model, reserved));
        }
    }
}
