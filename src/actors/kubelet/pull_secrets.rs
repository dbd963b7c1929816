//! The credentials that a pod brings for its images: `imagePullSecrets`.
//!
//! Owns: from secrets to keyrings. [`known_secret`] is the one place where secrets come in.

use k8s_openapi::api::core::v1;

use crate::logic::{credentials::Keyring, pod::Notice};

/// A secret of the pod's namespace, as far as this node was told of it. Nodes are not told of secrets yet.
pub fn known_secret(_pod: &v1::Pod, _name: &str) -> Option<v1::Secret> {
    None
}

/// What a pod's secrets have for its images.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PodSecrets {
    /// One for each secret that can be read, in their order.
    pub keyrings: Vec<Keyring>,
    /// Names of those that are not known or cannot be read.
    missing: Vec<String>,
}

impl PodSecrets {
    /// Reads the secrets that a pod names.
    pub fn of_pod(pod: &v1::Pod, known: impl Fn(&str) -> Option<v1::Secret>) -> PodSecrets {
        let mut found = PodSecrets::default();
        for reference in pod.spec.iter().filter_map(|s| s.image_pull_secrets.as_ref()).flatten() {
            match known(&reference.name).map(|secret| Keyring::of_secret(&secret)) {
                Some(Ok(keyring)) => found.keyrings.push(keyring),
                Some(Err(why)) => {
                    tracing::warn!(why, "a pull secret is left out");
                    found.missing.push(reference.name.clone());
                }
                None => found.missing.push(reference.name.clone()),
            }
        }
        found
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_read_in_the_pods_order_and_what_is_missing_is_told() {
        let pod: v1::Pod = serde_json::from_value(json!({"spec": {"containers": [], "imagePullSecrets":
            [{"name": "b"}, {"name": "gone"}, {"name": "a"}, {"name": "opaque"}]}}))
        .unwrap();
        let secret = |name: &str| -> Option<v1::Secret> {
            use base64::Engine as _;
            let config = json!({"auths": {"r.io": {"username": name, "password": "pw"}}}).to_string();
            let data = base64::engine::general_purpose::STANDARD.encode(config);
            let kind = if name == "opaque" { "Opaque" } else { "kubernetes.io/dockerconfigjson" };
            let secret = json!({"type": kind, "data": {".dockerconfigjson": data}});
            (name != "gone").then(|| serde_json::from_value(secret).unwrap())
        };
        let found = PodSecrets::of_pod(&pod, secret);
        let users: Vec<&str> =
            found.keyrings.iter().flat_map(|k| k.find("r.io/a:1")).map(|c| c.username.as_str()).collect();
        assert_eq!(users, ["b", "a"]);
        let told = found.complaint().unwrap().message;
        assert!(told.contains("pull secrets (gone, opaque); attempting"), "{told}");
        assert_eq!(PodSecrets::of_pod(&v1::Pod::default(), secret).complaint(), None);
    }
}
