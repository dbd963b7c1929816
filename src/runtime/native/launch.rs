//! Starting a shim, and reaching one that an earlier process started.
//!
//! Owns: the socket's place and the process' launch. The driver makes the socket and connects to it before the shim
//! exists, so nobody ever waits for it to appear.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::state::{SOCKET, SandboxDir};

/// Starts the sandbox' shim and connects to it.
pub(super) fn launch(executable: &Path, dir: &SandboxDir) -> io::Result<(Child, UnixStream)> {
    let (handle, path) = short_path(dir)?;
    let listener = UnixListener::bind(&path)?;
    let stream = UnixStream::connect(&path)?;
    drop(handle);
    let log = OpenOptions::new().create(true).append(true).open(dir.shim_log())?;
    let child = Command::new(executable)
        .arg("shim")
        .arg(&dir.0)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    Ok((child, stream))
}

/// Connects to the shim that serves the sandbox; fails when none lives.
pub(super) fn connect(dir: &SandboxDir) -> io::Result<UnixStream> {
    let (_handle, path) = short_path(dir)?;
    UnixStream::connect(path)
}

/// A path to the socket that fits into a socket address however long the sandbox' own is; good while the file lives.
fn short_path(dir: &SandboxDir) -> io::Result<(File, PathBuf)> {
    let handle = File::open(&dir.0)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()));
    Ok((handle, path))
}
