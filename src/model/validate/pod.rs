//! Pods and pod templates: the spec as a whole.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{HostAlias, Pod, PodDNSConfig, PodSecurityContext, PodSpec, Volume};

use super::{container, meta, os, scheduling, volume};
use crate::model::{
    defaults,
    fault::{Faults, Path, Raw, one_of, one_of_if_set},
    names,
};

/// Limits of the C library's resolver.
const NAMESERVERS_MAX: usize = 3;
/// As many search domains as Kubernetes allows since 1.28.
const SEARCHES_MAX: usize = 32;
/// All search domains together, with the blanks between them.
const SEARCH_CHARACTERS_MAX: usize = 2048;
/// Ids of users and groups.
const ID_MAX: i64 = 2_147_483_647;

/// The volumes of a pod by name.
pub(super) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

/// What a container's validity depends on beside itself.
pub(super) struct Around<'a> {
    /// What it can mount.
    pub(super) volumes: Volumes<'a>,
    /// How long it has to end.
    pub(super) grace_seconds: i64,
    /// Its containers are not started again.
    pub(super) never_restarts: bool,
    /// `spec.os.name`.
    pub(super) os: Option<&'a str>,
    /// Its users are the node's.
    pub(super) host_users: bool,
}

impl<'a> Around<'a> {
    /// That of a pod whose spec lies at `at`; what is wrong with its volumes is found on the way.
    pub(super) fn of(spec: &'a PodSpec, at: &Path<'_>, faults: &mut Faults) -> Around<'a> {
        Around {
            volumes: volume::volumes(
                spec.volumes.as_deref().unwrap_or_default(),
                &at.field("volumes"),
                faults,
            ),
            grace_seconds: spec.termination_grace_period_seconds.unwrap_or(0),
            never_restarts: spec.restart_policy.as_deref() == Some("Never"),
            os: spec.os.as_ref().map(|os| os.name.as_str()),
            host_users: spec.host_users != Some(false),
        }
    }
}

