//! What is in files about sandboxes and containers: the truth that a restarted process starts from.
//!
//! Owns: file names and records. `sandbox.json` and `container.json` are written once by the driver; `started.json`
//! and `exit.json` once by the shim. Invariants: files appear whole (written beside, then renamed); they need not
//! survive a power cut, since no container does. So all but what containers write is kept in memory where that can be
//! (a tmpfs at `ROOT/sandboxes`): a disk's file system is slow at many small files that come and go.
//!
//! ```text
//! ROOT/sandboxes/UID/     sandbox.json shim.sock shim.log hosts hostname resolv.conf shm/ libcontainer/
//!                         containers/ID/  container.json config.json started.json exit.json rootfs/ cgroup/ layers/ held/ disk
//! ROOT/writable/UID/ID/   upper/ work/
//! ROOT/mount-points/      etc/hosts proc/ …: the lowest layer of every container
//! ```

use std::{
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::runtime::{ContainerConfig, ContainerId, Exit, RuntimeError, SandboxConfig};

/// What a shim is told about its pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub config: SandboxConfig,
    /// Absent with host network.
    pub network: Option<PodNetwork>,
    /// The pod's cgroup, from the root of each hierarchy: `/troupe/UID`.
    pub cgroup: PathBuf,
    pub created_ms: i64,
}

/// A pod's place on the node's bridge.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct PodNetwork {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    pub bridge: String,
    /// The node's end of the pair.
    pub veth: String,
    pub mtu: u32,
}

/// All that is needed to run a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub id: ContainerId,
    pub config: ContainerConfig,
    pub image: ImageRecord,
    pub created_ms: i64,
}

/// What of an image its containers need.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    pub id: String,
    /// Unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
    pub stop_signal: Option<String>,
}

/// Written when a container's program runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Started {
    pub pid: i32,
    /// The process' start time in clock ticks since boot: tells it from a later one with the same pid.
    pub ticks: u64,
    pub started_ms: i64,
}

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub(super) struct SandboxDir(pub PathBuf);

impl SandboxDir {
    pub(super) fn new(root: &Path, uid: &str) -> SandboxDir {
        SandboxDir(sandboxes(root).join(uid))
    }

    /// What its containers write lies below.
    fn writable(&self) -> PathBuf {
        let root = self.0.ancestors().nth(DEPTH).unwrap_or(&self.0);
        writable(root).join(self.0.file_name().unwrap_or_default())
    }

    /// Removes everything of the sandbox. Idempotent.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.writable())?;
        remove_tree(&self.0)
    }

    pub(super) fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }

    pub(super) fn shim_log(&self) -> PathBuf {
        self.0.join("shim.log")
    }

    pub(super) fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    pub(super) fn container(&self, id: &ContainerId) -> ContainerDir {
        ContainerDir(self.containers().join(&id.0))
    }

    /// Shared memory of the pod's containers, a tmpfs in the shim's mount namespace.
    pub(super) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }

    /// The lowest layer of every container's root file system.
    pub(super) fn mount_points(&self) -> PathBuf {
        mount_points(self.0.ancestors().nth(DEPTH).unwrap_or(&self.0))
    }

    /// Where the shim has the node's cgroups of version 1.
    pub(super) fn cgroups(&self) -> PathBuf {
        self.0.join("cgroups")
    }

    /// Where libcontainer keeps its own state.
    pub(super) fn libcontainer(&self) -> PathBuf {
        self.0.join("libcontainer")
    }
}

/// How far a sandbox' directory is below the root.
const DEPTH: usize = 2;

/// The socket's name in a sandbox' directory.
pub(super) const SOCKET: &str = "shim.sock";

/// The pipes of a program with streams, in a directory of its own: its input, its standard output and error.
pub(super) const INPUT: &str = "in";
pub(super) const OUTPUTS: [&str; 2] = ["out", "err"];

/// The directory of one container: also its OCI bundle.
#[derive(Clone, Debug)]
pub(super) struct ContainerDir(pub PathBuf);

impl ContainerDir {
    pub(super) fn record(&self) -> PathBuf {
        self.0.join("container.json")
    }

    pub(super) fn spec(&self) -> PathBuf {
        self.0.join("config.json")
    }

    pub(super) fn started(&self) -> PathBuf {
        self.0.join("started.json")
    }

