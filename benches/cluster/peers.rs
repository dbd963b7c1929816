//! `crun` and `runc` (from `apt install crun runc`), each running the same program from a bundle prepared before.
//!
//! They get what the bare limit gets, plus what an OCI runtime does: cgroups, masked paths, `pivot_root`. No network
//! beyond an empty namespace, no image, no API. crun 1.8 refuses a machine that mounts both versions of cgroups, so the
//! second one is hidden from it there.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
};
use serde_json::json;

use crate::{
    bare::{Bare, at_once, private_mounts},
    row::Times,
};

/// One of them.
pub struct Peer<'a> {
    program: &'static str,
    bare: &'a Bare,
    dir: PathBuf,
    next: AtomicU32,
}

/// Those that work here. What does not is said on standard error.
pub fn find(bare: &Bare) -> Vec<Peer<'_>> {
    let peers = ["crun", "runc"].map(|program| Peer {
        program,
        bare,
        dir: bare.dir().join(program),
        next: AtomicU32::new(0),
    });
    peers
        .into_iter()
        .filter(|peer| {
            fs::create_dir_all(&peer.dir).expect("a new directory");
            match peer.call(&["--version"]) {
                Err(error) => eprintln!("without {}: {error}", peer.program),
                Ok(()) => match peer.start() {
                    Err(error) => eprintln!("without {}: {error}", peer.program),
                    Ok((id, mark)) => {
                        bare.marks.of(&mark);
                        peer.end(&id);
                        return true;
                    }
                },
            }
            false
        })
        .collect()
}

/// `crun p50 7.0 ms, runc p50 21.0 ms`, or that there is none.
pub fn text(times: &[(&'static str, Times)]) -> String {
    if times.is_empty() {
        return "crun and runc are not installed".to_owned();
    }
    times.iter().map(|(name, times)| format!("{name} {}", times.text())).collect::<Vec<_>>().join("; ")
}

impl Peer<'_> {
    /// Its name.
    pub fn name(&self) -> &'static str {
        self.program
    }

    /// From the call to the program's first act.
    pub fn time_one(&self) -> Duration {
        let begun = Instant::now();
        let (id, mark) = self.start().expect("it worked before");
        let time = self.bare.marks.of(&mark) - begun;
        self.end(&id);
        time
    }

    /// So many, four at once: until the last one's first act.
    pub fn time_many(&self, count: usize) -> Duration {
        let begun = Instant::now();
        let started = at_once(count, || self.start().expect("it worked before").0);
        let last = (0..count).map(|_| self.bare.marks.next().1).max().unwrap_or(begun);
        started.iter().for_each(|id| self.end(id));
        last - begun
    }

    /// Starts one; gives its id, and the name under which it writes its mark.
    fn start(&self) -> Result<(String, String), String> {
        let id = format!("{}-{}", self.program, self.next.fetch_add(1, Ordering::Relaxed));
        let bundle = self.dir.join(&id);
        fs::create_dir_all(&bundle).expect("a new directory");
        let spec = self.spec(&id).to_string();
        fs::write(bundle.join("config.json"), spec).expect("a new file");
        self.call(&["run", "--detach", "--bundle", &bundle.to_string_lossy(), &id])?;
        Ok((id.clone(), id))
    }

    fn end(&self, id: &str) {
        if let Err(error) = self.call(&["delete", "--force", id]) {
            eprintln!("{error}");
        }
    }

    fn call(&self, args: &[&str]) -> Result<(), String> {
        let work = || {
            if Path::new("/sys/fs/cgroup/unified").exists() && self.program == "crun" {
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("a mount namespace");
                private_mounts();
                umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH).expect("it is mounted");
            }
            let root = self.dir.join("state");
            let errors = self.dir.join(format!("errors-{}", args.last().unwrap_or(&"")));
            let log = File::create(&errors).expect("a new file");
            let mut command = Command::new(self.program);
            command.arg("--root").arg(root).args(args);
            // Not a pipe: a detached container keeps it open.
            let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).status();
            match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => {
                    let said = fs::read_to_string(errors).unwrap_or_default();
                    Err(format!("{} {args:?}: {status}: {}", self.program, said.trim()))
                }
                Err(error) => Err(error.to_string()),
            }
        };
        thread::scope(|scope| scope.spawn(work).join()).expect("root may do this")
    }

    fn spec(&self, mark: &str) -> serde_json::Value {
        let namespaces: Vec<_> =
            ["pid", "network", "ipc", "uts", "mount"].iter().map(|kind| json!({"type": kind})).collect();
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "cwd": "/", "env": ["PATH=/"], "noNewPrivileges": true, "capabilities": {},
                "user": {"uid": 65532, "gid": 65532},
                "args": ["/hello", "hello", "--write", format!("/marks/{mark}=here")],
            },
            "root": {"path": self.bare.image(), "readonly": true},
            "hostname": "bare",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/marks", "type": "bind", "source": self.bare.marks.dir(), "options": ["rbind"]},
            ],
            "linux": {"namespaces": namespaces},
        })
    }
}
