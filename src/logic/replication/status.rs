//! A controller's status: its counts, and whether it failed to get the pods it wants.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus},
    apimachinery::pkg::apis::meta::v1::Time,
    jiff::Timestamp,
};

use super::Counts;
use crate::{
    logic::edit::{Edit, EditError, edit},
    model::Object,
};

/// Why pods could not be created or deleted, as the `ReplicaFailure` condition has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// The status write that is due, if any.
///
/// # Errors
/// When the document is no controller: a defect.
pub fn update(
    object: &Arc<Object>,
    typed: &ReplicationController,
    counts: Counts,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Result<Option<Edit>, EditError> {
    let present = typed.status.clone().unwrap_or_default();
    let wanted = status(&present, object.facet.meta.generation, counts, failure, now);
    if typed.status.is_some() && present == wanted {
        return Ok(None);
    }
    edit::<ReplicationController>(object, |rc| rc.status = Some(wanted)).map(Some)
}

fn status(
    present: &ReplicationControllerStatus,
    generation: i64,
    counts: Counts,
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicationControllerStatus {
    let some = |n: i32| (n > 0).then_some(n);
    let old = present.conditions.iter().flatten();
    let mut conditions: Vec<_> = old.clone().filter(|c| c.type_ != "ReplicaFailure").cloned().collect();
    if let Some(failure) = failure {
        let since = old
            .filter(|c| c.type_ == "ReplicaFailure" && c.status == "True")
            .find_map(|c| c.last_transition_time.clone());
        conditions.push(ReplicationControllerCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: since.or(Some(Time(now))),
        });
    }
    ReplicationControllerStatus {
        replicas: counts.replicas,
        fully_labeled_replicas: some(counts.fully_labeled),
        ready_replicas: some(counts.ready),
        available_replicas: some(counts.available),
        observed_generation: Some(generation).filter(|g| *g > 0),
        conditions: Some(conditions).filter(|c| !c.is_empty()),
    }
}
