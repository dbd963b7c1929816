//! Cases: what the containers of one pod have in common, and what they do not.

use troupe::runtime::{ContainerConfig, Mount};

use super::harness::{Bench, Harness, until};

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
