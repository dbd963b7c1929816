//! `pods/NAME/exec` and `pods/NAME/attach`: a user at a program in a container.
//!
//! Owns: the requests, the streams that a client has for them (channels of a WebSocket, or SPDY streams by their
//! `streamType`), and the passage between those and the node's frames. Invariants: memory is bounded by one message and a
//! few chunks; each side's end ends the other, also when a program reads nothing of what its client sent last.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, rt};
use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};

use super::{
    config::Limits,
    door::StreamPermit,
    error::ApiError,
    log,
    payload::Payload,
    spdy,
    upgrade::{Handshake, Incoming, Known, Outgoing, Protocol},
    write::{Call, document},
};
use crate::{
    messages::{
        ByteStream,
        wire::{self, Channel},
    },
    model::{KindFacet, Object},
};

/// v4 cannot close its input on a WebSocket; on SPDY it can.
const KNOWN: Known<'static> =
    Known { websocket: &["v5.channel.k8s.io", "v4.channel.k8s.io"], spdy: &["v4.channel.k8s.io"] };
/// Frames on their way to the node.
const QUEUE: usize = 4;
/// How long a SPDY client may take to open its streams, as in Kubernetes.
const STREAMS_WITHIN: Duration = Duration::from_secs(30);
/// How long a client that was told everything may take to leave: cut off earlier, it may lose the last words.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// GET or POST of an exec.
///
/// # Errors
/// 404 for the pod, 400 for what cannot be run or is no upgrade, and the node's.
pub async fn exec(
    call: &Call,
    request: &HttpRequest,
    payload: Payload,
    permit: StreamPermit,
) -> Result<HttpResponse, ApiError> {
    let command: Vec<String> =
        call.query.others.iter().filter(|(name, _)| name == "command").map(|(_, v)| v.clone()).collect();
    begin(call, request, payload, permit, |object, container, wanted| {
        if command.is_empty() {
            return Err(ApiError::BadRequest(
                "you must specify at least one command for the container".into(),
            ));
        }
        Ok(wire::Open::Exec(wire::ExecRequest {
            namespace: object.key.namespace.to_string(),
            pod: object.key.name.to_string(),
            uid: object.uid().to_string(),
            container,
            command,
            stdin: wanted.stdin,
            tty: wanted.tty,
        }))
    })
    .await
}

/// GET or POST of an attach.
///
/// # Errors
/// As of an exec.
pub async fn attach(
    call: &Call,
    request: &HttpRequest,
    payload: Payload,
    permit: StreamPermit,
) -> Result<HttpResponse, ApiError> {
    begin(call, request, payload, permit, |object, container, wanted| {
        Ok(wire::Open::Attach(wire::AttachRequest {
            namespace: object.key.namespace.to_string(),
            pod: object.key.name.to_string(),
            uid: object.uid().to_string(),
            container,
            stdin: wanted.stdin,
            tty: wanted.tty,
        }))
    })
    .await
}

/// The streams that a request asks for.
#[derive(Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    /// Never with a terminal, which has one output.
    stderr: bool,
    tty: bool,
}

async fn begin(
    call: &Call,
    request: &HttpRequest,
    payload: Payload,
    permit: StreamPermit,
    open: impl FnOnce(&Object, String, Wanted) -> Result<wire::Open, ApiError>,
) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let snapshot = call.shared.state.view.snapshot();
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let KindFacet::Pod(pod) = &object.facet.of else { return Err(ApiError::UnknownPath) };
    let query = &call.query;
    let tty = query.switch("tty");
    let wanted = Wanted {
        stdin: query.switch("stdin"),
        stdout: query.switch("stdout"),
        stderr: query.switch("stderr") && !tty,
        tty,
    };
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return Err(ApiError::BadRequest("you must specify at least 1 of stdin, stdout, stderr".into()));
    }
    let container = log::container(&document(object)?, query.other("container").unwrap_or(""))?;
    let open = open(object, container, wanted)?;
    let handshake = Handshake::new(request, &KNOWN)?;
    let Some(node) = &pod.node else {
        return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", key.name)));
    };
    // A client whose handshake failed would try another protocol; with this one it is told why.
    let opened = log::open(call, node, open).await;
    let (protocol, stop, limits) = (handshake.protocol, call.shared.stop.clone(), call.shared.limits);
    let lost =
        ApiError::Node(500, format!("lost the connection to node {node}: what came then is not known"));
    let (response, incoming, out) = handshake.answer(payload);
    rt::spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = serve(protocol, wanted, incoming, out, opened, lost, limits) => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(response)
}

