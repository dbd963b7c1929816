//! What a user types and sees: terminals, attachments, forwarded ports and copies, with each kubectl that is at hand.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Instant,
};

use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use crate::{
    harness::{Cluster, DEADLINE, bare_pod, check, hello, is_ready, kubectl, ready, shared, until},
    pods::rootfs,
};

/// The kubectl in use and its other versions beside it: those before 1.31 speak SPDY alone.
fn kubectls() -> Vec<PathBuf> {
    let usual = kubectl().expect("kubectl");
    let dir = usual.canonicalize().ok().and_then(|path| path.parent().map(PathBuf::from));
    let others = (27..=40).filter_map(|minor| {
        let path = dir.as_ref()?.join(format!("kubectl.1.{minor}"));
        path.is_file().then_some(path)
    });
    others.chain([usual]).collect()
}

fn with(program: &Path, cluster: &Cluster, arguments: &[&str]) -> Command {
    let like = cluster.kubectl_command(arguments);
    let mut command = Command::new(program);
    command.args(arguments).current_dir(cluster.scratch());
    command.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// A process that goes with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `kubectl port-forward`, once it forwards: where to.
struct Forward {
    _process: Running,
    local: SocketAddr,
    errors: mpsc::Receiver<String>,
}

fn forward(program: &Path, cluster: &Cluster, ns: &str, what: &str, port: &str) -> Forward {
    let mut command = with(program, cluster, &["port-forward", "-n", ns, what, port]);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = |read: Box<dyn std::io::Read + Send>| {
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(read).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        lines
    };
    let out = lines(Box::new(child.stdout.take().unwrap()));
    let errors = lines(Box::new(child.stderr.take().unwrap()));
    let process = Running(child);
    let line = out.recv_timeout(DEADLINE).unwrap_or_else(|_| {
        panic!("{} says nothing but {:?}", program.display(), errors.try_iter().collect::<Vec<_>>())
    });
    let local = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split(' ').next());
    Forward { _process: process, local: local.unwrap().parse().unwrap(), errors }
}

impl Forward {
    fn get(&self) -> String {
        let mut connection = TcpStream::connect(self.local).unwrap();
        connection.set_read_timeout(Some(DEADLINE)).unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        let _ = connection.read_to_string(&mut answer);
        answer
    }
}

#[test]
fn every_kubectl_forwards_ports_of_pods_and_services() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "forward";
    cluster.namespace(ns);
    let mut pod = bare_pod("web", "Always", &[hello("c", &["--listen", "127.0.0.1:8080"])]);
    pod["metadata"]["labels"] = json!({"app": "web"});
    cluster.apply(ns, &pod);
    cluster.until_pod(ns, "web", "ready", is_ready);
    for program in kubectls() {
        let web = forward(&program, &cluster, ns, "pod/web", ":8080");
        for _ in 0..3 {
            assert!(web.get().contains("web"), "{}: {}", program.display(), web.get());
        }
        // Several at once, of which some have nothing to say yet.
        let silent: Vec<_> = (0..10).map(|_| TcpStream::connect(web.local).unwrap()).collect();
        assert!(web.get().contains("web"), "{}", program.display());
        drop(silent);
        assert!(web.get().contains("web"), "{}", program.display());
        let closed = forward(&program, &cluster, ns, "pod/web", ":8081");
        assert_eq!(closed.get(), "", "{}", program.display());
        let told = closed.errors.recv_timeout(DEADLINE).unwrap();
        assert!(told.contains("forwarding") && told.contains("nothing listens there"), "{told}");
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    cluster.apply(ns, &service);
    let front = forward(&kubectl().unwrap(), &cluster, ns, "service/front", ":80");
    assert!(front.get().contains("web"));
    let missing = cluster.kubectl(&["port-forward", "-n", ns, "pod/nobody", ":80"]).fails();
    assert!(missing.contains("pods \"nobody\" not found"), "{missing}");
}

