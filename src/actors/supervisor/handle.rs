//! How the rest of the program speaks to a supervisor.
//!
//! Owns: [`SupervisorHandle`], [`Answer`] and what is answered. Every request is sent when it is called, in the order
//! of the calls; the answer may be awaited or detached, so handlers of actors can use all of it without waiting.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use actix::Message;
use tokio::sync::oneshot;

use super::{ChildSpec, Supervisor};
use crate::messages::{ActorState, Slot};

/// Leads to a supervisor, whichever of its incarnations lives. Cheap to clone.
#[derive(Clone)]
pub struct SupervisorHandle {
    pub(super) slot: Slot<Supervisor>,
}

impl SupervisorHandle {
    /// A handle that leads nowhere until [`ChildSpec::supervisor`] is started with it.
    pub fn new(name: &'static str) -> SupervisorHandle {
        SupervisorHandle { slot: Slot::new(name) }
    }

    /// Starts a child. Answered with its incarnation once its `started` has run, or with its first failure; it is
    /// supervised in both cases.
    pub fn start_child(&self, spec: ChildSpec) -> Answer<u64> {
        self.request(|answer| Request::Start(Box::new(spec), answer))
    }

    /// Stops a child in good order and forgets it. Answered when it is gone.
    pub fn stop_child(&self, name: &str) -> Answer<()> {
        self.request(|answer| Request::Stop(name.into(), answer))
    }

    /// The children in the order in which they were started.
    pub fn children(&self) -> Answer<Vec<ChildInfo>> {
        self.request(Request::Children)
    }

    /// All descendants, depth first, children in the order of their starts; names are paths, `branch/leaf`. What is
    /// down at the moment has none.
    pub fn tree(&self) -> Pin<Box<dyn Future<Output = Vec<ChildInfo>> + Send>> {
        let children = self.request(Request::Tree);
        Box::pin(async move {
            let mut tree = Vec::new();
            for (child, subtree) in children.await.unwrap_or_default() {
                let name = child.name.clone();
                tree.push(child);
                let Some(subtree) = subtree else { continue };
                let below = subtree.tree().await.into_iter();
                tree.extend(below.map(|c| ChildInfo { name: format!("{name}/{}", c.name).into(), ..c }));
            }
            tree
        })
    }

    /// Makes a child, or a descendant by its path in the [`tree`](Self::tree), panic in its own task before its next
    /// message: fault injection for tests.
    pub fn inject_panic(&self, name: &str) -> Answer<()> {
        self.request(|answer| Request::InjectPanic(name.into(), answer))
    }

    /// Stops all children, the last started first, then the supervisor. Answered when all are gone. A nested supervisor
    /// is better stopped through its own supervisor, which would take this for an end to judge.
    pub fn shutdown(&self) -> Answer<()> {
        self.request(Request::Shutdown)
    }

    fn request<T>(&self, make: impl FnOnce(Reply<T>) -> Request) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        // Without an address the reply is dropped, and the answer says that the supervisor is down.
        if let Some(address) = self.slot.address() {
            address.do_send(make(reply));
        }
        Answer { supervisor: self.slot.name(), answer }
    }
}

/// What a supervisor will answer. Dropping it takes nothing back; [`Answer::detach`] says so.
pub struct Answer<T> {
    supervisor: &'static str,
    answer: oneshot::Receiver<Result<T, SupervisorError>>,
}

impl<T> Answer<T> {
    /// Lets it happen without waiting for it.
    pub fn detach(self) {}
}

impl<T> Future for Answer<T> {
    type Output = Result<T, SupervisorError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let supervisor = self.supervisor;
        Pin::new(&mut self.answer)
            .poll(cx)
            .map(|answer| answer.unwrap_or(Err(SupervisorError::Down(supervisor))))
    }
}

/// Why a supervisor did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SupervisorError {
    /// It does not run (not yet, not any more, being restarted), or died before it answered.
    #[error("the supervisor {0} is not running")]
    Down(&'static str),
    /// It is stopping its children, itself about to end.
    #[error("the supervisor {0} is shutting down")]
    ShuttingDown(&'static str),
    /// A child of that name exists, maybe still stopping.
    #[error("{supervisor} already has a child {child}")]
    AlreadyExists {
        /// The supervisor.
        supervisor: &'static str,
        /// The name.
        child: Arc<str>,
    },
    /// No child of that name.
    #[error("{supervisor} has no child {child}")]
    NotFound {
        /// The supervisor.
        supervisor: &'static str,
        /// The name.
        child: Arc<str>,
    },
    /// A child's first incarnation did not come to run.
    #[error("{child} {exit}")]
    NotStarted {
        /// The child.
        child: Arc<str>,
        /// How it ended instead.
        exit: super::Exit,
    },
}

/// One child, as its supervisor sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildInfo {
    /// Its name.
    pub name: Arc<str>,
    /// What kind of actor it is.
    pub class: &'static str,
    /// The present incarnation, or the last one.
    pub incarnation: u64,
    /// How often it was started again after it ended, ever.
    pub restarts: u64,
    /// Where it is in its life.
    pub state: ChildState,
    /// How its last incarnation that did not end in good order ended.
    pub last_error: Option<String>,
}

/// Where a child is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChildState {
    /// Waits for an earlier child to run.
    Due,
    /// Being made.
    Starting,
    /// Its `started` has run.
    Running,
    /// Asked to stop, or being killed.
    Stopping,
    /// Ended; to be started again after its backoff.
    Waiting,
}

impl ChildState {
    /// In a word, for people.
    pub fn word(self) -> &'static str {
        match self {
            ChildState::Due => "due",
            ChildState::Starting => "starting",
            ChildState::Running => "running",
            ChildState::Stopping => "stopping",
            ChildState::Waiting => "waiting",
        }
    }
}

impl From<ChildInfo> for ActorState {
    fn from(child: ChildInfo) -> ActorState {
        ActorState {
            name: child.name.to_string(),
            state: child.state.word().into(),
            restarts: child.restarts,
            last_error: child.last_error,
        }
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, SupervisorError>>;

/// handle → supervisor: what the methods of [`SupervisorHandle`] say.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) enum Request {
    Start(Box<ChildSpec>, Reply<u64>),
    Stop(Arc<str>, Reply<()>),
    Children(Reply<Vec<ChildInfo>>),
    Tree(Reply<Vec<(ChildInfo, Option<SupervisorHandle>)>>),
    InjectPanic(Arc<str>, Reply<()>),
    Shutdown(Reply<()>),
}
