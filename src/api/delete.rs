//! DELETE of one object or a collection.
//!
//! Owns: what a deletion does to an object of each kind, decided by the pure [`decide`]: vanish at once, or be marked
//! and wait (a bound pod for its kubelet, anything with finalizers for those, a namespace for its contents).
//! Dependents are left to the garbage collector; foreground and orphan deletion ask it through finalizers.

use std::sync::Arc;

use actix_web::HttpResponse;
use bytes::Bytes;
use k8s_openapi::jiff::{Span, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    clock,
    error::{ApiError, success},
    query::{Filter, dry_run},
    read::{self, Page, json_response},
    render,
    write::{CONFLICT_RETRIES, Call, commit, document, uid_mismatch},
};
use crate::{
    messages::{CommitError, Expected, Write},
    model::{Key, Kind, KindFacet, Object, admit::effective_grace, seal_json},
};

/// Kubernetes' `terminationGracePeriodSeconds` for pods that have none.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Longest grace that is taken at its word; more makes times that cannot be written.
const MAX_GRACE_SECONDS: i64 = 366 * 24 * 3600;
/// Finalizer by which the garbage collector is asked to delete dependents first.
const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer by which the garbage collector is asked to let dependents go.
const ORPHAN: &str = "orphan";
/// Namespaces without which a cluster does not work.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// What becomes of dependents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct Options {
    grace_seconds: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    revision: Option<String>,
    dry_run: bool,
}

/// `DeleteOptions` as a body.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Body {
    grace_period_seconds: Option<i64>,
    propagation_policy: Option<String>,
    orphan_dependents: Option<bool>,
    preconditions: Option<Preconditions>,
    dry_run: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Options {
    /// From the body, else from the query.
    ///
    /// # Errors
    /// 400 for what is malformed or contradicts itself.
    pub fn parse(call: &Call, body: &[u8]) -> Result<Options, ApiError> {
        let query = &call.query;
        let body: Body = if body.iter().all(u8::is_ascii_whitespace) {
            Body::default()
        } else {
            serde_json::from_slice::<Option<Body>>(body)
                .map_err(|e| ApiError::BadRequest(format!("DeleteOptions: {e}")))?
                .unwrap_or_default()
        };
        let policy = body.propagation_policy.or_else(|| query.propagation.clone());
        let orphan = body.orphan_dependents.or(query.orphan);
        let propagation = match (policy.as_deref(), orphan) {
            (Some(_), Some(_)) => {
                return Err(ApiError::BadRequest(
                    "orphanDependents and deletionPropagation cannot be both set".into(),
                ));
            }
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (None, None) => None,
            (Some(other), _) => {
                return Err(ApiError::BadRequest(format!(
                    "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Background\", \
                     \"Foreground\", \"Orphan\""
                )));
            }
        };
        let mut dry = query.dry_run;
        for value in body.dry_run.iter().flatten() {
            dry |= dry_run(value)?;
        }
        let preconditions = body.preconditions.unwrap_or_default();
        Ok(Options {
            grace_seconds: body.grace_period_seconds.or(query.grace_seconds),
            propagation,
            uid: preconditions.uid,
            revision: preconditions.resource_version,
            dry_run: dry,
        })
    }
}

/// What a deletion does.
#[derive(Debug, PartialEq)]
enum Decision {
    /// The object vanishes.
    Remove,
    /// The object gets this new state and waits.
    Mark(Value),
    /// It is being deleted already, and this request changes nothing.
    Nothing,
}

