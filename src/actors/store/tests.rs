//! Tests of the store actor, over a memory backend that stalls and fails on request.

use std::{collections::BTreeMap, future::Future, io};

use actix::{Addr, MailboxError};
use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use proptest::prelude::*;

use super::*;
use crate::{
    messages::{ChangeKind, Expected, Watch, Write},
    model::{Kind, Object, Sealed, Snapshot, seal},
    store::{Batch, Memory, Record},
};

fn sealed(name: &str, value: &str) -> Sealed {
    seal(&ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some(format!("uid-{name}")),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([("value".to_owned(), value.to_owned())])),
        ..ConfigMap::default()
    })
    .unwrap()
}

fn key(name: &str) -> Key {
    Key::new(Kind::ConfigMap, "default", name)
}

fn create(name: &str) -> Write {
    Write::Create(sealed(name, "created"))
}

#[test]
fn what_a_change_leaves_as_it_was_is_in_memory_once() {
    let mut head =
        head::Head::new(crate::store::Recovered { snapshot: Snapshot::default(), reserved: Revision(100) });
    let first = head.apply(vec![create("a")]).unwrap().committed.objects.remove(0);
    let second = head.apply(vec![replace("a", "2")]).unwrap().committed.objects.remove(0);
    assert!(first.json != second.json);
    assert!(std::sync::Arc::ptr_eq(&first.facet.meta.labels, &second.facet.meta.labels));
}

fn replace(name: &str, value: &str) -> Write {
    Write::Replace(sealed(name, value), Expected::default())
}

fn remove(name: &str) -> Write {
    Write::Remove(key(name), Expected::default())
}

fn value(object: &Object) -> String {
    object.parse::<ConfigMap>().unwrap().data.unwrap().remove("value").unwrap()
}

/// A running store, its reader, and its disk.
struct Fixture {
    store: Addr<StoreActor>,
    view: View,
    disk: Memory,
    /// Appends made by recovery.
    before: usize,
}

fn start() -> Fixture {
    let disk = Memory::new();
    let (actor, view) = StoreActor::open(disk.clone()).unwrap();
    Fixture { store: actor.start(), view, before: disk.appends().len(), disk }
}

impl Fixture {
    /// Puts the commit into the mailbox now; the future is the answer.
    fn send(
        &self,
        durability: Durability,
        writes: Vec<Write>,
    ) -> impl Future<Output = Outcome> + Unpin + use<> {
        let (answer, outcome) = oneshot::channel();
        let request = self.store.send(Commit { writes, durability });
        actix::spawn(async move {
            let flat: Result<Outcome, MailboxError> = request.await;
            let _ = answer.send(flat.unwrap());
        });
        Box::pin(async move { outcome.await.unwrap() })
    }

    async fn hard(&self, writes: Vec<Write>) -> Outcome {
        self.send(Durability::Hard, writes).await
    }

    async fn soft(&self, writes: Vec<Write>) -> Outcome {
        self.send(Durability::Soft, writes).await
    }

    /// Waits for something that blocks, while the actor goes on.
    async fn until(&self, blocking: impl FnOnce(Memory) + Send + 'static) {
        let disk = self.disk.clone();
        tokio::task::spawn_blocking(move || blocking(disk)).await.unwrap();
    }

