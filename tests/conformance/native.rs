//! The native runtime under test: real containers, driven through the real binary's shim.

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
    images::ImageStore,
    native::{self, NativeConfig, NativeRuntime},
};

use super::harness::Harness;

pub struct Native {
    runtime: Option<NativeRuntime>,
    config: NativeConfig,
}

impl Harness for Native {
    async fn new(dir: &Path) -> Native {
        if let Err(missing) = native::check() {
            panic!("these tests run real containers and cannot here:\n{}", missing.join("\n"));
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let images = ImageStore::open(&dir.join("images")).unwrap();
        images.ensure_builtin(Path::new(env!("CARGO_BIN_EXE_troupe"))).await.unwrap();
        let config = NativeConfig {
            bridge: format!("tc{process:x}n{number}"),
            shim: PathBuf::from(env!("CARGO_BIN_EXE_troupe")),
            cgroup_parent: format!("troupe-conformance-{process}-{number}"),
            ..NativeConfig::new(dir.join("root"), images)
        };
        let runtime = NativeRuntime::open(config.clone()).unwrap();
        Native { runtime: Some(runtime), config }
    }

    fn runtime(&self) -> &dyn ContainerRuntime {
        self.runtime.as_ref().expect("the case closed it")
    }

    fn close(&mut self) {
        self.runtime = None;
    }

    fn reopen(&mut self) {
        self.runtime = Some(NativeRuntime::open(self.config.clone()).unwrap());
    }

    fn kill(&self, container: &ContainerStatus) {
        kill(Pid::from_raw(container.pid.unwrap()), Signal::SIGKILL).unwrap();
    }

    fn lose_sandbox(&self, container: &ContainerStatus) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", container.pid.unwrap())).unwrap();
        // The parent of a container's program is its pod's shim.
        let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap();
        kill(Pid::from_raw(parent.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
}

impl Drop for Native {
    /// Removes everything, also when the case failed.
    fn drop(&mut self) {
        let runtime = self.runtime.take().map_or_else(|| NativeRuntime::open(self.config.clone()), Ok);
        let Ok(runtime) = runtime else { return };
        let cleaned = std::thread::spawn(move || {
            let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            waiting.block_on(runtime.destroy())
        });
        if let Ok(Err(error)) = cleaned.join() {
            eprintln!("not cleaned up: {error}");
        }
    }
}
