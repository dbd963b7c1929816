//! Containers' lives: create, start, stop, remove; and programs run in them.
//!
//! Owns: the order of steps. Invariants: a container is started at most once; what ends something succeeds when it has
//! ended already.

use std::{sync::Arc, time::Duration};

use super::{
    client::{Fault, LONG, SHORT, ended, fault},
    driver::{Driver, any_attempt, is_reserved},
    labels::{Sandbox, SandboxRecord},
    proto, spec,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerResources, ContainerState, ContainerStatus, EXEC_OUTPUT_BYTES,
        ExecOutput, RuntimeError, SandboxConfig,
        native::{send_signal, user::check_non_root},
        signal, within,
    },
};

/// Beyond a grace, or the time of a program that is run: the runtime kills, and has to notice.
const SETTLE: Duration = Duration::from_secs(60);
/// How often is looked whether a container that was sent a signal of ours has ended.
const END_PAUSE: Duration = Duration::from_millis(10);
/// A runtime that finds nothing to stop any more answers at once; it has noted the end by then.
const NOTED_WITHIN: Duration = Duration::from_secs(2);
/// SIGKILL's number, as a program's end.
const KILLED: i32 = 128 + 9;

impl Driver {
    pub(super) async fn create_container(
        &self,
        pod: &Uid,
        mut config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        if config.security.strict_groups {
            return Err(RuntimeError::Config(
                "supplementalGroupsPolicy Strict: the cri runtime cannot leave out the groups of the image"
                    .into(),
            ));
        }
        within::resolve(&mut config.mounts).await?;
        if let Some(profile) = &config.security.seccomp_profile {
            tokio::fs::metadata(profile).await.map_err(|error| {
                RuntimeError::Config(format!("cannot load seccomp profile {}: {error}", profile.display()))
            })?;
        }
        let mut sandboxes = self.sandboxes(Some(pod)).await?;
        sandboxes.sort_by_key(|sandbox| !sandbox.ready);
        let sandbox = sandboxes.into_iter().next();
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?;
        if !sandbox.ready {
            return Err(RuntimeError::SandboxNotReady(pod.clone()));
        }
        let absent = || RuntimeError::ImageNotFound(config.image.clone());
        let image = self.find_image(&config.image).await?.ok_or_else(absent)?;
        check_non_root(&config.security, &image.user).map_err(RuntimeError::Config)?;
        let image = if config.security.user.is_none() { self.with_group(image).await? } else { image };
        let hosts = self.hosts_file(pod);
        let (mut attempt, mut again) = (config.attempt, true);
        loop {
            let request = proto::CreateContainerRequest {
                pod_sandbox_id: sandbox.id.clone(),
                config: Some(spec::container(&self.root, &sandbox, &image, &config, &hosts, attempt)),
                sandbox_config: Some(self.sandbox_config(&sandbox)),
            };
            let made: Result<proto::ContainerId, Fault> =
                self.client.runtime("CreateContainer", &request, LONG).await;
            match made {
                Ok(made) => return Ok(ContainerId(made.container_id)),
                // One life may be made twice, when the first attempt failed late.
                Err(fault) if again && is_reserved(&fault) => (attempt, again) = (any_attempt(), false),
                Err(fault) if fault.is_absent() && fault.text().contains("sandbox") => {
                    return Err(RuntimeError::NotFound(format!("sandbox of pod {pod}")));
                }
                Err(Fault::Refused(_, text)) => return Err(create_error(text)),
                Err(fault) => return Err(fault.of("create a container")),
            }
        }
    }

    /// A sandbox' configuration once more, which runtimes want with each container.
    fn sandbox_config(&self, sandbox: &Sandbox) -> proto::PodSandboxConfig {
        let SandboxRecord { hostname, host_network, host_pid, host_ipc, share_pids, .. } =
            sandbox.record.clone();
        let config = SandboxConfig {
            namespace: sandbox.namespace.clone(),
            name: sandbox.name.clone(),
            uid: sandbox.uid.to_string(),
            hostname,
            host_network,
            host_pid,
            host_ipc,
            share_pids,
            ..SandboxConfig::default()
        };
        spec::sandbox(&self.root, &config, &sandbox.record, None, sandbox.attempt)
    }

