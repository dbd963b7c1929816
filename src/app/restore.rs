//! `troupe restore`: a master's data directory out of a backup.
//!
//! Owns: which files of the directory a backup has, and the making of a new directory. Invariants: nothing is written before
//! the whole file was read, checked and understood; the directory appears whole or not at all (it is made beside and renamed);
//! one that has anything in it is never touched. Revisions go on above all that were ever given: see
//! [`crate::logic::backup::first_revision`]. Every object gets a new one, so nobody takes an older state for a newer.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use super::{StartError, up::with_causes};
use crate::{
    api::BackupFiles,
    logic::backup::{self, Backup, FILES, MORE_FILES},
    model::{Revision, seal_json},
    net::Authority,
    store::{Backend as _, Batch, DataDir, Durable, Force, Record},
};

/// Objects written in one batch: some megabytes.
const BATCH: usize = 1024;
/// A file that is larger is no backup: a master has all of it in memory.
const MAX_BYTES: u64 = 16 << 30;

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
            println!("{text}");
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
    let first = backup::first_revision(backup.about.revision, now_s);
    let records = records(&backup, first).map_err(|error| refused(&error))?;
    is_free(data)?;
    let beside = beside(data)?;
    let made = make(&beside, &backup, &records, first).and_then(|()| settle(&beside, data));
    if made.is_err() {
        // What was made so far is of no use to anybody; a next try begins with this as well.
        let _ = fs::remove_dir_all(&beside);
    }
    made?;
    let about = &backup.about;
    Ok(format!(
        "restored the cluster {} as of {} (revision {}): {} objects in {}\n\
         start it as before: troupe master --data-dir {}",
        about.cluster,
        about.created_at,
        about.revision,
        records.len(),
        data.display(),
        data.display()
    ))
}

/// The objects, each understood, under new revisions.
fn records(backup: &Backup<'_>, first: Revision) -> Result<Vec<Record>, String> {
    let mut records = Vec::with_capacity(backup.objects.len());
    for (revision, (key, document)) in (first.0..).zip(&backup.objects) {
        let sealed = seal_json(key.kind, document).map_err(|error| format!("{key}: {error}"))?;
        if sealed.key != *key {
            return Err(format!("{key} is said to be {}", sealed.key));
        }
        records.push(Record::of(&sealed.at(Revision(revision))));
    }
    Ok(records)
}

/// Refuses a place that has something in it.
fn is_free(data: &Path) -> Result<(), StartError> {
    let taken = match fs::read_dir(data) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => true,
        Err(source) => return Err(StartError::File { path: data.into(), source }),
    };
    match taken {
        false => Ok(()),
        true => Err(StartError::Refused(format!(
            "{} is not empty, and restoring never replaces anything: move it away, or name another --data-dir; nothing was \
             written",
            data.display()
        ))),
    }
}

/// Where the directory is made: beside its place, so that a rename is all that is left to do.
fn beside(data: &Path) -> Result<PathBuf, StartError> {
    let name = data
        .file_name()
        .ok_or_else(|| StartError::Refused(format!("{} is no name of a directory", data.display())))?;
    let beside = data.with_file_name(format!(".{}.restoring", name.to_string_lossy()));
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StartError::File { path: beside, source: error })
        }
        // Left by a restore that was killed, or not there.
        _ => Ok(beside),
    }
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

/// The directory takes its place, which is free or an empty directory.
fn settle(beside: &Path, data: &Path) -> Result<(), StartError> {
    let sync = |path: &Path| fs::File::open(path)?.sync_all();
    let parent = data.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let moved = sync(&beside.join("pki"))
        .and_then(|()| sync(beside))
        .and_then(|()| fs::rename(beside, data))
        .and_then(|()| sync(parent));
    moved.map_err(|source| StartError::File { path: data.into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::{
        logic::backup::{About, Writer},
        model::{Key, Kind},
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
    fn an_empty_directory_is_taken_and_leftovers_of_a_restore_that_was_killed_do_not_matter() {
        let temp = tempfile::tempdir().unwrap();
        let options = RestoreOptions { file: file(temp.path()), data_dir: temp.path().join("data") };
        fs::create_dir(&options.data_dir).unwrap();
        let left = temp.path().join(".data.restoring/pki");
        fs::create_dir_all(&left).unwrap();
        fs::write(left.join("ca.key"), "half").unwrap();
        run(&options).unwrap();
        assert!(options.data_dir.join("objects").exists());
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
