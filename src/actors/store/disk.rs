//! What may wait for the disk, so that the actor never does: a thread, or in a simulation the clock.
//!
//! Owns: the backend, once the store runs. Takes one batch at a time and reports each exactly once, even if the backend
//! panics: the report goes out when the job is dropped.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use actix::{Message, Recipient};
use rand::RngExt as _;

use crate::{
    actors::outside,
    store::{Backend, Batch, Force, StoreError},
};

/// How many microseconds a simulated disk takes for a batch, and again until it says so: from an idle one to one in need.
const SIMULATED_MICROS: RangeInclusive<u64> = 100..=20_000;

/// Starts with a backend, ends when dropped.
pub(super) enum Disk {
    /// As always.
    Thread { jobs: Option<mpsc::Sender<Job>>, thread: Option<JoinHandle<()>> },
    /// In a simulation.
    Clock(Arc<Mutex<Clocked>>),
}

/// disk thread → store: the batch is kept, or is not.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Written {
    pub(super) outcome: Result<(), StoreError>,
    pub(super) took: Duration,
    /// There is room for what was refused before.
    pub(super) has_room: bool,
}

pub(super) struct Job {
    batch: Batch,
    force: Force,
    /// It is to be found out whether so much would find room, too.
    room_for: Option<usize>,
    report: Report,
}

struct Report {
    to: Recipient<Written>,
    written: Option<Written>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let gone = || Written { outcome: Err(StoreError::WriterGone), took: Duration::ZERO, has_room: false };
        self.to.do_send(self.written.take().unwrap_or_else(gone));
    }
}

impl Job {
    fn done(mut self, backend: &mut dyn Backend) -> Report {
        let begun = Instant::now();
        let outcome = backend.append(&self.batch, self.force);
        let took = begun.elapsed();
        let has_room = outcome.is_ok() && self.room_for.is_none_or(|bytes| backend.has_room(bytes));
        self.report.written = Some(Written { outcome, took, has_room });
        self.report
    }
}

/// A backend and the batches that it has not taken yet.
pub(super) struct Clocked {
    backend: Box<dyn Backend>,
    jobs: VecDeque<Job>,
}

impl Clocked {
    /// Has the oldest batch written, unless somebody did already.
    fn next(&mut self) -> Option<Report> {
        let job = self.jobs.pop_front()?;
        Some(job.done(&mut *self.backend))
    }
}

fn locked(clocked: &Mutex<Clocked>) -> MutexGuard<'_, Clocked> {
    clocked.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn some_time() {
    let micros = rand::rng().random_range(SIMULATED_MICROS);
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

impl Disk {
    pub(super) fn start(mut backend: impl Backend) -> Result<Disk, StoreError> {
        if outside::is_alone() {
            let clocked = Clocked { backend: Box::new(backend), jobs: VecDeque::new() };
            return Ok(Disk::Clock(Arc::new(Mutex::new(clocked))));
        }
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            for job in queue {
                drop(job.done(&mut backend));
            }
        };
        let thread = Builder::new().name("store-disk".to_owned()).spawn(work).map_err(|source| {
            StoreError::Io { doing: "start a thread for", path: "the store".into(), source }
        })?;
        Ok(Disk::Thread { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has the batch written; `to` hears how it went, and whether there is `room_for` so many bytes. The store has one
    /// batch under way at a time.
    pub(super) fn append(&self, batch: Batch, force: Force, room_for: Option<usize>, to: Recipient<Written>) {
        let job = Job { batch, force, room_for, report: Report { to, written: None } };
        match self {
            // When the thread is gone the job comes back and its drop reports that.
            Disk::Thread { jobs: Some(jobs), .. } => drop(jobs.send(job)),
            Disk::Thread { jobs: None, .. } => {}
            Disk::Clock(clocked) => {
                locked(clocked).jobs.push_back(job);
                let clocked = clocked.clone();
                actix::spawn(async move {
                    some_time().await;
                    let report = locked(&clocked).next();
                    some_time().await;
                    drop(report);
                });
            }
        }
    }
}

impl Drop for Disk {
    /// Waits for what was handed over to be written.
    fn drop(&mut self) {
        match self {
            Disk::Thread { jobs, thread } => {
                *jobs = None;
                if let Some(thread) = thread.take()
                    && thread.join().is_err()
                {
                    tracing::error!("the thread that writes to the store panicked");
                }
            }
            Disk::Clock(clocked) => while locked(clocked).next().is_some() {},
        }
    }
}
