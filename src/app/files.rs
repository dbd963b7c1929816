//! How many files the process may open.
//!
//! Owns: that the soft limit is the hard one. Containers get limits of their own (native), or are others' processes.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// As in the systemd units: more is of no use here.
const ENOUGH: u64 = 1_048_576;

/// Lets this process open as many files as it is allowed to. The usual soft limit of 1,024 is for programs that use `select`.
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let wanted = hard.min(ENOUGH);
        if wanted > soft { setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
}
