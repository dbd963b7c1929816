//! Ending containers: a pod actor's part of it, with preStop hooks.
//!
//! Owns: which hooks have begun. Invariant: a life's hook is begun once, and its end waits for a hook under way. What is run
//! and for how long is in [`super::hooks`]; when, in [`crate::logic::pod`].

use std::time::Duration;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::sync::watch;

use super::pod::{PodActor, RETRY};
use crate::runtime::ContainerId;

/// How long after a container was stopped its end is to be told, before the runtime is asked for it.
const TOLD_WITHIN: Duration = Duration::from_millis(50);

impl PodActor {
    /// Runs a container's preStop hook, if that has not begun, and ends the container, all within the grace.
    pub(super) fn stop(&mut self, index: usize, id: String, grace: Duration, ctx: &mut Context<Self>) {
        let Some(hooked) = self.hooked(index, &id) else { return };
        let runtime = self.seed.node.runtime.clone();
        let under_way = self.pre_stops.get(&id).cloned();
        let hook = hooked.has_pre_stop() && self.pre_stopped.insert(id.clone());
        let work = async move {
            if let Some(under_way) = under_way {
                return hooked.stop_after(under_way, grace).await;
            }
            if hook {
                return hooked.stop(grace).await;
            }
            (Ok(()), runtime.stop_container(&hooked.id, grace).await)
        };
        ctx.spawn(work.into_actor(self).map(move |(hooked, outcome), pod, ctx| {
            if let Err(error) = hooked {
                tracing::warn!(pod = %pod.uid, %error, "a preStop hook failed");
                pod.machine.pre_stop_failed(index);
            }
            let Err(error) = outcome else { return pod.expect_exit(id, ctx) };
            tracing::warn!(pod = %pod.uid, %error, "a container could not be stopped");
            pod.machine.container_stuck(&id, &error.to_string());
            ctx.run_later(RETRY, |pod, ctx| pod.check_exits(ctx));
        }));
    }

    /// The end of what was stopped is told most often, and asked for if it was not.
    fn expect_exit(&mut self, id: String, ctx: &mut Context<Self>) {
        let id = ContainerId(id);
        if self.runs(&id) {
            ctx.run_later(TOLD_WITHIN, move |pod, ctx| {
                if pod.runs(&id) {
                    pod.check_exits(ctx);
                }
            });
        }
    }

    /// Begins the preStop hook of a container whose turn to end is still to come.
    pub(super) fn pre_stop(&mut self, index: usize, id: String, grace: Duration, ctx: &mut Context<Self>) {
        let Some(hooked) = self.hooked(index, &id).filter(|_| self.pre_stopped.insert(id.clone())) else {
            return;
        };
        let (done, under_way) = watch::channel(false);
        self.pre_stops.insert(id, under_way);
        let work = async move { hooked.pre_stop(grace).await };
        ctx.spawn(work.into_actor(self).map(move |hooked, pod, ctx| {
            done.send_replace(true);
            let Err(error) = hooked else { return };
            tracing::warn!(pod = %pod.uid, %error, "a preStop hook failed");
            pod.machine.pre_stop_failed(index);
            pod.advance(ctx);
        }));
    }
}
