//! Containers: names, images, ports, environment, mounts, resources, security.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerPort, EnvFromSource, EnvVar, EnvVarSource, PodSpec, ResourceRequirements,
        SeccompProfile, SecurityContext, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    huge_pages,
    pod::{Around, Volumes, ids, ip},
    probe, resize,
    resource_field::resource_field,
    stop_signal, volume,
};
use crate::model::{
    extended,
    fault::{Faults, Path, Raw, one_of, one_of_if_set},
    names, quantity,
};

/// Fields of its own pod that an environment variable can show.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Validates a pod's containers.
pub(super) fn containers(list: &[Container], around: &Around<'_>, at: &Path<'_>, faults: &mut Faults) {
    if list.is_empty() {
        return faults.required(at, "");
    }
    let mut seen = HashSet::new();
    for (index, c) in list.iter().enumerate() {
        let at = at.index(index);
        container(c, around, &at, faults);
        if !seen.insert(c.name.as_str()) {
            faults.duplicate(&at.field("name"), &c.name);
        }
        lifecycle_and_probes(c, around, &at, faults);
        if c.restart_policy.as_deref().is_some_and(|p| !p.is_empty()) {
            faults.forbidden(&at.field("restartPolicy"), "may not be set for non-init containers");
        }
    }
}

/// Validates a pod's init containers, whose names may not be the others' either.
pub(super) fn init_containers(spec: &PodSpec, around: &Around<'_>, at: &Path<'_>, faults: &mut Faults) {
    let mut seen: HashSet<&str> = spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (index, c) in spec.init_containers.iter().flatten().enumerate() {
        let at = at.index(index);
        container(c, around, &at, faults);
        if !seen.insert(c.name.as_str()) {
            faults.duplicate(&at.field("name"), &c.name);
        }
        match c.restart_policy.as_deref().unwrap_or_default() {
            "Always" => lifecycle_and_probes(c, around, &at, faults),
            other => {
                if !other.is_empty() {
                    faults.unsupported(&at.field("restartPolicy"), other, &["Always"]);
                }
                for (field, set) in [
                    ("lifecycle", c.lifecycle.is_some()),
                    ("livenessProbe", c.liveness_probe.is_some()),
                    ("readinessProbe", c.readiness_probe.is_some()),
                    ("startupProbe", c.startup_probe.is_some()),
                ] {
                    if set {
                        let detail = "may not be set for init containers without restartPolicy=Always";
                        faults.forbidden(&at.field(field), detail);
                    }
                }
            }
        }
    }
}

fn lifecycle_and_probes(c: &Container, around: &Around<'_>, at: &Path<'_>, faults: &mut Faults) {
    if let Some(lifecycle) = &c.lifecycle {
        let at = at.field("lifecycle");
        probe::lifecycle(lifecycle, around.grace_seconds, &at, faults);
        if let Some(signal) = &lifecycle.stop_signal {
            stop_signal::stop_signal(signal, around.os, &at.field("stopSignal"), faults);
        }
    }
    for (field, value, must_be_one) in [
        ("livenessProbe", &c.liveness_probe, true),
        ("readinessProbe", &c.readiness_probe, false),
        ("startupProbe", &c.startup_probe, true),
    ] {
        if let Some(value) = value {
            probe::probe(value, must_be_one, &at.field(field), faults);
        }
    }
    if c.readiness_probe.as_ref().is_some_and(|p| p.termination_grace_period_seconds.is_some()) {
        let at = at.field("readinessProbe");
        let at = at.field("terminationGracePeriodSeconds");
        let value = c.readiness_probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
        faults.invalid(&at, &value.unwrap_or_default(), "must not be set for readinessProbes");
    }
}

