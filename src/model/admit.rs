//! The door: how a document from outside becomes a [`Sealed`] object.
//!
//! Owns the order of steps: parse (typed, unknown and duplicate fields found) → identity (name, namespace, uid,
//! creation time, generation, immutable metadata) → defaults → validation → seal. What a kind adds to it is in
//! `rules.rs`. Invariant: what passes is complete and valid; admitting it again changes nothing.

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};

use super::{
    Kind, Object, Sealed, Uid, decode::decode, fault::Faults, object::seal_owned, rules::Rules, validate,
};
pub use super::{
    deletion::{effective_grace, mark_deleting, remove_finalizer},
    unsupported::unsupported,
};

/// The longest name that `generateName` makes, suffix included.
const GENERATED_NAME_MAX: usize = 63;

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
    match kind {
        Kind::Namespace => create::<v1::Namespace>(json, how),
        Kind::Node => create::<v1::Node>(json, how),
        Kind::Pod => create::<v1::Pod>(json, how),
        Kind::ReplicationController => create::<v1::ReplicationController>(json, how),
        Kind::Service => create::<v1::Service>(json, how),
        Kind::Endpoints => create::<v1::Endpoints>(json, how),
        Kind::Event => create::<v1::Event>(json, how),
        Kind::ConfigMap => create::<v1::ConfigMap>(json, how),
        Kind::Secret => create::<v1::Secret>(json, how),
        Kind::ServiceAccount => create::<v1::ServiceAccount>(json, how),
    }
}

/// Which part of an object an update may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Everything but `status` (for kinds that have a status subresource).
    Main,
    /// Only `status` (and labels, annotations as Kubernetes allows).
    Status,
    /// Only a pod's `spec.ephemeralContainers`.
    EphemeralContainers,
    /// Only the resources of a pod's containers.
    Resize,
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
    match kind {
        Kind::Namespace => update::<v1::Namespace>(current, json, part, how),
        Kind::Node => update::<v1::Node>(current, json, part, how),
        Kind::Pod => update::<v1::Pod>(current, json, part, how),
        Kind::ReplicationController => update::<v1::ReplicationController>(current, json, part, how),
        Kind::Service => update::<v1::Service>(current, json, part, how),
        Kind::Endpoints => update::<v1::Endpoints>(current, json, part, how),
        Kind::Event => update::<v1::Event>(current, json, part, how),
        Kind::ConfigMap => update::<v1::ConfigMap>(current, json, part, how),
        Kind::Secret => update::<v1::Secret>(current, json, part, how),
        Kind::ServiceAccount => update::<v1::ServiceAccount>(current, json, part, how),
    }
}

fn create<K: Rules>(json: &[u8], how: &Admission<'_>) -> Result<Admitted, Rejection> {
    let (mut object, mut warnings) = decode::<K>(json, how.fields)?;
    // Documents carry whole seconds; the facet must say the same.
    let now = whole_seconds(how.now);
    let meta = object.meta_mut();
    home(K::KIND, meta, how)?;
    if meta.name.as_deref().is_none_or(str::is_empty) {
        meta.name = meta.generate_name.as_deref().filter(|p| !p.is_empty()).map(|p| generated(p, how.suffix));
    }
    meta.uid = Some(how.uid.to_string());
    meta.creation_timestamp = Some(now.clone());
    meta.deletion_timestamp = None;
    meta.deletion_grace_period_seconds = None;
    meta.generation = None;
    forget_bookkeeping(meta);
    object.prepare_create(&now);
    object.fill_in();
    object.settle(&now);
    let mut faults = Faults::default();
    validate::meta(K::KIND, object.meta(), &mut faults);
    object.validate(&mut faults);
    faults.into_result().map_err(Rejection::Invalid)?;
    warnings.extend(object.warnings());
    let sealed = seal_owned(object).map_err(|e| Rejection::BadRequest(e.to_string()))?;
    Ok(Admitted { sealed, warnings, unchanged: false })
}

