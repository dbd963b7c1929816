//! The bare limit of a container's start, done by the harness itself with nothing around it.
//!
//! One start: append a pod's document to a file and fdatasync it; new pid, mount, network, IPC and UTS namespaces; an
//! overlay of the image's files; chroot; start the same program that Troupe's containers run. No address and no veth
//! pair, no cgroup, no seccomp filter, no dropped capabilities, no log: Troupe has to do all of that as well.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, chroot},
};
use tempfile::TempDir;

use crate::machine::Marks;

/// About the size of a pod's document.
const DOCUMENT: [u8; 2500] = [b'x'; 2500];

/// Makes and starts bare containers.
pub struct Bare {
    dir: TempDir,
    journal: Mutex<File>,
    next: AtomicU32,
    /// Where they write their names.
    pub marks: Marks,
}

impl Bare {
    /// With this program in the image.
    pub fn new(program: &Path) -> Bare {
        let dir = tempfile::Builder::new().prefix("troupe-bare-").tempdir().expect("a new directory");
        fill_image(&dir.path().join("image"), program);
        let journal = File::create(dir.path().join("journal")).expect("a new file");
        let marks = Marks::new(&dir.path().join("marks"));
        Bare { dir, journal: Mutex::new(journal), next: AtomicU32::new(0), marks }
    }

    /// The image's files.
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// A directory for others.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts one, and says under which name it will write its mark.
    pub fn start(&self) -> (String, Child) {
        {
            let mut journal = self.journal.lock().expect("nobody panicked");
            journal.write_all(&DOCUMENT).and_then(|()| journal.sync_data()).expect("the disk works");
        }
        let name = format!("b{}", self.next.fetch_add(1, Ordering::Relaxed));
        let child = thread::scope(|scope| scope.spawn(|| self.enter_and_spawn(&name)).join());
        (name.clone(), child.expect("root may do this"))
    }

    /// In a thread of its own, whose namespaces and root it changes for good.
    fn enter_and_spawn(&self, name: &str) -> Child {
        let home = self.dir.path().join(name);
        for dir in ["root", "upper", "work"] {
            fs::create_dir_all(home.join(dir)).expect("a new directory");
        }
        let nothing = || File::options().read(true).write(true).open("/dev/null").expect("a null device");
        let (input, output, errors) = (nothing(), nothing(), nothing());
        unshare(
            CloneFlags::CLONE_FS
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS,
        )
        .expect("new namespaces");
        private_mounts();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            self.image().display(),
            home.join("upper").display(),
            home.join("work").display()
        );
        let root = home.join("root");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .expect("an overlay");
        let marks = root.join("marks");
        mount(Some(self.marks.dir()), &marks, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("a mount");
        chroot(&root).expect("our own root");
        Command::new("/hello")
            .args(["hello", "--write", &format!("/marks/{name}=here")])
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .stderr(Stdio::from(errors))
            .spawn()
            .expect("the program starts")
    }

    /// From the document to the program's first act.
    pub fn time_one(&self) -> Duration {
        let begun = Instant::now();
        let (name, mut child) = self.start();
        let time = self.marks.of(&name) - begun;
        end(&mut child);
        time
    }

    /// So many, four at once: until the last one's first act.
    pub fn time_many(&self, count: usize) -> Duration {
        let begun = Instant::now();
        let mut children = at_once(count, || self.start().1);
        let last = (0..count).map(|_| self.marks.next().1).max().unwrap_or(begun);
        children.iter_mut().for_each(end);
        last - begun
    }

    /// So many are asked to end, as Troupe does it (SIGTERM): until the last one is gone.
    pub fn time_end(&self, count: usize) -> Duration {
        let mut children = at_once(count, || self.start().1);
        for _ in 0..count {
            self.marks.next();
        }
        let begun = Instant::now();
        for child in &children {
            let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
        }
        for child in &mut children {
            child.wait().expect("our own child");
        }
        begun.elapsed()
    }
}

/// Does something so many times, four at once.
pub fn at_once<T: Send>(count: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    const AT_ONCE: usize = 4;
    so_many_at_once(AT_ONCE, count, work)
}

/// Does something so many times, so many at once.
pub fn so_many_at_once<T: Send>(workers: usize, count: usize, work: impl Fn() -> T + Sync) -> Vec<T> {
    let (left, done) = (Mutex::new(count), Mutex::new(Vec::with_capacity(count)));
    let take = || {
        let mut left = left.lock().expect("nobody panicked");
        let more = *left > 0;
        *left = left.saturating_sub(1);
        more
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while take() {
                    let result = work();
                    done.lock().expect("nobody panicked").push(result);
                }
            });
        }
    });
    done.into_inner().expect("nobody panicked")
}

/// Mounts made by this thread from now on are nobody else's.
pub fn private_mounts() {
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("mounts of our own");
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn fill_image(image: &Path, program: &Path) {
    for dir in ["marks", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(image.join(dir)).expect("a new directory");
    }
    let inside = image.join("hello");
    // A link keeps the page cache shared, as Troupe's own image does.
    if fs::hard_link(program, &inside).is_err() {
        fs::copy(program, &inside).expect("the program can be copied");
    }
}
