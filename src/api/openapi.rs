//! OpenAPI: what kubectl reads before it sends a document, and what `kubectl explain` shows.
//!
//! Owns: `/openapi/v3`, one document a group and version, and `/openapi/v2` for older clients. Schemas are generated from
//! the types that documents are parsed with, when the first client asks. Paths carry each verb's parameters, so that
//! clients leave validation to the server.

use std::{collections::BTreeMap, sync::OnceLock};

use actix_web::{HttpRequest, HttpResponse};
use k8s_openapi::api::{coordination, core::v1, discovery};
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{discovery::KUBERNETES_VERSION, error::ApiError, fixed::Document, leases, openapi_v2, slices};
use crate::model::Kind;

/// Every OpenAPI document.
pub struct Documents {
    v3: OnceLock<V3>,
    v2: Document,
}

/// Those that carry schemas.
struct V3 {
    index: Document,
    /// By group and version: `api/v1`, `apis/GROUP/VERSION`.
    groups: BTreeMap<String, Document>,
}

impl V3 {
    fn build() -> V3 {
        let mut kinds: BTreeMap<String, Vec<Described>> = BTreeMap::new();
        for kind in described() {
            kinds.entry(kind.prefix()).or_default().push(kind);
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
        V3 { index: Document::new(&json!({ "paths": paths }), "application/json"), groups }
    }
}

impl Documents {
    /// Documents that are made when they are asked for.
    pub fn build() -> Documents {
        let v2 = Document::raw(openapi_v2::document().into(), openapi_v2::MEDIA_TYPE);
        Documents { v3: OnceLock::new(), v2 }
    }

    /// The answer to a path, if it is one of ours.
    pub fn answer(&self, request: &HttpRequest, segments: &[&str]) -> Option<HttpResponse> {
        match segments {
            ["openapi", "v2"] => Some(self.v2(request)),
            ["openapi", "v3", rest @ ..] => {
                let v3 = self.v3.get_or_init(V3::build);
                if rest.is_empty() { Some(&v3.index) } else { v3.groups.get(&rest.join("/")) }
                    .map(|document| document.answer(request))
            }
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

/// A kind as its schema and its paths need it.
#[derive(Clone, Copy)]
struct Described {
    group: &'static str,
    version: &'static str,
    name: &'static str,
    plural: &'static str,
    namespaced: bool,
    /// The kind that is stored; none for what is made of others when it is read.
    stored: Option<Kind>,
}

/// Every kind that has a schema.
fn described() -> Vec<Described> {
    let stored = |kind: Kind| {
        let (group, version) = kind.api_version().split_once('/').unwrap_or(("", kind.api_version()));
        let (name, plural, namespaced) = (kind.name(), kind.plural(), kind.namespaced());
        Described { group, version, name, plural, namespaced, stored: Some(kind) }
    };
    let slice = Described {
        group: slices::GROUP,
        version: slices::VERSION,
        name: slices::KIND,
        plural: slices::PLURAL,
        namespaced: true,
        stored: None,
    };
    let lease = Described {
        group: leases::GROUP,
        version: leases::VERSION,
        name: leases::KIND,
        plural: leases::PLURAL,
        ..slice
    };
    Kind::ALL.into_iter().map(stored).chain([lease, slice]).collect()
}

impl Described {
    /// `api/v1` or `apis/GROUP/VERSION`.
    fn prefix(&self) -> String {
        if self.group.is_empty() {
            format!("api/{}", self.version)
        } else {
            format!("apis/{}/{}", self.group, self.version)
        }
    }

    fn group_version_kind(&self) -> Value {
        json!({ "group": self.group, "version": self.version, "kind": self.name })
    }

    fn schema_name(&self) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        format!("io.k8s.api.{}.{}.{}", group.split('.').next().unwrap_or(group), self.version, self.name)
    }

    /// Adds the kind's schema, and those of all it is made of, to the generator's definitions.
    fn generate(&self, generator: &mut SchemaGenerator) {
        match self.stored {
            Some(kind) => generate(kind, generator),
            None if self.name == leases::KIND => {
                drop(generator.subschema_for::<coordination::v1::Lease>());
            }
            None => drop(generator.subschema_for::<discovery::v1::EndpointSlice>()),
        }
    }
}

fn document(kinds: &[Described]) -> Value {
    let mut paths = Map::new();
    let mut generator = SchemaSettings::openapi3().into_generator();
    for kind in kinds {
        let (prefix, plural) = (kind.prefix(), kind.plural);
        let middle = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{prefix}{middle}/{plural}");
        let object = format!("{collection}/{{name}}");
        if kind.namespaced {
            paths.insert(format!("/{prefix}/{plural}"), verbs(kind, &["get"]));
        }
        let (all, one): (&[&str], &[&str]) = match kind.stored {
            Some(_) => (&["get", "post", "delete"], &["get", "put", "patch", "delete"]),
            None => (&["get"], &["get"]),
        };
        paths.insert(collection, verbs(kind, all));
        paths.insert(object, verbs(kind, one));
        kind.generate(&mut generator);
    }
    let mut schemas = generator.take_definitions(true);
    for kind in kinds {
        if let Some(Value::Object(schema)) = schemas.get_mut(&kind.schema_name()) {
            schema.insert("x-kubernetes-group-version-kind".into(), json!([kind.group_version_kind()]));
            // The types insist on metadata; Kubernetes' schema does not.
            if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
                required.retain(|name| name != "metadata");
            }
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": KUBERNETES_VERSION },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

/// See [`Described::generate`].
fn generate(kind: Kind, generator: &mut SchemaGenerator) {
    match kind {
        Kind::Namespace => generator.subschema_for::<v1::Namespace>(),
        Kind::Node => generator.subschema_for::<v1::Node>(),
        Kind::Pod => generator.subschema_for::<v1::Pod>(),
        Kind::ReplicationController => generator.subschema_for::<v1::ReplicationController>(),
        Kind::Service => generator.subschema_for::<v1::Service>(),
        Kind::Endpoints => generator.subschema_for::<v1::Endpoints>(),
        Kind::Event => generator.subschema_for::<v1::Event>(),
        Kind::ConfigMap => generator.subschema_for::<v1::ConfigMap>(),
        Kind::Secret => generator.subschema_for::<v1::Secret>(),
        Kind::ServiceAccount => generator.subschema_for::<v1::ServiceAccount>(),
    };
}

fn verbs(kind: &Described, verbs: &[&str]) -> Value {
    let parameter = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let reference = json!({ "$ref": format!("#/components/schemas/{}", kind.schema_name()) });
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
            "operationId": format!("{action}{}", kind.name),
            "parameters": parameters,
            "responses": { "200": { "description": "OK",
                "content": { "application/json": { "schema": reference } } } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": kind.group_version_kind(),
        })
    };
    Value::Object(verbs.iter().map(|v| ((*v).to_owned(), one(v))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_whose_references_lead_somewhere() {
        let document = document(&described());
        let schemas = &document["components"]["schemas"];
        for kind in described() {
            let schema = &schemas[kind.schema_name()];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], kind.name);
            assert!(schema["properties"]["metadata"].is_object(), "{}", kind.name);
        }
        let text = document.to_string();
        for reference in text.split("\"$ref\":\"").skip(1) {
            let reference = reference.split('"').next().unwrap();
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        assert!(schemas["io.k8s.api.core.v1.Container"]["properties"]["image"]["description"].is_string());
    }
}
