//! A pod's own files in `/etc`, where the engine's are not what the pod says.
//!
//! Owns: `pods/UID` below the runtime's root. The engine binds the files into the sandbox, whose files the pod's containers
//! share. Of itself it names a resolver of its own, 127.0.0.11, in `resolv.conf`, and leaves the node's names out of the `hosts`
//! of a pod on the node's network that has aliases. Pods that ask for neither have the engine's, and no directory.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    model::Uid,
    runtime::{RuntimeError, SandboxConfig, hosts},
};

/// Files of a sandbox: where each is on the node and in the pod.
pub(super) type Files = Vec<(PathBuf, &'static str)>;

fn dir(root: &Path, pod: &str) -> PathBuf {
    root.join("pods").join(pod)
}

/// Writes the files that a pod needs.
pub(super) async fn write(root: &Path, config: &SandboxConfig) -> Result<Files, RuntimeError> {
    let mut files = Vec::new();
    if let Some(dns) = &config.dns {
        files.push(("resolv.conf", "/etc/resolv.conf", hosts::resolv_conf(dns)));
    }
    if config.host_network && !config.host_aliases.is_empty() {
        let node = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
        files.push(("hosts", "/etc/hosts", node + &hosts::aliases(config)));
    }
    let dir = dir(root, &config.uid);
    let mut written = Files::new();
    for (name, inside, text) in files {
        let file = dir.join(name);
        hosts::write(&file, text).await.map_err(super::system(format!("write {}", file.display())))?;
        written.push((file, inside));
    }
    Ok(written)
}

/// Removes a pod's files.
pub(super) async fn remove(root: &Path, pod: &Uid) {
    match tokio::fs::remove_dir_all(dir(root, pod.as_str())).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(%pod, %error, "a pod's files are left behind");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Dns;

    #[tokio::test]
    async fn a_pods_files_can_be_read_by_all_its_users() {
        use std::os::unix::fs::PermissionsExt as _;
        let root = tempfile::tempdir().unwrap();
        let config = SandboxConfig { uid: "u".into(), dns: Some(Dns::default()), ..SandboxConfig::default() };
        let file = dir(root.path(), "u").join("resolv.conf");
        // As a strict mask makes it.
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        write(root.path(), &config).await.unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o644);
    }

    #[tokio::test]
    async fn a_pod_has_files_of_its_own_only_where_it_says_what_is_in_them() {
        let root = tempfile::tempdir().unwrap();
        let ask = async |change: fn(&mut SandboxConfig)| {
            let mut config = SandboxConfig { uid: "u".into(), ..SandboxConfig::default() };
            change(&mut config);
            let files = write(root.path(), &config).await.unwrap();
            let told = files.iter().map(|(file, inside)| (std::fs::read_to_string(file).unwrap(), *inside));
            let told: Vec<_> = told.collect();
            let has_dir = dir(root.path(), "u").exists();
            remove(root.path(), &"u".into()).await;
            assert!(!dir(root.path(), "u").exists());
            (told, has_dir)
        };
        let alias =
            |config: &mut SandboxConfig| config.host_aliases = vec![("1.2.3.4".into(), vec!["x.y".into()])];
        assert_eq!(ask(|_| ()).await, (vec![], false));
        assert_eq!(ask(alias).await, (vec![], false), "the engine's own hosts do");
        let (told, _) = ask(|config| {
            config.host_network = true;
            config.host_aliases = vec![("1.2.3.4".into(), vec!["x.y".into()])];
            config.dns = Some(Dns {
                servers: vec!["9.9.9.9".into()],
                options: vec!["ndots:2".into()],
                ..Dns::default()
            });
        })
        .await;
        assert_eq!(told[0], ("nameserver 9.9.9.9\noptions ndots:2\n".into(), "/etc/resolv.conf"));
        assert!(told[1].0.ends_with("1.2.3.4\tx.y\n") && told[1].1 == "/etc/hosts", "{told:?}");
        assert!(told[1].0.starts_with(&std::fs::read_to_string("/etc/hosts").unwrap_or_default()));
    }
}
