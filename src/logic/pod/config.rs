//! What a container's program gets: command, environment, mounts, limits, from the pod's spec.
//!
//! Owns: `$(VAR)` expansion, downward fields, and the translation of a container's spec into the runtime's terms. Pure:
//! directories on the node are handed in. What the spec asks for and this kubelet cannot give yet is an error here
//! (`CreateContainerConfigError`), never silently left out.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1;

use crate::model::quantity;

/// Where things of one pod are on its node.
#[derive(Clone, Debug)]
pub struct Places {
    /// The pod's own directory: `volumes/NAME` lie below it.
    pub pod_dir: PathBuf,
    /// The directory of the pod's logs and of what its containers said last.
    pub log_dir: PathBuf,
}

impl Places {
    /// Where an `emptyDir` volume lives.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.pod_dir.join("volumes").join(name)
    }

    /// The log of one life of a container.
    pub fn log(&self, container: &str, attempt: u32) -> PathBuf {
        self.log_dir.join(container).join(format!("{attempt}.log"))
    }

    /// The file into which one life of a container may write its last words.
    pub fn termination_message(&self, container: &str, attempt: u32) -> PathBuf {
        // Beside the log: a directory less to make in a start, for which a container waits.
        self.log_dir.join(container).join(format!("{attempt}.message"))
    }
}

/// What is known of the node and the pod beyond the spec.
#[derive(Clone, Debug, Default)]
pub struct Around {
    /// The node's name.
    pub node: String,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
    /// The pod's address.
    pub pod_ip: Option<IpAddr>,
}

/// A bind mount to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPlan {
    /// On the node.
    pub host_path: PathBuf,
    /// In the container.
    pub container_path: String,
    /// Cannot be written through it.
    pub read_only: bool,
    /// What `host_path` must be, and whether to make it: `hostPath.type`, or `DirectoryOrCreate` for an emptyDir.
    pub host_type: String,
}

/// What a container is to be like, in the runtime's terms but without its types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Entrypoint, expanded.
    pub command: Vec<String>,
    /// Arguments, expanded.
    pub args: Vec<String>,
    /// Environment, expanded, in order.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<MountPlan>,
    /// Requested thousandths of a core.
    pub cpu_request_milli: i64,
    /// Thousandths of a core at most; 0 = no limit.
    pub cpu_limit_milli: i64,
    /// Bytes at most; 0 = no limit.
    pub memory_limit_bytes: i64,
}

/// Plans one container.
///
/// # Errors
/// A sentence for the container's waiting state.
pub fn plan(
    pod: &v1::Pod,
    container: &v1::Container,
    places: &Places,
    around: &Around,
) -> Result<Plan, String> {
    let env = environment(pod, container, around)?;
    let vars: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, &vars)).collect();
    let amounts = container.resources.as_ref();
    let amount = |list: Option<&BTreeMap<String, _>>, name: &str| -> i64 {
        list.and_then(|l: &BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
            l.get(name)
        })
        .and_then(|q| quantity::parse_milli(&q.0).ok())
        .and_then(|m| i64::try_from(m).ok())
        .unwrap_or(0)
    };
    let limits = amounts.and_then(|r| r.limits.as_ref());
    let requests = amounts.and_then(|r| r.requests.as_ref());
    Ok(Plan {
        command: all(&container.command),
        args: all(&container.args),
        mounts: mounts(pod, container, places)?,
        env,
        cpu_request_milli: amount(requests, "cpu"),
        cpu_limit_milli: amount(limits, "cpu"),
        memory_limit_bytes: amount(limits, "memory") / 1000,
    })
}

fn environment(
    pod: &v1::Pod,
    container: &v1::Container,
    around: &Around,
) -> Result<Vec<(String, String)>, String> {
    let mut env: Vec<(String, String)> = Vec::new();
    if container.env_from.as_ref().is_some_and(|e| !e.is_empty()) {
        return Err("envFrom is not supported yet".into());
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            None => {
                let known: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
                expand(var.value.as_deref().unwrap_or_default(), &known)
            }
            Some(source) => match &source.field_ref {
                Some(field) => downward(pod, &field.field_path, around)?,
                None => return Err(format!("env {}: only value and fieldRef are supported yet", var.name)),
            },
        };
        env.push((var.name.clone(), value));
    }
    Ok(env)
}

