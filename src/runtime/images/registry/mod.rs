//! Images from registries: pulls by the OCI distribution specification, as a client of our own.
//!
//! Owns: [`Pulls`], a thread that pulls for one node, started with the first pull so that nodes without one pay
//! nothing, and [`RegistryConfig`]. Invariants: pulls of one name with the same credentials at a time are one pull, and so
//! is what is taken from other nodes; a registry that hangs takes a turn here, but nothing from whoever starts containers.
//!
//! ```text
//! Pulls ─▶ pull ─▶ session (manifests, layers, tokens) ─▶ http (TLS, redirects, timeouts)
//!           └─▶ the store's staging directory ─▶ load
//! ```

mod auth;
mod http;
mod progress;
mod proxy;
mod pull;
mod reference;
mod session;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    runtime::{Builder, Handle},
    sync::{Semaphore, oneshot},
};

use self::http::Http;
pub(super) use self::progress::Progress;
use super::{ImageStore, normalize, share};
use crate::runtime::{
    Image, PullProgress, RegistryAuth, RuntimeError,
    share::{PartSource, SharedImage},
};

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Hosts, maybe with a port, that may be spoken to without TLS. Loopback always may.
    pub insecure: Vec<String>,
    /// Certificate authorities beyond the system's.
    pub roots: Vec<CertificateDer<'static>>,
    /// How long a connection may take.
    pub connect: Duration,
    /// Silence for so long is a broken connection.
    pub idle: Duration,
    /// Where the thread that pulls is started.
    pub threads: Threads,
}

/// Starts threads: here, or where somebody else says, such as in another network namespace.
#[derive(Clone, Default)]
pub struct Threads(Option<Arc<Start>>);

type Start = dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send + Sync;

impl Threads {
    /// Has them started by `start`.
    pub fn by(start: impl Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send + Sync + 'static) -> Threads {
        Threads(Some(Arc::new(start)))
    }

    fn start(&self, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        match &self.0 {
            Some(start) => start(Box::new(body)),
            None => std::thread::Builder::new().name("image-pulls".to_owned()).spawn(body).map(drop),
        }
    }
}

impl std::fmt::Debug for Threads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Threads(elsewhere)" } else { "Threads(here)" })
    }
}

impl Default for RegistryConfig {
    fn default() -> RegistryConfig {
        RegistryConfig {
            insecure: Vec::new(),
            roots: Vec::new(),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            threads: Threads::default(),
        }
    }
}

impl RegistryConfig {
    /// Trusts the authorities in a PEM file, too.
    ///
    /// # Errors
    /// When it cannot be read or has no certificate in it.
    pub fn trust(&mut self, file: &Path) -> io::Result<()> {
        let pem = std::fs::read(file)?;
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let roots = roots.map_err(|e| invalid(e.to_string()))?;
        if roots.is_empty() {
            return Err(invalid("no certificate in it (PEM)".into()));
        }
        self.roots.extend(roots);
        Ok(())
    }
}

/// Images pulled at once, those of other pods wait: each has three layers under way.
const PULLS_AT_ONCE: usize = 8;
/// Threads that write and unpack, for all pulls.
const BLOCKING_THREADS: usize = 8;

/// A pull's name, and from where.
type Subject = (String, Supplier);

/// From where an image comes.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Supplier {
    /// Its registry, with these credentials.
    Registry(Option<(String, String)>),
    /// Other nodes that have it under this id.
    Nodes(String),
}

type Pulling = Shared<BoxFuture<'static, Result<Image, RuntimeError>>>;

/// What pulls images for a node. Dropped, it ends all pulls, and nothing is left of them.
pub struct Pulls {
    shared: Arc<State>,
    worker: OnceLock<Worker>,
}

struct State {
    store: ImageStore,
    threads: Threads,
    http: Http,
    turns: Semaphore,
    running: Mutex<HashMap<Subject, (Pulling, Arc<Progress>)>>,
}

struct Worker {
    handle: Handle,
    /// Dropped with the pulls, which ends the thread.
    _stop: oneshot::Sender<()>,
}

impl Pulls {
    /// Pulls into a store.
    pub fn new(store: ImageStore, config: RegistryConfig) -> Pulls {
        let shared = State {
            store,
            threads: config.threads.clone(),
            http: Http::new(config),
            turns: Semaphore::new(PULLS_AT_ONCE),
            running: Mutex::default(),
        };
        Pulls { shared: Arc::new(shared), worker: OnceLock::new() }
    }

