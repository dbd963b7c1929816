//! What kinds of objects the cluster has, asked of the cluster itself.
//!
//! Owns: [`Resource`], the paths of its objects, and the resolution of what people call it: plural, singular, short
//! name, kind, category, with or without version and group. No table of kinds: what the server learns, we know at once.

use std::fmt::Write as _;

use serde_json::Value;

use super::{
    client::Client,
    error::{CliError, Outcome},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
     application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";

/// One kind of object as the server offers it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resource {
    /// `""` for the core group.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// `pods`.
    pub plural: String,
    /// `pod`.
    pub singular: String,
    /// `Pod`.
    pub kind: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// `po`.
    pub short_names: Vec<String>,
    /// `all`.
    pub categories: Vec<String>,
    /// `get`, `list`…
    pub verbs: Vec<String>,
    /// `log`, `scale`…
    pub subresources: Vec<String>,
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.is_empty() {
            true => self.version.clone(),
            false => format!("{}/{}", self.group, self.version),
        }
    }

    /// `pod`, `deployment.apps`: how messages name the kind of an object.
    pub fn noun(&self) -> String {
        let singular = self.kind.to_lowercase();
        match self.group.is_empty() {
            true => singular,
            false => format!("{singular}.{}", self.group),
        }
    }

    /// `pods`, `deployments.apps`.
    pub fn full_plural(&self) -> String {
        match self.group.is_empty() {
            true => self.plural.clone(),
            false => format!("{}.{}", self.plural, self.group),
        }
    }

    /// The collection's path; of all namespaces when none is given.
    pub fn collection(&self, namespace: Option<&str>) -> String {
        let mut path = match self.group.is_empty() {
            true => format!("/api/{}", self.version),
            false => format!("/apis/{}/{}", self.group, self.version),
        };
        if let Some(namespace) = namespace.filter(|_| self.namespaced) {
            let _ = write!(path, "/namespaces/{}", escape(namespace));
        }
        let _ = write!(path, "/{}", self.plural);
        path
    }

    /// An object's path.
    pub fn object(&self, namespace: Option<&str>, name: &str) -> String {
        format!("{}/{}", self.collection(namespace), escape(name))
    }

    /// Whether the server lists them.
    pub fn listed(&self) -> bool {
        self.can("list")
    }

    /// Whether the server offers the verb.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }

    fn is_called(&self, name: &str) -> bool {
        self.plural == name
            || self.singular == name
            || self.kind.to_lowercase() == name
            || self.short_names.iter().any(|s| s == name)
    }
}

/// A path segment or a query's value, percent-encoded.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            other => {
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    out
}

/// Every kind the server offers, in its order.
#[derive(Debug, Default)]
pub struct Discovery {
    /// All of them.
    pub resources: Vec<Resource>,
}

impl Discovery {
    /// Asks the server: two requests, or one for each group where it is an old one.
    ///
    /// # Errors
    /// The server's refusal, or why it could not be asked.
    pub async fn ask(client: &Client) -> Outcome<Discovery> {
        let (core, groups) = futures_util::future::try_join(
            client.get_as("/api", AGGREGATED),
            client.get_as("/apis", AGGREGATED),
        )
        .await?;
        let mut discovery = Discovery::default();
        if core["kind"] == "APIGroupDiscoveryList" && groups["kind"] == "APIGroupDiscoveryList" {
            for list in [&core, &groups] {
                list["items"].as_array().into_iter().flatten().for_each(|g| discovery.aggregated(g));
            }
            return Ok(discovery);
        }
        for version in strings(&core["versions"]) {
            discovery.plain("", &version, &client.get(&format!("/api/{version}")).await?);
        }
        for group in groups["groups"].as_array().into_iter().flatten() {
            let name = group["name"].as_str().unwrap_or_default();
            let Some(version) = group["preferredVersion"]["version"].as_str() else { continue };
            discovery.plain(name, version, &client.get(&format!("/apis/{name}/{version}")).await?);
        }
        Ok(discovery)
    }

    fn aggregated(&mut self, group: &Value) {
        let name = group["metadata"]["name"].as_str().unwrap_or_default();
        for version in group["versions"].as_array().into_iter().flatten() {
            let version_name = version["version"].as_str().unwrap_or_default();
            for resource in version["resources"].as_array().into_iter().flatten() {
                let text = |field: &str| resource[field].as_str().unwrap_or_default().to_owned();
                let subresources = resource["subresources"].as_array().into_iter().flatten();
                self.add(Resource {
                    group: name.to_owned(),
                    version: version_name.to_owned(),
                    plural: text("resource"),
                    singular: text("singularResource"),
                    kind: resource["responseKind"]["kind"].as_str().unwrap_or_default().to_owned(),
                    namespaced: resource["scope"] == "Namespaced",
                    short_names: strings(&resource["shortNames"]),
                    categories: strings(&resource["categories"]),
                    verbs: strings(&resource["verbs"]),
                    subresources: subresources
                        .map(|s| s["subresource"].as_str().unwrap_or_default().to_owned())
                        .collect(),
                });
            }
        }
    }

