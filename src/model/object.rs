//! Objects: the compact facet actors read, and the JSON document clients get.
//!
//! Owns: the path from a typed Kubernetes object to what the store keeps. A [`Sealed`] is an object ready to be stored
//! (no revision yet); the store gives it a [`Revision`] and it becomes an [`Object`], for good.
//! Invariant: `facet` and `json` of one object say the same; `json` is a whole document with `apiVersion`, `kind` and
//! `metadata.resourceVersion`, ready to be sent. Validation and defaulting happen before, in [`crate::model::admit`].

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
    jiff::Timestamp,
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Key, Kind, KindFacet, LabelSet, Revision, Uid};

/// Labels, or a selector's equalities.
pub type Labels = BTreeMap<String, String>;

/// Most objects have none.
static NO_LABELS: LazyLock<Arc<LabelSet>> = LazyLock::new(Arc::default);

/// A list as facets keep it. All that are empty, as most are, are one: the standard library's own.
pub(super) fn shared<T>(items: impl Iterator<Item = T>) -> Arc<[T]> {
    let mut items = items.peekable();
    if items.peek().is_none() { Arc::default() } else { items.collect() }
}

/// Bytes of a revision before a record's document.
const REVISION_BYTES: usize = 8;

/// An object as the store keeps it. Immutable: a change is a new `Object` under a new revision.
#[derive(Clone, Debug)]
pub struct Object {
    /// Kind, namespace and name.
    pub key: Key,
    /// The change that made this state of it.
    pub revision: Revision,
    /// What actors read.
    pub facet: Facet,
    /// What clients get: the whole document, `resourceVersion` included.
    pub json: Bytes,
    /// What the disk gets: the revision, and `json`, which is a part of this.
    record: Bytes,
}

impl Object {
    /// The object's uid.
    pub fn uid(&self) -> &Uid {
        &self.facet.meta.uid
    }

    /// The same state under a later revision: how the end of an object is told.
    pub fn restamped(&self, revision: Revision) -> Object {
        let old = format!("\"metadata\":{{\"resourceVersion\":\"{}\"", self.revision);
        let new = format!("\"metadata\":{{\"resourceVersion\":\"{revision}\"");
        match self.json.windows(old.len()).position(|w| w == old.as_bytes()) {
            Some(at) => {
                let parts = [&self.json[..at], new.as_bytes(), &self.json[at + old.len()..]];
                self.with_document(revision, &parts)
            }
            None => self.with_document(revision, &[&self.json]),
        }
    }

    /// The same with another revision and another document, which is made of these parts.
    pub fn with_document(&self, revision: Revision, parts: &[&[u8]]) -> Object {
        Object::assemble(self.key.clone(), self.facet.clone(), revision, parts)
    }

    fn assemble(key: Key, facet: Facet, revision: Revision, parts: &[&[u8]]) -> Object {
        let length = REVISION_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let mut record = Vec::with_capacity(length);
        record.extend_from_slice(&revision.0.to_be_bytes());
        parts.iter().for_each(|part| record.extend_from_slice(part));
        let record = Bytes::from(record);
        Object { key, revision, facet, json: record.slice(REVISION_BYTES..), record }
    }

    /// The revision (8 bytes, big endian) and the document in one: both are in memory once, whoever keeps this.
    pub fn record(&self) -> &Bytes {
        &self.record
    }

    /// Parses the document back into Kubernetes' type for it.
    ///
    /// # Errors
    /// When `K` is not the document's type.
    pub fn parse<K: DeserializeOwned>(&self) -> Result<K, serde_json::Error> {
        serde_json::from_slice(&self.json)
    }
}

/// An object that is complete (defaults, uid, creation time) and waits only for its revision.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Kind, namespace and name.
    pub key: Key,
    /// What actors will read.
    pub facet: Facet,
    /// The document without `resourceVersion`.
    json: Vec<u8>,
    /// Where in `json` the first field of `metadata` begins.
    splice: usize,
}

