//! How much of a disk files take.

use std::{collections::HashSet, fs, os::unix::fs::MetadataExt as _, path::Path};

/// Bytes on disk of everything below a directory, other file systems left out.
pub fn tree_bytes(dir: &Path) -> u64 {
    let Ok(root) = fs::symlink_metadata(dir) else { return 0 };
    let mut seen = HashSet::new();
    let mut bytes = 0;
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            // What is removed meanwhile takes no room.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != root.dev() || (meta.nlink() > 1 && !meta.is_dir() && !seen.insert(meta.ino())) {
                continue;
            }
            bytes += meta.blocks() * BLOCK;
            if meta.is_dir() {
                left.push(entry.path());
            }
        }
    }
    bytes
}

/// The unit of `st_blocks`, whatever the file system's own is.
const BLOCK: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_once_however_often_its_files_are_linked() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/a"), vec![1; 100_000]).unwrap();
        let one = tree_bytes(dir.path());
        assert!((100_000..120_000).contains(&one), "{one}");
        fs::hard_link(dir.path().join("d/a"), dir.path().join("b")).unwrap();
        assert_eq!(tree_bytes(dir.path()), one);
        assert_eq!(tree_bytes(&dir.path().join("none")), 0);
    }
}
