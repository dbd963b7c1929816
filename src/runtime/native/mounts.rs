//! The node's own mounts: a directory that is kept in memory, and taking off what is mounted below a directory.
//!
//! Owns: reading the mount table. Invariant: after [`unmount_below`] a removal of the directory's tree cannot reach into
//! another file system through a mount, or it is told which one stayed.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// Makes `dir`, with a tmpfs mounted on it unless it holds something already.
pub(super) fn keep_in_memory(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    if is_mount(dir)? || fs::read_dir(dir)?.next().is_some() {
        return Ok(());
    }
    // Records hold what containers get told, secrets among it.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("troupe"), dir, Some("tmpfs"), flags, Some("mode=0700")).map_err(io::Error::from)
}

/// Takes the tmpfs off again when nothing is in it.
pub(super) fn forget_memory(dir: &Path) -> io::Result<()> {
    let empty = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if empty && is_mount(dir)? {
        umount2(dir, MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

fn is_mount(dir: &Path) -> io::Result<bool> {
    let above = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(above)?.dev())
}

/// Unmounts everything below `dir`, the latest first; `dir` itself may be a mount and stays one.
///
/// # Errors
/// The first mount that cannot be taken off, by its path.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for _ in 0..PASSES {
        let found = below(&fs::read("/proc/self/mountinfo")?, dir);
        if found.is_empty() {
            return Ok(());
        }
        for mount in found.into_iter().rev() {
            match umount2(&mount, MntFlags::MNT_DETACH) {
                // It went with another one, of which it was a copy.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
                Err(errno) => {
                    return Err(io::Error::new(
                        io::Error::from(errno).kind(),
                        format!("unmount {}: {}", mount.display(), errno.desc()),
                    ));
                }
            }
        }
    }
    Err(io::Error::other(format!("something is mounted again and again below {}", dir.display())))
}

/// What one pass may bring to light is what the mounts it took off had hidden.
const PASSES: usize = 32;

/// Whether what the node mounts below a path later appears here; `table` is mountinfo of this mount namespace.
pub(super) fn receives(table: &[u8], path: &Path) -> bool {
    is(table, path, &[b"master:", b"shared:"])
}

/// Whether what is mounted below a path later appears wherever else that is mounted; `table` is mountinfo of the mount
/// namespace that the path is looked up in.
pub(super) fn shared(table: &[u8], path: &Path) -> bool {
    is(table, path, &[b"shared:"])
}

/// Whether the mount that a path lies on has one of these marks.
fn is(table: &[u8], path: &Path, marks: &[&[u8]]) -> bool {
    let lines = table.split(|&byte| byte == b'\n');
    let holder = lines
        .filter_map(|line| {
            let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
            let point = PathBuf::from(OsString::from_vec(unescape(fields.get(MOUNT_POINT)?)));
            // Optional fields end with a dash.
            let optional = fields.iter().skip(MOUNT_POINT + 2).take_while(|field| **field != b"-");
            let marked = optional.into_iter().any(|field| marks.iter().any(|mark| field.starts_with(mark)));
            path.starts_with(&point).then(|| (point.components().count(), marked))
        })
        // Of several on one point the last is on top.
        .max_by_key(|(depth, _)| *depth);
    holder.is_some_and(|(_, marked)| marked)
}

/// The mount points below a directory in the order of mountinfo's table.
fn below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    table
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(MOUNT_POINT))
        .map(|field| PathBuf::from(OsString::from_vec(unescape(field))))
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect()
}

/// The field of a line of mountinfo, proc(5).
const MOUNT_POINT: usize = 4;

/// Blanks and the like are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        plain.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_is_found_also_with_blanks_in_its_name() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:5 / /data rw - tmpfs t rw\n\
            3 2 0:6 / /data/a\\040b rw - tmpfs t rw\n\
            4 2 0:7 / /data/a\\040b/c rw shared:1 - tmpfs t rw\n\
            5 1 0:8 / /database rw - tmpfs t rw\n";
        assert_eq!(below(table, Path::new("/data")), [Path::new("/data/a b"), Path::new("/data/a b/c")]);
        assert_eq!(unescape(b"\\134\\0\\"), b"\\\\0\\");
    }

    #[test]
    fn only_below_slaves_do_mounts_of_the_node_appear() {
        let table = b"1 0 8:1 / / rw - ext4 /dev/a rw\n\
            2 1 0:5 / /data rw,relatime master:7 - tmpfs t rw\n\
            3 2 0:6 / /data/own rw - tmpfs master:9 rw\n";
        for (path, appears) in [
            ("/etc", false),
            ("/data", true),
            ("/data/x", true),
            ("/data/own/x", false),
            ("/database", false),
        ] {
            assert_eq!(receives(table, Path::new(path)), appears, "{path}");
            assert!(!shared(table, Path::new(path)), "{path}");
        }
        let both = b"1 0 0:5 / /data rw shared:2 master:7 - tmpfs t rw\n";
        assert!(shared(both, Path::new("/data/x")) && receives(both, Path::new("/data/x")));
    }
}
