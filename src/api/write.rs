//! Create, update and patch.
//!
//! Owns: the loop of compare-and-swap around the model's admission. A request that names a revision fails when the
//! object has moved on; one that names none is applied again to the newer state, a bounded number of times.
//! Invariant: everything is committed under the exact state it was computed from. An object that is being deleted
//! vanishes with the change that takes away its last finalizer.

use std::{sync::Arc, time::Duration};

use actix_web::{HttpResponse, http::header::HeaderValue};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use super::{
    clock,
    door::Shared,
    error::{ApiError, MODIFIED},
    patch::Patch,
    query::Query,
    read::json_response,
    render::{self, Form},
    services,
    target::Resource,
};
pub use crate::logic::edit::CONFLICT_RETRIES;
use crate::{
    logic::service_accounts::{Given, Says},
    messages::{Commit, CommitError, Durability, Expected, Write},
    model::{
        Key, Kind, Object, Revision, Sealed, Snapshot, Uid,
        admit::{Admission, Admitted, Part, admit_create, admit_update},
    },
};

/// How often a generated name is drawn again: 27^5 names make even a second draw rare.
const NAME_RETRIES: usize = 8;
/// How long the store may take over a commit: a slow disk's fsync is under a second.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(30);
/// Kubernetes' alphabet for generated names: no vowels, so no words.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Length of a generated suffix.
const SUFFIX_LENGTH: usize = 5;

/// What a request's verb works on.
pub struct Call {
    /// The room's shared state.
    pub shared: Arc<Shared>,
    /// What the path names.
    pub resource: Resource,
    /// The options.
    pub query: Query,
    /// The form of the answer.
    pub form: Form,
}

/// The outcome of a change.
pub struct Outcome {
    /// The object after it.
    pub object: Arc<Object>,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
}

impl Call {
    /// The key of the object named in the path.
    ///
    /// # Errors
    /// 404 when the path names none.
    pub fn key(&self) -> Result<Key, ApiError> {
        self.resource.key().ok_or(ApiError::UnknownPath)
    }

    /// An answer with an object.
    pub fn answer(&self, code: u16, outcome: &Outcome) -> HttpResponse {
        let body = render::object(&outcome.object, self.form, clock::now());
        with_warnings(json_response(code, body), &outcome.warnings)
    }
}

/// Adds `Warning: 299 - "…"` headers.
pub fn with_warnings(mut response: HttpResponse, warnings: &[String]) -> HttpResponse {
    for text in warnings {
        let text: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
            .collect();
        if let Ok(value) = HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()) {
            response.headers_mut().append(actix_web::http::header::WARNING, value);
        }
    }
    response
}

/// The few fields of a body that decide how it is committed.
#[derive(Deserialize, Default)]
struct Peek {
    #[serde(default)]
    metadata: PeekMeta,
}

