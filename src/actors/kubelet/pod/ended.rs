//! The ends of a pod's containers.
//!
//! Owns: what is told of an end, and when: an end that speaks by its log waits for that, where a log is copied after the end.

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};
use k8s_openapi::api::core::v1;

use super::PodActor;
use crate::{
    actors::kubelet::{
        context::{NodeContext, now_ms},
        last_words::{last_words, speaks_by_log},
        streams::COPIED_WITHIN,
    },
    logic::pod::{Adopted, Ended, FOUND_DEAD, STATUS_UNKNOWN, config::Places},
    runtime::{ContainerId, ContainerRuntime, ContainerState, ContainerStatus, Exit},
};

impl PodActor {
    pub(super) fn exited(&mut self, id: ContainerId, exit: Exit, ctx: &mut Context<Self>) {
        let Some((name, attempt, _)) = self.running_as(&id) else { return };
        if !speaks_by_log(&self.machine.pod, &self.places(), &name, attempt, exit.code) {
            return self.has_ended(id, &exit);
        }
        let runtime = self.seed.node.runtime.clone();
        let work = async move {
            logs_written(&*runtime, [&id]).await;
            id
        };
        ctx.spawn(work.into_actor(self).map(move |id, pod, ctx| {
            pod.has_ended(id, &exit);
            pod.advance(ctx);
        }));
    }

    /// The name of what runs as that, its number and since when it does.
    fn running_as(&self, id: &ContainerId) -> Option<(String, u32, i64)> {
        self.machine.containers.iter().find_map(|c| match &c.phase {
            crate::logic::pod::ContainerPhase::Running { id: running, started_ms, .. }
                if *running == id.0 =>
            {
                Some((c.name.clone(), c.attempt, *started_ms))
            }
            _ => None,
        })
    }

    /// Ends what outlived the sandbox, and tells how each container ended.
    pub(in crate::actors::kubelet) fn end_sandbox(&self, ctx: &mut Context<Self>) {
        let (node, uid) = (self.seed.node.clone(), self.uid.clone());
        let (spec, places) = (self.machine.pod.clone(), self.places());
        let work = async move {
            node.runtime.stop_pod_sandbox(&uid).await?;
            let lives = node.runtime.pod_containers(&uid).await?;
            spoken(&node, &spec, &places, &lives).await;
            Ok(lives)
        };
        ctx.spawn(work.into_actor(self).map(|lives, pod, ctx| {
            let outcome = lives.map(|lives: Vec<ContainerStatus>| {
                for life in lives {
                    if let ContainerState::Exited(exit) = &life.state {
                        pod.has_ended(life.id, exit);
                    }
                }
            });
            pod.settled(outcome, |machine| machine.sandbox_ended(now_ms()), ctx);
        }));
    }

    /// Whether a container runs, as far as is known here.
    pub(in crate::actors::kubelet) fn runs(&self, id: &ContainerId) -> bool {
        self.running_as(id).is_some()
    }

    fn has_ended(&mut self, id: ContainerId, exit: &Exit) {
        // It may have been told twice.
        let Some((name, attempt, started_ms)) = self.running_as(&id) else { return };
        self.pre_stopped.remove(&id.0);
        self.pre_stops.remove(&id.0);
        let message = last_words(&self.machine.pod, &self.places(), &name, attempt, exit.code);
        self.machine.container_exited(ended(id.0, exit, started_ms, message));
    }
}

fn ended(id: String, exit: &Exit, started_ms: i64, message: Option<String>) -> Ended {
    let reason = match exit {
        Exit { unseen: true, .. } => STATUS_UNKNOWN,
        Exit { oom_killed: true, .. } => "OOMKilled",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    };
    Ended {
        id: Some(id),
        code: exit.code,
        signal: exit.signal,
        reason: reason.into(),
        message: message.or_else(|| exit.unseen.then(|| FOUND_DEAD.into())),
        started_ms,
        finished_ms: exit.finished_ms,
    }
}

/// A container's life as it was found.
pub(super) fn adopted(status: ContainerStatus, pod: &v1::Pod, places: &Places) -> Adopted {
    let ended = match &status.state {
        ContainerState::Exited(exit) => {
            let message = last_words(pod, places, &status.name, status.attempt, exit.code);
            Some(ended(status.id.0.clone(), exit, status.started_ms, message))
        }
        ContainerState::Created | ContainerState::Running => None,
    };
    Adopted {
        name: status.name,
        id: status.id.0,
        attempt: status.attempt,
        image: status.image,
        image_id: status.image_id,
        started_ms: status.started_ms,
        ended,
    }
}

/// Waits until the logs of what has ended are whole, or that takes too long.
pub(super) async fn logs_written(
    runtime: &dyn ContainerRuntime,
    ended: impl IntoIterator<Item = &ContainerId>,
) {
    let all = futures_util::future::join_all(ended.into_iter().map(|id| runtime.log_written(id)));
    let _ = tokio::time::timeout(COPIED_WITHIN, all).await;
}

/// Waits for the logs whose end is to be told as last words.
pub(super) async fn spoken(node: &NodeContext, pod: &v1::Pod, places: &Places, lives: &[ContainerStatus]) {
    let speaks = lives.iter().filter(|life| match &life.state {
        ContainerState::Exited(exit) => speaks_by_log(pod, places, &life.name, life.attempt, exit.code),
        ContainerState::Created | ContainerState::Running => false,
    });
    logs_written(&*node.runtime, speaks.map(|life| &life.id)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_that_nobody_saw_is_told_as_such_and_last_words_stay() {
        let exit = |unseen| Exit { code: 137, signal: Some(9), oom_killed: false, finished_ms: 7, unseen };
        let told = |unseen, message: Option<&str>| {
            let ended = ended("c".into(), &exit(unseen), 5, message.map(str::to_owned));
            (ended.reason, ended.message, ended.finished_ms)
        };
        assert_eq!(told(false, None), ("Error".into(), None, 7));
        assert_eq!(told(true, None), ("ContainerStatusUnknown".into(), Some(FOUND_DEAD.into()), 7));
        assert_eq!(told(true, Some("words")).1.as_deref(), Some("words"));
    }
}
