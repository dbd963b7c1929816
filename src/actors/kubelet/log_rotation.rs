//! Keeps logs small: those that a runtime writes and does not rotate by itself are rotated, and what is rotated is packed.
//!
//! Owns: Kubernetes' container log manager: full logs are renamed and the runtime is told to begin new ones. Invariant: a
//! log that the runtime does not begin anew gets its name back, so that nothing is written where nobody reads it. What lives
//! that are over have left is bounded, too: a flood may have ended between two looks.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, TryLockError},
    time::{Duration, SystemTime},
};

use actix::{AsyncContext as _, Context, WrapFuture as _};

use super::{Kubelet, NodeContext};
use crate::{
    actors::outside,
    logic::pod::config::Places,
    runtime::{
        ContainerId, ContainerState, RuntimeError,
        logs::{self, LogLimits},
    },
};

/// How often logs are looked at: the kubelet's `containerLogMonitorInterval`.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// A life's end is told before its last words are written: what was written to within this time is left alone.
const SETTLED: Duration = Duration::from_secs(10);

impl Kubelet {
    /// Looks at the logs of all containers.
    pub(super) fn rotate_logs(&mut self, ctx: &mut Context<Self>) {
        let node = self.seed.node.clone();
        let pods = self.pods.iter().map(|(uid, entry)| {
            let meta = entry.pod().metadata.clone();
            node.places(&meta.namespace.unwrap_or_default(), &meta.name.unwrap_or_default(), uid.as_str())
        });
        let pods: Vec<Places> = pods.collect();
        ctx.spawn(
            async move {
                if !node.runtime.rotates_logs()
                    && let Err(error) = rotate_logs(&node, pods.clone()).await
                {
                    tracing::warn!(%error, "logs could not be rotated");
                }
                // It says itself what fails.
                let _ = outside::blocking(move || pack_logs(&node, &pods)).await;
            }
            .into_actor(self),
        );
    }
}

async fn rotate_logs(node: &Arc<NodeContext>, pods: Vec<Places>) -> Result<(), RuntimeError> {
    let sandboxes = node.runtime.list_pod_sandboxes().await?;
    let mut written = HashSet::new();
    for container in node.runtime.list_containers().await? {
        let Some(sandbox) = sandboxes.iter().find(|sandbox| sandbox.uid == container.pod) else { continue };
        if matches!(container.state, ContainerState::Exited(_)) {
            continue;
        }
        let places = node.places(&sandbox.namespace, &sandbox.name, sandbox.uid.as_str());
        let log = places.log(&container.name, container.attempt);
        written.insert(log.clone());
        if container.state != ContainerState::Running {
            continue;
        }
        if let Err(error) = rotate_log(node, &container.id, &log).await {
            tracing::warn!(container = %container.id, %error, "its log is not rotated");
        }
    }
    let limits = node.settings.container_log;
    let trimmed = outside::blocking(move || {
        pods.iter().flat_map(logs_of).filter(|log| !written.contains(log)).for_each(|log| trim(&log, limits));
    });
    trimmed.await.map_err(|error| failed("trim logs", error))
}

fn failed(operation: impl Into<String>, cause: impl ToString) -> RuntimeError {
    RuntimeError::System { operation: operation.into(), cause: cause.to_string() }
}

/// The logs of all lives of a pod's containers that anything is left of.
fn logs_of(places: &Places) -> Vec<PathBuf> {
    let entries = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries(&places.log_dir).flat_map(|dir| entries(&dir).collect::<Vec<_>>());
    files.filter(|file| file.extension().is_some_and(|extension| extension == "log")).collect()
}

