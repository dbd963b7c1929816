//! Huge pages of a pod: which ones a volume is made of, and what a container may use.

use k8s_openapi::api::core::v1;

use crate::model::{huge_pages, quantity};

/// The pages of an `emptyDir` of this medium, in bytes each: of the size that it names, which a container has to ask for, or
/// of the only size that containers ask for.
///
/// # Errors
/// Why there are none such.
pub(super) fn of_medium(pod: &v1::Pod, medium: &str) -> Result<i64, String> {
    let unknown = || format!("emptyDir medium {medium:?} is not supported by troupe");
    let named = match medium.strip_prefix("HugePages").ok_or_else(unknown)? {
        "" => None,
        size => Some(size.strip_prefix('-').and_then(huge_pages::size).ok_or_else(unknown)?),
    };
    let spec = pod.spec.as_ref();
    let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let asked = all.filter_map(|c| c.resources.as_ref()?.requests.as_ref()).flat_map(|r| r.keys());
    let mut sizes: Vec<i64> = asked.filter_map(|name| huge_pages::page_bytes(name)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let cannot = |why| Err(format!("medium {medium} can't be used if {why}"));
    match (named, sizes.as_slice()) {
        (Some(named), sizes) if sizes.contains(&named) => Ok(named),
        (None, [only]) => Ok(*only),
        (None, [_, _, ..]) => cannot("containers request huge pages of several sizes"),
        (None, []) => cannot("no container requests huge pages"),
        (Some(_), _) => cannot("no container requests huge pages of that size"),
    }
}

/// What a container may use of pages of so many bytes: nothing unless it asks for it.
pub fn limit(container: &v1::Container, page_bytes: i64) -> i64 {
    let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
    let of_size =
        limits.into_iter().flatten().filter(|(name, _)| huge_pages::page_bytes(name) == Some(page_bytes));
    of_size.filter_map(|(_, amount)| quantity::parse_units(&amount.0).ok()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(requests: &[Value]) -> v1::Pod {
        let of =
            |amounts: &Value| json!({"name": "c", "resources": {"requests": amounts, "limits": amounts}});
        let containers: Vec<Value> = requests.iter().map(of).collect();
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn a_medium_of_huge_pages_is_of_a_size_that_containers_ask_for() {
        let small = json!({"hugepages-2Mi": "4Mi"});
        let large = json!({"hugepages-1Gi": "1Gi"});
        let none = json!({"memory": "1Gi"});
        for (requests, medium, expected) in [
            (&[small.clone()][..], "HugePages", Ok(2 << 20)),
            (&[none.clone(), small.clone()], "HugePages-2048Ki", Ok(2 << 20)),
            (&[small.clone(), large], "HugePages-1Gi", Ok(1 << 30)),
            (&[none], "HugePages", Err("medium HugePages can't be used if no container requests huge pages")),
            (
                std::slice::from_ref(&small),
                "HugePages-1Gi",
                Err("medium HugePages-1Gi can't be used if no container requests huge pages of that size"),
            ),
            (
                std::slice::from_ref(&small),
                "HugePages-x",
                Err("emptyDir medium \"HugePages-x\" is not supported by troupe"),
            ),
            (
                std::slice::from_ref(&small),
                "Disk",
                Err("emptyDir medium \"Disk\" is not supported by troupe"),
            ),
        ] {
            assert_eq!(of_medium(&pod(requests), medium), expected.map_err(str::to_owned), "{medium}");
        }
        let both = pod(&[json!({"hugepages-2Mi": "4Mi"}), json!({"hugepages-1Gi": "1Gi"})]);
        assert!(of_medium(&both, "HugePages").unwrap_err().contains("several sizes"));
    }

    #[test]
    fn what_is_not_asked_for_may_not_be_used() {
        let pod = pod(&[json!({"hugepages-2Mi": "4Mi", "memory": "1Gi"})]);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!((limit(container, 2 << 20), limit(container, 1 << 30)), (4 << 20, 0));
    }
}
