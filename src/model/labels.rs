//! An object's labels as its facet keeps them.
//!
//! Owns: [`LabelSet`], all keys and values in one text, in the keys' order. Each pod and node has one, which is read often
//! and never changed: a map of three labels takes 800 bytes, this 200. Leaves what may be a label to [`super::validate`].

use std::fmt;

use serde::{Serialize, Serializer};

use super::Labels;

/// What labels can be looked up in.
pub trait Labelled {
    /// The label's value, if there is the label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

impl Labelled for LabelSet {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key)
    }
}

/// Labels, compact and immutable.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct LabelSet {
    text: Box<str>,
    /// Where in it the keys and values end, in turns.
    ends: Box<[u32]>,
}

impl LabelSet {
    /// Each label, in the keys' order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut begin = 0;
        self.ends.chunks_exact(2).map(move |ends| {
            let mut next = |end: Option<&u32>| {
                let end = end.map_or(begin, |end| *end as usize);
                self.text.get(std::mem::replace(&mut begin, end)..end).unwrap_or_default()
            };
            (next(ends.first()), next(ends.last()))
        })
    }

    /// The label's value, if there is the label.
    pub fn get(&self, key: &str) -> Option<&str> {
        // There are a few.
        self.iter().find(|(of, _)| *of == key).map(|(_, value)| value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// As a map, to change.
    pub fn to_map(&self) -> Labels {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}

impl From<&Labels> for LabelSet {
    fn from(labels: &Labels) -> LabelSet {
        let texts = || labels.iter().flat_map(|(key, value)| [key.as_str(), value.as_str()]);
        let mut end = 0;
        let ends = texts().map(|text| {
            end += text.len();
            // No request is that long.
            u32::try_from(end).unwrap_or(u32::MAX)
        });
        LabelSet { ends: ends.collect(), text: texts().collect::<String>().into() }
    }
}

impl fmt::Debug for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Serialize for LabelSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_says_what_the_map_said(
            labels in prop::collection::btree_map(".{0,4}", ".{0,4}", 0..6), other in ".{0,4}",
        ) {
            let labels: Labels = labels;
            let set = LabelSet::from(&labels);
            prop_assert_eq!(&set.to_map(), &labels);
            prop_assert_eq!(set.is_empty(), labels.is_empty());
            for key in labels.keys().chain([&other]) {
                prop_assert_eq!(set.label(key), labels.label(key));
            }
            prop_assert_eq!(serde_json::to_value(&set).unwrap(), serde_json::to_value(&labels).unwrap());
            prop_assert_eq!(format!("{set:?}"), format!("{labels:?}"));
        }
    }

    #[test]
    fn sets_are_equal_when_each_label_is() {
        let set = |pairs: &[(&str, &str)]| {
            LabelSet::from(&pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Labels>())
        };
        assert_eq!(set(&[("a", "1"), ("b", "2")]), set(&[("b", "2"), ("a", "1")]));
        assert_ne!(set(&[("a", "1")]), set(&[("a1", "")]), "the text alone does not tell");
    }
}
