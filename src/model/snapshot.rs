//! One consistent picture of every object at one revision.
//!
//! Owns: the immutable map readers take. Cloning is O(1) (a persistent tree), so the store publishes a new one after
//! every group of changes and readers never wait for it. Leaves writing to [`crate::store`].

use std::{ops::Bound, sync::Arc};

use imbl::OrdMap;

use super::{Key, Kind, Object, Revision};

/// Every object at one revision.
#[derive(Clone, Default, Debug)]
pub struct Snapshot {
    /// The newest change contained.
    pub revision: Revision,
    objects: OrdMap<Key, Arc<Object>>,
}

impl Snapshot {
    /// The object of that key.
    pub fn find(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// A kind's objects in key order; of one namespace if given.
    pub fn list<'a>(
        &'a self,
        kind: Kind,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        self.list_after(Key::new(kind, namespace.unwrap_or(""), ""), namespace)
    }

    /// As [`Snapshot::list`], but only what comes after `after` (for `continue` tokens).
    pub fn list_after<'a>(
        &'a self,
        after: Key,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let kind = after.kind;
        self.objects
            .range((Bound::Excluded(after), Bound::Unbounded))
            .map(|(_, o)| o)
            .take_while(move |o| o.key.kind == kind && namespace.is_none_or(|n| &*o.key.namespace == n))
    }

    /// Every object.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.values()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Puts an object in; for the store alone.
    pub fn insert(&mut self, object: Arc<Object>) {
        self.objects.insert(object.key.clone(), object);
    }

    /// Takes an object out; for the store alone.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        self.objects.remove(key)
    }
}
