//! How bodies come in: bounded, and as JSON whatever they were written in.
//!
//! Owns: the size limit while reading and the conversion of YAML and Kubernetes' protobuf to JSON.

use actix_web::{HttpRequest, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;

use super::{
    error::ApiError,
    protobuf::{self, DecodeError},
};

/// Most bodies fit here, so that reading does not grow the buffer.
const USUAL_BODY_BYTES: usize = 4 << 10;

/// The media type of a body, without parameters.
pub fn media_type(request: &HttpRequest) -> &str {
    let header = request.headers().get("content-type").and_then(|h| h.to_str().ok()).unwrap_or("");
    header.split(';').next().unwrap_or("").trim()
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 beyond the limit (at once when the client announces more), 400 when the connection breaks.
pub async fn read(request: &HttpRequest, mut payload: web::Payload, limit: usize) -> Result<Bytes, ApiError> {
    let announced = request
        .headers()
        .get("content-length")
        .and_then(|h| h.to_str().ok())
        .and_then(|h| h.parse::<usize>().ok());
    if announced.is_some_and(|n| n > limit) {
        return Err(ApiError::TooLarge(limit));
    }
    let mut body = BytesMut::with_capacity(announced.unwrap_or(USUAL_BODY_BYTES));
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|e| ApiError::BadRequest(format!("the body could not be read: {e}")))?;
        if body.len() + chunk.len() > limit {
            return Err(ApiError::TooLarge(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// A body as JSON.
///
/// # Errors
/// 415 for what cannot be read, 400 for what is malformed.
pub fn to_json(media: &str, body: Bytes) -> Result<Bytes, ApiError> {
    match media {
        "" | "application/json" | "*/*" => Ok(body),
        "application/yaml" | "application/x-yaml" | "text/yaml" => yaml(&body),
        "application/vnd.kubernetes.protobuf" => match protobuf::to_json(&body) {
            Ok(value) => Ok(value.to_string().into()),
            Err(e @ (DecodeError::UnknownKind(..) | DecodeError::UnknownField(..))) => {
                Err(ApiError::UnsupportedMediaType(e.to_string()))
            }
            Err(e) => Err(ApiError::BadRequest(format!("the protobuf body is malformed: {e}"))),
        },
        other => Err(ApiError::UnsupportedMediaType(format!(
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf (got \"{other}\")"
        ))),
    }
}

fn yaml(body: &[u8]) -> Result<Bytes, ApiError> {
    let value: serde_json::Value =
        serde_yaml_ng::from_slice(body).map_err(|e| ApiError::BadRequest(format!("yaml: {e}")))?;
    Ok(value.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_becomes_json_and_other_formats_are_refused() {
        let json = to_json("application/yaml", Bytes::from_static(b"kind: Pod\nspec: {a: 1}")).unwrap();
        assert_eq!(&json[..], br#"{"kind":"Pod","spec":{"a":1}}"#);
        assert_eq!(to_json("text/html", Bytes::new()).unwrap_err().code(), 415);
        assert_eq!(to_json("application/yaml", Bytes::from_static(b"a: [")).unwrap_err().code(), 400);
    }
}
