//! EndpointSlices: endpoints in the form that newer clients look for (`kubectl describe service` since 1.31).
//!
//! Owns: the read-only resource `endpointslices` of `discovery.k8s.io/v1`, made from the stored endpoints whenever it is
//! read: there is one truth. One slice for each subset; labels as Kubernetes' mirroring sets them. It can be read and
//! listed, not watched: who wants to follow endpoints watches `endpoints`.

use actix_web::{HttpRequest, HttpResponse};
use k8s_openapi::{api::core::v1, jiff::Timestamp};
use serde_json::{Value, json};

use super::{
    clock,
    error::ApiError,
    made::{Made, Resource},
};
use crate::model::{Key, Kind, Labels, Object, Snapshot, table};

/// Its group.
pub const GROUP: &str = "discovery.k8s.io";
/// Its version.
pub const VERSION: &str = "v1";
/// Its name in URLs.
pub const PLURAL: &str = "endpointslices";
/// Its kind.
pub const KIND: &str = "EndpointSlice";
const RESOURCE: Resource = Resource {
    kind: KIND,
    group: GROUP,
    version: VERSION,
    plural: PLURAL,
    columns: &["Name", "AddressType", "Ports", "Endpoints", "Age"],
};
/// The label by which a service's slices are found.
const SERVICE: &str = "kubernetes.io/service-name";
/// The label that says who made a slice.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Addresses and ports that a table shows, as in Kubernetes.
const SHOWN: usize = 3;

/// Which slices a path names.
#[derive(Debug, PartialEq, Eq)]
pub struct Slices {
    namespace: Option<String>,
    name: Option<String>,
}

/// One slice, and of what it is made.
struct Slice<'a> {
    of: &'a Object,
    name: String,
    labels: Labels,
    subset: v1::EndpointSubset,
}

impl Slices {
    /// The slices that a path names, if it names any.
    pub fn of(segments: &[&str]) -> Option<Slices> {
        let ["apis", group, version, rest @ ..] = segments else { return None };
        if *group != GROUP || *version != VERSION {
            return None;
        }
        let (namespace, name) = match rest {
            [plural] if *plural == PLURAL => (None, None),
            ["namespaces", namespace, plural] if *plural == PLURAL => (Some(*namespace), None),
            ["namespaces", namespace, plural, name] if *plural == PLURAL => (Some(*namespace), Some(*name)),
            _ => return None,
        };
        Some(Slices { namespace: namespace.map(str::to_owned), name: name.map(str::to_owned) })
    }

    /// GET and LIST.
    ///
    /// # Errors
    /// 404, 405 for watches, 406, 400 for selectors that are malformed or not supported.
    pub fn answer(&self, request: &HttpRequest, snapshot: &Snapshot) -> Result<HttpResponse, ApiError> {
        let asked = RESOURCE.asked(request)?;
        let slices = self.read(snapshot)?;
        RESOURCE.answer(&asked, self.name.as_deref(), slices, snapshot.revision.0, clock::now())
    }

    fn read<'s>(&'s self, snapshot: &'s Snapshot) -> Result<Vec<Slice<'s>>, ApiError> {
        let mut slices = Vec::new();
        for object in snapshot.list(Kind::Endpoints, self.namespace.as_deref()) {
            let endpoints: v1::Endpoints =
                object.parse().map_err(|e| ApiError::Internal(format!("{}: {e}", object.key)))?;
            for (index, subset) in endpoints.subsets.into_iter().flatten().enumerate() {
                let suffix = if index == 0 { String::new() } else { format!("-{}", index + 1) };
                let mut labels = object.facet.meta.labels.to_map();
                labels.insert(SERVICE.into(), object.key.name.to_string());
                labels.insert(MANAGED_BY.into(), "troupe".into());
                slices.push(Slice {
                    of: object,
                    name: format!("{}{suffix}", object.key.name),
                    labels,
                    subset,
                });
            }
        }
        slices.retain(|s| self.name.as_ref().is_none_or(|name| *name == s.name));
        Ok(slices)
    }
}

impl Slice<'_> {
    fn key(&self) -> &Key {
        &self.of.key
    }

    fn addresses(&self) -> impl Iterator<Item = (&v1::EndpointAddress, bool)> {
        let ready = self.subset.addresses.iter().flatten().map(|a| (a, true));
        ready.chain(self.subset.not_ready_addresses.iter().flatten().map(|a| (a, false)))
    }

    fn address_type(&self) -> &'static str {
        let v6 = self.addresses().next().is_some_and(|(a, _)| a.ip.contains(':'));
        if v6 { "IPv6" } else { "IPv4" }
    }
}

