//! A pod's volumes: what has to be on the node before its containers can mount them, and where they mount it.
//!
//! Owns: which source a volume has, the files of config maps, secrets, the downward API and projections with their
//! modes, and the translation of `volumeMounts`. Pure. Invariants: a path in a volume never leads out of it; contents of
//! files are never printed; what this node cannot mount is an error, never an empty directory.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource::Quantity};

use super::{
    config::{Around, Places, expand_noting},
    downward,
    env::content,
    huge_pages, read_only,
    sources::{Known, service_account},
};
use crate::{
    logic::tokens::{USUAL_LIFE_S, Want},
    model::{Kind, quantity},
};

/// One volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name in the pod.
    pub name: String,
    /// What is in it.
    pub source: Source,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An empty directory on the node's disk.
    Directory,
    /// An empty file system in memory.
    Memory {
        /// Bytes at most; the kernel's default without.
        size: Option<u64>,
    },
    /// An empty file system of huge pages.
    HugePages {
        /// Bytes of each.
        page_bytes: i64,
    },
    /// A file or directory of the node.
    Host {
        /// Where.
        path: PathBuf,
        /// `hostPath.type`: what it must be, and whether to make it.
        kind: String,
    },
    /// Files that follow their sources.
    Files {
        /// Never on the node's disk.
        memory: bool,
        /// By path in the volume.
        files: Files,
    },
}

/// Files by their paths in a volume.
pub type Files = BTreeMap<String, File>;

/// A file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
    /// Whose it is; absent: the node's.
    pub owner: Option<u32>,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:o}", self.bytes.len(), self.mode)
    }
}

/// The mode of files when nothing else is said.
const FILE_MODE: i32 = 0o644;

/// Who owns a pod's volumes besides root: `fsGroup`.
pub fn fs_group(pod: &v1::Pod) -> Option<u32> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|c| c.fs_group).and_then(|group| u32::try_from(group).ok())
}

/// The user that all of a pod's containers are said to run as, if it is one.
fn common_user(pod: &v1::Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = spec.init_containers.iter().flatten().chain(&spec.containers).map(|container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod)
    });
    let first = users.next()??;
    u32::try_from(first).ok().filter(|_| users.all(|user| user == Some(first)))
}

/// The volumes that some container of the pod mounts, as they are to be now; for each that cannot be had, Kubernetes'
/// message for the event `FailedMount`.
pub fn volumes(pod: &v1::Pod, around: &Around) -> Vec<Result<Volume, String>> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let ephemeral = spec.ephemeral_containers.iter().flatten().flat_map(|c| c.volume_mounts.iter().flatten());
    let mounts = all.flat_map(|c| c.volume_mounts.iter().flatten()).chain(ephemeral);
    let mounted: Vec<&str> = mounts.map(|mount| mount.name.as_str()).collect();
    let wanted = spec.volumes.iter().flatten().filter(|volume| mounted.contains(&volume.name.as_str()));
    wanted
        .map(|volume| match source(pod, volume, around) {
            Ok(source) => Ok(Volume { name: volume.name.clone(), source }),
            Err(cause) => Err(failed(&volume.name, &cause)),
        })
        .collect()
}

/// Kubernetes' words for a volume that cannot be set up.
pub fn failed(volume: &str, cause: &str) -> String {
    format!("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")
}

fn source(pod: &v1::Pod, volume: &v1::Volume, around: &Around) -> Result<Source, String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut files = Files::new();
    let memory = if let Some(empty) = &volume.empty_dir {
        return empty_dir(pod, empty, around);
    } else if let Some(host) = &volume.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        return Ok(Source::Host { path: PathBuf::from(&host.path), kind });
    } else if let Some(map) = &volume.config_map {
        let keys = Keys { kind: Kind::ConfigMap, name: &map.name, items: map.items.as_deref() };
        keys.add(&mut files, around, namespace, map.optional, map.default_mode)?;
        false
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        let keys = Keys { kind: Kind::Secret, name, items: secret.items.as_deref() };
        keys.add(&mut files, around, namespace, secret.optional, secret.default_mode)?;
        true
    } else if let Some(api) = &volume.downward_api {
        downward_files(&mut files, pod, api.items.as_deref(), api.default_mode, around)?;
        true
    } else if let Some(projected) = &volume.projected {
        for one in projected.sources.iter().flatten() {
            projection(&mut files, pod, one, projected.default_mode, around)?;
        }
        true
    } else {
        return Err("volumes of this type are not supported by troupe".into());
    };
    Ok(Source::Files { memory, files })
}

