//! Cases: pods with users of their own.

use std::{fs, os::unix::fs::MetadataExt as _, time::Duration};

use serde_json::{Value, json};
use troupe::runtime::{ContainerConfig, ContainerId, IdRange, Mount, RuntimeError, SandboxConfig};

use super::{
    archives::{reader, signal_awaited, signalled_with},
    harness::{Bench, Harness, LONG, sandbox, until},
};

const RANGE: IdRange = IdRange { first: 65_536 * 1_234, count: 65_536 };

/// Who the built-in image runs as.
const BUILTIN_USER: u32 = 65_532;
/// Containers of a pod share its ports.
const ANY_PORT: &[&str] = &["--listen", "0.0.0.0:0"];

fn apart(uid: &str) -> SandboxConfig {
    SandboxConfig { user_namespace: Some(RANGE), ..sandbox(uid) }
}

/// Whether the runtime can do it; one that cannot has to refuse it, rather than to give the pod the node's root.
async fn can<H: Harness>(bench: &Bench<H>) -> bool {
    if bench.runtime().user_namespaces() {
        return true;
    }
    bench.sandbox("plain").await;
    let error = bench.runtime().run_pod_sandbox(apart("a")).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Config(text) if text.contains("hostUsers")), "{error}");
    assert!(bench.find_sandbox("a").await.is_none());
    false
}

/// User and group of a container's first process as the node has them.
async fn on_node<H: Harness>(bench: &Bench<H>, id: &ContainerId) -> (u32, u32) {
    let pid = bench.find(id).await.unwrap().pid.unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let id = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (id("Uid:"), id("Gid:"))
}

/// Further groups of a process as the node has them.
fn groups_on_node(pid: i32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    line.split_whitespace().map(|group| group.parse().unwrap()).collect()
}

async fn run<H: Harness>(bench: &Bench<H>, id: &ContainerId, args: &[&str]) -> String {
    let command = ["/hello", "hello", "--once"].iter().chain(args).map(|arg| (*arg).to_owned()).collect();
    let output = bench.runtime().exec_sync(id, command, Duration::from_secs(60)).await.unwrap();
    assert_eq!(output.code, 0, "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub async fn root_in_a_pod_with_users_of_its_own_is_not_the_nodes<H: Harness>(bench: &mut Bench<H>) {
    if !can(bench).await {
        return;
    }
    bench.sandbox_with(apart("a")).await;
    let volume = bench.shared_dir("volume");
    fs::write(volume.join("roots"), "x").unwrap();
    let mounting = |config: ContainerConfig| ContainerConfig {
        mounts: vec![Mount { host_path: volume.clone(), container_path: "/v".into(), ..Mount::default() }],
        ..config
    };
    let words = bench.shared_dir("words").join("last");
    fs::write(&words, "").unwrap();
    let args = ["--describe", "--write", "/v/made=1", "--write", "/own=2", "--write", "/dev/shm/s=3"];
    let mut config = mounting(bench.hello("root", &args));
    config.security.user = Some(0);
    config.termination_message = Some((words.clone(), "/dev/termination-log".into()));
    let id = bench.start("a", config).await;
    bench.line("root", "listening").await;
    let described: Value = serde_json::from_str(bench.log("root")[0].split_once("F ").unwrap().1).unwrap();
    assert_eq!((described["uid"].as_i64(), described["hostname"].as_str()), (Some(0), Some("host-a")));
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    let map = fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    let fields: Vec<u32> = map.split_whitespace().map(|field| field.parse().unwrap()).collect();
    assert_eq!(fields, [0, RANGE.first, RANGE.count]);
    assert_eq!(on_node(bench, &id).await, (RANGE.first, RANGE.first));
    // Root's files on the node are root's in the pod and the other way round.
    assert_eq!(fs::metadata(volume.join("made")).unwrap().uid(), 0);
    run(bench, &id, &["--write", "/v/roots=y", "--write", "/dev/termination-log=bye"]).await;
    assert_eq!(fs::read_to_string(volume.join("roots")).unwrap(), "y");
    assert_eq!(fs::read_to_string(&words).unwrap(), "bye");
    let described: Value = serde_json::from_str(run(bench, &id, &["--describe"]).await.trim()).unwrap();
    assert_eq!(described["uid"].as_i64(), Some(0));
    // What is made by a further program is the pod's root's, too: it is in the same namespace.
    run(bench, &id, &["--write", "/v/further=1", "--write", "/further=1"]).await;
    assert_eq!(fs::metadata(volume.join("further")).unwrap().uid(), 0);
    let written = fs::metadata(std::path::Path::new(&format!("/proc/{pid}/root")).join("further")).unwrap();
    assert_eq!(written.uid(), RANGE.first);
    // Others of the pod's users.
    let mut other = mounting(bench.hello("other", &["--write", "/dev/shm/t=4", "--listen", "0.0.0.0:0"]));
    (other.security.user, other.security.group) = (Some(1000), Some(2000));
    other.security.supplemental_groups = vec![3000];
    let other = bench.start("a", other).await;
    bench.line("other", "listening").await;
    assert_eq!(on_node(bench, &other).await, (RANGE.first + 1000, RANGE.first + 2000));
    run(bench, &other, &["--write", "/v/others=5"]).await;
    let made = fs::metadata(volume.join("others")).unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 2000));
    let mut nobody = bench.hello("nobody", &[]);
    nobody.security.user = Some(RANGE.count);
    let error = bench.create("a", nobody).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Create(text) if text.contains("hostUsers")), "{error}");
    // Another driver finds them as they were.
    bench.restart(std::future::ready(())).await;
    let again: Value = serde_json::from_str(run(bench, &id, &["--describe"]).await.trim()).unwrap();
    assert_eq!(again["uid"].as_i64(), Some(0));
    bench.runtime().remove_container(&id).await.unwrap();
    let mut next = mounting(bench.hello("next", &["--write", "/v/next=6"]));
    next.security.user = Some(0);
    let next = bench.start("a", next).await;
    bench.line("next", "listening").await;
    assert_eq!(on_node(bench, &next).await.0, RANGE.first);
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    assert_eq!(fs::read_to_string(volume.join("next")).unwrap(), "6", "volumes stay");
}

