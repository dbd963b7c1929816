//! Subresources that are small requests: `scale`, `binding`, `eviction`, `finalize`.
//!
//! Owns: what each means for the object beneath it; all end in one compare-and-swap of that object. Streams (`log`,
//! the node proxy) are in [`super::log`] and [`super::images`].

use actix_web::HttpResponse;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{
    clock,
    delete::{self, Options},
    error::{ApiError, success},
    patch::Patch,
    read::json_response,
    render::Form,
    write::{CONFLICT_RETRIES, Call, Wanted, commit, document, modify, with_warnings},
};
use crate::{
    messages::{CommitError, Expected, Write},
    model::{Kind, KindFacet, Object, admit::Part, seal_json, table},
};

/// GET of a scale.
///
/// # Errors
/// 404.
pub fn get_scale(call: &Call) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let snapshot = call.shared.state.view.snapshot();
    let object = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
    Ok(json_response(200, shown(scale(object)?, object, call.form).to_string()))
}

/// A scale as it was asked for: for people, what is wanted and what is there.
fn shown(scale: Value, object: &Object, form: Form) -> Value {
    let Form::Table { version, .. } = form else { return scale };
    let column = |(name, kind, format): &(&str, &str, &str)| json!({ "name": name, "type": kind, "format": format, "description": "", "priority": 0 });
    let columns = [
        ("Name", "string", "name"),
        ("Desired", "integer", ""),
        ("Available", "integer", ""),
        ("Age", "string", ""),
    ];
    let age = table::since(Some(object.facet.meta.created), clock::now());
    let cells =
        json!([scale["metadata"]["name"], scale["spec"]["replicas"], scale["status"]["replicas"], age]);
    let partial = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": scale["metadata"] });
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": { "resourceVersion": scale["metadata"]["resourceVersion"] },
        "columnDefinitions": columns.iter().map(column).collect::<Vec<_>>(),
        "rows": [{ "cells": cells, "object": partial }],
    })
}

/// The `autoscaling/v1 Scale` of an object.
fn scale(object: &Object) -> Result<Value, ApiError> {
    let document = document(object)?;
    let metadata = &document["metadata"];
    let selector = match &object.facet.of {
        KindFacet::ReplicationController(rc) => {
            rc.selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    };
    Ok(json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": { "replicas": document["spec"]["replicas"].as_i64().unwrap_or(1) },
        "status": { "replicas": document["status"]["replicas"].as_i64().unwrap_or(0), "selector": selector },
    }))
}

/// PUT or PATCH of a scale: `change` makes the new scale of the present one.
///
/// # Errors
/// 404, 409, 422 for a number of replicas that cannot be.
pub async fn set_scale(
    call: &Call,
    change: impl Fn(Value) -> Result<Value, ApiError>,
) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let outcome = modify(call, &key, Part::Main, |current| {
        let present = scale(current)?;
        let wanted = change(present.clone())?;
        let replicas = wanted["spec"]["replicas"].as_i64().unwrap_or(0);
        if !(0..=i64::from(i32::MAX)).contains(&replicas) {
            return Err(ApiError::Invalid {
                kind: "Scale".into(),
                name: key.name.to_string(),
                causes: vec![crate::model::admit::Cause {
                    field: "spec.replicas".into(),
                    reason: "FieldValueInvalid",
                    message: format!("Invalid value: {replicas}: must be greater than or equal to 0"),
                }],
            });
        }
        let revision = wanted["metadata"]["resourceVersion"].as_str().filter(|r| !r.is_empty());
        let revision = revision.filter(|r| Some(*r) != present["metadata"]["resourceVersion"].as_str());
        if revision.is_some() {
            return Err(ApiError::conflict(&key, super::error::MODIFIED));
        }
        let mut document = document(current)?;
        document["spec"]["replicas"] = replicas.into();
        Ok(Wanted::unconditional(&document))
    })
    .await?;
    Ok(with_warnings(json_response(200, scale(&outcome.object)?.to_string()), &outcome.warnings))
}

/// The change a PUT of a scale makes.
///
/// # Errors
/// 400 for what is no scale.
pub fn put_scale(body: &Bytes) -> Result<impl Fn(Value) -> Result<Value, ApiError>, ApiError> {
    let wanted: Value = serde_json::from_slice(body).map_err(|e| ApiError::BadRequest(e.to_string()))?;
    if !wanted.is_object() {
        return Err(ApiError::BadRequest("a Scale must be a JSON object".into()));
    }
    Ok(move |_| Ok(wanted.clone()))
}

/// The change a PATCH of a scale makes.
pub fn patch_scale(patch: &Patch) -> impl Fn(Value) -> Result<Value, ApiError> {
    move |present| patch.apply(Kind::ReplicationController, &present)
}

