//! What a pod's sandbox can be told: shared processes, the node's namespaces, names and sysctls.

use super::bench::{Bench, config, parent, sandbox_config};
use troupe::runtime::{
    ContainerConfig, ContainerRuntime as _, Dns, IdRange, Mount, RuntimeError, RuntimeEvent, SandboxConfig,
};

/// Runs a script in a new pod that is as told.
async fn script(bench: &mut Bench, sandbox: SandboxConfig, script: &str) -> Vec<String> {
    let name = sandbox.uid.clone();
    let pod = bench.sandbox_with(sandbox).await;
    let id = bench.start(&pod, config(&name, &["sh", "-c", script])).await;
    bench.exit(&id).await;
    let output = bench.output(&name);
    output.iter().filter_map(|line| line.strip_prefix("stdout F ")).map(str::to_owned).collect()
}

fn sandbox(uid: &str) -> SandboxConfig {
    SandboxConfig { uid: uid.into(), ..sandbox_config() }
}

#[tokio::test]
async fn a_shared_pid_namespace_loses_nothing_of_a_container_that_ended() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox_with(SandboxConfig { share_pids: true, ..sandbox("p") }).await;
    // Its first process ends when its input is there; the other would sleep on.
    let begin = "sleep 4711 & sleep 4712 & mkfifo /f; cat /f";
    let first = bench.start(&pod, config("first", &["sh", "-c", begin])).await;
    let sees = "until ps | grep -q 'sleep 471[12]'; do true; done; ps; echo seen; exec sleep 4713";
    let second = bench.start(&pod, config("second", &["sh", "-c", sees])).await;
    bench.line("second", "seen").await;
    let shown = bench.output("second").join("\n");
    for process in ["pause", "sleep 4711", "sleep 4712", "cat /f"] {
        assert!(shown.contains(process), "{process} is not in {shown}");
    }
    bench.runtime().stop_container(&first, std::time::Duration::ZERO).await.unwrap();
    bench.exit(&first).await;
    let counts = "ps | grep -c 'sleep 471[1]'; ps | grep -c 'sleep 471[3]'";
    bench.start(&pod, config("third", &["sh", "-c", counts])).await;
    bench.line("third", "1").await;
    let all = bench.output("third");
    assert_eq!(all, ["stdout F 0", "stdout F 1"], "what the first began is gone, the second runs");
    assert!(bench.status(&second).await.pid.is_some());
    assert_eq!(bench.leftovers().await, [""; 0]);
}

