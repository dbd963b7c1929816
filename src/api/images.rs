//! Images of a node: `/api/v1/nodes/NODE/proxy/images…`.
//!
//! Owns: the six requests (load an archive, import a root file system, pull, save, list, remove) and their passage through a
//! byte stream to the node. A body is passed on as it comes, never held, and the node's answer is passed back; that to a
//! pull as it comes, since it tells how far the pull is. Leaves what a kubelet tells of itself beside it to [`super::usage`].

use std::{io, time::Duration};

use actix_web::{HttpResponse, http::Method};
use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    door::StreamPermit,
    error::ApiError,
    log::{open, pass_on},
    payload::Payload,
    read::json_response,
    usage,
    write::Call,
};
use crate::{
    messages::{ByteStream, wire},
    model::NodeName,
};

/// The longest answer of a node: names of some thousand images.
const ANSWER_BYTES: u64 = 1 << 20;
/// Images saved as one archive: the names fit into the node's request many times.
const MAX_SAVED: usize = 64;
/// How long a client may pause within an upload.
const UPLOAD_PAUSE: Duration = Duration::from_secs(60);
/// How long a node may work on an image after its last byte: unpacking some gigabytes on a slow disk.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// How a byte stream says that nobody reads it any more; a link that is lost is another matter.
const STOPPED: [io::ErrorKind; 2] = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];

/// Serves a request below `nodes/NODE/proxy`.
///
/// # Errors
/// 404 for paths other than images and the kubelet's own pages, 413 beyond the configured cap, and the node's.
pub async fn proxy(
    call: &Call,
    method: &Method,
    payload: Payload,
    permit: StreamPermit,
) -> Result<HttpResponse, ApiError> {
    let rest: Vec<&str> = call.resource.rest.iter().map(String::as_str).collect();
    let name = call.query.other("name").filter(|n| !n.is_empty()).map(str::to_owned);
    let named = || {
        name.clone().ok_or_else(|| ApiError::BadRequest("the query must say which image: ?name=NAME".into()))
    };
    if let Some(page) = usage::Page::of(&rest) {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        return if reads { page.answer(call).await } else { Err(ApiError::MethodNotAllowed) };
    }
    let request = match (method, rest.as_slice()) {
        (&Method::POST, ["images", "load"]) => wire::Open::ImageLoad(wire::ImageLoad::Archive(name)),
        (&Method::POST, ["images", "import"]) => wire::Open::ImageLoad(wire::ImageLoad::RootFs(named()?)),
        (&Method::POST, ["images", "pull"]) => wire::Open::ImagePull(named()?),
        (&Method::GET, ["images", "save"]) => wire::Open::ImageSave(names(call)?),
        (&Method::GET, ["images"]) => wire::Open::ImageList,
        (&Method::DELETE, ["images"]) => wire::Open::ImageRemove(named()?),
        (_, ["images" | "load" | "import" | "pull" | "save", ..]) => return Err(ApiError::MethodNotAllowed),
        _ => return Err(ApiError::UnknownPath),
    };
    let key = call.key()?;
    if call.shared.state.view.snapshot().find(&key).is_none() {
        return Err(ApiError::not_found(&key));
    }
    if matches!(request, wire::Open::ImagePull(_)) {
        let stream = open(call, &NodeName(key.name.clone()), request).await?;
        let lines = pass_on(call, stream, permit);
        return Ok(HttpResponse::Ok().content_type("application/x-ndjson").streaming(lines));
    }
    if matches!(request, wire::Open::ImageSave(_)) {
        let stream = open(call, &NodeName(key.name.clone()), request).await?;
        let bytes = pass_on(call, stream, permit);
        return Ok(HttpResponse::Ok().content_type("application/x-tar").streaming(bytes));
    }
    let upload = matches!(request, wire::Open::ImageLoad(_));
    let mut stream = open(call, &NodeName(key.name.clone()), request).await?;
    if upload {
        send(&mut stream, payload, call.shared.limits.image_bytes).await?;
    }
    // A node that refuses an image closes its receiving side early; its answer says why.
    let _ = stream.write.shutdown().await;
    let mut answer = Vec::new();
    tokio::time::timeout(ANSWER_TIMEOUT, stream.read.take(ANSWER_BYTES).read_to_end(&mut answer))
        .await
        .map_err(|_| ApiError::Timeout(format!("node {} did not answer", key.name)))?
        .map_err(|e| ApiError::Unavailable(format!("node {}: {e}", key.name)))?;
    answered(&key.name, upload || method == Method::DELETE, answer)
}

/// Every image that the query names.
fn names(call: &Call) -> Result<Vec<String>, ApiError> {
    let all = call.query.others.iter().filter(|(option, name)| option == "name" && !name.is_empty());
    let names: Vec<String> = all.map(|(_, name)| name.clone()).collect();
    match names.len() {
        0 => Err(ApiError::BadRequest("the query must say which images: ?name=NAME, maybe repeated".into())),
        1..=MAX_SAVED => Ok(names),
        _ => Err(ApiError::BadRequest(format!("more than {MAX_SAVED} images at once"))),
    }
}

/// The client's answer to what a node said at the end of its stream: names, or the reason it refused the image.
fn answered(node: &str, changes: bool, answer: Vec<u8>) -> Result<HttpResponse, ApiError> {
    if !changes {
        return Ok(json_response(200, answer));
    }
    match serde_json::from_slice(&answer) {
        Ok(wire::ImageAnswer::Done(names)) => Ok(json_response(200, json!(names).to_string())),
        Ok(wire::ImageAnswer::Refused(why)) => Err(ApiError::BadRequest(why)),
        Err(_) => Err(ApiError::Unavailable(format!("node {node} broke off; see its log, then try again"))),
    }
}

async fn send(stream: &mut ByteStream, mut payload: Payload, cap: Option<u64>) -> Result<(), ApiError> {
    let mut sent = 0u64;
    loop {
        let chunk = tokio::time::timeout(UPLOAD_PAUSE, payload.next())
            .await
            .map_err(|_| ApiError::Timeout("the client stopped sending".into()))?;
        let Some(chunk) = chunk else { return Ok(()) };
        let chunk = chunk.map_err(|e| ApiError::BadRequest(format!("the upload broke off: {e}")))?;
        sent += chunk.len() as u64;
        if let Some(cap) = cap.filter(|cap| sent > *cap) {
            return Err(ApiError::TooLarge(usize::try_from(cap).unwrap_or(usize::MAX)));
        }
        match stream.write.write_all(&chunk).await {
            Ok(()) => {}
            // The node has read enough of it to know what it says next.
            Err(e) if STOPPED.contains(&e.kind()) => return Ok(()),
            Err(e) => return Err(ApiError::Unavailable(format!("the link to the node failed: {e}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_image_is_a_bad_request_with_the_nodes_reason() {
        let refused = serde_json::to_vec(&wire::ImageAnswer::Refused("no manifest".into())).unwrap();
        let error = answered("n", true, refused).unwrap_err();
        assert!(matches!(error, ApiError::BadRequest(why) if why == "no manifest"));
        let done = serde_json::to_vec(&wire::ImageAnswer::Done(vec!["a:1".into()])).unwrap();
        assert_eq!(answered("n", true, done).unwrap().status(), 200);
        assert!(matches!(answered("n", true, Vec::new()), Err(ApiError::Unavailable(_))));
    }
}
