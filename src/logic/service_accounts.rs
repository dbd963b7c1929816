//! What pods get of their service account unasked, as Kubernetes' admission of that name adds it: a volume with a token, and
//! the account's `imagePullSecrets`.
//!
//! Owns: whether a new pod may run as the account that it names, what it gets, and what is in the volume: token, the
//! cluster's CA, the namespace. Pure, over documents as
//! they come. Invariant: what a pod mounts at that place by itself stays. Limit: Kubernetes adds it unless somebody says
//! no; here somebody has to say yes (`automountServiceAccountToken: true`, of the pod, else of the account): every other pod
//! is spared a mount, and its document the third that it would grow by.

use k8s_openapi::api::core::v1;
use serde::Deserialize;
use serde_json::{Value, json};

use super::tokens::INJECTED_LIFE_S;
use crate::model::{Key, Kind, Snapshot};

/// Where programs look for it.
pub const PLACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The volume's name without its five random letters.
const VOLUME: &str = "kube-api-access-";
/// What happens when neither pod nor account say anything: a yes once pods have a way to the API and accounts may do
/// something there.
const UNSAID: bool = false;

/// The account of pods that name none.
const DEFAULT: &str = "default";

/// What a pod says of the account that it runs as.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Says {
    automount_service_account_token: Option<bool>,
    service_account_name: Option<String>,
    /// The older name of the field.
    service_account: Option<String>,
    image_pull_secrets: Option<Vec<v1::LocalObjectReference>>,
}

/// What a pod gets of its account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Given {
    /// The volume with a token.
    pub token: bool,
    /// `imagePullSecrets`, of a pod that names none.
    pub pull_secrets: Vec<v1::LocalObjectReference>,
}

impl Says {
    /// What a pod's spec says.
    pub fn of(spec: &v1::PodSpec) -> Says {
        Says {
            automount_service_account_token: spec.automount_service_account_token,
            service_account_name: spec.service_account_name.clone(),
            service_account: None,
            image_pull_secrets: spec.image_pull_secrets.clone(),
        }
    }

    /// The account that it names.
    fn account(&self) -> &str {
        let mut given = [&self.service_account_name, &self.service_account].into_iter().flatten();
        given.find(|name| !name.is_empty()).map_or(DEFAULT, String::as_str)
    }

    /// Why a pod in this namespace is forbidden, in Kubernetes' words: the account that it names is not there. The default
    /// one is not asked for, since each namespace is given it, if only a moment after it was made.
    pub fn forbids(&self, namespace: &str, snapshot: &Snapshot) -> Option<String> {
        let name = self.account();
        let there = || snapshot.find(&Key::new(Kind::ServiceAccount, namespace, name)).is_some();
        (name != DEFAULT && !there()).then(|| {
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found")
        })
    }

    /// What a pod in this namespace gets.
    pub fn given(&self, namespace: &str, snapshot: &Snapshot) -> Given {
        let account = snapshot.find(&Key::new(Kind::ServiceAccount, namespace, self.account()));
        // It says the same in the same words.
        let account = account.and_then(|account| account.parse::<Says>().ok()).unwrap_or_default();
        let token = self.automount_service_account_token.or(account.automount_service_account_token);
        let names_none = self.image_pull_secrets.as_ref().is_none_or(Vec::is_empty);
        let pull_secrets = account.image_pull_secrets.filter(|_| names_none).unwrap_or_default();
        Given { token: token.unwrap_or(UNSAID), pull_secrets }
    }
}

impl Given {
    /// The pod's document with all of it; `suffix` is the end of the volume's name.
    pub fn add_to(&self, document: Vec<u8>, suffix: &str) -> Vec<u8> {
        let document = if self.token { with_token(&document, suffix).unwrap_or(document) } else { document };
        self.with_pull_secrets(&document).unwrap_or(document)
    }

    fn with_pull_secrets(&self, document: &[u8]) -> Option<Vec<u8>> {
        if self.pull_secrets.is_empty() {
            return None;
        }
        let mut pod: Value = serde_json::from_slice(document).ok()?;
        let secrets = serde_json::to_value(&self.pull_secrets).ok()?;
        let named = pod.get_mut("spec")?.as_object_mut()?.entry("imagePullSecrets").or_insert(Value::Null);
        // What is not even a list is refused later.
        if named.is_null() || named.as_array().is_some_and(Vec::is_empty) {
            *named = secrets;
        }
        serde_json::to_vec(&pod).ok()
    }
}

