//! The patch of `apply`: what leads from the live object to the document, without undoing what others set.
//!
//! Three documents: the one applied last, the one to apply, and the live one. Fields of the first that the second lacks
//! are deleted; what the second has and the third has not, or otherwise, is set; everything else is left alone.
//! Lists merge by key where the kind says so (strategic merge patch), else they are replaced as a whole.

use serde_json::{Map, Value};

use crate::model::registry::MergeStrategy;

/// How the list at a path merges; `None` where it does not.
pub type Strategy<'a> = &'a dyn Fn(&[&str]) -> Option<MergeStrategy>;

/// The patch, `{}` when there is nothing to do.
pub fn patch(last: &Value, wanted: &Value, live: &Value, strategy: Strategy<'_>) -> Value {
    let mut path = Vec::new();
    let mut patch = Merge { strategy }.maps(
        last.as_object().unwrap_or(&Map::new()),
        wanted.as_object().unwrap_or(&Map::new()),
        live.as_object().unwrap_or(&Map::new()),
        &mut path,
    );
    // What names the object is not changed by a patch.
    for field in ["apiVersion", "kind"] {
        patch.remove(field);
    }
    Value::Object(patch)
}

struct Merge<'a> {
    strategy: Strategy<'a>,
}

impl Merge<'_> {
    fn maps<'v>(
        &self,
        last: &'v Map<String, Value>,
        wanted: &'v Map<String, Value>,
        live: &'v Map<String, Value>,
        path: &mut Vec<&'v str>,
    ) -> Map<String, Value> {
        let mut patch = Map::new();
        for key in last.keys().filter(|k| !wanted.contains_key(*k)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, value) in wanted {
            path.push(key);
            self.field(key, last.get(key), value, live.get(key), path, &mut patch);
            path.pop();
        }
        patch
    }

    fn field<'v>(
        &self,
        key: &str,
        last: Option<&'v Value>,
        wanted: &'v Value,
        live: Option<&'v Value>,
        path: &mut Vec<&'v str>,
        patch: &mut Map<String, Value>,
    ) {
        let last_or_none = last.unwrap_or(&Value::Null);
        match (wanted, live) {
            // An explicit null wants nothing where there is nothing.
            (Value::Null, None) => {}
            (_, None) => {
                patch.insert(key.to_owned(), wanted.clone());
            }
            (Value::Object(wanted), Some(Value::Object(live))) => {
                // Without a last document nothing is deleted, as if it had been what is wanted.
                let last = last_or_none.as_object().unwrap_or(wanted);
                let inner = self.maps(last, wanted, live, path);
                if !inner.is_empty() {
                    patch.insert(key.to_owned(), Value::Object(inner));
                }
            }
            (Value::Array(wanted_list), Some(Value::Array(live_list))) => {
                let last_list = last_or_none.as_array().map_or(&[][..], Vec::as_slice);
                match (self.strategy)(path) {
                    Some(MergeStrategy { key: Some(by), .. }) => {
                        let items = self.items(by, last_list, wanted_list, live_list, path);
                        if !items.is_empty() {
                            patch.insert(key.to_owned(), Value::Array(items));
                        }
                    }
                    Some(MergeStrategy { key: None, .. }) => {
                        set(key, last_list, wanted_list, live_list, patch);
                    }
                    None if wanted_list == live_list => {}
                    None => {
                        patch.insert(key.to_owned(), wanted.clone());
                    }
                }
            }
            (_, Some(live)) if same(wanted, live) => {}
            _ => {
                patch.insert(key.to_owned(), wanted.clone());
            }
        }
    }

    /// A list whose items are told apart by a field.
    fn items<'v>(
        &self,
        by: &str,
        last: &'v [Value],
        wanted: &'v [Value],
        live: &'v [Value],
        path: &mut Vec<&'v str>,
    ) -> Vec<Value> {
        let find = |list: &'v [Value], item: &Value| list.iter().find(|i| i[by] == item[by]);
        let mut patch = Vec::new();
        for item in wanted {
            let Some(present) = find(live, item) else {
                patch.push(item.clone());
                continue;
            };
            let (Some(item_map), Some(present)) = (item.as_object(), present.as_object()) else { continue };
            let before = find(last, item).and_then(Value::as_object).unwrap_or(item_map);
            let mut changes = self.maps(before, item_map, present, path);
            if !changes.is_empty() {
                changes.insert(by.to_owned(), item[by].clone());
                patch.push(Value::Object(changes));
            }
        }
        for item in last.iter().filter(|i| find(wanted, i).is_none()) {
            patch.push(serde_json::json!({ "$patch": "delete", by: item[by] }));
        }
        patch
    }
}

/// A list of plain values that merges as a set.
fn set(key: &str, last: &[Value], wanted: &[Value], live: &[Value], patch: &mut Map<String, Value>) {
    let without = |list: &[Value], of: &[Value]| -> Vec<Value> {
        list.iter().filter(|v| !of.contains(v)).cloned().collect()
    };
    let (added, removed) = (without(wanted, live), without(last, wanted));
    if !added.is_empty() {
        patch.insert(key.to_owned(), Value::Array(added));
    }
    if !removed.is_empty() {
        patch.insert(format!("$deleteFromPrimitiveList/{key}"), Value::Array(removed));
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Kind, registry::merge_key};
    use serde_json::json;

    fn check(last: Value, wanted: Value, live: Value, expected: Value) {
        let strategy = |path: &[&str]| merge_key(Kind::Pod, path);
        assert_eq!(patch(&last, &wanted, &live, &strategy), expected);
    }

    #[test]
    fn what_others_set_is_left_alone() {
        let document = json!({"kind": "Pod", "metadata": {"labels": {"a": "1"}},
            "spec": {"containers": [{"name": "c", "image": "x"}]}});
        let live = json!({"kind": "Pod", "metadata": {"labels": {"a": "1", "other": "2"}, "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "x", "terminationMessagePath": "/dev/log"}],
                "nodeName": "n"}, "status": {}});
        check(document.clone(), document, live, json!({}));
    }

    #[test]
    fn what_was_applied_before_and_is_gone_is_deleted() {
        check(
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x/a", "x/b"]},
                "spec": {"containers": [{"name": "c", "image": "x", "command": ["a"]}, {"name": "d"}]}}),
            json!({"metadata": {"labels": {"a": "2"}, "finalizers": ["x/a"]},
                "spec": {"containers": [{"name": "c", "image": "y"}, {"name": "e"}]}}),
            json!({"metadata": {"labels": {"a": "1", "b": "2"}, "finalizers": ["x/a", "x/b"]},
                "spec": {"containers": [{"name": "c", "image": "x", "command": ["a"]}, {"name": "d"}]}}),
            json!({"metadata": {"labels": {"a": "2", "b": null}, "$deleteFromPrimitiveList/finalizers": ["x/b"]},
                "spec": {"containers": [{"name": "c", "image": "y", "command": null}, {"name": "e"},
                    {"$patch": "delete", "name": "d"}]}}),
        );
    }

    #[test]
    fn lists_without_a_key_are_replaced() {
        check(
            json!({}),
            json!({"spec": {"containers": [{"name": "c", "command": ["a", "b"]}]}}),
            json!({"spec": {"containers": [{"name": "c", "command": ["a"]}]}}),
            json!({"spec": {"containers": [{"name": "c", "command": ["a", "b"]}]}}),
        );
        let none = |_: &[&str]| None;
        let wanted = json!({"l": [1, 2], "n": null});
        assert_eq!(patch(&json!({}), &wanted, &json!({"l": [1]}), &none), json!({"l": [1, 2]}));
    }
}
