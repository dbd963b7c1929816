//! What a CRI runtime is asked for: a sandbox' and a container's settings in the interface's words.
//!
//! Owns: the translation, pure. Source: what Kubernetes' kubelet asks for (`pkg/kubelet/kuberuntime`).

use std::{collections::HashMap, path::Path};

use super::{
    labels::{self, ContainerRecord, Sandbox, SandboxRecord},
    proto::{
        Capability, ContainerConfig as Container, ContainerMetadata, DnsConfig, HugepageLimit, ImageSpec,
        Int64Value, KeyValue, LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceOption, PodSandboxConfig,
        PodSandboxMetadata, SecurityProfile, mode, profile,
    },
};
use crate::runtime::{
    ContainerConfig, ContainerResources, HugePageLimit, Image, Propagation, SandboxConfig, Security,
    limits::CPU_PERIOD_US,
};

/// Where log files' paths begin: containers' logs are given as absolute paths.
const LOG_DIRECTORY: &str = "/";

/// What of `/proc` and `/sys` containers do not see, unless they ask to; as in Kubernetes.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What of it they cannot write.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A sandbox; `network` is what the network plugin is told.
pub(super) fn sandbox(
    root: &str,
    config: &SandboxConfig,
    record: &SandboxRecord,
    network: Option<String>,
    attempt: u32,
) -> PodSandboxConfig {
    let mut annotations = labels::record(record);
    annotations.extend(network.map(|network| (labels::NETWORK.to_owned(), network)));
    let cgroup = record.cgroup.as_ref().map(|path| path.to_string_lossy().into_owned());
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: config.name.clone(),
            uid: config.uid.clone(),
            namespace: config.namespace.clone(),
            attempt,
        }),
        // On the host's network the host's name.
        hostname: if config.host_network { String::new() } else { config.hostname.clone() },
        log_directory: LOG_DIRECTORY.to_owned(),
        dns_config: config.dns.clone().map(|dns| DnsConfig {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        labels: labels::of_sandbox(root, config),
        annotations,
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: cgroup.unwrap_or_default(),
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces(record, "")),
                readonly_rootfs: true,
                // Not for the sandbox' own program: a runtime refuses privileged containers in others.
                privileged: true,
                seccomp: Some(SecurityProfile {
                    profile_type: profile::RUNTIME_DEFAULT,
                    localhost_ref: String::new(),
                }),
            }),
            sysctls: config.sysctls.clone().into_iter().collect(),
        }),
    }
}

fn namespaces(record: &SandboxRecord, target: &str) -> NamespaceOption {
    let of = |host: bool| if host { mode::NODE } else { mode::POD };
    NamespaceOption {
        network: of(record.host_network),
        pid: match (target.is_empty(), record.host_pid, record.share_pids) {
            (false, _, _) => mode::TARGET,
            (true, true, _) => mode::NODE,
            (true, false, true) => mode::POD,
            (true, false, false) => mode::CONTAINER,
        },
        ipc: of(record.host_ipc),
        target_id: target.to_owned(),
    }
}

