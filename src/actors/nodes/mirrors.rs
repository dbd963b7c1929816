//! Mirrors of a node's static pods: kept as [`crate::logic::mirrors`] says, one commit at a time, newest picture only.

use std::time::Duration;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};

use super::handle::NodeHandle;
use crate::{
    actors::{
        commit::{CommitFailed, commit},
        outside,
    },
    logic::{
        edit::Edit,
        mirrors::{Around, Mirrored, reconcile},
    },
    messages::{Durability, wire},
};

/// When the store cannot take it.
const RETRY: Duration = Duration::from_secs(1);
/// How long a name stays free once its mirror has been removed, before it shows the next one. Who waits for the end of an
/// object asks for it and then lists it: one that is exchanged in between, as kubectl 1.33 still does, is waited for for ever.
const VACANT: Duration = Duration::from_secs(2);
/// One removes, one creates, one tells the status; others may change something meanwhile.
const ROUNDS: u32 = 16;

/// What became of a picture.
enum Written {
    Whole,
    /// Some mirrors are gone, and may be made again later.
    Removed(Vec<wire::Mirror>),
    Failed(Vec<wire::Mirror>, CommitFailed),
}

impl NodeHandle {
    /// A node tells of all its static pods.
    pub(super) fn mirror(&mut self, told: Vec<wire::Mirror>, ctx: &mut Context<Self>) {
        self.mirrors = Some(told);
        self.write_mirrors(ctx);
    }

    /// Writes what was last told, once the node has an object.
    pub(super) fn write_mirrors(&mut self, ctx: &mut Context<Self>) {
        let begun = self.seed.wiring.view.snapshot().find(&self.key()).is_some();
        if self.mirroring || !begun {
            return;
        }
        let Some(told) = self.mirrors.take() else { return };
        self.mirroring = true;
        let (wiring, node) = (self.seed.wiring.clone(), self.name.clone());
        let (bound, node_key) = (self.pods.values().cloned().collect::<Vec<_>>(), self.key());
        let work = async move {
            for _ in 0..ROUNDS {
                let snapshot = wiring.view.snapshot();
                let find = |key: &_| snapshot.find(key).cloned();
                let around = Around {
                    node: &node,
                    node_object: snapshot.find(&node_key),
                    // What is bound was told by the registry a moment ago: only what is still there counts.
                    bound: bound.iter().filter_map(|pod| find(&pod.key)).collect(),
                    find: &find,
                    now: outside::now(),
                };
                let mirrored: Vec<Mirrored<'_>> =
                    told.iter().map(|m| Mirrored { document: &m.json, status: &m.status }).collect();
                let edits = reconcile(&mirrored, &around, outside::uid);
                if edits.is_empty() {
                    return Written::Whole;
                }
                let removes = edits.iter().any(|edit| matches!(edit, Edit::Remove(..)));
                let told_only = edits.iter().all(|edit| matches!(edit, Edit::Replace(..)));
                let durability = if told_only { Durability::Soft } else { Durability::Hard };
                if let Err(error) = commit(&wiring, edits, durability).await {
                    return Written::Failed(told, error);
                }
                if removes {
                    return Written::Removed(told);
                }
            }
            tracing::error!(%node, "mirrors of static pods do not become what they are to be");
            Written::Whole
        };
        ctx.spawn(work.into_actor(self).map(|written, node, ctx| match written {
            Written::Whole => {
                node.mirroring = false;
                node.write_mirrors(ctx);
            }
            Written::Removed(told) => {
                // What is told meanwhile waits, too.
                node.mirrors.get_or_insert(told);
                ctx.run_later(VACANT, |node, ctx| {
                    node.mirroring = false;
                    node.write_mirrors(ctx);
                });
            }
            Written::Failed(told, error) => {
                tracing::warn!(node = %node.name, %error, "mirrors of static pods not written; trying again");
                node.mirroring = false;
                node.mirrors.get_or_insert(told);
                ctx.run_later(RETRY, |node, ctx| node.write_mirrors(ctx));
            }
        }));
    }
}
