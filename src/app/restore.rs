//! `troupe restore`: a master's data directory out of a backup.
//!
//! Owns: which files of the directory a backup has, and the making of a new directory. Invariants: nothing is written before
//! the whole file was read, checked and understood; the directory appears whole or not at all; one that has anything in it is
//! never touched. A new directory is made beside its place and renamed. One that is there and empty may be a file system of its
//! own, or be named by a link: it is filled from within, and no troupe takes it before it is whole ([`UNFINISHED`]). Revisions
//! go on above those given before: see [`backup::first_revision`]. Every object gets a new one, so nobody takes an older state
//! for a newer. Join tokens are left out: they are short-lived, and may have been revoked since.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{StartError, said::say, up::with_causes};
use crate::{
    api::BackupFiles,
    logic::{
        backup::{self, Backup, FILES, MORE_FILES},
        join,
    },
    model::{Key, Kind, Revision, seal_json},
    net::Authority,
    store::{Backend as _, Batch, DataDir, Durable, Force, Record},
};

/// Objects written in one batch: some megabytes.
const BATCH: usize = 1024;
/// A file that is larger is no backup: a master has all of it in memory.
const MAX_BYTES: u64 = 16 << 30;
/// Within an empty directory: where what will be in it is made.
const MAKING: &str = ".restoring";
/// The file with a directory's format: the last to come into its place.
const FORMAT_FILE: &str = "format";
/// What it says until then, which is no format that any troupe reads.
const UNFINISHED: &str = "a restore that was cut off\n";
/// What a file system of its own has in its root is nobody's.
const FOUND: &str = "lost+found";

/// What `troupe restore` was asked for.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The backup.
    pub file: PathBuf,
    /// The directory to be made.
    pub data_dir: PathBuf,
}

/// Reads, for a backup, what a master's directory has beside its objects.
pub(super) fn files(directory: PathBuf) -> BackupFiles {
    std::sync::Arc::new(move || {
        let mut found = Vec::new();
        for name in FILES.into_iter().chain(MORE_FILES) {
            let path = directory.join(name);
            match fs::read(&path) {
                Ok(content) => found.push((name.to_owned(), content)),
                Err(error) if error.kind() == io::ErrorKind::NotFound && MORE_FILES.contains(&name) => {}
                Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
            }
        }
        Ok(found)
    })
}

/// Makes a data directory. Exit code 1 when it cannot; then there is none.
pub fn restore(options: &RestoreOptions) -> ExitCode {
    super::init_tracing();
    match run(options) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("troupe: {}", with_causes(&error));
            ExitCode::from(1)
        }
    }
}

fn run(options: &RestoreOptions) -> Result<String, StartError> {
    let (file, data) = (&options.file, &options.data_dir);
    let refused = |why: &dyn std::fmt::Display| {
        StartError::Refused(format!("{} cannot be restored: {why}; nothing was written", file.display()))
    };
    let size = fs::metadata(file).map_err(|error| refused(&error))?.len();
    if size > MAX_BYTES {
        return Err(refused(&"it is too large to be a backup"));
    }
    let bytes = fs::read(file).map_err(|error| refused(&error))?;
    let backup = backup::read(&bytes).map_err(|error| refused(&error))?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let first = backup::first_revision(&backup, now_s).map_err(|error| refused(&error))?;
    let records = records(&backup, first).map_err(|error| refused(&error))?;
    let place = Place::of(data)?;
    let making = place.making();
    let made = make(&making, &backup, &records, first).and_then(|()| place.settle(data));
    if made.is_err() {
        // What was made so far is of no use to anybody; a next try begins with this as well.
        let _ = place.clear(data);
    }
    made?;
    let about = &backup.about;
    let told = format!(
        "restored the cluster {} as of {} (revision {}): {} objects in {}\n\
         start it as before: troupe master --data-dir {}",
        about.cluster,
        about.created_at,
        about.revision,
        records.len(),
        data.display(),
        data.display()
    );
    Ok(told + &since(&backup))
}

/// What the backup does not know of and a person has to see to: what was revoked after it.
fn since(backup: &Backup<'_>) -> String {
    let keys = || backup.objects.iter().map(|(key, _)| key);
    let nodes: Vec<&str> = keys().filter(|key| key.kind == Kind::Node).map(|key| &*key.name).collect();
    let tokens = keys().filter(|key| is_token(key)).count();
    let mut told = String::new();
    if !nodes.is_empty() {
        told += &format!(
            "\nnodes that it takes back: {}; those that were deleted since the backup are to be deleted again: kubectl delete \
             node N",
            nodes.join(", ")
        );
    }
    if tokens > 0 {
        told += &format!("\njoin tokens are left out ({tokens}): troupe token create makes new ones");
    }
    told
}

