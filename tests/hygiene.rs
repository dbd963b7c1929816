//! A thousand pods come and go, and nothing of them is left on the machine.
//!
//! Owns: the count. It is taken on the machine, not asked of `troupe`: processes, mounts, namespaces, devices, cgroups,
//! files and firewall rules that carry the mark of this test's data directory, before the first pod and after the last.
//! Addresses are counted by their scarcity: the node has a `/24`, so a thousand pods get theirs only if they are given back.
//! A program of its own, since it keeps the machine busy for a minute or two. Needs what the end-to-end tests need.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the end-to-end tests, which need more of it")]
mod harness;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use harness::{
    Cluster, Options, bare_pod, check, controller, hello, is_deleting, is_ready, program, ready, sweep, text,
    until,
};

/// Waves and the pods of each: as many as a node takes at once, with room for those that replace killed ones.
const WAVES: usize = 10;
const PODS: usize = 100;
/// Of a wave's pods, those of its three controllers; the others are on their own.
const CONTROLLED: u32 = 25;
const CONTROLLERS: usize = 3;
const CRASHING: usize = 6;
const ENDED: usize = 5;
const MOUNTING: usize = 8;
const CHAINED: usize = 5;
const STUCK: usize = 1;
/// Files and sockets that a process may have open in the end beyond those it had in the beginning: connections of clients
/// that are kept for a while. Each leaked pod would hold one at least.
const SLACK: usize = 24;

#[test]
fn a_thousand_pods_leave_nothing_however_they_ended() {
    if !ready() {
        return;
    }
    let begun = Instant::now();
    let mut cluster = Cluster::start(Options { backoff: "200ms", ..Options::default() });
    // What is made once for all pods (bridge, cgroups, the tmpfs of sandboxes) is there after the first ones.
    let mut seen = Seen::default();
    cluster.namespace("first");
    cluster.apply("first", &json!({"apiVersion": "v1", "kind": "List", "items": [mounting(0), settings()]}));
    cluster.until_ready("first", 1);
    delete(&cluster, "first");
    gone(&cluster, "first");
    let before = settled(&cluster, &seen, |_| Ok(()));
    for wave in 0..WAVES {
        let ns = format!("wave-{wave}");
        cluster.namespace(&ns);
        let created = cluster.kubectl_in(&["create", "-n", &ns, "-f", "-"], &objects().to_string());
        created.ok();
        if wave % 3 == 1 {
            restart_when(&mut cluster, "half of the pods have a shim", |cluster| cluster.shims() > PODS / 2);
        }
        let pods = all_begun(&cluster, &ns);
        seen.add(&cluster, &pods);
        kill_some(&cluster, &pods);
        if wave % 3 == 2 {
            // Nobody drives while these die.
            cluster.kill();
            kill_shims(&cluster, 2);
            cluster.up();
        }
        kill_shims(&cluster, 1);
        delete(&cluster, &ns);
        if wave % 3 == 0 {
            restart_when(&mut cluster, "half of the pods are gone", |cluster| cluster.shims() < PODS / 2);
        }
        gone(&cluster, &ns);
        println!("wave {wave}: {} pods so far, {:?}", seen.uids.len(), begun.elapsed());
    }
    assert!(seen.uids.len() >= WAVES * PODS, "{} pods", seen.uids.len());
    let same = |left: &Left| {
        let more: Vec<String> =
            left.iter().filter_map(|(what, now)| more(what, &before[what], now)).collect();
        check(more.is_empty(), || more.join("\n"))
    };
    settled(&cluster, &seen, same);
    // The process that did all this by itself, since its last start, ends as it should.
    assert_eq!(cluster.stop(), Some(0));
    println!("{} pods in {:?}", seen.uids.len(), begun.elapsed());
}

/// What is more than it was. Names differ from one process to the next where they are numbers, so those are only counted.
fn more(what: &str, before: &[String], now: &[String]) -> Option<String> {
    let allowed = before.len() + if what == "open files" { SLACK } else { 0 };
    let shown = |list: &[String]| list.iter().take(20).cloned().collect::<Vec<_>>().join("\n  ");
    (now.len() > allowed).then(|| format!("{} {what}, {} before:\n  {}", now.len(), before.len(), shown(now)))
}

/// What pods had on the machine that says nothing of whose it was once they are gone.
#[derive(Default)]
struct Seen {
    uids: BTreeSet<String>,
    shims: BTreeSet<i32>,
    devices: BTreeSet<String>,
}

impl Seen {
    fn add(&mut self, cluster: &Cluster, pods: &[Value]) {
        self.uids.extend(pods.iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()));
        self.shims.extend(sweep::shims(&cluster.data).into_iter().map(|(pid, _)| pid));
        self.devices.extend(ports(cluster));
    }
}

/// What is there, by kind.
type Left = BTreeMap<&'static str, Vec<String>>;

