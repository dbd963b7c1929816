//! Cases: what the containers of one pod have in common, and what they do not.

use troupe::runtime::{ContainerConfig, Mount, SandboxConfig};

use super::{
    archives::{reader, signalled_with},
    harness::{Bench, Harness, sandbox, until},
};

pub async fn containers_of_a_pod_share_the_host_name<H: Harness>(bench: &mut Bench<H>) {
    for pod in ["a", "b"] {
        bench.sandbox(pod).await;
        for container in ["one", "two"] {
            let config = bench.hello(&format!("{pod}-{container}"), &["--describe", "--once"]);
            let (lines, _) = bench.output_of(pod, config).await;
            let given: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
            assert_eq!(given["hostname"], format!("host-{pod}"));
        }
    }
}

pub async fn containers_of_a_pod_reach_each_other_on_loopback<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    bench.start("a", bench.hello("server", &["--listen", "127.0.0.1:7000"])).await;
    bench.line("server", "listening").await;
    let (lines, exit) =
        bench.output_of("a", bench.hello("client", &["--fetch", "http://127.0.0.1:7000/", "--once"])).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("client"));
    assert!(lines[0].contains("Hello from host-a"), "{lines:?}");
    // Not so from another pod.
    bench.sandbox("b").await;
    let (_, exit) =
        bench.output_of("b", bench.hello("stranger", &["--fetch", "http://127.0.0.1:7000/", "--once"])).await;
    assert_ne!(exit.code, 0);
}

pub async fn pods_reach_each_other_by_address<H: Harness>(bench: &mut Bench<H>) {
    let server = bench.sandbox("a").await.ip.unwrap();
    bench.start("a", bench.hello("server", &[])).await;
    bench.line("server", "listening").await;
    bench.sandbox("b").await;
    let url = format!("http://{server}:8080/");
    let (lines, exit) = bench.output_of("b", bench.hello("client", &["--fetch", &url, "--once"])).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("client"));
    assert!(lines[0].contains("Hello from host-a"), "{lines:?}");
}

pub async fn containers_of_a_pod_share_memory<H: Harness>(bench: &mut Bench<H>) {
    for pod in ["a", "b"] {
        bench.sandbox(pod).await;
    }
    let (_, exit) =
        bench.output_of("a", bench.hello("writer", &["--write", "/dev/shm/note=kept", "--once"])).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("writer"));
    let read = ["--read", "/dev/shm/note", "--once"];
    let (lines, _) = bench.output_of("a", bench.hello("reader", &read)).await;
    assert_eq!(lines, ["kept"]);
    let (_, exit) = bench.output_of("b", bench.hello("stranger", &read)).await;
    assert_ne!(exit.code, 0);
}

/// `shareProcessNamespace`: process 1 is nobody's program, the others' are seen, and one container's end is not another's.
pub async fn containers_that_share_a_pid_namespace_see_each_other<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox_with(SandboxConfig { share_pids: true, ..sandbox("a") }).await;
    let first = bench.start("a", bench.hello("first", &["--listen", "127.0.0.1:7000"])).await;
    bench.line("first", "listening").await;
    // The last number is the one in the process' own namespace.
    let pid = bench.find(&first).await.unwrap().pid.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().next_back());
    let inside = inside.unwrap().to_owned();
    assert_ne!(inside, "1", "a program that is process 1 would take the others along");
    let command_line = format!("/proc/{inside}/cmdline");
    let look = bench.hello("look", &["--read", &command_line, "--read", "/proc/1/comm", "--once"]);
    let (lines, exit) = bench.output_of("a", look).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("look"));
    assert!(lines[0].contains("127.0.0.1:7000"), "{lines:?}");
    assert!(!lines[1].contains("hello"), "{lines:?}");
    // Its end is told as ever, and the pod goes on.
    bench.harness.kill(&bench.find(&first).await.unwrap());
    assert_eq!(bench.exit(&first).await.signal, Some(9));
    let again = bench.start("a", bench.hello("again", &[])).await;
    bench.restart(async {}).await;
    assert!(bench.find(&again).await.unwrap().pid.is_some());
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    // Without it every program is process 1 and sees itself alone.
    bench.sandbox("b").await;
    let (lines, _) = bench.output_of("b", bench.hello("alone", &["--read", "/proc/1/comm", "--once"])).await;
    assert!(lines[0].contains("hello"), "{lines:?}");
}

/// What an `emptyDir` is: a directory of the node, mounted into several containers.
pub async fn containers_of_a_pod_share_a_directory<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let host_path = bench.shared_dir("empty");
    let at = |container_path: &str, config: ContainerConfig| ContainerConfig {
        mounts: vec![Mount {
            host_path: host_path.clone(),
            container_path: container_path.into(),
            ..Mount::default()
        }],
        ..config
    };
    let writer = at("/data", bench.hello("writer", &["--write", "/data/note=kept", "--once"]));
    let (_, exit) = bench.output_of("a", writer).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("writer"));
    let reader = at("/elsewhere/deep", bench.hello("reader", &["--read", "/elsewhere/deep/note", "--once"]));
    let (lines, _) = bench.output_of("a", reader).await;
    assert_eq!(lines, ["kept"]);
    // It outlives its containers: who made it removes it.
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    assert_eq!(std::fs::read_to_string(host_path.join("note")).unwrap(), "kept");
}

