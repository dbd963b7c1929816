//! The data directory: one owner at a time, one format.
//!
//! Owns: the directory's creation (mode 0700: it holds secrets), the `lock` file (an exclusive `flock` for as long as
//! the [`DataDir`] lives, with the owner's pid as text for whoever comes second) and the `format` file.
//! What other rooms keep below the directory is theirs.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::StoreError;

/// The version of everything below the directory. A change that old versions cannot read raises it.
const FORMAT: u32 = 1;
const LOCK_FILE: &str = "lock";
const FORMAT_FILE: &str = "format";
/// A `format` or `lock` file is a number in a line; more than this is not read.
const MAX_NOTE_BYTES: u64 = 64;

/// A data directory that is ours until this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the `flock`; closed by the system however the process ends.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if it is missing, takes its lock and checks its format.
    ///
    /// # Errors
    /// When another process has it, it is of another format, or it cannot be created or written; each text names the
    /// path and what to do.
    pub fn open(path: &Path) -> Result<DataDir, StoreError> {
        match DirBuilder::new().recursive(true).mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::NotADirectory { path: path.into() });
            }
            made => made.map_err(refused("create", path))?,
        }
        let lock = take_lock(path)?;
        let dir = DataDir { path: path.into(), _lock: lock };
        dir.check_format()?;
        Ok(dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let file = self.path.join(FORMAT_FILE);
        let found = match File::open(&file) {
            Ok(file_) => read_note(file_).map_err(refused("read", &file))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return write_whole(&file, format!("{FORMAT}\n").as_bytes());
            }
            Err(e) => return Err(refused("read", &file)(e)),
        };
        match found.parse() {
            Ok(FORMAT) => Ok(()),
            _ => Err(StoreError::Format { path: self.path.clone(), found, supported: FORMAT }),
        }
    }
}

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(refused("open", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = read_note(file).unwrap_or_default();
            let owner = if pid.is_empty() { "pid unknown".to_owned() } else { format!("pid {pid}") };
            return Err(StoreError::Locked { path: dir.into(), owner });
        }
        Err(TryLockError::Error(e)) => return Err(refused("lock", &path)(e)),
    }
    let note = format!("{}\n", std::process::id());
    let noted = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(note.as_bytes()));
    match noted {
        // Who comes second is told less; a master has to start on a full disk.
        Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {}
        noted => noted.map_err(refused("write", &path))?,
    }
    Ok(file)
}

fn read_note(file: File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.take(MAX_NOTE_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Writes a small file so that it is there whole or not at all, whenever the power fails.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let draft = path.with_extension("new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        path.parent().map_or(Ok(()), sync_dir)
    };
    write().map_err(refused("write", path))
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn refused(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { doing, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_new_directory_is_private_and_opens_again() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a/b");
        drop(DataDir::open(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(DataDir::open(&path).unwrap().path(), path);
    }

    #[test]
    fn a_second_owner_is_told_the_path_and_the_pid_of_the_first() {
        let temp = tempfile::tempdir().unwrap();
        let _first = DataDir::open(temp.path()).unwrap();
        let text = DataDir::open(temp.path()).unwrap_err().to_string();
        assert!(text.contains(temp.path().to_str().unwrap()), "{text}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
    }

    #[test]
    fn another_format_is_refused_and_left_untouched() {
        let temp = tempfile::tempdir().unwrap();
        for found in ["2", "banana", ""] {
            fs::write(temp.path().join(FORMAT_FILE), found).unwrap();
            let error = DataDir::open(temp.path()).unwrap_err();
            assert!(matches!(&error, StoreError::Format { found: f, .. } if f == found), "{error}");
            assert!(error.to_string().contains("--data-dir"), "{error}");
            assert_eq!(fs::read_to_string(temp.path().join(FORMAT_FILE)).unwrap(), found);
        }
    }

    #[test]
    fn a_path_that_is_a_file_or_below_one_is_refused_by_name() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(DataDir::open(&file), Err(StoreError::NotADirectory { path }) if path == file));
        let below = file.join("dir");
        let text = DataDir::open(&below).unwrap_err().to_string();
        assert!(text.contains(below.to_str().unwrap()) && text.contains("--data-dir"), "{text}");
    }
}