    fn plain(&mut self, group: &str, version: &str, list: &Value) {
        for resource in list["resources"].as_array().into_iter().flatten() {
            let text = |field: &str| resource[field].as_str().unwrap_or_default().to_owned();
            let name = text("name");
            if let Some((parent, sub)) = name.split_once('/') {
                let of = |r: &&mut Resource| r.group == group && r.version == version && r.plural == parent;
                if let Some(parent) = self.resources.iter_mut().find(of) {
                    parent.subresources.push(sub.to_owned());
                }
                continue;
            }
            self.add(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                plural: name,
                singular: text("singularName"),
                kind: text("kind"),
                namespaced: resource["namespaced"].as_bool().unwrap_or(false),
                short_names: strings(&resource["shortNames"]),
                categories: strings(&resource["categories"]),
                verbs: strings(&resource["verbs"]),
                subresources: Vec::new(),
            });
        }
    }

    fn add(&mut self, mut resource: Resource) {
        if resource.singular.is_empty() {
            resource.singular = resource.kind.to_lowercase();
        }
        self.resources.push(resource);
    }

    /// What is called so: `pods`, `po`, `pod`, `Pod`, `deployments.apps`, `deployments.v1.apps`.
    ///
    /// # Errors
    /// When nothing is.
    pub fn resolve(&self, name: &str) -> Outcome<&Resource> {
        let lower = name.to_lowercase();
        let (head, rest) = lower.split_once('.').unwrap_or((&lower, ""));
        let (version, group) = rest.split_once('.').unwrap_or((rest, ""));
        let fits = |r: &&Resource| {
            let qualified = rest.is_empty()
                || r.group == rest
                || (r.version == version && r.group == group)
                || (!r.group.is_empty() && r.group.starts_with(&format!("{rest}.")));
            r.is_called(head) && qualified
        };
        self.resources
            .iter()
            .find(fits)
            .ok_or_else(|| CliError::failed(format!("the server doesn't have a resource type {name:?}")))
    }

    /// What a list of names means, categories like `all` included.
    ///
    /// # Errors
    /// When one of them is unknown.
    pub fn resolve_list(&self, names: &str) -> Outcome<Vec<&Resource>> {
        let mut found: Vec<&Resource> = Vec::new();
        for name in names.split(',').filter(|n| !n.is_empty()) {
            let lower = name.to_lowercase();
            let of_category: Vec<&Resource> =
                self.resources.iter().filter(|r| r.categories.contains(&lower) && r.listed()).collect();
            let those = if of_category.is_empty() { vec![self.resolve(name)?] } else { of_category };
            found.extend(those);
        }
        Ok(found)
    }

    /// What a document's `apiVersion` and `kind` mean.
    ///
    /// # Errors
    /// When the server has no such kind, in kubectl's words.
    pub fn of_kind(&self, api_version: &str, kind: &str) -> Outcome<&Resource> {
        self.resources.iter().find(|r| r.kind == kind && r.api_version() == api_version).ok_or_else(|| {
            CliError::failed(format!(
                "no matches for kind {kind:?} in version {api_version:?}; `api-resources` lists the kinds there are"
            ))
        })
    }
}

fn strings(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn discovery() -> Discovery {
        let mut discovery = Discovery::default();
        discovery.aggregated(&json!({"metadata": {"name": ""}, "versions": [{"version": "v1", "resources": [
            {"resource": "pods", "responseKind": {"kind": "Pod"}, "scope": "Namespaced", "singularResource": "pod",
             "shortNames": ["po"], "categories": ["all"], "verbs": ["get", "list"],
             "subresources": [{"subresource": "log"}]},
            {"resource": "nodes", "responseKind": {"kind": "Node"}, "scope": "Cluster", "singularResource": "node",
             "shortNames": ["no"], "verbs": ["get", "list"]}]}]}));
        discovery.plain("apps", "v1", &json!({"resources": [
            {"name": "deployments", "singularName": "", "kind": "Deployment", "namespaced": true, "verbs": ["list"]},
            {"name": "deployments/scale", "kind": "Scale"}]}));
        discovery
    }

    #[test]
    fn a_kind_goes_by_all_its_names() {
        let discovery = discovery();
        for name in ["pods", "pod", "po", "Pod", "POD", "pods.v1."] {
            assert_eq!(discovery.resolve(name).unwrap().kind, "Pod", "{name}");
        }
        for name in ["deployments.apps", "deployment.v1.apps", "deployment"] {
            assert_eq!(discovery.resolve(name).unwrap().kind, "Deployment", "{name}");
        }
        assert_eq!(
            discovery.resolve("frobs").unwrap_err().text(),
            "error: the server doesn't have a resource type \"frobs\""
        );
        assert_eq!(discovery.resolve_list("no,all").unwrap().len(), 2);
        assert!(discovery.of_kind("v1", "Deployment").is_err());
    }

    #[test]
    fn paths_have_a_namespace_where_the_kind_has_one() {
        let discovery = discovery();
        let pods = discovery.resolve("po").unwrap();
        assert_eq!(pods.object(Some("a"), "x y"), "/api/v1/namespaces/a/pods/x%20y");
        assert_eq!(pods.collection(None), "/api/v1/pods");
        assert_eq!(discovery.resolve("no").unwrap().object(Some("a"), "n"), "/api/v1/nodes/n");
        let deployments = discovery.resolve("deployments").unwrap();
        assert_eq!(deployments.collection(Some("a")), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(deployments.noun(), "deployment.apps");
        assert_eq!(deployments.subresources, ["scale"]);
    }
}
