//! What actors need to know of each kind, drawn from the typed object once.
//!
//! Owns: the compact per-kind facets (a typed `Pod` is 2.4 KB before its heap; its facet a few hundred bytes) and the
//! [`Stored`] impls. Invariant: drawing is pure and total: whatever a field holds, drawing does not fail; validation
//! has refused bad values before.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use super::{
    Kind, Labels, NodeName, Stored,
    extended::{self, Extended},
    huge_pages,
    object::shared,
    quantity,
};

/// The part of a facet that depends on the kind.
#[derive(Clone, Debug)]
pub enum KindFacet {
    /// A pod.
    Pod(Arc<PodFacet>),
    /// A node.
    Node(Arc<NodeFacet>),
    /// A replication controller.
    ReplicationController(Arc<ControllerFacet>),
    /// A service.
    Service(Arc<ServiceFacet>),
    /// A namespace; whether it is terminating is in its metadata.
    Namespace,
    /// An event.
    Event(Arc<EventFacet>),
    /// A kind whose content no actor reads.
    Other,
}

/// A pod's phase.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    /// Not all containers have started.
    #[default]
    Pending,
    /// At least one container runs or is being restarted.
    Running,
    /// Every container ended with 0 and none will be restarted.
    Succeeded,
    /// Every container ended, at least one with failure, and none will be restarted.
    Failed,
    /// The node cannot be asked.
    Unknown,
}

impl Phase {
    /// As in `status.phase`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Pending => "Pending",
            Phase::Running => "Running",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Unknown => "Unknown",
        }
    }

    /// From `status.phase`; what is missing or not known is `Pending`.
    pub fn parse(text: Option<&str>) -> Phase {
        match text {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        }
    }

    /// Whether the pod will never run again.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed)
    }
}

/// Amounts of what nodes have and pods ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resources {
    /// Thousandths of a core.
    pub cpu_milli: i64,
    /// Bytes.
    pub memory_bytes: i64,
    /// Bytes on local disk.
    pub ephemeral_bytes: i64,
    /// Number of pods.
    pub pods: i64,
    /// Bytes of huge pages, in the order of [`huge_pages::SIZES`], and then those of all other sizes, which no node has.
    pub huge_bytes: [i64; HUGE],
}

/// The known sizes and one more.
const HUGE: usize = huge_pages::SIZES.len() + 1;

/// What actors read of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodFacet {
    /// The node it is bound to.
    pub node: Option<NodeName>,
    /// Its phase.
    pub phase: Phase,
    /// Its `Ready` condition.
    pub ready: bool,
    /// When `Ready` last changed, seconds since the epoch; of pods on nodes by the master's clock.
    pub ready_since: i64,
    /// Sum of its containers' restarts.
    pub restarts: i32,
    /// What its containers ask for together; `pods` is 1.
    pub requests: Resources,
    /// What they ask for of resources that are not measured, by name.
    pub extended: Extended,
    /// Node labels it insists on.
    pub node_selector: Labels,
    /// The taints it bears.
    pub tolerations: Arc<[v1::Toleration]>,
    /// Affinities as written, when there are any.
    pub affinity: Option<Arc<v1::Affinity>>,
    /// Ports it takes on the node: (host IP in the one form of that address or "", protocol, port).
    pub host_ports: Arc<[(String, String, i32)]>,
    /// Its address, once it has one.
    pub ip: Option<String>,
    /// Named container ports: (name, protocol, port), for services that target a name.
    pub ports: Arc<[(String, String, i32)]>,
    /// It has scheduling gates: nobody is to place it yet.
    pub gated: bool,
    /// `spec.schedulerName`, when not the default.
    pub scheduler: Option<String>,
    /// `spec.priority`.
    pub priority: i32,
    /// Whether `PodScheduled=False` already says that no node fits.
    pub unschedulable: bool,
}

/// What actors read of a node.
#[derive(Clone, Debug, Default)]
pub struct NodeFacet {
    /// What pods may use.
    pub allocatable: Resources,
    /// What it is said to have beside that, by name.
    pub extended: Extended,
    /// `spec.unschedulable`.
    pub cordoned: bool,
    /// Its `Ready` condition is `True`.
    pub ready: bool,
    /// Its taints.
    pub taints: Arc<[v1::Taint]>,
    /// The pods' subnet, `spec.podCIDR`.
    pub pod_cidr: Option<String>,
    /// Its internal address.
    pub internal_ip: Option<String>,
}

