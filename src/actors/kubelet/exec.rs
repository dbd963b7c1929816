//! A program that a user runs in a container, a container's own that a user attaches to, and forwarded ports: their
//! streams over the link.
//!
//! Owns: the frames between master and node (`channel, length, bytes`), with Kubernetes' channels, and the program's
//! outcome as Kubernetes' `Status`. Invariants: what a program wrote comes before how it ended; a program that left
//! something behind with its output is not waited for; when the user has gone, everything of theirs is dropped.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{Kubelet, context::NodeContext};
use crate::{
    messages::wire::{AttachRequest, ByteStream, Channel, ExecRequest, PortForwardRequest},
    model::Uid,
    net::{Gone, Responder},
    runtime::{ContainerId, ExecStreams, RuntimeError, StreamOptions, TerminalSize},
};

/// What is read from a program at once.
const READ_BYTES: usize = 16 * 1024;
/// How long after a program's end its output may still come.
const DRAIN: Duration = Duration::from_millis(500);

impl Kubelet {
    /// The life of a container that a request means.
    pub(super) fn running_in(
        &self,
        namespace: &str,
        pod: &str,
        uid: &str,
        container: &str,
    ) -> Result<ContainerId, (u16, String)> {
        let uid = self.own_uid(namespace, pod, uid);
        let entry = self.pods.get(&uid).ok_or_else(|| (404, format!("pod {pod} is not on this node")))?;
        let status = entry.containers.iter().find(|s| s.name == container);
        let id = status.and_then(|s| s.container_id.as_deref()).and_then(|id| id.split_once("://"));
        match (status.and_then(|s| s.state.as_ref()), id) {
            (Some(state), Some((_, id))) if state.running.is_some() => Ok(ContainerId(id.to_owned())),
            _ => Err((400, format!("container {container} in pod {pod} is not running"))),
        }
    }

    /// The uid under which a pod runs: the master knows a static one by its mirror.
    pub(super) fn own_uid(&self, namespace: &str, pod: &str, uid: &str) -> Uid {
        self.manifests.own_uid(namespace, pod).unwrap_or_else(|| uid.into())
    }
}

/// Runs the program until it has ended or its user has gone.
pub(super) async fn serve(
    node: Arc<NodeContext>,
    id: ContainerId,
    request: ExecRequest,
    responder: Responder,
) {
    let gone = responder.gone();
    // Accepted first: a runtime without streams gives what a program wrote when it has ended, and the master does not wait
    // so long for an answer.
    let Ok(ByteStream { read, mut write }) = responder.accept().await else { return };
    let options = StreamOptions { stdin: request.stdin, tty: request.tty };
    let running = async {
        match node.runtime.exec(&id, request.command, options).await {
            Ok(streams) => converse(streams, read, &mut write, outcome).await,
            Err(error) => send(&mut write, Channel::Error, outcome(&Err(error)).to_string().as_bytes()).await,
        }
    };
    finish(gone, running, "a program", &id.0).await;
    let _ = write.shutdown().await;
}

/// Joins a container's own program until it has ended or the user has gone.
pub(super) async fn attach(
    node: Arc<NodeContext>,
    id: ContainerId,
    request: AttachRequest,
    responder: Responder,
) {
    let options = StreamOptions { stdin: request.stdin, tty: request.tty };
    let streams = match node.runtime.attach(&id, options).await {
        Ok(streams) => streams,
        Err(error) => return super::streams::refuse(responder, 400, error.to_string()),
    };
    let gone = responder.gone();
    let Ok(ByteStream { read, mut write }) = responder.accept().await else { return };
    let joined = converse(streams, read, &mut write, attached);
    finish(gone, joined, "an attachment", &id.0).await;
    let _ = write.shutdown().await;
}

/// Passes bytes between the master and a port of a pod until both or either for good have ended.
pub(super) async fn port_forward(
    node: Arc<NodeContext>,
    pod: Uid,
    request: PortForwardRequest,
    responder: Responder,
) {
    let mut connection = match node.runtime.port_forward(&pod, request.port).await {
        Ok(connection) => connection,
        Err(error) => return super::streams::refuse(responder, 500, error.to_string()),
    };
    let gone = responder.gone();
    let Ok(ByteStream { read, write }) = responder.accept().await else { return };
    let mut link = tokio::io::join(read, write);
    let passing = async { tokio::io::copy_bidirectional(&mut link, &mut connection).await.map(drop) };
    finish(gone, passing, "a forwarded connection", pod.as_str()).await;
}

/// Goes on to the end, or until the user has gone: then it is dropped where it stands, though it may be waiting for a
/// program that does not read or does not end.
async fn finish(gone: Gone, talk: impl Future<Output = std::io::Result<()>>, what: &str, of: &str) {
    tokio::select! {
        done = talk => if let Err(error) = done {
            tracing::debug!(%error, what, of, "a user's streams broke off");
        },
        () = gone => tracing::debug!(what, of, "a user has gone"),
    }
}

