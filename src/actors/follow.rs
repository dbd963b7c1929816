//! How an actor follows the store: a stream of changes that heals itself.
//!
//! Owns: [`follow`], which begins with a snapshot and goes on with the changes after it. When the feed has moved past a
//! slow reader, or belongs to another life of the store, it begins anew: the reader then forgets what it knew.
//! Invariant: what a reader holds after each item is what the store held at that item's revision.

use std::sync::Arc;

use futures_util::{Stream, stream};

use crate::{
    messages::{Change, ChangeKind, View, Watch},
    model::{Object, Revision, Snapshot},
};

/// store → controllers: one item of the stream.
#[derive(Debug)]
pub enum Fed {
    /// Everything, as of this revision: forget what you knew.
    Anew(Arc<Snapshot>),
    /// What changed since the item before, in order; never empty.
    Changes(Vec<Change>),
}

impl Fed {
    /// The revision up to which one knows everything after this item.
    pub fn revision(&self) -> Revision {
        match self {
            Fed::Anew(snapshot) => snapshot.revision,
            Fed::Changes(changes) => changes.last().map(Change::revision).unwrap_or_default(),
        }
    }
}

/// Follows a view from now on; never ends.
pub fn follow(view: View) -> impl Stream<Item = Fed> + 'static {
    stream::unfold((view, None::<Watch>), |(view, watch)| async move {
        if let Some(mut watch) = watch {
            match watch.next().await {
                Ok(changes) => return Some((Fed::Changes(changes), (view, Some(watch)))),
                Err(too_old) => {
                    tracing::debug!(asked = %too_old.asked, oldest = %too_old.oldest, "begin anew");
                }
            }
        }
        let snapshot = view.snapshot();
        let watch = view.watch(snapshot.revision);
        Some((Fed::Anew(snapshot), (view, Some(watch))))
    })
}

/// An object's state before and after a change.
pub fn sides(change: &Change) -> (Option<&Arc<Object>>, Option<&Arc<Object>>) {
    match change.kind {
        ChangeKind::Deleted => (Some(change.previous.as_ref().unwrap_or(&change.object)), None),
        ChangeKind::Added | ChangeKind::Modified => (change.previous.as_ref(), Some(&change.object)),
    }
}