async fn serve(
    protocol: Protocol,
    wanted: Wanted,
    incoming: Incoming,
    out: Outgoing,
    opened: Result<ByteStream, ApiError>,
    lost: ApiError,
    limits: Limits,
) {
    let (frames, input) = mpsc::channel(QUEUE);
    let (mut client, mut driving) = match protocol {
        Protocol::WebSocket(_) => (Client::Messages(out.clone()), rt::spawn(messages_in(incoming, frames))),
        Protocol::Spdy(_) => {
            let (session, mut streams) = spdy::session(incoming, out.clone());
            let held = frames.clone();
            let driving = rt::spawn(async move {
                session.await;
                // Its end is the client's.
                drop(held);
            });
            let gathered = tokio::time::timeout(STREAMS_WITHIN, gather(&mut streams, wanted, frames)).await;
            let Ok(Some(ends)) = gathered else {
                tracing::debug!("a client did not open the streams that it asked for");
                return driving.abort();
            };
            // Streams beyond those have no meaning; they are ended as they come.
            rt::spawn(async move { while streams.recv().await.is_some() {} });
            (Client::Streams(ends), driving)
        }
    };
    let talking = async {
        match opened {
            Ok(ByteStream { read, write }) => tokio::select! {
                () = to_client(read, &mut client, &lost) => {}
                () = from_client(input, write) => {}
            },
            Err(error) => client.refuse(&error).await,
        }
        client.finish(limits.finish_within).await;
    };
    let there = tokio::select! {
        () = talking => true,
        () = out.gone(limits.ping_every) => false,
    };
    drop(out);
    if !there || tokio::time::timeout(LEAVE_WITHIN, &mut driving).await.is_err() {
        driving.abort();
    }
}

/// How a client is told something.
enum Client {
    Messages(Outgoing),
    Streams(Ends),
}

/// The SPDY streams to a client.
#[derive(Default)]
struct Ends {
    stdout: Option<spdy::Write>,
    stderr: Option<spdy::Write>,
    error: Option<spdy::Write>,
    /// Those that only the client writes on, open until the end.
    others: Vec<spdy::Write>,
}

impl Client {
    /// What it has no stream for is nothing to it. That it has gone is heard elsewhere.
    async fn send(&mut self, channel: Channel, bytes: &[u8]) {
        match self {
            Client::Messages(out) => {
                out.send([&[channel as u8], bytes].concat().into()).await;
            }
            Client::Streams(ends) => {
                let stream = match channel {
                    Channel::Stdout => &ends.stdout,
                    Channel::Stderr => &ends.stderr,
                    Channel::Error => &ends.error,
                    Channel::Stdin | Channel::Resize | Channel::Close => return,
                };
                if let Some(stream) = stream {
                    stream.send(bytes).await;
                }
            }
        }
    }

    async fn refuse(&mut self, error: &ApiError) {
        self.send(Channel::Error, error.status().to_string().as_bytes()).await;
    }

    /// Says that no more comes, to one that listens within the time.
    async fn finish(self, within: Duration) {
        let closing = async {
            match self {
                Client::Messages(out) => out.close().await,
                Client::Streams(Ends { stdout, stderr, error, others }) => {
                    for stream in [stdout, stderr, error].into_iter().flatten().chain(others) {
                        stream.close().await;
                    }
                }
            }
        };
        if tokio::time::timeout(within, closing).await.is_err() {
            tracing::debug!("a client does not listen to the end");
        }
    }
}

/// The node's frames to the client, until the program has ended. A client that hears of no end takes it for success: where the
/// node's frames break off before that, it is told what is `lost`.
async fn to_client(mut read: impl tokio::io::AsyncRead + Unpin, client: &mut Client, lost: &ApiError) {
    let mut told = false;
    while let Ok(Some((channel, bytes))) = Channel::receive(&mut read).await {
        told |= channel == Channel::Error;
        client.send(channel, &bytes).await;
    }
    if !told {
        client.refuse(lost).await;
    }
}

