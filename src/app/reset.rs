//! `troupe reset`: the end of a data directory's cluster.
//!
//! Owns: what a cluster leaves on a machine and in which order it goes: containers, bridges and cgroups, mounts, files.
//! Invariants: never while another process runs the cluster (it holds the lock meanwhile); nothing is removed before a
//! person or `--yes` agreed; only what Troupe made is removed, so a directory with other files in it keeps those.

use std::{
    fs,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{StartError, cri, docker, network, rootless, said::say};
use crate::{
    model::NodeName,
    runtime::{
        ContainerRuntime as _,
        images::ImageStore,
        native::{self, NativeConfig, NativeRuntime},
    },
    store::DataDir,
};

/// What Troupe keeps in a data directory; the lock comes last, so that nobody starts on half of the rest.
const OWN: &[&str] = &[
    "ready",
    "nodes",
    "images",
    "objects",
    "objects.new",
    "pki",
    "admin.kubeconfig",
    "pod-network",
    super::membership::RECORD,
    super::install::TOKEN_FILE,
    rootless::RECORD,
    "format.new",
    "format",
    "lock",
];

/// The file that shows that a directory is a cluster's.
const MARK: &str = "format";

/// What `troupe reset` was asked for.
#[derive(Clone, Debug)]
pub struct ResetOptions {
    /// Whose cluster.
    pub data_dir: PathBuf,
    /// Do not ask.
    pub yes: bool,
}

/// Ends every container of a data directory's nodes and removes the cluster with all its objects. Exit code 1 when it
/// cannot be done or was not agreed to, 2 when nobody could be asked.
pub fn reset(options: &ResetOptions) -> ExitCode {
    super::init_tracing();
    match run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("troupe: {error}");
            ExitCode::from(1)
        }
    }
}

fn run(options: &ResetOptions) -> Result<ExitCode, StartError> {
    let data = match fs::canonicalize(&options.data_dir) {
        Ok(data) => data,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            say(&format!("nothing to reset: {} is not there", options.data_dir.display()));
            return Ok(ExitCode::SUCCESS);
        }
        Err(source) => return Err(file(&options.data_dir)(source)),
    };
    // What failed early has no mark yet, but nothing else either.
    if !data.join(MARK).exists() && !entries(&data).all(|name| OWN.contains(&name.as_str())) {
        return Err(StartError::Refused(format!(
            "{} is no cluster's data directory (it has no file {MARK:?}); nothing was removed",
            data.display()
        )));
    }
    let lock = DataDir::open(&data)?;
    let mut left = Left::find(&data);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(file(Path::new("the machine")))?;
    let in_engine = runtime.block_on(docker::Left::find(&data, &left.nodes))?;
    let in_cri = runtime.block_on(cri::Left::find(&data, &left.nodes))?;
    if left.pods > 0 && !nix::unistd::geteuid().is_root() {
        return Err(StartError::Refused(format!(
            "the {} pods of this cluster were started by root: run this as root (sudo)",
            left.pods
        )));
    }
    left.pods += in_engine.iter().map(|left| left.pods).sum::<usize>();
    left.pods += in_cri.iter().map(|left| left.pods).sum::<usize>();
    if !options.yes {
        if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
            eprintln!("troupe: {left}; there is no terminal to ask on: to agree, give --yes");
            return Ok(ExitCode::from(2));
        }
        if !agreed(&left).map_err(file(Path::new("the terminal")))? {
            eprintln!("troupe: nothing was removed");
            return Ok(ExitCode::from(1));
        }
    }
    runtime.block_on(async {
        for left in &in_engine {
            left.remove().await?;
        }
        for left in &in_cri {
            left.remove().await?;
        }
        if nix::unistd::geteuid().is_root() { end_nodes(&data, &left.nodes).await } else { Ok(()) }
    })?;
    native::unmount_below(&data).map_err(file(&data))?;
    rootless::end(&data);
    remove_files(&data, lock)?;
    say(&format!("{} pods ended; the cluster in {} is no more", left.pods, data.display()));
    Ok(ExitCode::SUCCESS)
}

/// After a clean end of `troupe up`: takes the bridges and cgroups of nodes that have no sandbox off the machine. Does
/// nothing when another process has taken over meanwhile.
pub(super) async fn tidy(data: &Path, nodes: &[NodeName]) {
    let Ok(data) = fs::canonicalize(data) else { return };
    let Ok(_lock) = DataDir::open(&data) else { return };
    docker::tidy(&data, nodes).await;
    cri::tidy(&data, nodes).await;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    for (index, name) in nodes.iter().enumerate() {
        if has_pods(&data, name) {
            continue;
        }
        let ended = match open(&data, name, index) {
            Ok(runtime) => runtime.destroy().await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::debug!(node = %name, %error, "something of an empty node is left on the machine");
        }
    }
    if !entries(&data.join("nodes")).any(|node| has_pods(&data, &NodeName::from(node))) {
        rootless::end(&data);
    }
}

/// What there is to remove.
struct Left {
    data: PathBuf,
    nodes: Vec<NodeName>,
    pods: usize,
}

impl Left {
    fn find(data: &Path) -> Left {
        let mut nodes: Vec<NodeName> = entries(&data.join("nodes")).map(NodeName::from).collect();
        nodes.sort();
        let pods = nodes.iter().map(|node| entries(&sandboxes(data, node)).count()).sum();
        Left { data: data.to_owned(), nodes, pods }
    }
}

impl std::fmt::Display for Left {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "this ends {} pods of {} nodes at once and removes all objects, certificates, images and logs in {}",
            self.pods,
            self.nodes.len(),
            self.data.display()
        )
    }
}

fn entries(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
}

fn runtime_root(data: &Path, node: &NodeName) -> PathBuf {
    data.join("nodes").join(node.as_str()).join("runtime")
}

fn sandboxes(data: &Path, node: &NodeName) -> PathBuf {
    runtime_root(data, node).join("sandboxes")
}

fn has_pods(data: &Path, node: &NodeName) -> bool {
    entries(&sandboxes(data, node)).next().is_some()
}

fn agreed(left: &Left) -> io::Result<bool> {
    eprint!("{left}.\nGo on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn open(data: &Path, node: &NodeName, index: usize) -> Result<NativeRuntime, crate::runtime::RuntimeError> {
    let images = ImageStore::open(&data.join("images"))?;
    let mut config = NativeConfig::new(runtime_root(data, node), images);
    (config.bridge, config.cgroup_parent) = network::names(data, index);
    NativeRuntime::open(config)
}

/// Removes every sandbox of every node. Which bridge a node had depends on its place when it was started, which no file
/// tells: as many places as there are nodes are all there can have been.
async fn end_nodes(data: &Path, nodes: &[NodeName]) -> Result<(), StartError> {
    for (index, node) in nodes.iter().enumerate() {
        let runtime = open(data, node, index)?;
        for pod in runtime.list_pod_sandboxes().await? {
            runtime.remove_pod_sandbox(&pod.uid).await?;
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        open(data, node, index)?.destroy().await?;
    }
    Ok(())
}

fn remove_files(data: &Path, lock: DataDir) -> Result<(), StartError> {
    for name in OWN {
        let path = data.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file(&path)(error)),
            _ => {}
        }
    }
    drop(lock);
    if let Err(error) = fs::remove_dir(data) {
        // A mount point, or files that are not ours: both stay.
        eprintln!("troupe: {} itself stays: {error}", data.display());
    }
    Ok(())
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Refused(format!("cannot remove {}: {source}", path.display()))
}
