//! OpenAPI v2, in the one form in which older kubectl insists on it: protobuf.
//!
//! Owns: a document that says no more than which parameters PATCH takes of each kind, which is what kubectl 1.27 and
//! 1.28 look up before they leave validation to the server. Schemas are served as OpenAPI v3 only.
//! Field numbers are those of gnostic's `openapi.v2` schema.

use super::discovery::KUBERNETES_VERSION;
use crate::model::Kind;

/// The media type of the answer: the one kubectl asks for is no valid media type, and its own parser refuses it.
pub const MEDIA_TYPE: &str = "application/octet-stream";

/// Parameters of PATCH.
const PARAMETERS: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "force"];

/// The document.
pub fn document() -> Vec<u8> {
    let mut info = Vec::new();
    text(&mut info, 1, "Kubernetes");
    text(&mut info, 2, KUBERNETES_VERSION);
    let mut paths = Vec::new();
    for kind in Kind::ALL {
        let mut item = Vec::new();
        message(&mut item, 8, &patch(kind));
        let mut named = Vec::new();
        let root = if kind.api_version().contains('/') { "apis" } else { "api" };
        let scope = if kind.namespaced() { "namespaces/{namespace}/" } else { "" };
        text(&mut named, 1, &format!("/{root}/{}/{scope}{}/{{name}}", kind.api_version(), kind.plural()));
        message(&mut named, 2, &item);
        message(&mut paths, 2, &named);
    }
    let mut document = Vec::new();
    text(&mut document, 1, "2.0");
    message(&mut document, 2, &info);
    message(&mut document, 8, &paths);
    document
}

/// `Operation` of a PATCH.
fn patch(kind: Kind) -> Vec<u8> {
    let mut operation = Vec::new();
    text(&mut operation, 5, &format!("patch{}", kind.name()));
    for name in PARAMETERS {
        let mut query = Vec::new();
        text(&mut query, 2, "query");
        text(&mut query, 4, name);
        text(&mut query, 6, "string");
        // ParametersItem { parameter { non_body_parameter { query_parameter_sub_schema } } }
        let nested = [3, 2, 1].iter().fold(query, |inner, field| {
            let mut outer = Vec::new();
            message(&mut outer, *field, &inner);
            outer
        });
        message(&mut operation, 8, &nested);
    }
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    let mut any = Vec::new();
    text(&mut any, 2, &format!("group: \"{group}\"\nkind: {}\nversion: {version}\n", kind.name()));
    let mut extension = Vec::new();
    text(&mut extension, 1, "x-kubernetes-group-version-kind");
    message(&mut extension, 2, &any);
    message(&mut operation, 13, &extension);
    operation
}

fn text(out: &mut Vec<u8>, field: u32, value: &str) {
    message(out, field, value.as_bytes());
}

/// A length-delimited field.
fn message(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_seven_bits_at_a_time() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }
}
