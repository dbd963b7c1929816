//! Ports of the machine that lead to pods: listeners, and what carries bytes between them and the pods' addresses.
//!
//! Owns: [`Host`], the thread that all of a node's relays live on, and [`Relays`], those of one pod. Invariants: no relay
//! outlives its [`Relays`] by more than a moment; an owner's next sockets are opened only when its last ones are closed; what is
//! open and carried at once is bounded for the whole process (`room.rs`). Leaves out: which ports, and when.
//! Limit: what listens in the pod sees the node's address instead of the client's.

mod connections;
#[cfg(test)]
mod limits_tests;
mod room;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd},
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use futures_util::FutureExt as _;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::{
    runtime::{Builder, Handle},
    sync::{OwnedSemaphorePermit, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use self::room::{Holds, Room};
use crate::model::{
    Uid,
    host_port::{HostPort, Protocol},
};

/// Closing a socket is a matter of a moment, unless its thread is busy.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// What the machine refuses (too many open files) it will refuse the next moment, too.
const RETRY: Duration = Duration::from_millis(100);

/// A socket of the machine.
pub enum Opened {
    /// It listens.
    Tcp(TcpListener),
    /// It is bound.
    Udp(UdpSocket),
}

/// How a node comes by sockets of the machine.
pub type Opener = Arc<dyn Fn(HostPort) -> io::Result<Opened> + Send + Sync>;

/// A port of the machine cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The machine refuses it.
    #[error("host port {port}: {}", why(source, holder.as_deref()))]
    Refused {
        /// Which.
        port: HostPort,
        /// What the machine says.
        source: io::Error,
        /// The pod of this process that has it.
        holder: Option<String>,
    },
    /// All of them are more than the process can have.
    #[error(
        "the pod's host ports take {asked} sockets (two each without hostIP), and {left} of {most} are left: name fewer, or raise \
         troupe's limit of open files (ulimit -n)"
    )]
    Full {
        /// By the pod.
        asked: usize,
        /// Now.
        left: usize,
        /// In this process.
        most: usize,
    },
}

impl RelayError {
    /// The reason of the event that tells of it.
    pub fn reason(&self) -> &'static str {
        match self {
            RelayError::Refused { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                "HostPortConflict"
            }
            RelayError::Refused { .. } | RelayError::Full { .. } => "HostPortFailed",
        }
    }
}

fn why(error: &io::Error, holder: Option<&str>) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            let holder =
                holder.map_or("something else on this machine".to_owned(), |pod| format!("pod {pod}"));
            format!("address already in use: {holder} has it; it is tried again until it is free")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "{error}: an ordinary user's ports begin at the sysctl net.ipv4.ip_unprivileged_port_start"
            )
        }
        io::ErrorKind::AddrNotAvailable => format!("{error}: hostIP is no address of this machine"),
        _ => error.to_string(),
    }
}

/// Opens a socket where the calling thread is.
///
/// # Errors
/// When the machine refuses it.
pub fn open(port: HostPort) -> io::Result<Opened> {
    let family = if port.listen.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match port.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
    };
    let made: OwnedFd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if port.listen.is_ipv6() {
        // The other family has a socket of its own.
        setsockopt(&made, sockopt::Ipv6V6Only, &true)?;
    }
    if port.protocol == Protocol::Tcp {
        // Connections of an earlier life may still be ending.
        setsockopt(&made, sockopt::ReuseAddr, &true)?;
    }
    bind(made.as_raw_fd(), &SockaddrStorage::from(port.listen))?;
    Ok(match port.protocol {
        Protocol::Tcp => {
            listen(&made, Backlog::MAXALLOWABLE)?;
            Opened::Tcp(made.into())
        }
        Protocol::Udp => Opened::Udp(made.into()),
    })
}

