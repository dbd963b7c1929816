//! Asks the runtime whether it is there, as [`crate::logic::runtime_health`] says, and has the node say it when it is not.
//!
//! Invariant: one question at a time, so that an engine that hangs does not gather them.

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use tokio::time::{Instant, timeout};

use super::Kubelet;
use crate::logic::runtime_health::{ANSWER, PERIOD, RuntimeHealth};

/// Whether the runtime is there.
pub(super) struct Health {
    /// What all its times count from.
    began: Instant,
    known: RuntimeHealth,
}

impl Default for Health {
    fn default() -> Health {
        Health { began: Instant::now(), known: RuntimeHealth::default() }
    }
}

impl Health {
    fn note(&mut self, outcome: Result<(), String>, asked: Instant) -> bool {
        let asked = asked.saturating_duration_since(self.began);
        self.known.note(outcome, asked, self.began.elapsed())
    }

    /// Why it can run no pods now.
    pub(super) fn fault(&self) -> Option<&str> {
        self.known.fault()
    }
}

impl Kubelet {
    /// Asks now, and from now on.
    pub(super) fn ask_runtime(&mut self, ctx: &mut Context<Self>) {
        let (runtime, asked) = (self.seed.node.runtime.clone(), Instant::now());
        let work = async move {
            match timeout(ANSWER, runtime.status()).await {
                Ok(answer) => answer.map_err(|error| error.to_string()),
                Err(_) => Err(format!(
                    "the container runtime {} does not answer within {} s",
                    runtime.name(),
                    ANSWER.as_secs()
                )),
            }
        };
        ctx.spawn(work.into_actor(self).map(move |outcome, kubelet, ctx| {
            let (was_away, was_ready) = (kubelet.health.fault().is_some(), kubelet.fault().is_none());
            if kubelet.health.note(outcome, asked) {
                kubelet.note_health(was_away, was_ready, ctx);
            }
            ctx.run_later(PERIOD, Kubelet::ask_runtime);
        }));
    }

    fn note_health(&mut self, was_away: bool, was_ready: bool, ctx: &mut Context<Self>) {
        let name = self.seed.node.name.clone();
        match self.health.fault() {
            Some(fault) if was_away => tracing::warn!(fault, "the container runtime is still away"),
            Some(fault) => tracing::error!(fault, "the container runtime is away: the node is not ready"),
            None => tracing::info!("the container runtime is back"),
        }
        // It may be unready for another reason, too.
        let is_ready = self.fault().is_none();
        if is_ready != was_ready {
            let reason = if is_ready { "NodeReady" } else { "NodeNotReady" };
            self.tell_of_node(false, reason, format!("Node {name} status is now: {reason}"));
        }
        self.report_node(false, ctx);
    }
}
