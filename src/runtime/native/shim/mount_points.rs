//! Where a container's volumes and the pod's files are to be mounted in its root file system.
//!
//! Owns: saying what cannot be mounted where, in runc's words, before the runtime library fails without them; and making
//! the targets of symlinks that lead nowhere, as images of whole systems have in `/etc`. Invariants: whatever symlinks an
//! image holds, nothing outside of its root is looked at or made; places are looked at in the order of the mounts. What
//! lies below an earlier one is left to the library.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::AsRawFd as _,
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, readlinkat},
    sys::stat::{Mode, SFlag, fstatat},
    unistd::fchown,
};

use super::{
    super::{
        spec,
        state::{ContainerRecord, SandboxDir},
        sys,
    },
    sandbox::{make_dir_in_root, owner_of},
};

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;
/// Mounted anew in each container, before anything else.
const FRESH: [&str; 3] = ["proc", "dev", "sys"];
/// Those of them that neither runc nor the library mounts through a symlink, and what is mounted there.
const ORDINARY: [(&str, &str); 2] = [("proc", "proc"), ("sys", "sysfs")];

/// One file or directory to be mounted.
struct Bind {
    /// As it is called.
    source: PathBuf,
    /// Where it can be looked at.
    seen: PathBuf,
    place: String,
}