/// Takes the count when it is as wanted; the kernel takes apart what dead processes had a little later.
fn settled(cluster: &Cluster, seen: &Seen, wanted: impl Fn(&Left) -> Result<(), String>) -> Left {
    until("nothing more is left than there was", || {
        let left = count(cluster, seen);
        check(left["shims"].is_empty() && left["processes"].is_empty(), || format!("{left:?}"))?;
        wanted(&left)?;
        Ok(left)
    })
}

fn count(cluster: &Cluster, seen: &Seen) -> Left {
    let data = &cluster.data;
    let node = data.join("nodes/n1");
    let family = family(cluster.process());
    let mut left = Left::new();
    left.insert("processes", shown(sweep::processes(data)));
    left.insert("shims", shown(sweep::shims(data)));
    left.insert("children", family.iter().map(|pid| name(*pid)).collect());
    // Those of an earlier `troupe` are init's to wait for.
    let waited_for =
        seen.shims.iter().filter(|pid| stat(**pid).is_some_and(|(state, p)| state == "Z" && p != 1));
    left.insert("zombies", waited_for.map(|pid| name(*pid)).collect());
    let mut mounts: Vec<String> = family.iter().flat_map(|pid| mounts(*pid, data)).collect();
    mounts.extend(self::mounts(std::process::id() as i32, data));
    left.insert("mounts", mounts);
    left.insert("namespaces", namespaces(data, &family));
    let mut devices = ports(cluster);
    devices
        .extend(seen.devices.iter().filter(|name| Path::new("/sys/class/net").join(name).exists()).cloned());
    left.insert("devices", devices);
    left.insert("cgroups", sweep::cgroups(data).iter().flat_map(|group| below(group, true)).collect());
    for (what, dir) in [
        ("logs", node.join("logs")),
        ("pods' directories", node.join("pods")),
        ("sandboxes", node.join("runtime/sandboxes")),
        ("writable layers", node.join("runtime/writable")),
        ("pinned images", data.join("images/pins")),
    ] {
        left.insert(what, below(&dir, false));
    }
    left.insert("firewall rules", rules(data));
    left.insert("open files", family.iter().flat_map(|pid| open_files(*pid)).collect());
    left
}

fn shown(processes: Vec<(i32, String)>) -> Vec<String> {
    processes.into_iter().map(|(pid, of)| format!("{pid} {of}")).collect()
}

/// A process' state and parent.
fn stat(pid: i32) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}

fn name(pid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{pid} {} {:?}", comm.trim(), stat(pid))
}

fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// A process and all that descend from it.
fn family(of: i32) -> BTreeSet<i32> {
    let parents: Vec<(i32, i32)> =
        all_pids().into_iter().filter_map(|pid| Some((pid, stat(pid)?.1))).collect();
    let mut family = BTreeSet::from([of]);
    loop {
        let more: Vec<i32> = parents
            .iter()
            .filter(|(pid, of)| family.contains(of) && !family.contains(pid))
            .map(|p| p.0)
            .collect();
        if more.is_empty() {
            return family;
        }
        family.extend(more);
    }
}

/// What of a data directory, or of a namespace that is kept by a file, is mounted for a process.
fn mounts(pid: i32, data: &Path) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let data = data.to_string_lossy();
    let ours = |line: &&str| line.contains(&*data);
    table.lines().filter(ours).map(|line| format!("{pid}: {line}")).collect()
}

/// Processes outside the family that still see the data directory's mounts, and namespaces that the family holds open.
fn namespaces(data: &Path, family: &BTreeSet<i32>) -> Vec<String> {
    let of = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let ours: Vec<Option<PathBuf>> = family.iter().map(|pid| of(*pid, "mnt")).collect();
    let own = of(std::process::id() as i32, "mnt");
    let elsewhere = all_pids().into_iter().filter(|pid| {
        let theirs = of(*pid, "mnt");
        theirs.is_some() && theirs != own && !ours.contains(&theirs) && !mounts(*pid, data).is_empty()
    });
    let mut found: Vec<String> = elsewhere.map(name).collect();
    let held = family.iter().flat_map(|pid| open_files(*pid));
    found.extend(held.filter(|file| [" net:[", " mnt:[", " pid:["].iter().any(|kind| file.contains(kind))));
    found
}

fn open_files(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    entries.filter_map(target).map(|target| format!("{pid} {}", target.display())).collect()
}

/// The node's ends of pods' networks.
fn ports(cluster: &Cluster) -> Vec<String> {
    let bridges = sweep::links(&cluster.data);
    bridges.iter().flat_map(|bridge| names(&Path::new("/sys/class/net").join(bridge).join("brif"))).collect()
}

/// Lines of the machine's firewall that name the data directory's bridges.
fn rules(data: &Path) -> Vec<String> {
    let Some(nft) = program("nft") else { return Vec::new() };
    let output = Command::new(nft).args(["list", "ruleset"]).output().expect("nft runs");
    let rules = String::from_utf8_lossy(&output.stdout).into_owned();
    let tag = sweep::tag(data);
    rules.lines().filter(|line| line.contains(&tag)).map(str::to_owned).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// What is in a directory and below: directories only, or everything.
fn below(dir: &Path, only_dirs: bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_dir || !only_dirs {
            found.push(entry.path().to_string_lossy().into_owned());
        }
        if is_dir {
            found.extend(below(&entry.path(), only_dirs));
        }
    }
    found
}

