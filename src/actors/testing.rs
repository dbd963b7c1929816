//! A store small enough to read, for tests of controllers: it holds everything in one actor and publishes at once.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::{Actor, Context, Handler};
use serde_json::Value;

use super::{commit::Wiring, outside};
use crate::{
    logic::tokens::SigningKey,
    messages::{
        Change, ChangeKind, Commit, CommitError, Committed, Durability, Expected, Port, Publisher,
        RecordEvent, View, Write,
    },
    model::{Key, Kind, Object, Revision, Snapshot, seal_json},
    net::TokenKey,
};

/// Runs a test in an actor system of its own whose clock moves only when everybody waits.
pub(crate) fn system(test: impl Future<Output = ()>) {
    let runner = actix::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    });
    runner.block_on(async {
        // Hours on a paused clock: only a test that would wait for ever sees its end.
        tokio::time::timeout(Duration::from_secs(36_000), test).await.expect("the test waits in vain");
    });
}

/// A key for tokens.
pub(crate) fn token_key() -> Arc<SigningKey> {
    let key = TokenKey::ephemeral().unwrap();
    Arc::new(SigningKey::new(key.point().unwrap(), Arc::new(move |bytes| key.sign(bytes))))
}

struct Store {
    snapshot: Snapshot,
    publisher: Publisher,
}

impl Actor for Store {
    type Context = Context<Self>;
}

impl Handler<Commit> for Store {
    type Result = Result<Committed, CommitError>;

    fn handle(&mut self, commit: Commit, _: &mut Context<Self>) -> Self::Result {
        let mut next = self.snapshot.clone();
        let (mut changes, mut objects) = (Vec::new(), Vec::new());
        for write in commit.writes {
            next.revision = Revision(next.revision.0 + 1);
            let (kind, object, previous) = apply(&mut next, write)?;
            objects.push(object.clone());
            changes.push(Change { kind, object, previous });
        }
        self.snapshot = next.clone();
        self.publisher.publish(next, changes);
        Ok(Committed { objects })
    }
}

type Applied = (ChangeKind, Arc<Object>, Option<Arc<Object>>);

fn apply(next: &mut Snapshot, write: Write) -> Result<Applied, CommitError> {
    let revision = next.revision;
    let holds = |next: &Snapshot, key: &Key, expected: &Expected| {
        let current = next.find(key).cloned().ok_or_else(|| CommitError::NotFound(key.clone()))?;
        let same = expected.uid.as_ref().is_none_or(|u| u == current.uid())
            && expected.revision.is_none_or(|r| r == current.revision);
        if same { Ok(current) } else { Err(CommitError::Conflict { key: key.clone(), current }) }
    };
    match write {
        Write::Create(sealed) if next.find(&sealed.key).is_some() => {
            Err(CommitError::AlreadyExists(sealed.key))
        }
        Write::Create(sealed) => {
            let object = Arc::new(sealed.at(revision));
            next.insert(object.clone());
            Ok((ChangeKind::Added, object, None))
        }
        Write::Replace(sealed, expected) => {
            let previous = holds(next, &sealed.key, &expected)?;
            let object = Arc::new(sealed.at(revision));
            next.insert(object.clone());
            Ok((ChangeKind::Modified, object, Some(previous)))
        }
        Write::Remove(key, expected) => {
            let previous = holds(next, &key, &expected)?;
            next.remove(&key);
            let object = Arc::new(previous.with_document(revision, &[&previous.json]));
            Ok((ChangeKind::Deleted, object, Some(previous)))
        }
    }
}

struct Events(Arc<Mutex<Vec<RecordEvent>>>);

impl Actor for Events {
    type Context = Context<Self>;
}

impl Handler<RecordEvent> for Events {
    type Result = ();

    fn handle(&mut self, event: RecordEvent, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(event);
    }
}

/// Everything a controller needs, and what a test wants to see.
pub(crate) struct Bench {
    pub(crate) view: View,
    commits: Port<Commit>,
    events: Port<RecordEvent>,
    recorded: Arc<Mutex<Vec<RecordEvent>>>,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let (view, publisher) = View::new(Snapshot::default());
        let store = Store { snapshot: Snapshot::default(), publisher }.start();
        let recorded = Arc::default();
        let events = Events(Arc::clone(&recorded)).start();
        Bench {
            view,
            commits: Port::fixed("store", store.recipient()),
            events: Port::fixed("events", events.recipient()),
            recorded,
        }
    }

    pub(crate) fn wiring(&self) -> Wiring {
        Wiring { view: self.view.clone(), commits: self.commits.clone(), events: self.events.clone() }
    }

    pub(crate) async fn commit(&self, write: Write) -> Arc<Object> {
        let commit = Commit { writes: vec![write], durability: Durability::Hard };
        let made = self.commits.ask(commit, Duration::from_secs(1)).await.unwrap().unwrap();
        made.objects[0].clone()
    }

    /// Creates an object; a uid and a time of birth are added.
    pub(crate) async fn create(&self, kind: Kind, mut value: Value) -> Arc<Object> {
        value["metadata"]["uid"] = outside::uid().as_str().into();
        value["metadata"]["creationTimestamp"] = outside::now().to_string().into();
        self.commit(Write::Create(seal_json(kind, value.to_string().as_bytes()).unwrap())).await
    }

    /// Changes an object's document, whatever its state.
    pub(crate) async fn change(&self, key: &Key, change: impl FnOnce(&mut Value)) -> Arc<Object> {
        let mut value: Value = self.find(key).unwrap().parse().unwrap();
        change(&mut value);
        let sealed = seal_json(key.kind, value.to_string().as_bytes()).unwrap();
        self.commit(Write::Replace(sealed, Expected::default())).await
    }

    pub(crate) async fn remove(&self, key: &Key) {
        self.commit(Write::Remove(key.clone(), Expected::default())).await;
    }

    pub(crate) fn find(&self, key: &Key) -> Option<Arc<Object>> {
        self.view.snapshot().find(key).cloned()
    }

    pub(crate) fn list(&self, kind: Kind) -> Vec<Arc<Object>> {
        self.view.snapshot().list(kind, None).cloned().collect()
    }

    /// Waits until the store as a whole is as asked.
    pub(crate) async fn until_all(&self, mut is: impl FnMut(&Snapshot) -> bool) {
        let mut watch = self.view.watch(self.view.snapshot().revision);
        while !is(&self.view.snapshot()) {
            watch.next().await.unwrap();
        }
    }

    /// Waits until an object is as asked.
    pub(crate) async fn until(&self, key: &Key, is: impl Fn(&Object) -> bool) -> Arc<Object> {
        self.until_all(|s| s.find(key).is_some_and(|o| is(o))).await;
        self.find(key).unwrap()
    }

    /// Waits until nothing has happened for a minute (of a clock that moves when everybody waits).
    pub(crate) async fn quiet(&self) {
        let mut watch = self.view.watch(self.view.snapshot().revision);
        while tokio::time::timeout(Duration::from_secs(60), watch.next()).await.is_ok() {}
    }

    /// The reasons of all events so far.
    pub(crate) fn reasons(&self) -> Vec<String> {
        self.recorded.lock().unwrap().iter().map(|e| e.0.reason.to_string()).collect()
    }
}