/// What a directory has in the mount namespace of a process.
fn seen_by(process: i32, dir: &std::path::Path) -> Vec<String> {
    let seen = format!("/proc/{process}/root{}", dir.display());
    let entries = std::fs::read_dir(seen).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn what_a_container_had_on_the_stage_of_the_pods_users_goes_with_it() {
    let mut bench = Bench::new().await;
    if !bench.runtime().user_namespaces() {
        return;
    }
    let users = IdRange { first: 65_536 * 1_300, count: 65_536 };
    let pod = bench.sandbox_with(SandboxConfig { user_namespace: Some(users), ..sandbox("p") }).await;
    let first = bench.start(&pod, config("first", &["sleep", "1000"])).await;
    let shim = parent(bench.status(&first).await.pid.unwrap());
    let stage = bench.config.root.join("sandboxes/p/stage/containers");
    assert_eq!(seen_by(shim, &stage), std::slice::from_ref(&first.0));
    let message = bench.path().join("message");
    std::fs::write(&message, "").unwrap();
    let mounted = bench.path().to_owned();
    for life in ["second", "third", "fourth"] {
        let mut next = config(life, &["true"]);
        next.termination_message = Some((message.clone(), "/dev/termination-log".into()));
        next.mounts =
            vec![Mount { host_path: mounted.clone(), container_path: "/v".into(), ..Mount::default() }];
        let id = bench.start(&pod, next).await;
        bench.exit(&id).await;
        bench.runtime().remove_container(&id).await.unwrap();
    }
    assert_eq!(seen_by(shim, &stage), std::slice::from_ref(&first.0));
    bench.runtime().remove_container(&first).await.unwrap();
    assert_eq!(seen_by(shim, &stage), [""; 0]);
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn a_start_that_fails_early_leaves_no_mount_behind() {
    if !std::path::Path::new("/sys/fs/cgroup/memory").exists() {
        // Only cgroups of version 1 are mounted one by one.
        return;
    }
    let mut bench = Bench::new().await;
    let pod = bench.sandbox_with(sandbox("p")).await;
    let first = bench.start(&pod, config("first", &["sleep", "1000"])).await;
    let shim = parent(bench.status(&first).await.pid.unwrap());
    let second = bench.create(&pod, config("second", &["sleep", "1000"])).await.unwrap();
    // Where it is to be shown its group there is something else.
    let place = bench.config.root.join("sandboxes/p/containers").join(&second.0).join("cgroup");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("memory"), "").unwrap();
    let error = bench.runtime().start_container(&second).await.unwrap_err();
    assert!(error.to_string().contains("show the container its cgroups"), "{error}");
    let mounts = std::fs::read_to_string(format!("/proc/{shim}/mountinfo")).unwrap();
    let place = place.to_string_lossy();
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(&*place)).collect();
    assert!(left.is_empty(), "{left:?}");
    let group = format!("/sys/fs/cgroup/memory/{}/p/{}", bench.config.cgroup_parent, second.0);
    assert!(!std::path::Path::new(&group).exists(), "{group} is left");
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn who_may_look_into_the_pods_first_process_finds_nothing_of_the_node() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox_with(SandboxConfig { share_pids: true, ..sandbox("p") }).await;
    let mut curious =
        config("curious", &["sh", "-c", "cd /proc/1/root && ls -a; echo looked; exec sleep 1000"]);
    curious.security.add_capabilities = vec!["SYS_PTRACE".into()];
    let id = bench.start(&pod, curious).await;
    bench.line("curious", "looked").await;
    let seen: Vec<String> =
        bench.output("curious").into_iter().filter(|line| line.starts_with("stdout F ")).collect();
    let seen: Vec<&str> = seen.iter().map(|line| &line["stdout F ".len()..]).collect();
    assert!(seen.iter().all(|name| [".", "..", "looked"].contains(name)), "{seen:?}");
    let program = bench.status(&id).await.pid.unwrap();
    let holder = children(parent(program)).into_iter().find(|child| *child != program).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    for rights in ["CapInh:", "CapPrm:", "CapEff:"] {
        let line = status.lines().find_map(|line| line.strip_prefix(rights)).unwrap();
        assert_eq!(line.trim(), "0000000000000000", "{rights}");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{holder}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn a_pod_whose_pid_namespace_is_killed_is_lost() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox_with(SandboxConfig { share_pids: true, ..sandbox("p") }).await;
    let id = bench.start(&pod, config("c", &["sleep", "1000"])).await;
    let program = bench.status(&id).await.pid.unwrap();
    let shim = parent(program);
    let holder = children(shim).into_iter().find(|child| *child != program).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(holder), nix::sys::signal::Signal::SIGKILL).unwrap();
    bench.event(|event| matches!(event, RuntimeEvent::SandboxLost { .. })).await;
    let program = std::fs::read_link(format!("/proc/{program}/exe"));
    assert!(program.is_err(), "the kernel ended all that was in it: {program:?}");
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn a_killed_shim_takes_the_pids_it_shared_along() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox_with(SandboxConfig { share_pids: true, ..sandbox("p") }).await;
    let id = bench.start(&pod, config("c", &["sleep", "1000"])).await;
    let shim = parent(bench.status(&id).await.pid.unwrap());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    bench.event(|event| matches!(event, RuntimeEvent::SandboxLost { .. })).await;
    assert_eq!(bench.leftovers().await, [""; 0]);
}

fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|child| child.parse().unwrap()).collect()
}

#[tokio::test]
async fn a_pod_can_have_the_nodes_namespaces() {
    let mut bench = Bench::new().await;
    let own = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap().display().to_string();
    let node: Vec<String> = ["net", "uts", "ipc", "pid"].map(own).into();
    let look = "for n in net uts ipc pid; do readlink /proc/self/ns/$n; done";
    let host = SandboxConfig { host_network: true, host_pid: true, host_ipc: true, ..sandbox("host") };
    assert_eq!(script(&mut bench, host, look).await, node);
    let apart = script(&mut bench, sandbox("apart"), look).await;
    assert!(apart.len() == 4 && apart.iter().all(|namespace| !node.contains(namespace)), "{apart:?}");
}

