//! `troupe` as an ordinary user: the namespaces of a data directory, who keeps them, and what stays outside of them.
//!
//! Owns: the order of steps before anything else runs (sockets, user and mount namespace, a thread that stays outside,
//! network namespace, a process that holds it all), and their end. Invariants: a data directory has one set of
//! namespaces at a time, so that a later process finds its pods; it ends when no pod needs it any more.
//!
//! ```text
//! troupe: API, links ─┬ thread "outside": host's network (pulls, links' sockets)
//!                     └ all other threads: user + mount + network namespace ── holder (lives on) ── shims
//! ```

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Sender, channel, sync_channel},
    },
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

pub use crate::runtime::native::userns::lacks;

use super::{RuntimeChoice, StartError, address::reachable_at, docker, master::Reached};
use crate::{
    api::ServeError,
    net::{NetError, Sockets, relay},
    runtime::{images::Threads, native::userns},
    store::DataDir,
};

/// The file of a data directory that says who holds its namespaces.
pub(super) const RECORD: &str = "namespaces";

/// Who holds a data directory's namespaces.
#[derive(Debug, Serialize, Deserialize)]
struct Holder {
    pid: i32,
    /// So that another process of that pid is not taken for it.
    started: u64,
}

impl Holder {
    /// The one that a directory names, while it lives.
    fn of(data: &Path) -> Option<Holder> {
        let text = fs::read(data.join(RECORD)).ok()?;
        let holder: Holder = serde_json::from_slice(&text).ok()?;
        (userns::started(holder.pid) == Some(holder.started)).then_some(holder)
    }

    fn start(data: &Path) -> io::Result<Holder> {
        let pid = userns::start_holder(data)?;
        let gone = || io::Error::other("the process that holds the namespaces has ended");
        let holder = Holder { pid, started: userns::started(pid).ok_or_else(gone)? };
        let written = serde_json::to_vec(&holder).map_err(io::Error::from).and_then(|text| {
            let new = data.join(format!("{RECORD}.new"));
            fs::write(&new, text)?;
            fs::rename(new, data.join(RECORD))
        });
        if written.is_err() {
            holder.end();
        }
        written.map(|()| holder)
    }