    /// A container that has to be there.
    pub(super) async fn expected(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.inspect(&id.0).await?.ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let container = self.expected(id).await?;
        if container.state != ContainerState::Created {
            return Err(RuntimeError::Start(format!("container {id} was started before")));
        }
        self.watch.expect_container(&id.0, &container.pod);
        let request = proto::ContainerId { container_id: id.0.clone() };
        let started: Result<proto::Empty, Fault> =
            self.client.runtime("StartContainer", &request, LONG).await;
        started.map(drop).map_err(|fault| {
            self.watch.forget_container(&id.0);
            let text = fault.text();
            if fault.is_absent() {
                RuntimeError::NotFound(format!("container {id}"))
            } else if is_without_sandbox(&text) {
                RuntimeError::SandboxNotReady(container.pod)
            } else {
                start_error(&text)
            }
        })
    }

    pub(super) async fn stop_container(
        self: &Arc<Self>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let Some(found) = self.inspect(&id.0).await? else { return Ok(()) };
        if found.state == ContainerState::Running {
            self.watch.ending(&id.0);
            let grace = if self.ask_to_end(&found, grace).await { Duration::ZERO } else { grace };
            // The interface counts in seconds, so the exact end of the grace is ours.
            let timeout = seconds(grace);
            let request = proto::StopContainerRequest { container_id: id.0.clone(), timeout };
            let stopping = self.client.runtime("StopContainer", &request, grace.saturating_add(SETTLE));
            tokio::select! {
                stopped = stopping => {
                    ended(stopped).map_err(fault(format!("stop container {id}")))?;
                }
                () = tokio::time::sleep(grace) => self.kill(id).await?,
            }
        }
        let noted = tokio::time::Instant::now() + NOTED_WITHIN;
        loop {
            let runs = |found: &ContainerStatus| found.id == *id && found.state == ContainerState::Running;
            if !self.relist().await?.iter().any(runs) || tokio::time::Instant::now() > noted {
                return Ok(());
            }
            tokio::time::sleep(END_PAUSE).await;
        }
    }

    /// Sends the signal that a container asked for, past the runtime, and waits for its end, at most for the grace.
    /// `false`: it asked for none, or its process cannot be found, so that stopping it is all the runtime's.
    async fn ask_to_end(&self, container: &ContainerStatus, grace: Duration) -> bool {
        if grace.is_zero() {
            return false;
        }
        let Some(name) = self.stop_signal(&container.id.0).await else { return false };
        let ours = |pid: i32| {
            // Another process may have the number by now.
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            groups.contains(&container.id.0)
        };
        let (Some(number), Some(pid)) = (signal::parse(&name), container.pid.filter(|pid| ours(*pid))) else {
            tracing::warn!(container = %container.id, signal = name, "a stop signal cannot be sent");
            return false;
        };
        if let Err(error) = send_signal(pid, number) {
            tracing::warn!(container = %container.id, signal = name, %error, "a stop signal cannot be sent");
            return false;
        }
        let ended = async {
            while ours(pid) {
                tokio::time::sleep(END_PAUSE).await;
            }
        };
        let _ = tokio::time::timeout(grace, ended).await;
        true
    }

