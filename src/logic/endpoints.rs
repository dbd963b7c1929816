//! Endpoints: which addresses stand behind each service.
//!
//! Owns: the index from pods to the services that select them, and the `Endpoints` document of each, in Kubernetes' form
//! (subsets of addresses that share ports; not-ready addresses apart). Services without selector are their owners'
//! affair. Invariant: a document depends on the snapshot alone, so it is written only when it would differ.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use k8s_openapi::{
    api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, ServicePort},
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, Time},
        util::intstr::IntOrString,
    },
    jiff::Timestamp,
};

use super::{
    edit::{self, Edit, EditError},
    reconcile::{Means, Reconcile},
    select::{SelectorIndex, matches},
};
use crate::model::{Key, Kind, KindFacet, Labels, Object, PodFacet, ServiceFacet, Snapshot, seal};

/// Addresses in one document: Kubernetes' limit, which keeps a document that changes often small.
const MAX_ADDRESSES: usize = 1_000;
/// Says that the limit cut addresses off.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Marks the endpoints of a service without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Which services select which pods.
#[derive(Debug, Default)]
pub struct Services {
    selectors: SelectorIndex<Key>,
    members: HashMap<Key, BTreeSet<Key>>,
    due: BTreeSet<Key>,
}

impl Reconcile for Services {
    /// A service's key, whether or not it exists.
    type Item = Key;

    fn anew(&mut self, snapshot: &Snapshot, now: Timestamp) {
        *self = Services::default();
        for kind in [Kind::Service, Kind::Endpoints] {
            for object in snapshot.list(kind, None) {
                self.apply(None, Some(object), snapshot, now);
            }
        }
    }

    fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        snapshot: &Snapshot,
        _: Timestamp,
    ) {
        let Some(key) = before.or(after).map(|o| &o.key) else { return };
        match key.kind {
            Kind::Pod => self.pod(before, after),
            Kind::Service => self.service(before, after, snapshot),
            Kind::Endpoints => {
                self.due.insert(Key { kind: Kind::Service, ..key.clone() });
            }
            _ => {}
        }
    }

    fn next_due(&mut self, _: Timestamp) -> Option<Key> {
        self.due.pop_first()
    }

    fn mark(&mut self, item: Key) {
        self.due.insert(item);
    }

    fn decide(&self, item: &Key, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let present = means.snapshot.find(&Key { kind: Kind::Endpoints, ..item.clone() });
        let service = means.snapshot.find(item).filter(|s| s.facet.meta.deleting.is_none());
        let edit = match (service, service.and_then(|s| selector(s))) {
            (None, _) => present.map(|e| Edit::Remove(e.clone())),
            (Some(_), None) => None,
            (Some(service), Some(selector)) => {
                let members = self.members.get(item).into_iter().flatten();
                let pods = members
                    .filter_map(|k| means.snapshot.find(k))
                    .filter(|p| matches(selector, &*p.facet.meta.labels));
                write(service, &subsets(service, pods), present, means)?
            }
        };
        Ok(edit.into_iter().collect())
    }
}

impl Services {
    fn service(&mut self, before: Option<&Arc<Object>>, after: Option<&Arc<Object>>, snapshot: &Snapshot) {
        let selects = |o: Option<&Arc<Object>>| o.and_then(|o| selector(o)).cloned();
        let (old, new) = (selects(before), selects(after));
        let Some(key) = before.or(after).map(|o| &o.key) else { return };
        self.due.insert(key.clone());
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.selectors.remove(&key.namespace, &old, key);
            self.members.remove(key);
        }
        if let Some(new) = new {
            let pods = snapshot.list(Kind::Pod, Some(&key.namespace));
            let members = pods.filter(|p| matches(&new, &*p.facet.meta.labels)).map(|p| p.key.clone());
            self.members.insert(key.clone(), members.collect());
            self.selectors.insert(&key.namespace, &new, key.clone());
        }
    }

    fn pod(&mut self, before: Option<&Arc<Object>>, after: Option<&Arc<Object>>) {
        if let (Some(before), Some(after)) = (before, after)
            && same_to_services(before, after)
        {
            return;
        }
        if let Some(before) = before {
            for service in self.selectors.matching(&before.key.namespace, &before.facet.meta.labels) {
                if let Some(members) = self.members.get_mut(service) {
                    members.remove(&before.key);
                }
                self.due.insert(service.clone());
            }
        }
        if let Some(after) = after {
            for service in self.selectors.matching(&after.key.namespace, &after.facet.meta.labels) {
                if let Some(members) = self.members.get_mut(service) {
                    members.insert(after.key.clone());
                }
                self.due.insert(service.clone());
            }
        }
    }
}

