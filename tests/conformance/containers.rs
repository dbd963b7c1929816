//! Cases: a container's creation, its program's start and end, what it is given and what it prints.

use troupe::runtime::{
    ContainerConfig, ContainerId, ContainerResources, ContainerState, RuntimeError, SandboxConfig,
};

use super::harness::{Bench, Harness, LONG, sandbox};

pub async fn a_container_is_created_then_runs_then_has_exited<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let config = ContainerConfig { attempt: 3, ..bench.hello("c", &["--exit-after", "300ms"]) };
    let id = bench.create("a", config).await.unwrap();
    let created = bench.find(&id).await.unwrap();
    assert_eq!((created.state, created.started_ms, created.pid), (ContainerState::Created, 0, None));
    assert_eq!((created.name.as_str(), created.attempt, created.pod.as_str()), ("c", 3, "a"));
    assert_eq!(created.image, "troupe.local/hello:latest");
    assert!(created.image_id.starts_with("sha256:"), "{}", created.image_id);
    bench.runtime().start_container(&id).await.unwrap();
    // It ran for a while and has not ended, or this machine is very slow.
    if let Some(running) = bench.find(&id).await.filter(|c| c.state == ContainerState::Running) {
        assert!(running.pid.is_some_and(|pid| pid > 0) && running.started_ms > 0);
    }
    let exit = bench.exit(&id).await;
    let exited = bench.find(&id).await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom_killed, exited.pid), (0, None, false, None));
    assert!(exit.finished_ms >= exited.started_ms && exited.started_ms > 0);
}

pub async fn exit_codes_are_told_by_event_and_listing_alike<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    for code in [0, 3, 255] {
        let config = bench.hello(&format!("c{code}"), &["--once", "--exit-code", &code.to_string()]);
        let id = bench.start("a", config).await;
        let told = bench.told_exit(&id).await;
        assert_eq!((told.code, told.signal), (code, None));
        assert_eq!(bench.exit(&id).await, told);
    }
}

pub async fn an_exit_is_told_once_to_every_listener<H: Harness>(bench: &mut Bench<H>) {
    let mut other = bench.runtime().events();
    bench.sandbox("a").await;
    let first = bench.start("a", bench.hello("first", &["--once"])).await;
    bench.exit(&first).await;
    let last = bench.start("a", bench.hello("last", &["--once"])).await;
    bench.exit(&last).await;
    let mut heard: Vec<ContainerId> = Vec::new();
    while heard.last() != Some(&last) {
        let event = tokio::time::timeout(super::harness::STEP, other.recv()).await.unwrap().unwrap();
        let troupe::runtime::RuntimeEvent::Exited { pod, id, .. } = event else { panic!("{event:?}") };
        assert_eq!(pod.as_str(), "a");
        heard.push(id);
    }
    assert_eq!(heard, [first, last]);
}

pub async fn the_containers_of_one_pod_are_listed_alone<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    bench.sandbox("b").await;
    let long = bench.start("a", bench.hello("long", &[])).await;
    let short = bench.start("a", bench.hello("short", &["--once", "--exit-code", "3"])).await;
    bench.start("b", bench.hello("other", &[])).await;
    let exit = bench.exit(&short).await;
    let mut all = bench.runtime().pod_containers(&"a".into()).await.unwrap();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(all.iter().map(|c| &c.id).collect::<Vec<_>>(), [&long, &short]);
    assert_eq!(all[0].state, ContainerState::Running);
    assert_eq!(all[1].state, ContainerState::Exited(exit));
    assert!(bench.runtime().pod_containers(&"nobody".into()).await.unwrap().is_empty());
}

pub async fn a_program_that_a_signal_ends_says_which<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let id = bench.start("a", bench.hello("c", &["--crash"])).await;
    let exit = bench.exit(&id).await;
    // abort(3): SIGABRT, or SIGSEGV where the first process of a pid namespace is spared that.
    let signal = exit.signal.unwrap();
    assert!([6, 11].contains(&signal), "{exit:?}");
    assert_eq!(exit.code, 128 + signal);
}

pub async fn a_program_killed_from_outside_is_told_as_killed<H: Harness>(bench: &mut Bench<H>) {
    let id = bench.running("a").await;
    bench.harness.kill(&bench.find(&id).await.unwrap());
    let exit = bench.told_exit(&id).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
    assert!(bench.find_sandbox("a").await.unwrap().ready, "the sandbox lives on");
}

pub async fn lives_of_one_container_have_ids_and_attempts_of_their_own<H: Harness>(bench: &mut Bench<H>) {
    let address = bench.sandbox("a").await.ip;
    let mut ids = Vec::new();
    for attempt in 0..3 {
        let config = ContainerConfig { attempt, ..bench.hello("c", &["--once"]) };
        let id = bench.start("a", config).await;
        bench.exit(&id).await;
        assert_eq!(bench.find(&id).await.unwrap().attempt, attempt);
        ids.push(id);
    }
    assert_eq!(bench.runtime().list_containers().await.unwrap().len(), 3);
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert_eq!(bench.find_sandbox("a").await.unwrap().ip, address);
}

