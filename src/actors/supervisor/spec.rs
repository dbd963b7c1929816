//! What a supervisor is told: about each child, and about itself.
//!
//! Owns: [`ChildSpec`] and [`SupervisorSpec`] with their defaults, each a named constant with its reason.

use std::{sync::Arc, time::Duration};

use actix::{Actor, ArbiterHandle, Context};

use super::{
    Exit, Life, Supervisor, SupervisorHandle,
    incarnation::{Launch, Launcher},
};
use crate::{
    logic::supervision::{Backoff, Intensity, Policy, Restart},
    messages::Slot,
};

/// Why a factory could not make an actor.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Ten tries a minute take [`Backoff::ACTOR`] through some 20 s: long enough for a passing fault, short enough to tell.
const CHILD_INTENSITY: Intensity = Intensity::new(10, Duration::from_secs(60));
/// Of all children together: a few that fail at once are no reason to give up, all of them again and again are.
const SUPERVISOR_INTENSITY: Intensity = Intensity::new(30, Duration::from_secs(60));
/// As in OTP: ample for closing files, short enough for a person who waits for the program's end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// What happens to the others when a child fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Strategy {
    /// Nothing.
    #[default]
    OneForOne,
    /// Those started after it, which may depend on it, are stopped in reverse order and started again after it. Also,
    /// no child is started before all earlier ones run.
    RestForOne,
}

/// What a root supervisor could not heal.
#[derive(Clone, Debug)]
pub struct Escalation {
    /// The supervisor.
    pub supervisor: &'static str,
    /// Which child failed how, as a sentence.
    pub reason: String,
}

/// What a supervisor is to be like.
#[derive(Clone)]
pub struct SupervisorSpec {
    pub(super) name: &'static str,
    pub(super) strategy: Strategy,
    pub(super) intensity: Intensity,
    pub(super) stop_together: bool,
    pub(super) on_escalate: Arc<dyn Fn(Escalation) + Send + Sync>,
}

impl SupervisorSpec {
    /// One-for-one, at most 30 restarts a minute, children stopped one after the other, escalations only logged.
    pub fn new(name: &'static str) -> SupervisorSpec {
        SupervisorSpec {
            name,
            strategy: Strategy::default(),
            intensity: SUPERVISOR_INTENSITY,
            stop_together: false,
            on_escalate: Arc::new(|_| {}),
        }
    }

    /// What happens to the others when a child fails.
    pub fn strategy(self, strategy: Strategy) -> SupervisorSpec {
        SupervisorSpec { strategy, ..self }
    }

    /// How many restarts of all children together, within which time, before it escalates.
    pub fn intensity(self, max_restarts: u32, period: Duration) -> SupervisorSpec {
        self.limit(Intensity::new(max_restarts, period))
    }

    /// The same; [`Intensity::UNLIMITED`] suits supervisors of many independent children, each with its own intensity.
    pub fn limit(self, intensity: Intensity) -> SupervisorSpec {
        SupervisorSpec { intensity, ..self }
    }

    /// Asks all children at once to stop, instead of each after the end of the one that was started after it: for many
    /// independent children.
    pub fn stop_together(self) -> SupervisorSpec {
        SupervisorSpec { stop_together: true, ..self }
    }

    /// What to do when this supervisor gives up, after its children are down. Called for a root only (on its arbiter's
    /// thread); a nested supervisor's escalation is its failure as a child.
    pub fn on_escalate(self, act: impl Fn(Escalation) + Send + Sync + 'static) -> SupervisorSpec {
        SupervisorSpec { on_escalate: Arc::new(act), ..self }
    }
}

/// An actor that shows no sign of life for so long is stuck: its turns take milliseconds, a commit on a slow disk seconds.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What one child is to be like.
pub struct ChildSpec {
    pub(super) name: Arc<str>,
    pub(super) class: &'static str,
    pub(super) policy: Policy,
    pub(super) place: Place,
    pub(super) watchdog: Option<Duration>,
    pub(super) shutdown: Duration,
    pub(super) on_end: Option<Box<dyn FnOnce(Exit) + Send>>,
    /// Leads to it, when it is a supervisor.
    pub(super) subtree: Option<SupervisorHandle>,
    pub(super) launch: Box<dyn Launch>,
}

