//! Namespaces: their end, and what every cluster and every namespace has from the start.
//!
//! Owns: the emptying of a terminating namespace (its content is deleted, pods with their grace; then its finalizer is
//! taken off and it vanishes), the four namespaces Kubernetes begins with, each namespace's `default` service account
//! and `kube-root-ca.crt`, and the `kubernetes` service. Invariant: a namespace vanishes only when a snapshot shows it
//! empty; what is missing is made again, and never in a namespace that is terminating.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::{api::core::v1, jiff::Timestamp};
use serde_json::{Value, json};

use super::{
    edit::{self, Edit, EditError},
    reconcile::{Means, Reconcile},
};
use crate::model::{
    Key, Kind, Object, Snapshot,
    admit::{Admission, FieldValidation, admit_create},
};

/// The namespaces a cluster begins with.
const INITIAL: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];
/// The service account of pods that name none.
const ACCOUNT: &str = "default";
/// The map with the cluster's CA, for pods that speak to the API.
const ROOT_CA: &str = "kube-root-ca.crt";
/// The service (and endpoints) of the API itself.
const API: &str = "kubernetes";
/// What keeps a namespace until it is empty.
const FINALIZER: &str = "kubernetes";

/// What the documents of a new cluster say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The certificate of the cluster's authority, PEM.
    pub ca_pem: String,
    /// Where the API listens. Pods are told of it unless it is an address that only this machine can use.
    pub api_address: String,
    /// And its port.
    pub api_port: u16,
    /// The cluster address of the `kubernetes` service; `None` when there are none.
    pub service_address: Option<String>,
}

/// Which namespaces are to be looked at.
#[derive(Debug)]
pub struct Namespaces {
    bootstrap: Bootstrap,
    due: BTreeSet<Arc<str>>,
}

impl Namespaces {
    /// Nothing is due before the first snapshot.
    pub fn new(bootstrap: Bootstrap) -> Namespaces {
        Namespaces { bootstrap, due: BTreeSet::new() }
    }
}

/// Whether things may be created in a namespace: not once it is terminating.
pub fn is_open(snapshot: &Snapshot, namespace: &str) -> bool {
    snapshot.find(&Key::new(Kind::Namespace, "", namespace)).is_none_or(|n| n.facet.meta.deleting.is_none())
}

impl Reconcile for Namespaces {
    type Item = Arc<str>;

    fn anew(&mut self, snapshot: &Snapshot, _: Timestamp) {
        self.due = INITIAL.into_iter().map(Arc::from).collect();
        self.due.extend(snapshot.list(Kind::Namespace, None).map(|n| n.key.name.clone()));
    }

    fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        snapshot: &Snapshot,
        _: Timestamp,
    ) {
        let Some(key) = before.or(after).map(|o| &o.key) else { return };
        let ours = match key.kind {
            Kind::ServiceAccount => &*key.name == ACCOUNT,
            Kind::ConfigMap => &*key.name == ROOT_CA,
            Kind::Service | Kind::Endpoints => &*key.name == API && &*key.namespace == INITIAL[0],
            _ => false,
        };
        if key.kind == Kind::Namespace {
            self.due.insert(key.name.clone());
        } else if key.kind.namespaced() && (ours || !is_open(snapshot, &key.namespace)) {
            self.due.insert(key.namespace.clone());
        }
    }

    fn next_due(&mut self, _: Timestamp) -> Option<Arc<str>> {
        self.due.pop_first()
    }

    fn mark(&mut self, item: Arc<str>) {
        self.due.insert(item);
    }

    fn decide(&self, item: &Arc<str>, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let key = Key::new(Kind::Namespace, "", item.clone());
        match means.snapshot.find(&key) {
            Some(namespace) if namespace.facet.meta.deleting.is_some() => empty(namespace, means),
            Some(_) => self.furnish(item, means),
            None if INITIAL.contains(&&**item) => Ok(made(&key, &json!({}), means).into_iter().collect()),
            None => Ok(Vec::new()),
        }
    }
}

/// One step towards the end of a terminating namespace.
fn empty(namespace: &Arc<Object>, means: &Means<'_>) -> Result<Vec<Edit>, EditError> {
    // What makes other things goes before what it makes.
    let makers = [Kind::ReplicationController, Kind::Service];
    let others = Kind::ALL.into_iter().filter(|k| k.namespaced() && !makers.contains(k));
    let (mut edits, mut left) = (Vec::new(), false);
    for kind in makers.into_iter().chain(others) {
        for object in means.snapshot.list(kind, Some(&namespace.key.name)) {
            left = true;
            if edits.len() >= means.max {
                return Ok(edits);
            }
            edits.extend(edit::delete(object, means.now)?);
        }
    }
    if left {
        return Ok(edits);
    }
    finish(namespace)
}

