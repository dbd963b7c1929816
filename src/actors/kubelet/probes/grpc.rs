//! gRPC's health protocol (`grpc.health.v1.Health/Check`): one unary call over HTTP/2 without TLS.
//!
//! Owns: the call's two messages and its errors, which are Kubernetes'. Invariant: what a server sends is bounded.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{USER_AGENT, connect, joined};
use crate::{
    logic::pod::probe::Outcome,
    runtime::grpc::{self, Call, UNIMPLEMENTED},
};

/// A health answer has seven bytes; more than this is none.
const MAX_ANSWER: usize = 16 * 1024;

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
    let call = Call {
        authority: place,
        path: "/grpc.health.v1.Health/Check",
        user_agent: USER_AGENT,
        metadata: &[],
        longest: MAX_ANSWER,
    };
    let grpc::Reply { code, text, message } = grpc::unary(client, call, &message(service)).await?;
    let status = if code == 0 { status_in(&message)? } else { 0 };
    Ok(Reply { code, text, status })
}

/// `HealthCheckRequest { string service = 1; }`
fn message(service: &str) -> Vec<u8> {
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
    body
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; absent means 0.
fn status_in(answer: &[u8]) -> Result<u64, String> {
    match answer {
        [] => Ok(0),
        [0x08, status] if *status < 0x80 => Ok(u64::from(*status)),
        _ => Err("the answer is no health check's".to_owned()),
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