    pub(super) fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// Where parts of volumes are held, one below its number.
    pub(super) fn held(&self) -> PathBuf {
        self.0.join("held")
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// What the container sees as `/sys/fs/cgroup` on version 1.
    pub(super) fn cgroups(&self) -> PathBuf {
        self.0.join("cgroup")
    }

    /// What the container writes lies below, in `upper` and `work`.
    pub(super) fn writable(&self) -> PathBuf {
        let sandbox = SandboxDir(self.0.ancestors().nth(2).unwrap_or(&self.0).to_owned());
        sandbox.writable().join(self.0.file_name().unwrap_or_default())
    }

    /// Makes the two directories below [`writable`](Self::writable) that overlayfs wants.
    pub(super) fn make_writable(&self) -> io::Result<()> {
        let dir = self.writable();
        std::fs::create_dir_all(dir.join("work"))?;
        std::fs::create_dir_all(dir.join("upper"))?;
        // The container's root directory looks like it, whatever the umask of this process is.
        permit(&dir.join("upper"), 0o755)
    }

    /// Removes everything of the container. Idempotent.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove_tree(&self.writable())?;
        remove_tree(&self.0)
    }

    pub(super) fn read_started(&self) -> Option<Started> {
        read(&self.started()).ok()
    }

    pub(super) fn read_exit(&self) -> Option<Exit> {
        read(&self.exit()).ok()
    }
}

/// Whether a runtime's directory has sandboxes, running or not.
pub fn holds_sandboxes(root: &Path) -> bool {
    std::fs::read_dir(sandboxes(root)).is_ok_and(|mut entries| entries.next().is_some())
}

/// The directory of all sandboxes.
pub(super) fn sandboxes(root: &Path) -> PathBuf {
    root.join("sandboxes")
}

/// The directory of what the containers of all sandboxes write.
pub(super) fn writable(root: &Path) -> PathBuf {
    root.join("writable")
}

fn mount_points(root: &Path) -> PathBuf {
    root.join("mount-points")
}

/// Makes a layer of what is mounted in every container, below all layers of its image: what an image lacks of it need
/// not be made in each container's writable layer then, on the disk. (Idea: Docker's init layer.)
pub(super) fn make_mount_points(root: &Path) -> io::Result<()> {
    let layer = mount_points(root);
    if layer.exists() {
        return Ok(());
    }
    // Made beside and renamed, so that nobody sees a part of it; two at once make the same.
    let beside = layer.with_extension(uuid::Uuid::new_v4().simple().to_string());
    // As above.
    for dir in ["etc", "dev", "proc", "sys"].map(|dir| beside.join(dir)) {
        std::fs::create_dir_all(&dir)?;
        permit(&dir, 0o755)?;
    }
    for file in super::spec::POD_FILES.iter().map(|file| beside.join("etc").join(file)) {
        std::fs::File::create(&file)?;
        permit(&file, 0o644)?;
    }
    match std::fs::rename(&beside, &layer) {
        Err(_) if layer.exists() => remove_tree(&beside),
        renamed => renamed,
    }
}

fn permit(path: &Path, mode: u32) -> io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

/// Writes a record so that readers see all of it or nothing.
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(value)?)?;
    std::fs::rename(&beside, path)
}

/// Reads a record.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Removes a directory tree; one that is not there is removed already.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Milliseconds since the epoch.
pub(super) fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as i64)
}

/// When a process started, in clock ticks since boot; `None` when there is none of that pid.
pub(super) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything, parentheses and blanks too.
    let after_name = stat.rsplit_once(')')?.1;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(STARTTIME_AFTER_STATE)?.parse().ok()
}

/// `starttime` is field 22 of proc(5)'s stat, the state is field 3.
const STARTTIME_AFTER_STATE: usize = 18;

/// A system's refusal, in the trait's words.
pub(super) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> RuntimeError {
    let operation = operation.into();
    move |cause| RuntimeError::System { operation, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_time_is_found_and_that_of_no_process_is_not() {
        let own = std::process::id() as i32;
        assert!(start_ticks(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_ticks(i32::MAX), None);
    }

    #[test]
    fn a_record_is_read_back_and_leaves_no_file_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit.json");
        let exit = Exit { code: 137, signal: Some(9), oom_killed: true, finished_ms: 5, unseen: false };
        write(&path, &exit).unwrap();
        assert_eq!(read::<Exit>(&path).unwrap(), exit);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
