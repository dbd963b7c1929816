//! The root of a supervision tree, which ends with whoever holds it.

use crate::actors::supervisor::{Supervisor, SupervisorHandle, SupervisorSpec};

/// A tree that is told to stop when this is dropped: an error or a panic of the owner leaves no actors behind.
pub(super) struct Root(SupervisorHandle);

impl Root {
    /// Starts a tree on the present arbiter.
    pub(super) fn start(spec: SupervisorSpec) -> Root {
        Root(Supervisor::start(spec))
    }

    pub(super) fn handle(&self) -> &SupervisorHandle {
        &self.0
    }

    /// Stops the tree and waits until it is gone. One that has given up is gone already.
    pub(super) async fn stop(&self) {
        if let Err(error) = self.0.shutdown().await {
            tracing::debug!(%error, "nothing left to stop");
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.0.shutdown().detach();
    }
}