/// The few fields of a pod's body that decide what it gets of its account.
#[derive(Deserialize, Default)]
#[serde(default)]
struct PeekPod {
    spec: Says,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PeekMeta {
    name: Option<String>,
    generate_name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
}

fn suffix() -> String {
    (0..SUFFIX_LENGTH)
        .map(|_| char::from(SUFFIX_ALPHABET[rand::random_range(0..SUFFIX_ALPHABET.len())]))
        .collect()
}

fn new_uid() -> Uid {
    uuid::Uuid::new_v4().to_string().into()
}

/// Sends one write to the store.
///
/// # Errors
/// The store's refusal, or 503/504 when it does not answer.
pub async fn commit(shared: &Shared, write: Write) -> Result<Result<Arc<Object>, CommitError>, ApiError> {
    let message = Commit { writes: vec![write], durability: Durability::Hard };
    match shared.state.commit.ask(message, COMMIT_TIMEOUT).await? {
        Ok(mut committed) => committed
            .objects
            .pop()
            .map(Ok)
            .ok_or_else(|| ApiError::Internal("the store answered a write with nothing".into())),
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// 413 for a document that could not have come in one body: patches may not add up to one.
fn check_size(sealed: &Sealed, limit: usize) -> Result<(), ApiError> {
    // Defaults are the server's own addition: an object that came in one body may be that much larger.
    let limit = limit + limit / 2;
    if sealed.document().len() > limit { Err(ApiError::TooLarge(limit)) } else { Ok(()) }
}

/// 404 when the namespace does not exist, 403 when it is being deleted.
fn check_namespace(snapshot: &Snapshot, resource: &Resource, name: &str) -> Result<(), ApiError> {
    let Some(namespace) = resource.namespace.as_deref() else { return Ok(()) };
    let key = Key::new(Kind::Namespace, "", namespace);
    let found = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    if found.facet.meta.deleting.is_none() {
        return Ok(());
    }
    Err(ApiError::Forbidden {
        resource: resource.kind.plural().into(),
        name: name.into(),
        why: format!("unable to create new content in namespace {namespace} because it is being terminated"),
        cause: Some(("NamespaceTerminating", format!("namespace {namespace} is being terminated"))),
    })
}

/// A pod with what it gets of its account unasked; 403 when the account is not there that it names.
fn with_account(call: &Call, namespace: &str, name: String, body: Bytes) -> Result<Bytes, ApiError> {
    // What cannot be read is refused later.
    let pod: PeekPod = serde_json::from_slice(&body).unwrap_or_default();
    let snapshot = call.shared.state.view.snapshot();
    if let Some(why) = pod.spec.forbids(namespace, &snapshot) {
        return Err(ApiError::Forbidden { resource: Kind::Pod.plural().into(), name, why, cause: None });
    }
    let given = pod.spec.given(namespace, &snapshot);
    Ok(if given == Given::default() { body } else { given.add_to(body.into(), &suffix()).into() })
}

/// POST to a collection.
///
/// # Errors
/// Everything [`ApiError`] knows of documents, names and the store.
pub async fn create(call: &Call, body: Bytes) -> Result<HttpResponse, ApiError> {
    let kind = call.resource.kind;
    if kind.namespaced() && call.resource.namespace.is_none() {
        return Err(ApiError::MethodNotAllowed);
    }
    let peek: Peek = serde_json::from_slice(&body).unwrap_or_default();
    let name = peek.metadata.name.unwrap_or_default();
    let base = peek.metadata.generate_name.filter(|base| name.is_empty() && !base.is_empty());
    let generated = base.is_some();
    if peek.metadata.resource_version.is_some_and(|revision| !matches!(revision.as_str(), "" | "0")) {
        return Err(ApiError::BadRequest(
            "resourceVersion should not be set on objects to be created".into(),
        ));
    }
    check_namespace(&call.shared.state.view.snapshot(), &call.resource, &name)?;
    // Held until the commit is published, so that no two services are given one address.
    let _allocation = if kind == Kind::Service { Some(call.shared.services.lock().await) } else { None };
    let body = if kind == Kind::Service {
        services::allocate(&body, &call.shared.state.view.snapshot(), call.shared.service_cidr)?
    } else {
        body
    };
    let namespace = call.resource.namespace.as_deref().unwrap_or("");
    let body = match kind {
        Kind::Pod => with_account(call, namespace, base.unwrap_or_else(|| name.clone()), body)?,
        _ => body,
    };
    for attempt in 1.. {
        let suffix = suffix();
        let how = Admission {
            namespace,
            name: None,
            now: clock::now(),
            uid: new_uid(),
            suffix: &suffix,
            fields: call.query.field_validation,
        };
        let Admitted { sealed, warnings, .. } =
            admit_create(kind, &body, &how).map_err(|r| ApiError::rejection(kind, &name, r))?;
        check_size(&sealed, call.shared.limits.body_bytes)?;
        let key = sealed.key.clone();
        if call.query.dry_run {
            if call.shared.state.view.snapshot().find(&key).is_some() {
                return Err(ApiError::commit(CommitError::AlreadyExists(key)));
            }
            let body = Bytes::copy_from_slice(sealed.document());
            return Ok(with_warnings(json_response(201, body), &warnings));
        }
        match commit(&call.shared, Write::Create(sealed)).await? {
            Ok(object) => return Ok(call.answer(201, &Outcome { object, warnings })),
            Err(CommitError::AlreadyExists(_)) if generated && attempt < NAME_RETRIES => {}
            Err(refusal) => return Err(ApiError::commit(refusal)),
        }
    }
    Err(ApiError::Internal("no free name was found".into()))
}

/// An object's wanted state, and what the request insists on.
pub struct Wanted {
    /// The whole new document.
    pub json: Bytes,
    /// The revision it must replace, when the request named one.
    pub revision: Option<Revision>,
    /// The uid the object must have, when the request named one.
    pub uid: Option<String>,
}

impl Wanted {
    /// A state computed from the present one, under no conditions.
    pub fn unconditional(document: &Value) -> Wanted {
        Wanted { json: document.to_string().into(), revision: None, uid: None }
    }

    /// From a document that may carry `resourceVersion` and `uid` as conditions.
    ///
    /// # Errors
    /// 400 for a revision that is no number.
    pub fn from_body(kind: Kind, json: Bytes) -> Result<Wanted, ApiError> {
        let peek: Peek = serde_json::from_slice(&json).unwrap_or_default();
        let revision = match peek.metadata.resource_version.as_deref() {
            None | Some("" | "0") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                ApiError::BadRequest(format!(
                    "{}: metadata.resourceVersion: Invalid value: \"{text}\": must be specified for an update",
                    kind.name()
                ))
            })?),
        };
        Ok(Wanted { json, revision, uid: peek.metadata.uid.filter(|u| !u.is_empty()) })
    }
}

