//! What one node is told of the config maps, secrets and service accounts that its pods refer to.
//!
//! Owns: which objects those are, what this connection has carried of them, and the next picture to send. Invariants: a
//! node is told of nothing that none of its own pods refers to; a document goes once on a connection for each revision;
//! a picture is of bounded size, and the next one brings the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1;

use crate::{
    logic::{
        mirrors::is_mirror,
        pod::sources::{pull_secrets, references, slim},
    },
    messages::wire,
    model::{Key, Kind, Object, Revision, Snapshot, Uid},
};

/// As many bytes of documents go into one picture, or one document if that is larger: half of the largest frame.
const DOCUMENT_BYTES: usize = 8 << 20;

/// The actor's memory of a node's configs.
#[derive(Default)]
pub(super) struct Told {
    /// What each pod refers to, as of its mark.
    pods: BTreeMap<Uid, (u64, BTreeSet<Key>)>,
    /// How many pods refer to each object.
    counts: BTreeMap<Key, usize>,
    /// What this connection has been told last: objects with the revisions that the node has or awaits.
    picture: Option<BTreeMap<Key, Option<Revision>>>,
    /// The documents that this connection has carried.
    sent: BTreeMap<Key, Revision>,
}

/// A picture to be sent.
pub(super) struct Next {
    pub(super) message: wire::Configs,
    /// There is more to send after it.
    pub(super) more: bool,
    picture: BTreeMap<Key, Option<Revision>>,
    documents: Vec<(Key, Revision)>,
}

impl Told {
    /// A new connection knows nothing.
    pub(super) fn begin_anew(&mut self) {
        self.picture = None;
        self.sent.clear();
    }

    /// The node's pods, each with its mark: two documents of one mark refer to the same objects.
    pub(super) fn note_pods(
        &mut self,
        pods: &BTreeMap<Uid, Arc<Object>>,
        mark: impl Fn(&Object) -> Option<u64>,
    ) {
        for (uid, pod) in pods {
            let Some(mark) = mark(pod) else { continue };
            if self.pods.get(uid).is_some_and(|(of, _)| *of == mark) {
                continue;
            }
            self.forget(uid);
            // What is no pod is told by the node. A mirror is the node's own word, for which it gets nothing.
            let parsed = serde_json::from_slice::<v1::Pod>(&pod.json).ok().filter(|pod| !is_mirror(pod));
            let keys = parsed.map(|pod| references(&pod)).unwrap_or_default();
            for key in &keys {
                *self.counts.entry(key.clone()).or_default() += 1;
            }
            self.pods.insert(uid.clone(), (mark, keys));
        }
        if self.pods.len() > pods.len() {
            let gone: Vec<Uid> = self.pods.keys().filter(|uid| !pods.contains_key(*uid)).cloned().collect();
            gone.iter().for_each(|uid| self.forget(uid));
        }
    }

