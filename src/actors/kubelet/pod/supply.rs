//! A pod's supply of config maps and secrets while it lives.
//!
//! Owns: what becomes of a pod when these change: who waits for them goes on, and files of volumes follow. Invariant: a
//! change that comes while something is under way is not lost: what was begun with less than what is known is done again.

use std::sync::Arc;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, WrapFuture as _};

use super::{super::volumes, PodActor};
use crate::logic::pod::{SandboxPhase, sources::Sources};

/// kubelet → pod: config maps or secrets that it refers to are not what they were.
#[derive(Message, Clone, Copy)]
#[rtype(result = "()")]
pub struct SourcesMoved;

impl PodActor {
    /// What failed with less than what is known by now is tried again.
    pub(super) fn catch_up(&mut self, known: &Arc<Sources>) {
        if !self.knows_no_more_than(known) {
            self.machine.sources_changed();
        }
    }

    pub(super) fn knows_no_more_than(&self, known: &Arc<Sources>) -> bool {
        Arc::ptr_eq(known, &self.seed.node.configs.now())
    }

    /// Brings the files in its volumes up to date while it runs.
    pub(super) fn refresh_volumes(&self, ctx: &mut Context<Self>) {
        if self.machine.is_ending() || !matches!(self.machine.sandbox, SandboxPhase::Ready { .. }) {
            return;
        }
        let (node, spec, places) = (self.seed.node.clone(), self.machine.pod.clone(), self.places());
        let volumes = self.volumes.clone();
        let work = async move {
            let _alone = volumes.lock().await;
            volumes::refresh(&node, &spec, places).await
        };
        ctx.spawn(work.into_actor(self).map(|outcome, pod, ctx| {
            for message in outcome.err().into_iter().flatten() {
                pod.machine.notice(None, true, "FailedMount", message);
            }
            pod.advance(ctx);
        }));
    }
}

impl Handler<SourcesMoved> for PodActor {
    type Result = ();

    fn handle(&mut self, _: SourcesMoved, ctx: &mut Self::Context) {
        self.machine.sources_changed();
        self.refresh_volumes(ctx);
        self.advance(ctx);
    }
}
