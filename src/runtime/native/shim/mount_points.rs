//! Where a container's volumes and the pod's files are to be mounted in its root file system.
//!
//! Owns: saying what cannot be mounted where, in runc's words, before the runtime library fails without them; and making
//! the targets of symlinks that lead nowhere, as images of whole systems have in `/etc`. Invariant: whatever symlinks an
//! image holds, nothing outside of its root is looked at or made. What lies below another mount is left to the library.

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
};

use super::{
    super::{
        beneath, spec,
        state::{ContainerRecord, SandboxDir},
        sys,
    },
    sandbox::make_dir_in_root,
};

/// As many as the kernel follows.
const MOST_LINKS: usize = 40;
/// Mounted anew in each container.
const FRESH: [&str; 3] = ["/proc", "/dev", "/sys"];

/// One file or directory to be mounted.
struct Bind<'a> {
    source: PathBuf,
    /// The directory that it must not lead out of.
    within: Option<&'a Path>,
    place: &'a str,
}

/// Sees to it that everything can be mounted where it is to be.
///
/// # Errors
/// A sentence for users: what cannot be mounted where, and why.
pub(super) fn prepare(root: &Path, pod: &SandboxDir, record: &ContainerRecord) -> Result<(), String> {
    let volumes = &record.config.mounts;
    let files: Vec<_> =
        spec::POD_FILES.iter().map(|name| (pod.0.join(name), format!("/etc/{name}"))).collect();
    let files = files.iter().filter(|(_, place)| volumes.iter().all(|v| v.container_path != *place));
    let files = files.map(|(source, place)| Bind { source: source.clone(), within: None, place });
    let own = volumes.iter().map(|volume| Bind {
        source: volume.host_path.clone(),
        within: volume.within.as_deref(),
        place: &volume.container_path,
    });
    let words = record.config.termination_message.iter();
    let words = words.map(|(source, place)| Bind { source: source.clone(), within: None, place });
    for bind in files.chain(own).chain(words) {
        let inside = |other: &str| {
            let (place, other) = (Path::new(bind.place), Path::new(other));
            place != other && place.starts_with(other)
        };
        if FRESH.into_iter().any(inside) || volumes.iter().any(|other| inside(&other.container_path)) {
            continue;
        }
        make_place(root, &bind).map_err(|cause| {
            format!("error mounting {:?} to rootfs at {:?}: {cause}", bind.source.display(), bind.place)
        })?;
    }
    Ok(())
}

fn make_place(root: &Path, bind: &Bind<'_>) -> Result<(), String> {
    let is_dir = match is_dir(bind) {
        Ok(is_dir) => is_dir,
        // Those that may look there will say what there is to say.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(plain(&error)),
    };
    let root_dir = open_dir(root).map_err(|errno| plain(&errno.into()))?;
    let place = below(Path::new(bind.place));
    if place == Path::new(".") {
        return Err("this is the root file system itself".to_owned());
    }
    match sys::open_in_root(&root_dir, place, OFlag::O_PATH) {
        Ok(found) => {
            let found = fs::File::from(found).metadata().map_err(|error| plain(&error))?;
            match (is_dir, found.is_dir()) {
                (true, false) => Err("not a directory: what is there is a file, and this a directory".into()),
                (false, true) => Err("is a directory: what is there is a directory, and this a file".into()),
                _ => Ok(()),
            }
        }
        // There may be a symlink to where nothing is yet.
        Err(Errno::ENOENT) => {
            let real = target(&root_dir, place).map_err(|errno| plain(&errno.into()))?;
            if real == place {
                // The library makes it.
                return Ok(());
            }
            make(root, &root_dir, &real, is_dir).map_err(|errno| plain(&errno.into()))
        }
        Err(errno) => Err(plain(&errno.into())),
    }
}

fn is_dir(bind: &Bind<'_>) -> io::Result<bool> {
    let metadata = match bind.within {
        Some(within) => fs::File::from(beneath::open(within, &bind.source)?).metadata(),
        None => fs::metadata(&bind.source),
    };
    metadata.map(|metadata| metadata.is_dir())
}

fn open_dir(path: &Path) -> nix::Result<nix::dir::Dir> {
    nix::dir::Dir::open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// The path as seen from the root.
fn below(path: &Path) -> &Path {
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Where a path leads in the root, through symlinks and beyond what is there.
fn target(root: &nix::dir::Dir, path: &Path) -> nix::Result<PathBuf> {
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
    }
    Ok(reached)
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

/// Makes a directory or an empty file at a path without symlinks.
fn make(root: &Path, root_dir: &nix::dir::Dir, path: &Path, is_dir: bool) -> nix::Result<()> {
    if is_dir {
        return make_dir_in_root(root, path);
    }
    make_dir_in_root(root, path.parent().unwrap_or(Path::new("")))?;
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW;
    sys::create_in_root(root_dir, path, flags, FILE_MODE).map(drop)
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
            prepare(&self.at("root"), &SandboxDir(self.at("pod")), &record)
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
}