impl Sealed {
    /// Puts the revision into the document.
    pub fn at(self, revision: Revision) -> Object {
        let field = format!("\"resourceVersion\":\"{revision}\",");
        let (head, tail) = self.json.split_at(self.splice);
        Object::assemble(self.key, self.facet, revision, &[head, field.as_bytes(), tail])
    }

    /// Whether this is the same document as the object's, but for `resourceVersion`.
    pub fn same_as(&self, object: &Object) -> bool {
        let (head, tail) = self.json.split_at(self.splice);
        let field = format!("\"resourceVersion\":\"{}\",", object.revision);
        object
            .json
            .strip_prefix(head)
            .and_then(|rest| rest.strip_prefix(field.as_bytes()))
            .is_some_and(|rest| rest == tail)
    }

    /// The document without `resourceVersion`: what is written to disk beside the revision.
    pub fn document(&self) -> &[u8] {
        &self.json
    }
}

/// Kubernetes types that Troupe stores. `facet` draws the compact view from the typed object.
pub trait Stored: Serialize + DeserializeOwned + Clone + Send + 'static {
    /// Which kind it is.
    const KIND: Kind;
    /// The object's metadata.
    fn meta(&self) -> &ObjectMeta;
    /// The object's metadata, to change.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
    /// What actors need to know of this kind.
    fn kind_facet(&self) -> KindFacet;
}

/// Why a document could not be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The JSON is not an object of the kind.
    #[error("document is not a valid {kind}: {source}")]
    Parse {
        /// The expected kind.
        kind: Kind,
        /// What serde says.
        source: serde_json::Error,
    },
    /// `metadata.name` or `metadata.uid` is missing: a defect of the caller.
    #[error("{kind} without metadata.{field}")]
    Incomplete {
        /// The kind.
        kind: Kind,
        /// The missing field.
        field: &'static str,
    },
}

/// Seals a typed object: draws its facet and writes its document. `resourceVersion` is dropped: the store sets it.
///
/// # Errors
/// When name or uid are missing.
pub fn seal<K: Stored>(object: &K) -> Result<Sealed, SealError> {
    seal_owned(object.clone())
}

/// As [`seal`], for an object that is not needed any more.
///
/// # Errors
/// As [`seal`].
pub fn seal_owned<K: Stored>(mut object: K) -> Result<Sealed, SealError> {
    let kind = K::KIND;
    object.meta_mut().resource_version = None;
    let meta = object.meta();
    let name = meta.name.as_deref().ok_or(SealError::Incomplete { kind, field: "name" })?;
    let uid = meta.uid.as_deref().ok_or(SealError::Incomplete { kind, field: "uid" })?;
    let key = Key::new(
        kind,
        if kind.namespaced() { meta.namespace.as_deref().unwrap_or("default") } else { "" },
        name,
    );
    let facet = Facet { meta: Meta::draw(meta, uid), of: object.kind_facet() };
    let json = serde_json::to_vec(&object).map_err(|source| SealError::Parse { kind, source })?;
    let marker = b"\"metadata\":{";
    let splice = json
        .windows(marker.len())
        .position(|w| w == marker)
        .map(|at| at + marker.len())
        .ok_or(SealError::Incomplete { kind, field: "metadata" })?;
    Ok(Sealed { key, facet, json, splice })
}

/// Parses a document of that kind and seals it: what recovery from disk and generic writers use.
///
/// # Errors
/// When the document is not of that kind, or incomplete.
pub fn seal_json(kind: Kind, json: &[u8]) -> Result<Sealed, SealError> {
    fn go<K: Stored>(json: &[u8]) -> Result<Sealed, SealError> {
        let object: K =
            serde_json::from_slice(json).map_err(|source| SealError::Parse { kind: K::KIND, source })?;
        seal_owned(object)
    }
    match kind {
        Kind::Namespace => go::<v1::Namespace>(json),
        Kind::Node => go::<v1::Node>(json),
        Kind::Pod => go::<v1::Pod>(json),
        Kind::ReplicationController => go::<v1::ReplicationController>(json),
        Kind::Service => go::<v1::Service>(json),
        Kind::Endpoints => go::<v1::Endpoints>(json),
        Kind::Event => go::<v1::Event>(json),
        Kind::ConfigMap => go::<v1::ConfigMap>(json),
        Kind::Secret => go::<v1::Secret>(json),
        Kind::ServiceAccount => go::<v1::ServiceAccount>(json),
    }
}

