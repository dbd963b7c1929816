//! The registry of kinds: what a kind means to the API, one row each.

use super::Kind;

/// What the API must know of a kind beyond its name.
#[derive(Debug)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Verbs of the resource itself, as in discovery.
    pub verbs: &'static [&'static str],
    /// Its subresources.
    pub subresources: &'static [Subresource],
}

/// A subresource in discovery.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// `status`, `scale`, `binding`, `log`…
    pub name: &'static str,
    /// The kind of its body: `Pod`, `Scale`, `Binding`…
    pub kind: &'static str,
    /// Its group and version when it differs from the resource's: `("autoscaling", "v1")`.
    pub group_version: Option<(&'static str, &'static str)>,
    /// Its verbs.
    pub verbs: &'static [&'static str],
}

/// The row of a kind.
pub fn row(kind: Kind) -> &'static Row {
    const VERBS: &[&str] =
        &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    static POD: Row = Row {
        kind: Kind::Pod,
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        verbs: VERBS,
        subresources: &[],
    };
    let _ = kind;
    &POD
}
