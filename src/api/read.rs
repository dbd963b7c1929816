//! GET and LIST.
//!
//! Owns: reading one object or a page of a collection out of the present snapshot, and `continue` tokens.
//! Invariant: the pages of one list carry the revision of the first. A later page is read from the newest snapshot;
//! since a watch from that first revision repeats every change made meanwhile, list + watch loses nothing. Once the
//! feed has forgotten that revision this no longer holds, and the token has expired (410).

use std::sync::Arc;

use actix_web::{HttpResponse, body::SizedStream};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{
    clock,
    door::Shared,
    error::ApiError,
    query::{Filter, Query},
    render::{self, Form, ListHead},
    target::Resource,
};
use crate::{
    messages::View,
    model::{Key, Object, Revision},
};

/// A list of whole documents larger than this is sent piece by piece instead of being put together in memory.
const WHOLE_LIST_BYTES: usize = 256 << 10;
/// The pieces: large enough to fill TLS records, small enough to share the connection.
const PIECE_BYTES: usize = 64 << 10;

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continue {
    /// The first page's revision.
    #[serde(rename = "rv")]
    pub revision: u64,
    /// Namespace of the last object handed out.
    #[serde(rename = "ns")]
    pub namespace: String,
    /// Name of the last object handed out.
    #[serde(rename = "n")]
    pub name: String,
}

impl Continue {
    /// The opaque text: hex of JSON, which survives every query encoding.
    pub fn encode(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        json.bytes().map(|b| format!("{b:02x}")).collect()
    }

    /// Reads a token.
    ///
    /// # Errors
    /// 400 when it is not one of ours.
    pub fn decode(token: &str) -> Result<Continue, ApiError> {
        let bad = || ApiError::BadRequest("continue key is not valid".into());
        if !token.is_ascii() || !token.len().is_multiple_of(2) {
            return Err(bad());
        }
        let bytes: Option<Vec<u8>> =
            (0..token.len()).step_by(2).map(|at| u8::from_str_radix(&token[at..at + 2], 16).ok()).collect();
        serde_json::from_slice(&bytes.ok_or_else(bad)?).map_err(|_| bad())
    }
}

/// GET of one object.
///
/// # Errors
/// 404; 504 when the asked revision is not here yet.
pub fn get(
    shared: &Shared,
    resource: &Resource,
    query: &Query,
    form: Form,
) -> Result<HttpResponse, ApiError> {
    let snapshot = shared.state.view.snapshot();
    check_version(query, snapshot.revision)?;
    let key = resource.key().ok_or(ApiError::UnknownPath)?;
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    Ok(json_response(200, render::object(object, form, clock::now())))
}

/// A JSON answer.
pub fn json_response(code: u16, body: impl Into<Bytes>) -> HttpResponse {
    let code = actix_web::http::StatusCode::from_u16(code).unwrap_or(actix_web::http::StatusCode::OK);
    HttpResponse::build(code)
        .content_type("application/json")
        .insert_header(("Cache-Control", "no-cache, private"))
        .body(body.into())
}

/// `resourceVersion` and `resourceVersionMatch` of reads: we always answer with the newest state, which every choice
/// but `Exact` allows.
fn check_version(query: &Query, current: Revision) -> Result<(), ApiError> {
    let Some(asked) = &query.resource_version else {
        return match query.version_match.as_deref() {
            None => Ok(()),
            Some(_) => Err(ApiError::BadRequest(
                "resourceVersionMatch is forbidden unless resourceVersion is provided".into(),
            )),
        };
    };
    let asked: u64 = asked.parse().map_err(|_| invalid_version(asked))?;
    match query.version_match.as_deref() {
        Some("Exact") if asked != current.0 => Err(ApiError::Expired(format!(
            "The resourceVersion for the provided list is too old: only {current} is kept, {asked} was asked for"
        ))),
        None | Some("NotOlderThan" | "Exact") if asked > current.0 => {
            Err(ApiError::FutureRevision { asked, current: current.0 })
        }
        None | Some("NotOlderThan" | "Exact") => Ok(()),
        Some(other) => Err(ApiError::BadRequest(format!(
            "resourceVersionMatch: Unsupported value: \"{other}\": supported values: \"Exact\", \"NotOlderThan\""
        ))),
    }
}

/// 400 for a `resourceVersion` that is no number.
pub fn invalid_version(text: &str) -> ApiError {
    ApiError::BadRequest(format!("resourceVersion: Invalid value: \"{text}\": must be a number"))
}

