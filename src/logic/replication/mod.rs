//! Replication: how many pods a controller has, should have, and what to do about it.
//!
//! Owns: the decision ([`decide`]) as Kubernetes' replication manager takes it: claim (adopt, release), then create or
//! delete the difference, then count. [`template`] makes the pods, [`roster`] keeps each controller's candidates.
//! Invariant: a plan taken on a picture that shows all of the controller's own commits ([`Expectation`]) never leads to
//! more than `replicas` active pods, and applying plans until none remains ends.

mod rank;
pub mod roster;
pub mod status;
pub mod template;

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1,
    apimachinery::pkg::apis::meta::v1::OwnerReference,
    jiff::{SignedDuration, Timestamp},
};

use super::{
    clocks::ready_since,
    edit::{self, Edit, EditError},
    pod::status::time,
    select,
};
use crate::model::{Key, KindFacet, Labels, Object, PodFacet, Revision, Uid};

/// Pods created or deleted by one plan: as much as one batch commit carries well (Kubernetes' burst is the same).
pub const BURST: usize = 500;

/// What a decision needs to know of a controller.
#[derive(Clone, Debug)]
pub struct Controller {
    /// Its key.
    pub key: Key,
    /// Its uid.
    pub uid: Uid,
    /// How many pods it wants.
    pub replicas: usize,
    /// Which pods are its own.
    pub selector: Labels,
    /// How long a pod must be ready to count as available, in seconds.
    pub min_ready_seconds: i64,
    /// The labels its template gives.
    pub template_labels: Labels,
    /// Whether it is being deleted.
    pub deleting: bool,
}

impl Controller {
    /// Reads a controller's object; `None` when it is of another kind.
    pub fn read(object: &Object, typed: &v1::ReplicationController) -> Option<Controller> {
        let KindFacet::ReplicationController(facet) = &object.facet.of else { return None };
        let template = typed.spec.as_ref().and_then(|s| s.template.as_ref());
        Some(Controller {
            key: object.key.clone(),
            uid: object.uid().clone(),
            replicas: usize::try_from(facet.replicas).unwrap_or(0),
            selector: facet.selector.clone(),
            min_ready_seconds: i64::from(facet.min_ready_seconds),
            template_labels: template
                .and_then(|t| t.metadata.as_ref())
                .and_then(|m| m.labels.clone())
                .unwrap_or_default(),
            deleting: object.facet.meta.deleting.is_some(),
        })
    }
}

/// The revision a picture must have reached before the next decision: that of the controller's own last commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expectation(Revision);

impl Expectation {
    /// A commit was made: wait until it is in the picture.
    pub fn committed(&mut self, revision: Revision) {
        self.0 = self.0.max(revision);
    }

    /// Whether a picture shows everything the controller did.
    pub fn met_by(self, picture: Revision) -> bool {
        picture >= self.0
    }
}

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Matching pods without a controller, to be taken over.
    pub adopt: Vec<Arc<Object>>,
    /// Owned pods that no longer match, to be let go.
    pub release: Vec<Arc<Object>>,
    /// How many pods to create, at most [`BURST`].
    pub create: usize,
    /// Pods to delete, at most [`BURST`].
    pub delete: Vec<Arc<Object>>,
    /// Own pods that are ready since a moment yet to come: the clock was set back. They are to be ready since now, or they
    /// would not be available before that moment.
    pub restamp: Vec<Arc<Object>>,
    /// What the status should say.
    pub counts: Counts,
    /// When a ready pod becomes available, if nothing else happens before.
    pub recheck: Option<Timestamp>,
}

impl Plan {
    /// Whether pods are to be changed.
    pub fn acts(&self) -> bool {
        let changed = [&self.adopt, &self.release, &self.delete, &self.restamp];
        self.create > 0 || changed.iter().any(|pods| !pods.is_empty())
    }
}

/// The numbers in a controller's status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Active pods.
    pub replicas: i32,
    /// Those that have all the template's labels.
    pub fully_labeled: i32,
    /// Those that are ready.
    pub ready: i32,
    /// Those that have been ready long enough.
    pub available: i32,
}

