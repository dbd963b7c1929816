//! Volumes that are files and directories of the node.
//!
//! Owns: the rules of `hostPath.type`.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

/// Checks that a path is what it is to be, and makes it where the type says so.
///
/// # Errors
/// Kubernetes' sentence on what is wrong.
pub fn check(path: &Path, kind: &str) -> Result<(), String> {
    let found = fs::metadata(path).ok();
    let cannot = |error: io::Error| format!("cannot make {}: {error}", path.display());
    let is = |right: fn(&fs::Metadata) -> bool, what: &str| match &found {
        Some(found) if right(found) => Ok(()),
        _ => Err(format!("hostPath type check failed: {} is not a {what}", path.display())),
    };
    match kind {
        "DirectoryOrCreate" if found.is_none() => {
            fs::create_dir_all(path).map_err(cannot)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(cannot)
        }
        "FileOrCreate" if found.is_none() => {
            fs::File::create(path).map_err(cannot)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(cannot)
        }
        // Without a type nothing is checked, and what is missing is made, as runtimes do.
        "" if found.is_none() => fs::create_dir_all(path).map_err(cannot),
        "" => Ok(()),
        "Directory" | "DirectoryOrCreate" => is(fs::Metadata::is_dir, "directory"),
        "File" | "FileOrCreate" => is(fs::Metadata::is_file, "file"),
        "Socket" => is(|found| found.file_type().is_socket(), "socket file"),
        "CharDevice" => is(|found| found.file_type().is_char_device(), "character device"),
        "BlockDevice" => is(|found| found.file_type().is_block_device(), "block device"),
        other => Err(format!("unknown hostPath type {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_takes_what_it_names_and_makes_only_what_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        let null = Path::new("/dev/null").to_owned();
        for (path, kind, wrong) in [
            (at("file"), "File", None),
            (at("file"), "", None),
            (at("file"), "Directory", Some("directory")),
            (at("file"), "DirectoryOrCreate", Some("directory")),
            (at("none"), "Directory", Some("directory")),
            (at("none"), "File", Some("file")),
            (at("socket"), "Socket", None),
            (at("file"), "Socket", Some("socket file")),
            (null.clone(), "CharDevice", None),
            (null, "BlockDevice", Some("block device")),
            (at("made/deep"), "DirectoryOrCreate", None),
            (at("made/deep"), "Directory", None),
            (at("made/file"), "FileOrCreate", None),
            (at("made/file"), "File", None),
        ] {
            let expected = wrong.map_or(Ok(()), |what| {
                Err(format!("hostPath type check failed: {} is not a {what}", path.display()))
            });
            assert_eq!(check(&path, kind), expected, "{kind} {}", path.display());
        }
        assert!(!at("none").exists());
    }
}
