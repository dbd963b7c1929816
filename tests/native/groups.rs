//! Control groups: who is in them, who is not, and what containers see of them.

use std::{collections::BTreeMap, fs, path::Path};

use super::bench::{Bench, config, sandbox_config};
use troupe::runtime::{ContainerConfig, ContainerRuntime as _, Mount, SandboxConfig};

/// A process' group by hierarchy; `None` when it is gone.
fn groups(pid: &str) -> Option<BTreeMap<String, String>> {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let rows = table.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    Some(rows.map(|(controllers, path)| (controllers.to_owned(), path.to_owned())).collect())
}

fn parent(pid: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned()
}

/// Hierarchies of version 1 that limit or count, or the only one of version 2.
fn controlling(name: &str) -> bool {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let used = ["cpu", "cpuacct", "cpuset", "memory", "pids", "devices", "blkio", "hugetlb"];
    if unified { name.is_empty() } else { name.split(',').any(|controller| used.contains(&controller)) }
}

#[tokio::test]
async fn a_container_is_in_its_own_group_of_every_hierarchy_that_limits_and_its_shim_in_none() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("g").await;
    let first = bench.start(&pod, config("one", &["sleep", "600"])).await;
    let second = bench.start(&pod, config("two", &["sleep", "600"])).await;
    let mut shims = Vec::new();
    for id in [&first, &second] {
        let pid = bench.status(id).await.pid.unwrap().to_string();
        let own = format!("{}/g/{id}", bench.config.cgroup_parent);
        for (hierarchy, path) in groups(&pid).unwrap().iter().filter(|(name, _)| controlling(name)) {
            assert!(path.ends_with(&own), "{hierarchy}: {path} is not {own}");
        }
        shims.push(parent(&pid));
    }
    assert_eq!(shims[0], shims[1]);
    assert_eq!(groups(&shims[0]), groups("self"), "the shim is back where it came from");
    // A program beside the container's own belongs to the same group.
    let seen = bench
        .runtime()
        .exec_sync(
            &second,
            vec!["cat".into(), "/proc/self/cgroup".into()],
            std::time::Duration::from_secs(60),
        )
        .await
        .unwrap();
    let seen = String::from_utf8(seen.stdout).unwrap();
    for line in seen.lines().filter(|line| controlling(line.split(':').nth(1).unwrap())) {
        assert!(line.ends_with(&second.0) || line.ends_with(":/"), "{line}");
    }
    assert_eq!(groups(&shims[0]), groups("self"));
    assert_eq!(bench.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_container_reads_its_limits_where_programs_look_for_them() {
    let mut bench = Bench::new().await;
    let limits = |config: &mut ContainerConfig| config.resources.memory_limit_bytes = 64 << 20;
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    let (lines, _) = bench.script(limits, read).await;
    assert_eq!(lines, [(64 << 20).to_string()]);
}

#[tokio::test]
async fn a_container_that_sees_the_nodes_cgroups_sees_them_at_their_usual_places_and_is_limited() {
    let mut bench = Bench::new().await;
    let names = |dir: &str| {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let node = names("/sys/fs/cgroup");
    for host in ["/sys", "/sys/fs/cgroup"] {
        let inside = if host == "/sys" { "/node/fs/cgroup" } else { "/node" };
        let change = |config: &mut ContainerConfig| {
            config.resources.memory_limit_bytes = 64 << 20;
            config.mounts = vec![Mount {
                host_path: host.into(),
                container_path: "/node".into(),
                read_only: true,
                ..Mount::default()
            }];
        };
        let own = "$(sed -n 's/^[0-9]*:memory://p' /proc/self/cgroup)";
        let script = format!(
            "ls {inside}; echo; cat {inside}/memory{own}/memory.limit_in_bytes 2>/dev/null || \
             cat /sys/fs/cgroup/memory.max"
        );
        let (lines, _) = bench.script(change, &script).await;
        let blank = lines.iter().position(String::is_empty).unwrap();
        assert_eq!(lines[..blank], node[..], "{host}");
        assert_eq!(lines.last().unwrap(), &(64 << 20).to_string(), "{host}: {lines:?}");
    }
    assert_eq!(names("/sys/fs/cgroup"), node);
}

#[tokio::test]
async fn a_limit_that_cannot_be_set_ends_the_start_and_leaves_nothing() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("small").await;
    let mut tiny = config("tiny", &["true"]);
    // Less than what is used by the time when the program is next.
    tiny.resources.memory_limit_bytes = 4096;
    match bench.try_start(&pod, tiny).await {
        Err(error) => assert!(error.to_string().contains("memory"), "{error}"),
        // The kernel found room, or ended it.
        Ok(id) => assert_ne!(bench.exit(&id).await.code, 0),
    }
    let shim_serves = bench.start(&pod, config("next", &["true"])).await;
    assert_eq!(bench.exit(&shim_serves).await.code, 0);
    assert_eq!(bench.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn who_asked_for_little_gives_way_to_who_asked_for_more() {
    let mut bench = Bench::new().await;
    let pod = bench
        .sandbox_with(SandboxConfig { uid: "q".into(), cpu_request_milli: 1500, ..sandbox_config() })
        .await;
    let mut asked = config("asked", &["sleep", "600"]);
    asked.resources.cpu_request_milli = 500;
    asked.oom_score_adj = 750;
    let asked = bench.start(&pod, asked).await;
    let silent = bench.start(&pod, config("silent", &["sleep", "600"])).await;
    let unified = Path::new("/sys/fs/cgroup/cpu.stat").exists();
    let weight = |group: &str| {
        let group = group.trim_start_matches('/');
        let (root, file) =
            if unified { ("/sys/fs/cgroup", "cpu.weight") } else { ("/sys/fs/cgroup/cpu", "cpu.shares") };
        let text = fs::read_to_string(Path::new(root).join(group).join(file)).unwrap();
        text.trim().parse::<i64>().unwrap()
    };
    let parent = &bench.config.cgroup_parent;
    let cores = std::thread::available_parallelism().unwrap().get() as i64;
    let weights = [
        weight(&format!("{parent}/q/{silent}")),
        weight(&format!("{parent}/q/{asked}")),
        weight(&format!("{parent}/q")),
        weight(parent),
    ];
    let expected = if unified {
        [1, 20, 59, 1 + (cores * 1024 - 2) * 9999 / 262_142]
    } else {
        [2, 512, 1536, cores * 1024]
    };
    assert_eq!(weights, expected);
    let pid = bench.status(&asked).await.pid.unwrap();
    let adj = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(adj.trim(), "750");
    let command = vec!["cat".into(), "/proc/self/oom_score_adj".into()];
    let beside =
        bench.runtime().exec_sync(&asked, command, std::time::Duration::from_secs(60)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&beside.stdout).trim(), "750");
    assert_eq!(bench.leftovers().await, Vec::<String>::new());
}

#[tokio::test]
async fn programs_of_a_container_stay_in_its_group_when_another_sees_the_nodes_cgroups() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("g").await;
    let first = bench.start(&pod, config("first", &["sleep", "600"])).await;
    // Made before the hierarchies are where they usually are, started after.
    let between = bench.create(&pod, config("between", &["sleep", "600"])).await.unwrap();
    let mut seeing = config("seeing", &["sleep", "600"]);
    seeing.mounts =
        vec![Mount { host_path: "/sys".into(), container_path: "/node".into(), ..Mount::default() }];
    bench.start(&pod, seeing).await;
    bench.runtime().start_container(&between).await.unwrap();
    for id in [&first, &between] {
        let pid = bench.status(id).await.pid.unwrap().to_string();
        let command = vec!["cat".into(), "/proc/self/cgroup".into()];
        let told = bench.runtime().exec_sync(id, command, std::time::Duration::from_secs(60)).await.unwrap();
        let told = String::from_utf8(told.stdout).unwrap();
        let program = told.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        for (hierarchy, path) in program.filter(|(name, _)| controlling(name)) {
            let own = groups(&pid).unwrap()[hierarchy].clone();
            assert!(own.ends_with(&id.0), "{hierarchy}: {own}");
            assert!(path == own || path == "/" && hierarchy.is_empty(), "{hierarchy}: {path} is not {own}");
        }
    }
    assert_eq!(bench.leftovers().await, Vec::<String>::new());
}
