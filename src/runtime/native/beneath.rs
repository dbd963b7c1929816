//! Paths in directories that strangers write to.
//!
//! Owns: opening and making what lies below a directory. Invariant: whatever symlinks there are, and whoever changes them
//! meanwhile, nothing outside of the directory is opened or made.

use std::{
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag, sys::stat::Mode};

use super::sys;

/// Opens a path that lies below `root`, as a place and not for its content.
///
/// # Errors
/// When it is not there, or leads out of `root`.
pub fn open(root: &Path, path: &Path) -> io::Result<OwnedFd> {
    let (dir, below) = parts(root, path)?;
    sys::open_beneath(&dir, below, OFlag::O_PATH).map_err(|errno| refusal(errno, below))
}

/// The same; what is missing of the path is made as directories that look like `root`.
///
/// # Errors
/// When it cannot be made, or leads out of `root`.
pub fn make_dirs(root: &Path, path: &Path) -> io::Result<()> {
    let (dir, below) = parts(root, path)?;
    if sys::open_beneath(&dir, below, OFlag::O_PATH).is_ok() {
        return Ok(());
    }
    let like = nix::sys::stat::fstat(dir.as_raw_fd())?;
    let mut reached = PathBuf::new();
    for part in below.components() {
        let above = if reached.as_os_str().is_empty() { Path::new(".") } else { &reached };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let above = sys::open_beneath(&dir, above, flags).map_err(|errno| refusal(errno, below))?;
        let name: &Path = part.as_ref();
        match nix::sys::stat::mkdirat(Some(above.as_raw_fd()), name, Mode::from_bits_truncate(0o700)) {
            Ok(()) => {
                let made = sys::open_beneath(&above, name, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?;
                let (owner, group) = (like.st_uid.into(), like.st_gid.into());
                nix::unistd::fchown(made.as_raw_fd(), Some(owner), Some(group))?;
                nix::sys::stat::fchmod(made.as_raw_fd(), Mode::from_bits_truncate(like.st_mode & 0o7777))?;
            }
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refusal(errno, below)),
        }
        reached.push(part);
    }
    sys::open_beneath(&dir, below, OFlag::O_PATH).map(drop).map_err(|errno| refusal(errno, below))
}

fn parts<'a>(root: &Path, path: &'a Path) -> io::Result<(fs::File, &'a Path)> {
    let below = path
        .strip_prefix(root)
        .map_err(|_| io::Error::other(format!("{} is not below {}", path.display(), root.display())))?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let dir = fs::OpenOptions::new().read(true).custom_flags(flags).open(root)?;
    Ok((dir, if below.as_os_str().is_empty() { Path::new(".") } else { below }))
}

fn refusal(errno: Errno, below: &Path) -> io::Error {
    match errno {
        Errno::EXDEV | Errno::ELOOP => io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} leads out of the volume", below.display()),
        ),
        errno => errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn nothing_outside_is_opened_or_made() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        for dir in [&root, &outside] {
            fs::create_dir(dir).unwrap();
        }
        fs::set_permissions(&root, fs::Permissions::from_mode(0o777)).unwrap();
        symlink(&outside, root.join("away")).unwrap();
        symlink("../outside", root.join("up")).unwrap();
        symlink("inside", root.join("near")).unwrap();
        fs::create_dir(root.join("inside")).unwrap();
        for path in ["away", "away/made", "up", "up/made", "../outside"] {
            assert!(open(&root, &root.join(path)).is_err(), "{path}");
            assert!(make_dirs(&root, &root.join(path)).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        make_dirs(&root, &root.join("near/a/b")).unwrap();
        assert_eq!(fs::metadata(root.join("inside/a/b")).unwrap().permissions().mode() & 0o7777, 0o777);
        assert!(open(&root, &root.join("near/a")).is_ok());
        make_dirs(&root, &root).unwrap();
    }
}
