//! WATCH: a collection as it changes, one JSON document a line.
//!
//! Owns: the translation of the store's changes into Kubernetes' watch events under a selector. A change moves an
//! object into the selection (`ADDED`), within it (`MODIFIED`), or out of it (`DELETED`, with the last selected state).
//! Invariant: a watcher has no queue: it reads the shared feed when the client takes bytes, so a slow client costs
//! nothing and is told 410 once the feed has moved past it.

use std::{sync::Arc, time::Duration};

use actix_web::HttpResponse;
use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio::time::Instant;

use super::{
    clock,
    door::{Shared, StreamPermit},
    error::ApiError,
    query::{Filter, Query},
    read::invalid_version,
    render::{self, Form, ListHead},
    target::Resource,
};
use crate::{
    messages::{Change, ChangeKind, Watch},
    model::{Kind, Object, Revision},
};

/// Without `timeoutSeconds` a watch ends after half an hour and a little, so that clients rebalance.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1800);
/// How often an idle watch is told how far it is, if it asked for bookmarks.
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// A chunk ends at the first event that makes it this large: the most a slow client holds in memory.
const CHUNK_BYTES: usize = 64 << 10;

/// An event's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    Added,
    Modified,
    Deleted,
}

impl Kept {
    fn name(self) -> &'static str {
        match self {
            Kept::Added => "ADDED",
            Kept::Modified => "MODIFIED",
            Kept::Deleted => "DELETED",
        }
    }
}

/// What a change means to a watcher that selects some objects.
fn translate(change: &Change, selects: impl Fn(&Object) -> bool) -> Option<Kept> {
    let before = change.previous.as_ref().is_some_and(|o| selects(o));
    let after = change.kind != ChangeKind::Deleted && selects(&change.object);
    match (before, after) {
        (false, true) => Some(Kept::Added),
        (true, true) => Some(Kept::Modified),
        (true, false) => Some(Kept::Deleted),
        // Without a previous state a deletion is judged by the last one.
        (false, false) if change.kind == ChangeKind::Deleted && change.previous.is_none() => {
            selects(&change.object).then_some(Kept::Deleted)
        }
        (false, false) => None,
    }
}

/// A document under another revision: what a watcher gets of an object that has left its selection.
fn at_revision(object: &Object, revision: Revision) -> Object {
    let old = format!("\"resourceVersion\":\"{}\"", object.revision);
    let new = format!("\"resourceVersion\":\"{revision}\"");
    match object.json.windows(old.len()).position(|w| w == old.as_bytes()) {
        Some(at) => {
            let parts = [&object.json[..at], new.as_bytes(), &object.json[at + old.len()..]];
            object.with_document(revision, &parts)
        }
        None => object.with_document(revision, &[&object.json]),
    }
}

/// One watch.
struct Watcher {
    kind: Kind,
    namespace: Option<String>,
    filter: Filter,
    form: Form,
    watch: Watch,
    /// What is there already, in reverse, to be told first.
    initial: Vec<Arc<Object>>,
    /// Whether the end of the initial objects is to be marked.
    mark_initial_end: bool,
    bookmarks: bool,
    columns_sent: bool,
    ended: bool,
    deadline: Instant,
    next_bookmark: Instant,
    shared: Arc<Shared>,
    _permit: StreamPermit,
}

impl Watcher {
    fn selects(&self, object: &Object) -> bool {
        object.key.kind == self.kind
            && self.namespace.as_deref().is_none_or(|n| n == &*object.key.namespace)
            && self.filter.matches(object)
    }

    fn event(&mut self, kind: &str, object: &Object, now: Timestamp, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{{\"type\":\"{kind}\",\"object\":").as_bytes());
        if let Form::Table { .. } = self.form {
            let head = ListHead { revision: object.revision.0, next: None, columns: !self.columns_sent };
            self.columns_sent = true;
            render::begin(self.kind, self.form, &head, out);
            render::item(object, self.form, now, true, out);
            render::end(out);
        } else {
            out.extend_from_slice(&render::object(object, self.form, now));
        }
        out.extend_from_slice(b"}\n");
    }

    fn bookmark(&self, initial_end: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({ "resourceVersion": self.watch.position().to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let object = match self.form {
            Form::Whole => json!({ "kind": self.kind.name(), "apiVersion": self.kind.api_version(),
                "metadata": metadata }),
            Form::Metadata => json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata }),
            Form::Table { version, .. } => json!({ "kind": "Table",
                "apiVersion": format!("meta.k8s.io/{version}"), "metadata": metadata,
                "columnDefinitions": [], "rows": [] }),
        };
        let event = json!({ "type": "BOOKMARK", "object": object });
        out.extend_from_slice(event.to_string().as_bytes());
        out.push(b'\n');
    }

    fn changes(&mut self, changes: &[Change], out: &mut Vec<u8>) {
        let now = clock::now();
        for change in changes {
            let Some(kept) = translate(change, |o| self.selects(o)) else { continue };
            match (kept, change.kind, &change.previous) {
                (Kept::Deleted, ChangeKind::Modified, Some(previous)) => {
                    let last = at_revision(previous, change.revision());
                    self.event(kept.name(), &last, now, out);
                }
                _ => self.event(kept.name(), &change.object, now, out),
            }
        }
    }

