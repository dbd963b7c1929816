//! Real containers under an embedded cluster: a native runtime of the test's own, gone when the test is.

use std::sync::Arc;

use tempfile::TempDir;
use troupe::{
    Cluster, ClusterConfig,
    logic::eviction::Thresholds,
    runtime::{
        images::ImageStore,
        native::{NativeConfig, NativeRuntime},
    },
};

use crate::support::WITHIN;

/// Pods of this test binary only: what `troupe up` chooses for itself is elsewhere.
const POD_NETWORK: &str = "10.120.0.0/16";

/// Whether real containers can be run here. Under CI there is no excuse.
pub fn may_run_containers() -> bool {
    if nix::unistd::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("CI").is_none(), "CI is set, but this is not root");
    eprintln!("skipped: real containers need root");
    false
}

/// A directory and a native runtime in it.
pub struct Machine {
    runtime: Arc<NativeRuntime>,
    directory: TempDir,
}

impl Machine {
    pub async fn open() -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_troupe"));
        let images = ImageStore::open(&directory.path().join("images")).unwrap();
        images.ensure_builtin(program).await.unwrap();
        let mut config = NativeConfig::new(directory.path().join("runtime"), images);
        config.shim = program.to_owned();
        let id = std::process::id();
        config.bridge = format!("te{id}");
        config.cgroup_parent = format!("troupe-embed-{id}");
        Machine { runtime: Arc::new(NativeRuntime::open(config).unwrap()), directory }
    }

    /// A cluster of one node on it, ready.
    pub async fn cluster(&self) -> Cluster {
        let mut config = ClusterConfig::simulated(self.directory.path()).nodes(["real"]);
        // How full this machine's disk is must not matter.
        config.kubelet.eviction_hard = Thresholds::parse("").unwrap();
        config = config.runtime_of("real", self.runtime.clone());
        config.master.pod_network = POD_NETWORK.into();
        let cluster = Cluster::start(config).await.unwrap();
        cluster.ready(WITHIN).await.unwrap();
        cluster
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        // The test's own runtime may be the one that is being dropped.
        let destroyed = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?
                .block_on(runtime.destroy())
                .map_err(std::io::Error::other)
        });
        let outcome = destroyed.join();
        if !std::thread::panicking() {
            outcome.unwrap().unwrap();
        }
    }
}
