//! The two writes of an object's end: the mark, and the finalizers that go one by one.
//!
//! Owns: pure edits of stored objects' metadata. Who may do them, and when an object without finalizers vanishes, is
//! for the callers to decide.

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};

use super::{Kind, Object, SealError, Sealed, Stored, object::seal_owned};

/// The seconds that a pod has to end, of those that were asked for: less than none is the least that is still a grace, as in
/// Kubernetes.
pub fn effective_grace(asked_seconds: i64) -> i64 {
    if asked_seconds < 0 { 1 } else { asked_seconds }
}

/// Marks an object for deletion: `at` is when its grace of `grace_seconds` ends; `finalizers_extra` are added (such as
/// `foregroundDeletion`). A mark that is there already is only ever brought forward. A namespace becomes `Terminating`.
///
/// # Errors
/// When the stored document cannot be read.
pub fn mark_deleting(
    object: &Object,
    at: Timestamp,
    grace_seconds: i64,
    finalizers_extra: &[&str],
) -> Result<Sealed, SealError> {
    let mark = |meta: &mut ObjectMeta| {
        let at = Timestamp::from_second(at.as_second()).unwrap_or(at);
        let sooner = meta.deletion_timestamp.as_ref().is_none_or(|present| at < present.0);
        if meta.deletion_timestamp.is_none() {
            // Asking for deletion is a change of what is desired.
            meta.generation = meta.generation.filter(|g| *g > 0).map(|g| g + 1);
        }
        if sooner {
            meta.deletion_timestamp = Some(Time(at));
            meta.deletion_grace_period_seconds = Some(grace_seconds);
        }
        for extra in finalizers_extra {
            let list = meta.finalizers.get_or_insert_default();
            if !list.iter().any(|f| f == extra) {
                list.push((*extra).to_owned());
            }
        }
    };
    if object.key.kind == Kind::Namespace {
        return edit_as::<v1::Namespace>(object, |namespace| {
            mark(&mut namespace.metadata);
            namespace.status.get_or_insert_default().phase = Some("Terminating".to_owned());
        });
    }
    edit(object, mark)
}

/// Takes a finalizer away, from a namespace also in its `spec`; without effect when it is not there.
///
/// # Errors
/// When the stored document cannot be read.
pub fn remove_finalizer(object: &Object, finalizer: &str) -> Result<Sealed, SealError> {
    let strike = |finalizers: &mut Option<Vec<String>>| {
        if let Some(list) = finalizers {
            list.retain(|f| f != finalizer);
            if list.is_empty() {
                *finalizers = None;
            }
        }
    };
    if object.key.kind == Kind::Namespace {
        return edit_as::<v1::Namespace>(object, |namespace| {
            strike(&mut namespace.metadata.finalizers);
            strike(&mut namespace.spec.get_or_insert_default().finalizers);
        });
    }
    edit(object, |meta| strike(&mut meta.finalizers))
}

/// Parses an object, changes it, seals it again.
fn edit_as<K: Stored>(object: &Object, change: impl FnOnce(&mut K)) -> Result<Sealed, SealError> {
    let mut typed: K = object.parse().map_err(|source| SealError::Parse { kind: K::KIND, source })?;
    change(&mut typed);
    seal_owned(typed)
}

/// As [`edit_as`], for a change of metadata, whatever the kind.
fn edit(object: &Object, change: impl FnOnce(&mut ObjectMeta)) -> Result<Sealed, SealError> {
    fn go<K: Stored>(object: &Object, change: impl FnOnce(&mut ObjectMeta)) -> Result<Sealed, SealError> {
        edit_as::<K>(object, |typed| change(typed.meta_mut()))
    }
    match object.key.kind {
        Kind::Namespace => go::<v1::Namespace>(object, change),
        Kind::Node => go::<v1::Node>(object, change),
        Kind::Pod => go::<v1::Pod>(object, change),
        Kind::ReplicationController => go::<v1::ReplicationController>(object, change),
        Kind::Service => go::<v1::Service>(object, change),
        Kind::Endpoints => go::<v1::Endpoints>(object, change),
        Kind::Event => go::<v1::Event>(object, change),
        Kind::ConfigMap => go::<v1::ConfigMap>(object, change),
        Kind::Secret => go::<v1::Secret>(object, change),
        Kind::ServiceAccount => go::<v1::ServiceAccount>(object, change),
    }
}
