//! A cluster's objects, typed, for the program that the cluster runs in: kubectl's verbs without HTTP.
//!
//! Owns: [`Client`] and [`ClientError`]. Reads come from the store's snapshot and never wait; writes are admitted by the
//! same rules as the API's, and sent to the store's actor as a [`Commit`]. Invariant: every change is committed under
//! the exact state it was computed from. Leaves to the API what only it can do, and says so: addresses of services, the
//! end of namespaces.

use std::{collections::VecDeque, marker::PhantomData, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1;
use serde::Deserialize;

use crate::{
    actors::outside,
    logic::{
        edit::{self, CONFLICT_RETRIES, Edit},
        namespaces,
        service_accounts::Says,
    },
    messages::{
        ByteStream, Change, ChangeKind, Commit, CommitError, Durability, Expected, OpenError, OpenStream,
        Port, SendFailed, View, Watch, Write,
        wire::{LogRequest, Open},
    },
    model::{
        Key, Kind, KindFacet, Object, Sealed, Snapshot, Stored,
        admit::{Admission, FieldValidation, Part, Rejection, admit_create, admit_update},
        selector::LabelSelector,
    },
};

/// Far beyond a slow disk's fsync.
const COMMIT_WITHIN: Duration = Duration::from_secs(30);
/// How long a node may take to open a log.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How often a generated name is drawn again.
const NAME_RETRIES: usize = 8;

/// Why something was not done. Nothing of it was made then.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No such object.
    #[error("{0} not found")]
    NotFound(Key),
    /// The name is taken.
    #[error("{0} already exists")]
    AlreadyExists(Key),
    /// The object is not the one that was read any more.
    #[error("{0} has been modified: read it again and decide anew")]
    Conflict(Key),
    /// The document breaks the rules of its kind: field by field.
    #[error("{kind} {name:?} is invalid: {why}")]
    Invalid {
        /// The kind.
        kind: Kind,
        /// The object's name, as far as it has one.
        name: String,
        /// Every fault, with its field.
        why: String,
    },
    /// Not possible in this way; the text says in which.
    #[error("{0}")]
    Refused(String),
    /// The store cannot write (disk full, read-only…).
    #[error("the store cannot write: {0}")]
    Unavailable(String),
    /// An actor did not answer. It is being restarted, or the cluster has stopped.
    #[error(transparent)]
    Unanswered(#[from] SendFailed),
    /// A node did not open a byte stream.
    #[error(transparent)]
    Stream(#[from] OpenError),
    /// What was waited for did not come.
    #[error("waited {0:?} in vain")]
    Timeout(Duration),
}

impl From<CommitError> for ClientError {
    fn from(error: CommitError) -> ClientError {
        match error {
            CommitError::AlreadyExists(key) => ClientError::AlreadyExists(key),
            CommitError::NotFound(key) => ClientError::NotFound(key),
            CommitError::Conflict { key, .. } => ClientError::Conflict(key),
            CommitError::Unavailable(text) => ClientError::Unavailable(text),
        }
    }
}

/// What a pod says of its account.
#[derive(Default, Deserialize)]
struct PeekPod {
    #[serde(default)]
    spec: Says,
}

/// Typed access to a cluster's objects. Cheap to clone; usable from any thread with a tokio runtime.
#[derive(Clone)]
pub struct Client {
    view: View,
    commits: Port<Commit>,
    streams: Port<OpenStream>,
}

impl Client {
    pub(super) fn new(view: View, commits: Port<Commit>, streams: Port<OpenStream>) -> Client {
        Client { view, commits, streams }
    }

    /// The store's read side: snapshots, and watches over all kinds at once.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The store's write side, for commits of several objects, all or none.
    pub fn commits(&self) -> &Port<Commit> {
        &self.commits
    }

    /// Makes a new object ready for a [`Commit`]: checks it, fills in defaults, uid and time of birth. A namespaced
    /// object that names no namespace goes to `default`.
    ///
    /// # Errors
    /// [`ClientError::Invalid`]; [`ClientError::NotFound`] or [`ClientError::Refused`] for its namespace, and for a pod's account
    /// that is not there.
    pub fn admit<K: Stored>(&self, object: &K) -> Result<Sealed, ClientError> {
        let (kind, meta) = (K::KIND, object.meta());
        let namespace = home::<K>(meta.namespace.as_deref());
        let name = meta.name.as_deref().or(meta.generate_name.as_deref()).unwrap_or_default();
        if kind.namespaced() {
            let snapshot = self.view.snapshot();
            let key = Key::new(Kind::Namespace, "", namespace);
            if snapshot.find(&key).is_none() {
                return Err(ClientError::NotFound(key));
            }
            if !namespaces::is_open(&snapshot, namespace) {
                return Err(ClientError::Refused(format!("namespace {namespace} is being terminated")));
            }
        }
        let how = Admission {
            namespace,
            name: None,
            now: outside::now(),
            uid: outside::uid(),
            suffix: &outside::suffix(),
            fields: FieldValidation::Strict,
        };
        let json = document(object, name)?;
        if kind == Kind::Pod {
            // What cannot be read is refused below.
            let pod: PeekPod = serde_json::from_slice(&json).unwrap_or_default();
            if let Some(why) = pod.spec.forbids(namespace, &self.view.snapshot()) {
                return Err(ClientError::Refused(format!("pods {name:?} is forbidden: {why}")));
            }
        }
        let sealed = admit_create(kind, &json, &how).map_err(|r| invalid(kind, name, r))?.sealed;
        if matches!(&sealed.facet.of, KindFacet::Service(_)) && needs_address(&json) {
            return Err(ClientError::Refused(
                "a service gets its address at the API: create it there, or with clusterIP: None".into(),
            ));
        }
        Ok(sealed)
    }

    /// Creates an object, durably, and returns it as stored.
    ///
    /// # Errors
    /// As [`Client::admit`]; [`ClientError::AlreadyExists`], and whatever keeps the store from writing.
    pub async fn create<K: Stored>(&self, object: &K) -> Result<K, ClientError> {
        let generated = object.meta().name.as_deref().is_none_or(str::is_empty);
        let mut attempt = 1;
        loop {
            match self.commit(Write::Create(self.admit(object)?)).await {
                Err(ClientError::AlreadyExists(_)) if generated && attempt < NAME_RETRIES => attempt += 1,
                made => return typed(&*made?),
            }
        }
    }

    /// An object, if it exists. `namespace` is not looked at for kinds without one.
    ///
    /// # Errors
    /// Never for what the store took.
    pub fn get<K: Stored>(&self, namespace: &str, name: &str) -> Result<Option<K>, ClientError> {
        self.view.snapshot().find(&key::<K>(namespace, name)).map(|o| typed(o)).transpose()
    }

    /// The objects of a kind, of one namespace or all, whose labels match (`app=web,tier!=db`; `""` matches all).
    ///
    /// # Errors
    /// [`ClientError::Refused`] for a selector that is none.
    pub fn list<K: Stored>(&self, namespace: Option<&str>, selector: &str) -> Result<Vec<K>, ClientError> {
        let selector = LabelSelector::parse(selector).map_err(ClientError::Refused)?;
        let snapshot = self.view.snapshot();
        let matching = snapshot.list(K::KIND, namespace).filter(|o| selector.matches(&*o.facet.meta.labels));
        matching.map(|o| typed(o)).collect()
    }

    /// Changes an object: `change` is applied to its present state, and again when that moved meanwhile. Its status is
    /// not touched.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Invalid`]; [`ClientError::Conflict`] when it never stood still.
    pub async fn update<K: Stored>(
        &self,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut K),
    ) -> Result<K, ClientError> {
        let key = key::<K>(namespace, name);
        for _ in 0..CONFLICT_RETRIES {
            let current = self.find(&key)?;
            let mut wanted: K = typed(&current)?;
            change(&mut wanted);
            match self.swap(&current, &wanted).await {
                Err(ClientError::Conflict(_)) => {}
                outcome => return outcome,
            }
        }
        Err(ClientError::Conflict(key))
    }

    /// Replaces an object by a new state of it, provided it is still the one that was read (its `resourceVersion`):
    /// compare and swap.
    ///
    /// # Errors
    /// [`ClientError::Conflict`] when it is not; [`ClientError::Refused`] when `object` carries no `resourceVersion`.
    pub async fn replace<K: Stored>(&self, object: &K) -> Result<K, ClientError> {
        let meta = object.meta();
        let key = key::<K>(home::<K>(meta.namespace.as_deref()), meta.name.as_deref().unwrap_or_default());
        let current = self.find(&key)?;
        match meta.resource_version.as_deref() {
            None | Some("") => Err(ClientError::Refused(format!(
                "{key}: replace what was read before, with its metadata.resourceVersion; or use update"
            ))),
            Some(read) if read != current.revision.to_string() => Err(ClientError::Conflict(key)),
            Some(_) => self.swap(&current, object).await,
        }
    }

    /// Sets how many pods a replication controller keeps.
    ///
    /// # Errors
    /// As [`Client::update`].
    pub async fn scale(
        &self,
        namespace: &str,
        name: &str,
        replicas: u16,
    ) -> Result<v1::ReplicationController, ClientError> {
        let set = |rc: &mut v1::ReplicationController| {
            rc.spec.get_or_insert_default().replicas = Some(replicas.into());
        };
        self.update(namespace, name, set).await
    }

    /// Begins the end of an object, as `kubectl delete` does: a running pod gets its grace, what it owns is collected.
    /// No error when its end has begun already.
    ///
    /// # Errors
    /// [`ClientError::NotFound`]; [`ClientError::Refused`] for namespaces.
    pub async fn delete<K: Stored>(&self, namespace: &str, name: &str) -> Result<(), ClientError> {
        let key = key::<K>(namespace, name);
        if K::KIND == Kind::Namespace {
            return Err(ClientError::Refused("namespaces are deleted at the API".into()));
        }
        for _ in 0..CONFLICT_RETRIES {
            let current = self.find(&key)?;
            let edit = edit::delete(&current, outside::now());
            let write = match edit.map_err(|e| ClientError::Refused(e.to_string()))? {
                None => return Ok(()),
                Some(Edit::Remove(object)) => Write::Remove(key.clone(), Expected::state(&object)),
                Some(Edit::Replace(sealed, base)) => Write::Replace(sealed, Expected::state(&base)),
                Some(Edit::Create(sealed)) => Write::Create(sealed),
            };
            match self.commit(write).await {
                Err(ClientError::Conflict(_)) => {}
                outcome => return outcome.map(drop),
            }
        }
        Err(ClientError::Conflict(key))
    }

    /// Follows a kind, in one namespace or all. Begins with everything there is; never ends.
    pub fn watch<K: Stored>(&self, namespace: Option<&str>) -> Watcher<K> {
        Watcher {
            view: self.view.clone(),
            namespace: namespace.map(str::to_owned),
            watch: None,
            ready: VecDeque::new(),
            of: PhantomData,
        }
    }

    /// Waits until `look` finds something in the cluster's picture; it is asked again after each change.
    ///
    /// # Errors
    /// [`ClientError::Timeout`].
    pub async fn until<T>(
        &self,
        within: Duration,
        mut look: impl FnMut(&Snapshot) -> Option<T>,
    ) -> Result<T, ClientError> {
        let found = async {
            loop {
                let snapshot = self.view.snapshot();
                if let Some(found) = look(&snapshot) {
                    return found;
                }
                // Too far behind is news as well: look at the snapshot again.
                let _ = self.view.watch(snapshot.revision).next().await;
            }
        };
        tokio::time::timeout(within, found).await.map_err(|_| ClientError::Timeout(within))
    }

    /// Opens a container's log on the node that runs it. `request` says which part; the pod is filled in, and so is the
    /// container where there is only one.
    ///
    /// # Errors
    /// [`ClientError::NotFound`], [`ClientError::Refused`] while no node has the pod, and what the node says.
    pub async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        mut request: LogRequest,
    ) -> Result<ByteStream, ClientError> {
        let object = self.find(&key::<v1::Pod>(namespace, pod))?;
        let KindFacet::Pod(facet) = &object.facet.of else {
            return Err(ClientError::NotFound(object.key.clone()));
        };
        let node = facet.node.clone();
        let node = node.ok_or_else(|| ClientError::Refused(format!("{} has no node yet", object.key)))?;
        if request.container.is_empty() {
            request.container = only_container(&object)?;
        }
        request.namespace = object.key.namespace.to_string();
        request.pod = object.key.name.to_string();
        request.uid = object.uid().to_string();
        Ok(self.streams.ask(OpenStream { node, open: Open::Logs(request) }, OPEN_WITHIN).await??)
    }

    fn find(&self, key: &Key) -> Result<Arc<Object>, ClientError> {
        self.view.snapshot().find(key).cloned().ok_or_else(|| ClientError::NotFound(key.clone()))
    }

    async fn swap<K: Stored>(&self, current: &Arc<Object>, wanted: &K) -> Result<K, ClientError> {
        let key = &current.key;
        let how = Admission {
            namespace: &key.namespace,
            name: Some(&key.name),
            now: outside::now(),
            uid: current.uid().clone(),
            suffix: "",
            fields: FieldValidation::Strict,
        };
        let json = document(wanted, &key.name)?;
        let admitted = admit_update(K::KIND, current, &json, Part::Main, &how)
            .map_err(|r| invalid(K::KIND, &key.name, r))?;
        if admitted.unchanged {
            return typed(current);
        }
        let (before, after) = (&current.facet.meta, &admitted.sealed.facet.meta);
        let held = !before.finalizers.is_empty() && after.finalizers.is_empty();
        let write = match after.deleting {
            // Its end waited for the last finalizer alone.
            Some(d) if held && d.grace_seconds == 0 && K::KIND != Kind::Namespace => {
                Write::Remove(key.clone(), Expected::state(current))
            }
            _ => Write::Replace(admitted.sealed, Expected::state(current)),
        };
        typed(&*self.commit(write).await?)
    }

    async fn commit(&self, write: Write) -> Result<Arc<Object>, ClientError> {
        let commit = Commit { writes: vec![write], durability: Durability::Hard };
        let mut committed = self.commits.ask(commit, COMMIT_WITHIN).await??;
        let nothing = || ClientError::Unavailable("it answered a write with nothing".into());
        committed.objects.pop().ok_or_else(nothing)
    }
}