/// What holds for every container.
pub(super) fn container(c: &Container, around: &Around<'_>, at: &Path<'_>, faults: &mut Faults) {
    if c.name.is_empty() {
        faults.required(&at.field("name"), "");
    } else {
        faults.invalid_each(&at.field("name"), &c.name, names::dns1123_label(&c.name));
    }
    if c.image.as_deref().is_none_or(str::is_empty) {
        faults.required(&at.field("image"), "");
    }
    let policy = at.field("terminationMessagePolicy");
    match c.termination_message_policy.as_deref().unwrap_or_default() {
        "File" | "FallbackToLogsOnError" => {}
        "" => faults.required(&policy, ""),
        other => faults.unsupported(&policy, other, &["File", "FallbackToLogsOnError"]),
    }
    ports(c.ports.as_deref().unwrap_or_default(), &at.field("ports"), faults);
    env(c.env.as_deref().unwrap_or_default(), &at.field("env"), faults);
    env_from(c.env_from.as_deref().unwrap_or_default(), &at.field("envFrom"), faults);
    let privileged = c.security_context.as_ref().and_then(|context| context.privileged) == Some(true);
    mounts(
        c.volume_mounts.as_deref().unwrap_or_default(),
        &around.volumes,
        privileged,
        &at.field("volumeMounts"),
        faults,
    );
    one_of(
        faults,
        &at.field("imagePullPolicy"),
        c.image_pull_policy.as_deref(),
        &["Always", "IfNotPresent", "Never"],
    );
    if let Some(resources) = &c.resources {
        requirements(resources, &at.field("resources"), faults);
    }
    let policies = c.resize_policy.as_deref().unwrap_or_default();
    resize::policies(policies, around.never_restarts, &at.field("resizePolicy"), faults);
    if let Some(context) = &c.security_context {
        security_context(context, around.host_users, &at.field("securityContext"), faults);
    }
}

fn ports(list: &[ContainerPort], at: &Path<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, port) in list.iter().enumerate() {
        let at = at.index(index);
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            let wrong = names::port_name(name);
            if wrong.is_empty() && !seen.insert(name) {
                faults.duplicate(&at.field("name"), name);
            }
            faults.invalid_each(&at.field("name"), name, wrong);
        }
        let number = |field: &str, value: i32, faults: &mut Faults| {
            for detail in names::port_number(value) {
                faults.invalid(&at.field(field), &value, &detail);
            }
        };
        if port.container_port == 0 {
            faults.required(&at.field("containerPort"), "");
        } else {
            number("containerPort", port.container_port, faults);
        }
        if let Some(host) = port.host_port.filter(|p| *p != 0) {
            number("hostPort", host, faults);
        }
        if let Some(host) = port.host_ip.as_deref().filter(|ip| !ip.is_empty()) {
            ip(host, &at.field("hostIP"), faults);
        }
        one_of(faults, &at.field("protocol"), port.protocol.as_deref(), &["SCTP", "TCP", "UDP"]);
    }
}

fn env(list: &[EnvVar], at: &Path<'_>, faults: &mut Faults) {
    for (index, var) in list.iter().enumerate() {
        let at = at.index(index);
        if var.name.is_empty() {
            faults.required(&at.field("name"), "");
        } else {
            faults.invalid_each(&at.field("name"), &var.name, names::env_var_name(&var.name));
        }
        if let Some(from) = &var.value_from {
            let has_value = var.value.as_deref().is_some_and(|v| !v.is_empty());
            value_from(from, has_value, &at.field("valueFrom"), faults);
        }
    }
}

