//! Volumes: one source each, and that source's fields.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, HostPathVolumeSource, KeyToPath, ProjectedVolumeSource, Volume,
};

use super::{pod::Volumes, resource_field::resource_field, volume_sources};
use crate::model::{
    fault::{Faults, Path, one_of_if_set},
    names, quantity,
};

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
/// Fields of its pod that a file of a downward API volume can show.
const FILE_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];
/// Further fields of pods that exist but cannot be shown everywhere.
const POD_FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.phase",
    "status.podIP",
    "status.podIPs",
];

/// Validates a pod's volumes; gives them by name.
pub(super) fn volumes<'a>(list: &'a [Volume], at: &Path<'_>, faults: &mut Faults) -> Volumes<'a> {
    let mut by_name = Volumes::new();
    for (index, volume) in list.iter().enumerate() {
        let at = at.index(index);
        let name = volume.name.as_str();
        let before = faults.len();
        source(volume, &at, faults);
        if name.is_empty() {
            faults.required(&at.field("name"), "");
        } else {
            faults.invalid_each(&at.field("name"), name, names::dns1123_label(name));
        }
        if by_name.contains_key(name) {
            faults.duplicate(&at.field("name"), name);
        }
        // A mount of a broken volume is not told as a fault of its own.
        if faults.len() == before || !name.is_empty() {
            by_name.insert(name, volume);
        }
    }
    by_name
}

fn source(v: &Volume, at: &Path<'_>, faults: &mut Faults) {
    let sources = volume_sources(v);
    for extra in sources.iter().skip(1) {
        faults.forbidden(&at.field(extra), "may not specify more than 1 volume type");
    }
    if sources.is_empty() {
        faults.required(at, "must specify a volume type");
    }
    let required = |field: &str, value: Option<&str>, at: &Path<'_>, faults: &mut Faults| {
        if value.is_none_or(str::is_empty) {
            faults.required(&at.field(field), "");
        }
    };
    match sources.first().copied().unwrap_or_default() {
        "emptyDir" => {
            let size = v.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
            if size.is_some_and(|q| quantity::parse_milli(&q.0).map_or(true, |m| m < 0)) {
                let detail = "SizeLimit field must be a valid resource quantity";
                faults.forbidden(&at.field("emptyDir").field("sizeLimit"), detail);
            }
        }
        "hostPath" => {
            if let Some(host) = &v.host_path {
                host_path(host, &at.field("hostPath"), faults);
            }
        }
        "secret" => {
            if let Some(secret) = &v.secret {
                let at = at.field("secret");
                required("secretName", secret.secret_name.as_deref(), &at, faults);
                mode(secret.default_mode, &at.field("defaultMode"), faults);
                items(secret.items.as_deref(), &at.field("items"), faults);
            }
        }
        "configMap" => {
            if let Some(map) = &v.config_map {
                let at = at.field("configMap");
                required("name", Some(&map.name), &at, faults);
                mode(map.default_mode, &at.field("defaultMode"), faults);
                items(map.items.as_deref(), &at.field("items"), faults);
            }
        }
        "downwardAPI" => {
            if let Some(api) = &v.downward_api {
                let at = at.field("downwardAPI");
                mode(api.default_mode, &at.field("defaultMode"), faults);
                downward(api.items.as_deref(), &at, faults);
            }
        }
        "projected" => {
            if let Some(projected) = &v.projected {
                self::projected(projected, &at.field("projected"), faults);
            }
        }
        "persistentVolumeClaim" => {
            let claim = v.persistent_volume_claim.as_ref().map(|c| c.claim_name.as_str());
            required("claimName", claim, &at.field("persistentVolumeClaim"), faults);
        }
        "nfs" => {
            if let Some(nfs) = &v.nfs {
                let at = at.field("nfs");
                required("server", Some(&nfs.server), &at, faults);
                required("path", Some(&nfs.path), &at, faults);
                if !nfs.path.is_empty() && !nfs.path.starts_with('/') {
                    faults.invalid(&at.field("path"), &nfs.path, "must be an absolute path");
                }
            }
        }
        "csi" => required("driver", v.csi.as_ref().map(|c| c.driver.as_str()), &at.field("csi"), faults),
        "ephemeral" if v.ephemeral.as_ref().is_some_and(|e| e.volume_claim_template.is_none()) => {
            faults.required(&at.field("ephemeral").field("volumeClaimTemplate"), "");
        }
        "image" => {
            let reference = v.image.as_ref().and_then(|i| i.reference.as_deref());
            required("reference", reference, &at.field("image"), faults);
        }
        // Sources of other vendors are stored as they come: nothing mounts them.
        _ => {}
    }
}

