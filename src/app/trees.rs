//! The supervision trees of this process, for whoever wants to see them.
//!
//! Owns: [`Trees`]: the master's own and those of nodes beside it. Nodes of other processes are asked over their links.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    actors::supervisor::SupervisorHandle,
    messages::{ActorState, OwnActors},
    model::NodeName,
};

/// Roots of trees. Clones share them.
#[derive(Clone)]
pub(super) struct Trees {
    master: SupervisorHandle,
    nodes: Arc<Mutex<Vec<(NodeName, SupervisorHandle)>>>,
}

impl Trees {
    /// The master's.
    pub(super) fn of(master: &SupervisorHandle) -> Trees {
        Trees { master: master.clone(), nodes: Arc::default() }
    }

    /// That of a node beside it.
    pub(super) fn add(&self, node: &NodeName, root: &SupervisorHandle) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.push((node.clone(), root.clone()));
    }

    /// Every actor, by its path. Waits for each supervisor on the way.
    pub(super) async fn show(self) -> OwnActors {
        let roots = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut shown = OwnActors { master: actors(&self.master).await, nodes: Vec::new() };
        for (node, root) in roots {
            shown.nodes.push((node, actors(&root).await));
        }
        shown
    }
}

async fn actors(root: &SupervisorHandle) -> Vec<ActorState> {
    root.tree().await.into_iter().map(ActorState::from).collect()
}
