//! Nodes: their state, what they have, and what their pods ask of it.

use serde_json::Value;

use super::write::{Text, ago, list, pairs, plain, time};
use crate::{
    cli::{
        discovery::escape,
        error::Outcome,
        session::{Session, name_of, with_query},
        target::PAGE,
    },
    model::quantity::parse_milli,
};

const ROLE: &str = "node-role.kubernetes.io/";

/// A node.
pub async fn node(text: &mut Text, session: &Session, node: &Value) -> Outcome {
    let (metadata, spec, status) = (&node["metadata"], &node["spec"], &node["status"]);
    text.field(0, "Name", name_of(node));
    let roles: Vec<String> = pairs(&metadata["labels"])
        .into_iter()
        .filter_map(|(k, _)| k.strip_prefix(ROLE).map(str::to_owned))
        .collect();
    text.field(0, "Roles", if roles.is_empty() { "<none>".into() } else { roles.join(",") });
    text.labels("Labels", &metadata["labels"]);
    text.annotations("Annotations", &metadata["annotations"]);
    text.field(0, "CreationTimestamp", time(&metadata["creationTimestamp"]));
    let mut taints: Vec<String> = list(&spec["taints"])
        .iter()
        .map(|t| {
            let value = plain(&t["value"]);
            let value = if value.is_empty() { value } else { format!("={value}") };
            format!("{}{value}:{}", plain(&t["key"]), plain(&t["effect"]))
        })
        .collect();
    taints.sort();
    text.lines("Taints", taints);
    text.field(0, "Unschedulable", spec["unschedulable"].as_bool().unwrap_or(false).to_string());
    lease(text, session, name_of(node)).await;
    conditions(text, status);
    text.line(0, "Addresses:");
    for address in list(&status["addresses"]) {
        text.field(1, &plain(&address["type"]), plain(&address["address"]));
    }
    for (name, field) in [("Capacity", "capacity"), ("Allocatable", "allocatable")] {
        let resources = pairs(&status[field]);
        if !resources.is_empty() {
            text.line(0, format!("{name}:"));
        }
        for (resource, quantity) in resources {
            text.field(1, &resource, quantity);
        }
    }
    system(text, &status["nodeInfo"]);
    if let Some(cidr) = spec["podCIDR"].as_str().filter(|c| !c.is_empty()) {
        text.field(0, "PodCIDR", cidr);
    }
    let cidrs: Vec<String> = list(&spec["podCIDRs"]).iter().map(plain).collect();
    if !cidrs.is_empty() {
        text.field(0, "PodCIDRs", cidrs.join(","));
    }
    text.field_if(0, "ProviderID", &spec["providerID"]);
    pods(text, session, node).await
}

/// The heartbeat, where the cluster keeps it as an object.
async fn lease(text: &mut Text, session: &Session, name: &str) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}", escape(name));
    match session.client.get(&path).await {
        Ok(lease) => {
            let spec = &lease["spec"];
            let or_unset = |v: &Value| if v.is_null() { "<unset>".to_owned() } else { time(v) };
            text.line(0, "Lease:");
            text.field(1, "HolderIdentity", spec["holderIdentity"].as_str().unwrap_or("<unset>"));
            text.field(1, "AcquireTime", or_unset(&spec["acquireTime"]));
            text.field(1, "RenewTime", or_unset(&spec["renewTime"]));
        }
        Err(error) => text.field(0, "Lease", format!("Failed to get lease: {error}")),
    }
}

fn conditions(text: &mut Text, status: &Value) {
    let all = list(&status["conditions"]);
    if all.is_empty() {
        return;
    }
    text.line(0, "Conditions:");
    text.line(1, "Type\tStatus\tLastHeartbeatTime\tLastTransitionTime\tReason\tMessage");
    text.line(1, "----\t------\t-----------------\t------------------\t------\t-------");
    for c in all {
        text.line(
            1,
            format!(
                "{} \t{} \t{} \t{} \t{} \t{}",
                plain(&c["type"]),
                plain(&c["status"]),
                time(&c["lastHeartbeatTime"]),
                time(&c["lastTransitionTime"]),
                plain(&c["reason"]),
                plain(&c["message"])
            ),
        );
    }
}

fn system(text: &mut Text, info: &Value) {
    text.line(0, "System Info:");
    for (name, field) in [
        ("Machine ID", "machineID"),
        ("System UUID", "systemUUID"),
        ("Boot ID", "bootID"),
        ("Kernel Version", "kernelVersion"),
        ("OS Image", "osImage"),
        ("Operating System", "operatingSystem"),
        ("Architecture", "architecture"),
        ("Container Runtime Version", "containerRuntimeVersion"),
        ("Kubelet Version", "kubeletVersion"),
        ("Kube-Proxy Version", "kubeProxyVersion"),
    ] {
        text.field(1, name, plain(&info[field]));
    }
}