fn host_path(host: &HostPathVolumeSource, at: &Path<'_>, faults: &mut Faults) {
    if host.path.is_empty() {
        faults.required(&at.field("path"), "");
    }
    no_backsteps(&host.path, &at.field("path"), faults);
    one_of_if_set(
        faults,
        &at.field("type"),
        host.type_.as_deref(),
        &["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"],
    );
}

/// Kubernetes' words for two sources of one file.
const CONFLICTING: &str = "conflicting duplicate paths";

fn projected(source: &ProjectedVolumeSource, at: &Path<'_>, faults: &mut Faults) {
    mode(source.default_mode, &at.field("defaultMode"), faults);
    distinct_paths(source, at, faults);
    let sources = at.field("sources");
    for (index, one) in source.sources.iter().flatten().enumerate() {
        let at = sources.index(index);
        let set = [
            ("secret", one.secret.is_some()),
            ("configMap", one.config_map.is_some()),
            ("downwardAPI", one.downward_api.is_some()),
            ("serviceAccountToken", one.service_account_token.is_some()),
            ("clusterTrustBundle", one.cluster_trust_bundle.is_some()),
        ];
        for (field, _) in set.iter().filter(|(_, is)| *is).skip(1) {
            faults.forbidden(&at.field(field), "may not specify more than 1 volume type");
        }
        if let Some(secret) = &one.secret {
            let at = at.field("secret");
            if secret.name.is_empty() {
                faults.required(&at.field("name"), "");
            }
            items(secret.items.as_deref(), &at.field("items"), faults);
        }
        if let Some(map) = &one.config_map {
            let at = at.field("configMap");
            if map.name.is_empty() {
                faults.required(&at.field("name"), "");
            }
            items(map.items.as_deref(), &at.field("items"), faults);
        }
        if let Some(api) = &one.downward_api {
            downward(api.items.as_deref(), &at.field("downwardAPI"), faults);
        }
        if let Some(token) = &one.service_account_token {
            let at = at.field("serviceAccountToken");
            if token.expiration_seconds.is_some_and(|s| s < 600) {
                let detail = "may not specify a duration less than 10 minutes";
                let value = token.expiration_seconds.unwrap_or_default();
                faults.invalid(&at.field("expirationSeconds"), &value, detail);
            }
            if token.path.is_empty() {
                faults.required(&at.field("path"), "");
            } else {
                relative(&token.path, &at.field("path"), faults);
            }
        }
    }
}

/// Two sources may not name one file.
fn distinct_paths(source: &ProjectedVolumeSource, at: &Path<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for one in source.sources.iter().flatten() {
        let named = [
            one.secret.as_ref().map(|secret| (secret.name.as_str(), &secret.items)),
            one.config_map.as_ref().map(|map| (map.name.as_str(), &map.items)),
        ];
        for (name, items) in named.into_iter().flatten() {
            for item in items.iter().flatten().filter(|item| !item.path.is_empty()) {
                if !seen.insert(item.path.as_str()) {
                    faults.invalid(at, name, CONFLICTING);
                }
            }
        }
        for file in one.downward_api.iter().filter_map(|api| api.items.as_ref()).flatten() {
            if !file.path.is_empty() && !seen.insert(file.path.as_str()) {
                faults.invalid(at, file.path.as_str(), CONFLICTING);
            }
        }
    }
}

