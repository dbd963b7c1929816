//! What happened, line by line: to be hashed, so that two runs can be compared, and to be read when a story goes wrong.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
};

use tokio::time::Instant;

/// What is to have happened somewhere in a good many stories: else the faults are none, or nobody notices them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    LinkCut,
    LinkIsolated,
    LinkSevered,
    LinkCrashed,
    KubeletCrashed,
    KubeletStopped,
    MachineLost,
    MachineWiped,
    MasterCrashed,
    MasterRefused,
    BatchLost,
    RequestFailed,
    RequestAcknowledged,
    NodeUnready,
    NodeDeleted,
    NodeRecreated,
    NodeSpared,
    NodeSpentItsTime,
    NodeGivenUp,
    NodeSentAway,
    PodBound,
    PodEvicted,
    PodRecreated,
    PodReady,
    PodForced,
    PodReplaced,
    ContainerRestarted,
}

impl Event {
    pub const ALL: [Event; 27] = [
        Event::LinkCut,
        Event::LinkIsolated,
        Event::LinkSevered,
        Event::LinkCrashed,
        Event::KubeletCrashed,
        Event::KubeletStopped,
        Event::MachineLost,
        Event::MachineWiped,
        Event::MasterCrashed,
        Event::MasterRefused,
        Event::BatchLost,
        Event::RequestFailed,
        Event::RequestAcknowledged,
        Event::NodeUnready,
        Event::NodeDeleted,
        Event::NodeRecreated,
        Event::NodeSpared,
        Event::NodeSpentItsTime,
        Event::NodeGivenUp,
        Event::NodeSentAway,
        Event::PodBound,
        Event::PodEvicted,
        Event::PodRecreated,
        Event::PodReady,
        Event::PodForced,
        Event::PodReplaced,
        Event::ContainerRestarted,
    ];

    pub fn named(name: &str) -> Option<Event> {
        Event::ALL.into_iter().find(|event| format!("{event:?}") == name)
    }
}

/// How often each event happened.
pub type Counts = BTreeMap<Event, u64>;

/// As `LinkCut=1 PodBound=5`.
pub fn write_counts(counts: &Counts) -> String {
    counts.iter().map(|(event, count)| format!("{event:?}={count}")).collect::<Vec<_>>().join(" ")
}

/// What [`write_counts`] wrote; words that are none of it are passed over.
pub fn read_counts(text: &str) -> Counts {
    let read = |word: &str| {
        let (name, count) = word.split_once('=')?;
        Some((Event::named(name)?, count.parse().ok()?))
    };
    text.split_whitespace().filter_map(read).collect()
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Trace(Rc<RefCell<Inner>>);

struct Inner {
    origin: Instant,
    hash: DefaultHasher,
    lines: Vec<String>,
    aloud: bool,
    wrong: Option<String>,
    counts: Counts,
}

impl Trace {
    pub fn new(aloud: bool) -> Trace {
        let inner = Inner {
            origin: Instant::now(),
            hash: DefaultHasher::new(),
            lines: Vec::new(),
            aloud,
            wrong: None,
            counts: Counts::new(),
        };
        Trace(Rc::new(RefCell::new(inner)))
    }

    pub fn note(&self, what: impl Display) {
        let mut inner = self.0.borrow_mut();
        let line = format!("{:10.4} {what}", inner.origin.elapsed().as_secs_f64());
        line.hash(&mut inner.hash);
        if inner.aloud {
            eprintln!("{line}");
        }
        inner.lines.push(line);
    }

    /// An invariant is broken. The first is what counts.
    pub fn wrong(&self, what: impl Display) {
        self.note(format!("WRONG: {what}"));
        self.0.borrow_mut().wrong.get_or_insert_with(|| what.to_string());
    }

    pub fn count(&self, event: Event, times: u64) {
        if times > 0 {
            *self.0.borrow_mut().counts.entry(event).or_default() += times;
        }
    }

    pub fn counts(&self) -> Counts {
        self.0.borrow().counts.clone()
    }

    pub fn fault(&self) -> Option<String> {
        self.0.borrow().wrong.clone()
    }

    pub fn hash(&self) -> u64 {
        self.0.borrow().hash.finish()
    }

    pub fn len(&self) -> usize {
        self.0.borrow().lines.len()
    }

    /// The last so many lines.
    pub fn tail(&self, count: usize) -> String {
        let inner = self.0.borrow();
        inner.lines[inner.lines.len().saturating_sub(count)..].join("\n")
    }
}
