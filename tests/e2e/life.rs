//! Lives of containers and pods: what ends is started again, replaced, or left ended, as its policy says.

use serde_json::{Value, json};

use crate::harness::{
    DEADLINE, bare_pod, check, controller, hello, is_deleting, is_ready, kill9, ready, shared, text, until,
};

fn status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn restarts(pod: &Value) -> i64 {
    status(pod)["restartCount"].as_i64().unwrap_or(-1)
}

#[test]
fn a_killed_container_is_started_again_in_its_pod_and_backs_off_when_it_keeps_dying() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "killed";
    cluster.namespace(ns);
    cluster.apply(ns, &controller("web", 1, &[]));
    let before = cluster.until_ready(ns, 1).remove(0);
    let name = text(&before["metadata"]["name"]).to_owned();
    let first = cluster.pid(&before);
    kill9(first);
    let after = cluster.until_pod(ns, &name, "restarted", |pod| restarts(pod) == 1 && is_ready(pod));
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["status"]["podIP"], before["status"]["podIP"]);
    let last = &status(&after)["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137);
    assert_eq!(last["signal"], 9);
    assert_eq!(last["reason"], "Error");
    assert_eq!(last["containerID"], status(&before)["containerID"]);
    assert_ne!(cluster.pid(&after), first);
    // From the second death on it waits.
    kill9(cluster.pid(&after));
    let mut waited = false;
    let again = until("the pod runs again", || {
        let pod = cluster.pod(ns, &name)?;
        waited |= status(&pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
        check(restarts(&pod) == 2 && is_ready(&pod), || pod["status"].to_string())?;
        Ok(pod)
    });
    assert_eq!(again["metadata"]["uid"], before["metadata"]["uid"]);
    assert!(cluster.until_event(ns, &name, "BackOff").contains("restarting failed container c in pod"));
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        cluster.until_event(ns, &name, reason);
    }
    // A wait of 300 ms may pass between two looks; a longer one is seen for sure.
    for _ in 0..3 {
        if waited {
            break;
        }
        let pod = cluster.until_pod(ns, &name, "running", is_ready);
        let count = restarts(&pod);
        kill9(cluster.pid(&pod));
        until("it is restarted", || {
            let pod = cluster.pod(ns, &name)?;
            waited |= status(&pod)["state"]["waiting"]["reason"] == "CrashLoopBackOff";
            check(restarts(&pod) > count, || pod["status"].to_string())
        });
    }
    assert!(waited, "never seen in CrashLoopBackOff");
}

#[test]
fn a_pod_that_failed_for_good_is_replaced_by_its_controller() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "failed";
    cluster.namespace(ns);
    // It matches the controller's selector, so it is adopted; then it fails, and Never means that it stays so.
    cluster.apply(ns, &bare_pod("web", "Never", &[hello("c", &[])]));
    let failing = cluster.until_pod(ns, "web", "running", |pod| pod["status"]["phase"] == "Running");
    cluster.apply(ns, &controller("web", 1, &[]));
    let adopted =
        cluster.until_pod(ns, "web", "adopted", |pod| pod["metadata"]["ownerReferences"][0]["name"] == "web");
    assert_eq!(adopted["metadata"]["uid"], failing["metadata"]["uid"]);
    kill9(cluster.pid(&adopted));
    let replacement = until("there is a new pod", || {
        let pods = cluster.pods(ns)?;
        let new = pods.iter().find(|pod| pod["metadata"]["name"] != "web" && is_ready(pod));
        new.cloned().ok_or_else(|| format!("{} pods", pods.len()))
    });
    assert_eq!(replacement["metadata"]["ownerReferences"][0]["name"], "web");
    let over = cluster.pod(ns, "web");
    // A controller removes failed pods only when it scales down.
    if let Ok(over) = over {
        assert_eq!(over["status"]["phase"], "Failed");
        assert_eq!(status(&over)["state"]["terminated"]["exitCode"], 137);
    }
}

#[test]
fn a_pod_that_somebody_says_has_failed_is_ended_and_replaced() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "said";
    cluster.namespace(ns);
    cluster.apply(ns, &controller("web", 1, &[]));
    let before = cluster.until_ready(ns, 1).remove(0);
    let (name, pid) = (text(&before["metadata"]["name"]).to_owned(), cluster.pid(&before));
    // What is the kubelet's to say it says again.
    let patch = r#"{"status":{"phase":"Bogus","podIP":"192.0.2.7","containerStatuses":null}}"#;
    cluster.kubectl(&["patch", "pod", &name, "-n", ns, "--subresource=status", "-p", patch]).ok();
    cluster.until_pod(ns, &name, "as it was", |pod| pod["status"] == before["status"]);
    let patch = r#"{"status":{"phase":"Failed","reason":"Decided","message":"by somebody"}}"#;
    cluster.kubectl(&["patch", "pod", &name, "-n", ns, "--subresource=status", "-p", patch]).ok();
    let over = cluster.until_pod(ns, &name, "ended", |pod| !status(pod)["state"]["terminated"].is_null());
    let told = ["phase", "reason", "message"].map(|field| text(&over["status"][field]).to_owned());
    assert_eq!(told, ["Failed", "Decided", "by somebody"]);
    assert!(!is_ready(&over), "{}", over["status"]);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "its program runs on");
    until("there is a new pod", || {
        let pods = cluster.pods(ns)?;
        check(pods.iter().any(|pod| pod["metadata"]["name"] != name && is_ready(pod)), || format!("{pods:?}"))
    });
}

