//! What runs and whose end is still to be told, and how an end is noticed.
//!
//! Owns: the listing of containers, from which all ends are told, so that an event and a listing never disagree.
//! Invariant: an end is told once, and before a listing shows it. A runtime's own events only say when to list: where it
//! has none, a listing each second does, as in Kubernetes; a slow one goes on beside events, which may be lost.

use std::{
    collections::{HashMap, HashSet},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::{
    client::{Fault, LONG, SHORT, ended, fault},
    driver::Driver,
    labels, proto, status,
};
use crate::{
    model::Uid,
    runtime::{ContainerId, ContainerState, ContainerStatus, RuntimeError, RuntimeEvent},
};

/// Between two listings when nobody says what happens: Kubernetes' own interval.
const POLL: Duration = Duration::from_secs(1);
/// Between two listings beside events.
const SLOW_POLL: Duration = Duration::from_secs(10);
/// Before a runtime that broke off is listened to again.
const AGAIN: Duration = Duration::from_secs(1);
/// An event may come before the runtime itself has noted the end; so much later it is looked for again.
const SETTLE: [Duration; 7] = [
    Duration::ZERO,
    Duration::from_millis(5),
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_secs(1),
];

/// That the kernel killed a program for lack of memory, a runtime may hear after its end.
const OOM_LOOK: Duration = Duration::from_millis(50);
const OOM_LOOKS: u32 = 4;
const KILL: i32 = 9;

#[derive(Default)]
pub(super) struct Watch {
    expected: Mutex<Expected>,
    /// What is known of containers, by the state that it was known in.
    known: AsyncMutex<HashMap<String, (i32, ContainerStatus)>>,
    wake: Notify,
}

/// Ids and pods of what runs.
#[derive(Default)]
struct Expected {
    containers: HashMap<String, Uid>,
    sandboxes: HashMap<String, Uid>,
    /// Those of them that are said to have ended.
    ended: HashSet<String>,
    /// Ids of containers and uids of pods that are ended by us.
    ending: HashSet<String>,
    /// Somebody says so.
    told: bool,
}

impl Watch {
    fn expected(&self) -> MutexGuard<'_, Expected> {
        // Each change is one call on a map, so a panic elsewhere leaves nothing half done.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the end of this is to be told. Before it starts, lest a short life be missed.
    pub(super) fn expect_container(&self, id: &str, pod: &Uid) {
        self.expected().containers.insert(id.to_owned(), pod.clone());
    }

    pub(super) fn expect_sandbox(&self, id: &str, pod: &Uid) {
        self.expected().sandboxes.insert(id.to_owned(), pod.clone());
    }

    /// Its end was told, or nobody is to hear of it; says whether it was expected.
    pub(super) fn forget_container(&self, id: &str) -> Option<Uid> {
        let mut expected = self.expected();
        expected.ending.remove(id);
        expected.containers.remove(id)
    }

    /// This container, or pod, is about to be ended by us.
    pub(super) fn ending(&self, id: &str) {
        self.expected().ending.insert(id.to_owned());
    }

    /// It is.
    pub(super) fn ended(&self, id: &str) {
        self.expected().ending.remove(id);
    }

    /// Whether a container may have been ended by the kernel for lack of memory, of which the runtime hears on its own.
    fn is_strange(&self, container: &ContainerStatus) -> bool {
        let ContainerState::Exited(exit) = &container.state else { return false };
        let expected = self.expected();
        let ours = |id: &str| expected.ending.contains(id);
        exit.signal == Some(KILL)
            && !exit.oom_killed
            && expected.containers.contains_key(&container.id.0)
            && !ours(&container.id.0)
            && !ours(container.pod.as_str())
    }

    pub(super) fn forget_sandbox(&self, id: &str) -> Option<Uid> {
        self.expected().sandboxes.remove(id)
    }

    /// Something says that this has ended.
    fn heard(&self, id: &str) {
        let mut expected = self.expected();
        if expected.containers.contains_key(id) || expected.sandboxes.contains_key(id) {
            expected.ended.insert(id.to_owned());
            self.wake.notify_one();
        }
    }

    /// Whether something that is said to have ended is not known as ended yet.
    fn is_behind(&self) -> bool {
        let expected = &mut *self.expected();
        let (containers, sandboxes) = (&expected.containers, &expected.sandboxes);
        expected.ended.retain(|id| containers.contains_key(id) || sandboxes.contains_key(id));
        !expected.ended.is_empty()
    }
}

impl Driver {
    /// Every container. Tells the ends that this shows.
    pub(super) async fn relist(self: &Arc<Self>) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let mut known = self.watch.known.lock().await;
        // What begins meanwhile may not be in the listing.
        let (containers, sandboxes) = {
            let expected = self.watch.expected();
            (expected.containers.clone(), expected.sandboxes.clone())
        };
        let request = proto::ListContainersRequest {
            filter: Some(proto::ContainerFilter { label_selector: labels::selector(&self.root) }),
        };
        let listed: Result<proto::ListContainersResponse, Fault> =
            self.client.runtime("ListContainers", &request, SHORT).await;
        let listed = listed.map_err(fault("list the runtime's containers"))?.containers;
        known.retain(|id, _| listed.iter().any(|found| found.id == *id));
        let mut all = Vec::with_capacity(listed.len());
        for found in &listed {
            let status = match known.get(&found.id) {
                Some((state, status)) if *state == found.state => Some(status.clone()),
                _ => self.inspect(&found.id).await?,
            };
            let Some(mut status) = status else { continue };
            for _ in 0..OOM_LOOKS {
                if !self.watch.is_strange(&status) {
                    break;
                }
                tokio::time::sleep(OOM_LOOK).await;
                status = self.inspect(&found.id).await?.unwrap_or(status);
            }
            known.insert(found.id.clone(), (found.state, status.clone()));
            if let ContainerState::Exited(exit) = &status.state
                && containers.contains_key(&found.id)
                && let Some(pod) = self.watch.forget_container(&found.id)
            {
                let (id, exit) = (status.id.clone(), exit.clone());
                // Sending fails only when nobody listens.
                let _ = self.events.send(RuntimeEvent::Exited { pod, id, exit });
            }
            all.push(status);
        }
        let gone = containers.keys().filter(|id| !listed.iter().any(|found| found.id == **id));
        for id in gone {
            if let Some(pod) = self.watch.forget_container(id) {
                let (id, exit) = (ContainerId(id.clone()), status::vanished());
                let _ = self.events.send(RuntimeEvent::Exited { pod, id, exit });
            }
        }
        if !sandboxes.is_empty() {
            let ready: HashSet<String> =
                self.sandboxes(None).await?.into_iter().filter(|of| of.ready).map(|of| of.id).collect();
            for id in sandboxes.keys().filter(|id| !ready.contains(*id)) {
                if let Some(pod) = self.watch.forget_sandbox(id) {
                    tokio::spawn(lost(Arc::clone(self), pod));
                }
            }
        }
        Ok(all)
    }

    /// What a container is like; `None` when it is none of this root's.
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<ContainerStatus>, RuntimeError> {
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let asked: Result<proto::ContainerStatusResponse, Fault> =
            self.client.runtime("ContainerStatus", &request, SHORT).await;
        match asked {
            Ok(found) => Ok(status::container(found, &self.root)),
            Err(fault) if fault.is_absent() => Ok(None),
            Err(other) => Err(other.of(format!("look at container {id}"))),
        }
    }

    /// What a container asked for to be stopped with, if it did.
    pub(super) async fn stop_signal(&self, id: &str) -> Option<String> {
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let asked: Result<proto::ContainerStatusResponse, Fault> =
            self.client.runtime("ContainerStatus", &request, SHORT).await;
        status::stop_signal(&asked.ok()?)
    }
}

