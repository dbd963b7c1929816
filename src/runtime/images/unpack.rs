//! One layer's tar becomes a directory that overlayfs can use.
//!
//! Owns: [`unpack`]. Invariant: whatever the archive says, nothing outside the target directory is read, written or
//! linked: every parent is opened with `openat2(RESOLVE_IN_ROOT)`, and the last component is never followed. Whiteouts
//! become overlayfs' own (a character device 0:0, an `opaque` attribute). Device nodes are left out: a container's
//! `/dev` is its runtime's.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat, chownat,
        linkat, makedev, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};
use tar::{Archive, Entry, EntryType};
use xattr::FileExt;

use super::{
    Limits,
    skeleton::Tape,
    sparse::Sparse,
    stream::{BUFFER, HeaderGuard, bad},
};
use crate::runtime::{RuntimeError, native::userns};

/// `.wh.NAME`: NAME of the layers below is gone.
const WHITEOUT: &[u8] = b".wh.";
/// The directory hides all that the layers below have in it.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of aufs' own, meaningless here.
const AUFS: &[u8] = b".wh..wh.";
/// Attributes that a layer may set. `trusted.` and those below would let it command overlayfs.
const ATTRIBUTES: [&str; 4] =
    ["user.", "security.capability", "system.posix_acl_access", "system.posix_acl_default"];
/// What overlayfs obeys where an ordinary user mounts it.
const OVERLAY: &str = "user.overlay.";
const PAX_ATTRIBUTE: &str = "SCHILY.xattr.";
const TOO_LARGE: &str = "unpacked, the layers are larger than the image store's limit";

/// What a layer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// Bytes of its files.
    pub(super) bytes: u64,
    /// Its entries.
    pub(super) entries: u64,
}

/// Unpacks a plain tar into a directory that exists and is empty. `tape` keeps what is not in the files.
pub(super) fn unpack(
    tar: impl Read,
    target: &Path,
    limits: &Limits,
    tape: &Tape,
) -> Result<Unpacked, RuntimeError> {
    let (tar, allowance) = HeaderGuard::new(tar);
    let mut archive = Archive::new(tar);
    let mut root = Root::open(target)?;
    let mut done = Unpacked::default();
    let mut buf = vec![0; BUFFER];
    let mut entries = archive.entries().map_err(bad)?;
    loop {
        allowance.headers();
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(bad)?;
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(bad(format!("more than {} entries in a layer", limits.entries)));
        }
        let meta = Meta::of(&mut entry)?;
        allowance.contents();
        let left = limits.unpacked_bytes.saturating_sub(done.bytes);
        if meta.is_kept_file() {
            tape.file(&meta.path);
        }
        done.bytes += root.put(&mut entry, &meta, left, &mut buf)?;
        tape.bytes();
        // What an entry that is not a file carries is skipped here, where it is not held against the headers.
        count(&mut entry, left, &mut buf)?;
    }
    root.finish()?;
    Ok(done)
}

/// Looks at a plain tar as [`unpack`] would, without writing anything.
pub(super) fn check(tar: impl Read, limits: &Limits) -> Result<Unpacked, RuntimeError> {
    let (tar, allowance) = HeaderGuard::new(tar);
    let mut archive = Archive::new(tar);
    let mut done = Unpacked::default();
    let mut buf = vec![0; BUFFER];
    let mut entries = archive.entries().map_err(bad)?;
    loop {
        allowance.headers();
        let Some(entry) = entries.next() else { return Ok(done) };
        let mut entry = entry.map_err(bad)?;
        done.entries += 1;
        if done.entries > limits.entries {
            return Err(bad(format!("more than {} entries in a layer", limits.entries)));
        }
        let meta = Meta::of(&mut entry)?;
        allowance.contents();
        let left = limits.unpacked_bytes.saturating_sub(done.bytes);
        done.bytes += match &meta.sparse {
            Some(sparse) => count(&mut sparse.whole(&mut entry)?, left, &mut buf)?,
            None => 0,
        };
        done.bytes += count(&mut entry, left, &mut buf)?;
    }
}