/// Kubernetes' downward API fields that an environment variable may show.
fn downward(pod: &v1::Pod, path: &str, around: &Around) -> Result<String, String> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref());
    let subscript = |map: &Option<BTreeMap<String, String>>, name: &str| {
        path.strip_prefix(name)
            .and_then(|rest| rest.strip_prefix("['"))
            .and_then(|rest| rest.strip_suffix("']"))
            .map(|key| map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    let ip = |ip: Option<IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => Some(around.node.clone()),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()),
        "status.podIP" | "status.podIPs" => Some(ip(around.pod_ip)),
        "status.hostIP" | "status.hostIPs" => Some(ip(around.host_ip)),
        _ => {
            return subscript(&meta.labels, "metadata.labels")
                .or_else(|| subscript(&meta.annotations, "metadata.annotations"))
                .ok_or_else(|| format!("unsupported fieldPath: {path}"));
        }
    };
    Ok(value.unwrap_or_default())
}

fn mounts(pod: &v1::Pod, container: &v1::Container, places: &Places) -> Result<Vec<MountPlan>, String> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_ref());
    let mut plans = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = volumes
            .and_then(|v| v.iter().find(|v| v.name == mount.name))
            .ok_or_else(|| format!("volume mount {} names no volume", mount.name))?;
        let (mut host_path, host_type) = if volume.empty_dir.is_some() {
            (places.volume(&volume.name), "DirectoryOrCreate".to_owned())
        } else if let Some(host) = &volume.host_path {
            (PathBuf::from(&host.path), host.type_.clone().unwrap_or_default())
        } else {
            return Err(format!(
                "volume {}: only emptyDir and hostPath volumes are supported yet",
                volume.name
            ));
        };
        if let Some(sub) = mount.sub_path.as_deref().filter(|s| !s.is_empty()) {
            if Path::new(sub).components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
                return Err(format!(
                    "volume mount {}: subPath {sub:?} must stay inside the volume",
                    mount.name
                ));
            }
            host_path.push(sub);
        }
        plans.push(MountPlan {
            host_path,
            container_path: mount.mount_path.clone(),
            read_only: mount.read_only.unwrap_or(false),
            host_type,
        });
    }
    Ok(plans)
}

/// Expands `$(VAR)` as Kubernetes does: `$$` is a literal `$`, unknown variables stay as they are written. (Idea and
/// rules: Kubernetes' `third_party/forked/golang/expansion`.)
pub fn expand(text: &str, vars: &BTreeMap<&str, &str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(name_on) = rest.strip_prefix('(') {
            match name_on.find(')') {
                Some(end) => {
                    let name = &name_on[..end];
                    match vars.get(name) {
                        Some(value) => out.push_str(value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &name_on[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = name_on;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn variables_expand_as_in_kubernetes() {
        let vars = BTreeMap::from([("A", "1"), ("B", "two words"), ("EMPTY", "")]);
        for (text, expanded) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1ytwo words"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NOPE)", "$(NOPE)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("$(EMPTY)", ""),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, &vars), expanded, "{text}");
        }
    }

    #[test]
    fn later_variables_see_earlier_ones_and_the_downward_fields() {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "shop"}},
            "spec": {"containers": [{"name": "c", "image": "i", "args": ["--at=$(HOST)"], "env": [
                {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "HOST", "value": "$(POD).$(APP).$(LATER)"},
                {"name": "LATER", "value": "x"}]}]}
        }))
        .unwrap();
        let places = Places { pod_dir: "/p".into(), log_dir: "/l".into() };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let plan = plan(&pod, container, &places, &Around::default()).unwrap();
        assert_eq!(plan.args, ["--at=web.shop.$(LATER)"]);
        assert_eq!(plan.env[2].1, "web.shop.$(LATER)");
    }

    #[test]
    fn a_sub_path_cannot_leave_its_volume() {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "volumeMounts":
                [{"name": "v", "mountPath": "/m", "subPath": "../../etc"}]}]}
        }))
        .unwrap();
        let places = Places { pod_dir: "/p".into(), log_dir: "/l".into() };
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert!(plan(&pod, container, &places, &Around::default()).unwrap_err().contains("must stay inside"));
    }

    proptest! {
        #[test]
        fn text_without_dollars_stays(text in "[^$]*") {
            prop_assert_eq!(expand(&text, &BTreeMap::new()), text);
        }

        #[test]
        fn expansion_never_panics(text in ".*") {
            let _ = expand(&text, &BTreeMap::from([("a", "$(a)")]));
        }
    }
}
