//! Lives of containers: start and its failures, limits, logs, ends.

use std::time::{Duration, Instant};

use troupe::runtime::{
    ContainerConfig, ContainerRuntime, ContainerState, RuntimeError, RuntimeEvent, SandboxConfig,
};

use super::bench::{Bench, config, sandbox_config};

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_container_runs_exits_and_is_found_again() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p1").await;
    let container = bench.start(&pod, config("c", &["sh", "-c", "echo hello; exit 3"])).await;
    let exit = bench.exit(&container).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (3, None, false));
    assert_eq!(bench.output("c"), ["stdout F hello"]);
    bench.reopen();
    let found = bench.status(&container).await;
    assert_eq!(found.state, ContainerState::Exited(exit));
}

#[tokio::test]
async fn programs_that_cannot_be_run_are_start_errors() {
    let bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    for (program, expected) in [
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ] {
        let refused = bench.try_start(&pod, config("c", &[program])).await;
        assert!(matches!(&refused, Err(RuntimeError::Start(text)) if text == expected), "{refused:?}");
    }
    // The pod is none the worse for it.
    bench.start(&pod, config("good", &["true"])).await;
}

#[tokio::test]
async fn a_container_without_command_or_image_is_not_created() {
    let bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let refused = bench.create(&pod, config("c", &[])).await;
    assert!(
        matches!(&refused, Err(RuntimeError::Create(text)) if text == "no command specified"),
        "{refused:?}"
    );
    let absent = ContainerConfig { image: "absent".into(), ..config("c", &["true"]) };
    let refused = bench.create(&pod, absent).await;
    assert!(matches!(refused, Err(RuntimeError::ImageNotFound(_))), "{refused:?}");
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}

#[tokio::test]
async fn the_memory_limit_ends_a_container_and_says_so() {
    let mut bench = Bench::new().await;
    let limit = |config: &mut ContainerConfig| config.resources.memory_limit_bytes = 16 << 20;
    let (_, exit) = bench.script(limit, "x=a; while true; do x=$x$x; done").await;
    assert_eq!((exit.code, exit.oom_killed), (137, true), "{exit:?}");
    let (_, exit) = bench.script(limit, "kill -9 $$").await;
    assert!(!exit.oom_killed, "{exit:?}");
}

#[tokio::test]
async fn limits_are_in_the_cgroup() {
    let mut bench = Bench::new().await;
    let limits = |config: &mut ContainerConfig| {
        config.resources.memory_limit_bytes = 32 << 20;
        config.resources.cpu_limit_milli = 250;
        config.resources.cpu_request_milli = 500;
    };
    let script = "cd /sys/fs/cgroup
        if [ -d memory ]; then
            cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us cpu/cpu.shares
        else cat memory.max pids.max; cut -d' ' -f1 cpu.max; echo 512; fi";
    let (lines, _) = bench.script(limits, script).await;
    assert_eq!(lines, ["33554432", "4096", "25000", "512"]);
}

#[tokio::test]
async fn stopping_asks_first_and_kills_after_the_grace() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let polite = ["sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.01; done"];
    let polite = bench.start(&pod, config("polite", &polite)).await;
    let stubborn = ["sh", "-c", "trap '' TERM; echo up; while true; do sleep 0.01; done"];
    let stubborn = bench.start(&pod, config("stubborn", &stubborn)).await;
    for name in ["polite", "stubborn"] {
        bench.line(name, "up").await;
    }
    let begun = Instant::now();
    bench.runtime().stop_container(&polite, GRACE).await.unwrap();
    assert!(begun.elapsed() < GRACE / 2);
    assert_eq!(bench.exit(&polite).await.code, 0);
    bench.line("polite", "bye").await;
    bench.runtime().stop_container(&stubborn, Duration::from_millis(50)).await.unwrap();
    assert_eq!(bench.exit(&stubborn).await.signal, Some(9));
    bench.runtime().stop_container(&stubborn, GRACE).await.unwrap();
    for id in [&polite, &stubborn, &polite] {
        bench.runtime().remove_container(id).await.unwrap();
    }
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}

#[tokio::test]
async fn containers_of_a_pod_share_network_host_name_and_memory() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let server = ["sh", "-c", "echo hi > /dev/shm/note; echo up; echo over the wire | nc -l -p 8080"];
    bench.start(&pod, config("server", &server)).await;
    bench.line("server", "up").await;
    let client = "until nc 127.0.0.1 8080 </dev/null; do sleep 0.01; done; cat /dev/shm/note; hostname";
    let client = bench.start(&pod, config("client", &["sh", "-c", client])).await;
    bench.exit(&client).await;
    let lines: Vec<String> = bench.output("client").into_iter().filter(|l| l.starts_with("stdout")).collect();
    assert_eq!(lines, ["stdout F over the wire", "stdout F hi", "stdout F web"]);
}