    /// Lets the actor take everything that is in its mailbox.
    async fn settle(&self) {
        let empty = Commit { writes: Vec::new(), durability: Durability::Hard };
        self.store.do_send(empty);
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    fn appends(&self) -> Vec<(usize, Force)> {
        self.disk.appends().split_off(self.before)
    }

    fn names(&self) -> Vec<String> {
        self.view.snapshot().all().map(|o| o.key.name.to_string()).collect()
    }

    fn watch(&self) -> Watch {
        self.view.watch(self.view.snapshot().revision)
    }
}

fn is_pending(future: &mut (impl Future<Output = Outcome> + Unpin)) -> bool {
    futures_util::FutureExt::now_or_never(future).is_none()
}

#[actix::test]
async fn each_write_gets_the_next_revision_and_readers_see_it_before_the_answer() {
    let f = start();
    let mut watch = f.watch();
    let first = f.view.snapshot().revision.0 + 1;
    let committed = f.hard(vec![create("a"), create("b"), replace("a", "2")]).await.unwrap();
    let revisions: Vec<u64> = committed.objects.iter().map(|o| o.revision.0).collect();
    assert_eq!(revisions, [first, first + 1, first + 2]);
    assert_eq!(f.view.snapshot().revision.0, first + 2);
    let changes = watch.ready().unwrap();
    let kinds: Vec<_> = changes.iter().map(|c| (c.kind, c.revision().0)).collect();
    assert_eq!(
        kinds,
        [(ChangeKind::Added, first), (ChangeKind::Added, first + 1), (ChangeKind::Modified, first + 2)]
    );
    assert_eq!(changes[2].previous.as_ref().unwrap().revision.0, first);
}

#[actix::test]
async fn a_write_that_expects_another_state_is_refused_with_the_present_one() {
    let f = start();
    let made = f.hard(vec![create("a")]).await.unwrap().objects.remove(0);
    let newer = f.hard(vec![Write::Replace(sealed("a", "2"), Expected::state(&made))]).await.unwrap();
    let stale = Expected::state(&made);
    let other = Expected { uid: Some("another".into()), revision: None };
    for write in [
        Write::Replace(sealed("a", "3"), stale.clone()),
        Write::Remove(key("a"), stale),
        Write::Replace(sealed("a", "3"), other),
    ] {
        match f.hard(vec![write]).await {
            Err(CommitError::Conflict { current, .. }) => {
                assert_eq!(current.revision, newer.objects[0].revision);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(f.hard(vec![create("a")]).await, Err(CommitError::AlreadyExists(_))));
    assert!(matches!(f.hard(vec![remove("b")]).await, Err(CommitError::NotFound(_))));
    assert_eq!(value(f.view.snapshot().find(&key("a")).unwrap()), "2");
}

#[actix::test]
async fn a_commit_with_one_refused_write_changes_nothing() {
    let f = start();
    f.hard(vec![create("a")]).await.unwrap();
    let before = f.view.snapshot();
    let outcome = f.hard(vec![create("b"), replace("a", "2"), remove("a"), create("b")]).await;
    assert!(matches!(outcome, Err(CommitError::AlreadyExists(_))));
    let after = f.view.snapshot();
    assert_eq!((after.revision, after.len()), (before.revision, 1));
    assert_eq!(value(after.find(&key("a")).unwrap()), "created");
    let next = f.hard(vec![create("b")]).await.unwrap();
    assert_eq!(next.objects[0].revision.0, before.revision.0 + 1);
}

#[actix::test]
async fn a_removal_tells_the_last_state_under_its_own_revision() {
    let f = start();
    f.hard(vec![create("a")]).await.unwrap();
    let mut watch = f.watch();
    let gone = f.hard(vec![remove("a")]).await.unwrap().objects.remove(0);
    assert_eq!(gone.revision, f.view.snapshot().revision);
    let document: ConfigMap = gone.parse().unwrap();
    assert_eq!(document.metadata.resource_version, Some(gone.revision.to_string()));
    assert_eq!(value(&gone), "created");
    let changes = watch.ready().unwrap();
    assert_eq!((changes[0].kind, changes[0].revision()), (ChangeKind::Deleted, gone.revision));
    assert!(f.view.snapshot().is_empty());
}

#[actix::test]
async fn a_snapshot_stays_as_it_was_taken() {
    let f = start();
    f.hard(vec![create("a")]).await.unwrap();
    let old = f.view.snapshot();
    f.hard(vec![replace("a", "2"), create("b")]).await.unwrap();
    assert_eq!((old.len(), value(old.find(&key("a")).unwrap())), (1, "created".to_owned()));
}

#[actix::test]
async fn hard_commits_that_gather_during_an_fsync_share_the_next_and_none_is_seen_before_its_own() {
    let f = start();
    f.disk.hold();
    let mut first = f.send(Durability::Hard, vec![create("a")]);
    f.until(|disk| disk.wait_until_held()).await;
    let mut more: Vec<_> = ["b", "c", "d"].map(|n| f.send(Durability::Hard, vec![create(n)])).into();
    f.settle().await;
    assert!(is_pending(&mut first) && more.iter_mut().all(is_pending) && f.names().is_empty());
    f.disk.release();
    first.await.unwrap();
    for answer in more {
        answer.await.unwrap();
    }
    assert_eq!(f.appends(), [(1, Force::Fsync), (3, Force::Fsync)]);
    assert_eq!(f.names(), ["a", "b", "c", "d"]);
}

#[actix::test]
async fn soft_changes_are_seen_at_once_and_written_later_newest_only() {
    let f = start();
    f.soft(vec![create("a")]).await.unwrap();
    for value in ["1", "2", "3"] {
        f.soft(vec![replace("a", value)]).await.unwrap();
    }
    assert_eq!(value(f.view.snapshot().find(&key("a")).unwrap()), "3");
    assert_eq!(f.appends(), []);
    let before = f.before;
    f.until(move |disk| disk.wait_for_appends(before + 1)).await;
    assert_eq!(f.appends(), [(1, Force::Buffered)]);
}

#[actix::test]
async fn soft_changes_ride_along_with_a_hard_one() {
    let f = start();
    f.soft(vec![create("a"), create("b")]).await.unwrap();
    f.soft(vec![remove("b")]).await.unwrap();
    f.hard(vec![create("c")]).await.unwrap();
    assert_eq!(f.appends(), [(3, Force::Fsync)]);
    let left = recover(&mut f.disk.crashed(0)).unwrap().snapshot;
    assert_eq!(left.all().map(|o| &*o.key.name).collect::<Vec<_>>(), ["a", "c"]);
}

#[actix::test]
async fn a_soft_change_behind_an_unsynced_hard_one_is_published_after_it() {
    let f = start();
    let mut watch = f.watch();
    f.disk.hold();
    let hard = f.send(Durability::Hard, vec![create("a")]);
    f.until(|disk| disk.wait_until_held()).await;
    let mut soft = f.send(Durability::Soft, vec![replace("a", "soft")]);
    f.settle().await;
    assert!(is_pending(&mut soft));
    assert!(watch.ready().unwrap().is_empty());
    f.disk.release();
    hard.await.unwrap();
    soft.await.unwrap();
    let revisions: Vec<u64> = watch.ready().unwrap().iter().map(|c| c.revision().0).collect();
    assert!(revisions.len() == 2 && revisions[0] < revisions[1], "{revisions:?}");
}

#[actix::test]
async fn soft_commits_do_not_wait_for_a_soft_batch_at_the_disk() {
    let f = start();
    f.disk.hold();
    f.soft(vec![create("a")]).await.unwrap();
    f.until(|disk| disk.wait_until_held()).await;
    f.soft(vec![create("b"), replace("a", "2")]).await.unwrap();
    assert_eq!(f.names(), ["a", "b"]);
    let mut hard = f.send(Durability::Hard, vec![create("c")]);
    f.settle().await;
    assert!(is_pending(&mut hard));
    f.disk.release();
    hard.await.unwrap();
    assert_eq!(f.appends(), [(1, Force::Buffered), (3, Force::Fsync)]);
}

#[actix::test]
async fn a_failing_disk_refuses_commits_keeps_reads_and_is_tried_again_by_the_next_commit() {
    let f = start();
    f.hard(vec![create("a")]).await.unwrap();
    let before = f.view.snapshot();
    f.disk.fail(Some(io::ErrorKind::StorageFull));
    for writes in [vec![create("b"), replace("a", "2")], vec![remove("a")]] {
        match f.hard(writes).await {
            Err(CommitError::Unavailable(text)) => assert!(text.contains("free some space"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(f.view.snapshot().revision, before.revision);
    assert_eq!(value(f.view.snapshot().find(&key("a")).unwrap()), "created");

    f.disk.fail(None);
    let next = f.hard(vec![create("b")]).await.unwrap();
    assert!(next.objects[0].revision.0 > before.revision.0 + 2, "revisions of failed commits come back");
    // The doubtful keys are written again, so whatever of the failed batches reached the disk is undone.
    assert_eq!(f.appends().last(), Some(&(2, Force::Fsync)));
    let left = recover(&mut f.disk.crashed(0)).unwrap().snapshot;
    assert_eq!(left.all().map(|o| value(o)).collect::<Vec<_>>(), ["created", "created"]);
}

#[actix::test]
async fn a_failure_is_told_until_there_is_room_for_as_much() {
    let f = start();
    let failing = async || f.store.send(ShowStore).await.unwrap().failing;
    f.hard(vec![create("a")]).await.unwrap();
    assert!(!failing().await);
    let much = || vec![replace("a", &"x".repeat(10_000))];
    f.disk.room(Some(1_000));
    f.hard(much()).await.unwrap_err();
    assert!(failing().await);
    f.hard(vec![create("b")]).await.unwrap();
    assert!(failing().await, "little fits on a full disk");
    f.disk.room(None);
    f.hard(vec![create("c")]).await.unwrap();
    assert!(!failing().await, "as much would fit again");
    // It finds that out by itself, too.
    f.disk.room(Some(1_000));
    f.hard(much()).await.unwrap_err();
    f.hard(vec![create("d")]).await.unwrap();
    f.disk.room(None);
    loop {
        let appends = f.disk.appends().len();
        if !failing().await {
            break;
        }
        f.until(move |disk| disk.wait_for_appends(appends + 1)).await;
    }
    f.hard(much()).await.unwrap();
}

#[actix::test]
async fn soft_changes_stay_published_when_the_disk_fails_and_are_written_when_it_works_again() {
    let f = start();
    f.disk.fail(Some(io::ErrorKind::ReadOnlyFilesystem));
    f.soft(vec![create("a")]).await.unwrap();
    assert!(f.hard(vec![replace("a", "hard")]).await.is_err());
    assert_eq!(value(f.view.snapshot().find(&key("a")).unwrap()), "created");
    f.disk.fail(None);
    f.soft(vec![replace("a", "soft")]).await.unwrap();
    let before = f.before;
    f.until(move |disk| disk.wait_for_appends(before + 1)).await;
    assert_eq!(f.appends(), [(1, Force::Fsync)], "after a failure the doubt ends with an fsync");
}

#[actix::test]
async fn a_refusal_that_rests_on_an_unsynced_change_falls_with_it() {
    let f = start();
    f.disk.hold();
    let warm_up = f.send(Durability::Hard, vec![create("w")]);
    f.until(|disk| disk.wait_until_held()).await;
    let first = f.send(Durability::Hard, vec![create("a")]);
    let second = f.send(Durability::Hard, vec![create("a")]);
    f.settle().await;
    f.disk.fail(Some(io::ErrorKind::Other));
    f.disk.release();
    for outcome in [warm_up.await, first.await, second.await] {
        assert!(matches!(outcome, Err(CommitError::Unavailable(_))), "{outcome:?}");
    }
}

#[actix::test]
async fn a_soft_change_beyond_the_reserved_block_waits_for_a_new_reservation() {
    let disk = Memory::new();
    let recovered = Recovered { snapshot: Snapshot::default(), reserved: Revision(1) };
    let (view, publisher) = View::new(recovered.snapshot.clone());
    let store = StoreActor::new(disk.clone(), recovered, publisher).unwrap().start();
    let f = Fixture { store, view, before: 0, disk };
    f.disk.hold();
    f.soft(vec![create("a")]).await.unwrap();
    let mut second = f.send(Durability::Soft, vec![create("b")]);
    f.until(|disk| disk.wait_until_held()).await;
    assert!(is_pending(&mut second) && f.names() == ["a"]);
    f.disk.release();
    second.await.unwrap();
    assert_eq!(f.appends(), [(2, Force::Fsync)]);
    let reserved = recover(&mut f.disk.crashed(0)).unwrap().snapshot.revision;
    assert!(reserved > f.view.snapshot().revision);
}

#[derive(actix::Message)]
#[rtype(result = "()")]
struct Stop;

impl Handler<Stop> for StoreActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

#[actix::test]
async fn a_stop_writes_what_is_still_behind() {
    let f = start();
    f.soft(vec![create("a")]).await.unwrap();
    f.store.send(Stop).await.unwrap();
    let before = f.before;
    f.until(move |disk| disk.wait_for_appends(before + 1)).await;
    assert_eq!(f.appends(), [(1, Force::Fsync)]);
}

/// A backend whose thread does not survive.
struct Panicking;

impl Backend for Panicking {
    fn load(&mut self, _: &mut dyn FnMut(Record)) -> Result<Revision, StoreError> {
        Ok(Revision(0))
    }

    fn append(&mut self, batch: &Batch, _: Force) -> Result<(), StoreError> {
        assert!(batch.puts.is_empty(), "told to panic");
        Ok(())
    }
}

#[actix::test]
async fn the_store_ends_with_its_disk_thread_and_says_so_to_who_waits() {
    let (actor, _view) = StoreActor::open(Panicking).unwrap();
    let store = actor.start();
    let outcome = store.send(Commit { writes: vec![create("a")], durability: Durability::Hard }).await;
    assert!(matches!(outcome, Ok(Err(CommitError::Unavailable(_)))), "{outcome:?}");
    while store.connected() {
        tokio::task::yield_now().await;
    }
}

/// One random write: whose, what, and against which expectation.
#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Replace(usize, Expect),
    Remove(usize, Expect),
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    Anything,
    Present,
    Stale,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn ops() -> impl Strategy<Value = Op> {
    let expect = prop_oneof![Just(Expect::Anything), Just(Expect::Present), Just(Expect::Stale)];
    prop_oneof![
        (0..NAMES.len()).prop_map(Op::Create),
        (0..NAMES.len(), expect.clone()).prop_map(|(n, e)| Op::Replace(n, e)),
        (0..NAMES.len(), expect).prop_map(|(n, e)| Op::Remove(n, e)),
    ]
}

/// What each name should be: the revision and value of its last write.
type Model = BTreeMap<&'static str, (u64, String)>;

fn picture(snapshot: &Snapshot) -> BTreeMap<String, (u64, String)> {
    snapshot.all().map(|o| (o.key.name.to_string(), (o.revision.0, value(o)))).collect()
}

fn owned(model: &Model) -> BTreeMap<String, (u64, String)> {
    model.iter().map(|(n, v)| ((*n).to_owned(), v.clone())).collect()
}

/// Makes a commit in the model, as the store should: all or none.
fn expected_outcome(model: &Model, last: u64, ops: &[Op]) -> (Vec<Write>, Option<Model>) {
    let mut next = model.clone();
    let mut revision = last;
    let mut writes = Vec::new();
    let mut holds = true;
    for op in ops {
        revision += 1;
        let text = format!("at {revision}");
        // Expectations are about the state before the commit, as a client would have read it.
        let expect = |name: &str, expect| match expect {
            Expect::Anything => Expected::default(),
            Expect::Present => Expected {
                uid: Some(format!("uid-{name}").into()),
                revision: model.get(name).map(|(r, _)| Revision(*r)),
            },
            Expect::Stale => Expected { uid: None, revision: Some(Revision(0)) },
        };
        let meets = |next: &Model, name: &str, e: &Expected| {
            next.get(name).is_some_and(|(r, _)| e.revision.is_none_or(|want| want.0 == *r))
        };
        match *op {
            Op::Create(n) => {
                let name = NAMES[n];
                writes.push(Write::Create(sealed(name, &text)));
                holds &= !next.contains_key(name);
                next.insert(name, (revision, text));
            }
            Op::Replace(n, e) => {
                let (name, e) = (NAMES[n], expect(NAMES[n], e));
                holds &= meets(&next, name, &e);
                writes.push(Write::Replace(sealed(name, &text), e));
                next.insert(name, (revision, text));
            }
            Op::Remove(n, e) => {
                let (name, e) = (NAMES[n], expect(NAMES[n], e));
                holds &= meets(&next, name, &e);
                writes.push(Write::Remove(key(name), e));
                next.remove(name);
            }
        }
    }
    (writes, holds.then_some(next))
}

proptest! {
    /// Commits, write-behind, crashes of any depth and failing disks against a model: what is published is what the
    /// model says; what a crash leaves is the whole state at one batch, never older than the last forced one.
    #[test]
    fn the_store_does_what_a_simple_model_does_and_recovery_finds_one_of_its_states(
        commits in prop::collection::vec((prop::collection::vec(ops(), 0..4), 0u8..4), 0..40),
        kept in 0usize..10,
    ) {
        let mut disk = Memory::new();
        let mut head = Head::new(recover(&mut disk).unwrap());
        let mut model = Model::new();
        let mut last = head.publish().revision.0;
        // The states a crash may leave: the last forced one, and those of the batches since.
        let mut left = vec![owned(&model)];
        for (ops, fate) in commits {
            let (writes, next) = expected_outcome(&model, last, &ops);
            let outcome = head.apply(writes);
            prop_assert_eq!(outcome.is_ok(), next.is_some());
            let published = model.clone();
            if let (Ok(applied), Some(next)) = (outcome, next) {
                for change in &applied.changes {
                    prop_assert!(change.revision().0 > last);
                    last = change.revision().0;
                }
                model = next;
            }
            match fate {
                0 => {
                    // A hard batch fails: it may be on disk or not, and the store goes back.
                    let batch = head.take_batch();
                    let keys: Vec<Key> =
                        batch.puts.iter().map(|r| r.key.clone()).chain(batch.removes.clone()).collect();
                    head.roll_back(keys);
                    model = published;
                }
                1 => {
                    let force = if head.is_doubtful() { Force::Fsync } else { Force::Buffered };
                    let batch = head.take_batch();
                    disk.append(&batch, force).unwrap();
                    head.keep(batch.reserve);
                    if force == Force::Fsync {
                        left.clear();
                    }
                    left.push(owned(&model));
                }
                2 => {
                    let batch = head.take_batch();
                    disk.append(&batch, Force::Fsync).unwrap();
                    head.keep(batch.reserve);
                    left = vec![owned(&model)];
                }
                _ => {}
            }
            prop_assert_eq!(picture(&head.publish()), owned(&model));
        }
        let recovered = recover(&mut disk.crashed(kept)).unwrap();
        prop_assert_eq!(picture(&recovered.snapshot), left[kept.min(left.len() - 1)].clone());
        prop_assert!(recovered.snapshot.revision.0 > last);
    }
}
