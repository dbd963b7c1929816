//! What the engine is asked for: a sandbox' and a container's settings in its API's words.
//!
//! Owns: the translation, pure. A pod is a sandbox container, which holds the pod's address, host name, IPC and sysctls,
//! and containers that join it. Limits of a pod as a whole are put on each of its containers: the engine knows no groups.

use std::{collections::HashMap, path::Path};

use bollard::models::{
    ContainerCreateBody, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Mount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, NetworkingConfig,
};

use super::{files::Files, labels};
use crate::runtime::{
    ContainerConfig, Propagation, SandboxConfig, Security, images::pack::PAUSE_IMAGE, limits::CPU_PERIOD_US,
};

/// The engine's own copy of a container's output, from which the log file is written: large enough that nothing is
/// lost over a restart of ours, and an end to a flood.
const LOG_OPTIONS: [(&str, &str); 2] = [("max-size", "32m"), ("max-file", "2")];

/// A sandbox on a network of the engine; `network` is `None` on the host's.
pub(super) fn sandbox(
    root: &str,
    config: &SandboxConfig,
    network: Option<&str>,
    files: &Files,
    created_ms: i64,
) -> ContainerCreateBody {
    let hosts = config.host_aliases.iter();
    let extra_hosts =
        hosts.flat_map(|(address, names)| names.iter().map(move |name| format!("{name}:{address}")));
    let host = |is: bool| is.then(|| "host".to_owned());
    ContainerCreateBody {
        image: Some(PAUSE_IMAGE.to_owned()),
        // On the host's network the host's name.
        hostname: Some(config.hostname.clone()).filter(|name| !name.is_empty() && network.is_some()),
        domainname: Some(config.domain.clone()).filter(|name| !name.is_empty() && network.is_some()),
        labels: Some(labels::of_sandbox(root, config, created_ms)),
        host_config: Some(HostConfig {
            network_mode: Some(network.unwrap_or("host").to_owned()),
            pid_mode: host(config.host_pid),
            ipc_mode: Some(if config.host_ipc { "host" } else { "shareable" }.to_owned()),
            extra_hosts: Some(extra_hosts.collect()),
            mounts: Some(files.iter().map(|(file, inside)| bind(file, inside, false)).collect()),
            sysctls: Some(config.sysctls.clone().into_iter().collect()),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            cap_drop: Some(vec!["ALL".to_owned()]),
            readonly_rootfs: Some(true),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ..HostConfig::default()
        }),
        networking_config: network.map(|network| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network.to_owned(), EndpointSettings::default())])),
        }),
        ..ContainerCreateBody::default()
    }
}

