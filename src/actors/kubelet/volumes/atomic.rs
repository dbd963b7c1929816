//! Files that change all at once, as Kubernetes' atomic writer does it.
//!
//! Owns: the layout below and its replacement. Invariants: a reader that opens files through `..data` sees either all of
//! the old ones or all of the new ones; nothing changes when the content is the same; a writer that was killed half-way
//! leaves at most a directory that the next one removes.
//!
//! ```text
//! VOLUME/..2026_05_04_03_02_01.123456789/dir/key      ..data → ..2026_05_04_03_02_01.123456789      dir → ..data/dir
//! ```

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use k8s_openapi::jiff::Timestamp;

use crate::logic::pod::volumes::{File, Files};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes the files of a volume be these; tells whether anything changed.
pub fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<bool> {
    let wanted: Files = files
        .iter()
        .map(|(path, file)| {
            // Who is of the volume's group may read what it is for.
            let mode = file.mode | if group.is_some() { 0o440 } else { 0 };
            (path.clone(), File { bytes: file.bytes.clone(), mode, owner: file.owner })
        })
        .collect();
    let current = fs::read_link(dir.join(DATA)).ok();
    let same = match &current {
        Some(name) => holds(&dir.join(name), &wanted, group)?,
        None => false,
    };
    if !same {
        let name = fresh(dir)?;
        fill(&dir.join(&name), &wanted, group)?;
        let _ = fs::remove_file(dir.join(DATA_NEW));
        symlink(&name, dir.join(DATA_NEW))?;
        fs::rename(dir.join(DATA_NEW), dir.join(DATA))?;
    }
    link(dir, &wanted)?;
    tidy(dir)?;
    Ok(!same)
}

/// Whether a directory has exactly these files.
fn holds(dir: &Path, wanted: &Files, group: Option<u32>) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let entries = match fs::read_dir(dir.join(&below)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            entries => entries?,
        };
        for entry in entries {
            let path = below.join(entry?.file_name());
            if fs::symlink_metadata(dir.join(&path))?.is_dir() {
                pending.push(path);
                continue;
            }
            let name = path.to_string_lossy().into_owned();
            let Some(file) = wanted.get(&name) else { return Ok(false) };
            let found_file = dir.join(&path);
            let metadata = fs::symlink_metadata(&found_file)?;
            let right = metadata.is_file()
                && metadata.mode() & 0o7777
                    == mode(file, file.owner.is_none_or(|owner| metadata.uid() == owner))
                && group.is_none_or(|group| metadata.gid() == group)
                && metadata.len() == file.bytes.len() as u64
                && fs::read(&found_file)? == file.bytes;
            if !right {
                return Ok(false);
            }
            found.insert(name);
        }
    }
    Ok(found.len() == wanted.len())
}

/// Makes a directory named by the time.
fn fresh(dir: &Path) -> io::Result<String> {
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let second = i64::try_from(now.as_secs()).ok().and_then(|s| Timestamp::from_second(s).ok());
        // `2026-05-04T03:02:01Z` with what is a nuisance in names replaced.
        let text = second.unwrap_or_default().to_string().replace(['-', 'T', ':'], "_");
        let name = format!("..{}.{:09}", text.trim_end_matches('Z'), now.subsec_nanos());
        match fs::create_dir(dir.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| name),
        }
    }
}

fn fill(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    own_dir(dir, group)?;
    for (path, file) in files {
        let at = dir.join(path);
        let mut below = dir.to_owned();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            below.push(part);
            match fs::DirBuilder::new().mode(0o755).create(&below) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.and_then(|()| own_dir(&below, group))?,
            }
        }
        fs::write(&at, &file.bytes)?;
        if let Some(group) = group {
            super::give(&at, group)?;
        }
        let given = file.owner.is_none_or(|owner| chown(&at, Some(owner), None).is_ok());
        // After the owner, whose change takes special bits off.
        fs::set_permissions(&at, fs::Permissions::from_mode(mode(file, given)))?;
    }
    Ok(())
}

/// A file's permissions. What cannot be given to its owner, for want of that user or of the right to, everybody may read.
fn mode(file: &File, given: bool) -> u32 {
    if given { file.mode } else { file.mode | 0o444 }
}

fn own_dir(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(group) = group {
        super::give(dir, group)?;
    }
    let set_gid = if group.is_some() { 0o2000 } else { 0 };
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755 | set_gid))
}

