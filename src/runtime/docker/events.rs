//! The engine's events: what ended.
//!
//! Owns: following the event stream over restarts of the engine, and telling ends. Invariant: no end is missed. After
//! each connection, what was running is compared with what runs; and the stream begins a little in the past, since the
//! engine subscribes us after it has answered. [`super::ends`] sees to it that none is told twice.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{
    models::{ContainerSummaryStateEnum, EventMessage},
    query_parameters::EventsOptions,
};
use futures_util::StreamExt as _;

use super::{
    driver::{Driver, is_running},
    ends::{Memory, Telling},
    labels::{self, Kind},
    status,
};
use crate::runtime::{ContainerId, ContainerState, Exit, RuntimeError, RuntimeEvent};

/// What is listened to: a container's end, and that it ran out of memory, which comes first if it comes.
const DIE: &str = "die";
const OOM: &str = "oom";

/// Pauses between attempts to reach the engine again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How far into the past the stream begins.
const OVERLAP: Duration = Duration::from_secs(5);

/// Notes what runs, so that its end will be told, and goes on with the logs.
pub(super) async fn adopt(driver: &Arc<Driver>) -> Result<(), RuntimeError> {
    for kind in [Kind::Sandbox, Kind::Container] {
        for found in driver.summaries(kind, None).await? {
            let (running, begun) =
                (is_running(&found), found.state != Some(ContainerSummaryStateEnum::CREATED));
            let (Some(id), Some(labels)) = (found.id, found.labels) else { continue };
            let Some((_, pod)) = labels::kind_and_pod(&labels) else { continue };
            driver.pods.inherited(&pod);
            if running {
                driver.ends.expect(&id, kind, &pod);
                driver.ends.limited(&id);
            }
            // The log of what was not started yet begins with its start.
            if let Some(container) = labels::Container::read(&labels).filter(|_| begun) {
                super::logs::resume(driver, id, container);
            }
        }
    }
    Ok(())
}