fn mode(mode: Option<i32>, at: &Path<'_>, faults: &mut Faults) {
    if let Some(mode) = mode.filter(|m| !(0..=0o777).contains(m)) {
        faults.invalid(at, &mode, FILE_MODE);
    }
}

fn items(items: Option<&[KeyToPath]>, at: &Path<'_>, faults: &mut Faults) {
    for (index, item) in items.into_iter().flatten().enumerate() {
        let at = at.index(index);
        if item.key.is_empty() {
            faults.required(&at.field("key"), "");
        }
        if item.path.is_empty() {
            faults.required(&at.field("path"), "");
        }
        relative(&item.path, &at.field("path"), faults);
        mode(item.mode, &at.field("mode"), faults);
    }
}

fn downward(files: Option<&[DownwardAPIVolumeFile]>, at: &Path<'_>, faults: &mut Faults) {
    for file in files.into_iter().flatten() {
        if file.path.is_empty() {
            faults.required(&at.field("path"), "");
        }
        relative(&file.path, &at.field("path"), faults);
        match (&file.field_ref, &file.resource_field_ref) {
            (Some(_), Some(_)) => {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                faults.invalid(at, "resource", detail);
            }
            (Some(field), None) => field_ref(
                field.api_version.as_deref(),
                &field.field_path,
                FILE_FIELDS,
                &at.field("fieldRef"),
                faults,
            ),
            (None, Some(resource)) => resource_field(resource, true, &at.field("resourceFieldRef"), faults),
            (None, None) => {
                faults.required(at, "one of fieldRef and resourceFieldRef is required");
            }
        }
        mode(file.mode, &at.field("mode"), faults);
    }
}

/// Validates a reference to a field of the pod itself; `known` are those that can be shown at this place.
pub(super) fn field_ref(
    api_version: Option<&str>,
    path: &str,
    known: &[&str],
    at: &Path<'_>,
    faults: &mut Faults,
) {
    if api_version.is_none_or(str::is_empty) {
        return faults.required(&at.field("apiVersion"), "");
    }
    let outer = at;
    let at = at.field("fieldPath");
    if path.is_empty() {
        return faults.required(&at, "");
    }
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        match map {
            "metadata.annotations" => {
                let key = key.to_lowercase();
                faults.invalid_each(outer, &key, names::qualified_name(&key));
            }
            "metadata.labels" => faults.invalid_each(outer, key, names::qualified_name(key)),
            _ => {
                let detail =
                    format!("error converting fieldPath: field label does not support subscript: {path}");
                faults.invalid(&at, path, &detail);
            }
        }
    } else if !known.contains(&path) {
        if FILE_FIELDS.contains(&path) || POD_FIELDS.contains(&path) {
            faults.unsupported(&at, path, known);
        } else {
            let detail = format!("error converting fieldPath: field label not supported: {path}");
            faults.invalid(&at, path, &detail);
        }
    }
}

fn no_backsteps(path: &str, at: &Path<'_>, faults: &mut Faults) {
    if path.split('/').any(|part| part == "..") {
        faults.invalid(at, path, "must not contain '..'");
    }
}

/// A path that stays below its base.
pub(super) fn descending(path: &str, at: &Path<'_>, faults: &mut Faults) {
    if path.starts_with('/') {
        faults.invalid(at, path, "must be a relative path");
    }
    no_backsteps(path, at, faults);
}

/// As [`descending`], and not one of the names that volumes keep for themselves.
fn relative(path: &str, at: &Path<'_>, faults: &mut Faults) {
    descending(path, at, faults);
    if path.starts_with("..") && !path.starts_with("../") {
        faults.invalid(at, path, "must not start with '..'");
    }
}
