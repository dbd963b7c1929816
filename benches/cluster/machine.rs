//! What the machine itself tells: which processes there are and what they cost, and when a file was written.

use std::{
    collections::BTreeMap,
    ffi::CStr,
    fs,
    mem::MaybeUninit,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::inotify;

/// Longer than anything that is measured here.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory in which containers write a file as their first act, and the times at which they did.
///
/// The kernel tells us (inotify), so neither Troupe's own reports nor any polling is in the figure. What is: the start
/// of the program (the built-in image's; beside it the bare limit starts the same one) and our own waking up.
pub struct Marks {
    dir: PathBuf,
    written: Mutex<mpsc::Receiver<(String, Instant)>>,
}

impl Marks {
    /// Makes the directory, writable for everyone.
    pub fn new(dir: &Path) -> Marks {
        fs::create_dir_all(dir).expect("a new directory");
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).expect("our own directory");
        let kernel = inotify::init(inotify::CreateFlags::CLOEXEC).expect("inotify");
        inotify::add_watch(&kernel, dir, inotify::WatchFlags::CLOSE_WRITE).expect("a watch");
        let (tell, written) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(kernel, &mut buffer);
            while let Ok(event) = reader.next() {
                let now = Instant::now();
                let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
                if tell.send((name.into_owned(), now)).is_err() {
                    return;
                }
            }
        });
        Marks { dir: dir.into(), written: Mutex::new(written) }
    }

    /// Where they are written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The next one, of whomever.
    pub fn next(&self) -> (String, Instant) {
        let written = self.written.lock().expect("nobody panicked");
        written.recv_timeout(PATIENCE).expect("a container starts")
    }

    /// When this one was written; others that come before it are dropped.
    pub fn of(&self, name: &str) -> Instant {
        loop {
            let (written, at) = self.next();
            if written == name {
                return at;
            }
        }
    }

    /// Drops what was written before now.
    pub fn forget(&self) {
        let written = self.written.lock().expect("nobody panicked");
        while written.try_recv().is_ok() {}
    }
}

/// Waits for something that can only be looked at, every 2 ms.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) -> Instant {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "this never came: {what}");
        thread::sleep(Duration::from_millis(2));
    }
    Instant::now()
}

/// The entries of a directory; none when it is not there.
pub fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// A process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// Its command line, blanks between the words.
    pub command: String,
}

/// All processes of the machine.
pub fn processes() -> Vec<Process> {
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    pids.filter_map(|pid: i32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let parent = stat(pid)?.get(1)?.parse().ok()?;
        Some(Process { pid, parent, command })
    })
    .collect()
}

/// The fields of `/proc/PID/stat` from the third (the state) on.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Processor time that a process has used.
pub fn cpu(pid: i32) -> Duration {
    /// `sysconf(_SC_CLK_TCK)` on every Linux of today.
    const TICKS_PER_SECOND: f64 = 100.0;
    let field = |at: usize| stat(pid)?.get(at)?.parse::<f64>().ok();
    Duration::from_secs_f64((field(11).unwrap_or(0.0) + field(12).unwrap_or(0.0)) / TICKS_PER_SECOND)
}

/// What a process holds in memory, in KiB: `Rss`, `Pss`, `Private_Dirty`… of `smaps_rollup`.
pub fn memory(pid: i32) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name.to_owned(), rest.split_ascii_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

/// The sum over processes of one of those.
pub fn memory_sum(pids: &[i32], of: &str) -> f64 {
    pids.iter().filter_map(|pid| memory(*pid).get(of).copied()).sum()
}
