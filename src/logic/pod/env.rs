//! A container's environment variables.
//!
//! Owns: Kubernetes' rules for `env` and `envFrom`: their order, expansion, what is optional, and the words for what is
//! missing. Pure: what the node knows of config maps and secrets comes in [`Around::sources`].

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1;

use super::{
    config::{Around, expand},
    downward,
    sources::{Content, Known},
};
use crate::model::Kind;

/// What a container's program finds in its environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// Each name once, those of `envFrom` first.
    pub vars: Vec<(String, String)>,
    /// A sentence for each source of `envFrom` of which something was left out.
    pub skipped: Vec<String>,
}

impl Environment {
    fn set(&mut self, name: &str, value: String) {
        match self.vars.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value,
            None => self.vars.push((name.to_owned(), value)),
        }
    }
}

/// The environment that a container's spec asks for.
///
/// # Errors
/// A sentence in Kubernetes' words on what is missing.
pub fn environment(pod: &v1::Pod, container: &v1::Container, around: &Around) -> Result<Environment, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Environment::default();
    for source in container.env_from.iter().flatten() {
        let (kind, name, optional) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => (Kind::ConfigMap, &map.name, map.optional),
            (None, Some(secret)) => (Kind::Secret, &secret.name, secret.optional),
            (None, None) => continue,
        };
        let Some(content) = content(around, kind, namespace, name, optional == Some(true))? else { continue };
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let mut invalid = Vec::new();
        for (key, value) in &content.data {
            let variable = format!("{prefix}{key}");
            if is_variable_name(&variable) {
                env.set(&variable, text(value, kind, namespace, name, key)?);
            } else {
                invalid.push(variable);
            }
        }
        if !invalid.is_empty() {
            let what = if kind == Kind::Secret { "secret" } else { "configMap" };
            env.skipped.push(format!(
                "Keys [{}] from the EnvFrom {what} {namespace}/{name} were skipped since they are considered \
                 invalid environment variable names.",
                invalid.join(", ")
            ));
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            None => {
                let known: BTreeMap<&str, &str> =
                    env.vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                Some(expand(variable.value.as_deref().unwrap_or_default(), &known))
            }
            Some(source) => value_from(pod, container, source, around)?,
        };
        if let Some(value) = value {
            env.set(&variable.name, value);
        }
    }
    Ok(env)
}

/// `None` when what is optional is missing.
fn value_from(
    pod: &v1::Pod,
    container: &v1::Container,
    source: &v1::EnvVarSource,
    around: &Around,
) -> Result<Option<String>, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(field) = &source.field_ref {
        return downward::field(pod, &field.field_path, around).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return downward::resource(pod, Some(container), resource, around).map(Some);
    }
    let (kind, name, key, optional) = match (&source.config_map_key_ref, &source.secret_key_ref) {
        (Some(map), _) => (Kind::ConfigMap, &map.name, &map.key, map.optional == Some(true)),
        (None, Some(secret)) => (Kind::Secret, &secret.name, &secret.key, secret.optional == Some(true)),
        (None, None) => return Err("a variable's valueFrom names no source that this node knows".into()),
    };
    let Some(content) = content(around, kind, namespace, name, optional)? else { return Ok(None) };
    match content.data.get(key) {
        Some(value) => text(value, kind, namespace, name, key).map(Some),
        None if optional => Ok(None),
        None => Err(format!("couldn't find key {key} in {} {namespace}/{name}", kind.name())),
    }
}

/// An object's content; `None` when it is optional and missing.
///
/// # Errors
/// Kubernetes' words for an object that is not there.
pub fn content(
    around: &Around,
    kind: Kind,
    namespace: &str,
    name: &str,
    optional: bool,
) -> Result<Option<Arc<Content>>, String> {
    match around.sources.find(kind, namespace, name) {
        Known::Present(content) => Ok(Some(content)),
        Known::Absent if optional => Ok(None),
        Known::Absent => Err(format!("{} \"{name}\" not found", kind.name().to_lowercase())),
        Known::Unheard => Err(format!(
            "{} \"{name}\" is not known on this node yet: waiting for the master",
            kind.name().to_lowercase()
        )),
    }
}

/// A program's environment is text without NUL bytes.
fn text(value: &[u8], kind: Kind, namespace: &str, name: &str, key: &str) -> Result<String, String> {
    match std::str::from_utf8(value) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!(
            "key {key} in {} {namespace}/{name} is no text and cannot be a variable: mount it as a file",
            kind.name()
        )),
    }
}

