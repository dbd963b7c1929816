//! Static pods, which a node runs from its own files, and their mirrors, which show them in the API.
//!
//! Owns: Kubernetes' names and annotations for both, and what the master does so that each static pod has exactly its
//! mirror. Invariants: a node makes and ends mirrors of its own name only, and never touches a pod that is none; a mirror
//! that is deleted or outdated is removed and made again.

use std::{collections::HashSet, sync::Arc};

use k8s_openapi::{api::core::v1, apimachinery::pkg::apis::meta::v1::OwnerReference, jiff::Timestamp};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    edit::Edit,
    nodes::{Report, Told, pod_reported},
};
use crate::model::{
    Key, Kind, KindFacet, NodeName, Object, Uid,
    admit::{Admission, FieldValidation, Rejection, admit_create},
};

/// Where the node has the pod from.
const SOURCE: &str = "kubernetes.io/config.source";
/// Which state of its file: also the uid of the pod on its node.
const HASH: &str = "kubernetes.io/config.hash";
/// Says that a pod is a mirror, and of which state.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Characters of a hash, as many as Kubernetes'.
const HASH_LENGTH: usize = 32;

/// Whether a pod is a mirror: what it shows runs already.
pub fn is_mirror(pod: &v1::Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(MIRROR))
}

/// Whether a pod is one of its node's manifests, which nobody may have to be asked for.
pub fn is_static(pod: &v1::Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(HASH)) && !is_mirror(pod)
}

/// The pod of a manifest, as its node runs it: named `NAME-NODE`, defaulted and validated.
///
/// # Errors
/// A sentence for the log.
pub fn static_pod(mut manifest: Value, node: &NodeName, now: Timestamp) -> Result<v1::Pod, String> {
    let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let name = text(&manifest["metadata"]["name"]).ok_or("metadata.name: Required value")?;
    let namespace = text(&manifest["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned());
    if manifest["kind"] != "Pod" {
        return Err(format!("kind: {}: only a Pod can be run from a file", manifest["kind"]));
    }
    if let Some(field) = api_reference(&manifest["spec"]) {
        return Err(format!("{field}: a static pod may not reference objects of the API"));
    }
    let digest = Sha256::new().chain_update(node.as_str()).chain_update(manifest.to_string()).finalize();
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).take(HASH_LENGTH / 2).collect();
    let meta = &mut manifest["metadata"];
    meta["name"] = format!("{name}-{node}").into();
    meta["namespace"] = namespace.as_str().into();
    if !meta["annotations"].is_object() {
        meta["annotations"] = json!({});
    }
    meta["annotations"][SOURCE] = "file".into();
    meta["annotations"][HASH] = hash.as_str().into();
    manifest["spec"]["nodeName"] = node.as_str().into();
    let how = Admission {
        namespace: &namespace,
        name: None,
        now,
        uid: hash.as_str().into(),
        suffix: "",
        fields: FieldValidation::Strict,
    };
    let admitted =
        admit_create(Kind::Pod, manifest.to_string().as_bytes(), &how).map_err(|why| match why {
            Rejection::BadRequest(text) => text,
            Rejection::Invalid(causes) => causes
                .iter()
                .map(|cause| format!("{}: {}", cause.field, cause.message))
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    let mut pod: v1::Pod =
        serde_json::from_slice(admitted.sealed.document()).map_err(|error| error.to_string())?;
    // Another content is another pod: as in Kubernetes, its node observes no generation.
    pod.metadata.generation = None;
    Ok(pod)
}

/// Fields by which a pod names other objects. Its node runs it also when nobody could be asked for them.
const REFERENCES: &[&str] = &[
    "configMap",
    "configMapKeyRef",
    "configMapRef",
    "imagePullSecrets",
    "persistentVolumeClaim",
    "secret",
    "secretKeyRef",
    "secretName",
    "secretRef",
    "serviceAccount",
    "serviceAccountName",
    "serviceAccountToken",
];
/// The account of pods that name none; its mirror has it by default and gets nothing by it.
const DEFAULT_ACCOUNT: &str = "default";

/// The first such field of a spec.
fn api_reference(spec: &Value) -> Option<String> {
    match spec {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            // Labels of nodes may have any name.
            if name == "nodeSelector" {
                return None;
            }
            let plain = name.starts_with("serviceAccount") && value == DEFAULT_ACCOUNT;
            let names = REFERENCES.contains(&name.as_str()) && !value.is_null() && !plain;
            if names { Some(name.clone()) } else { api_reference(value) }
        }),
        Value::Array(items) => items.iter().find_map(api_reference),
        _ => None,
    }
}

/// The document of a static pod's mirror.
pub fn mirror_of(pod: &v1::Pod) -> v1::Pod {
    let mut mirror = pod.clone();
    mirror.status = None;
    mirror.metadata.uid = None;
    mirror.metadata.creation_timestamp = None;
    let annotations = mirror.metadata.annotations.get_or_insert_default();
    let hash = annotations.get(HASH).cloned().unwrap_or_default();
    annotations.insert(MIRROR.to_owned(), hash);
    mirror
}

/// What a node tells of one static pod.
#[derive(Clone, Copy, Debug)]
pub struct Mirrored<'a> {
    /// Its mirror's document.
    pub document: &'a [u8],
    /// Kubernetes' `PodStatus` as JSON; empty when nothing is known yet.
    pub status: &'a [u8],
}