/// The client's frames to the node, until it has gone.
async fn from_client(
    mut input: mpsc::Receiver<(Channel, Bytes)>,
    mut write: impl tokio::io::AsyncWrite + Unpin,
) {
    while let Some((channel, bytes)) = input.recv().await {
        let sent = async {
            channel.send(&mut write, &bytes).await?;
            write.flush().await
        };
        if sent.await.is_err() {
            // The program has ended; how, is told by the other direction.
            std::future::pending::<()>().await;
        }
    }
}

/// A WebSocket's messages as frames, until the client closes.
async fn messages_in(mut incoming: Incoming, frames: mpsc::Sender<(Channel, Bytes)>) {
    while let Some(message) = incoming.next().await {
        let Some(channel) = message.first().and_then(|byte| Channel::from_byte(*byte)) else { continue };
        // Once nobody takes them it is only the client's close that is waited for.
        let _ = frames.send((channel, message.slice(1..))).await;
    }
}

/// Waits for the streams that a request asks for.
async fn gather(
    streams: &mut mpsc::Receiver<spdy::Stream>,
    wanted: Wanted,
    frames: mpsc::Sender<(Channel, Bytes)>,
) -> Option<Ends> {
    let mut ends = Ends::default();
    let (mut stdin, mut resize) = (!wanted.stdin, !wanted.tty);
    while !(stdin && resize && ends.error.is_some())
        || ends.stdout.is_some() != wanted.stdout
        || ends.stderr.is_some() != wanted.stderr
    {
        let stream = streams.recv().await?;
        let kind = stream.header("streamtype").unwrap_or("").to_owned();
        match kind.as_str() {
            "stdin" if !stdin => {
                stdin = true;
                ends.others.push(stream.write);
                rt::spawn(stream_in(stream.read, Channel::Stdin, frames.clone()));
            }
            "resize" if !resize => {
                resize = true;
                ends.others.push(stream.write);
                rt::spawn(stream_in(stream.read, Channel::Resize, frames.clone()));
            }
            "stdout" if wanted.stdout => ends.stdout = Some(stream.write),
            "stderr" if wanted.stderr => ends.stderr = Some(stream.write),
            "error" => ends.error = Some(stream.write),
            _ => {}
        }
    }
    Some(ends)
}

/// One of a client's streams as frames, and its end as one.
async fn stream_in(mut read: spdy::Read, channel: Channel, frames: mpsc::Sender<(Channel, Bytes)>) {
    while let Some(bytes) = read.next().await {
        if frames.send((channel, bytes)).await.is_err() {
            return;
        }
    }
    let _ = frames.send((Channel::Close, Bytes::copy_from_slice(&[channel as u8]))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_whose_end_is_not_told_has_not_succeeded() {
        let lost = ApiError::Node(500, "lost".into());
        let mut frames = Vec::new();
        Channel::Stdout.send(&mut frames, b"half").await.unwrap();
        let half = frames.clone();
        Channel::Error.send(&mut frames, b"{}").await.unwrap();
        let mut cut = frames.clone();
        cut.pop();
        for (frames, last) in
            [(frames, "{}".to_owned()), (half, lost.status().to_string()), (cut, lost.status().to_string())]
        {
            let (out, mut queue) = Outgoing::to_nobody();
            to_client(frames.as_slice(), &mut Client::Messages(out), &lost).await;
            let mut said = Vec::new();
            while let Ok(message) = queue.try_recv() {
                said.push(message);
            }
            assert!(said.last().is_some_and(|said| said.ends_with(last.as_bytes())), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_listen_is_not_waited_for_for_ever() {
        let (out, _queue) = Outgoing::to_nobody();
        while tokio::time::timeout(Duration::from_secs(1), out.send(Bytes::new())).await.is_ok() {}
        let finishing = Client::Messages(out).finish(Duration::from_secs(600));
        tokio::time::timeout(Duration::from_secs(601), finishing).await.expect("it is given up");
    }
}