/// A container in a sandbox, of the image with this id; `hosts` is the pod's `/etc/hosts` on the node.
pub(super) fn container(
    root: &str,
    sandbox: &Sandbox,
    image: &Image,
    config: &ContainerConfig,
    hosts: &Path,
    attempt: u32,
) -> Container {
    let (security, image_id) = (&config.security, image.id.as_str());
    let user = user(security, &image.user);
    let target = config.join_pids.as_ref().map_or("", |other| other.0.as_str());
    let record = ContainerRecord {
        attempt: config.attempt,
        image: config.image.clone(),
        image_id: if config.image_ref.is_empty() { image_id.to_owned() } else { config.image_ref.clone() },
        tty: config.tty,
        stop_signal: config.stop_signal.clone(),
    };
    let directory = config.working_dir.as_ref().filter(|dir| !dir.is_empty());
    Container {
        metadata: Some(ContainerMetadata { name: config.name.clone(), attempt }),
        image: Some(ImageSpec { image: image_id.to_owned() }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: directory
            .map(|dir| Path::new("/").join(dir).to_string_lossy().into_owned())
            .unwrap_or_default(),
        envs: environment(&config.env),
        mounts: mounts(config, hosts),
        labels: labels::of_container(root, sandbox, config),
        annotations: labels::record(&record),
        log_path: config
            .log_path
            .strip_prefix(LOG_DIRECTORY)
            .unwrap_or(&config.log_path)
            .to_string_lossy()
            .into(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(LinuxContainerConfig {
            resources: Some(LinuxContainerResources {
                // Below the runtime's own it is a privilege, without which the container could not be started.
                oom_score_adj: config.oom_score_adj.max(0).into(),
                hugepage_limits: config.huge_pages.iter().map(huge_pages).collect(),
                ..resources(&config.resources, &sandbox.record)
            }),
            security_context: Some(LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: capabilities(&security.add_capabilities),
                    drop_capabilities: capabilities(&security.drop_capabilities),
                }),
                privileged: security.privileged,
                namespace_options: Some(namespaces(&sandbox.record, target)),
                run_as_user: user.id.map(|id| Int64Value { value: id.into() }),
                run_as_username: user.name,
                readonly_rootfs: security.read_only_root,
                supplemental_groups: security.supplemental_groups.iter().map(|id| i64::from(*id)).collect(),
                no_new_privs: !security.privileged && !security.allow_privilege_escalation,
                run_as_group: user.group.map(|id| Int64Value { value: id.into() }),
                masked_paths: paths(MASKED, security),
                readonly_paths: paths(READ_ONLY, security),
                seccomp: Some(seccomp(security)),
            }),
        }),
    }
}

/// Who a container runs as, as a runtime is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct User {
    id: Option<u32>,
    /// With a group by name, as an image may have it, that comes after a colon.
    name: String,
    group: Option<u32>,
}

/// The user that was asked for, else the image's, as Kubernetes tells it: a runtime that was told none may give root's
/// groups. Unlike Kubernetes with the group that the image says. Nothing is told where the image says no user.
fn user(security: &Security, image_user: &str) -> User {
    let group = security.group;
    if security.user.is_some() {
        return User { id: security.user, group, ..User::default() };
    }
    let (user, of_image) = image_user.split_once(':').unwrap_or((image_user, ""));
    let named = |name: &str| match name.parse() {
        Ok(id) => User { id: Some(id), ..User::default() },
        Err(_) => User { name: name.to_owned(), ..User::default() },
    };
    match (user, group.or_else(|| of_image.parse().ok())) {
        // A runtime takes no group without a user.
        ("", None) => User::default(),
        ("", group) => User { id: Some(0), group, ..User::default() },
        (user, None) if !of_image.is_empty() => {
            User { name: format!("{user}:{of_image}"), ..User::default() }
        }
        (user, group) => User { group, ..named(user) },
    }
}

/// Names without `CAP_`: with it a runtime knows none of them, and says nothing.
fn capabilities(names: &[String]) -> Vec<String> {
    let bare = |name: &String| {
        let name = name.to_uppercase();
        name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
    };
    names.iter().map(bare).collect()
}

fn paths(paths: &[&str], security: &Security) -> Vec<String> {
    match security.unmasked_proc || security.privileged {
        true => Vec::new(),
        false => paths.iter().map(|path| (*path).to_owned()).collect(),
    }
}

fn seccomp(security: &Security) -> SecurityProfile {
    let (profile_type, file) = match &security.seccomp_profile {
        _ if security.seccomp_unconfined || security.privileged => (profile::UNCONFINED, None),
        Some(file) => (profile::LOCALHOST, Some(file)),
        None => (profile::RUNTIME_DEFAULT, None),
    };
    let localhost_ref = file.map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
    SecurityProfile { profile_type, localhost_ref }
}

fn huge_pages(limit: &HugePageLimit) -> HugepageLimit {
    HugepageLimit { page_size: limit.size(), limit: limit.limit_bytes.unsigned_abs() }
}