fn update<K: Rules>(
    current: &Object,
    json: &[u8],
    part: Part,
    how: &Admission<'_>,
) -> Result<Admitted, Rejection> {
    let (mut object, mut warnings) = decode::<K>(json, how.fields)?;
    let old: K = current
        .parse()
        .map_err(|e| Rejection::BadRequest(format!("the stored {} cannot be read: {e}", current.key)))?;
    let meta = object.meta_mut();
    home(K::KIND, meta, how)?;
    let name = how.name.unwrap_or(&current.key.name);
    let given = meta.name.as_deref().unwrap_or_default();
    if given != name {
        return Err(Rejection::BadRequest(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        )));
    }
    keep_identity(meta, old.meta());
    if K::KIND == Kind::Node {
        keep_own(meta, old.meta());
    }
    forget_bookkeeping(meta);
    object.fill_in();
    object.prepare_update(&old, part);
    object.settle(&whole_seconds(how.now));
    let mut faults = Faults::default();
    validate::meta(K::KIND, object.meta(), &mut faults);
    validate::meta_update(object.meta(), old.meta(), &mut faults);
    object.validate_update(&old, part, &mut faults);
    faults.into_result().map_err(Rejection::Invalid)?;
    if matches!(part, Part::Main | Part::Resize) {
        warnings.extend(object.warnings());
    }
    let sealed = seal_owned(object).map_err(|e| Rejection::BadRequest(e.to_string()))?;
    let unchanged = sealed.same_as(current);
    Ok(Admitted { sealed, warnings, unchanged })
}

/// As documents carry times.
fn whole_seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The object lives where the URL says.
fn home(kind: Kind, meta: &mut ObjectMeta, how: &Admission<'_>) -> Result<(), Rejection> {
    if !kind.namespaced() {
        meta.namespace = None;
        return Ok(());
    }
    match meta.namespace.as_deref() {
        None | Some("") => meta.namespace = Some(how.namespace.to_owned()),
        Some(given) if given == how.namespace => {}
        Some(_) => {
            return Err(Rejection::BadRequest(
                "the namespace of the provided object does not match the namespace sent on the request"
                    .into(),
            ));
        }
    }
    Ok(())
}

fn generated(prefix: &str, suffix: &str) -> String {
    let mut end = prefix.len().min(GENERATED_NAME_MAX.saturating_sub(suffix.len()));
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &prefix[..end])
}

/// Fields that others keep (the store the revision) or that nobody keeps.
fn forget_bookkeeping(meta: &mut ObjectMeta) {
    meta.resource_version = None;
    meta.self_link = None;
    meta.managed_fields = None;
}

/// What a master notes on a node: whose key is the node's, above all. Without it the node would be turned away at its next
/// link, so a client that leaves it out (`kubectl replace`) takes nothing away.
const OWN: &str = "troupe.internal/";

fn keep_own(meta: &mut ObjectMeta, old: &ObjectMeta) {
    let is_own = |key: &String| key.starts_with(OWN);
    let kept: Vec<_> = old.annotations.iter().flatten().filter(|(key, _)| is_own(key)).collect();
    if kept.is_empty() && !meta.annotations.iter().flatten().any(|(key, _)| is_own(key)) {
        return;
    }
    let annotations = meta.annotations.get_or_insert_default();
    annotations.retain(|key, _| !is_own(key));
    annotations.extend(kept.into_iter().map(|(key, value)| (key.clone(), value.clone())));
}

/// Takes over what the client may leave out of an update and may not change.
fn keep_identity(meta: &mut ObjectMeta, old: &ObjectMeta) {
    if meta.uid.as_deref().is_none_or(str::is_empty) {
        meta.uid.clone_from(&old.uid);
    }
    if meta.creation_timestamp.is_none() {
        meta.creation_timestamp.clone_from(&old.creation_timestamp);
    }
    if old.deletion_timestamp.is_some() {
        meta.deletion_timestamp.clone_from(&old.deletion_timestamp);
        meta.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    }
    meta.generation = old.generation;
}

#[cfg(test)]
#[path = "admit_tests.rs"]
mod tests;