/// A wave's objects.
fn objects() -> Value {
    let mut all = vec![settings()];
    for number in 0..CONTROLLERS {
        all.push(controller(&format!("web-{number}"), CONTROLLED, &["--print", "here"]));
    }
    for number in 0..CRASHING {
        let failing = hello("c", &["--once", "--print", "failing", "--exit-code", "1"]);
        all.push(bare_pod(&format!("crashing-{number}"), "Always", &[failing]));
    }
    for number in 0..ENDED {
        all.push(bare_pod(&format!("ended-{number}"), "Never", &[hello("c", &["--once"])]));
    }
    all.extend((0..MOUNTING).map(mounting));
    for number in 0..CHAINED {
        let mut pod = bare_pod(&format!("chained-{number}"), "Always", &[hello("c", &[])]);
        let mut sidecar = hello("side", &["--listen", "127.0.0.1:8081"]);
        sidecar["restartPolicy"] = "Always".into();
        pod["spec"]["initContainers"] = json!([hello("init", &["--once"]), sidecar]);
        all.push(pod);
    }
    for number in 0..STUCK {
        let mut container = hello("c", &[]);
        container["envFrom"] = json!([{"configMapRef": {"name": "nowhere"}}]);
        all.push(bare_pod(&format!("stuck-{number}"), "Always", &[container]));
    }
    json!({"apiVersion": "v1", "kind": "List", "items": all})
}

fn settings() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"key": "value"}})
}

/// A pod with volumes in memory, of a config map, and on the disk.
fn mounting(number: usize) -> Value {
    let mut container =
        hello("c", &["--write", "/memory/f=x", "--write", "/disk/f=x", "--read", "/settings/key"]);
    container["volumeMounts"] = json!([
        {"name": "memory", "mountPath": "/memory"},
        {"name": "disk", "mountPath": "/disk"},
        {"name": "settings", "mountPath": "/settings"},
        {"name": "settings", "mountPath": "/one", "subPath": "key"},
    ]);
    let mut pod = bare_pod(&format!("mounting-{number}"), "Always", &[container]);
    pod["spec"]["volumes"] = json!([
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        {"name": "disk", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "settings"}},
    ]);
    pod
}

/// Waits until every pod of a wave is as it is meant to be.
fn all_begun(cluster: &Cluster, ns: &str) -> Vec<Value> {
    until("all pods have begun", || {
        let pods = cluster.pods(ns)?;
        let begun = |pod: &&Value| {
            let name = text(&pod["metadata"]["name"]);
            let status = &pod["status"]["containerStatuses"][0];
            match name.split('-').next() {
                Some("crashing") => status["restartCount"].as_i64().unwrap_or(0) > 0,
                Some("ended") => pod["status"]["phase"] == "Succeeded",
                Some("stuck") => status["state"]["waiting"]["reason"] == "CreateContainerConfigError",
                _ => is_ready(pod) && !is_deleting(pod),
            }
        };
        let late: Vec<String> = pods
            .iter()
            .filter(|pod| !begun(pod))
            .map(|pod| format!("{} {}", text(&pod["metadata"]["name"]), pod["status"]))
            .collect();
        check(late.is_empty() && pods.len() == PODS, || {
            format!("{} of {} pods: {}", late.len(), pods.len(), late.join("\n"))
        })?;
        Ok(pods)
    })
}

/// Every ninth container's program.
fn kill_some(cluster: &Cluster, pods: &[Value]) {
    let uids: BTreeSet<&str> = pods.iter().map(|pod| text(&pod["metadata"]["uid"])).collect();
    for (pid, group) in cluster.processes().into_iter().step_by(9) {
        if group.split('/').next().is_some_and(|uid| uids.contains(uid)) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Kills so many pods' shims. One that ends by itself once it was listed, as a pod's that has succeeded does, is not counted.
fn kill_shims(cluster: &Cluster, count: usize) {
    let shims = sweep::shims(&cluster.data);
    let killed = shims.iter().filter(|(pid, _)| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok());
    assert_eq!(killed.take(count).count(), count, "of {} shims", shims.len());
}

/// `kill -9` of `troupe` when it has come so far, and a new one.
fn restart_when(cluster: &mut Cluster, what: &str, far_enough: impl Fn(&Cluster) -> bool) {
    until(what, || check(far_enough(cluster), || format!("{} shims", cluster.shims())));
    cluster.kill();
    cluster.up();
}

fn delete(cluster: &Cluster, ns: &str) {
    cluster.kubectl(&["delete", "namespace", ns, "--wait=false"]).ok();
}

fn gone(cluster: &Cluster, ns: &str) {
    until("the namespace is gone", || {
        let found = cluster.kubectl(&["get", "namespace", ns, "--ignore-not-found"]).result()?;
        check(found.is_empty(), || format!("{found} {} shims", cluster.shims()))
    });
}
