//! A pod's own users: `hostUsers: false`.
//!
//! Owns: the user namespace that all containers of the pod run in, the other namespaces that belong to it, and the stage:
//! copies of what they mount, with the pod's numbers for owners (idmapped mounts, Linux 5.12). Invariants: root in the
//! pod is nobody's root on the node; a container's first process has no rights on the node's directories, so it finds the
//! stage at a path that everybody may enter, for the time of its start; what is on the stage is taken off, never removed.
//!
//! ```text
//! SANDBOX/stage/  hosts hostname resolv.conf shm/ containers/ID/ rootfs/ held/N message cgroup/    (a tmpfs of the shim's)
//! ```

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{PermissionsExt as _, chown},
    },
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{Signal, kill},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Gid, Pid, Uid, setresgid, setresuid},
};

use super::{
    super::{
        beneath,
        protocol::Fault,
        spec::POD_FILES,
        state::{ContainerDir, ContainerRecord, SandboxDir},
        sys,
        user::Identity,
    },
    container::pipe,
    volumes,
};
use crate::runtime::{IdRange, Mount, Propagation, SandboxConfig};

/// Directories of which every machine has one that its users may enter.
const SHOWN: &[&str] = &["/mnt", "/media", "/srv", "/opt", "/home", "/tmp", "/run", "/var"];
const NONE: Option<&str> = None;

/// The users of one pod.
pub(super) struct Users {
    range: IdRange,
    namespace: File,
    /// Where copies are kept.
    stage: SandboxDir,
    /// Where they are seen during a start.
    shown: SandboxDir,
}

