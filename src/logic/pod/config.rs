//! What a container's program gets: command, environment, mounts, limits, from the pod's spec.
//!
//! Owns: `$(VAR)` expansion and the translation of a container's spec into the runtime's terms; variables are
//! [`super::env`]'s, mounts [`super::volumes`]'. Pure: directories on the node are handed in. What the spec asks for and
//! this kubelet cannot give yet is an error here (`CreateContainerConfigError`), never silently left out.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource::Quantity};

use super::{
    downward::Allocatable,
    env::environment,
    qos,
    sources::Sources,
    volumes::{MountPlan, mounts},
};
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
    /// Where a volume lives that is the pod's own.
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
    /// What pods may use of the node together.
    pub allocatable: Allocatable,
    /// The config maps and secrets that the node knows.
    pub sources: Arc<Sources>,
    /// Its runtime makes mounts read-only all the way down.
    pub recursive_read_only: bool,
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
    /// A sentence for each source of variables of which something was left out.
    pub skipped_env: Vec<String>,
    /// Mounts.
    pub mounts: Vec<MountPlan>,
    /// What it may use.
    pub sizes: Sizes,
    /// How soon it is taken when memory runs out.
    pub oom_score_adj: i32,
}

/// What a container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Requested thousandths of a core.
    pub cpu_request_milli: i64,
    /// Thousandths of a core at most; 0 = no limit.
    pub cpu_limit_milli: i64,
    /// Bytes at most; 0 = no limit.
    pub memory_limit_bytes: i64,
}

/// Requests and limits as numbers.
pub fn sizes(resources: Option<&v1::ResourceRequirements>) -> Sizes {
    let amount = |list: Option<&BTreeMap<String, Quantity>>, name: &str| -> i64 {
        let milli = list.and_then(|l| l.get(name)).and_then(|q| quantity::parse_milli(&q.0).ok());
        milli.and_then(|m| i64::try_from(m).ok()).unwrap_or(0)
    };
    let limits = resources.and_then(|r| r.limits.as_ref());
    let requests = resources.and_then(|r| r.requests.as_ref());
    Sizes {
        cpu_request_milli: amount(requests, "cpu"),
        cpu_limit_milli: amount(limits, "cpu"),
        // Up to a whole byte: the least limit is not to become none.
        memory_limit_bytes: limits
            .and_then(|limits| quantity::parse_units(&limits.get("memory")?.0).ok())
            .unwrap_or(0),
    }
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
    let vars: BTreeMap<&str, &str> = env.vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, &vars)).collect();
    let sizes = sizes(container.resources.as_ref());
    Ok(Plan {
        command: all(&container.command),
        args: all(&container.args),
        mounts: mounts(pod, container, places, &vars, around.recursive_read_only)?,
        skipped_env: env.skipped.clone(),
        env: env.vars.clone(),
        sizes,
        oom_score_adj: pod
            .spec
            .as_ref()
            .map_or(0, |spec| qos::oom_score_adj(spec, container, around.allocatable.memory_bytes)),
    })
}

/// Expands `$(VAR)` as Kubernetes does: `$$` is a literal `$`, unknown variables stay as they are written. (Idea and
/// rules: Kubernetes' `third_party/forked/golang/expansion`.)
pub fn expand(text: &str, vars: &BTreeMap<&str, &str>) -> String {
    expand_noting(text, vars, &mut Vec::new())
}

/// As [`expand`]; also gives the names of unknown variables.
pub(super) fn expand_noting(text: &str, vars: &BTreeMap<&str, &str>, unknown: &mut Vec<String>) -> String {
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
                            unknown.push(name.to_owned());
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
    fn a_limit_of_less_than_a_byte_is_one() {
        for (memory, bytes) in [("100m", 1), ("1", 1), ("1500m", 2), ("64Mi", 64 << 20), ("0", 0)] {
            let resources =
                serde_json::from_value(serde_json::json!({"limits": {"memory": memory}})).unwrap();
            assert_eq!(sizes(Some(&resources)).memory_limit_bytes, bytes, "{memory}");
        }
        assert_eq!(sizes(None), Sizes::default());
    }

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