/// How many bytes are still to be read; a sparse file's holes are as many as it says.
fn count(from: &mut impl Read, left: u64, buf: &mut [u8]) -> Result<u64, RuntimeError> {
    let mut bytes = 0;
    loop {
        match from.read(buf).map_err(bad)? {
            0 => return Ok(bytes),
            n => bytes += n as u64,
        }
        if bytes > left {
            return Err(bad(TOO_LARGE));
        }
    }
}

/// What an entry says about itself.
struct Meta {
    /// Relative, without `.` and `..`; empty for the root itself.
    path: PathBuf,
    kind: EntryType,
    link: Option<PathBuf>,
    mode: Mode,
    uid: u32,
    gid: u32,
    /// Seconds since the epoch.
    mtime: i64,
    attributes: Vec<(OsString, Vec<u8>)>,
    /// How its file is packed, if the bytes that follow are not the file's.
    sparse: Option<Sparse>,
}

impl Meta {
    /// Whether the bytes that follow become a file as they are.
    fn is_kept_file(&self) -> bool {
        let hides = self.path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT));
        matches!(self.kind, EntryType::Regular | EntryType::Continuous) && !hides && self.sparse.is_none()
    }

    fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Meta, RuntimeError> {
        let sparse = Sparse::of(entry)?;
        let name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let name = name.unwrap_or_else(|| entry.path_bytes().into_owned());
        let path = inside(&PathBuf::from(OsString::from_vec(name)))?;
        let at = |e: std::io::Error| bad(format!("{}: {e}", path.display()));
        let attributes = attributes(entry).map_err(at)?;
        let header = entry.header();
        let kind = header.entry_type();
        let id = |n: std::io::Result<u64>| {
            u32::try_from(n.map_err(at)?).map_err(|_| bad(format!("{}: owner out of range", path.display())))
        };
        Ok(Meta {
            kind,
            link: entry.link_name_bytes().map(|l| PathBuf::from(OsString::from_vec(l.into_owned()))),
            mode: Mode::from_bits_truncate(header.mode().map_err(at)? & 0o7777),
            uid: id(header.uid())?,
            gid: id(header.gid())?,
            mtime: i64::try_from(header.mtime().map_err(at)?).unwrap_or(0),
            attributes,
            sparse: sparse.filter(|_| matches!(kind, EntryType::Regular | EntryType::Continuous)),
            path,
        })
    }
}

/// A path as it counts in the root; one that names something above is refused.
fn inside(path: &Path) -> Result<PathBuf, RuntimeError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(bad(format!("{}: the path leads out of the layer", path.display())));
            }
        }
    }
    Ok(clean)
}

