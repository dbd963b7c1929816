//! PATCH bodies applied to documents: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.
//!
//! Owns: the choice by media type and the two standard formats (by `json-patch`); the third is [`super::strategic`].
//! Invariants: a patch that fails leaves the document as it was, because it is applied to a copy; what operations copy
//! and how deep they nest is bounded, or a small patch could double a document until the memory is full.

use json_patch::PatchOperation;
use serde_json::Value;

use super::{error::ApiError, strategic};
use crate::model::Kind;

/// Operations of one JSON patch: Kubernetes' limit.
const MAX_OPERATIONS: usize = 10_000;

/// Bytes that the `copy` operations of one patch may add: as much as a body may bring, as Kubernetes has it.
const MAX_COPIED_BYTES: usize = 3 << 20;

/// Levels of nesting that an operation may lead to: what a parser of JSON will read again.
const MAX_DEPTH: usize = 128;

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
            Parsed::Json(patch) => {
                let mut copied = 0;
                for (index, operation) in patch.0.iter().enumerate() {
                    bound(operation, &patched, &mut copied)?;
                    json_patch::patch(&mut patched, std::slice::from_ref(operation)).map_err(
                        |mut error| {
                            error.operation = index;
                            ApiError::Unprocessable(error.to_string())
                        },
                    )?;
                }
            }
            Parsed::Merge(patch) => json_patch::merge(&mut patched, patch),
            Parsed::Strategic(patch) => {
                patched = strategic::merge(kind, patched, patch)
                    .map_err(|e| ApiError::BadRequest(format!("error applying patch: {e}")))?;
            }
        }
        Ok(patched)
    }
}

/// Refuses an operation that makes the document too large or too deep.
fn bound(operation: &PatchOperation, document: &Value, copied: &mut usize) -> Result<(), ApiError> {
    let value = match operation {
        PatchOperation::Add(add) => Some(&add.value),
        PatchOperation::Replace(replace) => Some(&replace.value),
        PatchOperation::Move(moving) => document.pointer(moving.from.as_str()),
        PatchOperation::Copy(copy) => document.pointer(copy.from.as_str()),
        PatchOperation::Remove(_) | PatchOperation::Test(_) => None,
    };
    // What points nowhere is told when the operation is applied.
    let Some(value) = value else { return Ok(()) };
    let (size, depth) = extent(value);
    if operation.path().tokens().count() + depth > MAX_DEPTH {
        return Err(ApiError::Unprocessable(format!(
            "the patch would nest the document more than {MAX_DEPTH} levels deep"
        )));
    }
    if matches!(operation, PatchOperation::Copy(_)) {
        *copied += size;
        if *copied > MAX_COPIED_BYTES {
            return Err(ApiError::Unprocessable(format!(
                "the patch's copy operations add more than {MAX_COPIED_BYTES} bytes"
            )));
        }
    }
    Ok(())
}

/// About how many bytes a value takes as JSON, and how deep it nests.
fn extent(value: &Value) -> (usize, usize) {
    let within = |sum: (usize, usize), extra: usize, inner: &Value| {
        let (size, depth) = extent(inner);
        (sum.0 + extra + size, sum.1.max(depth + 1))
    };
    match value {
        Value::Array(values) => values.iter().fold((2, 1), |sum, inner| within(sum, 1, inner)),
        Value::Object(fields) => {
            fields.iter().fold((2, 1), |sum, (key, inner)| within(sum, key.len() + 4, inner))
        }
        Value::String(text) => (text.len() + 2, 0),
        _ => (4, 0),
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
    fn a_small_json_patch_cannot_make_a_document_huge_or_deep() {
        let copies =
            |from: &str, path: &str, times| vec![json!({"op": "copy", "from": from, "path": path}); times];
        let deep = |levels: usize| "/a".repeat(levels);
        let mut nesting: Vec<Value> =
            (1..300).map(|n| json!({"op": "add", "path": deep(n), "value": {}})).collect();
        let doubling =
            (0..10).map(|n| json!({"op": "copy", "from": "/a", "path": deep((1 << n) + 1)})).collect();
        for (patch, says) in [
            (copies("", "/b", 120), "add more than"),
            (copies("/a", "/b/-", 4000), "add more than"),
            (std::mem::take(&mut nesting), "levels deep"),
            (doubling, "levels deep"),
        ] {
            let patch = Patch::parse(Format::Json, Value::from(patch).to_string().as_bytes()).unwrap();
            let before = json!({"a": {"text": "x".repeat(1000)}, "b": []});
            let error = patch.apply(Kind::Pod, &before).unwrap_err();
            assert_eq!(error.code(), 422);
            assert!(format!("{error:?}").contains(says), "{error:?}");
        }
        check(
            Format::Json,
            json!({"a": [1]}),
            json!([{"op": "copy", "from": "/a", "path": "/b"}, {"op": "move", "from": "/a", "path": "/c"}]),
            json!({"b": [1], "c": [1]}),
        );
    }

    #[test]
    fn a_failing_operation_is_named_by_its_place() {
        let operations = br#"[{"op":"add","path":"/x","value":1},{"op":"remove","path":"/y"}]"#;
        let error = Patch::parse(Format::Json, operations).unwrap().apply(Kind::Pod, &json!({})).unwrap_err();
        let ApiError::Unprocessable(why) = error else { panic!("{error:?}") };
        assert!(why.contains("'/1'"), "{why}");
    }
}
