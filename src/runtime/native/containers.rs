//! The driver's part in a container's life: create, start, stop, remove.
//!
//! Owns: the order of steps between image, files, shim and memory. Invariant: what fails half-way is undone, and what
//! ends something succeeds when it has ended already.

use std::{fs, sync::Arc, time::Duration};

use super::{
    driver::{Driver, blocking, new_id},
    pod::Pod,
    protocol::{Program, Reply, Request},
    spec,
    state::{self, ContainerRecord, ImageRecord, system},
    user,
};
use crate::{
    model::Uid,
    runtime::{ContainerConfig, ContainerId, ContainerState, RuntimeError, images::ResolvedImage, signal},
};

impl Driver {
    pub(super) async fn create_container(
        self: &Arc<Driver>,
        uid: &Uid,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let pod = self.pod(uid).ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {uid}")))?;
        let client = pod.client()?;
        let id = pod.take_next().unwrap_or_else(|| ContainerId(new_id()));
        let (driver, made_in, made) = (Arc::clone(self), Arc::clone(&pod), id.clone());
        let record = blocking(move || driver.prepare(&made_in, made, config)).await;
        let created = match &record {
            Ok((_, program)) => {
                let create = Request::Create { id: id.clone(), program: program.clone() };
                client.call(create).await.map(drop)
            }
            Err(error) => Err(error.clone()),
        };
        match (record, created) {
            (Ok((record, _)), Ok(())) => {
                self.own(&id, uid);
                pod.add(record);
                Ok(id)
            }
            (_, created) => {
                let (driver, dir, unmade) = (Arc::clone(self), pod.dir.container(&id), id.clone());
                blocking(move || {
                    driver.config.images.unpin(&unmade.0)?;
                    dir.remove().map_err(system(format!("remove {}", dir.0.display())))
                })
                .await?;
                created.map(|()| id)
            }
        }
    }

    /// Checks the configuration against the image and writes the container's record, without what may hold secrets.
    fn prepare(
        &self,
        pod: &Pod,
        id: ContainerId,
        config: ContainerConfig,
    ) -> Result<(ContainerRecord, Program), RuntimeError> {
        let dir = pod.dir.container(&id);
        // Before the pin, so that whoever finds the directory knows whose pin may be left.
        fs::create_dir_all(&dir.0).map_err(system(format!("record container {id}")))?;
        let image = self
            .config
            .images
            .pin(&config.image, &id.0)?
            .ok_or_else(|| RuntimeError::ImageNotFound(config.image.clone()))?;
        user::check_non_root(&config.security, &image.user).map_err(RuntimeError::Config)?;
        let mut record =
            ContainerRecord { id, config, image: image_record(image), created_ms: state::now_ms() };
        if spec::arguments(&record).is_none() {
            return Err(RuntimeError::Create("no command specified".to_owned()));
        }
        if let Some(signal) = stop_signal(&record).filter(|name| signal::parse(name).is_none()) {
            return Err(RuntimeError::Create(format!("stop signal {signal:?} is unknown")));
        }
        let program = Program::take(&mut record.config);
        if program.bytes() > Program::MAX_BYTES {
            return Err(RuntimeError::Create("arguments and environment are too long".to_owned()));
        }
        state::write(&dir.record(), &record).map_err(system(format!("record container {}", record.id)))?;
        Ok((record, program))
    }