/// Validates a new pod (metadata excepted).
pub(crate) fn pod(pod: &Pod, faults: &mut Faults) {
    let at = Path::Root("spec");
    let Some(spec) = &pod.spec else {
        return faults.required(&at, "");
    };
    any_pod(spec, &at, faults);
    of_late(spec, &at, faults);
    if spec.ephemeral_containers.iter().flatten().next().is_some() {
        faults.forbidden(&at.field("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.scheduling_gates.as_deref().unwrap_or_default().is_empty()
        && spec.node_name.as_deref().is_some_and(|n| !n.is_empty())
    {
        faults.forbidden(&at.field("nodeName"), "cannot be set until all schedulingGates have been cleared");
    }
}

/// What holds for pods, new or not, and not for templates.
pub(super) fn any_pod(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    pod_spec(spec, at, faults);
    // Templates have always been allowed what follows, pods have not.
    for (field, list) in
        [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())]
    {
        let at = at.field(field);
        for (index, container) in list.into_iter().flatten().enumerate() {
            let image = container.image.as_deref().unwrap_or_default();
            if image.trim() != image {
                let detail = "must not have leading or trailing whitespace";
                faults.invalid(&at.index(index).field("image"), image, detail);
            }
        }
    }
    let class = spec.priority_class_name.as_deref().unwrap_or_default();
    match defaults::priority_of(class) {
        None => faults.not_found(&at.field("priorityClassName"), class),
        Some(value) if spec.priority.is_some_and(|given| given != value) => faults.forbidden(
            &at.field("priority"),
            &format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name",
                spec.priority.unwrap_or_default()
            ),
        ),
        Some(_) => {}
    }
}

/// Validates a pod's spec, or a template's, that lies at `at`.
pub(crate) fn pod_spec(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let around = Around::of(spec, at, faults);
    container::containers(&spec.containers, &around, &at.field("containers"), faults);
    container::init_containers(spec, &around, &at.field("initContainers"), faults);
    one_of(
        faults,
        &at.field("restartPolicy"),
        spec.restart_policy.as_deref(),
        &["Always", "OnFailure", "Never"],
    );
    one_of(
        faults,
        &at.field("dnsPolicy"),
        spec.dns_policy.as_deref(),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    meta::labels(spec.node_selector.as_ref(), &at.field("nodeSelector"), faults);
    if let Some(context) = &spec.security_context {
        security_context(context, spec, &at.field("securityContext"), faults);
    }
    dns_config(spec.dns_config.as_ref(), spec.dns_policy.as_deref(), &at.field("dnsConfig"), faults);
    if let Some(affinity) = &spec.affinity {
        scheduling::affinity(affinity, &at.field("affinity"), faults);
    }
    scheduling::tolerations(
        spec.tolerations.as_deref().unwrap_or_default(),
        &at.field("tolerations"),
        faults,
    );
    scheduling::topology_spread(
        spec.topology_spread_constraints.as_deref().unwrap_or_default(),
        &at.field("topologySpreadConstraints"),
        faults,
    );
    scheduling::gates(
        spec.scheduling_gates.as_deref().unwrap_or_default(),
        &at.field("schedulingGates"),
        faults,
    );
    let gates = at.field("readinessGates");
    for (index, gate) in spec.readiness_gates.iter().flatten().enumerate() {
        let type_ = &gate.condition_type;
        faults.invalid_each(&gates.index(index).field("conditionType"), type_, names::qualified_name(type_));
    }
    let text = |field: &Option<String>| field.clone().filter(|t| !t.is_empty());
    for (field, value, check) in [
        (
            "serviceAccountName",
            text(&spec.service_account_name),
            names::dns1123_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", text(&spec.node_name), names::dns1123_subdomain),
        ("hostname", text(&spec.hostname), names::dns1123_label),
        ("subdomain", text(&spec.subdomain), names::dns1123_label),
        ("priorityClassName", text(&spec.priority_class_name), names::dns1123_subdomain),
        ("runtimeClassName", text(&spec.runtime_class_name), names::dns1123_subdomain),
        ("schedulerName", text(&spec.scheduler_name), names::qualified_name),
    ] {
        if let Some(value) = value {
            faults.invalid_each(&at.field(field), &value, check(&value));
        }
    }
    if let Some(seconds) = spec.active_deadline_seconds.filter(|s| !(1..=i64::from(i32::MAX)).contains(s)) {
        let detail = "must be between 1 and 2147483647, inclusive";
        faults.invalid(&at.field("activeDeadlineSeconds"), &seconds, detail);
    }
    one_of_if_set(
        faults,
        &at.field("preemptionPolicy"),
        spec.preemption_policy.as_deref(),
        &["PreemptLowerPriority", "Never"],
    );
    host_aliases(spec.host_aliases.as_deref().unwrap_or_default(), &at.field("hostAliases"), faults);
    if let Some(os) = &spec.os {
        one_of(faults, &at.field("os").field("name"), Some(&os.name), &["linux", "windows"]);
    }
    if let Some(overhead) = &spec.overhead {
        container::amounts(overhead, &at.field("overhead"), faults);
    }
    host_ports(spec, at, faults);
    if spec.host_users == Some(false) {
        for (field, set) in
            [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)]
        {
            if set == Some(true) {
                faults.forbidden(&at.field(field), "when `pod.Spec.HostUsers` is false");
            }
        }
    }
}

/// Every port of the node at most once, over all of a pod's containers.
fn host_ports(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let host_network = spec.host_network == Some(true);
    let mut taken = HashSet::new();
    for (field, list) in
        [("containers", Some(&spec.containers)), ("initContainers", spec.init_containers.as_ref())]
    {
        let at = at.field(field);
        for (c, container) in list.into_iter().flatten().enumerate() {
            // Init containers run one by one, so each may use any port.
            if field == "initContainers" {
                taken.clear();
            }
            for (p, port) in container.ports.iter().flatten().enumerate() {
                let Some(number) = port.host_port.filter(|n| *n != 0) else { continue };
                let protocol = port.protocol.as_deref().unwrap_or_default();
                let text = format!("{protocol}/{}/{number}", port.host_ip.as_deref().unwrap_or_default());
                let at = at.index(c);
                let at = at.field("ports");
                let at = at.index(p);
                if !taken.insert(text.clone()) {
                    faults.duplicate(&at.field("hostPort"), &text);
                }
                if host_network && number != port.container_port && field == "containers" {
                    let detail = "must match `containerPort` when `hostNetwork` is true";
                    faults.invalid(&at.field("hostPort"), &number, detail);
                }
            }
        }
    }
}

fn security_context(context: &PodSecurityContext, spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    ids(
        &[
            ("runAsUser", context.run_as_user),
            ("runAsGroup", context.run_as_group),
            ("fsGroup", context.fs_group),
        ],
        at,
        faults,
    );
    let groups = at.field("supplementalGroups");
    for (index, id) in context.supplemental_groups.iter().flatten().enumerate() {
        if !(0..=ID_MAX).contains(id) {
            faults.invalid(&groups.index(index), id, ID_RANGE);
        }
    }
    one_of_if_set(
        faults,
        &at.field("fsGroupChangePolicy"),
        context.fs_group_change_policy.as_deref(),
        &["Always", "OnRootMismatch"],
    );
    one_of_if_set(
        faults,
        &at.field("supplementalGroupsPolicy"),
        context.supplemental_groups_policy.as_deref(),
        &["Merge", "Strict"],
    );
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        faults.invalid(&at.field("shareProcessNamespace"), &true, detail);
    }
    if let Some(profile) = &context.seccomp_profile {
        container::seccomp(profile, &at.field("seccompProfile"), faults);
    }
    let sysctls = at.field("sysctls");
    let mut seen = HashSet::new();
    for (index, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let name = sysctls.index(index);
        let name = name.field("name");
        if sysctl.name.is_empty() {
            faults.required(&name, "");
        } else if !is_sysctl(&sysctl.name) {
            faults.invalid(
                &name,
                &sysctl.name,
                "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]\
                 ([-_a-z0-9]*[a-z0-9])?$",
            );
        } else if !seen.insert(sysctl.name.as_str()) {
            faults.duplicate(&name, &sysctl.name);
        }
    }
}

/// What was not always looked at: objects of before may stay as they are.
pub(super) fn of_late(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    host_sysctls(spec, at, faults);
    os::fields(spec, at, faults);
}

/// Sysctls of namespaces that the pod shares with its node.
fn host_sysctls(spec: &PodSpec, at: &Path<'_>, faults: &mut Faults) {
    let at = at.field("securityContext");
    let at = at.field("sysctls");
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for (index, sysctl) in sysctls.enumerate() {
        // Both separators are allowed; the first one that is there is meant.
        let name = match sysctl.name.find(['.', '/']) {
            Some(first) if sysctl.name[first..].starts_with('/') => sysctl.name.replace('/', "."),
            _ => sysctl.name.clone(),
        };
        let of_ipc = name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| name.starts_with(prefix));
        let shared = [
            ("hostNetwork", spec.host_network, name.starts_with("net.")),
            ("hostIPC", spec.host_ipc, of_ipc),
        ];
        for (field, _, _) in shared.into_iter().filter(|(_, set, of_it)| *set == Some(true) && *of_it) {
            let detail = format!("may not be specified when '{field}' is true");
            faults.invalid(&at.index(index).field("name"), &sysctl.name, &detail);
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let alnum = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    name.len() <= names::SUBDOMAIN_MAX
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(alnum)
                && bytes.last().is_some_and(alnum)
                && bytes.iter().all(|b| alnum(b) || *b == b'-' || *b == b'_')
        })
}

