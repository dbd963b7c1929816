//! Containers' lives: create, start, stop, remove.
//!
//! Owns: the order of steps. Invariants: a container is started at most once; what ends something succeeds when it has
//! ended already.

use std::{sync::Arc, time::Duration};

use bollard::{
    models::ContainerUpdateBody,
    query_parameters::{CreateContainerOptions, StartContainerOptions},
};

use super::{
    driver::{Driver, refusal},
    engine::{self, fault, start_error},
    images::engine_image,
    labels::{self, Kind},
    logs, spec, status,
};
use crate::{
    model::Uid,
    runtime::{
        ContainerConfig, ContainerId, ContainerResources, ContainerState, RuntimeError, Security,
        limits::CPU_PERIOD_US, native::user::check_non_root, within,
    },
};

/// How long a container that has ended is kept for the rest of its output: some 64 MiB are to be copied at most.
const COPIED_WITHIN: Duration = Duration::from_secs(30);

impl Driver {
    /// The engine changes a running container's cgroup. What it refuses (less memory than is in use) it says.
    pub(super) async fn update_container(
        &self,
        id: &ContainerId,
        resources: ContainerResources,
    ) -> Result<(), RuntimeError> {
        let found = self.expected(id).await?;
        if found.state.as_ref().is_none_or(|state| state.running != Some(true)) {
            return Err(RuntimeError::NotFound(format!("running container {id}")));
        }
        let memory = Some(resources.memory_limit_bytes).filter(|bytes| *bytes > 0);
        let quota = resources.cpu_quota_us();
        let body = ContainerUpdateBody {
            cpu_shares: Some(resources.cpu_shares()),
            cpu_period: quota.map(|_| CPU_PERIOD_US),
            cpu_quota: quota,
            memory,
            // No swap beyond it, as when it was made.
            memory_swap: memory,
            ..ContainerUpdateBody::default()
        };
        self.docker.update_container(&id.0, body).await.map_err(fault(format!("resize container {id}")))
    }

    pub(super) async fn create_container(
        &self,
        pod: &Uid,
        mut config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let seccomp = prepare(&mut config).await?;
        let sandbox = self.sandbox_of(pod).await?;
        let sandbox = sandbox.ok_or_else(|| RuntimeError::NotFound(format!("sandbox of pod {pod}")))?;
        if !sandbox.running {
            return Err(RuntimeError::Create(format!("the sandbox of pod {pod} is not ready")));
        }
        let absent = || RuntimeError::ImageNotFound(config.image.clone());
        // The engine refuses an absent image by itself: it is looked at only for its user.
        let image_user = match asks_for_the_images_user(&config.security) {
            true => self.find_image(&config.image).await?.ok_or_else(absent)?.user,
            false => String::new(),
        };
        check_non_root(&config.security, &image_user).map_err(RuntimeError::Config)?;
        let mut body = spec::container(
            &self.root,
            &sandbox.sandbox,
            &sandbox.id,
            &image_user,
            &config,
            seccomp.as_deref(),
        );
        body.image = Some(engine_image(&config.image)?);
        // One life may be made twice, when the first attempt failed late.
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let name = labels::name(
            &self.root,
            &[&sandbox.sandbox.namespace, &sandbox.sandbox.name, &config.name, &unique[..8]],
        );
        let options = CreateContainerOptions { name: Some(name), ..CreateContainerOptions::default() };
        match self.docker.create_container(Some(options), body).await {
            Ok(made) => {
                if let Some(labels) =
                    labels::Container::read(&labels::of_container(&self.root, &sandbox.sandbox, &config))
                {
                    self.made().insert(made.id.clone(), labels);
                }
                Ok(ContainerId(made.id))
            }
            Err(error) => {
                let text = engine::message(&error);
                Err(match engine::status(&error) {
                    Some(404) if text.to_lowercase().contains("no such image") => absent(),
                    Some(404) => RuntimeError::NotFound(format!("sandbox of pod {pod}")),
                    _ if text.to_lowercase().contains("no command specified") => {
                        RuntimeError::Create("no command specified".to_owned())
                    }
                    Some(400) => refusal("create a container", error),
                    _ => RuntimeError::Create(text),
                })
            }
        }
    }

    pub(super) async fn start_container(self: &Arc<Self>, id: &ContainerId) -> Result<(), RuntimeError> {
        let made = self.made().remove(&id.0);
        let labels = match made {
            Some(labels) => labels,
            None => self.not_started_yet(id).await?,
        };
        self.ends.expect(&id.0, Kind::Container, &labels.pod);
        if let Err(error) = self.docker.start_container(&id.0, None::<StartContainerOptions>).await {
            self.ends.forget(&id.0);
            return Err(if engine::is_absent(&error) && self.inspect(&id.0).await?.is_none() {
                RuntimeError::NotFound(format!("container {id}"))
            } else {
                start_error(&error)
            });
        }
        logs::begin(self, id.0.clone(), labels);
        Ok(())
    }

    /// The labels of a container that an earlier process made, or that was started before.
    async fn not_started_yet(&self, id: &ContainerId) -> Result<labels::Container, RuntimeError> {
        let found = self.expected(id).await?;
        let labels =
            found.config.as_ref().and_then(|config| labels::Container::read(config.labels.as_ref()?));
        let (Some(container), Some(labels)) = (status::container(&found), labels) else {
            return Err(RuntimeError::NotFound(format!("container {id}")));
        };
        match container.state {
            ContainerState::Created => Ok(labels),
            _ => Err(RuntimeError::Start(format!("container {id} was started before"))),
        }
    }

    pub(super) async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(found) = self.inspect(&id.0).await? else { return Ok(()) };
        if found.state.as_ref().is_some_and(|state| state.running == Some(true)) {
            let asked =
                found.config.and_then(|config| config.stop_signal).filter(|signal| !signal.is_empty());
            let mut dead = false;
            if !grace.is_zero() {
                self.signal(&id.0, asked.as_deref().unwrap_or("SIGTERM")).await?;
                dead = match tokio::time::timeout(grace, self.wait_dead(&id.0)).await {
                    Ok(waited) => waited.map(|()| true)?,
                    Err(_) => false,
                };
            }
            if !dead {
                self.kill_and_wait(&id.0).await?;
            }
        }
        self.ends.told(&id.0).await;
        Ok(())
    }

    pub(super) async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.stop_container(id, Duration::ZERO).await?;
        if self.inspect(&id.0).await?.is_some() {
            // With it goes what the engine has of its output.
            let _ = tokio::time::timeout(COPIED_WITHIN, self.ends.log_written(&id.0)).await;
            self.remove(&id.0).await?;
        }
        Ok(())
    }
}

/// Whether settings mean something only beside the user that the image names.
fn asks_for_the_images_user(security: &Security) -> bool {
    security.user.is_none() && (security.run_as_non_root || security.group.is_some())
}

/// Refuses what an engine cannot do, finds what a configuration names on the node, and gives its system call filter.
async fn prepare(config: &mut ContainerConfig) -> Result<Option<String>, RuntimeError> {
    if config.security.strict_groups {
        return Err(RuntimeError::Config(
            "supplementalGroupsPolicy Strict: the docker runtime cannot leave out the groups of the image"
                .into(),
        ));
    }
    within::resolve(&mut config.mounts).await?;
    let Some(profile) = &config.security.seccomp_profile else { return Ok(None) };
    tokio::fs::read_to_string(profile).await.map(Some).map_err(|error| {
        RuntimeError::Config(format!("cannot load seccomp profile {}: {error}", profile.display()))
    })
}