fn empty_dir(pod: &v1::Pod, empty: &v1::EmptyDirVolumeSource, around: &Around) -> Result<Source, String> {
    // As in Kubernetes: no larger than what the pod may use, else what all pods of the node may.
    let all = u64::try_from(around.allocatable.memory_bytes).ok();
    let pods = pod.spec.as_ref().and_then(memory_limit);
    let size = [bytes(empty.size_limit.as_ref()), pods, all].into_iter().flatten().filter(|bytes| *bytes > 0);
    let size = size.min();
    match empty.medium.as_deref().unwrap_or_default() {
        "" => Ok(Source::Directory),
        "Memory" => Ok(Source::Memory { size }),
        medium => huge_pages::of_medium(pod, medium).map(|page_bytes| Source::HugePages { page_bytes }),
    }
}

fn bytes(quantity: Option<&Quantity>) -> Option<u64> {
    let bytes = quantity.and_then(|quantity| quantity::parse_units(&quantity.0).ok());
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)
}

/// The memory that all containers of a pod may use together; `None` when one of them has no limit.
fn memory_limit(spec: &v1::PodSpec) -> Option<u64> {
    let of = |c: &v1::Container| bytes(c.resources.as_ref()?.limits.as_ref()?.get("memory"));
    let main =
        spec.containers.iter().map(of).try_fold(0_u64, |sum, limit| Some(sum.saturating_add(limit?)))?;
    let (mut sidecars, mut peak) = (0_u64, 0);
    for init in spec.init_containers.iter().flatten() {
        let limit = of(init)?;
        peak = peak.max(sidecars.saturating_add(limit));
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(limit);
        }
    }
    Some(main.saturating_add(sidecars).max(peak))
}

fn projection(
    files: &mut Files,
    pod: &v1::Pod,
    one: &v1::VolumeProjection,
    mode: Option<i32>,
    around: &Around,
) -> Result<(), String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(map) = &one.config_map {
        let keys = Keys { kind: Kind::ConfigMap, name: &map.name, items: map.items.as_deref() };
        keys.add(files, around, namespace, map.optional, mode)
    } else if let Some(secret) = &one.secret {
        let keys = Keys { kind: Kind::Secret, name: &secret.name, items: secret.items.as_deref() };
        keys.add(files, around, namespace, secret.optional, mode)
    } else if let Some(api) = &one.downward_api {
        downward_files(files, pod, api.items.as_deref(), mode, around)
    } else if let Some(token) = &one.service_account_token {
        let want = Want {
            audience: token.audience.clone().unwrap_or_default(),
            life_s: token.expiration_seconds.unwrap_or(USUAL_LIFE_S),
        };
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let found = around.sources.token(uid, &want).ok_or_else(|| no_token(pod, around))?;
        // Nobody else's, as in Kubernetes, where it is known whose it is; a volume's group reads it in any case.
        let owner = common_user(pod);
        let mode = if owner.or(fs_group(pod)).is_some() { 0o600 } else { permissions(mode) };
        let file = File { bytes: found.as_bytes().to_vec(), mode, owner };
        files.insert(path_in_volume(&token.path)?, file);
        Ok(())
    } else {
        Err("projected sources of this type are not supported by troupe".into())
    }
}

/// Why there is no token for a pod.
fn no_token(pod: &v1::Pod, around: &Around) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let account = pod.spec.as_ref().map_or("default", service_account);
    match around.sources.find(Kind::ServiceAccount, namespace, account) {
        Known::Absent => format!("failed to fetch token: serviceaccounts {account:?} not found"),
        _ => "failed to fetch token: the master has not sent it yet".to_owned(),
    }
}

/// Which keys of which object become files.
struct Keys<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [v1::KeyToPath]>,
}

