//! Which connections are carried, and which of them gives its place to one that waits.
//!
//! Owns: when something was last said on each. Invariant: one gives way only while another waits for a place that is its own
//! port's or anybody's, if nothing was said on it for [`SILENT`], and if no other of these has been silent for longer. Limit:
//! who keeps many connections busy keeps them.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    select,
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::room::{self, Part};

/// Longer than most answers take, shorter than most clients wait to be served.
pub(super) const SILENT: Duration = Duration::from_secs(10);
/// One that is to give way has ended by then, unless its thread is busy.
const ENDED_WITHIN: Duration = Duration::from_secs(1);
/// How [`room::full`] calls them.
pub(super) const CONNECTIONS: &str = "connection";

/// All of a process.
pub(super) struct Connections {
    pub(super) part: Part,
    /// What times are counted from.
    begun: Instant,
    carried: Mutex<Carried>,
}

#[derive(Default)]
struct Carried {
    last: u64,
    all: HashMap<u64, Arc<Connection>>,
}

/// One.
struct Connection {
    /// Of which port's part it is.
    own: Part,
    said_ms: AtomicU64,
    gives_way: CancellationToken,
}

impl Connections {
    pub(super) fn new(part: Part) -> Connections {
        Connections { part, begun: Instant::now(), carried: Mutex::default() }
    }

    /// What one port may have.
    pub(super) fn of_one_port(&self) -> Part {
        self.part.of_one_port()
    }

    /// Waits for a place of a port's part and one of all; a wait is told. None never.
    pub(super) async fn take(self: &Arc<Self>, own: &Part) -> Option<Place> {
        let turns = [
            self.turn(own, |connection| connection.own.is(own)).await?,
            self.turn(&self.part, |_| true).await?,
        ];
        let said_ms = AtomicU64::new(self.now_ms());
        let connection = Connection { own: own.clone(), said_ms, gives_way: CancellationToken::new() };
        let connection = Arc::new(connection);
        let mut carried = self.carried();
        carried.last += 1;
        let number = carried.last;
        carried.all.insert(number, connection.clone());
        Some(Place { all: self.clone(), number, connection, _turns: turns })
    }

    async fn turn(&self, part: &Part, is_in: impl Fn(&Connection) -> bool) -> Option<OwnedSemaphorePermit> {
        if let Some(turn) = part.try_take(1) {
            return Some(turn);
        }
        room::full(CONNECTIONS);
        let mut turn = pin!(part.take());
        loop {
            let again = self.make_way(&is_in);
            select! {
                turn = &mut turn => return turn,
                () = sleep_until(again) => {}
            }
        }
    }

    /// Has the longest silent one end if it was silent for long, and says when to look again.
    fn make_way(&self, is_in: impl Fn(&Connection) -> bool) -> Instant {
        let now = Instant::now();
        let carried = self.carried();
        let stay = carried.all.values().filter(|one| is_in(one) && !one.gives_way.is_cancelled());
        let Some(silent) = stay.min_by_key(|one| one.said_ms.load(Ordering::Relaxed)) else {
            return now + ENDED_WITHIN;
        };
        let until = self.begun + Duration::from_millis(silent.said_ms.load(Ordering::Relaxed)) + SILENT;
        if until > now {
            return until;
        }
        silent.gives_way.cancel();
        now + ENDED_WITHIN
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, until it is dropped.
pub(super) struct Place {
    all: Arc<Connections>,
    number: u64,
    connection: Arc<Connection>,
    _turns: [OwnedSemaphorePermit; 2],
}

impl Place {
    /// Something was said.
    pub(super) fn note(&self) {
        self.connection.said_ms.store(self.all.now_ms(), Ordering::Relaxed);
    }

    /// Waits until another is to have it.
    pub(super) async fn given_up(&self) {
        self.connection.gives_way.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.carried().all.remove(&self.number);
    }
}
