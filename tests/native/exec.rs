//! Programs run in containers are as confined as these, and nothing is left of them.

use std::{fs, path::Path, time::Duration};

use troupe::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerRuntime, ExecOutput, RuntimeError, SandboxConfig,
        StreamOptions,
    },
};

use super::bench::{Bench, config, parent, sandbox_config};

const LONG: Duration = Duration::from_secs(60);

/// A container that sleeps.
async fn sleeping(bench: &Bench, change: impl FnOnce(&mut ContainerConfig)) -> (Uid, ContainerId) {
    let pod = bench.sandbox("p").await;
    let mut config = config("c", &["sleep", "1000"]);
    change(&mut config);
    let id = bench.start(&pod, config).await;
    (pod, id)
}

async fn shell(
    bench: &Bench,
    id: &ContainerId,
    script: &str,
    timeout: Duration,
) -> Result<ExecOutput, RuntimeError> {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    bench.runtime().exec_sync(id, command, timeout).await
}

async fn says(bench: &Bench, id: &ContainerId, script: &str) -> String {
    let output = shell(bench, id, script, LONG).await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn the_filter_the_capabilities_and_the_cgroup_are_the_containers() {
    let bench = Bench::new().await;
    let (pod, id) = sleeping(&bench, |config| {
        config.security.drop_capabilities = vec!["CHOWN".into()];
        config.security.add_capabilities = vec!["NET_ADMIN".into()];
    })
    .await;
    assert_eq!(says(&bench, &id, "unshare -U true && echo allowed || echo denied").await, "denied");
    // Seccomp mode 2: a filter; the same privileges, limits and groups as the first process has.
    let status = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/$P/status";
    let limits = "grep 'open files' /proc/$P/limits; readlink /proc/$P/ns/*";
    for script in [status, limits] {
        let own = says(&bench, &id, &format!("P=self; {script}")).await;
        let first = says(&bench, &id, &format!("P=1; {script}")).await;
        assert_eq!(own, first);
        assert!(!own.is_empty());
    }
    assert!(says(&bench, &id, status.replace("$P", "self").as_str()).await.contains("Seccomp:\t2"));
    // As the node sees them: both in the container's own group.
    let script = "sleep 1000 & cat /proc/self/cgroup";
    let groups = says(&bench, &id, script).await;
    assert!(groups.contains(&id.0) || groups.contains("::/"), "{groups}");
    bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
    let (_, id) = sleeping(&bench, |config| {
        config.security.allow_privilege_escalation = true;
        config.security.user = Some(33);
    })
    .await;
    let own = says(&bench, &id, &status.replace("$P", "self")).await;
    assert_eq!(own, says(&bench, &id, &status.replace("$P", "1")).await, "the filter went on otherwise");
    assert!(own.contains("Seccomp:\t2") && own.contains("Uid:\t33"), "{own}");
}

#[tokio::test]
async fn a_program_over_its_time_takes_along_what_it_started() {
    let bench = Bench::new().await;
    let (_, id) = sleeping(&bench, |_| ()).await;
    let output =
        shell(&bench, &id, "sleep 2000 & sleep 2000; true", Duration::from_millis(500)).await.unwrap();
    assert!(output.timed_out, "{output:?}");
    let left =
        "sleep 0.2; for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done | grep -c '^sleep 2000'";
    assert_eq!(says(&bench, &id, left).await, "0");
    // A program that ends by itself may leave something running, as with other runtimes; it is not waited for.
    let begun = std::time::Instant::now();
    assert_eq!(says(&bench, &id, "sleep 3000 & echo left").await, "left");
    assert!(begun.elapsed() < LONG);
}

#[tokio::test]
async fn a_full_container_refuses_and_a_flood_is_survived() {
    let bench = Bench::new().await;
    let limit = SandboxConfig { uid: "few".into(), pids_limit: 8, ..sandbox_config() };
    let pod = bench.sandbox_with(limit).await;
    let script = "for i in 1 2 3 4 5 6; do sleep 1000 & done; echo full; wait";
    let id = bench.start(&pod, config("c", &["sh", "-c", script])).await;
    bench.line("c", "full").await;
    // Whether the helper gets in or not, each call is answered and the container goes on.
    for _ in 0..3 {
        let _ = shell(&bench, &id, "sleep 1 & sleep 1 & sleep 1 & wait", Duration::from_secs(3)).await;
    }
    bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
    let (_, id) = sleeping(&bench, |_| ()).await;
    let flood = shell(&bench, &id, "yes", Duration::from_secs(1)).await.unwrap();
    assert!(flood.timed_out && flood.stdout.len() == troupe::runtime::EXEC_OUTPUT_BYTES);
}

#[tokio::test]
async fn nothing_is_left_of_programs_in_the_containers_files_nor_among_processes() {
    let bench = Bench::new().await;
    let (pod, id) = sleeping(&bench, |_| ()).await;
    for round in 0..20 {
        let command = if round % 2 == 0 { "true" } else { "/no/such/program" };
        let _ = bench.runtime().exec_sync(&id, vec![command.to_owned()], LONG).await;
    }
    let sandbox = bench.config.root.join("sandboxes").join(pod.as_str());
    let mut names = Vec::new();
    for dir in [sandbox.join("containers").join(&id.0), sandbox.join("libcontainer").join(&id.0)] {
        names.extend(names_in(&dir));
    }
    let left: Vec<&String> =
        names.iter().filter(|n| n.starts_with("exec-") || n.starts_with("tenant-")).collect();
    assert!(left.is_empty(), "{left:?}");
    let container = bench.runtime().list_containers().await.unwrap().remove(0);
    let shim = parent(container.pid.unwrap());
    // The last helper ends right after the answer that it brought.
    let children = || fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    let begun = std::time::Instant::now();
    while children().split_whitespace().count() != 1 {
        assert!(begun.elapsed() < LONG, "not only the container's own: {}", children());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let log = fs::metadata(sandbox.join("shim.log")).unwrap().len();
    assert_eq!(log, 0, "failing programs fill no log");
    bench.runtime().stop_container(&id, Duration::ZERO).await.unwrap();
    assert!(names_in(&sandbox.join("libcontainer")).is_empty());
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_container_that_stops_whatever_comes_in_harms_only_itself() {
    let bench = Bench::new().await;
    let (pod, well) = sleeping(&bench, |_| ()).await;
    // Its first process stops all others in it, again and again: a program is caught on its way in.
    let script = "echo here; while true; do kill -STOP -1 2>/dev/null; done";
    let mean = bench.start(&pod, config("mean", &["sh", "-c", script])).await;
    bench.line("mean", "here").await;
    let runs = (0..5).map(|_| shell(&bench, &mean, "sleep 1", Duration::from_secs(2)));
    let others = async {
        for _ in 0..5 {
            assert_eq!(says(&bench, &well, "echo well").await, "well");
        }
    };
    let begun = std::time::Instant::now();
    let (runs, ()) = tokio::join!(futures_util::future::join_all(runs), others);
    for run in runs {
        assert!(run.is_err() || run.is_ok_and(|output| output.timed_out));
    }
    assert!(begun.elapsed() < LONG / 2, "{:?}", begun.elapsed());
    bench.runtime().stop_container(&mean, Duration::ZERO).await.unwrap();
    assert_eq!(says(&bench, &well, "echo still").await, "still");
    bench.runtime().remove_pod_sandbox(&pod).await.unwrap();
}

#[tokio::test]
async fn what_is_typed_reaches_a_program_and_its_end_too() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let bench = Bench::new().await;
    let (pod, id) = sleeping(&bench, |config| config.security.user = Some(33)).await;
    let command = ["sh", "-c", "cat > /dev/stdout; echo end >&2; exit 7"].map(str::to_owned).to_vec();
    let mut streams =
        bench.runtime().exec(&id, command, StreamOptions { stdin: true, tty: false }).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    let long = "x".repeat(300_000);
    let typed = async {
        stdin.write_all(long.as_bytes()).await.unwrap();
        drop(stdin);
    };
    let (mut out, mut err) = (String::new(), String::new());
    let ((), out_read) = tokio::join!(typed, streams.stdout.read_to_string(&mut out));
    out_read.unwrap();
    streams.stderr.read_to_string(&mut err).await.unwrap();
    assert_eq!((out == long, err.as_str(), streams.end.await.unwrap()), (true, "end\n", 7));
    // Whoever stops listening ends what writes.
    let command = ["yes".to_owned()].to_vec();
    let mut streams = bench.runtime().exec(&id, command, StreamOptions::default()).await.unwrap();
    streams.stdout.read_u8().await.unwrap();
    drop((streams.stdout, streams.stderr));
    assert_eq!(streams.end.await.unwrap(), 128 + 13, "SIGPIPE");
    let files = bench.config.root.join("sandboxes").join(pod.as_str()).join("containers").join(&id.0);
    assert!(names_in(&files).iter().all(|name| !name.starts_with("streams-")));
}

#[tokio::test]
async fn programs_whose_clients_went_keep_nobody_out_and_beyond_so_many_the_oldest_is_ended() {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncReadExt as _;
    /// As the shim has them.
    const MOST: usize = 32;
    const MOST_LEFT: usize = 128;
    let bench = Bench::new().await;
    let (_, id) = sleeping(&bench, |_| ()).await;
    let begin = async || {
        let command = ["sh", "-c", "echo; exec sleep 1000"].map(str::to_owned).to_vec();
        let mut streams = bench.runtime().exec(&id, command, StreamOptions::default()).await.unwrap();
        tokio::select! {
            _ = streams.stdout.read_u8() => Ok(streams),
            ended = &mut streams.end => Err(ended.unwrap_err().to_string()),
        }
    };
    let mut attended = Vec::new();
    for _ in 0..MOST {
        attended.push(begin().await.expect("there is room"));
    }
    let refused = begin().await.err().expect("there is none");
    assert!(refused.contains("others are running"), "{refused}");
    let mut ends: Vec<_> = attended.into_iter().map(|streams| streams.end).collect();
    while ends.len() <= MOST_LEFT {
        ends.push(begin().await.expect("they count no more").end);
    }
    // That a client went may be seen a moment after it did: then it is the start after that which ends the oldest.
    let oldest = loop {
        match tokio::time::timeout(Duration::from_secs(1), &mut ends[0]).await {
            Ok(ended) => break ended.unwrap(),
            Err(_) if ends.len() < MOST_LEFT + 8 => {
                ends.push(begin().await.expect("they count no more").end);
            }
            Err(_) => panic!("the oldest runs on beside {} others", ends.len() - 1),
        }
    };
    assert_eq!(oldest, 128 + 9);
    let newest = ends.into_iter().rev().take(MOST_LEFT / 2);
    assert!(newest.into_iter().all(|end| end.now_or_never().is_none()), "the others run on");
}
