//! Starting shims, and reaching one that an earlier process started.
//!
//! Owns: the socket's place and the processes' launch. The driver makes the socket and connects to it before the shim
//! exists, so nobody ever waits for it to appear. Shims are forked by one *seed*, a process of the same executable that
//! does nothing else: what a large executable costs once it is loaded (a megabyte and more of relocated pages, and the
//! time to make them) is then paid once a driver, not once a pod. Without a seed a shim is started as a program.
//!
//! ```text
//! driver ──directory, socket──▶ seed ──fork──▶ shim (lives on when driver and seed end)
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSlice, IoSliceMut},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::OsStrExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use super::{
    state::{SOCKET, SandboxDir},
    sys,
};

/// The shim's argument that makes it a seed.
pub(super) const SEED: &str = "--seed";
/// No path in the kernel is longer.
const PATH_BYTES: usize = libc::PATH_MAX as usize;

/// A shim that was started, and the connection to it.
pub(super) struct Launched {
    pub stream: UnixStream,
    pub pid: i32,
    /// When it is this process' own child, to be reaped.
    pub child: Option<Child>,
}

/// Starts shims of one driver.
#[derive(Default)]
pub(super) struct Launcher {
    seed: Mutex<Option<Seed>>,
}

/// The process that forks shims. It ends when its socket does.
struct Seed {
    child: Child,
    socket: OwnedFd,
}

impl Launcher {
    /// Starts the sandbox' shim and connects to it. Blocks for some milliseconds.
    pub(super) fn launch(&self, executable: &Path, dir: &SandboxDir) -> io::Result<Launched> {
        let (handle, path) = short_path(dir)?;
        let listener = UnixListener::bind(&path)?;
        let stream = UnixStream::connect(&path)?;
        drop(handle);
        let log = OpenOptions::new().create(true).append(true).open(dir.shim_log())?;
        match self.fork(executable, dir, &listener, &log) {
            Ok(pid) => Ok(Launched { stream, pid, child: None }),
            Err(error) => {
                tracing::warn!(%error, "no seed to fork a shim from; it is started as a program");
                let child = Command::new(executable)
                    .arg("shim")
                    .arg(&dir.0)
                    .env_clear()
                    .current_dir("/")
                    .stdin(Stdio::from(OwnedFd::from(listener)))
                    .stdout(log.try_clone()?)
                    .stderr(log)
                    .spawn()?;
                Ok(Launched { stream, pid: child.id() as i32, child: Some(child) })
            }
        }
    }

    /// Lets the seed fork a shim; a seed that has died is replaced once.
    fn fork(
        &self,
        executable: &Path,
        dir: &SandboxDir,
        listener: &UnixListener,
        log: &File,
    ) -> io::Result<i32> {
        let mut place = self.place();
        if let Some(seed) = &*place {
            match seed.ask(dir, listener, log) {
                Ok(pid) => return Ok(pid),
                Err(error) => tracing::debug!(%error, "the seed of shims has died"),
            }
            bury(place.take());
        }
        let sandboxes = dir.0.parent().unwrap_or(&dir.0);
        let seed = place.insert(Seed::start(executable, sandboxes)?);
        seed.ask(dir, listener, log)
    }

    /// Ends the seed. Shims live on, and the next launch starts another one.
    pub(super) fn end(&self) {
        bury(self.place().take());
    }

    fn place(&self) -> MutexGuard<'_, Option<Seed>> {
        // Each change is one assignment, so a panic elsewhere leaves nothing half done.
        self.seed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.end();
    }
}

/// Ends a seed and takes its status: with its socket gone it needs a millisecond.
fn bury(seed: Option<Seed>) {
    if let Some(Seed { mut child, socket }) = seed {
        drop(socket);
        let _ = child.wait();
    }
}

impl Seed {
    /// `of` only says to people who look at processes whose seed it is.
    fn start(executable: &Path, of: &Path) -> io::Result<Seed> {
        let (socket, other) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let child = Command::new(executable)
            .args(["shim", SEED])
            .arg(of)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(other))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Seed { child, socket })
    }

    fn ask(&self, dir: &SandboxDir, listener: &UnixListener, log: &File) -> io::Result<i32> {
        let fds = [listener.as_raw_fd(), log.as_raw_fd()];
        let name = [IoSlice::new(dir.0.as_os_str().as_bytes())];
        let socket = self.socket.as_raw_fd();
        sendmsg::<()>(socket, &name, &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)?;
        let mut poll = [libc::pollfd { fd: socket, events: libc::POLLIN, revents: 0 }];
        if sys::poll(&mut poll, FORK_MS)? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the seed does not answer"));
        }
        let mut pid = [0; size_of::<i32>()];
        match nix::unistd::read(socket, &mut pid)? {
            count if count == pid.len() && i32::from_ne_bytes(pid) > 0 => Ok(i32::from_ne_bytes(pid)),
            0 => Err(io::ErrorKind::BrokenPipe.into()),
            _ => Err(io::Error::other("it cannot fork")),
        }
    }
}

/// A fork takes a millisecond; a seed that needs longer is stuck.
const FORK_MS: i32 = 10_000;

/// What a seed does: forks a shim for each message. Returns in each shim with its directory, its listening socket being
/// standard input and its log the other two; and with `None` in the seed when the driver has ended.
pub(super) fn seed() -> io::Result<Option<PathBuf>> {
    let _ = nix::unistd::setsid();
    let socket = sys::take_stdin()?;
    sys::let_children_be_reaped(true);
    // libcgroups opens a `/proc` of its own and keeps it: once here spares each container's start some twenty.
    let _ = libcgroups::v1::util::list_subsystem_mount_points();
    loop {
        let Some((dir, [listener, log])) = receive(&socket)? else { return Ok(None) };
        match sys::fork() {
            Ok(0) => {
                drop(socket);
                name_process(&dir);
                sys::let_children_be_reaped(false);
                for (fd, place) in [
                    (&listener, libc::STDIN_FILENO),
                    (&log, libc::STDOUT_FILENO),
                    (&log, libc::STDERR_FILENO),
                ] {
                    nix::unistd::dup2(fd.as_raw_fd(), place)?;
                }
                return Ok(Some(dir));
            }
            forked => {
                let pid = forked.unwrap_or(0).to_ne_bytes();
                nix::unistd::write(&socket, &pid)?;
            }
        }
    }
}

/// For those who look at processes: the arguments are the seed's in all shims. The kernel keeps 15 bytes.
fn name_process(dir: &Path) {
    let uid = dir.file_name().unwrap_or_default().to_string_lossy();
    if let Ok(name) = std::ffi::CString::new(format!("shim {uid}")) {
        // A process without the name works as well.
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// A message of the driver; `None` at its end.
fn receive(socket: &OwnedFd) -> io::Result<Option<(PathBuf, [OwnedFd; 2])>> {
    let mut name = vec![0; PATH_BYTES];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 2]);
    let (count, fds) = {
        let mut into = [IoSliceMut::new(&mut name)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => return receive(socket),
            message => message?,
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                fds.extend(received.into_iter().map(sys::own));
            }
        }
        (message.bytes, fds)
    };
    if count == 0 {
        return Ok(None);
    }
    name.truncate(count);
    let fds = fds.try_into().map_err(|_| io::Error::other("a message without its descriptors"))?;
    Ok(Some((PathBuf::from(std::ffi::OsString::from(std::ffi::OsStr::from_bytes(&name))), fds)))
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