/// Whether it is a join token, which may have been revoked since.
fn is_token(key: &Key) -> bool {
    key.kind == Kind::Secret && &*key.namespace == join::NAMESPACE && key.name.starts_with(join::NAME_PREFIX)
}

/// The objects, each understood, under new revisions.
fn records(backup: &Backup<'_>, first: Revision) -> Result<Vec<Record>, String> {
    let mut records = Vec::with_capacity(backup.objects.len());
    let kept = backup.objects.iter().filter(|(key, _)| !is_token(key));
    for (revision, (key, document)) in (first.0..).zip(kept) {
        let sealed = seal_json(key.kind, document).map_err(|error| format!("{key}: {error}"))?;
        if sealed.key != *key {
            return Err(format!("{key} is said to be {}", sealed.key));
        }
        records.push(Record::of(&sealed.at(Revision(revision))));
    }
    Ok(records)
}

/// Where the directory is made, and how it comes into its place.
enum Place {
    /// Beside its place, which is free: a rename is all that is left to do.
    Beside(PathBuf),
    /// Within its place, an empty directory.
    Within(PathBuf),
}

impl Place {
    /// Refuses a place that has something in it, and clears one that an earlier restore was cut off in.
    fn of(data: &Path) -> Result<Place, StartError> {
        let fault = |source| StartError::File { path: data.into(), source };
        let refused =
            |why: &str| StartError::Refused(format!("{} {why}; nothing was written", data.display()));
        let taken = || {
            refused(
                "is not empty, and restoring never replaces anything: move it away, or name another --data-dir",
            )
        };
        let place = match fs::read_dir(data) {
            Ok(entries) => {
                let unfinished =
                    fs::read(data.join(FORMAT_FILE)).is_ok_and(|text| text == UNFINISHED.as_bytes());
                for entry in entries {
                    let name = entry.map_err(fault)?.file_name();
                    if !unfinished && name != MAKING && name != FOUND {
                        return Err(taken());
                    }
                }
                Place::Within(data.to_owned())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if fs::symlink_metadata(data).is_ok() {
                    return Err(refused(
                        "is a link to nowhere: make the directory that it names, or remove it",
                    ));
                }
                let name = data.file_name().ok_or_else(|| refused("is no name of a directory"))?;
                Place::Beside(data.with_file_name(format!(".{}.restoring", name.to_string_lossy())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Err(taken()),
            Err(error) => return Err(fault(error)),
        };
        place.clear(data).map_err(fault)?;
        Ok(place)
    }

    fn making(&self) -> PathBuf {
        match self {
            Place::Beside(path) => path.clone(),
            Place::Within(data) => data.join(MAKING),
        }
    }

    /// Removes what a restore made that did not come to its end.
    fn clear(&self, data: &Path) -> io::Result<()> {
        let format = data.join(FORMAT_FILE);
        if let Place::Within(_) = self
            && fs::read(&format).is_ok_and(|text| text == UNFINISHED.as_bytes())
        {
            for name in ["objects", "pki", "lock"].into_iter().chain(MORE_FILES) {
                absent_or_removed(&data.join(name))?;
            }
            absent_or_removed(&self.making())?;
            return absent_or_removed(&format);
        }
        absent_or_removed(&self.making())
    }

    /// What was made takes its place.
    fn settle(&self, data: &Path) -> Result<(), StartError> {
        let settled = match self {
            Place::Beside(made) => renamed(made, data),
            Place::Within(data) => filled(&data.join(MAKING), data),
        };
        settled.map_err(|source| StartError::File { path: data.into(), source })
    }
}

fn absent_or_removed(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn sync(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}

fn renamed(made: &Path, data: &Path) -> io::Result<()> {
    let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync(&made.join("pki"))?;
    sync(made)?;
    fs::rename(made, data)?;
    sync(parent)
}

/// Moves everything up by one directory. Until the last step there is a format that no troupe reads.
fn filled(made: &Path, data: &Path) -> io::Result<()> {
    sync(&made.join("pki"))?;
    sync(made)?;
    fs::set_permissions(data, fs::Permissions::from_mode(0o700))?;
    write(&data.join(FORMAT_FILE), UNFINISHED.as_bytes())?;
    sync(data)?;
    for entry in fs::read_dir(made)? {
        let name = entry?.file_name();
        if name != FORMAT_FILE {
            fs::rename(made.join(&name), data.join(&name))?;
        }
    }
    sync(data)?;
    fs::rename(made.join(FORMAT_FILE), data.join(FORMAT_FILE))?;
    sync(data)?;
    // Empty, and in nobody's way.
    let _ = fs::remove_dir(made);
    Ok(())
}

fn make(beside: &Path, backup: &Backup<'_>, records: &[Record], first: Revision) -> Result<(), StartError> {
    let dir = DataDir::open(beside)?;
    fs::DirBuilder::new()
        .mode(0o700)
        .create(beside.join("pki"))
        .map_err(|source| StartError::File { path: beside.join("pki"), source })?;
    for (name, content) in &backup.files {
        write(&beside.join(name), content)
            .map_err(|source| StartError::File { path: beside.join(name), source })?;
    }
    // What a master could not start on is better known now.
    Authority::open(&beside.join("pki"))?;
    let mut store = Durable::open(&dir)?;
    let last = Revision(first.0.saturating_add(records.len() as u64));
    store.append(&Batch { reserve: Some(last), ..Batch::default() }, Force::Fsync)?;
    for some in records.chunks(BATCH) {
        store.append(&Batch { puts: some.to_vec(), ..Batch::default() }, Force::Fsync)?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    use io::Write as _;
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        logic::backup::{About, Writer},
        store::recover,
    };

    /// A backup of a directory with one config map.
    fn file(dir: &Path) -> PathBuf {
        let master = dir.join("master");
        fs::create_dir_all(master.join("pki")).unwrap();
        Authority::open(&master.join("pki")).unwrap();
        crate::net::TokenKey::open(&master.join("pki")).unwrap();
        let about = About {
            cluster: "c".into(),
            created_at: "2024-01-01T00:00:00Z".into(),
            revision: Revision(500),
            version: "0".into(),
        };
        let (mut writer, mut bytes) = Writer::begin(&about);
        for (name, content) in files(master)().unwrap() {
            bytes.extend(writer.file(&name, &content));
        }
        let document =
            br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a","namespace":"ns","uid":"u"}}"#;
        bytes.extend(writer.object(&seal_json(Kind::ConfigMap, document).unwrap().at(Revision(400))));
        bytes.extend(writer.end());
        let path = dir.join("backup");
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn a_restored_directory_has_the_objects_under_revisions_never_given_and_the_same_authority() {
        let temp = tempfile::tempdir().unwrap();
        let options = RestoreOptions { file: file(temp.path()), data_dir: temp.path().join("data") };
        let said = run(&options).unwrap();
        assert!(said.contains("the cluster c") && said.contains("1 objects"), "{said}");
        for name in FILES {
            assert_eq!(
                fs::read(options.data_dir.join(name)).unwrap(),
                fs::read(temp.path().join("master").join(name)).unwrap()
            );
            let mode = fs::metadata(options.data_dir.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(!temp.path().join(".data.restoring").exists());
        let dir = DataDir::open(&options.data_dir).unwrap();
        let recovered = recover(&mut Durable::open(&dir).unwrap()).unwrap();
        let object = recovered.snapshot.find(&Key::new(Kind::ConfigMap, "ns", "a")).unwrap();
        assert!(object.revision.0 > 500 + (1 << 32), "{}", object.revision);
        assert!(recovered.snapshot.revision > object.revision);
        // Never again into the same place.
        drop(dir);
        let again = run(&options).unwrap_err().to_string();
        assert!(again.contains("is not empty") && again.contains("--data-dir"), "{again}");
    }

    #[test]
    fn leftovers_of_a_restore_that_was_killed_do_not_matter() {
        let temp = tempfile::tempdir().unwrap();
        let options = RestoreOptions { file: file(temp.path()), data_dir: temp.path().join("data") };
        let left = temp.path().join(".data.restoring/pki");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("ca.key"), "half").unwrap();
        run(&options).unwrap();
        assert!(options.data_dir.join("objects").exists());
        assert!(!temp.path().join(".data.restoring").exists());
    }

    #[test]
    fn an_empty_directory_is_filled_from_within_as_one_that_is_a_mount_has_to_be() {
        use std::os::unix::fs::MetadataExt as _;
        let temp = tempfile::tempdir().unwrap();
        let (disk, link) = (temp.path().join("disk"), temp.path().join("link"));
        fs::create_dir_all(disk.join(FOUND)).unwrap();
        std::os::unix::fs::symlink("disk", &link).unwrap();
        // An earlier one was killed while it moved things.
        fs::write(disk.join(FORMAT_FILE), UNFINISHED).unwrap();
        fs::create_dir_all(disk.join(MAKING).join("objects")).unwrap();
        fs::create_dir(disk.join("pki")).unwrap();
        fs::write(disk.join("pki/ca.key"), "half").unwrap();
        assert!(DataDir::open(&disk).unwrap_err().to_string().contains("cut off"));
        let inode = fs::metadata(&disk).unwrap().ino();
        run(&RestoreOptions { file: file(temp.path()), data_dir: link }).unwrap();
        let now = fs::metadata(&disk).unwrap();
        assert_eq!((now.ino(), now.permissions().mode() & 0o777), (inode, 0o700), "it was not replaced");
        assert!(disk.join(FOUND).exists() && !disk.join(MAKING).exists());
        for name in FILES {
            let expected = fs::read(temp.path().join("master").join(name)).unwrap();
            assert_eq!(fs::read(disk.join(name)).unwrap(), expected, "{name}");
        }
        let dir = DataDir::open(&disk).unwrap();
        let recovered = recover(&mut Durable::open(&dir).unwrap()).unwrap();
        assert!(recovered.snapshot.find(&Key::new(Kind::ConfigMap, "ns", "a")).is_some());
        // Neither a link to nowhere nor a file is a place for it.
        let (nowhere, taken) = (temp.path().join("nowhere"), temp.path().join("backup"));
        std::os::unix::fs::symlink("gone", &nowhere).unwrap();
        for (data_dir, says) in [(nowhere, "link to nowhere"), (taken.clone(), "is not empty")] {
            let why = run(&RestoreOptions { file: taken.clone(), data_dir }).unwrap_err().to_string();
            assert!(why.contains(says) && why.contains("nothing was written"), "{why}");
        }
    }

    #[test]
    fn join_tokens_are_left_out_and_nodes_are_named() {
        let about = About {
            cluster: "c".into(),
            created_at: "2024-01-01T00:00:00Z".into(),
            revision: Revision(500),
            version: "0".into(),
        };
        let mut objects = Vec::new();
        for (kind, namespace, name) in [
            (Kind::Secret, "kube-system", "bootstrap-token-8rcmdg"),
            (Kind::Secret, "default", "bootstrap-token-8rcmdg"),
            (Kind::Node, "", "one"),
            (Kind::Node, "", "two"),
        ] {
            let document =
                format!(r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","uid":"u"}}}}"#);
            objects.push((Key::new(kind, namespace, name), document));
        }
        let objects = objects.iter().map(|(key, document)| (key.clone(), document.as_bytes())).collect();
        let backup = Backup { about, files: Vec::new(), objects };
        let kept = records(&backup, Revision(1000)).unwrap();
        assert_eq!(kept.len(), 3, "a secret of the name elsewhere is none");
        let told = since(&backup);
        assert!(told.contains("takes back: one, two;") && told.contains("left out (1)"), "{told}");
    }

    #[test]
    fn what_is_no_whole_backup_leaves_nothing_behind() {
        let temp = tempfile::tempdir().unwrap();
        let options = RestoreOptions { file: file(temp.path()), data_dir: temp.path().join("data") };
        let good = fs::read(&options.file).unwrap();
        let cut = good[..good.len() - 3].to_vec();
        let altered =
            String::from_utf8(good.clone()).unwrap().replacen("\"name\":\"a\"", "\"name\":\"b\"", 1);
        let other = String::from_utf8(good).unwrap().replacen("backup/1", "backup/9", 1);
        for (bytes, says) in [
            (cut, "cut off"),
            (altered.into_bytes(), "altered"),
            (other.into_bytes(), "troupe-backup/9"),
            (b"no backup".to_vec(), "no backup"),
        ] {
            fs::write(&options.file, bytes).unwrap();
            let why = run(&options).unwrap_err().to_string();
            assert!(why.contains(says) && why.contains("nothing was written"), "{why}");
            assert!(!options.data_dir.exists() && !temp.path().join(".data.restoring").exists());
        }
    }
}
