//! Replication controllers: a manager, and one actor for each controller object.
//!
//! Owns: [`child`], which puts both under supervision. The manager follows the store, keeps each controller's roster
//! ([`crate::logic::replication::roster`]) and tells each controller actor its newest picture; the controller actor
//! decides and commits. Invariant: a controller actor lives exactly as long as its object; slots outlive a restart of
//! the manager, so a controller is never cut off in the middle of a commit by somebody else's fault.

mod controller;
mod manager;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use dashmap::DashMap;

use self::{controller::ReplicationController, manager::ReplicationManager};
use super::{
    commit::Wiring,
    supervisor::{ChildSpec, Strategy, SupervisorHandle, SupervisorSpec},
};
use crate::{logic::supervision::Intensity, messages::Slot, model::Uid};

/// Who events and the API's managers know these controllers as.
const COMPONENT: &str = "replication-controller";

/// Where each controller's actor is.
type Controllers = Arc<DashMap<Uid, Slot<ReplicationController>>>;

/// The child that does all of it: a supervisor of the controllers' supervisor and, after it, of their manager.
pub fn child(wiring: &Wiring) -> ChildSpec {
    child_at(wiring, &SupervisorHandle::new("replication"))
}

fn child_at(wiring: &Wiring, handle: &SupervisorHandle) -> ChildSpec {
    let wiring = wiring.clone();
    let spec = SupervisorSpec::new("replication").strategy(Strategy::RestForOne);
    ChildSpec::supervisor(spec, handle, move |replication| {
        let controllers = Controllers::default();
        let handle = SupervisorHandle::new("replication controllers");
        let spec = SupervisorSpec::new("replication controllers").limit(Intensity::UNLIMITED).stop_together();
        // A new supervisor has no children: what the old one's are remembered by goes too.
        let fresh = controllers.clone();
        replication.start_child(ChildSpec::supervisor(spec, &handle, move |_| fresh.clear())).detach();
        let (slot, wiring) = (Slot::new("replication manager"), wiring.clone());
        let port = slot.port();
        let manager = ChildSpec::new("replication manager", &slot, move |life| {
            let (handle, controllers) = (handle.clone(), controllers.clone());
            Ok(ReplicationManager::new(life, wiring.clone(), handle, controllers, port.clone()))
        });
        replication.start_child(manager).detach();
    })
}
