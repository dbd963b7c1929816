//! Starting one container: directories, image, create, start. What can go wrong is told in the pod machine's terms.

use std::{fs, io, path::Path, sync::Arc};

use k8s_openapi::api::core::v1;

use super::{
    context::{NodeContext, now_ms},
    images::{Teller, ensure_image},
};
use crate::{
    logic::pod::{
        StartFailure,
        config::{MountPlan, Places, Plan, plan},
    },
    model::Uid,
    runtime::{ContainerConfig, ContainerResources, Mount, RuntimeError, SandboxConfig, Security},
};

/// A container that runs.
pub struct Started {
    /// The runtime's id.
    pub id: String,
    /// The image's digest.
    pub image_id: String,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
}

/// The sandbox that a pod asks for.
pub fn sandbox_config(pod: &v1::Pod) -> SandboxConfig {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let flag = |f: fn(&v1::PodSpec) -> Option<bool>| spec.and_then(f).unwrap_or(false);
    let name = meta.name.clone().unwrap_or_default();
    let context = spec.and_then(|s| s.security_context.as_ref());
    SandboxConfig {
        hostname: hostname(&spec.and_then(|s| s.hostname.clone()).unwrap_or_else(|| name.clone())),
        namespace: meta.namespace.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        host_network: flag(|s| s.host_network),
        host_pid: flag(|s| s.host_pid),
        host_ipc: flag(|s| s.host_ipc),
        host_aliases: spec
            .and_then(|s| s.host_aliases.as_ref())
            .into_iter()
            .flatten()
            .map(|a| (a.ip.clone(), a.hostnames.clone().unwrap_or_default()))
            .collect(),
        sysctls: context
            .and_then(|c| c.sysctls.as_ref())
            .into_iter()
            .flatten()
            .map(|s| (s.name.clone(), s.value.clone()))
            .collect(),
        name,
        ..SandboxConfig::default()
    }
}

/// A host name is at most 63 characters; Kubernetes cuts a pod's name and drops what must not end it.
fn hostname(name: &str) -> String {
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// Makes and starts life number `attempt` of a container.
pub async fn start_container(
    node: Arc<NodeContext>,
    pod: Arc<v1::Pod>,
    index: usize,
    attempt: u32,
    pod_ip: Option<std::net::IpAddr>,
    teller: Teller,
) -> Result<Started, StartFailure> {
    let meta = &pod.metadata;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let places = node.places(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid));
    let container = pod
        .spec
        .as_ref()
        .and_then(|s| s.containers.get(index))
        .ok_or_else(|| StartFailure::Config(format!("the pod has no container number {index}")))?;
    let uid = Uid::from(text(&meta.uid));
    let image = container.image.clone().unwrap_or_default();
    let found = ensure_image(&node, &pod, container, &teller).await?;
    let _turn = node.starts.container().await;
    let plan = plan(&pod, container, &places, &node.around(pod_ip)).map_err(StartFailure::Config)?;
    prepare(&places, container, attempt, &plan).map_err(StartFailure::Config)?;
    let config = container_config(&pod, container, attempt, &places, plan);
    let id = node.runtime.create_container(&uid, config).await.map_err(|e| failure(e, &image))?;
    match node.runtime.start_container(&id).await {
        Ok(()) => {}
        Err(RuntimeError::Start(message)) => return Err(StartFailure::Run { id: id.0, message }),
        Err(other) => {
            // Nothing will refer to this life any more; what is left of it goes with the sandbox at the latest.
            if let Err(error) = node.runtime.remove_container(&id).await {
                tracing::warn!(%error, container = %id, "a container that did not start could not be removed");
            }
            return Err(failure(other, &image));
        }
    }
    // The runtime's word on when: a later kubelet that takes the container over is told the same.
    let all = node.runtime.list_containers().await.unwrap_or_default();
    let started_ms = all.iter().find(|c| c.id == id).map(|c| c.started_ms).filter(|ms| *ms > 0);
    Ok(Started { id: id.0, image_id: found.id, started_ms: started_ms.unwrap_or_else(now_ms) })
}

fn failure(error: RuntimeError, image: &str) -> StartFailure {
    match error {
        RuntimeError::ImageNotFound(_) => {
            StartFailure::Image { never: false, message: format!("image {image:?} was removed meanwhile") }
        }
        RuntimeError::Config(message) => StartFailure::Config(message),
        other => StartFailure::Create(other.to_string()),
    }
}