pub async fn containers_with_users_of_their_own_share_a_pid_namespace<H: Harness>(bench: &mut Bench<H>) {
    if !can(bench).await {
        return;
    }
    bench.sandbox_with(SandboxConfig { share_pids: true, ..apart("a") }).await;
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        ids.push(bench.start("a", bench.hello(name, ANY_PORT)).await);
        bench.line(name, "listening").await;
    }
    let mut namespaces = Vec::new();
    for id in &ids {
        let pid = bench.find(id).await.unwrap().pid.unwrap();
        namespaces.push(fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap());
        assert_eq!(on_node(bench, id).await.0, RANGE.first + BUILTIN_USER);
    }
    assert_eq!(namespaces[0], namespaces[1]);
    // One that looks at another's processes.
    let debugger = ContainerConfig { join_pids: Some(ids[0].clone()), ..bench.hello("debugger", ANY_PORT) };
    let debugger = bench.start("a", debugger).await;
    assert_eq!(on_node(bench, &debugger).await.0, RANGE.first + BUILTIN_USER);
    for id in &ids {
        bench.runtime().stop_container(id, Duration::from_secs(60)).await.unwrap();
    }
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
}

pub async fn sysctls_of_a_pod_with_users_of_its_own_are_its_roots<H: Harness>(bench: &mut Bench<H>) {
    if !can(bench).await {
        return;
    }
    // Of the IPC and of the network namespace: who may change them is told in different ways.
    let wanted = [
        ("kernel.shm_rmid_forced", "1"),
        ("kernel.msgmax", "9000"),
        ("net.ipv4.ip_unprivileged_port_start", "77"),
        ("net.core.somaxconn", "777"),
    ];
    let path = |name: &str| format!("/proc/sys/{}", name.replace('.', "/"));
    let sysctls = wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    bench.sandbox_with(SandboxConfig { sysctls, ..apart("a") }).await;
    let id = bench.start("a", bench.hello("c", ANY_PORT)).await;
    for (name, value) in wanted {
        assert_eq!(run(bench, &id, &["--read", &path(name)]).await.trim(), value, "{name}");
        assert_ne!(fs::read_to_string(path(name)).unwrap().trim(), value, "{name} of the node");
    }
}

pub async fn the_user_of_an_image_has_the_groups_that_the_image_says<H: Harness>(bench: &mut Bench<H>) {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("skipped: the image's program is for another processor");
        return;
    }
    let files = [
        ("etc/passwd", "root:x:0:0::/:/app\nweb:x:33:34::/:/app\n"),
        ("etc/group", "root:x:0:\ndisk:x:6:root\naudio:x:29:web\nweb:x:34:\nstaff:x:50:\n"),
    ];
    bench.sandbox("p").await;
    // With a group said beside, a runtime may leave out the others; none may give root's.
    for (number, (user, group, wanted, rest)) in [
        ("web", None, (33, 34), Some(29)),
        ("33", None, (33, 34), Some(29)),
        ("web", Some(5), (33, 5), None),
        ("web:50", None, (33, 50), None),
        ("web:staff", None, (33, 50), None),
        ("33:staff", None, (33, 50), None),
        ("1000:2000", None, (1000, 2000), None),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("users:{number}");
        let archive = signalled_with(&name, &json!({"User": user}), &[], &files);
        bench.runtime().load_image(reader(archive), None).await.unwrap();
        let mut config = ContainerConfig { image: name, ..bench.hello(&format!("c{number}"), &[]) };
        (config.security.group, config.security.supplemental_groups) = (group, vec![7]);
        let id = bench.start("p", config).await;
        let pid = bench.find(&id).await.unwrap().pid.unwrap();
        until(|| signal_awaited(pid)).await.unwrap();
        assert_eq!(on_node(bench, &id).await, wanted, "{user} {group:?}");
        let groups = groups_on_node(pid);
        assert!(groups.contains(&7) && !groups.contains(&6), "{user} {group:?}: {groups:?}");
        assert!(rest.is_none_or(|rest| groups.contains(&rest)), "{user} {group:?}: {groups:?}");
        bench.runtime().stop_container(&id, LONG).await.unwrap();
    }
}
