//! The manager: follows the store and tells each controller its newest picture.
//!
//! Owns: which controller actors exist. Leaves every decision about pods to them.

use std::collections::BTreeSet;

use actix::{Actor, AsyncContext, Context, Handler, Message, StreamHandler};

use super::{
    Controllers,
    controller::{Picture, ReplicationController},
};
use crate::{
    actors::{
        commit::Wiring,
        follow::{Fed, follow, sides},
        supervisor::{ChildSpec, Life, SupervisorHandle},
    },
    logic::replication::roster::Rosters,
    messages::{Port, Slot},
    model::Uid,
};

/// controller → manager: tell me my newest picture again (after a start, or before another try).
#[derive(Message, Debug)]
#[rtype(result = "()")]
pub(super) struct Describe(pub(super) Uid);

/// See the file.
pub(super) struct ReplicationManager {
    _life: Life,
    wiring: Wiring,
    supervisor: SupervisorHandle,
    controllers: Controllers,
    port: Port<Describe>,
    rosters: Rosters,
}

impl ReplicationManager {
    pub(super) fn new(
        life: Life,
        wiring: Wiring,
        supervisor: SupervisorHandle,
        controllers: Controllers,
        port: Port<Describe>,
    ) -> ReplicationManager {
        ReplicationManager { _life: life, wiring, supervisor, controllers, port, rosters: Rosters::default() }
    }

    /// Sees to it that each of these controllers has an actor that knows its picture, or none if it is gone.
    fn serve(&self, uids: impl IntoIterator<Item = Uid>) {
        for uid in uids {
            match self.rosters.picture(&uid) {
                Some(roster) if self.controllers.contains_key(&uid) => self.tell(&uid, Picture(roster)),
                // A new actor asks for its picture when it starts.
                Some(_) => self.start(uid),
                None => self.stop(&uid),
            }
        }
    }

    fn tell(&self, uid: &Uid, picture: Picture) {
        if let Some(controller) = self.controllers.get(uid).and_then(|slot| slot.address()) {
            controller.do_send(picture);
        }
    }

    fn start(&self, uid: Uid) {
        let slot = Slot::new("replication controller");
        let (wiring, port, own) = (self.wiring.clone(), self.port.clone(), uid.clone());
        let spec = ChildSpec::new(uid.as_str(), &slot, move |life| {
            Ok(ReplicationController::new(life, own.clone(), wiring.clone(), port.clone()))
        });
        self.controllers.insert(uid, slot);
        self.supervisor.start_child(spec.never_escalate()).detach();
    }

    fn stop(&self, uid: &Uid) {
        if self.controllers.remove(uid).is_some() {
            self.supervisor.stop_child(uid.as_str()).detach();
        }
    }
}

impl Actor for ReplicationManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.add_stream(follow(self.wiring.view.clone()));
    }
}

impl StreamHandler<Fed> for ReplicationManager {
    fn handle(&mut self, fed: Fed, _: &mut Context<Self>) {
        let revision = fed.revision();
        let mut touched = BTreeSet::new();
        match fed {
            Fed::Anew(snapshot) => {
                self.rosters = Rosters::load(&snapshot);
                touched.extend(self.rosters.uids().cloned());
                touched.extend(self.controllers.iter().map(|c| c.key().clone()));
            }
            Fed::Changes(changes) => {
                for change in &changes {
                    let (before, after) = sides(change);
                    self.rosters.apply(before, after, &mut touched);
                }
            }
        }
        self.rosters.reached(revision);
        self.serve(touched);
    }
}

impl Handler<Describe> for ReplicationManager {
    type Result = ();

    fn handle(&mut self, Describe(uid): Describe, _: &mut Context<Self>) {
        if let Some(roster) = self.rosters.picture(&uid) {
            self.tell(&uid, Picture(roster));
        }
    }
}