/// Keeps what a life that is over has left within its limits.
fn trim(log: &Path, limits: LogLimits) {
    let settled = |meta: fs::Metadata| -> io::Result<bool> {
        // A clock that went back is no reason to wait for it.
        Ok(meta.modified()?.elapsed().map_or(true, |quiet| quiet >= SETTLED))
    };
    let done = match fs::metadata(log).and_then(settled) {
        Ok(true) => logs::trim(log, limits),
        Ok(false) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = done {
        tracing::warn!(log = %log.display(), %error, "a log is larger than it may be");
    }
}

/// Packs what rotation, whoever did it, has left: one file at a time, so that it takes one core at most.
fn pack_logs(node: &NodeContext, pods: &[Places]) {
    let _one = match node.packing.try_lock() {
        Ok(one) => one,
        // It guards nothing that a panic could leave half done: what is not finished is written over.
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // One that takes longer than the period does the next one's work.
        Err(TryLockError::WouldBlock) => return,
    };
    for log in pods.iter().flat_map(logs_of) {
        if let Err(error) = logs::pack(&log) {
            tracing::warn!(log = %log.display(), %error, "rotated logs are not packed");
        }
    }
}

/// Rotates a log if it is full.
async fn rotate_log(node: &NodeContext, id: &ContainerId, log: &Path) -> Result<(), RuntimeError> {
    let limits = node.settings.container_log;
    let failed = |cause: io::Error| failed(format!("rotate {}", log.display()), cause);
    if !fs::metadata(log).is_ok_and(|meta| meta.len() >= limits.max_bytes) {
        return Ok(());
    }
    let renamed = logs::rotate(log, limits, SystemTime::now()).map_err(failed)?;
    if let Err(error) = node.runtime.reopen_log(id).await {
        // A runtime that answered too late may have begun a new one after all: that is not to be written over.
        if logs::put_back(&renamed, log).map_err(failed)? {
            return Err(error);
        }
        tracing::info!(container = %id, %error, "its log goes on in a new file all the same");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        actors::{kubelet::Starts, testing::system},
        logic::supervision::Backoff,
        runtime::sim::{SimConfig, SimMachine, SimRuntime},
    };

    fn node(dir: &Path) -> Arc<NodeContext> {
        let limits = LogLimits { max_bytes: 10, max_files: 2 };
        Arc::new(NodeContext {
            name: "n".into(),
            // It refuses to reopen logs.
            runtime: Arc::new(SimRuntime::open(SimMachine::new(SimConfig::default()).unwrap())),
            dir: dir.into(),
            host_ip: Default::default(),
            crash_loop: Backoff::CRASH_LOOP,
            configs: Default::default(),
            starts: Starts::default(),
            ledger: Default::default(),
            registry_config: None,
            peers: Default::default(),
            host: Default::default(),
            settings: super::super::KubeletSettings { container_log: limits, ..Default::default() },
            packing: Default::default(),
            storage: Default::default(),
        })
    }

    #[test]
    fn a_log_that_the_runtime_does_not_begin_anew_keeps_its_name() {
        system(async {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("0.log");
            fs::write(&log, "0123456789").unwrap();
            let node = node(dir.path());
            assert!(rotate_log(&node, &ContainerId("c".into()), &log).await.is_err());
            assert_eq!(fs::read_to_string(&log).unwrap(), "0123456789");
            fs::write(&log, "small").unwrap();
            rotate_log(&node, &ContainerId("c".into()), &log).await.unwrap();
        });
    }

    #[test]
    fn rotated_logs_are_packed_whoever_rotated_them() {
        let dir = tempfile::tempdir().unwrap();
        let node = node(dir.path());
        let places = node.places("default", "web", "u");
        let log = places.log("c", 0);
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        for file in ["", ".20060102-150405", ".20060102-150406"] {
            fs::write(format!("{}{file}", log.display()), "x\n").unwrap();
        }
        // A panic once is not the end of packing; and another node's packing is none of this one's business.
        let panicked = std::thread::scope(|scope| {
            let packing = || {
                let _one = node.packing.lock();
                panic!("while packing");
            };
            scope.spawn(packing).join().is_err()
        });
        assert!(panicked && node.packing.is_poisoned());
        let other = self::node(dir.path());
        let _busy = other.packing.lock().unwrap();
        pack_logs(&node, &[places]);
        let mut names: Vec<_> =
            fs::read_dir(log.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.20060102-150405.gz", "0.log.20060102-150406"]);
    }

    #[test]
    fn what_lives_that_are_over_have_left_is_bounded_once_nobody_writes_it() {
        system(async {
            let dir = tempfile::tempdir().unwrap();
            let node = node(dir.path());
            let places = node.places("default", "web", "u");
            let (over, fresh) = (places.log("c", 0), places.log("d", 3));
            for log in [&over, &fresh] {
                fs::create_dir_all(log.parent().unwrap()).unwrap();
                fs::write(log, "0123456\n".repeat(8)).unwrap();
            }
            let long_ago = SystemTime::now() - SETTLED * 2;
            fs::File::options().append(true).open(&over).unwrap().set_modified(long_ago).unwrap();
            rotate_logs(&node, vec![places]).await.unwrap();
            assert_eq!(fs::read_to_string(&over).unwrap(), "0123456\n".repeat(2));
            assert_eq!(fs::metadata(&fresh).unwrap().len(), 64, "its last words may still come");
        });
    }
}
