//! What only the CRI runtime has to get right: its part of a runtime that others use, too, and that comes and goes.

use std::time::Duration;

use troupe::runtime::{
    ContainerResources, ContainerRuntime, ContainerState, RuntimeError, RuntimeEvent, SandboxConfig,
    StreamOptions, cri::CriRuntime,
};

use super::{
    containerd,
    cri::{OnContainerd, config},
    harness::{Bench, LONG, STEP, sandbox, subnet, until},
};

#[tokio::test]
async fn two_runtimes_on_one_containerd_do_not_see_each_other() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let other = config(bench.shared_dir("other"), bench.harness.containerd.daemon());
    let other = CriRuntime::open(other).unwrap();
    assert!(other.list_pod_sandboxes().await.unwrap().is_empty());
    assert!(other.list_containers().await.unwrap().is_empty());
    // Not even by id, and not even a pod of the same uid.
    other.set_pod_cidr(&subnet()).await.unwrap();
    other.run_pod_sandbox(sandbox("a")).await.unwrap();
    other.stop_container(&id, Duration::ZERO).await.unwrap();
    other.remove_container(&id).await.unwrap();
    assert!(matches!(other.start_container(&id).await, Err(RuntimeError::NotFound(_))));
    other.remove_pod_sandbox(&"a".into()).await.unwrap();
    other.destroy().await.unwrap();
    assert_eq!(bench.state(&id).await, ContainerState::Running);
    assert!(bench.find_sandbox("a").await.unwrap().ready);
    // The network is still there for the next pod.
    bench.running("b").await;
}

#[tokio::test]
async fn containers_run_on_while_containerd_is_replaced_and_are_heard_after() {
    if !containerd::at_hand() {
        return;
    }
    let mut bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    bench.line("a", "listening").await;
    let pid = bench.find(&id).await.unwrap().pid;
    bench.harness.containerd.daemon().restart();
    assert_eq!(bench.find(&id).await.unwrap().pid, pid);
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    assert_eq!(bench.told_exit(&id).await.code, 0);
    let again = bench.start("a", bench.hello("again", &["--once", "--exit-code", "3"])).await;
    assert_eq!(bench.told_exit(&again).await.code, 3);
}

#[tokio::test]
async fn a_runtime_that_is_away_is_told_with_what_to_do() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    bench.runtime().status().await.unwrap();
    bench.harness.containerd.daemon().stop();
    let away = bench.runtime().status().await.unwrap_err().to_string();
    bench.harness.containerd.daemon().begin_again();
    assert!(away.contains(".sock") && away.contains("systemctl"), "{away}");
    bench.runtime().status().await.unwrap();
}

#[tokio::test]
async fn a_program_ends_with_the_one_who_waits_for_it() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let programs = || bench.harness.containerd.daemon().ctr(&["tasks", "ps", &id.0]).len();
    let before = programs();
    {
        let command = ["/hello", "hello", "--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        let running = bench.runtime().exec_sync(&id, command, LONG * 10);
        tokio::select! {
            ended = running => panic!("{ended:?}"),
            found = until(|| programs() > before) => found.expect("it runs"),
        }
    }
    until(|| programs() == before).await.expect("it is gone");
}

#[tokio::test]
async fn a_program_ends_when_its_user_has_gone_however_little_it_says() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let programs = || bench.harness.containerd.daemon().ctr(&["tasks", "ps", &id.0]).len();
    let before = programs();
    for (stdin, tty) in [(false, false), (true, false), (true, true)] {
        let command = ["/hello", "hello", "--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
        let options = StreamOptions { stdin, tty };
        let streams = bench.runtime().exec(&id, command, options).await.unwrap();
        until(|| programs() > before).await.expect("it runs");
        drop(streams);
        until(|| programs() == before).await.expect("it is gone");
    }
}

#[tokio::test]
async fn a_user_who_goes_takes_along_no_program_but_its_own() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let programs = || bench.harness.containerd.daemon().ctr(&["tasks", "ps", &id.0]).len();
    let before = programs();
    let command = || ["/hello", "hello", "--listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
    for tty in [true, false] {
        // A probe's that starts in the same moment.
        let probed = bench.runtime().exec_sync(&id, command(), Duration::from_secs(8));
        let used = async {
            let options = StreamOptions { stdin: false, tty };
            let streams = bench.runtime().exec(&id, command(), options).await.unwrap();
            until(|| programs() >= before + 2).await.expect("both run");
            drop(streams);
        };
        let (output, ()) = tokio::join!(probed, used);
        assert!(output.unwrap().timed_out, "it was left alone");
        until(|| programs() == before).await.expect("the user's is gone");
    }
}

