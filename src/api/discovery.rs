//! Discovery: which groups, versions and resources there are, and which version we say we are.
//!
//! Owns: the documents below `/api`, `/apis` and `/version`, built once from the registry. A client that asks for the
//! aggregated form gets everything in two requests and, with `If-None-Match`, nothing at all.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::model::{
    Kind,
    registry::{self, Row, Subresource},
};

/// The Kubernetes whose behaviour we show.
pub const KUBERNETES_VERSION: &str = "v1.33.1";

/// A document with its tag.
pub struct Document {
    body: Bytes,
    etag: String,
    content_type: &'static str,
}

impl Document {
    /// A document that does not change while the server runs.
    pub fn new(value: &Value, content_type: &'static str) -> Document {
        Document::raw(Bytes::from(value.to_string()), content_type)
    }

    /// As [`Document::new`], of bytes.
    pub fn raw(body: Bytes, content_type: &'static str) -> Document {
        let digest = Sha256::digest(&body);
        let etag = format!("\"{}\"", digest.iter().map(|b| format!("{b:02x}")).collect::<String>());
        Document { body, etag, content_type }
    }

    /// The tag without quotes.
    pub fn hash(&self) -> &str {
        self.etag.trim_matches('"')
    }

    /// The document, or 304 for a client that has it.
    pub fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let known = request.headers().get("if-none-match").and_then(|h| h.to_str().ok());
        let mut response = match known {
            Some(tags) if tags.split(',').any(|t| t.trim() == self.etag) => HttpResponse::NotModified(),
            _ => HttpResponse::Ok(),
        };
        response
            .insert_header(("ETag", self.etag.clone()))
            .insert_header(("Vary", "Accept"))
            .insert_header(("Cache-Control", "public"))
            .content_type(self.content_type);
        if known.is_some_and(|tags| tags.split(',').any(|t| t.trim() == self.etag)) {
            return response.finish();
        }
        response.body(self.body.clone())
    }
}

const JSON: &str = "application/json";
const V2: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const V2BETA1: &str = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";

/// One path in its three forms.
struct Forms {
    plain: Document,
    v2: Document,
    v2beta1: Document,
}

impl Forms {
    fn new(plain: &Value, groups: &[Value]) -> Forms {
        let aggregated = |version: &str| {
            json!({ "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
                "metadata": {}, "items": groups })
        };
        Forms {
            plain: Document::new(plain, JSON),
            v2: Document::new(&aggregated("v2"), V2),
            v2beta1: Document::new(&aggregated("v2beta1"), V2BETA1),
        }
    }

    fn answer(&self, request: &HttpRequest) -> HttpResponse {
        let accept = request.headers().get("accept").and_then(|h| h.to_str().ok()).unwrap_or("");
        let chosen = accept.split(',').find_map(|range| {
            let range = range.replace(' ', "");
            if !range.contains("as=APIGroupDiscoveryList") {
                return (range.starts_with(JSON) || range.starts_with("*/*")).then_some(&self.plain);
            }
            if range.contains("v=v2beta1") {
                Some(&self.v2beta1)
            } else {
                range.contains("v=v2").then_some(&self.v2)
            }
        });
        chosen.unwrap_or(&self.plain).answer(request)
    }
}

/// Every discovery document.
pub struct Documents {
    core: Forms,
    groups: Forms,
    /// By path: `api/v1`, `apis/GROUP`, `apis/GROUP/VERSION`.
    resources: BTreeMap<String, Document>,
    version: Document,
}