pub async fn a_command_that_does_not_exist_is_a_start_error_that_names_it<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let config = ContainerConfig { command: vec!["/no/such/program".into()], ..bench.hello("c", &[]) };
    let id = bench.create("a", config).await.unwrap();
    let error = bench.runtime().start_container(&id).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Start(text) if text.contains("/no/such/program") && text.contains("no such file")),
        "{error}"
    );
    assert!(!matches!(bench.state(&id).await, ContainerState::Running));
    bench.runtime().remove_container(&id).await.unwrap();
    // The pod is none the worse for it.
    let good = bench.start("a", bench.hello("good", &[])).await;
    assert_eq!(bench.state(&good).await, ContainerState::Running);
}

pub async fn an_image_that_is_not_here_is_named_and_leaves_no_container<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let config = ContainerConfig { image: "absent.example/none:1".into(), ..bench.hello("c", &[]) };
    let error = bench.create("a", config).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::ImageNotFound(name) if name.contains("absent.example/none")),
        "{error}"
    );
    assert!(bench.runtime().list_containers().await.unwrap().is_empty());
}

pub async fn running_as_root_is_refused_when_asked_to<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let mut root = bench.hello("c", &[]);
    root.security.run_as_non_root = true;
    root.security.user = Some(0);
    let error = bench.create("a", root.clone()).await.unwrap_err();
    assert!(
        matches!(&error, RuntimeError::Config(text) if text.contains("non-root") || text.contains("NonRoot")),
        "{error}"
    );
    root.security.user = Some(1000);
    bench.start("a", root).await;
}

pub async fn a_container_is_started_once<H: Harness>(bench: &mut Bench<H>) {
    let running = bench.running("a").await;
    assert!(matches!(bench.runtime().start_container(&running).await, Err(RuntimeError::Start(_))));
    assert_eq!(bench.state(&running).await, ContainerState::Running);
    bench.runtime().stop_container(&running, LONG).await.unwrap();
    assert!(matches!(bench.runtime().start_container(&running).await, Err(RuntimeError::Start(_))));
}

pub async fn unknown_containers_and_sandboxes_are_not_found<H: Harness>(bench: &mut Bench<H>) {
    let unknown = ContainerId("never-was".into());
    assert!(matches!(bench.runtime().start_container(&unknown).await, Err(RuntimeError::NotFound(_))));
    assert!(matches!(bench.create("never-was", bench.hello("c", &[])).await, Err(RuntimeError::NotFound(_))));
}

pub async fn arguments_environment_directory_and_host_name_reach_the_program<H: Harness>(
    bench: &mut Bench<H>,
) {
    bench.sandbox("a").await;
    let mut config = bench.hello("c", &["--describe", "--once"]);
    config.env = vec![("A".into(), "1".into()), ("B".into(), "x=y".into()), ("A".into(), "2 3".into())];
    config.working_dir = Some("/tmp".into());
    config.security.user = Some(1234);
    config.security.group = Some(99);
    let (lines, exit) = bench.output_of("a", config).await;
    assert_eq!((lines.len(), exit.code), (1, 0), "{lines:?}");
    let given: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(given["args"], serde_json::json!(["/hello", "hello", "--describe", "--once"]));
    assert_eq!((given["env"]["A"].as_str(), given["env"]["B"].as_str()), (Some("2 3"), Some("x=y")));
    assert_eq!((given["cwd"].as_str(), given["hostname"].as_str()), (Some("/tmp"), Some("host-a")));
    assert_eq!((given["uid"].as_i64(), given["gid"].as_i64()), (Some(1234), Some(99)));
}

pub async fn output_is_logged_by_stream_in_order<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let args = ["--print", "one", "--print", "two", "--error", "oops", "--once"];
    let id = bench.start("a", bench.hello("c", &args)).await;
    bench.exit(&id).await;
    let log = bench.log("c");
    let of = |stream: &str| log.iter().filter(|line| line.starts_with(stream)).cloned().collect::<Vec<_>>();
    assert_eq!(of("stdout"), ["stdout F one", "stdout F two"]);
    assert_eq!(of("stderr"), ["stderr F oops"]);
    assert_eq!(log.len(), 3, "{log:?}");
}

pub async fn a_second_life_appends_to_the_log_it_is_given<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    for attempt in 0..2 {
        let line = format!("life {attempt}");
        let config = ContainerConfig { attempt, ..bench.hello("c", &["--print", &line, "--once"]) };
        let id = bench.start("a", config).await;
        bench.exit(&id).await;
    }
    assert_eq!(bench.log("c"), ["stdout F life 0", "stdout F life 1"]);
}

