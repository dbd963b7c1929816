//! The credentials that a pod brings for its images: `imagePullSecrets`, its own or its service account's.
//!
//! Owns: from secrets to keyrings. Invariant: nothing is pulled before it is known which secrets there are.

use k8s_openapi::{ByteString, api::core::v1};

use crate::{
    logic::{
        credentials::Keyring,
        mirrors,
        pod::{
            Notice,
            sources::{Content, Known, Sources, service_account},
        },
    },
    model::Kind,
};

/// What a pod's secrets have for its images.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodSecrets {
    /// One for each secret that can be read, in their order.
    pub keyrings: Vec<Keyring>,
    /// Names of those that are not known or cannot be read.
    missing: Vec<String>,
}

impl PodSecrets {
    /// Reads the secrets that a pod names; where it names none, those of its service account.
    ///
    /// # Errors
    /// A sentence while the node has not been told yet of all of them.
    pub fn of_pod(pod: &v1::Pod, sources: &Sources) -> Result<PodSecrets, String> {
        let Some(spec) = pod.spec.as_ref().filter(|_| !mirrors::is_static(pod)) else {
            return Ok(PodSecrets::default());
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let find = |kind, name: &str| match sources.find(kind, namespace, name) {
            Known::Present(content) => Ok(Some(content)),
            Known::Absent => Ok(None),
            Known::Unheard => Err(format!(
                "the node has not been told of {} \"{namespace}/{name}\" yet",
                if kind == Kind::Secret { "secret" } else { "service account" }
            )),
        };
        let own: Vec<String> = spec.image_pull_secrets.iter().flatten().map(|r| r.name.clone()).collect();
        let names = if own.is_empty() {
            let account = find(Kind::ServiceAccount, service_account(spec))?;
            account.map(|account| account.pull_secrets.clone()).unwrap_or_default()
        } else {
            own
        };
        let mut found = PodSecrets::default();
        for name in names {
            match find(Kind::Secret, &name)?.map(|content| Keyring::of_secret(&secret(&name, &content))) {
                Some(Ok(keyring)) => found.keyrings.push(keyring),
                Some(Err(why)) => {
                    tracing::warn!(why, "a pull secret is left out");
                    found.missing.push(name);
                }
                None => found.missing.push(name),
            }
        }
        Ok(found)
    }

    /// Whether the pod, or its service account, names any.
    pub fn are_named(&self) -> bool {
        !self.keyrings.is_empty() || !self.missing.is_empty()
    }

    /// Kubernetes' word on those that are missing: the pull is tried all the same.
    pub fn complaint(&self) -> Option<Notice> {
        (!self.missing.is_empty()).then(|| Notice {
            container: None,
            warning: true,
            reason: "FailedToRetrieveImagePullSecret",
            message: format!(
                "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                self.missing.join(", ")
            ),
        })
    }
}

/// The secret as its keyring is read from it.
fn secret(name: &str, content: &Content) -> v1::Secret {
    let mut secret = v1::Secret { type_: Some(content.kind.clone()), ..v1::Secret::default() };
    secret.metadata.name = Some(name.to_owned());
    let data = content.data.iter().map(|(key, value)| (key.clone(), ByteString(value.clone())));
    secret.data = Some(data.collect());
    secret
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use serde_json::json;

    use super::*;
    use crate::model::Key;

    fn pod(secrets: &[&str]) -> v1::Pod {
        let secrets: Vec<_> = secrets.iter().map(|name| json!({"name": name})).collect();
        serde_json::from_value(json!({"metadata": {"namespace": "ns"},
            "spec": {"containers": [], "imagePullSecrets": secrets}}))
        .unwrap()
    }

    fn pull_secret(user: &str, kind: &str) -> Content {
        let config = json!({"auths": {"r.io": {"username": user, "password": "pw"}}}).to_string();
        Content {
            data: [(".dockerconfigjson".to_owned(), config.into_bytes())].into(),
            kind: kind.to_owned(),
            ..Content::default()
        }
    }

    /// `None`: there is none of that name.
    fn sources(objects: Vec<(Kind, &str, Option<Content>)>) -> Sources {
        let revision = Default::default();
        let (mut picture, mut news) = (Vec::new(), HashMap::new());
        for (kind, name, content) in objects {
            let key = Key::new(kind, "ns", name);
            picture.push((key.clone(), content.is_some().then_some(revision)));
            news.extend(content.map(|content| (key, (revision, Arc::new(content)))));
        }
        Sources::default().after(picture, news).0
    }

    fn users(found: &PodSecrets) -> Vec<&str> {
        found.keyrings.iter().flat_map(|k| k.find("r.io/a:1")).map(|c| c.username.as_str()).collect()
    }

    #[test]
    fn secrets_are_read_in_the_pods_order_and_what_is_missing_is_told() {
        let kind = "kubernetes.io/dockerconfigjson";
        let known = sources(vec![
            (Kind::Secret, "a", Some(pull_secret("a", kind))),
            (Kind::Secret, "b", Some(pull_secret("b", kind))),
            (Kind::Secret, "gone", None),
            (Kind::Secret, "opaque", Some(pull_secret("x", "Opaque"))),
        ]);
        let found = PodSecrets::of_pod(&pod(&["b", "gone", "a", "opaque"]), &known).unwrap();
        assert_eq!(users(&found), ["b", "a"]);
        let told = found.complaint().unwrap().message;
        assert!(told.contains("pull secrets (gone, opaque); attempting"), "{told}");
        let waiting = PodSecrets::of_pod(&pod(&["a", "unheard"]), &known).unwrap_err();
        assert_eq!(waiting, "the node has not been told of secret \"ns/unheard\" yet");
    }

    #[test]
    fn a_pod_without_secrets_has_those_of_its_service_account() {
        let account = Content { pull_secrets: vec!["s".into()], ..Content::default() };
        let known = sources(vec![
            (Kind::ServiceAccount, "default", Some(account)),
            (Kind::Secret, "s", Some(pull_secret("account", "kubernetes.io/dockerconfigjson"))),
            (Kind::Secret, "own", Some(pull_secret("own", "kubernetes.io/dockerconfigjson"))),
        ]);
        assert_eq!(users(&PodSecrets::of_pod(&pod(&[]), &known).unwrap()), ["account"]);
        assert_eq!(users(&PodSecrets::of_pod(&pod(&["own"]), &known).unwrap()), ["own"]);
        let none = sources(vec![(Kind::ServiceAccount, "default", None)]);
        assert_eq!(PodSecrets::of_pod(&pod(&[]), &none).unwrap(), PodSecrets::default());
        assert!(PodSecrets::of_pod(&pod(&[]), &Sources::default()).is_err());
        let mut own = pod(&[]);
        own.metadata.annotations = Some([("kubernetes.io/config.hash".into(), "h".into())].into());
        assert!(PodSecrets::of_pod(&own, &Sources::default()).is_ok(), "a static pod waits for nobody");
    }
}