/// What actors read of a replication controller.
#[derive(Clone, Debug, Default)]
pub struct ControllerFacet {
    /// `spec.replicas`, 1 when absent.
    pub replicas: i32,
    /// `spec.selector`; the template's labels when absent.
    pub selector: Labels,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i32,
}

/// What actors read of a service.
#[derive(Clone, Debug, Default)]
pub struct ServiceFacet {
    /// Which pods stand behind it; none for a service without selector.
    pub selector: Option<Labels>,
    /// Its ports.
    pub ports: Arc<[v1::ServicePort]>,
    /// Its cluster address, or "None".
    pub cluster_ip: Option<String>,
    /// Whether not-ready addresses count as ready.
    pub publish_not_ready: bool,
}

/// What actors and field selectors read of an event. There are many of them, so their short texts lie in one.
#[derive(Clone, Debug, Default)]
pub struct EventFacet {
    texts: Box<str>,
    /// Where each text ends, in the order of [`EventText`].
    ends: [u32; EVENT_TEXTS],
    /// How often.
    pub count: i32,
    /// Seconds since the epoch when it was last seen.
    pub last_seen: i64,
}

/// A text that an event has; empty when it does not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventText {
    /// What it speaks of: `involvedObject.apiVersion`.
    ApiVersion,
    /// `involvedObject.kind`.
    Kind,
    /// `involvedObject.namespace`.
    Namespace,
    /// `involvedObject.name`.
    Name,
    /// `involvedObject.uid`.
    Uid,
    /// `involvedObject.resourceVersion`.
    ResourceVersion,
    /// `involvedObject.fieldPath`.
    FieldPath,
    /// Why, in one word.
    Reason,
    /// `Normal` or `Warning`.
    Type,
    /// Who saw it.
    Component,
}

const EVENT_TEXTS: usize = EventText::Component as usize + 1;

impl EventFacet {
    /// One of its texts.
    pub fn text(&self, text: EventText) -> &str {
        let at = text as usize;
        let end = |at: usize| self.ends.get(at).map_or(0, |end| *end as usize);
        let begin = at.checked_sub(1).map_or(0, end);
        self.texts.get(begin..end(at)).unwrap_or_default()
    }
}

fn milli(q: Option<&Quantity>) -> i64 {
    q.and_then(|q| quantity::parse_milli(&q.0).ok()).and_then(|m| i64::try_from(m).ok()).unwrap_or(0)
}

fn units(q: Option<&Quantity>) -> i64 {
    q.and_then(|q| quantity::parse_units(&q.0).ok()).unwrap_or(0)
}

type Amounts = std::collections::BTreeMap<String, Quantity>;

fn huge(list: &Amounts) -> [i64; HUGE] {
    let mut all = [0; HUGE];
    for (name, amount) in list.range(huge_pages::PREFIX.to_owned()..) {
        if !name.starts_with(huge_pages::PREFIX) {
            break;
        }
        let page = huge_pages::page_bytes(name);
        let place = huge_pages::SIZES.iter().position(|(_, bytes)| Some(*bytes) == page);
        if let Some(sum) = all.get_mut(place.unwrap_or(HUGE - 1)) {
            *sum = units(Some(amount)).saturating_add(*sum);
        }
    }
    all
}

fn each<const N: usize>(one: [i64; N], other: [i64; N], both: fn(i64, i64) -> i64) -> [i64; N] {
    let mut result = one;
    for (value, other) in result.iter_mut().zip(other) {
        *value = both(*value, other);
    }
    result
}

impl Resources {
    /// From a Kubernetes resource list.
    pub fn of(list: &Amounts) -> Resources {
        Resources {
            cpu_milli: milli(list.get("cpu")),
            memory_bytes: units(list.get("memory")),
            ephemeral_bytes: units(list.get("ephemeral-storage")),
            pods: units(list.get("pods")),
            huge_bytes: huge(list),
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Resources) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_add(other.ephemeral_bytes),
            pods: self.pods.saturating_add(other.pods),
            huge_bytes: each(self.huge_bytes, other.huge_bytes, i64::saturating_add),
        }
    }

    /// The larger of both, field by field.
    #[must_use]
    pub fn max(self, other: Resources) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.max(other.ephemeral_bytes),
            pods: self.pods.max(other.pods),
            huge_bytes: each(self.huge_bytes, other.huge_bytes, i64::max),
        }
    }

    /// What is left after taking `other` away; may be negative.
    #[must_use]
    pub fn minus(self, other: Resources) -> Resources {
        Resources {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes),
            pods: self.pods.saturating_sub(other.pods),
            huge_bytes: each(self.huge_bytes, other.huge_bytes, i64::saturating_sub),
        }
    }
}

