//! Terminals: how their masters come out of containers, and what is done with them.
//!
//! Owns: the socket over which libcontainer hands on the master of a terminal that it makes in the container's own devpts,
//! and the master as a stream. Invariant: the end of the program (`EIO`) is the end of the stream.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use super::sys;
use crate::runtime::TerminalSize;

/// The socket's name in its directory.
const SOCKET: &str = "console";

/// Where a terminal's master is waited for.
pub(super) struct Console(UnixListener);

impl Console {
    /// The socket in a directory.
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join(SOCKET)
    }

    /// Makes the socket.
    pub(super) fn listen(dir: &Path) -> io::Result<Console> {
        // A socket's address is short, a directory's path may be long.
        let handle = File::open(dir)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd()))?;
        listener.set_nonblocking(true)?;
        Ok(Console(listener))
    }

    /// Takes the master that was sent already.
    pub(super) fn take(self) -> io::Result<OwnedFd> {
        let (stream, _) = self.0.accept()?;
        master(&stream)
    }

    /// Waits for the master.
    pub(super) async fn receive(self) -> io::Result<OwnedFd> {
        let listener = tokio::net::UnixListener::from_std(self.0)?;
        let (stream, _) = listener.accept().await?;
        stream.async_io(Interest::READABLE, || master(&stream)).await
    }
}

/// The descriptor in the one message of a connection. It does not block from here on.
fn master(stream: &impl AsRawFd) -> io::Result<OwnedFd> {
    let mut name = [0; 64];
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 1]);
    let mut into = [IoSliceMut::new(&mut name)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            received = fds.into_iter().map(sys::own).next_back().or(received);
        }
    }
    let master = received.ok_or_else(|| io::Error::other("no terminal was sent"))?;
    fcntl(master.as_raw_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(master)
}

/// Tells a terminal, and with it its foreground programs, its size.
pub(super) fn set_size(master: impl AsFd, size: TerminalSize) -> io::Result<()> {
    let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).map_err(io::Error::from)
}

/// A master as a stream both ways. With its last clone gone, the terminal hangs up.
#[derive(Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(super) fn new(master: OwnedFd) -> io::Result<Terminal> {
        Ok(Terminal(Arc::new(sys::watch(master)?)))
    }

    pub(super) fn set_size(&self, size: TerminalSize) -> io::Result<()> {
        set_size(self.0.get_ref(), size)
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let read =
                guard.try_io(|fd| Ok(nix::unistd::read(fd.as_raw_fd(), buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A terminal has no half that could be closed.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
