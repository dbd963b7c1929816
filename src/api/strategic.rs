//! Strategic merge patch: Kubernetes' merge patch that knows which lists are maps in disguise.
//!
//! Owns: the merge itself with its directives (`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder`,
//! `$retainKeys`). Which list merges by which key is asked of [`registry::merge_key`]. Pure: a document and a patch in, a document
//! out; arbitrary JSON never panics, and depth is bounded by serde_json's own limit of 128.

use serde_json::{Map, Value};

use crate::model::{Kind, registry};

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Why a patch cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StrategicError {
    /// `$patch` with a word that is none of ours.
    #[error("unknown directive \"$patch: {0}\" in {1}")]
    UnknownDirective(String, String),
    /// An element of a list that merges by key has no key.
    #[error("an element of {0} has no merge key \"{1}\"")]
    MissingKey(String, &'static str),
    /// A directive of the wrong type.
    #[error("{0} must be a list")]
    NotAList(String),
}

/// Applies a strategic merge patch to a document of that kind.
///
/// # Errors
/// When the patch contradicts itself.
pub fn merge(kind: Kind, document: Value, patch: &Value) -> Result<Value, StrategicError> {
    let (Value::Object(document), Value::Object(patch)) = (document, patch) else { return Ok(patch.clone()) };
    let merger = Merger { kind };
    Ok(Value::Object(merger.object(document, patch, &mut Path::default())?))
}

/// Where in the document we are: field names, without list indices.
#[derive(Default)]
struct Path(Vec<String>);

impl Path {
    fn text(&self) -> String {
        if self.0.is_empty() { "the document".into() } else { self.0.join(".") }
    }
}

struct Merger {
    kind: Kind,
}

impl Merger {
    fn object(
        &self,
        mut target: Map<String, Value>,
        patch: &Map<String, Value>,
        path: &mut Path,
    ) -> Result<Map<String, Value>, StrategicError> {
        match patch.get(PATCH).map(|d| d.as_str().unwrap_or("")) {
            None | Some("merge") => {}
            Some("replace") => {
                return Ok(patch
                    .iter()
                    .filter(|(k, _)| *k != PATCH)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect());
            }
            Some("delete") => return Ok(Map::new()),
            Some(other) => return Err(StrategicError::UnknownDirective(other.into(), path.text())),
        }
        if let Some(retain) = patch.get(RETAIN) {
            let keep = list(retain, RETAIN)?;
            target.retain(|name, _| keep.iter().any(|k| k.as_str() == Some(name)));
        }
        for (name, change) in patch {
            if name == PATCH || name == RETAIN || name.starts_with(ORDER) {
                continue;
            }
            if let Some(field) = name.strip_prefix(DELETE_PRIMITIVES) {
                let gone = list(change, name)?;
                if let Some(Value::Array(values)) = target.get_mut(field) {
                    values.retain(|v| !gone.contains(v));
                }
                continue;
            }
            if change.is_null() {
                target.remove(name);
                continue;
            }
            path.0.push(name.clone());
            let merged = self.value(target.remove(name), change, path)?;
            path.0.pop();
            if let Some(merged) = merged {
                target.insert(name.clone(), merged);
            }
        }
        for (name, order) in patch {
            if let Some(field) = name.strip_prefix(ORDER)
                && let Some(Value::Array(values)) = target.get_mut(field)
            {
                path.0.push(field.to_owned());
                let by = merge_by(self.kind, &path.0);
                path.0.pop();
                let key = match by {
                    Some(MergeBy::Key(key)) => Some(key),
                    _ => None,
                };
                reorder(values, list(order, name)?, key);
            }
        }
        Ok(target)
    }

    /// A field's new value; `None` when the patch deletes it.
    fn value(
        &self,
        old: Option<Value>,
        change: &Value,
        path: &mut Path,
    ) -> Result<Option<Value>, StrategicError> {
        Ok(match (old, change) {
            (old, Value::Object(patch)) => {
                if patch.get(PATCH).and_then(Value::as_str) == Some("delete") {
                    return Ok(None);
                }
                let target = match old {
                    Some(Value::Object(target)) => target,
                    _ => Map::new(),
                };
                Some(Value::Object(self.object(target, patch, path)?))
            }
            (old, Value::Array(patch)) => {
                let target = match old {
                    Some(Value::Array(target)) => target,
                    _ => Vec::new(),
                };
                Some(Value::Array(self.array(target, patch, path)?))
            }
            (_, scalar) => Some(scalar.clone()),
        })
    }

    fn array(
        &self,
        mut target: Vec<Value>,
        patch: &[Value],
        path: &mut Path,
    ) -> Result<Vec<Value>, StrategicError> {
        let replaces = patch.iter().any(|e| e.get(PATCH).and_then(Value::as_str) == Some("replace"));
        let by = merge_by(self.kind, &path.0);
        if replaces || by.is_none() {
            return Ok(patch.iter().filter(|e| e.get(PATCH).is_none()).cloned().collect());
        }
        let Some(MergeBy::Key(key)) = by else {
            for value in patch {
                if !target.contains(value) {
                    target.push(value.clone());
                }
            }
            return Ok(target);
        };
        for element in patch {
            let Value::Object(fields) = element else {
                return Err(StrategicError::MissingKey(path.text(), key));
            };
            let Some(id) = fields.get(key) else { return Err(StrategicError::MissingKey(path.text(), key)) };
            if fields.get(PATCH).and_then(Value::as_str) == Some("delete") {
                target.retain(|e| e.get(key) != Some(id));
                continue;
            }
            match target.iter_mut().find(|e| e.get(key) == Some(id)) {
                Some(found) => {
                    let old = match found.take() {
                        Value::Object(old) => old,
                        _ => Map::new(),
                    };
                    *found = Value::Object(self.object(old, fields, path)?);
                }
                None => target.push(Value::Object(self.object(Map::new(), fields, path)?)),
            }
        }
        Ok(target)
    }
}

fn list<'v>(value: &'v Value, name: &str) -> Result<&'v [Value], StrategicError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| StrategicError::NotAList(name.into()))
}