/// What a pod asks for: the sum over its containers, or the largest init container where that is more (as Kubernetes
/// computes it; sidecars and overhead included).
///
/// What its containers were given counts where that is more: a pod that shrinks holds what it has until it has shrunk, and
/// one whose growth its node cannot take (`Infeasible`) holds no more than it has.
fn pod_requests(spec: &v1::PodSpec, status: Option<&v1::PodStatus>) -> Resources {
    let told = |name: &str| {
        let all =
            status.into_iter().flat_map(|s| s.container_statuses.iter().chain(&s.init_container_statuses));
        all.flatten().find(|s| s.name == name)?.allocated_resources.as_ref().map(Resources::of)
    };
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let never =
        |c: &v1::PodCondition| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible");
    let infeasible = conditions.iter().any(never);
    let asked = asked_by(spec, |name, asked| match told(name) {
        Some(given) if infeasible => given,
        Some(given) => asked.max(given),
        None => asked,
    });
    Resources { pods: 1, ..asked }
}

/// What the containers of a pod ask for together.
pub fn requests_of(spec: &v1::PodSpec) -> Resources {
    asked_by(spec, |_, asked| asked)
}

fn asked_by(spec: &v1::PodSpec, counted: impl Fn(&str, Resources) -> Resources) -> Resources {
    let of = |c: &v1::Container| {
        let r = c.resources.as_ref();
        let mut sum = Resources::of(r.and_then(|r| r.requests.as_ref()).unwrap_or(&Amounts::new()));
        // Kubernetes' defaulting copies limits to missing requests; objects that came past it are read alike.
        if let Some(limits) = r.and_then(|r| r.limits.as_ref()) {
            let asked = r.and_then(|r| r.requests.as_ref());
            let missing = |k: &str| asked.is_none_or(|a| !a.contains_key(k));
            let limit = Resources::of(limits);
            if missing("cpu") {
                sum.cpu_milli = limit.cpu_milli;
            }
            if missing("memory") {
                sum.memory_bytes = limit.memory_bytes;
            }
        }
        counted(&c.name, sum)
    };
    let main = spec.containers.iter().map(of).fold(Resources::default(), Resources::plus);
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for init in spec.init_containers.iter().flatten() {
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.plus(of(init));
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars.plus(of(init)));
        }
    }
    let overhead = spec.overhead.as_ref().map(Resources::of).unwrap_or_default();
    main.plus(sidecars).max(peak).plus(overhead)
}

macro_rules! stored {
    ($type:ty, $kind:expr, $object:ident => $facet:expr) => {
        impl Stored for $type {
            const KIND: Kind = $kind;
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
            fn kind_facet(&self) -> KindFacet {
                let $object = self;
                $facet
            }
        }
    };
}

stored!(v1::Pod, Kind::Pod, pod => KindFacet::Pod(Arc::new(pod_facet(pod))));
stored!(v1::Node, Kind::Node, node => KindFacet::Node(Arc::new(node_facet(node))));
stored!(v1::ReplicationController, Kind::ReplicationController, rc => {
    KindFacet::ReplicationController(Arc::new(controller_facet(rc)))
});
stored!(v1::Service, Kind::Service, service => KindFacet::Service(Arc::new(service_facet(service))));
stored!(v1::Namespace, Kind::Namespace, _n => KindFacet::Namespace);
stored!(v1::Event, Kind::Event, event => KindFacet::Event(Arc::new(event_facet(event))));
stored!(v1::Endpoints, Kind::Endpoints, _o => KindFacet::Other);
stored!(v1::ConfigMap, Kind::ConfigMap, _o => KindFacet::Other);
stored!(v1::Secret, Kind::Secret, _o => KindFacet::Other);
stored!(v1::ServiceAccount, Kind::ServiceAccount, _o => KindFacet::Other);