/// Limits of a container; its pod's memory limit holds for it, too.
pub(super) fn resources(limits: &ContainerResources, pod: &SandboxRecord) -> LinuxContainerResources {
    let memory = [limits.memory_limit_bytes, pod.memory_bytes].into_iter().filter(|bytes| *bytes > 0).min();
    let pids = (pod.pids_each > 0).then(|| ("pids.max".to_owned(), pod.pids_each.to_string()));
    LinuxContainerResources {
        cpu_period: limits.cpu_quota_us().map_or(0, |_| CPU_PERIOD_US),
        cpu_quota: limits.cpu_quota_us().unwrap_or(0),
        cpu_shares: limits.cpu_shares(),
        memory_limit_in_bytes: memory.unwrap_or(0),
        unified: pids.into_iter().collect(),
        // No swap beyond it.
        memory_swap_limit_in_bytes: memory.unwrap_or(0),
        ..LinuxContainerResources::default()
    }
}

/// Each name once: the later value wins and keeps the earlier one's place.
fn environment(given: &[(String, String)]) -> Vec<KeyValue> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut unique: Vec<KeyValue> = Vec::with_capacity(given.len());
    for (name, value) in given {
        match places.get(name.as_str()) {
            Some(&at) => unique[at].value.clone_from(value),
            None => {
                places.insert(name, unique.len());
                unique.push(KeyValue { key: name.clone(), value: value.clone() });
            }
        }
    }
    unique
}

fn mounts(config: &ContainerConfig, hosts: &Path) -> Vec<Mount> {
    const HOSTS: &str = "/etc/hosts";
    let bind = |source: &Path, target: &str| Mount {
        container_path: target.to_owned(),
        host_path: source.to_string_lossy().into_owned(),
        readonly: false,
        propagation: propagation(Propagation::Private),
        recursive_read_only: false,
    };
    let given = config.mounts.iter().map(|m| Mount {
        readonly: m.read_only,
        recursive_read_only: m.read_only && m.recursive_read_only,
        propagation: propagation(m.propagation),
        ..bind(&m.host_path, &m.container_path)
    });
    let own_hosts = config.mounts.iter().any(|mount| mount.container_path == HOSTS);
    let hosts = (!own_hosts).then(|| bind(hosts, HOSTS));
    let last_words = config.termination_message.iter().map(|(host, inside)| bind(host, inside));
    hosts.into_iter().chain(given).chain(last_words).collect()
}