    fn forget(&mut self, pod: &Uid) {
        for key in self.pods.remove(pod).into_iter().flat_map(|(_, keys)| keys) {
            if let Some(count) = self.counts.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&key);
                }
            }
        }
    }

    /// Whether the node is told of any of these.
    pub(super) fn concerns(&self, keys: &BTreeSet<Key>) -> bool {
        self.picture.as_ref().is_none_or(|picture| keys.iter().any(|key| picture.contains_key(key)))
    }

    /// The next picture; `None` when the node knows everything.
    pub(super) fn next(&self, snapshot: &Snapshot) -> Option<Next> {
        let mut keys: BTreeSet<Key> = self.counts.keys().cloned().collect();
        let accounts: Vec<&Arc<Object>> = keys
            .iter()
            .filter(|key| key.kind == Kind::ServiceAccount)
            .filter_map(|key| snapshot.find(key))
            .collect();
        keys.extend(accounts.into_iter().flat_map(|account| pull_secrets(&account.key, &account.json)));
        let picture: BTreeMap<Key, Option<Revision>> = keys
            .into_iter()
            .map(|key| {
                let revision = snapshot.find(&key).map(|object| object.revision);
                (key, revision)
            })
            .collect();
        let (mut documents, mut carried, mut bytes, mut more) = (Vec::new(), Vec::new(), 0, false);
        for (place, (key, revision)) in (0_u32..).zip(&picture) {
            let Some(object) = revision.and_then(|_| snapshot.find(key)) else { continue };
            if self.sent.get(key) == Some(&object.revision) {
                continue;
            }
            let json = match slim(&object.json) {
                Ok(json) => json,
                Err(error) => {
                    tracing::error!(object = %key, %error, "an object cannot be read; nodes are not told of it");
                    continue;
                }
            };
            if !documents.is_empty() && bytes + json.len() > DOCUMENT_BYTES {
                more = true;
                break;
            }
            bytes += json.len();
            documents.push(wire::ConfigDocument {
                object: place,
                revision: object.revision,
                json: json.into(),
            });
            carried.push((key.clone(), object.revision));
        }
        let empty = picture.is_empty() && self.picture.is_none();
        if documents.is_empty() && (empty || self.picture.as_ref() == Some(&picture)) {
            return None;
        }
        let objects = picture.iter().map(|(key, revision)| wire::ConfigObject {
            kind: match key.kind {
                Kind::Secret => wire::ConfigKind::Secret,
                Kind::ServiceAccount => wire::ConfigKind::ServiceAccount,
                _ => wire::ConfigKind::ConfigMap,
            },
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            revision: *revision,
        });
        let message = wire::Configs { revision: snapshot.revision, objects: objects.collect(), documents };
        Some(Next { message, more, picture, documents: carried })
    }

    /// A picture was sent.
    pub(super) fn carried(&mut self, next: Next) {
        self.sent.retain(|key, _| next.picture.contains_key(key));
        self.sent.extend(next.documents);
        self.picture = Some(next.picture);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::logic::testing::stored;

    /// A snapshot of config maps in `ns`: name, value and revision.
    fn snapshot(maps: &[(&str, &str, u64)]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (name, value, revision) in maps {
            let json =
                json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "data": {"k": value}});
            snapshot.insert(stored(Kind::ConfigMap, &json, Revision(*revision)));
        }
        snapshot
    }

    fn told(pods: &[(&str, &str)]) -> Told {
        let mut told = Told::default();
        let pods: BTreeMap<Uid, Arc<Object>> = pods
            .iter()
            .map(|(name, map)| {
                let json = json!({"metadata": {"name": name, "namespace": "ns", "uid": name}, "spec": {
                    "containers": [{"name": "c", "image": "i", "envFrom": [{"configMapRef": {"name": map}}]}]}});
                (Uid::from(*name), stored(Kind::Pod, &json, Revision(1)))
            })
            .collect();
        told.note_pods(&pods, |_| Some(1));
        told
    }

    fn names(next: &Next) -> (Vec<(&str, Option<u64>)>, Vec<u32>) {
        let objects = next.message.objects.iter().filter(|o| o.kind == wire::ConfigKind::ConfigMap);
        (
            objects.map(|o| (o.name.as_str(), o.revision.map(|r| r.0))).collect(),
            next.message.documents.iter().map(|d| d.object).collect(),
        )
    }

    #[test]
    fn a_document_goes_once_until_it_changes_and_again_on_a_new_connection() {
        let mut told = told(&[("p", "a"), ("q", "b")]);
        let first = snapshot(&[("a", "1", 3), ("other", "x", 4)]);
        let next = told.next(&first).unwrap();
        assert_eq!(names(&next), (vec![("a", Some(3)), ("b", None)], vec![0]), "only what pods refer to");
        told.carried(next);
        assert!(told.next(&first).is_none());
        assert!(told.next(&snapshot(&[("a", "1", 3), ("other", "y", 9)])).is_none());
        let next = told.next(&snapshot(&[("a", "1", 3), ("b", "2", 5)])).unwrap();
        assert_eq!(names(&next), (vec![("a", Some(3)), ("b", Some(5))], vec![1]));
        told.carried(next);
        let gone = told.next(&snapshot(&[("b", "2", 5)])).unwrap();
        assert_eq!(names(&gone), (vec![("a", None), ("b", Some(5))], vec![]));
        told.carried(gone);
        told.begin_anew();
        assert_eq!(names(&told.next(&snapshot(&[("b", "2", 5)])).unwrap()).1, [1]);
    }

    #[test]
    fn what_no_pod_refers_to_any_more_is_left_out() {
        let mut told = told(&[("p", "a")]);
        let store = snapshot(&[("a", "1", 3)]);
        told.carried(told.next(&store).unwrap());
        told.note_pods(&BTreeMap::new(), |_| Some(1));
        let next = told.next(&store).unwrap();
        assert_eq!(names(&next), (vec![], vec![]));
        told.carried(next);
        assert!(told.next(&store).is_none());
    }

    #[test]
    fn large_documents_come_one_picture_after_the_other() {
        let mut told = told(&[("p", "a"), ("q", "b")]);
        let large = "x".repeat(DOCUMENT_BYTES / 2 + 1);
        let store = snapshot(&[("a", &large, 3), ("b", &large, 4)]);
        let next = told.next(&store).unwrap();
        assert!(next.more);
        assert_eq!(names(&next), (vec![("a", Some(3)), ("b", Some(4))], vec![0]));
        told.carried(next);
        let next = told.next(&store).unwrap();
        assert!(!next.more);
        assert_eq!(names(&next).1, [1]);
        told.carried(next);
        assert!(told.next(&store).is_none());
    }
}
