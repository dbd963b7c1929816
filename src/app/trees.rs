//! The supervision trees of this process, for whoever wants to see them.
//!
//! Owns: [`Trees`]: the master's own and those of nodes beside it. Nodes of other processes are not in it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{actors::supervisor::SupervisorHandle, messages::ActorState};

/// Roots of trees, each with what its actors' paths begin with. Clones share them.
#[derive(Clone, Default)]
pub(super) struct Trees(Arc<Mutex<Vec<(String, SupervisorHandle)>>>);

impl Trees {
    /// A further tree.
    pub(super) fn add(&self, prefix: &str, root: &SupervisorHandle) {
        let mut roots = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        roots.push((prefix.to_owned(), root.clone()));
    }

    /// Every actor, by its path. Waits for each supervisor on the way.
    pub(super) async fn show(self) -> Vec<ActorState> {
        let roots = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut all = Vec::new();
        for (prefix, root) in roots {
            all.extend(root.tree().await.into_iter().map(|child| {
                let actor = ActorState::from(child);
                ActorState { name: format!("{prefix}{}", actor.name), ..actor }
            }));
        }
        all
    }
}
