//! Starting one container: directories, image, create, start. What can go wrong is told in the pod machine's terms.

use std::{fs, io, path::Path, sync::Arc};

use k8s_openapi::api::core::v1;

use super::{
    context::{NodeContext, now_ms},
    images::{Teller, ensure_image},
    machine, users,
};
use crate::{
    actors::outside,
    logic::pod::{
        StartFailure,
        config::{Places, Plan, Sizes, plan, sizes},
        dns, huge_pages,
        init::container_named,
        volumes::{MountPlan, Propagation},
    },
    model::{Uid, requests_of},
    runtime::{
        self, ContainerConfig, ContainerId, ContainerResources, Dns, HugePageLimit, IdRange, Mount,
        RuntimeError, SandboxConfig, SandboxStatus, Security,
        logs::{self, LogLimits},
        native::beneath,
    },
};

/// A container that runs.
pub struct Started {
    /// The runtime's id.
    pub id: String,
    /// The image's digest.
    pub image_id: String,
    /// Milliseconds since the epoch.
    pub started_ms: i64,
    /// A sentence for each source of variables of which something was left out.
    pub skipped_env: Vec<String>,
}

/// Makes the sandbox that a pod asks for.
///
/// # Errors
/// A sentence: what the spec asks for that cannot be, or the runtime's.
pub async fn run_sandbox(node: Arc<NodeContext>, pod: Arc<v1::Pod>) -> Result<SandboxStatus, String> {
    let _turn = node.starts.sandbox().await;
    // Of a pod that says nothing about it the runtime takes the node's own file.
    let resolv = outside::blocking(|| fs::read_to_string("/etc/resolv.conf")).await;
    let resolv = resolv.ok().and_then(Result::ok).unwrap_or_default();
    let mut config = sandbox_config(&pod, &resolv)?;
    if pod.spec.as_ref().is_some_and(|spec| spec.host_users == Some(false)) {
        config.user_namespace = Some(own_users(&node, &config).await?);
    }
    node.runtime.run_pod_sandbox(config).await.map_err(|error| error.to_string())
}

/// The users of a pod that does not share the node's, in Kubernetes' words if there can be none.
async fn own_users(node: &Arc<NodeContext>, config: &SandboxConfig) -> Result<IdRange, String> {
    if !node.runtime.user_namespaces() {
        return Err("can't set `spec.hostUsers: false`, runtime does not support user namespaces".to_owned());
    }
    let (dir, uid) = (node.dir.clone(), config.uid.clone());
    let places = node.places(&config.namespace, &config.name, &config.uid);
    let chosen = outside::blocking(move || users::range_of(&dir, &places, &uid)).await;
    chosen.unwrap_or_else(|error| Err(format!("choose a range of users: {error}")))
}

/// The sandbox that a pod asks for.
fn sandbox_config(pod: &v1::Pod, resolv: &str) -> Result<SandboxConfig, String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let flag = |f: fn(&v1::PodSpec) -> Option<bool>| spec.and_then(f).unwrap_or(false);
    let dns::Names { hostname, domain } = dns::names(pod)?;
    let context = spec.and_then(|s| s.security_context.as_ref());
    Ok(SandboxConfig {
        hostname,
        domain,
        dns: dns::resolver(pod, resolv).map(|dns::Resolver { servers, searches, options }| Dns {
            servers,
            searches,
            options,
        }),
        share_pids: flag(|s| s.share_process_namespace),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
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
        cpu_request_milli: spec.map_or(0, |spec| requests_of(spec).cpu_milli),
        ..SandboxConfig::default()
    })
}

/// Makes and starts life number `attempt` of a container; `target` is whose processes it is to see.
pub async fn start_container(
    node: Arc<NodeContext>,
    pod: Arc<v1::Pod>,
    name: String,
    attempt: u32,
    pod_ip: Option<std::net::IpAddr>,
    teller: Teller,
    target: Result<Option<ContainerId>, String>,
) -> Result<Started, StartFailure> {
    let meta = &pod.metadata;
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    let places = node.places(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid));
    let container = container_named(&pod, &name)
        .ok_or_else(|| StartFailure::Config(format!("the pod has no container {name} any more")))?;
    let container = &*container;
    let uid = Uid::from(text(&meta.uid));
    let image = container.image.clone().unwrap_or_default();
    let found = ensure_image(&node, &pod, container, &teller).await?;
    let _turn = node.starts.container().await;
    let plan = plan(&pod, container, &places, &node.around(pod_ip)).map_err(StartFailure::Config)?;
    prepare(&places, container, attempt).map_err(StartFailure::Config)?;
    if node.runtime.has_files() {
        prepare_sub_paths(container, &plan.mounts).map_err(StartFailure::Config)?;
    }
    let skipped_env = plan.skipped_env.clone();
    let mut config = container_config(&pod, container, attempt, &places, plan);
    config.log_limits = node.settings.container_log;
    config.image_ref = found.reference(&image);
    let image_id = config.image_ref.clone();
    config.join_pids = target.map_err(StartFailure::Create)?;
    config.security.seccomp_profile = seccomp(&pod, container)
        .and_then(|profile| profile.localhost_profile.as_deref())
        .map(|file| node.seccomp_profiles().join(file));
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
    let all = node.runtime.pod_containers(&uid).await.unwrap_or_default();
    let started_ms = all.iter().find(|c| c.id == id).map(|c| c.started_ms).filter(|ms| *ms > 0);
    let started_ms = started_ms.unwrap_or_else(now_ms);
    Ok(Started { id: id.0, image_id, started_ms, skipped_env })
}

