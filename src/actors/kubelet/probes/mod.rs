//! Running probes: a program in the container, a request or a connection to the pod's address.
//!
//! Owns: the I/O of one run and its translation into an [`Outcome`], in Kubernetes' words. Invariant: a run ends within
//! the probe's timeout (a runtime that hangs is given up a little later), so whatever hangs holds up itself only.
//! Leaves out: when to run what, and what an outcome means ([`crate::logic::pod::probe`]).

mod grpc;
mod http;

use std::{net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1, apimachinery::pkg::util::intstr::IntOrString};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};

pub use self::http::{Answer, Get};
use super::context::NodeContext;
use crate::{
    logic::pod::{
        init::container_named,
        probe::{Outcome, ProbeKind},
    },
    runtime::{ContainerId, RuntimeError},
};

/// What this kubelet calls itself: many servers leave such requests out of their logs.
pub(super) const USER_AGENT: &str = "kube-probe/1.33";
/// As much of a program's output goes into an event.
const OUTPUT_BYTES: usize = 10 * 1024;
/// A runtime gets this much longer than a program's time to say that it is up.
const RUNTIME_MARGIN: Duration = Duration::from_secs(45);

/// Runs a container's probe once. `ip` is the pod's address, if it has one of its own.
pub async fn run(
    node: Arc<NodeContext>,
    pod: Arc<v1::Pod>,
    name: String,
    id: String,
    kind: ProbeKind,
    ip: Option<IpAddr>,
) -> Outcome {
    let Some(container) = container_named(&pod, &name) else {
        return Outcome::Error("no such container".into());
    };
    let Some(probe) = kind.of(&container) else { return Outcome::Success };
    let time = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return program(&node, ContainerId(id), command, time).await;
    }
    if !node.runtime.has_network() {
        return Outcome::Success;
    }
    let done = if let Some(get) = &probe.http_get {
        match Get::of(get, &container, ip.or(node.host_ip.now())) {
            Ok(get) => page(&get, time).await,
            Err(text) => Outcome::Error(text),
        }
    } else if let Some(socket) = &probe.tcp_socket {
        match address(socket.host.as_deref(), &socket.port, &container, ip.or(node.host_ip.now())) {
            Ok((host, port)) => connection(&host, port, time).await,
            Err(text) => Outcome::Error(text),
        }
    } else if let Some(grpc) = &probe.grpc {
        match address(None, &IntOrString::Int(grpc.port), &container, ip.or(node.host_ip.now())) {
            Ok((host, port)) => {
                grpc::check(&host, port, grpc.service.as_deref().unwrap_or_default(), time).await
            }
            Err(text) => Outcome::Error(text),
        }
    } else {
        Outcome::Error(format!("missing probe handler for {name}"))
    };
    tracing::debug!(container = %name, kind = kind.name(), outcome = ?done, "probe");
    done
}

async fn program(node: &NodeContext, id: ContainerId, command: Vec<String>, time: Duration) -> Outcome {
    let words = command.join(" ");
    let run = node.runtime.exec_sync(&id, command, time);
    match timeout(time + RUNTIME_MARGIN, run).await {
        Ok(Ok(output)) if output.timed_out => {
            Outcome::Failure(format!("command timed out: {words:?} timed out after {}s", time.as_secs()))
        }
        Ok(Ok(output)) if output.code == 0 => Outcome::Success,
        Ok(Ok(output)) => {
            let mut text = [output.stdout, output.stderr].concat();
            text.truncate(OUTPUT_BYTES);
            Outcome::Failure(String::from_utf8_lossy(&text).into_owned())
        }
        Ok(Err(RuntimeError::Start(text))) => {
            Outcome::Error(format!("failed to start exec in container: {text}"))
        }
        Ok(Err(error)) => Outcome::Error(error.to_string()),
        Err(_) => Outcome::Error(format!("the runtime gave no answer about {words:?}")),
    }
}

async fn page(get: &Get, time: Duration) -> Outcome {
    match get.follow(Instant::now() + time).await {
        Ok(Answer { status: 300..=399, body, .. }) => {
            Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"))
        }
        Ok(Answer { status: 200..=299, .. }) => Outcome::Success,
        Ok(Answer { status, .. }) => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
        Err(text) => Outcome::Failure(text),
    }
}

async fn connection(host: &str, port: u16, time: Duration) -> Outcome {
    match connect(host, port, Instant::now() + time).await {
        Ok(_) => Outcome::Success,
        Err(text) => Outcome::Failure(text),
    }
}

/// A connection, or why there is none, as Go says it.
async fn connect(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let place = format!("dial tcp {}", joined(host, port));
    match timeout_at(deadline, TcpStream::connect((host, port))).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(match error.kind() {
            std::io::ErrorKind::ConnectionRefused => format!("{place}: connect: connection refused"),
            std::io::ErrorKind::HostUnreachable => format!("{place}: connect: no route to host"),
            std::io::ErrorKind::TimedOut => format!("{place}: connect: connection timed out"),
            _ => format!("{place}: {error}"),
        }),
        Err(_) => Err(format!("{place}: i/o timeout")),
    }
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where a handler leads: its host or else the pod's address, and its port by number or by the container's name for it.
fn address(
    host: Option<&str>,
    port: &IntOrString,
    container: &v1::Container,
    ip: Option<IpAddr>,
) -> Result<(String, u16), String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| Ok(p.container_port))
            .unwrap_or_else(|| {
                name.parse().map_err(|_| format!("strconv.Atoi: parsing {name:?}: invalid syntax"))
            })?,
    };
    let number = u16::try_from(number).ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| format!("invalid port number: {port:?}"))?;
    let host = match (host.filter(|host| !host.is_empty()), ip) {
        (Some(host), _) => host.to_owned(),
        (None, Some(ip)) => ip.to_string(),
        (None, None) => return Err("the pod has no address".into()),
    };
    Ok((host, number))
}

#[cfg(test)]
mod tests;