/// POST of a binding: gives a pod its node, once.
///
/// # Errors
/// 404, 409 when the pod has a node or gates or is being deleted, 400 for a target that is no node.
pub async fn bind(call: &Call, body: &Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let binding: Value = serde_json::from_slice(body).map_err(|e| ApiError::BadRequest(e.to_string()))?;
    let node = binding["target"]["name"].as_str().unwrap_or("");
    let kind = binding["target"]["kind"].as_str().unwrap_or("Node");
    if node.is_empty() || !matches!(kind, "" | "Node") {
        return Err(ApiError::BadRequest("target: a binding must name a Node".into()));
    }
    let refuse =
        |why: String| ApiError::Conflict { resource: "pods/binding".into(), name: key.name.to_string(), why };
    for _ in 0..CONFLICT_RETRIES {
        let snapshot = call.shared.state.view.snapshot();
        let current = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
        let KindFacet::Pod(pod) = &current.facet.of else { return Err(ApiError::UnknownPath) };
        if let Some(bound) = &pod.node {
            return Err(refuse(format!("pod {} is already assigned to node \"{bound}\"", key.name)));
        }
        if current.facet.meta.deleting.is_some() {
            return Err(refuse(format!("pod {} is being deleted, cannot be assigned to a host", key.name)));
        }
        if pod.gated {
            return Err(refuse(format!("pod {} has non-empty .spec.schedulingGates", key.name)));
        }
        let mut document = document(current)?;
        document["spec"]["nodeName"] = node.into();
        scheduled(&mut document);
        let sealed = seal_json(key.kind, document.to_string().as_bytes())
            .map_err(|e| ApiError::Internal(e.to_string()))?;
        if call.query.dry_run {
            return Ok(json_response(201, success(key.kind, &key.name, "", 201).to_string()));
        }
        match commit(&call.shared, Write::Replace(sealed, Expected::state(current))).await? {
            Ok(_) => return Ok(json_response(201, success(key.kind, &key.name, "", 201).to_string())),
            Err(CommitError::Conflict { .. }) => {}
            Err(refusal) => return Err(ApiError::commit(refusal)),
        }
    }
    Err(refuse(super::error::MODIFIED.into()))
}

/// Sets the condition `PodScheduled=True`.
fn scheduled(pod: &mut Value) {
    let now = clock::whole_seconds(clock::now()).to_string();
    let mut condition = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": now });
    if !pod["metadata"]["generation"].is_null() {
        condition["observedGeneration"] = pod["metadata"]["generation"].clone();
    }
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    match pod["status"]["conditions"].as_array_mut() {
        Some(conditions) => {
            conditions.retain(|c| c["type"] != "PodScheduled");
            conditions.push(condition);
        }
        None => pod["status"]["conditions"] = json!([condition]),
    }
}

/// POST of an eviction: a deletion that may be refused by a disruption budget, of which there are none yet.
///
/// # Errors
/// As a deletion.
pub async fn evict(call: &Call, body: &Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let eviction: Value = serde_json::from_slice(body).map_err(|e| ApiError::BadRequest(e.to_string()))?;
    let options = match eviction.get("deleteOptions").filter(|o| !o.is_null()) {
        Some(options) => Options::parse(call, options.to_string().as_bytes())?,
        None => Options::parse(call, b"")?,
    };
    delete::remove(call, &key, &options).await?;
    Ok(json_response(201, success(key.kind, &key.name, "", 201).to_string()))
}

/// PUT of `namespaces/NAME/finalize`: sets `spec.finalizers`. A namespace that is being deleted vanishes with the last.
///
/// # Errors
/// 404, 409.
pub async fn finalize(call: &Call, body: &Bytes) -> Result<HttpResponse, ApiError> {
    let key = call.key()?;
    let wanted = Wanted::from_body(key.kind, body.clone())?;
    let body: Value = serde_json::from_slice(body).map_err(|e| ApiError::BadRequest(e.to_string()))?;
    let finalizers = body["spec"]["finalizers"].clone();
    for _ in 0..CONFLICT_RETRIES {
        let snapshot = call.shared.state.view.snapshot();
        let current = snapshot.find(&key).ok_or_else(|| ApiError::not_found(&key))?;
        if wanted.revision.is_some_and(|r| r != current.revision) {
            return Err(ApiError::conflict(&key, super::error::MODIFIED));
        }
        let mut document = document(current)?;
        let empty = finalizers.as_array().is_none_or(Vec::is_empty);
        document["spec"]["finalizers"] = if empty { Value::Null } else { finalizers.clone() };
        let meta = &current.facet.meta;
        let write = if empty && meta.deleting.is_some() && meta.finalizers.is_empty() {
            Write::Remove(key.clone(), Expected::state(current))
        } else {
            let sealed = seal_json(key.kind, document.to_string().as_bytes())
                .map_err(|e| ApiError::BadRequest(e.to_string()))?;
            Write::Replace(sealed, Expected::state(current))
        };
        match commit(&call.shared, write).await? {
            Ok(object) => {
                return Ok(call.answer(200, &super::write::Outcome { object, warnings: Vec::new() }));
            }
            Err(CommitError::Conflict { .. }) if wanted.revision.is_none() => {}
            Err(refusal) => return Err(ApiError::commit(refusal)),
        }
    }
    Err(ApiError::conflict(&key, super::error::MODIFIED))
}