/// The machine, as a node's pods see it: where their ports are opened and relayed.
pub struct Host {
    opener: Opener,
    room: Arc<Room>,
    /// Started with the first port.
    thread: Mutex<Option<Thread>>,
    /// Closed when an owner's last sockets are.
    owners: Mutex<HashMap<Uid, watch::Receiver<()>>>,
}

/// Ends with its guard.
struct Thread {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Default for Host {
    fn default() -> Host {
        Host::by(None)
    }
}

impl Host {
    /// A machine whose sockets are made in this way, or by binding them here.
    pub fn by(opener: Option<Opener>) -> Host {
        let opener = opener.unwrap_or_else(|| Arc::new(open));
        Host { opener, room: Room::own(), thread: Mutex::default(), owners: Mutex::default() }
    }

    /// Opens ports for a pod, all or none; whoever comes waits until [`Held::lead`] says where to. What the pod had before
    /// must be ending. `name` is for people.
    ///
    /// # Errors
    /// The first that cannot be had, or that they are too many.
    pub async fn open(&self, owner: &Uid, name: &str, ports: Vec<HostPort>) -> Result<Held, RelayError> {
        let (alive, ended) = watch::channel(());
        if let Some(before) = self.succeed(owner, ended.clone()) {
            let _ = tokio::time::timeout(CLOSED_WITHIN, closed(before)).await;
        }
        let asked = ports.len();
        let listeners = &self.room.listeners;
        let Some(places) = listeners.try_take(asked) else {
            return Err(RelayError::Full { asked, left: listeners.left(), most: listeners.most() });
        };
        let room = self.room.clone();
        let holds = Holds::new(room.clone(), name);
        let mut held = Held { opened: Vec::new(), handle: None, room, alive: (holds, places, alive), ended };
        for port in ports {
            let fault = |source| RelayError::Refused { port, source, holder: self.room.holder(port) };
            let handle = self.handle().map_err(fault)?;
            held.handle = Some(handle.clone());
            let opener = self.opener.clone();
            let opened = handle.spawn_blocking(move || opener(port)).await;
            match opened.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(socket) => {
                    held.opened.push((port, socket));
                    held.alive.0.add(port);
                }
                Err(error) if port.optional && has_no_family(&error) => {}
                Err(source) => return Err(fault(source)),
            }
        }
        Ok(held)
    }

    /// Notes an owner's new sockets and gives what tells of its last ones.
    fn succeed(&self, owner: &Uid, ended: watch::Receiver<()>) -> Option<watch::Receiver<()>> {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, ended| ended.has_changed().is_ok());
        owners.insert(owner.clone(), ended)
    }

    fn handle(&self) -> io::Result<Handle> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.as_ref() {
            return Ok(thread.handle.clone());
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let (started, handle) = mpsc::channel();
        // Where it is built it may be dropped, too.
        thread::Builder::new().name("host-ports".to_owned()).spawn(move || {
            let mut builder = Builder::new_current_thread();
            let runtime = match builder.enable_all().thread_name("host-ports").max_blocking_threads(1).build()
            {
                Ok(runtime) => runtime,
                Err(error) => return drop(started.send(Err(error))),
            };
            let _ = started.send(Ok(runtime.handle().clone()));
            // The other end is never used but dropped.
            let _ = runtime.block_on(stopped);
            runtime.shutdown_background();
        })?;
        let handle = handle.recv().unwrap_or_else(|error| Err(io::Error::other(error)))?;
        *thread = Some(Thread { handle: handle.clone(), _stop: stop });
        Ok(handle)
    }
}

/// Whether the machine has no addresses of a family at all.
fn has_no_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) || error.kind() == io::ErrorKind::AddrNotAvailable
}

async fn closed(mut ended: watch::Receiver<()>) {
    while ended.changed().await.is_ok() {}
}

/// Whose an owner's sockets are, their places, and what tells when it is dropped, the last of these, that they are closed.
type Alive = (Holds, OwnedSemaphorePermit, watch::Sender<()>);

