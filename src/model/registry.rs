//! The registry of kinds: what a kind means to the API, one row each.
//!
//! Owns: names, verbs and subresources as discovery tells them. How lists merge under a strategic merge patch is in
//! [`merge_key`]; columns are in [`crate::model::table`], defaults and validation in [`crate::model::admit`].

use super::Kind;
pub use super::merge::{MergeStrategy, merge_key};

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

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Namespaces go one by one.
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
/// A WebSocket begins with a GET, SPDY with a POST.
const STREAM: &[&str] = &["create", "get"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];

const fn stream(name: &'static str, kind: &'static str) -> Subresource {
    Subresource { name, kind, group_version: None, verbs: STREAM }
}

const fn status(kind: &'static str) -> Subresource {
    Subresource { name: "status", kind, group_version: None, verbs: READ_WRITE }
}

static ROWS: [Row; Kind::ALL.len()] = [
    Row {
        kind: Kind::Namespace,
        singular: "namespace",
        short_names: &["ns"],
        categories: &[],
        verbs: NAMESPACE_VERBS,
        subresources: &[
            Subresource { name: "finalize", kind: "Namespace", group_version: None, verbs: &["update"] },
            status("Namespace"),
        ],
    },
    Row {
        kind: Kind::Node,
        singular: "node",
        short_names: &["no"],
        categories: &[],
        verbs: VERBS,
        subresources: &[status("Node")],
    },
    Row {
        kind: Kind::Pod,
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        verbs: VERBS,
        subresources: &[
            stream("attach", "PodAttachOptions"),
            Subresource { name: "binding", kind: "Binding", group_version: None, verbs: &["create"] },
            Subresource { name: "ephemeralcontainers", kind: "Pod", group_version: None, verbs: READ_WRITE },
            Subresource {
                name: "eviction",
                kind: "Eviction",
                group_version: Some(("policy", "v1")),
                verbs: &["create"],
            },
            stream("exec", "PodExecOptions"),
            Subresource { name: "log", kind: "Pod", group_version: None, verbs: &["get"] },
            stream("portforward", "PodPortForwardOptions"),
            Subresource { name: "resize", kind: "Pod", group_version: None, verbs: READ_WRITE },
            status("Pod"),
        ],
    },
    Row {
        kind: Kind::ReplicationController,
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        verbs: VERBS,
        subresources: &[
            Subresource {
                name: "scale",
                kind: "Scale",
                group_version: Some(("autoscaling", "v1")),
                verbs: READ_WRITE,
            },
            status("ReplicationController"),
        ],
    },
    Row {
        kind: Kind::Service,
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        verbs: VERBS,
        subresources: &[status("Service")],
    },
    Row {
        kind: Kind::Endpoints,
        singular: "endpoints",
        short_names: &["ep"],
        categories: &[],
        verbs: VERBS,
        subresources: &[],
    },
    Row {
        kind: Kind::Event,
        singular: "event",
        short_names: &["ev"],
        categories: &[],
        verbs: VERBS,
        subresources: &[],
    },
    Row {
        kind: Kind::ConfigMap,
        singular: "configmap",
        short_names: &["cm"],
        categories: &[],
        verbs: VERBS,
        subresources: &[],
    },
    Row {
        kind: Kind::Secret,
        singular: "secret",
        short_names: &[],
        categories: &[],
        verbs: VERBS,
        subresources: &[],
    },
    Row {
        kind: Kind::ServiceAccount,
        singular: "serviceaccount",
        short_names: &["sa"],
        categories: &[],
        verbs: VERBS,
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            group_version: Some(("authentication.k8s.io", "v1")),
            verbs: &["create"],
        }],
    },
];

/// The row of a kind.
pub fn row(kind: Kind) -> &'static Row {
    // The rows lie in the order of the kinds, which a test checks.
    &ROWS[kind as usize]
}

/// The kind that a URL's group (`""` for the core group), version and plural name.
pub fn find(group: &str, version: &str, plural: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| {
        let (g, v) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
        g == group && v == version && kind.plural() == plural
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_row() {
        for kind in Kind::ALL {
            assert_eq!(row(kind).kind, kind);
            assert_eq!(find("", "v1", kind.plural()), Some(kind));
        }
    }

    #[test]
    fn what_is_not_served_is_not_found() {
        assert_eq!(find("apps", "v1", "pods"), None);
        assert_eq!(find("", "v2", "pods"), None);
        assert_eq!(find("", "v1", "pod"), None);
    }

    #[test]
    fn subresources_are_told_in_the_order_of_their_names() {
        for kind in Kind::ALL {
            assert!(row(kind).subresources.is_sorted_by_key(|s| s.name), "{kind}");
        }
    }
}