/// The end of an empty namespace, or of our part in it while others' finalizers remain.
fn finish(namespace: &Arc<Object>) -> Result<Vec<Edit>, EditError> {
    let mut held_by_others = !namespace.facet.meta.finalizers.is_empty();
    let mut ours = false;
    let released = edit::edit::<v1::Namespace>(namespace, |typed| {
        if let Some(finalizers) = typed.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            ours = finalizers.iter().any(|f| f == FINALIZER);
            finalizers.retain(|f| f != FINALIZER);
            held_by_others |= !finalizers.is_empty();
        }
    })?;
    Ok(match (held_by_others, ours) {
        (false, _) => vec![Edit::Remove(namespace.clone())],
        (true, true) => vec![released],
        (true, false) => Vec::new(),
    })
}

/// What makes a config map have this data, when it does not.
fn config_map(key: Key, data: &[(&str, &str)], means: &mut Means<'_>) -> Result<Option<Edit>, EditError> {
    let wanted: BTreeMap<String, String> =
        data.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let Some(present) = means.snapshot.find(&key) else {
        return Ok(made(&key, &json!({"data": wanted}), means));
    };
    let mut differs = false;
    let edit = edit::edit::<v1::ConfigMap>(present, |map| {
        differs = map.data.as_ref() != Some(&wanted);
        map.data = Some(wanted);
    })?;
    Ok(differs.then_some(edit))
}

impl Namespaces {
    /// What a namespace lacks.
    fn furnish(&self, namespace: &Arc<str>, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let mut edits = Vec::new();
        let account = Key::new(Kind::ServiceAccount, namespace.clone(), ACCOUNT);
        if means.snapshot.find(&account).is_none() {
            edits.extend(made(&account, &json!({}), means));
        }
        let ca = [("ca.crt", self.bootstrap.ca_pem.as_str())];
        edits.extend(config_map(Key::new(Kind::ConfigMap, namespace.clone(), ROOT_CA), &ca, means)?);
        if &**namespace == INITIAL[0] {
            edits.extend(self.api_service(means)?);
        }
        Ok(edits)
    }

