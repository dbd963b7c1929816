//! Programs run in simulated containers.
//!
//! Owns: how long such a program takes and what it leaves. The built-in program does as told; any other ends at once with
//! the code that its container gives such programs. Invariant: none outlives its container or its time.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Behaviour, SimMachine, machine::BY_SIGNAL};
use crate::runtime::{
    ContainerId, ContainerState, EXEC_OUTPUT_BYTES, ExecOutput, RuntimeError, images::normalize,
};

pub(super) async fn run(
    machine: &Arc<SimMachine>,
    id: &ContainerId,
    command: &[String],
    timeout: Duration,
) -> Result<ExecOutput, RuntimeError> {
    let (behaviour, mut events) = {
        let mut state = machine.look();
        let events = state.events.subscribe();
        let container = state.container_mut(id)?;
        if container.state != ContainerState::Running {
            return Err(RuntimeError::System {
                operation: format!("run a program in container {id}"),
                cause: "it is not running".to_owned(),
            });
        }
        let (image, code) = (normalize(&container.image)?, container.behaviour.exec_code);
        let at_once =
            || Behaviour { exit_after: Some(Duration::ZERO), exit_code: code, ..Behaviour::default() };
        (Behaviour::of_program(&image, command, "").unwrap_or_else(at_once), events)
    };
    if let Some(why) = behaviour.fail_start {
        return Err(RuntimeError::Start(why));
    }
    let mut output = ExecOutput {
        code: behaviour.signal.map_or(behaviour.exit_code, |signal| BY_SIGNAL + signal),
        timed_out: false,
        stdout: text(&behaviour.stdout),
        stderr: text(&behaviour.stderr),
    };
    let killed = BY_SIGNAL + nix::libc::SIGKILL;
    let lasts = behaviour.exit_after.filter(|after| *after < timeout);
    // A time beyond the clock's is none.
    let end = Instant::now().checked_add(lasts.unwrap_or(timeout));
    loop {
        let runs = machine.look().container_mut(id).is_ok_and(|c| c.state == ContainerState::Running);
        if !runs {
            return Ok(ExecOutput { code: killed, ..output });
        }
        if end.is_some_and(|end| end <= Instant::now()) {
            break;
        }
        // Whatever happened, the state tells.
        match end {
            Some(end) => drop(timeout_at(end, events.recv()).await),
            None => drop(events.recv().await),
        }
    }
    if lasts.is_none() {
        (output.code, output.timed_out) = (killed, true);
    }
    Ok(output)
}

fn text(lines: &[String]) -> Vec<u8> {
    let mut bytes: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    bytes.truncate(EXEC_OUTPUT_BYTES);
    bytes
}
