//! What every end-to-end test stands on.
//!
//! Owns: whether these tests can run here ([`ready`]), a cluster that leaves nothing behind ([`Cluster`]), kubectl's
//! answers ([`Ran`]) and waiting for observed state ([`until`]). No test sleeps for a fixed time.

mod cluster;
mod documents;
mod registry;
mod shared;
pub mod sweep;

use std::{
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

pub use cluster::{Cluster, Options};
pub use documents::{bare_pod, controller, hello, is_deleting, is_ready, kill9, text};
pub use registry::{Registry, digest, registry_ready};
pub use shared::shared;

/// Far beyond what anything takes on an idle machine: a test that waits so long has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// Whether these tests can run here. Says why not; under `CI` that is a failure.
pub fn ready() -> bool {
    let mut missing = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        missing.push("root (containers need it)");
    }
    if kubectl().is_none() {
        missing.push("kubectl (set KUBECTL, or put it on the path)");
    }
    if missing.is_empty() {
        return true;
    }
    let missing = missing.join(" and ");
    assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no {missing}");
    eprintln!("skipped: no {missing}");
    false
}

/// `$KUBECTL`, else the one on the path.
pub fn kubectl() -> Option<PathBuf> {
    std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| program("kubectl"))
}

/// A program on the path.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let beyond = ["/usr/sbin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(beyond).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Asks again and again until there is an answer; panics with `what` and the last excuse when it takes too long.
#[track_caller]
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(excuse) if begun.elapsed() > DEADLINE => panic!("waited too long until {what}: {excuse}"),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// `Ok` when it holds, else the excuse.
pub fn check(holds: bool, excuse: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(excuse()) }
}

/// What a command did.
pub struct Ran {
    what: String,
    output: Output,
}

impl Ran {
    pub fn new(what: String, output: Output) -> Ran {
        Ran { what, output }
    }

    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// Its standard output, when it succeeded.
    #[track_caller]
    pub fn ok(&self) -> String {
        assert!(self.output.status.success(), "{} failed\n{}{}", self.what, self.out(), self.err());
        self.out()
    }

    /// Its standard error, when it failed.
    #[track_caller]
    pub fn fails(&self) -> String {
        assert!(!self.output.status.success(), "{} succeeded\n{}{}", self.what, self.out(), self.err());
        self.err()
    }

    /// As a value to wait for.
    pub fn result(&self) -> Result<String, String> {
        if self.output.status.success() {
            Ok(self.out())
        } else {
            Err(format!("{}: {}{}", self.what, self.out(), self.err()))
        }
    }
}