/// A page of a collection.
pub struct Page {
    /// The list's revision.
    pub revision: Revision,
    /// The objects.
    pub objects: Vec<Arc<Object>>,
    /// Where it goes on.
    pub next: Option<Continue>,
}

/// Reads a page.
///
/// # Errors
/// 410 for an expired token, 400 for a malformed one, 504 for revisions of the future.
pub fn page(view: &View, resource: &Resource, query: &Query, filter: &Filter) -> Result<Page, ApiError> {
    let snapshot = view.snapshot();
    let namespace = resource.namespace.as_deref();
    let (revision, after) = match &query.continue_ {
        None => {
            check_version(query, snapshot.revision)?;
            (snapshot.revision, Key::new(resource.kind, namespace.unwrap_or(""), ""))
        }
        Some(token) => {
            let token = Continue::decode(token)?;
            let foreign = namespace.is_some_and(|n| n != token.namespace);
            if foreign || token.revision > snapshot.revision.0 {
                return Err(ApiError::BadRequest("continue key is not valid".into()));
            }
            if token.revision < view.oldest().0 {
                return Err(ApiError::Expired(
                    "The provided continue parameter is too old to display a consistent list result. You must \
                     start a new list without the continue parameter."
                        .into(),
                ));
            }
            (Revision(token.revision), Key::new(resource.kind, token.namespace, token.name))
        }
    };
    let limit = query.limit.unwrap_or(usize::MAX);
    let mut matching = snapshot.list_after(after, namespace).filter(|o| filter.matches(o));
    let objects: Vec<Arc<Object>> = matching.by_ref().take(limit).cloned().collect();
    let next =
        objects.last().filter(|_| objects.len() == limit && matching.next().is_some()).map(|last| Continue {
            revision: revision.0,
            namespace: last.key.namespace.to_string(),
            name: last.key.name.to_string(),
        });
    Ok(Page { revision, objects, next })
}

/// LIST.
///
/// # Errors
/// As [`page`].
pub fn list(
    shared: &Shared,
    resource: &Resource,
    query: &Query,
    form: Form,
) -> Result<HttpResponse, ApiError> {
    let filter = Filter::parse(resource.kind, None, query)?;
    let page = page(&shared.state.view, resource, query, &filter)?;
    Ok(list_response(resource, page, form))
}

/// Renders a page: small ones at once, large ones piece by piece.
pub fn list_response(resource: &Resource, page: Page, form: Form) -> HttpResponse {
    let head = ListHead { revision: page.revision.0, next: page.next.map(|n| n.encode()), columns: true };
    let mut out = Vec::with_capacity(PIECE_BYTES.min(1024 + page.objects.len() * 1024));
    render::begin(resource.kind, form, &head, &mut out);
    let documents: usize = page.objects.iter().map(|o| o.json.len() + 1).sum();
    if form != Form::Whole || documents <= WHOLE_LIST_BYTES {
        let now = clock::now();
        for (index, object) in page.objects.iter().enumerate() {
            render::item(object, form, now, index == 0, &mut out);
        }
        render::end(&mut out);
        return json_response(200, out);
    }
    // One comma less than objects, and the two closing brackets.
    let length = out.len() + documents - 1 + 2;
    let pieces =
        futures_util::stream::iter(Pieces { out, objects: page.objects, at: 0 }.map(Ok::<_, std::io::Error>));
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header(("Cache-Control", "no-cache, private"))
        .body(SizedStream::new(length as u64, pieces))
}

/// A large list, piece by piece.
struct Pieces {
    out: Vec<u8>,
    objects: Vec<Arc<Object>>,
    at: usize,
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.at > self.objects.len() {
            return None;
        }
        while self.out.len() < PIECE_BYTES {
            match self.objects.get(self.at) {
                Some(object) => {
                    if self.at > 0 {
                        self.out.push(b',');
                    }
                    self.out.extend_from_slice(&object.json);
                    self.at += 1;
                }
                None => {
                    render::end(&mut self.out);
                    self.at += 1;
                    break;
                }
            }
        }
        Some(std::mem::take(&mut self.out).into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn continue_tokens_come_back_as_they_went() {
        let token = Continue { revision: 42, namespace: "a".into(), name: "ü\"\\".into() };
        assert_eq!(Continue::decode(&token.encode()).unwrap(), token);
    }

    proptest! {
        #[test]
        fn foreign_continue_tokens_are_refused_and_never_panic(text in ".{0,60}") {
            if let Err(error) = Continue::decode(&text) {
                prop_assert_eq!(error.code(), 400);
            }
        }
    }
}