/// Kubernetes' rule for names of variables that come from keys.
fn is_variable_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    let begins = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b"-._".contains(&b));
    let goes_on = bytes.all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    begins && goes_on && name != "." && !name.starts_with("..")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use serde_json::{Value, json};

    use super::{super::sources::Sources, *};
    use crate::model::{Key, Revision};

    /// Knows the config map `app`, the secret `login`, and that `none` is neither.
    fn around() -> Around {
        let data = |pairs: &[(&str, &[u8])]| {
            let data = pairs.iter().map(|(k, v)| ((*k).to_owned(), v.to_vec())).collect();
            (Revision(1), Arc::new(Content { data, ..Content::default() }))
        };
        let (map, secret) = (Key::new(Kind::ConfigMap, "ns", "app"), Key::new(Kind::Secret, "ns", "login"));
        let absent = [Kind::ConfigMap, Kind::Secret].map(|kind| (Key::new(kind, "ns", "none"), None));
        let news = HashMap::from([
            (map.clone(), data(&[("COLOR", b"blue"), ("1bad", b"x"), ("size", b"$(COLOR)")])),
            (secret.clone(), data(&[("PASSWORD", b"geheim"), ("raw", b"\xff")])),
        ]);
        let known = [(map, Some(Revision(1))), (secret, Some(Revision(1)))];
        let (sources, _) = Sources::default().after(known.into_iter().chain(absent), news);
        Around { sources: Arc::new(sources), ..Around::default() }
    }

    fn made(container: Value) -> Result<Environment, String> {
        let pod = v1::Pod {
            metadata: serde_json::from_value(json!({"name": "p", "namespace": "ns"})).unwrap(),
            ..v1::Pod::default()
        };
        environment(&pod, &serde_json::from_value(container).unwrap(), &around())
    }

    fn keyed(kind: &str, name: &str, key: &str, optional: bool) -> Value {
        json!({"name": "c", "env": [{"name": "X", "valueFrom": {kind: {"name": name, "key": key, "optional": optional}}}]})
    }

    #[test]
    fn variables_come_from_config_maps_and_secrets_and_see_each_other() {
        let env = made(json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "app"}}, {"prefix": "P_", "configMapRef": {"name": "app"}},
                {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "login", "key": "PASSWORD"}}},
                {"name": "BOTH", "value": "$(COLOR) $(PW)"},
                {"name": "COLOR", "value": "red"}]}))
        .unwrap();
        let pairs: Vec<(&str, &str)> = env.vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [
                ("COLOR", "red"),
                ("size", "$(COLOR)"),
                ("P_1bad", "x"),
                ("P_COLOR", "blue"),
                ("P_size", "$(COLOR)"),
                ("PW", "geheim"),
                ("BOTH", "blue geheim"),
            ]
        );
        assert_eq!(
            env.skipped,
            ["Keys [1bad] from the EnvFrom configMap ns/app were skipped since they are considered invalid \
                 environment variable names."]
        );
    }

    #[test]
    fn what_is_missing_is_told_in_kubernetes_words_unless_it_is_optional() {
        for (container, message) in [
            (keyed("configMapKeyRef", "none", "k", false), "configmap \"none\" not found"),
            (keyed("secretKeyRef", "none", "k", false), "secret \"none\" not found"),
            (keyed("configMapKeyRef", "app", "k", false), "couldn't find key k in ConfigMap ns/app"),
            (keyed("secretKeyRef", "login", "k", false), "couldn't find key k in Secret ns/login"),
            (json!({"name": "c", "envFrom": [{"secretRef": {"name": "none"}}]}), "secret \"none\" not found"),
            (
                keyed("secretKeyRef", "other", "k", true),
                "secret \"other\" is not known on this node yet: waiting for the master",
            ),
            (
                keyed("secretKeyRef", "login", "raw", false),
                "key raw in Secret ns/login is no text and cannot be a variable: mount it as a file",
            ),
        ] {
            assert_eq!(made(container).unwrap_err(), message);
        }
        for kind in ["configMapKeyRef", "secretKeyRef"] {
            for (name, key) in [("none", "k"), ("app", "k"), ("login", "k")] {
                if (kind == "configMapKeyRef") == (name == "login") {
                    continue;
                }
                assert_eq!(made(keyed(kind, name, key, true)).unwrap().vars, []);
            }
        }
    }
}