const ID_RANGE: &str = "must be between 0 and 2147483647, inclusive";

/// Validates ids of users and groups.
pub(super) fn ids(fields: &[(&str, Option<i64>)], at: &Path<'_>, faults: &mut Faults) {
    for (field, id) in fields {
        if let Some(id) = id.filter(|id| !(0..=ID_MAX).contains(id)) {
            faults.invalid(&at.field(field), &id, ID_RANGE);
        }
    }
}

fn dns_config(config: Option<&PodDNSConfig>, policy: Option<&str>, at: &Path<'_>, faults: &mut Faults) {
    let none = policy == Some("None");
    let Some(config) = config else {
        if none {
            faults.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let servers = config.nameservers.as_deref().unwrap_or_default();
    let searches = config.searches.as_deref().unwrap_or_default();
    if none && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return faults.required(&at.field("nameservers"), detail);
    }
    if servers.len() > NAMESERVERS_MAX {
        let detail = format!("must not have more than {NAMESERVERS_MAX} nameservers");
        faults.invalid(&at.field("nameservers"), &Raw(format!("{servers:?}")), &detail);
    }
    for (index, server) in servers.iter().enumerate() {
        ip(server, &at.field("nameservers").index(index), faults);
    }
    if searches.len() > SEARCHES_MAX {
        let detail = format!("must not have more than {SEARCHES_MAX} search paths");
        faults.invalid(&at.field("searches"), &Raw(format!("{searches:?}")), &detail);
    }
    if searches.join(" ").len() > SEARCH_CHARACTERS_MAX {
        let detail = format!(
            "must not have more than {SEARCH_CHARACTERS_MAX} characters (including spaces) in the search list"
        );
        faults.invalid(&at.field("searches"), &Raw(format!("{searches:?}")), &detail);
    }
    for (index, search) in searches.iter().enumerate() {
        if search != "." {
            // Underscores are allowed here, as some resolvers' zones have them.
            let name = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
            let at = at.field("searches");
            faults.invalid_each(&at.index(index), search, names::dns1123_subdomain(&name));
        }
    }
    for (index, option) in config.options.iter().flatten().enumerate() {
        if option.name.as_deref().is_none_or(str::is_empty) {
            faults.required(&at.field("options").index(index), "must not be empty");
        }
    }
}

/// Validates an IP address.
pub(super) fn ip(text: &str, at: &Path<'_>, faults: &mut Faults) {
    if text.parse::<std::net::IpAddr>().is_err() {
        faults.invalid(at, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn host_aliases(aliases: &[HostAlias], at: &Path<'_>, faults: &mut Faults) {
    for (index, alias) in aliases.iter().enumerate() {
        let item = at.index(index);
        ip(&alias.ip, &item.field("ip"), faults);
        let hostnames = item.field("hostnames");
        for (index, name) in alias.hostnames.iter().flatten().enumerate() {
            faults.invalid_each(&hostnames.index(index), name, names::dns1123_subdomain(name));
        }
    }
}
