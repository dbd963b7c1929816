//! What happened, line by line: to be hashed, so that two runs can be compared, and to be read when a story goes wrong.

use std::{
    cell::RefCell,
    fmt::Display,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    rc::Rc,
};

use tokio::time::Instant;

/// Cheap to clone.
#[derive(Clone)]
pub struct Trace(Rc<RefCell<Inner>>);

struct Inner {
    origin: Instant,
    hash: DefaultHasher,
    lines: Vec<String>,
    aloud: bool,
    wrong: Option<String>,
}

impl Trace {
    pub fn new(aloud: bool) -> Trace {
        let inner = Inner {
            origin: Instant::now(),
            hash: DefaultHasher::new(),
            lines: Vec::new(),
            aloud,
            wrong: None,
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