/// What a [`Watcher`] tells.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchEvent<K> {
    /// All objects there are now: first of all, and again should the watcher have fallen too far behind. Forget others.
    Listed(Vec<K>),
    /// An object is new or has a new state.
    Applied(K),
    /// An object is gone; its last state.
    Deleted(K),
}

/// Follows the objects of a kind.
pub struct Watcher<K> {
    view: View,
    namespace: Option<String>,
    watch: Option<Watch>,
    ready: VecDeque<Change>,
    of: PhantomData<fn() -> K>,
}

impl<K: Stored> Watcher<K> {
    /// The next event. Nothing is lost when the returned future is dropped: the next call goes on from there.
    pub async fn next(&mut self) -> WatchEvent<K> {
        loop {
            while let Some(change) = self.ready.pop_front() {
                if let Some(event) = self.event(&change) {
                    return event;
                }
            }
            let Some(watch) = &mut self.watch else { return self.list() };
            match watch.next().await {
                Ok(changes) => self.ready.extend(changes),
                Err(_too_old) => return self.list(),
            }
        }
    }

    fn list(&mut self) -> WatchEvent<K> {
        let snapshot = self.view.snapshot();
        self.watch = Some(self.view.watch(snapshot.revision));
        let objects = snapshot.list(K::KIND, self.namespace.as_deref());
        WatchEvent::Listed(objects.filter_map(|o| typed(o).ok()).collect())
    }

