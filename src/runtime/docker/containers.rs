//! Containers' lives: create, start, stop, remove.
//!
//! Owns: the order of steps. Invariants: a container is started at most once; what ends something succeeds when it has
//! ended already.

use std::{sync::Arc, time::Duration};

use bollard::{
    models::ContainerUpdateBody,
    query_parameters::{CreateContainerOptions, StartContainerOptions, StopContainerOptions},
};

use super::{
    driver::{Driver, END_TURN, Unstarted, refusal},
    engine::{self, ended, fault, start_error},
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
        if memory.is_some() {
            self.ends.limited(&id.0);
        }
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
            return Err(RuntimeError::SandboxNotReady(pod.clone()));
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
        let limited = body.host_config.as_ref().and_then(|host| host.memory).is_some_and(|bytes| bytes > 0);
        self.pods.asked(pod);
        let made = self.docker.create_container(Some(options), body).await;
        match &made {
            Ok(made) => self.pods.answered(pod, Some(&made.id)),
            // Without its word there may be a container.
            Err(error) if engine::status(error).is_some() => self.pods.answered(pod, None),
            Err(_) => {}
        }
        match made {
            Ok(made) => {
                if let Some(labels) =
                    labels::Container::read(&labels::of_container(&self.root, &sandbox.sandbox, &config))
                {
                    self.made().insert(made.id.clone(), Unstarted { labels, limited });
                }
                Ok(ContainerId(made.id))
            }
            Err(error) => {
                let text = engine::message(&error);
                Err(match engine::status(&error) {
                    Some(404) if text.to_lowercase().contains("no such image") => absent(),
                    Some(404) => RuntimeError::NotFound(format!("sandbox of pod {pod}")),
                    _ if engine::is_without_sandbox(&error) => RuntimeError::SandboxNotReady(pod.clone()),
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
        let Unstarted { labels, limited } = match made {
            Some(made) => made,
            None => self.not_started_yet(id).await?,
        };
        self.ends.expect(&id.0, Kind::Container, &labels.pod);
        if limited {
            self.ends.limited(&id.0);
        }
        if let Err(error) = self.docker.start_container(&id.0, None::<StartContainerOptions>).await {
            self.ends.forget(&id.0);
            if engine::status(&error).is_none() {
                // Without the engine's word it may run.
                self.pods.inherited(&labels.pod);
            }
            return Err(if engine::is_absent(&error) && self.inspect(&id.0).await?.is_none() {
                RuntimeError::NotFound(format!("container {id}"))
            } else if engine::is_without_sandbox(&error) {
                RuntimeError::SandboxNotReady(labels.pod)
            } else {
                start_error(&error)
            });
        }
        logs::begin(self, id.0.clone(), labels);
        Ok(())
    }

    /// A container that an earlier process made, or that was started before.
    async fn not_started_yet(&self, id: &ContainerId) -> Result<Unstarted, RuntimeError> {
        let found = self.expected(id).await?;
        let labels =
            found.config.as_ref().and_then(|config| labels::Container::read(config.labels.as_ref()?));
        let (Some(container), Some(labels)) = (status::container(&found), labels) else {
            return Err(RuntimeError::NotFound(format!("container {id}")));
        };
        match container.state {
            ContainerState::Created => Ok(Unstarted { labels, limited: true }),
            _ => Err(RuntimeError::Start(format!("container {id} was started before"))),
        }
    }

    pub(super) async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        if self.ends.has_ended(&id.0) {
            self.ends.told(&id.0).await;
            return Ok(());
        }
        // What runs as far as is known is this root's; of anything else the engine tells whose it is.
        if !self.ends.is_expected(&id.0) && self.inspect(&id.0).await?.is_none() {
            return Ok(());
        }
        let stopping = async {
            tokio::select! {
                // The engine answers when it has taken the container apart.
                () = self.ends.end(&id.0) => Ok(true),
                ended = self.ended_within(id, grace) => ended,
            }
        };
        let ended = !grace.is_zero() && self.turns.within(END_TURN, stopping).await?;
        if !ended {
            self.kill_and_wait(&id.0).await?;
        }
        self.ends.told(&id.0).await;
        Ok(())
    }

    /// Has the engine send a container its signal to end, and tells whether it has ended by then.
    async fn ended_within(&self, id: &ContainerId, grace: Duration) -> Result<bool, RuntimeError> {
        /// The engine counts whole seconds; it is we who end the wait.
        const SLACK: Duration = Duration::from_secs(2);
        let patience = grace + SLACK;
        let t = i32::try_from(patience.as_secs()).unwrap_or(i32::MAX);
        let docker = self.docker.clone().with_timeout(patience + SLACK);
        let options = StopContainerOptions { t: Some(t), ..StopContainerOptions::default() };
        match tokio::time::timeout(grace, docker.stop_container(&id.0, Some(options))).await {
            Ok(stopped) => {
                ended(stopped).map_err(fault(format!("stop container {id}")))?;
                Ok(true)
            }
            Err(_) => Ok(false),
        }
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
