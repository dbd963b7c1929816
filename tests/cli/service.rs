//! `troupe` as a service: the units it writes, and what it tells the service manager.

use std::{
    fs,
    net::UdpSocket,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::{Ran, TROUPE};

const TOKEN: &str =
    "8rcmdg.tenwfs0vok4bymlh.c7130f5b7e4d4e0c36e1434dce75a75904dd61d3583149d085044699e10423c4";
/// As long as a cluster may take to be ready on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

fn troupe(dir: &Path, words: &[&str]) -> Ran {
    let mut command = Command::new(TROUPE);
    command.args(words).current_dir(dir).env("HOME", dir).env_remove("TROUPE_DATA_DIR");
    Ran::of(words, command.output().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What systemd itself thinks of a unit, where it is at hand.
fn verify(unit: &Path) {
    let Ok(output) = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit).output() else {
        eprintln!("no systemd-analyze at hand: not verified");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_installed_master_is_started_with_the_options_given() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().canonicalize().unwrap();
    let words = [
        "master",
        "install",
        "--print",
        "--api=0.0.0.0:6443",
        "--data-dir",
        "a b",
        "--api-name",
        "50%.example",
    ];
    let shown = troupe(&here, &words);
    let line = shown.ok().lines().find(|line| line.starts_with("ExecStart=")).unwrap();
    let program = fs::canonicalize(TROUPE).unwrap();
    let expected = format!(
        "ExecStart={} master --api=0.0.0.0:6443 --api-name \"50%%.example\" --data-dir \"{}/a b\"",
        program.display(),
        here.display()
    );
    assert_eq!(line, expected);
    assert!(!here.join("a b").exists(), "showing writes nothing");
    // A dry run is the same.
    let dry: Vec<&str> =
        words.iter().map(|word| if *word == "--print" { "--dry-run" } else { word }).collect();
    assert_eq!(troupe(&here, &dry).ok(), shown.ok());
    let written = troupe(&here, &["master", "install", "--unit-dir", "."]);
    assert!(written.ok().contains("systemctl disable --now troupe-master.service"), "{written:?}");
    let unit = here.join("troupe-master.service");
    assert_eq!(mode(&unit), 0o644);
    verify(&unit);
    // What the master itself would refuse is refused.
    for (role, file, why) in [
        ("master", "node.json", "of a node that joined"),
        ("node", "pki/ca.key", "a master's data directory"),
    ] {
        let data = here.join(role);
        fs::create_dir_all(data.join("pki")).unwrap();
        fs::write(data.join(file), "{}").unwrap();
        let words = [role, "install", "--unit-dir", "/nowhere", "--data-dir", role];
        let refused = troupe(&here, &words);
        assert!(refused.fails(1).contains(why), "{refused:?}");
    }
    troupe(&here, &["master", "install", "--print", "--api", "everywhere"]).fails(2);
    troupe(&here, &["master", "--api", "127.0.0.1:1", "install", "--print"]).fails(2);
    let nowhere = troupe(&here, &["master", "install", "--unit-dir", "/nowhere"]);
    assert!(nowhere.fails(1).contains("/nowhere/troupe-master.service"), "{nowhere:?}");
}

#[test]
fn an_installed_nodes_token_is_in_a_file_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path().canonicalize().unwrap();
    let words = [
        "node",
        "install",
        "--unit-dir",
        ".",
        "--join",
        "10.0.0.1",
        "--token",
        TOKEN,
        "--label",
        "zone=a",
        "--data-dir",
        "data",
        "--registry-config",
        "auth.json",
    ];
    troupe(&here, &words).ok();
    let unit = here.join("troupe-node.service");
    let text = fs::read_to_string(&unit).unwrap();
    assert!(!text.contains(TOKEN), "{text}");
    let data = here.join("data");
    let token = data.join("join-token");
    let expected = format!(
        "node --join 10.0.0.1 --label zone=a --registry-config {} --data-dir {} --token-file {}\n",
        here.join("auth.json").display(),
        data.display(),
        token.display()
    );
    assert!(text.contains(&expected), "{expected} is not in\n{text}");
    assert!(text.contains(&format!("\nRequiresMountsFor={}\n", data.display())), "{text}");
    assert!(text.contains("\nRestartPreventExitStatus=2 3\n"), "{text}");
    assert!(text.contains("\nKillMode=process\n") && text.contains("\nDelegate=yes\n"), "{text}");
    assert_eq!(fs::read_to_string(&token).unwrap(), format!("{TOKEN}\n"));
    assert_eq!((mode(&token), mode(&data)), (0o600, 0o700));
    verify(&unit);
    // Without a token, too, the address is for the first join alone, and what is missing is said.
    let bare = troupe(&here, &["node", "install", "--print", "--join", "10.0.0.1", "--data-dir", "other"]);
    assert!(bare.ok().contains("--token-file") && bare.err.contains("cannot start before"), "{bare:?}");
    // What it did is done though nobody reads what it says.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut unread = Command::new(TROUPE);
    unread.args(["master", "install", "--unit-dir", "."]).current_dir(&here).stdout(writer);
    let unread = unread.env("HOME", &here).output().unwrap();
    assert!(unread.status.success(), "{}", String::from_utf8_lossy(&unread.stderr));
    let nonsense = troupe(&here, &["node", "install", "--print", "--join", "10.0.0.1", "--token", "x"]);
    assert!(nonsense.fails(2).contains("--token"), "{nonsense:?}");
}

/// A process, ended when dropped.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A service and its manager's socket.
struct Managed {
    service: Service,
    socket: UnixDatagram,
}

impl Managed {
    /// Starts `troupe` and waits until it says that it is ready; what it says.
    fn start(dir: &Path, name: &str, words: &[&str]) -> (Managed, String) {
        let managed = Managed::spawn(dir, name, words);
        // A node that had joined is ready without its master, too, and says so first.
        let told = managed.told_until("STATUS=ready: ");
        (managed, told)
    }

    fn spawn(dir: &Path, name: &str, words: &[&str]) -> Managed {
        let path = dir.join(format!("{name}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(TOLD_WITHIN)).unwrap();
        let log = fs::File::create(dir.join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(TROUPE);
        command.args(words).env("NOTIFY_SOCKET", &path).env("TROUPE_LOG", "warn").env("HOME", dir);
        command.env_remove("TROUPE_DATA_DIR");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Managed { service: Service(command.spawn().unwrap()), socket }
    }

    /// What is told with this in it, and comes next of all that is.
    fn told_until(&self, part: &str) -> String {
        loop {
            let told = self.told();
            if told.contains(part) {
                return told;
            }
        }
    }

    fn told(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.socket.recv(&mut bytes).expect("the service manager is told in time");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// SIGTERM, as a service manager stops it.
    fn stop(mut self) {
        let pid = Pid::from_raw(i32::try_from(self.service.0.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.told_until("STOPPING=1");
        assert_eq!(self.service.0.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn the_service_manager_hears_of_a_cluster_that_serves_and_that_stops() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let words = ["up", "--runtime", "sim", "--api", "127.0.0.1:0", "--data-dir", data];
    let (up, told) = Managed::start(dir.path(), "up", &words);
    assert!(told.contains("API https://127.0.0.1:"), "{told}");
    let kubeconfig = Path::new(data).join("admin.kubeconfig");
    troupe(dir.path(), &["get", "nodes", "--kubeconfig", kubeconfig.to_str().unwrap()]).ok();
    up.stop();
}

#[test]
fn commands_reach_an_api_at_an_ipv6_address() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("no IPv6 on this machine");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    let words = ["up", "--runtime", "sim", "--api", "[::1]:0", "--data-dir", data];
    let (up, told) = Managed::start(dir.path(), "up", &words);
    assert!(told.contains("API https://[::1]:"), "{told}");
    let kubeconfig = Path::new(data).join("admin.kubeconfig");
    let kubeconfig = kubeconfig.to_str().unwrap();
    let run = |words: &[&str]| {
        troupe(dir.path(), &[&words[..1], &["--kubeconfig", kubeconfig], &words[1..]].concat())
    };
    assert!(run(&["get", "nodes"]).ok().contains("Ready"));
    run(&["run", "p", "--image", "troupe.local/hello"]).ok();
    run(&["wait", "pod/p", "--for", "condition=Ready", "--timeout", "60s"]).ok();
    assert_eq!(run(&["exec", "p", "--", "/hello", "--once", "--print", "there"]).ok().trim(), "there");
    up.stop();
}

#[test]
fn the_service_manager_hears_of_a_master_and_of_a_node_that_joined_by_a_token_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| -> PathBuf { dir.path().join(name) };
    let (of_master, of_node) = (at("master"), at("node"));
    let words = ["master", "--api", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--data-dir"];
    let (master, told) =
        Managed::start(dir.path(), "m", &[&words[..], &[of_master.to_str().unwrap()]].concat());
    assert!(told.contains("links 127.0.0.1:"), "{told}");
    let kubeconfig = of_master.join("admin.kubeconfig");
    let made = troupe(dir.path(), &["token", "create", "--kubeconfig", kubeconfig.to_str().unwrap()]);
    let (printed, advice) = (made.ok().to_owned(), made.err);
    let join = advice.lines().last().unwrap().split(' ').collect::<Vec<_>>();
    let (address, token) = (join[3], join[5]);
    assert_eq!(printed, format!("{token}\n"), "the token alone");
    // Where `node install` has it.
    fs::create_dir(&of_node).unwrap();
    let file = of_node.join("join-token");
    fs::write(&file, &printed).unwrap();
    let words = ["node", "--runtime", "sim", "--name", "n1", "--join", address, "--token-file"];
    let words = [&words[..], &[file.to_str().unwrap(), "--data-dir", of_node.to_str().unwrap()]].concat();
    let (node, told) = Managed::start(dir.path(), "n", &words);
    assert!(told.contains("node n1 of cluster troupe"), "{told}");
    node.stop();
    // It was needed once.
    assert!(!file.exists());
    // So was the address: the master may have moved since, and the service's command line does not know.
    let elsewhere: Vec<&str> =
        words.iter().map(|word| if *word == address { "127.0.0.1:1" } else { word }).collect();
    let (moved, told) = Managed::start(dir.path(), "moved", &elsewhere);
    assert!(told.contains(address), "{told}");
    moved.stop();
    let log = fs::read_to_string(at("moved.log")).unwrap();
    assert!(log.contains("127.0.0.1:1 beside --token-file is not used"), "{log}");
    // Without its master a node that has joined does its work: whatever waits for its start goes on.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let nobody = silent.local_addr().unwrap().to_string();
    let words_apart = ["node", "--join", &nobody, "--data-dir", of_node.to_str().unwrap()];
    let apart = Managed::spawn(dir.path(), "apart", &words_apart);
    let told = apart.told_until("READY=1");
    assert!(told.contains("STATUS=node n1 of cluster") && told.contains(&nobody), "{told}");
    apart.stop();
    // A unit that is written now does not even have it.
    let installed = troupe(dir.path(), &[&["node", "install", "--print"], &elsewhere[1..]].concat());
    assert!(!installed.ok().contains("--join") && installed.err.contains(address), "{installed:?}");
    let (mut node, _) = Managed::start(dir.path(), "again", &words);
    // Deleted, the node does not come back by itself, though its service has a token that is good.
    let kubeconfig = kubeconfig.to_str().unwrap();
    troupe(dir.path(), &["delete", "node", "n1", "--kubeconfig", kubeconfig]).ok();
    assert_eq!(node.service.0.wait().unwrap().code(), Some(3));
    fs::write(&file, format!("{token}\n")).unwrap();
    let again = troupe(dir.path(), &words);
    assert!(again.fails(3).contains("the token is not used"), "{again:?}");
    assert!(!file.exists());
    // One that had a link says when it has none any more.
    let second = at("second");
    let of_second = ["--name", "n2", "--token", token, "--data-dir", second.to_str().unwrap()];
    let of_second = [&["node", "--runtime", "sim", "--join", address][..], &of_second].concat();
    let (left, _) = Managed::start(dir.path(), "left", &of_second);
    master.stop();
    let told = left.told_until("no link to the master");
    assert!(told.contains("STATUS=node n2 of cluster"), "{told}");
    left.stop();
    let other = at("other");
    let missing = [&words[..9], &["--data-dir", other.to_str().unwrap()]].concat();
    let missing = troupe(dir.path(), &missing);
    assert!(missing.fails(2).contains("--token-file"), "{missing:?}");
}
