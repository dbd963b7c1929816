//! What a URL's path names.
//!
//! Owns: the split of `/api/v1/namespaces/NS/pods/NAME/log` into a [`Target`]. It knows which kinds exist and how they
//! are spelt, not what may be done with them.

use std::borrow::Cow;

use crate::model::{Key, Kind, registry};

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Objects of a kind, or one of them, or a part of one.
    Resource(Resource),
    /// Anything else, by its segments.
    Other(Vec<String>),
}

/// Objects of a kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// Their kind.
    pub kind: Kind,
    /// The namespace in the path; `None` for all of them, and for cluster-scoped kinds.
    pub namespace: Option<String>,
    /// The object.
    pub name: Option<String>,
    /// `status`, `log`…
    pub subresource: Option<String>,
    /// What follows the subresource.
    pub rest: Vec<String>,
}

impl Resource {
    /// The key of the object named.
    pub fn key(&self) -> Option<Key> {
        let name = self.name.as_deref()?;
        Some(Key::new(self.kind, self.namespace.as_deref().unwrap_or(""), name))
    }

    /// Whether this is a collection that may be deleted as one.
    pub fn is_one_collection(&self) -> bool {
        let deletable = registry::row(self.kind).verbs.contains(&"deletecollection");
        deletable && self.name.is_none() && (self.namespace.is_some() || !self.kind.namespaced())
    }
}

impl Target {
    /// Reads a path.
    pub fn parse(path: &str) -> Target {
        let segments: Vec<Cow<'_, str>> =
            path.split('/').filter(|s| !s.is_empty()).map(percent_decode).collect();
        let rest: Vec<&str> = segments.iter().map(AsRef::as_ref).collect();
        match rest.as_slice() {
            ["api", "v1", rest @ ..] if !rest.is_empty() => resource("v1", rest).map(Target::Resource),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                resource(&format!("{group}/{version}"), rest).map(Target::Resource)
            }
            _ => None,
        }
        .unwrap_or_else(|| Target::Other(segments.into_iter().map(Cow::into_owned).collect()))
    }
}

fn resource(api_version: &str, segments: &[&str]) -> Option<Resource> {
    let kind_of =
        |plural: &str| Kind::ALL.into_iter().find(|k| k.plural() == plural && k.api_version() == api_version);
    let (namespace, kind, rest) = match segments {
        ["namespaces", namespace, plural, rest @ ..] if kind_of(plural).is_some_and(Kind::namespaced) => {
            (Some((*namespace).to_owned()), kind_of(plural)?, rest)
        }
        [plural, rest @ ..] => {
            let kind = kind_of(plural)?;
            // Without a namespace a namespaced kind can be listed and watched, but none of its objects named.
            if kind.namespaced() && !rest.is_empty() {
                return None;
            }
            (None, kind, rest)
        }
        [] => return None,
    };
    let mut rest = rest.iter().map(|s| (*s).to_owned());
    Some(Resource { kind, namespace, name: rest.next(), subresource: rest.next(), rest: rest.collect() })
}

/// Decodes `%41`; what is not a valid escape stays as it is.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escape.unwrap_or(bytes[at]));
        at += if escape.is_some() { 3 } else { 1 };
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, kind: Kind, namespace: Option<&str>, name: Option<&str>, sub: Option<&str>) {
        let Target::Resource(r) = Target::parse(path) else { panic!("{path} names nothing") };
        assert_eq!(
            (r.kind, r.namespace.as_deref(), r.name.as_deref(), r.subresource.as_deref()),
            (kind, namespace, name, sub),
            "{path}"
        );
    }

    #[test]
    fn paths_name_kinds_namespaces_objects_and_subresources() {
        check("/api/v1/pods", Kind::Pod, None, None, None);
        check("/api/v1/namespaces/a/pods", Kind::Pod, Some("a"), None, None);
        check("/api/v1/namespaces/a/pods/b", Kind::Pod, Some("a"), Some("b"), None);
        check("/api/v1/namespaces/a/pods/b/log", Kind::Pod, Some("a"), Some("b"), Some("log"));
        check("/api/v1/namespaces/a", Kind::Namespace, None, Some("a"), None);
        check("/api/v1/namespaces/a/status", Kind::Namespace, None, Some("a"), Some("status"));
        check("/api/v1/nodes/n%2d1", Kind::Node, None, Some("n-1"), None);
    }

    #[test]
    fn collections_are_deleted_namespace_by_namespace() {
        for (path, deletable) in [
            ("/api/v1/namespaces/a/pods", true),
            ("/api/v1/pods", false),
            ("/api/v1/nodes", true),
            ("/api/v1/namespaces", false),
            ("/api/v1/namespaces/a/pods/b", false),
        ] {
            let Target::Resource(resource) = Target::parse(path) else { panic!("{path} names nothing") };
            assert_eq!(resource.is_one_collection(), deletable, "{path}");
        }
    }

    #[test]
    fn unknown_paths_name_no_resource() {
        for path in ["/", "/api", "/api/v1", "/api/v1/frobs", "/api/v1/pods/x", "/apis/apps/v1/deployments"] {
            assert!(matches!(Target::parse(path), Target::Other(_)), "{path}");
        }
    }

    #[test]
    fn broken_escapes_are_kept() {
        assert_eq!(percent_decode("a%2"), "a%2");
        assert_eq!(percent_decode("%zz%41"), "%zzA");
        assert_eq!(percent_decode("%+1"), "%+1");
    }
}
