//! The credentials that a pod brings for its images: `imagePullSecrets`.
//!
//! Owns: from secrets to keyrings. [`pull_secrets`] is the one place where a pod's secrets come in.

use k8s_openapi::api::core::v1;

use crate::logic::credentials::Keyring;

/// The secrets that a pod's `imagePullSecrets` name, in their order. The node is not told of secrets yet, so there are
/// none.
pub fn pull_secrets(_pod: &v1::Pod) -> Vec<v1::Secret> {
    Vec::new()
}

/// What is in them. One that cannot be read is left out: another may do, as may none.
pub fn keyrings(secrets: &[v1::Secret]) -> Vec<Keyring> {
    let read = |secret| match Keyring::of_secret(secret) {
        Ok(keyring) => Some(keyring),
        Err(why) => {
            tracing::warn!(why, "a pull secret is left out");
            None
        }
    };
    secrets.iter().filter_map(read).collect()
}
