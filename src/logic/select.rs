//! Which selectors match an object's labels, without asking each of them.
//!
//! Owns: [`SelectorIndex`], equality selectors filed under their first pair. A lookup costs the labels of the object
//! plus the selectors that share such a pair, however many selectors there are.
//! Invariant: an empty selector matches nothing.

use std::{collections::HashMap, sync::Arc};

use crate::model::{LabelSet, Labelled, Labels};

/// Whether labels satisfy every equality of a selector. An empty selector matches nothing.
pub fn matches(selector: &Labels, labels: &impl Labelled) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.label(k) == Some(v.as_str()))
}

type Filed<T> = Vec<(T, Labels)>;
/// Label name, then its value.
type ByPair<T> = HashMap<String, HashMap<String, Filed<T>>>;

/// Equality selectors of many owners, by namespace and first pair.
#[derive(Debug)]
pub struct SelectorIndex<T> {
    namespaces: HashMap<Arc<str>, ByPair<T>>,
}

impl<T> Default for SelectorIndex<T> {
    fn default() -> Self {
        SelectorIndex { namespaces: HashMap::new() }
    }
}

impl<T: PartialEq> SelectorIndex<T> {
    /// Files a selector. The same owner may file several.
    pub fn insert(&mut self, namespace: &Arc<str>, selector: &Labels, owner: T) {
        if let Some((key, value)) = selector.first_key_value() {
            let keys = self.namespaces.entry(namespace.clone()).or_default();
            let filed = keys.entry(key.clone()).or_default().entry(value.clone()).or_default();
            filed.push((owner, selector.clone()));
        }
    }

    /// Takes a selector out again.
    pub fn remove(&mut self, namespace: &str, selector: &Labels, owner: &T) {
        let Some((key, value)) = selector.first_key_value() else { return };
        let Some(keys) = self.namespaces.get_mut(namespace) else { return };
        if let Some(values) = keys.get_mut(key) {
            if let Some(filed) = values.get_mut(value) {
                filed.retain(|(o, s)| o != owner || s != selector);
                if filed.is_empty() {
                    values.remove(value);
                }
            }
            if values.is_empty() {
                keys.remove(key);
            }
        }
        if keys.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    /// The owners whose selectors match these labels.
    pub fn matching<'a>(&'a self, namespace: &str, labels: &'a LabelSet) -> impl Iterator<Item = &'a T> {
        let keys = self.namespaces.get(namespace);
        labels
            .iter()
            .filter_map(move |(k, v)| keys?.get(k)?.get(v))
            .flatten()
            .filter(|(_, selector)| matches(selector, labels))
            .map(|(owner, _)| owner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map("[ab]", "[xy]", 0..3)
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_what_asking_each_selector_finds(
            selectors in proptest::collection::vec(labels(), 0..8),
            removed in 0_usize..8,
            asked in labels(),
        ) {
            let namespace: Arc<str> = "default".into();
            let mut index = SelectorIndex::default();
            for (owner, selector) in selectors.iter().enumerate() {
                index.insert(&namespace, selector, owner);
            }
            if let Some(selector) = selectors.get(removed) {
                index.remove(&namespace, selector, &removed);
            }
            let asked = LabelSet::from(&asked);
            let mut found: Vec<usize> = index.matching("default", &asked).copied().collect();
            found.sort_unstable();
            let expected: Vec<usize> = (0..selectors.len())
                .filter(|i| *i != removed && matches(&selectors[*i], &asked))
                .collect();
            prop_assert_eq!(found, expected);
            prop_assert!(index.matching("other", &asked).next().is_none());
        }
    }
}