fn pod_facet(pod: &v1::Pod) -> PodFacet {
    let status = pod.status.as_ref();
    let condition = |name: &str| {
        status.and_then(|s| s.conditions.as_ref()).and_then(|c| c.iter().find(|c| c.type_ == name))
    };
    let ready = condition("Ready");
    let mut facet = PodFacet {
        phase: Phase::parse(status.and_then(|s| s.phase.as_deref())),
        ready: ready.is_some_and(|c| c.status == "True"),
        ready_since: ready.and_then(|c| c.last_transition_time.as_ref()).map_or(0, |t| t.0.as_second()),
        restarts: status
            .and_then(|s| s.container_statuses.as_ref())
            .map_or(0, |c| c.iter().map(|c| c.restart_count).sum()),
        ip: status.and_then(|s| s.pod_ip.clone()).filter(|ip| !ip.is_empty()),
        unschedulable: condition("PodScheduled").is_some_and(|c| c.status == "False"),
        ..PodFacet::default()
    };
    let Some(spec) = pod.spec.as_ref() else { return facet };
    let ports = || spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let protocol = |p: &v1::ContainerPort| p.protocol.clone().unwrap_or_else(|| "TCP".into());
    // As whoever binds it understands it, which the scheduler compares.
    let host_ip = |p: &v1::ContainerPort| {
        let text = p.host_ip.clone().unwrap_or_default();
        text.parse::<IpAddr>().map_or(text, |address| address.to_canonical().to_string())
    };
    facet.node = spec.node_name.as_deref().filter(|n| !n.is_empty()).map(NodeName::from);
    facet.requests = pod_requests(spec, status);
    facet.extended = extended::requests_of(spec);
    facet.node_selector = spec.node_selector.clone().unwrap_or_default();
    facet.tolerations = shared(spec.tolerations.iter().flatten().cloned());
    facet.affinity = spec.affinity.clone().map(Arc::new);
    // A sidecar's are taken as long as the pod lives, an init container's for a while only.
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    facet.host_ports = shared(
        ports()
            .chain(sidecars.flat_map(|c| c.ports.iter().flatten()))
            .filter_map(|p| p.host_port.filter(|p| *p > 0).map(|n| (host_ip(p), protocol(p), n))),
    );
    facet.ports = shared(ports().filter_map(|p| p.name.clone().map(|n| (n, protocol(p), p.container_port))));
    facet.scheduler = spec.scheduler_name.clone().filter(|s| !s.is_empty() && s != "default-scheduler");
    facet.gated = spec.scheduling_gates.iter().flatten().next().is_some();
    facet.priority = spec.priority.unwrap_or(0);
    facet
}

fn node_facet(node: &v1::Node) -> NodeFacet {
    let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
    NodeFacet {
        allocatable: status.and_then(|s| s.allocatable.as_ref()).map(Resources::of).unwrap_or_default(),
        extended: extended::of(status.and_then(|s| s.allocatable.as_ref())),
        cordoned: spec.and_then(|s| s.unschedulable).unwrap_or(false),
        ready: status
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True")),
        taints: shared(spec.and_then(|s| s.taints.as_ref()).into_iter().flatten().cloned()),
        pod_cidr: spec.and_then(|s| s.pod_cidr.clone()),
        internal_ip: status
            .and_then(|s| s.addresses.as_ref())
            .and_then(|a| a.iter().find(|a| a.type_ == "InternalIP"))
            .map(|a| a.address.clone()),
    }
}

fn controller_facet(rc: &v1::ReplicationController) -> ControllerFacet {
    let Some(spec) = rc.spec.as_ref() else { return ControllerFacet::default() };
    let template_labels =
        || spec.template.as_ref().and_then(|t| t.metadata.as_ref()).and_then(|m| m.labels.clone());
    ControllerFacet {
        replicas: spec.replicas.unwrap_or(1),
        selector: spec
            .selector
            .clone()
            .filter(|s| !s.is_empty())
            .or_else(template_labels)
            .unwrap_or_default(),
        min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
    }
}

fn service_facet(service: &v1::Service) -> ServiceFacet {
    let Some(spec) = service.spec.as_ref() else { return ServiceFacet::default() };
    ServiceFacet {
        selector: spec.selector.clone().filter(|s| !s.is_empty()),
        ports: shared(spec.ports.iter().flatten().cloned()),
        cluster_ip: spec.cluster_ip.clone(),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
    }
}

fn event_facet(event: &v1::Event) -> EventFacet {
    let about = &event.involved_object;
    // As in `EventText`.
    let texts: [&Option<String>; EVENT_TEXTS] = [
        &about.api_version,
        &about.kind,
        &about.namespace,
        &about.name,
        &about.uid,
        &about.resource_version,
        &about.field_path,
        &event.reason,
        &event.type_,
        event.source.as_ref().map_or(&None, |source| &source.component),
    ];
    let texts = texts.map(|text| text.as_deref().unwrap_or_default());
    let mut length = 0;
    let ends = texts.map(|text| {
        length += text.len();
        // No request is that long.
        u32::try_from(length).unwrap_or(u32::MAX)
    });
    EventFacet {
        texts: texts.concat().into(),
        ends,
        count: event.count.unwrap_or(1),
        last_seen: event.last_timestamp.as_ref().map_or(0, |t| t.0.as_second()),
    }
}