fn facet(service: &Object) -> Option<&ServiceFacet> {
    match &service.facet.of {
        KindFacet::Service(facet) => Some(facet),
        _ => None,
    }
}

fn selector(service: &Object) -> Option<&Labels> {
    facet(service).and_then(|f| f.selector.as_ref())
}

/// Most changes of a pod are of no interest to services.
fn same_to_services(a: &Object, b: &Object) -> bool {
    let (KindFacet::Pod(p), KindFacet::Pod(q)) = (&a.facet.of, &b.facet.of) else { return false };
    a.uid() == b.uid()
        && a.facet.meta.labels == b.facet.meta.labels
        && a.facet.meta.deleting.is_some() == b.facet.meta.deleting.is_some()
        && p.ip == q.ip
        && p.ready == q.ready
        && p.node == q.node
        && p.phase.is_final() == q.phase.is_final()
        && p.ports == q.ports
}

/// What a document is to say.
#[derive(Debug, Default, PartialEq)]
struct Wanted {
    subsets: Vec<EndpointSubset>,
    truncated: bool,
}

/// Ports, and the addresses that have them: ready ones, then those that are not.
type Group =
    (Option<Vec<EndpointPort>>, BTreeMap<String, EndpointAddress>, BTreeMap<String, EndpointAddress>);

fn subsets<'a>(service: &Object, pods: impl Iterator<Item = &'a Arc<Object>>) -> Wanted {
    let Some(facet) = facet(service) else { return Wanted::default() };
    let mut candidates: Vec<(&Arc<Object>, &PodFacet, &str)> = pods
        .filter_map(|pod| match &pod.facet.of {
            KindFacet::Pod(p) if !p.phase.is_final() && pod.facet.meta.deleting.is_none() => {
                Some((pod, &**p, p.ip.as_deref()?))
            }
            _ => None,
        })
        .collect();
    let ready = |p: &PodFacet| p.ready || facet.publish_not_ready;
    let truncated = candidates.len() > MAX_ADDRESSES;
    if truncated {
        candidates.sort_by_key(|(pod, p, _)| (!ready(p), pod.key.clone()));
        candidates.truncate(MAX_ADDRESSES);
    }
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for (pod, p, ip) in candidates {
        let mut ports: Vec<EndpointPort> = facet.ports.iter().filter_map(|port| target(port, p)).collect();
        if ports.is_empty() && !facet.ports.is_empty() {
            continue;
        }
        ports.sort_by(|a, b| (&a.name, a.port).cmp(&(&b.name, b.port)));
        let group = groups.entry(format!("{ports:?}")).or_default();
        group.0 = Some(ports).filter(|p| !p.is_empty());
        let addresses = if ready(p) { &mut group.1 } else { &mut group.2 };
        addresses.insert(ip.to_owned(), address(pod, p, ip));
    }
    let subsets = groups.into_values().map(|(ports, ready, not_ready)| EndpointSubset {
        addresses: Some(ready.into_values().collect()).filter(|a: &Vec<_>| !a.is_empty()),
        not_ready_addresses: Some(not_ready.into_values().collect()).filter(|a: &Vec<_>| !a.is_empty()),
        ports,
    });
    Wanted { subsets: subsets.collect(), truncated }
}