    pub(super) async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let pod = self.container_pod(id)?;
        match pod.client()?.call(Request::Start { id: id.clone() }).await? {
            Reply::Started { pid, started_ms } => pod.started(id, pid, started_ms),
            Reply::Done | Reply::Ready { .. } | Reply::Ran { .. } => {}
        }
        Ok(())
    }

    pub(super) async fn stop_container(
        self: &Arc<Driver>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let Some(pod) = self.owner(id) else { return Ok(()) };
        let (Some(ContainerState::Running), Some(record), Some(mut over)) =
            (pod.state_of(id), pod.record_of(id), pod.over(id))
        else {
            return Ok(());
        };
        if let Ok(client) = pod.client() {
            let send = |signal, everyone| {
                let (client, id) = (client.clone(), id.clone());
                async move { client.call(Request::Signal { id, signal, everyone }).await }
            };
            if !grace.is_zero() {
                let first = stop_signal(&record).and_then(signal::parse);
                let sent = send(first.unwrap_or(libc::SIGTERM), false).await;
                if sent.is_ok() && tokio::time::timeout(grace, over.wait_for(|over| *over)).await.is_ok() {
                    return self.reap_orphan(&pod, id).await;
                }
            }
            // When the shim is gone, what follows the wait does its work.
            let _ = send(libc::SIGKILL, true).await;
            if tokio::time::timeout(DEATH_WAIT, over.wait_for(|over| *over)).await.is_err() {
                return Err(RuntimeError::System {
                    operation: format!("kill container {id}"),
                    cause: "it does not die".to_owned(),
                });
            }
        }
        self.reap_orphan(&pod, id).await
    }

    /// Makes sure that a container is dead whose shim can say no more.
    async fn reap_orphan(self: &Arc<Driver>, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), RuntimeError> {
        if pod.state_of(id) != Some(ContainerState::Running) {
            return Ok(());
        }
        let group = self.hierarchies.group(&pod.record.cgroup.join(&id.0));
        let (pod, id) = (Arc::clone(pod), id.clone());
        blocking(move || {
            for _ in 0..ORPHAN_ATTEMPTS {
                pod.kill_orphan(&id);
                if group.kill() == 0 && pod.state_of(&id) != Some(ContainerState::Running) {
                    return Ok(());
                }
                std::thread::sleep(ORPHAN_PAUSE);
            }
            Err(RuntimeError::System {
                operation: format!("kill container {id}"),
                cause: "it does not die".to_owned(),
            })
        })
        .await
    }

    pub(super) async fn remove_container(self: &Arc<Driver>, id: &ContainerId) -> Result<(), RuntimeError> {
        let Some(pod) = self.owner(id) else { return Ok(()) };
        self.stop_container(id, Duration::ZERO).await?;
        if let Ok(client) = pod.client() {
            client.call(Request::Remove { id: id.clone() }).await?;
        }
        let (driver, dir, removed) = (Arc::clone(self), pod.dir.container(id), id.clone());
        let group = self.hierarchies.group(&pod.record.cgroup.join(&id.0));
        blocking(move || {
            group.remove().map_err(system(format!("remove the cgroup of container {removed}")))?;
            driver.config.images.unpin(&removed.0)?;
            dir.remove().map_err(system(format!("remove {}", dir.0.display())))
        })
        .await?;
        pod.forget(id);
        self.disown(id);
        Ok(())
    }

    pub(super) fn container_pod(&self, id: &ContainerId) -> Result<Arc<Pod>, RuntimeError> {
        self.owner(id).ok_or_else(|| RuntimeError::NotFound(format!("container {id}")))
    }
}

/// SIGKILL works at once unless a process sits in the kernel waiting for a device; that is waited for this long.
const DEATH_WAIT: Duration = Duration::from_secs(30);
const ORPHAN_ATTEMPTS: u32 = 6000;
const ORPHAN_PAUSE: Duration = Duration::from_millis(5);

fn image_record(image: ResolvedImage) -> ImageRecord {
    ImageRecord {
        id: image.image.id,
        layers: image.layers,
        entrypoint: image.entrypoint,
        cmd: image.cmd,
        env: image.env,
        working_dir: image.working_dir,
        user: image.user,
        stop_signal: image.stop_signal.filter(|signal| !signal.is_empty()),
    }
}

/// What a container is asked to end with, if it or its image says.
fn stop_signal(record: &ContainerRecord) -> Option<&str> {
    record.config.stop_signal.as_deref().or(record.image.stop_signal.as_deref())
}