/// Of the container's cgroup, as the kernel has it in either version: quota in microseconds, bytes of memory.
fn limits(container: &troupe::runtime::ContainerStatus) -> (String, String) {
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", container.pid.unwrap())).unwrap();
    let file = |controller: &str, v1: &str, v2: &str| {
        let path = |wanted: &str| {
            groups.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                controllers.split(',').any(|c| c == wanted).then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let root = std::path::Path::new("/sys/fs/cgroup");
        let file = match path(controller) {
            Some(path) => root.join(controller).join(path).join(v1),
            None => root.join(path("").unwrap()).join(v2),
        };
        std::fs::read_to_string(file).unwrap().split_whitespace().next().unwrap().to_owned()
    };
    (file("cpu", "cpu.cfs_quota_us", "cpu.max"), file("memory", "memory.limit_in_bytes", "memory.max"))
}

pub async fn a_running_container_is_resized<H: Harness>(bench: &mut Bench<H>) {
    const MIB: i64 = 1 << 20;
    bench.sandbox("p").await;
    let of = |cpu_limit_milli, mib: i64| ContainerResources {
        cpu_request_milli: 100,
        cpu_limit_milli,
        memory_limit_bytes: mib * MIB,
    };
    let config = ContainerConfig { resources: of(500, 64), ..bench.hello("c", &[]) };
    let id = bench.start("p", config).await;
    let running = bench.find(&id).await.unwrap();
    assert_eq!(limits(&running), ("50000".into(), (64 * MIB).to_string()));
    for (cpu, memory) in [(1000, 128), (250, 32), (250, 32)] {
        bench.runtime().update_container(&id, of(cpu, memory)).await.unwrap();
        assert_eq!(limits(&running), ((cpu * 100).to_string(), (memory * MIB).to_string()));
    }
    // It is still the same life.
    assert_eq!(bench.find(&id).await.unwrap().pid, running.pid);
}

pub async fn a_pods_share_is_what_it_is_said_to_be<H: Harness>(bench: &mut Bench<H>) {
    let asked = SandboxConfig { cpu_request_milli: 1500, ..sandbox("p") };
    bench.sandbox_with(asked).await;
    let config = ContainerConfig {
        resources: ContainerResources { cpu_request_milli: 500, ..ContainerResources::default() },
        ..bench.hello("c", &[])
    };
    let id = bench.start("p", config).await;
    let running = bench.find(&id).await.unwrap();
    let share = || {
        let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", running.pid.unwrap())).unwrap();
        let path = |wanted: &str| {
            let mut lines = groups.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
            let found = lines.find(|(names, _)| names.split(',').any(|name| name == wanted));
            found.map(|(_, path)| std::path::Path::new(path).parent().unwrap().to_owned())
        };
        let root = std::path::Path::new("/sys/fs/cgroup");
        let inside = |path: &std::path::Path| path.strip_prefix("/").unwrap().to_owned();
        let (file, unified) = match path("cpu") {
            Some(path) => (root.join("cpu").join(inside(&path)).join("cpu.shares"), false),
            None => (root.join(inside(&path("").unwrap())).join("cpu.weight"), true),
        };
        let share = std::fs::read_to_string(file).unwrap().trim().parse::<i64>().unwrap();
        (share, unified)
    };
    let expected = |milli: i64, unified: bool| {
        let shares = (milli * 1024 / 1000).max(2);
        (if unified { 1 + (shares - 2) * 9999 / 262_142 } else { shares }, unified)
    };
    let unified = share().1;
    assert_eq!(share(), expected(1500, unified));
    for milli in [3000, 1000, 0] {
        bench.runtime().update_pod_sandbox(&"p".into(), milli).await.unwrap();
        assert_eq!(share(), expected(milli, unified));
        // Its containers' own sizes are another matter.
        let resources = ContainerResources { cpu_request_milli: 700, ..ContainerResources::default() };
        bench.runtime().update_container(&id, resources).await.unwrap();
        assert_eq!(share(), expected(milli, unified));
    }
}

pub async fn only_running_containers_are_resized<H: Harness>(bench: &mut Bench<H>) {
    let resources = ContainerResources { cpu_limit_milli: 500, ..ContainerResources::default() };
    let id = bench.running("p").await;
    bench.runtime().update_container(&id, resources).await.unwrap();
    bench.runtime().stop_container(&id, std::time::Duration::ZERO).await.unwrap();
    for id in [id, ContainerId("nowhere".into())] {
        let error = bench.runtime().update_container(&id, resources).await.unwrap_err();
        assert!(matches!(error, RuntimeError::NotFound(_)), "{error}");
    }
}
