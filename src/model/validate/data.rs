//! Configmaps and secrets: keys, sizes, types, and what `immutable` forbids.

use k8s_openapi::{
    ByteString,
    api::core::v1::{ConfigMap, Secret},
};

use crate::model::{
    fault::{Faults, Path, Raw},
    names,
};

/// All values of a configmap or secret together.
const SIZE_MAX: usize = 1 << 20;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

/// Validates a configmap (metadata excepted).
pub(crate) fn config_map(map: &ConfigMap, faults: &mut Faults) {
    let (data, binary) = (Path::Root("data"), Path::Root("binaryData"));
    let mut size = 0;
    for (key, value) in map.data.iter().flatten() {
        faults.invalid_each(&data.key(key), key, names::config_map_key(key));
        if map.binary_data.as_ref().is_some_and(|b| b.contains_key(key)) {
            faults.invalid(&data.key(key), key, "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in map.binary_data.iter().flatten() {
        faults.invalid_each(&binary.key(key), key, names::config_map_key(key));
        size += value.0.len();
    }
    if size > SIZE_MAX {
        faults.too_long(&Path::Root(""), SIZE_MAX);
    }
}

/// Validates a configmap's new state.
pub(crate) fn config_map_update(new: &ConfigMap, old: &ConfigMap, faults: &mut Faults) {
    if old.immutable == Some(true) {
        for (field, kept) in [
            ("immutable", new.immutable == Some(true)),
            ("data", same(new.data.as_ref(), old.data.as_ref())),
            ("binaryData", same(new.binary_data.as_ref(), old.binary_data.as_ref())),
        ] {
            if !kept {
                faults.forbidden(&Path::Root(field), IMMUTABLE);
            }
        }
    }
    config_map(new, faults);
}

type Map<V> = std::collections::BTreeMap<String, V>;

/// Nothing and an empty map are the same.
fn same<V: PartialEq>(new: Option<&Map<V>>, old: Option<&Map<V>>) -> bool {
    new.filter(|m| !m.is_empty()) == old.filter(|m| !m.is_empty())
}

/// Validates a secret (metadata excepted, but for what its type asks of it).
pub(crate) fn secret(secret: &Secret, faults: &mut Faults) {
    let at = Path::Root("data");
    let mut size = 0;
    for (key, value) in secret.data.iter().flatten() {
        faults.invalid_each(&at.key(key), key, names::config_map_key(key));
        size += value.0.len();
    }
    if size > SIZE_MAX {
        faults.too_long(&at, SIZE_MAX);
    }
    let value = |key: &str| secret.data.as_ref().and_then(|d| d.get(key));
    let mut need = |keys: &[&str]| {
        for key in keys {
            if value(key).is_none() {
                faults.required(&at.key(key), "");
            }
        }
    };
    match secret.type_.as_deref().unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let annotations = secret.metadata.annotations.as_ref();
            if annotations.and_then(|a| a.get(ACCOUNT)).is_none_or(String::is_empty) {
                let at = Path::Root("metadata");
                let at = at.field("annotations");
                faults.required(&at.key(ACCOUNT), "");
            }
        }
        "kubernetes.io/dockercfg" => docker_config(value(".dockercfg"), &at.key(".dockercfg"), faults),
        "kubernetes.io/dockerconfigjson" => {
            docker_config(value(".dockerconfigjson"), &at.key(".dockerconfigjson"), faults);
        }
        "kubernetes.io/basic-auth" if value("username").is_none() && value("password").is_none() => {
            need(&["username", "password"]);
        }
        "kubernetes.io/ssh-auth" => {
            if value("ssh-privatekey").is_none_or(|v| v.0.is_empty()) {
                faults.required(&at.key("ssh-privatekey"), "");
            }
        }
        "kubernetes.io/tls" => need(&["tls.crt", "tls.key"]),
        _ => {}
    }
}

fn docker_config(value: Option<&ByteString>, at: &Path<'_>, faults: &mut Faults) {
    let Some(value) = value else { return faults.required(at, "") };
    if let Err(error) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&value.0) {
        // The text may hold a password, so the fault does not quote it; nor may the parser's words, beyond the place.
        let place = format!("is not a JSON object (line {}, column {})", error.line(), error.column());
        faults.invalid(at, "<secret contents redacted>", &place);
    }
}

/// Validates a secret's new state.
pub(crate) fn secret_update(new: &Secret, old: &Secret, faults: &mut Faults) {
    if new.type_ != old.type_ {
        let type_ = new.type_.as_deref().unwrap_or_default();
        faults.invalid(&Path::Root("type"), &Raw(format!("{type_:?}")), "field is immutable");
    }
    if old.immutable == Some(true) {
        for (field, kept) in
            [("immutable", new.immutable == Some(true)), ("data", same(new.data.as_ref(), old.data.as_ref()))]
        {
            if !kept {
                faults.forbidden(&Path::Root(field), IMMUTABLE);
            }
        }
    }
    secret(new, faults);
}
