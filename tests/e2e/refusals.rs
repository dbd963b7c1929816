//! What `troupe up` does not accept: one clear line that says what to do, and an exit code.

use std::{
    net::{TcpListener, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use crate::harness::{Cluster, Options, Ran, program, ready, until};

/// Runs a command that must end with this code; returns its last words, which are Troupe's alone.
#[track_caller]
pub fn refused(command: &mut Command, code: i32) -> String {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        until("it gives up", || {
            child.try_wait().map_err(|e| e.to_string())?.ok_or_else(|| "it runs".to_owned())
        })
    }));
    if ended.is_err() {
        let _ = child.kill();
    }
    let ran = Ran::new(what, child.wait_with_output().expect("its output"));
    assert_eq!(ran.code(), Some(code), "{}", ran.err());
    assert_eq!(ran.out(), "", "no ready line");
    // Log lines begin with their time; everything else is for a person.
    let text = ran.err();
    let said: Vec<&str> = text.lines().filter(|line| !line.starts_with("20")).collect();
    assert!(!said.is_empty(), "it says nothing: {text}");
    said.join("\n")
}

fn prepared() -> Cluster {
    let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().expect("a directory");
    let data = dir.path().join("data");
    Cluster::prepared(Options::default(), dir, data)
}

#[track_caller]
fn one_line(error: &str, parts: &[&str]) {
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("troupe: "), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

#[test]
fn a_data_directory_in_use_names_its_owner_and_the_owner_goes_on() {
    if !ready() {
        return;
    }
    let cluster = Cluster::start(Options::default());
    let data = cluster.data.display().to_string();
    let error = refused(&mut cluster.command(), 1);
    one_line(&error, &[&data, "in use by another troupe (pid ", "--data-dir"]);
    cluster.kubectl(&["get", "nodes"]).ok();
    // Nor may its port be taken.
    let other = prepared();
    let api = cluster.api().to_string();
    let error = refused(&mut other.command_at(&api), 1);
    one_line(&error, &[&api, "API", "Address already in use", "--api"]);
}

#[test]
fn occupied_ports_are_named_with_the_flag_that_chooses_another() {
    if !ready() {
        return;
    }
    let cluster = prepared();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = udp.local_addr().unwrap().to_string();
    let error = refused(cluster.command().args(["--listen", &taken]), 1);
    one_line(&error, &[&taken, "UDP", "Address already in use", "--listen"]);
    let taken = tcp.local_addr().unwrap().to_string();
    let error = refused(&mut cluster.command_at(&taken), 1);
    one_line(&error, &[&taken, "Address already in use", "--api"]);
}

#[test]
fn a_data_directory_that_is_none_of_ours_is_left_alone() {
    if !ready() {
        return;
    }
    let cluster = prepared();
    std::fs::create_dir_all(&cluster.data).unwrap();
    std::fs::write(cluster.data.join("format"), "999\n").unwrap();
    let error = refused(&mut cluster.command(), 1);
    one_line(&error, &[&cluster.data.display().to_string(), "999", "--data-dir"]);
    assert_eq!(std::fs::read_to_string(cluster.data.join("format")).unwrap(), "999\n");
    assert!(!cluster.data.join("objects").exists());
    std::fs::remove_dir_all(&cluster.data).unwrap();
    std::fs::write(&cluster.data, "a file").unwrap();
    let error = refused(&mut cluster.command(), 1);
    one_line(&error, &[&cluster.data.display().to_string(), "--data-dir"]);
    assert_eq!(std::fs::read_to_string(&cluster.data).unwrap(), "a file");
}

#[test]
fn an_ordinary_user_is_told_where_it_may_not_write() {
    if !ready() {
        return;
    }
    let Some(setpriv) = program("setpriv") else {
        assert!(std::env::var_os("CI").is_none(), "CI is set, but there is no setpriv");
        return eprintln!("skipped: no setpriv (util-linux)");
    };
    // A copy that anybody may read and run, in a directory that anybody may enter and write.
    let dir = tempfile::Builder::new().prefix("troupe-e2e-").tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = dir.path().join("troupe");
    std::fs::copy(env!("CARGO_BIN_EXE_troupe"), &copy).unwrap();
    let mut command = Command::new(&setpriv);
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy);
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
    let data = closed.join("data").display().to_string();
    command.args(["up", "--api", "127.0.0.1:0", "--data-dir", &data]).current_dir(dir.path());
    let error = refused(&mut command, 1);
    one_line(&error, &[&data, "cannot create", "--data-dir"]);
}

#[test]
fn wrong_usage_exits_with_2_and_names_the_argument() {
    for (arguments, part) in [
        (&["--bad"][..], "--bad"),
        (&["--api", "nowhere"], "--api"),
        (&["--nodes", "many"], "--nodes"),
        (&["--runtime", "magic"], "--runtime"),
        (&["--crash-loop-backoff", "soon"], "--crash-loop-backoff"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_troupe"));
        let error = refused(command.arg("up").args(arguments), 2);
        assert!(error.contains(part), "{error}");
    }
}
