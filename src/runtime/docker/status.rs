//! The engine's answers in the trait's words.
//!
//! Owns: reading states, times and exits out of what the engine tells of a container. Pure. The engine tells a program's
//! end as a number only, 128 + N for signal N: such a number is taken as that signal.

use bollard::models::{ContainerInspectResponse, ContainerState as EngineState, ContainerStateStatusEnum};

use super::labels;
use crate::runtime::{ContainerId, ContainerState, ContainerStatus, Exit, SandboxStatus};

/// Milliseconds since the epoch of the engine's RFC 3339 text; 0 for its "never" (`0001-01-01T00:00:00Z`).
pub(super) fn ms(text: Option<&str>) -> i64 {
    let time = text.and_then(|text| humantime::parse_rfc3339(text).ok());
    let age = time.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    age.map_or(0, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX))
}

/// An exit out of the number that the engine tells.
pub(super) fn exit(code: i64, oom_killed: bool, finished_ms: i64) -> Exit {
    let code = i32::try_from(code).unwrap_or(-1);
    let signal = Some(code - 128).filter(|signal| (1..=LAST_SIGNAL).contains(signal));
    Exit { code, signal, oom_killed, finished_ms, unseen: false }
}

const LAST_SIGNAL: i32 = 64;

/// Where a container is in its life.
pub(super) fn state(state: &EngineState) -> ContainerState {
    if state.running == Some(true) {
        return ContainerState::Running;
    }
    // What could not be started has an exit code, but never ran.
    let started = ms(state.started_at.as_deref()) > 0;
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) | None if !started => ContainerState::Created,
        _ => ContainerState::Exited(exit(
            state.exit_code.unwrap_or(-1),
            state.oom_killed == Some(true),
            ms(state.finished_at.as_deref()),
        )),
    }
}

/// A container of ours; `None` when it is none.
pub(super) fn container(found: &ContainerInspectResponse) -> Option<ContainerStatus> {
    let labels = labels::Container::read(found.config.as_ref()?.labels.as_ref()?)?;
    let engine = found.state.as_ref()?;
    let state = state(engine);
    Some(ContainerStatus {
        id: ContainerId(found.id.clone()?),
        pod: labels.pod,
        name: labels.name,
        attempt: labels.attempt,
        image: labels.image,
        image_id: match labels.image_ref.is_empty() {
            true => found.image.clone().unwrap_or_default(),
            false => labels.image_ref,
        },
        started_ms: match state {
            ContainerState::Created => 0,
            _ => ms(engine.started_at.as_deref()),
        },
        pid: engine.pid.and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0),
        state,
    })
}

/// A container of which more is known: how it ended.
pub(super) fn ended(status: ContainerStatus, exit: Option<Exit>) -> ContainerStatus {
    match exit {
        Some(exit) => ContainerStatus { state: ContainerState::Exited(exit), pid: None, ..status },
        None => status,
    }
}

/// A sandbox with what is known of its container.
pub(super) fn sandbox(sandbox: &labels::Sandbox, running: bool, address: Option<&str>) -> SandboxStatus {
    SandboxStatus {
        uid: sandbox.uid.clone(),
        namespace: sandbox.namespace.clone(),
        name: sandbox.name.clone(),
        ready: running,
        ip: address.filter(|_| !sandbox.host_network).and_then(|address| address.parse().ok()),
        created_ms: sandbox.created_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_never_is_zero() {
        assert_eq!(ms(Some("1970-01-01T00:00:01.5Z")), 1500);
        assert_eq!(ms(Some("2024-05-06T07:08:09.123456789Z")), 1_714_979_289_123);
        for never in [Some("0001-01-01T00:00:00Z"), Some(""), Some("soon"), None] {
            assert_eq!(ms(never), 0, "{never:?}");
        }
    }

    #[test]
    fn exit_codes_beyond_128_are_signals_up_to_the_last_one() {
        for (code, signal) in
            [(0, None), (1, None), (128, None), (137, Some(9)), (143, Some(15)), (192, Some(64)), (255, None)]
        {
            assert_eq!(exit(code, false, 5).signal, signal, "{code}");
        }
    }

    #[test]
    fn states_follow_the_engine_and_a_failed_start_never_ran() {
        let engine = |status, running, started: &str| EngineState {
            status: Some(status),
            running: Some(running),
            started_at: Some(started.into()),
            finished_at: Some("1970-01-01T00:00:02Z".into()),
            exit_code: Some(3),
            ..EngineState::default()
        };
        let (never, once) = ("0001-01-01T00:00:00Z", "1970-01-01T00:00:01Z");
        assert_eq!(state(&engine(ContainerStateStatusEnum::CREATED, false, never)), ContainerState::Created);
        assert_eq!(state(&engine(ContainerStateStatusEnum::RUNNING, true, once)), ContainerState::Running);
        assert_eq!(state(&engine(ContainerStateStatusEnum::PAUSED, true, once)), ContainerState::Running);
        let exited = ContainerState::Exited(exit(3, false, 2000));
        assert_eq!(state(&engine(ContainerStateStatusEnum::EXITED, false, once)), exited);
        assert_eq!(state(&engine(ContainerStateStatusEnum::DEAD, false, once)), exited);
    }
}