/// Changes an object: computes its wanted state from the present one, and again when it moved meanwhile.
///
/// # Errors
/// 404, 409 and everything that computing and admission refuse.
pub async fn modify(
    call: &Call,
    key: &Key,
    part: Part,
    compute: impl Fn(&Object) -> Result<Wanted, ApiError>,
) -> Result<Outcome, ApiError> {
    let kind = key.kind;
    let shared = &call.shared;
    let _allocation = if kind == Kind::Service { Some(shared.services.lock().await) } else { None };
    let mut newer: Option<Arc<Object>> = None;
    for _ in 0..CONFLICT_RETRIES {
        let snapshot = shared.state.view.snapshot();
        let current =
            newer.take().or_else(|| snapshot.find(key).cloned()).ok_or_else(|| ApiError::not_found(key))?;
        let mut wanted = compute(&current)?;
        if wanted.revision.is_some_and(|r| r != current.revision) {
            return Err(ApiError::conflict(key, MODIFIED));
        }
        if let Some(uid) = wanted.uid.as_deref().filter(|u| *u != current.uid().as_str()) {
            return Err(ApiError::conflict(key, uid_mismatch(uid, current.uid())));
        }
        if kind == Kind::Service && part == Part::Main {
            wanted.json = services::keep(&wanted.json, &current, &snapshot, shared.service_cidr)?;
        }
        let how = Admission {
            namespace: &key.namespace,
            name: Some(&key.name),
            now: clock::now(),
            uid: current.uid().clone(),
            suffix: "",
            fields: call.query.field_validation,
        };
        let admitted = admit_update(kind, &current, &wanted.json, part, &how)
            .map_err(|r| ApiError::rejection(kind, &key.name, r))?;
        let Admitted { sealed, warnings, unchanged } = admitted;
        check_size(&sealed, shared.limits.body_bytes)?;
        if unchanged {
            return Ok(Outcome { object: current, warnings });
        }
        if call.query.dry_run {
            return Ok(Outcome { object: Arc::new(sealed.at(current.revision)), warnings });
        }
        match commit(shared, write(sealed, &current)).await? {
            Ok(object) => return Ok(Outcome { object, warnings }),
            Err(CommitError::Conflict { current, .. }) if wanted.revision.is_none() => newer = Some(current),
            Err(refusal) => return Err(ApiError::commit(refusal)),
        }
    }
    Err(ApiError::conflict(key, MODIFIED))
}

/// The write that makes a new state: usually its replacement, but an object whose deletion waited only for a finalizer
/// vanishes with it.
fn write(sealed: Sealed, current: &Object) -> Write {
    let meta = &sealed.facet.meta;
    let waited = !current.facet.meta.finalizers.is_empty() && meta.finalizers.is_empty();
    let graceless = meta.deleting.is_some_and(|d| d.grace_seconds == 0);
    if waited && graceless && sealed.key.kind != Kind::Namespace {
        Write::Remove(sealed.key.clone(), Expected::state(current))
    } else {
        Write::Replace(sealed, Expected::state(current))
    }
}

/// Why an object of another life is refused.
pub fn uid_mismatch(asked: &str, present: &Uid) -> String {
    format!("Precondition failed: UID in precondition: {asked}, UID in object meta: {present}")
}

/// PUT of an object or its status.
///
/// # Errors
/// See [`modify`].
pub async fn update(call: &Call, part: Part, body: Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let outcome = modify(call, &key, part, |_| Wanted::from_body(key.kind, body.clone())).await?;
    Ok(call.answer(200, &outcome))
}

/// PATCH of an object or its status.
///
/// # Errors
/// See [`modify`].
pub async fn patch(call: &Call, part: Part, patch: &Patch) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let outcome = modify(call, &key, part, |current| patched(current, patch)).await?;
    Ok(call.answer(200, &outcome))
}

/// The state a patch makes of an object. A patch that sets `resourceVersion` or `uid` makes them conditions.
fn patched(current: &Object, patch: &Patch) -> Result<Wanted, ApiError> {
    let document = document(current)?;
    let patched = patch.apply(current.key.kind, &document)?;
    let mut wanted = Wanted::from_body(current.key.kind, patched.to_string().into())?;
    // What the patch did not touch is no condition: the change may be made again on a newer state.
    wanted.revision = wanted.revision.filter(|r| *r != current.revision);
    wanted.uid = wanted.uid.filter(|u| u != current.uid().as_str());
    Ok(wanted)
}

/// An object's document as a value.
///
/// # Errors
/// Never for documents that the store took; 500 then.
pub fn document(object: &Object) -> Result<Value, ApiError> {
    serde_json::from_slice(&object.json).map_err(|e| ApiError::Internal(e.to_string()))
}