/// The pod's document with the volume, mounted into each of its containers that mounts nothing at that place; `None` when
/// there is no such container, or the document is no pod's, which others tell.
fn with_token(document: &[u8], suffix: &str) -> Option<Vec<u8>> {
    let mut pod: Value = serde_json::from_slice(document).ok()?;
    let spec = pod.get_mut("spec")?.as_object_mut()?;
    let name = format!("{VOLUME}{suffix}");
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert(Value::Null);
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == PLACE) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": PLACE}));
                mounted = true;
            }
        }
    }
    let volumes = spec.entry("volumes").or_insert(Value::Null);
    if volumes.is_null() {
        *volumes = json!([]);
    }
    volumes.as_array_mut().filter(|_| mounted)?.push(
        json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
            {"serviceAccountToken": {"expirationSeconds": INJECTED_LIFE_S, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
            ]}},
        ]}}),
    );
    serde_json::to_vec(&pod).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{logic::testing::stored, model::Revision};

    fn cluster(account: Option<bool>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut json = json!({"metadata": {"name": "robot", "namespace": "ns", "uid": "u"}});
        if let Some(says) = account {
            json["automountServiceAccountToken"] = says.into();
        }
        snapshot.insert(stored(Kind::ServiceAccount, &json, Revision(1)));
        snapshot
    }

    #[test]
    fn the_pod_has_the_last_word_the_account_the_first_and_silence_is_a_no() {
        for (pod, account, mounts) in [
            (Some(true), Some(false), true),
            (Some(false), Some(true), false),
            (None, Some(true), true),
            (None, Some(false), false),
            (Some(true), None, true),
            (None, None, false),
        ] {
            let spec = v1::PodSpec {
                automount_service_account_token: pod,
                service_account_name: Some("robot".into()),
                ..v1::PodSpec::default()
            };
            assert_eq!(Says::of(&spec).given("ns", &cluster(account)).token, mounts, "{pod:?} {account:?}");
        }
        let older: Says = serde_json::from_value(json!({"serviceAccount": "robot"})).unwrap();
        assert!(older.given("ns", &cluster(Some(true))).token);
        assert!(!Says::default().given("ns", &cluster(Some(true))).token, "the account is another");
        assert!(!older.given("elsewhere", &cluster(Some(true))).token);
    }

    #[test]
    fn a_pod_that_names_no_pull_secrets_gets_its_accounts() {
        let mut snapshot = Snapshot::default();
        let account = json!({"metadata": {"name": "robot", "namespace": "ns", "uid": "u"},
            "imagePullSecrets": [{"name": "a"}, {"name": "b"}]});
        snapshot.insert(stored(Kind::ServiceAccount, &account, Revision(1)));
        let made = |spec: Value| -> Value {
            let says: Says = serde_json::from_value(spec.clone()).unwrap();
            let pod = json!({"spec": spec}).to_string().into_bytes();
            let made = says.given("ns", &snapshot).add_to(pod, "abcde");
            serde_json::from_slice::<Value>(&made).unwrap()["spec"].clone()
        };
        let of_account = &account["imagePullSecrets"];
        for none in [json!({}), json!({"imagePullSecrets": []}), json!({"imagePullSecrets": null})] {
            let mut spec = none.clone();
            spec["serviceAccountName"] = "robot".into();
            assert_eq!(made(spec)["imagePullSecrets"], *of_account, "{none}");
        }
        let own = json!({"serviceAccountName": "robot", "imagePullSecrets": [{"name": "own"}]});
        assert_eq!(made(own.clone()), own);
        assert_eq!(made(json!({})), json!({}), "the account is another");
        let given = Says::default().given("ns", &snapshot);
        assert_eq!(given, Given::default());
        let given = Given { pull_secrets: vec![v1::LocalObjectReference { name: "a".into() }], ..given };
        let nonsense = br#"{"spec":{"imagePullSecrets":7}}"#.to_vec();
        assert_eq!(given.add_to(nonsense.clone(), ""), nonsense);
        let both = json!({"serviceAccountName": "robot", "automountServiceAccountToken": true, "containers": [{"name": "c"}]});
        let both = made(both);
        assert_eq!(both["imagePullSecrets"], *of_account);
        assert_eq!(both["volumes"][0]["name"], "kube-api-access-abcde");
    }

    #[test]
    fn a_pod_of_an_account_that_is_not_there_is_forbidden() {
        let snapshot = cluster(None);
        let forbids = |namespace: &str, json: Value| {
            serde_json::from_value::<Says>(json).unwrap().forbids(namespace, &snapshot)
        };
        for allowed in
            [json!({}), json!({"serviceAccountName": ""}), json!({"serviceAccountName": "default"})]
        {
            assert_eq!(forbids("ns", allowed.clone()), None, "{allowed}");
        }
        assert_eq!(forbids("ns", json!({"serviceAccountName": "robot"})), None);
        let said = "error looking up service account elsewhere/robot: serviceaccount \"robot\" not found";
        for field in ["serviceAccountName", "serviceAccount"] {
            assert_eq!(forbids("elsewhere", json!({ field: "robot" })).as_deref(), Some(said));
        }
    }

    #[test]
    fn every_container_gets_the_volume_but_those_with_one_of_their_own() {
        let own = json!({"name": "own", "mountPath": PLACE});
        let pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "volumeMounts": [own]}, {"name": "b", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}],
            "volumes": [{"name": "own", "emptyDir": {}}],
        }});
        let made: Value =
            serde_json::from_slice(&with_token(pod.to_string().as_bytes(), "abcde").unwrap()).unwrap();
        let spec = &made["spec"];
        let given = json!({"name": "kube-api-access-abcde", "readOnly": true, "mountPath": PLACE});
        assert_eq!(spec["initContainers"][0]["volumeMounts"], json!([given]));
        assert_eq!(spec["containers"][0]["volumeMounts"], json!([own]));
        assert_eq!(spec["containers"][1]["volumeMounts"][1], given);
        assert_eq!(spec["volumes"][1]["name"], "kube-api-access-abcde");
        let sources = spec["volumes"][1]["projected"]["sources"].as_array().unwrap();
        assert_eq!(sources[0]["serviceAccountToken"], json!({"expirationSeconds": 3607, "path": "token"}));
        assert_eq!(sources.len(), 3);
        // Nobody needs it, or it is no pod.
        for other in [
            json!({"spec": {"containers": [{"name": "a", "volumeMounts": [own]}]}}),
            json!({"spec": {"containers": 7, "volumes": 7}}),
            json!({"spec": {"containers": [7]}}),
            json!([]),
        ] {
            assert_eq!(with_token(other.to_string().as_bytes(), "abcde"), None, "{other}");
        }
    }
}
