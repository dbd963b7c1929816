//! Volumes in the node's memory.
//!
//! Owns: mounting a tmpfs. Limit: needs root; what is mounted is taken off by whoever removes the pod's directory.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount as nix_mount},
};

/// Mounts a tmpfs of at most `size` bytes unless one is there; tells whether it did.
pub fn mount(dir: &Path, size: Option<u64>) -> io::Result<bool> {
    if is_mounted(dir)? {
        return Ok(false);
    }
    let size = size.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let attempt = |options: &str| nix_mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options));
    // Memory may be swapped to disk, which kernels since 6.4 can be told not to do.
    match attempt(&format!("mode=0755{size},noswap")) {
        Err(Errno::EINVAL) => attempt(&format!("mode=0755{size}")),
        other => other,
    }
    .map_err(|errno| match errno {
        Errno::EPERM | Errno::EACCES => {
            io::Error::new(io::ErrorKind::PermissionDenied, "mounting a tmpfs needs root")
        }
        errno => io::Error::from(errno),
    })?;
    Ok(true)
}

/// Mounts a file system of huge pages of so many bytes each unless one is there; tells whether it did.
pub fn mount_huge_pages(dir: &Path, page_bytes: i64) -> io::Result<bool> {
    if is_mounted(dir)? {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = format!("pagesize={page_bytes}");
    let mounted = nix_mount(Some("hugetlbfs"), dir, Some("hugetlbfs"), flags, Some(options.as_str()));
    mounted.map(|()| true).map_err(|errno| {
        io::Error::new(io::Error::from(errno).kind(), format!("cannot mount huge pages: {}", errno.desc()))
    })
}

/// Whether something is mounted on a directory.
pub fn is_mounted(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}
