//! The docker runtime under test: real containers of a docker engine that the tests start.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use bollard::query_parameters::{KillContainerOptions, ListContainersOptions};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use troupe::runtime::{
    ContainerRuntime, ContainerStatus,
    docker::{DockerConfig, DockerRuntime},
};

use super::{engine::Lease, harness::Harness};

pub struct OnDocker {
    runtime: Option<DockerRuntime>,
    pub config: DockerConfig,
    pub engine: Lease,
}

impl Harness for OnDocker {
    async fn new(dir: &Path) -> OnDocker {
        let engine = Lease::take();
        let config = DockerConfig {
            root: dir.join("root"),
            socket: engine.engine().socket.clone(),
            program: PathBuf::from(env!("CARGO_BIN_EXE_troupe")),
        };
        let runtime = DockerRuntime::open(config.clone()).unwrap();
        OnDocker { runtime: Some(runtime), config, engine }
    }

    fn runtime(&self) -> &dyn ContainerRuntime {
        self.runtime.as_ref().expect("the case closed it")
    }

    fn close(&mut self) {
        self.runtime = None;
    }

    fn reopen(&mut self) {
        self.runtime = Some(DockerRuntime::open(self.config.clone()).unwrap());
    }

    fn kill(&self, container: &ContainerStatus) {
        kill(Pid::from_raw(container.pid.unwrap()), Signal::SIGKILL).unwrap();
    }

    fn lose_sandbox(&self, container: &ContainerStatus) {
        let label = |name: &str, value: &str| format!("local.troupe.{name}={value}");
        let labels = vec![label("type", "sandbox"), label("pod.uid", container.pod.as_str())];
        let killed = self.engine.engine().ask(move |docker| async move {
            let filters = Some(HashMap::from([("label".to_owned(), labels)]));
            let found =
                docker.list_containers(Some(ListContainersOptions { filters, ..Default::default() })).await?;
            assert_eq!(found.len(), 1);
            let options = KillContainerOptions { signal: "SIGKILL".into() };
            docker.kill_container(found[0].id.as_ref().unwrap(), Some(options)).await
        });
        killed.expect("the engine kills a sandbox");
    }
}

impl Drop for OnDocker {
    /// Removes everything, also when the case failed: the next case has the engine as it was at first.
    fn drop(&mut self) {
        let runtime = self.runtime.take().map_or_else(|| DockerRuntime::open(self.config.clone()), Ok);
        let Ok(runtime) = runtime else { return };
        let cleaned = std::thread::spawn(move || {
            let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            waiting.block_on(async {
                runtime.destroy().await?;
                for name in runtime.list_images().await?.into_iter().flat_map(|image| image.names) {
                    // Loading it takes long, and the next case wants it, too.
                    if name != troupe::runtime::images::BUILTIN_IMAGE {
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
