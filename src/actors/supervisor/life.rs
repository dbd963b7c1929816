//! What one incarnation of an actor knows about itself, and what ends it.
//!
//! Owns: [`Life`], the actor's end of supervision; [`Exit`], how an incarnation ended; and the control channel's
//! vocabulary. Control has a channel of its own, read before the mailbox, so it never queues behind data.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::control::{Aside, control};
use crate::logic::supervision::End;

/// Handed to an actor's factory and kept in the actor's struct: what it is called, and how it speaks to its supervisor.
pub struct Life {
    name: Arc<str>,
    incarnation: u64,
    vitals: Arc<Vitals>,
    control: Aside,
}

impl Life {
    pub(super) fn new(name: Arc<str>, incarnation: u64, vitals: Arc<Vitals>, control: Aside) -> Life {
        Life { name, incarnation, vitals, control }
    }

    /// A life that no supervisor watches: for tests of one actor alone.
    pub fn detached(name: &str) -> Life {
        let (speaker, _) = control();
        Life::new(name.into(), next_incarnation(), Arc::default(), speaker.aside())
    }

    /// The child's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This incarnation's number. Later incarnations, of this child or any other of this process, have higher ones.
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Tells the watchdog that work goes on. Needed only where a handler or a `ctx.wait` may rightly take longer than
    /// the watchdog's time; heartbeats are otherwise answered without the actor's doing.
    pub fn beat(&self) {
        self.vitals.beat();
    }

    /// Beats from where the actor is not at hand: a future it waits for, a thread that works for it.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.vitals.clone())
    }

    /// Ends this incarnation as failed: nothing more is handled, and the supervisor decides on a restart. `stopping`
    /// and `stopped` do not run.
    pub fn fail(&self, reason: impl fmt::Display) {
        self.vitals.failed.store(true, Ordering::Relaxed);
        self.control.say(Control::Fail(reason.to_string()));
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("name", &self.name)
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// [`Life::beat`] for others than the actor itself.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Vitals>);

impl Pulse {
    /// Tells the watchdog that work goes on.
    pub fn beat(&self) {
        self.0.beat();
    }
}

/// How an incarnation ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Exit {
    /// It stopped itself, its work done.
    #[error("ended normally")]
    Normal,
    /// It was asked to stop, and did.
    #[error("stopped")]
    Stopped,
    /// It was killed: it did not stop in time, or its supervisor died.
    #[error("killed")]
    Killed,
    /// It said that it cannot go on ([`Life::fail`]).
    #[error("failed: {0}")]
    Failed(String),
    /// It panicked.
    #[error("panicked: {0}")]
    Panicked(String),
    /// Its factory returned an error.
    #[error("could not start: {0}")]
    NotStarted(String),
    /// It showed no sign of life for as long as its watchdog allows.
    #[error("stuck")]
    Stuck,
    /// Its arbiter ended under it.
    #[error("its thread ended")]
    Lost,
}

impl Exit {
    /// How restart classes see this end.
    pub fn end(&self) -> End {
        match self {
            Exit::Normal | Exit::Stopped => End::Normal,
            Exit::Killed
            | Exit::Failed(_)
            | Exit::Panicked(_)
            | Exit::NotStarted(_)
            | Exit::Stuck
            | Exit::Lost => End::Failed,
        }
    }
}

/// supervisor → incarnation.
#[derive(Debug)]
pub(super) enum Control {
    /// Stop in good order.
    Stop,
    /// End now.
    Kill,
    /// Show that you are alive.
    Heartbeat,
    /// Panic with this text: fault injection.
    Panic(String),
    /// From the actor itself: end as failed, for this reason.
    Fail(String),
}

/// What the supervisor reads across threads without asking.
#[derive(Debug, Default)]
pub(super) struct Vitals {
    progress: AtomicU64,
    failed: AtomicBool,
}

impl Vitals {
    pub(super) fn beat(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    pub(super) fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// The next incarnation's number: unique in this process and ascending, also across children, so that a child started
/// anew under an old name is never mistaken for its predecessor.
pub(super) fn next_incarnation() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
