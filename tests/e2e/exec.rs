//! Programs that users run in containers with kubectl.

use serde_json::json;

use crate::harness::{bare_pod, hello, is_ready, ready, shared};

#[test]
fn kubectl_exec_runs_a_program_and_ends_as_it_does() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "exec";
    cluster.namespace(ns);
    let mut container = hello("c", &[]);
    container["env"] = json!([{"name": "GREETING", "value": "hi"}]);
    cluster
        .apply(ns, &bare_pod("web", "Always", &[container, hello("other", &["--listen", "0.0.0.0:8081"])]));
    cluster.until_pod(ns, "web", "ready", is_ready);
    let exec = |more: &[&str]| {
        let mut all = vec!["exec", "-n", ns, "web", "-c", "c", "--", "/hello", "hello", "--once"];
        all.extend(more);
        cluster.kubectl(&all)
    };
    let described = exec(&["--describe", "--error", "oops"]);
    let given: serde_json::Value = serde_json::from_str(&described.ok()).unwrap();
    assert_eq!((given["env"]["GREETING"].as_str(), given["hostname"].as_str()), (Some("hi"), Some("web")));
    assert_eq!(described.err().trim(), "oops");
    let failed = exec(&["--exit-code", "3", "--print", "said"]);
    assert_eq!((failed.code(), failed.out().trim()), (Some(3), "said"));
    assert!(failed.err().contains("command terminated with exit code 3"), "{}", failed.err());
    // What is much comes whole; the command is in the request's line, so it is not more.
    let long = "x".repeat(2_000);
    assert_eq!(exec(&["--print", &long, "--print", &long]).ok().len(), 2 * long.len() + 2);
    let missing = cluster.kubectl(&["exec", "-n", ns, "web", "-c", "c", "--", "/none"]).fails();
    assert!(missing.contains("/none") && missing.contains("no such file"), "{missing}");
    assert!(!missing.contains("ERROR") && !missing.contains("libcontainer"), "{missing}");
    let choice = cluster.kubectl(&["exec", "-n", ns, "web", "-c", "nobody", "--", "/hello"]).fails();
    assert!(choice.contains("container nobody is not valid for pod web"), "{choice}");
    // Nothing reads what is typed here, and its end does no harm.
    let typed = cluster.kubectl_in(
        &["exec", "-i", "-n", ns, "web", "-c", "other", "--", "/hello", "hello", "--once", "--print", "done"],
        "some words",
    );
    assert_eq!(typed.ok().trim(), "done");
}
