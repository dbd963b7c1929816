//! Which container runtime a node gets.
//!
//! Owns: what `auto` means, and that the pods of one node are in one runtime. Invariant: a node whose pods may still run
//! in one runtime is never opened with another: each pod would run twice.

use std::{path::Path, sync::Arc};

use super::{
    RuntimeChoice, StartError, cri, docker,
    node::{may_run_containers, native_runtime},
};
use crate::{
    model::NodeName,
    runtime::{
        ContainerRuntime,
        images::RegistryConfig,
        native,
        sim::{SimConfig, SimMachine, SimRuntime},
    },
};

/// What a choice means for a data directory on this machine; never [`RuntimeChoice::Auto`].
///
/// # Errors
/// When that cannot be had here: what is missing and what to do.
pub(super) fn choose(
    choice: RuntimeChoice,
    directory: &Path,
    nodes: &[NodeName],
    cri_socket: Option<&str>,
) -> Result<RuntimeChoice, StartError> {
    match choice {
        RuntimeChoice::Sim => {}
        RuntimeChoice::Native => may_run_containers()?,
        RuntimeChoice::Docker => docker::may_run()?,
        RuntimeChoice::Cri => cri::may_run(cri_socket, directory, nodes)?,
        RuntimeChoice::Auto => {
            if nodes.iter().any(|node| cri::is_used(directory, node)) {
                return Ok(RuntimeChoice::Cri);
            }
            if nodes.iter().any(|node| docker::is_used(directory, node)) {
                return Ok(RuntimeChoice::Docker);
            }
            let Err(native) = may_run_containers() else { return Ok(RuntimeChoice::Native) };
            return match docker::may_run() {
                Ok(()) => Ok(RuntimeChoice::Docker),
                Err(docker) => Err(StartError::Refused(format!("{native}\nand docker cannot: {docker}"))),
            };
        }
    }
    Ok(choice)
}

/// Opens the runtime of node number `index` of a data directory; `choice` is what [`choose`] said.
pub(super) async fn open_runtime(
    choice: RuntimeChoice,
    directory: &Path,
    name: &NodeName,
    index: usize,
    registries: RegistryConfig,
    cri_socket: Option<&str>,
) -> Result<Arc<dyn ContainerRuntime>, StartError> {
    let real = directory.join("nodes").join(name.as_str()).join("runtime");
    if choice != RuntimeChoice::Native && choice != RuntimeChoice::Auto && native::holds_sandboxes(&real) {
        return Err(StartError::Refused(format!(
            "node {name} has real containers in {}: running its pods elsewhere beside would run each pod twice; \
             use --runtime native, end them with `troupe reset`, or name another --data-dir",
            real.display()
        )));
    }
    if choice != RuntimeChoice::Docker && docker::is_used(directory, name) {
        return Err(StartError::Refused(format!(
            "node {name} has containers in docker: running its pods elsewhere beside would run each pod twice; \
             use --runtime docker, end them with `troupe reset`, or name another --data-dir"
        )));
    }
    if choice != RuntimeChoice::Cri && cri::is_used(directory, name) {
        return Err(StartError::Refused(format!(
            "node {name} has containers in a CRI runtime: running its pods elsewhere beside would run each pod twice; \
             use --runtime cri, end them with `troupe reset`, or name another --data-dir"
        )));
    }
    match choice {
        RuntimeChoice::Auto | RuntimeChoice::Native => {
            native_runtime(directory, name, index, registries).await
        }
        RuntimeChoice::Docker => docker::open(directory, name).await,
        RuntimeChoice::Cri => cri::open(directory, name, index, cri_socket).await,
        RuntimeChoice::Sim => {
            let seed = u64::try_from(index).unwrap_or(0);
            let machine = SimMachine::new(SimConfig { seed, ..SimConfig::default() })?;
            Ok(Arc::new(SimRuntime::open(machine)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(choice: RuntimeChoice, data: &Path, name: &NodeName) -> Option<String> {
        let opened = actix::System::new().block_on(open_runtime(
            choice,
            data,
            name,
            0,
            RegistryConfig::default(),
            None,
        ));
        opened.err().map(|error| error.to_string())
    }

    #[test]
    fn pods_with_real_containers_are_not_run_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::from("n1");
        assert_eq!(refused(RuntimeChoice::Sim, dir.path(), &name), None);
        std::fs::create_dir_all(dir.path().join("nodes/n1/runtime/sandboxes/uid")).unwrap();
        for choice in [RuntimeChoice::Sim, RuntimeChoice::Docker, RuntimeChoice::Cri] {
            let refused = refused(choice, dir.path(), &name).unwrap();
            assert!(refused.contains("--runtime native"), "{refused}");
        }
    }

    #[test]
    fn pods_in_docker_stay_there() {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::from("n1");
        std::fs::create_dir_all(dir.path().join("nodes/n1/docker")).unwrap();
        std::fs::write(dir.path().join("nodes/n1/docker/socket"), "/nowhere/docker.sock").unwrap();
        for choice in [RuntimeChoice::Sim, RuntimeChoice::Native] {
            let refused = refused(choice, dir.path(), &name).unwrap();
            assert!(refused.contains("--runtime docker"), "{refused}");
        }
        let auto = choose(RuntimeChoice::Auto, dir.path(), &[name], None).unwrap();
        assert_eq!(auto, RuntimeChoice::Docker);
    }

    #[test]
    fn pods_in_a_cri_runtime_stay_there() {
        let dir = tempfile::tempdir().unwrap();
        let name = NodeName::from("n1");
        std::fs::create_dir_all(dir.path().join("nodes/n1/cri")).unwrap();
        let used = r#"{"socket": "/nowhere/c.sock", "bridge": "br", "cgroup_parent": "troupe"}"#;
        std::fs::write(dir.path().join("nodes/n1/cri/runtime.json"), used).unwrap();
        for choice in [RuntimeChoice::Sim, RuntimeChoice::Native, RuntimeChoice::Docker] {
            let refused = refused(choice, dir.path(), &name).unwrap();
            assert!(refused.contains("--runtime cri"), "{refused}");
        }
        let auto = choose(RuntimeChoice::Auto, dir.path(), &[name], None).unwrap();
        assert_eq!(auto, RuntimeChoice::Cri);
    }
}
