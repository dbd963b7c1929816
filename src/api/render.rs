//! How answers look: whole documents, tables, or metadata alone.
//!
//! Owns: the choice from `Accept` and the writing of objects and lists in the chosen form. Whole documents are the
//! store's bytes, concatenated and never parsed; only metadata is cut out of them (as raw text) for the other forms.

use actix_web::HttpRequest;
use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde_json::{json, value::RawValue};

use super::error::ApiError;
use crate::model::{Kind, Object, table};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The document as it is.
    Whole,
    /// `as=Table`: what `kubectl get` prints.
    Table {
        /// `meta.k8s.io` version, `v1` or `v1beta1`.
        version: &'static str,
        /// What of the object goes with its row.
        include: Include,
    },
    /// `as=PartialObjectMetadata` or its list.
    Metadata,
}

/// `includeObject=` of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Metadata: the default.
    Metadata,
    /// The whole object.
    Object,
}

/// Chooses the form of the answer.
///
/// # Errors
/// 406 when nothing in `Accept` can be had; 400 for an unknown `includeObject`.
pub fn negotiate(request: &HttpRequest, include: Option<&str>) -> Result<Form, ApiError> {
    let include = match include {
        None | Some("Metadata") => Include::Metadata,
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        Some(other) => {
            return Err(ApiError::BadRequest(format!("includeObject: unsupported value \"{other}\"")));
        }
    };
    let Some(accept) = request.headers().get("accept") else { return Ok(Form::Whole) };
    let accept = accept.to_str().map_err(|_| ApiError::NotAcceptable)?;
    accept.split(',').find_map(|range| form(range, include)).ok_or(ApiError::NotAcceptable)
}

/// One media range of `Accept`; `None` when it cannot be served.
fn form(range: &str, include: Include) -> Option<Form> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?;
    if !matches!(media, "application/json" | "*/*" | "application/*" | "") {
        return None;
    }
    let (mut as_, mut version) = (None, "v1");
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        match name {
            "as" => as_ = Some(value),
            "v" if value == "v1beta1" => version = "v1beta1",
            _ => {}
        }
    }
    match as_ {
        None => Some(Form::Whole),
        Some("Table") => Some(Form::Table { version, include }),
        Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Form::Metadata),
        Some(_) => None,
    }
}

/// The part of a document that the other forms show.
#[derive(Deserialize)]
struct Cut<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

fn metadata(object: &Object) -> &str {
    serde_json::from_slice::<Cut<'_>>(&object.json).map_or("{}", |cut| cut.metadata.get())
}

fn partial(object: &Object, version: &str, out: &mut Vec<u8>) {
    push(out, "{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/");
    push(out, version);
    push(out, "\",\"metadata\":");
    push(out, metadata(object));
    push(out, "}");
}

fn push(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
}

/// One object in the chosen form.
pub fn object(object: &Object, form: Form, now: Timestamp) -> Bytes {
    match form {
        Form::Whole => object.json.clone(),
        Form::Metadata => {
            let mut out = Vec::with_capacity(512);
            partial(object, "v1", &mut out);
            out.into()
        }
        Form::Table { .. } => {
            let mut out = Vec::with_capacity(2048);
            let head = ListHead { revision: object.revision.0, next: None, columns: true };
            begin(object.key.kind, form, &head, &mut out);
            item(object, form, now, true, &mut out);
            end(&mut out);
            out.into()
        }
    }
}

/// What precedes the items of a list.
pub struct ListHead {
    /// `metadata.resourceVersion`.
    pub revision: u64,
    /// `metadata.continue`.
    pub next: Option<String>,
    /// Whether a table carries its column definitions (the first of a watch does).
    pub columns: bool,
}

/// Writes a list up to its first item.
pub fn begin(kind: Kind, form: Form, head: &ListHead, out: &mut Vec<u8>) {
    let mut metadata = json!({ "resourceVersion": head.revision.to_string() });
    if let Some(next) = &head.next {
        metadata["continue"] = next.as_str().into();
    }
    match form {
        Form::Whole => push(
            out,
            &format!(
                "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                kind.name(),
                kind.api_version()
            ),
        ),
        Form::Metadata => push(
            out,
            &format!(
                "{{\"kind\":\"PartialObjectMetadataList\",\"apiVersion\":\"meta.k8s.io/v1\",\
                 \"metadata\":{metadata},\"items\":["
            ),
        ),
        Form::Table { version, .. } => {
            let columns: Vec<_> = if head.columns {
                table::columns(kind)
                    .iter()
                    .map(|c| {
                        json!({ "name": c.name, "type": c.type_, "format": c.format,
                            "description": c.description, "priority": c.priority })
                    })
                    .collect()
            } else {
                Vec::new()
            };
            push(
                out,
                &format!(
                    "{{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/{version}\",\"metadata\":{metadata},\
                     \"columnDefinitions\":{},\"rows\":[",
                    serde_json::Value::from(columns)
                ),
            );
        }
    }
}

/// Writes one item of a list.
pub fn item(object: &Object, form: Form, now: Timestamp, first: bool, out: &mut Vec<u8>) {
    if !first {
        out.push(b',');
    }
    match form {
        Form::Whole => out.extend_from_slice(&object.json),
        Form::Metadata => partial(object, "v1", out),
        Form::Table { version, include } => {
            push(out, "{\"cells\":");
            push(out, &serde_json::Value::from(table::cells(object, now)).to_string());
            match include {
                Include::None => {}
                Include::Metadata => {
                    push(out, ",\"object\":");
                    partial(object, version, out);
                }
                Include::Object => {
                    push(out, ",\"object\":");
                    out.extend_from_slice(&object.json);
                }
            }
            push(out, "}");
        }
    }
}

/// Writes what follows the last item.
pub fn end(out: &mut Vec<u8>) {
    push(out, "]}");
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn check(accept: &str, expected: Option<Form>) {
        let request = TestRequest::default().insert_header(("accept", accept)).to_http_request();
        assert_eq!(negotiate(&request, None).ok(), expected, "{accept}");
    }

    #[test]
    fn the_first_form_that_can_be_had_is_chosen() {
        let table = |version| Some(Form::Table { version, include: Include::Metadata });
        check("application/json", Some(Form::Whole));
        check("application/json, */*", Some(Form::Whole));
        check("application/vnd.kubernetes.protobuf,application/json", Some(Form::Whole));
        check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", table("v1"));
        check("application/json;as=Table;v=v1beta1;g=meta.k8s.io", table("v1beta1"));
        check("application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", Some(Form::Metadata));
        check("application/json;as=Unheard;v=v1,application/json", Some(Form::Whole));
        check("application/cbor", None);
    }
}