#[tokio::test]
async fn names_and_resolvers_are_written_for_the_pod() {
    let mut bench = Bench::new().await;
    let named = SandboxConfig {
        domain: "sub.default.svc.cluster.local".into(),
        dns: Some(Dns {
            servers: vec!["10.9.8.7".into()],
            searches: vec!["a.example".into(), "b.example".into()],
            options: vec!["ndots:2".into()],
        }),
        host_aliases: vec![("10.1.1.1".into(), vec!["one".into(), "two".into()])],
        ..sandbox("named")
    };
    let lines =
        script(&mut bench, named, "cat /etc/resolv.conf; grep -v -e local$ -e ip6 -e ^$ /etc/hosts").await;
    assert_eq!(
        lines[..3],
        ["nameserver 10.9.8.7", "search a.example b.example", "options ndots:2"],
        "{lines:?}"
    );
    assert!(lines[4].ends_with("\tweb.sub.default.svc.cluster.local\tweb"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "10.1.1.1\tone\ttwo");
}

#[tokio::test]
async fn sysctls_are_set_in_the_pod_alone() {
    let mut bench = Bench::new().await;
    let name = "net.ipv4.ip_unprivileged_port_start";
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    let before = std::fs::read_to_string(&path).unwrap();
    let set = SandboxConfig { sysctls: [(name.into(), "77".into())].into(), ..sandbox("set") };
    assert_eq!(script(&mut bench, set, &format!("cat {path}")).await, ["77"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    let node = SandboxConfig { sysctls: [("kernel.panic".into(), "1".into())].into(), ..sandbox("node") };
    let refused = bench.runtime().run_pod_sandbox(node).await;
    assert!(matches!(&refused, Err(RuntimeError::Config(_))), "{refused:?}");
}

#[tokio::test]
async fn a_set_user_id_program_gains_root_only_where_escalation_is_allowed() {
    let mut bench = Bench::new().await;
    // A copy of this program that belongs to root and has the bit, as sudo has.
    use std::os::unix::fs::PermissionsExt as _;
    let program = bench.path().join("set-user-id");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let script =
        "/set-user-id --exact native::sandbox::says_who_it_is_when_told_to --nocapture | grep -o 'it is .*'";
    for (allowed, expected) in [(true, "it is 0"), (false, "it is 33")] {
        let change = |config: &mut ContainerConfig| {
            config.security.user = Some(33);
            config.security.allow_privilege_escalation = allowed;
            config.env = vec![("TROUPE_TEST_WHO".into(), "1".into())];
            config.mounts = vec![troupe::runtime::Mount {
                host_path: program.clone(),
                container_path: "/set-user-id".into(),
                read_only: true,
                ..troupe::runtime::Mount::default()
            }];
        };
        let (lines, _) = bench.script(change, script).await;
        assert_eq!(lines, [expected], "escalation {allowed}");
    }
}

/// Not a test by itself: what the one above runs in a container.
#[test]
fn says_who_it_is_when_told_to() {
    if std::env::var_os("TROUPE_TEST_WHO").is_some() {
        println!("it is {}", nix::unistd::geteuid());
    }
}

#[tokio::test]
async fn a_pod_has_no_ipv6_address_to_announce_but_that_of_its_loopback() {
    let mut bench = Bench::new().await;
    let shown = script(&mut bench, sandbox("p"), "cat /proc/net/if_inet6; ls /sys/class/net").await;
    assert!(shown.iter().any(|line| line == "eth0"), "{shown:?}");
    let addresses: Vec<&String> = shown.iter().filter(|line| line.len() > 32).collect();
    assert!(addresses.iter().all(|line| line.ends_with(" lo")), "{addresses:?}");
    // Nor does the node's end of the pair.
    let bridge = format!("/sys/class/net/{}/brif", bench.config.bridge);
    let ports =
        std::fs::read_dir(bridge).unwrap().map(|port| port.unwrap().file_name().into_string().unwrap());
    let ports: Vec<String> = ports.collect();
    assert_eq!(ports.len(), 1, "{ports:?}");
    let of_node = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    assert!(of_node.lines().all(|line| !line.ends_with(&ports[0])), "{of_node}");
    assert_eq!(bench.leftovers().await, [""; 0]);
}