/// Decides on a picture of the controller's candidates: its own pods and the matching ones that nobody controls.
pub fn decide<'a>(
    controller: &Controller,
    candidates: impl Iterator<Item = &'a Arc<Object>>,
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    let mut own: Vec<(&Arc<Object>, &PodFacet)> = Vec::new();
    for pod in candidates {
        let Some(facet) = active(pod) else { continue };
        let matches = select::matches(&controller.selector, &*pod.facet.meta.labels);
        match (pod.facet.meta.controller(), matches) {
            (Some(owner), true) if owner.uid == controller.uid => own.push((pod, facet)),
            (Some(owner), false) if owner.uid == controller.uid && !controller.deleting => {
                plan.release.push(pod.clone());
            }
            (None, true) if !controller.deleting => {
                plan.adopt.push(pod.clone());
                own.push((pod, facet));
            }
            _ => {}
        }
    }
    count(controller, &own, now, &mut plan);
    if !controller.deleting {
        if own.len() < controller.replicas {
            plan.create = (controller.replicas - own.len()).min(BURST);
        } else {
            let excess = own.len() - controller.replicas;
            plan.delete = rank::first_to_go(own, excess.min(BURST));
            // A pod is either taken over or sent away: one write a pod.
            let gone: std::collections::HashSet<&Key> = plan.delete.iter().map(|p| &p.key).collect();
            plan.adopt.retain(|p| !gone.contains(&p.key));
            plan.restamp.retain(|p| !gone.contains(&p.key));
        }
    }
    plan
}

/// A pod that counts: neither ended nor on its way out.
fn active(pod: &Object) -> Option<&PodFacet> {
    match &pod.facet.of {
        KindFacet::Pod(facet) if pod.facet.meta.deleting.is_none() && !facet.phase.is_final() => Some(facet),
        _ => None,
    }
}

fn count(controller: &Controller, own: &[(&Arc<Object>, &PodFacet)], now: Timestamp, plan: &mut Plan) {
    for (pod, facet) in own {
        plan.counts.replicas += 1;
        let labels = &pod.facet.meta.labels;
        if controller.template_labels.iter().all(|(k, v)| labels.get(k) == Some(v.as_str())) {
            plan.counts.fully_labeled += 1;
        }
        if !facet.ready {
            continue;
        }
        plan.counts.ready += 1;
        let counts_from_it = !controller.deleting && controller.min_ready_seconds > 0;
        // One write a pod: those that are taken over have theirs.
        let is_own = pod.facet.meta.controller().is_some();
        if counts_from_it && is_own && facet.ready_since > now.as_second() {
            plan.restamp.push((*pod).clone());
        }
        let since = ready_since(facet.ready_since, pod.facet.meta.created, now);
        let available_at = Timestamp::from_second(since)
            .ok()
            .and_then(|t| t.checked_add(SignedDuration::from_secs(controller.min_ready_seconds)).ok());
        match available_at {
            Some(at) if controller.min_ready_seconds > 0 && at > now => {
                plan.recheck = Some(plan.recheck.map_or(at, |r| r.min(at)));
            }
            _ => plan.counts.available += 1,
        }
    }
}

/// The reference by which a pod names its controller.
pub fn owner_reference(controller: &Controller) -> OwnerReference {
    OwnerReference {
        api_version: controller.key.kind.api_version().into(),
        kind: controller.key.kind.name().into(),
        name: controller.key.name.to_string(),
        uid: controller.uid.to_string(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The edits that adopt, release, stamp anew and delete; what is gone or already on its way is passed over.
///
/// # Errors
/// When a pod's document is no pod: a defect.
pub fn edits(controller: &Controller, plan: &Plan, now: Timestamp) -> Result<Vec<Edit>, EditError> {
    let mut edits = Vec::new();
    for pod in &plan.adopt {
        edits.push(edit::edit_meta(pod, |meta| {
            let owners = meta.owner_references.get_or_insert_default();
            owners.retain(|o| o.uid != controller.uid.as_str());
            owners.push(owner_reference(controller));
        })?);
    }
    for pod in &plan.release {
        edits.push(edit::edit_meta(pod, |meta| {
            let owners = meta.owner_references.get_or_insert_default();
            owners.retain(|o| o.uid != controller.uid.as_str());
            meta.owner_references = meta.owner_references.take().filter(|o| !o.is_empty());
        })?);
    }
    for pod in &plan.restamp {
        edits.push(edit::edit::<v1::Pod>(pod, |pod| {
            let conditions = pod.status.as_mut().and_then(|status| status.conditions.as_mut());
            let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
            if let Some(ready) = ready {
                ready.last_transition_time = Some(time(now.as_millisecond()));
            }
        })?);
    }
    for pod in &plan.delete {
        edits.extend(edit::delete(pod, now)?);
    }
    Ok(edits)
}

#[cfg(test)]
mod tests;
