//! Files that commands write: `backup FILE`, `image save -o FILE`.
//!
//! Owns: where bytes for a name go. A regular file, or one that is not there yet, is written beside and renamed: it is whole or
//! what it was before, and a symbolic link goes on pointing at it. Devices, FIFOs and standard output (`-`) are written to as
//! they are, but for a FIFO that somebody else laid out: what is written may be a cluster's keys.
//! Invariant: what is no regular file is never replaced by one.

use std::{
    fs,
    io::{self, IsTerminal as _, Write},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use super::{error::CliError, session::written};

/// Who may do everything already.
const ROOT: u32 = 0;
/// Links that are followed from a name to a file that is not there: as many as the system follows.
const MAX_LINKS: usize = 40;
/// Names of what is `-` too. To open them again would begin at the start of a file to which others have written.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// Where the bytes go.
pub(super) enum Sink {
    /// A file beside the one that is to be; removed unless it is kept.
    Beside(Beside),
    /// What can only be written to: a device, a FIFO, standard output.
    Open(Box<dyn Write>),
}

/// See [`Sink::Beside`].
pub(super) struct Beside {
    target: PathBuf,
    path: PathBuf,
    file: fs::File,
}

impl Sink {
    /// Opens what a name stands for. A new file gets `mode`; a FIFO is waited for until somebody reads it.
    ///
    /// # Errors
    /// The system's; for a directory, a socket, a terminal, and a FIFO that is neither ours nor root's.
    pub(super) fn open(name: &Path, mode: u32) -> io::Result<Sink> {
        if is_stdout(name) {
            let stdout = io::stdout();
            return if stdout.is_terminal() {
                Err(not_for_terminals())
            } else {
                Ok(Sink::Open(Box::new(stdout)))
            };
        }
        match fs::metadata(name) {
            Ok(there) if there.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(there) if there.is_file() => Beside::new(fs::canonicalize(name)?, mode).map(Sink::Beside),
            Ok(there) => {
                trusted(&there)?;
                let file = fs::OpenOptions::new().write(true).open(name)?;
                // It may be another one by now.
                trusted(&file.metadata()?)?;
                if file.is_terminal() { Err(not_for_terminals()) } else { Ok(Sink::Open(Box::new(file))) }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Beside::new(followed(name)?, mode).map(Sink::Beside)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts what was written where it belongs.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn keep(self) -> io::Result<()> {
        match self {
            Sink::Beside(beside) => beside.keep(),
            Sink::Open(mut open) => open.flush(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Beside(beside) => beside.file.write(bytes),
            Sink::Open(open) => open.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Beside(beside) => beside.file.flush(),
            Sink::Open(open) => open.flush(),
        }
    }
}

impl Beside {
    fn new(target: PathBuf, mode: u32) -> io::Result<Beside> {
        let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "it is not the name of a file");
        let name = target.file_name().ok_or_else(no_name)?;
        let path = target.with_file_name(format!(".{}.{}.part", name.to_string_lossy(), std::process::id()));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path)?;
        Ok(Beside { target, path, file })
    }

    /// What is written so far, for whoever looks at it before it is kept.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn keep(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, &self.target)?;
        let parent = self.target.parent().filter(|parent| !parent.as_os_str().is_empty());
        fs::File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether a name stands for standard output.
pub(super) fn is_stdout(name: &Path) -> bool {
    STDOUT.iter().any(|stdout| name == Path::new(stdout))
}

/// What became of writing to a name; nobody reads standard output any more, and that is no fault.
pub(super) fn fault(name: &Path, source: io::Error) -> CliError {
    match written(Err(source)) {
        Err(CliError::File { source, .. }) => CliError::File { path: name.to_owned(), source },
        Err(error) if is_stdout(name) => error,
        _ => CliError::File { path: name.to_owned(), source: io::ErrorKind::BrokenPipe.into() },
    }
}

/// Refuses a FIFO of somebody else, as the system does where `fs.protected_fifos` is set.
fn trusted(there: &fs::Metadata) -> io::Result<()> {
    let owners = [ROOT, nix::unistd::geteuid().as_raw()];
    if there.file_type().is_fifo() && !owners.contains(&there.uid()) {
        let why =
            format!("it is a FIFO of user {}, who might read what is written: name another", there.uid());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

fn not_for_terminals() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "this is not for a terminal: name a file, or pipe it")
}

/// The file that is to be made for a name: the name itself, or where links that lead to nothing end.
fn followed(name: &Path) -> io::Result<PathBuf> {
    let mut name = name.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&name) {
            // A link that leads from the root replaces all before it.
            Ok(link) => name = name.parent().unwrap_or(Path::new("")).join(link),
            Err(_) => return Ok(name),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn write(name: &Path, text: &str) -> io::Result<()> {
        let mut sink = Sink::open(name, 0o600)?;
        sink.write_all(text.as_bytes())?;
        sink.keep()
    }

    #[test]
    fn a_link_goes_on_pointing_at_the_file_that_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link, loose) =
            (dir.path().join("file"), dir.path().join("link"), dir.path().join("loose"));
        fs::write(&file, "before").unwrap();
        symlink("file", &link).unwrap();
        symlink("later", &loose).unwrap();
        write(&link, "after").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        write(&loose, "new").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("later")).unwrap(), "new");
        for link in [&link, &loose] {
            assert!(fs::symlink_metadata(link).unwrap().is_symlink());
        }
        symlink("round", dir.path().join("round")).unwrap();
        write(&dir.path().join("round"), "").unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5, "nothing is left beside them");
    }

    #[test]
    fn a_fifo_and_a_device_are_written_to_and_stay_what_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = std::thread::spawn({
            let fifo = fifo.clone();
            move || fs::read_to_string(fifo).unwrap()
        });
        write(&fifo, "through").unwrap();
        assert_eq!(reader.join().unwrap(), "through");
        assert!(fs::metadata(&fifo).unwrap().file_type().is_fifo());
        // Reached by a link, so that a defect would replace the link and not the machine's device.
        let null = dir.path().join("null");
        symlink("/dev/null", &null).unwrap();
        write(&null, "away").unwrap();
        let mut there = String::new();
        fs::File::open(&null).unwrap().read_to_string(&mut there).unwrap();
        assert_eq!(there, "");
        assert!(fs::metadata(&null).unwrap().file_type().is_char_device());
        assert!(fs::symlink_metadata(&null).unwrap().is_symlink());
    }

    #[test]
    fn a_fifo_that_somebody_else_laid_out_is_not_written_to() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::fs::chown(&fifo, Some(65_534), None).unwrap();
        // It would wait for a reader.
        assert_eq!(write(&fifo, "keys").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_a_fault_unless_it_is_standard_output() {
        let broken = || io::ErrorKind::BrokenPipe.into();
        assert!(matches!(fault(Path::new("-"), broken()), CliError::OutputClosed));
        assert!(matches!(fault(Path::new("fifo"), broken()), CliError::File { .. }));
        let full = fault(Path::new("-"), io::ErrorKind::StorageFull.into());
        assert!(matches!(full, CliError::File { path, .. } if path == Path::new("-")));
    }

    #[test]
    fn directories_and_sockets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(write(dir.path(), "").unwrap_err().kind(), io::ErrorKind::IsADirectory);
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        write(&socket, "").unwrap_err();
        assert!(fs::metadata(&socket).unwrap().file_type().is_socket());
    }
}