#[tokio::test]
async fn limits_are_kept_changed_and_used_is_told() {
    if !containerd::at_hand() {
        return;
    }
    let mut bench = Bench::<OnContainerd>::new().await;
    bench.sandbox("a").await;
    let mut limited = bench.hello("c", &["--allocate", "256Mi"]);
    limited.resources.memory_limit_bytes = 64 << 20;
    let id = bench.start("a", limited).await;
    let exit = bench.told_exit(&id).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    let id = bench.start("a", bench.hello("d", &[])).await;
    let resources = ContainerResources { memory_limit_bytes: 200 << 20, ..ContainerResources::default() };
    bench.runtime().update_container(&id, resources).await.unwrap();
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    assert_eq!(memory_limit(pid), Some(200 << 20));
    let deadline = tokio::time::Instant::now() + STEP;
    loop {
        let stats = bench.runtime().stats().await.unwrap();
        assert_eq!(stats.len(), 1);
        let (of, usage) = &stats[0].containers[0];
        assert_eq!((stats[0].containers.len(), of), (1, &id));
        if usage.working_set_bytes > Some(0) && usage.cpu_ns > Some(0) {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{stats:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// What the kernel has for a process.
fn memory_limit(pid: i32) -> Option<u64> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let file = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("memory", path) => Some(format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes")),
            _ => None,
        }
    });
    let unified = || Some(format!("/sys/fs/cgroup{}/memory.max", groups.trim().strip_prefix("0::")?));
    std::fs::read_to_string(file.or_else(unified)?).ok()?.trim().parse().ok()
}

#[tokio::test]
async fn a_log_goes_on_in_a_new_file_when_it_is_asked_to() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    bench.sandbox("a").await;
    let config = bench.hello("c", &["--print", "tick", "--every", "10ms"]);
    let log = config.log_path.clone();
    let id = bench.start("a", config).await;
    bench.line("c", "tick").await;
    std::fs::rename(&log, log.with_extension("old")).unwrap();
    bench.runtime().reopen_log(&id).await.unwrap();
    until(|| log.exists() && !bench.log("c").is_empty()).await.expect("the log goes on");
}

#[tokio::test]
async fn a_lost_sandbox_takes_its_containers_along_within_a_listing() {
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    let id = bench.running("a").await;
    let mut events = bench.runtime().events();
    let container = bench.find(&id).await.unwrap();
    super::harness::Harness::lose_sandbox(&bench.harness, &container);
    let (mut exited, mut lost) = (0, 0);
    while exited == 0 || lost == 0 {
        match tokio::time::timeout(STEP, events.recv()).await.expect("nothing is told").unwrap() {
            RuntimeEvent::Exited { id: of, .. } if of == id => exited += 1,
            RuntimeEvent::SandboxLost { pod } if pod.as_str() == "a" => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(_)));
    // And life goes on, at an address of its own.
    assert!(bench.sandbox("a").await.ip.is_some());
}

#[tokio::test]
async fn a_port_of_a_pods_loopback_is_reached() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    if !containerd::at_hand() {
        return;
    }
    let bench = Bench::<OnContainerd>::new().await;
    bench.sandbox("a").await;
    bench.start("a", bench.hello("server", &["--listen", "127.0.0.1:7000"])).await;
    bench.line("server", "listening").await;
    let mut connection = bench.runtime().port_forward(&"a".into(), 7000).await.unwrap();
    connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("Hello from host-a"), "{answer}");
    let refused = bench.runtime().port_forward(&"a".into(), 7001).await.err().unwrap().to_string();
    assert!(refused.contains("7001") && refused.contains("refused"), "{refused}");
}

/// The value of a line of `/proc/self/status`.
fn value<'a>(status: &'a str, name: &str) -> &'a str {
    let line =
        status.lines().find_map(|line| line.strip_prefix("stdout F ").unwrap_or(line).strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim()
}

#[tokio::test]
async fn containers_are_confined_as_asked_for() {
    if !containerd::at_hand() {
        return;
    }
    let mut bench = Bench::<OnContainerd>::new().await;
    bench.sandbox_with(SandboxConfig { share_pids: true, pids_limit: 77, ..sandbox("a") }).await;
    let look = ["--read", "/proc/self/status", "--once"];
    let mut strict = bench.hello("strict", &look);
    strict.security.user = Some(1234);
    strict.security.group = Some(4321);
    strict.security.supplemental_groups = vec![99];
    strict.security.drop_capabilities = vec!["ALL".into()];
    let (lines, exit) = bench.output_of("a", strict).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("strict"));
    let status = lines.join("\n");
    assert_eq!((value(&status, "NoNewPrivs:"), value(&status, "Seccomp:")), ("1", "2"));
    assert!(
        value(&status, "Uid:").starts_with("1234\t") && value(&status, "Gid:").starts_with("4321\t"),
        "{status}"
    );
    assert!(value(&status, "Groups:").split(' ').any(|group| group == "99"), "{status}");
    assert_eq!(u64::from_str_radix(value(&status, "CapBnd:"), 16), Ok(0));

    let mut free = bench.hello("free", &look);
    free.security.privileged = true;
    free.security.user = Some(0);
    let (lines, exit) = bench.output_of("a", free).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("free"));
    let status = lines.join("\n");
    assert_eq!((value(&status, "NoNewPrivs:"), value(&status, "Seccomp:")), ("0", "0"));
    assert!(
        u64::from_str_radix(value(&status, "CapEff:"), 16).unwrap() & (1 << 21) != 0,
        "no CAP_SYS_ADMIN: {status}"
    );

    // The sandbox' own program has nothing of that.
    let id = bench.start("a", bench.hello("stays", &[])).await;
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        match (fields.next()?, fields.next()?) {
            ("pids", path) => Some(format!("/sys/fs/cgroup/pids{path}")),
            ("", path) if !groups.contains(":pids:") => Some(format!("/sys/fs/cgroup{path}")),
            _ => None,
        }
    });
    let of_pod = std::path::PathBuf::from(group.unwrap()).parent().unwrap().join("pids.max");
    assert_eq!(std::fs::read_to_string(&of_pod).unwrap().trim(), "77", "{of_pod:?}");

    // One container sees another's processes alone.
    let mut debugger = bench.hello("debugger", &["--read", "/proc/1/cmdline", "--once"]);
    bench.sandbox("b").await;
    let target = bench.start("b", bench.hello("target", &["--listen", "127.0.0.1:7000"])).await;
    debugger.join_pids = Some(target);
    let (lines, exit) = bench.output_of("b", debugger).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("debugger"));
    assert!(lines[0].contains("127.0.0.1:7000"), "{lines:?}");
}