/// Nothing can run in a pod whose namespaces are nobody's: its containers end, too.
fn lost(driver: Arc<Driver>, pod: Uid) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    // First, lest somebody starts the next life of a container in it when that is told to have ended.
    let _ = driver.events.send(RuntimeEvent::SandboxLost { pod: pod.clone() });
    // Boxed: it lists again, and it is a listing that begins it.
    Box::pin(async move {
        let ended = async {
            let runs = |of: &ContainerStatus| of.pod == pod && of.state == ContainerState::Running;
            for container in driver.relist().await?.into_iter().filter(runs) {
                driver.kill(&container.id).await?;
            }
            driver.relist().await
        };
        if let Err(error) = ended.await {
            tracing::warn!(%pod, %error, "containers of a lost sandbox may still run");
        }
    })
}

impl Driver {
    /// Kills a container, and returns once it is dead.
    pub(super) async fn kill(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.watch.ending(&id.0);
        let request = proto::StopContainerRequest { container_id: id.0.clone(), timeout: 0 };
        let stopped = self.client.runtime("StopContainer", &request, LONG).await;
        ended(stopped).map_err(fault(format!("kill container {id}")))
    }
}

/// Takes over what an earlier process left.
pub(super) async fn adopt(driver: &Arc<Driver>) -> Result<(), RuntimeError> {
    for sandbox in driver.sandboxes(None).await?.into_iter().filter(|sandbox| sandbox.ready) {
        driver.watch.expect_sandbox(&sandbox.id, &sandbox.uid);
    }
    for container in driver.relist().await? {
        if container.state == ContainerState::Running {
            driver.watch.expect_container(&container.id.0, &container.pod);
        }
    }
    Ok(())
}

