//! Objects for the tests of this room: short to say, complete enough to be stored.

use std::sync::Arc;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    edit::Edit,
    reconcile::{Means, Reconcile},
};
use crate::model::{Key, Kind, Object, Revision, Snapshot, Uid, seal_json};

/// A pod to make; what is not said is that of a pod just created.
pub(crate) struct Pods<'a> {
    pub(crate) name: &'a str,
    pub(crate) app: &'a str,
    pub(crate) owner: Option<&'a str>,
    pub(crate) node: Option<&'a str>,
    pub(crate) phase: &'a str,
    pub(crate) ready_since: Option<&'a str>,
    pub(crate) restarts: i32,
    pub(crate) deleting: bool,
    pub(crate) created: &'a str,
    pub(crate) revision: Revision,
}

impl Default for Pods<'_> {
    fn default() -> Self {
        Pods {
            name: "p",
            app: "web",
            owner: None,
            node: None,
            phase: "Pending",
            ready_since: None,
            restarts: 0,
            deleting: false,
            created: "2026-01-01T00:00:00Z",
            revision: Revision(1),
        }
    }
}

/// Makes it.
pub(crate) fn pod(of: &Pods<'_>) -> Arc<Object> {
    let mut value = json!({
        "metadata": {
            "name": of.name, "namespace": "default", "uid": format!("uid-{}", of.name),
            "labels": {"app": of.app}, "creationTimestamp": of.created,
        },
        "spec": {"containers": [{"name": "c", "image": "i"}], "nodeName": of.node},
        "status": {"phase": of.phase, "containerStatuses": [
            {"name": "c", "image": "i", "imageID": "", "ready": of.ready_since.is_some(), "restartCount": of.restarts},
        ]},
    });
    if let Some(owner) = of.owner {
        value["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "v1", "kind": "ReplicationController", "name": owner.trim_start_matches("uid-"),
            "uid": owner, "controller": true, "blockOwnerDeletion": true,
        }]);
    }
    if let Some(since) = of.ready_since {
        value["status"]["conditions"] =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": since}]);
    }
    if of.deleting {
        value["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z".into();
    }
    stored(Kind::Pod, &value, of.revision)
}

/// A controller with selector and template label `app`.
pub(crate) fn controller(name: &str, app: &str, replicas: i32, revision: Revision) -> Arc<Object> {
    let value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": {
            "replicas": replicas, "selector": {"app": app},
            "template": {
                "metadata": {"labels": {"app": app}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        },
    });
    stored(Kind::ReplicationController, &value, revision)
}

/// Any document as the store would have it.
pub(crate) fn stored(kind: Kind, value: &Value, revision: Revision) -> Arc<Object> {
    Arc::new(seal_json(kind, value.to_string().as_bytes()).unwrap().at(revision))
}

/// A store and one controller that follows it.
pub(crate) struct World<R: Reconcile> {
    pub(crate) snapshot: Snapshot,
    pub(crate) controller: R,
    now: Timestamp,
    uids: u64,
    /// What it would have recorded: reason and message.
    pub(crate) recorded: Vec<(String, String)>,
}

fn whole(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap()
}

impl<R: Reconcile> World<R> {
    pub(crate) fn new(controller: R) -> World<R> {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        World { snapshot: Snapshot::default(), controller, now, uids: 0, recorded: Vec::new() }
    }

    fn set(&mut self, key: &Key, after: impl FnOnce(Revision) -> Option<Arc<Object>>) {
        let before = self.snapshot.find(key).cloned();
        self.snapshot.revision = Revision(self.snapshot.revision.0 + 1);
        let after = after(self.snapshot.revision);
        match &after {
            Some(after) => self.snapshot.insert(after.clone()),
            None => drop(self.snapshot.remove(key)),
        }
        self.controller.apply(before.as_ref(), after.as_ref(), &self.snapshot, self.now);
        self.record(&[]);
    }

    fn record(&mut self, made: &[Arc<Object>]) {
        let all = self.controller.happenings(made, self.now).into_iter();
        self.recorded.extend(all.map(|happened| (happened.reason.into_owned(), happened.message)));
    }

    /// Creates an object or replaces it.
    pub(crate) fn put(&mut self, kind: Kind, value: &Value) {
        let sealed = seal_json(kind, value.to_string().as_bytes()).unwrap();
        let key = sealed.key.clone();
        self.set(&key, |revision| Some(Arc::new(sealed.at(revision))));
    }

    /// Removes an object.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.set(key, |_| None);
    }

    /// The controller acts until it has nothing more to do.
    pub(crate) fn settle(&mut self) {
        let mut rounds = 0;
        while let Some(item) = self.controller.next_due(self.now) {
            rounds += 1;
            assert!(rounds < 1_000, "does not settle");
            let uids = &mut self.uids;
            let mut uid = || {
                *uids += 1;
                Uid::from(format!("made-{uids}"))
            };
            let mut means = Means {
                snapshot: &self.snapshot,
                now: whole(self.now),
                exact: self.now,
                uid: &mut uid,
                max: 2,
            };
            for edit in self.controller.decide(&item, &mut means).unwrap() {
                match edit {
                    Edit::Create(sealed) | Edit::Replace(sealed, _) => {
                        let key = sealed.key.clone();
                        self.set(&key, |revision| Some(Arc::new(sealed.at(revision))));
                        let made = self.snapshot.find(&key).cloned();
                        self.record(made.as_slice());
                    }
                    Edit::Remove(base) => {
                        self.remove(&base.key);
                        self.record(&[base]);
                    }
                }
            }
        }
    }

    /// Time passes, and the controller acts.
    pub(crate) fn advance(&mut self, seconds: i64) {
        self.advance_ms(seconds * 1000);
    }

    /// The same, by thousandths.
    pub(crate) fn advance_ms(&mut self, ms: i64) {
        self.now = self.now.checked_add(SignedDuration::from_millis(ms)).unwrap();
        self.settle();
    }
}
