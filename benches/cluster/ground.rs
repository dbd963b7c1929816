//! What the pods of a row run on, the native runtime or a docker engine, and what their figures stand beside there.
//!
//! A row is written once, over [`Ground`] and [`Beside`]; where the two differ in a count, a word or a budget, it says so
//! with [`On::pick`]. The engine of a row is a `dockerd` of its own (as in the tests), in a directory of its own.

use std::{path::Path, time::Duration};

use crate::{
    Options,
    bare::Bare,
    calls::{Calls, Pods},
    cluster::Cluster,
    engine::{Engine, Lease, at_hand},
    machine::processes,
    peers,
    row::Times,
};

/// A runtime, before anything of it was started.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum On {
    Native,
    Docker,
}

impl On {
    /// What a row does there.
    pub fn pick<T>(self, native: T, docker: T) -> T {
        match self {
            On::Native => native,
            On::Docker => docker,
        }
    }
}

/// What pods run on.
pub enum Ground {
    Native,
    Docker(Engine),
}

impl Ground {
    /// Ready for a cluster; `None` where there is no engine.
    pub fn open(on: On) -> Option<Ground> {
        match on {
            On::Native => Some(Ground::Native),
            On::Docker => at_hand().then(|| Ground::Docker(Lease::fresh())),
        }
    }

    /// The socket of the engine.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Ground::Native => None,
            Ground::Docker(engine) => Some(&engine.socket),
        }
    }

    /// A cluster on a new directory.
    pub fn start(&self, options: &Options) -> Cluster {
        Cluster::start(options, self.socket())
    }

    /// What its pods stand beside. On docker one of them is started for it, and removed: it tells what to ask for.
    pub fn beside(&self, options: &Options, cluster: &Cluster) -> Box<dyn Beside> {
        match self {
            Ground::Native => Box::new(Bare::new(&options.program)),
            Ground::Docker(engine) => Box::new(Pods::like_the_clusters(Calls::new(&engine.socket), cluster)),
        }
    }

    /// The engine's own processes: the daemons first, apart from them the shims, one a container.
    pub fn engine_processes(&self) -> [Vec<i32>; 2] {
        let Some(dir) = self.socket().and_then(Path::parent) else { return Default::default() };
        // The one that ends it names the directory, too, but nothing in it.
        let inside = format!("{}/", dir.display());
        let all = processes().into_iter().filter(|p| p.command.contains(&inside));
        let (shims, daemons): (Vec<_>, Vec<_>) = all.partition(|p| p.command.contains("containerd-shim"));
        [daemons, shims].map(|some| some.into_iter().map(|p| p.pid).collect())
    }
}

/// A peer's name, and the time of one start with it.
pub type Peer<'a> = (&'static str, Box<dyn Fn() -> Duration + 'a>);

/// The least that has to be done for what Troupe does, done by the harness itself.
pub trait Beside {
    /// A pod's start, until its program's first act.
    fn pod(&self) -> Duration;

    /// From the kill of a container until the first act of its next one; and the start of that alone.
    fn restart(&self) -> [Duration; 2] {
        [self.pod(); 2]
    }

    /// A pod's start while another is removed.
    fn replacement(&self) -> Duration {
        self.pod()
    }

    /// So many pods are ended, so many at once, until the last is gone.
    fn end(&self, count: usize, at_once: usize) -> Duration;

    /// Others that start a container here.
    fn peers(&self) -> Vec<Peer<'_>>;
}

impl Beside for Bare {
    fn pod(&self) -> Duration {
        self.time_one()
    }

    fn end(&self, count: usize, _at_once: usize) -> Duration {
        self.time_end(count)
    }

    fn peers(&self) -> Vec<Peer<'_>> {
        let mut all: Vec<Peer> = Vec::new();
        for peer in peers::find(self) {
            all.push((peer.name(), Box::new(move || peer.time_one())));
        }
        all
    }
}

/// What Troupe may take of the time of bare calls to an engine.
pub const OF_BARE: f64 = 1.1;

/// A budget beside bare calls: [`OF_BARE`] of them, and what Troupe does besides; whether it is kept; the ratio in words.
pub fn of_bare(troupe: Duration, bare: Duration, own: Duration) -> (String, bool) {
    let own_ms = own.as_millis();
    (format!("≤ {OF_BARE} × bare + {own_ms} ms"), troupe <= bare.mul_f64(OF_BARE) + own)
}

/// How many times the other's median, to be put after a figure.
pub fn ratio(troupe: &Times, bare: &Times) -> String {
    format!(", {:.2} × bare", troupe.median().as_secs_f64() / bare.median().as_secs_f64())
}
