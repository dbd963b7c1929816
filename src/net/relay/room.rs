//! How much the relays of one process take at once.
//!
//! Owns: [`Room`]'s parts, of which each socket of the machine, connection and UDP client holds a permit, and what is told
//! when one is full. Which connection gives its place to one that waits is `connections.rs`. Invariant: all three together
//! take half of the files that the process may have open, and each listener one more for a connection that waits, so that
//! API, store and kubelet have the rest.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metrics::counter;
use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{connections::Connections, udp::Clients};
use crate::{
    model::host_port::{HostPort, Protocol},
    net::metrics::HOST_PORTS_FULL,
};

/// Of each kind at most, however many files there are: a connection takes up to 64 KiB.
const MOST: usize = 4096;
/// The files for each place of a part: an eighth is listeners', an eighth UDP clients', a quarter connections', of two each.
const FILES_A_PLACE: u64 = 8;
/// Between two lines of the log on full parts.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The process' own: nodes of one process share its files.
static OWN: LazyLock<Arc<Room>> =
    LazyLock::new(|| Arc::new(Room::of(getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft))));

/// What may be open and carried.
pub(super) struct Room {
    pub(super) listeners: Part,
    pub(super) connections: Arc<Connections>,
    pub(super) clients: Arc<Clients>,
    /// Which pod has which port, to tell another one.
    holders: Mutex<HashMap<Listened, Arc<str>>>,
}

type Listened = (Protocol, SocketAddr);

impl Room {
    pub(super) fn own() -> Arc<Room> {
        OWN.clone()
    }

    /// That of a process that may have so many open files.
    pub(super) fn of(files: u64) -> Room {
        let most = usize::try_from(files / FILES_A_PLACE).unwrap_or(MOST).clamp(1, MOST);
        let connections = Arc::new(Connections::new(Part::of(most)));
        let clients = Arc::new(Clients::new(Part::of(most)));
        Room { listeners: Part::of(most), connections, clients, holders: Mutex::default() }
    }

    /// The pod of this process that has a port, or one that is in its way.
    pub(super) fn holder(&self, port: HostPort) -> Option<String> {
        let (ip, is_any) = (port.listen.ip(), port.listen.ip().is_unspecified());
        let in_the_way = |(protocol, listen): &Listened| {
            let is_near = listen.ip() == ip || is_any || listen.ip().is_unspecified();
            *protocol == port.protocol
                && listen.port() == port.listen.port()
                && listen.is_ipv4() == port.listen.is_ipv4()
                && is_near
        };
        self.holders().iter().find(|(place, _)| in_the_way(place)).map(|(_, pod)| pod.to_string())
    }

    fn holders(&self) -> MutexGuard<'_, HashMap<Listened, Arc<str>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ports that one pod has, until this is dropped.
pub(super) struct Holds {
    room: Arc<Room>,
    pod: Arc<str>,
    places: Vec<Listened>,
}

impl Holds {
    pub(super) fn new(room: Arc<Room>, pod: &str) -> Holds {
        Holds { room, pod: pod.into(), places: Vec::new() }
    }

    pub(super) fn add(&mut self, port: HostPort) {
        let place = (port.protocol, port.listen);
        self.places.push(place);
        self.room.holders().insert(place, self.pod.clone());
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        let mut holders = self.room.holders();
        for place in &self.places {
            // Its socket is closed: another pod may have it already.
            if holders.get(place).is_some_and(|pod| Arc::ptr_eq(pod, &self.pod)) {
                holders.remove(place);
            }
        }
    }
}

/// One kind of places.
#[derive(Clone)]
pub(super) struct Part {
    most: usize,
    turns: Arc<Semaphore>,
}

impl Part {
    fn of(most: usize) -> Part {
        Part { most, turns: Arc::new(Semaphore::new(most)) }
    }

    /// What one port of a pod may take of as many at all of its addresses: half of them, so that no port alone shuts out
    /// all others.
    pub(super) fn of_one_port(&self) -> Part {
        Part::of(self.most.div_ceil(2))
    }

    /// Whether both are the same places.
    pub(super) fn is(&self, other: &Part) -> bool {
        Arc::ptr_eq(&self.turns, &other.turns)
    }

    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn left(&self) -> usize {
        self.turns.available_permits()
    }

    pub(super) fn try_take(&self, places: usize) -> Option<OwnedSemaphorePermit> {
        let places = u32::try_from(places).ok()?;
        self.turns.clone().try_acquire_many_owned(places).ok()
    }

    /// Waits for a place, in turn. None never: it is not closed.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }
}

/// Counts that there was no room, and says so now and then.
pub(super) fn full(what: &'static str) {
    /// When that was said last, and how often it was so since.
    static LOGGED: Mutex<(Option<Instant>, u64)> = Mutex::new((None, 0));
    counter!(HOST_PORTS_FULL, "what" => what).increment(1);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    logged.1 = logged.1.saturating_add(1);
    if logged.0.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
        let times = logged.1;
        *logged = (Some(Instant::now()), 0);
        tracing::warn!(
            what,
            times,
            "host ports have no more room: connections wait, the longest silent connections and UDP clients are given up, \
             datagrams dropped"
        );
    }
}
