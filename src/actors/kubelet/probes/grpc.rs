//! gRPC's health protocol (`grpc.health.v1.Health/Check`), spoken by hand: one unary call over HTTP/2 without TLS.
//!
//! Owns: the call's two messages and its errors, which are Kubernetes'. Invariant: what a server sends is bounded.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{USER_AGENT, connect, joined};
use crate::logic::pod::probe::Outcome;

/// A health answer has seven bytes; more than this is none.
const MAX_ANSWER: usize = 16 * 1024;
/// A gRPC message is preceded by a byte that says whether it is compressed, and its length.
const PREFIX: usize = 5;
/// gRPC's code for a method that a server does not have.
const UNIMPLEMENTED: u32 = 12;

/// Asks the server for the health of one of its services; of itself when `service` is empty.
pub(super) async fn check(host: &str, port: u16, service: &str, time: Duration) -> Outcome {
    let deadline = Instant::now() + time;
    let (place, seconds) = (joined(host, port), time.as_secs());
    let stream = match connect(host, port, deadline).await {
        Ok(stream) => stream,
        Err(_) if Instant::now() >= deadline => {
            return Outcome::Failure(format!(
                "timeout: failed to connect service {place:?} within {seconds}s: context deadline exceeded"
            ));
        }
        Err(text) => {
            return Outcome::Failure(format!("error: failed to connect service at {place:?}: {text}"));
        }
    };
    match timeout_at(deadline, call(stream, &place, service)).await {
        Ok(Ok(Reply { code: 0, status: 1, .. })) => Outcome::Success,
        Ok(Ok(Reply { code: 0, status, .. })) => {
            let name = match status {
                0 => "UNKNOWN".to_owned(),
                2 => "NOT_SERVING".to_owned(),
                3 => "SERVICE_UNKNOWN".to_owned(),
                other => other.to_string(),
            };
            Outcome::Failure(format!("service unhealthy (responded with {name:?})"))
        }
        Ok(Ok(Reply { code: UNIMPLEMENTED, text, .. })) => Outcome::Failure(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
        )),
        Ok(Ok(Reply { code, text, .. })) => Outcome::Failure(format!(
            "error: health rpc probe failed: rpc error: code = {} desc = {text}",
            code_name(code)
        )),
        Ok(Err(text)) => Outcome::Failure(format!(
            "error: health rpc probe failed: rpc error: code = Unavailable desc = {text}"
        )),
        Err(_) => Outcome::Failure(format!("timeout: health rpc did not complete within {seconds}s")),
    }
}

struct Reply {
    code: u32,
    text: String,
    status: u64,
}

async fn call(stream: tokio::net::TcpStream, place: &str, service: &str) -> Result<Reply, String> {
    let (client, connection) = h2::client::handshake(stream).await.map_err(|e| e.to_string())?;
    let asked = ask(client, place, service);
    tokio::pin!(asked);
    // The connection moves the bytes; when it ends, the answer is there or will not come.
    tokio::select! {
        reply = &mut asked => reply,
        ended = connection => match ended {
            Ok(()) => asked.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

async fn ask(client: h2::client::SendRequest<Bytes>, place: &str, service: &str) -> Result<Reply, String> {
    let said = |error: h2::Error| error.to_string();
    let mut client = client.ready().await.map_err(said)?;
    let request = http::Request::post(format!("http://{place}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(())
        .map_err(|e| e.to_string())?;
    let (response, mut body) = client.send_request(request, false).map_err(said)?;
    body.send_data(message(service), true).map_err(said)?;
    let response = response.await.map_err(said)?;
    if response.status() != http::StatusCode::OK {
        return Err(format!("unexpected HTTP status code received from server: {}", response.status()));
    }
    let head = response.headers().clone();
    let mut stream = response.into_body();
    let mut answer = Vec::new();
    while let Some(part) = stream.data().await {
        let part = part.map_err(said)?;
        if answer.len() + part.len() > MAX_ANSWER {
            return Err("the answer is too long".into());
        }
        answer.extend_from_slice(&part);
        stream.flow_control().release_capacity(part.len()).map_err(said)?;
    }
    // An answer that is only an error comes without trailers.
    let trailers = stream.trailers().await.map_err(said)?.unwrap_or(head);
    let text = |name: &str| {
        trailers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    };
    let code = text("grpc-status").parse().map_err(|_| "the server did not say how it went".to_owned())?;
    let status = if code == 0 { status_in(&answer)? } else { 0 };
    Ok(Reply { code, text: text("grpc-message"), status })
}

/// `HealthCheckRequest { string service = 1; }`
fn message(service: &str) -> Bytes {
    let mut body = Vec::new();
    if !service.is_empty() {
        body.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            body.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        body.push(length as u8);
        body.extend_from_slice(service.as_bytes());
    }
    let mut message = vec![0];
    message.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.append(&mut body);
    message.into()
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; absent means 0.
fn status_in(answer: &[u8]) -> Result<u64, String> {
    let bad = || "the answer is no health check's".to_owned();
    let (prefix, body) = answer.split_first_chunk::<PREFIX>().ok_or_else(bad)?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 || u32::from_be_bytes(length) as usize != body.len() {
        return Err(bad());
    }
    match body {
        [] => Ok(0),
        [0x08, status] if *status < 0x80 => Ok(u64::from(*status)),
        _ => Err(bad()),
    }
}

fn code_name(code: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    NAMES.get(code as usize).copied().unwrap_or("Unknown")
}