impl Documents {
    /// Builds them from the registry.
    pub fn build() -> Documents {
        // Group → versions → kinds.
        let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<Kind>>> = BTreeMap::new();
        for kind in Kind::ALL {
            let (group, version) = split(kind.api_version());
            groups.entry(group).or_default().entry(version).or_default().push(kind);
        }
        let mut resources = BTreeMap::new();
        let (mut plain_groups, mut aggregated, mut core) = (Vec::new(), Vec::new(), Vec::new());
        for (group, versions) in &groups {
            let item = json!({
                "metadata": { "name": group, "creationTimestamp": null },
                "versions": versions.iter().map(|(version, kinds)| json!({
                    "version": version, "freshness": "Current",
                    "resources": kinds.iter().map(|k| aggregated_resource(*k)).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            });
            for (version, kinds) in versions {
                let (path, name) = match *group {
                    "" => (format!("api/{version}"), (*version).to_owned()),
                    group => (format!("apis/{group}/{version}"), format!("{group}/{version}")),
                };
                let list: Vec<Value> = kinds.iter().flat_map(|k| plain_resources(*k)).collect();
                let document = json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": name,
                    "resources": list });
                resources.insert(path, Document::new(&document, JSON));
            }
            if group.is_empty() {
                core.push(item);
                continue;
            }
            aggregated.push(item);
            let named: Vec<Value> = versions
                .keys()
                .map(|v| json!({ "groupVersion": format!("{group}/{v}"), "version": v }))
                .collect();
            let one = json!({ "name": group, "versions": named, "preferredVersion": named.first() });
            let mut alone = one.clone();
            alone["kind"] = "APIGroup".into();
            alone["apiVersion"] = "v1".into();
            resources.insert(format!("apis/{group}"), Document::new(&alone, JSON));
            plain_groups.push(one);
        }
        let versions = json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] });
        let list = json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": plain_groups });
        Documents {
            core: Forms::new(&versions, &core),
            groups: Forms::new(&list, &aggregated),
            resources,
            version: Document::new(&version(), JSON),
        }
    }

    /// The answer to a path, if it is one of ours.
    pub fn answer(&self, request: &HttpRequest, segments: &[&str]) -> Option<HttpResponse> {
        match segments {
            ["api"] => Some(self.core.answer(request)),
            ["apis"] => Some(self.groups.answer(request)),
            ["version"] => Some(self.version.answer(request)),
            ["api" | "apis", ..] => self.resources.get(&segments.join("/")).map(|d| d.answer(request)),
            _ => None,
        }
    }
}

fn split(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

fn version() -> Value {
    let mut numbers = KUBERNETES_VERSION.trim_start_matches('v').split('.');
    json!({
        "major": numbers.next(), "minor": numbers.next(),
        "gitVersion": format!("{KUBERNETES_VERSION}+troupe-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}

fn plain_resources(kind: Kind) -> Vec<Value> {
    let row = registry::row(kind);
    let mut out = vec![plain_resource(kind, row)];
    out.extend(row.subresources.iter().map(|sub| plain_subresource(kind, sub)));
    out
}

fn plain_resource(kind: Kind, row: &Row) -> Value {
    let mut resource = json!({ "name": kind.plural(), "singularName": row.singular,
        "namespaced": kind.namespaced(), "kind": kind.name(), "verbs": row.verbs });
    if !row.short_names.is_empty() {
        resource["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    resource
}

fn plain_subresource(kind: Kind, sub: &Subresource) -> Value {
    let mut resource = json!({ "name": format!("{}/{}", kind.plural(), sub.name), "singularName": "",
        "namespaced": kind.namespaced(), "kind": sub.kind, "verbs": sub.verbs });
    if let Some((group, version)) = sub.group_version {
        resource["group"] = group.into();
        resource["version"] = version.into();
    }
    resource
}

fn aggregated_resource(kind: Kind) -> Value {
    let row = registry::row(kind);
    let (group, version) = split(kind.api_version());
    let mut resource = json!({
        "resource": kind.plural(), "singularResource": row.singular,
        "responseKind": { "group": group, "version": version, "kind": kind.name() },
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "verbs": row.verbs,
    });
    if !row.short_names.is_empty() {
        resource["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        resource["subresources"] = row
            .subresources
            .iter()
            .map(|sub| {
                let (group, version) = sub.group_version.unwrap_or((group, version));
                json!({ "subresource": sub.name, "verbs": sub.verbs,
                    "responseKind": { "group": group, "version": version, "kind": sub.kind } })
            })
            .collect();
    }
    resource
}