/// Follows the engine for ever.
pub(super) async fn follow(driver: Arc<Driver>) {
    let mut pause = FIRST_PAUSE;
    let mut since = SystemTime::now();
    loop {
        let begun = SystemTime::now();
        if let Err(error) = listen(&driver, since).await {
            tracing::warn!(%error, "lost the docker engine's events; trying again");
        }
        // A connection that held for a while is not part of a row of failures.
        let held = begun.elapsed().unwrap_or_default() > LONGEST_PAUSE;
        pause = if held { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        since = begun;
        tokio::time::sleep(pause).await;
    }
}

async fn listen(driver: &Arc<Driver>, since: SystemTime) -> Result<(), bollard::errors::Error> {
    let since =
        since.checked_sub(OVERLAP).unwrap_or(UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut filters = labels::filter(&driver.root, &[]);
    filters.insert("type".to_owned(), vec!["container".to_owned()]);
    filters.insert("event".to_owned(), [DIE, OOM].map(str::to_owned).into());
    let options =
        EventsOptions { since: Some(since.as_secs().to_string()), until: None, filters: Some(filters) };
    let mut events = Box::pin(driver.docker.events(Some(options)));
    if let Err(error) = compare(driver).await {
        tracing::debug!(%error, "cannot compare with what runs");
    }
    while let Some(event) = events.next().await {
        let event = event?;
        let Some(id) = event.actor.as_ref().and_then(|actor| actor.id.clone()) else { continue };
        if event.action.as_deref() == Some(OOM) {
            driver.ends.exhausted(&id);
        } else {
            end(driver, &id, Some(event));
        }
    }
    Ok(())
}

/// Tells the end of what ran and does not run any more.
async fn compare(driver: &Arc<Driver>) -> Result<(), RuntimeError> {
    // In this order: what begins in between is in the listing, or not yet expected.
    let expected = driver.ends.expected();
    let mut states: HashMap<String, bool> = HashMap::new();
    for kind in [Kind::Sandbox, Kind::Container] {
        for found in driver.summaries(kind, None).await? {
            let running = is_running(&found);
            // What was not started yet has not ended.
            let fresh = found.state == Some(ContainerSummaryStateEnum::CREATED);
            states.extend(found.id.map(|id| (id, running || fresh)));
        }
    }
    for id in expected.into_iter().filter(|id| states.get(id) != Some(&true)) {
        end(driver, &id, None);
    }
    Ok(())
}

/// Tells an end, if somebody waits for it, without holding up the others.
fn end(driver: &Arc<Driver>, id: &str, event: Option<EventMessage>) {
    let Some(telling) = driver.ends.begin_telling(id) else { return };
    let (driver, id) = (Arc::clone(driver), id.to_owned());
    tokio::spawn(async move {
        match telling.kind {
            Kind::Container => container_ended(&driver, &id, telling, event).await,
            Kind::Sandbox => sandbox_ended(&driver, &id, telling).await,
        }
        driver.ends.forget(&id);
    });
}

async fn container_ended(driver: &Driver, id: &str, telling: Telling, event: Option<EventMessage>) {
    let state = |found: Result<Option<_>, _>| Some(status::container(found.ok()?.as_ref()?)?.state);
    let memory = telling.memory;
    // The engine answers for a container when it has taken it apart, and what comes next in the pod would wait for that: it is
    // asked only for what its event does not tell.
    let told = match &event {
        Some(event) if memory != Memory::Limited => {
            Some(ContainerState::Exited(of_event(Some(event), memory)))
        }
        _ => state(driver.inspect(id).await),
    };
    let exit = match told {
        // An engine may tell an end before it has noted it.
        Some(ContainerState::Running) => state(driver.inspect(id).await),
        noted => noted,
    };
    let exit = match exit {
        Some(ContainerState::Exited(exit)) => exit,
        // Removed meanwhile.
        None => of_event(event.as_ref(), memory),
        // It never ran: who started it is told.
        Some(ContainerState::Created | ContainerState::Running) => return,
    };
    driver.ends.exits().insert(id.to_owned(), Some(exit.clone()));
    // Sending fails only when nobody listens.
    let _ =
        driver.events.send(RuntimeEvent::Exited { pod: telling.pod, id: ContainerId(id.to_owned()), exit });
}

/// What the event itself tells; what is gone without one was killed.
fn of_event(event: Option<&EventMessage>, memory: Memory) -> Exit {
    const KILLED: i64 = 137;
    let attributes = event.and_then(|event| event.actor.as_ref()?.attributes.as_ref());
    let code = attributes.and_then(|attributes| attributes.get("exitCode")?.parse().ok()).unwrap_or(KILLED);
    let nanos = event.and_then(|event| event.time_nano).unwrap_or(0);
    status::exit(
        code,
        memory == Memory::Exhausted,
        if nanos > 0 { nanos / 1_000_000 } else { super::now_ms() },
    )
}

/// Nothing can run in a pod whose namespaces are nobody's: its containers end, too.
async fn sandbox_ended(driver: &Arc<Driver>, id: &str, telling: Telling) {
    driver.ends.exits().insert(id.to_owned(), None);
    if driver.has_other_sandbox(&telling.pod, id) {
        return;
    }
    // First, lest somebody starts the next life of a container in it when that is told to have ended.
    let _ = driver.events.send(RuntimeEvent::SandboxLost { pod: telling.pod.clone() });
    if let Err(error) = driver.end_containers(&telling.pod).await {
        tracing::warn!(pod = %telling.pod, %error, "containers of a lost sandbox may still run");
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::EventActor;

    use super::*;

    #[test]
    fn an_event_alone_tells_code_and_time() {
        let attributes = HashMap::from([("exitCode".to_owned(), "3".to_owned())]);
        let event = EventMessage {
            actor: Some(EventActor { attributes: Some(attributes), ..EventActor::default() }),
            time_nano: Some(5_000_000),
            ..EventMessage::default()
        };
        let exit = of_event(Some(&event), Memory::Unlimited);
        assert_eq!((exit.code, exit.signal, exit.oom_killed, exit.finished_ms), (3, None, false, 5));
        assert!(of_event(Some(&event), Memory::Exhausted).oom_killed);
        assert_eq!(of_event(None, Memory::Limited).signal, Some(9), "it vanished");
    }
}