impl Made for Slice<'_> {
    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn metadata(&self) -> Value {
        json!({
            "name": self.name, "namespace": self.key().namespace, "uid": self.of.uid().as_str(),
            "resourceVersion": self.of.revision.to_string(),
            "creationTimestamp": clock::whole_seconds(self.of.facet.meta.created).to_string(),
            "labels": self.labels,
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Endpoints", "name": self.key().name,
                "uid": self.of.uid().as_str(), "controller": true }],
        })
    }

    fn content(&self) -> Value {
        let endpoints: Vec<Value> = self
            .addresses()
            .map(|(address, ready)| {
                let conditions = json!({ "ready": ready, "serving": ready, "terminating": false });
                let mut endpoint = json!({ "addresses": [address.ip], "conditions": conditions });
                for (name, value) in [
                    ("hostname", json!(address.hostname)),
                    ("nodeName", json!(address.node_name)),
                    ("targetRef", json!(address.target_ref)),
                ] {
                    if !value.is_null() {
                        endpoint[name] = value;
                    }
                }
                endpoint
            })
            .collect();
        let ports: Vec<Value> = self
            .subset
            .ports
            .iter()
            .flatten()
            .map(|port| {
                let mut out = json!({ "name": port.name.as_deref().unwrap_or(""), "port": port.port,
                    "protocol": port.protocol.as_deref().unwrap_or("TCP") });
                if let Some(protocol) = &port.app_protocol {
                    out["appProtocol"] = protocol.as_str().into();
                }
                out
            })
            .collect();
        json!({ "addressType": self.address_type(), "endpoints": endpoints, "ports": ports })
    }

    fn cells(&self, now: Timestamp) -> Value {
        let ports = self.subset.ports.iter().flatten().map(|p| p.port.to_string());
        let addresses = self.addresses().map(|(a, _)| a.ip.clone());
        let age = table::since(Some(self.of.facet.meta.created), now);
        json!([self.name, self.address_type(), shown(ports), shown(addresses), age])
    }
}

/// The first few, and how many more there are.
fn shown(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    if all.is_empty() {
        return "<unset>".to_owned();
    }
    let mut text = all[..all.len().min(SHOWN)].join(",");
    if all.len() > SHOWN {
        text.push_str(&format!(" + {} more...", all.len() - SHOWN));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use actix_web::test::TestRequest;

    use super::*;
    use crate::model::{Revision, seal_json};

    fn snapshot() -> Snapshot {
        let mut snapshot = Snapshot::default();
        let endpoints = json!({ "metadata": { "name": "web", "namespace": "a", "uid": "u", "labels": {"l": "1"} },
            "subsets": [
                { "addresses": [{"ip": "10.0.0.1", "nodeName": "n"}, {"ip": "10.0.0.2"}, {"ip": "10.0.0.3"}],
                  "notReadyAddresses": [{"ip": "10.0.0.4"}], "ports": [{"port": 80}] },
                { "addresses": [{"ip": "fd00::1"}], "ports": [{"name": "x", "port": 81, "protocol": "UDP"}] },
            ] });
        let sealed = seal_json(Kind::Endpoints, endpoints.to_string().as_bytes()).unwrap();
        snapshot.insert(Arc::new(sealed.at(Revision(1))));
        snapshot
    }

    fn names(path: &str, query: &str) -> Vec<String> {
        let segments: Vec<&str> = path.split('/').collect();
        let slices = Slices::of(&segments).unwrap();
        let request = TestRequest::with_uri(&format!("/{path}?{query}")).to_http_request();
        slices.answer(&request, &snapshot()).unwrap();
        let snapshot = snapshot();
        slices.read(&snapshot).unwrap().into_iter().map(|s| s.name).collect()
    }

    #[test]
    fn each_subset_of_endpoints_is_a_slice() {
        let base = format!("apis/{GROUP}/{VERSION}");
        assert_eq!(names(&format!("{base}/{PLURAL}"), "labelSelector=l%3D1"), ["web", "web-2"]);
        assert_eq!(names(&format!("{base}/namespaces/a/{PLURAL}"), ""), ["web", "web-2"]);
        assert_eq!(names(&format!("{base}/namespaces/b/{PLURAL}"), ""), Vec::<String>::new());
        assert_eq!(names(&format!("{base}/namespaces/a/{PLURAL}/web-2"), ""), ["web-2"]);
        assert_eq!(Slices::of(&["apis", GROUP, "v2", PLURAL]), None);
    }

    #[test]
    fn a_slice_tells_addresses_ports_and_readiness() {
        let snapshot = snapshot();
        let slices = Slices { namespace: None, name: None }.read(&snapshot).unwrap();
        let first = RESOURCE.whole(&slices[0]);
        assert_eq!(first["endpoints"][0]["nodeName"], "n");
        assert_eq!(first["endpoints"][3]["conditions"]["ready"], false);
        assert_eq!(first["ports"][0], json!({"name": "", "port": 80, "protocol": "TCP"}));
        assert_eq!(first["metadata"]["labels"][SERVICE], "web");
        assert_eq!(RESOURCE.whole(&slices[1])["addressType"], "IPv6");
        let cells = slices[0].cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells[3], "10.0.0.1,10.0.0.2,10.0.0.3 + 1 more...");
    }
}
