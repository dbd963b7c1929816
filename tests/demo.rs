//! `troupe demo` as a user runs it: the whole story, with real containers as root, and nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};

/// The issue of time: a story longer than this is not told in under a minute.
const STORY: Duration = Duration::from_secs(60);

/// A demo that is killed when its test is over, however that ended.
struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        // It has mostly ended by itself.
        let _ = kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn demo(args: &[&str], temp: &std::path::Path) -> Demo {
    let mut command = Command::new(env!("CARGO_BIN_EXE_troupe"));
    command.arg("demo").args(args).env("TMPDIR", temp).env_remove("KUBECONFIG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Demo(command.spawn().unwrap())
}

fn told(args: &[&str]) -> Output {
    let temp = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troupe"));
    let output = command.arg("demo").args(args).env("TMPDIR", temp.path()).env_remove("KUBECONFIG").output();
    let output = output.unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(began.elapsed() < STORY, "{:?}", began.elapsed());
    assert_eq!(temp.path().read_dir().unwrap().count(), 0, "files are left");
    output
}

/// Real containers, or the reason why not. Under CI there is no excuse.
fn may_run_containers() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI is set, but this is not root");
    eprintln!("skipped: real containers need root");
    false
}

#[test]
fn the_story_is_true_with_real_containers() {
    if !may_run_containers() {
        return;
    }
    let output = told(&[]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for seen in [
        "three pods run",
        "Hello from hello-",
        "the same pod runs again",
        "another pod took its place",
        "ten pods run",
        "the same ten processes",
        "ten pods are gone",
        "insufficient cpu",
        "All of it happened as shown",
    ] {
        assert!(text.to_lowercase().contains(&seen.to_lowercase()), "{seen:?} is not in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "no colour unless on a terminal");
}

#[test]
fn the_story_is_true_with_simulated_containers_and_says_that_they_are() {
    let output = told(&["--simulate"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("simulated"), "{text}");
    assert!(text.contains("All of it happened as shown"), "{text}");
}

#[test]
fn an_interrupted_story_fails_and_leaves_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let mut demo = demo(&["--simulate"], temp.path());
    let mut lines = BufReader::new(demo.0.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().any(|line| line.unwrap().contains("ready after")), "the cluster did not start");
    kill(Pid::from_raw(i32::try_from(demo.0.id()).unwrap()), Signal::SIGINT).unwrap();
    lines.for_each(drop);
    let status = demo.0.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert_eq!(temp.path().read_dir().unwrap().count(), 0, "files are left");
}