    fn event(&self, change: &Change) -> Option<WatchEvent<K>> {
        let key = &change.object.key;
        let ours = key.kind == K::KIND && self.namespace.as_deref().is_none_or(|n| n == &*key.namespace);
        // The store took it as a `K`, so it is one.
        let object = typed(&change.object).ok().filter(|_| ours)?;
        Some(match change.kind {
            ChangeKind::Deleted => WatchEvent::Deleted(object),
            ChangeKind::Added | ChangeKind::Modified => WatchEvent::Applied(object),
        })
    }
}

fn home<K: Stored>(given: Option<&str>) -> &str {
    match given.filter(|n| !n.is_empty()) {
        _ if !K::KIND.namespaced() => "",
        Some(namespace) => namespace,
        None => "default",
    }
}

fn key<K: Stored>(namespace: &str, name: &str) -> Key {
    Key::new(K::KIND, if K::KIND.namespaced() { namespace } else { "" }, name)
}

fn typed<K: Stored>(object: &Object) -> Result<K, ClientError> {
    object.parse().map_err(|e| ClientError::Invalid {
        kind: object.key.kind,
        name: object.key.name.to_string(),
        why: e.to_string(),
    })
}

fn document<K: Stored>(object: &K, name: &str) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(object).map_err(|e| ClientError::Invalid {
        kind: K::KIND,
        name: name.into(),
        why: e.to_string(),
    })
}

fn invalid(kind: Kind, name: &str, rejection: Rejection) -> ClientError {
    let why = match rejection {
        Rejection::BadRequest(text) => text,
        Rejection::Invalid(causes) => {
            causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect::<Vec<_>>().join("; ")
        }
    };
    ClientError::Invalid { kind, name: name.into(), why }
}

/// Whether a service's document asks for a cluster address.
fn needs_address(json: &[u8]) -> bool {
    let spec = serde_json::from_slice::<v1::Service>(json).ok().and_then(|s| s.spec).unwrap_or_default();
    spec.cluster_ip.as_deref() != Some("None") && spec.type_.as_deref() != Some("ExternalName")
}

fn only_container(object: &Object) -> Result<String, ClientError> {
    let pod: v1::Pod = typed(object)?;
    let names: Vec<String> = pod.spec.into_iter().flat_map(|s| s.containers).map(|c| c.name).collect();
    match names.as_slice() {
        [only] => Ok(only.clone()),
        several => Err(ClientError::Refused(format!(
            "{} has several containers; name one of: {}",
            object.key,
            several.join(", ")
        ))),
    }
}