/// What actors read of an object, without its document.
#[derive(Clone, Debug)]
pub struct Facet {
    /// What every kind has.
    pub meta: Meta,
    /// What this kind has.
    pub of: KindFacet,
}

/// The metadata actors read.
#[derive(Clone, Debug)]
pub struct Meta {
    /// The uid.
    pub uid: Uid,
    /// The labels.
    pub labels: Arc<LabelSet>,
    /// Owner references, in the document's order.
    pub owners: Arc<[Owner]>,
    /// When it was created.
    pub created: Timestamp,
    /// Set once deletion was asked for.
    pub deleting: Option<Deleting>,
    /// Who must act before the object may vanish.
    pub finalizers: Arc<[String]>,
    /// Counts changes of `spec`.
    pub generation: i64,
}

/// Deletion in progress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deleting {
    /// `metadata.deletionTimestamp`: when the grace ends.
    pub at: Timestamp,
    /// `metadata.deletionGracePeriodSeconds`.
    pub grace_seconds: i64,
}

/// One owner reference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Owner {
    /// The owner's uid.
    pub uid: Uid,
    /// The owner's `kind` field.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// Whether it is the managing controller: at most one is.
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    pub block_owner_deletion: bool,
}

impl Meta {
    fn draw(meta: &ObjectMeta, uid: &str) -> Meta {
        Meta {
            uid: uid.into(),
            labels: meta.labels.as_ref().map_or_else(|| NO_LABELS.clone(), |labels| Arc::new(labels.into())),
            owners: shared(meta.owner_references.iter().flatten().map(Owner::draw)),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0),
            deleting: meta.deletion_timestamp.as_ref().map(|t| Deleting {
                at: t.0,
                grace_seconds: meta.deletion_grace_period_seconds.unwrap_or(0),
            }),
            finalizers: shared(meta.finalizers.iter().flatten().cloned()),
            generation: meta.generation.unwrap_or(0),
        }
    }

    /// Takes over what is the same in an earlier state: of most changes, the labels.
    pub fn share(&mut self, earlier: &Meta) {
        if self.uid == earlier.uid {
            self.uid = earlier.uid.clone();
        }
        if self.labels == earlier.labels {
            self.labels = earlier.labels.clone();
        }
        if self.owners == earlier.owners {
            self.owners = earlier.owners.clone();
        }
        if self.finalizers == earlier.finalizers {
            self.finalizers = earlier.finalizers.clone();
        }
    }

    /// The managing controller, if any.
    pub fn controller(&self) -> Option<&Owner> {
        self.owners.iter().find(|o| o.controller)
    }
}

impl Owner {
    fn draw(owner: &OwnerReference) -> Owner {
        Owner {
            uid: owner.uid.as_str().into(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
            controller: owner.controller.unwrap_or(false),
            block_owner_deletion: owner.block_owner_deletion.unwrap_or(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_objects_do_not_have_takes_no_memory_of_each() {
        let seal = |name: &str| {
            let json = format!(r#"{{"metadata":{{"name":"{name}","namespace":"a","uid":"{name}"}}}}"#);
            seal_json(Kind::ConfigMap, json.as_bytes()).unwrap().facet.meta
        };
        let (one, other) = (seal("one"), seal("other"));
        assert!(Arc::ptr_eq(&one.labels, &other.labels) && Arc::ptr_eq(&one.owners, &other.owners));
        assert!(Arc::ptr_eq(&one.finalizers, &other.finalizers));
    }
}