fn address(pod: &Object, facet: &PodFacet, ip: &str) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_owned(),
        node_name: facet.node.as_ref().map(ToString::to_string),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some(pod.key.namespace.to_string()),
            name: Some(pod.key.name.to_string()),
            uid: Some(pod.uid().to_string()),
            ..ObjectReference::default()
        }),
        hostname: None,
    }
}

/// Where a service's port leads on a pod; `None` when it names a port that the pod does not have.
fn target(port: &ServicePort, pod: &PodFacet) -> Option<EndpointPort> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) if name.is_empty() => port.port,
        Some(IntOrString::String(name)) => {
            pod.ports.iter().find(|(n, p, _)| n == name && p == protocol).map(|(.., number)| *number)?
        }
    };
    Some(EndpointPort {
        name: port.name.clone().filter(|n| !n.is_empty()),
        port: number,
        protocol: Some(protocol.to_owned()),
        app_protocol: port.app_protocol.clone(),
    })
}

fn write(
    service: &Object,
    wanted: &Wanted,
    present: Option<&Arc<Object>>,
    means: &mut Means<'_>,
) -> Result<Option<Edit>, EditError> {
    let mut labels = service.facet.meta.labels.to_map();
    if facet(service).is_some_and(|f| f.cluster_ip.as_deref() == Some("None")) {
        labels.insert(HEADLESS.into(), String::new());
    }
    let fill = |endpoints: &mut Endpoints| {
        let old = endpoints.clone();
        endpoints.subsets = Some(wanted.subsets.clone()).filter(|s| !s.is_empty());
        endpoints.metadata.labels = Some(labels).filter(|l| !l.is_empty());
        let annotations = endpoints.metadata.annotations.get_or_insert_default();
        annotations.remove(OVER_CAPACITY);
        if wanted.truncated {
            annotations.insert(OVER_CAPACITY.into(), "truncated".into());
        }
        endpoints.metadata.annotations = endpoints.metadata.annotations.take().filter(|a| !a.is_empty());
        *endpoints != old
    };
    if let Some(present) = present {
        let mut differs = false;
        let edit = edit::edit::<Endpoints>(present, |endpoints| differs = fill(endpoints))?;
        return Ok(differs.then_some(edit));
    }
    let mut new = Endpoints {
        metadata: ObjectMeta {
            name: Some(service.key.name.to_string()),
            namespace: Some(service.key.namespace.to_string()),
            uid: Some((means.uid)().to_string()),
            creation_timestamp: Some(Time(means.now)),
            ..ObjectMeta::default()
        },
        subsets: None,
    };
    fill(&mut new);
    let sealed = seal(&new).map_err(|source| EditError::Write { key: service.key.clone(), source })?;
    Ok(Some(Edit::Create(sealed)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::logic::testing::World;

    fn service(spec: Value) -> Value {
        let mut value = json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "uid-web", "labels": {"team": "a"}},
            "spec": {"clusterIP": "10.96.0.9", "selector": {"app": "web"}},
        });
        for (key, part) in spec.as_object().cloned().unwrap_or_default() {
            value["spec"][key] = part;
        }
        value
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIP": ip,
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        })
    }

    fn key(kind: Kind, name: &str) -> Key {
        Key::new(kind, "default", name)
    }

    fn summary(world: &World<Services>) -> Option<Vec<String>> {
        let endpoints: Endpoints = world.snapshot.find(&key(Kind::Endpoints, "web"))?.parse().unwrap();
        let ips = |a: Option<Vec<EndpointAddress>>| {
            a.unwrap_or_default().into_iter().map(|a| a.ip).collect::<Vec<_>>().join(",")
        };
        let subsets = endpoints.subsets.unwrap_or_default().into_iter().map(|s| {
            let ports: Vec<_> = s.ports.unwrap_or_default().iter().map(|p| p.port.to_string()).collect();
            format!(
                "{} not ready: {} ports: {}",
                ips(s.addresses),
                ips(s.not_ready_addresses),
                ports.join(",")
            )
        });
        Some(subsets.collect())
    }

    #[test]
    fn endpoints_follow_services_and_pods() {
        let by_name = json!({"ports": [{"port": 80, "targetPort": "http"}]});
        let mut world = World::new(Services::default());
        let check = |world: &mut World<Services>, expected: &[&str]| {
            world.settle();
            assert_eq!(summary(world).unwrap(), expected);
            let revision = world.snapshot.revision;
            world.controller.mark(key(Kind::Service, "web"));
            world.settle();
            assert_eq!(world.snapshot.revision, revision, "deciding again changes nothing");
        };
        world.put(Kind::Pod, &pod("a", "10.0.0.1", true, 8080));
        world.put(Kind::Service, &service(by_name));
        check(&mut world, &["10.0.0.1 not ready:  ports: 8080"]);
        world.put(Kind::Pod, &pod("b", "10.0.0.2", false, 8080));
        check(&mut world, &["10.0.0.1 not ready: 10.0.0.2 ports: 8080"]);
        world.put(Kind::Pod, &pod("b", "10.0.0.2", true, 8080));
        check(&mut world, &["10.0.0.1,10.0.0.2 not ready:  ports: 8080"]);
        world.put(Kind::Pod, &pod("c", "10.0.0.3", true, 9090));
        check(&mut world, &["10.0.0.1,10.0.0.2 not ready:  ports: 8080", "10.0.0.3 not ready:  ports: 9090"]);
        let mut relabelled = pod("c", "10.0.0.3", true, 9090);
        relabelled["metadata"]["labels"] = json!({"app": "other"});
        world.put(Kind::Pod, &relabelled);
        let mut ended = pod("a", "10.0.0.1", true, 8080);
        ended["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        world.put(Kind::Pod, &ended);
        check(&mut world, &["10.0.0.2 not ready:  ports: 8080"]);
        world
            .put(Kind::Service, &service(json!({"ports": [{"port": 80}], "publishNotReadyAddresses": true})));
        world.put(Kind::Pod, &pod("b", "10.0.0.2", false, 8080));
        check(&mut world, &["10.0.0.2 not ready:  ports: 80"]);
        world.remove(&key(Kind::Pod, "b"));
        check(&mut world, &[]);
        world.remove(&key(Kind::Service, "web"));
        world.settle();
        assert_eq!(summary(&world), None);
    }

    #[test]
    fn what_others_broke_is_mended_and_services_without_selector_left_alone() {
        let mut world = World::new(Services::default());
        world.put(Kind::Pod, &pod("a", "10.0.0.1", true, 8080));
        world.put(Kind::Service, &service(json!({"ports": [{"port": 80}]})));
        world.settle();
        let labels = &world.snapshot.find(&key(Kind::Endpoints, "web")).unwrap().facet.meta.labels;
        assert_eq!(labels.get("team"), Some("a"));
        let broken = json!({"metadata": {"name": "web", "namespace": "default", "uid": "e"}, "subsets": []});
        world.put(Kind::Endpoints, &broken);
        world.settle();
        assert_eq!(summary(&world).unwrap(), ["10.0.0.1 not ready:  ports: 80"]);
        world.put(Kind::Service, &service(json!({"selector": null})));
        world.put(Kind::Endpoints, &broken);
        world.settle();
        assert_eq!(summary(&world).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_document_of_very_many_addresses_is_cut_ready_ones_first() {
        let object =
            |value: &Value, kind| crate::logic::testing::stored(kind, value, crate::model::Revision(1));
        let pods: Vec<_> = (0..MAX_ADDRESSES + 10)
            .map(|n| {
                object(
                    &pod(&format!("p{n:04}"), &format!("10.0.{}.{}", n / 250, n % 250), n > 5, 80),
                    Kind::Pod,
                )
            })
            .collect();
        let wanted = subsets(&object(&service(json!({"ports": [{"port": 80}]})), Kind::Service), pods.iter());
        assert!(wanted.truncated);
        assert_eq!(wanted.subsets[0].addresses.as_ref().map(Vec::len), Some(MAX_ADDRESSES));
        assert_eq!(wanted.subsets[0].not_ready_addresses, None);
    }
}