/// The image of a shell in the shared cluster; `None`: it cannot be made here.
fn shell_image(cluster: &Cluster) -> Option<&'static str> {
    const IMAGE: &str = "nowhere.example/streams";
    let Some(busybox) = crate::harness::program("busybox") else {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no busybox");
        eprintln!("skipped: no busybox (apt install busybox-static)");
        return None;
    };
    let tar = cluster.scratch().join(format!("streams-{:?}.tar", std::thread::current().id()));
    rootfs(&busybox, &tar);
    let uri = format!("/api/v1/nodes/n1/proxy/images/import?name={IMAGE}");
    cluster.kubectl(&["create", "--raw", &uri, "-f", tar.to_str().unwrap()]).ok();
    Some(IMAGE)
}

/// A program on a terminal of this test's.
struct Seat {
    process: Running,
    typed: File,
    pieces: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Seat {
    fn of(mut command: Command) -> Seat {
        let size = Winsize { ws_row: 40, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let copy = || Stdio::from(pty.slave.try_clone().unwrap());
        let process = Running(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
        drop((command, pty.slave));
        let mut master = File::from(pty.master.try_clone().unwrap());
        let (sender, pieces) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO is its end.
            while let Ok(count @ 1..) = master.read(&mut buffer) {
                let _ = sender.send(buffer[..count].to_vec());
            }
        });
        Seat { process, typed: File::from(pty.master), pieces, seen: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.typed.write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    fn sees(&mut self, words: &str) {
        let begun = Instant::now();
        while !self.seen.contains(words) {
            let left = DEADLINE.saturating_sub(begun.elapsed());
            match self.pieces.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{words:?} is not in {:?}", self.seen),
            }
        }
    }

    #[track_caller]
    fn ends(mut self) -> (String, Option<i32>) {
        let status = until("it ends", || {
            self.process.0.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| self.seen.clone())
        });
        while let Ok(bytes) = self.pieces.recv_timeout(DEADLINE) {
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        (self.seen, status.code())
    }
}

/// A shell waits in a pod.
fn shell_pod(cluster: &Cluster, ns: &str, name: &str, change: impl FnOnce(&mut serde_json::Value)) -> bool {
    let Some(image) = shell_image(cluster) else { return false };
    let mut container = json!({"name": "c", "image": image, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "sleep 100000"]});
    change(&mut container);
    cluster.apply(ns, &bare_pod(name, "Never", &[container]));
    cluster.until_pod(ns, name, "ready", is_ready);
    true
}

#[test]
fn every_kubectl_has_a_terminal_in_a_container() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "terminal";
    cluster.namespace(ns);
    if !shell_pod(&cluster, ns, "shell", |_| ()) {
        return;
    }
    let until_size =
        |size: &str| format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.05; done; echo sized");
    // An interrupt ends what runs in the foreground, not the shell.
    let rest = "trap : INT; cat; echo stopped-$?; exit 7";
    let script = format!("tty; {}; {rest}", until_size("40 100"));
    for program in kubectls() {
        let line = ["exec", "-it", "-n", ns, "shell", "--", "sh", "-c", &script];
        let mut seat = Seat::of(with(&program, &cluster, &line));
        seat.sees("/dev/pts/");
        seat.sees("sized");
        seat.types("echoed\r");
        seat.sees("echoed\r\nechoed");
        seat.types("\u{3}");
        seat.sees("stopped-130");
        let (seen, code) = seat.ends();
        assert_eq!(code, Some(7), "{}: {seen}", program.display());
    }
    // A window that changes its size.
    let script = format!("echo there; {}; cat", until_size("22 66"));
    let mut seat =
        Seat::of(cluster.kubectl_command(&["exec", "-it", "-n", ns, "shell", "--", "sh", "-c", &script]));
    seat.sees("there");
    let size = rustix::termios::Winsize { ws_row: 22, ws_col: 66, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&seat.typed, size).unwrap();
    kill(Pid::from_raw(seat.process.0.id() as i32), Signal::SIGWINCH).unwrap();
    seat.sees("sized");
    // Someone who leaves without a word takes the program along.
    drop(seat);
    let list = "for p in /proc/[0-9]*; do cat $p/cmdline 2>/dev/null; echo; done";
    let running = || cluster.kubectl(&["exec", "-n", ns, "shell", "--", "sh", "-c", list]);
    until("no cat is left", || {
        check(!running().ok().lines().any(|line| line == "cat\0"), || running().out())
    });
    cluster.kubectl(&["delete", "pod", "-n", ns, "shell", "--now"]).ok();
}