/// A container in the sandbox with this id; `seccomp` is its own system call filter as JSON.
pub(super) fn container(
    root: &str,
    sandbox: &labels::Sandbox,
    sandbox_id: &str,
    image_user: &str,
    config: &ContainerConfig,
    seccomp: Option<&str>,
) -> ContainerCreateBody {
    let (security, limits) = (&config.security, &config.resources);
    let join = format!("container:{sandbox_id}");
    let texts = |texts: &[String]| Some(texts.to_vec()).filter(|texts| !texts.is_empty());
    let memory =
        [limits.memory_limit_bytes, sandbox.memory_bytes].into_iter().filter(|bytes| *bytes > 0).min();
    ContainerCreateBody {
        image: Some(config.image.clone()),
        entrypoint: texts(&config.command),
        cmd: texts(&config.args),
        env: Some(environment(&config.env)),
        working_dir: config
            .working_dir
            .as_ref()
            .filter(|dir| !dir.is_empty())
            .map(|dir| Path::new("/").join(dir).to_string_lossy().into_owned()),
        user: user(security, image_user),
        tty: Some(config.tty),
        open_stdin: Some(config.stdin),
        stdin_once: Some(config.stdin_once),
        stop_signal: config.stop_signal.clone(),
        // As in Kubernetes, an image's own health check does not run: probes do.
        healthcheck: Some(HealthConfig { test: Some(vec!["NONE".to_owned()]), ..HealthConfig::default() }),
        labels: Some(labels::of_container(root, sandbox, config)),
        host_config: Some(HostConfig {
            // On the host's network, too: with its sandbox' it shares `/etc/hosts` and `/etc/resolv.conf`.
            network_mode: Some(join.clone()),
            ipc_mode: Some(if sandbox.host_ipc { "host".to_owned() } else { join.clone() }),
            pid_mode: match &config.join_pids {
                Some(other) => Some(format!("container:{other}")),
                None if sandbox.host_pid => Some("host".to_owned()),
                None => sandbox.share_pids.then(|| join.clone()),
            },
            masked_paths: security.unmasked_proc.then(Vec::new),
            readonly_paths: security.unmasked_proc.then(Vec::new),
            mounts: Some(mounts(config)),
            cpu_shares: Some(limits.cpu_shares()),
            // Below the engine's own it is a privilege, without which the container could not be started.
            oom_score_adj: Some(i64::from(config.oom_score_adj.max(0))),
            cpu_period: limits.cpu_quota_us().map(|_| CPU_PERIOD_US),
            cpu_quota: limits.cpu_quota_us(),
            memory,
            // No swap beyond it.
            memory_swap: memory,
            pids_limit: Some(sandbox.pids),
            privileged: Some(security.privileged),
            readonly_rootfs: Some(security.read_only_root),
            cap_add: texts(&security.add_capabilities),
            cap_drop: texts(&security.drop_capabilities),
            group_add: Some(security.supplemental_groups.iter().map(u32::to_string).collect()),
            security_opt: Some(security_options(security, seccomp)),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some(LOG_OPTIONS.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// Each name once: the later value wins and keeps the earlier one's place.
fn environment(given: &[(String, String)]) -> Vec<String> {
    let mut unique: Vec<(&str, &str)> = Vec::with_capacity(given.len());
    for (name, value) in given {
        match unique.iter_mut().find(|(known, _)| known == name) {
            Some(known) => known.1 = value,
            None => unique.push((name, value)),
        }
    }
    unique.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// `UID[:GID]`; nothing leaves it to the image. A group alone goes with the image's user.
fn user(security: &Security, image_user: &str) -> Option<String> {
    let of_image = match image_user.split(':').next() {
        Some("") | None => "0",
        Some(user) => user,
    };
    match (security.user, security.group) {
        (None, None) => None,
        (Some(user), None) => Some(user.to_string()),
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (None, Some(group)) => Some(format!("{of_image}:{group}")),
    }
}

fn security_options(security: &Security, seccomp: Option<&str>) -> Vec<String> {
    let mut options = Vec::new();
    if !security.privileged && !security.allow_privilege_escalation {
        options.push("no-new-privileges".to_owned());
    }
    if security.seccomp_unconfined {
        options.push("seccomp=unconfined".to_owned());
    } else if let Some(profile) = seccomp {
        options.push(format!("seccomp={profile}"));
    }
    options
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    }
}

fn mounts(config: &ContainerConfig) -> Vec<Mount> {
    let given = config.mounts.iter().map(|m| Mount {
        bind_options: Some(MountBindOptions {
            propagation: Some(match m.propagation {
                Propagation::Private => MountBindOptionsPropagationEnum::RPRIVATE,
                Propagation::HostToContainer => MountBindOptionsPropagationEnum::RSLAVE,
                Propagation::Bidirectional => MountBindOptionsPropagationEnum::RSHARED,
            }),
            // Of itself an engine from version 25 on makes them so all the way down where it can.
            read_only_non_recursive: (m.read_only && !m.recursive_read_only).then_some(true),
            read_only_force_recursive: (m.read_only && m.recursive_read_only).then_some(true),
            ..MountBindOptions::default()
        }),
        ..bind(&m.host_path, &m.container_path, m.read_only)
    });
    let last_words = config.termination_message.iter().map(|(host, inside)| bind(host, inside, false));
    given.chain(last_words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerResources;

    fn pod(change: impl FnOnce(&mut SandboxConfig)) -> labels::Sandbox {
        let mut config =
            SandboxConfig { uid: "u".into(), hostname: "web".into(), ..SandboxConfig::default() };
        change(&mut config);
        labels::Sandbox::read(&labels::of_sandbox("/r", &config, 1)).unwrap()
    }

    fn made(sandbox: &labels::Sandbox, change: impl FnOnce(&mut ContainerConfig)) -> ContainerCreateBody {
        let mut config = ContainerConfig::default();
        change(&mut config);
        container("/r", sandbox, "s1", "7:8", &config, None)
    }

    #[test]
    fn containers_join_their_sandbox_or_the_host() {
        let body = made(&pod(|_| ()), |_| ());
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("container:s1"));
        assert_eq!((host.ipc_mode.as_deref(), host.pid_mode), (Some("container:s1"), None));
        let shared =
            pod(|config| (config.host_network, config.host_pid, config.host_ipc) = (true, true, true));
        let host = made(&shared, |_| ()).host_config.unwrap();
        for mode in [host.ipc_mode, host.pid_mode] {
            assert_eq!(mode.as_deref(), Some("host"));
        }
        assert_eq!(host.network_mode.as_deref(), Some("container:s1"), "its files are the pod's");
    }

    #[test]
    fn processes_are_shared_with_the_pod_or_with_one_container() {
        let shared = pod(|config| config.share_pids = true);
        let mode = |change: fn(&mut ContainerConfig)| made(&shared, change).host_config.unwrap().pid_mode;
        assert_eq!(mode(|_| ()).as_deref(), Some("container:s1"));
        let other = mode(|config| config.join_pids = Some(crate::runtime::ContainerId("c2".into())));
        assert_eq!(other.as_deref(), Some("container:c2"));
    }

    #[test]
    fn name_resolution_and_propagation_are_the_pods() {
        let config = SandboxConfig { domain: "sub.ns".into(), ..SandboxConfig::default() };
        let files = vec![("/r/pods/u/resolv.conf".into(), "/etc/resolv.conf")];
        let body = sandbox("/r", &config, Some("net"), &files, 1);
        assert_eq!(body.domainname.as_deref(), Some("sub.ns"));
        let [file] = &body.host_config.unwrap().mounts.unwrap()[..] else { panic!("one file") };
        assert_eq!(file.source.as_deref(), Some("/r/pods/u/resolv.conf"));
        assert_eq!(file.target.as_deref(), Some("/etc/resolv.conf"));
        let mount = crate::runtime::Mount {
            host_path: "/h".into(),
            container_path: "/c".into(),
            propagation: Propagation::HostToContainer,
            ..crate::runtime::Mount::default()
        };
        let options = |change: fn(&mut crate::runtime::Mount)| {
            let mut mount = mount.clone();
            change(&mut mount);
            let host = made(&pod(|_| ()), |config| config.mounts = vec![mount]).host_config.unwrap();
            host.mounts.unwrap().remove(0).bind_options.unwrap()
        };
        assert_eq!(options(|_| ()).propagation, Some(MountBindOptionsPropagationEnum::RSLAVE));
        let how =
            |options: MountBindOptions| (options.read_only_non_recursive, options.read_only_force_recursive);
        assert_eq!(how(options(|_| ())), (None, None));
        assert_eq!(how(options(|mount| mount.read_only = true)), (Some(true), None));
        let recursive = options(|mount| (mount.read_only, mount.recursive_read_only) = (true, true));
        assert_eq!(how(recursive), (None, Some(true)));
    }

    #[test]
    fn a_sandbox_has_name_hosts_and_sysctls() {
        let config = SandboxConfig {
            hostname: "web".into(),
            host_aliases: vec![("10.0.0.1".into(), vec!["a".into(), "b".into()])],
            sysctls: [("net.core.somaxconn".to_owned(), "7".to_owned())].into(),
            ..SandboxConfig::default()
        };
        let body = sandbox("/r", &config, Some("net"), &Files::new(), 1);
        assert_eq!(body.hostname.as_deref(), Some("web"));
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("net"));
        assert_eq!(host.extra_hosts.unwrap(), ["a:10.0.0.1", "b:10.0.0.1"]);
        assert_eq!(host.sysctls.unwrap()["net.core.somaxconn"], "7");
        assert_eq!(sandbox("/r", &config, None, &Files::new(), 1).hostname, None, "the host's own");
    }

    #[test]
    fn what_is_not_said_is_left_to_the_image() {
        let body = made(&pod(|_| ()), |_| ());
        assert_eq!((body.entrypoint, body.cmd, body.user, body.working_dir), (None, None, None, None));
        let body = made(&pod(|_| ()), |config| {
            config.command = vec!["c".into()];
            config.working_dir = Some("app".into());
            config.security.group = Some(9);
            config.env = vec![("A".into(), "1".into()), ("B".into(), "x=y".into()), ("A".into(), "2".into())];
        });
        assert_eq!((body.entrypoint, body.cmd), (Some(vec!["c".into()]), None));
        assert_eq!((body.user.as_deref(), body.working_dir.as_deref()), (Some("7:9"), Some("/app")));
        assert_eq!(body.env.unwrap(), ["A=2", "B=x=y"]);
    }

    #[test]
    fn limits_of_container_and_pod_are_both_kept() {
        let limits = |container, of_pod| {
            let sandbox = pod(|config| (config.memory_limit_bytes, config.pids_limit) = (of_pod, 50));
            let resources = ContainerResources {
                memory_limit_bytes: container,
                cpu_limit_milli: 500,
                ..ContainerResources::default()
            };
            made(&sandbox, |config| config.resources = resources).host_config.unwrap()
        };
        let host = limits(4096, 0);
        assert_eq!((host.memory, host.memory_swap, host.pids_limit), (Some(4096), Some(4096), Some(50)));
        assert_eq!(
            (host.cpu_quota, host.cpu_period, host.cpu_shares),
            (Some(50_000), Some(100_000), Some(2))
        );
        assert_eq!(
            (limits(4096, 1024).memory, limits(0, 1024).memory, limits(0, 0).memory),
            (Some(1024), Some(1024), None)
        );
    }

    #[test]
    fn privileges_are_not_gained_unless_allowed() {
        let options = |change: fn(&mut Security)| {
            made(&pod(|_| ()), |config| change(&mut config.security))
                .host_config
                .unwrap()
                .security_opt
                .unwrap()
        };
        assert_eq!(options(|_| ()), ["no-new-privileges"]);
        assert!(options(|security| security.allow_privilege_escalation = true).is_empty());
        assert!(options(|security| security.privileged = true).is_empty());
        assert_eq!(options(|security| security.seccomp_unconfined = true)[1], "seccomp=unconfined");
    }
}
