//! Label and field selectors as in query strings: `app in (a,b),!tier`, `metadata.name=web`.

use super::{Labels, Object};

/// A parsed label selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {}

impl LabelSelector {
    /// Parses `labelSelector=`; an empty text selects everything.
    ///
    /// # Errors
    /// A sentence for the client.
    pub fn parse(_text: &str) -> Result<LabelSelector, String> {
        Ok(LabelSelector {})
    }

    /// Whether these labels are selected.
    pub fn matches(&self, _labels: &Labels) -> bool {
        true
    }
}

/// A parsed field selector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {}

impl FieldSelector {
    /// Parses `fieldSelector=` for a kind; an empty text selects everything.
    ///
    /// # Errors
    /// A sentence for the client: `field label not supported: x`.
    pub fn parse(_kind: super::Kind, _text: &str) -> Result<FieldSelector, String> {
        Ok(FieldSelector {})
    }

    /// Whether this object is selected.
    pub fn matches(&self, _object: &Object) -> bool {
        true
    }
}