/// Decides what a deletion does to an object.
fn decide(object: &Object, options: &Options, now: Timestamp) -> Result<Decision, ApiError> {
    check(object, options)?;
    if object.key.kind == Kind::Namespace {
        return namespace(object, now);
    }
    let meta = &object.facet.meta;
    let before: Vec<&str> = meta.finalizers.iter().map(String::as_str).collect();
    let mut finalizers = before.clone();
    if let Some(propagation) = options.propagation {
        finalizers.retain(|f| *f != FOREGROUND && *f != ORPHAN);
        match propagation {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND),
            Propagation::Orphan => finalizers.push(ORPHAN),
        }
    }
    let grace = grace(object, options)?;
    if grace == 0 && finalizers.is_empty() {
        return Ok(Decision::Remove);
    }
    if let Some(deleting) = meta.deleting
        && grace >= deleting.grace_seconds
        && finalizers == before
    {
        return Ok(Decision::Nothing);
    }
    // A second deletion only shortens, counted from the first.
    let (started, grace) = match meta.deleting {
        None => (now, grace),
        Some(d) if grace == 0 && d.grace_seconds > 0 => (now, 0),
        Some(d) => (shift(d.at, -d.grace_seconds), grace.min(d.grace_seconds)),
    };
    let mut value = document(object)?;
    value["metadata"]["deletionTimestamp"] = seconds(shift(started, grace));
    value["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if finalizers.is_empty() {
        value["metadata"].as_object_mut().map(|m| m.remove("finalizers"));
    } else {
        value["metadata"]["finalizers"] = finalizers.into();
    }
    if meta.deleting.is_none() && meta.generation > 0 {
        value["metadata"]["generation"] = (meta.generation + 1).into();
    }
    Ok(Decision::Mark(value))
}

/// Preconditions.
fn check(object: &Object, options: &Options) -> Result<(), ApiError> {
    if let Some(uid) = options.uid.as_deref().filter(|u| *u != object.uid().as_str()) {
        return Err(ApiError::conflict(&object.key, uid_mismatch(uid, object.uid())));
    }
    let revision = object.revision.to_string();
    if let Some(asked) = options.revision.as_deref().filter(|r| *r != revision) {
        return Err(ApiError::conflict(
            &object.key,
            format!(
                "Precondition failed: ResourceVersion in precondition: {asked}, ResourceVersion in object meta: \
                 {revision}"
            ),
        ));
    }
    Ok(())
}