/// Ports that are open and lead nowhere yet.
pub struct Held {
    opened: Vec<(HostPort, Opened)>,
    handle: Option<Handle>,
    room: Arc<Room>,
    alive: Alive,
    ended: watch::Receiver<()>,
}

impl Held {
    /// Lets them lead to a pod's address.
    ///
    /// # Errors
    /// When the process can take no more sockets in.
    pub fn lead(self, pod: IpAddr) -> Result<Relays, RelayError> {
        let Held { opened, handle, room, alive, ended } = self;
        let (stop, broken) = (CancellationToken::new(), CancellationToken::new());
        // From here on a failure ends those before.
        let relays = Relays { stop: stop.clone(), broken: broken.clone(), ended };
        let tasks = Tasks { stop, broken, _alive: Arc::new(alive) };
        let Some(handle) = handle else { return Ok(relays) };
        let _here = handle.enter();
        // All addresses of a port have one part.
        let mut parts = HashMap::new();
        for (port, socket) in opened {
            let fault = |source| RelayError::Refused { port, source, holder: None };
            let target = SocketAddr::new(pod, port.port);
            let carrier = Carrier { target, tasks: tasks.clone(), room: room.clone() };
            let part =
                parts.entry((port.protocol, port.listen.port())).or_insert_with(|| match port.protocol {
                    Protocol::Tcp => room.connections.of_one_port(),
                    Protocol::Udp => room.clients.of_one_port(),
                });
            match socket {
                Opened::Tcp(socket) => {
                    let socket = tokio::net::TcpListener::from_std(socket).map_err(fault)?;
                    tasks.spawn_watched(&handle, tcp::serve(socket, part.clone(), carrier));
                }
                Opened::Udp(socket) => {
                    let socket = tokio::net::UdpSocket::from_std(socket).map_err(fault)?;
                    tasks.spawn_watched(&handle, udp::serve(socket, part.clone(), carrier));
                }
            }
        }
        Ok(relays)
    }
}

/// The relays of one pod. They end when this is dropped.
pub struct Relays {
    stop: CancellationToken,
    broken: CancellationToken,
    ended: watch::Receiver<()>,
}

impl Relays {
    /// Ends them and waits until their sockets are closed. Connections may end by themselves, for a moment.
    pub async fn end(self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(CLOSED_WITHIN, closed(self.ended.clone())).await;
    }

    /// Whether they failed: told when they did, or have been ended.
    pub fn failed(&self) -> impl Future<Output = bool> + use<> {
        let (stop, broken) = (self.stop.clone(), self.broken.clone());
        async move {
            tokio::select! {
                () = broken.cancelled() => true,
                () = stop.cancelled() => false,
            }
        }
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What one pod's tasks have in common.
#[derive(Clone)]
struct Tasks {
    stop: CancellationToken,
    broken: CancellationToken,
    _alive: Arc<Alive>,
}

impl Tasks {
    /// A task that ends when all do. To be called on the relays' thread.
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let all = self.clone();
        tokio::spawn(async move {
            let all = whole(all);
            all.stop.run_until_cancelled(work).await
        });
    }

    /// One that is told of the end by `stop`, and ends soon after.
    fn spawn_lasting(&self, work: impl Future<Output = ()> + Send + 'static) {
        let all = self.clone();
        tokio::spawn(async move {
            let _all = whole(all);
            work.await;
        });
    }

    /// One that is missed when it panics.
    fn spawn_watched(&self, handle: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let all = self.clone();
        handle.spawn(async move {
            let all = whole(all);
            let caught = AssertUnwindSafe(work).catch_unwind();
            if let Some(Err(_)) = all.stop.run_until_cancelled(caught).await {
                all.broken.cancel();
            }
        });
    }
}

/// A block captures the fields that it names only; a task keeps all of them to its end.
fn whole(tasks: Tasks) -> Tasks {
    tasks
}

/// What a port needs to carry something.
struct Carrier {
    target: SocketAddr,
    tasks: Tasks,
    room: Arc<Room>,
}