fn propagation(propagation: Propagation) -> i32 {
    match propagation {
        Propagation::Private => 0,
        Propagation::HostToContainer => 1,
        Propagation::Bidirectional => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(
        change_pod: impl FnOnce(&mut SandboxRecord),
        change: impl FnOnce(&mut ContainerConfig),
    ) -> Container {
        let mut record = SandboxRecord::default();
        change_pod(&mut record);
        let sandbox = Sandbox {
            id: "s1".into(),
            uid: "u".into(),
            namespace: "ns".into(),
            name: "web".into(),
            attempt: 0,
            ready: true,
            created_ms: 0,
            record,
        };
        let mut config = ContainerConfig { log_path: "/logs/c".into(), ..ContainerConfig::default() };
        change(&mut config);
        container("/r", &sandbox, &image(""), &config, Path::new("/h"), 0)
    }

    fn image(user: &str) -> Image {
        let digests = Vec::new();
        Image { id: "sha256:1".into(), names: Vec::new(), size_bytes: 0, user: user.into(), digests }
    }

    #[test]
    fn the_user_that_was_asked_for_or_the_images_is_told_with_its_group() {
        let security = |user, group| Security { user, group, ..Security::default() };
        for (asked, of_image, (id, name, group)) in [
            ((None, None), "", (None, "", None)),
            ((None, None), ":5", (Some(0), "", Some(5))),
            ((None, None), "app", (None, "app", None)),
            ((None, None), "1000", (Some(1000), "", None)),
            ((None, None), "1000:5", (Some(1000), "", Some(5))),
            ((None, None), "app:5", (None, "app", Some(5))),
            ((None, None), "app:staff", (None, "app:staff", None)),
            ((None, None), "7:staff", (None, "7:staff", None)),
            ((Some(7), None), "app:5", (Some(7), "", None)),
            ((Some(7), Some(8)), "app", (Some(7), "", Some(8))),
            ((None, Some(8)), "", (Some(0), "", Some(8))),
            ((None, Some(8)), "1000:staff", (Some(1000), "", Some(8))),
            ((None, Some(8)), "app:5", (None, "app", Some(8))),
        ] {
            let told = user(&security(asked.0, asked.1), of_image);
            assert_eq!(told, User { id, name: name.into(), group }, "{asked:?} {of_image}");
        }
    }

    #[test]
    fn capabilities_are_told_without_their_prefix() {
        let container = made(
            |_| (),
            |config| {
                config.security.add_capabilities = vec!["CAP_NET_ADMIN".into(), "sys_time".into()];
                config.security.drop_capabilities = vec!["cap_net_raw".into(), "all".into()];
            },
        );
        let told = container.linux.unwrap().security_context.unwrap().capabilities.unwrap();
        assert_eq!(told.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
        assert_eq!(told.drop_capabilities, ["NET_RAW", "ALL"]);
    }

    fn security(made: &Container) -> &LinuxContainerSecurityContext {
        made.linux.as_ref().unwrap().security_context.as_ref().unwrap()
    }

    #[test]
    fn namespaces_are_the_pods_the_nodes_or_anothers() {
        let pids = |pod: fn(&mut SandboxRecord), change: fn(&mut ContainerConfig)| {
            let options = security(&made(pod, change)).namespace_options.clone().unwrap();
            (options.pid, options.target_id)
        };
        assert_eq!(pids(|_| (), |_| ()), (mode::CONTAINER, String::new()));
        assert_eq!(pids(|pod| pod.share_pids = true, |_| ()), (mode::POD, String::new()));
        assert_eq!(pids(|pod| pod.host_pid = true, |_| ()), (mode::NODE, String::new()));
        let join = |config: &mut ContainerConfig| {
            config.join_pids = Some(crate::runtime::ContainerId("c2".into()));
        };
        assert_eq!(pids(|pod| pod.share_pids = true, join), (mode::TARGET, "c2".to_owned()));
        let shared = made(|pod| (pod.host_network, pod.host_ipc) = (true, true), |_| ());
        let options = security(&shared).namespace_options.clone().unwrap();
        assert_eq!((options.network, options.ipc), (mode::NODE, mode::NODE));
    }

    #[test]
    fn a_container_is_confined_unless_it_asks_not_to_be() {
        let usual = made(|_| (), |_| ());
        let context = security(&usual);
        assert!(context.no_new_privs && !context.masked_paths.is_empty());
        assert_eq!(context.seccomp.as_ref().unwrap().profile_type, profile::RUNTIME_DEFAULT);
        let privileged = made(|_| (), |config| config.security.privileged = true);
        let context = security(&privileged);
        assert!(context.privileged && !context.no_new_privs && context.masked_paths.is_empty());
        let own = made(|_| (), |config| config.security.seccomp_profile = Some("/p.json".into()));
        let profile = security(&own).seccomp.clone().unwrap();
        assert_eq!((profile.profile_type, profile.localhost_ref.as_str()), (profile::LOCALHOST, "/p.json"));
    }

    #[test]
    fn logs_hosts_environment_and_limits_are_as_asked_for() {
        let made = made(
            |pod| pod.memory_bytes = 1024,
            |config| {
                config.working_dir = Some("app".into());
                config.mounts = vec![crate::runtime::Mount {
                    container_path: "/v".into(),
                    read_only: true,
                    recursive_read_only: true,
                    ..crate::runtime::Mount::default()
                }];
                config.env =
                    vec![("A".into(), "1".into()), ("B".into(), "x=y".into()), ("A".into(), "2".into())];
                config.resources.memory_limit_bytes = 4096;
                config.resources.cpu_limit_milli = 500;
            },
        );
        assert_eq!((made.log_path.as_str(), made.working_dir.as_str()), ("logs/c", "/app"));
        assert_eq!(
            (made.mounts[0].host_path.as_str(), made.mounts[0].container_path.as_str()),
            ("/h", "/etc/hosts")
        );
        let recursive = |at: usize| (made.mounts[at].readonly, made.mounts[at].recursive_read_only);
        assert_eq!((recursive(0), recursive(1)), ((false, false), (true, true)));
        let env: Vec<_> = made.envs.iter().map(|var| format!("{}={}", var.key, var.value)).collect();
        assert_eq!(env, ["A=2", "B=x=y"]);
        let limits = made.linux.unwrap().resources.unwrap();
        assert_eq!(
            (limits.memory_limit_in_bytes, limits.cpu_quota, limits.cpu_period),
            (1024, 50_000, 100_000)
        );
    }
}