/// Puts elements into the given order. Those it does not name keep their place relative to what precedes them.
fn reorder(values: &mut Vec<Value>, order: &[Value], key: Option<&str>) {
    let rank = |value: &Value| {
        order.iter().position(|wanted| match key {
            Some(key) => value.get(key).is_some() && value.get(key) == wanted.get(key),
            None => value == wanted,
        })
    };
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(values.len());
    let mut last = 0;
    for value in values.drain(..) {
        let at = rank(&value).map_or(last, |r| r + 1);
        last = at;
        ranked.push((at, value));
    }
    ranked.sort_by_key(|(at, _)| *at);
    values.extend(ranked.into_iter().map(|(_, value)| value));
}

/// How a list merges; lists that the registry does not name are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MergeBy {
    /// Objects, by this field.
    Key(&'static str),
    /// A set of plain values.
    Value,
}

fn merge_by(kind: Kind, path: &[String]) -> Option<MergeBy> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let strategy = registry::merge_key(kind, &path)?;
    Some(strategy.key.map_or(MergeBy::Value, MergeBy::Key))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(before: Value, patch: Value, after: Value) {
        assert_eq!(merge(Kind::Pod, before.clone(), &patch).unwrap(), after, "{before} patched with {patch}");
    }

    #[test]
    fn maps_merge_and_null_deletes() {
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null, "c": "3"}}}),
            json!({"metadata": {"labels": {"b": "2", "c": "3"}}}),
        );
    }

    #[test]
    fn lists_with_a_merge_key_merge_element_by_element() {
        check(
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "y"}]}}),
            json!({"spec": {"containers": [{"name": "b", "image": "z"}, {"name": "c", "image": "w"}]}}),
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "b", "image": "z"},
                {"name": "c", "image": "w"}]}}),
        );
    }

    #[test]
    fn elements_are_deleted_and_lists_replaced_on_request() {
        let before = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        check(
            before.clone(),
            json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}),
            json!({"spec": {"containers": [{"name": "b"}]}}),
        );
        check(
            before,
            json!({"spec": {"containers": [{"name": "c"}, {"$patch": "replace"}]}}),
            json!({"spec": {"containers": [{"name": "c"}]}}),
        );
        check(
            json!({"spec": {"nodeSelector": {"a": "b"}, "x": 1}}),
            json!({"spec": {"nodeSelector": {"$patch": "delete"}}}),
            json!({"spec": {"x": 1}}),
        );
        check(
            json!({"spec": {"nodeSelector": {"a": "b"}}}),
            json!({"spec": {"nodeSelector": {"$patch": "replace", "c": "d"}}}),
            json!({"spec": {"nodeSelector": {"c": "d"}}}),
        );
    }

    #[test]
    fn plain_lists_are_replaced_and_sets_grow_and_shrink() {
        check(
            json!({"spec": {"containers": [{"name": "a", "args": ["1"]}]}}),
            json!({"spec": {"containers": [{"name": "a", "args": ["2"]}]}}),
            json!({"spec": {"containers": [{"name": "a", "args": ["2"]}]}}),
        );
        check(
            json!({"metadata": {"finalizers": ["a", "b"]}}),
            json!({"metadata": {"finalizers": ["c"], "$deleteFromPrimitiveList/finalizers": ["a"]}}),
            json!({"metadata": {"finalizers": ["b", "c"]}}),
        );
    }

    #[test]
    fn element_order_and_retained_keys_are_obeyed() {
        check(
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}}),
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}}),
            json!({"spec": {"containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}]}}),
        );
        check(
            json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"],
                "hostPath": {"path": "/x"}}]}}),
            json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}}),
        );
    }

    #[test]
    fn contradictions_are_named() {
        let fails = |patch| merge(Kind::Pod, json!({}), &patch).unwrap_err().to_string();
        assert!(fails(json!({"spec": {"$patch": "explode"}})).contains("explode"));
        assert!(fails(json!({"spec": {"containers": [{"image": "x"}]}})).contains("merge key \"name\""));
        assert!(fails(json!({"spec": {"$setElementOrder/a": 3, "a": []}})).contains("$setElementOrder/a"));
    }

    fn arbitrary() -> impl Strategy<Value = Value> {
        let names = prop::sample::select(vec![
            "spec",
            "containers",
            "name",
            "ports",
            "containerPort",
            "finalizers",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
            "x",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3i64).prop_map(Value::from),
            prop::sample::select(vec!["a", "b", "delete", "replace", "merge"]).prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((names.clone(), inner), 0..5).prop_map(|fields| {
                    Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn arbitrary_documents_and_patches_never_panic(document in arbitrary(), patch in arbitrary()) {
            let _ = merge(Kind::Pod, document, &patch);
        }

        #[test]
        fn an_empty_patch_changes_nothing(document in arbitrary()) {
            prop_assume!(document.is_object());
            prop_assert_eq!(merge(Kind::Pod, document.clone(), &json!({})).unwrap(), document);
        }
    }
}
