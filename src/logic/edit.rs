//! Edits: what a controller wants changed, before it is a write to the store.
//!
//! Owns: [`Edit`], and the few ways controllers change documents: a typed change of fields, the beginning of an
//! object's end (graceful for pods, as the API's DELETE), and the dropping of a finalizer.
//! Invariant: an edit carries the very state it was decided on, so whoever commits it can compare and swap.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::{SignedDuration, Timestamp},
};

use crate::model::{
    Key, Kind, KindFacet, Object, SealError, Sealed, Stored,
    admit::{effective_grace, mark_deleting, remove_finalizer},
    seal,
};

/// Grace of a pod whose spec names none, in seconds: Kubernetes' default.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// How often a change without a revision is computed again on a newer state. Each time somebody else's change got through, so as
/// many as may be in flight are enough for all; the request's own time ends it before. Kubernetes goes on for as long as that.
pub const CONFLICT_RETRIES: usize = 400;

/// The finalizer of foreground deletion: the object stays until its blocking dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of orphaning deletion: the object stays until its dependents no longer name it.
pub const ORPHAN: &str = "orphan";

/// A change that a controller wants.
#[derive(Clone, Debug)]
pub enum Edit {
    /// A new object.
    Create(Sealed),
    /// A new state of an object, decided on this one.
    Replace(Sealed, Arc<Object>),
    /// The end of an object, decided on this state of it.
    Remove(Arc<Object>),
}

impl Edit {
    /// What it changes.
    pub fn key(&self) -> &Key {
        match self {
            Edit::Create(sealed) | Edit::Replace(sealed, _) => &sealed.key,
            Edit::Remove(object) => &object.key,
        }
    }
}

/// Why an edit could not be made: the stored document is not what its kind says, a defect.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// The document does not parse.
    #[error("cannot read {key}: {source}")]
    Read {
        /// The object.
        key: Key,
        /// What serde says.
        source: serde_json::Error,
    },
    /// The changed document cannot be sealed.
    #[error("cannot write {key}: {source}")]
    Write {
        /// The object.
        key: Key,
        /// Why.
        source: SealError,
    },
}

/// Changes fields of an object through its Kubernetes type.
///
/// # Errors
/// When the document is not of type `K`.
pub fn edit<K: Stored>(object: &Arc<Object>, change: impl FnOnce(&mut K)) -> Result<Edit, EditError> {
    let mut typed: K =
        object.parse().map_err(|source| EditError::Read { key: object.key.clone(), source })?;
    change(&mut typed);
    let sealed = seal(&typed).map_err(|source| EditError::Write { key: object.key.clone(), source })?;
    Ok(Edit::Replace(sealed, object.clone()))
}

/// Calls a generic function with the Kubernetes type of a kind.
macro_rules! with_type {
    ($kind:expr, $function:ident ( $($argument:expr),* )) => {
        match $kind {
            Kind::Namespace => $function::<v1::Namespace>($($argument),*),
            Kind::Node => $function::<v1::Node>($($argument),*),
            Kind::Pod => $function::<v1::Pod>($($argument),*),
            Kind::ReplicationController => $function::<v1::ReplicationController>($($argument),*),
            Kind::Service => $function::<v1::Service>($($argument),*),
            Kind::Endpoints => $function::<v1::Endpoints>($($argument),*),
            Kind::Event => $function::<v1::Event>($($argument),*),
            Kind::ConfigMap => $function::<v1::ConfigMap>($($argument),*),
            Kind::Secret => $function::<v1::Secret>($($argument),*),
            Kind::ServiceAccount => $function::<v1::ServiceAccount>($($argument),*),
        }
    };
}

/// Changes the metadata of an object of any kind.
///
/// # Errors
/// When the document is not of its kind.
pub fn edit_meta(object: &Arc<Object>, change: impl FnOnce(&mut ObjectMeta)) -> Result<Edit, EditError> {
    fn go<K: Stored>(object: &Arc<Object>, change: impl FnOnce(&mut ObjectMeta)) -> Result<Edit, EditError> {
        edit::<K>(object, |typed| change(typed.meta_mut()))
    }
    with_type!(object.key.kind, go(object, change))
}

/// Begins the end of an object, as DELETE with the default options does: a pod that a node runs is marked and gets its
/// grace, an object that finalizers hold is marked, everything else is removed. `None` when its end has begun already.
///
/// # Errors
/// When the document is not of its kind.
pub fn delete(object: &Arc<Object>, now: Timestamp) -> Result<Option<Edit>, EditError> {
    if object.facet.meta.deleting.is_some() {
        return Ok(None);
    }
    let grace = match &object.facet.of {
        KindFacet::Pod(pod) if pod.node.is_some() && !pod.phase.is_final() => Some(grace_of(object)?),
        _ => None,
    };
    match grace {
        Some(grace) if grace > 0 => mark(object, now, grace).map(Some),
        _ if !object.facet.meta.finalizers.is_empty() => mark(object, now, 0).map(Some),
        _ => Ok(Some(Edit::Remove(object.clone()))),
    }
}

fn grace_of(pod: &Arc<Object>) -> Result<i64, EditError> {
    let typed: v1::Pod = pod.parse().map_err(|source| EditError::Read { key: pod.key.clone(), source })?;
    let said = typed.spec.and_then(|s| s.termination_grace_period_seconds);
    Ok(effective_grace(said.unwrap_or(DEFAULT_GRACE_SECONDS)))
}