impl Users {
    /// Makes the pod's user namespace, and enters network, host name and IPC namespaces that belong to it.
    pub(super) fn enter(dir: &SandboxDir, config: &SandboxConfig) -> Result<Option<Users>, Fault> {
        let Some(range) = config.user_namespace else { return Ok(None) };
        if config.host_network || config.host_pid || config.host_ipc {
            return Err(Fault::Config(
                "a pod with users of its own cannot share the node's namespaces".into(),
            ));
        }
        let shown = SHOWN.iter().map(Path::new).find(|path| {
            let all_enter = |path: &Path| {
                fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.permissions().mode() & 0o001 != 0)
            };
            !dir.0.starts_with(path) && all_enter(path)
        });
        let shown =
            shown.ok_or_else(|| Fault::Config(format!("no directory to mount on: one of {SHOWN:?}")))?;
        let Namespaces { user, others } =
            Namespaces::make(range).map_err(Fault::system("make the pod's user namespace"))?;
        for namespace in others {
            setns(namespace, CloneFlags::empty()).map_err(Fault::system("enter the pod's namespaces"))?;
        }
        let stage = SandboxDir(dir.0.join("stage"));
        Ok(Some(Users { range, namespace: user, stage, shown: SandboxDir(shown.to_owned()) }))
    }

    /// Makes the stage, with what all containers share; in the pod's mount namespace, when its files are there.
    pub(super) fn set_stage(&self, dir: &SandboxDir) -> Result<(), Fault> {
        let flags = MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        fs::create_dir_all(&self.stage.0)
            .and_then(|()| {
                let made = mount(Some("stage"), &self.stage.0, Some("tmpfs"), flags, Some("mode=0755"));
                made.map_err(io::Error::from)
            })
            .map_err(Fault::system("make the stage of the pod's users"))?;
        for name in POD_FILES {
            self.copy(&dir.0.join(name), &self.stage.0.join(name))?;
        }
        self.copy(&dir.shm(), &self.stage.shm())
    }

    /// The path of the namespace, for this process and those that it forks.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.namespace.as_raw_fd()).into()
    }

    /// The user namespace.
    pub(super) fn namespace(&self) -> &File {
        &self.namespace
    }

    /// The pod's directory as its containers' first processes see it.
    pub(super) fn shown(&self) -> &SandboxDir {
        &self.shown
    }

    /// What the node calls a user or group of the pod.
    pub(super) fn on_node(&self, id: u32) -> u32 {
        self.range.first.saturating_add(id)
    }

    /// Has a child do something as the pod's root, to whom its namespaces belong. For a process of one thread.
    pub(super) fn as_root(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let child = sys::fork()?;
        if child == 0 {
            let root = || -> io::Result<()> {
                setns(&self.namespace, CloneFlags::CLONE_NEWUSER)?;
                setresgid(Gid::from_raw(0), Gid::from_raw(0), Gid::from_raw(0))?;
                Ok(setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0))?)
            };
            // The status has room for the number of any error that a kernel names.
            let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
            std::process::exit(root().and_then(|()| work()).map_or_else(number, |()| 0));
        }
        match waitpid(Pid::from_raw(child), None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, number) => Err(io::Error::from_raw_os_error(number)),
            other => Err(io::Error::other(format!("who does it as the pod's root has ended: {other:?}"))),
        }
    }

    /// The last number of a user or a group.
    pub(super) fn last(&self) -> u32 {
        self.range.count.saturating_sub(1)
    }

    /// Refuses who is not among the pod's users.
    pub(super) fn check(&self, identity: &Identity) -> Result<(), Fault> {
        let ids = [identity.uid, identity.gid].into_iter().chain(identity.groups.iter().copied());
        match ids.into_iter().find(|id| *id >= self.range.count) {
            Some(id) => Err(Fault::Create(format!(
                "user or group {id}: a pod with hostUsers false has those from 0 to {}",
                self.last()
            ))),
            None => Ok(()),
        }
    }

    /// Mounts a layer of an image so that what is root's in it is the pod's root's.
    pub(super) fn mount_layer(&self, layer: &Path, place: &Path) -> Result<(), Fault> {
        self.copy(layer, place)
    }

    /// Gives the pod's root what a container writes.
    pub(super) fn own(&self, dir: &Path) -> Result<(), Fault> {
        let root = self.on_node(0);
        chown(dir, Some(root), Some(root)).map_err(Fault::system(format!("give away {}", dir.display())))
    }

    /// Puts what a container mounts on the stage, and has its record say where it will be seen.
    pub(super) fn stage(&self, dir: &ContainerDir, record: &mut ContainerRecord) -> Result<(), Fault> {
        let (here, seen) = (self.stage.container(&record.id), self.shown.container(&record.id));
        let root = here.rootfs();
        fs::create_dir_all(&root)
            .and_then(|()| {
                mount(Some(&dir.rootfs()), &root, NONE, MsFlags::MS_BIND, NONE).map_err(io::Error::from)
            })
            .map_err(Fault::system(format!("stage the root of container {}", record.id)))?;
        for (index, volume) in record.config.mounts.iter_mut().enumerate() {
            let name = index.to_string();
            let held = here.held().join(&name);
            self.hold(volume, &held)?;
            volume.host_path = seen.held().join(&name);
        }
        if let Some((message, _)) = &mut record.config.termination_message {
            self.copy(message, &here.0.join(MESSAGE))?;
            *message = seen.0.join(MESSAGE);
        }
        Ok(())
    }

    fn hold(&self, volume: &Mount, held: &Path) -> Result<(), Fault> {
        if volume.propagation == Propagation::Bidirectional {
            return Err(Fault::Config(format!(
                "mount {}: mountPropagation Bidirectional does not go with hostUsers false",
                volume.container_path
            )));
        }
        let part = volume.within.as_ref().map(|root| beneath::open(root, &volume.host_path)).transpose();
        let part =
            part.map_err(|error| Fault::Config(format!("subPath {}: {error}", volume.host_path.display())))?;
        let source = match &part {
            Some(part) => PathBuf::from(format!("/proc/self/fd/{}", part.as_raw_fd())),
            None => volume.host_path.clone(),
        };
        self.copy(&source, held).map_err(|fault| match fault {
            Fault::System { cause, .. } => Fault::Config(format!("{}: {cause}", volume.host_path.display())),
            other => other,
        })?;
        if volume.propagation == Propagation::Private {
            volumes::part(held).map_err(Fault::system("hold a volume"))?;
        }
        Ok(())
    }

    /// Mounts a copy of a file or directory, with the pod's users for the node's.
    fn copy(&self, source: &Path, place: &Path) -> Result<(), Fault> {
        let copied = || -> io::Result<()> {
            let directory = fs::metadata(source)?.is_dir();
            fs::create_dir_all(place.parent().unwrap_or(place))?;
            if directory {
                fs::create_dir(place)?
            } else {
                File::create(place).map(drop)?
            }
            let tree: OwnedFd = sys::copy_mounts(source)?;
            sys::map_owners(&tree, &self.namespace).map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => io::Error::other(NO_OTHER_OWNERS),
                _ => error,
            })?;
            sys::mount_copy(&tree, place)
        };
        copied().map_err(Fault::system(format!("show {} to the pod's users", source.display())))
    }

    /// The directory of a container's things on the stage.
    pub(super) fn container(&self, dir: &ContainerDir) -> ContainerDir {
        let name = dir.0.file_name().unwrap_or_default();
        ContainerDir(self.stage.containers().join(name))
    }

    /// Takes a container's things off the stage. What cannot be taken off stays: it is not to be removed through it.
    pub(super) fn clear(&self, dir: &ContainerDir) {
        let here = self.container(dir);
        let in_dir =
            |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let remove = |place: &Path| {
            let _ = fs::remove_dir(place).or_else(|_| fs::remove_file(place));
        };
        for place in in_dir(here.held()).chain([here.0.join(MESSAGE), here.rootfs()]) {
            let _ = umount2(&place, MntFlags::MNT_DETACH);
            remove(&place);
        }
        // Where cgroups were shown; a directory that one still is in cannot be removed.
        in_dir(here.cgroups()).for_each(|place| remove(&place));
        for empty in [here.held(), here.cgroups(), here.0] {
            let _ = fs::remove_dir(empty);
        }
    }

    /// Has the stage seen until the guard is dropped.
    pub(super) fn show(&self) -> Result<Shown<'_>, Fault> {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(&self.stage.0), &self.shown.0, NONE, bind, NONE)
            .map_err(Fault::system("show the stage of the pod's users"))?;
        Ok(Shown(&self.shown.0))
    }

    /// The same in a mount namespace of this process' own, for good.
    pub(super) fn show_apart(&self) -> Result<(), Fault> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(Fault::system("take the mounts apart from the pod's"))?;
        std::mem::forget(self.show()?);
        Ok(())
    }

    /// Has this process be one that the pod's root may rule, for good: libcontainer enters the other namespaces of a
    /// container for a further program, but not its users'. As before it is the owner of what is the node's root's.
    pub(super) fn join(&self) -> Result<(), Fault> {
        setns(&self.namespace, CloneFlags::CLONE_NEWUSER)
            .map_err(Fault::system("enter the pod's user namespace"))
    }
}

