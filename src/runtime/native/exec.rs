//! The driver's part in running a program in a container: asking the pod's shim.
//!
//! Owns: the checks before and the bound on the wait. The program is a child of the shim and does not know of this
//! process; when this process ends meanwhile, the program runs on until its time is up.

use std::{sync::Arc, time::Duration};

use super::{
    client::Client,
    driver::Driver,
    pod::Pod,
    protocol::{self, Call, MAX_FRAME, Reply, Request},
};
use crate::runtime::{ContainerId, ContainerState, ExecOutput, LONGEST_EXEC, RuntimeError};

/// What a shim may need beyond the program's time, to start it and to see it die.
const MARGIN: Duration = Duration::from_secs(30);
impl Driver {
    pub(super) async fn exec_sync(
        self: &Arc<Driver>,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let (_, client) = self.ready_to_exec(id)?;
        if command.is_empty() {
            return Err(RuntimeError::Start("exec: no command".to_owned()));
        }
        let timeout = timeout.min(LONGEST_EXEC);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Exec { id: id.clone(), command, timeout_ms };
        check_length(&request)?;
        match client.call_within(request, timeout + MARGIN).await? {
            Reply::Ran { code, timed_out, stdout, stderr } => {
                Ok(ExecOutput { code, timed_out, stdout: stdout.0, stderr: stderr.0 })
            }
            Reply::Done | Reply::Ready { .. } | Reply::Started { .. } => {
                Err(refused(id, "the shim gave no output"))
            }
        }
    }

    /// The pod of a container in which programs can be run now, and the way to its shim.
    pub(super) fn ready_to_exec(&self, id: &ContainerId) -> Result<(Arc<Pod>, Client), RuntimeError> {
        let pod = self.container_pod(id)?;
        if pod.state_of(id) != Some(ContainerState::Running) {
            return Err(refused(id, "it is not running"));
        }
        let client = pod.client()?;
        if !pod.execs() {
            let cause = "its pod was started by an older version, which cannot; make the pod anew";
            return Err(refused(id, cause));
        }
        Ok((pod, client))
    }
}

fn refused(id: &ContainerId, cause: &str) -> RuntimeError {
    RuntimeError::System { operation: format!("run a program in container {id}"), cause: cause.to_owned() }
}

/// A request that is no frame is not sent.
pub(super) fn check_length(request: &Request) -> Result<(), RuntimeError> {
    let call = Call { seq: u64::MAX, request: request.clone() };
    if protocol::encode(&call).map_or(usize::MAX, |frame| frame.len()) > MAX_FRAME {
        return Err(RuntimeError::Start("exec: argument list too long".to_owned()));
    }
    Ok(())
}
