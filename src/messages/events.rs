//! What is told to the event recorder.

use actix::Message;
use k8s_openapi::jiff::Timestamp;

use crate::{logic::events::Happening, model::Object};

/// anyone → event recorder: something happened that people may want to read (`kubectl get events`). Not answered: under
/// pressure events are dropped, never their sender held up.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
pub struct RecordEvent(pub Happening);

impl RecordEvent {
    /// A `Normal` event about an object.
    pub fn about(
        object: &Object,
        component: &'static str,
        reason: &'static str,
        message: String,
        at: Timestamp,
    ) -> RecordEvent {
        RecordEvent(Happening {
            about: object.key.clone(),
            uid: object.uid().clone(),
            field_path: None,
            warning: false,
            reason: reason.into(),
            message,
            component: component.into(),
            host: None,
            at,
        })
    }

    /// The same as a `Warning`.
    #[must_use]
    pub fn warning(mut self) -> RecordEvent {
        self.0.warning = true;
        self
    }
}
