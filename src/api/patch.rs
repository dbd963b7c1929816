//! PATCH bodies applied to documents: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! Owns: the choice by media type and the two standard formats (by `json-patch`); the third is [`super::strategic`].
//! Invariant: a patch that fails leaves the document as it was, because it is applied to a copy.

use json_patch::PatchOperation;
use serde_json::Value;

use super::{error::ApiError, strategic};
use crate::model::Kind;

/// Operations of one JSON patch: Kubernetes' limit.
const MAX_OPERATIONS: usize = 10_000;

/// What all `copy` operations of one JSON patch may copy: Kubernetes' limit. Without one, each could double the document.
const MAX_COPIED_BYTES: usize = 3 << 20;

/// The three formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json-patch+json`.
    Json,
    /// `application/merge-patch+json`.
    Merge,
    /// `application/strategic-merge-patch+json`.
    Strategic,
}

impl Format {
    /// The format of a media type.
    ///
    /// # Errors
    /// 415 for others; server-side apply among them.
    pub fn of(media: &str) -> Result<Format, ApiError> {
        match media {
            "application/json-patch+json" => Ok(Format::Json),
            "application/merge-patch+json" => Ok(Format::Merge),
            "application/strategic-merge-patch+json" => Ok(Format::Strategic),
            "application/apply-patch+yaml" => Err(ApiError::UnsupportedMediaType(
                "server-side apply is not supported by this server: use `kubectl apply` without --server-side"
                    .into(),
            )),
            other => Err(ApiError::UnsupportedMediaType(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json (got \"{other}\")"
            ))),
        }
    }
}

/// A parsed patch, to be applied as often as conflicts make it necessary.
#[derive(Debug, Clone)]
pub struct Patch(Parsed);

#[derive(Debug, Clone)]
enum Parsed {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Parses a patch's body.
    ///
    /// # Errors
    /// 400 when it is malformed, 413 when it has too many operations.
    pub fn parse(format: Format, body: &[u8]) -> Result<Patch, ApiError> {
        let bad = |e: serde_json::Error| ApiError::BadRequest(format!("error decoding patch: {e}"));
        let parsed = match format {
            Format::Json => {
                let patch: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                if patch.0.len() > MAX_OPERATIONS {
                    return Err(ApiError::TooLarge(MAX_OPERATIONS));
                }
                Parsed::Json(patch)
            }
            Format::Merge | Format::Strategic => {
                let patch: Value = serde_json::from_slice(body).map_err(bad)?;
                if !patch.is_object() {
                    return Err(ApiError::BadRequest(
                        "error decoding patch: it must be a JSON object".into(),
                    ));
                }
                if format == Format::Merge { Parsed::Merge(patch) } else { Parsed::Strategic(patch) }
            }
        };
        Ok(Patch(parsed))
    }

    /// The patched document.
    ///
    /// # Errors
    /// 422 when an operation of a JSON patch does not hold, 400 when a strategic patch contradicts itself.
    pub fn apply(&self, kind: Kind, document: &Value) -> Result<Value, ApiError> {
        let mut patched = document.clone();
        match &self.0 {
            Parsed::Json(patch) => operations(&mut patched, patch)?,
            Parsed::Merge(patch) => json_patch::merge(&mut patched, patch),
            Parsed::Strategic(patch) => {
                patched = strategic::merge(kind, patched, patch)
                    .map_err(|e| ApiError::BadRequest(format!("error applying patch: {e}")))?;
            }
        }
        Ok(patched)
    }
}

/// Applies a JSON patch's operations in order.
fn operations(document: &mut Value, patch: &json_patch::Patch) -> Result<(), ApiError> {
    let mut copied = 0usize;
    for (index, operation) in patch.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            copied += document.pointer(copy.from.as_str()).map_or(0, bytes);
            if copied > MAX_COPIED_BYTES {
                return Err(ApiError::TooLarge(MAX_COPIED_BYTES));
            }
        }
        json_patch::patch(document, std::slice::from_ref(operation)).map_err(|mut error| {
            error.operation = index;
            ApiError::Unprocessable(error.to_string())
        })?;
    }
    Ok(())
}

/// About how many bytes a value is as JSON.
fn bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(values) => 2 + values.iter().map(|v| bytes(v) + 1).sum::<usize>(),
        Value::Object(fields) => 2 + fields.iter().map(|(k, v)| k.len() + 4 + bytes(v)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(format: Format, before: Value, patch: Value, after: Value) {
        let patch = Patch::parse(format, patch.to_string().as_bytes()).unwrap();
        assert_eq!(patch.apply(Kind::Pod, &before).unwrap(), after);
    }

    #[test]
    fn the_two_standard_formats_do_what_their_rfcs_say() {
        check(Format::Merge, json!({"a": 1, "b": [1]}), json!({"a": null, "b": [2]}), json!({"b": [2]}));
        check(
            Format::Json,
            json!({"a": {"b": 1}}),
            json!([{"op": "test", "path": "/a/b", "value": 1}, {"op": "remove", "path": "/a/b"}]),
            json!({"a": {}}),
        );
    }

    #[test]
    fn a_failing_operation_is_the_clients_fault_and_changes_nothing() {
        let patch = Patch::parse(Format::Json, br#"[{"op":"remove","path":"/x"}]"#).unwrap();
        let before = json!({"a": 1});
        assert_eq!(patch.apply(Kind::Pod, &before).unwrap_err().code(), 422);
        for (format, body) in [(Format::Json, "{}"), (Format::Merge, "[]"), (Format::Strategic, "nope")] {
            assert_eq!(Patch::parse(format, body.as_bytes()).unwrap_err().code(), 400, "{body}");
        }
        assert_eq!(Format::of("application/apply-patch+yaml").unwrap_err().code(), 415);
    }

    #[test]
    fn copies_cannot_double_a_document_until_memory_is_full() {
        let twice =
            json!([{"op": "copy", "from": "/a", "path": "/b"}, {"op": "move", "from": "/b", "path": "/a/-"}]);
        let bomb: Vec<Value> = (0..64).flat_map(|_| twice.as_array().unwrap().clone()).collect();
        let patch = Patch::parse(Format::Json, json!(bomb).to_string().as_bytes()).unwrap();
        assert_eq!(patch.apply(Kind::Pod, &json!({"a": ["x"]})).unwrap_err().code(), 413);
        check(Format::Json, json!({"a": ["x"]}), twice, json!({"a": ["x", ["x"]]}));
    }

    #[test]
    fn a_failing_operation_is_named_by_its_place() {
        let patch = Patch::parse(
            Format::Json,
            br#"[{"op":"add","path":"/x","value":1},{"op":"remove","path":"/y"}]"#,
        );
        let error = patch.unwrap().apply(Kind::Pod, &json!({})).unwrap_err();
        let ApiError::Unprocessable(why) = error else { panic!("{error:?}") };
        assert!(why.contains("'/1'"), "{why}");
    }
}
