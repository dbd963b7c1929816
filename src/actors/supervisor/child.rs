//! What a supervisor remembers of one child.

use std::{io, sync::Arc};

use actix::{Arbiter, ArbiterHandle};
use tokio::time::Instant;
use tracing::error;

use super::{
    ChildInfo, ChildSpec, ChildState, Exit, SupervisorError,
    control::{self, Speaker},
    handle::Reply,
    incarnation::{Birth, Report},
    life::{Control, Vitals, next_incarnation},
    spec::Place,
};
use crate::{
    actors::outside,
    logic::supervision::{End, History},
};

/// One child and, while it lives, its incarnation.
pub(super) struct Child {
    pub(super) spec: ChildSpec,
    pub(super) state: State,
    pub(super) history: History,
    pub(super) current: Option<Current>,
    /// To be stopped and started again, because an earlier child failed.
    pub(super) doomed: bool,
    incarnation: u64,
    last_error: Option<String>,
    /// Who waits for the first start.
    started: Option<Reply<u64>>,
}

/// See [`ChildState`].
pub(super) enum State {
    Due,
    Starting,
    Running,
    Stopping(Then),
    Waiting,
}

/// What becomes of a child that is being stopped.
pub(super) enum Then {
    /// It is due again.
    Restart,
    /// It is forgotten, and these are told.
    Forget(Vec<Reply<()>>),
}

/// A living incarnation, from the supervisor's side. Dropping it ends the incarnation.
pub(super) struct Current {
    pub(super) incarnation: u64,
    pub(super) control: Speaker,
    pub(super) vitals: Arc<Vitals>,
    pub(super) since: Instant,
    /// Its watchdog found it stuck, whatever it says when it ends.
    pub(super) stuck: bool,
    own_arbiter: Option<OwnArbiter>,
}

/// A thread of one incarnation's own: ends with it.
struct OwnArbiter(Arbiter);

impl Drop for OwnArbiter {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl Child {
    pub(super) fn new(spec: ChildSpec, started: Reply<u64>) -> Child {
        Child {
            spec,
            state: State::Due,
            history: History::default(),
            current: None,
            doomed: false,
            incarnation: 0,
            last_error: None,
            started: Some(started),
        }
    }

    /// Starts a new incarnation, which speaks through what `report` makes of its number.
    pub(super) fn launch(&mut self, report: impl FnOnce(u64) -> Report) -> u64 {
        let incarnation = next_incarnation();
        let (speaker, control) = control::control();
        let vitals = Arc::new(Vitals::default());
        let birth = Birth {
            name: self.spec.name.clone(),
            incarnation,
            vitals: vitals.clone(),
            control,
            control_of_life: speaker.aside(),
            report: report(incarnation),
        };
        let mut current = Current {
            incarnation,
            control: speaker,
            vitals,
            since: Instant::now(),
            stuck: false,
            own_arbiter: None,
        };
        match self.arbiter(&mut current) {
            Ok(arbiter) => self.spec.launch.launch(birth, &arbiter),
            // The report dies with the birth, and thereby tells that the child is lost.
            Err(error) => error!(actor = &*self.spec.name, %error, "cannot start a thread"),
        }
        self.incarnation = incarnation;
        self.current = Some(current);
        self.state = State::Starting;
        self.doomed = false;
        incarnation
    }

    fn arbiter(&self, current: &mut Current) -> io::Result<ArbiterHandle> {
        Ok(match &self.spec.place {
            Place::Here => Arbiter::current(),
            Place::Own if outside::is_alone() => Arbiter::current(),
            Place::There(arbiter) => arbiter.clone(),
            Place::Own => current.own_arbiter.insert(OwnArbiter(Arbiter::try_new()?)).0.handle(),
        })
    }

    /// Sends control to the incarnation that lives, if one does.
    pub(super) fn control(&self, control: Control) {
        if let Some(current) = &self.current {
            current.control.say(control);
        }
    }

    /// It runs: tells whoever waits for that.
    pub(super) fn runs(&mut self) {
        self.state = State::Running;
        if let Some(started) = self.started.take() {
            let _ = started.send(Ok(self.incarnation));
        }
    }

    /// It ended: tells whoever waits for it to run, and remembers a failure.
    pub(super) fn ended(&mut self, exit: &Exit) {
        if exit.end() == End::Failed {
            self.last_error = Some(exit.to_string());
        }
        if let Some(started) = self.started.take() {
            let child = self.spec.name.clone();
            let _ = started.send(Err(SupervisorError::NotStarted { child, exit: exit.clone() }));
        }
    }

    pub(super) fn alive(&self) -> bool {
        matches!(self.state, State::Starting | State::Running)
    }

    pub(super) fn info(&self) -> ChildInfo {
        ChildInfo {
            name: self.spec.name.clone(),
            class: self.spec.class,
            incarnation: self.incarnation,
            restarts: self.history.total(),
            state: match self.state {
                State::Due => ChildState::Due,
                State::Starting => ChildState::Starting,
                State::Running => ChildState::Running,
                State::Stopping(_) => ChildState::Stopping,
                State::Waiting => ChildState::Waiting,
            },
            last_error: self.last_error.clone(),
        }
    }
}