/// Where a child runs.
pub(super) enum Place {
    /// On the supervisor's arbiter.
    Here,
    /// On this one.
    There(ArbiterHandle),
    /// Each incarnation on a new one.
    Own,
}

impl ChildSpec {
    /// A child that `factory` makes, anew and on the child's own thread, for each incarnation. Its address is published
    /// in `slot` before its `started` runs and withdrawn at its death.
    ///
    /// Permanent, at most 10 restarts a minute, [`Backoff::ACTOR`], on the supervisor's arbiter, no watchdog, 5 s to stop.
    /// The slot's name is its class.
    pub fn new<A, F>(name: impl Into<String>, slot: &Slot<A>, factory: F) -> ChildSpec
    where
        A: Actor<Context = Context<A>>,
        F: Fn(Life) -> Result<A, BoxError> + Send + Sync + 'static,
    {
        ChildSpec {
            name: name.into().into(),
            class: slot.name(),
            policy: Policy {
                restart: Restart::Permanent,
                intensity: CHILD_INTENSITY,
                backoff: Backoff::ACTOR,
            },
            place: Place::Here,
            watchdog: None,
            shutdown: SHUTDOWN,
            on_end: None,
            subtree: None,
            launch: Box::new(Launcher::new(slot.clone(), factory)),
        }
    }

    /// A supervisor as a child. `populate` starts its children, each time anew; `handle` then leads to it. It is given
    /// all the time its children need to stop.
    pub fn supervisor<F>(spec: SupervisorSpec, handle: &SupervisorHandle, populate: F) -> ChildSpec
    where
        F: Fn(&SupervisorHandle) + Send + Sync + 'static,
    {
        let populate = Arc::new(populate);
        let (name, of_factory) = (spec.name, handle.clone());
        let factory = move |life| Ok(Supervisor::nested(spec.clone(), life, &of_factory, populate.clone()));
        let mut child = ChildSpec::new(name, &handle.slot, factory).shutdown(Duration::MAX);
        child.subtree = Some(handle.clone());
        child
    }

    /// After which ends it is started again.
    pub fn restart(mut self, restart: Restart) -> ChildSpec {
        self.policy.restart = restart;
        self
    }

    /// How many restarts within which time before the supervisor escalates.
    pub fn intensity(mut self, max_restarts: u32, period: Duration) -> ChildSpec {
        self.policy.intensity = Intensity::new(max_restarts, period);
        self
    }

    /// Never escalates, only backs off: for children whose failure is their own affair, like pods.
    pub fn never_escalate(mut self) -> ChildSpec {
        self.policy.intensity = Intensity::UNLIMITED;
        self
    }

    /// How long to wait before a restart.
    pub fn backoff(mut self, backoff: Backoff) -> ChildSpec {
        self.policy.backoff = backoff;
        self
    }

    /// Runs it on this arbiter instead of the supervisor's.
    pub fn arbiter(mut self, arbiter: ArbiterHandle) -> ChildSpec {
        self.place = Place::There(arbiter);
        self
    }

    /// Runs each incarnation on a thread of its own, so that even one whose thread is blocked can be replaced; in a
    /// simulation that has but one thread, on that.
    pub fn own_arbiter(mut self) -> ChildSpec {
        self.place = Place::Own;
        self
    }

    /// Takes it for stuck, kills it and restarts it as failed, when it answers no heartbeat for so long. An actor does
    /// not answer while a `ctx.wait` (an `AtomicResponse`) or a blocking call holds it up; see [`Life::beat`].
    pub fn watchdog(mut self, within: Duration) -> ChildSpec {
        self.watchdog = Some(within);
        self
    }

    /// How long an orderly stop may take before it is killed.
    pub fn shutdown(mut self, within: Duration) -> ChildSpec {
        self.shutdown = within;
        self
    }

    /// The label of its metrics, when the slot's name does not do. From a closed set: a kind of actor, never a name.
    pub fn class(mut self, class: &'static str) -> ChildSpec {
        self.class = class;
        self
    }

    /// Called on the supervisor's thread when this child has ended and will not be started again.
    pub fn on_end(mut self, act: impl FnOnce(Exit) + Send + 'static) -> ChildSpec {
        self.on_end = Some(Box::new(act));
        self
    }
}
