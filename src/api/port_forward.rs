//! `pods/NAME/portforward`: TCP connections of a client's into a pod.
//!
//! Owns: which of a client's streams are one connection, and its errors in the kubelet's words. kubectl speaks SPDY, also
//! inside of a WebSocket: for each connection a stream for data and one for an error, told apart by headers. Other
//! clients name their ports in the query and have two channels of a WebSocket for each. Invariants: each connection is a
//! stream of its own to the node; a client's end ends all of its connections, also when nothing reads what it sent last.

use std::{collections::HashMap, sync::Arc, time::Duration};

use actix_web::{HttpRequest, HttpResponse, rt};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    door::{Shared, StreamPermit},
    error::ApiError,
    log,
    payload::Payload,
    spdy,
    upgrade::{Handshake, Incoming, Known, Outgoing, Protocol},
    write::Call,
};
use crate::{
    messages::{ByteStream, wire},
    model::{KindFacet, NodeName},
};

const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const KNOWN: Known<'static> =
    Known { websocket: &[TUNNEL, "v4.channel.k8s.io", "portforward.k8s.io"], spdy: &["portforward.k8s.io"] };
/// Bytes read from a node at once.
const READ_BYTES: usize = 16 << 10;
/// Ports in one query: a channel has one byte for its number, and each port takes two.
const MAX_PORTS: usize = 127;
/// Streams whose other half has not come: kubectl opens both at once.
const MAX_WAITING: usize = 64;
/// How long a client may take to hear that all is over.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// Chunks on their way to one port.
const CHUNKS: usize = 8;

/// The pod and how to reach it.
struct Target {
    shared: Arc<Shared>,
    node: NodeName,
    request: wire::PortForwardRequest,
}

/// GET or POST of a port-forward.
///
/// # Errors
/// 404 for the pod, 400 for what is no upgrade or no port, 503 when its node is away.
pub async fn port_forward(
    call: &Call,
    request: &HttpRequest,
    payload: Payload,
    permit: StreamPermit,
) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let snapshot = call.shared.state.view.snapshot();
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    let KindFacet::Pod(pod) = &object.facet.of else { return Err(ApiError::UnknownPath) };
    let handshake = Handshake::new(request, &KNOWN)?;
    let protocol = handshake.protocol;
    let ports = match protocol {
        Protocol::WebSocket(TUNNEL) | Protocol::Spdy(_) => Vec::new(),
        Protocol::WebSocket(_) => ports(call)?,
    };
    let Some(node) = pod.node.clone() else {
        return Err(ApiError::BadRequest(format!("pod {} does not have a host assigned", key.name)));
    };
    let target = Target {
        shared: call.shared.clone(),
        node,
        request: wire::PortForwardRequest {
            namespace: object.key.namespace.to_string(),
            pod: object.key.name.to_string(),
            uid: object.uid().to_string(),
            port: 0,
        },
    };
    let stop = call.shared.stop.clone();
    let (response, incoming, out) = handshake.answer(payload);
    rt::spawn(async move {
        let _permit = permit;
        tokio::select! {
            () = serve(Arc::new(target), protocol, ports, incoming, out) => {}
            () = stop.cancelled() => {}
        }
    });
    Ok(response)
}

fn ports(call: &Call) -> Result<Vec<u16>, ApiError> {
    let named = call.query.others.iter().filter(|(name, _)| name == "ports");
    let ports: Vec<u16> = named
        .flat_map(|(_, ports)| ports.split(','))
        .map(|port| {
            port.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
                ApiError::BadRequest(format!("ports: {port:?} is no port: a number from 1 to 65535 is one"))
            })
        })
        .collect::<Result<_, _>>()?;
    match ports.len() {
        0 => {
            Err(ApiError::BadRequest("query parameter \"ports\" is required: which ports to forward".into()))
        }
        count if count > MAX_PORTS => {
            Err(ApiError::BadRequest(format!("{count} ports, at most {MAX_PORTS} can be forwarded at once")))
        }
        _ => Ok(ports),
    }
}

async fn serve(target: Arc<Target>, protocol: Protocol, ports: Vec<u16>, incoming: Incoming, out: Outgoing) {
    let ping_every = target.shared.limits.ping_every;
    let forwarding = async {
        match protocol {
            Protocol::WebSocket(TUNNEL) | Protocol::Spdy(_) => {
                let (session, streams) = spdy::session(incoming, out.clone());
                tokio::select! {
                    () = session => {}
                    () = pairs(target, streams) => {}
                }
            }
            Protocol::WebSocket(_) => channels(target, &ports, incoming, &out).await,
        }
    };
    tokio::select! {
        () = forwarding => {}
        () = out.gone(ping_every) => return tracing::debug!("a client whose ports were forwarded has gone"),
    }
    let _ = tokio::time::timeout(LEAVE_WITHIN, out.close()).await;
}

