//! The CRI runtime under test: real containers of a containerd that the tests start.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use troupe::runtime::{
    ContainerRuntime, ContainerStatus,
    cri::{CriConfig, CriRuntime},
    images::BUILTIN_IMAGE,
};

use super::{
    containerd::{Containerd, Lease},
    harness::Harness,
};

pub struct OnContainerd {
    runtime: Option<CriRuntime>,
    pub config: CriConfig,
    pub containerd: Lease,
}

/// A runtime's configuration on a daemon, with a bridge and cgroups of its own.
pub fn config(root: PathBuf, daemon: &Containerd) -> CriConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    CriConfig {
        root,
        socket: daemon.socket.clone(),
        program: PathBuf::from(env!("CARGO_BIN_EXE_troupe")),
        bridge: daemon.link(number),
        cgroup_parent: daemon.group(number),
    }
}

impl Harness for OnContainerd {
    async fn new(dir: &Path) -> OnContainerd {
        let containerd = Lease::take();
        let config = config(dir.join("root"), containerd.daemon());
        let runtime = CriRuntime::open(config.clone()).unwrap();
        OnContainerd { runtime: Some(runtime), config, containerd }
    }

    fn runtime(&self) -> &dyn ContainerRuntime {
        self.runtime.as_ref().expect("the case closed it")
    }

    fn close(&mut self) {
        self.runtime = None;
    }

    fn reopen(&mut self) {
        self.runtime = Some(CriRuntime::open(self.config.clone()).unwrap());
    }

    fn kill(&self, container: &ContainerStatus) {
        kill(Pid::from_raw(container.pid.unwrap()), Signal::SIGKILL).unwrap();
    }

    fn lose_sandbox(&self, container: &ContainerStatus) {
        let daemon = self.containerd.daemon();
        let mine = format!(
            r#"labels."io.kubernetes.pod.uid"=={},labels."io.cri-containerd.kind"==sandbox"#,
            container.pod.as_str()
        );
        let sandbox = daemon.ctr(&["containers", "list", "--quiet", &mine]);
        assert_eq!(sandbox.len(), 1, "{sandbox:?}");
        daemon.ctr(&["tasks", "kill", "--signal", "SIGKILL", &sandbox[0]]);
    }
}

impl Drop for OnContainerd {
    /// Removes everything, also when the case failed: the next case has the daemon as it was at first.
    fn drop(&mut self) {
        let runtime = self.runtime.take().map_or_else(|| CriRuntime::open(self.config.clone()), Ok);
        let Ok(runtime) = runtime else { return };
        let cleaned = std::thread::spawn(move || {
            let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            waiting.block_on(async {
                runtime.destroy().await?;
                for name in runtime.list_images().await?.into_iter().flat_map(|image| image.names) {
                    // Loading it takes long, and the next case wants it, too.
                    if name != BUILTIN_IMAGE {
                        runtime.remove_image(&name).await?;
                    }
                }
                Ok::<_, troupe::runtime::RuntimeError>(())
            })
        });
        if let Ok(Err(error)) = cleaned.join() {
            eprintln!("not cleaned up: {error}");
        }
    }
}