/// Makes the names that users see, and removes those that are no more.
fn link(dir: &Path, files: &Files) -> io::Result<()> {
    let tops: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let target = Path::new(DATA).join(top);
        if fs::read_link(dir.join(top)).ok().as_deref() != Some(&target) {
            let _ = fs::remove_file(dir.join(top));
            symlink(&target, dir.join(top))?;
        }
    }
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(name.as_ref()) {
            fs::remove_file(dir.join(name.as_ref()))?;
        }
    }
    Ok(())
}

/// Removes what earlier writers left.
fn tidy(dir: &Path) -> io::Result<()> {
    let current = fs::read_link(dir.join(DATA))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("..") && entry.file_type()?.is_dir() && *current != *name {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str, u32)]) -> Files {
        let file = |text: &str, mode| File { bytes: text.into(), mode, owner: None };
        list.iter().map(|(path, text, mode)| ((*path).to_owned(), file(text, *mode))).collect()
    }

    #[test]
    fn a_file_is_its_owners_or_if_it_cannot_be_everybodys() {
        let dir = tempfile::tempdir().unwrap();
        // Root may give files to anybody.
        let own = nix::unistd::geteuid().as_raw();
        let owner = if own == 0 { 1000 } else { own };
        let mut wanted = files(&[("token", "1", 0o600)]);
        wanted.get_mut("token").unwrap().owner = Some(owner);
        write(dir.path(), &wanted, None).unwrap();
        let found = fs::metadata(dir.path().join("token")).unwrap();
        assert_eq!((found.uid(), found.mode() & 0o777), (owner, 0o600));
        assert!(!write(dir.path(), &wanted, None).unwrap(), "nothing changed");
        assert_eq!(mode(&wanted["token"], false), 0o644);
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        all.sort();
        all
    }

    #[test]
    fn files_change_together_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(write(dir, &files(&[("a", "1", 0o644), ("deep/er/b", "2", 0o400)]), None).unwrap());
        let first = fs::read_link(dir.join(DATA)).unwrap();
        assert_eq!(fs::read_to_string(dir.join("deep/er/b")).unwrap(), "2");
        assert_eq!(fs::read_link(dir.join("deep")).unwrap(), Path::new("..data/deep"));
        assert_eq!(fs::metadata(dir.join("deep/er/b")).unwrap().mode() & 0o7777, 0o400);
        let held = fs::File::open(dir.join("a")).unwrap();
        assert!(!write(dir, &files(&[("a", "1", 0o644), ("deep/er/b", "2", 0o400)]), None).unwrap());
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), first, "the same is not written again");

        assert!(write(dir, &files(&[("a", "3", 0o644), ("c", "4", 0o644)]), None).unwrap());
        let second = fs::read_link(dir.join(DATA)).unwrap();
        assert_ne!(first, second);
        assert_eq!(names(dir), [second.to_string_lossy().as_ref(), DATA, "a", "c"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert_eq!(io::read_to_string(held).unwrap(), "1", "who has it open reads on");
        assert!(write(dir, &files(&[("a", "3", 0o600), ("c", "4", 0o644)]), None).unwrap(), "a mode is news");
        assert!(write(dir, &Files::new(), None).unwrap());
        assert_eq!(names(dir).len(), 2);
    }

    #[test]
    fn what_a_killed_writer_left_is_no_matter() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &files(&[("a", "1", 0o644)]), None).unwrap();
        fs::create_dir(dir.join("..2001_01_01_00_00_00.000000000")).unwrap();
        fs::write(dir.join("..2001_01_01_00_00_00.000000000/half"), "x").unwrap();
        symlink("..2001_01_01_00_00_00.000000000", dir.join(DATA_NEW)).unwrap();
        assert!(write(dir, &files(&[("a", "2", 0o644)]), None).unwrap());
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "2");
        assert_eq!(names(dir).len(), 3, "{:?}", names(dir));
    }

    #[test]
    fn a_group_may_read_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let own = nix::unistd::getegid().as_raw();
        write(dir.path(), &files(&[("d/a", "1", 0o400)]), Some(own)).unwrap();
        let mode = |path: &str| fs::metadata(dir.path().join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("d/a"), mode("d")), (0o440, 0o2755));
    }
}