/// Makes the directories and files that the mounts and the log need.
fn prepare(places: &Places, container: &v1::Container, attempt: u32, plan: &Plan) -> Result<(), String> {
    let made = |path: &Path, result: io::Result<()>| {
        result.map_err(|e| format!("cannot make {}: {e}", path.display()))
    };
    for path in [places.log(&container.name, attempt), places.termination_message(&container.name, attempt)] {
        if let Some(dir) = path.parent() {
            made(dir, fs::create_dir_all(dir))?;
        }
    }
    let message = places.termination_message(&container.name, attempt);
    made(&message, fs::File::create(&message).map(|_| ()))?;
    // The program may run as any user.
    made(&message, permit(&message, 0o666))?;
    for mount in &plan.mounts {
        prepare_mount(mount)?;
    }
    Ok(())
}

fn permit(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// `hostPath.type`'s rules; an `emptyDir` comes as `DirectoryOrCreate` below the pod's own directory.
fn prepare_mount(mount: &MountPlan) -> Result<(), String> {
    use std::os::unix::fs::FileTypeExt as _;
    let path = &mount.host_path;
    let refuse = |what: &str| Err(format!("hostPath type check failed: {} is not a {what}", path.display()));
    let cannot = |e: io::Error| format!("cannot make {}: {e}", path.display());
    let kind = fs::metadata(path).ok();
    match mount.host_type.as_str() {
        "DirectoryOrCreate" if kind.is_none() => {
            fs::create_dir_all(path).map_err(cannot)?;
            permit(path, 0o777).map_err(cannot)
        }
        "FileOrCreate" if kind.is_none() => fs::File::create(path).map(|_| ()).map_err(cannot),
        "Directory" | "DirectoryOrCreate" if !kind.as_ref().is_some_and(fs::Metadata::is_dir) => {
            refuse("directory")
        }
        "File" | "FileOrCreate" if !kind.as_ref().is_some_and(fs::Metadata::is_file) => refuse("file"),
        "Socket" if !kind.as_ref().is_some_and(|k| k.file_type().is_socket()) => refuse("socket file"),
        "CharDevice" if !kind.as_ref().is_some_and(|k| k.file_type().is_char_device()) => {
            refuse("character device")
        }
        "BlockDevice" if !kind.as_ref().is_some_and(|k| k.file_type().is_block_device()) => {
            refuse("block device")
        }
        "" if kind.is_none() => fs::create_dir_all(path).map_err(cannot),
        _ => Ok(()),
    }
}

fn container_config(
    pod: &v1::Pod,
    container: &v1::Container,
    attempt: u32,
    places: &Places,
    plan: Plan,
) -> ContainerConfig {
    let message_path =
        container.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into());
    ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        command: plan.command,
        args: plan.args,
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        env: plan.env,
        mounts: plan
            .mounts
            .into_iter()
            .map(|m| Mount {
                host_path: m.host_path,
                container_path: m.container_path,
                read_only: m.read_only,
            })
            .collect(),
        log_path: places.log(&container.name, attempt),
        resources: ContainerResources {
            cpu_request_milli: plan.cpu_request_milli,
            cpu_limit_milli: plan.cpu_limit_milli,
            memory_limit_bytes: plan.memory_limit_bytes,
        },
        security: security(pod, container),
        stdin: container.stdin.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        termination_message: Some((places.termination_message(&container.name, attempt), message_path)),
    }
}

/// The container's security settings, the pod's where the container says nothing.
fn security(pod: &v1::Pod, container: &v1::Container) -> Security {
    let own = container.security_context.as_ref();
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let id = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let seccomp = own
        .and_then(|c| c.seccomp_profile.as_ref())
        .or_else(|| pods.and_then(|c| c.seccomp_profile.as_ref()));
    let groups = pods.and_then(|c| c.supplemental_groups.as_ref()).into_iter().flatten();
    let fs_group = pods.and_then(|c| c.fs_group);
    Security {
        user: id(own.and_then(|c| c.run_as_user).or_else(|| pods.and_then(|c| c.run_as_user))),
        group: id(own.and_then(|c| c.run_as_group).or_else(|| pods.and_then(|c| c.run_as_group))),
        supplemental_groups: groups.copied().chain(fs_group).filter_map(|g| id(Some(g))).collect(),
        run_as_non_root: own
            .and_then(|c| c.run_as_non_root)
            .or_else(|| pods.and_then(|c| c.run_as_non_root))
            .unwrap_or(false),
        add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        privileged: own.and_then(|c| c.privileged).unwrap_or(false),
        read_only_root: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        allow_privilege_escalation: own.and_then(|c| c.allow_privilege_escalation).unwrap_or(false),
        seccomp_unconfined: seccomp.is_some_and(|p| p.type_ == "Unconfined"),
    }
}