fn attributes<R: Read>(entry: &mut Entry<'_, R>) -> std::io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(found) };
    for extension in extensions {
        let extension = extension?;
        let Some(name) = extension.key().ok().and_then(|key| key.strip_prefix(PAX_ATTRIBUTE)) else {
            continue;
        };
        if ATTRIBUTES.iter().any(|allowed| name.starts_with(allowed)) && !name.starts_with(OVERLAY) {
            found.push((name.into(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

/// The directory being filled.
struct Root {
    fd: OwnedFd,
    /// The parent used last: entries of one directory follow each other.
    last: Option<(PathBuf, OwnedFd)>,
    /// Directories' times, set at the end because filling them changes them.
    times: Vec<(PathBuf, i64)>,
    /// Only the machine's root can give files away and use `trusted.` attributes.
    privileged: bool,
}

impl Root {
    fn open(target: &Path) -> Result<Root, RuntimeError> {
        let fd = File::open(target).map_err(super::stream::system(format!("open {}", target.display())))?;
        Ok(Root {
            fd: fd.into(),
            last: None,
            times: Vec::new(),
            privileged: nix::unistd::Uid::effective().is_root() && !userns::inside(),
        })
    }

    /// Makes what one entry describes; returns the bytes it took.
    fn put<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        meta: &Meta,
        left: u64,
        buf: &mut [u8],
    ) -> Result<u64, RuntimeError> {
        let at = |e: Errno| failed(&meta.path, e);
        let Some(name) = meta.path.file_name() else {
            if meta.kind == EntryType::Directory {
                self.dress(".", meta, &self.fd.try_clone().map_err(|e| failed(&meta.path, e))?)?;
            }
            return Ok(0);
        };
        let parent_path = meta.path.parent().unwrap_or(Path::new(""));
        let parent = self.directory(parent_path)?;
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(&parent, name, meta).map(|()| 0);
        }
        match meta.kind {
            EntryType::Directory => {
                match self.kind_of(&parent, name) {
                    Some(FileType::Directory) => {}
                    found => {
                        self.clear(&parent, name, meta, found)?;
                        mkdirat(&parent, name, Mode::RWXU).map_err(at)?;
                    }
                }
                self.times.push((meta.path.clone(), meta.mtime));
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.clear(&parent, name, meta, self.kind_of(&parent, name))?;
                let mut file = create(&parent, name).map_err(at)?;
                let bytes = match &meta.sparse {
                    Some(sparse) => {
                        copy((&mut sparse.whole(entry)?, sparse.size), &mut file, meta, left, buf)?
                    }
                    None => {
                        let size = entry.size();
                        copy((entry, size), &mut file, meta, left, buf)?
                    }
                };
                self.dress(name, meta, &parent)?;
                return Ok(bytes);
            }
            EntryType::Symlink => {
                let link = meta.link.as_deref().ok_or_else(|| failed(&meta.path, "a link without target"))?;
                self.clear(&parent, name, meta, self.kind_of(&parent, name))?;
                symlinkat(link, &parent, name).map_err(at)?;
            }
            EntryType::Link => {
                let link = meta.link.as_deref().ok_or_else(|| failed(&meta.path, "a link without target"))?;
                return self.hard_link(&parent, name, &inside(link)?, meta).map(|()| 0);
            }
            EntryType::Fifo => {
                self.clear(&parent, name, meta, self.kind_of(&parent, name))?;
                mknodat(&parent, name, FileType::Fifo, meta.mode, 0).map_err(at)?;
            }
            // Devices are the runtime's to make; global headers and unknown kinds say nothing about files.
            _ => return Ok(0),
        }
        self.dress(name, meta, &parent)?;
        Ok(0)
    }

    /// Opens a directory of the layer, making what is missing of it.
    fn directory(&mut self, path: &Path) -> Result<OwnedFd, RuntimeError> {
        let again = |fd: &OwnedFd| fd.try_clone().map_err(|e| failed(path, e));
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return again(fd);
        }
        let fd = match self.open_inside(path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                // Only now and then, and as deep as a path is long.
                let name = path.file_name().ok_or_else(|| failed(path, Errno::NOENT))?;
                let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
                let mode = Mode::from_bits_truncate(0o755);
                match mkdirat(&parent, name, mode) {
                    // A dangling symbolic link is in the way of a directory: nothing can be put in there.
                    Err(Errno::EXIST) => return Err(bad(format!("{}: not a directory", path.display()))),
                    done => done.map_err(|e| failed(path, e))?,
                }
                self.open_inside(path).map_err(|e| failed(path, e))?
            }
            Err(e) => return Err(failed(path, e)),
        };
        self.last = Some((path.to_owned(), again(&fd)?));
        Ok(fd)
    }

    /// Opens a directory as a process that is chrooted into the layer would find it.
    fn open_inside(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.fd, path, flags, Mode::empty(), resolve)
    }

    fn kind_of(&self, parent: &OwnedFd, name: &OsStr) -> Option<FileType> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileType::from_raw_mode(stat.st_mode))
    }

    /// Makes room for an entry whose name is taken: the later entry counts.
    fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        meta: &Meta,
        found: Option<FileType>,
    ) -> Result<(), RuntimeError> {
        let Some(found) = found else { return Ok(()) };
        // The directory opened last may be what goes, or be reached through it.
        self.last = None;
        if found != FileType::Directory {
            return unlinkat(parent, name, AtFlags::empty()).map_err(|e| failed(&meta.path, e));
        }
        let path = Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name);
        std::fs::remove_dir_all(path).map_err(|e| failed(&meta.path, e))
    }

    fn whiteout(&mut self, parent: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<(), RuntimeError> {
        let at = |e: Errno| failed(&meta.path, e);
        if name.as_bytes() == OPAQUE {
            let attribute = if self.privileged { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
            let directory = File::from(parent.try_clone().map_err(|e| failed(&meta.path, e))?);
            return directory.set_xattr(attribute, b"y").map_err(|e| failed(&meta.path, e));
        }
        if name.as_bytes().starts_with(AUFS) {
            return Ok(());
        }
        let hidden = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]);
        if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
            return Err(bad(format!("{}: hides nothing that has a name", meta.path.display())));
        }
        if self.kind_of(parent, hidden).is_some() {
            // The same layer has it: a whiteout speaks of the layers below only.
            return Ok(());
        }
        mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)).map_err(at)
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        target: &Path,
        meta: &Meta,
    ) -> Result<(), RuntimeError> {
        let Some(target_name) = target.file_name() else {
            return Err(bad(format!("{}: a hard link to the root", meta.path.display())));
        };
        if target == meta.path {
            return Ok(());
        }
        let from = self.open_inside(target.parent().unwrap_or(Path::new(""))).map_err(|_| {
            bad(format!("{}: hard link to {}, which is not there", meta.path.display(), target.display()))
        })?;
        match self.kind_of(&from, target_name) {
            None => {
                return Err(bad(format!(
                    "{}: hard link to {}, which is not there",
                    meta.path.display(),
                    target.display()
                )));
            }
            Some(FileType::Directory) => {
                return Err(bad(format!("{}: hard link to a directory", meta.path.display())));
            }
            Some(_) => {}
        }
        self.clear(parent, name, meta, self.kind_of(parent, name))?;
        linkat(&from, target_name, parent, name, AtFlags::empty()).map_err(|e| failed(&meta.path, e))
    }

    /// Gives what was made its owner, mode, attributes and time. The order matters: a change of owner clears setuid
    /// and capabilities.
    fn dress(&self, name: impl AsRef<OsStr>, meta: &Meta, parent: &OwnedFd) -> Result<(), RuntimeError> {
        let name = name.as_ref();
        let at = |e: Errno| failed(&meta.path, e);
        if self.privileged {
            let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
        }
        if meta.kind != EntryType::Symlink {
            // Not a symbolic link: it was made here as something else.
            chmodat(parent, name, meta.mode, AtFlags::empty()).map_err(at)?;
            self.set_attributes(parent, name, meta)?;
        }
        if meta.kind != EntryType::Directory {
            utimensat(parent, name, &times(meta.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(at)?;
        }
        Ok(())
    }

    fn set_attributes(&self, parent: &OwnedFd, name: &OsStr, meta: &Meta) -> Result<(), RuntimeError> {
        if meta.attributes.is_empty() || meta.kind == EntryType::Fifo {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            openat(parent, name, flags, Mode::empty()).map(File::from).map_err(|e| failed(&meta.path, e))?;
        for (attribute, value) in &meta.attributes {
            match file.set_xattr(attribute, value).map_err(|e| (Errno::from_io_error(&e), e)) {
                // The file system has none, or the user may not: the layer works without.
                Ok(()) | Err((Some(Errno::OPNOTSUPP | Errno::PERM), _)) => {}
                Err((_, e)) => return Err(failed(&meta.path, e)),
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), RuntimeError> {
        for (path, mtime) in std::mem::take(&mut self.times).into_iter().rev() {
            // A later entry may have replaced the directory.
            if let Ok(fd) = self.open_inside(&path) {
                utimensat(&fd, ".", &times(mtime), AtFlags::empty()).map_err(|e| failed(&path, e))?;
            }
        }
        Ok(())
    }
}

fn create(parent: &OwnedFd, name: &OsStr) -> Result<File, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn times(seconds: i64) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

fn copy(
    (from, size): (&mut impl Read, u64),
    file: &mut File,
    meta: &Meta,
    left: u64,
    buf: &mut [u8],
) -> Result<u64, RuntimeError> {
    let mut bytes = 0;
    loop {
        let n = from.read(buf).map_err(bad)?;
        if n == 0 {
            break;
        }
        bytes += n as u64;
        if bytes > left {
            return Err(bad(TOO_LARGE));
        }
        file.write_all(&buf[..n]).map_err(|e| failed(&meta.path, e))?;
    }
    if bytes < size {
        return Err(bad(format!("{}: the archive ends within the file", meta.path.display())));
    }
    Ok(bytes)
}

fn failed(path: &Path, cause: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::System { operation: format!("unpack {}", path.display()), cause: cause.to_string() }
}
