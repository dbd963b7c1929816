//! How a link ends: that this side wants to, and that it has.
//!
//! Owns: [`Ends`], which a link's halves, its task and whoever dialled share. Invariants: the first reason counts; who waits
//! is told, also when it begins to wait after the end.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::CloseReason;

#[derive(Default)]
pub(super) struct Ends {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// This side wants to close, and why.
    closing: Option<String>,
    /// The link has ended, and why.
    closed: Option<CloseReason>,
}

impl Ends {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This side wants to close.
    pub(super) fn begin_close(&self, reason: &str) {
        self.lock().closing.get_or_insert_with(|| reason.to_owned());
        self.changed.notify_waiters();
    }

    /// The link has ended.
    pub(super) fn end(&self, reason: CloseReason) {
        self.lock().closed.get_or_insert(reason);
        self.changed.notify_waiters();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing.is_some()
    }

    /// Why this side wants to close, if it does.
    pub(super) fn closing(&self) -> Option<String> {
        self.lock().closing.clone()
    }

    /// Why nothing can be sent any more; `None` while it can.
    pub(super) fn over(&self) -> Option<CloseReason> {
        let state = self.lock();
        state.closed.clone().or_else(|| state.closing.clone().map(CloseReason::Local))
    }

    /// Waits until this side wants to close.
    pub(super) async fn wait_closing(&self) {
        self.wait(|state| state.closing.is_some().then_some(())).await;
    }

    /// Waits for the link's end.
    pub(super) async fn wait_closed(&self) -> CloseReason {
        self.wait(|state| state.closed.clone()).await
    }

    async fn wait<T>(&self, found: impl Fn(&State) -> Option<T>) -> T {
        loop {
            // Told of every change from here on, also before it is first polled.
            let changed = self.changed.notified();
            if let Some(found) = found(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn the_first_reason_counts_and_reaches_those_who_wait_and_those_who_come_late() {
        let ends = Arc::new(Ends::default());
        let waiting = tokio::spawn({
            let ends = ends.clone();
            async move {
                ends.wait_closing().await;
                ends.wait_closed().await
            }
        });
        tokio::task::yield_now().await;
        assert!(!ends.is_closing() && ends.over().is_none());
        ends.begin_close("first");
        ends.begin_close("second");
        assert_eq!(ends.closing().as_deref(), Some("first"));
        assert!(matches!(ends.over(), Some(CloseReason::Local(reason)) if reason == "first"));
        tokio::task::yield_now().await;
        ends.end(CloseReason::Silent);
        ends.end(CloseReason::Peer("later".into()));
        assert!(matches!(waiting.await.unwrap(), CloseReason::Silent));
        assert!(matches!(ends.wait_closed().await, CloseReason::Silent));
        assert!(matches!(ends.over(), Some(CloseReason::Silent)));
    }
}