/// Sees to it that everything can be mounted where it is to be. Volumes are looked at where they are held, by their
/// numbers, if they are: they may be of the node's mounts, and not be seen here under their names.
///
/// # Errors
/// A sentence for users: what cannot be mounted where, and why.
pub(super) fn prepare(
    root: &Path,
    pod: &SandboxDir,
    record: &ContainerRecord,
    held: &Path,
) -> Result<(), String> {
    let volumes = &record.config.mounts;
    let files = spec::POD_FILES.iter().map(|name| (pod.0.join(name), format!("/etc/{name}")));
    let files = files.filter(|(_, place)| volumes.iter().all(|volume| volume.container_path != *place));
    let words = record.config.termination_message.iter().cloned();
    let plain = |(source, place): (PathBuf, String)| Bind { seen: source.clone(), source, place };
    let own = spec::in_order(volumes).into_iter().map(|(index, volume)| {
        let source = volume.host_path.clone();
        let held = Some(held.join(index.to_string())).filter(|held| held.exists());
        Bind { seen: held.unwrap_or_else(|| source.clone()), source, place: volume.container_path.clone() }
    });
    let root_dir = open_dir(root).map_err(|errno| format!("error opening the rootfs: {errno}"))?;
    for (name, kind) in ORDINARY {
        let found = fstatat(Some(root_dir.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK)
        {
            return Err(format!(
                "error mounting {name:?} to rootfs at \"/{name}\": filesystem {kind:?} must be mounted on ordinary \
                 directory; in the image it is a symbolic link"
            ));
        }
    }
    let mut mounted: Vec<PathBuf> = FRESH.iter().map(PathBuf::from).collect();
    for bind in files.map(plain).chain(own).chain(words.map(plain)) {
        let place = make_place(root, &root_dir, &bind, &mounted).map_err(|cause| {
            format!("error mounting {:?} to rootfs at {:?}: {cause}", bind.source.display(), bind.place)
        })?;
        mounted.extend(place);
    }
    Ok(())
}

/// Where it will be mounted; `None` when that is in what is mounted before.
fn make_place(
    root: &Path,
    root_dir: &nix::dir::Dir,
    bind: &Bind,
    mounted: &[PathBuf],
) -> Result<Option<PathBuf>, String> {
    let place = below(Path::new(&bind.place));
    if place == Path::new(".") {
        return Err("this is the root file system itself".to_owned());
    }
    let real = target(root_dir, place, mounted).map_err(|errno| plain(&errno.into()))?;
    let Some(real) = real.filter(|real| !mounted.contains(real)) else { return Ok(None) };
    let is_dir = match fs::metadata(&bind.seen) {
        Ok(source) => source.is_dir(),
        // Those that may look there will say what there is to say.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Some(real)),
        Err(error) => return Err(plain(&error)),
    };
    match sys::open_in_root(root_dir, below(&real), OFlag::O_PATH) {
        Ok(found) => {
            let found = fs::File::from(found).metadata().map_err(|error| plain(&error))?;
            match (is_dir, found.is_dir()) {
                (true, false) => {
                    return Err("not a directory: what is there is a file, and this a directory".into());
                }
                (false, true) => {
                    return Err("is a directory: what is there is a directory, and this a file".into());
                }
                _ => {}
            }
        }
        // The library makes what no symlink leads to.
        Err(Errno::ENOENT) if real == place => {}
        Err(Errno::ENOENT) => {
            make(root, root_dir, &real, is_dir).map_err(|errno| plain(&errno.into()))?;
        }
        Err(errno) => return Err(plain(&errno.into())),
    }
    Ok(Some(real))
}

fn open_dir(path: &Path) -> nix::Result<nix::dir::Dir> {
    nix::dir::Dir::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The path as seen from the root.
fn below(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Where a path leads in the root, through symlinks and beyond what is there; `None` when it leads into something that is
/// mounted before, where other files are.
fn target(root: &nix::dir::Dir, path: &Path, mounted: &[PathBuf]) -> nix::Result<Option<PathBuf>> {
    let words = |path: &Path| -> Vec<OsString> {
        let parts =
            path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        parts.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut ahead: VecDeque<OsString> = words(path).into();
    let (mut reached, mut links) = (PathBuf::new(), 0);
    while let Some(word) = ahead.pop_front() {
        if word == OsStr::new("..") {
            reached.pop();
            continue;
        }
        match link_at(root, &reached, &word)? {
            Some(link) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::ELOOP);
                }
                let link = Path::new(&link);
                if link.is_absolute() {
                    reached = PathBuf::new();
                }
                for word in words(link).into_iter().rev() {
                    ahead.push_front(word);
                }
            }
            None => reached.push(word),
        }
        let goes_on = ahead.front().is_some_and(|next| next != OsStr::new(".."));
        if goes_on && mounted.contains(&reached) {
            return Ok(None);
        }
    }
    Ok(Some(reached))
}

/// What a symlink says; `None` when there is none.
fn link_at(root: &nix::dir::Dir, dir: &Path, name: &OsStr) -> nix::Result<Option<OsString>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
    let dir = match sys::open_in_root(root, below(dir), flags) {
        Ok(dir) => dir,
        Err(Errno::ENOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    match fstatat(Some(dir.as_raw_fd()), name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(found) if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK => {
            readlinkat(Some(dir.as_raw_fd()), name).map(Some)
        }
        Ok(_) | Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Makes a directory or an empty file at a path without symlinks, for the pod's root.
fn make(root: &Path, root_dir: &nix::dir::Dir, path: &Path, is_dir: bool) -> nix::Result<()> {
    if is_dir {
        return make_dir_in_root(root, path);
    }
    make_dir_in_root(root, path.parent().unwrap_or(Path::new("")))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
    let made = sys::create_in_root(root_dir, path, flags, FILE_MODE)?;
    match owner_of(root_dir)? {
        Some((user, group)) => fchown(made.as_raw_fd(), Some(user), Some(group)),
        None => Ok(()),
    }
}

/// As the library makes mount points.
const FILE_MODE: u32 = 0o644;

/// An error without its number.
fn plain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => Errno::from_raw(number).desc().to_lowercase(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::runtime::{ContainerConfig, ContainerId, Mount, native::state::ImageRecord};

    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Bed {
            let bed = Bed { dir: tempfile::tempdir().unwrap() };
            for dir in ["root/etc", "outside", "pod", "volume"] {
                fs::create_dir_all(bed.at(dir)).unwrap();
            }
            for name in spec::POD_FILES.iter().map(|name| format!("pod/{name}")).chain(["file".to_owned()]) {
                fs::write(bed.at(&name), "").unwrap();
            }
            bed
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn prepare(&self, mounts: &[(&str, &str)]) -> Result<(), String> {
            let mounts = mounts.iter().map(|(source, place)| Mount {
                host_path: self.at(source),
                container_path: (*place).to_owned(),
                ..Mount::default()
            });
            let record = ContainerRecord {
                id: ContainerId("c1".into()),
                config: ContainerConfig { mounts: mounts.collect(), ..ContainerConfig::default() },
                image: ImageRecord::default(),
                created_ms: 0,
            };
            prepare(&self.at("root"), &SandboxDir(self.at("pod")), &record, &self.at("held"))
        }
    }

    #[test]
    fn the_targets_of_symlinks_that_lead_nowhere_are_made_in_the_root() {
        let bed = Bed::new();
        symlink("../run/systemd/resolve/stub.conf", bed.at("root/etc/resolv.conf")).unwrap();
        symlink("/run/hosts", bed.at("root/etc/hosts")).unwrap();
        // However many steps up it says, and wherever it leads in the end.
        symlink("../../../../../../run/up/hostname", bed.at("root/etc/hostname")).unwrap();
        symlink(bed.at("outside"), bed.at("root/away")).unwrap();
        bed.prepare(&[("volume", "/away/made"), ("file", "/away/file")]).unwrap();
        for made in ["run/systemd/resolve/stub.conf", "run/hosts", "run/up/hostname"] {
            assert!(bed.at("root").join(made).is_file(), "{made}");
        }
        let outside = bed.at("outside");
        let below = bed.at("root").join(outside.strip_prefix("/").unwrap());
        assert!(below.join("made").is_dir() && below.join("file").is_file());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "something was made outside");
        // A circle leads nowhere at all.
        symlink("two", bed.at("root/one")).unwrap();
        symlink("one", bed.at("root/two")).unwrap();
        let error = bed.prepare(&[("volume", "/one")]).unwrap_err();
        assert!(error.ends_with("too many symbolic links encountered"), "{error}");
    }

    #[test]
    fn what_cannot_be_mounted_is_named_with_its_place() {
        let bed = Bed::new();
        fs::write(bed.at("root/etc/passwd"), "").unwrap();
        for (source, place, why) in [
            ("volume", "/etc/passwd", "not a directory"),
            ("file", "/etc", "is a directory"),
            ("volume", "/", "this is the root file system itself"),
            ("nothing", "/etc/passwd", "no such file or directory"),
            ("volume", "/etc/passwd/below", "not a directory"),
        ] {
            let error = bed.prepare(&[(source, place)]).unwrap_err();
            let begin =
                format!("error mounting {:?} to rootfs at {place:?}: {why}", bed.at(source).display());
            assert!(error.starts_with(&begin), "{error}");
        }
        // In another volume are other files than in the root.
        bed.prepare(&[("volume", "/etc"), ("volume", "/etc/passwd"), ("file", "/dev/x")]).unwrap();
        bed.prepare(&[("volume", "/new/one"), ("file", "/new/file")]).unwrap();
    }

    #[test]
    fn a_symlink_in_the_place_of_proc_or_sys_is_named() {
        for name in ["proc", "sys"] {
            let bed = Bed::new();
            symlink("/etc", bed.at("root").join(name)).unwrap();
            let error = bed.prepare(&[]).unwrap_err();
            assert!(error.contains(&format!("at \"/{name}\"")) && error.contains("symbolic link"), "{error}");
        }
    }

    #[test]
    fn places_are_looked_at_in_the_order_of_the_mounts_and_where_they_really_are() {
        let bed = Bed::new();
        // The pod's files come before a volume that hides them.
        symlink("/run/resolv.conf", bed.at("root/etc/resolv.conf")).unwrap();
        bed.prepare(&[("volume", "/etc")]).unwrap();
        assert!(bed.at("root/run/resolv.conf").is_file());
        // Two names of one directory: the file is in the volume, not in the root.
        fs::create_dir_all(bed.at("root/usr/lib/file")).unwrap();
        symlink("usr/lib", bed.at("root/lib")).unwrap();
        bed.prepare(&[("file", "/lib/file"), ("volume", "/usr")]).unwrap();
        bed.prepare(&[("volume", "/lib"), ("file", "/usr/lib/file")]).unwrap();
        let error = bed.prepare(&[("volume", "/lib/file/else"), ("file", "/lib/file")]).unwrap_err();
        assert!(error.contains("is a directory"), "{error}");
    }

    #[test]
    fn a_volume_is_looked_at_where_it_is_held_and_called_by_its_name() {
        let bed = Bed::new();
        fs::create_dir_all(bed.at("held")).unwrap();
        fs::write(bed.at("held/1"), "").unwrap();
        bed.prepare(&[("volume", "/v"), ("the-nodes", "/etc/file")]).unwrap();
        let error = bed.prepare(&[("volume", "/v"), ("the-nodes", "/etc")]).unwrap_err();
        assert!(error.contains("is a directory") && error.contains("/the-nodes\""), "{error}");
    }

    #[test]
    fn what_is_made_in_a_root_belongs_to_whom_the_root_belongs() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let bed = Bed::new();
        let mine = fs::metadata(bed.at("root")).unwrap().uid();
        // Only root can give things away.
        let owner = if mine == 0 { 70_000 } else { mine };
        chown(bed.at("root"), Some(owner), Some(owner).filter(|_| mine == 0)).unwrap();
        symlink("/run/a/hosts", bed.at("root/etc/hosts")).unwrap();
        symlink("/run/b/dir", bed.at("root/dir")).unwrap();
        bed.prepare(&[("volume", "/dir")]).unwrap();
        make_dir_in_root(&bed.at("root"), Path::new("/srv/dir")).unwrap();
        for made in ["run", "run/a", "run/a/hosts", "run/b/dir", "srv", "srv/dir"] {
            assert_eq!(fs::metadata(bed.at("root").join(made)).unwrap().uid(), owner, "{made}");
        }
    }
}
