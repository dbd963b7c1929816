//! Resizing in place, on the node: what a pod is given of what it asks for, and the runtime's part.
//!
//! Owns: the pod actor's dealings with the node's [`Ledger`](super::Ledger). Decisions are in [`crate::logic::pod::resize`].
//! What is deferred is asked for again every [`AGAIN`], since any pod's end may make room. Invariant: whatever the containers
//! do, the pod's own share follows what all of them together were given.

use std::{sync::Arc, time::Duration};

use actix::{ActorFutureExt as _, AsyncContext as _, Context, SpawnHandle, WrapFuture as _};
use k8s_openapi::api::core::v1;

use super::{context::now_ms, machine, pod::PodActor, start::resources_of};
use crate::{
    logic::pod::{
        SandboxPhase,
        resize::{Verdict, are_same, as_told, with_resources_of},
    },
    model::{Resources, Uid, requests_of},
    runtime::ContainerId,
};

/// How often a resize that has to wait is looked at again: as Kubernetes' kubelet looks at a pod anew.
const AGAIN: Duration = Duration::from_secs(10);

/// What an actor keeps of its pod's size.
#[derive(Default)]
pub struct Sizing {
    /// When a resize that has to wait is looked at again.
    wake: Option<SpawnHandle>,
    /// Thousandths of a core that the sandbox' share is for, as far as is known.
    weighed: Option<i64>,
    /// It is being changed, or that failed lately.
    weighing: bool,
}

impl Sizing {
    /// The sandbox was made for this state of the pod.
    pub fn made(&mut self, pod: &v1::Pod) {
        self.weighed = Some(wanted(pod).cpu_milli);
    }
}

/// What a pod asks for in all.
fn wanted(pod: &v1::Pod) -> Resources {
    pod.spec.as_ref().map(requests_of).unwrap_or_default()
}

/// The pod as an actor begins with it: with what an earlier kubelet gave it.
pub fn first(node: &super::NodeContext, uid: &Uid, asked: Arc<v1::Pod>) -> Arc<v1::Pod> {
    let given = as_told(&asked);
    node.ledger.enter(uid, wanted(&given));
    if are_same(&given, &asked) { asked } else { Arc::new(given) }
}

impl PodActor {
    /// What the pod is given of what it asks for now.
    pub(super) fn give(&mut self, asked: Arc<v1::Pod>, ctx: &mut Context<Self>) -> Arc<v1::Pod> {
        if let Some(wake) = self.sizing.wake.take() {
            ctx.cancel_future(wake);
        }
        let kept = with_resources_of(&asked, &self.machine.pod);
        if are_same(&kept, &asked) {
            self.machine.pending = Verdict::Fits;
            return asked;
        }
        let room = machine::allocatable(&self.seed.node.dir);
        let allocatable = Resources {
            cpu_milli: room.cpu_milli,
            memory_bytes: room.memory_bytes,
            ephemeral_bytes: room.ephemeral_bytes,
            ..Resources::default()
        };
        self.machine.pending = self.seed.node.ledger.ask(&self.uid, wanted(&asked), allocatable);
        match self.machine.pending {
            Verdict::Fits => return asked,
            Verdict::Infeasible(_) => {}
            Verdict::Deferred(_) => {
                self.sizing.wake = Some(ctx.run_later(AGAIN, |pod, ctx| pod.ask_again(ctx)));
            }
        }
        Arc::new(kept)
    }

    /// Asks for what the pod wants by now, and goes on.
    pub(super) fn ask_again(&mut self, ctx: &mut Context<Self>) {
        let asked = self.seed.wanted.load().pod.clone();
        if !are_same(&asked, &self.machine.pod) {
            let mut given = self.give(asked, ctx);
            // What was told last is newer than what the master has sent.
            Arc::make_mut(&mut given).status.clone_from(&self.machine.pod.status);
            self.machine.assign(given);
        }
        self.advance(ctx);
    }

    /// Gives the pod's sandbox the share of what all of its containers were given, unless it has that.
    pub(super) fn weigh(&mut self, ctx: &mut Context<Self>) {
        let ready = matches!(self.machine.sandbox, SandboxPhase::Ready { .. });
        let cpu_milli = wanted(&self.machine.pod).cpu_milli;
        if !ready || self.sizing.weighing || self.sizing.weighed == Some(cpu_milli) {
            return;
        }
        self.sizing.weighing = true;
        let (runtime, uid) = (self.seed.node.runtime.clone(), self.uid.clone());
        let work = async move { runtime.update_pod_sandbox(&uid, cpu_milli).await };
        ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
            if let Err(error) = outcome {
                tracing::warn!(pod = %pod.uid, %error, "a pod's share is not what it asks for");
                ctx.run_later(AGAIN, |pod, ctx| pod.weigh_again(ctx));
                return;
            }
            pod.sizing.weighed = Some(cpu_milli);
            pod.weigh_again(ctx);
        }));
    }

    fn weigh_again(&mut self, ctx: &mut Context<Self>) {
        self.sizing.weighing = false;
        self.weigh(ctx);
    }

    /// Has the runtime change what a running container has.
    pub(super) fn resize(&mut self, index: usize, id: String, ctx: &mut Context<Self>) {
        let Some(name) = self.machine.containers.get(index).map(|c| c.name.clone()) else { return };
        let given = self.machine.given(&name);
        let (runtime, resources) = (self.seed.node.runtime.clone(), resources_of(Some(&given)));
        let work = async move { runtime.update_container(&ContainerId(id), resources).await };
        ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
            if let Err(error) = &outcome {
                tracing::warn!(pod = %pod.uid, container = name, %error, "a container could not be resized");
            }
            let outcome = outcome.map(|()| given).map_err(|error| error.to_string());
            pod.machine.resized(index, outcome, now_ms());
            pod.advance(ctx);
        }));
    }
}