#[tokio::test]
async fn pods_reach_each_other_by_address_and_each_has_its_own() {
    let mut bench = Bench::new().await;
    let server = bench.sandbox("server").await;
    let address = |uid: &str, all: &[troupe::runtime::SandboxStatus]| {
        all.iter().find(|status| status.uid.as_str() == uid).unwrap().ip.unwrap()
    };
    bench
        .start(&server, config("server", &["sh", "-c", "echo up; echo over the bridge | nc -l -p 80"]))
        .await;
    bench.line("server", "up").await;
    let client = bench.sandbox("client").await;
    let all = bench.runtime().list_pod_sandboxes().await.unwrap();
    let to = address("server", &all);
    assert_ne!(to, address("client", &all));
    let script = format!("until nc {to} 80 </dev/null; do sleep 0.01; done; ip route; cat /etc/hosts");
    let client = bench.start(&client, config("client", &["sh", "-c", &script])).await;
    bench.exit(&client).await;
    let text = bench.output("client").join("\n");
    assert!(text.contains("over the bridge") && text.contains("default via"), "{text}");
    assert!(text.contains(&format!("{}\tweb", address("client", &all))), "{text}");
}

#[tokio::test]
async fn a_pod_on_the_hosts_network_has_no_address() {
    let mut bench = Bench::new().await;
    let pod = bench
        .sandbox_with(SandboxConfig {
            uid: "h".into(),
            host_network: true,
            host_pid: true,
            ..sandbox_config()
        })
        .await;
    let status = bench.runtime().list_pod_sandboxes().await.unwrap().remove(0);
    assert_eq!((status.ip, status.ready), (None, true));
    let bridge = bench.config.bridge.clone();
    let script = format!("[ -e /sys/class/net/{bridge} ] && echo there; sleep 1000 & echo $$");
    let id = bench.start(&pod, config("c", &["sh", "-c", &script])).await;
    bench.exit(&id).await;
    let lines = bench.output("c");
    assert_eq!(lines[0], "stdout F there");
    assert_ne!(lines[1], "stdout F 1");
    // What it left running in the host's pid namespace is not left.
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn a_flood_of_output_neither_blocks_the_shim_nor_is_lost() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let mut flood = config("flood", &["sh", "-c", "yes | head -c 8000000; yes 1>&2"]);
    // Nothing is to be rotated away: all of it is counted.
    flood.log_limits.max_bytes = u64::MAX;
    let id = bench.start(&pod, flood).await;
    bench.line("flood", "stderr F y").await;
    let begun = Instant::now();
    bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(begun.elapsed() < GRACE);
    bench.exit(&id).await;
    let text = std::fs::read_to_string(bench.log("flood")).unwrap();
    assert_eq!(text.lines().filter(|line| line.ends_with("stdout F y")).count(), 4_000_000);
}

#[tokio::test]
async fn a_rotated_log_is_begun_anew() {
    let bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let script = "echo one; until [ -e /dev/shm/go ]; do sleep 0.01; done; echo two; sleep 1000";
    bench.start(&pod, config("c", &["sh", "-c", script])).await;
    bench.line("c", "one").await;
    std::fs::rename(bench.log("c"), bench.log("c.1")).unwrap();
    bench.start(&pod, config("go", &["touch", "/dev/shm/go"])).await;
    bench.line("c", "two").await;
    assert_eq!(bench.output("c.1"), ["stdout F one"]);
    assert_eq!(bench.output("c"), ["stdout F two"]);
}

#[tokio::test]
async fn stopping_a_sandbox_ends_its_containers_and_keeps_their_exits() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let id = bench.start(&pod, config("c", &["sleep", "1000"])).await;
    bench.runtime().stop_pod_sandbox(&pod).await.unwrap();
    let told = bench.event(|event| matches!(event, RuntimeEvent::Exited { .. })).await;
    let ContainerState::Exited(exit) = bench.status(&id).await.state else { panic!("not exited") };
    assert_eq!(told, RuntimeEvent::Exited { pod: pod.clone(), id, exit: exit.clone() });
    assert_eq!(exit.signal, Some(9));
    assert!(!bench.runtime().list_pod_sandboxes().await.unwrap()[0].ready);
    assert!(bench.create(&pod, config("late", &["true"])).await.is_err());
    bench.runtime().stop_pod_sandbox(&pod).await.unwrap();
    // Again under the same uid: a new one.
    assert_eq!(bench.sandbox("p").await, pod);
    assert!(bench.runtime().list_pod_sandboxes().await.unwrap()[0].ready);
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}