impl Keys<'_> {
    fn add(
        &self,
        files: &mut Files,
        around: &Around,
        namespace: &str,
        optional: Option<bool>,
        default_mode: Option<i32>,
    ) -> Result<(), String> {
        let optional = optional == Some(true);
        let Some(content) = content(around, self.kind, namespace, self.name, optional)? else {
            return Ok(());
        };
        let file = |bytes: &[u8], mode: Option<i32>| File {
            bytes: bytes.to_vec(),
            mode: permissions(mode.or(default_mode)),
            owner: None,
        };
        let Some(items) = self.items.filter(|items| !items.is_empty()) else {
            let all = content.data.iter().chain(&content.binary);
            files.extend(all.map(|(key, bytes)| (key.clone(), file(bytes, None))));
            return Ok(());
        };
        for item in items {
            match content.data.get(&item.key).or_else(|| content.binary.get(&item.key)) {
                Some(bytes) => {
                    files.insert(path_in_volume(&item.path)?, file(bytes, item.mode));
                }
                None if optional => {}
                None if self.kind == Kind::Secret => {
                    return Err(format!("references non-existent secret key: {}", item.key));
                }
                None => return Err(format!("configmap references non-existent config key: {}", item.key)),
            }
        }
        Ok(())
    }
}

fn downward_files(
    files: &mut Files,
    pod: &v1::Pod,
    items: Option<&[v1::DownwardAPIVolumeFile]>,
    default_mode: Option<i32>,
    around: &Around,
) -> Result<(), String> {
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::field(pod, &field.field_path, around)?,
            (None, Some(resource)) => downward::resource(pod, None, resource, around)?,
            (None, None) => String::new(),
        };
        let mode = permissions(item.mode.or(default_mode));
        let file = File { bytes: text.into_bytes(), mode, owner: None };
        files.insert(path_in_volume(&item.path)?, file);
    }
    Ok(())
}

fn permissions(mode: Option<i32>) -> u32 {
    u32::try_from(mode.unwrap_or(FILE_MODE)).unwrap_or(0o644) & 0o777
}

/// A path of plain names: validation refused others, but what comes over a link is not trusted to be valid.
fn path_in_volume(path: &str) -> Result<String, String> {
    let parts: Vec<Component<'_>> = Path::new(path).components().collect();
    let plain = parts.iter().all(|part| matches!(part, Component::Normal(_)));
    if parts.is_empty() || !plain || path.starts_with("..") {
        return Err(format!("path {path:?} must be below the volume"));
    }
    Ok(PathBuf::from_iter(parts).to_string_lossy().into_owned())
}

/// A bind mount to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// On the node.
    pub host_path: PathBuf,
    /// With a `subPath`, the volume that `host_path` must not leave, whatever symlinks there are in it.
    pub within: Option<PathBuf>,
    /// In the container.
    pub container_path: String,
    /// Cannot be written through it.
    pub read_only: bool,
    /// Nor can what is mounted below it.
    pub recursive_read_only: bool,
    /// Which later mounts are seen on the other side.
    pub propagation: Propagation,
}

/// `mountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// What the node mounts below the volume appears in the container.
    FromNode,
    /// And what the container mounts appears on the node.
    Both,
}

/// A container's mounts, given its environment, and whether the runtime makes mounts read-only all the way down.
///
/// # Errors
/// A sentence for the container's waiting state.
pub fn mounts(
    pod: &v1::Pod,
    container: &v1::Container,
    places: &Places,
    env: &BTreeMap<&str, &str>,
    can_recurse: bool,
) -> Result<Vec<MountPlan>, String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let mut plans = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes
            .and_then(|v| v.iter().find(|v| v.name == mount.name))
            .ok_or_else(|| format!("volume mount {} names no volume", mount.name))?;
        let root = match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => places.volume(&volume.name),
        };
        let writable = volume.host_path.is_some() || volume.empty_dir.is_some();
        let sub = sub_path(mount, env)?;
        plans.push(MountPlan {
            host_path: sub.as_ref().map_or_else(|| root.clone(), |sub| root.join(sub)),
            within: sub.map(|_| root),
            container_path: mount.mount_path.clone(),
            read_only: !writable || mount.read_only.unwrap_or(false),
            recursive_read_only: read_only::recursive(mount, can_recurse)?,
            propagation: propagation(mount)?,
        });
    }
    Ok(plans)
}

