//! What pods read besides their own document: config maps, secrets, and the service accounts that name pull secrets.
//!
//! Owns: which objects a pod refers to ([`references`]) and what a node knows of them ([`Sources`]). Pure. Invariants: an
//! object that was not told of is not taken for absent; contents are never printed; what a node holds of an object is
//! replaced by what is newer, and dropped when no pod refers to it any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use k8s_openapi::api::core::v1;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    logic::tokens::Want,
    model::{Key, Kind, Revision, Uid},
};

/// What a config map, a secret or a service account gives to pods.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content {
    /// `data`: for variables and files.
    pub data: BTreeMap<String, Vec<u8>>,
    /// A config map's `binaryData`: for files only.
    pub binary: BTreeMap<String, Vec<u8>>,
    /// A secret's type.
    pub kind: String,
    /// The secrets that a service account pulls images with.
    pub pull_secrets: Vec<String>,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.data.keys().chain(self.binary.keys()).collect();
        f.debug_struct("Content").field("keys", &keys).finish_non_exhaustive()
    }
}

impl Content {
    /// Reads what [`slim`] made of an object.
    ///
    /// # Errors
    /// When it is no object of that kind.
    pub fn read(kind: Kind, json: &[u8]) -> serde_json::Result<Content> {
        let bytes = |map: Option<BTreeMap<String, k8s_openapi::ByteString>>| -> BTreeMap<String, Vec<u8>> {
            map.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
        };
        Ok(match kind {
            Kind::Secret => {
                let secret: v1::Secret = serde_json::from_slice(json)?;
                Content {
                    data: bytes(secret.data),
                    kind: secret.type_.unwrap_or_default(),
                    ..Content::default()
                }
            }
            Kind::ServiceAccount => {
                let account: v1::ServiceAccount = serde_json::from_slice(json)?;
                let names = account.image_pull_secrets.into_iter().flatten().map(|secret| secret.name);
                Content { pull_secrets: names.collect(), ..Content::default() }
            }
            _ => {
                let map: v1::ConfigMap = serde_json::from_slice(json)?;
                let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                Content { data: text.collect(), binary: bytes(map.binary_data), ..Content::default() }
            }
        })
    }
}

/// The part of a document that [`Content::read`] reads, without labels, annotations and the like.
///
/// # Errors
/// When the document is no JSON object.
pub fn slim(document: &[u8]) -> serde_json::Result<Vec<u8>> {
    #[derive(Deserialize, Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim<'a> {
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        data: Option<&'a RawValue>,
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        binary_data: Option<&'a RawValue>,
        #[serde(borrow, default, rename = "type", skip_serializing_if = "Option::is_none")]
        kind: Option<&'a RawValue>,
        #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
        image_pull_secrets: Option<&'a RawValue>,
    }
    serde_json::to_vec(&serde_json::from_slice::<Slim<'_>>(document)?)
}

/// What is known of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is this.
    Present(Arc<Content>),
    /// There is none of that name.
    Absent,
    /// The master has not told yet.
    Unheard,
}

/// What a node knows of the objects that its pods refer to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    held: HashMap<Key, Held>,
    /// Tokens for the pods' volumes.
    tokens: HashMap<Uid, BTreeMap<Want, Secret>>,
}