const MESSAGE: &str = "message";
const NO_OTHER_OWNERS: &str = "its file system cannot show its files with other owners (idmapped mounts)";

/// The stage, seen.
pub(super) struct Shown<'a>(&'a Path);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0, MntFlags::MNT_DETACH) {
            tracing::error!(%error, "the stage of the pod's users stays mounted");
        }
    }
}

struct Namespaces {
    user: File,
    others: [File; 3],
}

impl Namespaces {
    /// Has a child make them, since the shim itself stays among the node's users. For a process of one thread.
    fn make(range: IdRange) -> io::Result<Namespaces> {
        let fault = |fault: Fault| io::Error::other(fault.into_error().to_string());
        let (told, tell) = pipe().map_err(fault)?;
        let (heard, answer) = pipe().map_err(fault)?;
        let child = sys::fork()?;
        if child == 0 {
            drop((told, answer));
            let (mut tell, mut heard) = (File::from(tell), File::from(heard));
            let mut step = |flags| -> io::Result<()> {
                unshare(flags)?;
                tell.write_all(&[0])?;
                heard.read_exact(&mut [0])
            };
            let rest = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
            let made = step(CloneFlags::CLONE_NEWUSER).and_then(|()| step(rest));
            std::process::exit(i32::from(made.is_err()));
        }
        drop((tell, heard));
        let made = Self::take(child, range, File::from(told), File::from(answer));
        let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(child), None);
        made
    }

    fn take(child: i32, range: IdRange, mut told: File, mut answer: File) -> io::Result<Namespaces> {
        let mut step = || {
            told.read_exact(&mut [0])
                .map_err(|_| io::Error::other("the kernel refuses one (user.max_user_namespaces?)"))
        };
        let namespace = |name: &str| File::open(format!("/proc/{child}/ns/{name}"));
        step()?;
        for file in ["uid_map", "gid_map"] {
            let map = format!("0 {} {}\n", range.first, range.count);
            fs::write(format!("/proc/{child}/{file}"), map)?;
        }
        let user = namespace("user")?;
        answer.write_all(&[0])?;
        step()?;
        Ok(Namespaces { user, others: [namespace("net")?, namespace("uts")?, namespace("ipc")?] })
    }
}
