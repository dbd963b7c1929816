//! The program without a cluster: what it says when there is none, or when it is used wrongly.

use std::process::{Command, Stdio};

use crate::harness::{Ran, TROUPE};

fn run(program: &std::path::Path, words: &[&str], environment: &[(&str, &str)]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(words)
        .env_remove("KUBECONFIG")
        .env("TROUPE_DATA_DIR", dir.path())
        .env("HOME", dir.path())
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran::of(words, output)
}

fn troupe(words: &[&str]) -> Ran {
    run(TROUPE.as_ref(), words, &[])
}

#[test]
fn without_a_cluster_it_says_how_to_start_one() {
    let ran = troupe(&["get", "pods"]);
    assert!(ran.fails(1).contains("troupe up"), "{ran:?}");
    let ran = run(TROUPE.as_ref(), &["get", "pods"], &[("KUBECONFIG", "/nonexistent/a:/nonexistent/b")]);
    assert!(ran.fails(1).contains("/nonexistent/a"), "{ran:?}");
}

#[test]
fn a_cluster_that_does_not_answer_is_told_in_kubectls_words() {
    // A port that was free a moment ago, and on which nobody listens now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    let text = format!(
        "current-context: a\nclusters: [{{name: c, cluster: {{server: 'https://{address}', \
         insecure-skip-tls-verify: true}}}}]\ncontexts: [{{name: a, context: {{cluster: c}}}}]\n"
    );
    std::fs::write(&path, text).unwrap();
    let ran = troupe(&["get", "pods", "--kubeconfig", path.to_str().unwrap()]);
    assert_eq!(
        ran.fails(1),
        format!(
            "The connection to the server {address} was refused - did you specify the right host or port?\n"
        )
    );
}

#[test]
fn wrong_usage_has_exit_code_two() {
    for words in [
        &["frobnicate"][..],
        &["get", "pods", "--frob"],
        &["scale", "rc", "web"],
        &["get", "pods", "-o", "frob"],
    ] {
        troupe(words).fails(2);
    }
}

#[test]
fn verbs_that_are_not_built_say_so() {
    for verb in ["cp", "drain", "rollout"] {
        let ran = troupe(&[verb, "x"]);
        assert!(ran.fails(1).contains("not built yet"), "{ran:?}");
    }
    assert!(!troupe(&["--help"]).ok().contains("rollout"));
}

#[test]
fn under_the_name_of_kubectl_it_has_only_kubectls_verbs() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("kubectl");
    std::os::unix::fs::symlink(TROUPE, &link).unwrap();
    let help = run(&link, &["--help"], &[]);
    assert!(help.ok().contains("get") && !help.out.contains("image"), "{help:?}");
    run(&link, &["up"], &[]).fails(2);
    assert!(run(&link, &["completion", "bash"], &[]).ok().contains("kubectl"));
}

#[test]
fn it_knows_its_version_and_completes_commands_without_a_cluster() {
    let version = concat!("Client Version: v", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(troupe(&["version"]).ok(), version);
    assert_eq!(troupe(&["version", "--client"]).ok(), version);
    for shell in ["bash", "zsh", "fish"] {
        assert!(troupe(&["completion", shell]).ok().contains("troupe"), "{shell}");
    }
}
