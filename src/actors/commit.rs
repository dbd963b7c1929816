//! How a controller writes: edits become a commit, and what was overtaken is left out.
//!
//! Owns: [`commit`] and [`settled`]. A controller's edits do not depend on each other, so when one of a batch was overtaken (its object
//! changed, ended, or its name was taken meanwhile) the others are made without it; the controller decides on that one
//! again from its new state. Invariant: when it returns, the outcome is known, whatever was lost on the way.

use std::{collections::HashSet, sync::Arc, time::Duration};

use crate::{
    logic::edit::Edit,
    messages::{Commit, CommitError, Durability, Expected, Port, RecordEvent, SendFailed, View, Write},
    model::{Key, Object, Revision},
};

/// Far beyond a slow disk's fsync. After it the same commit is sent again, which compare-and-swap makes harmless.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What every controller reads from and writes to.
#[derive(Clone)]
pub struct Wiring {
    /// The store's contents.
    pub view: View,
    /// To the store.
    pub commits: Port<Commit>,
    /// To the event recorder.
    pub events: Port<RecordEvent>,
}

impl Wiring {
    /// Tells the event recorder, if there is one; an event is never worth a failure.
    pub fn record(&self, event: RecordEvent) {
        if let Err(failed) = self.events.tell(event) {
            tracing::debug!(%failed, "event dropped");
        }
    }
}

/// What became of a batch of edits.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The objects as stored; for a removal its last state.
    pub made: Vec<Arc<Object>>,
    /// What was overtaken: decide again.
    pub overtaken: HashSet<Key>,
    /// From this revision on the store's feed shows all of it.
    pub revision: Revision,
}

/// Why nothing more could be written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommitFailed {
    /// The store cannot write.
    #[error(transparent)]
    Refused(CommitError),
    /// The store does not answer.
    #[error(transparent)]
    Unsent(SendFailed),
}

/// Makes what still holds of `edits`.
///
/// # Errors
/// When the store cannot write or is not there; then nothing of it was made.
pub async fn commit(
    wiring: &Wiring,
    mut edits: Vec<Edit>,
    durability: Durability,
) -> Result<Outcome, CommitFailed> {
    let mut outcome = Outcome::default();
    while !edits.is_empty() {
        let commit = Commit { writes: edits.iter().map(write).collect(), durability };
        let overtaken = match wiring.commits.ask(commit, ANSWER_WITHIN).await {
            Ok(Ok(committed)) => {
                outcome.made = committed.objects;
                break;
            }
            Ok(Err(CommitError::AlreadyExists(key) | CommitError::NotFound(key))) => key,
            Ok(Err(CommitError::Conflict { key, .. })) => key,
            Ok(Err(refused)) => return Err(CommitFailed::Refused(refused)),
            Err(SendFailed::Timeout(store)) => {
                tracing::warn!(store, "no answer to a commit yet");
                continue;
            }
            Err(failed) => return Err(CommitFailed::Unsent(failed)),
        };
        edits.retain(|e| *e.key() != overtaken);
        outcome.overtaken.insert(overtaken);
    }
    outcome.revision = match outcome.overtaken.is_empty() {
        true => outcome.made.iter().map(|o| o.revision).max().unwrap_or_default(),
        // What overtook us is published before we are answered: it may be our own, sent again after a timeout.
        false => wiring.view.snapshot().revision,
    };
    Ok(outcome)
}

/// Waits until everything that was sent to the store before is decided and published. An actor that begins anew thereby
/// sees what its predecessor did last, and does not do it again.
pub async fn settled(wiring: &Wiring) {
    let nothing = || Commit { writes: Vec::new(), durability: Durability::Hard };
    while let Err(SendFailed::Timeout(store)) = wiring.commits.ask(nothing(), ANSWER_WITHIN).await {
        tracing::warn!(store, "no answer to an empty commit yet");
    }
}

fn write(edit: &Edit) -> Write {
    match edit {
        Edit::Create(sealed) => Write::Create(sealed.clone()),
        Edit::Replace(sealed, base) => Write::Replace(sealed.clone(), Expected::state(base)),
        Edit::Remove(base) => Write::Remove(base.key.clone(), Expected::state(base)),
    }
}
