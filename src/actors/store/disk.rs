//! The thread that may wait for the disk, so that the actor never does.
//!
//! Owns: the backend, once the store runs. Takes one batch at a time and reports each exactly once, even if the backend
//! panics: the report goes out when the job is dropped.

use std::{
    sync::mpsc,
    thread::{Builder, JoinHandle},
    time::{Duration, Instant},
};

use actix::{Message, Recipient};

use crate::store::{Backend, Batch, Force, StoreError};

/// Starts with a backend, ends when dropped.
pub(super) struct Disk {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// disk thread → store: the batch is kept, or is not.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Written {
    pub(super) outcome: Result<(), StoreError>,
    pub(super) took: Duration,
}

struct Job {
    batch: Batch,
    force: Force,
    report: Report,
}

struct Report {
    to: Recipient<Written>,
    written: Option<Written>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let gone = || Written { outcome: Err(StoreError::WriterGone), took: Duration::ZERO };
        self.to.do_send(self.written.take().unwrap_or_else(gone));
    }
}

impl Disk {
    pub(super) fn start(mut backend: impl Backend) -> Result<Disk, StoreError> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let work = move || {
            for mut job in queue {
                let begun = Instant::now();
                let outcome = backend.append(&job.batch, job.force);
                job.report.written = Some(Written { outcome, took: begun.elapsed() });
            }
        };
        let thread = Builder::new().name("store-disk".to_owned()).spawn(work).map_err(|source| {
            StoreError::Io { doing: "start a thread for", path: "the store".into(), source }
        })?;
        Ok(Disk { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Has the batch written; `to` hears how it went. The store has one batch under way at a time.
    pub(super) fn append(&self, batch: Batch, force: Force, to: Recipient<Written>) {
        let job = Job { batch, force, report: Report { to, written: None } };
        if let Some(jobs) = &self.jobs {
            // When the thread is gone the job comes back and its drop reports that.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Disk {
    /// Waits for what was handed over to be written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes to the store panicked");
        }
    }
}