#[test]
fn a_deleted_pod_is_replaced_and_its_program_is_asked_to_end() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "deleted";
    cluster.namespace(ns);
    cluster.apply(ns, &controller("web", 2, &[]));
    let before = cluster.until_ready(ns, 2);
    let victim = text(&before[0]["metadata"]["name"]).to_owned();
    // The log goes on to the program's last word.
    let mut follow = cluster
        .kubectl_command(&["logs", "-n", ns, "-f", &victim])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(follow.stdout.take().unwrap());
    let mut log = String::new();
    // It follows before the pod goes.
    std::io::BufRead::read_line(&mut lines, &mut log).unwrap();
    assert!(log.starts_with("listening"), "{log}");
    let began = std::time::Instant::now();
    cluster.kubectl(&["delete", "pod", "-n", ns, &victim]).ok();
    assert!(began.elapsed() < DEADLINE / 2, "a program that ends on SIGTERM is not waited for");
    std::io::Read::read_to_string(&mut lines, &mut log).unwrap();
    follow.wait().unwrap();
    assert!(log.contains("SIGTERM: ending"), "{log}");
    let after = cluster.until_ready(ns, 2);
    assert!(after.iter().all(|pod| pod["metadata"]["uid"] != before[0]["metadata"]["uid"]));
    assert!(after.iter().any(|pod| pod["metadata"]["uid"] == before[1]["metadata"]["uid"]));
}

#[test]
fn a_program_that_ignores_sigterm_is_killed_when_its_grace_is_over_or_cut_short() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "stubborn";
    cluster.namespace(ns);
    let mut patient = bare_pod("patient", "Always", &[hello("c", &["--ignore-sigterm"])]);
    patient["spec"]["terminationGracePeriodSeconds"] = 600.into();
    cluster.apply(ns, &bare_pod("quick", "Always", &[hello("c", &["--ignore-sigterm"])]));
    cluster.apply(ns, &patient);
    for name in ["quick", "patient"] {
        cluster.until_pod(ns, name, "running", is_ready);
        // It listens only after it has made sure that it ignores the signal.
        until("it listens", || {
            let log = cluster.kubectl(&["logs", "-n", ns, name]).result()?;
            check(log.contains("listening"), || log.clone())
        });
    }
    cluster.kubectl(&["delete", "pod", "-n", ns, "quick", "--grace-period=1"]).ok();
    cluster.kubectl(&["delete", "pod", "-n", ns, "patient", "--wait=false"]).ok();
    let dying = cluster.until_pod(ns, "patient", "on its way out", is_deleting);
    assert_eq!(cluster.pids(&dying).len(), 1, "it has its grace");
    cluster.until_event(ns, "patient", "Killing");
    cluster.kubectl(&["delete", "pod", "-n", ns, "patient", "--grace-period=1"]).ok();
    assert_eq!(cluster.pids(&dying), [0; 0]);
    // By force: the object goes at once, what it ran gets its grace all the same.
    let mut forced = bare_pod("forced", "Always", &[hello("c", &["--ignore-sigterm"])]);
    forced["spec"]["terminationGracePeriodSeconds"] = 2.into();
    cluster.apply(ns, &forced);
    let forced = cluster.until_pod(ns, "forced", "running", is_ready);
    cluster.kubectl(&["delete", "pod", "-n", ns, "forced", "--force", "--grace-period=0"]).ok();
    assert!(cluster.pod(ns, "forced").is_err());
    until("its process is gone", || {
        let pids = cluster.pids(&forced);
        check(pids.is_empty(), || format!("{pids:?}"))
    });
}