    /// What to send next; `None` ends the watch. Waits until there is something.
    async fn chunk(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::new();
        let now = clock::now();
        while out.len() < CHUNK_BYTES
            && let Some(object) = self.initial.pop()
        {
            self.event(Kept::Added.name(), &object, now, &mut out);
        }
        if self.initial.is_empty() && std::mem::take(&mut self.mark_initial_end) {
            self.bookmark(true, &mut out);
        }
        let stop = self.shared.stop.clone();
        while out.is_empty() {
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                page = self.watch.next() => match page {
                    Ok(changes) => self.changes(&changes, &mut out),
                    Err(old) => {
                        let event = json!({ "type": "ERROR", "object": ApiError::from(old).status() });
                        out.extend_from_slice(event.to_string().as_bytes());
                        out.push(b'\n');
                        self.ended = true;
                    }
                },
                () = tokio::time::sleep_until(wake) => {
                    if Instant::now() >= self.deadline {
                        return None;
                    }
                    self.bookmark(false, &mut out);
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                }
            }
            if self.ended || Instant::now() >= self.deadline {
                self.ended = true;
                break;
            }
        }
        Some(out.into())
    }
}

/// WATCH.
///
/// # Errors
/// 400 for a malformed revision or selector, 429 when too many streams are open. A revision that is too old is an
/// `ERROR` event, as in Kubernetes.
pub fn watch(
    shared: &Arc<Shared>,
    resource: &Resource,
    query: &Query,
    form: Form,
) -> Result<HttpResponse, ApiError> {
    let permit = shared.stream_permit()?;
    let filter = Filter::parse(resource.kind, resource.name.as_deref(), query)?;
    let view = &shared.state.view;
    let asked = query.resource_version.as_deref();
    let asked = asked.map(|v| v.parse::<u64>().map_err(|_| invalid_version(v))).transpose()?;
    let wants_initial = query.initial_events.unwrap_or(asked.is_none_or(|v| v == 0));
    let (from, initial) = if wants_initial {
        let snapshot = view.snapshot();
        let mut objects: Vec<_> = snapshot
            .list(resource.kind, resource.namespace.as_deref())
            .filter(|o| filter.matches(o))
            .cloned()
            .collect();
        objects.reverse();
        (snapshot.revision, objects)
    } else {
        (asked.filter(|v| *v > 0).map_or_else(|| view.snapshot().revision, Revision), Vec::new())
    };
    let timeout = query.timeout_seconds.filter(|s| *s > 0).map_or(DEFAULT_TIMEOUT, Duration::from_secs);
    let now = Instant::now();
    let watcher = Watcher {
        kind: resource.kind,
        namespace: resource.namespace.clone(),
        filter,
        form,
        watch: view.watch(from),
        initial,
        mark_initial_end: query.initial_events == Some(true) && query.bookmarks,
        bookmarks: query.bookmarks,
        columns_sent: false,
        ended: false,
        deadline: now.checked_add(timeout).unwrap_or(now + DEFAULT_TIMEOUT),
        next_bookmark: now + BOOKMARK_EVERY,
        shared: shared.clone(),
        _permit: permit,
    };
    let events = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let chunk = watcher.chunk().await?;
        Some((Ok::<_, std::io::Error>(chunk), watcher))
    });
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .insert_header(("Cache-Control", "no-cache, private"))
        .streaming(events))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Key, seal_json};

    fn config_map(label: &str, revision: u64) -> Arc<Object> {
        let json = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "c", "namespace": "a", "uid": "u", "labels": { "l": label } } });
        let sealed = seal_json(Kind::ConfigMap, json.to_string().as_bytes()).unwrap();
        Arc::new(sealed.at(Revision(revision)))
    }

    fn check(kind: ChangeKind, before: Option<&str>, after: &str, expected: Option<Kept>) {
        let previous = before.map(|l| config_map(l, 1));
        let change = Change { kind, object: config_map(after, 2), previous };
        let selects = |o: &Object| o.facet.meta.labels.get("l").is_some_and(|l| l == "in");
        assert_eq!(translate(&change, selects), expected, "{kind:?} {before:?} -> {after}");
    }

    #[test]
    fn changes_move_objects_into_within_and_out_of_a_selection() {
        use ChangeKind::{Added, Deleted, Modified};
        check(Added, None, "in", Some(Kept::Added));
        check(Added, None, "out", None);
        check(Modified, Some("out"), "in", Some(Kept::Added));
        check(Modified, Some("in"), "in", Some(Kept::Modified));
        check(Modified, Some("in"), "out", Some(Kept::Deleted));
        check(Modified, Some("out"), "out", None);
        check(Deleted, Some("in"), "in", Some(Kept::Deleted));
        check(Deleted, Some("out"), "out", None);
        check(Deleted, None, "in", Some(Kept::Deleted));
    }

    #[test]
    fn an_object_that_left_the_selection_is_told_under_the_change_that_moved_it() {
        let moved = at_revision(&config_map("in", 7), Revision(9));
        assert_eq!(moved.key, Key::new(Kind::ConfigMap, "a", "c"));
        let value: serde_json::Value = serde_json::from_slice(&moved.json).unwrap();
        assert_eq!(value["metadata"]["resourceVersion"], "9");
        assert_eq!(value["metadata"]["labels"]["l"], "in");
    }
}