/// What the master knows.
pub struct Around<'a> {
    /// Who told.
    pub node: &'a NodeName,
    /// Its object.
    pub node_object: Option<&'a Arc<Object>>,
    /// The pods bound to it.
    pub bound: Vec<Arc<Object>>,
    /// Finds an object.
    pub find: &'a dyn Fn(&Key) -> Option<Arc<Object>>,
    /// Now.
    pub now: Timestamp,
}

/// What is to be changed so that a node's static pods are shown as they are; empty when they are.
pub fn reconcile(told: &[Mirrored<'_>], around: &Around<'_>, mut uid: impl FnMut() -> Uid) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut shown = HashSet::new();
    for mirrored in told {
        let Ok(wanted) = serde_json::from_slice::<v1::Pod>(mirrored.document) else { continue };
        let Some(key) = key_of(&wanted, around.node) else { continue };
        shown.insert(key.clone());
        let Some(current) = (around.find)(&key) else {
            edits.extend(create(&wanted, &key, around, uid()));
            continue;
        };
        let Some(present) = mirror(&current, around.node) else { continue };
        if current.facet.meta.deleting.is_some()
            || annotation(&present, MIRROR) != annotation(&wanted, MIRROR)
        {
            edits.push(Edit::Remove(current));
            continue;
        }
        if mirrored.status.is_empty() {
            continue;
        }
        let told = Told { uid: current.uid(), status: mirrored.status, terminated: false };
        let now_ms = around.now.as_millisecond();
        if let Ok(Report::Write(edit)) = pod_reported(Some(&current), around.node, told, now_ms) {
            edits.push(*edit);
        }
    }
    let gone = around.bound.iter().filter(|o| !shown.contains(&o.key) && mirror(o, around.node).is_some());
    edits.extend(gone.map(|object| Edit::Remove(object.clone())));
    edits
}

fn annotation<'a>(pod: &'a v1::Pod, name: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

/// The key of a mirror that this node may make.
fn key_of(mirror: &v1::Pod, node: &NodeName) -> Option<Key> {
    let name = mirror.metadata.name.as_deref()?;
    let own = mirror.spec.as_ref()?.node_name.as_deref() == Some(node.as_str());
    let named = name.strip_suffix(node.as_str()).is_some_and(|rest| rest.len() > 1 && rest.ends_with('-'));
    (own && named && is_mirror(mirror))
        .then(|| Key::new(Kind::Pod, mirror.metadata.namespace.clone().unwrap_or_default(), name))
}

/// The object as a mirror of this node's, if it is one.
fn mirror(object: &Object, node: &NodeName) -> Option<v1::Pod> {
    match &object.facet.of {
        KindFacet::Pod(pod) if pod.node.as_ref() == Some(node) => {}
        _ => return None,
    }
    object.parse::<v1::Pod>().ok().filter(is_mirror)
}

