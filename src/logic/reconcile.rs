//! What controllers have in common whose every decision follows from a snapshot.
//!
//! Owns: [`Reconcile`]: changes mark items (an object, a namespace, a node) as due, and a due item is decided on with the
//! newest snapshot. Invariant: deciding again on what was decided already makes no edits, so an item may be marked too
//! often, never too seldom.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::{
    edit::{Edit, EditError},
    events::Happening,
};
use crate::model::{Object, Snapshot, Uid};

/// What a decision takes from outside.
pub struct Means<'a> {
    /// Everything there is.
    pub snapshot: &'a Snapshot,
    /// Now, cut to whole seconds: what is written down.
    pub now: Timestamp,
    /// Now, as exactly as is known: what the other methods are told, too.
    pub exact: Timestamp,
    /// A new uid.
    pub uid: &'a mut dyn FnMut() -> Uid,
    /// Edits wanted at most; what is left is decided when the changes made by these come back.
    pub max: usize,
}

/// A controller's knowledge and decisions.
pub trait Reconcile {
    /// What is decided on.
    type Item: Clone;

    /// Forgets everything and begins with this snapshot.
    fn anew(&mut self, snapshot: &Snapshot, now: Timestamp);

    /// Takes in one change: the state before and the state after.
    fn apply(
        &mut self,
        before: Option<&Arc<Object>>,
        after: Option<&Arc<Object>>,
        snapshot: &Snapshot,
        now: Timestamp,
    );

    /// The next due item, no longer due from now on.
    fn next_due(&mut self, now: Timestamp) -> Option<Self::Item>;

    /// An item is due (again).
    fn mark(&mut self, item: Self::Item);

    /// What to do about an item.
    ///
    /// # Errors
    /// When a document is not of its kind: a defect.
    fn decide(&self, item: &Self::Item, means: &mut Means<'_>) -> Result<Vec<Edit>, EditError>;

    /// What there is to record, of what this controller has made (nothing, after a change that came to it), or has seen.
    fn happenings(&mut self, made: &[Arc<Object>], now: Timestamp) -> Vec<Happening> {
        let _ = (made, now);
        Vec::new()
    }

    /// When an item becomes due without a change, the next time.
    fn wake_at(&self) -> Option<Timestamp> {
        None
    }
}
