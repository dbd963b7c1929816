//! A cluster in a process of its own, ended when dropped, and the commands that are run against it.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::Duration,
};

/// The program under test.
pub const TROUPE: &str = env!("CARGO_BIN_EXE_troupe");
/// A cluster that is not ready by then is broken, however busy the machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running cluster and its directory.
pub struct Cluster {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have ended by itself, which a test has then noticed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Starts one node of simulated containers, and waits until it is ready.
    pub fn start() -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(TROUPE)
            .args(["up", "--runtime", "sim", "--api", "127.0.0.1:0", "--node-name", "n1", "--data-dir"])
            .arg(dir.path().join("data"))
            .env("TROUPE_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let cluster = Cluster { child, dir };
        let (sender, line) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(out);
            let mut line = String::new();
            let _ = reader.read_line(&mut line);
            let _ = sender.send(line);
            let _ = std::io::copy(&mut reader, &mut std::io::sink());
        });
        let logs = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = err.read_to_string(&mut text);
            text
        });
        let line = line.recv_timeout(READY_WITHIN).unwrap_or_default();
        if !line.starts_with("ready:") {
            drop(cluster);
            panic!("the cluster did not become ready: {line}\n{}", logs.join().unwrap_or_default());
        }
        cluster
    }

    /// A file of the test's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file of the test's directory; its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        let path = self.file(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("data/admin.kubeconfig")
    }

    /// Runs a program against the cluster.
    pub fn run(&self, program: impl AsRef<Path>, words: &[&str], input: &str) -> Ran {
        let mut child = Command::new(program.as_ref())
            .args(words)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.dir.path())
            .env("TZ", "UTC")
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input closes it.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        Ran::of(words, child.wait_with_output().unwrap())
    }

    /// Runs troupe.
    pub fn troupe(&self, words: &[&str]) -> Ran {
        self.run(TROUPE, words, "")
    }
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its words.
    pub words: String,
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained of.
    pub err: String,
}

impl Ran {
    /// Of a program that has ended.
    pub fn of(words: &[&str], output: Output) -> Ran {
        Ran {
            words: words.join(" "),
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Its output, when it succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "{self:#?}");
        &self.out
    }

    /// Its complaint, when it failed with this code.
    #[track_caller]
    pub fn fails(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:#?}");
        &self.err
    }
}

/// The kubectl at hand: `$KUBECTL`, else the one on the path. Beside it, the newest of a series is preferred.
pub fn kubectl() -> Option<PathBuf> {
    let found = std::env::var_os("KUBECTL").map(PathBuf::from).or_else(|| {
        std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("kubectl")).find(|p| p.is_file())
    });
    let Some(found) = found.and_then(|p| p.canonicalize().ok()) else {
        eprintln!("no kubectl at hand: skipped");
        return None;
    };
    let newest = found.with_file_name("kubectl.1.33");
    Some(if newest.is_file() { newest } else { found })
}