fn failure(error: RuntimeError, image: &str) -> StartFailure {
    match error {
        RuntimeError::ImageNotFound(_) => {
            StartFailure::Image { never: false, message: format!("image {image:?} was removed meanwhile") }
        }
        RuntimeError::Config(message) => StartFailure::Config(message),
        RuntimeError::SandboxNotReady(_) => StartFailure::Sandbox(error.to_string()),
        other => StartFailure::Create(other.to_string()),
    }
}

/// Makes the directories and files that the log and the last words need.
fn prepare(places: &Places, container: &v1::Container, attempt: u32) -> Result<(), String> {
    let made = |path: &Path, result: io::Result<()>| {
        result.map_err(|e| format!("cannot make {}: {e}", path.display()))
    };
    for path in [places.log(&container.name, attempt), places.termination_message(&container.name, attempt)] {
        if let Some(dir) = path.parent() {
            made(dir, fs::create_dir_all(dir))?;
        }
    }
    if let Some(forgotten) = attempt.checked_sub(2) {
        // The last life's log is for `logs --previous`; nobody can ask for those before.
        let log = places.log(&container.name, forgotten);
        made(&log, logs::remove(&log))?;
        let _ = fs::remove_file(places.termination_message(&container.name, forgotten));
    }
    let message = places.termination_message(&container.name, attempt);
    made(&message, fs::File::create(&message).map(|_| ()))?;
    // The program may run as any user.
    made(&message, permit(&message, 0o666))?;
    Ok(())
}

fn permit(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A `subPath` that is missing is made as a directory, and none leads out of its volume.
fn prepare_sub_paths(container: &v1::Container, mounts: &[MountPlan]) -> Result<(), String> {
    for (mount, asked) in mounts.iter().zip(container.volume_mounts.iter().flatten()) {
        let Some(root) = &mount.within else { continue };
        beneath::make_dirs(root, &mount.host_path).map_err(|cause| {
            let (volume, container) = (&asked.name, &container.name);
            format!(
                "failed to prepare subPath for volumeMount \"{volume}\" of container \"{container}\": {cause}"
            )
        })?;
    }
    Ok(())
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
        // Known to whoever has found the image.
        image_ref: String::new(),
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
                recursive_read_only: m.recursive_read_only,
                within: m.within,
                propagation: match m.propagation {
                    Propagation::Private => runtime::Propagation::Private,
                    Propagation::FromNode => runtime::Propagation::HostToContainer,
                    Propagation::Both => runtime::Propagation::Bidirectional,
                },
            })
            .collect(),
        log_path: places.log(&container.name, attempt),
        resources: limits(plan.sizes),
        huge_pages: machine::huge_pages(Path::new(machine::HUGE_PAGES))
            .into_iter()
            .map(|(page_bytes, _)| HugePageLimit {
                page_bytes,
                limit_bytes: huge_pages::limit(container, page_bytes),
            })
            .collect(),
        oom_score_adj: plan.oom_score_adj,
        // What is usual on this node only the node knows.
        log_limits: LogLimits::default(),
        security: security(pod, container),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        // Which container is the target only the pod's actor knows.
        join_pids: None,
        termination_message: Some((places.termination_message(&container.name, attempt), message_path)),
    }
}

/// What a container of these requests and limits may use, in the runtime's words.
pub fn resources_of(resources: Option<&v1::ResourceRequirements>) -> ContainerResources {
    limits(sizes(resources))
}

fn limits(sizes: Sizes) -> ContainerResources {
    ContainerResources {
        cpu_request_milli: sizes.cpu_request_milli,
        cpu_limit_milli: sizes.cpu_limit_milli,
        memory_limit_bytes: sizes.memory_limit_bytes,
    }
}

/// The container's security settings, the pod's where the container says nothing.
fn security(pod: &v1::Pod, container: &v1::Container) -> Security {
    let own = container.security_context.as_ref();
    let pods = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let id = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok());
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
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
        // Kubernetes' default, which images with sudo or ping rely on: the capabilities and the system call filter stay.
        allow_privilege_escalation: own.and_then(|c| c.allow_privilege_escalation).unwrap_or(true),
        seccomp_unconfined: seccomp(pod, container).is_some_and(|p| p.type_ == "Unconfined"),
        strict_groups: pods.and_then(|c| c.supplemental_groups_policy.as_deref()) == Some("Strict"),
        // Where profiles lie only the node knows.
        seccomp_profile: None,
        unmasked_proc: own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked"),
    }
}

/// The container's profile, else the pod's.
fn seccomp<'a>(pod: &'a v1::Pod, container: &'a v1::Container) -> Option<&'a v1::SeccompProfile> {
    let pods = || pod.spec.as_ref()?.security_context.as_ref()?.seccomp_profile.as_ref();
    container.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref()).or_else(pods)
}
