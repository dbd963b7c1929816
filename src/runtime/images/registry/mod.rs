//! Images from registries: pulls by the OCI distribution specification, as a client of our own.
//!
//! Owns: [`Pulls`], a thread that pulls for one node, started with the first pull so that nodes without one pay
//! nothing, and [`RegistryConfig`]. Invariants: pulls of one name with the same credentials at a time are one pull, and so
//! is what is taken from other nodes; a registry that hangs or drips takes turns from its own pulls only, and nothing from
//! whoever starts containers; a pull that nobody waits for any more is given up.
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
    future::{BoxFuture, WeakShared},
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use tokio::{
    runtime::{Builder, Handle},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::AbortHandle,
};

use self::http::Http;
pub(super) use self::progress::Progress;
use super::{ImageStore, name::given, normalize, share};
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
    /// So long may all take that comes before the layers: tokens, manifests, the configuration.
    pub answers: Duration,
    /// So long a layer may take, and a second more for every 16 KiB of it that came.
    pub layer: Duration,
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
            answers: Duration::from_secs(120),
            layer: Duration::from_secs(300),
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

/// Images pulled at once from one registry, those of other pods wait: each has three layers under way.
const PULLS_AT_ONCE: usize = 8;
/// Images pulled at once from all registries: so many of the largest manifests are no burden, and who wants to hold up the
/// others has to keep four registries slow.
const PULLS_IN_ALL: usize = 4 * PULLS_AT_ONCE;
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

type Waiting = BoxFuture<'static, Result<Image, RuntimeError>>;

/// A pull under way. It lasts as long as somebody waits for it.
struct Pulling {
    waiting: WeakShared<Waiting>,
    progress: Arc<Progress>,
}

/// Ends a pull's task when the last who waits for it is gone.
struct GivenUp(AbortHandle);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What pulls images for a node. Dropped, it ends all pulls, and nothing is left of them.
pub struct Pulls {
    shared: Arc<State>,
    worker: OnceLock<Worker>,
}

struct State {
    store: ImageStore,
    threads: Threads,
    http: Http,
    turns: Turns,
    running: Mutex<HashMap<Subject, Pulling>>,
}

/// Whose turn it is to pull.
struct Turns {
    all: Arc<Semaphore>,
    /// Of registries that somebody pulls from; the nodes are one.
    each: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Turns {
    fn new() -> Turns {
        Turns { all: Arc::new(Semaphore::new(PULLS_IN_ALL)), each: Mutex::default() }
    }

    /// Waits for a turn with a registry, then for one among all: who waits for his registry takes nothing from others.
    async fn take(&self, registry: &str) -> [Option<OwnedSemaphorePermit>; 2] {
        let own = {
            let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
            // Turns and those who wait for one hold it.
            each.retain(|_, turns| Arc::strong_count(turns) > 1);
            let begun = || Arc::new(Semaphore::new(PULLS_AT_ONCE));
            Arc::clone(each.entry(registry.to_owned()).or_insert_with(begun))
        };
        // Nobody ever closes either.
        let own = own.acquire_owned().await.ok();
        [own, Arc::clone(&self.all).acquire_owned().await.ok()]
    }
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
            turns: Turns::new(),
            running: Mutex::default(),
        };
        Pulls { shared: Arc::new(shared), worker: OnceLock::new() }
    }

    /// Pulls an image, or waits for the pull of it that is under way. It goes on as long as somebody waits.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] with the reason.
    pub async fn pull(&self, name: &str, auth: Option<RegistryAuth>) -> Result<Image, RuntimeError> {
        let from = Supplier::Registry(auth.as_ref().map(|a| (a.username.clone(), a.password.clone())));
        let work = |done, progress| run(done, auth, progress);
        self.one((given(name)?, from), work).await
    }

    /// Takes an image from other nodes, or waits until that is done which is under way. It goes on as long as somebody
    /// waits.
    ///
    /// # Errors
    /// [`RuntimeError::Pull`] with the reason.
    pub async fn take(&self, offer: SharedImage, source: Arc<dyn PartSource>) -> Result<Image, RuntimeError> {
        let subject = (given(&offer.name)?, Supplier::Nodes(offer.id.clone()));
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
        let waiting = {
            let mut running = self.shared.running();
            match running.get(&subject).and_then(|pulling| pulling.waiting.upgrade()) {
                Some(waiting) => waiting,
                None => {
                    let progress = Arc::new(Progress::default());
                    let (state, subject_of) = (Arc::clone(&self.shared), subject.clone());
                    let done = Done { state, subject: subject_of, progress: Arc::clone(&progress) };
                    let task = worker.handle.spawn(work(done, Arc::clone(&progress)));
                    let given_up = GivenUp(task.abort_handle());
                    let waiting = async move {
                        let _given_up = given_up;
                        task.await.unwrap_or_else(|e| {
                            let cause =
                                if e.is_cancelled() { "the node stopped".into() } else { e.to_string() };
                            Err(RuntimeError::System { operation: "pull an image".into(), cause })
                        })
                    };
                    let waiting = waiting.boxed().shared();
                    // It is not over before it was asked for the first time.
                    if let Some(weak) = waiting.downgrade() {
                        running.insert(subject, Pulling { waiting: weak, progress });
                    }
                    waiting
                }
            }
        };
        waiting.await
    }

    /// How far the pull of an image is, if one is under way.
    pub fn progress(&self, name: &str) -> Option<PullProgress> {
        let full = normalize(name).ok()?;
        let running = self.shared.running();
        let of_name = running.iter().filter(|((name, _), _)| *name == full);
        of_name.map(|(_, pulling)| pulling.progress.now()).max_by_key(|progress| progress.bytes)
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
    fn running(&self) -> MutexGuard<'_, HashMap<Subject, Pulling>> {
        // Nothing panics half way through a change of it.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a pull when it is over, however it ended.
struct Done {
    state: Arc<State>,
    subject: Subject,
    /// Tells it from the pull that began after it was given up.
    progress: Arc<Progress>,
}

impl Drop for Done {
    fn drop(&mut self) {
        let mut running = self.state.running();
        if running.get(&self.subject).is_some_and(|pulling| Arc::ptr_eq(&pulling.progress, &self.progress)) {
            running.remove(&self.subject);
        }
    }
}

async fn run(done: Done, auth: Option<RegistryAuth>, progress: Arc<Progress>) -> Result<Image, RuntimeError> {
    let State { store, http, turns, .. } = &*done.state;
    let registry = done.subject.0.split('/').next().unwrap_or_default();
    let _turn = turns.take(registry).await;
    pull::pull(store, http, &done.subject.0, auth.as_ref(), &progress).await
}

async fn take(
    done: Done,
    offer: SharedImage,
    source: Arc<dyn PartSource>,
    progress: Arc<Progress>,
) -> Result<Image, RuntimeError> {
    let State { store, turns, .. } = &*done.state;
    // No registry has that name: they have a dot, or a port.
    let _turn = turns.take("nodes").await;
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
