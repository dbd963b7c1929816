//! How much of a disk files take, and where on it they go.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

/// Where a runtime keeps what takes room; both are there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Images.
    pub images: PathBuf,
    /// What containers write into files of their images.
    pub layers: PathBuf,
}

/// Makes a directory whose own directories come and go independently of each other, and tells ext4 so (`chattr +T`): it
/// gives each of them a part of the disk with much free room, instead of all of them the same. Where there is no journal
/// an inode is not used again for a minute, and whoever makes a file beside many that were just removed looks at each of
/// those first: that took 40 % of all processor time while hundreds of pods came and went. Other file systems place
/// files by themselves.
pub fn make_apart(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let opened = fs::File::open(dir)?;
    let flags = ioctl_getflags(&opened).and_then(|flags| ioctl_setflags(&opened, flags | IFlags::TOPDIR));
    if let Err(error) = flags {
        tracing::debug!(dir = %dir.display(), %error, "this file system takes no advice on where to put files");
    }
    Ok(())
}

/// Bytes on disk of everything below a directory, other file systems left out, and how many files and directories that is,
/// itself included.
pub fn tree(dir: &Path) -> (u64, u64) {
    let Ok(root) = fs::symlink_metadata(dir) else { return (0, 0) };
    let mut seen = HashSet::new();
    let (mut bytes, mut inodes) = (0, 1);
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // What is removed meanwhile takes no room.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != root.dev() || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
                continue;
            }
            bytes += meta.blocks() * BLOCK;
            inodes += 1;
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

/// The unit of `st_blocks`, whatever the file system's own is.
const BLOCK: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_made_apart_again_and_again() {
        let dir = tempfile::tempdir().unwrap();
        let apart = dir.path().join("a/b");
        make_apart(&apart).unwrap();
        make_apart(&apart).unwrap();
        fs::write(apart.join("file"), "x").unwrap();
        // Where the file system has the flag it is set, and nothing else has changed.
        let flags = |path: &Path| ioctl_getflags(fs::File::open(path).unwrap());
        if let (Ok(parent), Ok(made)) = (flags(dir.path()), flags(&apart)) {
            assert!(made.contains(IFlags::TOPDIR) || !is_ext4(&apart), "{made:?}");
            assert_eq!(made - IFlags::TOPDIR, parent - IFlags::TOPDIR);
        }
    }

    /// By the number that `statfs` tells.
    fn is_ext4(path: &Path) -> bool {
        rustix::fs::statfs(path).unwrap().f_type == 0xEF53
    }

    #[test]
    fn a_tree_is_counted_once_however_often_its_files_are_linked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), vec![1; 100_000]).unwrap();
        let (one, files) = tree(dir.path());
        assert!((100_000..120_000).contains(&one) && files == 3, "{one} {files}");
        fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        assert_eq!(tree(dir.path()), (one, files));
        assert_eq!(tree(&dir.path().join("none")), (0, 0));
    }
}
