//! Pods, and what makes pods of a template.

use serde_json::Value;

use super::{
    containers::{containers, tolerations, volumes},
    write::{Text, ago, boolean, list, plain, time},
};
use crate::cli::{
    error::Outcome,
    output::table,
    session::{Session, with_query},
};

/// A pod.
pub fn pod(text: &mut Text, pod: &Value) {
    let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
    text.field(0, "Name", plain(&metadata["name"]));
    text.field(0, "Namespace", plain(&metadata["namespace"]));
    text.field_if(0, "Priority", &spec["priority"]);
    text.field_if(0, "Priority Class Name", &spec["priorityClassName"]);
    text.field_if(0, "Runtime Class Name", &spec["runtimeClassName"]);
    text.field_if(0, "Service Account", &spec["serviceAccountName"]);
    let node = spec["nodeName"].as_str().filter(|n| !n.is_empty());
    text.field(0, "Node", node.map_or("<none>".into(), |n| format!("{n}/{}", plain(&status["hostIP"]))));
    if !status["startTime"].is_null() {
        text.field(0, "Start Time", time(&status["startTime"]));
    }
    text.labels("Labels", &metadata["labels"]);
    text.annotations("Annotations", &metadata["annotations"]);
    let phase = plain(&status["phase"]);
    if !metadata["deletionTimestamp"].is_null() && phase != "Failed" && phase != "Succeeded" {
        text.field(0, "Status", format!("Terminating (lasts {})", ago(&metadata["deletionTimestamp"])));
        let grace = metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        text.field(0, "Termination Grace Period", format!("{grace}s"));
    } else {
        text.field(0, "Status", phase);
    }
    text.field_if(0, "Reason", &status["reason"]);
    text.field_if(0, "Message", &status["message"]);
    text.field_if(0, "SeccompProfile", &spec["securityContext"]["seccompProfile"]["type"]);
    text.field(0, "IP", plain(&status["podIP"]));
    addresses(text, status);
    if let Some(owner) = controller_of(metadata) {
        text.field(0, "Controlled By", owner);
    }
    text.field_if(0, "NominatedNodeName", &status["nominatedNodeName"]);
    if !list(&spec["initContainers"]).is_empty() {
        let statuses = list(&status["initContainerStatuses"]);
        containers(text, "Init Containers", list(&spec["initContainers"]), statuses, pod, "");
    }
    containers(text, "Containers", list(&spec["containers"]), list(&status["containerStatuses"]), pod, "");
    conditions(text, spec, status);
    volumes(text, list(&spec["volumes"]), "");
    text.field(0, "QoS Class", plain(&status["qosClass"]));
    text.labels("Node-Selectors", &spec["nodeSelector"]);
    tolerations(text, "Tolerations", list(&spec["tolerations"]));
}

fn addresses(text: &mut Text, status: &Value) {
    let all = list(&status["podIPs"]);
    if all.is_empty() {
        return text.field(0, "IPs", "<none>");
    }
    text.line(0, "IPs:");
    for address in all {
        text.field(1, "IP", plain(&address["ip"]));
    }
}

fn conditions(text: &mut Text, spec: &Value, status: &Value) {
    let all = list(&status["conditions"]);
    let gates = list(&spec["readinessGates"]);
    if !gates.is_empty() {
        text.line(0, "Readiness Gates:");
        text.line(1, "Type\tStatus");
        for gate in gates {
            let found = all.iter().find(|c| c["type"] == gate["conditionType"]);
            let status = found.map_or("<none>".into(), |c| plain(&c["status"]));
            text.line(1, format!("{} \t{status} ", plain(&gate["conditionType"])));
        }
    }
    if !all.is_empty() {
        text.line(0, "Conditions:");
        text.line(1, "Type\tStatus");
    }
    for condition in all {
        text.line(1, format!("{} \t{} ", plain(&condition["type"]), plain(&condition["status"])));
    }
}

/// `ReplicationController/web`.
fn controller_of(metadata: &Value) -> Option<String> {
    let owner = list(&metadata["ownerReferences"]).iter().find(|o| boolean(&o["controller"]) == "True")?;
    Some(format!("{}/{}", plain(&owner["kind"]), plain(&owner["name"])))
}

/// A replication controller, with how its pods are.
pub async fn controller(text: &mut Text, session: &Session, object: &Value) -> Outcome {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    text.field(0, "Name", plain(&metadata["name"]));
    text.field(0, "Namespace", plain(&metadata["namespace"]));
    text.field(0, "Selector", table::labels(&spec["selector"]));
    text.labels("Labels", &metadata["labels"]);
    text.annotations("Annotations", &metadata["annotations"]);
    let number = |v: &Value, or: i64| v.as_i64().unwrap_or(or);
    text.field(
        0,
        "Replicas",
        format!("{} current / {} desired", number(&status["replicas"], 0), number(&spec["replicas"], 1)),
    );
    text.field(0, "Pods Status", pods_status(session, object).await?);
    template(text, &spec["template"]);
    let conditions = list(&status["conditions"]);
    if !conditions.is_empty() {
        text.line(0, "Conditions:");
        text.line(1, "Type\tStatus\tReason");
        text.line(1, "----\t------\t------");
    }
    for c in conditions {
        text.line(1, format!("{} \t{}\t{}", plain(&c["type"]), plain(&c["status"]), plain(&c["reason"])));
    }
    Ok(())
}

async fn pods_status(session: &Session, object: &Value) -> Outcome<String> {
    let pods = session.kinds().await?.resolve("pods")?;
    let selector = table::labels(&object["spec"]["selector"]);
    let namespace = object["metadata"]["namespace"].as_str();
    let path = with_query(&pods.collection(namespace), &[("labelSelector", Some(selector))]);
    let all = session.client.get(&path).await?;
    let uid = &object["metadata"]["uid"];
    let ours = |p: &&Value| {
        list(&p["metadata"]["ownerReferences"]).iter().any(|o| o["uid"] == *uid && o["controller"] == true)
    };
    let count = |phase: &str| {
        list(&all["items"]).iter().filter(ours).filter(|p| p["status"]["phase"] == phase).count()
    };
    Ok(format!(
        "{} Running / {} Waiting / {} Succeeded / {} Failed",
        count("Running"),
        count("Pending"),
        count("Succeeded"),
        count("Failed")
    ))
}

fn template(text: &mut Text, template: &Value) {
    text.line(0, "Pod Template:");
    if !template.is_object() {
        return text.line(1, "<unset>");
    }
    let (metadata, spec) = (&template["metadata"], &template["spec"]);
    text.labels("  Labels", &metadata["labels"]);
    if metadata["annotations"].as_object().is_some_and(|a| !a.is_empty()) {
        text.annotations("  Annotations", &metadata["annotations"]);
    }
    text.field_if(1, "Service Account", &spec["serviceAccountName"]);
    if !list(&spec["initContainers"]).is_empty() {
        containers(text, "Init Containers", list(&spec["initContainers"]), &[], &Value::Null, "  ");
    }
    containers(text, "Containers", list(&spec["containers"]), &[], &Value::Null, "  ");
    volumes(text, list(&spec["volumes"]), "  ");
    text.field_if(1, "Priority Class Name", &spec["priorityClassName"]);
    text.labels("  Node-Selectors", &spec["nodeSelector"]);
    tolerations(text, "  Tolerations", list(&spec["tolerations"]));
}
