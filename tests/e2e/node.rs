//! What pods ask of their node: users of their own, a signal to be stopped with, huge pages.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::{Value, json};

use crate::harness::{Cluster, Options, bare_pod, check, hello, is_ready, ready, shared, text, until};

fn apart(name: &str) -> Value {
    let mut container = hello("c", &["--write", "/v/made=1"]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    container["securityContext"] = json!({"runAsUser": 0});
    let mut pod = bare_pod(name, "Always", &[container]);
    pod["spec"]["hostUsers"] = false.into();
    pod["spec"]["securityContext"] = json!({"fsGroup": 2000});
    pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    pod
}

fn pod_dir(cluster: &Cluster, pod: &Value) -> PathBuf {
    cluster.data.join("nodes/n1/pods").join(text(&pod["metadata"]["uid"]))
}

/// First and number of the node's users that a pod has.
fn users(cluster: &Cluster, pod: &Value) -> (u32, u32) {
    let map = fs::read_to_string(format!("/proc/{}/uid_map", cluster.pid(pod))).unwrap();
    let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!((fields[0], fields.len()), (0, 3), "{map}");
    (fields[1], fields[2])
}

fn describe(cluster: &Cluster, name: &str) -> Value {
    let told = cluster
        .kubectl(&["exec", "-n", "default", name, "--", "/hello", "hello", "--once", "--describe"])
        .ok();
    serde_json::from_str(told.trim()).unwrap()
}

#[test]
fn pods_with_users_of_their_own_share_them_with_nobody() {
    if !ready() {
        return;
    }
    let mut cluster = Cluster::start(Options::default());
    let ns = "default";
    for name in ["one", "two"] {
        cluster.apply(ns, &apart(name));
    }
    let one = cluster.until_pod(ns, "one", "ready", is_ready);
    let two = cluster.until_pod(ns, "two", "ready", is_ready);
    let (first, second) = (users(&cluster, &one), users(&cluster, &two));
    assert_eq!((first.1, second.1), (65_536, 65_536));
    assert!(first.0.abs_diff(second.0) >= 65_536 && first.0.min(second.0) >= 65_536, "{first:?} {second:?}");
    // In the pod it is root's, whom the node knows as the first of the pod's users.
    let seen = fs::metadata(PathBuf::from(format!("/proc/{}/root", cluster.pid(&one))).join("v")).unwrap();
    assert_eq!(seen.uid(), first.0);
    assert_eq!(describe(&cluster, "one")["uid"], 0);
    let made = fs::metadata(pod_dir(&cluster, &one).join("volumes/v/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (0, 2000), "the pod's root, and the volume's group");

    let pid = cluster.pid(&one);
    cluster.kill();
    cluster.up();
    cluster.apply(ns, &apart("three"));
    let three = cluster.until_pod(ns, "three", "ready", is_ready);
    let third = users(&cluster, &three);
    for other in [first, second] {
        assert!(third.0.abs_diff(other.0) >= 65_536, "{third:?} {other:?}");
    }
    assert_eq!((cluster.pid(&one), users(&cluster, &one)), (pid, first));
    assert_eq!(describe(&cluster, "one")["uid"], 0);
    assert!(pod_dir(&cluster, &one).join("userns").exists());
    cluster.kubectl(&["delete", "pod", "-n", ns, "one"]).ok();
    until("its users are free again", || check(!pod_dir(&cluster, &one).exists(), String::new));

    let mut both = apart("both");
    both["spec"]["hostNetwork"] = true.into();
    let told = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &both.to_string()).fails();
    assert!(told.contains("spec.hostNetwork: Forbidden: when `pod.Spec.HostUsers` is false"), "{told}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}

#[test]
fn a_container_is_stopped_with_the_signal_that_it_names() {
    if !ready() {
        return;
    }
    let cluster = shared();
    let ns = "stop-signal";
    cluster.namespace(ns);
    let mut container = hello("c", &[]);
    container["lifecycle"] = json!({"stopSignal": "SIGINT"});
    let mut pod = bare_pod("polite", "Always", &[container]);
    let told = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &pod.to_string()).fails();
    assert!(told.contains("may not be set for containers with empty `spec.os.name`"), "{told}");
    pod["spec"]["os"] = json!({"name": "linux"});
    cluster.apply(ns, &pod);
    let pod = cluster.until_pod(ns, "polite", "ready", is_ready);
    assert_eq!(pod["status"]["containerStatuses"][0]["stopSignal"], "SIGINT");
    let mut logs = cluster.kubectl_command(&["logs", "-n", ns, "-f", "polite"]);
    let mut logs = logs.stdout(Stdio::piped()).spawn().unwrap();
    let (mut lines, mut said) = (BufReader::new(logs.stdout.take().unwrap()), String::new());
    // It follows before the pod goes.
    lines.read_line(&mut said).unwrap();
    cluster.kubectl(&["delete", "pod", "-n", ns, "polite"]).ok();
    lines.read_to_string(&mut said).unwrap();
    logs.wait().unwrap();
    assert!(said.contains("SIGINT: ending"), "{said}");
}

/// Huge pages of 2 MiB that the machine has beyond its own while this lives.
struct HugePages(u64);

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

impl HugePages {
    fn count() -> Option<u64> {
        fs::read_to_string(HUGE_PAGES).ok()?.trim().parse().ok()
    }

    fn add(more: u64) -> Option<HugePages> {
        let before = HugePages(Self::count()?);
        fs::write(HUGE_PAGES, (before.0 + more).to_string()).ok()?;
        // Memory may be in too small pieces, or nobody's to set aside.
        (Self::count()? == before.0 + more).then_some(before)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = fs::write(HUGE_PAGES, self.0.to_string());
    }
}

#[test]
fn huge_pages_are_counted_given_and_mounted() {
    if !ready() {
        return;
    }
    let Some(_pages) = HugePages::add(4) else {
        eprintln!("skipped: no huge pages can be set aside here");
        return;
    };
    let cluster = Cluster::start(Options::default());
    let ns = "default";
    let total = HugePages::count().unwrap() * 2;
    let node = cluster.get(&["node", "n1"]);
    let status = &node["status"];
    assert_eq!(text(&status["capacity"]["hugepages-2Mi"]), format!("{total}Mi"));
    let memory = |of: &str| text(&status[of]["memory"]).trim_end_matches("Ki").parse::<u64>().unwrap();
    assert_eq!(memory("capacity") - memory("allocatable"), total * 1024);
    let asking = |name: &str, amount: &str| {
        let mut container = hello("c", &[]);
        container["resources"] = json!({"limits": {"hugepages-2Mi": amount, "memory": "64Mi"}});
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        let mut pod = bare_pod(name, "Always", &[container]);
        pod["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"medium": "HugePages"}}]);
        pod
    };
    cluster.apply(ns, &asking("some", "4Mi"));
    let pod = cluster.until_pod(ns, "some", "ready", is_ready);
    let mounts = fs::read_to_string(format!("/proc/{}/mounts", cluster.pid(&pod))).unwrap();
    let volume = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/v")).unwrap_or_default();
    assert!(volume.contains("hugetlbfs") && volume.contains("pagesize=2M"), "{mounts}");
    let groups = Path::new("/sys/fs/cgroup/hugetlb");
    if groups.exists() {
        let of = fs::read_to_string(format!("/proc/{}/cgroup", cluster.pid(&pod))).unwrap();
        let path = of.lines().find_map(|line| line.split_once(":hugetlb:")).unwrap().1;
        let limit = groups.join(path.trim_start_matches('/')).join("hugetlb.2MB.limit_in_bytes");
        assert_eq!(fs::read_to_string(limit).unwrap().trim(), (4 << 20).to_string());
    }
    cluster.apply(ns, &asking("more", &format!("{total}Mi")));
    cluster.until_pod(ns, "more", "refused", |pod| {
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| text(&c["message"]).contains("1 Insufficient hugepages-2Mi"))
    });
    let mut alone = asking("alone", "4Mi");
    alone["spec"]["containers"][0]["resources"] = json!({"limits": {"hugepages-2Mi": "4Mi"}});
    let told = cluster.kubectl_in(&["apply", "-n", ns, "-f", "-"], &alone.to_string()).fails();
    assert!(told.contains("HugePages require cpu or memory"), "{told}");
    cluster.kubectl(&["delete", "pod", "-n", ns, "--all"]).ok();
}
