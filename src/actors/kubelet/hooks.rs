//! Lifecycle hooks: what is run right after a container has started, and before it is asked to end.
//!
//! Owns: running one hook, and a container's end with its preStop hook. Invariants: a preStop hook gets no more time than
//! the grace, and what it used is not given again, but for [`LEAST`]. Rules: Kubernetes'; an HTTP hook has succeeded
//! when it was answered, whatever the answer says.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1;
use tokio::{sync::watch, time::timeout};

use super::{context::NodeContext, probes::Get};
use crate::{
    logic::pod::init::container_named,
    runtime::{ContainerId, RuntimeError},
};

/// After a hook a program always has this long to end by itself.
const LEAST: Duration = Duration::from_secs(2);
/// A postStart hook has no limit in Kubernetes; one that takes longer than a day will not end.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// An HTTP hook is given up after this long, unless its grace is shorter.
const HTTP_TIME: Duration = Duration::from_secs(30);

/// A container whose hooks are run.
#[derive(Clone)]
pub struct Hooked {
    /// The node.
    pub node: Arc<NodeContext>,
    /// The pod.
    pub pod: Arc<v1::Pod>,
    /// The container's name.
    pub name: String,
    /// Its present life.
    pub id: ContainerId,
    /// The pod's address, if it has one of its own.
    pub ip: Option<IpAddr>,
}

impl Hooked {
    fn hook(
        &self,
        which: fn(&v1::Lifecycle) -> Option<&v1::LifecycleHandler>,
    ) -> Option<v1::LifecycleHandler> {
        container_named(&self.pod, &self.name)?.lifecycle.as_ref().and_then(which).cloned()
    }

    /// Whether something is to be run before it ends.
    pub fn has_pre_stop(&self) -> bool {
        self.hook(|l| l.pre_stop.as_ref()).is_some()
    }

    /// Runs the postStart hook; an error when it failed.
    pub async fn post_start(self) -> Result<(), String> {
        match self.hook(|l| l.post_start.as_ref()) {
            Some(hook) => self.run(&hook, LONGEST).await,
            None => Ok(()),
        }
    }

    /// Runs the preStop hook of a container whose turn to end is still to come.
    pub async fn pre_stop(&self, grace: Duration) -> Result<(), String> {
        let Some(hook) = self.hook(|l| l.pre_stop.as_ref()) else { return Ok(()) };
        let late = || format!("not completed in the grace period of {}s", grace.as_secs());
        timeout(grace, self.run(&hook, grace)).await.unwrap_or_else(|_| Err(late()))
    }

    /// Ends the container within `grace`, after its preStop hook that is under way: `done` turns true when that has ended.
    pub async fn stop_after(
        self,
        mut done: watch::Receiver<bool>,
        grace: Duration,
    ) -> (Result<(), String>, Result<(), RuntimeError>) {
        let begun = Instant::now();
        // A hook that is late, or cut off, is waited for no more. How it went is told by who began it.
        let _ = timeout(grace, done.wait_for(|done| *done)).await;
        let left = grace.saturating_sub(begun.elapsed());
        let left = if grace.is_zero() { left } else { left.max(LEAST) };
        (Ok(()), self.node.runtime.stop_container(&self.id, left).await)
    }

    /// Ends the container within `grace`: by its preStop hook, then by its stop signal, then by force. Tells how the hook
    /// went, and whether the container has ended.
    pub async fn stop(self, grace: Duration) -> (Result<(), String>, Result<(), RuntimeError>) {
        let hook = self.hook(|l| l.pre_stop.as_ref()).filter(|_| !grace.is_zero());
        if hook.is_none() {
            return (Ok(()), self.node.runtime.stop_container(&self.id, grace).await);
        }
        let begun = Instant::now();
        let hooked = self.pre_stop(grace).await;
        let left = grace.saturating_sub(begun.elapsed()).max(LEAST);
        (hooked, self.node.runtime.stop_container(&self.id, left).await)
    }

    async fn run(&self, hook: &v1::LifecycleHandler, limit: Duration) -> Result<(), String> {
        if let Some(sleep) = &hook.sleep {
            let time = Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0));
            tokio::time::sleep(time.min(limit)).await;
            return Ok(());
        }
        if let Some(exec) = &hook.exec {
            let command = exec.command.clone().unwrap_or_default();
            let words = command.join(" ");
            let output =
                self.node.runtime.exec_sync(&self.id, command, limit).await.map_err(|e| e.to_string())?;
            return match output.code {
                0 => Ok(()),
                _ if output.timed_out => Err(format!("command {words:?} timed out")),
                code => {
                    let said = [output.stdout, output.stderr].concat();
                    Err(format!("command '{words}' exited with {code}: {}", String::from_utf8_lossy(&said)))
                }
            };
        }
        if let Some(get) = &hook.http_get {
            if !self.node.runtime.has_network() {
                return Ok(());
            }
            let container = container_named(&self.pod, &self.name).ok_or("no such container")?;
            let get = Get::of(get, &container, self.ip.or(self.node.host_ip.now()))?;
            let deadline = tokio::time::Instant::now() + limit.min(HTTP_TIME);
            return get.follow(deadline).await.map(drop);
        }
        Err("invalid handler: only exec, httpGet and sleep can be run".into())
    }
}