async fn converse(
    streams: ExecStreams,
    read: impl AsyncRead + Unpin,
    write: &mut (impl AsyncWrite + Unpin),
    outcome: impl Fn(&Result<i32, RuntimeError>) -> Value,
) -> std::io::Result<()> {
    let ExecStreams { stdin, mut stdout, mut stderr, resize, mut end } = streams;
    let input = feed(read, stdin, resize);
    tokio::pin!(input);
    let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let (mut out_open, mut err_open) = (true, true);
    let mut ended: Option<(Instant, Result<i32, RuntimeError>)> = None;
    while out_open || err_open || ended.is_none() {
        let until = ended.as_ref().map_or_else(Instant::now, |(until, _)| *until);
        tokio::select! {
            biased;
            count = stdout.read(&mut out), if out_open => match count {
                Ok(count) if count > 0 => send(write, Channel::Stdout, &out[..count]).await?,
                _ => out_open = false,
            },
            count = stderr.read(&mut err), if err_open => match count {
                Ok(count) if count > 0 => send(write, Channel::Stderr, &err[..count]).await?,
                _ => err_open = false,
            },
            done = &mut end, if ended.is_none() => ended = Some((Instant::now() + DRAIN, done)),
            gone = &mut input => return gone,
            () = sleep_until(until), if ended.is_some() => break,
        }
    }
    if let Some((_, done)) = ended {
        send(write, Channel::Error, outcome(&done).to_string().as_bytes()).await?;
    }
    Ok(())
}

/// Hands on what the user types, and the sizes of their terminal, until they have gone.
async fn feed(
    mut read: impl AsyncRead + Unpin,
    mut stdin: Option<std::pin::Pin<Box<dyn AsyncWrite + Send>>>,
    resize: Option<watch::Sender<TerminalSize>>,
) -> std::io::Result<()> {
    while let Some((channel, bytes)) = Channel::receive(&mut read).await? {
        match channel {
            Channel::Stdin => {
                if let Some(pipe) = &mut stdin
                    && write_all(pipe, &bytes).await.is_err()
                {
                    stdin = None;
                }
            }
            Channel::Resize => {
                if let (Some(resize), Some(size)) = (&resize, last_size(&bytes)) {
                    resize.send_replace(size);
                }
            }
            Channel::Close if bytes.first() == Some(&(Channel::Stdin as u8)) => stdin = None,
            _ => {}
        }
    }
    Ok(())
}

async fn write_all(pipe: &mut (impl AsyncWrite + Unpin + ?Sized), bytes: &[u8]) -> std::io::Result<()> {
    pipe.write_all(bytes).await?;
    pipe.flush().await
}

/// The newest of some sizes of a terminal, each `{"Width":80,"Height":24}`; one without extent is none.
fn last_size(bytes: &[u8]) -> Option<TerminalSize> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Size {
        width: u16,
        height: u16,
    }
    let sizes = serde_json::Deserializer::from_slice(bytes).into_iter::<Size>();
    let last = sizes.map_while(Result::ok).last().filter(|size| size.width > 0 && size.height > 0);
    last.map(|Size { width, height }| TerminalSize { width, height })
}

async fn send(write: &mut (impl AsyncWrite + Unpin), channel: Channel, bytes: &[u8]) -> std::io::Result<()> {
    channel.send(write, bytes).await?;
    write.flush().await
}

/// How a program ended, in the words that kubectl understands.
fn outcome(done: &Result<i32, RuntimeError>) -> Value {
    match done {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("Internal error occurred: error executing command in container: {error}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": format!("error executing command in container: {error}")}]},
            "code": 500,
        }),
    }
}

/// How an attachment ended: how its container did is told by the pod's status.
fn attached(done: &Result<i32, RuntimeError>) -> Value {
    match done {
        Ok(_) => outcome(&Ok(0)),
        Err(error) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("error attaching to container: {error}"),
            "reason": "InternalError",
            "details": {"causes": [{"message": format!("error attaching to container: {error}")}]},
            "code": 500,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_size_of_a_terminal_counts() {
        for (bytes, size) in [
            (&b"{\"Width\":80,\"Height\":24}"[..], Some((80, 24))),
            (b"{\"Width\":80,\"Height\":24}\n{\"Width\":120,\"Height\":50}\n", Some((120, 50))),
            (b"{\"Width\":80,\"Height\":24}\n{\"Wid", Some((80, 24))),
            (b"{\"Width\":0,\"Height\":24}", None),
            (b"{\"Width\":80000,\"Height\":24}", None),
            (b"size", None),
            (b"", None),
        ] {
            let expected = size.map(|(width, height)| TerminalSize { width, height });
            assert_eq!(last_size(bytes), expected, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