    pub(super) async fn remove_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), RuntimeError> {
        if self.inspect(&id.0).await?.is_none() {
            return Ok(());
        }
        self.stop_container(id, Duration::ZERO).await?;
        let request = proto::ContainerId { container_id: id.0.clone() };
        let removed = self.client.runtime("RemoveContainer", &request, LONG).await;
        ended(removed).map_err(fault(format!("remove container {id}")))
    }

    pub(super) async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        self.expect_running(id).await?;
        let deadline = tokio::time::Instant::now() + timeout;
        let request = proto::ExecSyncRequest {
            container_id: id.0.clone(),
            cmd: command,
            timeout: seconds(timeout).max(1),
        };
        let _running = self.programs.begin(id);
        let run = self.client.runtime("ExecSync", &request, timeout.saturating_add(SETTLE));
        // A call that is dropped is cancelled, which has the runtime kill the program.
        let ran: Option<Result<proto::ExecSyncResponse, Fault>> = tokio::select! {
            ran = run => Some(ran),
            () = tokio::time::sleep_until(deadline) => None,
        };
        let late = ExecOutput { code: KILLED, timed_out: true, ..ExecOutput::default() };
        match ran {
            None => Ok(late),
            Some(Ok(output)) => Ok(ExecOutput {
                code: output.exit_code,
                timed_out: false,
                stdout: bounded(output.stdout),
                stderr: bounded(output.stderr),
            }),
            Some(Err(fault)) if is_late(&fault) => Ok(late),
            Some(Err(fault)) if fault.is_absent() => Err(RuntimeError::NotFound(format!("container {id}"))),
            Some(Err(fault)) => Err(start_error(&fault.text())),
        }
    }

    pub(super) async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let container = self.expected(id).await?;
        if container.state != ContainerState::Running {
            return Err(RuntimeError::NotFound(format!("running container {id}")));
        }
        let sandbox = self.sandboxes(Some(&container.pod)).await?.into_iter().find(|of| of.ready);
        let of_pod = sandbox.map(|sandbox| sandbox.record).unwrap_or_default();
        let request = proto::UpdateContainerResourcesRequest {
            container_id: id.0.clone(),
            linux: Some(spec::resources(&resources, &of_pod)),
        };
        let updated: Result<proto::Empty, Fault> =
            self.client.runtime("UpdateContainerResources", &request, SHORT).await;
        updated.map(drop).map_err(fault(format!("change the limits of container {id}")))
    }

    pub(super) async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.expected(id).await?;
        let request = proto::ContainerId { container_id: id.0.clone() };
        let reopened: Result<proto::Empty, Fault> =
            self.client.runtime("ReopenContainerLog", &request, SHORT).await;
        reopened.map(drop).map_err(fault(format!("begin a new log for container {id}")))
    }
}

/// Whole seconds, no fewer than asked for.
fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs() + u64::from(time.subsec_nanos() > 0)).unwrap_or(i64::MAX)
}

fn bounded(mut output: Vec<u8>) -> Vec<u8> {
    output.truncate(EXEC_OUTPUT_BYTES);
    output
}

/// The program's time was up, the runtime says.
fn is_late(fault: &Fault) -> bool {
    const DEADLINE_EXCEEDED: u32 = 4;
    match fault {
        Fault::Refused(code, text) => {
            *code == DEADLINE_EXCEEDED
                || text.contains("context deadline exceeded")
                || text.contains("timeout")
        }
        Fault::Late(_) => true,
        Fault::Broken(_) => false,
    }
}

/// Why a container cannot be made.
fn create_error(text: String) -> RuntimeError {
    if text.contains("no command specified") {
        return RuntimeError::Create("no command specified".to_owned());
    }
    let configured = ["seccomp", "capabilit", "privileged", "propagation", "is not a shared", "run_as_group"];
    match configured.iter().any(|word| text.contains(word)) {
        true => RuntimeError::Config(text),
        false => RuntimeError::Create(text),
    }
}

/// The sandbox that a container is to run in does not run any more.
fn is_without_sandbox(text: &str) -> bool {
    text.contains("sandbox container") && text.contains("is not running")
}

/// Why a program does not start: the runtime's text from where it speaks of the program.
pub(super) fn start_error(text: &str) -> RuntimeError {
    let program = ["exec: ", "chdir to cwd", "error mounting"]
        .iter()
        .find_map(|words| Some(&text[text.find(words)?..]));
    RuntimeError::Start(program.unwrap_or(text).trim_end_matches(": unknown").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_errors_say_what_is_wrong_with_the_program() {
        let text = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc \
                    create failed: unable to start container process: exec: \"/no/such\": stat /no/such: no such \
                    file or directory: unknown";
        assert_eq!(
            start_error(text).to_string(),
            "failed to start: exec: \"/no/such\": stat /no/such: no such file or directory"
        );
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (time, whole) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(seconds(Duration::from_millis(time)), whole);
        }
        assert_eq!(seconds(Duration::MAX.saturating_sub(Duration::from_secs(1))), i64::MAX);
    }
}
