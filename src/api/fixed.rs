//! Documents that do not change while the server runs: discovery and OpenAPI.
//!
//! Owns: [`Document`], its tag, and how it is sent: not at all to a client that has it (`If-None-Match`), and packed to
//! one that can unpack. A large document is kept packed only, since hardly any client wants it otherwise.

use std::io::{Read as _, Write as _};

use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Documents from this size on are kept packed.
const PACK_FROM_BYTES: usize = 32 << 10;

/// A document with its tag.
pub struct Document {
    body: Body,
    etag: String,
    content_type: &'static str,
}

enum Body {
    Plain(Bytes),
    Packed(Bytes),
}

impl Document {
    /// A document of JSON.
    pub fn new(value: &Value, content_type: &'static str) -> Document {
        Document::raw(Bytes::from(value.to_string()), content_type)
    }

    /// As [`Document::new`], of bytes.
    pub fn raw(body: Bytes, content_type: &'static str) -> Document {
        let digest = Sha256::digest(&body);
        let etag = format!("\"{}\"", digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
        let packed = (body.len() >= PACK_FROM_BYTES).then(|| pack(&body)).flatten();
        Document { body: packed.map_or(Body::Plain(body), Body::Packed), etag, content_type }
    }

    /// The tag without quotes.
    pub fn hash(&self) -> &str {
        self.etag.trim_matches('"')
    }

    /// The document, or 304 for a client that has it. Under an address that names its hash it never changes.
    pub fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let header = |name: &str| request.headers().get(name).and_then(|h| h.to_str().ok()).unwrap_or("");
        let known =
            header("if-none-match").split(',').any(|t| t.trim().trim_start_matches("W/") == self.etag);
        let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
        response
            .insert_header(("ETag", self.etag.clone()))
            .insert_header(("Vary", "Accept, Accept-Encoding"))
            .content_type(self.content_type);
        if request.query_string().split('&').any(|p| p.strip_prefix("hash=") == Some(self.hash())) {
            response.insert_header(("Cache-Control", "public, max-age=31536000, immutable"));
        } else {
            response.insert_header(("Cache-Control", "public"));
        }
        if known {
            return response.finish();
        }
        match &self.body {
            Body::Plain(body) => response.body(body.clone()),
            Body::Packed(packed) if accepts_gzip(header("accept-encoding")) => {
                response.insert_header(("Content-Encoding", "gzip")).body(packed.clone())
            }
            Body::Packed(packed) => match unpack(packed) {
                Ok(body) => response.body(body),
                Err(error) => ApiError::Internal(error.to_string()).response(),
            },
        }
    }
}

fn accepts_gzip(accept: &str) -> bool {
    accept.split(',').any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        matches!(name.trim(), "gzip" | "*") && !matches!(weight.trim(), "q=0" | "q=0.0")
    })
}

fn pack(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

fn unpack(packed: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    GzDecoder::new(packed).read_to_end(&mut body)?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn a_large_document_is_packed_for_those_who_can_unpack() {
        let text = "a".repeat(PACK_FROM_BYTES);
        let document = Document::new(&Value::from(text), "application/json");
        let Body::Packed(packed) = &document.body else { panic!("it is large") };
        assert_eq!(unpack(packed).unwrap().len(), PACK_FROM_BYTES + 2);
        for (accept, encoded) in [("gzip", true), ("br, *;q=0.1", true), ("gzip;q=0", false), ("", false)] {
            let request = TestRequest::default().insert_header(("accept-encoding", accept)).to_http_request();
            let answer = document.answer(&request);
            assert_eq!(answer.headers().contains_key("content-encoding"), encoded, "{accept}");
        }
    }

    #[test]
    fn a_client_that_has_a_document_gets_none() {
        let document = Document::new(&Value::from("a"), "application/json");
        let known = TestRequest::default().insert_header(("if-none-match", document.etag.clone()));
        assert_eq!(document.answer(&known.to_http_request()).status(), 304);
        let named = TestRequest::with_uri(&format!("/x?hash={}", document.hash())).to_http_request();
        let answer = document.answer(&named);
        let cache = answer.headers().get("cache-control").unwrap().to_str().unwrap();
        assert!(cache.contains("immutable"), "{cache}");
    }
}
