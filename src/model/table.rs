//! The columns of `kubectl get`: what a `Table` answer shows for each kind.
//!
//! Owns: columns and cells of all kinds but the pod's, whose logic is in `table_pod.rs`; and [`human_duration`], how
//! ages are told. Invariant: a row has one cell for each of its kind's columns, whatever the object holds.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1, jiff::Timestamp};
use serde_json::Value;

use super::{Kind, Labels, Object, table_pod};

/// A column's definition, as in `Table.columnDefinitions`.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// `Name`.
    pub name: &'static str,
    /// `string`, `integer`.
    pub type_: &'static str,
    /// `name` or empty.
    pub format: &'static str,
    /// A sentence.
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

const NAME: Column = Column {
    name: "Name",
    type_: "string",
    format: "name",
    description: "The object's name, unique within its namespace and kind.",
    priority: 0,
};
const AGE: Column = text("Age", "Time since the object was created.");

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", description, priority: 0 }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "integer", format: "", description, priority: 0 }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, type_: "string", format: "", description, priority: 1 }
}

/// The columns of a kind.
pub fn columns(kind: Kind) -> &'static [Column] {
    match kind {
        Kind::Pod => {
            const {
                &[
                    NAME,
                    text("Ready", "Containers that are ready, of all that should be."),
                    text("Status", "What state the pod is in, or why it is not in a better one."),
                    text("Restarts", "How often containers were restarted, and when last."),
                    AGE,
                    wide("IP", "The pod's address."),
                    wide("Node", "The node the pod is bound to."),
                    wide("Nominated Node", "The node the pod is to get once others have left it."),
                    wide("Readiness Gates", "Conditions of the pod's readiness that hold, of all it names."),
                ]
            }
        }
        Kind::ReplicationController => {
            const {
                &[
                    NAME,
                    number("Desired", "How many pods there should be."),
                    number("Current", "How many pods there are."),
                    number("Ready", "How many pods are ready."),
                    AGE,
                    wide("Containers", "The template's containers."),
                    wide("Images", "The template's images."),
                    wide("Selector", "Which pods are the controller's."),
                ]
            }
        }
        Kind::Node => {
            const {
                &[
                    NAME,
                    text("Status", "Whether the node is ready and takes pods."),
                    text("Roles", "The node's roles, from its labels."),
                    AGE,
                    text("Version", "The version of the node's kubelet."),
                    wide("Internal-IP", "The node's address within the cluster."),
                    wide("External-IP", "The node's address from outside."),
                    wide("OS-Image", "The node's operating system."),
                    wide("Kernel-Version", "The node's kernel."),
                    wide("Container-Runtime", "What runs the node's containers."),
                ]
            }
        }
        Kind::Service => {
            const {
                &[
                    NAME,
                    text("Type", "How the service is reached."),
                    text("Cluster-IP", "The service's address within the cluster."),
                    text("External-IP", "The service's addresses from outside."),
                    text("Port(s)", "The service's ports."),
                    AGE,
                    wide("Selector", "Which pods stand behind the service."),
                ]
            }
        }
        Kind::Namespace => {
            const { &[NAME, text("Status", "Whether the namespace is active or terminating."), AGE] }
        }
        Kind::Endpoints => {
            const { &[NAME, text("Endpoints", "Addresses and ports behind the service."), AGE] }
        }
        Kind::Event => {
            const {
                &[
                    text("Last Seen", "Time since it was last seen."),
                    text("Type", "Normal or Warning."),
                    text("Reason", "Why, in one word."),
                    text("Object", "What it speaks of."),
                    wide("Subobject", "Which part of it."),
                    wide("Source", "Who saw it."),
                    text("Message", "What happened."),
                    wide("First Seen", "Time since it was first seen."),
                    wide("Count", "How often it was seen."),
                    Column { priority: 1, ..NAME },
                ]
            }
        }
        Kind::ConfigMap => const { &[NAME, number("Data", "How many keys it has."), AGE] },
        Kind::Secret => {
            const { &[NAME, text("Type", "What it is for."), number("Data", "How many keys it has."), AGE] }
        }
        Kind::ServiceAccount => const { &[NAME, number("Secrets", "How many secrets it names."), AGE] },
    }
}