fn create(wanted: &v1::Pod, key: &Key, around: &Around<'_>, uid: Uid) -> Option<Edit> {
    // Without its namespace there is nothing to show it in; it runs all the same.
    (around.find)(&Key::new(Kind::Namespace, "", key.namespace.clone()))?;
    // A node's word alone: it would be sent what the pod refers to.
    if !serde_json::to_value(&wanted.spec).is_ok_and(|spec| api_reference(&spec).is_none()) {
        return None;
    }
    let mut wanted = wanted.clone();
    wanted.metadata.owner_references = around.node_object.map(|node| {
        vec![OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: around.node.to_string(),
            uid: node.uid().to_string(),
            controller: Some(true),
            block_owner_deletion: None,
        }]
    });
    let how = Admission {
        namespace: &key.namespace,
        name: None,
        now: around.now,
        uid,
        suffix: "",
        fields: FieldValidation::Ignore,
    };
    let json = serde_json::to_vec(&wanted).ok()?;
    admit_create(Kind::Pod, &json, &how).ok().map(|admitted| Edit::Create(admitted.sealed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Revision, seal};

    fn node() -> NodeName {
        NodeName::from("n1")
    }

    fn manifest(image: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "c", "image": image}]}})
    }

    fn stat(image: &str) -> v1::Pod {
        static_pod(manifest(image), &node(), Timestamp::UNIX_EPOCH).unwrap()
    }

    /// A store of few objects, to which edits are applied.
    #[derive(Default)]
    struct Store(Vec<Arc<Object>>);

    impl Store {
        fn put(&mut self, sealed: crate::model::Sealed) {
            self.0.retain(|o| o.key != sealed.key);
            let revision = Revision(self.0.len() as u64 + 1);
            self.0.push(Arc::new(sealed.at(revision)));
        }

        /// Until nothing is left to do; the names of what was done.
        fn settle(&mut self, told: &[(v1::Pod, Value)]) -> Vec<&'static str> {
            let documents: Vec<(Vec<u8>, Vec<u8>)> = told
                .iter()
                .map(|(pod, status)| {
                    let status = if status.is_null() { String::new() } else { status.to_string() };
                    (serde_json::to_vec(&mirror_of(pod)).unwrap(), status.into_bytes())
                })
                .collect();
            let told: Vec<Mirrored<'_>> =
                documents.iter().map(|(document, status)| Mirrored { document, status }).collect();
            let mut done = Vec::new();
            for round in 0..5 {
                let find = |key: &Key| self.0.iter().find(|o| o.key == *key).cloned();
                let around = Around {
                    node: &node(),
                    node_object: None,
                    bound: self.0.iter().filter(|o| o.key.kind == Kind::Pod).cloned().collect(),
                    find: &find,
                    now: Timestamp::UNIX_EPOCH,
                };
                let edits = reconcile(&told, &around, || format!("u{round}").into());
                if edits.is_empty() {
                    return done;
                }
                for edit in edits {
                    match edit {
                        Edit::Create(sealed) => {
                            done.push("create");
                            self.put(sealed);
                        }
                        Edit::Replace(sealed, _) => {
                            done.push("replace");
                            self.put(sealed);
                        }
                        Edit::Remove(object) => {
                            done.push("remove");
                            self.0.retain(|o| o.key != object.key);
                        }
                    }
                }
            }
            panic!("it does not settle: {done:?}");
        }

        fn pod(&self, name: &str) -> v1::Pod {
            self.0.iter().find(|o| *o.key.name == *name).unwrap().parse().unwrap()
        }
    }

    fn with_namespace() -> Store {
        let mut store = Store::default();
        let json = json!({"metadata": {"name": "default", "uid": "n"}});
        store.put(seal(&serde_json::from_value::<v1::Namespace>(json).unwrap()).unwrap());
        store
    }

    #[test]
    fn a_manifest_becomes_a_pod_of_its_node_with_a_uid_of_its_content() {
        let pod = stat("a");
        assert_eq!(pod.metadata.name.as_deref(), Some("web-n1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(pod.metadata.uid.as_deref(), annotation(&pod, HASH));
        assert!(!is_mirror(&pod) && is_mirror(&mirror_of(&pod)));
        assert_eq!(stat("a"), pod);
        assert_ne!(stat("b").metadata.uid, pod.metadata.uid);
        for (change, word) in [
            (json!({"kind": "Pod"}), "metadata.name"),
            (json!({"kind": "Service", "metadata": {"name": "x"}}), "Service"),
            (json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}), "containers"),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"},
                    "spec": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
                "secret: a static pod may not",
            ),
        ] {
            let refused = static_pod(change, &node(), Timestamp::UNIX_EPOCH).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn each_static_pod_gets_its_mirror_and_loses_it_with_its_file() {
        let mut store = with_namespace();
        let running = json!({"phase": "Running"});
        assert_eq!(store.settle(&[(stat("a"), Value::Null)]), ["create"]);
        assert_eq!(store.settle(&[(stat("a"), running.clone())]), ["replace"]);
        let mirror = store.pod("web-n1");
        assert!(is_mirror(&mirror));
        assert_eq!((stat("a").metadata.generation, mirror.metadata.generation), (None, Some(1)));
        assert_eq!(mirror.status.as_ref().unwrap().phase.as_deref(), Some("Running"));
        assert_eq!(store.settle(&[(stat("a"), running.clone())]), [""; 0]);
        // What somebody says of its end is not so, as long as its file is there.
        let mut failed = store.pod("web-n1");
        failed.status.as_mut().unwrap().phase = Some("Failed".into());
        store.put(seal(&failed).unwrap());
        assert_eq!(store.settle(&[(stat("a"), running.clone())]), ["replace"]);
        assert_eq!(store.pod("web-n1").status.unwrap().phase.as_deref(), Some("Running"));
        // Another content is another pod.
        assert_eq!(store.settle(&[(stat("b"), running.clone())]), ["remove", "create", "replace"]);
        assert_ne!(store.pod("web-n1").metadata.uid, mirror.metadata.uid);
        // A deletion does not end what runs: its mirror comes back.
        let mut deleting = store.pod("web-n1");
        deleting.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        store.put(seal(&deleting).unwrap());
        assert_eq!(store.settle(&[(stat("b"), running)]), ["remove", "create", "replace"]);
        assert_eq!(store.settle(&[]), ["remove"]);
    }

    #[test]
    fn what_is_no_mirror_of_the_node_is_left_alone() {
        let mut store = with_namespace();
        let mut own = stat("a");
        own.metadata.annotations = None;
        store.put(seal(&own).unwrap());
        assert_eq!(store.settle(&[(stat("b"), json!({}))]), [""; 0]);
        assert_eq!(store.settle(&[]), [""; 0]);
        let mut foreign = stat("a");
        foreign.metadata.name = Some("other".into());
        assert_eq!(store.settle(&[(foreign, json!({}))]), [""; 0], "not its name");
        let mut store = Store::default();
        assert_eq!(store.settle(&[(stat("a"), json!({}))]), [""; 0], "no namespace");
    }

    #[test]
    fn a_node_gets_nothing_by_telling_of_a_mirror_that_refers_to_it() {
        for spec in [
            json!({"serviceAccountName": "robot"}),
            json!({"imagePullSecrets": [{"name": "s"}]}),
            json!({"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}),
            json!({"volumes": [{"name": "v", "projected": {"sources": [
                {"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}]}),
            json!({"containers": [{"name": "c", "image": "a", "envFrom": [{"secretRef": {"name": "s"}}]}]}),
        ] {
            let mut told = serde_json::to_value(stat("a")).unwrap();
            for (field, value) in spec.as_object().unwrap() {
                told["spec"][field.as_str()] = value.clone();
            }
            let told = serde_json::from_value(told).unwrap();
            assert_eq!(with_namespace().settle(&[(told, json!({}))]), [""; 0], "{spec}");
        }
    }
}
