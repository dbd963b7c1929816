//! A program that a user runs in a container: its streams over the link.
//!
//! Owns: the frames between master and node (`channel, length, bytes`), with Kubernetes' channels, and the program's
//! outcome as Kubernetes' `Status`. Invariants: what a program wrote comes before how it ended; a program that left
//! something behind with its output is not waited for.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};

use super::{Kubelet, context::NodeContext};
use crate::{
    messages::wire::{ByteStream, Channel, ExecRequest},
    net::Responder,
    runtime::{ContainerId, ExecStreams, RuntimeError, StreamOptions},
};

/// What is read from a program at once.
const READ_BYTES: usize = 16 * 1024;
/// How long after a program's end its output may still come.
const DRAIN: Duration = Duration::from_millis(500);

impl Kubelet {
    /// The life of a container that a request means.
    pub(super) fn exec_in(&self, request: &ExecRequest) -> Result<ContainerId, (u16, String)> {
        // The master knows a static pod by its mirror.
        let own = self.manifests.own_uid(&request.namespace, &request.pod);
        let uid = own.unwrap_or_else(|| request.uid.as_str().into());
        let entry =
            self.pods.get(&uid).ok_or_else(|| (404, format!("pod {} is not on this node", request.pod)))?;
        let status = entry.containers.iter().find(|s| s.name == request.container);
        let id = status.and_then(|s| s.container_id.as_deref()).and_then(|id| id.split_once("://"));
        match (status.and_then(|s| s.state.as_ref()), id) {
            (Some(state), Some((_, id))) if state.running.is_some() => Ok(ContainerId(id.to_owned())),
            _ => Err((400, format!("container {} in pod {} is not running", request.container, request.pod))),
        }
    }
}

/// Runs the program until it has ended or the master has gone.
pub(super) async fn serve(
    node: Arc<NodeContext>,
    id: ContainerId,
    request: ExecRequest,
    responder: Responder,
) {
    if request.tty {
        return super::streams::refuse(
            responder,
            400,
            "terminals are not supported yet: leave out -t".into(),
        );
    }
    // Accepted first: a runtime without streams gives what a program wrote when it has ended, and the master does not wait
    // so long for an answer.
    let Ok(ByteStream { read, mut write }) = responder.accept().await else { return };
    let options = StreamOptions { stdin: request.stdin, tty: request.tty };
    let done = match node.runtime.exec(&id, request.command, options).await {
        Ok(streams) => converse(streams, read, &mut write).await,
        Err(error) => send(&mut write, Channel::Error, outcome(&Err(error)).to_string().as_bytes()).await,
    };
    if let Err(error) = done {
        tracing::debug!(%error, container = %id, "a program's streams broke off");
    }
    let _ = write.shutdown().await;
}

async fn converse(
    streams: ExecStreams,
    read: impl AsyncRead + Unpin,
    write: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let ExecStreams { stdin, mut stdout, mut stderr, resize: _, mut end } = streams;
    let input = feed(read, stdin);
    tokio::pin!(input);
    let (mut out, mut err) = (vec![0; READ_BYTES], vec![0; READ_BYTES]);
    let (mut out_open, mut err_open, mut fed) = (true, true, false);
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
            gone = &mut input, if !fed => {
                gone?;
                fed = true;
            }
            () = sleep_until(until), if ended.is_some() => break,
        }
    }
    if let Some((_, done)) = ended {
        send(write, Channel::Error, outcome(&done).to_string().as_bytes()).await?;
    }
    Ok(())
}

/// Hands on what the user types until there is no more; an error when the user has gone.
async fn feed(
    mut read: impl AsyncRead + Unpin,
    mut stdin: Option<std::pin::Pin<Box<dyn AsyncWrite + Send>>>,
) -> std::io::Result<()> {
    while let Some((channel, bytes)) = Channel::receive(&mut read).await? {
        match channel {
            Channel::Stdin => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    stdin = None;
                }
            }
            Channel::Close if bytes.first() == Some(&(Channel::Stdin as u8)) => stdin = None,
            _ => {}
        }
    }
    Ok(())
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
