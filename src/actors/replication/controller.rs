//! The actor of one controller object: it makes the pods that exist those that should.
//!
//! Owns: the loop picture → plan → commit → picture. One commit is under way at a time, and the next plan waits for a
//! picture that shows it ([`Expectation`]), so nothing is created twice.
//! ```text
//! waiting ──picture──▶ decide ──pods──▶ committing ──made──▶ waiting for its picture
//!    ▲                    └─status─▶ committing ──────────────────┘   failed ──backoff──▶ asks for the picture
//! ```

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, SpawnHandle, WrapFuture};
use k8s_openapi::{api::core::v1, jiff::Timestamp};

use super::{COMPONENT, manager::Describe};
use crate::{
    actors::{
        commit::{CommitFailed, Outcome, Wiring, commit, settled},
        outside,
        supervisor::Life,
    },
    logic::{
        edit::Edit,
        replication::{
            Controller, Expectation, Plan, decide, edits,
            roster::Roster,
            status::{self, Failure},
            template::{self, Batch, Chance, TemplateError},
        },
        supervision::Backoff,
    },
    messages::{Durability, Port, RecordEvent},
    model::{Object, Revision, Uid},
};

/// manager → controller: everything you need to know, as of its revision.
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) struct Picture(pub(super) Roster);

/// After an overtaken commit the newer picture is a moment away.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The controller's object, parsed once for each of its revisions.
struct Parsed {
    revision: Revision,
    typed: Arc<v1::ReplicationController>,
    controller: Controller,
}

/// See the file.
pub(super) struct ReplicationController {
    _life: Life,
    uid: Uid,
    wiring: Wiring,
    manager: Port<Describe>,
    picture: Option<Roster>,
    parsed: Option<Parsed>,
    expectation: Expectation,
    committing: bool,
    failure: Option<Failure>,
    failures: u32,
    /// Until when nothing is tried, after a failure.
    not_before: Option<tokio::time::Instant>,
    alarm: Option<SpawnHandle>,
}

impl ReplicationController {
    pub(super) fn new(
        life: Life,
        uid: Uid,
        wiring: Wiring,
        manager: Port<Describe>,
    ) -> ReplicationController {
        ReplicationController {
            _life: life,
            uid,
            wiring,
            manager,
            picture: None,
            parsed: None,
            expectation: Expectation::default(),
            committing: false,
            failure: None,
            failures: 0,
            not_before: None,
            alarm: None,
        }
    }

    /// Takes one step, if one is due.
    fn step(&mut self, ctx: &mut Context<Self>) {
        let Some(roster) = self.picture.clone() else { return };
        if self.committing || !self.expectation.met_by(roster.revision) || !self.parse(&roster.controller) {
            return;
        }
        let Some(parsed) = &self.parsed else { return };
        let now = outside::now();
        let plan = decide(&parsed.controller, roster.pods.values(), now);
        let backing_off = self.not_before.is_some_and(|t| tokio::time::Instant::now() < t);
        if plan.acts() && !backing_off {
            match self.pods(&plan, &roster, now) {
                Ok(edits) if !edits.is_empty() => return self.commit(edits, Durability::Hard, ctx),
                Ok(_) => {}
                Err(failure) => self.failed(failure, &roster.controller, ctx),
            }
        } else if !plan.acts() {
            (self.failure, self.not_before) = (None, None);
        }
        self.status(&plan, &roster.controller, now, ctx);
        if let Some(at) = plan.recheck {
            let wait = u64::try_from(at.as_second() - now.as_second()).unwrap_or(0);
            self.look_again(Duration::from_secs(wait), ctx);
        }
    }

    /// Parses the controller if it changed. `false` when it is no controller.
    fn parse(&mut self, object: &Arc<Object>) -> bool {
        if self.parsed.as_ref().is_some_and(|p| p.revision == object.revision) {
            return true;
        }
        let earlier = self.parsed.as_ref().and_then(|p| p.typed.metadata.generation);
        if earlier.is_some_and(|g| g != object.facet.meta.generation) {
            // Somebody changed what is asked for: what failed may do now.
            (self.failures, self.not_before) = (0, None);
        }
        self.parsed = object.parse::<v1::ReplicationController>().ok().and_then(|typed| {
            let controller = Controller::read(object, &typed)?;
            Some(Parsed { revision: object.revision, typed: Arc::new(typed), controller })
        });
        self.parsed.is_some()
    }

    /// The edits that a plan means. When its pods cannot be made, the others come alone; once they are done, a plan has none but
    /// the pods, and that tells why.
    fn pods(&self, plan: &Plan, roster: &Roster, now: Timestamp) -> Result<Vec<Edit>, Failure> {
        let failed = |reason, e: &dyn std::fmt::Display| Failure { reason, message: e.to_string() };
        let Some(parsed) = &self.parsed else { return Ok(Vec::new()) };
        let mut all = edits(&parsed.controller, plan, now).map_err(|e| failed("FailedDelete", &e))?;
        if plan.create > 0 {
            let mut chance = Chance { suffix: &mut outside::suffix, uid: &mut outside::uid };
            let namespace = &parsed.controller.key.namespace;
            let taken = |name: &str| {
                let key = crate::model::Key::new(crate::model::Kind::Pod, namespace.clone(), name);
                roster.pods.contains_key(&key)
            };
            let snapshot = self.wiring.view.snapshot();
            let cannot = |e: TemplateError| failed("FailedCreate", &format_args!("Error creating: {e}"));
            let pods = template::given(&parsed.controller, &parsed.typed, &snapshot).and_then(|given| {
                let batch = Batch { count: plan.create, now, given, taken: &taken };
                template::pods(&parsed.controller, &parsed.typed, &batch, &mut chance)
            });
            match pods {
                Ok(pods) => all.extend(pods.into_iter().map(Edit::Create)),
                Err(_) if !all.is_empty() => {}
                Err(error) => return Err(cannot(error)),
            }
        }
        Ok(all)
    }