    fn end(&self) {
        if userns::started(self.pid) == Some(self.started) {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// What was made before an ordinary user's cluster starts.
pub struct Rootless {
    /// Bound where users are.
    pub(super) api: TcpListener,
    /// Bound where other machines are.
    pub(super) links: UdpSocket,
    pub(super) outside: Outside,
}

/// Whether a start with this runtime is one of an ordinary user's own containers: not root, and no docker that would
/// be chosen instead.
///
/// # Errors
/// When it would be, and the kernel does not let it: what to do.
pub fn wanted(choice: RuntimeChoice, data: &Path) -> Result<bool, StartError> {
    if nix::unistd::geteuid().is_root() {
        return not_of_a_user(data).map(|()| false);
    }
    match choice {
        RuntimeChoice::Sim | RuntimeChoice::Docker | RuntimeChoice::Cri => return Ok(false),
        RuntimeChoice::Native => {}
        RuntimeChoice::Auto => {
            if docker::is_used_in(data) || (Holder::of(data).is_none() && docker::may_run().is_ok()) {
                return Ok(false);
            }
        }
    }
    possible().map(|()| true).map_err(StartError::Refused)
}

/// Root would neither find the pods of an ordinary user's directory nor mount its images as they are meant.
fn not_of_a_user(data: &Path) -> Result<(), StartError> {
    if !data.join(RECORD).exists() {
        return Ok(());
    }
    Err(StartError::Refused(format!(
        "{} is an ordinary user's (it has a file {RECORD:?}): run troupe as that user, or end its cluster with `troupe reset` \
         as that user",
        data.display()
    )))
}

/// Whether this user may have namespaces.
///
/// # Errors
/// What the kernel refuses and what to do, for the user.
pub fn possible() -> Result<(), String> {
    userns::possible().map_err(|why| {
        format!(
            "this user cannot run containers: the kernel refuses namespaces to ordinary users ({why}); allow them \
             (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1, \
             kernel.apparmor_restrict_unprivileged_userns=0), run troupe as root (sudo), have docker run them \
             (--runtime docker), or simulate them (--runtime sim)"
        )
    })
}

/// Binds the sockets that others are to reach, then enters the data directory's namespaces; makes them when nobody holds
/// them. To be called before the process has a second thread.
///
/// # Errors
/// When an address is taken, when the directory cannot be used, when the kernel refuses.
pub fn enter(data: &Path, api: SocketAddr, links: Option<SocketAddr>) -> Result<Rootless, StartError> {
    // Nobody else makes namespaces for this directory meanwhile.
    let lock = DataDir::open(data)?;
    let data =
        &fs::canonicalize(data).map_err(|source| StartError::File { path: data.to_owned(), source })?;
    let listen = |source| StartError::Api(ServeError::Listen { address: api, source });
    let api = TcpListener::bind(api).map_err(listen)?;
    let links = links.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    let bind = |source| StartError::Net(NetError::Bind { address: links, source });
    let links = UdpSocket::bind(links).map_err(bind)?;
    let outside = keeping_directory(|| match Holder::of(data) {
        Some(holder) => {
            userns::enter(holder.pid)?;
            let outside = Outside::start()?;
            userns::enter_network(holder.pid)?;
            Ok(outside)
        }
        None => {
            userns::end_orphans(data);
            userns::make()?;
            let outside = Outside::start()?;
            userns::make_network()?;
            Holder::start(data)?;
            Ok(outside)
        }
    })
    .map_err(refused)?;
    drop(lock);
    Ok(Rootless { api, links, outside })
}

/// For a reset: enters the namespaces of a data directory, or new ones that nobody holds, where files can be removed
/// whatever their modes. Does nothing for root, or where the kernel refuses. To be called as [`enter`].
///
/// # Errors
/// When there are namespaces that cannot be entered.
pub fn enter_to_reset(data: &Path) -> Result<(), StartError> {
    let held = Holder::of(data);
    if nix::unistd::geteuid().is_root() {
        return if held.is_some() { not_of_a_user(data) } else { Ok(()) };
    }
    if held.is_none() {
        let Ok(data) = fs::canonicalize(data) else { return Ok(()) };
        if data.join(RECORD).exists() {
            userns::end_orphans(&data);
        }
        if userns::possible().is_err() {
            return Ok(());
        }
    }
    keeping_directory(|| match held {
        Some(holder) => userns::enter(holder.pid).and_then(|()| userns::enter_network(holder.pid)),
        None => userns::make().and_then(|()| userns::make_network()),
    })
    .map_err(refused)
}

/// For a throw-away cluster: this process and all that it starts are in namespaces that end with them. To be called as
/// [`enter`].
///
/// # Errors
/// When the kernel refuses.
pub fn enter_for_a_while() -> Result<(), StartError> {
    keeping_directory(|| userns::make().and_then(|()| userns::make_network())).map_err(refused)
}

/// Entering a mount namespace leaves the directory one was in.
fn keeping_directory<T>(enter: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let before = std::env::current_dir();
    let entered = enter()?;
    if let Ok(dir) = before {
        // It may have been removed: then there is none, as before.
        let _ = std::env::set_current_dir(dir);
    }
    Ok(entered)
}

fn refused(error: io::Error) -> StartError {
    StartError::Refused(format!("cannot set up namespaces for this user's containers: {error}"))
}

/// Ends the process that holds a data directory's namespaces. To be called with the directory's lock, when nothing runs in
/// them any more.
pub(super) fn end(data: &Path) {
    if let Some(holder) = Holder::of(data) {
        holder.end();
    }
    // It may never have been there.
    let _ = fs::remove_file(data.join(RECORD));
}

type Work = Box<dyn FnOnce() + Send>;

/// The thread that stayed in the network that this process came from.
#[derive(Clone)]
pub struct Outside(Arc<Mutex<Sender<Work>>>);

/// What is done out there takes microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

impl Outside {
    /// Starts it where the calling thread is now.
    fn start() -> io::Result<Outside> {
        let (sender, works) = channel::<Work>();
        std::thread::Builder::new().name("outside".to_owned()).spawn(move || {
            while let Ok(work) = works.recv() {
                work();
            }
        })?;
        Ok(Outside(Arc::new(Mutex::new(sender))))
    }

    /// Does something short out there and waits for it.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
        let ended = || io::Error::other("the thread outside has ended");
        let (done, result) = sync_channel(1);
        let work: Work = Box::new(move || {
            // Nobody waits any more when it took too long.
            let _ = done.send(work());
        });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send(work).map_err(|_| ended())?;
        result.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(ended()))
    }

    /// Sockets for links, made out there.
    pub(super) fn sockets(&self) -> Sockets {
        let outside = self.clone();
        Arc::new(move |address| outside.run(move || UdpSocket::bind(address)))
    }

    /// Where others reach a port of the machine that is out there.
    pub(super) fn reached(&self) -> Reached {
        let outside = self.clone();
        Arc::new(move |listen| {
            outside.run(move || Ok(reachable_at(listen))).unwrap_or_else(|error| Err(error.to_string()))
        })
    }

    /// Ports of the machine for pods, opened out there.
    pub(super) fn host_ports(&self) -> relay::Opener {
        let outside = self.clone();
        Arc::new(move |port| outside.run(move || relay::open(port)))
    }

    /// Threads that are out there, as is whatever they start.
    pub(super) fn threads(&self) -> Threads {
        let outside = self.clone();
        Threads::by(move |body| {
            outside
                .run(move || std::thread::Builder::new().name("image-pulls".to_owned()).spawn(body).map(drop))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_one_only_while_that_very_process_lives() {
        let dir = tempfile::tempdir().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let started = userns::started(own).unwrap();
        let record = |holder: &Holder| {
            fs::write(dir.path().join(RECORD), serde_json::to_vec(holder).unwrap()).unwrap();
            Holder::of(dir.path()).map(|holder| holder.pid)
        };
        assert!(Holder::of(dir.path()).is_none());
        assert_eq!(record(&Holder { pid: own, started }), Some(own));
        assert_eq!(record(&Holder { pid: own, started: started + 1 }), None);
        fs::write(dir.path().join(RECORD), "nonsense").unwrap();
        assert!(Holder::of(dir.path()).is_none());
    }

    #[test]
    fn work_outside_is_waited_for_and_its_failure_told() {
        let outside = Outside::start().unwrap();
        let socket = (outside.sockets())(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        assert!(socket.local_addr().is_ok());
        assert!(outside.run(|| io::Result::<()>::Err(io::Error::other("no"))).is_err());
    }
}