/// Never printed.
#[derive(Clone, PartialEq, Eq)]
struct Secret(Arc<str>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Held {
    Absent,
    /// It exists, and its content is on its way.
    Awaited,
    Present(Revision, Arc<Content>),
}

impl Sources {
    /// What is known of a config map, a secret or a service account.
    pub fn find(&self, kind: Kind, namespace: &str, name: &str) -> Known {
        match self.held.get(&Key::new(kind, namespace, name)) {
            Some(Held::Present(_, content)) => Known::Present(content.clone()),
            Some(Held::Absent) => Known::Absent,
            Some(Held::Awaited) | None => Known::Unheard,
        }
    }

    /// The token for a volume of a pod, once the master has sent it.
    pub fn token(&self, pod: &str, want: &Want) -> Option<&str> {
        self.tokens.get(&Uid::from(pod))?.get(want).map(|token| &*token.0)
    }

    /// With these tokens, each in the place of an older one.
    #[must_use]
    pub fn with_tokens(&self, news: impl IntoIterator<Item = (Uid, Want, String)>) -> Sources {
        let mut sources = self.clone();
        for (pod, want, token) in news {
            sources.tokens.entry(pod).or_default().insert(want, Secret(token.into()));
        }
        sources
    }

    /// Without the tokens of other pods than these; `None` when there are none.
    pub fn without_tokens_but(&self, keep: impl Fn(&Uid) -> bool) -> Option<Sources> {
        if self.tokens.keys().all(&keep) {
            return None;
        }
        let mut sources = self.clone();
        sources.tokens.retain(|pod, _| keep(pod));
        Some(sources)
    }

    /// Whether something that a pod reads is among these objects: what it refers to itself, or a secret that its service
    /// account names.
    pub fn concerns(&self, refers: &BTreeSet<Key>, objects: &BTreeSet<Key>) -> bool {
        let secrets = |account: &Key| match self.find(account.kind, &account.namespace, &account.name) {
            Known::Present(content) => content.pull_secrets.clone(),
            Known::Absent | Known::Unheard => Vec::new(),
        };
        let accounts = refers.iter().filter(|key| key.kind == Kind::ServiceAccount);
        let behind = accounts.flat_map(|account| {
            let key = |name: String| Key::new(Kind::Secret, account.namespace.clone(), name.as_str());
            secrets(account).into_iter().map(key)
        });
        !refers.is_disjoint(objects) || behind.into_iter().any(|secret| objects.contains(&secret))
    }

    /// What is known after a picture: every object of interest with its revision (`None`: there is no such object), and
    /// those contents that are news. Also which objects are not what they were.
    pub fn after(
        &self,
        picture: impl IntoIterator<Item = (Key, Option<Revision>)>,
        mut news: HashMap<Key, (Revision, Arc<Content>)>,
    ) -> (Sources, BTreeSet<Key>) {
        let (mut held, mut changed) = (HashMap::new(), BTreeSet::new());
        for (key, revision) in picture {
            let before = self.held.get(&key);
            let now = match (revision, news.remove(&key), before) {
                (None, ..) => Held::Absent,
                (Some(_), Some((revision, content)), _) => Held::Present(revision, content),
                // What is newer is on its way; until then the older one holds.
                (Some(_), None, Some(Held::Present(revision, content))) => {
                    Held::Present(*revision, content.clone())
                }
                (Some(_), None, _) => Held::Awaited,
            };
            if before != Some(&now) {
                changed.insert(key.clone());
            }
            held.insert(key, now);
        }
        (Sources { held, tokens: self.tokens.clone() }, changed)
    }
}

/// Every object that a pod refers to in its own namespace: for variables, volumes and pulling images.
pub fn references(pod: &v1::Pod) -> BTreeSet<Key> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let namespace: Arc<str> = pod.metadata.namespace.as_deref().unwrap_or_default().into();
    let mut found = BTreeSet::new();
    let mut note = |kind: Kind, name: &str| {
        if !name.is_empty() {
            found.insert(Key::new(kind, namespace.clone(), name));
        }
    };
    let own = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let plain = own.map(|c| (&c.env, &c.env_from));
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|c| (&c.env, &c.env_from));
    for (env, env_from) in plain.chain(ephemeral) {
        for source in env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            if let Some(map) = &source.config_map_key_ref {
                note(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret_key_ref {
                note(Kind::Secret, &secret.name);
            }
        }
        for source in env_from.iter().flatten() {
            if let Some(map) = &source.config_map_ref {
                note(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret_ref {
                note(Kind::Secret, &secret.name);
            }
        }
    }
    for volume in spec.volumes.iter().flatten() {
        if let Some(map) = &volume.config_map {
            note(Kind::ConfigMap, &map.name);
        }
        if let Some(name) = volume.secret.as_ref().and_then(|s| s.secret_name.as_deref()) {
            note(Kind::Secret, name);
        }
        for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
            if let Some(map) = &source.config_map {
                note(Kind::ConfigMap, &map.name);
            }
            if let Some(secret) = &source.secret {
                note(Kind::Secret, &secret.name);
            }
        }
    }
    for secret in spec.image_pull_secrets.iter().flatten() {
        note(Kind::Secret, &secret.name);
    }
    note(Kind::ServiceAccount, service_account(spec));
    found
}

/// The service account that a pod runs as.
pub fn service_account(spec: &v1::PodSpec) -> &str {
    spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default")
}

/// The secrets behind a service account, given as its document.
pub fn pull_secrets(account: &Key, document: &[u8]) -> Vec<Key> {
    let names = Content::read(Kind::ServiceAccount, document).map(|c| c.pull_secrets).unwrap_or_default();
    names.iter().map(|name| Key::new(Kind::Secret, account.namespace.clone(), name.as_str())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str) -> Key {
        Key::new(Kind::ConfigMap, "ns", name)
    }

    fn content(text: &str) -> Arc<Content> {
        Arc::new(Content { data: [("k".to_owned(), text.into())].into(), ..Content::default() })
    }

    #[test]
    fn secrets_of_a_pods_service_account_concern_it() {
        let account = Key::new(Kind::ServiceAccount, "ns", "default");
        let secret = Key::new(Kind::Secret, "ns", "s");
        let content = Content { pull_secrets: vec!["s".into()], ..Content::default() };
        let news = HashMap::from([(account.clone(), (Revision(1), Arc::new(content)))]);
        let (sources, _) = Sources::default().after([(account.clone(), Some(Revision(1)))], news);
        let (refers, changed) = (BTreeSet::from([account]), BTreeSet::from([secret]));
        assert!(sources.concerns(&refers, &changed));
        assert!(!Sources::default().concerns(&refers, &changed));
        assert!(sources.concerns(&changed, &changed));
        assert!(!sources.concerns(&BTreeSet::from([map("other")]), &changed));
    }

    #[test]
    fn a_pod_refers_to_what_its_variables_volumes_and_image_need() {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "ns"},
            "spec": {
                "serviceAccountName": "robot",
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "s"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "b", "key": "k"}}},
                    {"name": "Y", "valueFrom": {"secretKeyRef": {"name": "t", "key": "k"}}}]}],
                "volumes": [
                    {"name": "v", "configMap": {"name": "c"}}, {"name": "w", "secret": {"secretName": "u"}},
                    {"name": "x", "projected": {"sources": [{"configMap": {"name": "d"}}, {"secret": {"name": "v"}}]}}]
            }
        }))
        .unwrap();
        let all: Vec<String> = references(&pod).iter().map(Key::to_string).collect();
        let expected = ["configmaps/ns/a", "configmaps/ns/b", "configmaps/ns/c", "configmaps/ns/d"]
            .into_iter()
            .chain(["secrets/ns/pull", "secrets/ns/s", "secrets/ns/t", "secrets/ns/u", "secrets/ns/v"])
            .chain(["serviceaccounts/ns/robot"]);
        assert_eq!(all, expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_picture_tells_present_absent_and_not_yet_heard_apart() {
        let news = |text: &str, revision| HashMap::from([(map("a"), (Revision(revision), content(text)))]);
        let picture = |revision| [(map("a"), Some(Revision(revision))), (map("b"), None)];
        let find = |sources: &Sources, name| sources.find(Kind::ConfigMap, "ns", name);
        let none = Sources::default();
        assert_eq!(find(&none, "a"), Known::Unheard);
        let (awaited, changed) = none.after(picture(1), HashMap::new());
        assert_eq!((find(&awaited, "a"), find(&awaited, "b")), (Known::Unheard, Known::Absent));
        assert_eq!(changed.len(), 2);
        let (first, changed) = awaited.after(picture(1), news("one", 1));
        assert_eq!(find(&first, "a"), Known::Present(content("one")));
        assert_eq!(changed, BTreeSet::from([map("a")]));
        // The newer one is on its way.
        let (waiting, changed) = first.after(picture(2), HashMap::new());
        assert_eq!((find(&waiting, "a"), changed.len()), (Known::Present(content("one")), 0));
        let (second, changed) = waiting.after(picture(2), news("two", 2));
        assert_eq!((find(&second, "a"), changed.len()), (Known::Present(content("two")), 1));
        let (dropped, _) = second.after([(map("b"), None)], HashMap::new());
        assert_eq!(find(&dropped, "a"), Known::Unheard);
    }

    #[test]
    fn contents_travel_without_metadata_and_are_never_printed() {
        let document = serde_json::json!({"metadata": {"name": "s", "annotations": {"last": "aGlkZGVu"}},
            "type": "Opaque", "data": {"k": "aGlkZGVu"}});
        let slim = slim(document.to_string().as_bytes()).unwrap();
        assert!(!String::from_utf8_lossy(&slim).contains("annotations"));
        let read = Content::read(Kind::Secret, &slim).unwrap();
        assert_eq!((read.data["k"].as_slice(), read.kind.as_str()), (b"hidden".as_slice(), "Opaque"));
        assert_eq!(format!("{read:?}"), "Content { keys: [\"k\"], .. }");
    }
}