    fn status(&mut self, plan: &Plan, object: &Arc<Object>, now: Timestamp, ctx: &mut Context<Self>) {
        let Some(parsed) = &self.parsed else { return };
        match status::update(object, &parsed.typed, plan.counts, self.failure.as_ref(), now) {
            Ok(Some(edit)) => self.commit(vec![edit], Durability::Soft, ctx),
            Ok(None) => {}
            Err(error) => tracing::error!(controller = %object.key, %error, "cannot write status"),
        }
    }

    fn commit(&mut self, edits: Vec<Edit>, durability: Durability, ctx: &mut Context<Self>) {
        self.committing = true;
        let wiring = self.wiring.clone();
        let work = async move {
            let outcome = commit(&wiring, edits.clone(), durability).await;
            (edits, outcome)
        };
        ctx.spawn(work.into_actor(self).map(|(edits, outcome), this, ctx| {
            this.committing = false;
            this.committed(&edits, outcome, ctx);
        }));
    }

    fn committed(&mut self, edits: &[Edit], outcome: Result<Outcome, CommitFailed>, ctx: &mut Context<Self>) {
        let Some(object) = self.picture.as_ref().map(|p| p.controller.clone()) else { return };
        match outcome {
            Ok(outcome) => {
                self.expectation.committed(outcome.revision);
                (self.failures, self.not_before) = (0, None);
                self.tell_events(edits, &outcome, &object);
                // The manager tells of what we made; of what overtook us it may have nothing to tell.
                match outcome.overtaken.is_empty() {
                    true => self.step(ctx),
                    false => self.look_again(LOOK_AGAIN, ctx),
                }
            }
            Err(error) => {
                let failure = Failure { reason: "FailedCreate", message: format!("Error creating: {error}") };
                self.failed(failure, &object, ctx);
            }
        }
    }

    fn tell_events(&self, edits: &[Edit], outcome: &Outcome, controller: &Object) {
        let now = outside::now();
        let made = |e: &&Edit| !outcome.overtaken.contains(e.key());
        for edit in edits.iter().filter(made) {
            let (reason, message) = match edit {
                Edit::Create(pod) => ("SuccessfulCreate", format!("Created pod: {}", pod.key.name)),
                Edit::Remove(pod) => ("SuccessfulDelete", format!("Deleted pod: {}", pod.key.name)),
                Edit::Replace(pod, base) if pod.facet.meta.deleting != base.facet.meta.deleting => {
                    ("SuccessfulDelete", format!("Deleted pod: {}", pod.key.name))
                }
                Edit::Replace(..) => continue,
            };
            self.wiring.record(RecordEvent::about(controller, COMPONENT, reason, message, now));
        }
    }

    fn failed(&mut self, failure: Failure, controller: &Object, ctx: &mut Context<Self>) {
        tracing::debug!(controller = %controller.key, reason = failure.reason, message = failure.message);
        let event = RecordEvent::about(
            controller,
            COMPONENT,
            failure.reason,
            failure.message.clone(),
            outside::now(),
        );
        self.wiring.record(event.warning());
        self.failure = Some(failure);
        let wait = Backoff::ACTOR.delay(self.failures, rand::random());
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(tokio::time::Instant::now() + wait);
        self.look_again(wait, ctx);
    }

    /// Asks the manager for the newest picture after a while.
    fn look_again(&mut self, wait: Duration, ctx: &mut Context<Self>) {
        if let Some(earlier) = self.alarm.take() {
            ctx.cancel_future(earlier);
        }
        self.alarm = Some(ctx.run_later(wait, |this, _| this.ask()));
    }

    /// A manager that is down tells every picture when it is back.
    fn ask(&self) {
        let _ = self.manager.tell(Describe(self.uid.clone()));
    }
}

impl Actor for ReplicationController {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        // An earlier incarnation may have a commit under way: the first plan is to know of it.
        let wiring = self.wiring.clone();
        ctx.wait(async move { settled(&wiring).await }.into_actor(self).map(|(), this, _| {
            this.expectation.committed(this.wiring.view.snapshot().revision);
            this.ask();
        }));
    }
}

impl Handler<Picture> for ReplicationController {
    type Result = ();

    fn handle(&mut self, Picture(roster): Picture, ctx: &mut Context<Self>) {
        if self.picture.as_ref().is_none_or(|p| p.revision <= roster.revision) {
            self.picture = Some(roster);
        }
        self.step(ctx);
        // Overtaken pictures: the manager is behind what we wait for, so ask again until it has caught up.
        let waits = self.picture.as_ref().is_some_and(|p| !self.expectation.met_by(p.revision));
        if waits && !self.committing {
            self.look_again(LOOK_AGAIN, ctx);
        }
    }
}