/// How long the object may go on: only pods that a kubelet runs have a grace.
fn grace(object: &Object, options: &Options) -> Result<i64, ApiError> {
    let KindFacet::Pod(pod) = &object.facet.of else { return Ok(0) };
    if pod.node.is_none() || pod.phase.is_final() {
        return Ok(0);
    }
    let own = || -> Result<i64, ApiError> {
        let document = document(object)?;
        Ok(document["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(DEFAULT_GRACE_SECONDS))
    };
    let grace = match (options.grace_seconds, object.facet.meta.deleting) {
        (Some(grace), _) => grace,
        (None, Some(deleting)) => deleting.grace_seconds,
        (None, None) => own()?,
    };
    Ok(effective_grace(grace).min(MAX_GRACE_SECONDS))
}

fn namespace(object: &Object, now: Timestamp) -> Result<Decision, ApiError> {
    let key = &object.key;
    if IMMORTAL.contains(&&*key.name) {
        return Err(ApiError::Forbidden {
            resource: key.kind.plural().into(),
            name: key.name.to_string(),
            why: "this namespace may not be deleted".into(),
            cause: None,
        });
    }
    let mut value = document(object)?;
    let held = value["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
        || !object.facet.meta.finalizers.is_empty();
    if !held {
        return Ok(Decision::Remove);
    }
    if object.facet.meta.deleting.is_some() {
        return Err(ApiError::conflict(
            key,
            "The system is ensuring all content is removed from this namespace.  Upon completion, this namespace \
             will automatically be purged by the system.",
        ));
    }
    value["metadata"]["deletionTimestamp"] = seconds(now);
    value["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    if !value["status"].is_object() {
        value["status"] = json!({});
    }
    value["status"]["phase"] = "Terminating".into();
    Ok(Decision::Mark(value))
}

/// A time as Kubernetes writes it: whole seconds.
fn seconds(at: Timestamp) -> Value {
    clock::whole_seconds(at).to_string().into()
}

fn shift(at: Timestamp, seconds: i64) -> Timestamp {
    at.checked_add(Span::new().seconds(seconds)).unwrap_or(at)
}

/// Deletes an object; the answer is its last state, and whether it is gone.
///
/// # Errors
/// 404, 409 and 403 as [`decide`] says, and the store's.
pub async fn remove(call: &Call, key: &Key, options: &Options) -> Result<(Arc<Object>, bool), ApiError> {
    let mut newer: Option<Arc<Object>> = None;
    for _ in 0..CONFLICT_RETRIES {
        let current = newer
            .take()
            .or_else(|| call.shared.state.view.snapshot().find(key).cloned())
            .ok_or_else(|| ApiError::not_found(key))?;
        let (write, gone) = match decide(&current, options, clock::now())? {
            Decision::Nothing => return Ok((current, false)),
            Decision::Remove => (Write::Remove(key.clone(), Expected::state(&current)), true),
            Decision::Mark(value) => {
                let sealed = seal_json(key.kind, value.to_string().as_bytes())
                    .map_err(|e| ApiError::Internal(e.to_string()))?;
                if options.dry_run {
                    return Ok((Arc::new(sealed.at(current.revision)), false));
                }
                (Write::Replace(sealed, Expected::state(&current)), false)
            }
        };
        if options.dry_run {
            return Ok((current, gone));
        }
        match commit(&call.shared, write).await? {
            Ok(object) => return Ok((object, gone)),
            Err(CommitError::Conflict { current, .. }) => newer = Some(current),
            Err(refusal) => return Err(ApiError::commit(refusal)),
        }
    }
    Err(ApiError::conflict(key, super::error::MODIFIED))
}

/// DELETE of one object.
///
/// # Errors
/// See [`remove`].
pub async fn delete(call: &Call, body: Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let options = Options::parse(call, &body)?;
    let (object, gone) = remove(call, &key, &options).await?;
    // As Kubernetes: these kinds, and whatever still waits, are answered with the object.
    let with_object = matches!(key.kind, Kind::Pod | Kind::Service | Kind::ServiceAccount);
    if gone && !with_object {
        let status = success(key.kind, &key.name, object.uid().as_str(), 200);
        return Ok(json_response(200, status.to_string()));
    }
    Ok(json_response(200, render::object(&object, call.form, clock::now())))
}

/// DELETE of a collection: one object after the other, answered with their last states.
///
/// # Errors
/// See [`remove`]; objects that vanish meanwhile are none.
pub async fn collection(call: &Call, body: Bytes) -> Result<HttpResponse, ApiError> {
    let options = Options::parse(call, &body)?;
    let filter = Filter::parse(call.resource.kind, None, &call.query)?;
    let page = read::page(&call.shared.state.view, &call.resource, &call.query, &filter)?;
    let mut deleted = Vec::with_capacity(page.objects.len());
    for object in &page.objects {
        match remove(call, &object.key, &options).await {
            Ok((object, _)) => deleted.push(object),
            Err(ApiError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read::list_response(&call.resource, Page { objects: deleted, ..page }, call.form))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Revision;

    fn object(kind: Kind, mut document: Value) -> Object {
        document["metadata"]["uid"] = "u".into();
        seal_json(kind, document.to_string().as_bytes()).unwrap().at(Revision(7))
    }

    fn pod(extra: Value) -> Object {
        let mut document = json!({ "metadata": { "name": "p", "namespace": "a" },
            "spec": { "containers": [], "nodeName": "n", "terminationGracePeriodSeconds": 20 } });
        json_patch::merge(&mut document, &extra);
        object(Kind::Pod, document)
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:30Z".parse().unwrap()
    }

    fn with_grace(seconds: i64) -> Options {
        Options { grace_seconds: Some(seconds), ..Options::default() }
    }

    fn marked(object: &Object, options: &Options) -> (String, i64) {
        match decide(object, options, now()).unwrap() {
            Decision::Mark(value) => (
                value["metadata"]["deletionTimestamp"].as_str().unwrap().to_owned(),
                value["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_pods_that_a_kubelet_runs_are_given_grace() {
        let unbound = pod(json!({"spec": {"nodeName": null}}));
        let finished = pod(json!({"status": {"phase": "Succeeded"}}));
        for gone in [&unbound, &finished] {
            assert_eq!(decide(gone, &Options::default(), now()).unwrap(), Decision::Remove);
        }
        assert_eq!(decide(&pod(json!({})), &with_grace(0), now()).unwrap(), Decision::Remove);
        assert_eq!(marked(&pod(json!({})), &Options::default()), ("2030-01-01T00:00:50Z".into(), 20));
        assert_eq!(marked(&pod(json!({})), &with_grace(-5)).1, 1);
        assert_eq!(marked(&pod(json!({})), &with_grace(i64::MAX)).1, MAX_GRACE_SECONDS);
    }

    #[test]
    fn a_second_deletion_may_only_shorten_the_grace() {
        let deleting = pod(json!({"metadata": {"deletionTimestamp": "2030-01-01T00:00:40Z",
            "deletionGracePeriodSeconds": 20}}));
        assert_eq!(decide(&deleting, &Options::default(), now()).unwrap(), Decision::Nothing);
        assert_eq!(decide(&deleting, &with_grace(60), now()).unwrap(), Decision::Nothing);
        assert_eq!(marked(&deleting, &with_grace(15)), ("2030-01-01T00:00:35Z".into(), 15));
        assert_eq!(decide(&deleting, &with_grace(0), now()).unwrap(), Decision::Remove);
    }

    #[test]
    fn finalizers_hold_any_object_and_propagation_adds_them() {
        let plain = object(Kind::ConfigMap, json!({"metadata": {"name": "c", "namespace": "a"}}));
        assert_eq!(decide(&plain, &Options::default(), now()).unwrap(), Decision::Remove);
        for (propagation, finalizer) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)]
        {
            let options = Options { propagation: Some(propagation), ..Options::default() };
            let Decision::Mark(value) = decide(&plain, &options, now()).unwrap() else { panic!() };
            assert_eq!(value["metadata"]["finalizers"], json!([finalizer]));
        }
        let held = object(
            Kind::ConfigMap,
            json!({"metadata": {"name": "c", "namespace": "a", "finalizers": ["x/y"]}}),
        );
        assert_eq!(marked(&held, &Options::default()), ("2030-01-01T00:00:30Z".into(), 0));
    }

    #[test]
    fn preconditions_must_hold() {
        let pod = pod(json!({}));
        for options in [
            Options { uid: Some("other".into()), ..Options::default() },
            Options { revision: Some("6".into()), ..Options::default() },
        ] {
            assert_eq!(decide(&pod, &options, now()).unwrap_err().code(), 409);
        }
    }

    #[test]
    fn namespaces_wait_for_their_contents_and_some_cannot_go() {
        let namespace = |name: &str, extra: Value| {
            let mut document = json!({"metadata": {"name": name}, "spec": {"finalizers": ["kubernetes"]}});
            json_patch::merge(&mut document, &extra);
            object(Kind::Namespace, document)
        };
        let Decision::Mark(value) = decide(&namespace("x", json!({})), &Options::default(), now()).unwrap()
        else {
            panic!()
        };
        assert_eq!(value["status"]["phase"], "Terminating");
        let default = decide(&namespace("default", json!({})), &Options::default(), now());
        assert_eq!(
            default.unwrap_err().to_string(),
            "namespaces \"default\" is forbidden: this namespace may not be deleted"
        );
        let twice = namespace("x", json!({"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z"}}));
        assert_eq!(decide(&twice, &Options::default(), now()).unwrap_err().code(), 409);
        let empty = namespace("x", json!({"spec": {"finalizers": null}}));
        assert_eq!(decide(&empty, &Options::default(), now()).unwrap(), Decision::Remove);
    }
}
