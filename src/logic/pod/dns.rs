//! What a pod's name resolution is to be: its host name, its full name, and its `resolv.conf`.
//!
//! Owns: Kubernetes' rules for `hostname`, `subdomain`, `setHostnameAsFQDN`, `dnsPolicy` and `dnsConfig`. Pure: the
//! node's `resolv.conf` comes as text. There is no cluster DNS yet, so `ClusterFirst` is `Default`.

use k8s_openapi::api::core::v1;

/// What the cluster's names end with.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The kernel's limit on a host name.
const HOST_NAME_MAX: usize = 64;
/// A DNS label's.
const LABEL_MAX: usize = 63;

/// A pod's names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// What `hostname` prints.
    pub hostname: String,
    /// What follows the short name in the full one; empty when the pod has none.
    pub domain: String,
}

/// A pod's names as its spec says.
///
/// # Errors
/// Kubernetes' sentence when the full name is to be the host name and is too long for the kernel.
pub fn names(pod: &v1::Pod) -> Result<Names, String> {
    let spec = pod.spec.as_ref();
    let text = |of: Option<&String>| of.filter(|t| !t.is_empty()).cloned();
    let name = pod.metadata.name.clone().unwrap_or_default();
    let short = text(spec.and_then(|s| s.hostname.as_ref())).unwrap_or(name);
    // Cut to a label, and nothing at its end that must not be there.
    let cut: String = short.chars().take(LABEL_MAX).collect();
    let short = cut.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let domain = text(spec.and_then(|s| s.subdomain.as_ref()))
        .map(|subdomain| format!("{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}"))
        .unwrap_or_default();
    if domain.is_empty() || spec.and_then(|s| s.set_hostname_as_fqdn) != Some(true) {
        return Ok(Names { hostname: short, domain });
    }
    let full = format!("{short}.{domain}");
    if full.len() > HOST_NAME_MAX {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({HOST_NAME_MAX} \
             characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(Names { hostname: full, domain })
}

/// The content of a `resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options, `ndots:5`.
    pub options: Vec<String>,
}

/// What a pod's resolver is to be; `None`: the node's as it is.
pub fn resolver(pod: &v1::Pod, node: &str) -> Option<Resolver> {
    let spec = pod.spec.as_ref()?;
    let own = spec.dns_policy.as_deref() == Some("None");
    if spec.dns_config.is_none() && !own {
        return None;
    }
    let mut resolver = if own { Resolver::default() } else { parse(node) };
    let Some(config) = &spec.dns_config else { return Some(resolver) };
    let add = |to: &mut Vec<String>, list: &Option<Vec<String>>| {
        for item in list.iter().flatten() {
            if !to.contains(item) {
                to.push(item.clone());
            }
        }
    };
    add(&mut resolver.servers, &config.nameservers);
    add(&mut resolver.searches, &config.searches);
    for option in config.options.iter().flatten() {
        let name = option.name.clone().unwrap_or_default();
        let value = option.value.as_deref().filter(|v| !v.is_empty());
        let text = value.map_or_else(|| name.clone(), |value| format!("{name}:{value}"));
        let same = |known: &String| known.split(':').next() == Some(name.as_str());
        match resolver.options.iter().position(same) {
            Some(at) => resolver.options[at] = text,
            None => resolver.options.push(text),
        }
    }
    Some(resolver)
}

/// Reads resolv.conf(5): of `search` and `options` the last line counts.
fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            Some("search") => resolver.searches = words.map(str::to_owned).collect(),
            Some("options") => resolver.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    resolver
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> v1::Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_pod_has_a_host_name_and_with_a_subdomain_a_full_one() {
        let long = "x".repeat(62) + "-y";
        for (spec, hostname, domain) in [
            (json!({}), "web-0", ""),
            (json!({"hostname": "db"}), "db", ""),
            (json!({"subdomain": "web"}), "web-0", "web.shop.svc.cluster.local"),
            (json!({"setHostnameAsFQDN": true}), "web-0", ""),
            (
                json!({"subdomain": "web", "setHostnameAsFQDN": true}),
                "web-0.web.shop.svc.cluster.local",
                "web.shop.svc.cluster.local",
            ),
            (json!({"hostname": long}), &"x".repeat(62), ""),
        ] {
            let expected = Names { hostname: hostname.into(), domain: domain.into() };
            assert_eq!(names(&pod(spec.clone())), Ok(expected), "{spec}");
        }
        let spec = json!({"subdomain": "s".repeat(40), "setHostnameAsFQDN": true});
        assert!(names(&pod(spec)).unwrap_err().contains("is too long (64 characters is the max, 69"));
    }

    #[test]
    fn dns_config_is_added_to_what_the_policy_gives() {
        let node =
            "# made by hand\nnameserver 10.0.0.1\nsearch a.example b.example\noptions ndots:1 rotate\n";
        assert_eq!(resolver(&pod(json!({"dnsPolicy": "Default"})), node), None);
        assert_eq!(resolver(&pod(json!({})), node), None);
        let config = json!({"nameservers": ["10.0.0.2", "10.0.0.1"], "searches": ["c.example"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        let got = resolver(&pod(json!({"dnsPolicy": "Default", "dnsConfig": config})), node).unwrap();
        assert_eq!(got.servers, ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(got.searches, ["a.example", "b.example", "c.example"]);
        assert_eq!(got.options, ["ndots:2", "rotate", "edns0"]);
        let got = resolver(&pod(json!({"dnsPolicy": "None", "dnsConfig": config})), node).unwrap();
        assert_eq!((got.servers.len(), got.searches.len()), (2, 1));
        assert_eq!(got.options, ["ndots:2", "edns0"]);
    }
}
