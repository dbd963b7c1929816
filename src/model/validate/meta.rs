//! Metadata: names, labels, annotations, finalizers, owners, and what may never change.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::model::{
    Kind,
    fault::{Faults, Path, Raw, Shown},
    names,
};

/// Keys and values of all annotations together: 256 KiB, as Kubernetes bounds them.
const ANNOTATIONS_MAX: usize = 256 << 10;

/// The check for names of that kind.
fn name_check(kind: Kind) -> fn(&str) -> Vec<String> {
    match kind {
        Kind::Namespace => names::dns1123_label,
        Kind::Service => names::dns1035_label,
        _ => names::dns1123_subdomain,
    }
}

/// Validates an object's metadata.
pub(crate) fn meta(kind: Kind, meta: &ObjectMeta, faults: &mut Faults) {
    let at = Path::Root("metadata");
    let check = name_check(kind);
    if let Some(prefix) = meta.generate_name.as_deref().filter(|p| !p.is_empty()) {
        // A prefix may end with a dash: something will follow it.
        let masked = match prefix.strip_suffix('-') {
            Some(head) if !head.is_empty() => format!("{head}a"),
            _ => prefix.to_owned(),
        };
        faults.invalid_each(&at.field("generateName"), prefix, check(&masked));
    }
    match meta.name.as_deref().unwrap_or_default() {
        "" => faults.required(&at.field("name"), "name or generateName is required"),
        name => faults.invalid_each(&at.field("name"), name, check(name)),
    }
    if kind.namespaced() {
        match meta.namespace.as_deref().unwrap_or_default() {
            "" => faults.required(&at.field("namespace"), ""),
            name => faults.invalid_each(&at.field("namespace"), name, names::dns1123_label(name)),
        }
    }
    labels(meta.labels.as_ref(), &at.field("labels"), faults);
    annotations(meta.annotations.as_ref(), &at.field("annotations"), faults);
    finalizers(meta.finalizers.as_deref().unwrap_or_default(), &at.field("finalizers"), faults);
    owners(meta.owner_references.as_deref().unwrap_or_default(), &at.field("ownerReferences"), faults);
}

/// Validates labels, or a selector's equalities.
pub(crate) fn labels(labels: Option<&BTreeMap<String, String>>, at: &Path<'_>, faults: &mut Faults) {
    for (key, value) in labels.into_iter().flatten() {
        faults.invalid_each(at, key, names::qualified_name(key));
        faults.invalid_each(at, value, names::label_value(value));
    }
}

/// Validates annotations.
pub(crate) fn annotations(map: Option<&BTreeMap<String, String>>, at: &Path<'_>, faults: &mut Faults) {
    let mut size = 0;
    for (key, value) in map.into_iter().flatten() {
        faults.invalid_each(at, key, names::qualified_name(&key.to_lowercase()));
        size += key.len() + value.len();
    }
    if size > ANNOTATIONS_MAX {
        faults.too_long(at, ANNOTATIONS_MAX);
    }
}

fn finalizers(list: &[String], at: &Path<'_>, faults: &mut Faults) {
    let has = |name: &str| list.iter().any(|f| f == name);
    for (index, name) in list.iter().enumerate() {
        let item = at.index(index);
        faults.invalid_each(&item, name, names::qualified_name(name));
        if !name.contains('/') && !["kubernetes", "orphan", "foregroundDeletion"].contains(&name.as_str()) {
            faults.invalid(
                &item,
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            );
        }
    }
    if has("orphan") && has("foregroundDeletion") {
        let both = "finalizer orphan and foregroundDeletion cannot be both set";
        faults.invalid(at, &Raw(format!("{list:?}")), both);
    }
}

fn owners(list: &[OwnerReference], at: &Path<'_>, faults: &mut Faults) {
    let mut controller: Option<&OwnerReference> = None;
    for (index, owner) in list.iter().enumerate() {
        let item = at.index(index);
        if owner.api_version.rsplit('/').next().is_none_or(str::is_empty) {
            faults.invalid(&item.field("apiVersion"), &owner.api_version, "version must not be empty");
        }
        for (field, value) in [("kind", &owner.kind), ("name", &owner.name), ("uid", &owner.uid)] {
            if value.is_empty() {
                faults.invalid(&item.field(field), value, "must not be empty");
            }
        }
        if owner.api_version == "v1" && owner.kind == "Event" {
            faults.invalid(&item, &Raw(shown(owner)), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.controller == Some(true) {
            if let Some(first) = controller {
                faults.invalid(
                    at,
                    &Raw(format!("{:?}", list.iter().map(|o| o.name.as_str()).collect::<Vec<_>>())),
                    &format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} \
                         and {}/{}",
                        first.kind, first.name, owner.kind, owner.name
                    ),
                );
            }
            controller = Some(owner);
        }
    }
}

fn shown(owner: &OwnerReference) -> String {
    serde_json::to_string(owner).unwrap_or_default()
}

/// Refuses changes of what never changes. Called after what the client left out was taken over from `old`.
pub(crate) fn meta_update(new: &ObjectMeta, old: &ObjectMeta, faults: &mut Faults) {
    const IMMUTABLE: &str = "field is immutable";
    let at = Path::Root("metadata");
    let mut same = |name: &str, new: Option<&str>, old: Option<&str>| {
        let (new, old) = (new.unwrap_or_default(), old.unwrap_or_default());
        if new != old {
            faults.invalid(&at.field(name), new, IMMUTABLE);
        }
    };
    same("name", new.name.as_deref(), old.name.as_deref());
    same("namespace", new.namespace.as_deref(), old.namespace.as_deref());
    same("uid", new.uid.as_deref(), old.uid.as_deref());
    if new.creation_timestamp != old.creation_timestamp {
        let shown = Raw(new.creation_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default().shown());
        faults.invalid(&at.field("creationTimestamp"), &shown, IMMUTABLE);
    }
    if new.deletion_timestamp != old.deletion_timestamp {
        let shown = Raw(new.deletion_timestamp.as_ref().map(|t| t.0.to_string()).unwrap_or_default().shown());
        faults.invalid(&at.field("deletionTimestamp"), &shown, IMMUTABLE);
    }
    if new.deletion_grace_period_seconds != old.deletion_grace_period_seconds {
        let value = new.deletion_grace_period_seconds.unwrap_or_default();
        faults.invalid(&at.field("deletionGracePeriodSeconds"), &value, IMMUTABLE);
    }
    if old.deletion_timestamp.is_some() {
        let before = old.finalizers.as_deref().unwrap_or_default();
        let mut added: Vec<&String> =
            new.finalizers.iter().flatten().filter(|f| !before.contains(f)).collect();
        added.sort();
        if !added.is_empty() {
            let text = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|f| f.shown()).collect::<Vec<_>>().join(", ")
            );
            faults.forbidden(&at.field("finalizers"), &text);
        }
    }
}
