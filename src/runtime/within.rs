//! Mounts whose paths must not leave a directory, for runtimes that are given paths.
//!
//! Owns: resolving such a path and refusing one that leads out. Limits: unlike in the native runtime, which mounts what
//! it opened, who can write to the directory might exchange the path before another program mounts it.

use std::path::{Path, PathBuf};

use super::{Mount, RuntimeError};

/// Replaces every path that must not leave its directory by what it leads to, without symlinks.
pub(super) async fn resolve(mounts: &mut [Mount]) -> Result<(), RuntimeError> {
    for mount in mounts {
        let Some(within) = &mount.within else { continue };
        let (path, directory) = (real(&mount.host_path).await?, real(within).await?);
        if !path.starts_with(&directory) {
            return Err(RuntimeError::Config(format!(
                "{} leads out of {}",
                mount.host_path.display(),
                directory.display()
            )));
        }
        mount.host_path = path;
    }
    Ok(())
}

async fn real(path: &Path) -> Result<PathBuf, RuntimeError> {
    let found = tokio::fs::canonicalize(path).await;
    found.map_err(|error| RuntimeError::Config(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_symlink_that_leads_out_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        for path in [&inside, &outside] {
            std::fs::create_dir(path).unwrap();
        }
        std::os::unix::fs::symlink(&outside, inside.join("leads")).unwrap();
        std::os::unix::fs::symlink(&inside, inside.join("stays")).unwrap();
        let mount = |name: &str| {
            [Mount { host_path: inside.join(name), within: Some(inside.clone()), ..Mount::default() }]
        };
        let refused = resolve(&mut mount("leads")).await.unwrap_err();
        assert!(matches!(&refused, RuntimeError::Config(text) if text.contains("leads out")), "{refused}");
        let mut stays = mount("stays");
        resolve(&mut stays).await.unwrap();
        assert_eq!(stays[0].host_path, std::fs::canonicalize(&inside).unwrap());
    }
}