/// The streams of one connection.
#[derive(Default)]
struct Pair {
    error: Option<spdy::Stream>,
    data: Option<spdy::Stream>,
}

/// Makes connections of a client's streams.
async fn pairs(target: Arc<Target>, mut streams: mpsc::Receiver<spdy::Stream>) {
    let mut waiting: HashMap<String, Pair> = HashMap::new();
    let mut connections = JoinSet::new();
    while let Some(stream) = streams.recv().await {
        while connections.try_join_next().is_some() {}
        let Some(kind @ ("error" | "data")) = stream.header("streamtype") else { continue };
        let is_data = kind == "data";
        // Clients older than request ids have one connection a port at a time.
        let id = stream.header("requestid").or_else(|| stream.header("port")).unwrap_or("").to_owned();
        let pair = waiting.entry(id.clone()).or_default();
        *(if is_data { &mut pair.data } else { &mut pair.error }) = Some(stream);
        if pair.data.is_some()
            && pair.error.is_some()
            && let Some(Pair { error: Some(error), data: Some(data) }) = waiting.remove(&id)
        {
            connections.spawn(connect(Arc::clone(&target), error, data));
        }
        if waiting.len() > MAX_WAITING {
            tracing::debug!("a client opens streams that are no connections");
            return;
        }
    }
}

async fn connect(target: Arc<Target>, error: spdy::Stream, data: spdy::Stream) {
    let port = data.header("port").unwrap_or("").to_owned();
    let opened = match port.parse().ok().filter(|port| *port > 0) {
        Some(port) => target.open(port).await,
        None => Err(format!("unable to parse {port:?} as a port")),
    };
    match opened {
        Ok(stream) => relay(stream, data).await,
        Err(text) => {
            error.write.send(text.as_bytes()).await;
            data.write.close().await;
        }
    }
    error.write.close().await;
}

async fn relay(stream: ByteStream, data: spdy::Stream) {
    let ByteStream { mut read, mut write } = stream;
    let spdy::Stream { read: mut typed, write: told, .. } = data;
    let reset = told.reset();
    let out = async {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if !told.send(&buffer[..count]).await {
                return;
            }
        }
        told.close().await;
    };
    let input = async {
        while let Some(bytes) = typed.next().await {
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    // When the pod's side is over, the client has nobody to talk to.
    let both = async {
        tokio::pin!(out, input);
        tokio::select! {
            () = &mut out => {}
            () = &mut input => out.await,
        }
    };
    // When the client's is over both ways, the pod has.
    tokio::select! {
        () = both => {}
        () = reset => {}
    }
}

impl Target {
    async fn open(&self, port: u16) -> Result<ByteStream, String> {
        let request = wire::PortForwardRequest { port, ..self.request.clone() };
        log::open_on(&self.shared, &self.node, wire::Open::PortForward(request)).await.map_err(|error| {
            let wire::PortForwardRequest { pod, uid, .. } = &self.request;
            format!("error forwarding port {port} to pod {pod}, uid {uid}: {error}")
        })
    }
}

/// Two channels for each port: data, and errors as text. Both begin with the port. When one side of a connection ends,
/// nothing can say so but the end of the whole.
async fn channels(target: Arc<Target>, ports: &[u16], mut incoming: Incoming, out: &Outgoing) {
    let mut connections = JoinSet::new();
    let mut inputs = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let (to_port, input) = mpsc::channel(CHUNKS);
        inputs.push(to_port);
        connections.spawn(channel(Arc::clone(&target), index as u8, *port, input, out.clone()));
    }
    let reading = async {
        while let Some(message) = incoming.next().await {
            let Some(channel) = message.first().map(|byte| usize::from(*byte)) else { continue };
            if channel % 2 == 0
                && let Some(input) = inputs.get(channel / 2)
            {
                // Its connection may be over.
                let _ = input.send(message.slice(1..)).await;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = async { while connections.join_next().await.is_some() {} } => {}
    }
}

async fn channel(target: Arc<Target>, index: u8, port: u16, mut input: mpsc::Receiver<Bytes>, out: Outgoing) {
    let (data, error) = (2 * index, 2 * index + 1);
    let send = |channel: u8, bytes: &[u8]| {
        let message: Bytes = [&[channel], bytes].concat().into();
        let out = out.clone();
        async move { out.send(message).await }
    };
    for channel in [data, error] {
        send(channel, &port.to_le_bytes()).await;
    }
    let ByteStream { mut read, mut write } = match target.open(port).await {
        Ok(stream) => stream,
        Err(text) => {
            send(error, text.as_bytes()).await;
            return;
        }
    };
    let writing = async {
        while let Some(bytes) = input.recv().await {
            if write.write_all(&bytes).await.is_err() || write.flush().await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let reading = async {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if !send(data, &buffer[..count]).await {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}
