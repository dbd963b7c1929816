//! `pods/NAME/exec`: a user's program in a container, over a WebSocket as kubectl speaks it.
//!
//! Owns: the choice of the protocol (`v5.channel.k8s.io`, or v4, which cannot close its input), and the passage between
//! WebSocket messages (`channel, bytes`) and the node's frames. Invariants: memory is bounded by one message and a few
//! chunks; each side's end ends the other.

use actix_http::ws;
use actix_web::{HttpRequest, HttpResponse, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use tokio_util::codec::{Decoder as _, Encoder as _};

use super::{
    door::StreamPermit,
    error::ApiError,
    log,
    write::{Call, document},
};
use crate::{
    messages::{
        ByteStream,
        wire::{self, Channel},
    },
    model::KindFacet,
};

/// In order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// No message is longer: kubectl sends 32 KiB.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Chunks on their way to the client.
const QUEUE: usize = 8;

/// GET of an exec.
///
/// # Errors
/// 404 for the pod, 400 for what cannot be run or is no WebSocket, and the node's.
pub async fn exec(
    call: &Call,
    request: &HttpRequest,
    payload: web::Payload,
    permit: StreamPermit,
) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let snapshot = call.shared.state.view.snapshot();
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let KindFacet::Pod(pod) = &object.facet.of else { return Err(ApiError::UnknownPath) };
    let command: Vec<String> =
        call.query.others.iter().filter(|(name, _)| name == "command").map(|(_, v)| v.clone()).collect();
    if command.is_empty() {
        return Err(ApiError::BadRequest("you must specify at least one command for the container".into()));
    }
    if call.query.switch("tty") {
        return Err(ApiError::BadRequest("terminals are not supported yet: leave out -t".into()));
    }
    let open = wire::Open::Exec(wire::ExecRequest {
        namespace: object.key.namespace.to_string(),
        pod: object.key.name.to_string(),
        uid: object.uid().to_string(),
        container: log::container(&document(object)?, call.query.other("container").unwrap_or(""))?,
        command,
        stdin: call.query.switch("stdin"),
        tty: false,
    });
    let (accept, protocol) = upgrade(request)?;
    let Some(node) = &pod.node else {
        return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", key.name)));
    };
    let opened = log::open(call, node, open).await;
    let (chunks, queue) = mpsc::channel(QUEUE);
    let stop = call.shared.stop.clone();
    actix_web::rt::spawn(async move {
        let _permit = permit;
        let ByteStream { read, write } = match opened {
            Ok(stream) => stream,
            // A client whose handshake failed would try another protocol; with this one it is told why.
            Err(error) => return refuse(&error, &chunks).await,
        };
        tokio::select! {
            () = to_client(read, chunks.clone()) => {}
            () = from_client(payload, write, chunks) => {}
            () = stop.cancelled() => {}
        }
    });
    let body = futures_util::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|chunk: Bytes| (Ok::<_, std::io::Error>(chunk), queue))
    });
    Ok(HttpResponse::SwitchingProtocols()
        .upgrade("websocket")
        .insert_header((header::SEC_WEBSOCKET_ACCEPT, accept))
        .insert_header((header::SEC_WEBSOCKET_PROTOCOL, protocol))
        .streaming(body))
}

/// Checks the client's half of the handshake: our half's key and the protocol.
fn upgrade(request: &HttpRequest) -> Result<(String, &'static str), ApiError> {
    let refuse = |why: &str| ApiError::BadRequest(format!("unable to upgrade: {why}"));
    ws::verify_handshake(request.head())
        .map_err(|e| refuse(&format!("{e}; exec is spoken over WebSockets, as kubectl 1.30 and later do")))?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).ok_or_else(|| refuse("no key"))?;
    let accept = String::from_utf8_lossy(&ws::hash_key(key.as_bytes())).into_owned();
    let offered: Vec<&str> = request
        .headers()
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(',').map(str::trim))
        .collect();
    let protocol = PROTOCOLS.into_iter().find(|protocol| offered.contains(protocol));
    let protocol = protocol
        .ok_or_else(|| refuse(&format!("none of the protocols {offered:?} is known; {PROTOCOLS:?} are")))?;
    Ok((accept, protocol))
}

/// The node's frames as messages, until the program has ended.
async fn to_client(mut read: impl tokio::io::AsyncRead + Unpin, chunks: mpsc::Sender<Bytes>) {
    while let Ok(Some((channel, bytes))) = Channel::receive(&mut read).await {
        let message = ws::Message::Binary([&[channel as u8], bytes.as_slice()].concat().into());
        if !put(&chunks, message).await {
            return;
        }
    }
    put(&chunks, ws::Message::Close(Some(ws::CloseCode::Normal.into()))).await;
}

/// Tells that nothing was run, as if it had ended so.
async fn refuse(error: &ApiError, chunks: &mpsc::Sender<Bytes>) {
    let message = [&[Channel::Error as u8], error.status().to_string().as_bytes()].concat();
    if put(chunks, ws::Message::Binary(message.into())).await {
        put(chunks, ws::Message::Close(Some(ws::CloseCode::Normal.into()))).await;
    }
}

async fn put(chunks: &mpsc::Sender<Bytes>, message: ws::Message) -> bool {
    let mut frame = BytesMut::new();
    ws::Codec::new().encode(message, &mut frame).is_ok() && chunks.send(frame.freeze()).await.is_ok()
}

/// The client's messages as frames, until it closes.
async fn from_client(
    mut payload: web::Payload,
    mut write: impl tokio::io::AsyncWrite + Unpin,
    chunks: mpsc::Sender<Bytes>,
) {
    let mut codec = ws::Codec::new().max_size(MAX_MESSAGE);
    let (mut input, mut whole) = (BytesMut::new(), Vec::new());
    while let Some(Ok(bytes)) = payload.next().await {
        input.extend_from_slice(&bytes);
        loop {
            let message = match codec.decode(&mut input) {
                Ok(Some(ws::Frame::Binary(bytes))) => bytes.to_vec(),
                Ok(Some(ws::Frame::Continuation(item))) => match item {
                    ws::Item::FirstBinary(bytes) | ws::Item::FirstText(bytes) | ws::Item::Continue(bytes) => {
                        whole.extend_from_slice(&bytes);
                        if whole.len() > MAX_MESSAGE {
                            return;
                        }
                        continue;
                    }
                    ws::Item::Last(bytes) => {
                        whole.extend_from_slice(&bytes);
                        std::mem::take(&mut whole)
                    }
                },
                Ok(Some(ws::Frame::Ping(bytes))) => {
                    if !put(&chunks, ws::Message::Pong(bytes)).await {
                        return;
                    }
                    continue;
                }
                Ok(Some(ws::Frame::Text(_) | ws::Frame::Pong(_))) => continue,
                Ok(None) => break,
                Ok(Some(ws::Frame::Close(_))) | Err(_) => return,
            };
            let Some((channel, bytes)) = message.split_first() else { continue };
            let Some(channel) = Channel::from_byte(*channel) else { continue };
            let sent = async {
                channel.send(&mut write, bytes).await?;
                write.flush().await
            };
            if sent.await.is_err() {
                // The program has ended; how, is told by the other direction.
                std::future::pending::<()>().await;
            }
        }
    }
}