/// The cells of an object's row, one for each column.
pub fn cells(object: &Object, now: Timestamp) -> Vec<Value> {
    let kind = object.key.kind;
    let typed = match kind {
        Kind::Pod => object.parse().ok().map(|p| table_pod::cells(&p, now)),
        Kind::ReplicationController => object.parse().ok().map(|rc| controller(&rc)),
        Kind::Node => object.parse().ok().map(|n| node(&n)),
        Kind::Service => object.parse().ok().map(|s| service(&s)),
        Kind::Namespace => object.parse().ok().map(|n| namespace(&n)),
        Kind::Endpoints => object.parse().ok().map(|e| vec![endpoints(&e).into()]),
        Kind::Event => object.parse().ok().map(|e| event(&e, now)),
        Kind::ConfigMap => object.parse().ok().map(|c: v1::ConfigMap| {
            vec![(c.data.map_or(0, |d| d.len()) + c.binary_data.map_or(0, |d| d.len())).into()]
        }),
        Kind::Secret => object.parse().ok().map(|s: v1::Secret| {
            vec![s.type_.unwrap_or_default().into(), s.data.map_or(0, |d| d.len()).into()]
        }),
        Kind::ServiceAccount => {
            object.parse().ok().map(|s: v1::ServiceAccount| vec![s.secrets.map_or(0, |s| s.len()).into()])
        }
    };
    let mut cells = typed.unwrap_or_default();
    if kind != Kind::Event {
        // Name comes first, age where its column is: what the kinds have in common.
        cells.insert(0, object.key.name.to_string().into());
        let age = columns(kind).iter().position(|c| c.name == AGE.name).unwrap_or(cells.len());
        cells.resize(cells.len().max(age), Value::Null);
        cells.insert(age, since(Some(object.facet.meta.created), now).into());
    }
    cells.resize(columns(kind).len(), Value::Null);
    cells
}

/// Time since then; `<unknown>` when it never was.
pub(crate) fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    match then.filter(|t| *t != Timestamp::UNIX_EPOCH) {
        Some(then) => human_duration(now.as_second() - then.as_second()),
        None => UNKNOWN.to_owned(),
    }
}

const UNKNOWN: &str = "<unknown>";
pub(crate) const NONE: &str = "<none>";

/// Seconds as people say them, with the precision that matters at that size: `5s`, `2m3s`, `3h`, `5d2h`, `2y40d`.
/// As Kubernetes' `duration.HumanDuration`; what lies up to a second in the future is `0s`, later `<invalid>`.
pub fn human_duration(seconds: i64) -> String {
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let (days, years) = (hours / 24, hours / 24 / 365);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    if seconds < 120 {
        format!("{seconds}s")
    } else if minutes < 10 {
        pair(minutes, "m", seconds % 60, "s")
    } else if minutes < 180 {
        format!("{minutes}m")
    } else if hours < 8 {
        pair(hours, "h", minutes % 60, "m")
    } else if hours < 48 {
        format!("{hours}h")
    } else if hours < 192 {
        pair(days, "d", hours % 24, "h")
    } else if days < 730 {
        format!("{days}d")
    } else if years < 8 {
        pair(years, "y", days % 365, "d")
    } else {
        format!("{years}y")
    }
}

/// `a=b,c=d`, or `<none>`.
pub(crate) fn labels_text(labels: Option<&Labels>) -> String {
    let parts: Vec<String> = labels.into_iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    or_none(parts.join(","))
}

fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}

fn controller(rc: &v1::ReplicationController) -> Vec<Value> {
    let spec = rc.spec.as_ref();
    let status = rc.status.as_ref();
    let pod = spec.and_then(|s| s.template.as_ref()).and_then(|t| t.spec.as_ref());
    let join = |of: fn(&v1::Container) -> &str| {
        pod.map(|p| p.containers.iter().map(of).collect::<Vec<_>>().join(",")).unwrap_or_default()
    };
    vec![
        spec.and_then(|s| s.replicas).unwrap_or(0).into(),
        status.map_or(0, |s| s.replicas).into(),
        status.and_then(|s| s.ready_replicas).unwrap_or(0).into(),
        join(|c| &c.name).into(),
        join(|c| c.image.as_deref().unwrap_or_default()).into(),
        labels_text(spec.and_then(|s| s.selector.as_ref())).into(),
    ]
}

fn node(node: &v1::Node) -> Vec<Value> {
    let status = node.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    let mut state = match ready.map(|c| c.status.as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
        state.push_str(",SchedulingDisabled");
    }
    let mut roles = BTreeSet::new();
    for (key, value) in node.metadata.labels.iter().flatten() {
        if let Some(role) = key.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty()) {
            roles.insert(role.to_owned());
        } else if key == "kubernetes.io/role" && !value.is_empty() {
            roles.insert(value.clone());
        }
    }
    let address = |type_: &str| {
        let of = status.addresses.iter().flatten().find(|a| a.type_ == type_);
        of.map_or(NONE, |a| a.address.as_str()).to_owned()
    };
    let info = status.node_info.clone().unwrap_or_default();
    let known = |text: String| if text.is_empty() { UNKNOWN.to_owned() } else { text };
    vec![
        state.into(),
        or_none(roles.into_iter().collect::<Vec<_>>().join(",")).into(),
        info.kubelet_version.into(),
        address("InternalIP").into(),
        address("ExternalIP").into(),
        known(info.os_image).into(),
        known(info.kernel_version).into(),
        known(info.container_runtime_version).into(),
    ]
}

