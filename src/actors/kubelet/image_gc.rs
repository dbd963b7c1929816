//! Removes images that nothing needs when the disk fills up, as [`crate::logic::image_gc`] says.
//!
//! Invariant: an image in use, or brought by hand, stays whatever happens: the runtime does not name it.

use actix::{ActorFutureExt as _, AsyncContext as _, Context, WrapFuture as _};

use super::{
    Kubelet,
    context::{NodeContext, now_ms},
    machine,
};
use crate::{
    logic::image_gc::{HIGH_PERCENT, Idle, LOW_PERCENT, excess, failed, order},
    messages::wire,
    runtime::RuntimeError,
};

impl Kubelet {
    /// Looks whether the disk is full and makes room.
    pub(super) fn collect_images(&mut self, ctx: &mut Context<Self>) {
        let node = self.seed.node.clone();
        let work = async move {
            let measure = || {
                let (free, total) = machine::left(&node).image_disk;
                (total, free)
            };
            collect(&node, measure, now_ms()).await
        };
        ctx.spawn(work.into_actor(self).map(|outcome, kubelet, ctx| match outcome {
            Ok(collected) => {
                if !collected.removed.is_empty() {
                    tracing::info!(images = collected.removed.join(" "), "images removed: the disk fills up");
                    kubelet.report_node(false, ctx);
                }
                if let Some(problem) = collected.problem {
                    tracing::warn!(problem, "the disk stays full");
                    kubelet.tell_of_node(true, "FreeDiskSpaceFailed", problem);
                }
            }
            Err(error) => tracing::warn!(%error, "images could not be collected"),
        }));
    }

    /// Tells an event about the node itself.
    pub(super) fn tell_of_node(&self, warning: bool, reason: &str, message: String) {
        let event = wire::EventReport {
            namespace: String::new(),
            name: self.seed.node.name.clone(),
            // As Kubernetes' kubelets have it, and where `kubectl describe node` looks.
            uid: self.seed.node.name.as_str().into(),
            field_path: None,
            warning,
            reason: reason.into(),
            message,
            at_ms: now_ms(),
        };
        self.tell(None, wire::ToMaster::Events(vec![event]));
    }
}

/// What a collection did.
#[derive(Debug, Default, PartialEq, Eq)]
struct Collected {
    /// Names that went.
    removed: Vec<String>,
    /// The disk is still too full, and nothing is left that may go.
    problem: Option<String>,
}

async fn collect(
    node: &NodeContext,
    measure: impl Fn() -> (u64, u64),
    now_ms: i64,
) -> Result<Collected, RuntimeError> {
    let mut collected = Collected::default();
    let (total, free) = measure();
    if excess(total, free, HIGH_PERCENT) == 0 {
        return Ok(collected);
    }
    let wanted = excess(total, free, LOW_PERCENT);
    let idle = node.runtime.idle_images().await?;
    let idle = idle.into_iter().map(|i| Idle { names: i.names, used_ms: i.used_ms }).collect();
    let left = || {
        let (total, free) = measure();
        excess(total, free, LOW_PERCENT)
    };
    for image in order(idle, now_ms) {
        if left() == 0 {
            break;
        }
        for name in image.names {
            node.runtime.remove_image(&name).await?;
            collected.removed.push(name);
        }
    }
    // Kubernetes counts it as failed below the low threshold; that would be told every five minutes for a disk that is
    // full of other things but not yet in danger.
    let (total, free) = measure();
    if excess(total, free, HIGH_PERCENT) > 0 {
        collected.problem = Some(failed(wanted, wanted.saturating_sub(left())));
    }
    Ok(collected)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use super::*;
    use crate::{
        actors::{kubelet::Starts, testing::system},
        logic::supervision::Backoff,
        runtime::{
            ContainerConfig, ContainerRuntime as _, SandboxConfig,
            sim::{SimConfig, SimMachine, SimRuntime},
        },
    };

    const NAMES: [&str; 4] = ["r.io/a:1", "r.io/b:1", "r.io/c:1", "r.io/used:1"];

    /// A node with four images that were pulled, one of them in use, and one that was brought by hand.
    async fn node() -> (NodeContext, SimRuntime) {
        let registry: BTreeMap<String, Duration> =
            NAMES.iter().map(|name| ((*name).to_owned(), Duration::ZERO)).collect();
        let config = SimConfig { any_image: false, registry, ..SimConfig::default() };
        let runtime = SimRuntime::open(SimMachine::new(config).unwrap());
        for name in NAMES {
            runtime.pull_image(name, None).await.unwrap();
        }
        runtime.set_pod_cidr("10.9.0.0/24").await.unwrap();
        let sandbox = SandboxConfig { uid: "u".into(), ..SandboxConfig::default() };
        runtime.run_pod_sandbox(sandbox).await.unwrap();
        let container = ContainerConfig { image: NAMES[3].into(), ..ContainerConfig::default() };
        runtime.create_container(&"u".into(), container).await.unwrap();
        let node = NodeContext {
            name: "n".into(),
            runtime: Arc::new(runtime.clone()),
            dir: "/".into(),
            host_ip: Default::default(),
            crash_loop: Backoff::CRASH_LOOP,
            configs: Default::default(),
            starts: Starts::default(),
            ledger: crate::actors::kubelet::Ledger::default(),
            registry_config: None,
            peers: Default::default(),
            host: Default::default(),
            settings: Default::default(),
            packing: Default::default(),
            storage: Default::default(),
        };
        (node, runtime)
    }

    /// A disk of 100 bytes, `others` of them other things' and each image one of 5.
    async fn collected(others: u64) -> (Collected, usize) {
        let (node, runtime) = node().await;
        let here = || async { runtime.list_images().await.unwrap().len() };
        let machine = runtime.machine().clone();
        let count = move || {
            let all = SimRuntime::open(machine.clone());
            futures_util::FutureExt::now_or_never(async move { all.list_images().await.unwrap().len() })
        };
        let measure = || (100, 100_u64.saturating_sub(others + 5 * count().unwrap() as u64));
        let collected = collect(&node, measure, 1_000_000).await.unwrap();
        (collected, here().await)
    }

    #[test]
    fn images_go_at_the_high_threshold_until_the_low_one_but_none_that_is_needed() {
        system(async {
            // The four and the built-in one.
            assert_eq!(collected(60).await, (Collected::default(), 5), "85%");
            let (two, left) = collected(65).await;
            assert_eq!((two.removed, two.problem, left), (vec![NAMES[0].into(), NAMES[1].into()], None, 3));
            let (all, left) = collected(75).await;
            assert_eq!((all.removed.len(), all.problem, left), (3, None, 2), "85% is not beyond it");
            let (all, left) = collected(76).await;
            let problem = all.problem.unwrap();
            assert!(problem.contains("Attempted to free 20 bytes, but only found 14 bytes"), "{problem}");
            assert_eq!((all.removed.len(), left), (3, 2), "what is used and what was brought by hand stay");
        });
    }
}
