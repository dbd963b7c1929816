//! What registries' refusals mean, as another runtime tells of them in its own words, and what may help.

use super::RuntimeError;

/// Why an image was not pulled by `puller`, and what may help; `plain` says where plain HTTP is allowed.
pub(super) fn pull_error(full: &str, text: &str, puller: &str, plain: &str) -> RuntimeError {
    let lower = text.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    let denied =
        ["unauthorized", "access denied", "authentication required", "authorization failed", "no basic auth"];
    let unreachable =
        ["no such host", "connection refused", "timeout", "deadline exceeded", "network is unreachable"];
    let advice = if says(&denied) {
        "; is the name right, and are the credentials in the pod's imagePullSecrets?".to_owned()
    } else if says(&["manifest unknown", "not found"]) {
        "; the registry has no such image or tag".to_owned()
    } else if says(&["http response to https"]) {
        format!("; the registry speaks plain HTTP: {plain}")
    } else if says(&unreachable) {
        format!("; can {puller} reach the registry?")
    } else {
        String::new()
    };
    RuntimeError::Pull(format!("failed to pull image {full:?}: {text}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_registries_say_what_may_help() {
        for (text, advice) in [
            ("pull access denied for x, repository does not exist", "imagePullSecrets"),
            ("failed to authorize: authorization failed: no basic auth credentials", "imagePullSecrets"),
            ("manifest for x:9 not found: manifest unknown", "no such image or tag"),
            ("docker.io/library/a:1: not found", "no such image or tag"),
            ("Get \"https://r:5000/v2/\": http: server gave HTTP response to HTTPS client", "allow it there"),
            ("dial tcp: lookup r on 127.0.0.53:53: no such host", "can the engine reach the registry"),
            ("dial tcp 10.0.0.1:443: connect: connection refused", "can the engine reach the registry"),
            ("something else", "something else"),
        ] {
            let error = pull_error("r/x:9", text, "the engine", "allow it there");
            assert!(matches!(error, RuntimeError::Pull(_)));
            let error = error.to_string();
            assert!(error.contains(advice) && error.contains(text) && error.contains("r/x:9"), "{error}");
        }
    }
}
