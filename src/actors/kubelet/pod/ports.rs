//! A pod's ports of the machine while it lives.
//!
//! Owns: that they are there again after a restart of `troupe` or of the actor, as soon as they can be had and the pod's
//! address is known, and that their failure is the actor's. Where the pod's own turn is: [`super::super::host_ports`].

use std::time::Duration;

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};

use super::{PodActor, find};
use crate::logic::{
    pod::{SandboxPhase, host_ports::asked},
    supervision::Backoff,
};

/// A port that others have taken while `troupe` was away is tried again after 1, 2, 4 … s, at most every 30 s.
const BACKOFF: Backoff = Backoff {
    immediate: 1,
    initial: Duration::from_secs(1),
    factor: 2,
    cap: Duration::from_secs(30),
    reset_after: Duration::from_secs(600),
    jitter: 0.0,
};

const UNNAMED: &str =
    "its host ports lead nowhere: the runtime names no address of the pod; it is asked again until it does";

impl PodActor {
    /// Opens the ports of a sandbox that was found; `failures` came before.
    pub(super) fn resume_ports(&mut self, failures: u32, ctx: &mut Context<Self>) {
        let SandboxPhase::Ready { ip } = self.machine.sandbox else { return };
        let Some(ip) = ip else { return self.seek_address(failures, ctx) };
        let (node, spec, ports) = (self.seed.node.clone(), self.machine.pod.clone(), self.ports.clone());
        if asked(&spec).ports.is_empty() {
            return;
        }
        let work = async move { ports.resume(&node, &spec, ip).await };
        ctx.spawn(work.into_actor(self).map(move |outcome, pod, ctx| {
            if !matches!(pod.machine.sandbox, SandboxPhase::Ready { ip: Some(now) } if now == ip) {
                // Another sandbox, if one follows, opens its own.
                let ports = pod.ports.clone();
                if !matches!(pod.machine.sandbox, SandboxPhase::Starting | SandboxPhase::Ready { .. }) {
                    ctx.spawn(async move { ports.end().await }.into_actor(pod));
                }
                return;
            }
            let Err(error) = outcome else { return pod.watch_ports(ctx) };
            pod.machine.notice(None, true, error.reason(), error.to_string());
            let failures = failures.saturating_add(1);
            ctx.run_later(BACKOFF.delay(failures, 0.0), move |pod, ctx| pod.resume_ports(failures, ctx));
            pod.advance(ctx);
        }));
    }

    /// Asks again for the address of a sandbox that was found without one: a runtime may not tell it for a moment.
    fn seek_address(&mut self, failures: u32, ctx: &mut Context<Self>) {
        if self.machine.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
            return;
        }
        tracing::debug!(pod = %self.uid, failures, "the runtime names no address of a sandbox");
        if !asked(&self.machine.pod).ports.is_empty() {
            self.machine.notice(None, true, "HostPortFailed", UNNAMED.to_owned());
        }
        let failures = failures.saturating_add(1);
        ctx.run_later(BACKOFF.delay(failures, 0.0), move |pod, ctx| {
            let (node, uid) = (pod.seed.node.clone(), pod.uid.clone());
            let look = async move { find(&node, &uid).await };
            ctx.spawn(look.into_actor(pod).map(move |found, pod, ctx| {
                let sandbox = found.ok().flatten().map(|found| found.sandbox).filter(|sandbox| sandbox.ready);
                if let Some(ip) = sandbox.and_then(|sandbox| sandbox.ip) {
                    pod.machine.address_told(ip);
                }
                pod.resume_ports(failures, ctx);
                pod.advance(ctx);
            }));
        });
    }

    /// Fails when the relays do: the next incarnation opens them anew.
    pub(super) fn watch_ports(&mut self, ctx: &mut Context<Self>) {
        let ports = self.ports.clone();
        ctx.spawn(async move { ports.failed().await }.into_actor(self).map(|failed, pod, _| {
            if failed {
                pod.life.fail("a relay of its host ports failed");
            }
        }));
    }

    /// Tells of each port that cannot be had at all.
    pub(super) fn tell_refused_ports(&mut self) {
        for sentence in asked(&self.machine.pod).refused {
            self.machine.notice(None, true, "UnsupportedHostPort", sentence);
        }
    }
}