fn mark(object: &Arc<Object>, now: Timestamp, grace_seconds: i64) -> Result<Edit, EditError> {
    let at = now.checked_add(SignedDuration::from_secs(grace_seconds)).unwrap_or(now);
    let sealed = mark_deleting(object, at, grace_seconds, &[]);
    let sealed = sealed.map_err(|source| EditError::Write { key: object.key.clone(), source })?;
    Ok(Edit::Replace(sealed, object.clone()))
}

/// Ends an object without asking its node: for pods whose node is gone. Finalizers still hold it; `None` when they do
/// and it is marked already.
///
/// # Errors
/// When the document is not of its kind.
pub fn delete_now(object: &Arc<Object>, now: Timestamp) -> Result<Option<Edit>, EditError> {
    match (object.facet.meta.finalizers.is_empty(), object.facet.meta.deleting.is_some()) {
        (true, _) => Ok(Some(Edit::Remove(object.clone()))),
        (false, false) => mark(object, now, 0).map(Some),
        (false, true) => Ok(None),
    }
}

/// Takes a finalizer off an object. If that was the last thing that held a deleted object, the object ends.
///
/// # Errors
/// When the document is not of its kind.
pub fn drop_finalizer(object: &Arc<Object>, finalizer: &str) -> Result<Option<Edit>, EditError> {
    let meta = &object.facet.meta;
    if !meta.finalizers.iter().any(|f| f == finalizer) {
        return Ok(None);
    }
    let last = meta.finalizers.iter().all(|f| f == finalizer);
    let node_runs_it =
        matches!(&object.facet.of, KindFacet::Pod(p) if p.node.is_some() && !p.phase.is_final());
    let waits_for_content = object.key.kind == Kind::Namespace;
    if last && meta.deleting.is_some() && !node_runs_it && !waits_for_content {
        return Ok(Some(Edit::Remove(object.clone())));
    }
    let sealed = remove_finalizer(object, finalizer);
    let sealed = sealed.map_err(|source| EditError::Write { key: object.key.clone(), source })?;
    Ok(Some(Edit::Replace(sealed, object.clone())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::{Revision, seal_json};

    fn object(kind: Kind, mut value: Value) -> Arc<Object> {
        value["metadata"]["uid"] = "u".into();
        value["metadata"]["name"] = "x".into();
        value["metadata"]["namespace"] = "default".into();
        Arc::new(seal_json(kind, value.to_string().as_bytes()).unwrap().at(Revision(1)))
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_000).unwrap()
    }

    #[test]
    fn a_pod_on_a_node_gets_its_grace_and_any_other_goes_at_once() {
        let cases = [
            (json!({"metadata": {}, "spec": {"containers": [], "nodeName": "a"}}), Some(30)),
            (
                json!({"metadata": {}, "spec": {"containers": [], "nodeName": "a", "terminationGracePeriodSeconds": 5}}),
                Some(5),
            ),
            (
                json!({"metadata": {}, "spec": {"containers": [], "nodeName": "a", "terminationGracePeriodSeconds": 0}}),
                None,
            ),
            (
                json!({"metadata": {}, "spec": {"containers": [], "nodeName": "a", "terminationGracePeriodSeconds": -1}}),
                Some(1),
            ),
            (json!({"metadata": {}, "spec": {"containers": []}}), None),
            (
                json!({"metadata": {}, "spec": {"containers": [], "nodeName": "a"}, "status": {"phase": "Failed"}}),
                None,
            ),
            (json!({"metadata": {"finalizers": ["x/y"]}, "spec": {"containers": []}}), Some(0)),
        ];
        for (document, grace) in cases {
            let pod = object(Kind::Pod, document.clone());
            match (delete(&pod, now()).unwrap().unwrap(), grace) {
                (Edit::Replace(sealed, _), Some(grace)) => {
                    let deleting = sealed.facet.meta.deleting.unwrap();
                    assert_eq!(deleting.grace_seconds, grace, "{document}");
                    assert_eq!(deleting.at.as_second(), 1_000 + grace, "{document}");
                }
                (Edit::Remove(_), None) => {}
                (other, _) => panic!("{document}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_being_deleted_is_left_alone() {
        let pod = object(
            Kind::Pod,
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"containers": [], "nodeName": "a"}}),
        );
        assert!(delete(&pod, now()).unwrap().is_none());
    }

    #[test]
    fn the_last_finalizer_of_a_deleted_object_ends_it() {
        let deleted =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["orphan"]}});
        let map = object(Kind::ConfigMap, deleted);
        assert!(matches!(drop_finalizer(&map, ORPHAN).unwrap(), Some(Edit::Remove(_))));
        assert!(drop_finalizer(&map, FOREGROUND).unwrap().is_none());
        let alive = object(Kind::ConfigMap, json!({"metadata": {"finalizers": ["orphan", "x/y"]}}));
        let Some(Edit::Replace(sealed, _)) = drop_finalizer(&alive, ORPHAN).unwrap() else { panic!() };
        assert_eq!(&*sealed.facet.meta.finalizers, ["x/y".to_owned()]);
    }
}