fn service(service: &v1::Service) -> Vec<Value> {
    let spec = service.spec.clone().unwrap_or_default();
    let type_ = spec.type_.clone().unwrap_or_default();
    let internal = spec.cluster_ip.clone().filter(|ip| !ip.is_empty());
    let ports: Vec<String> = spec
        .ports
        .iter()
        .flatten()
        .map(|p| {
            let protocol = p.protocol.as_deref().unwrap_or("TCP");
            match p.node_port.filter(|n| *n > 0) {
                Some(node) => format!("{}:{node}/{protocol}", p.port),
                None => format!("{}/{protocol}", p.port),
            }
        })
        .collect();
    let outside = external_ips(service, &spec, &type_);
    vec![
        type_.into(),
        internal.unwrap_or_else(|| NONE.into()).into(),
        outside.into(),
        or_none(ports.join(",")).into(),
        labels_text(spec.selector.as_ref()).into(),
    ]
}

fn external_ips(service: &v1::Service, spec: &v1::ServiceSpec, type_: &str) -> String {
    let listed = spec.external_ips.clone().unwrap_or_default();
    match type_ {
        "ClusterIP" | "NodePort" => or_none(listed.join(",")),
        "LoadBalancer" => {
            let balancer = service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
            let mut given: BTreeSet<String> = balancer
                .iter()
                .flat_map(|b| b.ingress.iter().flatten())
                .filter_map(|i| i.ip.clone().filter(|ip| !ip.is_empty()).or_else(|| i.hostname.clone()))
                .collect();
            given.extend(listed);
            if given.is_empty() {
                "<pending>".to_owned()
            } else {
                given.into_iter().collect::<Vec<_>>().join(",")
            }
        }
        "ExternalName" => spec.external_name.clone().unwrap_or_default(),
        _ => UNKNOWN.to_owned(),
    }
}

fn namespace(namespace: &v1::Namespace) -> Vec<Value> {
    vec![namespace.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default().into()]
}

/// The first three `address:port`, and how many more there are.
fn endpoints(endpoints: &v1::Endpoints) -> String {
    const SHOWN: usize = 3;
    let subsets = endpoints.subsets.as_deref().unwrap_or_default();
    let (mut shown, mut count) = (Vec::new(), 0);
    for subset in subsets {
        let addresses = subset.addresses.as_deref().unwrap_or_default();
        let ports = subset.ports.as_deref().unwrap_or_default();
        let mut put = |text: String| {
            count += 1;
            if shown.len() < SHOWN {
                shown.push(text);
            }
        };
        if ports.is_empty() {
            addresses.iter().for_each(|a| put(a.ip.clone()));
        }
        for port in ports {
            for address in addresses {
                put(if address.ip.contains(':') {
                    format!("[{}]:{}", address.ip, port.port)
                } else {
                    format!("{}:{}", address.ip, port.port)
                });
            }
        }
    }
    if count > SHOWN {
        format!("{} + {} more...", shown.join(","), count - SHOWN)
    } else {
        or_none(shown.join(","))
    }
}

fn event(event: &v1::Event, now: Timestamp) -> Vec<Value> {
    let exact = event.event_time.as_ref().map(|t| t.0);
    let first = event.first_timestamp.as_ref().map(|t| t.0).or(exact);
    let first_seen = since(first, now);
    let (last_seen, count) = match (&event.series, &event.last_timestamp) {
        (Some(series), _) => {
            (since(series.last_observed_time.as_ref().map(|t| t.0), now), series.count.unwrap_or(0))
        }
        (None, Some(last)) => (since(Some(last.0), now), event.count.unwrap_or(0)),
        (None, None) => (first_seen.clone(), event.count.unwrap_or(0)),
    };
    // A count of none means once.
    let count = count.max(1);
    let involved = &event.involved_object;
    let object = match involved.name.as_deref().unwrap_or_default() {
        "" => involved.kind.clone().unwrap_or_default().to_lowercase(),
        name => format!("{}/{name}", involved.kind.as_deref().unwrap_or_default().to_lowercase()),
    };
    let source = event.source.clone().unwrap_or_default();
    let component = source.component.filter(|c| !c.is_empty());
    let component = component.or_else(|| event.reporting_component.clone()).unwrap_or_default();
    let host = source.host.filter(|h| !h.is_empty()).or_else(|| event.reporting_instance.clone());
    let from: Vec<String> = [Some(component), host].into_iter().flatten().filter(|p| !p.is_empty()).collect();
    vec![
        last_seen.into(),
        event.type_.clone().unwrap_or_default().into(),
        event.reason.clone().unwrap_or_default().into(),
        object.into(),
        involved.field_path.clone().unwrap_or_default().into(),
        from.join(", ").into(),
        event.message.clone().unwrap_or_default().trim().to_owned().into(),
        first_seen.into(),
        count.into(),
        event.metadata.name.clone().unwrap_or_default().into(),
    ]
}

#[cfg(test)]
#[path = "table_tests.rs"]
mod tests;
