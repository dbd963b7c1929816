//! From records on disk to the first snapshot.
//!
//! Owns: [`recover`] and the reservation of revisions. Invariant: no revision is ever handed out twice, not even one
//! whose change was lost in a crash. The counter is reserved in blocks, durably, before any revision of the block is
//! used; a restart goes on after the last block. So a watch from before the restart is always too old, never wrong.

use std::sync::Arc;

use super::{Backend, Batch, Force, Record, StoreError};
use crate::model::{Object, Revision, Snapshot, seal_json};

/// How many revisions one reservation covers. It is renewed when half is used and rides along with a batch that is
/// written anyway, so it costs at most one fsync in 32,768 changes; small enough that `resourceVersion`s stay readable
/// after many restarts, of which 64 bits allow more than 10^14.
pub const REVISION_BLOCK: u64 = 65_536;

/// What the writer begins with.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Every object, at a revision that was never handed out before.
    pub snapshot: Snapshot,
    /// The last revision that may be handed out before a new reservation is durable.
    pub reserved: Revision,
}

/// Loads everything, and reserves the first block of revisions.
///
/// # Errors
/// When the backend cannot be read or written, or holds a document that this version does not understand.
pub fn recover(backend: &mut dyn Backend) -> Result<Recovered, StoreError> {
    let mut snapshot = Snapshot::default();
    let mut newest = Revision(0);
    let mut refused = None;
    let reserved = backend.load(&mut |record| {
        newest = newest.max(record.revision);
        match restore(&record) {
            Ok(object) => snapshot.insert(Arc::new(object)),
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    })?;
    if let Some(error) = refused {
        return Err(error);
    }
    // One more than anything that was ever handed out: a watcher who has seen everything up to the last revision of
    // the old life must list again too, because soft changes he saw may be lost.
    snapshot.revision = Revision(reserved.max(newest).0 + 1);
    let reserved = Revision(snapshot.revision.0 + REVISION_BLOCK);
    backend.append(&Batch { reserve: Some(reserved), ..Batch::default() }, Force::Fsync)?;
    tracing::info!(objects = snapshot.len(), revision = snapshot.revision.0, "store recovered");
    Ok(Recovered { snapshot, reserved })
}

fn restore(record: &Record) -> Result<Object, StoreError> {
    let refuse = |source| StoreError::Document { key: record.key.clone(), source };
    Ok(seal_json(record.key.kind, &record.document).map_err(refuse)?.at(record.revision))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        messages::View,
        model::{Key, Kind},
        store::Memory,
    };

    fn record(name: &str, revision: u64) -> Record {
        let json = format!(
            r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}","namespace":"default","uid":"u-{name}"}},"data":{{"a":"b"}}}}"#
        );
        let sealed = seal_json(Kind::ConfigMap, json.as_bytes()).unwrap();
        Record::of(&sealed.at(Revision(revision)))
    }

    #[test]
    fn a_restart_gives_back_the_same_documents_under_the_same_revisions() {
        let mut backend = Memory::new();
        let kept = record("kept", 7);
        let gone = record("gone", 8);
        let batch = Batch { puts: vec![kept.clone(), gone.clone()], ..Batch::default() };
        backend.append(&batch, Force::Fsync).unwrap();
        backend.append(&Batch { removes: vec![gone.key], ..Batch::default() }, Force::Fsync).unwrap();

        let recovered = recover(&mut backend).unwrap();
        assert_eq!(recovered.snapshot.len(), 1);
        let object = recovered.snapshot.find(&kept.key).unwrap();
        assert_eq!((object.revision, &object.json), (Revision(7), &kept.document));
    }

    #[test]
    fn revisions_go_on_after_the_last_reserved_block_even_if_nothing_was_written() {
        let mut backend = Memory::new();
        let first = recover(&mut backend).unwrap();
        let second = recover(&mut backend.crashed(0)).unwrap();
        assert!(first.reserved < second.snapshot.revision);
        assert!(second.snapshot.revision < second.reserved);
    }

    #[test]
    fn a_watch_from_before_the_restart_is_too_old_even_from_the_last_revision_of_the_block() {
        let mut backend = Memory::new();
        let first = recover(&mut backend).unwrap();
        let second = recover(&mut backend).unwrap();
        let revision = second.snapshot.revision;
        let (view, _publisher) = View::new(second.snapshot);
        for asked in [first.snapshot.revision, first.reserved] {
            assert!(view.watch(asked).ready().is_err(), "{asked}");
        }
        assert!(view.watch(revision).ready().unwrap().is_empty());
    }

    #[test]
    fn a_document_that_cannot_be_read_is_refused_by_name() {
        let mut backend = Memory::new();
        let mut bad = record("broken", 3);
        bad.document = b"{\"metadata\":7}".as_slice().into();
        backend.append(&Batch { puts: vec![bad], ..Batch::default() }, Force::Fsync).unwrap();
        let error = recover(&mut backend).unwrap_err();
        let key = Key::new(Kind::ConfigMap, "default", "broken");
        assert!(error.to_string().contains(&key.to_string()), "{error}");
    }
}
