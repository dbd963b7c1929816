//! What only the docker runtime has to get right: its part of an engine that others use, too, and that comes and goes.

use std::time::Duration;

use bollard::{
    container::LogOutput,
    models::ContainerCreateBody,
    query_parameters::{
        CreateContainerOptions, InspectContainerOptions, ListNetworksOptions, LogsOptions,
        RemoveContainerOptions, RemoveImageOptions, StartContainerOptions,
    },
};
use futures_util::TryStreamExt as _;
use troupe::runtime::{
    ContainerId, ContainerRuntime, ContainerState, Dns, RuntimeError, RuntimeEvent, SandboxConfig,
    docker::{DockerConfig, DockerRuntime},
};

use super::{
    docker::OnDocker,
    engine,
    harness::{Bench, Harness, LONG, STEP, sandbox, subnet, until},
};

/// Records of a container as the engine has them: `TIME STREAM TEXT`.
fn engines_log(bench: &Bench<OnDocker>, id: &ContainerId) -> Vec<String> {
    let id = id.0.clone();
    let records = bench.harness.engine.engine().ask(move |docker| async move {
        let options = LogsOptions { stdout: true, stderr: true, timestamps: true, ..Default::default() };
        docker.logs(&id, Some(options)).try_collect::<Vec<LogOutput>>().await
    });
    let record = |output: &LogOutput| {
        let stream = if matches!(output, LogOutput::StdErr { .. }) { "stderr" } else { "stdout" };
        let text = output.to_string();
        let (time, line) = text.trim_end().split_once(' ').unwrap();
        format!("{time} {stream} F {line}")
    };
    records.unwrap().iter().map(record).collect()
}

#[tokio::test]
async fn a_restart_neither_loses_nor_doubles_lines() {
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    bench.sandbox("a").await;
    let args = ["--print", "tick", "--error", "tock", "--every", "3ms"];
    let id = bench.start("a", bench.hello("c", &args)).await;
    for round in 1..4 {
        until(|| bench.log("c").len() > round * 50).await.unwrap();
        bench.harness.close();
        // Some of it while nobody drives.
        let written = bench.log("c").len();
        until(|| engines_log(&bench, &id).len() > written + 50).await.unwrap();
        bench.restart(async {}).await;
    }
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    bench.exit(&id).await;
    // The program may be ended between a line and its end, which the engine's log tells in its own way.
    let sorted = |records: Vec<String>| {
        let mut records: Vec<String> = records.into_iter().map(|line| line.replace(" P ", " F ")).collect();
        records.sort();
        records
    };
    let engines = sorted(engines_log(&bench, &id));
    // Its end waits for the log's, but not for ever: on a machine with no time to spare the last line comes after it.
    let _ = until(|| bench.raw_log("c").len() >= engines.len()).await;
    let written = sorted(bench.raw_log("c"));
    assert!(written.len() > 200, "{}", written.len());
    assert_eq!(written.len(), engines.len());
    assert_eq!(written, engines);
}

#[tokio::test]
async fn two_runtimes_on_one_engine_do_not_see_each_other() {
    if !engine::at_hand() {
        return;
    }
    let bench = Bench::<OnDocker>::new().await;
    let id = bench.running("a").await;
    let other = DockerConfig { root: bench.shared_dir("other"), ..bench.harness.config.clone() };
    let other = DockerRuntime::open(other).unwrap();
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
}

