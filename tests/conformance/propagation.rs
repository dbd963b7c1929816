//! Cases: which mounts that are made later are seen on the other side of a volume.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use troupe::runtime::{ContainerConfig, ContainerId, Mount, Propagation, RuntimeError};

use super::harness::{Bench, Harness};

/// A mount of the node's that tells others of what is mounted below it; taken off with that when the case ends.
struct Shared(PathBuf);

impl Shared {
    fn at(dir: PathBuf) -> Shared {
        mount_tmpfs(&dir);
        mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
        Shared(dir)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for dir in [self.0.join("nodes"), self.0.join("containers"), self.0.clone()] {
            let _ = umount2(&dir, MntFlags::MNT_DETACH);
        }
    }
}

fn mount_tmpfs(dir: &Path) {
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
}

fn mounting<H: Harness>(bench: &Bench<H>, name: &str, dir: &Path, how: Propagation) -> ContainerConfig {
    // Containers of a pod share its ports.
    let mut config = bench.hello(name, &["--listen", "0.0.0.0:0"]);
    config.security.privileged = how == Propagation::Bidirectional;
    config.mounts = vec![Mount {
        host_path: dir.to_path_buf(),
        container_path: "/v".into(),
        propagation: how,
        ..Mount::default()
    }];
    config
}

async fn pid_of<H: Harness>(bench: &Bench<H>, id: &ContainerId) -> i32 {
    bench.find(id).await.unwrap().pid.unwrap()
}

/// Mounts something at a path of a container, as a program in it would, with a file in it.
fn mount_inside(pid: i32, path: &'static str) {
    let inside = std::thread::spawn(move || {
        // A thread can go where it likes once it has a root directory of its own.
        unshare(CloneFlags::CLONE_FS).unwrap();
        let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNS).unwrap();
        mount_tmpfs(Path::new(path));
        fs::write(Path::new(path).join("note"), "x").unwrap();
    });
    inside.join().unwrap();
}

pub async fn later_mounts_appear_on_the_other_side_where_that_was_asked_for<H: Harness>(
    bench: &mut Bench<H>,
) {
    let node = Shared::at(bench.shared_dir("shared"));
    for place in ["nodes", "containers"] {
        fs::create_dir(node.0.join(place)).unwrap();
    }
    bench.sandbox("a").await;
    let mut pids = Vec::new();
    let mut ids = Vec::new();
    for (name, how) in [
        ("plain", Propagation::Private),
        ("sees", Propagation::HostToContainer),
        ("both", Propagation::Bidirectional),
        ("late", Propagation::Private),
    ] {
        let id = bench.start("a", mounting(bench, name, &node.0, how)).await;
        pids.push(pid_of(bench, &id).await);
        ids.push(id);
    }
    let seen = |path: &str| -> Vec<bool> {
        pids.iter().map(|pid| Path::new(&format!("/proc/{pid}/root")).join("v").join(path).exists()).collect()
    };
    mount_tmpfs(&node.0.join("nodes"));
    fs::write(node.0.join("nodes/note"), "x").unwrap();
    assert_eq!(seen("nodes/note"), [false, true, true, false]);
    mount_inside(pids[1], "/v/containers");
    assert!(!node.0.join("containers/note").exists(), "what only listens is not heard");
    umount_inside(pids[1], "/v/containers");
    mount_inside(pids[2], "/v/containers");
    assert_eq!(seen("containers/note"), [false, true, true, false]);
    assert!(node.0.join("containers/note").exists(), "the node sees it");
    // The end of those who shared it changes nothing for the node.
    for id in &ids {
        bench.runtime().remove_container(id).await.unwrap();
    }
    bench.runtime().remove_pod_sandbox(&"a".into()).await.unwrap();
    for place in ["nodes/note", "containers/note"] {
        assert!(node.0.join(place).exists(), "{place} is still there");
    }
}

fn umount_inside(pid: i32, path: &'static str) {
    let inside = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS).unwrap();
        let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).unwrap();
        setns(namespace, CloneFlags::CLONE_NEWNS).unwrap();
        umount2(path, MntFlags::MNT_DETACH).unwrap();
    });
    inside.join().unwrap();
}

pub async fn what_the_node_does_not_share_is_refused<H: Harness>(bench: &mut Bench<H>) {
    let dir = bench.shared_dir("own");
    mount_tmpfs(&dir);
    mount(None::<&str>, &dir, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let node = Shared(dir);
    bench.sandbox("a").await;
    for how in [Propagation::HostToContainer, Propagation::Bidirectional] {
        let config = mounting(bench, "c", &node.0, how);
        let refused = match bench.create("a", config).await {
            Ok(id) => bench.runtime().start_container(&id).await.map(|()| id),
            Err(error) => Err(error),
        };
        let error = refused.unwrap_err();
        assert!(
            matches!(&error, RuntimeError::Config(text) | RuntimeError::Create(text) | RuntimeError::Start(text)
                if text.contains("shared")),
            "{how:?}: {error}"
        );
    }
    // The pod is none the worse for it.
    let id = bench.start("a", mounting(bench, "good", &node.0, Propagation::Private)).await;
    assert!(pid_of(bench, &id).await > 0);
    // Nor has it to be made anew when the node shares the mount from now on.
    mount(None::<&str>, &node.0, None::<&str>, MsFlags::MS_SHARED, None::<&str>).unwrap();
    for place in ["nodes", "containers"] {
        fs::create_dir(node.0.join(place)).unwrap();
    }
    let id = bench.start("a", mounting(bench, "sees", &node.0, Propagation::HostToContainer)).await;
    let pid = pid_of(bench, &id).await;
    mount_tmpfs(&node.0.join("nodes"));
    fs::write(node.0.join("nodes/note"), "x").unwrap();
    assert!(Path::new(&format!("/proc/{pid}/root")).join("v/nodes/note").exists());
    mount_inside(pid, "/v/containers");
    assert!(!node.0.join("containers/note").exists(), "what only listens is not heard");
    bench.runtime().remove_container(&id).await.unwrap();
    assert!(node.0.join("nodes/note").exists());
}
