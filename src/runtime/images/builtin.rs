//! The built-in image: `troupe.local/hello`, our own executable as an image, so that a cluster has something to run
//! before anybody fetched anything.
//!
//! Owns: how that image is made and refreshed. Its digest stands for the executable's identity (inode, size, time), not
//! for its bytes: hashing them would cost every start a tenth of a second.

use std::{
    fs::{self, File, Metadata, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use super::{
    BUILTIN_IMAGE,
    index::{Disk, LayerRecord, Record},
    load::{place, write_size},
    stream::{digest_of, system},
};
use crate::runtime::RuntimeError;

/// The user the program runs as: nobody's, so that it fits under every pod security rule.
pub(super) const USER: &str = "65532:65532";
pub(super) const PASSWD: &str =
    "root:x:0:0:root:/:/sbin/nologin\nhello:x:65532:65532:hello:/:/sbin/nologin\n";
pub(super) const GROUP: &str = "root:x:0:\nhello:x:65532:\n";
/// Its directories and their modes.
pub(super) const DIRS: &[(&str, u32)] =
    &[("", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)];
/// Raised when the image's other content changes, so that stores make it anew.
const EDITION: u32 = 1;

/// Makes the image, or makes it anew when the executable is another one.
pub(super) fn ensure(disk: &Disk, exe: &Path) -> Result<(), RuntimeError> {
    let of_exe = fs::metadata(exe).map_err(system(format!("read {}", exe.display())))?;
    let diff_id = digest_of(identity(&of_exe).as_bytes());
    let id = digest_of(format!("image of {diff_id}").as_bytes());
    let loading = disk.loading()?;
    if disk.read()?.names.get(BUILTIN_IMAGE) == Some(&id) && disk.layer_bytes(&diff_id).is_some() {
        return Ok(());
    }
    if disk.layer_bytes(&diff_id).is_none() {
        let staging = disk.stage()?;
        let home = staging.path.join("layer");
        fill(&home, exe, &of_exe).map_err(system(format!("make {BUILTIN_IMAGE}")))?;
        write_size(&home, of_exe.len())?;
        place(&home, &disk.layer_home(&diff_id))?;
    }
    let record = Record {
        layers: vec![LayerRecord { diff_id, bytes: of_exe.len() }],
        entrypoint: vec!["/hello".into(), "hello".into()],
        working_dir: "/".into(),
        user: USER.into(),
        ..Record::default()
    };
    disk.update(|index| {
        index.names.insert(BUILTIN_IMAGE.to_owned(), id.clone());
        index.images.insert(id, record);
        Ok(())
    })?;
    drop(loading);
    disk.sweep()
}

/// What tells an executable from another one, short of reading it.
pub(super) fn identity(exe: &Metadata) -> String {
    format!("{EDITION} {} {} {} {}.{}", exe.dev(), exe.ino(), exe.len(), exe.mtime(), exe.mtime_nsec())
}

fn fill(home: &Path, exe: &Path, of_exe: &Metadata) -> io::Result<()> {
    let root = home.join("fs");
    for (dir, mode) in DIRS {
        let path = root.join(dir);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(*mode))?;
    }
    for (file, text) in [("etc/passwd", PASSWD), ("etc/group", GROUP)] {
        fs::write(root.join(file), text)?;
        fs::set_permissions(root.join(file), Permissions::from_mode(0o644))?;
    }
    let hello = root.join("hello");
    // A link costs nothing, but it shares the mode, and not every file system or rule allows it.
    let usable = of_exe.mode() & 0o555 == 0o555;
    if usable && fs::canonicalize(exe).and_then(|exe| fs::hard_link(exe, &hello)).is_ok() {
        return Ok(());
    }
    io::copy(&mut File::open(exe)?, &mut File::create(&hello)?)?;
    fs::set_permissions(&hello, Permissions::from_mode(0o755))
}