#[tokio::test]
async fn a_container_is_not_ours_for_what_its_image_says() {
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    let ours = bench.running("a").await.0;
    let dir = bench.shared_dir("victim");
    let (victim, log) = (dir.join("file"), dir.join("log"));
    std::fs::write(&victim, "kept").unwrap();
    std::fs::write(&log, "half a line").unwrap();
    // Whatever ours are told by: a container has the labels of its image.
    let (of, named) = (dir.clone(), log.clone());
    let made = bench.harness.engine.engine().ask(move |docker| async move {
        let found = docker
            .inspect_container(&ours, None::<InspectContainerOptions>)
            .await?
            .config
            .expect("its configuration");
        let labels = found.labels.expect("ours has labels");
        for (kind, name) in [("sandbox", "one"), ("container", "two")] {
            let mut labels = labels.clone();
            labels.insert("local.troupe.type".into(), kind.into());
            labels.insert("local.troupe.pod.uid".into(), of.to_string_lossy().into_owned());
            labels.insert("local.troupe.container.log".into(), named.to_string_lossy().into_owned());
            let body = ContainerCreateBody {
                image: found.image.clone(),
                cmd: Some(["--print", "mine", "--once"].map(str::to_owned).into()),
                labels: Some(labels),
                ..ContainerCreateBody::default()
            };
            let options = CreateContainerOptions { name: Some(name.to_owned()), ..Default::default() };
            docker.create_container(Some(options), body).await?;
            docker.start_container(name, None::<StartContainerOptions>).await?;
        }
        Ok(())
    });
    made.expect("two containers of somebody else");
    bench.restart(async {}).await;
    assert_eq!(bench.runtime().list_pod_sandboxes().await.unwrap().len(), 1);
    assert_eq!(bench.runtime().list_containers().await.unwrap().len(), 1);
    let strange = bench.runtime().remove_pod_sandbox(&dir.to_string_lossy().as_ref().into()).await;
    assert!(matches!(strange, Err(RuntimeError::Config(_))), "{strange:?}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "half a line");
    let removed = bench.harness.engine.engine().ask(|docker| async move {
        for name in ["one", "two"] {
            docker
                .remove_container(name, Some(RemoveContainerOptions { force: true, ..Default::default() }))
                .await?;
        }
        Ok(())
    });
    removed.expect("they are there still");
}

#[tokio::test]
async fn a_sandbox_is_made_also_when_somebody_removed_its_image() {
    if !engine::at_hand() {
        return;
    }
    let bench = Bench::<OnDocker>::new().await;
    let removed = bench.harness.engine.engine().ask(|docker| async move {
        let options = RemoveImageOptions { force: true, ..RemoveImageOptions::default() };
        docker.remove_image("troupe.local/pause:latest", Some(options), None).await
    });
    assert!(removed.is_some_and(|removed| !removed.is_empty()), "there was such an image");
    assert!(bench.sandbox("a").await.ready);
}

#[tokio::test]
async fn with_another_subnet_pods_keep_their_address_until_they_end() {
    if !engine::at_hand() {
        return;
    }
    let bench = Bench::<OnDocker>::new().await;
    let old = bench.sandbox("old").await.ip.unwrap();
    let networks = || {
        let found = bench.harness.engine.engine().ask(|docker| async move {
            let filters = Some([("driver".to_owned(), vec!["bridge".to_owned()])].into());
            docker.list_networks(Some(ListNetworksOptions { filters })).await
        });
        found.unwrap().len()
    };
    assert_eq!(networks(), 1);
    let another = subnet();
    bench.runtime().set_pod_cidr(&another).await.unwrap();
    let new = bench.runtime().run_pod_sandbox(sandbox("new")).await.unwrap().ip.unwrap();
    let prefix = another.trim_end_matches("0/24");
    assert!(new.to_string().starts_with(prefix) && !old.to_string().starts_with(prefix), "{old} {new}");
    assert_eq!(bench.find_sandbox("old").await.unwrap().ip, Some(old));
    assert_eq!(networks(), 2);
    bench.runtime().remove_pod_sandbox(&"old".into()).await.unwrap();
    bench.runtime().set_pod_cidr(&another).await.unwrap();
    assert_eq!(networks(), 1);
}

#[tokio::test]
async fn a_pods_resolvers_and_hosts_are_what_it_says_also_on_the_nodes_network() {
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    let files = bench.harness.config.root.join("pods");
    let node = std::fs::read_to_string("/etc/hosts").unwrap();
    for (uid, host_network) in [("own", false), ("nodes", true)] {
        let dns = Dns { servers: vec!["10.9.8.7".into()], options: vec!["ndots:3".into()], ..Dns::default() };
        let config = SandboxConfig {
            host_network,
            dns: Some(dns),
            host_aliases: vec![("10.1.1.1".into(), vec!["one".into()])],
            ..sandbox(uid)
        };
        bench.sandbox_with(config).await;
        let read = |name: &str| {
            bench.hello(&format!("{uid}-{name}"), &["--read", &format!("/etc/{name}"), "--once"])
        };
        let (resolvers, hosts) = (read("resolv.conf"), read("hosts"));
        let told = bench.output_of(uid, resolvers).await.0;
        assert_eq!(told, ["nameserver 10.9.8.7", "options ndots:3"], "{uid}");
        let told = bench.output_of(uid, hosts).await.0;
        let words = told.iter().any(|line| line.split_whitespace().eq(["10.1.1.1", "one"]));
        assert!(
            words && (!host_network || node.lines().all(|line| told.iter().any(|of| of == line))),
            "{told:?}"
        );
        assert!(files.join(uid).exists());
        bench.runtime().remove_pod_sandbox(&uid.into()).await.unwrap();
        assert!(!files.join(uid).exists());
    }
    // One that says nothing of it has no files of its own.
    bench.sandbox("plain").await;
    assert!(!files.join("plain").exists());
}

#[tokio::test]
async fn what_an_engine_ends_with_itself_is_told_when_it_is_back() {
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    let id = bench.running("a").await;
    bench.line("a", "listening").await;
    let mut events = bench.runtime().events();
    bench.harness.engine.engine().restart();
    let (mut exited, mut lost) = (0, 0);
    while exited == 0 || lost == 0 {
        match tokio::time::timeout(STEP, events.recv()).await.expect("nothing is told").unwrap() {
            RuntimeEvent::Exited { id: of, .. } if of == id => exited += 1,
            RuntimeEvent::SandboxLost { pod } if pod.as_str() == "a" => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(bench.state(&id).await, ContainerState::Exited(_)));
    assert!(!bench.find_sandbox("a").await.unwrap().ready);
    // And life goes on.
    assert!(bench.sandbox("a").await.ready);
    let again = bench.start("a", bench.hello("again", &["--once", "--exit-code", "3"])).await;
    assert_eq!(bench.told_exit(&again).await.code, 3);
    assert!(
        events.try_recv().is_ok_and(|event| matches!(event, RuntimeEvent::Exited { id, .. } if id == again))
    );
}

/// Starts what writes so many lines as fast as it can, and ends.
async fn flood(bench: &mut Bench<OnDocker>, lines: u32) -> ContainerId {
    bench.sandbox("a").await;
    let mut flood = bench.hello("flood", &["--flood", &lines.to_string(), "--once"]);
    flood.log_limits.max_bytes = 1 << 30;
    bench.start("a", flood).await
}

#[tokio::test]
async fn an_end_is_told_before_a_long_log_is_copied_and_the_log_is_whole_after_that() {
    // Far below what the engine keeps.
    const LINES: u32 = 120_000;
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    let id = flood(&mut bench, LINES).await;
    let exit = bench.told_exit(&id).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    let late_ms = i64::try_from(now).unwrap() - exit.finished_ms;
    if bench.raw_log("flood").len() == usize::try_from(LINES).unwrap() {
        eprintln!("the copy kept up with this engine: that an end does not wait for it is not shown here");
    }
    bench.runtime().log_written(&id).await;
    assert!(late_ms < 5_000, "told {late_ms} ms late");
    let log = bench.raw_log("flood");
    assert_eq!(log.len(), usize::try_from(LINES).unwrap());
    assert!(log.last().unwrap().ends_with(&troupe::hello::flood_line(LINES - 1)));
}

#[tokio::test]
async fn a_container_is_removed_when_its_log_is_whole() {
    const LINES: u32 = 120_000;
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    let id = flood(&mut bench, LINES).await;
    bench.told_exit(&id).await;
    bench.runtime().remove_container(&id).await.unwrap();
    assert_eq!(bench.raw_log("flood").len(), usize::try_from(LINES).unwrap());
}

#[tokio::test]
async fn an_engine_that_is_away_is_told_with_what_to_do() {
    if !engine::at_hand() {
        return;
    }
    let bench = Bench::<OnDocker>::new().await;
    bench.runtime().status().await.unwrap();
    bench.harness.engine.engine().stop();
    let away = bench.runtime().status().await.unwrap_err().to_string();
    bench.harness.engine.engine().begin_again();
    assert!(away.contains("docker.sock") && away.contains("start"), "{away}");
    bench.runtime().status().await.unwrap();
}

#[tokio::test]
async fn programs_are_run_in_containers() {
    if !engine::at_hand() {
        return;
    }
    let bench = Bench::<OnDocker>::new().await;
    let id = bench.running("a").await;
    let run = |words: &[&str], timeout| {
        bench.runtime().exec_sync(&id, words.iter().map(|word| (*word).to_owned()).collect(), timeout)
    };
    let both = ["/hello", "hello", "--print", "out", "--error", "err", "--once", "--exit-code", "3"];
    let output = run(&both, STEP).await.unwrap();
    assert_eq!((output.code, output.timed_out), (3, false));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let missing = run(&["/no/such/program"], STEP).await.unwrap_err();
    assert!(matches!(&missing, RuntimeError::Start(text) if text.contains("/no/such/program")), "{missing}");
    let begun = std::time::Instant::now();
    let slow = ["/hello", "hello", "--listen", "127.0.0.1:0", "--ignore-sigterm"];
    let output = run(&slow, Duration::from_millis(700)).await.unwrap();
    assert!(output.timed_out && output.code == 137 && begun.elapsed() < STEP / 2, "{output:?}");
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    until(|| processes_in(&group) == 1).await.expect("the program whose time was up is gone");
    // Nor in one that has ended.
    bench.runtime().stop_container(&id, LONG).await.unwrap();
    assert!(matches!(run(&both, STEP).await, Err(RuntimeError::Start(_))));
}

fn processes_in(group: &str) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| std::fs::read_to_string(entry.path().join("cgroup")).is_ok_and(|of| of == group))
        .count()
}

#[tokio::test]
async fn a_memory_limit_ends_a_program_as_out_of_memory() {
    if !engine::at_hand() {
        return;
    }
    let mut bench = Bench::<OnDocker>::new().await;
    bench.sandbox("a").await;
    let mut config = bench.hello("c", &["--allocate", "256Mi"]);
    config.resources.memory_limit_bytes = 64 << 20;
    let id = bench.start("a", config).await;
    let exit = bench.told_exit(&id).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));
    assert!(bench.find_sandbox("a").await.unwrap().ready);
}
