//! Pods from a controller's template.
//!
//! Owns: the pod document that a template means, admitted once a batch (defaults, validation) and then stamped with a
//! name and a uid for each pod of it.

use std::collections::HashSet;

use k8s_openapi::{
    api::core::v1::{Pod, ReplicationController},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};

use super::{Controller, owner_reference};
use crate::{
    logic::service_accounts::{Given, Says},
    model::{
        Kind, SealError, Sealed, Snapshot, Uid,
        admit::{Admission, FieldValidation, Rejection, admit_create},
        seal,
    },
};

/// A generated name is at most a DNS label: 63 characters, five of them random (Kubernetes' name generator).
const MAX_BASE: usize = 58;
/// Names tried for one pod before giving up; 27^5 suffixes make even a second try rare.
const NAME_TRIES: usize = 16;

/// A name's random end and a uid, drawn by the caller.
pub struct Chance<'a> {
    /// Five characters of `bcdfghjklmnpqrstvwxz2456789`.
    pub suffix: &'a mut dyn FnMut() -> String,
    /// A new uid.
    pub uid: &'a mut dyn FnMut() -> Uid,
}

/// Why no pod could be made of a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The controller has no template.
    #[error("the controller has no pod template")]
    Missing,
    /// The pod that the template means is refused.
    #[error("pods \"{name}\" is invalid: {message}")]
    Refused {
        /// The pod's name.
        name: String,
        /// Why, in Kubernetes' words.
        message: String,
    },
    /// The pod that the template means may not run.
    #[error("pods \"{name}\" is forbidden: {message}")]
    Forbidden {
        /// The begin of the pod's name.
        name: String,
        /// Why, in Kubernetes' words.
        message: String,
    },
    /// It could not be written: a defect.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Every name tried is taken.
    #[error("no free name found for a pod of {0}")]
    NoName(String),
}

/// What the pods of a template are made of besides it.
pub struct Batch<'a> {
    /// How many.
    pub count: usize,
    /// Now.
    pub now: Timestamp,
    /// What they get of their account.
    pub given: Given,
    /// Names that are taken.
    pub taken: &'a dyn Fn(&str) -> bool,
}

/// What the pods of a template get of their account.
///
/// # Errors
/// When that account is not there.
pub fn given(
    controller: &Controller,
    typed: &ReplicationController,
    snapshot: &Snapshot,
) -> Result<Given, TemplateError> {
    let spec = typed.spec.as_ref().and_then(|s| s.template.as_ref()).and_then(|t| t.spec.as_ref());
    let Some(spec) = spec else { return Ok(Given::default()) };
    let says = Says::of(spec);
    let namespace = &controller.key.namespace;
    match says.forbids(namespace, snapshot) {
        Some(message) => Err(TemplateError::Forbidden { name: base_name(&controller.key.name), message }),
        None => Ok(says.given(namespace, snapshot)),
    }
}

/// Makes pods of a template, with names that are free.
///
/// # Errors
/// See [`TemplateError`].
pub fn pods(
    controller: &Controller,
    typed: &ReplicationController,
    batch: &Batch<'_>,
    chance: &mut Chance<'_>,
) -> Result<Vec<Sealed>, TemplateError> {
    let base = base_name(&controller.key.name);
    let mut used = HashSet::new();
    let mut name = |chance: &mut Chance<'_>| {
        (0..NAME_TRIES)
            .map(|_| format!("{base}{}", (chance.suffix)()))
            .find(|n| !(batch.taken)(n) && used.insert(n.clone()))
            .ok_or_else(|| TemplateError::NoName(controller.key.to_string()))
    };
    let first = name(chance)?;
    let volume = if batch.given.token { (chance.suffix)() } else { String::new() };
    let mut pod = admitted(controller, typed, &first, &base, (batch, &volume), (chance.uid)())?;
    let mut pods = Vec::with_capacity(batch.count);
    pods.push(seal(&pod)?);
    for _ in 1..batch.count {
        pod.metadata.name = Some(name(chance)?);
        pod.metadata.uid = Some((chance.uid)().to_string());
        pods.push(seal(&pod)?);
    }
    Ok(pods)
}

fn base_name(controller: &str) -> String {
    let base = format!("{controller}-");
    base.chars().take(MAX_BASE).collect()
}

/// The template's pod through the door that every pod passes.
fn admitted(
    controller: &Controller,
    typed: &ReplicationController,
    name: &str,
    base: &str,
    (batch, volume): (&Batch<'_>, &str),
    uid: Uid,
) -> Result<Pod, TemplateError> {
    let template = typed.spec.as_ref().and_then(|s| s.template.as_ref()).ok_or(TemplateError::Missing)?;
    let meta = template.metadata.clone().unwrap_or_default();
    let pod = Pod {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            generate_name: Some(base.to_owned()),
            namespace: Some(controller.key.namespace.to_string()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner_reference(controller)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let refused = |message: String| TemplateError::Refused { name: name.to_owned(), message };
    let json = serde_json::to_vec(&pod).map_err(|e| refused(e.to_string()))?;
    let json = batch.given.add_to(json, volume);
    let how = Admission {
        namespace: &controller.key.namespace,
        name: None,
        now: batch.now,
        uid,
        suffix: "",
        fields: FieldValidation::Ignore,
    };
    let admitted = admit_create(Kind::Pod, &json, &how).map_err(|rejection| match rejection {
        Rejection::BadRequest(text) => refused(text),
        Rejection::Invalid(causes) => {
            let texts: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
            refused(texts.join(", "))
        }
    })?;
    serde_json::from_slice(admitted.sealed.document()).map_err(|e| refused(e.to_string()))
}