fn value_from(from: &EnvVarSource, has_value: bool, at: &Path<'_>, faults: &mut Faults) {
    let mut sources = 0;
    if let Some(field) = &from.field_ref {
        sources += 1;
        volume::field_ref(
            field.api_version.as_deref(),
            &field.field_path,
            ENV_FIELDS,
            &at.field("fieldRef"),
            faults,
        );
    }
    if let Some(resource) = &from.resource_field_ref {
        sources += 1;
        resource_field(resource, false, &at.field("resourceFieldRef"), faults);
    }
    let keyed = [
        ("configMapKeyRef", from.config_map_key_ref.as_ref().map(|r| (&r.name, &r.key))),
        ("secretKeyRef", from.secret_key_ref.as_ref().map(|r| (&r.name, &r.key))),
    ];
    for (field, reference) in keyed {
        let Some((name, key)) = reference else { continue };
        sources += 1;
        let at = at.field(field);
        faults.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name));
        if key.is_empty() {
            faults.required(&at.field("key"), "");
        } else {
            faults.invalid_each(&at.field("key"), key, names::config_map_key(key));
        }
    }
    if sources == 0 {
        let detail =
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`";
        faults.invalid(at, "", detail);
    } else if has_value {
        faults.invalid(at, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        faults.invalid(at, "", "may not have more than one field specified at a time");
    }
}

fn env_from(list: &[EnvFromSource], at: &Path<'_>, faults: &mut Faults) {
    for (index, from) in list.iter().enumerate() {
        let item = at.index(index);
        if let Some(prefix) = from.prefix.as_deref().filter(|p| !p.is_empty()) {
            faults.invalid_each(&item.field("prefix"), prefix, names::env_var_name(prefix));
        }
        let mut sources = 0;
        let named = [
            ("configMapRef", from.config_map_ref.as_ref().map(|r| &r.name)),
            ("secretRef", from.secret_ref.as_ref().map(|r| &r.name)),
        ];
        for (field, name) in named {
            let Some(name) = name else { continue };
            sources += 1;
            let at = item.field(field);
            if name.is_empty() {
                faults.required(&at.field("name"), "");
            } else {
                faults.invalid_each(&at.field("name"), name, names::dns1123_subdomain(name));
            }
        }
        if sources == 0 {
            faults.invalid(at, "", "must specify one of: `configMapRef` or `secretRef`");
        } else if sources > 1 {
            faults.invalid(at, "", "may not have more than one field specified at a time");
        }
    }
}

fn mounts(list: &[VolumeMount], volumes: &Volumes<'_>, privileged: bool, at: &Path<'_>, faults: &mut Faults) {
    let mut seen = HashSet::new();
    for (index, mount) in list.iter().enumerate() {
        let at = at.index(index);
        if mount.name.is_empty() {
            faults.required(&at.field("name"), "");
        } else if !volumes.contains_key(mount.name.as_str()) {
            faults.not_found(&at.field("name"), &mount.name);
        }
        if mount.mount_path.is_empty() {
            faults.required(&at.field("mountPath"), "");
        } else if !seen.insert(mount.mount_path.as_str()) {
            faults.invalid(&at.field("mountPath"), &mount.mount_path, "must be unique");
        }
        let given = |field: &Option<String>| field.clone().filter(|p| !p.is_empty());
        let (sub, expanded) = (given(&mount.sub_path), given(&mount.sub_path_expr));
        for (field, path) in [("subPath", &sub), ("subPathExpr", &expanded)] {
            if let Some(path) = path {
                volume::descending(path, &at.field(field), faults);
            }
        }
        if let (Some(_), Some(expanded)) = (&sub, &expanded) {
            faults.invalid(
                &at.field("subPathExpr"),
                expanded,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        one_of_if_set(
            faults,
            &at.field("mountPropagation"),
            mount.mount_propagation.as_deref(),
            &["Bidirectional", "HostToContainer", "None"],
        );
        if mount.mount_propagation.as_deref() == Some("Bidirectional") && !privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            faults.forbidden(&at.field("mountPropagation"), detail);
        }
        recursive_read_only(mount, &at.field("recursiveReadOnly"), faults);
    }
}

fn recursive_read_only(mount: &VolumeMount, at: &Path<'_>, faults: &mut Faults) {
    let Some(mode) = mount.recursive_read_only.as_deref() else { return };
    match mode {
        "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if mount.read_only != Some(true) {
                faults.forbidden(at, "may only be specified when readOnly is true");
            }
            if !matches!(mount.mount_propagation.as_deref(), None | Some("None")) {
                faults.forbidden(at, "may only be specified when mountPropagation is None or not specified");
            }
        }
        _ => faults.unsupported(at, mode, &["Disabled", "Enabled", "IfPossible"]),
    }
}

/// Validates a map of resources to amounts.
pub(super) fn amounts(list: &BTreeMap<String, Quantity>, at: &Path<'_>, faults: &mut Faults) {
    for (name, amount) in list {
        let at = at.key(name);
        faults.invalid_each(&at, name, names::qualified_name(name));
        match quantity::parse_milli(&amount.0) {
            Err(error) => faults.invalid(&at, &amount.0, &error.to_string()),
            Ok(milli) if milli < 0 => {
                faults.invalid(&at, &amount.0, "must be greater than or equal to 0");
            }
            Ok(_) => {}
        }
    }
}

/// Of extended resources there are whole ones only.
pub(super) fn integers(list: &BTreeMap<String, Quantity>, at: &Path<'_>, faults: &mut Faults) {
    for (name, amount) in list.iter().filter(|(name, amount)| extended::is_fraction(name, amount)) {
        faults.invalid(&at.key(name), &amount.0, "must be an integer");
    }
}

/// The resources a container can ask for: Kubernetes' own, or such as have a domain (devices).
fn is_container_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("hugepages-")
        || (name.contains('/') && !name.starts_with("kubernetes.io/") && !name.starts_with("requests."))
}

/// Validates requests and limits.
pub(super) fn requirements(resources: &ResourceRequirements, at: &Path<'_>, faults: &mut Faults) {
    let empty = BTreeMap::new();
    let limits = resources.limits.as_ref().unwrap_or(&empty);
    let requests = resources.requests.as_ref().unwrap_or(&empty);
    for (field, list) in [("limits", limits), ("requests", requests)] {
        let at = at.field(field);
        amounts(list, &at, faults);
        integers(list, &at, faults);
        for name in list.keys() {
            if !is_container_resource(name) && names::qualified_name(name).is_empty() {
                let detail = if name.contains('/') {
                    "must be a valid resource name for containers"
                } else {
                    "must be a standard resource for containers"
                };
                faults.invalid(&at.key(name), name, detail);
            }
        }
        huge_pages::divisible(list, &at, faults);
    }
    if !huge_pages::accompanied(limits, requests) {
        faults.forbidden(at, "HugePages require cpu or memory");
    }
    let at = at.field("requests");
    for (name, request) in requests {
        let overcommits = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
        let Ok(asked) = quantity::parse_milli(&request.0) else { continue };
        match limits.get(name).map(|limit| (limit, quantity::parse_milli(&limit.0))) {
            Some((limit, Ok(most))) if overcommits && asked > most => {
                let detail = format!("must be less than or equal to {name} limit of {}", limit.0);
                faults.invalid(&at, &request.0, &detail);
            }
            Some((limit, Ok(most))) if !overcommits && asked != most => {
                let detail = format!("must be equal to {name} limit of {}", limit.0);
                faults.invalid(&at, &request.0, &detail);
            }
            None if !overcommits => faults.required(
                &Path::Root(at.to_string().trim_end_matches(".requests")).field("limits"),
                "Limit must be set for non overcommitable resources",
            ),
            _ => {}
        }
    }
}

/// Validates a seccomp profile.
pub(super) fn seccomp(profile: &SeccompProfile, at: &Path<'_>, faults: &mut Faults) {
    let file = profile.localhost_profile.as_deref().unwrap_or_default();
    match profile.type_.as_str() {
        "Localhost" if file.is_empty() => {
            faults.required(&at.field("localhostProfile"), "must be set when seccomp type is Localhost");
        }
        "Localhost" => volume::descending(file, &at.field("localhostProfile"), faults),
        "RuntimeDefault" | "Unconfined" if profile.localhost_profile.is_some() => {
            let detail = "can only be set when seccomp type is Localhost";
            faults.invalid(&at.field("localhostProfile"), file, detail);
        }
        "RuntimeDefault" | "Unconfined" => {}
        "" => faults.required(&at.field("type"), "type is required when seccompProfile is set"),
        other => {
            faults.unsupported(&at.field("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

fn security_context(context: &SecurityContext, host_users: bool, at: &Path<'_>, faults: &mut Faults) {
    ids(&[("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)], at, faults);
    one_of_if_set(faults, &at.field("procMount"), context.proc_mount.as_deref(), &["Default", "Unmasked"]);
    if host_users && context.proc_mount.as_deref() == Some("Unmasked") {
        faults.invalid(&at.field("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    if let Some(profile) = &context.seccomp_profile {
        seccomp(profile, &at.field("seccompProfile"), faults);
    }
    if context.allow_privilege_escalation == Some(false) {
        let added = context.capabilities.iter().flat_map(|c| c.add.iter().flatten());
        if context.privileged == Some(true) {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            faults.invalid(at, &Raw(shown(context)), detail);
        }
        if added.into_iter().any(|c| c == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            faults.invalid(at, &Raw(shown(context)), detail);
        }
    }
}

fn shown(context: &SecurityContext) -> String {
    serde_json::to_string(context).unwrap_or_default()
}
