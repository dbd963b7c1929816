//! Programs run in running containers.
//!
//! Owns: `exec_sync`. Invariant: it returns within its time, also when the program does not end. Limits: the engine's API
//! cannot end such a program, so it is killed by its pid where this process may; otherwise it runs on until it ends by
//! itself or with its container.

use std::time::Duration;

use bollard::{
    container::LogOutput,
    exec::{CreateExecOptions, StartExecResults},
};
use futures_util::StreamExt as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    driver::Driver,
    engine::{fault, start_error},
};
use crate::runtime::{ContainerId, EXEC_OUTPUT_BYTES, ExecOutput, RuntimeError};

/// How long the engine may take to notice the end of a program that was killed or has closed its output.
const SETTLE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Driver {
    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let found = self.expected(id).await?;
        if found.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            return Err(RuntimeError::Start(format!("container {id} is not running")));
        }
        let deadline = tokio::time::Instant::now() + timeout;
        let options = CreateExecOptions {
            cmd: Some(command.clone()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let made = self.docker.create_exec(&id.0, options).await;
        let exec = made.map_err(fault(format!("run a program in container {id}")))?.id;
        let mut result = ExecOutput::default();
        let run = async {
            match self.docker.start_exec(&exec, None).await.map_err(|error| start_error(&error))? {
                StartExecResults::Attached { mut output, .. } => {
                    while let Some(output) = output.next().await {
                        match output.map_err(fault(format!("read from a program in container {id}")))? {
                            LogOutput::StdErr { message } => keep(&mut result.stderr, &message),
                            other => keep(&mut result.stdout, other.as_ref()),
                        }
                    }
                }
                StartExecResults::Detached => {}
            }
            Ok::<(), RuntimeError>(())
        };
        match tokio::time::timeout_at(deadline, run).await {
            Ok(ran) => ran?,
            Err(_) => {
                result.timed_out = true;
                result.code = 128 + Signal::SIGKILL as i32;
                self.end_exec(&exec).await;
                return Ok(result);
            }
        }
        result.code = self.exec_code(&exec, deadline).await?.unwrap_or_else(|| {
            result.timed_out = true;
            128 + Signal::SIGKILL as i32
        });
        if result.timed_out {
            self.end_exec(&exec).await;
        }
        not_started(&command, &result).map_or(Ok(result), Err)
    }

    /// Waits for the code of a program that closed its output; `None` when it runs on.
    pub(super) async fn exec_code(
        &self,
        exec: &str,
        deadline: tokio::time::Instant,
    ) -> Result<Option<i32>, RuntimeError> {
        loop {
            let found =
                self.docker.inspect_exec(exec).await.map_err(fault("look at a program in a container"))?;
            if found.running != Some(true)
                && let Some(code) = found.exit_code
            {
                return Ok(Some(i32::try_from(code).unwrap_or(-1)));
            }
            if tokio::time::Instant::now() >= deadline {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Kills a program whose time is up.
    async fn end_exec(&self, exec: &str) {
        let pid = self.docker.inspect_exec(exec).await.ok().and_then(|found| {
            found.pid.filter(|_| found.running == Some(true)).and_then(|pid| i32::try_from(pid).ok())
        });
        let Some(pid) = pid.filter(|pid| *pid > 1) else { return };
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            tracing::warn!(pid, %error, "a program whose time is up runs on in its container");
            return;
        }
        let ended = async {
            while self.docker.inspect_exec(exec).await.is_ok_and(|found| found.running == Some(true)) {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let _ = tokio::time::timeout(SETTLE, ended).await;
    }
}

/// Keeps as much as is kept.
fn keep(into: &mut Vec<u8>, bytes: &[u8]) {
    let room = EXEC_OUTPUT_BYTES.saturating_sub(into.len());
    into.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// How that begins which the engine prints in a program's place when it cannot be started.
pub(super) const NOT_STARTED: &str = "OCI runtime exec failed";

/// What the engine prints in a program's place when it cannot be started.
pub(super) fn not_started(command: &[String], result: &ExecOutput) -> Option<RuntimeError> {
    let text =
        String::from_utf8_lossy(if result.stdout.is_empty() { &result.stderr } else { &result.stdout });
    let failed = matches!(result.code, 126 | 127) && text.starts_with(NOT_STARTED) && !command.is_empty();
    failed.then(|| {
        start_error(&bollard::errors::Error::DockerResponseServerError {
            status_code: 500,
            message: text.trim().to_owned(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_beyond_what_is_kept_is_dropped() {
        let mut kept = vec![0; EXEC_OUTPUT_BYTES - 1];
        keep(&mut kept, b"ab");
        keep(&mut kept, b"c");
        assert_eq!((kept.len(), kept.last()), (EXEC_OUTPUT_BYTES, Some(&b'a')));
    }

    #[test]
    fn the_engines_words_in_a_programs_place_are_a_failed_start() {
        let said = |code, text: &str| ExecOutput { code, stdout: text.into(), ..ExecOutput::default() };
        let command = ["/none".to_owned()];
        let text = "OCI runtime exec failed: exec failed: container_linux.go:380: starting container process caused: \
                    exec: \"/none\": stat /none: no such file or directory: unknown\r\n";
        let error = not_started(&command, &said(126, text)).unwrap();
        assert_eq!(
            error.to_string(),
            "failed to start: exec: \"/none\": stat /none: no such file or directory"
        );
        assert!(not_started(&command, &said(126, "my own words")).is_none());
        assert!(not_started(&command, &said(0, text)).is_none());
    }
}
