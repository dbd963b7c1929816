//! Connections from inside of a network namespace, for forwarded ports.
//!
//! Owns: the thread that enters the namespace, makes the socket and ends; the socket stays what it is. Invariant: no thread
//! that anything else runs on ever changes its namespace.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::{Connection, RuntimeError};

/// A port on a loopback answers at once or never.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Connects to a port on the loopback of a namespace, given by its file, or of the node.
///
/// # Errors
/// When nothing listens there, or the namespace cannot be entered.
pub(super) async fn connect(namespace: Option<PathBuf>, port: u16) -> Result<Connection, RuntimeError> {
    let fault = |cause: io::Error| RuntimeError::System {
        operation: format!("connect to 127.0.0.1:{port} in the pod"),
        cause: match cause.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused: nothing listens there".to_owned(),
            _ => cause.to_string(),
        },
    };
    let (done, made) = oneshot::channel();
    std::thread::Builder::new()
        .name("port-forward".to_owned())
        // Nobody waits any more when sending fails.
        .spawn(move || drop(done.send(inside(namespace, port))))
        .map_err(fault)?;
    let stream =
        made.await.unwrap_or_else(|_| Err(io::Error::other("its thread has died"))).map_err(fault)?;
    stream.set_nonblocking(true).map_err(fault)?;
    let stream = tokio::net::TcpStream::from_std(stream).map_err(fault)?;
    // Typed characters are not to wait for more.
    let _ = stream.set_nodelay(true);
    Ok(Box::pin(stream))
}

/// Blocks, and leaves its thread in the namespace.
fn inside(namespace: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    if let Some(path) = namespace {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let connect = |address| TcpStream::connect_timeout(&address, CONNECT_WITHIN);
    connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).or_else(|error| {
        // Some listen on the newer loopback only; what the older one says is more often right.
        connect(SocketAddr::from((Ipv6Addr::LOCALHOST, port))).map_err(|_| error)
    })
}