    fn api_service(&self, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError> {
        let b = &self.bootstrap;
        let mut edits = Vec::new();
        let service = Key::new(Kind::Service, INITIAL[0], API);
        if means.snapshot.find(&service).is_none() {
            let document = json!({
                "metadata": {"labels": {"component": "apiserver", "provider": "kubernetes"}},
                "spec": {
                    "clusterIP": b.service_address.as_deref().unwrap_or("None"),
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": b.api_port}],
                    "type": "ClusterIP", "sessionAffinity": "None",
                },
            });
            edits.extend(made(&service, &document, means));
        }
        let key = Key::new(Kind::Endpoints, INITIAL[0], API);
        // Endpoints may not be loopback addresses: an API that listens there has none that pods could use.
        let subsets = if reachable(&b.api_address) {
            json!([{
                "addresses": [{"ip": b.api_address}],
                "ports": [{"name": "https", "port": b.api_port, "protocol": "TCP"}],
            }])
        } else {
            json!([])
        };
        match means.snapshot.find(&key) {
            None => {
                let labels = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
                let mut document = json!({"metadata": {"labels": labels}});
                if subsets != json!([]) {
                    document["subsets"] = subsets;
                }
                edits.extend(made(&key, &document, means));
            }
            Some(present) => {
                let wanted: Vec<v1::EndpointSubset> = serde_json::from_value(subsets)
                    .map_err(|source| EditError::Read { key: key.clone(), source })?;
                let mut differs = false;
                let edit = edit::edit::<v1::Endpoints>(present, |endpoints| {
                    differs = endpoints.subsets.as_deref().unwrap_or_default() != wanted;
                    endpoints.subsets = Some(wanted).filter(|w| !w.is_empty());
                })?;
                edits.extend(differs.then_some(edit));
            }
        }
        Ok(edits)
    }
}

/// Whether others than this machine could use an address.
fn reachable(address: &str) -> bool {
    address.parse::<IpAddr>().is_ok_and(|ip| {
        let link_local = match ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
    })
}

/// A new object through the door that every object passes; `None`, and a line in the log, when it is refused.
fn made(key: &Key, document: &Value, means: &mut Means<'_>) -> Option<Edit> {
    let mut document = document.clone();
    document["apiVersion"] = key.kind.api_version().into();
    document["kind"] = key.kind.name().into();
    document["metadata"]["name"] = (*key.name).into();
    let how = Admission {
        namespace: &key.namespace,
        name: None,
        now: means.now,
        uid: (means.uid)(),
        suffix: "",
        fields: FieldValidation::Ignore,
    };
    admit_create(key.kind, document.to_string().as_bytes(), &how)
        .inspect_err(|rejection| tracing::error!(%key, ?rejection, "cannot make"))
        .ok()
        .map(|admitted| Edit::Create(admitted.sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::testing::World;

    fn world() -> World<Namespaces> {
        world_at("192.0.2.1")
    }

    fn world_at(api_address: &str) -> World<Namespaces> {
        let bootstrap = Bootstrap {
            ca_pem: "PEM".into(),
            api_address: api_address.into(),
            api_port: 6443,
            service_address: Some("10.96.0.1".into()),
        };
        let mut world = World::new(Namespaces::new(bootstrap));
        world.controller.anew(&Snapshot::default(), Timestamp::UNIX_EPOCH);
        world.settle();
        world
    }

    fn terminating(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "uid": format!("uid-{name}"), "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"finalizers": ["kubernetes"]},
        })
    }

    fn count(world: &World<Namespaces>, kind: Kind) -> usize {
        world.snapshot.list(kind, None).count()
    }

    #[test]
    fn a_new_cluster_has_what_kubernetes_has() {
        let mut world = world();
        let counts = [Kind::Namespace, Kind::ServiceAccount, Kind::ConfigMap, Kind::Service, Kind::Endpoints];
        assert_eq!(counts.map(|k| count(&world, k)), [4, 4, 4, 1, 1]);
        world.remove(&Key::new(Kind::ServiceAccount, "default", "default"));
        world.remove(&Key::new(Kind::Namespace, "", "kube-public"));
        world.settle();
        assert_eq!(counts.map(|k| count(&world, k)), [4, 4, 4, 1, 1]);
    }

    #[test]
    fn an_api_that_pods_cannot_reach_has_endpoints_without_addresses() {
        let key = Key::new(Kind::Endpoints, INITIAL[0], API);
        let subsets = |world: &World<Namespaces>| {
            let endpoints: v1::Endpoints = world.snapshot.find(&key).unwrap().parse().unwrap();
            endpoints.subsets.map_or(0, |s| s.len().max(1))
        };
        for (address, expected) in [
            ("192.0.2.1", 1),
            ("127.0.0.1", 0),
            ("0.0.0.0", 0),
            ("::1", 0),
            ("fe80::1", 0),
            ("2001:db8::1", 1),
        ] {
            assert_eq!(subsets(&world_at(address)), expected, "{address}");
        }
        let mut world = world();
        let snapshot = world.snapshot.clone();
        world.controller.bootstrap.api_address = "127.0.0.1".into();
        world.controller.anew(&snapshot, Timestamp::UNIX_EPOCH);
        world.settle();
        assert_eq!(subsets(&world), 0, "after a restart on another address");
    }

    #[test]
    fn a_changed_authority_reaches_every_namespace() {
        let mut world = world();
        world.controller.bootstrap.ca_pem = "NEW".into();
        let snapshot = world.snapshot.clone();
        world.controller.anew(&snapshot, Timestamp::UNIX_EPOCH);
        world.settle();
        for map in world.snapshot.list(Kind::ConfigMap, None) {
            assert!(std::str::from_utf8(&map.json).unwrap().contains("NEW"), "{}", map.key);
        }
    }

    #[test]
    fn a_terminating_namespace_is_emptied_and_vanishes_after_its_last_pod() {
        let mut world = world();
        world.put(Kind::Namespace, &json!({"metadata": {"name": "x", "uid": "uid-x"}}));
        world.settle();
        for name in ["a", "b", "c"] {
            let map = json!({"metadata": {"name": name, "namespace": "x", "uid": format!("uid-{name}")}});
            world.put(Kind::ConfigMap, &map);
        }
        let pod = json!({"metadata": {"name": "p", "namespace": "x", "uid": "uid-p"},
            "spec": {"containers": [], "nodeName": "n"}});
        world.put(Kind::Pod, &pod);
        world.put(Kind::Namespace, &terminating("x"));
        world.settle();
        let key = Key::new(Kind::Pod, "x", "p");
        let left: Vec<_> = world.snapshot.all().filter(|o| &*o.key.namespace == "x").collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(left[0].facet.meta.deleting.is_some(), "the pod gets its grace");
        world.remove(&key);
        world.settle();
        assert!(world.snapshot.find(&Key::new(Kind::Namespace, "", "x")).is_none());
    }

    #[test]
    fn finalizers_of_others_hold_a_namespace() {
        let mut world = world();
        let mut namespace = terminating("x");
        namespace["metadata"]["finalizers"] = json!(["example.com/hold"]);
        world.put(Kind::Namespace, &namespace);
        world.settle();
        let held = world.snapshot.find(&Key::new(Kind::Namespace, "", "x")).unwrap();
        let typed: v1::Namespace = held.parse().unwrap();
        assert_eq!(typed.spec.and_then(|s| s.finalizers).unwrap_or_default(), Vec::<String>::new());
    }
}
