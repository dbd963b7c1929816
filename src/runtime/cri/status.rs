//! A CRI runtime's answers in the trait's words.
//!
//! Owns: reading states and exits out of what is told of a container. Pure. The interface tells a program's end as a
//! number only, 128 + N for signal N: such a number is taken as that signal.

use super::{
    labels::{self, NANOS_PER_MS},
    proto::{ContainerStatus as Found, ContainerStatusResponse, state},
};
use crate::runtime::{ContainerId, ContainerState, ContainerStatus, Exit};

/// An exit out of the number that a runtime tells.
pub(super) fn exit(code: i32, oom_killed: bool, finished_ms: i64) -> Exit {
    let signal = Some(code - 128).filter(|signal| (1..=LAST_SIGNAL).contains(signal));
    Exit { code, signal, oom_killed, finished_ms, unseen: false }
}

const LAST_SIGNAL: i32 = 64;

/// The end of what is gone without one: it was killed.
pub(super) fn vanished() -> Exit {
    Exit { unseen: true, ..exit(128 + 9, false, super::now_ms()) }
}

/// A container of a root; `None` when it is another's.
pub(super) fn container(answer: ContainerStatusResponse, root: &str) -> Option<ContainerStatus> {
    let found = answer.status?;
    if found.labels.get(labels::ROOT).map(String::as_str) != Some(root) {
        return None;
    }
    let (pod, name, record) = labels::container(&found.labels, &found.annotations)?;
    let state = state(&found);
    let running = state == ContainerState::Running;
    Some(ContainerStatus {
        pod,
        name,
        attempt: record.attempt,
        image: record.image,
        image_id: if record.image_id.is_empty() { found.image_ref } else { record.image_id },
        started_ms: if state == ContainerState::Created { 0 } else { found.started_at / NANOS_PER_MS },
        pid: answer.info.get("info").filter(|_| running).and_then(|info| pid(info)),
        id: ContainerId(found.id),
        state,
    })
}

/// What a container asked for to be stopped with. The interface has had a field for it since Kubernetes 1.33, which
/// runtimes before containerd 2.2 pass over in silence, so this is kept by us and [sent](super::containers) by us.
pub(super) fn stop_signal(answer: &ContainerStatusResponse) -> Option<String> {
    let found = answer.status.as_ref()?;
    labels::container(&found.labels, &found.annotations)?.2.stop_signal
}

fn state(found: &Found) -> ContainerState {
    match found.state {
        state::RUNNING => ContainerState::Running,
        state::EXITED => ContainerState::Exited(exit(
            found.exit_code,
            found.reason == "OOMKilled",
            found.finished_at / NANOS_PER_MS,
        )),
        _ => ContainerState::Created,
    }
}

/// Runtimes tell it in what they say beyond the interface.
fn pid(info: &str) -> Option<i32> {
    let info: serde_json::Value = serde_json::from_str(info).ok()?;
    info.get("pid")?.as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(state: i32, root: &str) -> ContainerStatusResponse {
        let sandbox = labels::Sandbox {
            id: "s".into(),
            uid: "u".into(),
            namespace: "ns".into(),
            name: "web".into(),
            attempt: 0,
            ready: true,
            created_ms: 0,
            record: labels::SandboxRecord::default(),
        };
        let config = crate::runtime::ContainerConfig { name: "c".into(), ..Default::default() };
        ContainerStatusResponse {
            status: Some(Found {
                id: "1".into(),
                state,
                started_at: 1_500_000_000,
                finished_at: 2_000_000_000,
                exit_code: 137,
                reason: "OOMKilled".into(),
                labels: labels::of_container(root, &sandbox, &config),
                ..Found::default()
            }),
            info: [("info".to_owned(), r#"{"sandboxID": "s", "pid": 42}"#.to_owned())].into(),
        }
    }

    #[test]
    fn states_follow_the_runtime() {
        let created = container(answer(state::CREATED, "/r"), "/r").unwrap();
        assert_eq!((created.state, created.started_ms, created.pid), (ContainerState::Created, 0, None));
        let running = container(answer(state::RUNNING, "/r"), "/r").unwrap();
        assert_eq!(
            (running.state, running.started_ms, running.pid),
            (ContainerState::Running, 1500, Some(42))
        );
        let exited = container(answer(state::EXITED, "/r"), "/r").unwrap();
        let end = Exit { code: 137, signal: Some(9), oom_killed: true, finished_ms: 2000, unseen: false };
        assert_eq!((exited.state, exited.pid), (ContainerState::Exited(end), None));
    }

    #[test]
    fn anothers_container_is_none() {
        assert!(container(answer(state::RUNNING, "/other"), "/r").is_none());
    }
}