fn sub_path(mount: &v1::VolumeMount, env: &BTreeMap<&str, &str>) -> Result<Option<PathBuf>, String> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let text = match (given(&mount.sub_path), given(&mount.sub_path_expr)) {
        (Some(plain), _) => plain,
        (None, Some(expression)) => {
            let mut unknown = Vec::new();
            let expanded = expand_noting(&expression, env, &mut unknown);
            if let Some(name) = unknown.first() {
                return Err(format!("volume mount {}: missing value for {name:?}", mount.name));
            }
            expanded
        }
        (None, None) => return Ok(None),
    };
    let path = Path::new(&text);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!("volume mount {}: subPath {text:?} must stay inside the volume", mount.name));
    }
    let plain: PathBuf = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    Ok((!plain.as_os_str().is_empty()).then_some(plain))
}

fn propagation(mount: &v1::VolumeMount) -> Result<Propagation, String> {
    match mount.mount_propagation.as_deref() {
        None | Some("" | "None") => Ok(Propagation::Private),
        Some("HostToContainer") => Ok(Propagation::FromNode),
        Some("Bidirectional") => Ok(Propagation::Both),
        Some(other) => Err(format!("volume mount {}: unknown mountPropagation {other:?}", mount.name)),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use serde_json::{Value, json};

    use super::{
        super::sources::{Content, Sources},
        *,
    };
    use crate::model::{Key, Revision, Uid};

    fn around() -> Around {
        let pairs =
            |list: &[(&str, &str)]| list.iter().map(|(k, v)| ((*k).to_owned(), (*v).into())).collect();
        let map = Content {
            data: pairs(&[("a", "1"), ("b", "2")]),
            binary: pairs(&[("bin", "x")]),
            ..Content::default()
        };
        let secret = Content { data: pairs(&[("password", "geheim")]), ..Content::default() };
        let keys = [(Kind::ConfigMap, "app", map), (Kind::Secret, "login", secret)];
        let mut known: Vec<_> =
            [Kind::ConfigMap, Kind::Secret].map(|kind| (Key::new(kind, "ns", "none"), None)).into();
        let mut news = HashMap::new();
        for (kind, name, content) in keys {
            let key = Key::new(kind, "ns", name);
            known.push((key.clone(), Some(Revision(1))));
            news.insert(key, (Revision(1), Arc::new(content)));
        }
        known.push((Key::new(Kind::ServiceAccount, "ns", "gone"), None));
        let token = (Uid::from("u"), Want { audience: "vault".into(), life_s: 600 }, "t0ken".to_owned());
        let sources = Sources::default().after(known, news).0.with_tokens([token]);
        let allocatable = downward::Allocatable { memory_bytes: 1 << 30, ..Default::default() };
        Around { sources: Arc::new(sources), allocatable, ..Around::default() }
    }

    /// A pod with one volume that its one container mounts.
    fn pod(source: Value, mount: Value) -> v1::Pod {
        let (mut volume, mut at) = (source, json!({"name": "v", "mountPath": "/m"}));
        volume["name"] = "v".into();
        for (field, value) in mount.as_object().unwrap() {
            at[field] = value.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": "shop"}},
            "spec": {"volumes": [volume, {"name": "unused", "configMap": {"name": "none"}}],
                "containers": [{"name": "c", "volumeMounts": [at]}]}
        }))
        .unwrap()
    }

    fn made(source: Value) -> Result<Source, String> {
        let mut all = volumes(&pod(source, json!({})), &around());
        assert_eq!(all.len(), 1, "what nobody mounts is not set up");
        all.remove(0).map(|volume| volume.source)
    }

    fn files(source: Value) -> Vec<(String, String, u32)> {
        let Ok(Source::Files { files, .. }) = made(source) else { panic!("no files") };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        files.iter().map(|(path, file)| (path.clone(), text(&file.bytes), file.mode)).collect()
    }

    #[test]
    fn keys_become_files_with_their_modes() {
        let row = |path: &str, text: &str, mode| (path.to_owned(), text.to_owned(), mode);
        assert_eq!(
            files(json!({"configMap": {"name": "app", "defaultMode": 0o400}})),
            [row("a", "1", 0o400), row("b", "2", 0o400), row("bin", "x", 0o400)]
        );
        let items = json!([{"key": "a", "path": "etc/deep/a", "mode": 0o600}, {"key": "bin", "path": "x"}]);
        assert_eq!(
            files(json!({"configMap": {"name": "app", "items": items}})),
            [row("etc/deep/a", "1", 0o600), row("x", "x", 0o644)]
        );
        let sources = json!([
            {"configMap": {"name": "app", "items": [{"key": "a", "path": "a"}]}},
            {"secret": {"name": "login"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"secret": {"name": "none", "optional": true}}
        ]);
        assert_eq!(
            files(json!({"projected": {"sources": sources, "defaultMode": 0o440}})),
            [row("a", "1", 0o440), row("labels", "app=\"shop\"", 0o440), row("password", "geheim", 0o440)]
        );
        assert_eq!(files(json!({"secret": {"secretName": "none", "optional": true}})), []);
        let token = json!({"path": "in/token", "audience": "vault", "expirationSeconds": 600});
        let projected =
            json!({"projected": {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o400}});
        assert_eq!(files(projected), [row("in/token", "t0ken", 0o400)]);
    }

    #[test]
    fn a_token_is_nobody_elses_where_it_is_known_whose_it_is() {
        let token = json!({"path": "token", "audience": "vault", "expirationSeconds": 600});
        let source =
            json!({"projected": {"sources": [{"serviceAccountToken": token}], "defaultMode": 0o444}});
        let user = |user: i64| json!({"runAsUser": user});
        for (of_pod, of_container, of_init, told) in [
            (json!({}), json!({}), json!({}), (None, 0o444)),
            (user(7), json!({}), json!({}), (Some(7), 0o600)),
            (json!({"fsGroup": 9}), json!({}), json!({}), (None, 0o600)),
            (json!({}), user(0), user(0), (Some(0), 0o600)),
            (json!({}), user(7), user(8), (None, 0o444)),
            (user(7), user(8), json!({}), (None, 0o444)),
            (json!({}), user(7), json!({}), (None, 0o444)),
        ] {
            let mut pod = serde_json::to_value(pod(source.clone(), json!({}))).unwrap();
            let init = json!([{"name": "i", "securityContext": of_init}]);
            (pod["spec"]["securityContext"], pod["spec"]["initContainers"]) = (of_pod, init);
            pod["spec"]["containers"][0]["securityContext"] = of_container;
            let pod: v1::Pod = serde_json::from_value(pod).unwrap();
            let Ok(Volume { source: Source::Files { files, .. }, .. }) = &volumes(&pod, &around())[0] else {
                panic!()
            };
            assert_eq!((files["token"].owner, files["token"].mode), told, "{:?}", pod.spec);
        }
    }

    #[test]
    fn secrets_are_kept_in_memory_and_config_maps_on_disk() {
        for (source, in_memory) in [
            (json!({"configMap": {"name": "app"}}), false),
            (json!({"secret": {"secretName": "login"}}), true),
            (json!({"downwardAPI": {}}), true),
            (json!({"projected": {"sources": []}}), true),
        ] {
            assert!(matches!(made(source), Ok(Source::Files { memory, .. }) if memory == in_memory));
        }
        let memory = |limit: &str| made(json!({"emptyDir": {"medium": "Memory", "sizeLimit": limit}}));
        assert_eq!(memory("1Mi"), Ok(Source::Memory { size: Some(1 << 20) }));
        // Unsaid, or more than that, it is what the node has for pods.
        for all in ["0", "1Ti"] {
            assert_eq!(memory(all), Ok(Source::Memory { size: Some(1 << 30) }), "{all}");
        }
        assert_eq!(made(json!({"emptyDir": {}})), Ok(Source::Directory));
    }

    #[test]
    fn a_volume_in_memory_is_no_larger_than_what_the_pods_containers_may_use() {
        let limited = |amount: &str| json!({"limits": {"memory": amount}});
        let container = |name: &str, amount: &str| json!({"name": name, "resources": limited(amount)});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": limited("1Mi")});
        for (main, init, limit) in [
            (json!([container("a", "40Mi"), container("b", "2Mi")]), json!([]), Some(42)),
            (json!([container("a", "40Mi"), {"name": "b"}]), json!([]), None),
            (json!([container("a", "40Mi")]), json!([{"name": "i"}]), None),
            (json!([container("a", "4Mi")]), json!([container("i", "50Mi")]), Some(50)),
            (json!([container("a", "4Mi")]), json!([sidecar, container("i", "50Mi")]), Some(51)),
            (json!([container("a", "4Mi")]), json!([sidecar]), Some(5)),
        ] {
            let spec = json!({"containers": main, "initContainers": init});
            let spec: v1::PodSpec = serde_json::from_value(spec.clone()).unwrap();
            assert_eq!(memory_limit(&spec), limit.map(|mib| mib << 20), "{spec:?}");
        }
    }

    #[test]
    fn what_cannot_be_set_up_is_told_in_kubernetes_words() {
        let item = |key: &str, path: &str| json!([{"key": key, "path": path}]);
        for (source, cause) in [
            (json!({"configMap": {"name": "none"}}), "configmap \"none\" not found"),
            (json!({"secret": {"secretName": "none"}}), "secret \"none\" not found"),
            (
                json!({"configMap": {"name": "app", "items": item("zz", "zz")}}),
                "configmap references non-existent config key: zz",
            ),
            (
                json!({"secret": {"secretName": "login", "items": item("zz", "zz")}}),
                "references non-existent secret key: zz",
            ),
            (
                json!({"configMap": {"name": "app", "items": item("a", "../../etc/cron")}}),
                "path \"../../etc/cron\" must be below the volume",
            ),
            (
                json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
                "failed to fetch token: the master has not sent it yet",
            ),
            (
                json!({"persistentVolumeClaim": {"claimName": "c"}}),
                "volumes of this type are not supported by troupe",
            ),
        ] {
            let message = made(source).unwrap_err();
            assert_eq!(message, format!("MountVolume.SetUp failed for volume \"v\" : {cause}"));
        }
    }

    fn mounted(source: Value, mount: Value) -> Result<MountPlan, String> {
        let pod = pod(source, mount);
        let places = Places { pod_dir: "/p".into(), log_dir: "/l".into() };
        let env = BTreeMap::from([("NAME", "n"), ("UP", "../x")]);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        mounts(&pod, container, &places, &env, false).map(|mut all| all.remove(0))
    }

    #[test]
    fn mounts_of_files_are_read_only_and_sub_paths_stay_inside() {
        let secret = || json!({"secret": {"secretName": "login"}});
        let empty = || json!({"emptyDir": {}});
        assert!(mounted(secret(), json!({"readOnly": false})).unwrap().read_only);
        assert!(!mounted(empty(), json!({})).unwrap().read_only);
        let sub = mounted(empty(), json!({"subPath": "a/./b"})).unwrap();
        assert_eq!(
            (sub.host_path, sub.within),
            ("/p/volumes/v/a/b".into(), Some(PathBuf::from("/p/volumes/v")))
        );
        let expanded = mounted(empty(), json!({"subPathExpr": "$(NAME)/$$(NAME)"})).unwrap();
        assert_eq!(expanded.host_path, PathBuf::from("/p/volumes/v/n/$(NAME)"));
        for (mount, message) in [
            (json!({"readOnly": true, "recursiveReadOnly": "Enabled"}), "not supported by the runtime"),
            (json!({"subPath": "../../etc"}), "must stay inside"),
            (json!({"subPath": "/etc"}), "must stay inside"),
            (json!({"subPathExpr": "$(UP)"}), "must stay inside"),
            (json!({"subPathExpr": "a/$(NOBODY)"}), "missing value for \"NOBODY\""),
        ] {
            let refused = mounted(empty(), mount).unwrap_err();
            assert!(refused.contains(message), "{refused}");
        }
    }
}
