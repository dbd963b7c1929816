//! What each kind adds to admission: who owns which part, what is filled in, what is refused.
//!
//! Owns: [`Rules`], the kind's side of [`crate::model::admit`], after Kubernetes' registry strategies
//! (`PrepareForCreate`, `PrepareForUpdate`, defaults, validation); services have theirs in `rules_service.rs`. Invariant: all of it is pure, and `fill_in` is
//! idempotent, so an object that is sent back as it was received is unchanged.

use k8s_openapi::{
    ByteString,
    api::core::v1::{
        ConfigMap, Container, Endpoints, Event, Namespace, Node, NodeSpec, Pod, PodCondition, PodSpec,
        PodStatus, ReplicationController, ReplicationControllerStatus, Secret, ServiceAccount, Taint,
    },
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{
    Stored,
    admit::Part,
    defaults::{self, text},
    extended,
    fault::Faults,
    fractions, unsupported, validate,
};

/// The label that carries a namespace's own name.
const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer that keeps a namespace until its content is gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";

/// A kind's part of admission.
pub(crate) trait Rules: Stored {
    /// Takes away what a client may not set on a new object. `now` is the creation's time.
    fn prepare_create(&mut self, now: &Time) {
        let _ = now;
    }

    /// Fills in defaults.
    fn fill_in(&mut self) {}

    /// Takes over from `old` what this part of an update does not own.
    fn prepare_update(&mut self, old: &Self, part: Part) {
        let _ = (old, part);
    }

    /// Has what follows from other fields agree with them, whoever changed which. `now` is the change's time.
    fn settle(&mut self, now: &Time) {
        let _ = now;
    }

    /// Finds what is wrong (metadata excepted).
    fn validate(&self, faults: &mut Faults);

    /// Finds what is wrong with a new state, also compared with the old one (metadata excepted).
    fn validate_update(&self, old: &Self, part: Part, faults: &mut Faults) {
        let _ = (old, part);
        self.validate(faults);
    }

    /// What is accepted and yet worth a warning.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Rules for Pod {
    fn prepare_create(&mut self, now: &Time) {
        self.metadata.generation = Some(1);
        let gated = self.spec.as_ref().is_some_and(|s| s.scheduling_gates.iter().flatten().next().is_some());
        let gate = PodCondition {
            observed_generation: self.metadata.generation,
            type_: "PodScheduled".into(),
            status: "False".into(),
            reason: Some("SchedulingGated".into()),
            message: Some("Scheduling is blocked due to non-empty scheduling gates".into()),
            last_transition_time: Some(now.clone()),
            ..PodCondition::default()
        };
        self.status = Some(PodStatus {
            phase: Some("Pending".into()),
            conditions: gated.then(|| vec![gate]),
            ..PodStatus::default()
        });
    }

    fn fill_in(&mut self) {
        defaults::pod(self);
        let class = self.spec.as_ref().map(defaults::qos_class);
        let status = self.status.get_or_insert_default();
        text(&mut status.phase, "Pending");
        // The class is decided once: it is a property of what was asked for at creation.
        if let Some(class) = class {
            text(&mut status.qos_class, class);
        }
    }

    fn prepare_update(&mut self, old: &Self, part: Part) {
        match part {
            Part::Main => self.status.clone_from(&old.status),
            Part::Status => {
                self.spec.clone_from(&old.spec);
                self.metadata.owner_references.clone_from(&old.metadata.owner_references);
            }
            Part::EphemeralContainers => {
                let wanted = self.spec.take().and_then(|spec| spec.ephemeral_containers);
                let (spec, meta) =
                    (self.spec.insert(old.spec.clone().unwrap_or_default()), &mut self.metadata);
                spec.ephemeral_containers = wanted;
                self.status.clone_from(&old.status);
                meta.labels.clone_from(&old.metadata.labels);
                meta.annotations.clone_from(&old.metadata.annotations);
                meta.finalizers.clone_from(&old.metadata.finalizers);
                meta.owner_references.clone_from(&old.metadata.owner_references);
            }
            Part::Resize => {
                let wanted = self.spec.take().unwrap_or_default();
                let spec = self.spec.insert(old.spec.clone().unwrap_or_default());
                resize_to(&mut spec.containers, wanted.containers);
                let inits = wanted.init_containers.unwrap_or_default();
                resize_to(spec.init_containers.as_deref_mut().unwrap_or_default(), inits);
                self.status.clone_from(&old.status);
                self.metadata = old.metadata.clone();
                self.metadata.resource_version = None;
                self.metadata.managed_fields = None;
            }
        }
        count_up(&mut self.metadata, self.spec != old.spec);
    }

    fn validate(&self, faults: &mut Faults) {
        validate::pod(self, faults);
    }

    fn validate_update(&self, old: &Self, part: Part, faults: &mut Faults) {
        match part {
            Part::Main => validate::pod_update(self, old, faults),
            Part::Status => validate::pod_status_update(self, old, faults),
            Part::EphemeralContainers => validate::ephemeral_update(self, old, faults),
            Part::Resize => validate::resize_update(self, old, faults),
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.spec.as_ref().map(|spec| spec_warnings(spec, "spec")).unwrap_or_default()
    }
}

/// Counts a change of what is desired; `meta` has the generation before.
fn count_up(meta: &mut ObjectMeta, changed: bool) {
    if changed {
        meta.generation = Some(meta.generation.unwrap_or(0) + 1);
    }
}

/// What is to be told of a pod's spec that lies at `root`.
fn spec_warnings(spec: &PodSpec, root: &str) -> Vec<String> {
    [fractions::fractions(spec, root), unsupported::unsupported_spec(spec, root)].concat()
}

/// Gives containers the resources that those of the same names are to have.
fn resize_to(list: &mut [Container], wanted: Vec<Container>) {
    for wanted in wanted {
        if let Some(container) = list.iter_mut().find(|c| c.name == wanted.name) {
            container.resources = wanted.resources;
        }
    }
}

impl Rules for ReplicationController {
    fn prepare_create(&mut self, _now: &Time) {
        self.status = Some(ReplicationControllerStatus::default());
        self.metadata.generation = Some(1);
    }

    fn fill_in(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        if let Some(template) = &mut spec.template {
            let labels = template.metadata.as_ref().and_then(|m| m.labels.as_ref()).filter(|l| !l.is_empty());
            if let Some(labels) = labels {
                if spec.selector.as_ref().is_none_or(|s| s.is_empty()) {
                    spec.selector = Some(labels.clone());
                }
                if self.metadata.labels.as_ref().is_none_or(|l| l.is_empty()) {
                    self.metadata.labels = Some(labels.clone());
                }
            }
            template.metadata.get_or_insert_default();
            defaults::pod_spec(template.spec.get_or_insert_default());
        }
        self.status.get_or_insert_default();
    }

    fn prepare_update(&mut self, old: &Self, part: Part) {
        match part {
            Part::Main | Part::EphemeralContainers | Part::Resize => {
                self.status.clone_from(&old.status);
                count_up(&mut self.metadata, self.spec != old.spec);
            }
            Part::Status => self.spec.clone_from(&old.spec),
        }
    }

    fn validate(&self, faults: &mut Faults) {
        validate::replication_controller(self, faults);
        validate::replication_controller_of_late(self, None, faults);
    }

    fn validate_update(&self, old: &Self, part: Part, faults: &mut Faults) {
        match part {
            Part::Main | Part::EphemeralContainers | Part::Resize => {
                validate::replication_controller(self, faults);
                validate::replication_controller_of_late(self, Some(old), faults);
            }
            Part::Status => validate::replication_controller_status(self, faults),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let template = self.spec.as_ref().and_then(|s| s.template.as_ref()).and_then(|t| t.spec.as_ref());
        template.map(|spec| spec_warnings(spec, "spec.template.spec")).unwrap_or_default()
    }
}

impl Rules for Namespace {
    fn prepare_create(&mut self, _now: &Time) {
        self.status = None;
    }

    fn fill_in(&mut self) {
        if let Some(name) = self.metadata.name.clone().filter(|n| !n.is_empty()) {
            self.metadata.labels.get_or_insert_default().insert(NAMESPACE_NAME_LABEL.into(), name);
        }
        text(&mut self.status.get_or_insert_default().phase, "Active");
        // A namespace on its way out loses its finalizer in the end, and must not get it back.
        if self.metadata.deletion_timestamp.is_none() {
            let finalizers = self.spec.get_or_insert_default().finalizers.get_or_insert_default();
            if !finalizers.iter().any(|f| f == NAMESPACE_FINALIZER) {
                finalizers.push(NAMESPACE_FINALIZER.into());
            }
        }
    }

    fn prepare_update(&mut self, old: &Self, part: Part) {
        self.spec.clone_from(&old.spec);
        if part == Part::Main {
            self.status.clone_from(&old.status);
        }
    }

    fn validate(&self, faults: &mut Faults) {
        validate::namespace(self, faults);
    }

    fn validate_update(&self, _old: &Self, part: Part, faults: &mut Faults) {
        if part == Part::Status {
            validate::namespace_status(self, faults);
        }
    }
}

/// The taint that a cordoned node bears.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Makes a node's taints say whether it is cordoned, as Kubernetes' node controller does; others stay.
pub fn taint_by_cordon(spec: &mut NodeSpec, now: &Time) {
    let is_it = |taint: &Taint| taint.key == UNSCHEDULABLE && taint.effect == "NoSchedule";
    let tainted = spec.taints.iter().flatten().any(is_it);
    match (spec.unschedulable == Some(true), tainted) {
        (true, false) => spec.taints.get_or_insert_default().push(Taint {
            key: UNSCHEDULABLE.into(),
            effect: "NoSchedule".into(),
            time_added: Some(now.clone()),
            value: None,
        }),
        (false, true) => {
            let mut taints = spec.taints.take().unwrap_or_default();
            taints.retain(|taint| !is_it(taint));
            spec.taints = Some(taints).filter(|taints| !taints.is_empty());
        }
        _ => {}
    }
}

impl Rules for Node {
    fn fill_in(&mut self) {
        self.spec.get_or_insert_default();
        let status = self.status.get_or_insert_default();
        for list in [&mut status.capacity, &mut status.allocatable].into_iter().flatten() {
            defaults::canonical(list);
        }
        if status.allocatable.is_none() {
            status.allocatable.clone_from(&status.capacity);
        }
        extended::complete(status);
    }

    fn prepare_update(&mut self, old: &Self, part: Part) {
        match part {
            Part::Main | Part::EphemeralContainers | Part::Resize => self.status.clone_from(&old.status),
            Part::Status => self.spec.clone_from(&old.spec),
        }
    }

    fn settle(&mut self, now: &Time) {
        taint_by_cordon(self.spec.get_or_insert_default(), now);
    }

    fn validate(&self, faults: &mut Faults) {
        validate::node(self, faults);
    }

    fn validate_update(&self, old: &Self, _part: Part, faults: &mut Faults) {
        validate::node_update(self, old, faults);
    }
}

impl Rules for ConfigMap {
    fn validate(&self, faults: &mut Faults) {
        validate::config_map(self, faults);
    }

    fn validate_update(&self, old: &Self, _part: Part, faults: &mut Faults) {
        validate::config_map_update(self, old, faults);
    }
}

impl Rules for Secret {
    fn fill_in(&mut self) {
        for (key, value) in self.string_data.take().into_iter().flatten() {
            self.data.get_or_insert_default().insert(key, ByteString(value.into_bytes()));
        }
        text(&mut self.type_, "Opaque");
    }

    fn validate(&self, faults: &mut Faults) {
        validate::secret(self, faults);
    }

    fn validate_update(&self, old: &Self, _part: Part, faults: &mut Faults) {
        validate::secret_update(self, old, faults);
    }
}

impl Rules for ServiceAccount {
    fn validate(&self, _faults: &mut Faults) {}
}

impl Rules for Endpoints {
    fn fill_in(&mut self) {
        for port in self.subsets.iter_mut().flatten().flat_map(|s| s.ports.iter_mut().flatten()) {
            text(&mut port.protocol, "TCP");
        }
    }

    fn validate(&self, faults: &mut Faults) {
        validate::endpoints(self, faults);
    }
}

impl Rules for Event {
    fn validate(&self, faults: &mut Faults) {
        validate::event(self, faults);
    }
}