pub async fn a_read_only_mount_cannot_be_written<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let host_path = bench.shared_dir("fixed");
    std::fs::write(host_path.join("note"), "fixed").unwrap();
    let config = ContainerConfig {
        mounts: vec![Mount {
            host_path: host_path.clone(),
            container_path: "/data".into(),
            read_only: true,
            ..Mount::default()
        }],
        ..bench.hello("c", &["--read", "/data/note", "--write", "/data/note=changed", "--once"])
    };
    let (_, exit) = bench.output_of("a", config).await;
    assert_ne!(exit.code, 0);
    assert!(
        bench.log("c").iter().any(|line| line.to_lowercase().contains("read-only")),
        "{:?}",
        bench.log("c")
    );
    assert_eq!(std::fs::read_to_string(host_path.join("note")).unwrap(), "fixed");
}

/// A file system of its own at a place of the node, taken off when the case ends.
struct Below(std::path::PathBuf);

impl Below {
    fn at(place: std::path::PathBuf) -> Below {
        std::fs::create_dir(&place).unwrap();
        let options = Some("mode=777");
        nix::mount::mount(Some("tmpfs"), &place, Some("tmpfs"), nix::mount::MsFlags::empty(), options)
            .unwrap();
        Below(place)
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

pub async fn what_is_mounted_below_a_read_only_mount_is_read_only_where_that_is_asked_for<H: Harness>(
    bench: &mut Bench<H>,
) {
    let host_path = bench.shared_dir("above");
    let below = Below::at(host_path.join("below"));
    bench.sandbox("a").await;
    let supported = bench.runtime().recursive_read_only();
    for recursive_read_only in [false, true] {
        if recursive_read_only && !supported {
            eprintln!("{} cannot do that here: skipped", bench.runtime().name());
            break;
        }
        let name = if recursive_read_only { "recursive" } else { "plain" };
        let place = format!("/data/below/{name}=changed");
        let config = ContainerConfig {
            mounts: vec![Mount {
                host_path: host_path.clone(),
                container_path: "/data".into(),
                read_only: true,
                recursive_read_only,
                ..Mount::default()
            }],
            ..bench.hello(name, &["--write", &place, "--once"])
        };
        let (_, exit) = bench.output_of("a", config).await;
        let log = bench.log(name);
        assert_eq!(exit.code != 0, recursive_read_only, "{name}: {log:?}");
        assert_eq!(below.0.join(name).exists(), !recursive_read_only, "{name}: {log:?}");
        let told = log.iter().any(|line| line.to_lowercase().contains("read-only"));
        assert_eq!(told, recursive_read_only, "{name}: {log:?}");
    }
}

pub async fn root_file_systems_are_not_shared<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let (_, exit) = bench.output_of("a", bench.hello("writer", &["--write", "/tmp/note=x", "--once"])).await;
    assert_eq!(exit.code, 0, "{:?}", bench.log("writer"));
    let (_, exit) = bench.output_of("a", bench.hello("reader", &["--read", "/tmp/note", "--once"])).await;
    assert_ne!(exit.code, 0);
}

pub async fn last_words_are_left_on_the_node<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let file = bench.shared_dir("last").join("words");
    std::fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(65532), None).unwrap();
    let mut config =
        bench.hello("c", &["--write", "/dev/termination-log=out of luck", "--exit-code", "3", "--once"]);
    config.termination_message = Some((file.clone(), "/dev/termination-log".into()));
    let (_, exit) = bench.output_of("a", config).await;
    assert_eq!(exit.code, 3, "{:?}", bench.log("c"));
    until(|| std::fs::read_to_string(&file).unwrap() == "out of luck").await.unwrap();
}

/// As images of whole systems have them, whose service for names makes the file when it starts.
pub async fn the_pods_files_are_where_links_of_the_image_lead<H: Harness>(bench: &mut Bench<H>) {
    let links = [
        ("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        ("etc/hosts", "/run/names/hosts"),
        ("etc/hostname", "../../../../../../run/up/hostname"),
    ];
    let archive = signalled_with("linked:1", &serde_json::json!({}), &links, &[]);
    bench.runtime().load_image(reader(archive), None).await.unwrap();
    bench.sandbox("a").await;
    let config = ContainerConfig { image: "linked:1".into(), args: Vec::new(), ..bench.hello("c", &[]) };
    let id = bench.start("a", config).await;
    let pid = bench.find(&id).await.unwrap().pid.unwrap();
    let root = std::path::PathBuf::from(format!("/proc/{pid}/root"));
    // An engine of docker's puts files in the place of these links.
    let read = |name: &str, path: &str| {
        let link = root.join("etc").join(name);
        let place = if link.is_symlink() { root.join(path) } else { link };
        std::fs::read_to_string(&place).unwrap_or_else(|error| panic!("{}: {error}", place.display()))
    };
    assert!(read("hosts", "run/names/hosts").contains("localhost"));
    assert_eq!(read("hostname", "run/up/hostname").trim(), "host-a");
    read("resolv.conf", "run/systemd/resolve/stub-resolv.conf");
    bench.runtime().remove_container(&id).await.unwrap();
}

pub async fn what_cannot_be_mounted_is_named_with_its_place<H: Harness>(bench: &mut Bench<H>) {
    bench.sandbox("a").await;
    let dir = bench.shared_dir("volume");
    let mut config = bench.hello("c", &[]);
    config.mounts =
        vec![Mount { host_path: dir.clone(), container_path: "/hello".into(), ..Mount::default() }];
    let refused = match bench.create("a", config).await {
        Ok(id) => bench.runtime().start_container(&id).await,
        Err(error) => Err(error),
    };
    let error = refused.unwrap_err().to_string();
    let parts = [dir.to_str().unwrap(), "error mounting", "\"/hello\"", "not a directory"];
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    // The pod is none the worse for it.
    bench.start("a", bench.hello("good", &[])).await;
}
