//! OpenAPI, as far as kubectl reads it before it sends a document.
//!
//! Owns: `/openapi/v3`, one document a group and version, and `/openapi/v2` for older clients; all built once. Paths carry each verb's parameters, so that
//! clients leave validation to the server.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Map, Value, json};

use super::{
    discovery::{Document, KUBERNETES_VERSION},
    error::ApiError,
    openapi_v2,
};
use crate::model::Kind;

/// Every OpenAPI document.
pub struct Documents {
    index: Document,
    /// By group and version: `api/v1`, `apis/GROUP/VERSION`.
    groups: BTreeMap<String, Document>,
    v2: Document,
}

impl Documents {
    /// Builds them from the registry.
    pub fn build() -> Documents {
        let mut kinds: BTreeMap<String, Vec<Kind>> = BTreeMap::new();
        for kind in Kind::ALL {
            kinds.entry(prefix(kind)).or_default().push(kind);
        }
        let groups: BTreeMap<String, Document> = kinds
            .into_iter()
            .map(|(path, kinds)| (path, Document::new(&document(&kinds), "application/json")))
            .collect();
        let paths: Map<String, Value> = groups
            .iter()
            .map(|(path, document)| {
                let url = format!("/openapi/v3/{path}?hash={}", document.hash());
                (path.clone(), json!({ "serverRelativeURL": url }))
            })
            .collect();
        let v2 = Document::raw(openapi_v2::document().into(), openapi_v2::MEDIA_TYPE);
        Documents { index: Document::new(&json!({ "paths": paths }), "application/json"), groups, v2 }
    }

    /// The answer to a path, if it is one of ours.
    pub fn answer(&self, request: &HttpRequest, segments: &[&str]) -> Option<HttpResponse> {
        match segments {
            ["openapi", "v2"] => Some(self.v2(request)),
            ["openapi", "v3"] => Some(self.index.answer(request)),
            ["openapi", "v3", rest @ ..] => self.groups.get(&rest.join("/")).map(|d| d.answer(request)),
            _ => None,
        }
    }
}

impl Documents {
    /// OpenAPI v2 is there for those who read protobuf; others are told to take v3.
    fn v2(&self, request: &HttpRequest) -> HttpResponse {
        let accept = request.headers().get("accept").and_then(|h| h.to_str().ok()).unwrap_or("");
        if accept.contains("proto-openapi") {
            self.v2.answer(request)
        } else {
            ApiError::NotAcceptable.response()
        }
    }
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn prefix(kind: Kind) -> String {
    let root = if kind.api_version().contains('/') { "apis" } else { "api" };
    format!("{root}/{}", kind.api_version())
}

fn document(kinds: &[Kind]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in kinds {
        let middle = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{middle}/{}", prefix(*kind), kind.plural());
        let object = format!("{collection}/{{name}}");
        if kind.namespaced() {
            paths.insert(format!("/{}/{}", prefix(*kind), kind.plural()), verbs(*kind, &["get"]));
        }
        paths.insert(collection, verbs(*kind, &["get", "post", "delete"]));
        paths.insert(object, verbs(*kind, &["get", "put", "patch", "delete"]));
        schemas.insert(schema_name(*kind), schema(*kind));
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": KUBERNETES_VERSION },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn group_version_kind(kind: Kind) -> Value {
    let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
    json!({ "group": group, "version": version, "kind": kind.name() })
}

fn schema_name(kind: Kind) -> String {
    let group = kind.api_version().split_once('/').map_or("core", |(group, _)| group);
    let version = kind.api_version().rsplit('/').next().unwrap_or("v1");
    format!("io.k8s.api.{}.{version}.{}", group.split('.').next().unwrap_or(group), kind.name())
}

fn schema(kind: Kind) -> Value {
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind": [group_version_kind(kind)],
    })
}

fn verbs(kind: Kind, verbs: &[&str]) -> Value {
    let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let reference = json!({ "$ref": format!("#/components/schemas/{}", schema_name(kind)) });
    let one = |verb: &str| {
        let writes = matches!(verb, "post" | "put" | "patch");
        let mut parameters = vec![];
        if writes || verb == "delete" {
            parameters.push(parameter("dryRun"));
        }
        if writes {
            parameters.push(parameter("fieldManager"));
            parameters.push(parameter("fieldValidation"));
        }
        let action = match verb {
            "get" => "get",
            "post" => "post",
            "put" => "put",
            "patch" => "patch",
            _ => "delete",
        };
        json!({
            "operationId": format!("{action}{}", kind.name()),
            "parameters": parameters,
            "responses": { "200": { "description": "OK",
                "content": { "application/json": { "schema": reference } } } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": group_version_kind(kind),
        })
    };
    Value::Object(verbs.iter().map(|v| ((*v).to_owned(), one(v))).collect())
}