/// Notices ends, for as long as the runtime is driven.
pub(super) async fn follow(driver: Arc<Driver>) {
    tokio::spawn(listen(Arc::clone(&driver)));
    loop {
        let pause = if driver.watch.expected().told { SLOW_POLL } else { POLL };
        // Either way there is something to look at.
        let _ = tokio::time::timeout(pause, driver.watch.wake.notified()).await;
        for pause in SETTLE {
            tokio::time::sleep(pause).await;
            if let Err(error) = driver.relist().await {
                tracing::debug!(%error, "the container runtime is not listed");
            }
            if !driver.watch.is_behind() {
                break;
            }
        }
        driver.watch.expected().ended.clear();
    }
}

/// Where a runtime tells ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The interface's own.
    Interface,
    /// containerd's, which versions before 1.7 have alone.
    Containerd,
}

async fn listen(driver: Arc<Driver>) {
    let sources = match driver.name {
        "containerd" => vec![Source::Containerd, Source::Interface],
        _ => vec![Source::Interface],
    };
    for source in sources {
        loop {
            match hear(&driver, source).await {
                Err(fault) if fault.is_unimplemented() => break,
                heard => {
                    if let Err(fault) = heard {
                        tracing::debug!(error = fault.text(), "the container runtime's events broke off");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

async fn hear(driver: &Driver, source: Source) -> Result<(), Fault> {
    let mut messages = match source {
        Source::Interface => {
            let path = "/runtime.v1.RuntimeService/GetContainerEvents";
            driver.client.stream(path, &proto::Empty {}).await?
        }
        Source::Containerd => {
            let filters = vec![r#"topic=="/tasks/exit""#.to_owned()];
            let path = "/containerd.services.events.v1.Events/Subscribe";
            driver.client.stream(path, &proto::SubscribeRequest { filters }).await?
        }
    };
    let mut first = true;
    while let Some(message) = messages.next().await.map_err(Fault::Broken)? {
        if std::mem::take(&mut first) {
            driver.watch.expected().told = true;
        }
        if let Some(id) = ended_in(source, &message) {
            driver.watch.heard(&id);
        }
    }
    driver.watch.expected().told = false;
    let (code, text) = messages.end().await.map_err(Fault::Broken)?;
    if code == 0 { Ok(()) } else { Err(Fault::Refused(code, text)) }
}

/// Which container, or sandbox, a message tells about.
fn ended_in(source: Source, message: &[u8]) -> Option<String> {
    match source {
        Source::Interface => Some(proto::ContainerEventResponse::decode(message).ok()?.container_id),
        Source::Containerd => {
            let exit = proto::Envelope::decode(message).ok()?.event?.value;
            let exit = proto::TaskExit::decode(&exit[..]).ok()?;
            (exit.id.is_empty() || exit.id == exit.container_id).then_some(exit.container_id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_program_run_in_a_container_is_not_the_containers() {
        let event = |container_id: &str, id: &str| {
            let value = proto::TaskExit { container_id: container_id.into(), id: id.into() }.encode_to_vec();
            let event = Some(proto::Any { value });
            ended_in(
                Source::Containerd,
                &proto::Envelope { topic: "/tasks/exit".into(), event }.encode_to_vec(),
            )
        };
        assert_eq!(event("c", "c").as_deref(), Some("c"));
        assert_eq!(event("c", "probe"), None);
    }

    #[test]
    fn what_is_not_expected_wakes_nobody() {
        let watch = Watch::default();
        watch.heard("c");
        assert!(!watch.is_behind());
        watch.expect_container("c", &"pod".into());
        watch.heard("c");
        assert!(watch.is_behind());
        assert_eq!(watch.forget_container("c"), Some("pod".into()));
        assert!(!watch.is_behind());
    }
}