#[test]
fn pods_that_may_end_do_so_with_the_phase_that_tells_how() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "phases";
    cluster.namespace(ns);
    let once = |code: &'static str| hello("c", &["--once", "--print", "done", "--exit-code", code]);
    cluster.apply(ns, &bare_pod("good", "Never", &[once("0")]));
    let mut bad = bare_pod("bad", "Never", &[once("3")]);
    bad["spec"]["containers"][0]["terminationMessagePolicy"] = "FallbackToLogsOnError".into();
    cluster.apply(ns, &bad);
    cluster.apply(ns, &bare_pod("patient", "OnFailure", &[once("0")]));
    cluster.apply(ns, &bare_pod("trying", "OnFailure", &[once("3")]));
    for (name, phase, code) in [("good", "Succeeded", 0), ("bad", "Failed", 3), ("patient", "Succeeded", 0)] {
        let pod = cluster.until_pod(ns, name, phase, |pod| pod["status"]["phase"] == phase);
        let terminated = &status(&pod)["state"]["terminated"];
        assert_eq!(terminated["exitCode"], code, "{name}");
        assert_eq!(terminated["reason"], if code == 0 { "Completed" } else { "Error" });
        let message = if name == "bad" { json!("done\n") } else { Value::Null };
        assert_eq!(terminated["message"], message, "{name}");
        assert_eq!(restarts(&pod), 0);
        assert_eq!(cluster.kubectl(&["logs", "-n", ns, name]).ok(), "done\n");
    }
    cluster.until_pod(ns, "trying", "restarted", |pod| restarts(pod) >= 2);
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn logs_follow_cut_and_go_back_to_the_life_before() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "logs";
    cluster.namespace(ns);
    let lines = ["--print", "one", "--print", "two", "--print", "three", "--exit-after", "2s"];
    cluster.apply(ns, &bare_pod("talker", "Always", &[hello("c", &lines)]));
    cluster.until_pod(ns, "talker", "running", |pod| pod["status"]["phase"] == "Running");
    let followed = cluster.kubectl(&["logs", "-n", ns, "-f", "talker"]).ok();
    assert!(followed.starts_with("one\ntwo\nthree\n"), "{followed}");
    cluster.until_pod(ns, "talker", "restarted", |pod| restarts(pod) >= 1);
    let previous = cluster.kubectl(&["logs", "-n", ns, "--previous", "talker"]).ok();
    assert!(previous.starts_with("one\ntwo\nthree\n"), "{previous}");
    let tail = cluster.kubectl(&["logs", "-n", ns, "--previous", "--tail=1", "talker"]).ok();
    assert_eq!(tail.lines().count(), 1, "{tail}");
    let refused = cluster.kubectl(&["logs", "-n", ns, "talker", "-c", "nope"]).fails();
    assert!(refused.contains("container nope is not valid for pod talker"), "{refused}");
}

#[test]
fn a_new_image_restarts_the_container_in_its_pod() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "image";
    cluster.namespace(ns);
    cluster.apply(ns, &bare_pod("web", "Always", &[hello("c", &[])]));
    let before = cluster.until_pod(ns, "web", "running", is_ready);
    let first = cluster.pid(&before);
    // Another name of the same image: the definition differs all the same.
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "troupe.local/hello:latest"}]}});
    cluster.kubectl(&["patch", "pod", "-n", ns, "web", "-p", &patch.to_string()]).ok();
    let after = cluster.until_pod(ns, "web", "restarted", |pod| restarts(pod) == 1 && is_ready(pod));
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(status(&after)["image"], "troupe.local/hello:latest");
    assert_ne!(cluster.pid(&after), first);
    assert_eq!(
        cluster.until_event(ns, "web", "Killing"),
        "Container c definition changed, will be restarted"
    );
    // One that cannot be got is told, and mended without waiting.
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "nowhere.example/nothing:1"}]}});
    cluster.kubectl(&["patch", "pod", "-n", ns, "web", "-p", &patch.to_string()]).ok();
    cluster.until_pod(ns, "web", "without an image", |pod| {
        text(&status(pod)["state"]["waiting"]["reason"]).contains("Pull")
    });
    let patch = json!({"spec": {"containers": [{"name": "c", "image": "troupe.local/hello"}]}});
    cluster.kubectl(&["patch", "pod", "-n", ns, "web", "-p", &patch.to_string()]).ok();
    cluster.until_pod(ns, "web", "running again", is_ready);
}

#[test]
fn a_pod_held_by_a_finalizer_ends_and_stays_until_it_is_released() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "held";
    cluster.namespace(ns);
    let mut pod = bare_pod("web", "Always", &[hello("c", &[])]);
    pod["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "web", "running", is_ready);
    cluster.kubectl(&["delete", "pod", "-n", ns, "web", "--wait=false"]).ok();
    until("its process is gone", || {
        let pids = cluster.pids(&pod);
        check(pids.is_empty(), || format!("{pids:?}"))
    });
    cluster.until_pod(ns, "web", "held", |pod| is_deleting(pod) && !is_ready(pod));
    let release = json!({"metadata": {"finalizers": null}}).to_string();
    cluster.kubectl(&["patch", "pod", "-n", ns, "web", "--type=merge", "-p", &release]).ok();
    until("it is gone", || check(cluster.pod(ns, "web").is_err(), || "it is there".to_owned()));
}
