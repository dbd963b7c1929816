//! Discovery: which groups, versions and resources there are, and which version we say we are.
//!
//! Owns: the documents below `/api`, `/apis` and `/version`, built once from the registry and from the list of what is
//! answered without being stored. A client that asks for the aggregated form gets everything in two requests.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse};
use serde_json::{Value, json};

use super::{fixed::Document, leases, review::Review, slices, usage};
use crate::model::{
    Kind,
    registry::{self, Subresource},
};

/// The Kubernetes whose behaviour we show.
pub const KUBERNETES_VERSION: &str = "v1.33.1";

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
        // Group → versions → resources.
        let mut groups: BTreeMap<&str, BTreeMap<&str, Vec<Resource>>> = BTreeMap::new();
        for kind in Kind::ALL {
            let (group, version) = split(kind.api_version());
            groups.entry(group).or_default().entry(version).or_default().push(Resource::of(kind));
        }
        for (group, version, resource) in unstored() {
            groups.entry(group).or_default().entry(version).or_default().push(resource);
        }
        let mut resources = BTreeMap::new();
        let (mut plain_groups, mut aggregated, mut core) = (Vec::new(), Vec::new(), Vec::new());
        for (group, versions) in &groups {
            let item = json!({
                "metadata": { "name": group, "creationTimestamp": null },
                "versions": versions.iter().map(|(version, resources)| json!({
                    "version": version, "freshness": "Current",
                    "resources": resources.iter().map(|r| aggregated_resource(r, group, version)).collect::<Vec<_>>(),
                })).collect::<Vec<_>>(),
            });
            for (version, kinds) in versions {
                let (path, name) = match *group {
                    "" => (format!("api/{version}"), (*version).to_owned()),
                    group => (format!("apis/{group}/{version}"), format!("{group}/{version}")),
                };
                let list: Vec<Value> = kinds.iter().flat_map(plain_resources).collect();
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

    /// Every path that is answered here.
    pub fn paths(&self) -> impl Iterator<Item = String> {
        let fixed = ["/api", "/apis", "/version"].into_iter().map(str::to_owned);
        fixed.chain(self.resources.keys().map(|path| format!("/{path}")))
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

/// A resource as discovery tells it.
struct Resource {
    plural: String,
    singular: String,
    kind: &'static str,
    namespaced: bool,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    verbs: &'static [&'static str],
    subresources: &'static [Subresource],
}

impl Resource {
    fn of(kind: Kind) -> Resource {
        let row = registry::row(kind);
        Resource {
            plural: kind.plural().to_owned(),
            singular: row.singular.to_owned(),
            kind: kind.name(),
            namespaced: kind.namespaced(),
            short_names: row.short_names,
            categories: row.categories,
            verbs: row.verbs,
            subresources: row.subresources,
        }
    }
}

/// Resources that are answered but not stored, by group and version.
fn unstored() -> impl Iterator<Item = (&'static str, &'static str, Resource)> {
    let plain = |plural: String, kind, namespaced, verbs| Resource {
        singular: plural.trim_end_matches('s').to_owned(),
        plural,
        kind,
        namespaced,
        short_names: &[],
        categories: &[],
        verbs,
        subresources: &[],
    };
    let reviews = Review::ALL
        .into_iter()
        .map(move |review| (review.group(), "v1", plain(review.plural(), review.kind(), false, &["create"])));
    let slices = plain(slices::PLURAL.to_owned(), slices::KIND, true, &["get", "list"]);
    let leases = plain(leases::PLURAL.to_owned(), leases::KIND, true, &["get", "list"]);
    // As the metrics server, which gives them no singular.
    let metrics =
        [("nodes", "NodeMetrics", false), ("pods", "PodMetrics", true)].map(|(plural, kind, namespaced)| {
            let resource = plain(plural.to_owned(), kind, namespaced, &["get", "list"]);
            (usage::GROUP, usage::VERSION, Resource { singular: String::new(), ..resource })
        });
    let made = [(leases::GROUP, leases::VERSION, leases), (slices::GROUP, slices::VERSION, slices)];
    reviews.chain(made).chain(metrics)
}

fn plain_resources(of: &Resource) -> Vec<Value> {
    let mut out = vec![plain_resource(of)];
    out.extend(of.subresources.iter().map(|sub| plain_subresource(of, sub)));
    out
}

fn plain_resource(of: &Resource) -> Value {
    let mut resource = json!({ "name": of.plural, "singularName": of.singular,
        "namespaced": of.namespaced, "kind": of.kind, "verbs": of.verbs });
    names(of, &mut resource);
    resource
}

fn names(of: &Resource, resource: &mut Value) {
    if !of.short_names.is_empty() {
        resource["shortNames"] = json!(of.short_names);
    }
    if !of.categories.is_empty() {
        resource["categories"] = json!(of.categories);
    }
}

fn plain_subresource(of: &Resource, sub: &Subresource) -> Value {
    let mut resource = json!({ "name": format!("{}/{}", of.plural, sub.name), "singularName": "",
        "namespaced": of.namespaced, "kind": sub.kind, "verbs": sub.verbs });
    if let Some((group, version)) = sub.group_version {
        resource["group"] = group.into();
        resource["version"] = version.into();
    }
    resource
}

fn aggregated_resource(of: &Resource, group: &str, version: &str) -> Value {
    let mut resource = json!({
        "resource": of.plural, "singularResource": of.singular,
        "responseKind": { "group": group, "version": version, "kind": of.kind },
        "scope": if of.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": of.verbs,
    });
    names(of, &mut resource);
    if !of.subresources.is_empty() {
        resource["subresources"] = of
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
