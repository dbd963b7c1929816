//! Nothing is left of pods that were, whatever was killed on their way: counted on the machine, not asked of the runtime.

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use troupe::runtime::{ContainerRuntime, SandboxConfig};

use super::bench::{Bench, config, parent, sandbox_config};

const PODS: usize = 60;

/// What a pod had on the machine.
#[derive(Clone)]
struct Seen {
    uid: String,
    shim: i32,
    program: i32,
    netns: String,
}

#[tokio::test]
async fn sixty_pods_leave_nothing_however_they_ended() {
    let mut bench = Bench::new().await;
    // Just as many addresses as pods and one: a lost one is missed below.
    let subnet = bench.subnet("26");
    bench.runtime().set_pod_cidr(&subnet).await.unwrap();
    for round in 0..2 {
        let seen = start_all(&bench).await;
        let networks: BTreeSet<&str> = seen.iter().map(|pod| pod.netns.as_str()).collect();
        assert_eq!(networks.len(), PODS, "pods have networks of their own");
        for (number, pod) in seen.iter().enumerate() {
            match number % 4 {
                0 => kill(Pid::from_raw(pod.program), Signal::SIGKILL).unwrap(),
                1 => kill(Pid::from_raw(pod.shim), Signal::SIGKILL).unwrap(),
                _ => {}
            }
        }
        // Once while nobody drives, once before anything is heard.
        bench.reopen();
        bench.runtime().set_pod_cidr(&subnet).await.unwrap();
        remove_all(&bench, &seen).await;
        assert_eq!(left_of(&bench, &seen).await, [""; 0], "round {round}");
    }
    // All addresses can be given out again.
    let all = start_all(&bench).await;
    let one_more = SandboxConfig { uid: "one-more".into(), ..sandbox_config() };
    bench.runtime().run_pod_sandbox(one_more.clone()).await.unwrap();
    let too_many = SandboxConfig { uid: "too-many".into(), ..sandbox_config() };
    assert!(bench.runtime().run_pod_sandbox(too_many).await.is_err());
    bench.runtime().remove_pod_sandbox(&one_more.uid.as_str().into()).await.unwrap();
    remove_all(&bench, &all).await;
    assert_eq!(left_of(&bench, &all).await, [""; 0]);
    assert_eq!(bench.leftovers().await, [""; 0]);
}

#[tokio::test]
async fn what_containers_write_is_on_the_disk_and_the_rest_in_memory() {
    let mut bench = Bench::new().await;
    let pod = bench.sandbox("p").await;
    let id = bench.start(&pod, config("c", &["sh", "-c", "echo x > /written; echo done; sleep 1000"])).await;
    bench.line("c", "done").await;
    let root = bench.config.root.clone();
    assert_eq!(fs::read(root.join(format!("writable/p/{id}/upper/written"))).unwrap(), b"x\n");
    let device = |dir: &std::path::Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(dir).unwrap());
    assert_ne!(device(&root.join("sandboxes")), device(&root.join("writable")));
    // As after a new start of the machine: what is in memory is gone, what is on the disk is not.
    bench.runtime().remove_container(&id).await.unwrap();
    assert_eq!(names(&root.join("writable/p").to_string_lossy()), [""; 0]);
    fs::create_dir_all(root.join("writable/of-the-past/c/upper")).unwrap();
    bench.reopen();
    assert_eq!(names(&root.join("writable").to_string_lossy()), ["p"], "known pods' files stay");
    assert_eq!(bench.leftovers().await, [""; 0]);
}

/// A pod with a container each, all at once.
async fn start_all(bench: &Bench) -> Vec<Seen> {
    let mut starting = tokio::task::JoinSet::new();
    for number in 0..PODS {
        let runtime = Arc::clone(bench.runtime());
        let mut container = config(&format!("c{number}"), &["sleep", "1000"]);
        container.log_path = bench.log(&container.name);
        starting.spawn(async move {
            let uid = format!("pod-{number}");
            let sandbox = SandboxConfig { uid: uid.clone(), ..sandbox_config() };
            let pod = runtime.run_pod_sandbox(sandbox).await.unwrap().uid;
            let id = runtime.create_container(&pod, container).await.unwrap();
            runtime.start_container(&id).await.unwrap();
            let all = runtime.list_containers().await.unwrap();
            let program = all.into_iter().find(|container| container.id == id).unwrap().pid.unwrap();
            Seen { uid, program, shim: parent(program), netns: netns(program) }
        });
    }
    starting.join_all().await
}

async fn remove_all(bench: &Bench, pods: &[Seen]) {
    let mut removing = tokio::task::JoinSet::new();
    for pod in pods {
        let (runtime, uid) = (Arc::clone(bench.runtime()), pod.uid.clone());
        removing.spawn(async move { runtime.remove_pod_sandbox(&uid.as_str().into()).await });
    }
    removing.join_all().await.into_iter().for_each(|removed| removed.unwrap());
}

/// What is still there of these pods. The kernel takes apart networks of dead processes a little later, so those are
/// looked for until they are gone or it has taken too long.
async fn left_of(bench: &Bench, pods: &[Seen]) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left = look(bench, pods);
        if left.is_empty() || Instant::now() > deadline {
            return left;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn look(bench: &Bench, pods: &[Seen]) -> Vec<String> {
    let mut left = Vec::new();
    // Zombies are in /proc as well.
    for pod in pods {
        for (what, pid) in [("shim", pod.shim), ("program", pod.program)] {
            left.extend(
                fs::exists(format!("/proc/{pid}")).unwrap().then(|| format!("{what} of {}", pod.uid)),
            );
        }
    }
    let networks: BTreeSet<&str> = pods.iter().map(|pod| pod.netns.as_str()).collect();
    for process in names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()) {
        let network = netns(process);
        left.extend(networks.contains(network.as_str()).then(|| format!("network {network} of {process}")));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = bench.config.root.to_string_lossy().into_owned();
    // The directory that all sandboxes are in is the runtime's, not a pod's.
    let directory = format!(" {root}/sandboxes ");
    let ours = |line: &&str| line.contains(&root) && !line.contains(&directory) || line.contains(" nsfs ");
    left.extend(mounts.lines().filter(ours).map(str::to_owned));
    let ports = names(&format!("/sys/class/net/{}/brif", bench.config.bridge));
    left.extend(ports.into_iter().map(|name| format!("veth {name}")));
    for controller in names("/sys/fs/cgroup") {
        let groups = format!("/sys/fs/cgroup/{controller}/{}", bench.config.cgroup_parent);
        left.extend(names(&groups).into_iter().filter(|name| name.starts_with("pod-")));
    }
    left.extend(names(&format!("{root}/sandboxes")));
    left.extend(names(&format!("{root}/writable")));
    left.extend(names(&bench.path().join("images/pins").to_string_lossy()));
    left
}

fn netns(pid: i32) -> String {
    let link = fs::read_link(format!("/proc/{pid}/ns/net"));
    link.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default()
}

fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