/// Pods that have not ended, and the sums of what they ask for.
async fn pods(text: &mut Text, session: &Session, node: &Value) -> Outcome {
    let fields = format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", name_of(node));
    let kind = session.kinds().await?.resolve("pods")?;
    let query = [("fieldSelector", Some(fields)), ("limit", Some(PAGE.to_string()))];
    let found = session.client.get(&with_query(&kind.collection(None), &query)).await?;
    let pods = list(&found["items"]);
    let status = &node["status"];
    let allocatable =
        if status["allocatable"].is_object() { &status["allocatable"] } else { &status["capacity"] };
    let share = |field: &str, resource: &str, pods: &[Value]| {
        let asked = asked(field, resource, pods);
        let has = parse_milli(&plain(&allocatable[resource])).unwrap_or(0);
        let percent = if has > 0 { asked * 100 / has } else { 0 };
        format!("{} ({percent}%)", quantity(asked, resource))
    };
    text.field(0, "Non-terminated Pods", format!("({} in total)", pods.len()));
    text.line(1, "Namespace\tName\t\tCPU Requests\tCPU Limits\tMemory Requests\tMemory Limits\tAge");
    text.line(1, "---------\t----\t\t------------\t----------\t---------------\t-------------\t---");
    for pod in pods {
        let one = std::slice::from_ref(pod);
        text.line(
            1,
            format!(
                "{}\t{}\t\t{}\t{}\t{}\t{}\t{}",
                plain(&pod["metadata"]["namespace"]),
                name_of(pod),
                share("requests", "cpu", one),
                share("limits", "cpu", one),
                share("requests", "memory", one),
                share("limits", "memory", one),
                ago(&pod["metadata"]["creationTimestamp"])
            ),
        );
    }
    text.line(0, "Allocated resources:");
    text.line(1, "(Total limits may be over 100 percent, i.e., overcommitted.)");
    text.line(1, "Resource\tRequests\tLimits");
    text.line(1, "--------\t--------\t------");
    let mut resources = vec!["cpu".to_owned(), "memory".into(), "ephemeral-storage".into()];
    let further = pairs(allocatable).into_iter().map(|(name, _)| name);
    resources.extend(further.filter(|n| n.contains('/') || n.starts_with("hugepages-")));
    for resource in resources {
        text.line(
            1,
            format!(
                "{resource}\t{}\t{}",
                share("requests", &resource, pods),
                share("limits", &resource, pods)
            ),
        );
    }
    Ok(())
}

/// The sum over containers, in thousandths. An init container counts where it asks for more than all others together.
fn asked(field: &str, resource: &str, pods: &[Value]) -> i128 {
    let of = |c: &Value| parse_milli(&plain(&c["resources"][field][resource])).unwrap_or(0);
    let of_pod = |pod: &Value| {
        let main: i128 = list(&pod["spec"]["containers"]).iter().map(of).sum();
        let init = list(&pod["spec"]["initContainers"]).iter().map(of).max().unwrap_or(0);
        main.max(init) + parse_milli(&plain(&pod["spec"]["overhead"][resource])).unwrap_or(0)
    };
    pods.iter().map(of_pod).sum()
}

/// Thousandths as a quantity: processors in decimal, bytes in binary units.
fn quantity(milli: i128, resource: &str) -> String {
    if milli % 1000 != 0 {
        return format!("{milli}m");
    }
    let mut value = milli / 1000;
    if resource == "cpu" || value == 0 {
        return value.to_string();
    }
    let mut suffix = "";
    for unit in ["Ki", "Mi", "Gi", "Ti", "Pi"] {
        if value % 1024 != 0 {
            break;
        }
        value /= 1024;
        suffix = unit;
    }
    format!("{value}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn requests_are_summed_and_told_in_their_units() {
        let pod = json!({"spec": {"containers": [
            {"resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}},
            {"resources": {"requests": {"cpu": "1", "memory": "64Mi"}}}]}});
        let pods = [pod.clone(), pod];
        assert_eq!(quantity(asked("requests", "cpu", &pods), "cpu"), "2500m");
        assert_eq!(quantity(asked("requests", "memory", &pods), "memory"), "256Mi");
        assert_eq!(quantity(asked("limits", "memory", &pods), "memory"), "0");
    }
}