    /// Pulls an image, or waits for the pull of it that is under way. It goes on when the caller stops waiting.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] with the reason.
    pub async fn pull(&self, name: &str, auth: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        let from = Supplier::Registry(auth.as_ref().map(|a| (a.username.clone(), a.password.clone())));
        let work = |done, progress| run(done, auth, progress);
        self.one((normalize(name)?, from), work).await
    }

    /// Takes an image from other nodes, or waits until that is done which is under way. It goes on when the caller stops
    /// waiting.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] with the reason.
    pub async fn take(&self, offer: SharedImage, source: Arc<dyn PartSource>) -> Result<Image, RuntimeError> {
        let subject = (normalize(&offer.name)?, Supplier::Nodes(offer.id.clone()));
        let work = |done, progress| take(done, offer, source, progress);
        self.one(subject, work).await
    }

    /// Waits for the one work on a subject, which is begun if there is none.
    async fn one<W>(
        &self,
        subject: Subject,
        work: impl FnOnce(Done, Arc<Progress>) -> W,
    ) -> Result<Image, RuntimeError>
    where
        W: Future<Output = Result<Image, RuntimeError>> + Send + 'static,
    {
        let worker = self.worker()?;
        let pulling = {
            let mut running = self.shared.running();
            match running.get(&subject) {
                Some((pulling, _)) => pulling.clone(),
                None => {
                    let progress = Arc::new(Progress::default());
                    let done = Done { state: Arc::clone(&self.shared), subject: subject.clone() };
                    let task = worker.handle.spawn(work(done, Arc::clone(&progress)));
                    let ended = |e: tokio::task::JoinError| {
                        let cause = if e.is_cancelled() { "the node stopped".into() } else { e.to_string() };
                        Err(RuntimeError::System { operation: "pull an image".into(), cause })
                    };
                    let pulling = task.map(move |r| r.unwrap_or_else(ended)).boxed().shared();
                    running.insert(subject, (pulling.clone(), progress));
                    pulling
                }
            }
        };
        pulling.await
    }

    /// How far the pull of an image is, if one is under way.
    pub fn progress(&self, name: &str) -> Option<PullProgress> {
        let full = normalize(name).ok()?;
        let running = self.shared.running();
        let of_name = running.iter().filter(|((name, _), _)| *name == full);
        of_name.map(|(_, (_, progress))| progress.now()).max_by_key(|progress| progress.bytes)
    }

    fn worker(&self) -> Result<&Worker, RuntimeError> {
        if let Some(worker) = self.worker.get() {
            return Ok(worker);
        }
        let begun = begin(&self.shared.threads).map_err(|e| RuntimeError::System {
            operation: "start a thread for pulls".into(),
            cause: e.to_string(),
        })?;
        // When two began at once, one of them ends again.
        Ok(self.worker.get_or_init(|| begun))
    }
}

impl State {
    fn running(&self) -> MutexGuard<'_, HashMap<Subject, (Pulling, Arc<Progress>)>> {
        // Nothing panics half way through a change of it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a pull when it is over, however it ended.
struct Done {
    state: Arc<State>,
    subject: Subject,
}

impl Drop for Done {
    fn drop(&mut self) {
        self.state.running().remove(&self.subject);
    }
}

async fn run(done: Done, auth: Option<RegistryAuth>, progress: Arc<Progress>) -> Result<Image, RuntimeError> {
    let State { store, http, turns, .. } = &*done.state;
    // Nobody ever closes it.
    let _turn = turns.acquire().await.ok();
    pull::pull(store, http, &done.subject.0, auth.as_ref(), &progress).await
}

async fn take(
    done: Done,
    offer: SharedImage,
    source: Arc<dyn PartSource>,
    progress: Arc<Progress>,
) -> Result<Image, RuntimeError> {
    let State { store, turns, .. } = &*done.state;
    let _turn = turns.acquire().await.ok();
    share::take(store, &offer, &*source, &progress).await
}

fn begin(threads: &Threads) -> io::Result<Worker> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_name("pull-blocking")
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel();
    threads.start(move || {
        // It is never sent; what counts is that the sender goes.
        let _ = runtime.block_on(stopped);
        runtime.shutdown_background();
    })?;
    Ok(Worker { handle, _stop: stop })
}
