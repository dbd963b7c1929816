//! What is told to the event recorder.

use std::borrow::Cow;

use actix::Message;
use k8s_openapi::jiff::Timestamp;

use crate::model::{Key, NodeName, Object, Uid};

/// anyone → event recorder: something happened that people may want to read (`kubectl get events`). Not answered: under
/// pressure events are dropped, never their sender held up.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct RecordEvent {
    /// The object it is about.
    pub about: Key,
    /// Its uid; empty when not known.
    pub uid: Uid,
    /// `spec.containers{web}` for a container's event.
    pub field_path: Option<String>,
    /// `Warning` instead of `Normal`.
    pub warning: bool,
    /// One word: `Scheduled`, `FailedCreate`, `Pulled`…
    pub reason: Cow<'static, str>,
    /// A sentence.
    pub message: String,
    /// Who saw it: `default-scheduler`, `replication-controller`, `kubelet`…
    pub component: Cow<'static, str>,
    /// On which node, for kubelets.
    pub host: Option<NodeName>,
    /// When.
    pub at: Timestamp,
}

impl RecordEvent {
    /// A `Normal` event about an object.
    pub fn about(
        object: &Object,
        component: &'static str,
        reason: &'static str,
        message: String,
        at: Timestamp,
    ) -> RecordEvent {
        RecordEvent {
            about: object.key.clone(),
            uid: object.uid().clone(),
            field_path: None,
            warning: false,
            reason: reason.into(),
            message,
            component: component.into(),
            host: None,
            at,
        }
    }

    /// The same as a `Warning`.
    #[must_use]
    pub fn warning(self) -> RecordEvent {
        RecordEvent { warning: true, ..self }
    }
}
