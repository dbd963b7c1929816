//! Extended resources: what a node is said to have beside what its kubelet measures, `nvidia.com/gpu`.
//!
//! Owns: which names are such, what nodes have of them and what pods ask for. Invariant, as in Kubernetes: whoever says
//! what a node has of them is not its kubelet, whose reports leave them as they are; all that there is can be given out. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::{api::core::v1, apimachinery::pkg::api::resource::Quantity};

use super::{huge_pages, quantity};

/// What is not extended: [`super::Resources`] counts it.
const NATIVE: [&str; 4] = ["cpu", "memory", "ephemeral-storage", "pods"];

/// Amounts by name; `None` for the many that have none, or ask for none.
pub type Extended = Option<Arc<BTreeMap<String, i64>>>;

type Amounts = BTreeMap<String, Quantity>;

/// Whether the name is an extended resource's.
pub fn is_extended(name: &str) -> bool {
    !NATIVE.contains(&name) && !name.starts_with(huge_pages::PREFIX)
}

/// Whether it is an amount of one that cannot be: only whole ones are given out.
pub fn is_fraction(name: &str, amount: &Quantity) -> bool {
    is_extended(name) && quantity::parse_milli(&amount.0).is_ok_and(|milli| milli % 1000 != 0)
}

/// Those of a resource list, which a node has.
pub fn of(list: Option<&Amounts>) -> Extended {
    let found = list.into_iter().flatten().filter(|(name, _)| is_extended(name));
    // A part of one cannot be given out.
    let whole = |amount: &Quantity| {
        let milli = quantity::parse_milli(&amount.0).unwrap_or(0);
        i64::try_from(milli.div_euclid(1000)).unwrap_or(i64::MAX)
    };
    let all: BTreeMap<String, i64> = found.map(|(name, amount)| (name.clone(), whole(amount))).collect();
    (!all.is_empty()).then(|| Arc::new(all))
}

fn units(amount: &Quantity) -> i64 {
    quantity::parse_units(&amount.0).unwrap_or(0)
}

/// What the containers of a pod ask for together: the sum, or an init container with the sidecars before it where that
/// is more.
pub fn requests_of(spec: &v1::PodSpec) -> Extended {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let lists = all.flat_map(|c| c.resources.iter().flat_map(|r| [&r.requests, &r.limits])).flatten();
    let names: BTreeSet<&String> = lists.flat_map(Amounts::keys).filter(|name| is_extended(name)).collect();
    let all: BTreeMap<String, i64> =
        names.into_iter().map(|name| (name.clone(), asked(spec, name))).collect();
    (!all.is_empty()).then(|| Arc::new(all))
}

fn asked(spec: &v1::PodSpec, name: &str) -> i64 {
    let of = |c: &v1::Container| {
        let lists = c.resources.iter().flat_map(|r| [&r.requests, &r.limits]).flatten();
        lists.filter_map(|list| list.get(name)).map(units).next().unwrap_or(0)
    };
    let main = spec.containers.iter().map(of).fold(0, i64::saturating_add);
    let (mut sidecars, mut peak) = (0_i64, 0);
    for init in spec.init_containers.iter().flatten() {
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(of(init));
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.saturating_add(of(init)));
        }
    }
    main.saturating_add(sidecars).max(peak)
}

/// All that a node has of them can be given out, and nothing else.
pub fn complete(status: &mut v1::NodeStatus) {
    let capacity = status.capacity.as_ref();
    let has: Vec<(String, Quantity)> = capacity
        .into_iter()
        .flatten()
        .filter(|(name, _)| is_extended(name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect();
    if let Some(allocatable) = &mut status.allocatable {
        allocatable.retain(|name, _| !is_extended(name));
        allocatable.extend(has);
    }
}

/// Keeps in what a node's kubelet says of it what others have said that it has.
pub fn keep(status: &mut v1::NodeStatus, before: Option<&v1::NodeStatus>) {
    let known = before.and_then(|before| before.capacity.as_ref());
    let Some(capacity) = &mut status.capacity else { return };
    for (name, amount) in known.into_iter().flatten().filter(|(name, _)| is_extended(name)) {
        capacity.entry(name.clone()).or_insert_with(|| amount.clone());
    }
    complete(status);
}

/// Whether what a kubelet says of an amount that is its to say is what is stored, by value.
pub fn says_the_same(told: Option<&Amounts>, stored: Option<&Amounts>) -> bool {
    let own = |list: Option<&Amounts>| -> BTreeMap<String, Option<i128>> {
        let own = list.into_iter().flatten().filter(|(name, _)| !is_extended(name));
        own.map(|(name, amount)| (name.clone(), quantity::parse_milli(&amount.0).ok())).collect()
    };
    own(told) == own(stored)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_asks_for_the_sum_or_for_what_its_largest_init_container_needs() {
        let with = |amount: &str| json!({"limits": {"example.com/foo": amount, "cpu": "1"}});
        let of = |init: serde_json::Value| {
            let spec = json!({"initContainers": init, "containers": [
                {"name": "a", "resources": {"requests": {"example.com/foo": "2"}, "limits": {"example.com/foo": "2"}}},
                {"name": "b", "resources": with("1")}, {"name": "c"}]});
            let asked = requests_of(&serde_json::from_value(spec).unwrap()).unwrap();
            assert_eq!(asked.len(), 1, "{asked:?}");
            asked["example.com/foo"]
        };
        assert_eq!(of(json!([])), 3);
        assert_eq!(of(json!([{"name": "i", "resources": with("7")}])), 7);
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": with("2")});
        assert_eq!(of(json!([sidecar, {"name": "i", "resources": with("7")}])), 9);
        assert_eq!(of(json!([sidecar])), 5);
        let plain = json!({"containers": [{"name": "c", "resources": {"limits": {"hugepages-2Mi": "2Mi"}}}]});
        assert_eq!(requests_of(&serde_json::from_value(plain).unwrap()), None);
    }

    #[test]
    fn only_whole_ones_are_given_out() {
        let list: Amounts =
            serde_json::from_value(json!({"a.b/c": "1500m", "a.b/d": "2", "a.b/e": "500m", "cpu": "1500m"}))
                .unwrap();
        let has = of(Some(&list)).unwrap();
        assert_eq!((has["a.b/c"], has["a.b/d"], has["a.b/e"]), (1, 2, 0));
        let fractions: Vec<_> = list.iter().filter(|(name, amount)| is_fraction(name, amount)).collect();
        assert_eq!(fractions.len(), 2, "{fractions:?}");
    }

    #[test]
    fn what_others_say_that_a_node_has_outlives_its_kubelets_reports() {
        let status = |json| serde_json::from_value::<v1::NodeStatus>(json).unwrap();
        let told = status(json!({"capacity": {"cpu": "2"}, "allocatable": {"cpu": "1"}}));
        let known = status(json!({"capacity": {"cpu": "9", "nvidia.com/gpu": "4", "hugepages-2Mi": "2Mi"},
            "allocatable": {"old.example.com/bar": "1"}}));
        for _ in 0..2 {
            let mut now = told.clone();
            keep(&mut now, Some(&known));
            let expected = json!({"capacity": {"cpu": "2", "nvidia.com/gpu": "4"},
                "allocatable": {"cpu": "1", "nvidia.com/gpu": "4"}});
            assert_eq!(now, status(expected));
        }
    }
}