#[test]
fn every_kubectl_attaches_to_the_program_of_a_container() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "attach";
    cluster.namespace(ns);
    let script = "while read line; do echo got $line; done; echo over";
    for (number, program) in kubectls().iter().enumerate() {
        let name = format!("echo{number}");
        let made = shell_pod(&cluster, ns, &name, |container| {
            container["command"] = json!(["sh", "-c", script]);
            (container["stdin"], container["stdinOnce"]) = (true.into(), true.into());
        });
        if !made {
            return;
        }
        let mut command = with(program, &cluster, &["attach", "-i", "-n", ns, &name]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"some words\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(out.contains("got some words"), "{}: {output:?}", program.display());
        cluster.until_pod(ns, &name, "over", |pod| pod["status"]["phase"] == "Succeeded");
        assert_eq!(cluster.kubectl(&["logs", "-n", ns, &name]).ok(), "got some words\nover\n");
        let ended = cluster.kubectl(&["attach", "-n", ns, &name]).fails();
        assert!(ended.contains("completed") || ended.contains("not running"), "{ended}");
    }
}

#[test]
fn a_shell_of_ones_own_runs_on_a_terminal_and_goes() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "run";
    cluster.namespace(ns);
    let Some(image) = shell_image(&cluster) else { return };
    let image = format!("--image={image}");
    let line = ["run", "mine", "-it", "--rm", "-n", ns, &image, "--image-pull-policy=Never"];
    let script = "while read line; do echo got-$line-$(tty); if [ $line = end ]; then exit 0; fi; done";
    let rest = ["--restart=Never", "--command", "--", "sh", "-c", script];
    let mut seat = Seat::of(cluster.kubectl_command(&[&line[..], &rest].concat()));
    // What is typed before kubectl listens stays in the terminal.
    seat.types("one\r");
    seat.sees("got-one-/dev/pts/");
    seat.types("end\r");
    let (seen, code) = seat.ends();
    assert!(code == Some(0) && seen.contains("deleted"), "{code:?}: {seen}");
    let gone = cluster.kubectl(&["get", "pod", "-n", ns, "mine"]).fails();
    assert!(gone.contains("not found"), "{gone}");
}

#[test]
fn kubectl_copies_files_into_containers_and_out_of_them() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "copy";
    cluster.namespace(ns);
    if !shell_pod(&cluster, ns, "shell", |_| ()) {
        return;
    }
    let (here, back) = (cluster.scratch().join("there-and"), cluster.scratch().join("back"));
    // Much, and not text.
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    std::fs::write(&here, &bytes).unwrap();
    let (here, back) = (here.to_str().unwrap(), back.to_str().unwrap());
    cluster.kubectl(&["cp", "-n", ns, here, "shell:/there"]).ok();
    cluster.kubectl(&["cp", "-n", ns, "shell:/there", back]).ok();
    assert!(std::fs::read(back).unwrap() == bytes, "it came back otherwise");
    cluster.kubectl(&["delete", "pod", "-n", ns, "shell", "--now"]).ok();
}

#[test]
fn what_cannot_be_streamed_is_refused_with_words() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "unstreamed";
    cluster.namespace(ns);
    cluster.apply(ns, &bare_pod("web", "Always", &[hello("c", &[])]));
    cluster.until_pod(ns, "web", "ready", is_ready);
    let raw = |path: &str| {
        cluster.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{ns}/pods/{path}")]).fails()
    };
    for (path, words) in [
        ("web/exec?command=x&stdout=true", "unable to upgrade"),
        ("web/exec?command=x", "at least 1 of stdin, stdout, stderr"),
        ("web/exec?stdout=true", "at least one command"),
        ("web/attach?stdout=true", "unable to upgrade"),
        ("web/attach?stdout=true&container=x", "container x is not valid"),
        ("web/portforward", "unable to upgrade"),
        ("nobody/attach?stdout=true", "not found"),
    ] {
        let said = raw(path);
        assert!(said.contains(words), "{path}: {said}");
    }
}
